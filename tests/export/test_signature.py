"""What a module takes and gives: several inputs, nests of outputs, batches, types, chance."""

import collections
import dataclasses
import random

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import resdeploy
from resdeploy.errors import ResdeployError
from resdeploy.export.export import export_onnx
from resdeploy.export.golden import golden_for
from resdeploy.export.reference import reference_graph
from resdeploy.export.signature import bind, draw, module_inputs
from resdeploy.export.source import model_of_module, with_open_sides
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.files import InputSpec
from resdeploy.verify.certify import certify_file

Pair = collections.namedtuple("Pair", ["boxes", "scores"])
IMAGE = (3, 8, 8)


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    features: torch.Tensor


class Net(nn.Module):
    """A layer with its BatchNorm for images, an embedding for integers, and a head."""

    def __init__(self, forward, **buffers) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.rows, self.head = nn.Embedding(9, 6), nn.Linear(6, 4)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.run = forward
        self.eval()

    def look(self, x):
        return F.relu(self.bn(self.conv(x))).mean((2, 3))

    def forward(self, x):
        return self.run(self, x)


class TwoImages(Net):
    def forward(self, left, right):
        return self.head(self.look(left) - self.look(right))


class ImageAndIntegers(Net):
    def forward(self, image, ids, weight):
        return self.head(self.look(image) + self.rows(ids).mean(1)) * weight[:, None]


class Masked(Net):
    def forward(self, x, keep):
        return self.head(torch.where(keep[:, None], self.look(x), 0.0))


class Integers(Net):
    def forward(self, ids):
        return self.head(self.rows(ids).mean(1))


class Optional(Net):
    def forward(self, x, scale=None, *, shift=None):
        y = self.head(self.look(x))
        y = y if scale is None else y * scale
        return y if shift is None else y + shift


class Any(Net):
    def forward(self, *xs):
        return self.head(sum(map(self.look, xs)))


def net(kind):
    return kind(None)


def proved(module, input_shape, tmp_path, *, batch="dynamic", dynamic=()):
    """Export a module, hold the file's graph against the reference's, and return it."""
    path, fixed = tmp_path / "model.onnx", None if batch == "dynamic" else batch
    source = with_open_sides(model_of_module(module, input_shape), dynamic)
    assert export_onnx(source, ExportSpec(batch=batch), path).verification.passed
    golden = golden_for(source, num_inputs=3, in_detail=False, batch=fixed)
    model = onnx.load(path)
    candidate = certify_file(model, reference_graph(source, golden, batch=fixed))
    assert not candidate.missing
    assert (candidate.structure.passed, candidate.static.passed) == (True, True)
    return model


INPUTS = {
    "two images": (TwoImages, {"left": IMAGE, "right": IMAGE}, ["left", "right"]),
    "in the order of forward": (TwoImages, {"right": IMAGE, "left": IMAGE}, ["left", "right"]),
    "integers and numbers": (
        ImageAndIntegers,
        [
            InputSpec(name="", shape=IMAGE),
            InputSpec(name="ids", shape=(5,), dtype="int64"),
            InputSpec(name="weight", shape=()),
        ],
        ["image", "ids", "weight"],
    ),
    "a bool for each sample": (
        Masked,
        [InputSpec(name="x", shape=IMAGE), InputSpec(name="keep", shape=(), dtype="bool")],
        ["x", "keep"],
    ),
    "integers alone": (Integers, [InputSpec(name="", shape=(5,), dtype="int64")], ["ids"]),
    "an optional one left out": (Optional, IMAGE, ["input"]),
    "by keyword alone": (Optional, {"x": IMAGE, "shift": (4,)}, ["x", "shift"]),
    "any number": (Any, [InputSpec(name="", shape=IMAGE)] * 2, ["input_0", "input_1"]),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_are_those_of_forward_by_name(case, tmp_path):
    kind, shapes, names = INPUTS[case]
    model = proved(net(kind), shapes, tmp_path)
    assert [value.name for value in model.graph.input] == names


def test_several_inputs_are_verified_whole(tmp_path):
    """Conformance and single layers too: integers and bools among the floats."""
    module, shapes, _ = INPUTS["integers and numbers"]
    module, path = net(module), tmp_path / "model.onnx"
    resdeploy.export(module, path, input_shape=shapes)
    verdict = resdeploy.verify(path, module, input_shape=shapes, num_inputs=4)
    assert verdict.verdict == "PROVED", (verdict.reasons, verdict.unproved)


def test_inputs_that_change_places_are_seen(tmp_path):
    """Both have one shape: nothing but the numbers and the wiring tells them apart."""
    module, shapes = net(TwoImages), {"left": IMAGE, "right": IMAGE}
    model = proved(module, shapes, tmp_path)
    names = {"left": "right", "right": "left"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(model, tmp_path / "swapped.onnx")
    verdict = resdeploy.verify(
        tmp_path / "swapped.onnx", module, input_shape=shapes, conformance=False
    )
    assert verdict.verdict == "FAIL"


def test_a_file_of_several_inputs_is_a_reference(tmp_path):
    proved(net(ImageAndIntegers), INPUTS["integers and numbers"][1], tmp_path)
    path = tmp_path / "model.onnx"
    verdict = resdeploy.verify(path, path, num_inputs=4, conformance=False)
    assert verdict.verdict == "PROVED", verdict.unproved


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        (TwoImages, IMAGE, "needs an input 'right'"),
        (TwoImages, {"left": IMAGE, "rigth": IMAGE}, "has no input 'rigth'"),
        (Net, {"x": IMAGE, "y": IMAGE}, "has no input 'y'"),
        (Net, [InputSpec(name="", shape=IMAGE)] * 2, "takes 1 input, not 2"),
    ],
)
def test_inputs_that_forward_does_not_take_are_refused_with_its_own(kind, asked, message):
    with pytest.raises(ResdeployError, match=message) as raised:
        model_of_module(net(kind), asked)
    assert "--input" in raised.value.fix


