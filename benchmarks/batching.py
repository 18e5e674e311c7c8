"""Callers in this process of a net in ONNX Runtime, in batches or each by himself: no wire, no load generator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kservekit.benchmarks.check import WrongAnswer
from kservekit.benchmarks.contest import OURS, Contender, Figure, Measure, Stage, Unit
from kservekit.benchmarks.payloads import INPUT, OUTPUT, Payload
from kservekit.config import OnnxSettings
from kservekit.errors import CannotStart
from kservekit.predictors.onnx import OnnxPredictor

BATCH_ROWS = 16
WARM_UP = 20


@dataclass(frozen=True)
class Batching:
    payload: Payload
    net: Callable[[Any], Path]
    """Which of kservekit.benchmarks.nets."""
    callers: int

    unit = Unit("answers a second", lambda value: f"{value:,.0f}/s")
    needs: ClassVar[tuple[str, ...]] = ()

    def prepare(self, contender: Contender, stage: Stage, stack: ExitStack, seconds: int) -> Measure:
        try:
            from kservekit.benchmarks import nets
        except ImportError:
            raise CannotStart("the nets for this row are made with onnx: pip install 'kservekit[local]'") from None
        rows = BATCH_ROWS if contender.side == OURS else 0
        model = OnnxPredictor(settings=OnnxSettings(model_path=str(self.net(nets)), batch_rows=rows))
        model.load()
        return lambda: asyncio.run(self._measure(model, seconds))

    async def _measure(self, model: OnnxPredictor, seconds: int) -> Figure:
        tensors = {INPUT: self.payload.array}
        for _ in range(WARM_UP):
            answer = await model.infer(tensors)
        if not np.array_equal(answer[OUTPUT], tensors[INPUT]):
            raise WrongAnswer(f"the net {self.payload.name!r} gives back other values than it was given")
        took: list[float] = []
        began = time.perf_counter()

        async def call() -> None:
            while (sent := time.perf_counter()) - began < seconds:
                await model.infer(tensors)
                took.append(time.perf_counter() - sent)

        await asyncio.gather(*(call() for _ in range(self.callers)))
        spent = time.perf_counter() - began
        took.sort()
        return Figure(len(took) / spent, took[len(took) // 2], took[len(took) * 99 // 100])
