"""Why Triton did not start, read from its log. Pure: text in, sentences out."""

from __future__ import annotations

import re

# What Triton 2.51 writes, and the sentence it means; the general one counts only if alone.
_PARTICULAR = (
    (r"\"failed to load '(.+?)' version (\d+): (.*?)\"?$", "the model {0} (version {1}) failed to load: {2}"),
    (r"\"failed to load model '(.+?)': (.*?)\"?$", "the model {0} failed to load: {1}"),
    (r"\"Poll failed for model directory '(.+?)': (.*?)\"?$", "the model {0} was refused: {1}"),
    (r"Error parsing text-format inference\.ModelConfig: (.*)$", "a config.pbtxt cannot be read, at line:column {0}"),
    (r"\"failed to start (\S+) service: \w+ - Socket '(.+?)' already in use", "the {0} address {1} is taken"),
    (r"(unrecognized option .*|option .* requires an argument)$", "it refuses its command line: {0}"),
    (r"Failed to preinitialize Python stub: (.*)$", "a Python model cannot be opened: {0}"),
    (r"error while loading shared libraries: (\S+?): (.*)$", "the library {0} cannot be loaded: {1}"),
)
_GENERAL = ((r"^error: creating server: (?:\w+ - )?(.*)$", "{0}"),)
_TAKEN = re.compile(r"Socket '.*?:(\d+)' already in use")
# Tables, the options' help, our own first line, and what every start and end without a GPU writes.
_NOISE = re.compile(
    r"^([+|#\t]|  --|[A-Z][A-Za-z/ ]*:$|DEPRECATED:|Signal )"
    r"| (server|tritonserver|metrics|pinned_memory_manager|cuda_memory_manager)\.cc:\d+\]|NVML"
)


def reasons(log: str) -> list[str]:
    """Sentences without a full stop, each once, in the log's order of importance."""
    return _matches(_PARTICULAR, log) or _matches(_GENERAL, log)


def hangs(log: str) -> bool:
    """Whether it waits for good: the Python process of a model ended, and Triton did not notice."""
    return "Failed to preinitialize Python stub" in log


def taken_port(log: str) -> int | None:
    """The port that Triton could not have, if that was its reason."""
    found = _TAKEN.search(log)
    return int(found[1]) if found else None


def readable(log: str, lines: int = 12) -> str:
    """The last lines that tell something."""
    kept = [line[:300] for line in log.splitlines() if line.strip() and not _NOISE.search(line)]
    return "\n".join(f"  {line}" for line in kept[-lines:])


def _matches(table: tuple[tuple[str, str], ...], log: str) -> list[str]:
    found = []
    for pattern, sentence in table:
        for match in re.finditer(pattern, log, re.MULTILINE):
            # Triton writes a traceback in one line, with its line ends spelled out.
            groups = [re.sub(r"(\\n|\s|<frozen .*?>\(\d+\): \w+)+", " ", group).strip() for group in match.groups()]
            found.append(sentence.format(*groups))
    return list(dict.fromkeys(found))
