"""From a checkpoint to a bundle in one call: what is shipped, what is said, what goes on."""

import shutil

import numpy as np
import pytest
from PIL import Image

import resdeploy
from resdeploy.bench.in_turn import TimedSide
from resdeploy.errors import ResdeployError
from resdeploy.tune import search


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of 100 pictures, in the classes of the small network."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(100):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 8), dtype=np.uint8)
        home = folder / f"class {number % 10}"
        home.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(home / f"{number}.png")
    return folder


@pytest.fixture
def loose(photos, tmp_path):
    """Return the same pictures without classes."""
    (tmp_path / "loose").mkdir()
    for path in photos.rglob("*.png"):
        shutil.copy(path, tmp_path / "loose")
    return tmp_path / "loose"


@pytest.fixture
def clock(monkeypatch):
    """Let every candidate take the same time, instead of starting processes, but for one model."""
    factor = {"int8.onnx": 1.0}

    def time_in_turn(sides, *, prove_placement):
        return [
            TimedSide(
                side=None,
                bursts_ns=((int(1000 * factor.get(path.name, 1.0) + place),) * 20,),
                ram_peak_bytes=None,
            )
            for place, (path, _) in enumerate(sides)
        ]

    monkeypatch.setattr(search, "time_in_turn", time_in_turn)
    monkeypatch.setattr(search, "_FINAL_BLOCKS", 3)
    monkeypatch.setattr(search, "_profile", lambda *_: None)
    return factor


def shipped(checkpoint, out, **options):
    return resdeploy.ship(checkpoint, out, providers=["cpu"], **options)


@pytest.fixture(scope="module")
def half_done(checkpoint, photos, tmp_path_factory):
    """Return the folder of a run that was stopped before its search, and the stages it named."""
    seen, folder = [], tmp_path_factory.mktemp("half")

    def stop_before_the_search(stage):
        seen.append(stage)
        if stage == "tune":
            raise KeyboardInterrupt

    options = {"data": photos, "max_drop": 0.3, "on_stage": stop_before_the_search}
    with pytest.raises(KeyboardInterrupt):
        shipped(checkpoint, folder / "parts.zip", **options)
    assert [path.name for path in folder.iterdir()] == ["parts.zip.work"]
    return folder / "parts.zip.work", seen


@pytest.fixture
def work(half_done, tmp_path):
    shutil.copytree(half_done[0], tmp_path / "work", symlinks=True)
    return tmp_path / "work"


def test_without_samples_float32_is_shipped_proved(checkpoint, tmp_path, clock):
    notes = []
    report = shipped(checkpoint, tmp_path / "parts.zip", on_note=notes.append)
    assert report.passed
    assert report.verification.verdict == report.check.verification.verdict == "PROVED"
    assert report.reasons == ("no samples were given, on which a lower precision could be judged",)
    assert report.quants == ()
    assert resdeploy.check(tmp_path / "parts.zip", digest=report.digest).passed
    assert sum(line.startswith("time: about ") for line in notes) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["parts.zip"]


def test_int8_within_the_budget_is_shipped_and_judged_on_other_photos(
    checkpoint, photos, tmp_path, clock, work
):
    clock["int8.onnx"] = 0.1
    report = shipped(checkpoint, tmp_path / "parts.zip", data=photos, max_drop=0.3, work=work)
    assert (report.samples.num_calibration, report.samples.num_held_out) == (20, 80)
    assert report.quants[0].num_calibration < 20
    tried = [trial for trial in report.tuning.trials if trial.model == "int8.onnx"]
    assert tried[0].evidence.startswith("drop ")
    if report.tuning.settings.model == "int8.onnx":
        assert report.reasons == ()
    else:  # by the clock of this machine, with which the last comparison is made
        assert report.reasons
    stages = [one.stage for one in report.stages]
    assert stages == ["export", "time a run", "verify", "int8", "tune", "finish"]
    assert report.told_s > 0
    assert report.took_s > 0


def test_too_few_samples_for_the_budget_are_said_before_the_search(
    checkpoint, photos, tmp_path, clock, work
):
    notes = []
    options = {"data": photos, "max_drop": 0.005, "work": work, "on_note": notes.append}
    report = shipped(checkpoint, tmp_path / "parts.zip", **options)
    (reason,) = report.reasons
    assert "0.5 points cannot be shown on 80 held-out samples: 736 are needed" in reason
    assert "--max-drop 4.6" in reason
    said = [place for place, line in enumerate(notes) if reason in line]
    told = [place for place, line in enumerate(notes) if line.startswith("time: about")]
    assert said < told
    assert report.quants == ()
    assert report.tuning.spec.max_drop is None


