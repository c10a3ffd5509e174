"""ONNX files read with the weights that lie beside them, and nothing outside their folder.

A weight may be listed among the inputs of the graph too: IR version 3 demanded it of every one, and
some exporters do so still. A caller could then feed another in its place, as no command here does:
such weights are taken as the constants they are, and the list of them as read.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.files import refuse_outside_weight
from resdeploy.graph.float64 import tensors_of
from resdeploy.graph.single_assignment import why_ambiguous

__all__ = ["OnnxFile", "copy_of", "fed_inputs", "load_onnx", "opset_of", "read_onnx"]

# From here on a weight need not be an input.
_IR_WITHOUT_LISTED_WEIGHTS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxFile:
    """A model as read from its file.

    Attributes:
        model: with all its weights in it, as constants.
        is_external: True if some of them lay in other files.
        frozen: the names of those that the file lists among the inputs too.
    """

    model: onnx.ModelProto
    is_external: bool
    frozen: tuple[str, ...]


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the model in a file, with the weights that lie in files beside it.

    Raises:
        ResdeployError: the file is missing or no ONNX model, its names are ambiguous
            (`single_assignment`), or it refers to a file that is missing or outside its folder.
    """
    return read_onnx(path).model


def read_onnx(path: Path) -> OnnxFile:
    """Return the model in a file, and what is particular about the file; see `load_onnx`."""
    if not path.is_file():
        raise ResdeployError("There is no such model file.", where=str(path))
    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError as error:
        raise _not_onnx(path) from error
    if not model.graph.node or not model.opset_import:  # an empty or foreign file may decode
        raise _not_onnx(path)
    ambiguous = why_ambiguous(model)
    if ambiguous is not None:
        raise ResdeployError(
            f"The model is ambiguous: {ambiguous}.",
            where=str(path),
            fix="export it again; onnx.checker.check_model shows what is wrong",
        )
    external = [t for t in tensors_of(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    for tensor in external:
        locations = {entry.key: entry.value for entry in tensor.external_data}
        refuse_outside_weight(tensor.name, locations.get("location", ""), model=path)
    try:
        for tensor in external:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ResdeployError(
            f"The weights beside the model cannot be read: {error}.",
            where=str(path),
            fix="copy the model with all the files that lie beside it",
        ) from error
    return OnnxFile(model=model, is_external=bool(external), frozen=_freeze_weights(model))


def _freeze_weights(model: onnx.ModelProto) -> tuple[str, ...]:
    """Take the weights out of the inputs of a model, in place, and return their names."""
    graph = model.graph
    names = {value.name for value in fed_inputs(model)}
    frozen = tuple(value.name for value in graph.input if value.name not in names)
    if frozen:
        kept = [value for value in graph.input if value.name in names]
        del graph.input[:]
        graph.input.extend(kept)
        model.ir_version = max(model.ir_version, _IR_WITHOUT_LISTED_WEIGHTS)
    return frozen


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model, to be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def fed_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that have no value of their own."""
    initialised = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in initialised]


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of ONNX itself that a model imports."""
    versions = [int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if not versions:
        raise UnsupportedModelError("The model does not say which opset of ONNX it is in.")
    return versions[0]


def _not_onnx(path: Path) -> ResdeployError:
    return ResdeployError(
        "This is not an ONNX model.", where=str(path), fix="give a .onnx file, whole and unchanged"
    )
