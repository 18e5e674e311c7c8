"""The main job on this machine: a photograph through a transformer, a predictor and Triton, over every wire."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from textwrap import indent

import numpy as np

from kservekit.codec import rest_v2
from kservekit.codec.message import Answer, Request
from kservekit.local import demo_report, photos
from kservekit.local.cache import cache_folder
from kservekit.local.screen import put, takes
from kservekit.local.server import LocalServer
from kservekit.local.triton import TritonServer
from kservekit.local.triton_install import TritonUnavailable, find_triton
from kservekit.oip import Backend
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.http import HttpBackend
from kservekit.oip.http_v1 import HttpV1Backend
from kservekit.oip.triton_messages import messages
from kservekit.predictors.repository import ONNX_IN_TRITON, write_model
from kservekit.tensors import ModelSpec, TensorSpec

MODEL = "photo"
REPEATS = 5

PHOTO_MODEL = ModelSpec(
    (TensorSpec("image", "FP32", (-1, 3, photos.SIZE, photos.SIZE)),), (TensorSpec("logits", "FP32", (-1, 1000)),)
)


@dataclass
class Service:
    """The processes of a cluster's InferenceService; without a Triton the engine is in the predictor."""

    predictor: LocalServer
    transformer: LocalServer
    triton: TritonServer | None

    @property
    def engine(self) -> str:
        return self.triton.where if self.triton else "ONNX Runtime in the predictor's process"


def run(*, keep: bool = False, engine: str = "auto", say: Callable[[str], None] | None = None) -> int:
    """The exit code: 0 if every wire answered, all agreed, and each photograph got a class that is right for it."""
    say = say or (lambda line: put(line, sys.stderr))
    started = time.monotonic()
    say("[1/4] the model and the photographs")
    material = photos.prepare(cache_folder() / "demo", say)
    with _service(material, engine, say) as service:
        report = asyncio.run(_exercise(service, material, say))
        report.kept = keep
        report.took_s = time.monotonic() - started
        block = demo_report.BLOCK if takes(demo_report.BLOCK, sys.stdout) else "#"
        put(demo_report.screen(report, block=block), sys.stdout)
        if keep:
            _wait_for_ctrl_c(service, say)
    return 0 if report.right else 1


@contextmanager
def _service(material: photos.PhotoDemo, engine: str, say: Callable[[str], None]) -> Iterator[Service]:
    with ExitStack() as stack, _said_when_stopped(say):
        triton = _triton(material, engine, say, stack) if engine != "onnx" else None
        say("[3/4] the predictor and the transformer, as the processes that they are in a cluster")
        timing = {"KSERVEKIT_SERVER_TIMING": "true"}
        if triton is not None:
            target, settings = "kservekit.predictors.triton:TritonPredictor", {"KSERVEKIT_TRITON_URL": triton.grpc_url}
        else:
            target, settings = (
                "kservekit.predictors.onnx:OnnxPredictor",
                {"KSERVEKIT_ONNX_MODEL_PATH": str(material.model)},
            )
        predictor = LocalServer(target, model_name=MODEL, settings=timing | settings)
        transformer = LocalServer(
            "kservekit.transformers.image:ImageTransformer",
            f"--predictor_host={predictor.grpc_url}",
            "--predictor_protocol=grpc-v2",  # KServe does not inject it: a manifest has to say it
            "--enable_predictor_health_check",
            model_name=MODEL,
            settings=timing | _image_settings(material),
        )
        for server in (predictor, transformer):
            stack.callback(server.stop)
            server.start()
        # The predictor is ready when Triton's model is, and the transformer when the predictor is.
        predictor.wait_until_ready()
        transformer.wait_until_ready()
        yield Service(predictor, transformer, triton)


