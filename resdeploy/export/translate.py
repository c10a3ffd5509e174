"""A traced program translated to ONNX, with its BatchNorms: plainly, or by torch's exporter."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.plain_translation import plain_model

__all__ = ["translate"]

# What torch's exporter writes natively.
_OLDEST_EXPORTER_OPSET = 18


def translate(program: torch.export.ExportedProgram, *, opset: int) -> ir.Model:
    """Return the program as ONNX, with its BatchNorms.

    Args:
        program: functional; it is used up.
        opset: to write it in; below 18 it is 18 all the same, and `lower_opset` does the rest.

    Raises:
        UnsupportedModelError: an operator has no translation.
    """
    opset = max(opset, _OLDEST_EXPORTER_OPSET)
    plain = plain_model(program, opset=opset)
    if plain is not None:
        return plain
    with _quiet_exporter():
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
            )
        except Exception as error:  # the exporter's errors have no common base
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            raise UnsupportedModelError(
                f"torch.onnx.export cannot translate the model: {first}",
                fix="replace the operator it names, or fix the batch size with --batch N",
            ) from error
    assert translated is not None
    _part_names(translated.model.graph)
    return translated.model


def _part_names(graph: ir.Graph) -> None:
    """Rename each value that an operator computes under the name of a buffer, or of another value.

    The exporter calls values by their operators: a buffer called `mean` meets a torch.mean.
    """
    taken = {*graph.initializers, *(value.name for value in graph.inputs)}
    for node in graph.all_nodes():
        for value in node.outputs:
            name, number = value.name, 1
            while value.name in taken:
                value.name = f"{name}_{(number := number + 1)}"
            if value.name:
                taken.add(value.name)


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