def test_an_int8_that_is_not_shown_to_be_good_enough_is_not_shipped(
    checkpoint, photos, tmp_path, clock, monkeypatch, work
):
    """All of its answers are wrong: it is not shipped, though it is fast."""
    from resdeploy.bundle import evaluate
    from resdeploy.tune import judge

    right = evaluate.answer

    def all_wrong(model, *arguments):
        answers = right(model, *arguments)
        if model.name == "int8.onnx":
            answers.predicted[:] = (answers.truth + 1) % 10
        else:
            answers.predicted[:] = answers.truth
        return answers

    monkeypatch.setattr(judge, "answer", all_wrong)
    clock["int8.onnx"] = 0.1
    report = shipped(checkpoint, tmp_path / "parts.zip", data=photos, max_drop=0.3, work=work)
    assert report.tuning.settings.model == "model.onnx"
    assert any(
        one.startswith("int8.onnx: drop ") and "not shown to be within" in one
        for one in report.reasons
    )
    assert report.passed


def test_samples_without_labels_are_judged_by_changed_predictions(
    checkpoint, loose, tmp_path, clock
):
    report = shipped(checkpoint, tmp_path / "b", data=loose, max_flips=0.3)
    assert not report.samples.is_labelled
    (trial, *_) = [one for one in report.tuning.trials if one.model == "int8.onnx"]
    assert trial.drop is not None
    assert 0 <= trial.drop < 1


def test_a_run_that_was_stopped_goes_on_with_what_is_finished(
    checkpoint, photos, tmp_path, clock, work, half_done
):
    assert "verify: float64 reference" in half_done[1]
    again = []
    options = {"data": photos, "max_drop": 0.3, "work": work, "on_stage": again.append}
    report = shipped(checkpoint, tmp_path / "parts.zip", **options)
    assert report.passed
    assert [one.stage for one in report.stages if one.was_kept] == [
        *("export", "time a run", "verify", "int8")
    ]
    assert all(one.told_s in (None, 0) for one in report.stages if one.was_kept)
    assert "verify: float64 reference" not in again
    assert not work.exists()


def test_another_checkpoint_does_not_take_up_the_findings_of_this_one(
    checkpoint, model, tmp_path, clock
):
    def stop(stage):
        if stage == "verify":
            raise KeyboardInterrupt

    copy = tmp_path / "net.safetensors"
    shutil.copy(checkpoint, copy)
    with pytest.raises(KeyboardInterrupt):
        shipped(copy, tmp_path / "b", on_stage=stop)
    from resdeploy.training.checkpoint import save_checkpoint

    copy.unlink()
    save_checkpoint(copy, model.module, model.info.__class__(model=model.info.model))
    report = shipped(copy, tmp_path / "b")
    assert not any(one.was_kept for one in report.stages)


def test_the_commands_name_the_bundle_its_digest_and_a_photo(checkpoint, tmp_path, clock):
    report = shipped(checkpoint, tmp_path / "my parts.zip")
    check, predict, bench = report.commands
    assert check == f"resdeploy check '{tmp_path}/my parts.zip' --digest {report.digest}"
    assert predict == f"resdeploy predict '{tmp_path}/my parts.zip' photo.jpg"
    assert bench == f"resdeploy bench '{tmp_path}/my parts.zip'"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"max_drop": 0.1}, "needs samples"),
        ({"max_flips": 0.1}, "needs samples"),
        ({"precisions": ["int8"]}, "needs samples"),
        ({"data": "PHOTOS", "max_drop": 0.1, "max_flips": 0.1}, "for samples with labels"),
        ({"data": "PHOTOS", "max_flips": 0.1}, "have labels"),
        ({"data": "PHOTOS", "max_drop": 0.0}, "No number of samples"),
        ({"data": "LOOSE", "max_drop": 0.1}, "have no labels"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_done(
    checkpoint, photos, loose, tmp_path, options, what
):
    named = {"PHOTOS": photos, "LOOSE": loose}
    if "data" in options:
        options = {**options, "data": named[options["data"]]}
    with pytest.raises(ResdeployError, match=what):
        shipped(checkpoint, tmp_path / "b", on_stage=lambda _: pytest.fail("it ran"), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loose"]


def test_an_existing_output_or_a_missing_checkpoint_is_refused_at_once(checkpoint, tmp_path):
    (tmp_path / "parts.zip").write_bytes(b"mine")
    with pytest.raises(ResdeployError, match="exists already"):
        shipped(checkpoint, tmp_path / "parts.zip")
    with pytest.raises(ResdeployError, match="no such file"):
        shipped(tmp_path / "absent.ckpt", tmp_path / "other.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["parts.zip"]
