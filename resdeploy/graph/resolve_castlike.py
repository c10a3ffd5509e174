"""Write CastLike of a known type as Cast.

Before:  z = CastLike(constant, x)          x a float tensor computed at run time
After:   z = Cast(constant, to=float)       a constant, which later passes compute

torch's exporter makes the zero bias of a convolution without one in this way. Left as it is, that
bias depends on the model's input, is computed again in every run, and no BatchNormalization after
the convolution can be folded.
"""

import onnx_ir as ir

from resdeploy.graph.editor import is_op, take_place_of
from resdeploy.schema.exports import PassReport

__all__ = ["resolve_castlike"]


def resolve_castlike(model: ir.Model) -> PassReport:
    """Replace each CastLike whose type is stated, in place."""
    num_changed = 0
    for node in list(model.graph.all_nodes()):
        like = node.inputs[1] if is_op(node, "CastLike") else None
        if like is None or like.dtype is None or node.graph is None:
            continue
        cast = ir.node("Cast", [node.inputs[0]], attributes={"to": like.dtype}, name=node.name)
        cast.metadata_props.update(node.metadata_props)
        node.graph.insert_after(node, cast)
        take_place_of(node.outputs[0], cast.outputs[0])
        cast.outputs[0].dtype = like.dtype
        node.graph.remove(node, safe=True)
        num_changed += 1
    return PassReport(name="resolve_castlike", num_changed=num_changed)
