"""What an environment may lack: each time exit code 3, what is missing, and the way out.

The slow tests make a fresh environment with real wheels. The others play the same faces on the one
there is; more of them are in test_session.py and test_openvino.py.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import parser, save_model

from resdeploy.cli import cli
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.session import runtime as runtime_module
from resdeploy.verify.golden_file import Golden, save_golden

REPOSITORY = Path(__file__).parent.parent.parent


def write(folder, body="y = Relu(x)", *, dtype="float", domain=""):
    """Write a model and its golden inputs; return the arguments that verify them."""
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18{domain}]>\n'
        f"tiny ({dtype}[N, 1, 4, 4] x) => ({dtype}[N, 1, 4, 4] y) "
        f"<{dtype}[1, 1, 1, 1] w = {{1}}> {{ {body} }}"
    )
    save_model(model, folder / "model.onnx")
    x = np.random.default_rng(0).normal(size=(4, 1, 4, 4)).astype(np.float32)
    golden = Golden(
        inputs=x,
        reference=np.maximum(x, 0).reshape(4, -1).astype(np.float64),
        noise_l2=np.zeros(4),
        labels=None,
        info=GoldenInfo(source="numpy", inputs="random", num_inputs=4),
    )
    save_golden(folder / "golden.npz", golden)
    files = (str(folder / "model.onnx"), "--golden", str(folder / "golden.npz"))
    return ["verify", *files, "--accept", "outputs"]


def fails(arguments, *parts):
    """Run a command that must end with exit code 3 and a message with these parts."""
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 3, result.output
    for part in ("fix:", *parts):
        assert part in result.stderr
    assert result.stdout == ""


def test_the_command_itself_passes(tmp_path):
    result = CliRunner().invoke(cli, write(tmp_path))
    assert result.exit_code == 0, result.output


# --- an operator that is not to be had -----------------------------------------------------------


def test_an_operator_without_a_kernel_on_these_types(tmp_path):
    arguments = write(tmp_path, "[first] y = Conv(x, w)", dtype="double")
    fails(
        arguments,
        "CPUExecutionProvider has no kernel for Conv of opset",
        "on the types that this model gives it",
        "another provider",
    )


def test_an_operator_of_a_domain_that_the_runtime_does_not_know(tmp_path):
    arguments = write(tmp_path, "y = acme.Foo(x)", domain=', "acme" : 1')
    fails(arguments, "This onnxruntime has no operator Foo of the domain acme", "without it")


@pytest.mark.openvino
def test_an_operator_that_the_provider_would_leave_to_the_cpu(tmp_path):
    arguments = write(tmp_path)
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\n'
        "tiny (float[N, 4, 4] x) => (float[N] y) { y = Det(x) }"
    )
    save_model(model, tmp_path / "model.onnx")
    fails(
        [*arguments, "--provider", "openvino"],
        "OpenVINOExecutionProvider cannot run every node of this model: Det on CPU",
        "another provider",
    )


# --- a provider that is not in the wheel, or not able to start -----------------------------------


def test_a_provider_that_is_not_in_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    fails(
        [*write(tmp_path), "--provider", "cuda"],
        "This onnxruntime was built without CUDAExecutionProvider",
        "onnxruntime-gpu[cuda,cudnn]",
    )


@pytest.mark.skipif(
    sys.platform != "linux" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs onnxruntime-gpu on Linux",
)
def test_cuda_that_is_listed_without_its_libraries(tmp_path, no_cuda):
    fails(
        [*write(tmp_path), "--provider", "cuda"],
        "CUDAExecutionProvider did not start: lib",
        "is missing",
        "onnxruntime-gpu[cuda,cudnn]",
    )


def test_two_runtimes_at_once(tmp_path, monkeypatch):
    both = ("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr(runtime_module, "_is_installed", lambda name: name in both)
    fails(write(tmp_path), "installed together", "pip uninstall -y onnxruntime onnxruntime-gpu")


# --- real wheels ---------------------------------------------------------------------------------


class Environment:
    """An environment of its own, in which resdeploy is run from this checkout."""

    def __init__(self, folder):
        venv.create(folder, with_pip=True)
        self.python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"

    def pip(self, *arguments):
        """Run pip; skip the test if what it is to install cannot be had."""
        done = self._run("-m", "pip", "--disable-pip-version-check", *arguments)
        if done.returncode:
            pytest.skip(f"pip {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")

    def fails(self, arguments, *parts):
        done = self._run("-m", "resdeploy", *arguments)
        assert done.returncode == 3, done.stdout + done.stderr
        for part in ("fix:", *parts):
            assert part in done.stderr
        assert done.stdout == ""

    def passes(self, arguments):
        done = self._run("-m", "resdeploy", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def _run(self, *arguments):
        # Only what is installed here: not the packages of the environment the tests run in.
        environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
        return subprocess.run(
            [str(self.python), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="wheels with CUDA, and names of libraries")
def test_every_trap_of_the_two_runtimes_in_the_order_in_which_users_meet_them(tmp_path, no_cuda):
    arguments = write(tmp_path)
    on_cuda = [*arguments, "--provider", "cuda"]
    here = Environment(tmp_path / "environment")

    here.pip("install", "--quiet", "click", "numpy", "pillow", "rich")
    here.fails(arguments, "'onnxruntime' is not installed", "[cpu]")

    here.pip("install", "--quiet", f"onnxruntime=={onnxruntime.__version__}")
    here.passes(arguments)
    here.fails(on_cuda, "built without CUDAExecutionProvider", "onnxruntime-gpu[cuda,cudnn]")
    here.fails(
        [*arguments, "--provider", "openvino"],
        "onnxruntime-ep-openvino is not installed",
        "pip install onnxruntime-ep-openvino",
    )

    here.pip("install", "--quiet", "--no-deps", f"onnxruntime-gpu=={onnxruntime.__version__}")
    together = ("onnxruntime and onnxruntime-gpu are installed together", "pip uninstall -y")
    here.fails(arguments, *together)
    here.fails(on_cuda, *together)

    here.pip("uninstall", "--quiet", "-y", "onnxruntime")
    here.fails(arguments, "onnxruntime is damaged", "uninstall every package")

    # What the messages said: take all of them away, and install one.
    here.pip("uninstall", "--quiet", "-y", "onnxruntime-gpu")
    here.pip("install", "--quiet", "--no-deps", f"onnxruntime-gpu=={onnxruntime.__version__}")
    here.passes(arguments)
    here.fails(on_cuda, "CUDAExecutionProvider did not start: lib", "onnxruntime-gpu[cuda,cudnn]")


@pytest.mark.slow
def test_openvinos_plugin_from_its_own_wheel(tmp_path):
    arguments = [*write(tmp_path), "--provider", "openvino", "--openvino-precision", "f32"]
    here = Environment(tmp_path / "environment")
    here.pip("install", "--quiet", "click", "numpy", "pillow", "rich")
    here.pip("install", "--quiet", f"onnxruntime=={onnxruntime.__version__}")
    here.pip("install", "--quiet", "onnxruntime-ep-openvino>=1.8")
    done = here._run("-m", "resdeploy", *arguments)
    if done.returncode == 0:
        assert "OpenVINOExecutionProvider" in done.stdout
    else:  # a CPU that it does not take
        here.fails(arguments, "finds no device that it runs on", "another provider")


@pytest.mark.slow
def test_openvino_built_into_the_runtime_takes_every_x86_cpu(tmp_path):
    """Whoever made the CPU. What it computes in: `pytest -m openvino` in such an environment."""
    arguments = [*write(tmp_path), "--provider", "openvino", "--openvino-precision", "f32"]
    here = Environment(tmp_path / "environment")
    here.pip("install", "--quiet", "click", "numpy", "pillow", "rich")
    here.pip("install", "--quiet", "onnxruntime-openvino")
    here.passes(arguments)
