"""What a module returns, in both precisions: nests by name, casts that mean float64, refusals."""

import collections
import copy

import numpy as np
import pytest
import torch
from torch import nn

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export.export import export_onnx
from resdeploy.export.golden import make_golden
from resdeploy.export.reference import reference_graph
from resdeploy.export.run_module import module_outputs
from resdeploy.export.source import SourceModel
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec
from resdeploy.session.batches import run_outputs

Pair = collections.namedtuple("Pair", ["first", "second"])
X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.what = nn.Linear(4, 3), what

    def forward(self, x):
        return self.what(self.linear(x))


def outputs_of(what, dtype=torch.float32):
    return module_outputs(Returns(what).to(dtype).eval(), X, dtype=dtype)


def exported(what, path):
    info = CheckpointInfo(model=ModelSpec(arch="residual_mlp", num_classes=3), preprocess=None)
    source = SourceModel(
        module=Returns(what).eval(), input_shape=(4,), description="a test", info=info
    )
    return source, export_onnx(source, ExportSpec(), path)


NESTS = {
    "tensor": (lambda y: y, ["logits"]),
    "of one": (lambda y: (y,), ["logits"]),
    "tuple": (lambda y: (y, y * 2), ["output_0", "output_1"]),
    "dict in its own order": (lambda y: {"out": y, "aux": y * 2}, ["out", "aux"]),
    "dict of one": (lambda y: {"out": y}, ["out"]),
    "named tuple": (lambda y: Pair(y, y * 2), ["first", "second"]),
    "nest": (
        lambda y: {"maps": [y, y * 2], "head": {"box": y + 1}},
        ["maps.0", "maps.1", "head.box"],
    ),
    "None": (lambda y: {"out": y, "aux": None}, ["out"]),
    "the same twice": (lambda y: {"a": y, "b": y}, ["a", "b"]),
    "a row of numbers": (lambda y: {"score": y[:, 0], "label": y.argmax(1)}, ["score", "label"]),
    "decisions only": (lambda y: y > 0, ["logits"]),
    "the name of the input": (lambda y: {"input": y}, ["input_output"]),
    "a cast": (lambda y: y.double().abs().sqrt().float() @ torch.ones(3, 2), ["logits"]),
}


@pytest.mark.parametrize(("what", "names"), NESTS.values(), ids=NESTS)
def test_a_nest_is_exported_by_its_names(tmp_path, what, names):
    source, report = exported(what, tmp_path / "m.onnx")
    assert report.verification.passed, report.verification.verdicts[0].reasons
    assert [output.name for output in report.outputs] == names
    golden = make_golden(source.module, X, source="s", inputs_description="i", in_detail=False)
    assert [o.name.removesuffix("_output") for o in golden.info.outputs] == [
        name.removesuffix("_output") for name in names
    ]
    reference_graph(source, golden)


CASTS = {
    "double and float": lambda y: y.double().abs().sqrt().float() @ torch.ones(3, 2),
    "to": lambda y: y.to(torch.float64).sin().to(dtype=torch.float32) @ torch.ones(3, 2),
    "type": lambda y: y.double().type("torch.FloatTensor") @ torch.ones(3, 2),
    "type_as": lambda y: (y.double() * 2).type_as(y) @ torch.eye(3),
    "a new tensor": lambda y: y @ torch.linspace(0, 1, 3, dtype=torch.float32),
    "a number": lambda y: y * torch.tensor(0.1),
}


@pytest.mark.parametrize("what", CASTS.values(), ids=CASTS)
def test_casts_to_float32_are_none_in_float64(what):
    (own,), (exact,) = (
        outputs_of(what, dtype).values() for dtype in (torch.float32, torch.float64)
    )
    assert (own.dtype, exact.dtype) == (np.float32, np.float64)
    assert torch.get_default_dtype() is torch.float32
    assert 0 < np.abs(own - exact).max() < 1e-6
    # Nothing was rounded to float32 on the way.
    assert not np.array_equal(exact, exact.astype(np.float32))


@pytest.mark.parametrize(
    "what",
    [
        lambda y: y.half(),
        lambda y: y @ torch.ones(3, 2).half().float().half(),
        lambda y: y.bfloat16(),
    ],
    ids=["half", "half in a product", "bfloat16"],
)
def test_refuses_lower_precision_inside(what):
    with pytest.raises(UnsupportedModelError):
        outputs_of(what, torch.float64)


REFUSALS = {
    "a string": (lambda y: {"out": y, "kind": "logits"}, "'kind' is of type str"),
    "a number": (lambda y: (y, 3), "'output_1' is of type int"),
    "an object": (lambda y: {"out": y, "more": object()}, "'more' is of type object"),
    "complex": (lambda y: torch.complex(y, y), "of type complex64"),
    "a scalar": (lambda y: {"out": y, "loss": y.mean()}, r"'loss' has shape \(\) for a batch"),
    "anchors": (lambda y: (y, torch.zeros(7, 4)), r"'output_1' has shape \(7, 4\) for a batch"),
    "the batch last": (lambda y: y.T, "its first axis is not the batch"),
    "sparse": (lambda y: y.to_sparse(), "sparse"),
    "of its values": (lambda y: y[:, y[0] > 0], "for one sample, and"),
}


@pytest.mark.parametrize(("what", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refuses_by_name_what_is_no_row_for_each_sample(what, words):
    samples = np.concatenate([X, -X, X])  # two batches, whose first samples differ
    samples[8] = -100 * samples[0]
    with pytest.raises(ResdeployError, match=words):
        module_outputs(Returns(what).eval(), samples, dtype=torch.float32)


@pytest.mark.parametrize("what", ["a string", "a number", "complex", "a scalar", "anchors"])
def test_no_file_is_written_of_what_is_refused(tmp_path, what):
    with pytest.raises(ResdeployError):
        exported(REFUSALS[what][0], tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"y": [1, 2]}, "of type list"),
        ({"y": np.array(["a", "b"])}, "of type <U1"),
        ({"y": np.zeros(())}, "its first axis is not the batch"),
    ],
)
def test_a_candidate_is_refused_likewise(outputs, words):
    with pytest.raises(ResdeployError, match=words):
        run_outputs(lambda batch: outputs, X[:2])


def test_a_candidate_whose_outputs_change_is_refused():
    for first, second in (
        ({"y": X[:2]}, {"y": X[:2, :3]}),
        ({"y": X[:2]}, {"y": X[:2].astype(np.float64)}),
        ({"y": X[:2]}, {"z": X[:2]}),
    ):
        answers = iter([first, second])
        with pytest.raises(ResdeployError, match=r"for one sample|depends on its input"):
            run_outputs(lambda batch, answers=answers: next(answers), X[:4], size=2)


def test_the_module_is_left_as_it_was():
    module = Returns(CASTS["a number"]).eval()
    before = copy.deepcopy(module.state_dict())
    make_golden(module, X, source="s", inputs_description="i")
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
