"""Accuracy of a real ResNet-20 after `quantize`, on images outside calibration and judgement.

    python benchmarks/quant/real.py resnet20-12fca82f.th cifar10.npz --json real.json

The network's outputs in float32 and in int8 are held against each other, and to the labels.
"""

import json
import tempfile
from pathlib import Path

import click
import numpy as np

from resdeploy.data.preprocess import preprocess_batch
from resdeploy.export.export import export_onnx
from resdeploy.export.source import load_source
from resdeploy.machine.environment import read_environment
from resdeploy.quant.quantize import quantize_file
from resdeploy.schema.codec import to_json
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.files import SourceSpec
from resdeploy.schema.quants import QuantSpec
from resdeploy.schema.recipes import DataSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.run import run_session
from resdeploy.session.session import open_session


@click.command()
@click.argument("weights")
@click.argument("data")
@click.option("--json", "json_path", type=click.Path(path_type=Path), required=True)
def main(weights: str, data: str, json_path: Path) -> None:
    """Quantise with the training images of DATA, and compare on its test images."""
    source = load_source(SourceSpec(path=weights, arch="cifar_resnet20", recipe="cifar10-resnet20"))
    with np.load(data) as arrays:
        x = preprocess_batch(arrays["test_x"], source.info.preprocess)
        y = arrays["test_y"]
    with tempfile.TemporaryDirectory() as folder:
        plain, int8 = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        export_onnx(source, ExportSpec(), plain)
        report = quantize_file(plain, int8, QuantSpec(), DataSpec(name="npz", path=data))
        before, after = (run_session(open_session(p, SessionSpec()), x) for p in (plain, int8))
    changed = before.argmax(axis=1) != after.argmax(axis=1)
    ranked = np.sort(before, axis=1)
    margins = ranked[:, -1] - ranked[:, -2]
    record = {
        "num_images": len(y),
        "rel_l2": float(np.linalg.norm(after - before) / np.linalg.norm(before)),
        "accuracy_float32": float(np.mean(before.argmax(axis=1) == y)),
        "accuracy_int8": float(np.mean(after.argmax(axis=1) == y)),
        "num_kept": int((~changed).sum()),
        "share_kept": float(np.mean(~changed)),
        "largest_margin_changed": float(margins[changed].max(initial=0)),
        "median_margin": float(np.median(margins)),
        "report": to_json(report),
        "environment": to_json(read_environment()),
    }
    json_path.write_text(json.dumps(record, indent=1) + "\n")
    click.echo({name: value for name, value in record.items() if np.isscalar(value)})


if __name__ == "__main__":
    main()
