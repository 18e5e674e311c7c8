"""The floor: a bare ASGI application on uvicorn that takes the same requests and hops to Triton by grpc.aio.

It validates nothing, limits nothing, counts nothing and answers no other path; only its speed is of interest.
"""

from __future__ import annotations

import argparse
from typing import Any

import grpc.aio
import numpy as np
import orjson
import uvicorn

from kservekit.oip.triton_messages import messages, stubs

OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Hop:
    def __init__(self, triton: str, model: str) -> None:
        self.triton, self.model = triton, model
        self.stub: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status, headers, body = (
            (200, [], b"") if scope["method"] == "GET" else await self.infer(dict(scope["headers"]), receive)
        )
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def infer(self, headers: dict[bytes, bytes], receive: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        parts, more = [], True
        while more:
            event = await receive()
            parts.append(event["body"])
            more = event["more_body"]
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        json_length = headers.get(b"inference-header-content-length")
        if json_length is None:
            (item,) = orjson.loads(body)["inputs"]
            raw = np.array(item["data"], np.float32).tobytes()
        else:
            (item,) = orjson.loads(body[: int(json_length)])["inputs"]
            raw = body[int(json_length) :]
        message = messages.ModelInferRequest(model_name=self.model)
        message.inputs.add(name=item["name"], datatype=item["datatype"], shape=item["shape"])
        message.raw_input_contents.append(raw)
        if self.stub is None:  # the channel belongs to the loop
            self.stub = stubs.GRPCInferenceServiceStub(grpc.aio.insecure_channel(self.triton, OPTIONS))
        reply = await self.stub.ModelInfer(message)
        (output,), (values,) = reply.outputs, reply.raw_output_contents
        head: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        answer = {"model_name": self.model, "model_version": reply.model_version, "outputs": [head]}
        if json_length is None:
            head["data"] = np.frombuffer(values, np.float32).tolist()
            return 200, [(b"content-type", b"application/json")], orjson.dumps(answer)
        head["parameters"] = {"binary_data_size": len(values)}
        text = orjson.dumps(answer)
        return 200, [(b"inference-header-content-length", b"%d" % len(text))], text + values


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--http_port", type=int, required=True)
    parser.add_argument("--grpc_port", type=int, help="taken and not used: it has no gRPC")
    parser.add_argument("--predictor_host", required=True)
    flags = parser.parse_args()
    app = Hop(flags.predictor_host, flags.model_name)
    uvicorn.run(app, host="127.0.0.1", port=flags.http_port, lifespan="off", ws="none", log_level="warning")