@contextmanager
def _said_when_stopped(say: Callable[[str], None]) -> Iterator[None]:
    """Before anything is stopped, because that takes a while."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopping")
        raise


def _triton(
    material: photos.PhotoDemo, engine: str, say: Callable[[str], None], stack: ExitStack
) -> TritonServer | None:
    say("[2/4] Triton")
    try:
        find_triton(progress=lambda line: say(f"      {line}"))
    except TritonUnavailable as error:
        if engine == "triton":
            raise
        say(indent(f"{error}\nso ONNX Runtime serves the same model in the predictor's process", " " * 6))
        return None
    repository = cache_folder() / "demo" / "repository"
    files = {"model.py": ONNX_IN_TRITON, "model.onnx": material.model}
    write_model(repository, MODEL, PHOTO_MODEL, files, max_batch_size=8)
    return stack.enter_context(TritonServer(repository))


def _image_settings(material: photos.PhotoDemo) -> dict[str, str]:
    return {
        "KSERVEKIT_IMAGE_SIZE": str(photos.SIZE),
        "KSERVEKIT_IMAGE_RESIZE": str(photos.RESIZE),
        "KSERVEKIT_IMAGE_MEAN": ",".join([str(photos.MEAN)] * 3),
        "KSERVEKIT_IMAGE_STD": ",".join([str(photos.STD)] * 3),
        "KSERVEKIT_IMAGE_LABELS": str(material.labels),
    }


async def _exercise(service: Service, material: photos.PhotoDemo, say: Callable[[str], None]) -> demo_report.Report:
    say("[4/4] the photographs, over every wire")
    files = {photo.path: photo.path.read_bytes() for photo in material.photos}
    base_url = f"http://{service.transformer.http_url}"
    wires: dict[str, Backend] = {
        "v1 REST": HttpV1Backend(base_url),
        "v2 REST JSON": HttpBackend(base_url, binary=False),
        "v2 REST binary": HttpBackend(base_url),
        "v2 gRPC": GrpcBackend(service.transformer.grpc_url),
    }
    answers: dict[str, list[Answer]] = {}
    timings: dict[str, list[float]] = {}
    try:
        for wire, backend in wires.items():
            answers[wire] = [await backend.infer(_request(file)) for file in files.values()]  # warms up, too
            timings[wire] = [await _timed(backend, file) for _ in range(REPEATS) for file in files.values()]
        stages = await _stages(service, base_url, list(files.values()))
    finally:
        for backend in wires.values():
            await backend.close()
    first = next(iter(answers.values()))
    results = [
        demo_report.Result(
            photo, _top(answer), all(_top(other[index])[0][0] in photo.expected for other in answers.values())
        )
        for index, (photo, answer) in enumerate(zip(material.photos, first, strict=True))
    ]
    return demo_report.Report(
        engine=service.engine,
        results=results,
        wires=[
            demo_report.Wire(wire, timings[wire], all(_same(a, b) for a, b in zip(answers[wire], first, strict=True)))
            for wire in wires
        ],
        stages=stages,
        address=service.transformer.http_url,
        model=MODEL,
    )


def _request(file: bytes) -> Request:
    return Request({"image": np.array([file], dtype=np.object_)}, model=MODEL, id="demo")


async def _timed(backend: Backend, file: bytes) -> float:
    began = time.perf_counter()
    await backend.infer(_request(file))
    return (time.perf_counter() - began) * 1000


def _top(answer: Answer) -> list[tuple[str, float]]:
    labels, scores = answer.tensors["labels"][0], answer.tensors["scores"][0]
    return [(label.decode(), float(score)) for label, score in zip(labels, scores, strict=True)]


def _same(one: Answer, other: Answer) -> bool:
    """Equal classes, and scores that differ by no more than JSON's decimal form of FP32 may."""
    return bool(
        (one.tensors["labels"] == other.tensors["labels"]).all()
        and (one.tensors["classes"] == other.tensors["classes"]).all()
        and np.allclose(one.tensors["scores"], other.tensors["scores"], rtol=0, atol=1e-6)
    )


async def _stages(service: Service, base_url: str, files: list[bytes]) -> dict[str, float]:
    """Mean milliseconds by stage, so that parts add up: the transformer's Server-Timing and Triton's statistics."""
    backend = HttpBackend(base_url)
    triton = GrpcBackend(service.triton.grpc_url) if service.triton else None
    try:
        before = await _statistics(triton)
        headers = []
        for file in files * REPEATS:
            parts, json_length = rest_v2.encode_request(_request(file))
            sent = {rest_v2.JSON_LENGTH_HEADER: str(json_length)}
            headers.append((await backend.call("POST", f"/v2/models/{MODEL}/infer", _request(file), parts, sent))[0])
        after = await _statistics(triton)
    finally:
        await backend.close()
        if triton:
            await triton.close()
    rows = [demo_report.parse_server_timing(found["server-timing"]) for found in headers]
    stages = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    for name in after:
        stages[name] = (after[name] - before[name]) / len(headers)
    return stages


async def _statistics(triton: GrpcBackend | None) -> dict[str, float]:
    """Milliseconds since Triton's start, summed over all requests."""
    if triton is None:
        return {}
    reply = await triton.stub().ModelStatistics(messages.ModelStatisticsRequest(name=MODEL))
    found = reply.model_stats[0].inference_stats
    return {
        f"triton_{name}": getattr(found, name).ns / 1e6
        for name in ("queue", "compute_input", "compute_infer", "compute_output")
    }


def _wait_for_ctrl_c(service: Service, say: Callable[[str], None]) -> None:
    say("running until Ctrl-C")
    servers = [server for server in (service.triton, service.predictor, service.transformer) if server]
    try:
        while True:
            for server in servers:
                server.check_alive()
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("stopping")
