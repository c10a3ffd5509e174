"""Common mistakes: the right fix, before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from resdeploy.cli.shapes import parse_shape

# Run in a fresh process, which says what it loaded by the time the error is printed.
PROGRAM = """
import sys
from resdeploy.cli import main
try:
    main()
finally:
    heavy = {"torch", "onnxruntime", "onnx", "numpy"} & set(sys.modules)
    print("loaded:", *sorted(heavy))
"""


class Mistake(NamedTuple):
    says: str
    fix: str
    line: str
    code: int = 2


EXPORT = "-o new.onnx"
MISTAKES = {
    "a wrong path": Mistake(
        "no such file", "did you mean resnet50.pth?", f"export resnet5.pth {EXPORT}"
    ),
    "another suffix": Mistake(
        "no such file", "did you mean resnet50.pth?", f"export resnet50.pt {EXPORT}"
    ),
    "a wrong folder": Mistake("no folder 'rnus'", "did you mean runs?", "bench rnus/model.onnx"),
    "a folder of weights": Mistake(
        "folder is not a model", "did you mean weights/a.pth?", f"export weights {EXPORT}"
    ),
    "the folder of the runs": Mistake(
        "folder is not a model", "did you mean runs/digits?", f"export runs {EXPORT}"
    ),
    "a recipe for a checkpoint": Mistake(
        "a recipe, not a trained model",
        "resdeploy train digits-resnet8",
        f"export digits-resnet8 {EXPORT}",
    ),
    "a factory for a checkpoint": Mistake(
        "no such file", "--model my_net:build", f"export my_net:build {EXPORT}"
    ),
    "an unknown architecture": Mistake(
        "no architecture 'resnt50'", "resnet50", f"export resnet50.pth --arch resnt50 {EXPORT}"
    ),
    "an architecture in capitals": Mistake(
        "no architecture 'ResNet50'",
        "did you mean resnet50",
        f"export resnet50.pth --arch ResNet50 {EXPORT}",
    ),
    "an unknown provider": Mistake(
        "no provider 'cdua'", "did you mean cuda?", "bench model.onnx --provider cdua"
    ),
    "a provider by its long name": Mistake(
        "no provider 'CPUExecutionProvider'",
        "did you mean cpu?",
        "verify model.onnx --reference resnet50.pth --provider CPUExecutionProvider",
    ),
    "an unknown recipe": Mistake(
        "no recipe 'digits-resnet'", "did you mean digits-resnet8?", "train digits-resnet"
    ),
    "an unknown recipe for a model": Mistake(
        "no recipe 'imagenet'",
        "imagenet-resnet50",
        f"export resnet50.pth --arch resnet50 --recipe imagenet {EXPORT}",
    ),
    "a shape with x": Mistake(
        "'224x224x3' is not a shape",
        "did you mean 3,224,224?",
        f"export --model my_net:build --input 224x224x3 {EXPORT}",
    ),
    "channels last": Mistake(
        "has the channels last",
        "did you mean 3,224,224?",
        f"export --model my_net:build --input 224,224,3 {EXPORT}",
    ),
    "an existing output": Mistake(
        "The output exists already", "--force", "export resnet50.pth --arch resnet50 -o model.onnx"
    ),
    "an existing folder": Mistake(
        "The output exists already", "--force", "bundle resnet50.pth --arch resnet50 -o runs"
    ),
    "a training that was done": Mistake(
        "The run directory is in use", "--resume", "train digits-resnet8 -o runs"
    ),
    "a training into the usual place, again": Mistake(
        "The run directory is in use", "--force", "train cifar10-resnet20"
    ),
    "calibration arrays that are not there": Mistake(
        "no such file", "give a file", "quantize model.onnx -o int8.onnx --calibration x.npz"
    ),
    "an output into nowhere": Mistake(
        "folder to write to does not exist",
        "mkdir -p out",
        "export resnet50.pth --arch resnet50 -o out/model.onnx",
    ),
    "an output of another tool": Mistake(
        "TensorRT files are not written",
        "write model.onnx",
        "export resnet50.pth --arch resnet50 -o model.engine",
    ),
    "no function": Mistake(
        "Which function of my_net is meant?",
        "--model my_net:build",
        f"export --model my_net --input 3,8,8 {EXPORT}",
    ),
    "a wrong function": Mistake(
        "no 'biuld' in my_net",
        "did you mean build?",
        f"export --model my_net:biuld --input 3,8,8 {EXPORT}",
    ),
    "a wrong module": Mistake(
        "no Python module 'my_nte'",
        "did you mean my_net?",
        f"export --model my_nte:build --input 3,8,8 {EXPORT}",
    ),
    "a wrong module in a package": Mistake(
        "no 'smal' in zoo",
        "did you mean small?",
        f"export --model zoo.smal:build --input 3,8,8 {EXPORT}",
    ),
    "a Keras file": Mistake("a file of Keras", "tf2onnx.convert --keras m.h5", "bench m.h5"),
    "a TensorFlow Lite file": Mistake(
        "TensorFlow Lite", "--tflite m.tflite", f"export m.tflite {EXPORT}"
    ),
    "a TensorFlow graph": Mistake("TensorFlow", "--saved-model", f"export m.pb {EXPORT}"),
    "a TensorRT engine": Mistake("TensorRT", "cannot be read back", "bench m.engine"),
    "a checkpoint where a file is wanted": Mistake(
        "This is a trained model", "resdeploy export resnet50.pth", "bench resnet50.pth"
    ),
    "a run where a bundle is wanted": Mistake(
        "This is a trained model", "resdeploy export runs/digits", "check runs/digits"
    ),
    "an ONNX file where a checkpoint is wanted": Mistake(
        "This is an ONNX file", "resdeploy fold-bn", f"export model.onnx {EXPORT}"
    ),
    "a bundle where a checkpoint is wanted": Mistake(
        "This is a bundle", "it was made of", f"export parts {EXPORT}"
    ),
    "a folder where a bundle is wanted": Mistake(
        "folder is not a model", "did you mean weights/a.pth?", "check weights"
    ),
    "an opset of the far future": Mistake(
        "no opset 100",
        "leave --opset away",
        "export resnet50.pth --arch resnet50 --opset 100 -o new.onnx",
    ),
    "no images to calibrate with": Mistake(
        "holds no images", ".jpg", "quantize model.onnx -o int8.onnx --calibration empty"
    ),
    "calibration data that are not there": Mistake(
        "no data set 'phtos'",
        "did you mean photos?",
        "quantize model.onnx -o int8.onnx --calibration phtos",
    ),
    "a wrong image": Mistake("no such file", "photos/a.png", "predict parts photos/b.png"),
    "the record of the target is missing": Mistake(
        "record of the target cannot be read",
        "resdeploy probe -o",
        "export resnet50.pth --arch resnet50 --for target.json -o new.onnx",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as people have one; no file of it is ever read."""
    root = tmp_path_factory.mktemp("work")
    for name in (
        *("resnet50.pth", "model.onnx", "weights/a.pth", "runs/digits/checkpoint.safetensors"),
        *("parts/manifest.json", "photos/a.png", "empty/readme.txt", "zoo/__init__.py"),
        *("m.h5", "m.tflite", "m.pb", "m.engine", "runs/cifar10-resnet20/metrics.jsonl"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    network = "import torch\n\ndef build():\n    return torch.nn.ReLU()\n"
    (root / "my_net.py").write_text(network)
    (root / "zoo" / "small.py").write_text(network)
    return root


@pytest.mark.parametrize("name", MISTAKES)
def test_a_common_mistake_is_answered_at_once_with_its_fix(name, folder):
    mistake = MISTAKES[name]
    before = sorted(folder.rglob("*"))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *mistake.line.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stdout, stderr = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    process.stderr.close()
    print(f"{usage.ru_utime + usage.ru_stime:.2f} s of CPU")  # pytest -rP shows it
    assert process.returncode == mistake.code, stderr
    flat = " ".join(stderr.split())
    assert mistake.says in flat
    assert mistake.fix in flat.partition(mistake.says)[2]
    assert stdout == "loaded:\n"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("224x224x3", "3,224,224"),
        ("224x224", "3,224,224"),
        ("(3, 224, 224)", "3,224,224"),
        ("[1,3,224,224]", "3,224,224"),
        ("1x28x28", "1,28,28"),
        ("32,32,1", "1,32,32"),
    ],
)
def test_a_shape_in_another_form_is_answered_with_the_one_that_was_meant(text, meant):
    with pytest.raises(click.BadParameter, match=f"did you mean {meant}\\?"):
        parse_shape(text, flag="--input")


@pytest.mark.parametrize(
    "text", ["3,224,224", "40", "12,1000", "64,100,3", "8,8,3", "3,16,112,112"]
)
def test_a_shape_that_may_be_meant_is_taken(text):
    assert ",".join(map(str, parse_shape(text, flag="--input"))) == text


@pytest.mark.parametrize("text", ["", "three", "3,0,8", "x", "3,-1,8"])
def test_a_text_that_is_no_shape_is_refused_without_a_guess(text):
    with pytest.raises(click.BadParameter, match=r"is not a shape such as 3,224,224$"):
        parse_shape(text, flag="--input")
