"""ONNX files read from their bytes, without a package: nodes with their attributes, and weights.

An ONNX file is one protocol-buffer message. Its wire format is simple and frozen (a field is a key,
number * 8 + type, and a value), and only some messages of it are looked at here; the target has no
package for it. Field numbers are those of onnx.proto3.
"""

import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.errors import ResdeployError
from resdeploy.schema.sessions import PrecisionName

__all__ = [
    "OnnxNode",
    "count_subnormal_weights",
    "external_weights",
    "read_nodes",
    "read_weight_shapes",
    "stored_precision",
]

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT = 1, 2, 3
_ATTRIBUTE_TEXT, _ATTRIBUTE_INTS = 4, 8
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME = 1, 2, 4, 8
_TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 9, 13, 14
# Where tensors are in a model, in whatever graph: by message, the fields that lead to one.
_WAYS_TO_TENSORS = {
    "model": {_MODEL_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {_GRAPH_NODE: "node", _GRAPH_INITIALIZER: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        10: "tensor",
        6: "graph",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
_FLOAT, _FLOAT16, _DOUBLE = 1, 10, 11
_PRECISIONS: dict[int, PrecisionName] = {2: "int8", 3: "int8", 10: "float16", 16: "bfloat16"}
_DTYPES: dict[int, np.dtype[Any]] = {
    _FLOAT: np.dtype(np.float32),
    _FLOAT16: np.dtype(np.float16),
    _DOUBLE: np.dtype(np.float64),
}


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """A node of the graph: its name, its operator, the names of its values, its attributes.

    Of the attributes, those that are a number, text or integers.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def read_nodes(model: bytes) -> tuple[OnnxNode, ...]:
    """Return the nodes of the main graph, in its order.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    return tuple(
        _node(value)
        for graph in _values(memoryview(model), _MODEL_GRAPH)
        for value in _values(graph, _GRAPH_NODE)
    )


def read_weight_shapes(model: bytes) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of the main graph, by its name.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    return {
        bytes(name).decode(errors="replace"): _ints(tensor, _TENSOR_DIMS)
        for tensor in _weights(model)
        for name in _values(tensor, _TENSOR_NAME)
    }


def count_subnormal_weights(model: bytes) -> int | None:
    """Return how many weights are subnormal; None if some lie in another file.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    count = 0
    for tensor in _weights(model):
        fields = list(_fields(tensor))
        if (_TENSOR_LOCATION, 1) in fields:
            return None
        for code, dtype in _DTYPES.items():
            if (_TENSOR_TYPE, code) in fields:
                count += sum(_num_subnormal(*field, dtype) for field in fields)
    return count


def external_weights(model: bytes | mmap.mmap) -> Iterator[tuple[str, str]]:
    """Yield the name and the file of each tensor with one, in whatever graph of a model.

    The file is "" where the model names none. A tensor is counted in if any of its fields says so,
    as a message that comes in two pieces is one message to ONNX Runtime.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    waiting = [("model", memoryview(model))]
    while waiting:
        kind, message = waiting.pop()
        if kind == "tensor":
            for location in _locations(message):
                yield _text(message, _TENSOR_NAME), location
            continue
        ways = _WAYS_TO_TENSORS[kind]
        for number, value in _fields(message):
            if number in ways and isinstance(value, memoryview):
                waiting.append((ways[number], value))


def _locations(tensor: memoryview) -> list[str]:
    entries = list(_values(tensor, _TENSOR_EXTERNAL))
    found = [_text(entry, 2) for entry in entries if _text(entry, 1) == "location"]
    is_outside = any(number == _TENSOR_LOCATION and value for number, value in _fields(tensor))
    return found or [""] * is_outside


def _text(message: memoryview, wanted: int) -> str:
    """Return the last text of a field, as protocol buffers do; a file's name keeps its bytes."""
    return os.fsdecode(([b""] + [bytes(value) for value in _values(message, wanted)])[-1])


def stored_precision(path: Path) -> PrecisionName:
    """Return the type that most bytes of a model's weights are stored in.

    Raises:
        ResdeployError: the file is missing, or is not an ONNX model.
    """
    if not path.is_file():
        raise ResdeployError("There is no such model file.", where=str(path))
    bytes_of: Counter[int] = Counter()
    try:
        for tensor in _weights(path.read_bytes()):
            fields = list(_fields(tensor))
            types = [value for number, value in fields if number == _TENSOR_TYPE]
            size = sum(len(v) for _, v in fields if isinstance(v, memoryview))
            if types and isinstance(types[0], int):
                bytes_of[types[0]] += size
    except (OSError, ValueError) as error:
        raise ResdeployError(f"This is not a model: {error}.", where=str(path)) from error
    most = max(bytes_of, key=bytes_of.__getitem__, default=_FLOAT)
    return _PRECISIONS.get(most, "float32")


def _weights(model: bytes) -> Iterator[memoryview]:
    for graph in _values(memoryview(model), _MODEL_GRAPH):
        yield from _values(graph, _GRAPH_INITIALIZER)


def _num_subnormal(number: int, value: int | memoryview, dtype: np.dtype[Any]) -> int:
    packed = number == _TENSOR_FLOATS and dtype == np.float32
    if not isinstance(value, memoryview) or not (number == _TENSOR_RAW or packed):
        return 0
    values = np.abs(np.frombuffer(value, dtype))
    return int(np.sum((values > 0) & (values < np.finfo(dtype).tiny)))


def _node(message: memoryview) -> OnnxNode:
    texts: dict[int, list[str]] = {}
    for number, value in _fields(message):
        if number <= _NODE_OP and isinstance(value, memoryview):
            texts.setdefault(number, []).append(bytes(value).decode(errors="replace"))
    return OnnxNode(
        name="".join(texts.get(_NODE_NAME, ())),
        op="".join(texts.get(_NODE_OP, ())),
        inputs=tuple(texts.get(_NODE_INPUT, ())),
        outputs=tuple(texts.get(_NODE_OUTPUT, ())),
        attributes=dict(map(_attribute, _values(message, _NODE_ATTRIBUTE))),
    )


def _attribute(message: memoryview) -> tuple[str, Any]:
    """Return an attribute's name and its value, None if it is of another kind."""
    name = ""
    found: Any = None
    for number, value in _fields(message):
        if number == _ATTRIBUTE_NAME and isinstance(value, memoryview):
            name = bytes(value).decode(errors="replace")
        elif number == _ATTRIBUTE_FLOAT and isinstance(value, memoryview):
            (found,) = struct.unpack("<f", value)
        elif number == _ATTRIBUTE_INT and isinstance(value, int):
            found = _signed(value)
        elif number == _ATTRIBUTE_TEXT and isinstance(value, memoryview):
            found = bytes(value).decode(errors="replace")
    return name, _ints(message, _ATTRIBUTE_INTS) or found


def _ints(message: memoryview, wanted: int) -> tuple[int, ...]:
    """Return the integers of a field, which stand one by one, or packed into one."""
    ints: list[int] = []
    for number, value in _fields(message):
        if number != wanted:
            continue
        if isinstance(value, int):
            ints.append(value)
            continue
        position = 0
        while position < len(value):
            one, position = _varint(value, position)
            ints.append(one)
    return tuple(_signed(value) for value in ints)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _values(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield each field's number and value: a number, or the bytes of what has a length."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type, -1)
        if size < 0 or number == 0 or position + size > len(message):
            raise ValueError("this is not an ONNX model")
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("this is not an ONNX model")
