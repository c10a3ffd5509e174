"""Probing: what starts is told from what is listed, and the tiny model is what it says."""

from pathlib import Path

import onnxruntime
import pytest
from onnx import checker, load_from_string, printer

from resdeploy.machine import environment, probe
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.machines import ProbeReport
from resdeploy.session.providers import PROVIDERS


@pytest.fixture(scope="module")
def report():
    return probe.probe()


def test_the_embedded_model_is_a_small_convolution():
    model = load_from_string(probe.TINY_MODEL)
    checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (7, 13)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]
    assert len(probe.TINY_MODEL) < 200, printer.to_text(model)


def test_every_provider_is_tried_and_the_cpu_starts(report):
    by_name = {probed.provider: probed for probed in report.providers}
    assert list(by_name)[: len(PROVIDERS)] == list(PROVIDERS)
    assert by_name["cpu"].starts
    assert set(report.available_providers) <= {probed.ort_name for probed in report.providers}
    for probed in report.providers:
        assert probed.starts == (probed.why_not is None)


def test_a_listed_provider_that_does_not_start_says_which_library(report, no_cuda):
    (cuda,) = (probed for probed in report.providers if probed.provider == "cuda")
    assert not cuda.starts
    assert "missing" in cuda.why_not or "without" in cuda.why_not
    assert "onnxruntime-gpu" in cuda.fix


def test_a_provider_that_computes_something_else_is_not_one_that_starts(monkeypatch):
    monkeypatch.setattr(probe.np, "maximum", lambda x, _: x + 1)
    probed = probe.probe_provider(PROVIDERS["cpu"])
    assert not probed.starts
    assert "something else" in probed.why_not


def test_the_record_survives_its_file(report):
    assert load_json(ProbeReport, dump_json(report), where="x") == report
    assert report.runtime_version == onnxruntime.__version__
    assert "/" not in " ".join((*report.environment.versions, report.runtime))


def test_what_an_old_runtime_lacks_is_said(monkeypatch):
    monkeypatch.delattr(onnxruntime, "preload_dlls", raising=False)
    assert any("1.21" in lack for lack in probe.probe().lacks)


X86 = "processor: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\nmodel name : x\n"


@pytest.mark.parametrize(
    ("machine", "text", "has", "lacks"),
    [
        ("x86_64", X86, {"avx2", "avx512", "avx512_vnni"}, {"amx_int8", "avx_vnni"}),
        ("AMD64", X86, {"avx2"}, {"amx_bf16"}),
        ("aarch64", "Features : fp asimd asimddp i8mm\n", {"neon", "i8mm"}, {"sve", "sme"}),
        # What the little cores lack, no code that may run on them can use.
        ("aarch64", "Features : asimd sve\nFeatures : asimd\n", {"neon"}, {"sve"}),
    ],
)
def test_the_cpus_features_are_read_from_the_kernel(monkeypatch, machine, text, has, lacks):
    monkeypatch.setattr(environment.platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    found = environment.read_cpu_features()
    assert {name for name in has if found[name]} == has
    assert {name for name in lacks if not found[name]} == lacks


def test_where_the_system_does_not_say_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(environment.platform, "machine", lambda: "riscv64")
    assert environment.read_cpu_features() == {}
    monkeypatch.setattr(environment.platform, "machine", lambda: "arm64")

    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert environment.read_cpu_features() == {}
