"""Faults to plant into an exported model: what goes wrong between a checkpoint and a device.

A fault makes a copy of the model and changes it; it returns None where a network has nothing of
the kind.
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
