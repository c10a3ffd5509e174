"""What this machine can do at best: multiply large matrices, and copy large arrays."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resdeploy.schema.sessions import SessionSpec
from resdeploy.target.session import open_session

__all__ = ["peak_bytes_per_s", "peak_macs_per_s"]

# 0.13 GMAC: long beside what starting a run costs, and short enough that on a busy machine some of
# the tries are not interrupted.
_MATRIX_SIZE = 512
# Two arrays of this size are larger than the last cache of most machines.
_COPY_BYTES = 64 << 20
_NUM_TRIES = 30


def peak_macs_per_s(spec: SessionSpec) -> float:
    """Return the best rate of a square float32 matrix product in a session of `spec`."""
    size = _MATRIX_SIZE
    session = open_session(_matrix_product(size), spec)
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    seconds = []
    for _ in range(_NUM_TRIES):
        start = time.perf_counter()
        session.run({"a": left, "b": right})
        seconds.append(time.perf_counter() - start)
    return float(size**3 / min(seconds))


def peak_bytes_per_s(num_threads: int) -> float:
    """Return the best rate of a copy by `num_threads` threads, bytes read and written together."""
    source = np.ones(_COPY_BYTES // 8)
    target = np.zeros_like(source)
    sources, targets = (np.array_split(array, num_threads) for array in (source, target))
    seconds = []
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(_NUM_TRIES):
            start = time.perf_counter()
            # numpy lets other threads run while it copies.
            list(pool.map(np.copyto, targets, sources))
            seconds.append(time.perf_counter() - start)
    return 2 * _COPY_BYTES / min(seconds)


def _matrix_product(size: int) -> bytes:
    """Return an ONNX model of one MatMul of two (size, size) float32 inputs, a and b, to y.

    Written out as a protocol buffer, since the target has no package that makes one: field numbers
    are those of onnx.proto3.
    """
    node = b"".join(_field(1, name) for name in (b"a", b"b")) + _field(2, b"y")
    node += _field(3, b"product") + _field(4, b"MatMul")
    side = _field(1, _number(1, size))  # TensorShapeProto.dim.dim_value
    tensor_type = _number(1, 1) + _field(2, side + side)  # elem_type FLOAT, shape
    values = {
        name: _field(1, name) + _field(2, _field(1, tensor_type)) for name in (b"a", b"b", b"y")
    }
    graph = _field(1, node) + _field(2, b"product")
    graph += _field(11, values[b"a"]) + _field(11, values[b"b"]) + _field(12, values[b"y"])
    opset = _field(1, b"") + _number(2, 13)
    return _number(1, 8) + _field(7, graph) + _field(8, opset)


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
