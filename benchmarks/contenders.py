"""How each contender is started; all of them alike, as processes of the same Python that cannot outlive us."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from kservekit.benchmarks.contest import Server, Stage
from kservekit.benchmarks.payloads import Payload
from kservekit.errors import CannotStart
from kservekit.local.server import LocalServer

MODULE = (sys.executable, "-m")
PACKAGE = "kservekit.benchmarks"

Serve = Callable[[Stage], AbstractContextManager[Server]]


def ours(payload: Payload, name: str, *flags: str) -> Serve:
    return lambda _: LocalServer(f"{PACKAGE}.models:{name}", *flags, model_name=payload.name)


def stock(payload: Payload, *flags: str) -> Serve:
    return lambda _: LocalServer(f"{PACKAGE}.stock_predictor", *flags, model_name=payload.name, program=MODULE)


def our_transformer(payload: Payload, name: str) -> Serve:
    return lambda stage: ours(payload, name, *_predictor(stage, "grpc-v2"))(stage)


def stock_transformer(payload: Payload, protocol: str) -> Serve:
    return lambda stage: LocalServer(
        f"{PACKAGE}.stock_transformer", *_predictor(stage, protocol), model_name=payload.name, program=MODULE
    )


def bare(payload: Payload) -> Serve:
    return lambda stage: LocalServer(
        f"{PACKAGE}.bare",
        f"--predictor_host={stage.triton().grpc_url}",
        model_name=payload.name,
        program=MODULE,
    )


def _predictor(stage: Stage, protocol: str) -> tuple[str, str]:
    triton = stage.triton()
    host = triton.http_url if protocol == "v2" else triton.grpc_url
    return f"--predictor_host={host}", f"--predictor_protocol={protocol}"


def triton_itself(stage: Stage) -> AbstractContextManager[Server]:
    return nullcontext(stage.triton())


def nobody(stage: Stage) -> AbstractContextManager[Server]:
    raise CannotStart("this row's course runs in this process, and has no server")
