"""Each command as a user runs it: what it prints, what it writes, how it exits."""

import json
import re

import numpy as np
import onnx
import pytest
import torch

from resdeploy.export.golden import golden_for
from resdeploy.export.source import load_source
from resdeploy.schema.benchmarks import BenchComparison, BenchReport
from resdeploy.schema.bundles import CheckReport, Manifest
from resdeploy.schema.codec import load_json
from resdeploy.schema.exports import ExportReport
from resdeploy.schema.folds import FoldReport
from resdeploy.schema.recipes import SourceSpec
from resdeploy.schema.verdicts import SelftestReport, VerifyReport
from resdeploy.verify.golden_file import save_golden


def test_fold_bn_prints_each_site_and_writes_a_checkpoint(run, checkpoint, tmp_path):
    result = run("fold-bn", checkpoint, "-o", tmp_path / "folded.safetensors")
    assert result.exit_code == 0, result.output
    assert "7 folded, 0 refused, every weight within 0.50 ulp" in result.stdout
    folded = load_source(SourceSpec(path=str(tmp_path / "folded.safetensors")))
    original = load_source(SourceSpec(path=str(checkpoint)))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.module.modules())
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(folded.module(x), original.module(x), rtol=1e-4, atol=1e-4)


def test_a_folded_checkpoint_goes_wherever_the_original_goes(run, checkpoint, tmp_path):
    folded = tmp_path / "folded.safetensors"
    run("fold-bn", checkpoint, "-o", folded)
    assert run("export", folded, "-o", tmp_path / "folded.onnx").exit_code == 0
    result = run("verify", tmp_path / "folded.onnx", "--reference", checkpoint)
    assert result.exit_code == 0, result.output
    assert "0 folded, 0 refused" in run("fold-bn", folded, "--dry-run").stdout


def test_fold_bn_dry_run_writes_nothing(run, checkpoint, tmp_path):
    before = sorted(tmp_path.iterdir())
    result = run("fold-bn", checkpoint, "--dry-run", "--json")
    assert load_json(FoldReport, result.stdout, where="stdout").complete
    assert sorted(tmp_path.iterdir()) == before


def test_fold_bn_folds_layernorms_where_that_is_asked_for(run, tmp_path, monkeypatch):
    (tmp_path / "ln_net.py").write_text(
        "import torch\n"
        "def net():\n"
        "    norm = torch.nn.LayerNorm(6)\n"
        "    norm.weight.data.mul_(2)\n"
        "    return torch.nn.Sequential(norm, torch.nn.Linear(6, 3)).eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ("fold-bn", "--model", "ln_net:net", "--input", "6", "--dry-run")
    assert "0 folded" in run(*arguments).stdout
    assert "1 folded, 0 refused" in run(*arguments, "--layernorm").stdout


def test_selftest_shows_what_catches_each_fault(run, checkpoint):
    result = run("selftest", checkpoint, "--num-inputs", 2, "--json")
    assert result.exit_code == 0, result.output
    report = load_json(SelftestReport, result.stdout, where="stdout")
    text = run("selftest", checkpoint, "--num-inputs", 2).stdout
    assert f"{len(report.faults)} of {len(report.faults)} faults caught" in text
    assert "correct model, as exported: PASS" in text


def test_fold_bn_strict_exits_1_when_a_site_is_refused(run, tmp_path):
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        arguments = ("fold-bn", "--model", "my_net:net", "--input", "3,8,8", "--dry-run")
        assert run(*arguments).exit_code == 0
        result = run(*arguments, "--strict")
    assert result.exit_code == 1
    assert "refused: its input comes from `0/Relu` (Relu)" in result.stdout


def test_fold_bn_wants_an_output_or_a_dry_run(run, checkpoint):
    assert run("fold-bn", checkpoint).exit_code == 2
    assert run("fold-bn", checkpoint, "-o", "x.safetensors", "--dry-run").exit_code == 2


def test_export_reports_fold_file_and_verdict(run, checkpoint, tmp_path):
    result = run("export", checkpoint, "-o", tmp_path / "model.onnx")
    assert result.exit_code == 0, result.output
    fold, export, verify = result.stdout.splitlines()
    assert fold.startswith("fold     7 folded")
    assert "opset 18, batch dynamic" in export
    assert verify.startswith("verify   cpu: PASS  R = ")


def test_export_as_json_is_one_record(run, checkpoint, tmp_path):
    result = run("export", checkpoint, "-o", tmp_path / "model.onnx", "--json", "--batch", "3")
    report = load_json(ExportReport, result.stdout, where="stdout")
    assert report.spec.batch == 3
    assert report.inputs[0].shape == (3, 1, 8, 8)


@pytest.mark.parametrize("batch", ["0", "-1", "many"])
def test_export_refuses_a_batch_that_is_none(run, checkpoint, tmp_path, batch):
    result = run("export", checkpoint, "-o", tmp_path / "model.onnx", "--batch", batch)
    assert result.exit_code == 2
    assert "neither dynamic nor a number" in result.stderr


def test_verify_passes_on_real_data_and_states_what_it_used(run, checkpoint, exported):
    result = run("verify", exported, "--reference", checkpoint, "--data", "digits")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("PROVED\n")
    assert "inputs: all 359 held-out samples of digits" in result.stdout
    assert "CPUExecutionProvider" in result.stdout


def test_verify_exits_1_when_the_numbers_differ(run, checkpoint, exported):
    model = onnx.load(exported)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("conv1.bias"))
    values = onnx.numpy_helper.to_array(tensor) + np.float32(1e-3)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name=tensor.name))
    onnx.save(model, exported)
    result = run("verify", exported, "--reference", checkpoint)
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "times the noise of float32 arithmetic" in result.stdout


