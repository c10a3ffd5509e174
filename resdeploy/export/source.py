"""Turn what a command is given (SRC) into a module in eval mode, with what is known about it."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from resdeploy.data.input_kinds import FLOATS
from resdeploy.data.preprocess import kind_for
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export.factory import own_module
from resdeploy.export.signature import draw, module_inputs, tensors
from resdeploy.export.source_inputs import SourceInputs, inputs_of
from resdeploy.networks import build_network, input_shape
from resdeploy.schema.codec import to_json
from resdeploy.schema.exports import LABELS_KEY, PREPROCESS_KEY
from resdeploy.schema.files import IMAGE_SIDES, InputShape, InputSpec, stated_inputs
from resdeploy.schema.folds import FoldedSite
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess, SourceSpec
from resdeploy.training.checkpoint import (
    CHECKPOINT_NAME,
    is_own_checkpoint,
    load_checkpoint,
    load_into,
)
from resdeploy.weights.foreign_file import read_foreign
from resdeploy.weights.foreign_network import find_network, weights_for

__all__ = [
    "SourceModel",
    "example_inputs",
    "example_samples",
    "fit_for_folded",
    "load_source",
    "model_of_module",
    "of_another_size",
    "require_module",
    "seeded_inputs",
    "with_open_sides",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A trained module and what is known about it.

    Attributes:
        module: in eval mode, on the CPU.
        input_shape: of one sample, without the batch; of several inputs, that of the first.
        description: what it is, without paths of this machine.
        info: the network, its preprocessing and labels; None for a module of the user's own.
        stated: the preprocessing and labels that were asked for, of a module of the user's own.
        notes: a line for each thing that was found in the files, left out, or done to the module.
        inputs: by name, in the order of `forward`; () for a single one of floats without a name.
        open_sides: those of images that are to stay open, of "height" and "width".
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    description: str
    info: CheckpointInfo | None
    stated: SourceInputs | None = None
    notes: tuple[str, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    open_sides: tuple[str, ...] = ()

    @property
    def preprocess(self) -> Preprocess | None:
        """The way from a raw sample to an input; None where that is not known."""
        known = self.info or self.stated
        return None if known is None else known.preprocess

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; empty where they are not known."""
        known = self.info or self.stated
        return () if known is None else known.labels

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs; () for a single one without."""
        return tuple(one.name for one in self.inputs)

    @property
    def sample_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """The shape of one sample, or those of its inputs by name."""
        return {one.name: one.shape for one in self.inputs} or self.input_shape

    def __repr__(self) -> str:
        return f"Model({self.description!r}, input_shape={self.input_shape})"


def stated_metadata(source: SourceModel) -> dict[str, str]:
    """Return labels and preprocessing as JSON, by the keys under which a file of it holds them."""
    found = {}
    if source.labels:
        found[LABELS_KEY] = json.dumps(source.labels)
    if source.preprocess is not None:
        found[PREPROCESS_KEY] = json.dumps(to_json(source.preprocess))
    return found


def load_source(spec: SourceSpec) -> SourceModel:
    """Return the module that `spec` asks for.

    Raises:
        ResdeployError: the file is missing, damaged, or does not fit; the request contradicts
            itself; the message says what to give instead.
    """
    if spec.factory is not None:
        return _from_factory(spec)
    if spec.path is None:
        raise ResdeployError(
            "No model was given.", fix="give a checkpoint, or --model package.module:function"
        )
    path = Path(spec.path)
    if path.suffix == ".onnx":
        raise ResdeployError(
            "This is an ONNX file; a trained PyTorch model is needed here.",
            where=str(path),
            fix="fold it with resdeploy fold-bn, pack it with resdeploy bundle",
        )
    if is_own_checkpoint(path):
        return _from_own_checkpoint(spec, path)
    return _from_foreign_weights(spec, path)


def model_of_module(
    module: object, input_shape: InputShape | None, *, name: str = "module"
) -> SourceModel:
    """Return a live module as a trained model.

    Args:
        module: a torch module in eval mode on the CPU; it is not copied.
        input_shape: of one sample, without the batch; of several inputs, by name.
        name: what the caller calls it.

    Raises:
        ResdeployError: it is in training mode or on another device, or its input shape is missing.
        TypeError: `module` is none.
    """
    module, kind = require_module(module, name), type(module).__name__
    asked = _asked(SourceSpec(**stated_inputs(input_shape)))
    if not asked:
        raise ResdeployError(
            "The shape of the module's input is not known.",
            where=kind,
            fix="give input_shape, that of one sample, such as (3, 224, 224)",
        )
    if module.training:
        raise ResdeployError(
            "The module is in training mode, in which BatchNorm and dropout compute otherwise.",
            where=kind,
            fix="call .eval() first",
        )
    devices = {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}
    if devices - {"cpu"}:
        raise ResdeployError(
            f"The module is on {', '.join(sorted(devices))}.", where=kind, fix="call .cpu() first"
        )
    converted, done = _in_float32(module)
    return SourceModel(
        module=converted,
        input_shape=asked[0].shape,
        description=kind,
        info=None,
        notes=done,
        inputs=module_inputs(module, asked),
    )


def require_module(module: object, name: str) -> nn.Module:
    """Return `module`; raise TypeError unless it is a torch module."""
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise TypeError(f"{name} must be a path, a Model or a torch module, not {kind}")
    return module


def seeded_inputs(source: SourceModel, num: int) -> tuple[NDArray[Any], str]:
    """Return seeded samples as the model takes them, and their description."""
    if source.inputs:
        return draw(source.inputs, num)
    inputs, description = kind_for(source.preprocess).seeded((num, *source.input_shape))
    if source.open_sides:
        description += f" of {' x '.join(map(str, source.input_shape))}"
    return inputs, description


def example_samples(source: SourceModel, *, batch_size: int = 2) -> NDArray[Any]:
    """Return seeded samples to trace with; two, as torch.export bakes in sizes 0 and 1."""
    if source.preprocess is not None and source.preprocess.embedded:
        # The network behind the preprocessing is traced.
        return FLOATS.draw((batch_size, *source.preprocess.input_shape))
    return seeded_inputs(source, batch_size)[0]


def with_open_sides(source: SourceModel, sides: Sequence[str]) -> SourceModel:
    """Return `source` with sides of its images open.

    Raises:
        ResdeployError: there is no such side; no input is an image; or the preprocessing, which
            makes images of one size, is part of the model.
    """
    if not sides:
        return source
    shapes = [one.shape for one in source.inputs] or [source.input_shape]
    if unknown := sorted({*sides} - {*IMAGE_SIDES}):
        raise ResdeployError(
            f"{unknown[0]!r} is no side of an image.", fix=f"give {', '.join(IMAGE_SIDES)}"
        )
    if not any(len(shape) == len(IMAGE_SIDES) + 1 for shape in shapes):
        raise ResdeployError(
            f"No input is an image (C, H, W): {', '.join(map(str, shapes))}.",
            where=source.description,
            fix="leave --dynamic out",
        )
    if source.preprocess is not None and source.preprocess.embedded:
        raise ResdeployError(
            "The embedded preprocessing is of images of one size.",
            where=source.description,
            fix="leave --dynamic or --preprocess embed out",
        )
    return dataclasses.replace(source, open_sides=tuple(sides))


def of_another_size(source: SourceModel) -> SourceModel:
    """Return `source` with the last of its open sides twice as long.

    Twice, as a network may take multiples of some number alone.
    """
    side = IMAGE_SIDES[source.open_sides[-1]] - 1

    def longer(shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != len(IMAGE_SIDES) + 1:
            return shape
        return (*shape[:side], 2 * shape[side], *shape[side + 1 :])

    return dataclasses.replace(
        source,
        input_shape=longer(source.input_shape),
        inputs=tuple(dataclasses.replace(i, shape=longer(i.shape)) for i in source.inputs),
    )


def example_inputs(source: SourceModel) -> tuple[torch.Tensor, ...]:
    """Return seeded inputs of a batch of two."""
    return tuple(tensors(example_samples(source), torch.float32))


def fit_for_folded(module: nn.Module, sites: Sequence[FoldedSite]) -> None:
    """Give `module` the shape of its own folded form, in place, so that folded weights load.

    Each folded BatchNorm becomes the identity, and the layer it went into gets a bias. A LayerNorm
    is as it was: its folded affine part is ones and zeros.
    """
    for site in sites:
        if site.norm == "batch":
            parent_name, _, name = site.site.rpartition(".")
            setattr(module.get_submodule(parent_name), name, nn.Identity())
        for producer in site.producer.split(", "):
            layer = module.get_submodule(producer)
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            if layer.bias is None:
                layer.bias = nn.Parameter(weight.new_zeros(weight.shape[0]))


def _from_own_checkpoint(spec: SourceSpec, path: Path) -> SourceModel:
    file = path / CHECKPOINT_NAME if path.is_dir() else path
    state_dict, info = load_checkpoint(file)
    if spec.arch not in (None, info.model.arch):
        raise ResdeployError(
            f"The checkpoint is a {info.model.arch}, not a {spec.arch}.",
            where=str(file),
            fix="leave --arch out: a resdeploy checkpoint says what it is",
        )
    if spec.weights is not None:
        raise ResdeployError(
            "A resdeploy checkpoint holds one set of weights.",
            where=str(file),
            fix="leave --weights out",
        )
    module = _empty_network(info.model)
    fit_for_folded(module, info.folded)
    load_into(module, state_dict, source=str(file))
    inputs = inputs_of(spec, input_shape(info.model), num_classes=info.model.num_classes, info=info)
    folded = ", folded" if info.folded else ""
    return SourceModel(
        module=module.eval(),
        input_shape=inputs.input_shape,
        description=f"{_title(info.model)}{folded}, from {file.name}",
        info=dataclasses.replace(info, preprocess=inputs.preprocess, labels=inputs.labels),
        notes=inputs.notes,
    )


def _from_foreign_weights(spec: SourceSpec, path: Path) -> SourceModel:
    file = read_foreign(path)
    found = find_network(file, arch=spec.arch, options=spec.options, weights=spec.weights)
    module = _empty_network(found.model)
    load_into(module, found.state_dict, source=str(path))
    inputs = inputs_of(
        spec, input_shape(found.model), num_classes=found.model.num_classes, file=file
    )
    return SourceModel(
        module=module.eval(),
        input_shape=inputs.input_shape,
        description=f"{_title(found.model)}, from {path.name}",
        info=CheckpointInfo(model=found.model, preprocess=inputs.preprocess, labels=inputs.labels),
        notes=(*found.notes, *inputs.notes),
    )


def _from_factory(spec: SourceSpec) -> SourceModel:
    assert spec.factory is not None
    asked = _asked(spec)
    if not asked:
        raise ResdeployError(
            "A module of your own needs its input shape.",
            where=f"--model {spec.factory}",
            fix=f"--model {spec.factory} --input 3,224,224",
        )
    module = own_module(spec.factory, asked[0].shape)
    notes: tuple[str, ...] = ()
    if spec.path is not None:
        found, notes = weights_for(module, read_foreign(spec.path), weights=spec.weights)
        load_into(module, found, source=spec.path)
    module, done = _in_float32(module)
    inputs = inputs_of(spec, asked[0].shape)
    return SourceModel(
        module=module.eval(),
        input_shape=asked[0].shape,
        description=f"{type(module).__name__} of {_without_folder(spec.factory)}",
        info=None,
        stated=inputs,
        notes=(*notes, *done, *inputs.notes),
        inputs=module_inputs(module, asked),
    )


def _without_folder(factory: str) -> str:
    place, colon, name = factory.rpartition(":")
    return f"{Path(place).name}{colon}{name}"


def _asked(spec: SourceSpec) -> tuple[InputSpec, ...]:
    """Return the inputs that a request states, () for none."""
    if spec.input_shape is not None:
        return (InputSpec(name="", shape=spec.input_shape),)
    return spec.inputs


def _in_float32(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a module in float32, a copy where it is in another type, and a note of what was done.

    float16 and bfloat16 are widened, which is exact; float64 is rounded, as a file of float32 is.

    Raises:
        UnsupportedModelError: it has complex parameters or buffers.
    """
    kinds = set()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_complex():
            raise UnsupportedModelError(
                f"The module has complex numbers (`{name}`, {str(tensor.dtype)[6:]}), which ONNX "
                "has no operators for.",
                where=type(module).__name__,
                fix="hold real and imaginary parts in two buffers",
            )
        if tensor.is_floating_point():
            kinds.add(str(tensor.dtype)[6:])
    if not kinds - {"float32"}:
        return module, ()
    narrow = sorted(kinds & {"float16", "bfloat16"})
    done = [f"its {' and '.join(narrow)} numbers are widened to float32"] if narrow else []
    done += ["its float64 numbers are rounded to float32"] if "float64" in kinds else []
    return copy.deepcopy(module).float(), (f"module: {', '.join(done)}",)


def _empty_network(model: ModelSpec) -> nn.Module:
    """Return a network without memory for its weights, which are about to be loaded."""
    with torch.device("meta"):
        return build_network(model)


def _title(model: ModelSpec) -> str:
    options = ", ".join(f"{name}={value}" for name, value in model.options.items())
    return f"{model.arch} ({options})" if options else model.arch
