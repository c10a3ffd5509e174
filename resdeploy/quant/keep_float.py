"""Layers left in float32 until a budget holds, those that help most first."""

from collections.abc import Callable, Sequence

import onnx

from resdeploy.schema.quants import KeptFloat, QuantQuality

__all__ = ["keep_sensitive"]

# The quality with the layers of these names in float32, of all held-out samples or of the first.
QualityOf = Callable[[tuple[str, ...], slice], QuantQuality]
_ALL = slice(None)


def keep_sensitive(
    nodes: Sequence[onnx.NodeProto],
    quality_of: QualityOf,
    holds: Callable[[QuantQuality], bool],
    *,
    ranked_with: int,
    most: int | None = None,
    always: tuple[str, ...] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> tuple[KeptFloat, ...]:
    """Return the layers to leave in float32, those that help most by themselves first.

    None if the budget `holds` as it is. A layer that does not lower the error is not kept; where
    the budget holds with none, all that help are. The first `ranked_with` samples rank the layers,
    each in float32 by itself; those named in `always` are so in any case, beside at most `most`.
    """
    quality = quality_of(always, _ALL)
    if holds(quality):
        return ()
    errors = {}
    for node in nodes:
        on_stage(f"what costs most: {node.name}")
        errors[node.name] = quality_of((*always, node.name), slice(ranked_with)).error
    kept: list[KeptFloat] = []
    for node in sorted(nodes, key=lambda node: errors[node.name]):
        on_stage(f"keep in float32: {node.name}")
        better = quality_of((*always, *(layer.node for layer in kept), node.name), _ALL)
        if better.error >= quality.error:
            continue
        reason = f"the error is {better.error:.3g} with it in float32, {quality.error:.3g} without"
        kept.append(KeptFloat(node=node.name, op=node.op_type, reason=reason))
        quality = better
        if holds(quality) or len(kept) == most:
            break
    return tuple(kept)
