"""Callers who come at about the same time, answered with one run of an engine.

For engines in this process; Triton has dynamic batching of its own. What may stand in one batch has the same names,
datatypes and shapes but for the first dimension, which counts the rows. The engine must answer each row by itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import numpy as np

from kservekit.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelError,
    PayloadTooLarge,
    TooManyRequests,
    Unavailable,
)
from kservekit.serving import Tensors, current_request

TIMER_S = 0.001
"""How late uvloop's timers may be: they are set so much earlier, so that nobody waits longer than was said."""

Run = Callable[[Tensors], Awaitable[Tensors]]
Cost = Callable[[Tensors], int]


def rows(tensors: Tensors) -> int:
    """The first dimension that all tensors share; InvalidInput where they share none."""
    counts = {name: array.shape[0] if array.ndim else None for name, array in tensors.items()}
    if len(set(counts.values())) != 1 or None in counts.values():
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in tensors.items())
        raise InvalidInput(
            f"inputs that are put into batches share their first dimension, and these do not: {shapes or 'none'}"
        )
    count: int = next(iter(counts.values()))  # type: ignore[assignment]
    return count


@dataclass(slots=True, eq=False)
class _Share:
    """A caller's rows, or as many of them as one batch holds."""

    tensors: Tensors
    rows: int
    cost: int
    came: float
    deadline: float
    answer: asyncio.Future[Tensors]


_Kind = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
_Line = OrderedDict[_Share, None]
"""Whoever gives up leaves it, from its middle, too."""


