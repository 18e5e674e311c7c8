"""Where Triton says that the time of a run went."""

from __future__ import annotations

from typing import Any

import grpc
from grpc.experimental import gevent as grpc_gevent

from kservekit.errors import CannotStart
from kservekit.loadtest.target import CannotTest
from kservekit.oip.triton_messages import messages, stubs

TIMEOUT_S = 10.0
NANOSECONDS_OF_A_MILLISECOND = 1e6
STEPS = ("queue", "compute_input", "compute_infer", "compute_output")

Counts = dict[str, tuple[int, int]]
"""By step: how many requests, and nanoseconds of them all."""


class TritonStatistics:
    """What a Triton, behind the target or the target itself, did from the moment that this was made until `means()`."""

    def __init__(self, address: str, model: str) -> None:
        host, colon, port = address.removeprefix("grpc://").rpartition(":")
        if not colon or not host or not port.isdigit():
            raise CannotStart(f"--triton is {address!r}: expected the address of its gRPC port, such as localhost:8001")
        grpc_gevent.init_gevent()
        self.address, self.model = f"{host}:{port}", model
        self._channel = grpc.insecure_channel(self.address, [("grpc.enable_http_proxy", 0)])
        self._before = self._read()

    def means(self) -> dict[str, float]:
        """Milliseconds of a request by step; empty where there was no request."""
        found = {}
        for step, (count, nanoseconds) in self._read().items():
            count_before, nanoseconds_before = self._before.get(step, (0, 0))
            if count > count_before:
                spent = (nanoseconds - nanoseconds_before) / (count - count_before)
                found[f"triton_{step}"] = spent / NANOSECONDS_OF_A_MILLISECOND
        self._channel.close()
        return found

    def _read(self) -> Counts:
        ask = stubs.GRPCInferenceServiceStub(self._channel).ModelStatistics
        try:
            reply: Any = ask(messages.ModelStatisticsRequest(name=self.model), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            reason = error.details() or error.code().name
            raise CannotTest(f"Triton at {self.address} gives no statistics of {self.model!r}: {reason}") from None
        whole: Counts = {}
        for version in reply.model_stats:
            for step in STEPS:
                one = getattr(version.inference_stats, step)
                count, spent = whole.get(step, (0, 0))
                whole[step] = (count + one.count, spent + one.ns)
        return whole
