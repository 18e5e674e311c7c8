"""The table's rows: who runs which course, and what ours are held to."""

from __future__ import annotations

from kservekit.benchmarks.batching import Batching
from kservekit.benchmarks.cache_hit import CacheHit
from kservekit.benchmarks.contenders import (
    bare,
    nobody,
    our_transformer,
    ours,
    stock,
    stock_transformer,
    triton_itself,
)
from kservekit.benchmarks.contest import (
    BARE,
    ONE_WORKER,
    OURS,
    STOCK,
    TRITON,
    UNBATCHED,
    Contender,
    Row,
    Target,
)
from kservekit.benchmarks.liveness import Liveness
from kservekit.benchmarks.memory import Memory
from kservekit.benchmarks.payloads import CONVOLUTION, MLP, PICTURES, SCORED, SMALL, TENSOR, Payload
from kservekit.benchmarks.shared_memory import BY_GRPC, COPIED, MADE_THERE, TRITONCLIENT, SharedMemory
from kservekit.benchmarks.startup import Startup
from kservekit.benchmarks.throughput import Throughput


def _no_op(
    name: str, title: str, course: Throughput, *, a_sync: tuple[Target, ...], plain: tuple[Target, ...], triton: bool
) -> Row:
    contenders = (
        Contender(OURS, "async", ours(course.payload, "AsyncNoOp"), targets=a_sync),
        Contender(OURS, "plain", ours(course.payload, "PlainNoOp"), targets=plain),
        Contender(STOCK, "plain", stock(course.payload)),
        *((Contender(TRITON, "identity", triton_itself),) if triton else ()),
    )
    return Row(name, title, course, contenders)


def _hop(name: str, title: str, course: Throughput, targets: tuple[Target, ...], *, behind: tuple[str, ...]) -> Row:
    payload = course.payload
    kinds = {"identity": "IdentityTransformer", "async": "AsyncTransformer", "plain": "PlainTransformer"}
    mine = [Contender(OURS, kind, our_transformer(payload, name), targets=targets) for kind, name in kinds.items()]
    theirs = [
        Contender(STOCK, "identity", stock_transformer(payload, protocol), note=f"{protocol} behind")
        for protocol in behind
    ]
    floor = [] if course.wire == "grpc" else [Contender(BARE, "identity", bare(payload))]
    return Row(name, title, course, (*mine, *theirs, *floor, Contender(TRITON, "identity", triton_itself)))


def _liveness(kind: str, name: str, title: str) -> Row:
    contenders = (
        Contender(OURS, "plain", ours(SMALL, name), targets=(Target(0.05, at_most=True),)),
        Contender(STOCK, "plain", stock(SMALL, f"--compute={kind}")),
    )
    return Row(f"live-{kind}", title, Liveness(), contenders)


def _batching(name: str, title: str, course: Batching, *targets: Target) -> Row:
    contenders = (
        Contender(OURS, "async", nobody, note="batches", targets=targets),
        Contender(UNBATCHED, "async", nobody),
    )
    return Row(f"batch-{name}", title, course, contenders)


def _cache_hit(name: str, title: str, payload: Payload, bound: float) -> Row:
    contenders = (
        Contender(OURS, "plain", triton_itself, note="kept", targets=(Target(bound, TRITON, at_most=True),)),
        Contender(TRITON, "identity", triton_itself),
    )
    return Row(f"cache-{name}", title, CacheHit(payload), contenders)


def _shared_memory(name: str, title: str, payload: Payload) -> Row:
    than_our_grpc = _goal(5, BY_GRPC)
    contenders = (
        Contender(
            OURS, "identity", triton_itself, note=MADE_THERE, targets=(_at_least(5, TRITONCLIENT), than_our_grpc)
        ),
        Contender(OURS, "identity", triton_itself, note=COPIED, targets=(_goal(5, TRITONCLIENT), than_our_grpc)),
        Contender(BY_GRPC, "identity", triton_itself),
        Contender(TRITONCLIENT, "identity", triton_itself),
    )
    return Row(f"shared-{name}", title, SharedMemory(payload, 8), contenders)


def _at_least(bound: float, against: str = STOCK) -> Target:
    return Target(bound, against)


def _goal(bound: float, against: str) -> Target:
    return Target(bound, against, goal=True)


_BOTH = (_at_least(50), _at_least(0.5, TRITON))
_GROWTH = (Target(0.05, at_most=True),)

