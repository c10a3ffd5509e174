"""Files and tensors, as every stage names them."""

from resdeploy.schema.codec import Record, record


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