def test_verify_says_what_it_judged_and_what_it_could_not(run, checkpoint, exported):
    result = run("verify", exported, "--reference", checkpoint, "--num-inputs", "4", "--json")
    (verdict,) = load_json(VerifyReport, result.stdout, where="stdout").verdicts
    comparison = verdict.comparison
    assert comparison.z_rms < 1
    assert comparison.z_max < 4
    assert comparison.precision.found == "float32"
    assert comparison.missing == ("T: takes 128 inputs, and there are 4",)
    result = run("verify", exported, "--reference", checkpoint, "--num-inputs", "4")
    assert "cpu: not judged: T: takes 128 inputs, and there are 4" in result.stdout


def test_lower_precision_is_a_claim_to_make(run, checkpoint, exported):
    model = onnx.load(exported)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            rounded = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, name=tensor.name))
    onnx.save(model, exported)
    arguments = ("verify", exported, "--reference", checkpoint, "--num-inputs", "16")
    result = run(*arguments)
    assert result.exit_code == 1
    assert "the error is that of float16 arithmetic (R = " in result.stdout
    assert "computes in float32: with float16 weights" in result.stdout
    result = run(*arguments, "--precision", "float16")
    assert result.exit_code == 0, result.output
    assert "times the noise of float16, as claimed" in result.stdout


def test_what_is_better_than_claimed_passes_and_is_called_so(run, checkpoint, exported):
    result = run(
        "verify", exported, "--reference", checkpoint, "--num-inputs", "4", "--precision", "tf32"
    )
    assert result.exit_code == 0, result.output
    assert "as claimed; it is better: float32" in result.stdout


def test_verify_needs_no_torch_with_a_golden_file(run, checkpoint, exported, tmp_path):
    golden = golden_for(load_source(SourceSpec(path=str(checkpoint))), num_inputs=3)
    save_golden(tmp_path / "golden.npz", golden)
    result = run("verify", exported, "--golden", tmp_path / "golden.npz", "--json")
    report = load_json(VerifyReport, result.stdout, where="stdout")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["verdict"] == report.verdict == "AGREES"
    golden = ("--golden", tmp_path / "golden.npz", "--accept", "outputs")
    assert run("verify", exported, *golden).exit_code == 0
    assert report.golden.num_inputs == 3


