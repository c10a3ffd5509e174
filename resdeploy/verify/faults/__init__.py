"""Faults to plant into an exported model: those of the way from a checkpoint to a device.

A fault changes a copy of the model; it returns None where a network has nothing of the kind.
"""

from resdeploy.verify.faults import fold_faults, graph_faults, weight_faults
from resdeploy.verify.faults.fault_model import Fault, UnfoldedLayer, Workpiece

__all__ = ["CONTROLS", "FAULTS", "Fault", "UnfoldedLayer", "Workpiece"]

FAULTS: tuple[Fault, ...] = (*fold_faults.FAULTS, *weight_faults.FAULTS, *graph_faults.FAULTS)

# Correct models, which must pass.
CONTROLS: tuple[Fault, ...] = (
    Fault(name="as exported", plant=lambda work: work.model),
    Fault(name="folded in float32 by another tool", plant=fold_faults.fold_in_float32),
)