def test_a_list_of_tensors_is_refused_by_name():
    class Listed(Net):
        def forward(self, xs: list[torch.Tensor]):
            return self.head(sum(map(self.look, xs)))

    with pytest.raises(ResdeployError, match="'xs' of the module is a list"):
        model_of_module(net(Listed), IMAGE)


def test_records_become_the_arguments_of_a_call():
    module = net(Optional)
    specs = module_inputs(
        module, [InputSpec(name="shift", shape=(4,)), InputSpec(name="x", shape=IMAGE)]
    )
    samples, _ = draw(specs, 3)
    args, kwargs = bind(module, samples, torch.float64)
    assert [tuple(x.shape) for x in args] == [(3, *IMAGE)]
    assert {name: (tuple(x.shape), x.dtype) for name, x in kwargs.items()} == {
        "shift": ((3, 4), torch.float64)
    }


OUTPUTS = {
    "a dict": lambda net, x: {"out": net.head(net.look(x)), "aux": net.conv(x)},
    "a named tuple": lambda net, x: Pair(net.look(x), net.head(net.look(x))),
    "a dataclass": lambda net, x: Answer(net.head(net.look(x)), net.look(x)),
    "a nest": lambda net, x: (net.look(x), (net.head(net.look(x)), [net.conv(x)])),
    "one number": lambda net, x: net.head(net.look(x))[:, 0],
    "an index": lambda net, x: net.head(net.look(x)).argmax(1),
    "None beside": lambda net, x: (net.head(net.look(x)), None),
    "its input beside": lambda net, x: (net.head(net.look(x)), x),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_of_every_nest_are_proved(case, tmp_path):
    proved(Net(OUTPUTS[case]), IMAGE, tmp_path)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_is_baked_in_is_the_reference_s_too(batch, tmp_path):
    module = Net(lambda net, x: net.head(net.look(x).view(batch, -1)))
    with pytest.raises(ResdeployError, match="batch") as raised:
        resdeploy.export(module, tmp_path / "model.onnx", input_shape=IMAGE)
    assert "--batch" in raised.value.fix
    model = proved(module, IMAGE, tmp_path, batch=batch)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch


def test_a_failed_trace_says_nothing_but_its_error(tmp_path, capfd, caplog):
    module = Net(lambda net, x: net.head(net.look(x).view(1, -1)))
    with pytest.raises(ResdeployError):
        resdeploy.export(module, tmp_path / "model.onnx", input_shape=IMAGE)
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.text) == ("", "", "")


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.float16, "its float16 numbers are widened to float32"),
        (torch.bfloat16, "its bfloat16 numbers are widened to float32"),
        (torch.float64, "its float64 numbers are rounded to float32"),
    ],
)
def test_a_module_of_another_type_is_judged_in_float32_and_said_so(dtype, said, tmp_path):
    module = Net(lambda net, x: net.head(net.look(x))).to(dtype)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    report = resdeploy.export(module, tmp_path / "model.onnx", input_shape=IMAGE)
    assert report.verification.passed
    assert report.source == (f"module: {said}",)
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {one.dtype for one in module.parameters()} == {dtype}


def test_a_module_of_two_types_and_channels_last_are_no_matter(tmp_path):
    module = Net(lambda net, x: net.head(net.look(x)))
    module.head.half()
    proved(module.to(memory_format=torch.channels_last), IMAGE, tmp_path)


