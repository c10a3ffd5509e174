"""A module folded on its way to a file, and whether the graph still computes the module's function.

The yardstick is the module's own rounding error.
"""

import copy

import onnx_ir as ir
import torch
from torch import Tensor, nn

from resdeploy.export.trace import BATCH_DIMENSION, trace
from resdeploy.export.translate import translate
from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.fold.pipeline import simplified
from resdeploy.graph.exact_constants import round_once
from resdeploy.graph.float64 import evaluate_float64
from resdeploy.schema.folds import FoldReport

__all__ = ["assert_same_function", "fold", "run", "weights"]


_TYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}


def fold(module: nn.Module, inputs: tuple[Tensor, ...], **options) -> tuple[ir.Model, FoldReport]:
    """Return the graph of `module` folded as for a file, and what was folded."""
    program = trace(module, inputs)
    model, _ = simplified(translate(program, opset=18), batch_dimension=BATCH_DIMENSION)
    report = fold_batchnorm(model, **options)
    round_once(model)
    return model, report


def weights(model: ir.Model) -> dict[str, Tensor]:
    """Return the floating-point constants of a graph by name, in float64."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {
        name: torch.from_numpy(tensor.numpy().astype("float64"))
        for name, tensor in tensors.items()
        if tensor is not None and tensor.dtype.is_floating_point()
    }


def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs, with the same random numbers each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = module(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def assert_same_function(model: ir.Model, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Hold the graph against the module, both in float64, by the module's own error."""
    # A copy each time: a call may change the statistics.
    own = run(copy.deepcopy(module), inputs)
    exact = run(copy.deepcopy(module).double(), tuple(x.double() for x in inputs))
    names = [str(value.name) for value in model.graph.inputs]
    feeds = {name: x.double().numpy() for name, x in zip(names, inputs, strict=True)}
    found = evaluate_float64(ir.to_proto(model), feeds)
    assert len(found) == len(exact)
    for value, theirs, reference in zip(model.graph.outputs, own, exact, strict=True):
        mine = torch.from_numpy(found[str(value.name)].copy())
        assert str(theirs.dtype).removeprefix("torch.") == _TYPES[value.dtype]
        assert mine.shape == reference.shape
        assert torch.equal(mine.isfinite(), reference.isfinite())
        finite = reference.isfinite() & theirs.isfinite()
        mine, theirs, reference = (t[finite].double() for t in (mine, theirs, reference))
        unit = torch.finfo(own[0].dtype).eps / 2
        noise = (theirs - reference).norm() + unit * reference.norm()
        assert (mine - reference).norm() <= 4 * noise
