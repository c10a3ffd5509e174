"""Planted faults: every one is caught in a small network, and a blind verdict is found out."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from resdeploy.api import selftest as selftest_module
from resdeploy.api.selftest import selftest
from resdeploy.export.source import SourceModel
from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec
from resdeploy.verify import verdict as verdict_module
from resdeploy.verify.faults import CONTROLS, FAULTS, Fault


@pytest.fixture(scope="module")
def source():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_network(ModelSpec(arch="resnet8_tiny", num_classes=10, options={}))
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
                torch.nn.init.normal_(norm.bias, std=0.3)
        for _ in range(3):
            module(torch.randn(16, 3, 16, 16))
    return SourceModel(
        module=module.eval(), input_shape=(3, 16, 16), description="a test", info=None
    )


@pytest.fixture(scope="module")
def report(source):
    return selftest(source, num_inputs=8, num_threads=2)


def test_there_are_at_least_thirty_kinds_of_fault():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30


def test_every_fault_is_caught_and_named(report):
    assert len(report.faults) >= 40
    assert [f.name for f in report.faults if not f.caught] == []
    assert report.passed


def test_correct_models_pass(report):
    assert len(report.controls) == len(CONTROLS)
    assert [c.name for c in report.controls if c.caught_by] == []


def test_what_has_no_place_here_is_listed(report):
    assert report.not_applicable == (
        "max pooling's padding off by one",
        "a pooling window rounded up",
    )
    assert len(report.faults) + len(report.not_applicable) == len(FAULTS)


def test_fixed_tolerances_miss_what_we_catch(report):
    missed = {
        name: sum(name in fault.accepted_by for fault in report.faults)
        for name in report.tolerances
    }
    assert missed["atol 1e-3"] >= 5
    assert missed["cosine"] >= missed["atol 1e-3"]


@pytest.mark.parametrize(
    ("layer", "fault"),
    [
        ("structure", "a convolution's padding off by one"),
        ("structure", "a ReLU missing"),
        ("static", "bias of one channel off by 64 ulp"),
        ("static", "eps 1e-3 for 1e-5, one layer"),
        ("end_to_end", "input: mean 0.480 for 0.485"),
    ],
)
def test_each_layer_of_evidence_catches_what_it_is_there_for(report, layer, fault):
    (found,) = [f for f in report.faults if f.name == fault]
    assert layer in found.caught_by


def test_only_the_weights_show_a_late_bit_of_one_of_them(report):
    (found,) = [f for f in report.faults if f.name == "one weight: bit 2^-18 flipped"]
    assert found.caught_by == ("static",)
    assert set(found.accepted_by) == set(report.tolerances)


def test_a_blind_verdict_fails_the_selftest(source, monkeypatch):
    monkeypatch.setattr(selftest_module, "FAULTS", FAULTS[:1])
    honest = verdict_module.certify_file

    def blind(model, reference, **options):
        candidate = honest(model, reference, **options)
        return dataclasses.replace(candidate, structure=None, static=None, layers=())

    monkeypatch.setattr(verdict_module, "certify_file", blind)
    report = selftest(source, num_inputs=2, num_threads=2)
    assert not report.passed  # caught end to end, but no layer is named


def test_an_alarm_on_a_correct_model_fails_the_selftest(source, monkeypatch):
    def wrong(work):
        model = onnx.ModelProto()
        model.CopyFrom(work.model)
        tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        array = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return model

    monkeypatch.setattr(selftest_module, "FAULTS", ())
    monkeypatch.setattr(selftest_module, "CONTROLS", (Fault(name="not so correct", plant=wrong),))
    assert not selftest(source, num_inputs=2, num_threads=2).passed


def test_planting_a_fault_leaves_the_model_as_it_was(source, monkeypatch):
    seen = []

    def keep(work):
        seen.append(work.model.SerializeToString(deterministic=True))

    spy = Fault(name="a spy", plant=keep)
    monkeypatch.setattr(selftest_module, "CONTROLS", ())
    monkeypatch.setattr(selftest_module, "FAULTS", (spy, *FAULTS, spy))
    selftest(source, num_inputs=2, num_threads=2)
    assert seen[0] == seen[1]


def test_dropping_a_gamma_of_one_is_no_fault():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_network(ModelSpec(arch="residual_mlp", num_classes=10, options={}))
    fresh = SourceModel(module=module.eval(), input_shape=(40,), description="fresh", info=None)
    report = selftest(fresh, num_inputs=2, num_threads=2)
    assert {"gamma dropped", "beta dropped", "mean dropped"} <= set(report.not_applicable)
    assert report.passed


def test_a_model_that_cannot_even_run_is_caught(source, monkeypatch):
    def cut(work):
        model = onnx.ModelProto()
        model.CopyFrom(work.model)
        del model.graph.node[5]
        return model

    monkeypatch.setattr(selftest_module, "FAULTS", (Fault(name="a node cut out", plant=cut),))
    monkeypatch.setattr(selftest_module, "CONTROLS", ())
    (found,) = selftest(source, num_inputs=2, num_threads=2).faults
    assert "end_to_end" in found.caught_by
    assert found.accepted_by == ()


def test_outputs_of_another_shape_are_caught(source, monkeypatch):
    def doubled(work):
        model = onnx.ModelProto()
        model.CopyFrom(work.model)
        name = model.graph.output[0].name
        model.graph.node[-1].output[0] = "half"
        model.graph.node.append(onnx.helper.make_node("Concat", ["half", "half"], [name], axis=1))
        del model.graph.output[0].type.tensor_type.shape.dim[:]
        model.graph.output[0].type.tensor_type.ClearField("shape")
        return model

    monkeypatch.setattr(selftest_module, "FAULTS", (Fault(name="twice", plant=doubled),))
    monkeypatch.setattr(selftest_module, "CONTROLS", ())
    (found,) = selftest(source, num_inputs=2, num_threads=2).faults
    assert "end_to_end" in found.caught_by