ROWS: tuple[Row, ...] = (
    _no_op(
        "noop-rest-tensor",
        "no-op predictor, REST binary 1x3x224x224 FP32",
        Throughput(TENSOR, "rest-binary"),
        a_sync=_BOTH,
        plain=_BOTH,
        triton=True,
    ),
    _no_op(
        "noop-rest-json",
        "no-op predictor, REST JSON, 3 floats",
        Throughput(SMALL, "rest-json"),
        a_sync=(_at_least(4),),
        plain=(_at_least(2.5),),
        triton=False,
    ),
    _no_op(
        "noop-grpc-small",
        "no-op predictor, gRPC, 3 floats",
        Throughput(SMALL, "grpc"),
        a_sync=(_at_least(1.8),),
        plain=(_at_least(1.4),),
        triton=False,
    ),
    _no_op(
        "noop-grpc-tensor",
        "no-op predictor, gRPC, 1x3x224x224 FP32",
        Throughput(TENSOR, "grpc"),
        a_sync=(_at_least(1.15),),
        plain=(_at_least(1.0),),
        triton=False,
    ),
    _hop(
        "hop-rest-tensor",
        "transformer to Triton, REST binary 1x3x224x224 FP32",
        Throughput(TENSOR, "rest-binary"),
        (_at_least(0.8, BARE), _goal(40, STOCK), _goal(0.5, TRITON)),
        behind=("v2", "grpc-v2"),
    ),
    _hop(
        "hop-rest-json",
        "transformer to Triton, REST JSON, 3 floats",
        Throughput(SMALL, "rest-json"),
        (_at_least(0.8, BARE), _goal(3, STOCK), _goal(0.3, TRITON)),
        behind=("v2", "grpc-v2"),
    ),
    # With REST behind, stock answers gRPC's raw contents with an error.
    _hop(
        "hop-grpc-small",
        "transformer to Triton, gRPC, 3 floats",
        Throughput(SMALL, "grpc"),
        (_at_least(1.2),),
        behind=("grpc-v2",),
    ),
    _hop(
        "hop-grpc-tensor",
        "transformer to Triton, gRPC, 1x3x224x224 FP32",
        Throughput(TENSOR, "grpc"),
        (_at_least(1.0),),
        behind=("grpc-v2",),
    ),
    _liveness("numpy", "NumPyBusy", "/v2/health/live while 4 handlers compute for 1 s each, in NumPy"),
    _liveness("python", "PythonBusy", "/v2/health/live while 4 handlers compute for 1 s each, in pure Python"),
    Row(
        "workers",
        "two workers against one, a CPU-bound handler",
        Throughput(SMALL, "rest-json"),
        (
            Contender(
                OURS, "plain", ours(SMALL, "CpuBound", "--workers=2"), "2 workers", (_at_least(1.7, ONE_WORKER),), 2
            ),
            Contender(ONE_WORKER, "plain", ours(SMALL, "CpuBound")),
        ),
    ),
    _batching(
        "mlp",
        "16 callers in this process of a 2048-wide MLP in ONNX Runtime",
        Batching(MLP, lambda nets: nets.mlp(), 16),
        _at_least(4, UNBATCHED),
    ),
    # Alone he waits for the delay, 2 ms, and then for the run, which takes about as long.
    _batching(
        "mlp-alone",
        "the same, a single caller",
        Batching(MLP, lambda nets: nets.mlp(), 1),
        _goal(0.45, UNBATCHED),
    ),
    _batching(
        "convolution",
        "16 callers in this process of a convolutional net",
        Batching(CONVOLUTION, lambda nets: nets.convolution(), 16),
        _at_least(0.9, UNBATCHED),
    ),
    _shared_memory(
        "there",
        "8 callers in this process of a model with 2 instances in Triton, 4.6 MiB there, 32 KB back",
        SCORED,
    ),
    _shared_memory("there-back", "the same, 4.6 MiB there and back", PICTURES),
    _cache_hit("small", "a kept answer beside Triton's no-op by gRPC, 3 floats", SMALL, 0.1),
    _cache_hit("tensor", "the same, 1x3x224x224 FP32", TENSOR, 0.25),
    Row(
        "memory-rest",
        "resident memory over 20,000 tensors, REST binary",
        Memory(TENSOR, "rest-binary"),
        (Contender(OURS, "async", ours(TENSOR, "AsyncNoOp"), targets=_GROWTH),),
    ),
    Row(
        "memory-grpc",
        "resident memory over 20,000 tensors, gRPC",
        Memory(TENSOR, "grpc"),
        (Contender(OURS, "async", ours(TENSOR, "AsyncNoOp"), targets=_GROWTH),),
    ),
    Row(
        "start",
        "start to ready, no-op model",
        Startup(),
        (
            Contender(OURS, "async", ours(SMALL, "AsyncNoOp"), targets=(Target(1.1, STOCK, at_most=True),)),
            Contender(STOCK, "plain", stock(SMALL)),
        ),
    ),
)
