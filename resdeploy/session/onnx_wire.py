"""Wire format of ONNX files, read without a package: nodes with their attributes, and weights.

An ONNX file is one protocol-buffer message. Its wire format is simple and frozen (a field is a key,
number * 8 + type, and a value), and only some of its messages are read here; the target has no
package for it. Field numbers are those of onnx.proto3.
"""

import mmap
import os
import struct
from collections import Counter, defaultdict
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
# The ways to the tensors of a model, in all of its graphs: by message, the fields that lead to one.
_WAYS_TO_TENSORS = {
    "model": {_MODEL_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {_GRAPH_NODE: "node", _GRAPH_INITIALIZER: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_FLOAT = 1
_PRECISIONS: dict[int, PrecisionName] = {2: "int8", 3: "int8", 10: "float16", 16: "bfloat16"}
_Fields = defaultdict[int, list[int | memoryview]]
_DTYPES: dict[int, np.dtype[Any]] = {
    _FLOAT: np.dtype(np.float32),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
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
    return tuple(map(_node, _at(memoryview(model), _MODEL_GRAPH, _GRAPH_NODE)))


def read_weight_shapes(model: bytes) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of the main graph, by its name.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    return {_text(fields, _TENSOR_NAME): _ints(fields, _TENSOR_DIMS) for fields in _weights(model)}


def count_subnormal_weights(model: bytes) -> int | None:
    """Return the number of subnormal weights; None if some lie in another file.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    count = 0
    for fields in _weights(model):
        if 1 in fields[_TENSOR_LOCATION]:
            return None
        for dtype in filter(None, map(_DTYPES.get, _ints(fields, _TENSOR_TYPE))):
            packed = [_TENSOR_RAW, _TENSOR_FLOATS] if dtype == np.float32 else [_TENSOR_RAW]
            for content in (content for number in packed for content in _bytes(fields, number)):
                values = np.abs(np.frombuffer(content, dtype))
                count += int(np.sum((values > 0) & (values < np.finfo(dtype).tiny)))
    return count


def external_weights(model: bytes | mmap.mmap) -> Iterator[tuple[str, str]]:
    """Yield the name and the file of each tensor with one, in all graphs of a model.

    The file is "" where the model names none. A tensor counts if any of its fields says so, as a
    message that comes in two pieces is one message to ONNX Runtime.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    waiting = [("model", memoryview(model))]
    while waiting:
        kind, message = waiting.pop()
        fields = _parse(message)
        if kind == "tensor":
            for location in _locations(fields):
                yield _text(fields, _TENSOR_NAME), location
            continue
        for number, inner in _WAYS_TO_TENSORS[kind].items():
            waiting += [(inner, value) for value in _bytes(fields, number)]


def _locations(tensor: _Fields) -> list[str]:
    entries = map(_parse, _bytes(tensor, _TENSOR_EXTERNAL))
    # A file's name keeps its bytes.
    found = [
        os.fsdecode(([b""] + [bytes(value) for value in _bytes(entry, 2)])[-1])
        for entry in entries
        if _text(entry, 1) == "location"
    ]
    return found or [""] * any(tensor[_TENSOR_LOCATION])


def stored_precision(path: Path) -> PrecisionName:
    """Return the type of most bytes of a model's weights.

    Raises:
        ResdeployError: the file is missing, or is not an ONNX model.
    """
    if not path.is_file():
        raise ResdeployError("There is no such model file.", where=str(path))
    bytes_of: Counter[int] = Counter()
    try:
        for fields in _weights(path.read_bytes()):
            for code in _ints(fields, _TENSOR_TYPE)[:1]:
                bytes_of[code] += sum(len(v) for number in fields for v in _bytes(fields, number))
    except (OSError, ValueError) as error:
        raise ResdeployError(f"This is not a model: {error}.", where=str(path)) from error
    most = max(bytes_of, key=bytes_of.__getitem__, default=_FLOAT)
    return _PRECISIONS.get(most, "float32")


def _weights(model: bytes) -> Iterator[_Fields]:
    return map(_parse, _at(memoryview(model), _MODEL_GRAPH, _GRAPH_INITIALIZER))


def _node(message: memoryview) -> OnnxNode:
    fields = _parse(message)
    return OnnxNode(
        name=_text(fields, _NODE_NAME),
        op=_text(fields, _NODE_OP),
        inputs=tuple(_texts(fields, _NODE_INPUT)),
        outputs=tuple(_texts(fields, _NODE_OUTPUT)),
        attributes=dict(map(_attribute, _bytes(fields, _NODE_ATTRIBUTE))),
    )


def _attribute(message: memoryview) -> tuple[str, Any]:
    """Return an attribute's name and its value, None if it is of another kind."""
    fields = _parse(message)
    values = [
        *(struct.unpack("<f", value)[0] for value in _bytes(fields, _ATTRIBUTE_FLOAT)),
        *_ints(fields, _ATTRIBUTE_INT),
        *_texts(fields, _ATTRIBUTE_TEXT),
    ]
    found = values[-1] if values else None
    return _text(fields, _ATTRIBUTE_NAME), _ints(fields, _ATTRIBUTE_INTS) or found


# --- the wire format -----------------------------------------------------------------------------


def _at(message: memoryview, *path: int) -> Iterator[memoryview]:
    """Yield the messages inside a message at a path of field numbers."""
    if not path:
        yield message
        return
    for value in _bytes(_parse(message), path[0]):
        yield from _at(value, *path[1:])


def _bytes(fields: _Fields, number: int) -> list[memoryview]:
    return [value for value in fields[number] if isinstance(value, memoryview)]


def _texts(fields: _Fields, number: int) -> list[str]:
    return [bytes(value).decode(errors="replace") for value in _bytes(fields, number)]


def _text(fields: _Fields, number: int) -> str:
    """Return the last text of a field, the one that counts in protocol buffers."""
    return (["", *_texts(fields, number)])[-1]


def _ints(fields: _Fields, number: int) -> tuple[int, ...]:
    """Return the integers of a field, one by one or packed into one value."""
    ints: list[int] = []
    for value in fields[number]:
        if isinstance(value, int):
            ints.append(value)
            continue
        position = 0
        while position < len(value):
            one, position = _varint(value, position)
            ints.append(one)
    return tuple(one - 2**64 if one >= 2**63 else one for one in ints)


def _parse(message: memoryview) -> _Fields:
    """Return the values of each field: numbers, or the bytes of values with a length."""
    fields: _Fields = defaultdict(list)
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            fields[number].append(value)
            continue
        if wire_type == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type, -1)
        if size < 0 or number == 0 or position + size > len(message):
            raise ValueError("this is not an ONNX model")
        fields[number].append(message[position : position + size])
        position += size
    return fields


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, lowest first, and the position of its end."""
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("this is not an ONNX model")
