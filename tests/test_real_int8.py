"""A real trained network in int8 on real images, and what calibration costs in memory."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from resdeploy.data.preprocess import preprocess_batch
from resdeploy.export.export import export_onnx
from resdeploy.export.source import load_source
from resdeploy.quant.quantize import quantize_file
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.quants import QuantSpec
from resdeploy.schema.recipes import DataSpec, SourceSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.run import run_session
from resdeploy.session.session import open_session


@pytest.fixture(scope="module")
def lowered(shared_data, tmp_path_factory):
    """The report, the float32 file, and outputs and labels of the 512 test images."""
    folder = tmp_path_factory.mktemp("int8")
    weights, data = shared_data / "resnet20-12fca82f.th", shared_data / "cifar10-sample.npz"
    source = load_source(
        SourceSpec(path=str(weights), arch="cifar_resnet20", recipe="cifar10-resnet20")
    )
    plain, int8 = folder / "resnet20.onnx", folder / "int8.onnx"
    export_onnx(source, ExportSpec(), plain)
    report = quantize_file(plain, int8, QuantSpec(), DataSpec(name="npz", path=str(data)))
    with np.load(data) as arrays:
        x = preprocess_batch(arrays["test_x"], source.info.preprocess)
        y = arrays["test_y"]
    before, after = (run_session(open_session(path, SessionSpec()), x) for path in (plain, int8))
    assert len(y) == 512
    return report, plain, before, after, y


@pytest.mark.slow
def test_resnet20_runs_in_integers_alone(lowered):
    report, plain, *_ = lowered
    assert report.passed
    assert "train_x" in report.calibration
    assert report.kept_float == ()
    counts = Counter(node.op_type for node in onnx.load_model(plain).graph.node)
    assert counts["Add"] == 9
    assert report.proof.operators["QLinearConv"] == counts["Conv"] >= 19
    assert report.proof.operators["QLinearAdd"] == counts["Add"]
    assert not {"Conv", "FusedConv", "Gemm"} & set(report.proof.operators)


@pytest.mark.slow
def test_resnet20_in_int8_is_as_right_on_images_it_never_saw(lowered):
    _, _, before, after, y = lowered
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert error < 0.02  # plain per-channel quantisation: 0.028 to 0.032
    accuracy = [float(np.mean(outputs.argmax(axis=1) == y)) for outputs in (before, after)]
    assert abs(accuracy[1] - accuracy[0]) <= 0.005
    # Whatever changes was a near-tie: the noise of a difference of two outputs is about 0.2.
    changed = before.argmax(axis=1) != after.argmax(axis=1)
    two = np.sort(before[changed], axis=1)[:, -2:]
    assert (two[:, 1] - two[:, 0]).max(initial=0) < 1.0
    assert changed.mean() < 0.02


@pytest.mark.slow
def test_resnet20_in_int8_keeps_994_of_1000_predictions(lowered):
    _, _, before, after, _ = lowered
    assert np.mean(before.argmax(axis=1) == after.argmax(axis=1)) >= 0.994


_MEASURE = """
import json, resource, sys, threading, time
import numpy as np, onnx
sys.path.insert(0, sys.argv[2])
from small_networks import small_resnet
from resdeploy.quant.int8 import quantize_int8
from resdeploy.quant.samples import Samples
from resdeploy.schema.quants import QuantSpec

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

# 10,000 images of 160 x 160 pixels are 3 GB as float32.
model = small_resnet()
for value in (model.graph.input[0],):
    for axis in (2, 3):
        value.type.tensor_type.shape.dim[axis].dim_value = 160
for tensor in model.graph.initializer:
    if tensor.name == "ends":
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([160, 160], np.int64), "ends"))

def image(i):
    return np.random.default_rng(i).standard_normal((3, 160, 160), dtype=np.float32)

read = lambda indices: (image(i) for i in indices)
samples = Samples(description="generated", num=int(sys.argv[1]), read=read)
before = peak()
plain = dict.fromkeys(("equalize", "pixel_grid", "refine", "rounding", "bias_correction"), "off")
spec = QuantSpec(max_flips=1.0, method="percentile", **plain)
quantize_int8(model, samples, spec)
print(json.dumps(peak() - before))
"""


def _growth(num: int) -> int:
    """Return by how many bytes calibration made a fresh process grow."""
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(num), str(Path(__file__).parent / "support")],
        capture_output=True,
        text=True,
        check=True,
        # What glibc keeps of the memory that was freed is not what calibration needs.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"},
    )
    return int(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_calibration_with_10000_images_takes_less_than_a_gibibyte_and_no_more_than_with_1000():
    few, many = _growth(1_000), _growth(10_000)
    assert many < 2**30
    # 9,000 more images are 2.6 GiB.
    assert many < few + 100 * 2**20
