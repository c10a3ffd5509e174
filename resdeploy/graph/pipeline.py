"""The passes between torch's exporter and the file, in their order and with the reason for it."""

import onnx_ir as ir

from resdeploy.graph.lower_opset import lower_opset
from resdeploy.graph.name_io import name_io
from resdeploy.graph.remove_no_ops import remove_no_ops
from resdeploy.graph.replace_padded_shortcut import replace_padded_shortcut
from resdeploy.graph.replace_reduce_mean import replace_reduce_mean
from resdeploy.graph.resolve_castlike import resolve_castlike
from resdeploy.graph.simplify import simplify
from resdeploy.graph.strip_metadata import strip_metadata
from resdeploy.schema import PassReport

__all__ = ["optimize"]


def optimize(
    model: ir.Model, *, opset: int, batch_dimension: str | None
) -> tuple[ir.Model, tuple[PassReport, ...]]:
    """Return `model` ready to be written, and what each pass changed.

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
    reports.append(lower_opset(model, opset))  # last: there are fewer operators to lower
    reports.append(strip_metadata(model))  # simplify leaves comments of its own
    model.producer_name = "resdeploy"
    model.producer_version = None
    return model, tuple(reports)
