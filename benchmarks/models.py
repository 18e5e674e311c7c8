"""Our contenders, as a user would write them. A model's name says which payload it takes."""

from __future__ import annotations

from kservekit.benchmarks.payloads import INPUT, OUTPUT, PAYLOADS
from kservekit.benchmarks.work import compute_in_numpy, compute_in_python, count
from kservekit.serving import Predictor, Tensors, Transformer


class Declared(Predictor):
    """Declares what it takes, so that requests are checked against it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.inputs, self.outputs = PAYLOADS[name].spec.inputs, PAYLOADS[name].spec.outputs


class AsyncNoOp(Declared):
    async def infer(self, tensors: Tensors) -> Tensors:
        return {OUTPUT: tensors[INPUT]}


class PlainNoOp(Declared):
    def infer(self, tensors: Tensors) -> Tensors:
        return {OUTPUT: tensors[INPUT]}


class IdentityTransformer(Transformer):
    """Overrides no hook, as stock's transformer does not."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.inputs, self.outputs = PAYLOADS[name].spec.inputs, PAYLOADS[name].spec.outputs


class AsyncTransformer(IdentityTransformer):
    async def to_tensors(self, tensors: Tensors) -> Tensors:
        return {INPUT: tensors[INPUT]}

    async def from_tensors(self, tensors: Tensors) -> Tensors:
        return {OUTPUT: tensors[OUTPUT]}


class PlainTransformer(IdentityTransformer):
    def to_tensors(self, tensors: Tensors) -> Tensors:
        return {INPUT: tensors[INPUT]}

    def from_tensors(self, tensors: Tensors) -> Tensors:
        return {OUTPUT: tensors[OUTPUT]}


class NumPyBusy(PlainNoOp):
    def infer(self, tensors: Tensors) -> Tensors:
        compute_in_numpy()
        return super().infer(tensors)


class PythonBusy(PlainNoOp):
    def infer(self, tensors: Tensors) -> Tensors:
        compute_in_python()
        return super().infer(tensors)


class CpuBound(PlainNoOp):
    """The same work for every request, however long it takes."""

    def infer(self, tensors: Tensors) -> Tensors:
        count(100_000)
        return super().infer(tensors)