@pytest.mark.parametrize(
    "extra",
    [
        ("--reference", __file__),
        *(("--data", "digits"), ("--arch", "resnet18"), ("--inputs", ".")),
    ],
)
def test_a_golden_file_excludes_what_it_would_ignore(run, exported, extra):
    result = run("verify", exported, "--golden", __file__, *extra)
    assert result.exit_code == 2
    assert "has its own inputs and reference" in result.stderr


def test_bench_keeps_every_latency_in_its_record(run, exported):
    result = run("bench", exported, "--runs", 30, "--warmup", 5, "--batch", 2, "--json")
    (record,) = load_json(BenchReport, result.stdout, where="stdout").results
    assert len(record.latencies_ns) == 30
    assert len(record.warmup_ns) == 5
    assert record.input_shape == (2, 1, 8, 8)


def test_tf32_is_off_unless_asked_for(run, exported):
    off, on = (
        load_json(
            BenchReport,
            run("bench", exported, "--runs", 1, "--json", *flag).stdout,
            where="stdout",
        ).results[0]
        for flag in ((), ("--tf32",))
    )
    assert not off.spec.session.use_tf32
    assert on.spec.session.use_tf32


def test_bench_prints_percentiles(run, exported):
    result = run("bench", exported, "--runs", 30)
    assert result.exit_code == 0, result.output
    for figure in ("p50", "p90", "p99", "throughput", "first run", "stable"):
        assert figure in result.stdout
    flat = " ".join(result.stdout.split())
    assert "too few runs for p99: it takes some 368; at least" in flat


