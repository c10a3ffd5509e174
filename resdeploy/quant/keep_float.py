"""Mixed precision: the layers that cost most error stay in float32 until a budget holds."""

from collections.abc import Callable, Sequence

import onnx

from resdeploy.schema.quants import KeptFloat, QuantQuality

__all__ = ["keep_sensitive"]

# The outputs' quality with the layers of these names in float32, on all held-out samples or a few.
Judge = Callable[[tuple[str, ...], bool], QuantQuality]


def keep_sensitive(
    nodes: Sequence[onnx.NodeProto],
    judge: Judge,
    is_enough: Callable[[QuantQuality], bool],
    *,
    always: tuple[str, ...] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> tuple[KeptFloat, ...]:
    """Return the layers to leave in float32, those that help most by themselves first.

    None if the budget holds as it is. A layer that does not lower the error is not kept; where the
    budget holds with none, all that help are.

    Args:
        nodes: those to choose from.
        judge: the quality with the named layers in float32; the second argument is whether a few
            samples are enough.
        is_enough: whether a quality is within the budget.
        always: names of layers that stay in float32 in any case.
        on_stage: told the name of each stage.
    """
    quality = judge(always, False)
    if is_enough(quality):
        return ()
    errors = {}
    for node in nodes:
        on_stage(f"what costs most: {node.name}")
        errors[node.name] = judge((*always, node.name), True).error
    kept: list[KeptFloat] = []
    for node in sorted(nodes, key=lambda node: errors[node.name]):
        on_stage(f"keep in float32: {node.name}")
        better = judge((*always, *(layer.node for layer in kept), node.name), False)
        if better.error >= quality.error:
            continue
        reason = f"the error is {better.error:.3g} with it in float32, {quality.error:.3g} without"
        kept.append(KeptFloat(node=node.name, op=node.op_type, reason=reason))
        quality = better
        if is_enough(quality):
            break
    return tuple(kept)
