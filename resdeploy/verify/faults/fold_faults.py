"""Folds gone wrong: by another BatchNorm, done twice, not done, or done in float16.

They are made from the layer as it was before the fold, as a wrong folder would make them.
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


def _fold(layer: UnfoldedLayer, bn: algebra.BatchNormParams) -> tuple[Array, Array]:
    folded = algebra.fold_batchnorm(layer.weight, layer.bias, bn, dtype="float32")
    return folded.weight, folded.bias


def _refold(
    change: Callable[[algebra.BatchNormParams], algebra.BatchNormParams],
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


def _with_eps(eps: float, bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    return replace(bn, eps=eps)


def _biased_variance(samples: int, bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    return replace(bn, var=np.asarray(bn.var, np.float64) * (1 - 1 / samples))


def _stale_mean(bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    return replace(bn, mean=bn.mean + 0.01 * np.sqrt(bn.var))


def _mean_added(bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    return replace(bn, mean=-bn.mean)


def _no_mean(bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    return replace(bn, mean=np.zeros_like(bn.mean))


def _no_gamma(bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    return replace(bn, gamma=None)


def _no_beta(bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    return replace(bn, beta=None)


def _variance_for_deviation(bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    return replace(bn, var=np.asarray(bn.var, np.float64) ** 2)


def _channels_swapped(bn: algebra.BatchNormParams) -> algebra.BatchNormParams:
    order = np.arange(len(bn.mean))
    order[[0, -1]] = order[[-1, 0]]
    gamma = None if bn.gamma is None else bn.gamma[order]
    beta = None if bn.beta is None else bn.beta[order]
    return replace(bn, gamma=gamma, beta=beta, mean=bn.mean[order], var=bn.var[order])


def _folded_twice(weight: Array, bias: Array, layer: UnfoldedLayer) -> tuple[Array, Array]:
    return _fold(replace(layer, weight=weight, bias=bias), layer.bn)


def _not_folded(weight: Array, bias: Array, layer: UnfoldedLayer) -> tuple[Array, Array]:
    return layer.weight, np.zeros_like(bias) if layer.bias is None else layer.bias


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


def _wrong_bn(name: str, change: Any, *, everywhere: bool = False) -> Fault:
    plant = partial(_refold, change, everywhere=everywhere)
    return Fault(name=name, plant=plant, single_layer=not everywhere)


FAULTS: tuple[Fault, ...] = (
    _wrong_bn("eps 1e-3 for 1e-5, one layer", partial(_with_eps, 1e-3)),
    _wrong_bn("eps 1e-6 for 1e-5, one layer", partial(_with_eps, 1e-6)),
    _wrong_bn("eps 1e-3 for 1e-5, all layers", partial(_with_eps, 1e-3), everywhere=True),
    _wrong_bn("eps 1e-6 for 1e-5, all layers", partial(_with_eps, 1e-6), everywhere=True),
    _wrong_bn("biased variance of 1568 samples, one layer", partial(_biased_variance, 1568)),
    _wrong_bn("biased variance of 401408 samples, one layer", partial(_biased_variance, 401408)),
    _wrong_bn(
        "biased variance of 1568 samples, all layers",
        partial(_biased_variance, 1568),
        everywhere=True,
    ),
    _wrong_bn("mean stale by 1 % of a deviation", _stale_mean),
    _wrong_bn("mean added, not subtracted", _mean_added),
    _wrong_bn("mean dropped", _no_mean),
    _wrong_bn("gamma dropped", _no_gamma),
    _wrong_bn("beta dropped", _no_beta),
    _wrong_bn("variance taken for the deviation", _variance_for_deviation),
    _wrong_bn("statistics of two channels swapped", _channels_swapped),
    in_one_layer("BatchNorm folded twice", _folded_twice),
    in_one_layer("BatchNorm dropped, not folded", _not_folded),
    Fault(name="fold done in float16", plant=partial(_in_type, np.float16)),
)
