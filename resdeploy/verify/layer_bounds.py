"""L2: every affine node, run on the provider, against float64 on the inputs that it had there.

The computed y of a node with n products per output differs from the exact one by at most

    |y - y64| <= gamma_(n+3) (|W| |x| + |b|),      gamma_k = k u / (1 - k u),   u = 2^-24

for any order of summation, with fused multiply-add or not; the 3 are for the bias and for the
rounding of the folded weights (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
2002, ch. 3). Rounding errors are seldom all of one sign: lambda sqrt(n + 3) u in place of gamma
bounds each of them but with probability 2 exp(-lambda^2 / 2) (Higham & Mary 2019, SISC 41(5)
A2815), and as kernels add in blocks they stay far below: the largest of all outputs reached 0.3 to
0.6 at lambda = 1 in convolutions, and 1.3 in BatchNormalizations, of a few roundings each. A node
beyond the smaller of the two bounds, at lambda = 2, is wrong.

As every node is judged on its own inputs, errors do not grow with depth, and the first node that
fails is the guilty one. Kernels by Winograd or FFT, and TF32, are outside the bound.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from resdeploy.schema.verdicts import NodeError, NodeLocalResult
from resdeploy.verify.precision import FLOAT32_ROUNDOFF

__all__ = ["CONFIDENCE", "judge_node", "judge_nodes"]

# lambda above.
CONFIDENCE = 2.0

Float64Array = NDArray[np.float64]


def judge_node(
    name: str,
    computed: NDArray[np.floating],
    exact: Float64Array,
    magnitude: Float64Array,
    num_products: int,
    *,
    unit_roundoff: float = FLOAT32_ROUNDOFF,
) -> NodeError:
    """Return the error of a node on its own inputs, in units of either bound.

    Args:
        name: the node's.
        computed: y, of any shape.
        exact: y64, of that shape.
        magnitude: |W| |x| + |b|, of that shape.
        num_products: n.
        unit_roundoff: u of the arithmetic that is claimed.
    """
    num_roundings = num_products + 3
    gamma = num_roundings * unit_roundoff / (1 - num_roundings * unit_roundoff)
    estimate = min(gamma, CONFIDENCE * math.sqrt(num_roundings) * unit_roundoff)
    y = computed.astype(np.float64)
    # Below the normal numbers the error is absolute: half of the smallest one, for each rounding.
    tiny = num_roundings * 2.0**-149
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(y - exact)
        error = np.where(np.isnan(error), np.inf, error)
        # An exact value beyond float32 has to become infinite, which is then no error.
        overflow = np.isinf(y) & (np.abs(exact) > np.finfo(np.float32).max) & (y * exact > 0)
        error = np.where(overflow, 0.0, error)
        return NodeError(
            node=name,
            of_bound=float(np.max(error / (gamma * magnitude + tiny), initial=0.0)),
            of_estimate=float(np.max(error / (estimate * magnitude + tiny), initial=0.0)),
        )


def judge_nodes(nodes: Iterable[NodeError], *, num_inputs: int) -> NodeLocalResult:
    """Return the verdict on nodes in the order of the network."""
    judged = tuple(nodes)
    reasons = [
        f"`{node.node}` errs by {node.of_estimate:.3g} times what rounding explains"
        for node in judged
        if not node.of_estimate <= 1
    ]
    return NodeLocalResult(nodes=judged, num_inputs=num_inputs, reasons=tuple(reasons))
