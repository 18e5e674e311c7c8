"""Models that the tests serve, as a user would write them."""

import asyncio
import os
import sys
import time
from pathlib import Path

import kserve
import numpy as np

from kservekit.errors import InvalidInput, TooManyRequests, Unavailable
from kservekit.serving import Predictor, TensorSpec, Transformer, current_request


class Doubler(Predictor):
    def infer(self, tensors):
        return {name: np.multiply(x, 2) for name, x in tensors.items()}


class Declared(Predictor):
    """Declares what it takes; bytes out are declared as base64."""

    inputs = (TensorSpec("age", "UINT8", (-1,)), TensorSpec("name", "BYTES", (-1,)))
    outputs = (TensorSpec("greeting", "BYTES", (-1,)), TensorSpec("raw", "BYTES", (-1,), content_type="base64"))

    async def infer(self, tensors):
        greeting = [b"%s is %d" % pair for pair in zip(tensors["name"], tensors["age"], strict=True)]
        return {"greeting": np.array(greeting, object), "raw": np.array([b"\xff"] * len(greeting), object)}


class Failing(Predictor):
    """Fails in the way that its request's parameter `how` names."""

    def infer(self, tensors):
        how = current_request().parameters["how"]
        if how == "bug":
            raise RuntimeError("a secret in /home/me/model.py")
        if how == "limit":
            raise TooManyRequests("slow down", retry_after=7)
        if how == "input":
            raise InvalidInput("x is too red")
        if how == "none":
            return None
        if how == "down":
            raise Unavailable("busy", retry_after=3)
        return {"y": np.array([np.nan])}


class Whoami(Predictor):
    """Says what a handler can know of its request."""

    async def infer(self, tensors):
        request = current_request()
        found = [request.id, request.headers.get("x-tenant", ""), str(request.parameters)]
        return {"known": np.array(found, object)}


class Loading(Predictor):
    def load(self):
        raise OSError("no weights in /mnt/models")


class Tenfold(Transformer):
    def to_tensors(self, tensors):
        return {"x": np.multiply(tensors["x"], 10, dtype=np.float32)}

    async def from_tensors(self, tensors):
        return {"tenfold": tensors["y"] / 10}


class Hooked(Doubler):
    """A predictor of ours with one of KServe's own hooks overridden."""

    async def postprocess(self, result, headers=None, response_headers=None):
        if isinstance(result, dict):
            return {"predictions": [["hooked", row] for row in result["predictions"]]}
        result.outputs[0].set_data_from_numpy(result.outputs[0].as_numpy() + 1)
        return result


class Plain(kserve.Model):
    """Written for KServe, knowing nothing of us."""

    def __init__(self, name):
        super().__init__(name)
        self.load()

    def predict(self, payload, headers=None, response_headers=None):
        if isinstance(payload, dict):
            return {"predictions": [row * 3 for row in payload["instances"]]}
        values = payload.inputs[0].as_numpy() * 3
        output = kserve.InferOutput("y", list(values.shape), payload.inputs[0].datatype)
        output.set_data_from_numpy(values)
        return kserve.InferResponse(payload.id or "1", self.name, [output])


class Slow(Predictor):
    """Takes as many seconds as its input says, and says how many of its requests were cancelled."""

    cancelled = 0

    async def infer(self, tensors):
        (seconds,) = next(iter(tensors.values()))
        if seconds:
            sys.stdout.write("started\n")
            sys.stdout.flush()
        try:
            await asyncio.sleep(float(seconds))
        except asyncio.CancelledError:
            Slow.cancelled += 1
            raise
        return {"cancelled": np.array([Slow.cancelled])}


class SlowPlain(Predictor):
    def infer(self, tensors):
        time.sleep(float(tensors["x"].ravel()[0]))
        return tensors


class Process(Predictor):
    """Says which process answers."""

    async def infer(self, tensors):
        return {"pid": np.array([os.getpid()])}


class Explaining(Plain):
    """Blocks in every hook, as KServe models do, and explains."""

    def preprocess(self, payload, headers=None):
        time.sleep(0.2)
        return payload

    def explain(self, payload, headers=None):
        return {"explanations": payload["instances"]}


class Passing(Transformer):
    """Hands on what it is given."""


class HookedErrors(Failing):
    """One of ours that fails behind an overridden hook of KServe's."""

    async def postprocess(self, result, headers=None, response_headers=None):
        return result


class Starting(Doubler):
    """Sets itself up in KServe's start hook, and takes its time to load."""

    started = False

    def start(self):
        Starting.started = True

    def load(self):
        sys.stdout.write("loading\n")
        sys.stdout.flush()
        time.sleep(float(os.environ.get("LOAD_S", "0")))
        self.ready = self.started
        return self.ready


class Unhealthy(Doubler):
    async def healthy(self):
        raise RuntimeError("a secret in /home/me/token")


class Asker(Predictor):
    """Says who asks."""

    async def infer(self, tensors):
        principal = current_request().principal
        return {"who": np.array([principal.name if principal else "nobody"], object)}


class Echo(Predictor):
    def infer(self, tensors):
        return tensors


class Late(Predictor):
    """Takes its time, however busy the machine is."""

    async def infer(self, tensors):
        await asyncio.sleep(0.25)
        return tensors


class Noting(Predictor):
    """Keeps what its requests are called, a line each."""

    def infer(self, tensors):
        request = current_request()
        with open(os.environ["KSERVEKIT_TEST_FILE"], "a") as file:
            file.write(f"{request.id} {request.headers.get('traceparent', '')}\n")
        return tensors


class Gated(Predictor):
    """Answers once the file `open` is there, and leaves one when it is entered and when it is stopped."""

    def infer(self, tensors):
        folder = Path(os.environ["KSERVEKIT_TEST_FILE"])
        (folder / "entered").touch()
        while not (folder / "open").exists():
            time.sleep(0.01)
        return tensors

    def stop(self):
        (Path(os.environ["KSERVEKIT_TEST_FILE"]) / "stopped").touch()


class Counter(Predictor):
    """As many answers as its input says; a negative number is a fault, and 13 fails on the way."""

    inputs = (TensorSpec("n", "INT32", (1,)),)

    async def stream(self, tensors):
        (n,) = tensors["n"].tolist()
        if n < 0:
            raise InvalidInput("n is below 0: expected how many answers")
        try:
            for i in range(n):
                if n == 13 and i == 2:
                    raise Unavailable("tired after two", retry_after=4)
                await asyncio.sleep(0.001 if n < 10_000 else 0.01)
                yield {"i": np.array([i]), "asked": np.array([current_request().id.encode()], object)}
        finally:
            if n == 100_000:
                _note_the_end(os.environ["KSERVEKIT_TEST_FILE"])


def _note_the_end(path):
    with open(path, "a") as file:
        file.write("ended\n")


class PlainCounter(Predictor):
    """The same in a plain def, which must not block the loop."""

    def stream(self, tensors):
        for i in range(int(tensors["n"][0])):
            time.sleep(0.05)
            yield {"i": np.array([i])}


class Broken(Predictor):
    def stream(self, tensors):
        yield {"i": np.array([0])}
        raise RuntimeError("a secret in /home/me/model.py")


class TenfoldAnswers(Transformer):
    def from_tensors(self, tensors):
        return {"i": 10 * tensors["i"]}


class Weights(Predictor):
    """Answers with what a file holds, which is its weights."""

    def load(self):
        self.weights = float(Path(os.environ["KSERVEKIT_TEST_FILE"]).read_text())
        self.ready = True
        return self.ready

    def infer(self, tensors):
        return {"y": np.array([self.weights])}