def test_bench_prints_one_line_for_each_of_a_sweep(run, exported):
    result = run("bench", exported, "--runs", 5, "--warmup", 1, "--batch", "1,4", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "samples/s" in result.stdout
    assert result.stdout.count("MB") == 2
    assert result.stdout.count("too few runs") >= 2


def test_a_comparison_says_the_word_for_each_model_that_came_in_a_bundle(
    run, exported, tmp_path, write_flat_bundle
):
    proved = write_flat_bundle(tmp_path / "proved", None)
    text = (
        '<ir_version: 8, opset_import: ["": 18]> flat (float[N, 1, 4, 4] x) => (float[N, 16] y)'
        " { f = Flatten (x) y = Add (f, f) }"
    )
    wrong = write_flat_bundle(tmp_path / "wrong", None, model_text=text)
    options = ("--runs", 10, "--warmup", 1, "--blocks", 3)
    result = run("bench", proved, "--against", wrong, *options, "--json")
    comparison = load_json(BenchComparison, result.stdout, where="stdout")
    assert (comparison.candidate.verdict, comparison.baseline.verdict) == ("PROVED", "FAIL")
    shown = run("bench", proved, "--against", proved / "model.onnx", *options).stdout
    assert "model.onnx (PROVED) on cpu" in " ".join(shown.split())
    assert shown.count("PROVED") == 1


def test_bench_against_its_own_other_setting_and_a_limit(run, exported):
    options = ("--runs", 20, "--warmup", 5, "--blocks", 3, "--fail-if-slower", "3%", "--json")
    slow = ("--graph-level", "disabled", "--batch", 16, "--threads", 1)
    result = run("bench", exported, *slow, "--against-option", "graph-level=all", *options)
    comparison = load_json(BenchComparison, result.stdout, where="stdout")
    assert comparison.candidate.spec.session.graph_level == "disabled"
    assert comparison.baseline.spec.session.graph_level == "all"
    assert comparison.max_slowdown == 0.03
    # Whatever this machine does meanwhile, the exit code is that of the record.
    assert result.exit_code == (0 if comparison.passed else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "1,x"), "is not a list of numbers"),
        (("--threads", "0"), "is not a list of numbers"),
        (("--fail-if-slower", "3%"), "needs --against"),
        (("--against", "o.onnx", "--fail-if-slower", "3"), "not a percentage"),
        (("--against", "o.onnx", "--batch", "1,2"), "takes one --batch"),
        (("--against", "o.onnx", "--profile"), "leave out --against"),
        (("--against", "o.json", "--against-option", "threads=1"), "not for a saved result"),
        (("--against-option", "batch=2"), "is not one of"),
        (("--against-option", "threads=none"), "is not one of"),
        (("--scenario", "server"), "needs a rate"),
        (("--qps", "5"), "needs a rate"),
        (("--scenario", "server", "--qps", "0"), "not in the range x>0"),
        (("--profile", "--provider", "cuda"), "cannot be timed on cuda"),
    ],
)
def test_bench_refuses_options_that_do_not_go_together(
    run, tmp_path, monkeypatch, options, message
):
    for name in ("model.onnx", "o.onnx", "o.json"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    result = run("bench", "model.onnx", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_bundle_then_check(run, checkpoint, tmp_path):
    bundle = tmp_path / "bundle"
    result = run(
        "bundle", checkpoint, "-o", bundle, "--data", "digits", "--num-inputs", 20, "--json"
    )
    assert result.exit_code == 0, result.output
    manifest = load_json(Manifest, result.stdout, where="stdout")
    assert manifest.num_labels == 10
    assert manifest.export.fold.complete
    checked = run("check", bundle, "--json")
    assert checked.exit_code == 0, checked.output
    assert load_json(CheckReport, checked.stdout, where="stdout").passed


def test_check_exits_2_for_a_damaged_bundle(run, checkpoint, tmp_path):
    bundle = tmp_path / "bundle"
    run("bundle", checkpoint, "-o", bundle, "--num-inputs", 2)
    labels = bundle / "labels.txt"
    labels.write_text(labels.read_text().replace("3", "8"))
    result = run("check", bundle)
    assert result.exit_code == 2
    assert "labels.txt" in result.stderr
    assert result.stdout == ""


def test_a_run_that_is_piped_prints_a_line_for_each_stage_and_what_comes_next(
    run, checkpoint, tmp_path
):
    out = tmp_path / "model.onnx"
    *stages, last = run("export", checkpoint, "-o", out).stderr.splitlines()
    assert stages[0].endswith(" s  load")
    assert all(re.fullmatch(r"export: +\d+\.\d s  [a-z].*", line) for line in stages)
    assert len(set(stages)) == len(stages) > 3
    assert last == f"next: resdeploy verify {out} --reference {checkpoint}"


def test_with_json_nothing_comes_next(run, exported):
    assert "next:" not in run("bench", exported, "--runs", 1, "--json").stderr


def test_records_are_json_without_nan(run, exported, checkpoint):
    text = run("verify", exported, "--reference", checkpoint, "--json").stdout
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_verify_says_which_kernels_ran_and_in_which_ways_it_was_called(run, exported, checkpoint):
    result = run("verify", exported, "--reference", checkpoint)
    assert result.exit_code == 0, result.output
    assert "of CPUExecutionProvider, 0 copies" in result.stdout
    assert "batches 2, 3, 7, 32: at most" in result.stdout
    assert "graph levels disabled, basic, extended: at most" in result.stdout
    assert "stress constant, subnormal, extreme: at most" in result.stdout


def test_verify_leaves_the_other_ways_out_on_request(run, exported, checkpoint):
    arguments = ("verify", exported, "--reference", checkpoint, "--no-conformance", "--json")
    report = load_json(VerifyReport, run(*arguments).stdout, where="stdout")
    (verdict,) = report.verdicts
    assert verdict.conformance is None
    assert verdict.placement.passed


def test_verify_with_conformance_makes_a_record_that_can_be_read_again(run, exported, checkpoint):
    result = run("verify", exported, "--reference", checkpoint, "--json")
    (verdict,) = load_json(VerifyReport, result.stdout, where="stdout").verdicts
    assert verdict.conformance.passed
    assert set(verdict.conformance.levels) == {"disabled", "basic", "extended"}


@pytest.mark.openvino
def test_verify_on_openvino_in_float32(run, exported, checkpoint):
    arguments = ("verify", exported, "--reference", checkpoint, "--provider", "openvino")
    assert run(*arguments, "--openvino-precision", "f32").exit_code == 0
    # What it does by itself depends on the CPU, which is the point of asking.
    assert run(*arguments).exit_code in (0, 1)
