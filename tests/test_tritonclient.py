"""NVIDIA's own clients against our server: every datatype there and back, bit for bit."""

# Before tritonclient.grpc, which this process's other tests share with KServe (see kservekit.oip).
import kservekit.oip.triton_messages  # noqa: F401  isort: skip
import asyncio

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from calls import served

SHAPES = [(3,), (2, 3), (1, 1, 4), (0, 2)]


def values(datatype, shape):
    chance = np.random.default_rng(7)
    count = int(np.prod(shape))
    if datatype == "BYTES":
        found = np.empty(count, object)
        found[:] = [chance.bytes(index) for index in range(count)]
        return found.reshape(shape)
    if datatype == "BOOL":
        return chance.integers(0, 2, shape).astype(bool)
    if datatype.startswith("FP"):
        dtype = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}[datatype]
        found = chance.normal(size=shape).astype(dtype)
        if found.size > 2:
            found.flat[0], found.flat[1], found.flat[2] = np.nan, -np.inf, -0.0
        return found
    dtype = np.dtype(datatype.lower())
    limits = np.iinfo(dtype)
    found = chance.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return found


DATATYPES = [
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES")
]


@pytest.fixture(scope="module")
def echo():
    with served("Echo") as server:
        yield server


def same(found, sent):
    assert found.shape == sent.shape
    if sent.dtype == object:
        assert found.ravel().tolist() == sent.ravel().tolist()
    else:
        assert found.dtype == sent.dtype
        assert found.tobytes() == sent.tobytes()


def prepared(module, datatype, shape, **options):
    sent = values(datatype, shape)
    tensor = module.InferInput("x", list(shape), datatype)
    tensor.set_data_from_numpy(sent, **options)
    return sent, [tensor]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_over_http(echo, datatype, shape):
    sent, inputs = prepared(tritonclient.http, datatype, shape)
    with tritonclient.http.InferenceServerClient(echo.http_url) as client:
        same(client.infer("m", inputs).as_numpy("x"), sent)


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("datatype", [datatype for datatype in DATATYPES if datatype not in ("FP16", "BYTES")])
def test_over_http_as_json(echo, datatype, shape):
    sent = values(datatype, shape)
    if sent.dtype.kind == "f":
        sent = np.nan_to_num(sent, neginf=-1).astype(sent.dtype)
    tensor = tritonclient.http.InferInput("x", list(shape), datatype)
    tensor.set_data_from_numpy(sent, binary_data=False)
    output = tritonclient.http.InferRequestedOutput("x", binary_data=False)
    with tritonclient.http.InferenceServerClient(echo.http_url) as client:
        same(client.infer("m", [tensor], outputs=[output]).as_numpy("x"), sent)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("datatype", DATATYPES)
def test_over_grpc(echo, datatype, shape):
    sent, inputs = prepared(tritonclient.grpc, datatype, shape)
    with tritonclient.grpc.InferenceServerClient(echo.grpc_url) as client:
        same(client.infer("m", inputs, client_timeout=30).as_numpy("x"), sent)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_over_both_with_asyncio(echo, datatype):
    async def both():
        for module, url in ((tritonclient.http, echo.http_url), (tritonclient.grpc, echo.grpc_url)):
            sent, inputs = prepared(module, datatype, (2, 3))
            async with module.aio.InferenceServerClient(url) as client:
                assert await client.is_server_ready()
                assert await client.is_model_ready("m")
                same((await client.infer("m", inputs)).as_numpy("x"), sent)

    asyncio.run(both())


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_with_packed_bodies(echo, packing):
    sent, inputs = prepared(tritonclient.http, "FP32", (2, 3))
    with tritonclient.http.InferenceServerClient(echo.http_url) as client:
        same(client.infer("m", inputs, request_compression_algorithm=packing).as_numpy("x"), sent)


def test_bf16_as_the_clients_have_it(echo):
    import ml_dtypes

    sent = np.array([[1.5, -2.0, 3.0e38]], dtype=ml_dtypes.bfloat16)
    tensor = tritonclient.grpc.InferInput("x", [1, 3], "BF16")
    tensor.set_data_from_numpy(sent)
    with tritonclient.grpc.InferenceServerClient(echo.grpc_url) as client:
        found = client.infer("m", [tensor]).as_numpy("x")
    assert found.astype(np.float32).tolist() == sent.astype(np.float32).tolist()
