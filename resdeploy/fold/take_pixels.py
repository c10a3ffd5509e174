"""Let a model of centred images take the pixels themselves.

Before:  input: float32 (N, C, H, W), pixels less their centre, not yet scaled
After:   input: uint8 (N, H, W, C);  Transpose, Cast, Sub(centre)

The scale is in the weights of the first layer by then; the centre stands before it. Folded into
that layer's bias, it would be wrong wherever the layer pads with zeros. As a map of corrections
added behind the layer it would be right, for one size of image, but slower: a ResNet-20 at batch 1
takes 0.94 of its time with NumPy's preprocessing in this form, 0.98 with such a map, on one core
(`benchmarks/export/embed.py`). The pixels are turned around while they are bytes, a quarter of
what they become.

Refuses when
1. the model has another number of inputs than one, or that is no image of as many channels.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.data.input_kinds import PIXELS, InputKind
from resdeploy.errors import UnsupportedModelError
from resdeploy.graph.editor import graph_editors
from resdeploy.schema.exports import PassReport

__all__ = ["take_pixels"]


def take_pixels(
    model: ir.Model, centre_C: npt.NDArray[np.floating], kind: InputKind = PIXELS
) -> PassReport:
    """Put the centring and what comes before it in front of `model`, in place.

    Raises:
        UnsupportedModelError: its input is not one of images.
    """
    graph = model.graph
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    shape = inputs[0].shape if len(inputs) == 1 else None
    if shape is None or len(shape) != 4 or shape[1] != len(centre_C):  # 1
        raise UnsupportedModelError(
            f"Only a model with one input, of images of {len(centre_C)} channels, can take pixels.",
            where=", ".join(str(value.name) for value in inputs),
        )
    (old,) = inputs
    dtype = old.dtype
    assert dtype is not None
    editor = next(iter(graph_editors(model)))
    first = next(iter(graph))
    element = ir.DataType.from_numpy(np.dtype(kind.dtypes[0]))
    pixels = ir.Value(
        name=old.name,
        shape=ir.Shape([shape[axis] for axis in kind.order]),
        type=ir.TensorType(element),
    )
    planes = ir.node(
        "Transpose", [pixels], {"perm": np.argsort(kind.order).tolist()}, name="pixels/Transpose"
    )
    numbers = ir.node("Cast", [planes.outputs[0]], {"to": dtype}, name="pixels/Cast")
    centred = ir.node("Sub", [numbers.outputs[0]], name="pixels/Sub", num_outputs=1)
    graph.insert_before(first, [planes, numbers, centred])
    tensor = ir.tensor(centre_C.astype(dtype.numpy()).reshape(1, -1, 1, 1))
    centre = editor.add("pixels.centre", tensor, reader=centred)
    centred.resize_inputs(2)
    centred.replace_input_with(1, centre)
    for node in (planes, numbers, centred):
        value = node.outputs[0]
        value.name = editor.new_name(f"{node.name}_output")
        value.shape, value.dtype = shape, dtype
    planes.outputs[0].dtype = element
    old.replace_all_uses_with(centred.outputs[0])
    graph.inputs[list(graph.inputs).index(old)] = pixels
    return PassReport(name="take_pixels", num_changed=1)
