"""KServe's v1 protocol (after TensorFlow Serving's REST API): rows of JSON to named arrays and back."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from kservekit.codec.json_values import array, dumps, loads, may_hold_booleans, plain
from kservekit.codec.message import Answer, Request
from kservekit.errors import InvalidInput
from kservekit.tensors import ModelSpec, Tensors, TensorSpec, datatype_of

NO_SPEC = ModelSpec()


def decode_request(body: bytes, spec: ModelSpec = NO_SPEC) -> Request:
    """`{"instances": [row, ...]}`, or columns under `inputs`, as named arrays.

    Rows that are objects become one array a key; bare rows become the model's only input.
    Raises InvalidInput that names row and column.
    """
    return request_from(loads(body), spec, booleans=may_hold_booleans(body))


def request_from(payload: Any, spec: ModelSpec = NO_SPEC, *, booleans: bool = True) -> Request:
    """The same from JSON that was read already; `booleans` says whether true or false may be in it."""
    if not isinstance(payload, dict) or ("instances" in payload) == ("inputs" in payload):
        raise InvalidInput('a v1 request is an object with either "instances" (rows) or "inputs" (columns)')
    parameters = payload.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput('"parameters" must be an object')
    if "instances" in payload:
        rows = payload["instances"]
        if not isinstance(rows, list):
            raise InvalidInput('"instances" must be a list of rows')
        if not rows:
            raise InvalidInput('"instances" has no rows')
        columns = _columns(rows, "instances", lambda: _only(spec.inputs))
    else:
        inputs = payload["inputs"]
        named = isinstance(inputs, dict) and inputs.keys() != {"b64"}
        columns = inputs if named else {_only(spec.inputs): inputs}
    tensors = {name: _array(values, spec.input(name), f"input {name!r}", booleans) for name, values in columns.items()}
    return Request(tensors, parameters=parameters)


def encode_answer(answer: Answer, spec: ModelSpec = NO_SPEC) -> bytes:
    """`{"predictions": [row, ...]}`: bare rows for one output, objects for several.

    Raises ModelError for outputs that share no first dimension, and for NaN or Inf.
    """
    return dumps(payload_from(answer, spec))


def payload_from(answer: Answer, spec: ModelSpec = NO_SPEC) -> dict[str, Any]:
    """The same, not yet written: its leaves are NumPy arrays."""
    count = answer.rows()
    as_base64 = {output.name for output in spec.outputs if output.content_type == "base64"}
    columns = {
        name: plain(values, f"output {name!r}", as_base64=name in as_base64) for name, values in answer.tensors.items()
    }
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    return {"predictions": [{name: column[row] for name, column in columns.items()} for row in range(count)]}


def encode_request(tensors: Tensors) -> bytes:
    """Named arrays as rows for somebody's v1 predictor; BYTES travel as `{"b64": ...}`."""
    answer = Answer(tensors)
    count = answer.rows()
    columns: dict[str, Any] = {}
    for name, values in tensors.items():
        if datatype_of(values, f"input {name!r}") == "BYTES":
            columns[name] = _with_b64(values.tolist())
        else:
            columns[name] = plain(values, f"input {name!r}")
    if len(columns) == 1:
        return dumps({"instances": next(iter(columns.values()))})
    return dumps({"instances": [{name: column[row] for name, column in columns.items()} for row in range(count)]})


def decode_answer(body: bytes) -> Answer:
    """A v1 predictor's rows as named arrays; bare rows get the name `output-0`."""
    payload = loads(body)
    rows = payload.get("predictions") if isinstance(payload, dict) else None
    if not isinstance(rows, list):
        raise InvalidInput('a v1 answer is an object with "predictions", a list of rows')
    columns = _columns(rows, "predictions", lambda: "output-0") if rows else {"output-0": []}
    booleans = may_hold_booleans(body)
    return Answer({name: _array(values, None, f"output {name!r}", booleans) for name, values in columns.items()})


def _columns(rows: list[Any], what: str, only: Callable[[], str]) -> dict[str, list[Any]]:
    if not isinstance(rows[0], dict) or rows[0].keys() == {"b64"}:
        return {only(): rows}
    names = rows[0].keys()
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InvalidInput(f"{what} row {index} is not an object, and row 0 is one")
        if row.keys() != names:
            odd = sorted(row.keys() ^ names)
            raise InvalidInput(
                f"{what} row {index} does not have the keys of row 0: look at {', '.join(map(repr, odd))}"
            )
    return {name: [row[name] for row in rows] for name in names}


def _array(values: Any, spec: TensorSpec | None, label: str, booleans: bool) -> Any:
    if spec is None:
        return array(values, None, label, booleans=booleans)
    return array(values, spec.datatype, label, booleans=booleans, is_base64=spec.content_type == "base64")


def _only(specs: tuple[TensorSpec, ...]) -> str:
    if len(specs) > 1:
        raise InvalidInput(
            f"this model takes {', '.join(repr(spec.name) for spec in specs)}: give each row as an object"
        )
    return specs[0].name if specs else "input-0"


def _with_b64(values: Any) -> Any:
    if isinstance(values, list):
        return [_with_b64(value) for value in values]
    return {"b64": base64.b64encode(values).decode()}
