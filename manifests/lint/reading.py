"""YAML to objects, each value with its line and column, within bounds that hold before memory is spent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import yaml

from kservekit.errors import CannotStart
from kservekit.manifests.pods import Document
from kservekit.manifests.schema import Place

MOST_BYTES = 8 * 2**20
"""Of one file. A cluster takes 1.5 MiB an object."""

MOST_VALUES = 500_000
"""Of one file, with every alias written out."""

DEEPEST = 100

Mark = tuple[int, int]
"""Line and column, both from 1."""

_HELM = re.compile(r"\{\{-?[\w (]*(?:\.(?:Values|Release|Chart|Capabilities|Files|Template)\b|(?<=include )\")")
"""What no other template has: Prometheus' alerts and KServe's runtimes have {{ }} as well, and are YAML."""

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}
_STRING = "tag:yaml.org,2002:str"


class Unreadable(CannotStart):
    """One line: the file, the line, the column, what is there, and the way out."""

    def __init__(self, source: str, mark: Mark | None, what: str) -> None:
        self.mark = mark
        place = f":{mark[0]}:{mark[1]}" if mark else ""
        super().__init__(f"{source}{place}: {what}")


class NoObject(Unreadable):
    """YAML, and no Kubernetes object: of a folder, a file of another kind."""


@dataclass(frozen=True)
class Entry:
    """An object as it was read."""

    source: str
    document: Document
    marks: dict[int, dict[str | int, Mark]] = field(repr=False)
    start: Mark

    def at(self, place: Place) -> Mark:
        """Where a value stands, or the nearest that is above it."""
        found, value = self.start, self.document
        for step in place:
            found = self.marks.get(id(value), {}).get(step, found)
            try:
                value = value[step]  # type: ignore[index]
            except (KeyError, IndexError, TypeError):
                break
        return found


def read(text: str, source: str) -> tuple[list[Entry], list[Unreadable]]:
    """The objects in `text`, and what of it is none."""
    helm = _HELM.search(text)
    if helm:
        return [], [_is_helm(source, text, _mark(text, helm.start()))]
    entries: list[Entry] = []
    refused: list[Unreadable] = []
    try:
        for value, marks, start in _Reader(text, source).documents():
            _take(value, marks, start, source, entries, refused)
    except Unreadable as error:
        # {{ if }} on a line of its own is no YAML, which is found there or on the next line.
        before = text.split("\n")[: error.mark[0]] if error.mark else []
        templates = [number for number, line in enumerate(before[-2:], len(before[:-2])) if "{{" in line]
        if templates:
            error = _is_helm(source, text, (templates[0] + 1, before[templates[0]].index("{{") + 1))
        refused.append(error)
    return entries, refused


def read_documents(text: str, source: str = "manifests") -> list[Document]:
    """The objects alone; Unreadable where something is none."""
    entries, refused = read(text, source)
    if refused:
        raise refused[0]
    return [entry.document for entry in entries]


def _is_helm(source: str, text: str, mark: Mark) -> Unreadable:
    shown = text.split("\n")[mark[0] - 1][mark[1] - 1 :][:30]
    what = f"a Helm template, not YAML yet ({shown!r}): helm template CHART | kservekit lint -"
    return Unreadable(source, mark, what)


def _mark(text: str, position: int) -> Mark:
    before = text[:position]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _take(
    value: Any,
    marks: dict[int, dict[str | int, Mark]],
    start: Mark,
    source: str,
    entries: list[Entry],
    refused: list[Unreadable],
) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        what = "a list" if isinstance(value, list) else f"{str(value)[:40]!r}"
        refused.append(NoObject(source, start, f"{what} where an object belongs: expected apiVersion and kind"))
    elif not (isinstance(value.get("kind"), str) and isinstance(value.get("apiVersion"), str)):
        missing = "kind" if isinstance(value.get("apiVersion"), str) else "apiVersion"
        refused.append(NoObject(source, start, f"no Kubernetes object: it has no {missing}"))
    elif value["kind"] == "List" and isinstance(value.get("items"), list):
        for number, item in enumerate(value["items"]):
            _take(item, marks, marks[id(value["items"])][number], source, entries, refused)
    else:
        entries.append(Entry(source, value, marks, start))


class _Reader:
    """Builds values from the parser's events, so that each is counted before it is kept."""

    def __init__(self, text: str, source: str) -> None:
        self._text, self._source = text, source
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._marks: dict[int, dict[str | int, Mark]] = {}
        self._values = 0

    def documents(self) -> Iterator[tuple[Any, dict[int, dict[str | int, Mark]], Mark]]:
        start, root = (1, 1), _Open([], {}, (1, 1), None)
        for event in self._events():
            mark = (event.start_mark.line + 1, event.start_mark.column + 1)
            if isinstance(event, yaml.DocumentStartEvent):
                self._marks, self._anchors, start = {}, {}, mark
                root = _Open([], {}, mark, None)
                self._stack = [root]
            elif isinstance(event, yaml.DocumentEndEvent):
                if root.value:
                    yield root.value[0], self._marks, root.marks.get(0, start)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event, mark)
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in self._anchors:
                    raise Unreadable(self._source, mark, f"the alias *{event.anchor} has no anchor before it")
                self._put(*self._anchors[event.anchor], mark)
            elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                self._open(event, mark)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self._close()

    def _events(self) -> Iterator[Any]:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            yield from yaml.parse(self._text, Loader=loader)
        except yaml.MarkedYAMLError as error:
            at = error.problem_mark or error.context_mark
            mark = (at.line + 1, at.column + 1) if at else None
            said = ", ".join(filter(None, (error.context, error.problem)))
            raise Unreadable(self._source, mark, f"not YAML: {said or 'it cannot be parsed'}") from None
        except yaml.reader.ReaderError as error:
            raise Unreadable(self._source, _mark(self._text, error.position), f"not YAML: {error.reason}") from None

    def _open(self, event: Any, mark: Mark) -> None:
        if len(self._stack) > DEEPEST:
            raise Unreadable(self._source, mark, f"nested more than {DEEPEST} levels deep: no manifest is")
        self._check_tag(event, mark)
        is_map = isinstance(event, yaml.MappingStartEvent)
        self._stack.append(_Open({} if is_map else [], {}, mark, event.anchor))

    def _close(self) -> None:
        done = self._stack.pop()
        for merged in done.merged:
            for key, value in merged.items():
                if key not in done.value:
                    done.value[key] = value
                    done.marks[key] = self._marks.get(id(merged), {}).get(key, done.start)
        self._marks[id(done.value)] = done.marks
        if done.anchor:
            self._anchors[done.anchor] = done.value, done.size
        self._put(done.value, done.size, done.start)

    def _scalar(self, event: Any, mark: Mark) -> None:
        self._check_tag(event, mark)
        is_key = isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None
        value = event.value
        if not is_key and (event.tag in _PLAIN_TAGS or (event.tag is None and event.implicit[0])):
            value = _plain(event.value)
        if event.anchor:
            self._anchors[event.anchor] = value, 1
        self._put(value, 1, mark)

    def _check_tag(self, event: Any, mark: Mark) -> None:
        allowed = {None, "!", _STRING, *_PLAIN_TAGS, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
        if event.tag not in allowed:
            raise Unreadable(self._source, mark, f"the tag {event.tag} is none that Kubernetes reads: take it away")

    def _put(self, value: Any, size: int, mark: Mark) -> None:
        """Into what is open; `size` counts what an alias stands for."""
        self._values += 1 if size == 1 else 0
        top = self._stack[-1]
        top.size += size
        if top.size > MOST_VALUES or self._values > MOST_VALUES:
            what = f"more than {MOST_VALUES} values, with its aliases written out: no manifest is that large"
            raise Unreadable(self._source, mark, what)
        if isinstance(top.value, list):
            top.marks[len(top.value)] = mark
            top.value.append(value)
        elif top.key is None:
            if not isinstance(value, str):
                raise Unreadable(self._source, mark, "a map or list as a key: expected a word")
            if value in top.value:
                what = f"the key {value[:40]!r} is here for the second time: kubectl refuses that"
                raise Unreadable(self._source, mark, what)
            top.key, top.key_mark = value, mark
        else:
            if top.key == "<<" and (isinstance(value, dict) or (isinstance(value, list) and value)):
                top.merged += [item for item in ([value] if isinstance(value, dict) else value) if type(item) is dict]
            else:
                top.value[top.key], top.marks[top.key] = value, top.key_mark
            top.key = None


@dataclass
class _Open:
    """A list or a map that is not closed yet."""

    value: Any
    marks: dict[str | int, Mark]
    start: Mark
    anchor: str | None
    size: int = 1
    key: str | None = None
    key_mark: Mark = (1, 1)
    merged: list[dict[str, Any]] = field(default_factory=list)


@cache
def _resolver() -> yaml.SafeLoader:
    return yaml.SafeLoader("")


@lru_cache(4096)
def _plain(text: str) -> Any:
    """A word without quotes, as Kubernetes reads it: dates and 12:30 stay words."""
    loader = _resolver()
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    if tag not in _PLAIN_TAGS or ":" in text:
        return text
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except (ValueError, yaml.YAMLError):
        return text
