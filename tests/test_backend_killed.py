"""kill -9 of Triton under load, and its return: what the callers get, second by second."""

import asyncio
import collections
import os
import signal
import sys
import time

import numpy as np
from conftest import write_doubles

from kservekit.codec.message import Request
from kservekit.errors import ServingError
from kservekit.local.server import LocalServer
from kservekit.local.triton import TritonServer, reserved_ports
from kservekit.oip import connect

CALLERS = 4


def test_while_triton_is_gone_callers_are_told_to_come_back_and_then_all_is_well(local_triton, tmp_path):
    write_doubles(tmp_path / "repository", tmp_path)
    with reserved_ports({"grpc_port": None}) as ports:
        pass
    repository = tmp_path / "repository"
    with TritonServer(repository, grpc_port=ports["grpc_port"]) as triton:
        settings = {"KSERVEKIT_TRITON_URL": triton.grpc_url}
        target = "kservekit.predictors.triton:TritonPredictor"
        with LocalServer(target, model_name="doubles", settings=settings) as server:
            outcomes = asyncio.run(load_while_it_is_killed(server, triton, repository, ports["grpc_port"]))
    table = collections.defaultdict(collections.Counter)
    for moment, outcome in outcomes:
        table[int(moment)][outcome] += 1
    for second in sorted(table):
        sys.stdout.write(f"{second:3} s  {dict(table[second])}\n")
    kinds = {outcome for _, outcome in outcomes}
    # A time-out would be as honest; a 500 or a refused input would not.
    assert kinds <= {"answered", "Unavailable", "DeadlineExceeded"}, kinds
    assert "Unavailable" in kinds
    assert [outcome for _, outcome in outcomes[-50:]] == ["answered"] * 50


async def load_while_it_is_killed(server, triton, repository, grpc_port):
    outcomes, began = [], time.monotonic()
    backend = connect(server.grpc_url)
    request = Request({"x": np.ones((1, 3), np.float32)}, model="doubles")
    over = asyncio.Event()

    async def call():
        while not over.is_set():
            try:
                await backend.infer(request)
                outcome = "answered"
            except ServingError as error:
                outcome = type(error).__name__
                await asyncio.sleep(0.01)
            outcomes.append((time.monotonic() - began, outcome))

    async def count_of(outcome, more):
        start = sum(kind == outcome for _, kind in outcomes)
        while sum(kind == outcome for _, kind in outcomes) < start + more:  # noqa: ASYNC110 - the list is the event
            await asyncio.sleep(0.02)

    callers = [asyncio.create_task(call()) for _ in range(CALLERS)]
    await asyncio.wait_for(count_of("answered", 100), 60)
    os.kill(triton.pid, signal.SIGKILL)
    await asyncio.wait_for(count_of("Unavailable", 50), 60)
    again = TritonServer(repository, grpc_port=grpc_port)
    await asyncio.to_thread(again.start)
    started = time.monotonic() - began
    try:
        await asyncio.wait_for(count_of("answered", 1), 60)
        sys.stdout.write(f"well again {time.monotonic() - began - started:.2f} s after Triton was ready\n")
        await asyncio.wait_for(count_of("answered", 300), 60)
        over.set()
        await asyncio.gather(*callers)
    finally:
        await asyncio.to_thread(again.stop)
        await backend.close()
    return outcomes