class MicroBatcher:
    """`await infer(tensors)` gives a caller exactly the rows that are his own.

    `run` is the engine. A batch holds at most `max_cost` by `cost` (rows where none is given; points or pixels, say)
    and waits at most `max_delay_s` for more callers; it does not wait while it is full, and what comes while all
    `concurrency` runs are busy waits for one of them. A request that costs more is split by rows. More than
    `max_waiting` shares in line: TooManyRequests; of one request alone: PayloadTooLarge. All of it on one event loop.

    A request's deadline ends its wait for others in time for a run as long as the last one, and with half of the
    caller's time left at least. Where a run fails, its callers are run again in halves until the one is alone whose
    fault it is; Unavailable is nobody's, and goes to all of them. A caller who gives up leaves his place in line.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_cost: int,
        max_delay_s: float,
        cost: Cost = rows,
        concurrency: int = 1,
        max_waiting: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_cost < 1 or concurrency < 1 or max_delay_s < 0:
            raise ValueError(
                f"max_cost {max_cost}, concurrency {concurrency}, max_delay_s {max_delay_s}: expected 1, 1, 0 or more"
            )
        self.run, self.cost = run, cost
        self.max_cost, self.max_delay_s, self.max_waiting = max_cost, max_delay_s, max_waiting
        self._clock = clock
        self._lines: dict[_Kind, _Line] = {}
        self._waiting = 0
        self._idle = concurrency
        self._took = 0.0
        """Seconds of the last run."""
        self._runs: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def infer(self, tensors: Tensors) -> Tensors:
        """The engine's answer to these rows; InvalidInput for tensors that have none in common, and its own errors."""
        count = rows(tensors)
        if not count:
            return await self.run(tensors)  # nothing to share, and the engine knows its outputs' shapes
        pieces = self._split(tensors, count)
        if len(pieces) > self.max_waiting:
            raise PayloadTooLarge(
                f"{count} rows are {len(pieces)} shares of batches: this model takes at most {self.max_waiting} of one "
                "request; send it in parts"
            )
        if self._waiting + len(pieces) > self.max_waiting:
            raise TooManyRequests(f"{self._waiting} shares of batches wait for this model's engine", retry_after=1)
        loop, came, deadline = asyncio.get_running_loop(), self._clock(), _deadline()
        shares = [
            _Share(piece, rows(piece), self.cost(piece), came, deadline, loop.create_future()) for piece in pieces
        ]
        kind = tuple((name, array.dtype, array.shape[1:]) for name, array in tensors.items())
        self._lines.setdefault(kind, OrderedDict()).update(dict.fromkeys(shares))
        self._waiting += len(shares)
        self._start()
        try:
            answers = [await share.answer for share in shares]
        finally:
            for share in shares:
                self._leave(kind, share)
                if not share.answer.cancel() and not share.answer.cancelled():
                    share.answer.exception()  # or asyncio logs what nobody asked for
        if len(answers) == 1:
            return answers[0]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    async def close(self) -> None:
        """Unavailable for all who wait; returns when the runs that have begun are over."""
        shares = [share for line in self._lines.values() for share in line]
        self._lines.clear()
        self._start()  # with nothing left it stops the timer
        self._waiting = 0
        for share in shares:
            if not share.answer.done():
                share.answer.set_exception(Unavailable("this model is being taken out of service", retry_after=1))
        if self._runs:
            await asyncio.wait(self._runs)

    def _split(self, tensors: Tensors, count: int) -> list[Tensors]:
        """In halves until each piece is within the cost, or a single row."""
        if count == 1 or self.cost(tensors) <= self.max_cost:
            return [tensors]
        size = self.max_cost if self.cost is rows else (count + 1) // 2
        parts = [{name: array[at : at + size] for name, array in tensors.items()} for at in range(0, count, size)]
        return [piece for part in parts for piece in self._split(part, rows(part))]

    def _start(self) -> None:
        """Runs what is due, and sets the timer for what will be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        while self._idle and self._lines:
            kind = min(self._lines, key=lambda kind: self._due(self._lines[kind]))
            wait = self._due(self._lines[kind]) - now
            if wait > TIMER_S:
                self._timer = asyncio.get_running_loop().call_later(wait - TIMER_S, self._start)
                return
            if batch := self._take(kind):
                self._idle -= 1
                task = asyncio.get_running_loop().create_task(self._batch(batch), context=Context())  # nobody's own
                self._runs.add(task)
                task.add_done_callback(self._ended)

    def _due(self, line: _Line) -> float:
        """When a line's first batch is to begin: it waits for more callers while it is not full."""
        total, first = 0, next(iter(line))
        due = first.came + self.max_delay_s
        for share in line:
            total += share.cost
            if total >= self.max_cost:
                return first.came
            if share.deadline < math.inf:
                due = min(due, share.deadline - max(self._took, (share.deadline - share.came) / 2))
        return due

    def _take(self, kind: _Kind) -> list[_Share]:
        line, total, now = self._lines[kind], 0, self._clock()
        batch: list[_Share] = []
        while line:
            share = next(iter(line))
            if batch and total + share.cost > self.max_cost:
                break
            self._leave(kind, share)
            if share.answer.done():  # its caller gave up, and does not know it yet
                continue
            if share.deadline <= now:
                share.answer.set_exception(DeadlineExceeded("the request's deadline passed before its batch began"))
                continue
            batch.append(share)
            total += share.cost
        return batch

    def _leave(self, kind: _Kind, share: _Share) -> None:
        line = self._lines.get(kind)
        if line is None or share not in line:
            return
        del line[share]
        self._waiting -= 1
        if not line:
            del self._lines[kind]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self._idle += 1
        self._start()

    async def _batch(self, shares: list[_Share]) -> None:
        shares = [share for share in shares if not share.answer.done()]
        if not shares:
            return
        began = self._clock()
        try:
            outputs = await self.run(_joined(shares))
            self._took = self._clock() - began
            answers = _parted(outputs, shares)
        except Exception as error:
            if len(shares) == 1 or isinstance(error, Unavailable):
                for share in shares:
                    if not share.answer.done():
                        share.answer.set_exception(error)
                return
            half = len(shares) // 2
            await self._batch(shares[:half])
            await self._batch(shares[half:])
        except asyncio.CancelledError:  # by the engine itself, or at the end of the loop
            for share in shares:
                share.answer.cancel()
            raise
        else:
            for share, answer in zip(shares, answers, strict=True):
                if not share.answer.done():
                    share.answer.set_result(answer)


def _deadline() -> float:
    try:
        return current_request().deadline
    except LookupError:  # outside of a server
        return math.inf


def _joined(shares: list[_Share]) -> Tensors:
    if len(shares) == 1:
        return shares[0].tensors
    return {name: np.concatenate([share.tensors[name] for share in shares]) for name in shares[0].tensors}


def _parted(outputs: Tensors, shares: list[_Share]) -> list[Tensors]:
    """Each caller's rows of the outputs, as views; ModelError where the outputs' rows are not the inputs'."""
    count = sum(share.rows for share in shares)
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != count:
            raise ModelError(
                f"output {name!r} has shape {list(array.shape)} for {count} rows: this model answers no rows of its "
                "own, and cannot be put into batches"
            )
    if len(shares) == 1:
        return [outputs]
    ends = np.cumsum([share.rows for share in shares]).tolist()
    return [
        {name: array[end - share.rows : end] for name, array in outputs.items()}
        for share, end in zip(shares, ends, strict=True)
    ]
