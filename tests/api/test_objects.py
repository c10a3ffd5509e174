"""Live objects in: modules, images, arrays; an open bundle; wrong kinds named."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image

import resdeploy
from resdeploy.bundle.folder import read_bundle
from resdeploy.schema.codec import load_json
from resdeploy.schema.exports import ExportReport
from resdeploy.session import session as session_module

# --- load ----------------------------------------------------------------------------------------


def test_a_model_knows_its_module_and_its_input(model):
    assert isinstance(model, resdeploy.Model)
    assert isinstance(model.module, torch.nn.Module)
    assert model.input_shape == (1, 8, 8)
    assert not model.module.training
    assert repr(model).endswith("from checkpoint.safetensors', input_shape=(1, 8, 8))")


def test_a_live_module_is_a_model_and_is_not_changed():
    module = torch.nn.Linear(3, 2).eval()
    loaded = resdeploy.load(module, input_shape=(3,))
    assert loaded.module is module
    assert loaded.input_shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.nn.Linear(3, 2).eval(), {}), resdeploy.ResdeployError, "input is not known"),
        ((torch.nn.Linear(3, 2), {"input_shape": (3,)}), resdeploy.ResdeployError, "training mode"),
        (
            (torch.nn.Linear(3, 2, device="meta").eval(), {"input_shape": (3,)}),
            resdeploy.ResdeployError,
            "on meta",
        ),
        ((torch.nn.Linear(3, 2).eval(), {"arch": "x"}), resdeploy.ResdeployError, "arch is for a"),
        ((7, {}), TypeError, "source must be a path, a Model or a torch module, not int"),
        (("gone.pth", {"arch": "resnet18"}), resdeploy.ResdeployError, "gone.pth"),
        (("gone.pth", {"provider": "cpu"}), resdeploy.ResdeployError, "provider is for a bundle"),
        (("parts.zip", {"arch": "resnet18"}), resdeploy.ResdeployError, "arch is not for it"),
    ],
)
def test_what_cannot_be_loaded_is_refused(arguments, error, message):
    source, options = arguments
    with pytest.raises(error, match=message):
        resdeploy.load(source, **options)


def test_the_record_of_an_export_goes_through_json(model, tmp_path):
    stages = []
    report = resdeploy.export(model, tmp_path / "m.onnx", batch=2, on_stage=stages.append)
    assert report.verification.passed
    assert load_json(ExportReport, report.to_json(), where="test") == report
    assert "<b>PASS</b>" in report._repr_html_()
    assert stages[0] == "load"


# --- bundles -------------------------------------------------------------------------------------


@pytest.fixture
def opened(packed):
    with resdeploy.load(packed) as bundle:
        yield bundle


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_an_image_its_file_and_its_array_get_the_same_answer(opened, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    answers = [
        opened(sample, top=3).classes
        for sample in (photo, tmp_path / "photo.png", np.asarray(photo)[np.newaxis])
    ]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 3
    assert answers[0][0].label == f"class {answers[0][0].index}"


def test_the_answer_is_the_networks(opened, model, photo):
    scaled = torch.tensor(np.asarray(photo), dtype=torch.float32)[None, None] / 255
    with torch.no_grad():
        scores = model.module(scaled)[0].double()
    assert opened(photo).classes[0].index == int(scores.argmax())
    expected = float(torch.softmax(scores, 0).max())
    assert opened(photo).classes[0].probability == pytest.approx(expected, rel=1e-5)


def test_a_bundle_is_opened_once(packed, photo, monkeypatch):
    opened = []
    honest = session_module.open_session
    monkeypatch.setattr(
        session_module, "open_session", lambda *a, **k: opened.append(a) or honest(*a, **k)
    )
    with resdeploy.load(packed) as bundle:
        for _ in range(3):
            bundle(photo)
    assert len(opened) == 1


def test_several_samples_are_for_predict(opened, packed, photo):
    with pytest.raises(resdeploy.ResdeployError, match=r"one sample; these are 2"):
        opened([photo, photo])
    report = opened.predict([photo, np.asarray(photo)[np.newaxis]])
    assert [one.input for one in report.predictions] == ["input 0", "input 1[0]"]
    assert (
        resdeploy.predict(packed, [photo], top=2).predictions[0].classes
        == opened(photo, top=2).classes
    )


def test_what_is_no_sample_is_named(opened):
    with pytest.raises(TypeError, match="an input must be a path, an image or an array, not int"):
        opened(7)


def test_a_closed_bundle_leaves_nothing_and_answers_no_more(packed, photo):
    bundle = resdeploy.Bundle(packed)
    folder = bundle._folder.path
    assert folder.is_dir()
    bundle.close()
    bundle.close()
    assert not folder.exists()
    with pytest.raises(resdeploy.ResdeployError, match="was closed"):
        bundle(photo)


def test_a_forgotten_bundle_leaves_nothing(packed):
    bundle = resdeploy.Bundle(packed)
    folder = bundle._folder.path
    del bundle
    gc.collect()
    assert not folder.exists()


def test_a_bundle_says_what_it_is(opened):
    assert repr(opened) == "Bundle('parts', 10 classes)"
    assert opened.labels[3] == "class 3"


def test_a_bundle_that_is_none_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(resdeploy.BundleError):
        resdeploy.load(tmp_path / "x.zip")


def test_a_folder_is_a_bundle_too(model, tmp_path):
    manifest = resdeploy.bundle(
        model.module, tmp_path / "folder", input_shape=model.input_shape, num_inputs=2, name="mine"
    )
    assert manifest.name == "mine"
    assert read_bundle(tmp_path / "folder").manifest == manifest
    assert isinstance(resdeploy.load(tmp_path / "folder"), resdeploy.Bundle)


# --- the other verbs -----------------------------------------------------------------------------


def test_a_bench_has_its_median_in_milliseconds(exported):
    told = []
    report = resdeploy.bench(
        exported,
        provider=resdeploy.SessionSpec(num_threads=1),
        batch_size=[1, 2],
        num_runs=20,
        num_warmup=5,
        on_progress=lambda *step: told.append(step),
    )
    assert [r.spec.batch_size for r in report.results] == [1, 2]
    assert report.results[0].p50_ms == report.results[0].summary.p50_ns / 1e6
    with pytest.raises(ValueError, match="unpack"):
        _ = report.p50_ms
    assert {remark for _, _, remark in told} <= {"1 of 2", "2 of 2"}


def test_samples_in_memory_are_evaluated(exported):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12, 1, 8, 8), dtype=np.uint8), rng.integers(0, 10, 12)
    report = resdeploy.evaluate(exported, (x, y), against=exported, max_drop=0.5)
    assert report.samples == "all 12 held-out samples of the given samples"
    assert report.paired is not None
    with pytest.raises(resdeploy.ResdeployError, match="12 samples need as many whole numbers"):
        resdeploy.evaluate(exported, (x, y[:3]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: resdeploy.export(7, "m.onnx"), TypeError, "source must be"),
        (lambda: resdeploy.export("x", 7), TypeError, "out must be a path"),
        (lambda: resdeploy.export("x", "y", batch="3"), ValueError, "batch must be 'dynamic' or"),
        (lambda: resdeploy.export("x", "y", batch=True), ValueError, "batch must be 'dynamic' or"),
        (lambda: resdeploy.bundle("x", None), TypeError, "out must be a path"),
        (lambda: resdeploy.check(7), TypeError, "bundle must be a path"),
        (lambda: resdeploy.bench(7), TypeError, "model must be a path"),
        (lambda: resdeploy.bench("x", scenario="fast"), ValueError, "scenario must be one of"),
        (lambda: resdeploy.evaluate("x", None), TypeError, "data must be a path, not NoneType"),
        (lambda: resdeploy.evaluate("x", "digits", provider=["cpu", "cuda"]), ValueError, "be one"),
        (
            lambda: resdeploy.evaluate("x", "digits", max_drop=0.1),
            resdeploy.ResdeployError,
            "drop from",
        ),
        (lambda: resdeploy.quantize("x", "y", calibration=None), TypeError, "calibration must be"),
        (
            lambda: resdeploy.quantize("x", "y", calibration="digits", precision="fp16"),
            ValueError,
            "precision must be one of int8, float16, bfloat16, not 'fp16'",
        ),
        (lambda: resdeploy.tune("x", objective="speed"), ValueError, "objective must be one of"),
        (lambda: resdeploy.tune("x", max_drop=0.1), resdeploy.ResdeployError, "go together"),
        (
            lambda: resdeploy.tune("x", calibration="digits"),
            resdeploy.ResdeployError,
            "not lossless",
        ),
        (
            lambda: resdeploy.tune("x", precisions=["int8"]),
            resdeploy.ResdeployError,
            "calibration samples",
        ),
        (lambda: resdeploy.tune("x", batch_sizes=[1, 2]), resdeploy.ResdeployError, "throughput"),
        (
            lambda: resdeploy.bench("x", max_slowdown=0.1),
            resdeploy.ResdeployError,
            "another model",
        ),
        (
            lambda: resdeploy.bench("x", against="y", batch_size=[1, 2]),
            resdeploy.ResdeployError,
            "one batch size",
        ),
        (
            lambda: resdeploy.bench("x", against="y", profile=True),
            resdeploy.ResdeployError,
            "for one model",
        ),
        (
            lambda: resdeploy.train("digits-resnet8", precision="fp16"),
            ValueError,
            "precision must be one of float32, bfloat16",
        ),
        (lambda: resdeploy.fold_batchnorm(7), TypeError, "source must be a path, a Model"),
        (
            lambda: resdeploy.fold_batchnorm("x", example=1),
            resdeploy.ResdeployError,
            "example is for a module",
        ),
        (
            lambda: resdeploy.fold_batchnorm(torch.nn.Linear(1, 1), out="x"),
            resdeploy.ResdeployError,
            "out is for a file",
        ),
    ],
)
def test_a_wrong_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
