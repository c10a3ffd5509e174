"""Turn what a command is given (SRC) into a module in eval mode, with what is known about it."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export.source_inputs import SourceInputs, inputs_of
from resdeploy.networks import build_network, input_shape
from resdeploy.schema.codec import to_json
from resdeploy.schema.exports import LABELS_KEY, PREPROCESS_KEY
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
    "fit_for_folded",
    "load_source",
    "model_of_module",
    "require_module",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A trained module and what is known about it.

    Attributes:
        module: in eval mode, on the CPU.
        input_shape: of one sample, without the batch.
        description: what it is, without paths of this machine.
        info: the network, its preprocessing and labels; None for a module of the user's own.
        stated: the preprocessing and labels that were asked for, of a module of the user's own.
        notes: a line for each thing that was found in the files, or left out.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    description: str
    info: CheckpointInfo | None
    stated: SourceInputs | None = None
    notes: tuple[str, ...] = ()

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
            "This is an ONNX file; a trained PyTorch model is needed here.", where=str(path)
        )
    if is_own_checkpoint(path):
        return _from_own_checkpoint(spec, path)
    return _from_foreign_weights(spec, path)


def model_of_module(
    module: object, input_shape: Sequence[int] | None, *, name: str = "module"
) -> SourceModel:
    """Return a live module as a trained model.

    Args:
        module: a torch module in eval mode on the CPU; it is not copied.
        input_shape: of one sample, without the batch.
        name: what the caller calls it.

    Raises:
        ResdeployError: it is in training mode or on another device, or its input shape is missing.
        TypeError: `module` is none.
    """
    module, kind = require_module(module, name), type(module).__name__
    if input_shape is None:
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
    return SourceModel(module=module, input_shape=tuple(input_shape), description=kind, info=None)


def require_module(module: object, name: str) -> nn.Module:
    """Return `module`; raise TypeError unless it is a torch module."""
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise TypeError(f"{name} must be a path, a Model or a torch module, not {kind}")
    return module


def example_inputs(source: SourceModel, *, batch_size: int = 2) -> tuple[torch.Tensor, ...]:
    """Return seeded inputs to trace with; two samples, as torch.export bakes in sizes 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    shape = source.input_shape
    if source.preprocess is not None and source.preprocess.embedded:
        shape = source.preprocess.input_shape  # the network behind the preprocessing is traced
    return (torch.randn(batch_size, *shape, generator=generator),)


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
    module_name, _, function_name = spec.factory.partition(":")
    if not function_name or spec.input_shape is None:
        raise ResdeployError(
            "A module of your own needs its factory and its input shape.",
            where=f"--model {spec.factory}",
            fix="--model package.module:function --input 3,224,224",
        )
    # What `python -m` does: the user's code lies where the command is run.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
        module = factory()
    except Exception as error:  # the user's code may raise anything
        raise ResdeployError(
            f"The factory failed: {type(error).__name__}: {error}",
            where=f"--model {spec.factory}",
        ) from error
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            f"The factory returned {type(module).__name__}, not a torch module.",
            where=f"--model {spec.factory}",
        )
    notes: tuple[str, ...] = ()
    if spec.path is not None:
        found, notes = weights_for(module, read_foreign(spec.path), weights=spec.weights)
        load_into(module, found, source=spec.path)
    inputs = inputs_of(spec, spec.input_shape)
    return SourceModel(
        module=module.eval(),
        input_shape=spec.input_shape,
        description=f"{type(module).__name__} of {spec.factory}",
        info=None,
        stated=inputs,
        notes=(*notes, *inputs.notes),
    )


def _empty_network(model: ModelSpec) -> nn.Module:
    """Return a network without memory for its weights, which are about to be loaded."""
    with torch.device("meta"):
        return build_network(model)


def _title(model: ModelSpec) -> str:
    options = ", ".join(f"{name}={value}" for name, value in model.options.items())
    return f"{model.arch} ({options})" if options else model.arch
