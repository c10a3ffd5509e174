"""ONNX files read with the weights that lie beside them, and nothing outside their folder."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.files import refuse_outside_weight
from resdeploy.graph.float64 import tensors_of
from resdeploy.graph.single_assignment import why_ambiguous

__all__ = ["OLDEST_OPSET", "copy_of", "fed_inputs", "load_onnx", "opset_of", "read_onnx"]

# Before 13, quantisation has no per-channel form and Squeeze, ReduceSum another signature.
OLDEST_OPSET = 13


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the model in a file, with the weights that lie in files beside it.

    Raises:
        ResdeployError: the file is missing or no ONNX model, its names are ambiguous
            (`single_assignment`), or it refers to a file that is missing or outside its folder.
    """
    return read_onnx(path)[0]


def read_onnx(path: Path) -> tuple[onnx.ModelProto, bool]:
    """Return the model, and True if some of its weights lay in other files; see `load_onnx`."""
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
    return model, bool(external)


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