def test_complex_buffers_are_refused_by_name():
    module = Net(None, phase=torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ResdeployError, match=r"`phase`, complex64"):
        model_of_module(module, IMAGE)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda net, x: net.head(F.dropout(net.look(x))), "A dropout is left on"),
        (lambda net, x: net.head(net.look(x + torch.rand_like(x))), "draws random numbers"),
        (lambda net, x: net.head(net.look(x)) + torch.randn(4), "draws random numbers"),
        (lambda net, x: net.head(net.look(x)) * random.random(), "answers at random"),
        (
            lambda net, x: net.head(net.look(x)) + float(np.random.default_rng().normal()),
            "answers at random",
        ),
    ],
)
def test_a_network_that_answers_at_random_is_refused(forward, message, tmp_path):
    with pytest.raises(ResdeployError, match=message):
        resdeploy.export(Net(forward), tmp_path / "model.onnx", input_shape=IMAGE)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    "names", [("mean", "std"), ("relu", "conv2d", "add"), ("val_0", "input", "logits"), ("größe",)]
)
def test_a_buffer_may_be_called_like_an_operator_or_an_input(names, tmp_path):
    def forward(net, x):
        for name in names:
            x = (x + getattr(net, name)) * 1.5
        return net.head(net.look(x))

    values = {name: torch.full((1, 3, 1, 1), 0.25 * (k + 1)) for k, name in enumerate(names)}
    model = proved(Net(forward, **values), IMAGE, tmp_path)
    assert [value.name for value in model.graph.input] == ["input"]


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda net, x: (net.head(net.look(x)), "cat"), "type str, not a tensor"),
        (lambda net, x: (net.head(net.look(x)), 3), "type int, not a tensor"),
        (lambda net, x: torch.ones(3), "its first axis is not the batch"),
        (lambda net, x: None, "no outputs"),
        (lambda net, x: net.head(net.look(x.add_(1))), "two runs on the same input differ"),
        (lambda net, x: net.head(net.look(x[:, :2])), "channels"),
        (lambda net, x: net.head(net.look(x).half()), "Half"),
    ],
)
def test_what_cannot_be_exported_is_an_error_of_its_own(forward, message, tmp_path):
    with pytest.raises(ResdeployError, match=message):
        resdeploy.export(Net(forward), tmp_path / "model.onnx", input_shape=IMAGE)


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (lambda net, x: {"image": x, "scores": net.head(net.look(x))}, ["image", "scores"]),
        (lambda net, x: x, ["logits"]),
    ],
)
def test_an_input_may_be_an_output(forward, names, tmp_path):
    model = proved(Net(forward), IMAGE, tmp_path)
    assert [value.name for value in model.graph.output] == names


def test_shared_weights_are_stored_once_and_none_is_unused(tmp_path):
    module = net(TwoImages)
    model = proved(module, {"left": IMAGE, "right": IMAGE}, tmp_path)
    weights = [t for t in model.graph.initializer if list(t.dims) == [6, 3, 3, 3]]
    assert len(weights) == 1
    assert [node.op_type for node in model.graph.node].count("Conv") == 2
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read


def test_the_runtime_opens_a_file_without_a_warning(tmp_path, capfd):
    """Pooling and flattening leave constants behind at which ONNX Runtime would warn."""
    module = Net(lambda net, x: net.head(F.adaptive_avg_pool2d(net.conv(x), 1).flatten(1)))
    proved(module, IMAGE, tmp_path)
    capfd.readouterr()
    onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("sides", "stated"),
    [
        (("height", "width"), ["batch", 3, "height", "width"]),
        (("width",), ["batch", 3, 8, "width"]),
    ],
)
def test_open_sides_are_proved_for_every_size(sides, stated, tmp_path):
    def forward(net, x):
        y = F.relu(net.bn(net.conv(x)))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear")

    model = proved(Net(forward), IMAGE, tmp_path, dynamic=sides)
    for value in (model.graph.input[0], model.graph.output[0]):
        dims = value.type.tensor_type.shape.dim
        found = [dim.dim_param or dim.dim_value for dim in dims]
        assert [found[0], *found[2:]] == [stated[0], *stated[2:]]


def test_a_size_that_is_baked_in_is_not_open(tmp_path):
    module = Net(lambda net, x: net.conv(x).view(len(x), 6 * 6 * 6)[:, :4])
    with pytest.raises(ResdeployError) as raised:
        resdeploy.export(
            module, tmp_path / "model.onnx", input_shape=IMAGE, dynamic=("height", "width")
        )
    assert "leave --dynamic out" in raised.value.fix


def test_a_bundle_of_several_inputs_is_checked_and_asked_by_name(tmp_path):
    module, shapes = net(TwoImages), {"left": IMAGE, "right": IMAGE}
    resdeploy.bundle(module, tmp_path / "two.zip", input_shape=shapes, num_inputs=4)
    assert resdeploy.check(tmp_path / "two.zip").passed
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((2, *IMAGE), np.float32) for name in shapes}
    np.savez(tmp_path / "x.npz", **arrays)
    report = resdeploy.predict(tmp_path / "two.zip", tmp_path / "x.npz")
    with torch.no_grad():
        expected = module(*(torch.from_numpy(arrays[name]) for name in shapes)).argmax(1)
    assert [one.classes[0].index for one in report.predictions] == expected.tolist()
    np.savez(tmp_path / "half.npz", left=arrays["left"])
    with pytest.raises(ResdeployError, match="takes left, right, each by its name; there is left"):
        resdeploy.predict(tmp_path / "two.zip", tmp_path / "half.npz")
