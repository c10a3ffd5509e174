"""What a target installs: the wheel alone, without torch, on old runtimes too."""

import json
import os
import re
import shlex
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

# The oldest that we support, two in between, and the newest there is.
RUNTIMES = ("1.18", "1.20", "1.23", None)


def pip(*arguments, python=sys.executable):
    command = [sys.executable, "-m", "pip", "--python", str(python), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done = pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, REPOSITORY)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("resdeploy-*.whl")
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle made here, with torch, in one file; and something to predict."""
    from click.testing import CliRunner
    from PIL import Image

    from resdeploy.cli import cli
    from resdeploy.networks import build_network
    from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess
    from resdeploy.training.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("made")
    spec = ModelSpec(arch="resnet8_tiny", num_classes=10, options={"in_channels": 1})
    preprocess = Preprocess(input_shape=(1, 8, 8), divisor=255.0, color="gray")
    save_checkpoint(
        folder / "net.safetensors",
        build_network(spec).eval(),
        CheckpointInfo(model=spec, preprocess=preprocess),
    )
    arguments = ["bundle", folder / "net.safetensors", "-o", folder / "net.zip"]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--triton", str(folder / "triton")])
    assert result.exit_code == 0, result.output
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    digits = np.random.default_rng(1).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "digits.npz", x=digits, y=np.arange(12) % 10)
    with zipfile.ZipFile(folder / "net.zip") as archive:
        archive.extractall(folder / "net")
    return folder


def environment_in(folder, *packages):
    """Return the interpreter of a new environment with these packages, or skip without a wheel."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    done = pip("install", "--quiet", "--only-binary=:all:", *packages, python=python)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"pip has no wheel for this Python: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python


