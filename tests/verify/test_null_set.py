"""The null set: right implementations of many kinds of network are not judged wrong; faults are."""

import copy
import itertools

import numpy as np
import onnx
import pytest
import torch
from null_networks import NETWORKS, build

from resdeploy.errors import UnsupportedModelError
from resdeploy.export import golden as golden_module
from resdeploy.export import rounding, variance_rules
from resdeploy.export.export import export_onnx
from resdeploy.export.golden import golden_for, run_module
from resdeploy.export.source import SourceModel
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.run import run_session
from resdeploy.session.session import open_session
from resdeploy.verify.certify import certify_file, certify_run
from resdeploy.verify.conformance import check_conformance
from resdeploy.verify.end_to_end import judge_end_to_end

# One for each way in which float32's noise departs from that of a stack of convolutions.
_FAST = (
    *("attention", "upsample, bilinear", "large map of one value", "large means subtracted"),
    *("layer norm", "subnormal outputs", "huge outputs", "nearly constant outputs", "one output"),
    *("softmax(100 x)", "sigmoid(100 x)", "log-softmax", "added to itself"),
)


def source_of(name, seed=0):
    return SourceModel(
        module=build(name, seed), input_shape=NETWORKS[name][1], description=name, info=None
    )


def written(source, path, opset):
    """Write a network; False where the opset has no operator for it."""
    try:
        report = export_onnx(source, ExportSpec(opset=opset), path, force=True)
    except UnsupportedModelError:
        return False
    assert report.verification.passed, report.verification.verdicts[0].comparison.reasons
    return True


def reasons_against(source, path, *, opsets, levels, threads, num_inputs=None):
    """All that is held against right implementations of a network, and the number of verdicts."""
    golden = golden_for(source, num_inputs=num_inputs)
    assert golden.sigma is not None, golden.info.sigma_missing
    found, num_verdicts = [], 0
    for opset in opsets:
        if not written(source, path, opset):
            continue
        for level, num_threads in itertools.product(levels, threads):
            session = open_session(path, SessionSpec(num_threads=num_threads, graph_level=level))
            found += judge_end_to_end(run_session(session, golden.inputs), golden).reasons
            num_verdicts += 1
        found += check_conformance(path, golden, session).reasons
        layers = certify_run(certify_file(onnx.load(path), None), golden.inputs, runner)
        if not isinstance(layers, str):  # one without layers
            found += layers[0].reasons
    return found, num_verdicts


def runner(model, inputs):
    return open_session(model, SessionSpec(num_threads=1, graph_level="extended")).run(inputs)


@pytest.mark.parametrize("name", _FAST)
def test_a_right_implementation_is_not_judged_wrong(tmp_path, name):
    found, num_verdicts = reasons_against(
        source_of(name), tmp_path / "m.onnx", opsets=(18,), levels=("disabled", "all"), threads=(1,)
    )
    assert num_verdicts == 2
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_none_is_at_any_opset_level_and_number_of_threads(tmp_path, name, seed):
    found, num_verdicts = reasons_against(
        source_of(name, seed),
        tmp_path / "m.onnx",
        opsets=(17, 18, 20),
        levels=("disabled", "basic", "extended", "all"),
        threads=(1, 2),
        # T asks for 128; deep chains take long.
        num_inputs=None if "chain" in name else 128,
    )
    assert num_verdicts >= 16
    assert found == []


# --- what a rule is there for --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "attribute", "broken", "name"),
    [
        (rounding, "drift", lambda terms, _: 0 * terms[..., 0], "large map of one value"),
        (variance_rules, "SMALLEST", 0.0, "subnormal outputs"),
        (golden_module, "_checked_by_draws", lambda *given: (given[-1], None), "added to itself"),
    ],
)
def test_without_it_a_right_implementation_is_judged_wrong(
    tmp_path, monkeypatch, module, attribute, broken, name
):
    source, path = source_of(name), tmp_path / "m.onnx"
    export_onnx(source, ExportSpec(opset=18), path)
    session = open_session(path, SessionSpec(num_threads=1, graph_level="all"))

    def reasons():
        golden = golden_for(source)
        return judge_end_to_end(run_session(session, golden.inputs), golden).reasons

    assert reasons() == ()
    monkeypatch.setattr(module, attribute, broken)
    assert reasons()


# --- faults are still seen -----------------------------------------------------------------------


def with_parameter(change, suffix):
    """The outputs of a copy whose last parameter of this name is changed."""

    def plant(_, source, inputs):
        faulty = copy.deepcopy(source.module)
        parameters = [p for name, p in faulty.named_parameters() if name.endswith(suffix)]
        with torch.no_grad():
            change(parameters[-1])
        return run_module(faulty, inputs, dtype=torch.float32)

    return plant


FAULTS = {
    "outputs times 1.0001": lambda outputs, *_: outputs * np.float32(1 + 1e-4),
    "a bias off by a thousandth": with_parameter(lambda bias: bias[0].mul_(1.001), "bias"),
    "a channel dropped": with_parameter(lambda weight: weight[0].zero_(), "weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "name",
    ["convolutions", "gelu", "transformer block", "u-net", "large map", "layer norm", "softmax"],
)
def test_a_fault_is_seen_in_an_ordinary_network(name, fault):
    source = source_of(name)
    golden = golden_for(source)
    outputs = run_module(source.module, golden.inputs, dtype=torch.float32)
    assert judge_end_to_end(outputs, golden).passed
    assert judge_end_to_end(FAULTS[fault](outputs, source, golden.inputs), golden).reasons
