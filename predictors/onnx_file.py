"""What an ONNX file says of itself, read without running it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from kservekit.errors import CannotStart
from kservekit.tensors import ModelSpec, TensorSpec

DATATYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "STRING": "BYTES",
}
"""By ONNX's names of them, the protocol's."""


_WAY_TO_SHAPES = "export the model with the shapes of its inputs, or run onnx.shape_inference on the file"


@dataclass(frozen=True)
class OnnxFile:
    path: Path
    spec: ModelSpec
    """Sizes that the file leaves open are -1."""
    sizes: dict[str, tuple[str, ...]]
    """By tensor, the names of its sizes: of those that are left open as the file calls them, of others empty."""
    weights: tuple[str, ...]
    """Files beside it that hold weights, by their path from its folder."""

    @property
    def batches(self) -> bool:
        """Whether the first size of every input and output is left open, as a batch's is."""
        tensors = (*self.spec.inputs, *self.spec.outputs)
        return bool(tensors) and all(item.has_rows for item in tensors)


def read_onnx(path: Path) -> OnnxFile:
    """CannotStart for a file that is none, or has inputs that the protocol has no datatype for."""
    try:
        import onnx
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data
    except ImportError:
        raise CannotStart("ONNX files are read with onnx: pip install 'kservekit[local]'") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise CannotStart(f"{path}: no such file") from None
    except Exception as error:  # protobuf's, which has several
        raise CannotStart(f"{path} is no ONNX file: {type(error).__name__}: {error}") from None
    if not model.graph.output:
        raise CannotStart(f"{path} is no ONNX file: it has no outputs")
    constants = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in constants]
    specs = [[_spec(onnx, path, item) for item in items] for items in (inputs, model.graph.output)]
    tensors = (*_tensors(model.graph), *_of_nodes(node for item in model.functions for node in item.node))
    external = [ExternalDataInfo(item) for item in tensors if uses_external_data(item)]
    for info in external:
        _check_weights(path, str(info.location), (info.offset or 0) + (info.length or 0))
    return OnnxFile(
        path,
        ModelSpec(tuple(specs[0]), tuple(specs[1])),
        {item.name: _sizes(item) for item in (*inputs, *model.graph.output)},
        tuple(sorted({str(info.location) for info in external})),
    )


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """A Constant holds its tensor, and an If its two graphs."""
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors(graph)


def check_shapes(path: Path, scalars: Iterable[str]) -> None:
    """CannotStart where one of these inputs has no shape at all, which to an engine looks as a scalar's does.

    Read without onnx, which engines do without. Of the file it reads the fields of onnx.proto that ModelProto.graph,
    GraphProto.input, ValueInfoProto.name and .type, TypeProto.tensor_type and its shape have.
    """
    if path.suffix == ".ort" or not (asked := set(scalars)):
        return
    for graph in _fields(path.read_bytes(), 7):
        for item in _fields(graph, 11):
            name = b"".join(_fields(item, 1)).decode()
            tensors = [tensor for kind in _fields(item, 2) for tensor in _fields(kind, 1)]
            if name in asked and not any(_fields(tensor, 2) for tensor in tensors):
                raise CannotStart(f"{path}: {name!r} has no shape; {_WAY_TO_SHAPES}")


def _fields(message: bytes, number: int) -> list[bytes]:
    found = UnknownFieldSet(Empty.FromString(message))
    return [field.data for field in found if field.field_number == number]


def _check_weights(path: Path, location: str, size: int) -> None:
    if Path(location).is_absolute() or ".." in Path(location).parts:
        raise CannotStart(f"{path} has weights in {location!r}: expected a file beside it, or below")
    file = path.parent / location
    if not file.is_file():
        raise CannotStart(f"{path} has weights in {location!r}, which is not there: put it beside it")
    if file.stat().st_size < size:
        raise CannotStart(
            f"{path} has weights in {location!r}, up to byte {size}, and that file has {file.stat().st_size} bytes: it "
            "is of another model, or not whole"
        )


def _spec(onnx: Any, path: Path, item: Any) -> TensorSpec:
    kind = item.type.WhichOneof("value")
    found = onnx.TensorProto.DataType.Name(item.type.tensor_type.elem_type) if kind == "tensor_type" else kind
    if found not in DATATYPES:
        raise CannotStart(f"{path}: {item.name!r} is {found}, which the protocol has no datatype for")
    if not item.type.tensor_type.HasField("shape"):
        raise CannotStart(f"{path}: {item.name!r} has no shape; {_WAY_TO_SHAPES}")
    dims = item.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
    return TensorSpec(item.name, DATATYPES[found], shape)


def _sizes(item: Any) -> tuple[str, ...]:
    return tuple(dim.dim_param for dim in item.type.tensor_type.shape.dim)
