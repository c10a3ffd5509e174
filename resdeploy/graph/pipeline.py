"""The passes between torch's exporter and the file, in their order and with the reason for it."""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.graph.lower_opset import lower_opset
from resdeploy.graph.name_io import name_io
from resdeploy.graph.remove_no_ops import remove_no_ops
from resdeploy.graph.replace_padded_shortcut import replace_padded_shortcut
from resdeploy.graph.replace_reduce_mean import replace_reduce_mean
from resdeploy.graph.resolve_castlike import resolve_castlike
from resdeploy.graph.simplify import simplify
from resdeploy.graph.strip_metadata import strip_metadata
from resdeploy.graph.take_pixels import take_pixels
from resdeploy.schema.exports import PassReport

__all__ = ["optimize"]


def optimize(
    model: ir.Model,
    *,
    opset: int,
    batch_dimension: str | None,
    centre_C: npt.NDArray[np.floating] | None = None,
) -> tuple[ir.Model, tuple[PassReport, ...]]:
    """Return `model` ready to be written, and what each pass changed.

    Args:
        model: as translated; it is used up.
        opset: to write it in.
        batch_dimension: what to call an open batch dimension; None if it is fixed.
        centre_C: (C,), for a model that is to take pixels: what is taken off them (`take_pixels`).

    Raises:
        UnsupportedModelError: a pass cannot handle the graph.
    """
    reports = [
        name_io(model, batch_dimension=batch_dimension),
        strip_metadata(model),  # before simplify, which drops the module names nodes are called by
        resolve_castlike(model),  # before simplify, which then sees that these are constants
    ]
    model, report = simplify(model)
    reports += [
        report,
        remove_no_ops(model),  # what simplify leaves
        replace_reduce_mean(model),  # after simplify, which computes the axes
        replace_padded_shortcut(model),  # likewise the bounds of the slice
    ]
    if centre_C is not None:
        reports.append(take_pixels(model, centre_C))
    reports.append(lower_opset(model, opset))  # last: there are fewer operators to lower
    reports.append(strip_metadata(model))  # simplify leaves comments of its own
    model.producer_name = "resdeploy"
    model.producer_version = None
    return model, tuple(reports)
