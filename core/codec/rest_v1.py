"""KServe's v1 protocol (after TensorFlow Serving's REST API): rows of JSON to named arrays and back."""

from __future__ import annotations

import base64
from collections.abc import Callable
from itertools import islice
from operator import itemgetter
from typing import Any

import numpy as np

from kservekit.codec.json_values import array, dumps, loads, plain, shown
from kservekit.codec.message import MOST_TENSORS, Answer, Request, check_count, check_name, common_rows, shapes
from kservekit.codec.parameters import check_parameters
from kservekit.errors import InvalidInput
from kservekit.tensors import ModelSpec, Tensors, TensorSpec, as_bytes, datatype_of, object_array

NO_SPEC = ModelSpec()


def decode_request(body: bytes | bytearray, spec: ModelSpec = NO_SPEC, *, max_tensors: int = MOST_TENSORS) -> Request:
    """`{"instances": [row, ...]}`, or columns under `inputs`, as named arrays.

    Rows that are objects become one array a key; bare rows become the model's only input.
    Raises InvalidInput that names row and column, also for more than `max_tensors` columns.
    """
    return request_from(loads(body), spec, max_tensors=max_tensors)


def request_from(payload: Any, spec: ModelSpec = NO_SPEC, *, max_tensors: int = MOST_TENSORS) -> Request:
    """The same from JSON that was read already."""
    if not isinstance(payload, dict) or ("instances" in payload) == ("inputs" in payload):
        raise InvalidInput('a v1 request is an object with either "instances" (rows) or "inputs" (columns)')
    parameters = payload.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidInput('"parameters" must be an object')
    check_parameters(parameters, '"parameters"')
    if "instances" in payload:
        rows = payload["instances"]
        if not isinstance(rows, list):
            raise InvalidInput('"instances" must be a list of rows')
        if not rows:
            raise InvalidInput('"instances" has no rows')
        columns = _columns(rows, "instances", lambda: _only(spec.inputs), max_tensors)
    else:
        inputs = payload["inputs"]
        if not inputs or not isinstance(inputs, (dict, list)):
            raise InvalidInput(f'"inputs" is {shown(inputs)}: expected an object of columns, or one column as a list')
        columns = inputs if isinstance(inputs, dict) else {_only(spec.inputs): inputs}
        check_count(len(columns), "inputs", max_tensors)
        for name, values in columns.items():
            declared = spec.input(name)
            if not isinstance(values, list) and not (declared and declared.shape == ()):
                raise InvalidInput(f"input {shown(name)} is {shown(values)}: expected a list, one value a row")
    for name in columns:
        if not check_name(name, "a column's name"):
            raise InvalidInput("a column has the empty name: expected the name of an input")
    tensors = {name: _array(values, spec.input(name), f"input {shown(name)}") for name, values in columns.items()}
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
    """Named arrays as rows for somebody's v1 predictor; BYTES travel as `{"b64": ...}`.

    Raises InvalidInput for inputs that share no first dimension, and for NaN or Inf.
    """
    count = common_rows(tensors)
    if count is None:
        raise InvalidInput(
            "the predictor of this model is reached by v1, which has rows, and these inputs share no first "
            f"dimension: {shapes(tensors)}"
        )
    columns: dict[str, Any] = {}
    for name, values in tensors.items():
        if datatype_of(values, f"input {shown(name)}") == "BYTES":
            columns[name] = _with_b64(as_bytes(values, f"input {shown(name)}"))
        else:
            columns[name] = plain(values, f"input {shown(name)}", error=InvalidInput)
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
    return Answer({name: _array(values, None, f"output {shown(name)}") for name, values in columns.items()})


def _columns(
    rows: list[Any], what: str, only: Callable[[], str], max_tensors: int | None = None
) -> dict[str, list[Any]]:
    if not isinstance(rows[0], dict) or rows[0].keys() == {"b64"}:
        return {only(): rows}
    names = rows[0].keys()
    if not names:
        raise InvalidInput(f"{what} row 0 is an object without keys: expected one a column")
    if max_tensors is not None:
        check_count(len(names), "inputs", max_tensors)
    if set(map(type, rows)) == {dict} and set(map(len, rows)) == {len(names)}:
        try:
            return {name: list(map(itemgetter(name), rows)) for name in names}
        except KeyError:
            pass
    index = next(index for index, row in enumerate(rows) if not isinstance(row, dict) or row.keys() != names)
    row = rows[index]
    if not isinstance(row, dict):
        raise InvalidInput(f"{what} row {index} is not an object, and row 0 is one")
    odd = islice((name for keys, other in ((names, row), (row, names)) for name in keys if name not in other), 10)
    raise InvalidInput(f"{what} row {index} does not have the keys of row 0: look at {', '.join(map(shown, odd))}")


def _array(values: Any, spec: TensorSpec | None, label: str) -> Any:
    if spec is None:
        return array(values, None, label)
    return array(values, spec.datatype, label, is_base64=spec.content_type == "base64")


def _only(specs: tuple[TensorSpec, ...]) -> str:
    if len(specs) > 1:
        raise InvalidInput(
            f"this model takes {', '.join(repr(spec.name) for spec in specs)}: give each row as an object"
        )
    return specs[0].name if specs else "input-0"


def _with_b64(values: np.ndarray) -> Any:
    wrapped = [{"b64": base64.b64encode(value).decode()} for value in values.ravel().tolist()]
    return object_array(wrapped).reshape(values.shape).tolist()
