"""Write the mean over an image as GlobalAveragePool.

Before:  y = ReduceMean(x, axes=[2, 3])                    keepdims=1, or 0
After:   y = GlobalAveragePool(x)                          and Flatten(axis=1) where keepdims=0

The same mean; runtimes have kernels for the pooling that they lack for the reduction. ONNX Runtime
keeps it in the blocked layout of the convolutions before it, and in int8 runs
QLinearGlobalAveragePool where a ReduceMean takes the whole map back to float32. In float32 it is
worth 0.5 % of a ResNet-20 (`benchmarks/export/shortcut.py`).

Leaves a ReduceMean as it is when
1. its axes are computed at run time, or are not the two spatial ones of an image, in either order
   and counted from either end;
2. the rank of its input is not known to be four.
"""

import onnx_ir as ir

from resdeploy.graph.editor import (
    GraphEditor,
    constant_ints,
    each_node,
    int_attribute,
    ints_attribute,
    is_op,
    optional_input,
    take_place_of,
)
from resdeploy.schema.exports import PassReport

__all__ = ["replace_reduce_mean"]

_SPATIAL_AXES = [2, 3]
_IMAGE_RANK = 4


def replace_reduce_mean(model: ir.Model) -> PassReport:
    """Replace each mean over an image, in place."""
    num_changed = 0
    for node, editor in each_node(model):
        if is_op(node, "ReduceMean") and _is_over_images(node, editor):
            _rewrite(node)
            num_changed += 1
    return PassReport(name="replace_reduce_mean", num_changed=num_changed)


def _is_over_images(node: ir.Node, editor: GraphEditor) -> bool:
    axes_input = optional_input(node, 1)
    axes = ints_attribute(node, "axes") if axes_input is None else constant_ints(axes_input)
    if axes is None or node.inputs[0] is None or editor.rank(node.inputs[0]) != _IMAGE_RANK:
        return False
    return sorted(axis % _IMAGE_RANK for axis in axes) == _SPATIAL_AXES


def _rewrite(node: ir.Node) -> None:
    graph, result = node.graph, node.outputs[0]
    assert graph is not None
    name = None if node.name is None else node.name.replace("ReduceMean", "GlobalAveragePool")
    pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=name)
    new = [pool]
    if int_attribute(node, "keepdims", 1) == 0:
        new.append(ir.node("Flatten", [pool.outputs[0]], attributes={"axis": 1}))
        pool.outputs[0].type = result.type
    for one in new:
        one.metadata_props.update(node.metadata_props)
    graph.insert_after(node, new)
    take_place_of(result, new[-1].outputs[0])
    graph.remove(node, safe=True)
