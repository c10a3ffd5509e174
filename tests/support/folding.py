"""ONNX models from text, folded and judged in float64: what the tests of the fold share."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper, parser

from resdeploy.fold.fold_batchnorm import fold_batchnorm
from resdeploy.graph.float64 import evaluate_float64

BN = "z = BatchNormalization (y, gamma, beta, mean, var)"
TYPES = {"float": np.float32, "double": np.float64, "float16": np.float16}
UNIT_ROUNDOFF = {"float": 2.0**-24, "double": 2.0**-53, "float16": 2.0**-11}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=shape)


def statistics(channels: int, *, prefix: str = "", seed: int = 1) -> dict[str, np.ndarray]:
    random = rng(seed)
    return {
        f"{prefix}gamma": random.normal(size=channels),
        f"{prefix}beta": random.normal(size=channels),
        f"{prefix}mean": random.normal(size=channels),
        f"{prefix}var": random.uniform(0.1, 2, size=channels),
    }


def network(
    body: str,
    weights: dict[str, np.ndarray],
    *,
    inputs: str = "float[2, 4, 5, 5] x",
    outputs: str = "float[a, b, c, d] z",
    opset: int = 18,
    ir_version: int = 8,
    functions: str = "",
    dtype: type | None = np.float32,
) -> onnx.ModelProto:
    """A model from text, its weights added as initializers; dtype None keeps the weights' own."""
    domains = f'"": {opset}' + (', "local": 1' if functions else "")
    model = parser.parse_model(
        f"<ir_version: {ir_version}, opset_import: [{domains}]>\n"
        f"g ({inputs}) => ({outputs}) {{ {body} }}\n{functions}"
    )
    for name, value in weights.items():
        array = value if dtype is None else value.astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def feeds(model: onnx.ModelProto, seed: int = 7) -> dict[str, np.ndarray]:
    made = {}
    for value in model.graph.input:
        shape = [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        values = np.ones(shape) if dtype.kind == "b" else normal(*shape, seed=seed)
        made[value.name] = values.astype(dtype)
    return made


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    outputs = session.run(None, inputs)
    return dict(zip([o.name for o in session.get_outputs()], outputs, strict=True))


def fold(model: onnx.ModelProto, **options):
    """The folded model and the report; the second fold, by the way, must change no bit."""
    folded_ir = ir.from_proto(model)
    report = fold_batchnorm(folded_ir, **options)
    folded = ir.to_proto(folded_ir)
    if not report.folded:
        assert folded == ir.to_proto(ir.from_proto(model)), "refused, but something changed"
    again_ir = ir.from_proto(folded)
    assert fold_batchnorm(again_ir, **options).folded == ()
    assert ir.to_proto(again_ir) == folded
    onnx.checker.check_model(folded, full_check=True)
    return folded, report


def batchnorms(model: onnx.ModelProto) -> int:
    return sum(n.op_type == "BatchNormalization" for n in ir.from_proto(model).graph.all_nodes())


def relative_errors(outputs, expected) -> float:
    """The largest over the outputs of ||error|| / ||expected||."""
    return max(
        float(np.linalg.norm(outputs[name].astype(np.float64) - value) / np.linalg.norm(value))
        for name, value in expected.items()
    )


def same_function(before: onnx.ModelProto, after: onnx.ModelProto, unit_roundoff: float) -> None:
    """Both run in ONNX Runtime; the folded one errs at most 4 times as much as the unfolded."""
    inputs = feeds(before)
    expected = evaluate_float64(before, inputs)
    noise = relative_errors(run(before, inputs), expected)
    assert noise < 64 * unit_roundoff, "the yardstick itself is off"
    assert relative_errors(run(after, inputs), expected) <= 4 * max(noise, unit_roundoff)


def check(
    model: onnx.ModelProto, *, folded: int = 1, dtype: str = "float", **options
) -> onnx.ModelProto:
    """Fold all there is to fold and hold the result against the model in float64."""
    result, report = fold(model, **options)
    assert [site.reason for site in report.refused] == []
    assert len(report.folded) == folded
    assert batchnorms(result) == 0
    assert all(site.max_ulp <= 0.5001 for site in report.folded)
    same_function(model, result, UNIT_ROUNDOFF[dtype])
    return result


def refusal(model: onnx.ModelProto, **options) -> str:
    """The reason why the one site of a model, which must keep every bit, is refused."""
    _, report = fold(model, **options)
    assert report.folded == ()
    (site,) = report.refused
    assert site.site in ("z", "bn")
    return site.reason


NONE_BELOW = "no layer alone reads its output"


def add_integers(model: onnx.ModelProto, **values: list[int]) -> None:
    """Add the initializers that say where things go, as int64."""
    for name, value in values.items():
        array = np.array(value, np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, name))


def names_of_initializers(model: onnx.ModelProto) -> list[str]:
    return [tensor.name for tensor in model.graph.initializer]
