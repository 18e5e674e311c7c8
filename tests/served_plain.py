"""Models written for KServe that know nothing of us: `python served_plain.py` serves them as KServe does."""

import sys

import kserve
import numpy as np
from fastapi import HTTPException
from kserve import InferInput, InferOutput, InferRequest, InferResponse
from kserve.errors import InferenceError, InvalidInput
from kserve.model_server import args as flags
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.utils.utils import get_predict_input, get_predict_response


class Plain(kserve.Model):
    def __init__(self, name, **options):
        super().__init__(name, **options)
        self.ready = True


def texts(name, *found):
    return InferResponse("1", name, [InferOutput("said", [len(found)], "BYTES", [repr(item) for item in found])])


class Given(Plain):
    """What it is given of a v2 request."""

    def predict(self, payload, headers=None):
        (first,) = payload.inputs
        parameters = {key: getattr(value, "int64_param", value) for key, value in (payload.parameters or {}).items()}
        outputs = [(item.name, item.parameters or {}) for item in payload.request_outputs or []]
        return texts(
            self.name,
            first.data,
            first.as_numpy().tolist(),
            (first.name, first.datatype, list(first.shape), first.parameters or {}),
            (payload.id or "", payload.model_name, payload.model_version or "", payload.from_grpc),
            (parameters, outputs, payload.use_binary_outputs),
        )


class Body(Plain):
    """What it is given of a v1 request."""

    def predict(self, payload, headers=None):
        return {"predictions": [type(payload).__name__, repr(payload)]}

    def explain(self, payload, headers=None):
        return {"explanations": [type(payload).__name__, repr(payload)]}


class Utils(Plain):
    """KServe's own helpers."""

    def predict(self, payload, headers=None):
        values = get_predict_input(payload)
        return get_predict_response(payload, np.array([len(values)]), self.name)


class Sample(Plain):
    """The shape of KServe's custom_model/model_grpc.py."""

    def preprocess(self, payload, headers=None):
        return np.frombuffer(payload.inputs[0].data[0], np.uint8).astype(np.float32)

    def predict(self, values, headers=None):
        output = {"name": "output-0", "shape": [2], "datatype": "FP32", "contents": {"fp32_contents": values.tolist()}}
        return {"id": "sample", "model_name": self.name, "outputs": [output]}


class Message(Plain):
    def predict(self, payload, headers=None):
        found = pb.ModelInferResponse(model_name="own", id="own", model_version="7")
        found.parameters["unit"].string_param = "m"
        output = found.outputs.add(name="y", datatype="INT64", shape=[2])
        output.contents.int64_contents.extend([1, -2])
        output.parameters["scale"].int64_param = 3
        return found


class Beside(Plain):
    """Says everything of its own, in v1 too."""

    def __init__(self, name):
        super().__init__(name, return_response_headers=True)

    async def predict(self, payload, headers=None, response_headers=None):
        response_headers.update({"x-own": "yes", "content-length": "5"})
        output = InferOutput("y", [2], "FP32", [1.5, 2.5], parameters={"scale": 3})
        return InferResponse("own", "own-name", [output], model_version="7", parameters={"unit": "m"})


class Streams(Plain):
    async def predict(self, payload, headers=None):
        async def pieces():
            for number in range(payload["instances"][0]):
                if number == 13:
                    raise RuntimeError("a secret in /home/me/model.py")
                yield f"data {number}\n" if number % 2 else b"data 0\n"

        return pieces()


class Raises(Plain):
    def predict(self, payload, headers=None):
        how = payload["instances"][0] if isinstance(payload, dict) else payload.inputs[0].as_numpy()[0]
        raise {
            "422": HTTPException(422, "too odd"),
            "429": HTTPException(429, "slow down", headers={"Retry-After": "7"}),
            "inference": InferenceError("bad inference"),
            "input": InvalidInput("you are wrong"),
            "bug": ValueError("a secret in /home/me/model.py"),
        }[how.decode() if isinstance(how, bytes) else how]


class Returns(Plain):
    def predict(self, payload, headers=None):
        return {
            "text": "hello",
            "bytes": b"\x89PNG",
            "list": [1, 2],
            "none": None,
            "keys": {"a": {0: 1, 1: 2}},
            "numpy": {"predictions": np.arange(3), "more": [np.float32(1.5)]},
            "null": {"predictions": [None, 1.5]},
            "nan": {"predictions": [{"a": [1.0, float("nan")]}]},
            "set": {"predictions": {1}},
            "split": {"predictions": [1]},
        }[payload["instances"][0]]


class Splits(Plain):
    """Copies what it is sent into a header."""

    def __init__(self, name):
        super().__init__(name, return_response_headers=True)

    def predict(self, payload, headers=None, response_headers=None):
        response_headers["x-own"] = payload["instances"][0]
        return {"predictions": [1]}


class Rows(Plain):
    """A transformer in KServe's style: v1 to its callers, v2 to its predictor."""

    def preprocess(self, payload, headers=None):
        values = np.asarray(payload["instances"], np.float32)
        return InferRequest(self.name, [InferInput("x", list(values.shape), "FP32", values.tolist())])

    def postprocess(self, result, headers=None):
        return {"predictions": result.outputs[0].as_numpy().tolist()}


MODELS = [Given, Body, Utils, Sample, Message, Beside, Streams, Raises, Returns, Splits]


def models(name):
    return [kind(kind.__name__.lower()) for kind in MODELS]


def transformers(name):
    """In front of those; a Plain hands on what it is given."""
    return [Rows("utils"), *map(Plain, ("given", "raises", "nix"))]


if __name__ == "__main__":
    sys.exit(kserve.ModelServer(workers=1).start(models(flags.model_name)))
