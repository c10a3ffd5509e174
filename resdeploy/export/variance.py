"""Rounding variance of a network in float32, propagated along its traced graph.

Each value of the traced graph goes with the variance of its rounding error. A layer of n products
per output adds the roundings of its own sum to the variance of its inputs:

    Var(y) <- conv(Var(x), W^2) + n u^2/3 (conv(x^2, W^2) + b^2) + n u^2/9 y^2

One rounding has a relative error within u = 2^-24, evenly spread: variance u^2/3. Summed one by
one, the j-th partial sum of n products is j/n y and a random part, of square j (n - j)/n^2 times
S = conv(x^2, W^2); over all j these squares come to n/3 y^2 + n/6 S. The rest of n S covers the
roundings of products and folded weights, 2 S, and other orders. Real kernels sum in blocks and
stay below (Blanchard, Higham & Mary, SISC 2020). The model: Fang & Chen, arXiv 2405.07537; Higham &
Mary, SISC 41(5), 2019. Without the term in y^2 correct kernels reached z = 4.3 on winning logits.

BatchNorms are where the model has them, while a file has them in its layers: the sum of a layer is
then rounded at another scale, which makes sigma 0.87 (ResNet-20) to 0.92 (ResNet-56) of that of the
folded graph. The verdict is that much stricter.

Variances are in units of u^2. The rules of all other operators are in `variance_rules`. One that
has none is refused: a guess would make the verdict one.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from resdeploy.export.interpret import GraphWalker
from resdeploy.export.signature import bind, rows_of, tensors
from resdeploy.export.trace import trace
from resdeploy.export.value_with_variance import ValueWithVariance, value_of, variance_of
from resdeploy.export.variance_rules import propagate
from resdeploy.session.batches import BATCH_SIZE
from resdeploy.verify.precision import FLOAT32_ROUNDOFF

__all__ = ["draw_outputs", "propagated_sigma", "trace_any_batch"]


def propagated_sigma(
    program: torch.export.ExportedProgram,
    inputs: NDArray[np.float32],
    *,
    variance: NDArray[np.float32] | None = None,
    unit_roundoff: float = FLOAT32_ROUNDOFF,
) -> NDArray[np.float64]:
    """Return the standard deviation of the rounding error of each output: (N, K).

    Costs about two forward passes in float64: one of the values, one of their variances.

    Args:
        program: the model, for any batch size; it is only read.
        inputs: (N, ...).
        variance: of their own rounding errors, in units of u^2; None where they are exact.
        unit_roundoff: the u of the arithmetic.

    Raises:
        UnsupportedModelError: the model has an operator whose rounding variance is not known.
    """
    walker = GraphWalker(program)

    def call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return propagate(node, args, kwargs, unit_roundoff=unit_roundoff)

    rows = []
    with torch.no_grad():
        for start in range(0, len(inputs), BATCH_SIZE):
            here = slice(start, start + BATCH_SIZE)
            batch = _with_variance(inputs[here], None if variance is None else variance[here])
            outputs = walker.run(batch, call)
            rows.append(torch.cat([rows_of(variance_of(output)) for output in outputs], dim=1))
    return unit_roundoff * torch.cat(rows).sqrt().numpy()


def draw_outputs(
    program: torch.export.ExportedProgram,
    inputs: NDArray[np.float32],
    *,
    seed: int,
    variance: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Return outputs in float64 with a drawn rounding in every value on the way: (N, K).

    Each operator's own variance is that of its rule for exact inputs. A draw takes in what the
    propagation leaves out: errors that meet again (x + f(x), where variances add and errors may
    too), and functions that are not linear within an error.

    Args:
        program: as for `propagated_sigma`, and so are the other two.
        inputs: (N, ...).
        seed: of the draw.
        variance: of the inputs' own rounding errors, in units of u^2.
    """
    walker = GraphWalker(program)
    generator = torch.Generator().manual_seed(seed)

    def rounded(value: Any) -> Any:
        if not isinstance(value, ValueWithVariance):
            return value
        draw = torch.randn(value.value.shape, generator=generator, dtype=torch.float64)
        drawn = value.value + FLOAT32_ROUNDOFF * value.variance.sqrt() * draw
        drawn = torch.where(value.value.isinf(), value.value, drawn)  # a mask
        return ValueWithVariance(drawn, torch.zeros_like(drawn))

    def call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        results = propagate(node, args, kwargs, unit_roundoff=FLOAT32_ROUNDOFF)
        return fx.node.map_aggregate(results, rounded)

    batch = [rounded(value) for value in _with_variance(inputs, variance)]
    with torch.no_grad():
        outputs = walker.run(batch, call)
        return torch.cat([rows_of(value_of(output)) for output in outputs], dim=1).numpy()


def _with_variance(inputs: NDArray[Any], variance: NDArray[np.float32] | None) -> list[Any]:
    """Return the model's inputs, those of floats with the variance of their own errors."""
    found: list[Any] = []
    for x in tensors(inputs, torch.float64):
        if x.is_floating_point():
            own = torch.zeros_like(x) if variance is None else torch.from_numpy(variance).double()
            found.append(ValueWithVariance(x, own))
        else:
            found.append(x)
    return found


def trace_any_batch(module: nn.Module, inputs: NDArray[Any]) -> torch.export.ExportedProgram:
    """Return `module` as a program for any batch size; `module` is not changed.

    Raises:
        UnsupportedModelError: the module cannot be traced for any batch size.
    """
    # torch.export takes a batch of one for a fixed size.
    two = np.concatenate([inputs[:1], inputs[-1:]])
    args, kwargs = bind(module, two, torch.float32)
    return trace(module, args, by_name=kwargs)
