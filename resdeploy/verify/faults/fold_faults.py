"""Folds gone wrong: by another BatchNorm, done twice, not done, or done in float16.

Each is made from the layer before its fold, as a wrong fold would make it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx

from resdeploy.fold import algebra
from resdeploy.verify.faults.fault_model import (
    Array,
    Edit,
    Fault,
    UnfoldedLayer,
    Workpiece,
    in_one_layer,
)

__all__ = ["FAULTS", "fold_in_float32"]

ChangeBN = Callable[[algebra.BatchNormParams], algebra.BatchNormParams]


def _fold(layer: UnfoldedLayer, bn: algebra.BatchNormParams) -> tuple[Array, Array]:
    folded = algebra.fold_batchnorm(layer.weight, layer.bias, bn, dtype="float32")
    return folded.weight, folded.bias


def _refold(
    change: ChangeBN,
    work: Workpiece,
    *,
    everywhere: bool = False,
) -> onnx.ModelProto | None:
    """Fold the target, or every layer, with another BatchNorm than its own."""
    layers = work.layers if everywhere else tuple(filter(None, [work.target]))
    if not layers:
        return None
    edit = Edit(work.model)
    differs = False
    for layer in layers:
        weight, bias = _fold(layer, change(layer.bn))
        right = _fold(layer, layer.bn)
        differs |= not (np.array_equal(weight, right[0]) and np.array_equal(bias, right[1]))
        edit.set_layer(layer.node, weight, bias)
    return edit.model if differs else None  # in an untrained network, gamma is one anyway


def _channels_swapped(bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    order = np.arange(len(bn.mean))
    order[[0, -1]] = order[[-1, 0]]
    gamma = None if bn.gamma is None else bn.gamma[order]
    beta = None if bn.beta is None else bn.beta[order]
    return replace(bn, gamma=gamma, beta=beta, mean=bn.mean[order], var=bn.var[order])


def _folded_twice(weight: Array, bias: Array, layer: UnfoldedLayer) -> None:
    weight[:], bias[:] = _fold(replace(layer, weight=weight, bias=bias), layer.bn)


def _not_folded(weight: Array, bias: Array, layer: UnfoldedLayer) -> None:
    weight[:], bias[:] = layer.weight, 0 if layer.bias is None else layer.bias


def _in_type(dtype: type[np.floating[Any]], work: Workpiece) -> onnx.ModelProto | None:
    """Fold every layer with each step rounded to a type."""
    if not work.layers:
        return None
    edit = Edit(work.model)
    rounded = partial(np.asarray, dtype=dtype)
    for layer in work.layers:
        bn = layer.bn
        gamma = np.ones_like(bn.mean) if bn.gamma is None else bn.gamma
        beta = np.zeros_like(bn.mean) if bn.beta is None else bn.beta
        scale = rounded(gamma) / np.sqrt(rounded(bn.var) + rounded(bn.eps))
        bias = rounded(0 if layer.bias is None else layer.bias)
        along = (-1, *[1] * (layer.weight.ndim - 1))
        edit.set_layer(
            layer.node,
            rounded(layer.weight) * scale.reshape(along),
            (bias - rounded(bn.mean)) * scale + rounded(beta),
        )
    return edit.model


def fold_in_float32(work: Workpiece) -> onnx.ModelProto | None:
    """Fold as other tools do: correct, with a few roundings more."""
    model = _in_type(np.float32, work)
    if model is not None:
        model.producer_name = "another tool"
    return model


def _wrong_bn(name: str, change: ChangeBN, *, everywhere: bool = False) -> Fault:
    plant = partial(_refold, change, everywhere=everywhere)
    return Fault(name=name, plant=plant, single_layer=not everywhere)


def _with_eps(eps: float) -> ChangeBN:
    return lambda bn: replace(bn, eps=eps)


def _biased_variance(samples: int) -> ChangeBN:
    return lambda bn: replace(bn, var=np.asarray(bn.var, np.float64) * (1 - 1 / samples))


FAULTS: tuple[Fault, ...] = (
    _wrong_bn("eps 1e-3 for 1e-5, one layer", _with_eps(1e-3)),
    _wrong_bn("eps 1e-6 for 1e-5, one layer", _with_eps(1e-6)),
    _wrong_bn("eps 1e-3 for 1e-5, all layers", _with_eps(1e-3), everywhere=True),
    _wrong_bn("eps 1e-6 for 1e-5, all layers", _with_eps(1e-6), everywhere=True),
    _wrong_bn("biased variance of 1568 samples, one layer", _biased_variance(1568)),
    _wrong_bn("biased variance of 401408 samples, one layer", _biased_variance(401408)),
    _wrong_bn(
        "biased variance of 1568 samples, all layers", _biased_variance(1568), everywhere=True
    ),
    _wrong_bn(
        "mean stale by 1 % of a deviation",
        lambda bn: replace(bn, mean=bn.mean + 0.01 * np.sqrt(bn.var)),
    ),
    _wrong_bn("mean added, not subtracted", lambda bn: replace(bn, mean=-bn.mean)),
    _wrong_bn("mean dropped", lambda bn: replace(bn, mean=np.zeros_like(bn.mean))),
    _wrong_bn("gamma dropped", lambda bn: replace(bn, gamma=None)),
    _wrong_bn("beta dropped", lambda bn: replace(bn, beta=None)),
    _wrong_bn(
        "variance taken for the deviation",
        lambda bn: replace(bn, var=np.asarray(bn.var, np.float64) ** 2),
    ),
    _wrong_bn("statistics of two channels swapped", _channels_swapped),
    in_one_layer("BatchNorm folded twice", _folded_twice),
    in_one_layer("BatchNorm dropped, not folded", _not_folded),
    Fault(name="fold done in float16", plant=partial(_in_type, np.float16)),
)
