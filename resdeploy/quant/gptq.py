"""GPTQ: round a layer's weights one by one, each taking over the errors of those before.

Rounded to the nearest integers, weights have errors that add up at random. The error that counts is
the output's: for a row of weights w, over inputs x, its square is

    (q - w)^T H (q - w),    H = sum over patches of x x^T

Weights are rounded in the order of their inputs' strength; the error of each is taken over by those
still to be rounded, as far as their inputs are alike (GPTQ, Frantar et al. 2022, arXiv 2210.17323,
after Hassibi and Stork's Optimal Brain Surgeon, 1993). Scales and graph stay as they are. AdaRound
(Nagel et al. 2020, arXiv 2004.10568) minimises an error of this form by gradient descent.

Shapes: O rows of a group, K values of a patch.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.quant.im2col import can_unfold, unfold
from resdeploy.quant.onnx_graph import Constants, layers, read_layer
from resdeploy.quant.qdq import LayerNames
from resdeploy.quant.runtime import Runner, input_of, with_outputs

__all__ = ["gptq", "gptq_weights"]

# Added to the diagonal of H, over its mean: weights without inputs must not be free.
_DAMPING = 1e-3
# Of each sample, at most as many patches are looked at: neighbours are alike.
_PATCHES_PER_SAMPLE = 64
# Several layers share a pass over the samples, as long as their H fit into this.
_HESSIAN_BYTES = 256 * 2**20
# Weights after these are updated all at once.
_BLOCK = 64


def gptq_weights(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    inputs: NDArray[np.float32],
    *,
    limit: int,
) -> dict[str, NDArray[np.int8]]:
    """Return better integers for the weights of a quantised model, by the name of the constant.

    Args:
        model: the prepared model it was made from, in float32.
        quantized: as `insert_qdq` leaves it.
        inputs: (N, ...) samples to look at.
        limit: the largest integer of a weight.
    """
    constants, integers = Constants(model), Constants(quantized)
    nodes = [node for node in layers(model, constants) if _can_round(node, constants, integers)]
    rounded: dict[str, NDArray[np.int8]] = {}
    for some in _by_memory(nodes, constants):
        for node, hessians_GKK in zip(some, _hessians(model, some, inputs), strict=True):
            names = LayerNames(node)
            layer = read_layer(node, constants)
            weight_OIK = layer.by_output(constants[node.input[1]])
            weight_GOK = weight_OIK.reshape(layer.groups, -1, layer.num_products)
            scale_O = np.broadcast_to(integers[names.weight_scale].reshape(-1), layer.num_outputs)
            groups = zip(weight_GOK, scale_O.reshape(layer.groups, -1), hessians_GKK, strict=True)
            rows = [gptq(*group, limit=limit) for group in groups]
            rounded[names.weight] = layer.as_stored(np.concatenate(rows))
    return rounded


def gptq(
    weight_OK: NDArray[np.floating],
    scale_O: NDArray[np.floating],
    hessian_KK: NDArray[np.float64],
    *,
    limit: int,
) -> NDArray[np.int8]:
    """Return integers q for which q * scale is near to the weights in the metric of H."""
    order = np.argsort(-np.diag(hessian_KK), kind="stable")
    hessian_KK = hessian_KK[np.ix_(order, order)]
    damping = _DAMPING * float(np.mean(np.diag(hessian_KK)))
    hessian_KK[np.diag_indices_from(hessian_KK)] += damping if damping > 0 else 1.0
    # The rows of this upper factor hold the effect of an error at j on the best weights after j.
    factor_KK = np.linalg.cholesky(np.linalg.inv(hessian_KK)).T
    rest_OK = weight_OK.astype(np.float64)[:, order]
    scale_O = scale_O.astype(np.float64)
    rounded_OK = np.zeros(weight_OK.shape, np.int8)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        error_OB = np.zeros((len(weight_OK), stop - start))
        for j in range(start, stop):
            whole_O = np.clip(np.rint(rest_OK[:, j] / scale_O), -limit, limit)
            error_O = (rest_OK[:, j] - whole_O * scale_O) / factor_KK[j, j]
            rest_OK[:, j + 1 : stop] -= np.outer(error_O, factor_KK[j, j + 1 : stop])
            rounded_OK[:, order[j]] = whole_O
            error_OB[:, j - start] = error_O
        rest_OK[:, stop:] -= error_OB @ factor_KK[start:stop, stop:]
    return rounded_OK


def _can_round(node: onnx.NodeProto, constants: Constants, integers: Constants) -> bool:
    own = not constants.is_shared(node.input[1])
    can = can_unfold(read_layer(node, constants))
    return can and own and LayerNames(node).weight in integers


def _by_memory(
    nodes: Sequence[onnx.NodeProto], constants: Constants
) -> Iterator[list[onnx.NodeProto]]:
    group: list[onnx.NodeProto] = []
    taken = 0
    for node in nodes:
        layer = read_layer(node, constants)
        num_bytes = layer.groups * layer.num_products**2 * np.dtype(np.float64).itemsize
        if group and taken + num_bytes > _HESSIAN_BYTES:
            yield group
            group, taken = [], 0
        group.append(node)
        taken += num_bytes
    if group:
        yield group


def _hessians(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], inputs: NDArray[np.float32]
) -> list[NDArray[np.float64]]:
    """Return for each layer the sum of x x^T over patches, (groups, K, K)."""
    constants = Constants(model)
    given = input_of(model).name
    read = sorted({node.input[0] for node in nodes} - {given})
    read_layers = [read_layer(node, constants) for node in nodes]
    hessians = [np.zeros((one.groups, one.num_products, one.num_products)) for one in read_layers]
    random = np.random.default_rng(0)
    runner = Runner(with_outputs(model, read or [model.graph.output[0].name]), optimize=False)
    for batch, tensors in runner.run_batches(inputs):
        for node, layer, hessian_GKK in zip(nodes, read_layers, hessians, strict=True):
            values = batch if node.input[0] == given else tensors[node.input[0]]
            patches_GPK = unfold(layer, values, random, num=_PATCHES_PER_SAMPLE)
            for patches_PK, sum_KK in zip(patches_GPK, hessian_GKK, strict=True):
                sum_KK += patches_PK.T @ patches_PK
    return hessians
