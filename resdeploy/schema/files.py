"""Files and tensors, as every stage names them."""

from resdeploy.schema.codec import Record, record

__all__ = ["FileInfo", "TensorSpec", "numpy_name"]


def numpy_name(dtype: str) -> str:
    """Return NumPy's name of a type, from ONNX's ("float") or ONNX Runtime's ("tensor(float)")."""
    element = dtype.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(element, element)


@record
class TensorSpec(Record):
    """A model's input or output; a dimension is a number, or the name of a dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@record
class FileInfo(Record):
    """A file by content; `path` is relative to the record that names it, with `/`."""

    path: str
    sha256: str
    size_bytes: int
