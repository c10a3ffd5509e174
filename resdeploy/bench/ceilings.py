"""Ceilings of this machine: the rates of a large matrix product and of a large copy."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.session import open_session

__all__ = ["peak_bytes_per_s", "peak_macs_per_s"]

# 0.13 GMAC: long compared with the start of a run, and short enough that on a busy machine some
# tries are not interrupted.
_MATRIX_SIZE = 512
# Two arrays of this size are larger than the last cache of most machines.
_COPY_BYTES = 64 << 20
_NUM_TRIES = 30

# TensorProto.DataType
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}


def peak_macs_per_s(spec: SessionSpec, *, integer: bool = False) -> float:
    """Return the best rate of a square matrix product in a session of `spec`.

    Args:
        spec: how to open it.
        integer: of uint8 by int8 with sums in int32, and not of float32.
    """
    size = _MATRIX_SIZE
    rng = np.random.default_rng(0)
    left: NDArray[Any]
    right: NDArray[Any]
    if integer:
        left = rng.integers(0, 256, (size, size), dtype=np.uint8)
        right = rng.integers(-128, 128, (size, size), dtype=np.int8)
        model = _product(b"MatMulInteger", left, right, "int32")
    else:
        left, right = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
        model = _product(b"MatMul", left, right, "float32")
    session = open_session(model, spec)
    return float(size**3 / _shortest_s(lambda: session.run({"a": left})))


def peak_bytes_per_s(num_threads: int) -> float:
    """Return the best rate of a copy by `num_threads` threads, bytes read and written together."""
    source = np.ones(_COPY_BYTES // 8)
    target = np.zeros_like(source)
    sources, targets = (np.array_split(array, num_threads) for array in (source, target))
    with ThreadPoolExecutor(num_threads) as pool:
        # numpy lets other threads run while it copies.
        return 2 * _COPY_BYTES / _shortest_s(lambda: list(pool.map(np.copyto, targets, sources)))


def _shortest_s(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_NUM_TRIES):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _product(op: bytes, left: NDArray[Any], right: NDArray[Any], out_type: str) -> bytes:
    """Return an ONNX model of one product of an input a like `left` and the weight `right`, to y.

    Written out as a protocol buffer, since the target has no package that makes one: field numbers
    are those of onnx.proto3. The second matrix is a weight, as in a network: a runtime packs it
    when the session opens, and not in each run.
    """
    node = _field(1, b"a") + _field(1, b"b") + _field(2, b"y") + _field(3, b"product")
    node += _field(4, op)
    weight = b"".join(_number(1, size) for size in right.shape)
    weight += _number(2, _TYPES[str(right.dtype)]) + _field(8, b"b") + _field(9, right.tobytes())
    graph = _field(1, node) + _field(2, b"product") + _field(5, weight)
    graph += _field(11, _value(b"a", _TYPES[str(left.dtype)], left.shape))
    graph += _field(12, _value(b"y", _TYPES[out_type], (left.shape[0], right.shape[1])))
    opset = _field(1, b"") + _number(2, 13)
    return _number(1, 8) + _field(7, graph) + _field(8, opset)


def _value(name: bytes, element_type: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _number(1, size)) for size in shape)  # TensorShapeProto.dim.dim_value
    return _field(1, name) + _field(2, _field(1, _number(1, element_type) + _field(2, dims)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
