"""Faults to plant into an exported model: what goes wrong between a checkpoint and a device.

A fault makes a copy of the model and changes it; it returns None where a network has nothing of
the kind.
"""

from resdeploy.graph.faults import of_folds, of_graphs, of_weights
from resdeploy.graph.faults.workpiece import Fault, UnfoldedLayer, Workpiece

__all__ = ["CONTROLS", "FAULTS", "Fault", "UnfoldedLayer", "Workpiece"]

FAULTS: tuple[Fault, ...] = (*of_folds.FAULTS, *of_weights.FAULTS, *of_graphs.FAULTS)

# Correct models, which must pass.
CONTROLS: tuple[Fault, ...] = (
    Fault(name="as exported", plant=lambda work: work.model),
    Fault(name="folded in float32 by another tool", plant=of_folds.fold_in_float32),
)
