"""Small bundles, and one to predict with: its scores are its inputs themselves, laid flat."""

import numpy as np
import onnx
from onnx import parser

from resdeploy.bundle.folder import write_bundle
from resdeploy.files import sha256_file
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.verdicts import FileProof, GoldenInfo
from resdeploy.verify.golden_file import Golden


def write_small_bundle(out, name, model, inputs, reference, *, noise_l2=None, **more):
    """Write a bundle of a model from x to y, with these golden inputs and outputs."""
    num = len(inputs)
    golden = Golden(
        inputs=inputs,
        reference=reference.astype(np.float64),
        noise_l2=np.full(num, 1e-7) if noise_l2 is None else noise_l2,
        labels=None,
        info=GoldenInfo(source=name, inputs="random", num_inputs=num),
    )
    shapes = {"x": ("N", *inputs.shape[1:]), "y": ("N", reference.shape[1])}
    x, y = (TensorSpec(name=n, dtype="float32", shape=shape) for n, shape in shapes.items())
    # As if the file had been proved where the bundle was made.
    digest = sha256_file(model)
    proof = FileProof(sha256=digest, structure=None, static=None, metadata=None)
    more = {"proof": proof, **more}
    write_bundle(out, name=name, model=model, golden=golden, inputs=(x,), outputs=(y,), **more)
    return out


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
    names = tuple(f"class {i}" for i in range(16)) if labels else ()
    return write_small_bundle(
        out, "flat", path, inputs, inputs.reshape(3, 16), labels=names, preprocess=preprocess
    )
