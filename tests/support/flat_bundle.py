"""A tiny bundle to predict with: the scores are the inputs themselves, laid flat."""

import numpy as np
import onnx
from onnx import parser

from resdeploy.bundle.folder import write_bundle
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.verify.golden_file import Golden


def write_flat_bundle(out, preprocess, *, labels=True, model_text=None):
    """Write a bundle whose model returns its input of 16 numbers as 16 class scores."""
    shape = (1, 4, 4) if preprocess is None else preprocess.input_shape
    dims = ", ".join(map(str, shape))
    text = model_text or (
        f'<ir_version: 8, opset_import: ["": 18]> flat (float[N, {dims}] x) => (float[N, 16] y)'
        " { y = Flatten (x) }"
    )
    path = out.with_name(f"{out.name}.onnx")
    onnx.save(parser.parse_model(text), path)
    inputs = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    write_bundle(
        out,
        name="flat",
        model=path,
        golden=Golden(
            inputs=inputs,
            reference=inputs.reshape(3, 16).astype(np.float64),
            noise_l2=np.full(3, 1e-7),
            labels=None,
            info=GoldenInfo(source="flat", inputs="random", num_inputs=3),
        ),
        labels=tuple(f"class {i}" for i in range(16)) if labels else (),
        preprocess=preprocess,
        export=None,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("N", *shape)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 16)),),
        versions={},
    )
    return out
