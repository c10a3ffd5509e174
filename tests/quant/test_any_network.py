"""Networks of many kinds in int8: what has no integer kernel is named, the rest is int8."""

import functools

import numpy as np
import onnx
import pytest
import small_kinds
from small_kinds import Network, noise

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.quant.int8 import quantize_int8
from resdeploy.quant.runtime import Runner
from resdeploy.quant.samples import Samples
from resdeploy.schema.quants import QuantSpec

PLAIN = {
    **dict.fromkeys(("equalize", "pixel_grid", "refine", "rounding", "bias_correction"), "off"),
    "method": "percentile",
}
part = functools.partial
# By name: the network, what its outputs are judged as, and the operators left in float32.
KINDS = {
    "U-Net": (small_kinds.unet, "map", ()),
    "U-Net, linear": (part(small_kinds.unet, part(Network.resize, mode="linear")), "map", "Resize"),
    "U-Net, transposed": (part(small_kinds.unet, small_kinds.transposed), "map", "ConvTranspose"),
    "pyramid": (small_kinds.pyramid, "map map map", ()),
    "siamese": (small_kinds.siamese, "logit", "Abs Sub"),
    "pair of images": (part(small_kinds.siamese, head="joined"), "scores", ()),
    "face": (small_kinds.face_embedding, "scores", "BatchNormalization PRelu"),
    "embedding": (small_kinds.normalised_embedding, "embedding", "LpNormalization"),
    "logit": (small_kinds.one_number, "logit", ()),
    "probability": (part(small_kinds.one_number, last="Sigmoid"), "logit", ()),
    "number": (part(small_kinds.one_number, shift=20.0), "regression", ()),
    "1-D ResNet": (small_kinds.resnet_1d, "scores", ()),
    "3-D ResNet": (small_kinds.resnet_3d, "scores", ()),
    "DenseNet": (small_kinds.densenet, "scores", "BatchNormalization"),
    "pre-activation": (small_kinds.preactivation, "scores", "BatchNormalization"),
    "MobileNet": (part(small_kinds.mobilenet, "ReLU6"), "scores", ()),
    "MobileNetV3": (small_kinds.mobilenet, "scores", "HardSwish"),
    "EfficientNet": (part(small_kinds.mobilenet, "SiLU"), "scores", ()),
    "leaky": (part(small_kinds.mobilenet, "LeakyRelu"), "scores", ()),
    "ELU": (part(small_kinds.mobilenet, "Elu"), "scores", "Elu"),
    "LSTM": (small_kinds.recurrent, "scores", "LSTM"),
    "class indices": (small_kinds.decides, "classes map", "ArgMax"),
    "two heads": (small_kinds.scores_and_map, "scores map", ()),
    "products": (small_kinds.products, "scores", ()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_this_kind_is_quantised(kind):
    make, kinds, in_float = KINDS[kind]
    model = make()
    samples = noise(model, 60)
    decides = any(one in kinds for one in ("scores", "logit", "classes"))
    limit = {"max_flips": 0.3} if decides else {}
    quantized, report = quantize_int8(model, Samples.of_array(samples), QuantSpec(**PLAIN, **limit))
    assert report.verdict == "PASS", report.reasons
    assert [output.judged_as for output in report.outputs] == kinds.split()
    operators = {node.op for node in report.kept_float if "there is no integer" in node.reason}
    operators |= {node.op for node in report.kept_float if "between pixels" in node.reason}
    expected = set(in_float.split() if in_float else ()) - {"ArgMax"}
    assert operators == expected
    assert all(node.time_share is not None for node in report.kept_float)
    integer = {op for op in report.proof.operators if op in ("QLinearConv", "QGemm")}
    assert integer, report.proof.operators
    # The file is the same function of the same inputs, for every runtime.
    onnx.checker.check_model(quantized, full_check=True)
    for end in ("input", "output"):
        names = [[value.name for value in getattr(m.graph, end)] for m in (model, quantized)]
        assert names[0] == names[1]
    read = {name for node in quantized.graph.node for name in node.input}
    assert {tensor.name for tensor in quantized.graph.initializer} <= read
    before, after = (Runner(m, optimize=True).run_outputs(samples) for m in (model, quantized))
    for output in report.quality.outputs:
        if output.error is not None and output.name in before:
            assert output.error < 0.15
            off = np.linalg.norm(after[output.name] - before[output.name])
            assert 0 < off < 0.15 * np.linalg.norm(before[output.name])


def test_two_branches_with_the_same_weights_keep_them_once_and_have_biases_of_their_own():
    model = small_kinds.siamese()
    quantized, _ = quantize_int8(
        model, Samples.of_array(noise(model, 60)), QuantSpec(max_flips=1.0, **PLAIN)
    )
    tensors = [tensor for tensor in quantized.graph.initializer if len(tensor.dims) == 4]
    assert sorted(tuple(t.dims) for t in tensors) == [(8, 3, 3, 3), (8, 8, 3, 3)]


def test_a_small_output_does_not_hide_behind_a_large_one():
    """The third map of the pyramid is a thousand times as large as the others."""
    model = small_kinds.pyramid()
    _, report = quantize_int8(model, Samples.of_array(noise(model, 60)), QuantSpec(**PLAIN))
    errors = [output.error for output in report.quality.outputs]
    assert report.quality.error == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-6)
    assert len(errors) == 3


def test_an_error_is_asked_of_every_output_and_layers_stay_in_float_for_it():
    model = small_kinds.scores_and_map()
    samples = Samples.of_array(noise(model, 60))
    _, free = quantize_int8(model, samples, QuantSpec(max_flips=1.0, **PLAIN))
    limit = 0.8 * max(output.error for output in free.quality.outputs)
    spec = QuantSpec(max_flips=1.0, max_error=limit, **PLAIN)
    _, held = quantize_int8(model, samples, spec)
    assert held.passed
    assert max(output.error for output in held.quality.outputs) <= limit
    assert held.kept_float
    assert not free.kept_float


def test_a_network_whose_layers_all_stay_in_float_is_no_int8():
    net = Network(input=(6,))
    model = net.model(scores=net.gemm("input", 4))
    spec = QuantSpec(max_flips=1.0, max_error=1e-6, **PLAIN)
    _, report = quantize_int8(model, Samples.of_array(noise(model, 60)), spec)
    assert report.verdict == "FAIL"
    assert "all of its 1 layers stay in float32" in report.reasons[0]


def test_the_numbers_behind_class_indices_are_searched_by_and_not_left_as_an_output():
    model = small_kinds.decides()
    quantized, report = quantize_int8(
        model, Samples.of_array(noise(model, 60)), QuantSpec(max_flips=1.0, refine="off")
    )
    assert len(report.trials) > 5
    assert 0 < report.quality.error < 0.1
    assert [value.name for value in quantized.graph.output] == ["index"]


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("pyramid", {"max_flips": 0.1}, "--max-flips is for predictions, and 'p5' is a map"),
        ("embedding", {"max_drop": 0.1}, "--max-drop is for predictions, and 'embedding' is an"),
        (
            "number",
            {"max_flips": 0.1, "output_kinds": {"": "regression"}},
            "--max-flips is for predictions, and 'y' is a number",
        ),
        ("class indices", {"output_kinds": {"": "scores"}}, "cannot be judged as scores"),
        ("logit", {"output_kinds": {"": "embedding"}}, "cannot be judged as embedding"),
        ("pyramid", {"output_kinds": {"p6": "map"}}, "no output 'p6'"),
    ],
)
def test_a_budget_or_a_kind_that_does_not_fit_the_outputs_is_an_error(kind, spec, words):
    model = KINDS[kind][0]()
    with pytest.raises(ResdeployError, match=words) as error:
        quantize_int8(model, Samples.of_array(noise(model, 40)), QuantSpec(**spec))
    assert error.value.fix or "it has p5, p4, p3" in error.value.what


def test_refuses_weights_that_are_all_computed():
    net = Network(input=(4,))
    weight = net.op("Neg", net.normal(4, 3), channels=3)
    model = net.model(y=net.op("MatMul", "input", weight, channels=3))
    with pytest.raises(UnsupportedModelError, match="no Conv or Gemm"):
        quantize_int8(model, Samples.of_array(noise(model, 8)), QuantSpec())
