"""Passes and exports."""

from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record
from resdeploy.schema.files import FileInfo, TensorSpec
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.verdicts import VerifyReport

# Keys of the metadata, as JSON, that an export writes into the ONNX file itself.
LABELS_KEY = "resdeploy.labels"
PREPROCESS_KEY = "resdeploy.preprocess"


@record
class PassReport(Record):
    """One pass over an ONNX graph: how many places it changed."""

    name: str
    num_changed: int


@record
class ExportSpec(Record):
    """A request to export. `batch` is "dynamic" or a fixed number of samples.

    `newest_ir_version` is the newest form of the file that the target reads; None for any.
    """

    opset: int = 18
    batch: int | Literal["dynamic"] = "dynamic"
    fold: bool = True
    newest_ir_version: int | None = None


@record
class ExportReport(Record):
    """An exported file, its folds, its passes, and its verification.

    `remark` says what was done to the module first, such as widening its numbers; "" for nothing.
    """

    spec: ExportSpec
    file: FileInfo
    fold: FoldReport | None
    passes: tuple[PassReport, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_nodes: int
    versions: Mapping[str, str]
    verification: "VerifyReport | None" = None
    remark: str = ""
