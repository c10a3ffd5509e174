"""Kinds of outputs: what a model's outputs are, so that each is judged as that.

scores      (N, K): the prediction is the largest
logit       one number a sample, whose sign decides; behind a Sigmoid, its side of 0.5
classes     class indices as integers, or class scores along axis 1 of a map (N, K, ...)
map         (N, C, ...): features, or any other dense output
embedding   (N, K): a direction, to be compared with others
regression  one number a sample or several, none of which decides

Stated by the user, or detected from type, shape and, where these leave it open, from what the model
returns. Between scores and an embedding, and between classes and a map, only the user knows: the
first of each two is taken for rows and the second for maps, unless the rows have a length of 1.

Shapes: N samples, K classes or features, C channels.
"""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import onnx

from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import Array
from resdeploy.schema.quants import JudgedOutput, OutputKind
from resdeploy.schema.verdicts import OutputInfo

__all__ = ["describe_outputs"]

# They pass on the values they read, in another shape.
_PASSING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
# Of the norm of a row in float32.
_NORM_TOLERANCE = 1e-3


def describe_outputs(
    model: onnx.ModelProto,
    outputs: Mapping[str, Array],
    asked: Mapping[str, OutputKind],
    *,
    num_labels: int = 0,
    decides: bool = False,
) -> tuple[JudgedOutput, ...]:
    """Return the kind of each output of a model, in their order.

    Args:
        model: it computed them.
        outputs: (N, ...) each, by name.
        asked: kinds by name, of "" for those not named.
        num_labels: the classes that the model itself names; 0 if it names none.
        decides: whether the request limits decisions, so that a single number is one.

    Raises:
        ResdeployError: no output has a name that is asked about, or one cannot be of that kind.
    """
    for name in asked:
        if name and name not in outputs:
            near = get_close_matches(name, outputs, n=1)
            raise ResdeployError(
                f"The model has no output {name!r}; it has {', '.join(outputs)}.",
                fix=f"did you mean {near[0]}?" if near else None,
            )
    found = []
    for name, values in outputs.items():
        info = OutputInfo(name=name, dtype=values.dtype.name, shape=values.shape[1:])
        kind = asked.get(name, asked.get("") if len(outputs) == 1 or not info.is_exact else None)
        is_probability = _producer(model, name) == "Sigmoid"
        if kind is None and decides and info.width == 1 and not info.is_exact:
            kind, because = "logit", "one number, and changes of predictions are limited"
        elif kind is None:
            kind, because = _detect(info, values, num_labels=num_labels, squashed=is_probability)
        else:
            because = "as stated"
            _check_fits(info, kind)
        threshold = 0.5 if kind == "logit" and is_probability else 0.0
        found.append(JudgedOutput(name=name, judged_as=kind, because=because, threshold=threshold))
    return tuple(found)


def _detect(
    info: OutputInfo, values: Array, *, num_labels: int, squashed: bool
) -> tuple[OutputKind, str]:
    shape = "x".join(map(str, ("N", *info.shape)))
    if info.is_exact:
        return "classes", f"{info.dtype} are class indices"
    if info.width == 1:
        if squashed:
            return "logit", "one number behind a Sigmoid"
        if np.any(values > 0) and np.any(values < 0):
            return "logit", "one number a sample, of both signs"
        return "regression", "one number a sample, always of one sign"
    if _is_row(info.shape):
        rows_NK = values.reshape(len(values), -1).astype(np.float64)
        if num_labels == info.width:
            return "scores", f"the model names {num_labels} classes"
        if np.allclose(np.linalg.norm(rows_NK, axis=1), 1.0, atol=_NORM_TOLERANCE):
            return "embedding", "every row has a length of 1"
        return "scores", f"{shape}, taken for class scores"
    return "map", f"{shape}, taken for a map of features"


def _check_fits(info: OutputInfo, kind: OutputKind) -> None:
    shape = "x".join(map(str, ("N", *info.shape)))
    fits = {
        "scores": not info.is_exact and _is_row(info.shape) and info.width > 1,
        "embedding": not info.is_exact and _is_row(info.shape) and info.width > 1,
        "logit": not info.is_exact and info.width == 1,
        "classes": info.is_exact or (len(info.shape) > 0 and info.shape[0] > 1),
        "map": not info.is_exact,
        "regression": not info.is_exact,
    }
    if not fits[kind]:
        able = [other for other, is_fit in fits.items() if is_fit]
        raise ResdeployError(
            f"The output {info.name!r} ({info.dtype}, {shape}) cannot be judged as {kind}.",
            where="--output-kind",
            fix=f"one of: {', '.join(able)}",
        )


def _is_row(shape: Sequence[int]) -> bool:
    """True for (K,), and for a map of a single place."""
    return len(shape) > 0 and math.prod(shape[1:]) == 1


def _producer(model: onnx.ModelProto, name: str) -> str | None:
    """Return the operator that makes a tensor's values; None if they are an input's."""
    makers = {output: node for node in model.graph.node for output in node.output}
    while (node := makers.get(name)) is not None and node.op_type in _PASSING:
        name = node.input[0]
    return None if node is None else str(node.op_type)
