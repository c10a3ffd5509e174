"""The search for the fastest way to run a bundle: what is tried, who is let in, who wins."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from flat_bundle import write_small_bundle
from onnx import helper, numpy_helper, parser

from resdeploy.bench.in_turn import TimedSide
from resdeploy.bundle import folder as bundle_folder
from resdeploy.bundle.check import golden_answers
from resdeploy.bundle.folder import read_bundle, write_tuned
from resdeploy.bundle.tuned_settings import settings_for
from resdeploy.cli import cli
from resdeploy.cli.render import render
from resdeploy.data.samples import LabelledSamples
from resdeploy.errors import BundleError, EnvironmentLacksError, ResdeployError
from resdeploy.files import sha256_file
from resdeploy.machine.environment import read_environment
from resdeploy.machine.probe import starting_providers
from resdeploy.schema.benchmarks import BenchReport, LayerTime, Profile, SpeedRatio
from resdeploy.schema.bundles import CheckReport, PredictReport
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.quants import QuantSpec
from resdeploy.schema.recipes import DataSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import TuneReport, TuneSpec
from resdeploy.session.onnx_wire import stored_precision
from resdeploy.tune import judge as tune_judge
from resdeploy.tune import search as tune_module
from resdeploy.tune import variants as variants_module
from resdeploy.tune.search import tune
from resdeploy.tune.space import Candidate, Variant, sessions_for
from resdeploy.tune.variants import precisions_for

NUM_INPUTS, NUM_FEATURES, NUM_CLASSES = 8, 32, 4
SPEC = TuneSpec(threads=(1,), num_runs=20, max_blocks=2)


def save_model(path, weight, op="Gemm"):
    text = (
        f'<ir_version: 8, opset_import: ["": 18]> g (float[N, {NUM_FEATURES}] x) => '
        f"(float[N, {NUM_CLASSES}] y) {{ y = {op} (x, w) }}"
    )
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(weight, name="w"))
    onnx.save(model, path)
    return path


@pytest.fixture
def weight():
    return np.random.default_rng(0).normal(size=(NUM_FEATURES, NUM_CLASSES)).astype(np.float32)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(1)
    return rng.normal(size=(NUM_INPUTS, NUM_FEATURES)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, weight, inputs):
    return save_bundle(tmp_path / "bundle", save_model(tmp_path / "m.onnx", weight), weight, inputs)


def save_bundle(path, model, weight, inputs):
    reference = inputs.astype(np.float64) @ weight.astype(np.float64)
    noise_l2 = np.linalg.norm(inputs @ weight - reference, axis=1)
    return write_small_bundle(path, "product", model, inputs, reference, noise_l2=noise_l2)


@pytest.fixture
def rounded(tmp_path, weight):
    """Return the path of a form of the model with its weights to one digit."""
    return save_model(tmp_path / "rounded.onnx", np.round(weight, 1).astype(np.float32))


@pytest.fixture
def clock(monkeypatch):
    """Set what each candidate takes, instead of starting processes; return the table to fill."""
    table = {"default_ns": 1000, "ram": lambda spec: 10 << 20, "final": 0.9}
    table |= {"seen": [], "runs": []}

    def time_in_turn(sides, *, prove_placement):
        table["seen"].append([(path.name, spec.session) for path, spec in sides])
        table["runs"].append([spec.num_runs for _, spec in sides])
        rng = np.random.default_rng(len(table["seen"]))
        return [
            TimedSide(
                side=None,
                bursts_ns=(
                    tuple(
                        int(table["time"](path.name, spec) * rng.normal(1, 0.001))
                        for _ in range(20)
                    ),
                ),
                ram_peak_bytes=table["ram"](path.name),
            )
            for path, spec in sides
        ]

    def last(winner, default, num_runs, on_progress):
        table["last_runs"] = num_runs
        table["compared"] = (winner.variant.path.name, winner.session)
        ratio = table["final"]

        class Comparison:
            p50 = SpeedRatio(ratio=ratio, low=0.99 * ratio, high=1.01 * ratio)

        return Comparison()

    table["ram"] = lambda name: 10 << 20
    monkeypatch.setattr(tune_module, "time_in_turn", time_in_turn)
    monkeypatch.setattr(tune_module, "_last_comparison", last)
    monkeypatch.setattr(tune_module, "_profile", lambda *_: None)
    return table


# --- what is tried -------------------------------------------------------------------------------


def test_lossless_tries_no_arithmetic_but_float32():
    for provider in ("cpu", "cuda", "openvino"):
        for session in sessions_for(provider, TuneSpec()):
            assert not session.use_tf32
            assert session.precision_hint == ("f32" if provider == "openvino" else "default")


def test_a_budget_lets_faster_arithmetics_try():
    budget = TuneSpec(max_drop=0.01)
    assert {s.use_tf32 for s in sessions_for("cuda", budget)} == {False, True}
    assert {s.precision_hint for s in sessions_for("openvino", budget)} == {"default", "f32"}


def test_one_thread_has_nobody_to_wait_for():
    sessions = list(sessions_for("cpu", TuneSpec(threads=(1, 2))))
    assert {s.spinning for s in sessions if s.num_threads == 1} == {True}
    assert {s.spinning for s in sessions if s.num_threads == 2} == {True, False}


def test_open_sizes_are_timed_as_the_golden_inputs(folder, clock):
    bundle, sizes = read_bundle(folder), []
    tensor = dataclasses.replace(bundle.manifest.inputs[0], shape=("N", "F"))
    manifest = dataclasses.replace(bundle.manifest, inputs=(tensor,))
    clock["time"] = lambda name, spec: sizes.append(spec.inputs) or 1000
    tune(dataclasses.replace(bundle, manifest=manifest), SPEC, [])
    assert {one.shape for inputs in sizes for one in inputs} == {(NUM_FEATURES,)}
    assert bundle.golden_sizes == ()


# --- who is let in -------------------------------------------------------------------------------


def test_what_is_not_lossless_never_races(folder, rounded, clock):
    clock["time"] = lambda name, spec: 10 if name == "rounded.onnx" else 1000
    report = tune(read_bundle(folder), SPEC, [Variant(path=rounded)])
    out = [trial for trial in report.trials if trial.model == "rounded.onnx"]
    assert out
    assert all(trial.out.startswith("not lossless: ") and not trial.times_ns for trial in out)
    assert report.best.model == "model.onnx"
    assert all(name == "model.onnx" for block in clock["seen"] for name, _ in block)


def test_the_word_of_a_file_is_that_of_its_bytes(folder, weight, tmp_path, clock):
    clock["time"] = lambda name, spec: 1000
    again = onnx.load(save_model(tmp_path / "again.onnx", weight))
    again.doc_string = "of other bytes than those that were proved"
    onnx.save(again, tmp_path / "again.onnx")
    report = tune(read_bundle(folder), SPEC, [Variant(path=tmp_path / "again.onnx")])
    words = {(trial.model, trial.evidence.split()[0]) for trial in report.trials}
    assert words == {("model.onnx", "PROVED"), ("again.onnx", "AGREES")}


def samples_of(inputs, weight, *, labels=None):
    """Return labelled samples, by default labelled as the model says."""
    truth = (inputs @ weight).argmax(axis=1) if labels is None else labels
    return LabelledSamples(
        x=inputs, y=truth, names=[str(i) for i in range(len(inputs))], labels=(), description="made"
    )


def test_a_budget_lets_in_what_is_shown_to_be_within_it(folder, rounded, weight, clock):
    clock["time"] = lambda name, spec: 10 if name == "rounded.onnx" else 1000
    many = np.random.default_rng(2).normal(size=(2000, NUM_FEATURES)).astype(np.float32)
    spec = dataclasses.replace(SPEC, max_drop=0.05)
    report = tune(
        read_bundle(folder),
        spec,
        [Variant(path=rounded)],
        load=lambda _: samples_of(many, weight),
    )
    assert report.best.model == "rounded.onnx"
    assert 0 < report.best.drop < 0.05
    assert report.best.evidence.startswith("drop ")


def test_the_drop_is_one_from_float32_on_the_cpu(folder, weight, clock, monkeypatch):
    """Once the model was compared with itself in the same arithmetic, in which nothing drops."""
    against = []
    compare = tune_judge.compare_answers

    def watched(*arguments):
        report = compare(*arguments)
        against.append((report.model.session.spec, report.against.session.spec))
        return report

    monkeypatch.setattr(tune_judge, "compare_answers", watched)
    clock["time"] = lambda name, spec: 1000
    many = np.random.default_rng(2).normal(size=(500, NUM_FEATURES)).astype(np.float32)
    spec = dataclasses.replace(SPEC, max_drop=0.05)
    tune(read_bundle(folder), spec, load=lambda _: samples_of(many, weight))
    assert against == [(SessionSpec(graph_level="extended"), SessionSpec())]


def test_what_all_are_judged_by_runs_once(folder, rounded, weight, clock, monkeypatch):
    asked = []
    answer = tune_judge.answer

    def watched(model, load, spec):
        asked.append((model.name, spec))
        return answer(model, load, spec)

    monkeypatch.setattr(tune_judge, "answer", watched)
    clock["time"] = lambda name, spec: 1000
    many = np.random.default_rng(2).normal(size=(500, NUM_FEATURES)).astype(np.float32)
    spec = dataclasses.replace(SPEC, max_drop=0.05)
    variants = [Variant(path=rounded)]
    tune(read_bundle(folder), spec, variants, load=lambda _: samples_of(many, weight))
    # Both models at two levels; of the bundle's, the default is what the others are judged by.
    assert asked.count(("model.onnx", SessionSpec())) == 1
    assert len(asked) == len(set(asked)) == 4


def test_defaults_whose_answers_will_not_do_win_nothing(folder, clock, monkeypatch):
    """The winner is slower than they are, and still the fastest that may be had."""
    judge = tune_judge.Judge._lossless

    def strict(self, variant, session):
        if session.graph_level == "all":
            return tune_judge.Judgement(out="not lossless: made so")
        return judge(self, variant, session)

    monkeypatch.setattr(tune_judge.Judge, "_lossless", strict)
    clock["time"] = lambda name, spec: 1000
    clock["final"] = 1.5
    report = tune(read_bundle(folder), SPEC)
    assert report.best.session.graph_level == "extended"
    assert report.settings.ratio.ratio == 1.5


def test_too_few_samples_show_nothing(folder, rounded, weight, inputs, clock):
    clock["time"] = lambda name, spec: 10 if name == "rounded.onnx" else 1000
    report = tune(
        read_bundle(folder),
        dataclasses.replace(SPEC, max_drop=0.01),
        [Variant(path=rounded)],
        load=lambda _: samples_of(inputs, weight),
    )
    assert report.best.model == "model.onnx"
    assert any("not shown to be within the budget" in (t.out or "") for t in report.trials)


def test_a_budget_without_samples_is_refused(folder):
    with pytest.raises(ResdeployError, match="labelled samples"):
        tune(read_bundle(folder), dataclasses.replace(SPEC, max_drop=0.01))


def test_float16_is_not_judged_where_it_is_computed_in_float32(folder, tmp_path, weight, clock):
    half = save_model(tmp_path / "half.onnx", weight)
    clock["time"] = lambda name, spec: 1000
    report = tune(read_bundle(folder), SPEC, [Variant(path=half, precision="float16")])
    outs = {trial.out for trial in report.trials if trial.model == "half.onnx"}
    assert outs == {"CPUExecutionProvider computes float16 in float32"}


def test_a_provider_that_does_not_start_is_out_with_its_reason(folder, clock, no_cuda):
    clock["time"] = lambda name, spec: 1000
    spec = dataclasses.replace(SPEC, providers=("cpu", "cuda"))
    report = tune(read_bundle(folder), spec)
    cuda = [trial for trial in report.trials if trial.session.provider == "cuda"]
    assert len(cuda) == len(list(sessions_for("cuda", spec)))
    assert all("CUDAExecutionProvider did not start" in trial.out for trial in cuda)


def test_defaults_that_do_not_start_end_it(folder, no_cuda):
    with pytest.raises(EnvironmentLacksError):
        tune(read_bundle(folder), dataclasses.replace(SPEC, providers=("cuda",)))


def test_answers_are_judged_once_for_all_numbers_of_threads(folder, clock, monkeypatch):
    judged = []
    verify = tune_judge.judge_with_proof
    monkeypatch.setattr(
        tune_judge, "judge_with_proof", lambda *a, **k: judged.append(1) or verify(*a, **k)
    )
    clock["time"] = lambda name, spec: 1000
    tune(read_bundle(folder), dataclasses.replace(SPEC, threads=(None, 1, 2)))
    assert len(judged) == 2, "the two graph levels"


# --- who wins ------------------------------------------------------------------------------------


def test_the_fastest_wins_and_what_it_beat_says_so(folder, clock):
    clock["time"] = lambda name, spec: 500 if spec.session.graph_level == "extended" else 1000
    report = tune(read_bundle(folder), SPEC)
    assert report.best.session.graph_level == "extended"
    assert clock["compared"] == ("model.onnx", report.best.session)
    assert report.settings.ratio.ratio == 0.9
    assert all(trial.out.startswith("beaten after") for trial in report.trials if trial.out)
    assert report.winner in report.front


def test_a_winner_that_falls_behind_in_fresh_processes_gives_way_to_the_defaults(folder, clock):
    clock["time"] = lambda name, spec: 500 if spec.session.graph_level == "extended" else 1000
    clock["final"] = 1.02
    report = tune(read_bundle(folder), SPEC)
    assert report.best.session == SessionSpec()
    assert report.comparison is None
    assert report.settings.ratio is None
    (lucky,) = [
        t for t in report.trials if t.out == "fell behind the defaults in the last comparison"
    ]
    assert lucky.session.graph_level == "extended"


def test_throughput_is_counted_in_samples(folder, clock):
    clock["time"] = lambda name, spec: 1000 + 100 * spec.batch_size
    spec = dataclasses.replace(SPEC, objective="throughput", batch_sizes=(1, 8))
    assert tune(read_bundle(folder), spec).best.batch_size == 8


def test_the_tail_is_what_p99_looks_at(folder, clock, monkeypatch):
    def time_in_turn(sides, *, prove_placement):
        steady, jumpy = (900,) * 20, (100,) * 18 + (9000,) * 2
        return [
            TimedSide(
                side=None,
                bursts_ns=(steady if spec.session.graph_level == "all" else jumpy,),
                ram_peak_bytes=None,
            )
            for _, spec in sides
        ]

    monkeypatch.setattr(tune_module, "time_in_turn", time_in_turn)
    assert tune(read_bundle(folder), SPEC).best.session.graph_level == "extended"
    tail = tune(read_bundle(folder), dataclasses.replace(SPEC, objective="p99"))
    assert tail.best.session.graph_level == "all"


def test_memory_and_size_are_told_by_one_block(folder, tmp_path, weight, clock):
    clock["time"] = lambda name, spec: 1000
    clock["ram"] = lambda name: 5 << 20 if name == "small.onnx" else 10 << 20
    small = save_model(tmp_path / "small.onnx", weight)
    model = onnx.load(small)
    model.producer_name = "x" * 500
    onnx.save(model, small)
    memory = tune(
        read_bundle(folder), dataclasses.replace(SPEC, objective="memory"), [Variant(path=small)]
    )
    assert memory.best.model == "small.onnx"
    assert memory.num_blocks == 1
    size = tune(
        read_bundle(folder), dataclasses.replace(SPEC, objective="size"), [Variant(path=small)]
    )
    assert size.best.model == "model.onnx"


def test_nobody_on_the_front_is_beaten_in_everything(folder, tmp_path, weight, clock):
    other = save_model(tmp_path / "other.onnx", weight)
    clock["time"] = lambda name, spec: 400 if name == "other.onnx" else 1000
    clock["ram"] = lambda name: 20 << 20 if name == "other.onnx" else 10 << 20
    report = tune(read_bundle(folder), SPEC, [Variant(path=other)])
    assert {report.trials[place].model for place in report.front} == {"other.onnx", "model.onnx"}
    clock["ram"] = lambda name: 10 << 20
    report = tune(read_bundle(folder), SPEC, [Variant(path=other)])
    assert {report.trials[place].model for place in report.front} == {"other.onnx"}


# --- what is kept of it --------------------------------------------------------------------------


@pytest.fixture
def tuned(folder, tmp_path, weight, clock):
    other = save_model(tmp_path / "other.onnx", weight)
    clock["time"] = lambda name, spec: 400 if name == "other.onnx" else 1000
    bundle = read_bundle(folder)
    report = tune(bundle, SPEC, [Variant(path=other)])
    return bundle, report, other


def test_the_bundle_keeps_the_settings_and_the_file_they_are_for(tuned, tmp_path):
    bundle, report, other = tuned
    write_tuned(bundle, tmp_path / "out", [(report.settings, other)])
    again = read_bundle(tmp_path / "out")
    assert again.manifest.tuned == (report.settings,)
    assert (tmp_path / "out" / "other.onnx").read_bytes() == other.read_bytes()
    assert settings_for(again.manifest, read_environment()) == report.settings


def test_settings_of_another_machine_are_not_for_this_one(tuned, tmp_path):
    bundle, report, other = tuned
    write_tuned(bundle, tmp_path / "out", [(report.settings, other)])
    manifest = read_bundle(tmp_path / "out").manifest
    here = read_environment()
    for changes in ({"cpu_model": "another"}, {"num_cpus_allowed": 99}, {"gpu_names": ("x",)}):
        assert settings_for(manifest, dataclasses.replace(here, **changes)) is None


def test_tuning_again_replaces_what_was_found_before(tuned, tmp_path):
    bundle, report, other = tuned
    write_tuned(bundle, tmp_path / "out", [(report.settings, other)])
    plain = dataclasses.replace(report.settings, model="model.onnx")
    write_tuned(
        read_bundle(tmp_path / "out"), tmp_path / "out", [(plain, bundle.model)], force=True
    )
    again = read_bundle(tmp_path / "out")
    assert again.manifest.tuned == (plain,)
    assert not (tmp_path / "out" / "other.onnx").exists(), "nobody asks for it any more"
    throughput = dataclasses.replace(plain, objective="throughput")
    write_tuned(again, tmp_path / "out", [(throughput, again.model)], force=True)
    assert len(read_bundle(tmp_path / "out").manifest.tuned) == 2


def elsewhere(settings, **changes):
    target = dataclasses.replace(settings.target, cpu_model="another")
    return dataclasses.replace(settings, target=target, **changes)


def test_files_of_one_name_and_two_contents_are_both_kept(tuned, tmp_path, rounded):
    bundle, report, other = tuned
    found = [(report.settings, other), (elsewhere(report.settings), rounded)]
    write_tuned(bundle, tmp_path / "out", found)
    first, second = read_bundle(tmp_path / "out").manifest.tuned
    assert first.model == "other.onnx"
    assert second.model == f"other-{sha256_file(rounded)[:8]}.onnx"
    assert (tmp_path / "out" / second.model).read_bytes() == rounded.read_bytes()


def test_tuning_again_replaces_the_file_of_that_name(tuned, tmp_path, rounded):
    """Once the name was taken by the very file that nobody asked for any more."""
    bundle, report, other = tuned
    write_tuned(bundle, tmp_path / "out", [(report.settings, other)])
    again = read_bundle(tmp_path / "out")
    write_tuned(again, tmp_path / "out", [(report.settings, rounded)], force=True)
    assert (tmp_path / "out" / "other.onnx").read_bytes() == rounded.read_bytes()


def test_of_two_machines_of_one_kind_the_last_counts(tuned, tmp_path, rounded):
    bundle, report, other = tuned
    write_tuned(bundle, tmp_path / "out", [(report.settings, rounded), (report.settings, other)])
    (one,) = read_bundle(tmp_path / "out").manifest.tuned
    assert (tmp_path / "out" / one.model).read_bytes() == other.read_bytes()
    assert len(list((tmp_path / "out").glob("*.onnx"))) == 2


def test_settings_for_a_file_that_is_not_there_are_damage(tuned, tmp_path, monkeypatch):
    bundle, report, other = tuned
    monkeypatch.setattr(bundle_folder, "_add_model", lambda model, folder, name: name)
    with pytest.raises(BundleError, match=r"does not list other\.onnx"):
        write_tuned(bundle, tmp_path / "out", [(report.settings, other)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(np.float32, "float32"), (np.float16, "float16"), (np.int8, "int8"), (np.uint8, "int8")],
)
def test_the_precision_of_a_file_is_that_of_most_of_its_bytes(tmp_path, dtype, precision):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[1] x) => (float[1] y) { y = Relu (x) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), name="scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(99, dtype), name="w"))
    onnx.save(model, tmp_path / "m.onnx")
    assert stored_precision(tmp_path / "m.onnx") == precision


def test_what_is_no_model_has_no_precision(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\xff\xff hello")
    with pytest.raises(ResdeployError, match="not a model"):
        stored_precision(tmp_path / "m.onnx")


# --- what it makes itself ------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path, weight):
    """Return two files: labelled samples to judge by, and others to calibrate with."""
    x = np.random.default_rng(2).normal(size=(3000, NUM_FEATURES)).astype(np.float32)
    y = (x @ weight).argmax(axis=1)
    np.savez(tmp_path / "judged.npz", x=x[:2000], y=y[:2000])
    np.savez(tmp_path / "calibration.npz", x=x[2000:])
    return ("--data", tmp_path / "judged.npz", "--calibration", tmp_path / "calibration.npz")


FAST = ("--threads", "1", "--runs", "20")


def test_int8_is_made_and_goes_into_the_bundle_with_its_evidence(folder, tmp_path, samples, clock):
    clock["time"] = lambda name, spec: 10 if name == "int8.onnx" else 1000
    result = run(
        *("tune", folder, "-o", tmp_path / "out", "--max-drop", "5", "--provider", "cpu"),
        *(*FAST, *samples),
    )
    assert result.exit_code == 0, result.output
    assert "made int8.onnx: relative error 0.0" in result.stdout
    (settings,) = read_bundle(tmp_path / "out").manifest.tuned
    assert settings.model == "int8.onnx"
    assert stored_precision(tmp_path / "out" / "int8.onnx") == "int8"
    assert settings.quant.passed
    assert settings.quant.output == "int8.onnx"
    assert settings.quant.calibration == "npz (calibration.npz, x)"
    assert settings.quant.proof.passed
    assert settings.max_drop == 0.05
    assert settings.answers.error > 1e-4, "it is int8 that was run"
    assert checked(tmp_path / "out")[0] == 0
    assert list(tmp_path.parent.glob("resdeploy-*")) == []


def test_a_precision_that_cannot_be_made_is_out_with_its_reason_and_stops_nothing(
    tmp_path, weight, inputs, samples, clock
):
    path = save_model(tmp_path / "m.onnx", weight, op="MatMul")
    model = onnx.load(path)
    model.graph.node[0].input[1] = "computed"
    model.graph.node.insert(0, helper.make_node("Identity", ["w"], ["computed"]))
    onnx.save(model, path)
    bundle = save_bundle(tmp_path / "matmul", path, weight, inputs)
    clock["time"] = lambda name, spec: 1000 if spec.session == SessionSpec() else 2000
    result = run(
        *("tune", bundle, "--max-drop", "5", "--provider", "cpu", "--precision", "int8,fp16"),
        *(*FAST, *samples, "--json"),
    )
    assert result.exit_code == 0, result.output
    report = load_json(TuneReport, result.stdout, where="stdout")
    why = "not made: The model has no Conv or Gemm with constant weights."
    assert [(t.model, t.size_bytes, t.out) for t in report.trials if t.model != "model.onnx"] == [
        ("int8.onnx", 0, why),
        ("fp16.onnx", 0, why),
    ]
    assert report.best.model == "model.onnx"
    render(report)


def test_a_precision_that_is_not_good_enough_is_out_with_the_reason(
    folder, tmp_path, samples, monkeypatch
):
    from resdeploy.tune import variants

    def make():
        data = DataSpec(name="npz", path=str(samples[3]))
        bundle = read_bundle(folder)
        spec = dataclasses.replace(SPEC, max_drop=0.05)
        return variants.make_variants(bundle, tmp_path, spec, data, precisions=("int8",))

    monkeypatch.setattr(variants, "spec_for", lambda *_, **__: (QuantSpec(max_error=-1.0), ()))
    (variant,) = make()
    assert variant.refused.startswith("not made: the relative error is ")
    assert not variant.path.exists()
    monkeypatch.undo()
    (variant,) = make()
    assert variant.refused is None
    assert variant.path.is_file()


# --- stopped, and gone on with -------------------------------------------------------------------


def test_a_stopped_search_goes_on_with_what_it_made_judged_and_timed(
    folder, tmp_path, samples, clock, monkeypatch
):
    clock["time"] = lambda name, spec: 1000  # none is ahead, so the race goes on
    search = (
        *("tune", folder, "--max-drop", "5", "--provider", "cpu", "--work", tmp_path / "work"),
        *(*FAST, *samples, "--json"),
    )
    timed = tune_module.time_in_turn

    def stopped(sides, *, prove_placement):
        if clock["seen"]:
            raise KeyboardInterrupt
        return timed(sides, prove_placement=prove_placement)

    with monkeypatch.context() as patched:
        patched.setattr(tune_module, "time_in_turn", stopped)
        assert run(*search).exit_code == 130

    def never(*arguments, **options):
        raise AssertionError("it was done before")

    monkeypatch.setattr(variants_module, "quantize_file", never)
    monkeypatch.setattr(tune_judge.Judge, "__call__", never)
    result = run(*search)
    assert result.exit_code == 0, result.output
    report = load_json(TuneReport, result.stdout, where="stdout")
    assert {trial.model for trial in report.trials} == {"model.onnx", "int8.onnx"}
    assert all(trial.evidence for trial in report.trials)
    first = clock["seen"][0]
    assert clock["seen"].count(first) == 1, "the first block was timed again"
    assert len(clock["seen"]) == report.num_blocks > 1
    assert {len(trial.times_ns) for trial in report.trials if trial.out is None} == {
        report.num_blocks
    }
    assert report.quants[0].passed


def test_a_whole_search_is_there_at_once_the_second_time(folder, tmp_path, clock):
    clock["time"] = lambda name, spec: 1000 if spec.session == SessionSpec() else 2000
    search = ("tune", folder, "--provider", "cpu", *FAST, "--work", tmp_path / "work", "--json")
    first, second = run(*search), run(*search)
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    reports = [load_json(TuneReport, one.stdout, where="stdout") for one in (first, second)]
    assert reports[0].trials == reports[1].trials
    assert len(clock["seen"]) == reports[0].num_blocks


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--runs", "30", "options"),
        ("--threads", "2", "options"),
        ("--variant", "rounded.onnx", "variants"),
    ],
)
def test_the_findings_of_another_search_are_not_mixed_in(
    folder, tmp_path, rounded, clock, monkeypatch, option, value, what
):
    monkeypatch.chdir(rounded.parent)
    clock["time"] = lambda name, spec: 1000
    search = ("tune", folder, "--provider", "cpu", *FAST, "--work", tmp_path / "work")
    assert run(*search).exit_code == 0
    result = run(*search, option, value)
    assert result.exit_code == 2
    assert f"another search, with other {what}" in result.stderr.replace("\n", " ")


def test_other_samples_are_another_search(folder, tmp_path, samples, clock):
    clock["time"] = lambda name, spec: 1000
    search = (
        *("tune", folder, "--max-drop", "5", "--provider", "cpu", "--work", tmp_path / "work"),
        *(*FAST, *samples[:2]),
    )
    assert run(*search).exit_code == 0
    with np.load(samples[1]) as judged:
        np.savez(samples[1], x=judged["x"][:-1], y=judged["y"][:-1])
    result = run(*search)
    assert result.exit_code == 2
    assert "with other data" in result.stderr


def test_a_search_on_devices_is_not_kept_here(folder, tmp_path):
    result = run("tune", folder, "--on", "pi@kitchen.local", "--work", tmp_path / "work")
    assert result.exit_code == 2
    assert "on this machine" in result.stderr


def test_calibration_data_that_is_not_there_ends_it(folder, samples):
    result = run("tune", folder, "--max-drop", "5", *samples[:2], "--calibration", "none.npz")
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_float16_is_made_where_something_computes_in_it():
    assert precisions_for(("cpu", "openvino")) == ("int8",)
    assert precisions_for(("cpu", "cuda")) == ("int8", "float16")


def test_two_models_of_one_name_are_refused(folder, tmp_path, weight):
    """Once the bundle was given the last of them, whichever had won."""
    (tmp_path / "a").mkdir()
    other = Variant(path=save_model(tmp_path / "a" / "x.onnx", weight))
    another = Variant(path=save_model(tmp_path / "x.onnx", weight))
    with pytest.raises(ResdeployError, match=r"Two of the models are called x\.onnx"):
        tune(read_bundle(folder), SPEC, [other, another])


def test_a_name_that_leads_out_of_the_bundle_is_refused(tuned, tmp_path):
    bundle, report, other = tuned
    settings = dataclasses.replace(report.settings, model="../escaped.onnx")
    with pytest.raises(BundleError, match="not the name of a model"):
        write_tuned(bundle, tmp_path / "out", [(settings, other)])
    assert not (tmp_path / "escaped.onnx").exists()


# --- as a user runs it ---------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_the_command_searches_writes_and_shows(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tune_module, "_FINAL_BLOCKS", 3)
    result = run(
        *("tune", folder, "-o", tmp_path / "out", "--threads", "1", "--runs", "20", "--json")
    )
    assert result.exit_code == 0, result.output
    report = load_json(TuneReport, result.stdout, where="stdout")
    assert load_json(TuneReport, dump_json(report), where="x") == report
    assert json.loads(result.stdout)["kind"] == "TuneReport"
    assert all(trial.times_ns for trial in report.trials if trial.out is None)
    assert read_bundle(tmp_path / "out").manifest.tuned == (report.settings,)


def test_the_command_searches_every_provider_that_starts_and_no_other(
    folder, monkeypatch, clock, no_cuda
):
    clock["time"] = lambda name, spec: 1000 if spec.session == SessionSpec() else 2000
    starting = starting_providers()
    assert starting[0] == "cpu"
    assert "cuda" not in starting
    options = ("--threads", "1", "--runs", "20", "--json")
    found = load_json(TuneReport, run("tune", folder, *options).stdout, where="stdout")
    assert found.spec.providers == starting
    asked = run("tune", folder, *options, "--provider", "cpu", "--provider", "cuda")
    assert load_json(TuneReport, asked.stdout, where="stdout").spec.providers == ("cpu", "cuda")


def test_the_text_names_the_winner_and_what_it_gained(tuned, capsys):
    _, report, _ = tuned
    render(report)
    shown = capsys.readouterr().out
    assert "best: other.onnx, cpu" in shown
    assert "searched on: cpu\n" in shown
    assert (
        "against ONNX Runtime's defaults on cpu: 1.11 times as fast (1.10 to 1.12), faster" in shown
    )


@pytest.mark.parametrize(
    ("objective", "time_ns", "expected"),
    [
        ("latency", 2e6, [20, 500]),  # 3 s hold 1500
        ("latency", 10e6, [20, 300]),
        ("latency", 400e6, [20, 20]),
        ("p99", 400e6, [500, 500]),
    ],
)
def test_slow_models_run_less_often(folder, clock, objective, time_ns, expected):
    # As fast as each other, so that nobody leaves; another than the default is ahead by chance.
    clock["time"] = lambda name, spec: time_ns * (1 if spec.session.graph_level == "all" else 0.99)
    tune(read_bundle(folder), dataclasses.replace(SPEC, num_runs=500, objective=objective))
    assert [{round(one, -1) for one in block} for block in clock["runs"]] == [
        {number} for number in expected
    ]
    assert round(clock["last_runs"], -1) == expected[-1]


def test_what_the_time_goes_to_is_said_whether_or_not_products_can_be_counted(tuned, capsys):
    _, report, _ = tuned

    def shown(*layers, provider="cpu"):
        profile = Profile(
            layers=tuple(
                LayerTime(name=name, op=op, p50_ns=ns, num_macs=macs, num_bytes=1)
                for name, op, ns, macs in layers
            ),
            num_runs=1,
            run_p50_ns=1000,
            peak_macs_per_s=2e9,
            peak_bytes_per_s=1e9,
            peak_integer_macs_per_s=8e9,
        )
        best = dataclasses.replace(
            report.best, session=SessionSpec(provider=provider), times_ns=(1000,)
        )
        trials = [*report.trials]
        trials[report.winner] = best
        render(dataclasses.replace(report, trials=tuple(trials), profile=profile))
        return capsys.readouterr().out.splitlines()[-1]

    counted = shown(("a", "Conv", 750, 750), ("b", "Softmax", 250, 0))
    assert counted.startswith("75% of its time is in products, at 50% of the rate")
    assert counted.endswith("most of the rest is b (Softmax, 25%)")
    integers = shown(("a", "QLinearConv", 500, 2000), ("b", "Conv", 500, 500))
    assert integers.endswith("at 50% of the rate of a large matrix product in float32 and int8")
    packed = shown(("a", "QLinearConv", 900, 0), ("b", "QLinearAdd", 100, 0))
    assert packed == "its time: 90% in QLinearConv, 10% in QLinearAdd"
    # What another provider's layers take is not known: only how long the whole run does.
    elsewhere = shown(("a", "QLinearConv", 9000, 2000), provider="openvino")
    assert elsewhere == (
        "it runs at 25% of the rate of a large matrix product in int8 "
        "on ONNX Runtime's CPU provider"
    )
    assert shown(("a", "Softmax", 1, 0), provider="openvino").startswith("against")


@pytest.mark.parametrize(
    ("provider", "profiled"),
    [("cpu", SessionSpec(spinning=False)), ("openvino", SessionSpec()), ("cuda", None)],
)
def test_a_provider_on_the_cpu_that_tells_no_times_is_seen_through_the_cpu_provider(
    folder, monkeypatch, provider, profiled
):
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(tune_module, "read_profile", lambda _, spec, *__, **___: seen.append(spec))
    winner = Candidate(
        variant=Variant(path=folder / "model.onnx"),
        session=SessionSpec(provider=provider, spinning=provider != "cpu"),
        batch_size=1,
    )
    tune_module._profile(winner, read_environment())
    assert seen == ([] if profiled is None else [profiled])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lossless", "--max-drop", "1", "--data", "digits"), "exclude each other"),
        (("--max-drop", "1"), "go together"),
        (("--data", "digits"), "go together"),
        (("--batch", "1,8"), "by the throughput alone"),
        (("--calibration", "digits"), "say which drop is allowed"),
        (("--max-drop", "1", "--data", "digits", "--precision", "int8"), "calibration samples"),
        (("--precision", "int4"), "'int4' is none of int8, fp16, bf16"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, arguments, said):
    result = run("tune", folder, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_existing_output_is_refused_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tune_module, "race", lambda *_: pytest.fail("it ran"))
    result = run("tune", folder, "-o", folder)
    assert result.exit_code == 2
    assert "exists already" in result.stderr


@pytest.fixture
def tuned_folder(tuned, tmp_path):
    bundle, report, other = tuned
    settings = dataclasses.replace(
        report.settings, session=SessionSpec(num_threads=1, spinning=False)
    )
    write_tuned(bundle, tmp_path / "out", [(settings, other)])
    return tmp_path / "out"


# --- check holds it to its promise ---------------------------------------------------------------


def checked(*arguments):
    result = run("check", *arguments, "--json")
    return result.exit_code, load_json(CheckReport, result.stdout, where="stdout").tuned


def test_check_runs_what_was_tuned_as_it_was_tuned(tuned_folder):
    code, (one,) = checked(tuned_folder)
    assert (code, one.passed) == (0, True)
    assert one.found == one.settings.answers
    assert (one.found.num_inputs, one.found.num_same_class) == (NUM_INPUTS, NUM_INPUTS)
    assert 0 < one.found.error < 1e-6
    shown = run("check", tuned_folder).stdout
    assert "tuned for latency: PASS  other.onnx, cpu, 1 thread, no spinning, batch 1" in shown


def test_a_lossless_way_that_is_not_lossless_fails_the_check(tuned, rounded, tmp_path):
    bundle, report, _ = tuned
    write_tuned(bundle, tmp_path / "out", [(report.settings, rounded)])
    code, (one,) = checked(tmp_path / "out")
    assert code == 1
    assert one.reasons
    shown = run("check", tmp_path / "out").stdout
    assert "tuned for latency: FAIL  other.onnx" in shown
    assert "  " + one.reasons[0] in shown


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ({}, None),
        ({"error": 0.6}, None),
        ({"error": 0.4}, "largest error is"),
        ({"error": np.inf}, "largest error is"),
        ({"error": np.nan}, "largest error is"),
        ({"num_same_class": 1}, "they were"),
    ],
)
def test_a_lossy_way_is_held_to_what_it_was(tuned, rounded, tmp_path, then, reason):
    """`then` is what was recorded, as a multiple of the error or predictions beside what is so."""
    bundle, report, _ = tuned
    found = golden_answers(rounded, SessionSpec(), bundle.golden)
    assert found.error > 1e-3
    answers = dataclasses.replace(
        found,
        error=found.error * then.get("error", 1),
        num_same_class=found.num_same_class + then.get("num_same_class", 0),
    )
    settings = dataclasses.replace(report.settings, max_drop=0.01, answers=answers)
    write_tuned(bundle, tmp_path / "out", [(settings, rounded)])
    code, (one,) = checked(tmp_path / "out")
    assert code == (0 if reason is None else 1)
    assert [reason in said for said in one.reasons] == ([] if reason is None else [True])


def test_answers_that_are_not_finite_are_infinitely_wrong(folder, tmp_path, weight):
    broken = save_model(tmp_path / "broken.onnx", np.full_like(weight, np.nan))
    assert golden_answers(broken, SessionSpec(), read_bundle(folder).golden).error == np.inf


def test_what_was_tuned_for_another_machine_is_not_checked_here(tuned, tmp_path):
    bundle, report, other = tuned
    write_tuned(bundle, tmp_path / "out", [(elsewhere(report.settings), other)])
    assert checked(tmp_path / "out") == (0, ())


@pytest.mark.parametrize(
    ("options", "model", "session"),
    [
        ((), "other.onnx", SessionSpec(num_threads=1, spinning=False)),
        (("--threads", "2"), "model.onnx", SessionSpec(num_threads=2)),
        (("--provider", "cpu"), "model.onnx", SessionSpec()),
    ],
)
def test_predict_and_bench_run_what_was_tuned_unless_told_how(
    tuned_folder, tmp_path, inputs, options, model, session
):
    np.save(tmp_path / "x.npy", inputs)
    predicted = run("predict", tuned_folder, tmp_path / "x.npy", "--json", *options)
    assert predicted.exit_code == 0, predicted.output
    report = load_json(PredictReport, predicted.stdout, where="stdout")
    assert (report.model, report.session.spec) == (model, session)
    timed = run("bench", tuned_folder, "--runs", "5", "--warmup", "1", "--json", *options)
    (result,) = load_json(BenchReport, timed.stdout, where="stdout").results
    assert (result.model.path, result.spec.session) == (model, session)


def test_bench_takes_settings_for_the_batch_size_that_they_were_found_with(tuned_folder):
    timed = run("bench", tuned_folder, "--runs", "5", "--warmup", "1", "--batch", "1,2", "--json")
    one, two = load_json(BenchReport, timed.stdout, where="stdout").results
    assert (one.model.path, two.model.path) == ("other.onnx", "model.onnx")
    assert two.spec.session == SessionSpec()
