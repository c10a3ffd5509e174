"""`tune --on`: each device searches by itself, and one bundle has what all of them found."""

import dataclasses
import os
import re
import sys

import numpy as np
import onnx
import pytest
from flat_bundle import write_small_bundle
from onnx import numpy_helper, parser

from resdeploy.bundle.folder import read_bundle
from resdeploy.errors import ResdeployError
from resdeploy.remote import fleet_run
from resdeploy.remote.jobs import tune_job
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.recipes import DataSpec
from resdeploy.schema.remotes import RemoteReport
from resdeploy.schema.tunings import TuneReport

NUM_FEATURES, NUM_CLASSES = 256, 16
# The smallest file wins: one block tells, and it is the int8 whatever the machine does meanwhile.
FAST = ("--threads", "1", "--runs", "20", "--objective", "size", "--provider", "cpu")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A matrix product as a bundle, and samples to judge it by and to calibrate it with."""
    folder = tmp_path_factory.mktemp("tuned")
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(NUM_FEATURES, NUM_CLASSES)).astype(np.float32)
    text = (
        f'<ir_version: 8, opset_import: ["": 18]> g (float[N, {NUM_FEATURES}] x) => '
        f"(float[N, {NUM_CLASSES}] y) {{ y = Gemm (x, w) }}"
    )
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(weight, name="w"))
    onnx.save(model, folder / "product.onnx")
    x = rng.normal(size=(1200, NUM_FEATURES)).astype(np.float32)
    golden, reference = x[:8], x[:8].astype(np.float64) @ weight.astype(np.float64)
    noise_l2 = np.linalg.norm(golden @ weight - reference, axis=1)
    path, model = folder / "product", folder / "product.onnx"
    write_small_bundle(path, "product", model, golden, reference, noise_l2=noise_l2)
    np.savez(folder / "judged.npz", x=x[:800], y=(x[:800] @ weight).argmax(axis=1))
    np.savez(folder / "calibration.npz", x=x[800:])
    return folder


@pytest.fixture
def bundle(packed):
    return packed / "product"


@pytest.fixture
def within_budget(packed):
    data = ("--data", packed / "judged.npz", "--calibration", packed / "calibration.npz")
    return ("--max-drop", "20", *data)


def reports_of(result):
    return load_json(RemoteReport, result.stdout, where="stdout").devices


def test_a_device_makes_int8_of_files_that_travel_and_its_winner_comes_back(
    run, make_device, fleet_file, bundle, within_budget, tmp_path, monkeypatch
):
    stages = []
    enter = fleet_run._Device._enter
    monkeypatch.setattr(
        fleet_run._Device, "_enter", lambda self, stage: (stages.append(stage), enter(self, stage))
    )
    said = []
    progress = fleet_run._Device._progress
    monkeypatch.setattr(
        fleet_run._Device, "_progress", lambda self, text: (said.append(text), progress(self, text))
    )
    device = make_device()
    fleet = fleet_file(device)
    result = run(
        *("tune", bundle, "-o", tmp_path / "out", "--fleet", fleet, *within_budget, *FAST, "--json")
    )
    assert result.exit_code == 0, result.output
    (found,) = reports_of(result)
    assert found.tune.best.model == "int8.onnx"
    (settings,) = read_bundle(tmp_path / "out").manifest.tuned
    assert settings == found.tune.settings
    assert settings.quant.calibration == "npz (calibration.npz, x)"
    assert (tmp_path / "out" / "int8.onnx").stat().st_size == found.tune.best.size_bytes
    assert run("check", tmp_path / "out").exit_code == 0, "it is the file that was judged there"
    assert stages == ["connect", "install", "copy", "tune", "fetch", "done"]
    assert all(re.search("judge|race|make int8|against the defaults", text) for text in said)
    assert said, "it takes seconds"
    assert device.left_behind() == []


@pytest.mark.slow
def test_what_is_here_already_is_not_fetched(run, make_device, fleet_file, bundle, tmp_path):
    """The winner is the bundle's own model; a table says so."""
    fleet = fleet_file(make_device())
    result = run("tune", bundle, "-o", tmp_path / "out", "--fleet", fleet, *FAST)
    assert result.exit_code == 0, result.output
    assert "best: model.onnx, cpu" in result.stdout
    assert read_bundle(tmp_path / "out").manifest.tuned[0].model == "model.onnx"


