"""Noise of reduced precision in this very network, simulated; and that of rounded weights.

The error of a candidate names its arithmetic only beside the noise of that arithmetic in the same
network on the same inputs: a residual MLP and a ResNet-50 differ tenfold. So each is simulated on a
few inputs, the sums in float32 as the hardware keeps them:

    tf32       inputs and weights of every layer rounded to 10 explicit bits of mantissa
    float16    every constant and every value rounded to float16
    bfloat16   every constant and every value rounded to bfloat16
    int8       inputs of every layer to 8 bits per tensor, weights to 8 bits per output channel
"""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from resdeploy.data.named_inputs import values_per_sample
from resdeploy.export.aten_layers import as_layer
from resdeploy.export.interpret import GraphWalker
from resdeploy.export.rounding import MOST_HALVINGS
from resdeploy.export.run_module import run_module
from resdeploy.export.signature import rows_of, tensors
from resdeploy.export.variance_rules import with_drift
from resdeploy.schema.verdicts import PrecisionNoise
from resdeploy.verify.compare import level_infinities
from resdeploy.verify.precision import FLOAT32_ROUNDOFF

__all__ = ["drift_noise", "simulated_noise", "weight_noise"]

# Inputs that the simulations run on: a noise level needs one digit, which two images of ImageNet's
# size give, with a thousand outputs each.
_SIMULATED_ELEMENTS = 2 * 3 * 224 * 224
_FEWEST_SIMULATED, _MOST_SIMULATED = 2, 8

_NUM_DRAWS = 4
_NUM_WEIGHT_INPUTS = 32

# Not one that weights are initialised from: draws that follow the weights do not average out.
_SEED = 0x5EED_0F_0D47

# The u at which the effect of a rounding is measured, far above float32's own; it is linear in u.
_MEASURED_ROUNDOFF = 2.0**-12

_BATCHNORM = torch.ops.aten.batch_norm.default

_Round = Callable[[torch.Tensor], torch.Tensor]


def simulated_noise(
    program: torch.export.ExportedProgram,
    inputs: NDArray[np.float32],
    reference_NK: NDArray[np.float64],
    float32_NK: NDArray[np.float64],
) -> PrecisionNoise:
    """Return the relative error of each precision on the first few inputs.

    Args:
        program: the model, for any batch size; it is only read.
        inputs: (N, ...).
        reference_NK: the float64 outputs for them.
        float32_NK: the float32 outputs for them, which were computed and not simulated.
    """
    walker = GraphWalker(program)
    affordable = _SIMULATED_ELEMENTS // max(1, values_per_sample(inputs))
    count = max(_FEWEST_SIMULATED, min(_MOST_SIMULATED, affordable))
    x, infinite = inputs[:count], np.isinf(reference_NK[:count])
    reference = np.where(infinite, 0.0, reference_NK[:count])

    def level(outputs: NDArray[Any]) -> float | None:
        outputs = np.where(infinite, 0.0, outputs)
        error = float(np.linalg.norm(outputs - reference))
        norm = float(np.linalg.norm(reference))
        return error / norm if math.isfinite(error) and norm else None

    def simulate(around: _Round, weight: _Round | None = None, *, everything: bool) -> float | None:
        return level(_simulated(walker, x, around, weight or around, everything=everything))

    return PrecisionNoise(
        num_inputs=len(x),
        float32=level(float32_NK[:count]),
        tf32=simulate(_to_tf32, everything=False),
        float16=simulate(lambda t: t.half().float(), everything=True),
        bfloat16=simulate(lambda t: t.bfloat16().float(), everything=True),
        int8=simulate(_to_int8, _to_int8_by_channel, everything=False),
    )


