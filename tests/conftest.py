from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from kservekit.local.server import LocalServer
from kservekit.predictors.repository import write_model
from kservekit.tensors import ModelSpec, TensorSpec

pytest_plugins = ["kservekit.local.fixtures"]

# Tests import ONNX Runtime themselves, which else sends usage data.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# The processes that tests start and signal hear as from a terminal, also where pytest runs under nohup or behind an &.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DOUBLES = ModelSpec((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))

DOUBLES_IN_TRITON = """
import time
import triton_python_backend_utils as triton
import numpy as np

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = triton.get_input_tensor_by_name(request, "x").as_numpy()
            time.sleep((x == 99).any())
            if (x < 0).any():
                error = triton.TritonError("negative, in /secret/path/model.py")
                answers.append(triton.InferenceResponse([], error))
            else:
                answers.append(triton.InferenceResponse([triton.Tensor("y", (x * 2).astype(np.float32))]))
        return answers
"""


def write_doubles(repository: Path, folder: Path, name: str = "doubles") -> None:
    script = folder / "model.py"
    script.write_text(DOUBLES_IN_TRITON)
    write_model(repository, name, DOUBLES, {"model.py": script}, max_batch_size=8)


@pytest.fixture(scope="session")
def triton(local_triton, tmp_path_factory):
    """The real Triton with a model `doubles`: y = 2x, an error for negative values, a second's thought for a 99."""
    folder = tmp_path_factory.mktemp("doubles")
    write_doubles(folder / "repository", folder)
    return local_triton(folder / "repository")


@pytest.fixture(scope="session")
def predictor(triton) -> Iterator[LocalServer]:
    """TritonPredictor in front of it."""
    target = "kservekit.predictors.triton:TritonPredictor"
    with LocalServer(target, model_name="doubles", settings={"KSERVEKIT_TRITON_URL": triton.grpc_url}) as server:
        yield server


@pytest.fixture(params=["asyncio", "uvloop"])
def both_loops(request, monkeypatch):
    """asyncio.run on each: our server takes uvloop where it is installed, a script with our client does not."""
    loop_factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def run(work):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(work)

    monkeypatch.setattr(asyncio, "run", run)
