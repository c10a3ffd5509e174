"""A traced program translated to ONNX by torch's exporter, without its optimiser.

The exporter traces every program a second time, to decompose what it cannot translate: half of its
time. Where each operator of a program has a translation, torch's own or one of those here, there
is nothing to decompose, and the program is left as it is.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from resdeploy.errors import UnsupportedModelError

__all__ = ["translate"]

# What torch's exporter writes natively.
_OLDEST_EXPORTER_OPSET = 18

aten = torch.ops.aten

# Each has a translation in torch's exporter, for every argument that it may have.
_TRANSLATED_WHOLE: frozenset[Any] = frozenset(
    {
        *(aten.add.Tensor, aten.mul.Tensor, aten.relu.default, aten.sigmoid.default),
        *(aten.conv2d.default, aten.linear.default, aten.max_pool2d.default),
        *(aten.mean.dim, aten.flatten.using_ints),
    }
)


def translate(program: torch.export.ExportedProgram, *, opset: int) -> ir.Model:
    """Return the program as ONNX, with its BatchNorms.

    Args:
        program: functional; it is used up.
        opset: to write it in; below 18 it is 18 all the same, and `lower_opset` does the rest.

    Raises:
        UnsupportedModelError: an operator has no translation.
    """
    own = _own_translations(program.graph)
    _decompose_only_where_needed(program, own)
    with _quiet_exporter():
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=max(opset, _OLDEST_EXPORTER_OPSET),
                custom_translation_table=own,
            )
        except Exception as error:  # the exporter's errors have no common base
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            raise UnsupportedModelError(
                f"torch.onnx.export cannot translate the model: {first}",
                fix="replace the operator it names, or fix the batch size with --batch N",
            ) from error
    assert translated is not None
    return translated.model


def _own_translations(graph: fx.Graph) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translations of operators whose every call in `graph` has that plain form."""
    from onnxscript import opset18 as op  # noqa: PLC0415  (the exporter imports it, slowly)

    def batch_norm(x, gamma, beta, mean, var, training, momentum, eps, cudnn):  # type: ignore[no-untyped-def]
        return op.BatchNormalization(x, gamma, beta, mean, var, epsilon=eps)

    def adaptive_avg_pool2d(x, output_size):  # type: ignore[no-untyped-def]
        return op.GlobalAveragePool(x)

    forms = (
        (aten.batch_norm.default, batch_norm, lambda n: None not in n.args[1:5] and not n.args[5]),
        (
            aten.adaptive_avg_pool2d.default,
            adaptive_avg_pool2d,
            lambda n: list(n.args[1]) == [1, 1] and n.args[0].meta["val"].ndim == 4,
        ),
    )
    return {
        target: translation
        for target, translation, has_plain_form in forms
        if all(has_plain_form(node) for node in graph.nodes if node.target is target)
    }


def _decompose_only_where_needed(
    program: torch.export.ExportedProgram, own: Mapping[Callable[..., Any], object]
) -> None:
    """Let `program` be its own decomposition if every operator has a translation."""
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    if targets <= _TRANSLATED_WHOLE | own.keys():
        program.run_decompositions = lambda *_, **__: program  # type: ignore[method-assign]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back what the exporter prints, warns and logs: none of it is about the user's model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
