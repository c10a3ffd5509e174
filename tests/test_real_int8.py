"""A real trained network in int8 on real images, and what calibration costs in memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resdeploy.host.build import load_source
from resdeploy.host.export import export_onnx
from resdeploy.host.quantize import quantize_file
from resdeploy.preprocess import preprocess_batch
from resdeploy.schema import DataSpec, ExportSpec, QuantSpec, SessionSpec, SourceSpec
from resdeploy.target.run import run_session
from resdeploy.target.session import open_session


@pytest.mark.slow
def test_resnet20_in_int8_keeps_its_predictions_on_images_it_never_saw(shared_data, tmp_path):
    weights, data = shared_data / "resnet20-12fca82f.th", shared_data / "cifar10-sample.npz"
    source = load_source(
        SourceSpec(path=str(weights), arch="cifar_resnet20", recipe="cifar10-resnet20")
    )
    plain, lowered = tmp_path / "resnet20.onnx", tmp_path / "int8.onnx"
    export_onnx(source, ExportSpec(), plain)
    report = quantize_file(plain, lowered, QuantSpec(), DataSpec(name="npz", path=str(data)))
    assert report.passed
    assert "train_x" in report.calibration
    assert report.kept_float == ()
    assert report.proof.operators["QLinearConv"] == 19
    assert report.proof.operators["QLinearAdd"] == 9
    assert not {"Conv", "FusedConv", "Gemm"} & set(report.proof.operators)

    with np.load(data) as arrays:
        x = preprocess_batch(arrays["test_x"], source.info.preprocess)
        y = arrays["test_y"]
    before, after = (run_session(open_session(path, SessionSpec()), x) for path in (plain, lowered))
    assert len(y) == 512
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert error < 0.024  # plain per-channel quantisation: 0.028 to 0.032
    predicted = [outputs.argmax(axis=1) for outputs in (before, after)]
    assert np.mean(predicted[0] == predicted[1]) >= 0.994
    accuracy = [float(np.mean(p == y)) for p in predicted]
    assert abs(accuracy[1] - accuracy[0]) <= 0.005


_MEASURE = """
import json, resource, sys, threading, time
import numpy as np, onnx
sys.path.insert(0, sys.argv[2])
from small_networks import small_resnet
from resdeploy.quant.int8 import quantize_int8
from resdeploy.quant.samples import Samples
from resdeploy.schema import QuantSpec

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
        [sys.executable, "-c", _MEASURE, str(num), str(Path(__file__).parent / "quant")],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_calibration_with_10000_images_takes_less_than_a_gibibyte_and_no_more_than_with_1000():
    few, many = _growth(1_000), _growth(10_000)
    assert many < 2**30
    # 9,000 more images are 2.6 GiB.
    assert many < few + 100 * 2**20