def run(python, folder, *arguments):
    """Run the installed command far from the checkout, and return what it printed."""
    done = subprocess.run(
        [str(python.with_name("resdeploy")), *arguments],
        cwd=folder,
        # Nothing of this checkout may be found.
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def run_all(python, folder):
    """Run every command of the target, and return the records."""
    commands = {
        "doctor": ("doctor",),
        "probe": ("probe",),
        "check": ("check", "net.zip"),
        "predict": ("predict", "net.zip", "photo.png"),
        "evaluate": ("evaluate", "net.zip", "--data", "digits.npz", "--against", "net/model.onnx"),
        "verify": ("verify", "net/model.onnx", "--golden", "net/golden.npz"),
        "bench": ("bench", "net/model.onnx", "--runs", "20"),
    }
    for arguments in commands.values():
        assert run(python, folder, *arguments)
    return {
        name: json.loads(run(python, folder, *arguments, "--json"))
        for name, arguments in commands.items()
    }


def versions_in(python):
    script = "import importlib.metadata as m; print({d.name.lower() for d in m.distributions()})"
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("version", RUNTIMES)
def test_a_bundle_made_here_checks_predicts_and_times_on_a_bare_installation(
    wheel, bundle, tmp_path, version
):
    """With the extra `cpu` alone, which is all a target installs."""
    packages = [f"{wheel}[cpu]"] + ([f"onnxruntime=={version}.*"] if version else [])
    python = environment_in(tmp_path / "env", *packages)
    installed = versions_in(python)
    for package in ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors", "onnxsim"):
        assert f"'{package}'" not in installed
    records = run_all(python, bundle)
    found = records["probe"]["runtime_version"]
    assert version is None or found.startswith(f"{version}.")
    faults = [f for f in records["doctor"]["findings"] if f["verdict"] == "fault"]
    assert faults == []
    # The metadata of an installed wheel tells what it needs, so the versions are looked at.
    assert "numpy" in {f["subject"] for f in records["doctor"]["findings"]}
    (verdict,) = records["check"]["verification"]["verdicts"]
    assert verdict["comparison"]["reasons"] == []
    assert verdict["placement"]["executed"].keys() == {"CPUExecutionProvider"}
    (timed,) = records["bench"]["results"]
    assert timed["latencies_ns"]
    import resdeploy
    from resdeploy.schema.codec import to_json

    here = to_json(resdeploy.predict(bundle / "net.zip", bundle / "photo.png"))
    for mine, theirs in zip(
        here["predictions"][0]["classes"], records["predict"]["predictions"][0]["classes"],
        strict=True,
    ):  # fmt: skip
        assert mine["index"] == theirs["index"]
        assert mine["probability"] == pytest.approx(theirs["probability"], rel=1e-4)


def test_the_commands_that_ship_prints_run_where_there_is_no_torch(wheel, bundle, tmp_path):
    from click.testing import CliRunner
    from PIL import Image

    from resdeploy.cli import cli

    out = tmp_path / "parts.zip"
    shipped = CliRunner().invoke(
        cli, ["ship", str(bundle / "net.safetensors"), "-o", str(out), "--json"]
    )
    assert shipped.exit_code == 0, shipped.output
    report = json.loads(shipped.stdout)
    python = environment_in(tmp_path / "env", f"{wheel}[cpu]")
    Image.new("L", (20, 30), 90).save(tmp_path / "photo.jpg")
    for command in report["commands"]:
        run(python, tmp_path, *shlex.split(command)[1:])


@pytest.mark.parametrize(
    "platform", ["manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "manylinux_2_34_aarch64"]
)
def test_every_package_of_the_target_has_a_wheel_for_the_platform(wheel, tmp_path, platform):
    """What can be said of another processor from here: pip finds all it needs, ready built."""
    older = [f"manylinux_2_{minor}_{platform.partition('_2_')[2][3:]}" for minor in (17, 27, 28)]
    tags = [f"--platform={tag}" for tag in (platform, *older)]
    done = pip(
        *("install", "--dry-run", "--ignore-installed", "--only-binary=:all:"),
        *("--target", tmp_path / "none", "--python-version=3.12", *tags, f"{wheel}[cpu]"),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"Would install .*onnxruntime-\d", done.stdout)


def test_the_wheel_holds_the_zoo_and_runs_on_any_machine(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "resdeploy/models/digits-resnet8/recipe.toml" in names
    assert not [name for name in names if name.startswith("tests/")]


def test_triton_s_own_package_reads_the_config(bundle, tmp_path):
    packages = ("tritonclient", "grpcio", "protobuf", "numpy", "packaging")
    python = environment_in(tmp_path / "env", *packages)
    script = (
        "import sys\n"
        "from google.protobuf import text_format\n"
        "from tritonclient.grpc import model_config_pb2 as m\n"
        "c = text_format.Parse(open(sys.argv[1]).read(), m.ModelConfig())\n"
        "assert (c.name, c.platform, c.max_batch_size) == ('net', 'onnxruntime_onnx', 32)\n"
        "assert list(c.input[0].dims) == [1, 8, 8] and list(c.output[0].dims) == [10]\n"
        "assert m.DataType.Name(c.input[0].data_type) == 'TYPE_FP32'\n"
    )
    config = bundle / "triton" / "net" / "config.pbtxt"
    done = subprocess.run(
        [str(python), "-c", script, str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_two_runtimes_in_one_environment_are_told_apart_from_one(wheel, tmp_path):
    """The accident of the two wheels, for real: doctor names it, and exits with 3."""
    python = environment_in(tmp_path / "env", f"{wheel}[cpu]")
    (metadata,) = (tmp_path / "env").glob("lib/*/site-packages/onnxruntime-*.dist-info")
    second = metadata.with_name(metadata.name.replace("onnxruntime-", "onnxruntime_gpu-"))
    second.mkdir()
    text = (metadata / "METADATA").read_text().replace("Name: onnxruntime", "Name: onnxruntime-gpu")
    (second / "METADATA").write_text(text)
    command = [str(python.with_name("resdeploy")), "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "overwrite each other" in done.stdout


def test_the_first_session_of_the_page_runs_on_the_installed_wheel(wheel, tmp_path):
    """With this environment's torch, but the package as the wheel has it."""
    done = pip("install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel)
    assert done.returncode == 0, done.stderr
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    session = re.search(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)[1]
    script = f"""
import torch
from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec

network = build_network(ModelSpec(arch="cifar_resnet20", num_classes=10, options={{}}))
network(torch.randn(16, 3, 32, 32))
torch.save(network.state_dict(), "resnet20.th")
{session}
assert resdeploy.__file__.startswith({str(tmp_path / "site")!r}), resdeploy.__file__
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
