"""The verdict: one for the library, the command and the self-test."""

import functools
import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper

import resdeploy
from resdeploy.api.selftest import folded_layers
from resdeploy.cli import cli
from resdeploy.export import golden as golden_module
from resdeploy.export import reference as reference_module
from resdeploy.graph.onnx_file import load_onnx
from resdeploy.verify.faults import CONTROLS, FAULTS, Workpiece
from resdeploy.verify.golden_file import save_golden


def moved_by_two_steps(path, out):
    """Copy a model with one weight two float steps away, which no output shows."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1).view(np.uint32)[7] += np.uint32(2)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, out)
    return out


def test_a_weight_moved_by_two_float_steps_fails(exported, model, tmp_path):
    wrong = moved_by_two_steps(exported, tmp_path / "wrong.onnx")
    report = resdeploy.verify(wrong, model, conformance=False)
    assert not report.passed
    assert "a weight of `conv1/Conv` is" in report.reasons[0]
    assert all(verdict.passed for verdict in report.verdicts)  # no output shows it


def test_every_layer_of_evidence_is_there(exported, model):
    stages = []
    report = resdeploy.verify(exported, model, on_stage=stages.append)
    assert report.passed
    assert report.missing == {}
    (verdict,) = report.verdicts
    assert verdict.missing == {}
    assert None not in (report.structure, report.static, verdict.node_local, verdict.conformance)
    assert stages == ["open sessions", "float64 reference", "run", "certify weights and nodes"]


def test_a_reference_may_be_a_model_a_module_a_file_or_another_onnx_file(
    exported, model, checkpoint, tmp_path
):
    unfolded = tmp_path / "unfolded.onnx"
    resdeploy.export(model, unfolded, fold=False)
    wrong = moved_by_two_steps(exported, tmp_path / "wrong.onnx")
    verify = functools.partial(resdeploy.verify, num_inputs=4, conformance=False)
    for reference in (model, model.module, checkpoint, str(checkpoint)):
        assert verify(exported, reference).static.max_ulp < 0.51
        assert not verify(wrong, reference).passed
    report = verify(exported, unfolded)
    assert report.passed
    assert report.static is not None


def test_a_golden_file_says_what_it_cannot_show(exported, model, tmp_path):
    golden = golden_module.golden_for(model, num_inputs=4)
    save_golden(tmp_path / "golden.npz", golden)
    report = resdeploy.verify(exported, golden=tmp_path / "golden.npz", conformance=False)
    assert report.verdict == "AGREES"
    assert not report.passed
    assert set(report.missing) == {"structure", "static", "metadata"}


def test_inputs_may_be_an_array_of_raw_samples(exported, model):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    report = resdeploy.verify(exported, model, inputs=pixels, num_inputs=3, conformance=False)
    assert report.passed
    assert report.golden.inputs == "3 given inputs"


def test_the_first_faulty_node_is_written(exported, model, tmp_path, wrong_kernels):
    found = {}
    report = resdeploy.verify(
        exported,
        model,
        conformance=False,
        artifacts=tmp_path / "faults",
        on_fault=found.__setitem__,
    )
    assert report.verdict == "FAIL"
    assert found["cpu"].is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, resdeploy.ResdeployError, "nothing to verify against"),
        ({"reference": "x", "golden": "y"}, resdeploy.ResdeployError, "give it alone"),
        ({"golden": "y", "num_inputs": 3}, resdeploy.ResdeployError, "give it alone"),
        ({"reference": "x", "data": "digits", "inputs": "y"}, resdeploy.ResdeployError, "give one"),
        ({"reference": "x.onnx", "data": "digits"}, resdeploy.ResdeployError, "seeded inputs"),
        ({"reference": "x", "provider": 7}, TypeError, "provider must be"),
        ({"reference": "x", "provider": [7]}, TypeError, "provider must be"),
        ({"reference": "x", "provider": ()}, ValueError, "provider must name"),
        ({"reference": "x", "precision": "fp16"}, ValueError, "precision must be one of float32"),
        ({"reference": "x", "artifacts": 7}, TypeError, "artifacts must be a path"),
        ({"reference": "x", "data": 7}, TypeError, "data must be a path"),
        ({"reference": "x", "data": "nothing"}, resdeploy.ResdeployError, "no data set 'nothing'"),
    ],
)
def test_wrong_arguments_are_named(exported, arguments, error, message):
    with pytest.raises(error, match=message):
        resdeploy.verify(exported, **arguments)


def test_what_is_no_model_is_a_type_error(exported):
    with pytest.raises(TypeError, match="model must be a path, not Model"):
        resdeploy.verify(onnx.ModelProto(), exported)
    with pytest.raises(TypeError, match="reference must be a path, a Model or a torch module"):
        resdeploy.verify(exported, reference=7)


def test_a_module_in_training_mode_is_refused(exported):
    with pytest.raises(resdeploy.ResdeployError, match="training mode"):
        resdeploy.verify(exported, torch.nn.Linear(3, 3), input_shape=(3,))


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def once(monkeypatch):
    """Evaluate the reference once for all verdicts: it is the same each time."""
    for module, name in ((golden_module, "golden_for"), (reference_module, "reference_graph")):
        made, make = {}, getattr(module, name)

        def remembered(*_, make=make, made=made, **options):
            return made.setdefault("it", None) or made.update(it=make(*_, **options)) or made["it"]

        monkeypatch.setattr(module, name, remembered)


def faulty_files(exported, model, folder):
    """Yield each fault of the self-test, planted into a copy of the model, and each control."""
    proto = load_onnx(exported)
    report = resdeploy.export(model, folder / "again.onnx")
    work = Workpiece(model=proto, layers=folded_layers(model.module, report.fold, proto))
    for number, fault in enumerate((*CONTROLS, *FAULTS)):
        if (planted := fault.plant(work)) is not None:
            path = folder / f"{number}.onnx"
            path.write_bytes(planted.SerializeToString())
            yield fault.name, path


def test_every_fault_gets_the_same_verdict_from_the_library_as_from_the_command(
    exported, model, checkpoint, tmp_path, once
):
    counted = {0: 0, 1: 0, 2: 0}
    for name, path in faulty_files(exported, model, tmp_path):
        arguments = [str(path), "--reference", str(checkpoint), "--no-conformance", "--json"]
        result = CliRunner().invoke(cli, ["verify", *arguments])
        counted[result.exit_code] += 1
        if result.exit_code == 2:
            with pytest.raises(resdeploy.ResdeployError) as error:
                resdeploy.verify(path, model, conformance=False)
            assert str(error.value) in result.stderr, name
            continue
        report = resdeploy.verify(path, model, conformance=False)
        assert result.exit_code == (0 if report.passed else 1), name
        assert json.loads(result.stdout) == json.loads(report.to_json()), name
    assert counted[0] == len(CONTROLS)
    assert counted[1] >= 40


# --- folding a module ----------------------------------------------------------------------------


def test_the_norms_of_a_module_are_folded(model):
    folded = resdeploy.fold_batchnorm(model.module)
    assert folded.report.complete
    assert type(folded.module) is type(model.module)
    norms = [m for m in folded.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == []
    images = torch.randn(4, *model.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(folded.module(images), model.module(images))