def weight_noise(
    module: nn.Module, inputs: NDArray[np.float32], *, batch: int | None = None
) -> float:
    """Return the mean shift of the outputs over all inputs when parameters are rounded.

    No average over inputs takes it away: weights rounded to float32, and scales that float32
    computes from BatchNorm's statistics, are the same for every input. Each parameter and statistic
    p becomes p (1 + d), d even in +-u; the result is the root mean square, over draws, of the norm
    over K of the mean change over inputs.

    Args:
        module: in eval mode, unfolded; it is copied, not changed.
        inputs: (N, ...), of which the first 32 are used: fewer only make the mean larger.
        batch: the one batch size that the module takes; None if it takes any.
    """
    inputs = inputs[:_NUM_WEIGHT_INPUTS]
    generator = torch.Generator().manual_seed(_SEED)
    exact_NK = _run(module, inputs, batch)
    total = 0.0
    for _ in range(_NUM_DRAWS):
        rounded = copy.deepcopy(module)
        with torch.no_grad():
            for tensor in (*rounded.parameters(), *rounded.buffers()):
                if tensor.is_floating_point():
                    draw = 2 * torch.rand(tensor.shape, generator=generator) - 1
                    tensor.mul_(1 + _MEASURED_ROUNDOFF * draw)
        shift_K = (_run(rounded, inputs, batch) - exact_NK).mean(axis=0)
        total += float(shift_K @ shift_K)
    return math.sqrt(total / _NUM_DRAWS) * (FLOAT32_ROUNDOFF / _MEASURED_ROUNDOFF)


def drift_noise(
    program: torch.export.ExportedProgram,
    inputs: NDArray[np.float32],
    reference_NK: NDArray[np.float64],
) -> float:
    """Return the largest mean shift of the outputs by sums of equal terms, of several orders.

    Like a weight's, the roundings of a channel that is constant are the same for every input.

    Args:
        program: the model, for any batch size; it is only read.
        inputs: (N, ...), of which the first 32 are used.
        reference_NK: the float64 outputs for them.
    """
    walker = GraphWalker(program)
    inputs = inputs[:_NUM_WEIGHT_INPUTS]
    batch = tensors(inputs, torch.float64)
    largest = 0.0
    for halvings in range(0, MOST_HALVINGS + 1, 2):
        call = functools.partial(with_drift, halvings=halvings)
        with torch.no_grad():
            outputs = torch.cat([rows_of(y) for y in walker.run(batch, call)], dim=1).numpy()
        outputs, reference = level_infinities(outputs, reference_NK[: len(inputs)])
        shift_K = (outputs - reference).mean(axis=0)
        largest = max(largest, float(np.linalg.norm(shift_K)))
    return largest


def _run(module: nn.Module, inputs: NDArray[np.float32], batch: int | None) -> NDArray[np.float64]:
    rows_NK = run_module(module, inputs, dtype=torch.float32, batch=batch).astype(np.float64)
    return np.where(np.isinf(rows_NK), 0.0, rows_NK)


def _simulated(
    walker: GraphWalker,
    inputs: NDArray[np.float32],
    around: _Round,
    around_weight: _Round,
    *,
    everything: bool,
) -> NDArray[np.float64]:
    """Return the outputs with layer inputs and weights rounded, or with every value rounded."""

    def rounded(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return around(value) if is_float else value

    def call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target: Any = node.target
        if everything:
            # A BatchNorm is part of the layer before it, as in a file: one rounding for both.
            if target is not _BATCHNORM:
                args, kwargs = fx.node.map_aggregate((args, kwargs), rounded)
            result = target(*args, **kwargs)
            return result if _is_a_fold(node) else fx.node.map_aggregate(result, rounded)
        layer = as_layer(node)
        if layer is not None:
            values = list(args)
            values[layer.input_at] = around(values[layer.input_at])
            values[layer.weight_at] = around_weight(values[layer.weight_at])
            args = tuple(values)
        return target(*args, **kwargs)

    with torch.no_grad():
        outputs = walker.run(tensors(inputs, torch.float32), call)
        return torch.cat([rows_of(output) for output in outputs], dim=1).double().numpy()


def _is_a_fold(node: fx.Node) -> bool:
    """True if a BatchNorm alone reads the result of a layer."""
    readers = list(node.users)
    return as_layer(node) is not None and [r.target for r in readers] == [_BATCHNORM]


def _to_tf32(values: torch.Tensor) -> torch.Tensor:
    """Return float32 values rounded to 10 explicit bits of mantissa, to nearest, ties to even."""
    bits = values.contiguous().view(torch.int32)
    odd = (bits >> 13) & 1
    return ((bits + 0xFFF + odd) & ~0x1FFF).view(torch.float32)


def _to_int8(values: torch.Tensor) -> torch.Tensor:
    return _to_steps(values, values.abs().amax())


def _to_int8_by_channel(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight on 255 levels for each of axis 0, which is mostly the output channels."""
    largest = weight.abs().flatten(1).amax(1)
    return _to_steps(weight, largest.reshape(-1, *(1,) * (weight.ndim - 1)))


def _to_steps(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    step = torch.where(largest > 0, largest / 127, 1.0)
    return (values / step).round() * step
