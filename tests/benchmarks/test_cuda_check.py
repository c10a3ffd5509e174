"""`python -m benchmarks.cuda` on the CPU: every part of it but the launch on a GPU."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.cuda.models import Files
from benchmarks.cuda.plan import BATCHES, NETWORKS, cases_for, choose, peers_of, settings_of
from benchmarks.cuda.records import (
    Case,
    Ceilings,
    GpuReport,
    LayerWork,
    NetworkWork,
    Outcome,
    RunSpec,
    Timed,
)
from benchmarks.cuda.roofline import bound_of, work_of
from benchmarks.cuda.run import Limits, Store, carry_out, run_case
from benchmarks.cuda.table import page_of, ratios_of
from resdeploy.bench.in_turn import time_those_that_run
from resdeploy.bench.runners import RUNNERS
from resdeploy.bench.session_runner import replace_options
from resdeploy.export.source import load_source
from resdeploy.machine.environment import read_environment
from resdeploy.schema.benchmarks import BenchSpec, RunnerSpec
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.recipes import SourceSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session import providers

REPOSITORY = Path(__file__).parents[2]
SPEC = RunSpec(provider="cpu", side=8, num_inputs=4, num_runs=8)
NETWORK = "resnet8_tiny"
OPTIONS = (
    *("--provider", "cpu", "--networks", NETWORK, "--side", "8", "--inputs", "4"),
    *("--runs", "8", "--batches", "1", "--blocks", "2", "--skip-peer", "torch"),
)
CASES = cases_for("cpu", [NETWORK], [1], 2)


def command(*arguments):
    return [sys.executable, "-m", "benchmarks.cuda", *map(str, arguments)]


def check(*arguments, **options):
    return subprocess.run(
        command(*arguments), cwd=REPOSITORY, capture_output=True, text=True, **options
    )


def read(folder):
    return load_json(GpuReport, (folder / "report.json").read_bytes(), where="report")


def by_title(report):
    return {outcome.case.title: outcome for outcome in report.outcomes}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of one whole run, and what it printed."""
    folder = tmp_path_factory.mktemp("gpu-check") / "out"
    done = check(*OPTIONS, "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.slow
def test_every_case_is_done_and_stands_in_the_report(whole):
    report = read(whole[0])
    assert [o.case for o in report.outcomes] == CASES
    assert all(o.passed and o.duration_s > 0 for o in report.outcomes)
    assert report.spec == SPEC
    assert load_json(GpuReport, dump_json(report), where="again") == report


@pytest.mark.slow
def test_the_verdicts_are_those_of_verify(whole):
    found = by_title(read(whole[0]))
    for form in ("float32", "float16", "int8"):
        (verdict,) = found[f"verify {NETWORK} {form} NCHW launches"].verify.verdicts
        assert verdict.comparison.precision.found == form
        assert not verdict.placement.strays
        assert verdict.placement.num_copies == 0
        assert verdict.conformance.deterministic
        thorough = form == "float32"
        assert (verdict.node_local is not None) == thorough
        assert bool(verdict.conformance.batches) == thorough
    report = found[f"verify {NETWORK} float32 NCHW launches"].verify
    assert report.structure.isomorphic
    assert report.static.passed


@pytest.mark.slow
def test_a_wrong_network_would_fail(whole, tmp_path):
    """The weights of one layer are a thousandth too large: more than any rounding."""
    import onnx
    from onnx import numpy_helper

    models = tmp_path / "models"
    shutil.copytree(whole[0] / "models", models)
    path = Files.of(models, NETWORK, SPEC).model("float32")
    model = onnx.load(path)
    weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.001, weight.name))
    onnx.save(model, path)
    (case,) = choose(CASES, ["verify float32"])
    store = Store.open(tmp_path / "out", SPEC)
    carry_out([case], store, models, Limits(case_s=120), say=lambda line: None)
    assert not store.report.passed
    assert "FAIL" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_every_layer_of_the_networks_counts(whole):
    """A residual branch that is multiplied by zero would hide whatever is wrong in it."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(Files.of(whole[0] / "models", NETWORK, SPEC).model("float32"))
    for weight in model.graph.initializer:
        if len(weight.dims) == 4:
            assert abs(numpy_helper.to_array(weight)).max() > 0.01, weight.name


@pytest.mark.slow
def test_latencies_are_raw_with_and_without_copies_and_with_their_placement(whole):
    outcome = by_title(read(whole[0]))[f"bench {NETWORK} int8 NCHW launches batch=1"]
    assert len(outcome.bench.latencies_ns) == len(outcome.bench.bound_ns) == 8
    assert outcome.bench.placement.passed


@pytest.mark.slow
def test_the_page_has_a_table_of_each_kind(whole):
    page = (whole[0] / "report.md").read_text()
    for words in (
        f"{len(CASES)} cases run, 0 left, 0 failed",
        f"| {NETWORK} | float32 | NCHW launches | pass |",
        "of roofline",
        "time over that of “as chosen”, 2 blocks",
        "How often each is faster or slower",
        "ONNX Runtime's own defaults, float16",
    ):
        assert words in page
    assert "What failed" not in page


@pytest.mark.slow
def test_what_is_done_is_not_run_again(whole, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole[0], folder)
    assert f"{len(CASES)} cases, {len(CASES)} of them done" in check(*OPTIONS, "-o", folder).stderr
    report = read(folder)
    dropped = report.outcomes[5]
    others = [o for o in report.outcomes if o is not dropped]
    short = dataclasses.replace(report, outcomes=tuple(others))
    (folder / "report.json").write_text(dump_json(short))
    again = check(*OPTIONS, "-o", folder)
    assert again.returncode == 0
    assert f"{len(CASES)} cases, {len(CASES) - 1} of them done" in again.stderr
    assert dropped.case.title in again.stderr
    *kept, new = read(folder).outcomes
    assert kept == others
    assert new.case == dropped.case
    assert new != dropped


@pytest.mark.slow
def test_a_case_that_fails_says_why_and_the_rest_goes_on(whole, tmp_path):
    models, folder = tmp_path / "models", tmp_path / "out"
    shutil.copytree(whole[0] / "models", models)
    Files.of(models, NETWORK, SPEC).model("float16").write_bytes(b"no model")
    arguments = (*OPTIONS, "--models", models, "-o", folder, "--only", "verify", "--only", "peers")
    done = check(*arguments)
    assert done.returncode == 1
    found = by_title(read(folder))
    failed = found.pop(f"verify {NETWORK} float16 NCHW launches")
    assert "float16.onnx" in failed.failure
    assert all(o.passed for o in found.values())
    peers = {one.name: one for one in found[f"peers {NETWORK} batch=1"].timed}
    assert peers["ONNX Runtime's own defaults, float16"].failure
    assert peers["ONNX Runtime's own defaults, float32"].device_ns
    page = (folder / "report.md").read_text()
    assert "## What failed" in page
    assert failed.case.title in page
    # What failed is kept, until it is asked for again.
    assert "cut" not in check(*arguments).stderr
    assert read(folder).outcomes == tuple(by_title(read(folder)).values())
    shutil.copy(Files.of(whole[0] / "models", NETWORK, SPEC).model("float16"), _only_dir(models))
    assert check(*arguments, "--retry").returncode == 0


def _only_dir(models):
    return Files.of(models, NETWORK, SPEC).folder


def test_a_case_without_its_model_says_so(tmp_path):
    done = check(*OPTIONS, "-o", tmp_path / "out", "--only", "verify int8")
    assert done.returncode == 1
    assert 'add "model resnet8_tiny"' in done.stderr


@pytest.mark.slow
def test_a_case_that_takes_too_long_is_ended_and_recorded(whole):
    case = next(case for case in CASES if case.kind == "peers")
    outcome = run_case(case, SPEC, whole[0] / "models", Limits(case_s=0.2), case_s=0.2)
    assert "not done within 0 s" in outcome.failure


@pytest.mark.slow
def test_the_end_of_the_time_is_nobody_s_failure(whole, tmp_path):
    limits = Limits(case_s=100, end_s=time.monotonic() + 1000)
    assert run_case(CASES[0], SPEC, tmp_path, limits, case_s=0.2) is None
    done = check(*OPTIONS, "--minutes", "0", "-o", tmp_path / "out")
    assert f"{len(CASES)} cases are left" in done.stderr
    assert read(tmp_path / "out").outcomes == ()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_at_any_moment_it_goes_on_from_there(whole, tmp_path, number):
    folder = tmp_path / "out"
    arguments = (*OPTIONS, "--models", whole[0] / "models", "-o", folder, "--only", "bench")
    process = subprocess.Popen(
        command(*arguments), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "bench" in line:  # the first case is done; the second has begun
            break
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from here" in printed
    before = read(folder).outcomes
    assert 1 <= len(before) < 3
    done = check(*arguments)
    assert done.returncode == 0
    assert read(folder).outcomes[: len(before)] == before
    assert len(read(folder).outcomes) == 3


@pytest.mark.slow
def test_the_results_of_another_machine_are_not_mixed_in(whole, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    data = json.loads((whole[0] / "report.json").read_text())
    data["environment"]["gpu_names"] = ["NVIDIA Something"]
    (folder / "report.json").write_text(json.dumps(data))
    done = check(*OPTIONS, "-o", folder)
    assert done.returncode == 2
    assert "of another run: its gpu_names" in done.stderr
    assert check(*OPTIONS, "--runs", "9", "-o", whole[0]).returncode == 2


@pytest.mark.slow
def test_without_cuda_every_case_says_so_and_none_stops_the_rest(whole, tmp_path, no_cuda):
    done = check(
        *OPTIONS,
        *("--provider", "cuda", "-o", tmp_path / "out", "--models", whole[0] / "models"),
        *("--only", "verify float16", "--only", "settings float32 batch=1"),
    )
    assert done.returncode == 1
    outcomes = read(tmp_path / "out").outcomes
    assert len(outcomes) == 6
    for outcome in outcomes:
        assert "CUDAExecutionProvider" in outcome.failure


@pytest.mark.slow
@pytest.mark.cuda
def test_on_a_gpu_everything_that_is_verified_passes(tmp_path):
    done = check(
        *("--networks", "cifar_resnet20", "--batches", "1", "--blocks", "1", "--runs", "20"),
        *("-o", tmp_path / "out", "--only", "model", "--only", "verify", "--only", "bench"),
    )
    report = read(tmp_path / "out")
    assert done.returncode == 0, page_of(report)
    for outcome in report.outcomes:
        for verdict in outcome.verify.verdicts if outcome.verify is not None else ():
            assert not verdict.placement.strays
            assert verdict.placement.num_copies == 0


# --- the parts -----------------------------------------------------------------------------------


def test_the_plan_has_every_combination_once():
    cases = cases_for("cuda", NETWORKS, BATCHES, 3)
    assert len({case.key for case in cases}) == len(cases) == len({case.title for case in cases})
    benched = {
        (c.network, c.arithmetic, c.session.prefer_nhwc, c.session.cuda_graph, c.batch_size)
        for c in cases
        if c.kind == "bench"
    }
    assert len(benched) == 5 * 4 * 2 * 2 * 5
    assert sum(c.kind == "verify" for c in cases) == 5 * 4 * 2 * 2
    assert sum(c.thorough for c in cases) == 5
    assert [c.kind for c in cases[:5]] == ["ceilings", "model", "model", "model", "verify"]


def test_the_telling_batches_of_every_network_come_before_the_others():
    cases = cases_for("cuda", NETWORKS, BATCHES, 1)
    first_other = next(i for i, c in enumerate(cases) if c.batch_size not in (0, 1, 32))
    assert {c.network for c in cases[:first_other] if c.kind == "bench"} == set(NETWORKS)


def test_only_takes_words_in_any_order():
    cases = cases_for("cuda", ["resnet18", "resnet50"], [1], 1)
    chosen = choose(cases, ["resnet50 verify graph", "ceilings"])
    assert [c.title for c in chosen][:2] == ["ceilings", "verify resnet50 float32 NCHW graph"]
    assert {c.network for c in chosen[1:]} == {"resnet50"}
    assert choose(cases, []) == cases


def test_the_settings_of_cuda_are_compared_with_what_the_table_chooses(monkeypatch):
    monkeypatch.setattr(providers, "PROVIDERS", providers.PROVIDERS)
    chosen = settings_of("cuda", "float32", Path("m.onnx"))
    assert next(iter(chosen)) == "as chosen"
    assert chosen["as chosen"][1].runner.options == {}
    plain = SessionSpec(provider="cuda")
    for _, spec in chosen.values():
        before = providers.find_provider("cuda").options(plain)
        for name, value in spec.runner.options.items():
            assert before.get(name) != value, "an alternative that is the choice itself"
    replace_options("cuda", {"cudnn_conv_algo_search": "HEURISTIC"})
    options = providers.find_provider("cuda").options(plain)
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["use_tf32"] == "0"


def test_peers_are_torch_the_runtime_s_own_defaults_and_tensorrt():
    models = {form: Path(f"{form}.onnx") for form in ("float32", "float16", "int8")}
    peers = peers_of("cuda", Path("w.safetensors"), models)
    specs = [spec for _, spec in peers.values()]
    assert {spec.session.provider for spec in specs} == {"cuda", "tensorrt"}
    assert sum(RUNNERS[spec.runner.name].form is not None for spec in specs) == 7
    assert sum(spec.runner.name == "onnxruntime" for spec in specs) == 2


@pytest.mark.slow
def test_runners_answer_the_golden_inputs_and_a_wrong_one_would_be_seen(whole):
    files = Files.of(whole[0] / "models", NETWORK, SPEC)

    def side(model, runner):
        return model, BenchSpec(
            session=SessionSpec(),
            runner=RunnerSpec(name=runner),
            batch_size=3,
            num_runs=6,
            num_bound_runs=6,
        )

    names = ("torch", "torch-channels-last-half", "torch-compile-max", "torch-graph")
    ours, defaults, torch_, half, compiled, graph = time_those_that_run(
        [
            side(files.model("float32"), "session"),
            side(files.model("float32"), "onnxruntime"),
            *(side(files.checkpoint, name) for name in names),
        ],
        golden=files.golden,
        num_bursts=2,
        last_first=True,
    )
    for one in (ours, defaults, torch_, half, compiled):
        assert not isinstance(one, Exception), one
        assert [len(burst) for burst in one.bursts_ns] == [3, 3]
        assert [len(burst) for burst in one.bound_bursts_ns] == [3, 3]
    exact = (ours, defaults, torch_, compiled)
    assert max(one.side.rel_l2 for one in exact) < 1e-5 < half.side.rel_l2 < 1e-2
    assert "needs a CUDA device" in str(graph)


@pytest.mark.slow
def test_the_work_of_a_network_is_that_of_its_layers(whole):
    files = Files.of(whole[0] / "models", NETWORK, SPEC)
    module = load_source(SourceSpec(path=str(files.checkpoint))).module
    counted = []

    def count(layer, inputs, output):
        per_output = layer.weight[0].numel()
        counted.append(output.numel() * per_output)

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(torch.zeros(1, 3, 8, 8))
    work = files.read_work()
    assert work == work_of(files.model("float32"))
    assert sum(layer.num_macs for layer in work.layers) == sum(counted)
    weights = sum(4 * p.numel() for n, p in module.named_parameters() if n.endswith("weight"))
    norms = sum(4 * p.numel() for n, p in module.named_parameters() if "bn" in n)
    shared = sum(layer.fixed_bytes for layer in work.layers)
    assert weights - norms <= shared <= weights + norms


def test_the_bound_takes_the_slower_of_both_ceilings_layer_by_layer():
    ceilings = Ceilings(
        device="d", macs_per_s={"float32": 10.0, "float16": 1.0}, copy_bytes_per_s=5.0
    )
    layers = (
        LayerWork(name="a", op="Conv", num_macs=100, fixed_bytes=5, sample_bytes=5),
        LayerWork(name="b", op="Pool", num_macs=0, fixed_bytes=0, sample_bytes=10),
    )
    work = NetworkWork(layers=layers)
    bound = bound_of(work, ceilings, arithmetic="float32", batch_size=2)
    assert bound.time_s == pytest.approx(2 * 100 / 10 + 2 * 10 / 5)
    assert bound.limit == "arithmetic"
    assert bound.memory_share == pytest.approx(4 / 24)
    # A lower precision may be computed in a higher one, and moves half the bytes.
    half = bound_of(work, ceilings, arithmetic="float16", batch_size=2)
    assert half.time_s == pytest.approx(2 * 100 / 10 + 10 / 5)
    unknown = dataclasses.replace(ceilings, macs_per_s={})
    assert bound_of(work, unknown, arithmetic="float32", batch_size=2) is None


def test_a_ratio_needs_two_blocks_to_be_a_verdict():
    def block(fast, slow):
        return (
            Timed(name="base", device_ns=(100, 100, 100)),
            Timed(name="fast", device_ns=(fast, fast, fast)),
            Timed(name="slow", device_ns=(slow, slow, slow)),
            Timed(name="out", failure="it died"),
        )

    one = ratios_of([block(50, 200)], "base")
    assert one["fast"].ratio == pytest.approx(0.5)
    assert one["fast"].verdict == "cannot tell"
    assert one["out"] is None
    three = ratios_of([block(50, 200), block(51, 202), block(49, 198)], "base")
    assert (three["fast"].verdict, three["slow"].verdict) == ("faster", "slower")


def test_a_page_of_failures_alone_is_a_page():
    case = Case(kind="bench", network="n", session=SessionSpec(), batch_size=1)
    broken = Outcome(case=case, failure="it | broke\n  fix: try again")
    report = GpuReport(spec=SPEC, environment=read_environment(), outcomes=(broken,))
    page = page_of(report, num_left=2)
    assert "1 cases run, 2 left, 1 failed" in page
    assert "- bench n float32 NCHW launches batch=1: it | broke fix: try again" in page
    assert not report.passed


def test_the_script_for_a_host_without_a_network_installs_nothing_by_itself(tmp_path):
    script = REPOSITORY / "benchmarks" / "cuda" / "run.sh"
    environment = {**os.environ, "PYTHON": sys.executable}
    environment.pop("WHEELS", None)
    done = subprocess.run(
        ["bash", script, "--list"], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "verify resnet50 float32 NCHW launches" in done.stdout
    empty = {**environment, "WHEELS": str(tmp_path)}
    none = subprocess.run(["bash", script], env=empty, capture_output=True, text=True)
    assert none.returncode == 2
    assert "no wheels" in none.stderr
    assert "--no-index" in script.read_text()
