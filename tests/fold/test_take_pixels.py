"""Pixels in front of a model of centred images; and that a wrong centre shows."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from resdeploy.errors import UnsupportedModelError
from resdeploy.fold.take_pixels import take_pixels
from resdeploy.graph.float64 import to_float64
from resdeploy.verify.compare_structure import align
from resdeploy.verify.normal_form import skeleton_of
from resdeploy.verify.weights import judge_static

CENTRE = np.array([0.485, 0.456], np.longdouble) * 255
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 2), dtype=np.uint8)


def graph(inputs="float[batch, 2, 4, 5] input"):
    text = (
        f'<ir_version: 8, opset_import: ["": 18]> g ({inputs}) => (float[batch, c, h, w] logits)'
        " <float[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6}> { logits = Conv (input, w) }"
    )
    return parser.parse_model(text)


def taken(proto, centre=CENTRE):
    model = ir.from_proto(proto)
    take_pixels(model, centre)
    return ir.to_proto(model)


def test_the_pixels_are_turned_widened_and_centred():
    before = graph()
    after = taken(before)
    onnx.checker.check_model(after, full_check=True)
    assert [n.op_type for n in after.graph.node] == ["Transpose", "Cast", "Sub", "Conv"]
    (entry,) = ort.InferenceSession(after.SerializeToString()).get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("input", "tensor(uint8)", ["batch", 4, 5, 2])
    centred = PIXELS.transpose(0, 3, 1, 2).astype(np.float32)
    centred -= CENTRE.astype(np.float32).reshape(1, 2, 1, 1)
    (y,) = ort.InferenceSession(after.SerializeToString()).run(None, {"input": PIXELS})
    session = ort.InferenceSession(before.SerializeToString())
    assert y.tobytes() == session.run(None, {"input": centred})[0].tobytes()


@pytest.mark.parametrize(
    "inputs",
    [
        "float[batch, 3, 4, 5] input",
        "float[batch, 2] input",
        "float[batch, 2, 4, 5] input, float[1] other",
    ],
)
def test_what_is_not_one_input_of_such_images_is_refused(inputs):
    with pytest.raises(UnsupportedModelError, match="images of 2 channels"):
        taken(graph(inputs))


def pairs(candidate):
    """Align with the same model in float64, whose centre is exact."""
    exact = to_float64(graph())
    reference = ir.from_proto(exact)
    take_pixels(reference, CENTRE)
    alignment = align(skeleton_of(ir.to_proto(reference)), skeleton_of(candidate))
    assert alignment.result.isomorphic
    return alignment.pairs


def test_the_centre_is_a_layer_whose_numbers_are_judged():
    candidate = taken(graph())
    assert len(pairs(candidate)) == 2
    assert judge_static(pairs(candidate)).passed
    tensor = next(t for t in candidate.graph.initializer if t.name == "pixels.centre")
    wrong = numpy_helper.to_array(tensor).copy()
    wrong[0, 1] = np.nextafter(wrong[0, 1], np.float32(200))
    tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    judged = judge_static(pairs(candidate))
    assert not judged.passed
    assert "pixels/Sub" in judged.reasons[0]
