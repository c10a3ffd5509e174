"""Runners: what is in the table, what each needs, and two of different kinds timed in turn."""

import dataclasses
import importlib
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import parser

from resdeploy.bench import runners
from resdeploy.bench.in_turn import time_in_turn, time_those_that_run
from resdeploy.bench.runners import RUNNERS, activate, find_runner
from resdeploy.cli import cli
from resdeploy.errors import EnvironmentLacksError, MissingExtraError, ResdeployError
from resdeploy.schema.benchmarks import BenchComparison, BenchSpec, RunnerSpec
from resdeploy.schema.codec import load_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.verify.golden_file import Golden, save_golden

SPEC = BenchSpec(session=SessionSpec(num_threads=1), num_warmup=2, max_warmup=2, num_runs=5)

FACTORY = """
import torch

class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x

class Broken(torch.nn.Module):
    def forward(self, x):
        raise KeyError("of the user")
"""


@pytest.fixture
def model(tmp_path):
    text = '<ir_version: 8, opset_import: ["": 18]> m (float[N, 3] x) => (float[N, 3] y)'
    path = tmp_path / "doubled.onnx"
    path.write_bytes(parser.parse_model(f"{text} {{ y = Add(x, x) }}").SerializeToString())
    return path


def by(name):
    return dataclasses.replace(SPEC, runner=RunnerSpec(name=name))


def write_golden(path, factor):
    inputs = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    golden = Golden(
        inputs=inputs,
        reference=factor * inputs.astype(float),
        noise_l2=np.zeros(2),
        labels=None,
        info=GoldenInfo(source="s", inputs="i", num_inputs=2),
    )
    save_golden(path, golden)
    return path


@pytest.mark.parametrize("name", RUNNERS)
def test_every_entry_leads_to_a_function(name):
    module, _, function = RUNNERS[name].activate.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_an_unknown_runner_is_refused_by_name():
    with pytest.raises(ResdeployError, match="no runner 'tensorflow'") as caught:
        find_runner("tensorflow")
    assert "openvino" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "kind", "fix"),
    [
        ("torch-compile", MissingExtraError, "[export]"),
        ("openvino", EnvironmentLacksError, "pip install openvino"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_the_fix(model, monkeypatch, name, kind, fix):
    monkeypatch.setattr(runners.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(kind, match="is not installed") as caught:
        activate(model, by(name))
    assert fix in caught.value.fix


def test_one_that_fails_is_left_out_and_the_others_are_timed(model, tmp_path):
    golden = write_golden(tmp_path / "golden.npz", factor=2)
    ours, gone, defaults = time_those_that_run(
        [(model, SPEC), (tmp_path / "gone.onnx", SPEC), (model, by("onnxruntime"))],
        golden=golden,
        num_bursts=2,
        last_first=True,
    )
    assert "no such model file" in str(gone)
    for one in (ours, defaults):
        assert [len(burst) for burst in one.bursts_ns] == [2, 3]
        assert one.bound_bursts_ns == ()
        assert one.side.rel_l2 == 0
    assert ours.side.session.spec == SPEC.session
    wrong = write_golden(tmp_path / "wrong.npz", factor=3)
    (seen,) = time_those_that_run([(model, SPEC)], golden=wrong, num_bursts=2)
    assert seen.side.rel_l2 == pytest.approx(1 / 3)


def test_one_that_does_not_answer_in_time_is_ended(model, tmp_path):
    options = {"golden": write_golden(tmp_path / "golden.npz", factor=2), "num_bursts": 2}
    (late,) = time_those_that_run([(model, SPEC)], limit_s=0.01, **options)
    assert "no answer within 0 s" in str(late)
    (never,) = time_those_that_run([(model, SPEC)], all_started_s=0.0, **options)
    assert "no time to start it" in str(never)


def test_the_interpreter_of_a_runner_is_used_and_not_recorded(model, tmp_path):
    marker = tmp_path / "was-here"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntouch {marker}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    spec = dataclasses.replace(SPEC, runner=RunnerSpec(python=str(python)))
    (timed,) = time_in_turn([(model, spec)], prove_placement=False, num_bursts=2)
    assert marker.exists()
    assert timed.side.spec == SPEC


# --- bench --against RUNNER:MODEL ----------------------------------------------------------------


@pytest.fixture
def bench(model, tmp_path, monkeypatch):
    (tmp_path / "of_the_user.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        command = ["bench", str(model), "--runs", "10", "--blocks", "3", "--threads", "1"]
        return CliRunner().invoke(cli, [*command, *arguments])

    return run


def test_a_model_is_timed_against_the_network_in_torch(bench):
    factory = ("--model", "of_the_user:Doubled", "--input", "3")
    result = bench("--against", "torch:", *factory, "--json")
    assert result.exit_code == 0, result.output
    found = load_json(BenchComparison, result.stdout, where="bench")
    assert found.baseline.session.runtime == "torch"
    assert found.baseline.model is None
    assert found.baseline.options["num_threads"] == "1"
    assert found.candidate.session.runtime.startswith("onnxruntime")
    assert json.loads(result.stdout)["baseline"]["spec"]["runner"]["source"]["factory"]


def test_what_the_network_raises_is_an_error_that_names_it(bench):
    result = bench("--against", "torch:", "--model", "of_the_user:Broken", "--input", "3")
    assert result.exit_code == 2
    assert "torch cannot run this network: KeyError: 'of the user'" in result.output
    assert "of_the_user:Broken" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--against", "openvino:"), "needs a file"),
        (("--against", "openvino:m.onnx", "--arch", "resnet18"), "takes ONNX files"),
        (("--against", "m.onnx", "--arch", "resnet18"), "for a model that needs none"),
        (("--against", "torch:w.pth", "--against-option", "tf32=on"), "but its threads"),
        (("--against", "torch:w.pth", "--on", "pi@kitchen"), "leave out --on"),
        (("--against", "tensorflow:m.pb"), "no runner 'tensorflow'"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_timed(bench, arguments, words):
    result = bench(*arguments)
    assert result.exit_code == 2
    assert words in result.output
