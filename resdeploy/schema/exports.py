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

    `newest_ir_version` is the newest form of the file that the target reads; None for any. `board`
    is one by name, whose operators alone are written. `input_names` and `output_names` are those of
    the file, in its order; () for the usual ones.
    """

    opset: int = 18
    batch: int | Literal["dynamic"] = "dynamic"
    fold: bool = True
    newest_ir_version: int | None = None
    board: str | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()


@record
class ExportReport(Record):
    """An exported file, its folds, its passes, and its verification.

    `source` has a line for each thing that was found in the trained model's files, left out, or
    done to the module first, such as widening its numbers.
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
    source: tuple[str, ...] = ()
