"""Runs the rows: contenders alternately, never two at once, each against the same clock."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from kservekit.benchmarks import load, surroundings, table
from kservekit.benchmarks.check import WrongAnswer
from kservekit.benchmarks.contest import STOCK, Contender, Measure, Result, Row, Server
from kservekit.benchmarks.payloads import PAYLOADS
from kservekit.benchmarks.rows import ROWS
from kservekit.errors import CannotStart
from kservekit.local.server import LocalServer
from kservekit.local.triton import TritonServer
from kservekit.local.triton_install import TritonUnavailable
from kservekit.predictors.repository import declared, write

IDENTITY = Path(__file__).with_name("identity_in_triton.py")

Say = Callable[[str], None]


def run(
    names: Sequence[str] = (), *, repeats: int = 3, seconds: int = 3, say: Say | None = None, rows: Sequence[Row] = ROWS
) -> int:
    """Prints the table; the exit code is 1 where a contender did not serve correctly, whatever the figures."""
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    chosen = choose(names, rows)
    needed = sorted({program for row in chosen for program in row.course.needs})
    load.require(needed)
    others = surroundings.load_average()
    with ExitStack() as stack:
        stage = LocalStage(stack, say)
        results = [(row, contest(row, stage, repeats=repeats, seconds=seconds, say=say)) for row in chosen]
    complaints = table.complaints(results)
    commands = surroundings.command_lines(stage.stock_commands)
    text = [
        table.render(results),
        "",
        *complaints,
        f"{repeats} repeats of {seconds} s each, contenders in turn; p50 and p99 are medians over the repeats.",
        table.listing(chosen),
        surroundings.HANDLERS,
        *(["stock's command lines:", *(f"  {line}" for line in commands)] if commands else []),
        surroundings.versions(stage.where, needed),
        surroundings.machine(others),
    ]
    print("\n".join(text), flush=True)  # noqa: T201
    return int(any(result.failure for _, found in results for result in found))


def choose(names: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """The named rows in the table's order, or all; CannotStart for a name that there is not."""
    unknown = set(names) - {row.name for row in rows}
    if unknown:
        listed = ", ".join(row.name for row in rows)
        raise CannotStart(f"no row {', '.join(map(repr, sorted(unknown)))}: the rows are {listed}")
    return [row for row in rows if not names or row.name in names]


class LocalStage:
    """The Triton that rows share, for the whole run."""

    def __init__(self, stack: ExitStack, say: Say) -> None:
        self._stack, self._say = stack, say
        self._triton: TritonServer | None = None
        self._unavailable: TritonUnavailable | None = None
        self.where = ""
        self.stock_commands: list[list[str]] = []

    def triton(self) -> TritonServer:
        if self._unavailable is not None:
            raise self._unavailable
        if self._triton is None:
            repository = load.folder() / "repository"
            for payload in PAYLOADS.values():
                config = declared(payload.name, payload.spec, backend="python")
                config.instance_group.add(count=payload.instances, kind="KIND_CPU")
                write(repository, config, {"model.py": IDENTITY})
            try:
                self._triton = self._stack.enter_context(TritonServer(repository, progress=self._say))
            except TritonUnavailable as error:
                self._unavailable = error
                raise
            self.where = self._triton.where
        return self._triton


def contest(row: Row, stage: LocalStage, *, repeats: int, seconds: int, say: Say) -> list[Result]:
    say(f"{row.name}: {row.title}")
    results = [Result(contender) for contender in row.contenders]
    measures: dict[int, Measure] = {}
    with ExitStack() as stack:
        for index, result in enumerate(results):
            with noted(result, say):
                measures[index] = row.course.prepare(_recorded(result.contender, stage), stage, stack, seconds)
        for repeat in range(repeats):
            for index, result in enumerate(results):
                if index not in measures or result.failure:
                    continue
                with noted(result, say):
                    figure = measures[index]()
                    result.figures.append(figure)
                    who = f"{result.contender.name} ({result.contender.handler})"
                    say(f"  {repeat + 1}/{repeats} {who:36} {row.course.unit.text(figure.value)}")
    return results


@contextmanager
def noted(result: Result, say: Say) -> Iterator[None]:
    """A contender that fails is out, and the others go on."""
    try:
        yield
    except TritonUnavailable as error:
        result.absent = str(error)
    except (WrongAnswer, CannotStart) as error:
        result.failure = str(error)
        result.figures.clear()
        say(f"  FAILED: {result.contender.name} ({result.contender.handler}): {error}")


def _recorded(contender: Contender, stage: LocalStage) -> Contender:
    """So that stock's exact command line can be printed."""
    if contender.side != STOCK:
        return contender

    def serve(_: object) -> AbstractContextManager[Server]:
        server = contender.serve(stage)
        if isinstance(server, LocalServer):
            stage.stock_commands.append(server.command)
        return server

    return dataclasses.replace(contender, serve=serve)