@pytest.mark.slow
def test_what_makes_int8_is_installed_where_it_is_to_be_made(
    run, make_device, fleet_file, bundle, within_budget, tmp_path
):
    """A device that has nothing but Python, and a package index: no torch comes to it."""
    device = make_device(python_path=tmp_path / "none")
    fleet = fleet_file(device, environment=None, python=sys.executable)
    result = run(
        *("tune", bundle, "-o", tmp_path / "out", "--fleet", fleet, *within_budget, *FAST, "--json")
    )
    assert result.exit_code == 0, result.output
    (found,) = reports_of(result)
    assert found.installation.origin == "made"
    assert found.tune.best.model == "int8.onnx"
    (packages,) = device.cache.glob("environments/*/lib/*/site-packages")
    assert (packages / "onnx").is_dir()
    assert not (packages / "torch").exists()


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_one_bundle_has_what_two_devices_found_and_the_error_of_a_third(
    run, make_device, fleet_file, bundle, within_budget, tmp_path
):
    """One of the two is another machine: it has a single CPU."""
    cpu = min(os.sched_getaffinity(0))
    small = f'ForceCommand taskset -c {cpu} sh -c "$SSH_ORIGINAL_COMMAND"'
    gone = make_device()
    fleet = fleet_file(make_device(), make_device(small), gone)
    gone.stop()
    result = run(
        *("tune", bundle, "-o", tmp_path / "out", "--fleet", fleet, *within_budget, *FAST, "--json")
    )
    assert result.exit_code == 1, result.output
    assert "error: device 2: The device cannot be reached" in result.stderr
    tuned = read_bundle(tmp_path / "out").manifest.tuned
    assert tuned == tuple(found.tune.settings for found in reports_of(result)[:2])
    assert tuned[1].target.num_cpus_allowed == 1 != tuned[0].target.num_cpus_allowed
    assert {one.model for one in tuned} == {"int8.onnx"}, "the same samples give the same bytes"


@pytest.fixture(scope="module")
def searched(packed, tmp_path_factory):
    """The record of a search, as a device prints it."""
    from click.testing import CliRunner

    from resdeploy.cli import cli

    words = ("tune", packed / "product", *FAST, "--json")
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return load_json(TuneReport, result.stdout, where="stdout")


@pytest.mark.parametrize("name", ["../../evil.onnx", "/evil.onnx", "evil.sh"])
def test_a_device_that_names_its_model_as_a_path_writes_nothing(
    run, make_device, fleet_file, bundle, fake_resdeploy, searched, tmp_path, name
):
    settings = dataclasses.replace(searched.settings, model=name)
    record = dump_json(dataclasses.replace(searched, settings=settings))
    device = make_device(python_path=fake_resdeploy(f"print({record!r})"))
    result = run("tune", bundle, "-o", tmp_path / "out", "--fleet", fleet_file(device), "--json")
    assert result.exit_code == 3, result.output
    (found,) = reports_of(result)
    assert found.failure.what == f"The device calls a model {name!r}."
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.rglob("evil*")) == []


def test_a_device_that_does_not_send_what_its_record_says(
    run, make_device, fleet_file, bundle, fake_resdeploy, searched, tmp_path
):
    settings = dataclasses.replace(searched.settings, model="int8.onnx")
    record = dump_json(dataclasses.replace(searched, settings=settings))
    program = (
        "import pathlib; pathlib.Path('tuned').mkdir();"
        f"pathlib.Path('tuned/int8.onnx').write_bytes(b'short'); print({record!r})"
    )
    device = make_device(python_path=fake_resdeploy(program))
    result = run("tune", bundle, "-o", tmp_path / "out", "--fleet", fleet_file(device), "--json")
    assert result.exit_code == 3, result.output
    assert "0 bytes of tuned/int8.onnx" in reports_of(result)[0].failure.what
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_an_error_here(run, bundle, tmp_path):
    missing = ("--max-drop", "1", "--data", tmp_path / "none.npz", "--on", "nowhere.invalid")
    result = run("tune", bundle, *missing)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "none.npz" in result.stderr


def test_a_folder_of_images_and_the_weights_beside_a_variant_travel_as_they_are(bundle, tmp_path):
    paths = [tmp_path / "photos" / "train" / "cat" / "1.png", tmp_path / "v.onnx"]
    paths.append(tmp_path / "v.onnx.data")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    job = tune_job(
        bundle,
        (("--runs", "20"),),
        variants=[tmp_path / "v.onnx"],
        data=DataSpec(name="image-folder", path=str(tmp_path / "photos")),
        calibration=DataSpec(name="digits"),
        folder=tmp_path,
    )
    assert [there for _, there in job.files if not there.startswith("bundle/")] == [
        "variants/v.onnx",
        "variants/v.onnx.data",
        "data/train/cat/1.png",
    ]
    assert job.calls[0].options == (
        ("--runs", "20"),
        ("--variant", "variants/v.onnx"),
        ("--data", "image-folder:data"),
        ("--calibration", "digits"),
        ("-o", "tuned"),
    )
    assert job.extras == ("quantize",)


def test_an_empty_folder_of_data_is_an_error_here(bundle, tmp_path):
    spec = DataSpec(name="image-folder", path=str(tmp_path))
    with pytest.raises(ResdeployError, match="no data here"):
        tune_job(bundle, (), variants=(), data=spec, calibration=None, folder=tmp_path)
