"""L0 to L2 on real graphs: what is certified, what is caught, what is missing and why."""

import dataclasses
import functools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.graph.float64 import to_float64
from resdeploy.graph.resolve_castlike import resolve_castlike
from resdeploy.verify.certify import JUDGED_METADATA, Reference, certify_file, certify_run
from resdeploy.verify.fault_file import write_fault
from resdeploy.verify.reference_file import load_reference
from resdeploy.verify.weights import ROUNDED_ONCE_ULP

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w1": RNG.normal(size=(8, 3, 3, 3)),
    "b1": RNG.normal(size=8),
    "w2": RNG.normal(size=(8, 8, 3, 3)),
    "b2": RNG.normal(size=8),
    "fc": RNG.normal(size=(8, 5)),
    "bias": RNG.normal(size=5),
    **{f"{k}{n}": RNG.uniform(0.5, 2, 8) for n in "12" for k in ("gamma", "beta", "mean", "var")},
}
FOLDED = """
    h = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(h)
    k = Conv<pads=[1,1,1,1]>(r, w2, b2) s = Add(k, r)
    p = GlobalAveragePool(s) f = Flatten(p) y = Gemm(f, fc, bias)
"""
UNFOLDED = """
    c = Conv<pads=[1,1,1,1]>(x, w1) h = BatchNormalization(c, gamma1, beta1, mean1, var1)
    r = Relu(h) d = Conv<pads=[1,1,1,1]>(r, w2)
    k = BatchNormalization(d, gamma2, beta2, mean2, var2)
    s = Add(k, r) p = GlobalAveragePool(s) f = Flatten(p) y = Gemm(f, fc, bias)
"""


def network(body=FOLDED, dtype=np.float32, **changes):
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]>\n'
        f"g ({kind}[N, 3, 9, 9] x) => ({kind}[N, 5] y) {{ {body} }}"
    )
    used = {name for node in proto.graph.node for name in node.input}
    for k, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{k}"
    for name, value in {**WEIGHTS, **changes}.items():
        if name in used:
            proto.graph.initializer.append(numpy_helper.from_array(value.astype(dtype), name))
    return proto


def reference_of(model, *, is_exact=False):
    return Reference(model=to_float64(model), bias_magnitudes={}, is_exact=is_exact)


def run(model: bytes, inputs):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return dict(
        zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True)
    )


INPUTS = RNG.standard_normal((4, 3, 9, 9)).astype(np.float32)


@pytest.mark.parametrize("body", [FOLDED, UNFOLDED])
def test_a_network_is_certified_against_itself(body):
    model = network(body)
    candidate = certify_file(model, reference_of(model))
    assert candidate.structure.isomorphic
    assert candidate.static.passed
    assert len(candidate.static.layers) == 3
    result, fault = certify_run(candidate, INPUTS, run)
    assert result.passed
    assert fault is None
    assert result.num_inputs == 2
    assert len(result.nodes) == len(candidate.layers)
    assert 0.01 < result.worst.of_estimate < 1


def with_one_weight_changed(name: str, by: float):
    changed = WEIGHTS[name].copy()
    changed.flat[5 % changed.size] *= 1 + by
    return {name: changed}


@pytest.mark.parametrize(("name", "node"), [("w1", "Conv_0"), ("b2", "Conv_2"), ("fc", "Gemm_6")])
def test_the_layer_with_a_wrong_number_is_named_by_its_weights_and_computed_right(name, node):
    model = network(**with_one_weight_changed(name, 1e-2))
    candidate = certify_file(model, reference_of(network()))
    assert candidate.structure.isomorphic
    (reason,) = candidate.static.reasons
    assert f"`{node}`" in reason
    result, fault = certify_run(candidate, INPUTS, run)
    assert result.passed
    assert fault is None


def test_a_weight_that_no_output_shows_is_still_seen():
    dead = WEIGHTS["b1"].copy()
    dead[2] = -1e6
    other = dead.copy()
    other[2] = -2e6
    candidate = certify_file(network(b1=other), reference_of(network(b1=dead)))
    assert "a bias of `Conv_0`" in candidate.static.reasons[0]


def test_a_kernel_that_computes_less_is_found_where_it_runs():
    model = network()
    candidate = certify_file(model, reference_of(model))

    def with_ten_bits(serialised, inputs):
        values = run(serialised, inputs)
        k = values["k"]
        mantissa, exponent = np.frexp(k)
        values["k"] = np.ldexp(np.round(mantissa * 1024) / 1024, exponent)
        return values

    result, fault = certify_run(candidate, INPUTS, with_ten_bits)
    assert [reason.partition(" ")[0] for reason in result.reasons] == ["`Conv_2`"]
    assert fault.node.name == "Conv_2"


def test_another_attribute_fails_the_structure():
    other = network(
        FOLDED.replace(
            "s = Add(k, r)", "q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(k) s = Add(q, q)"
        )
    )
    ceil = network(
        FOLDED.replace(
            "s = Add(k, r)",
            "q = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(k) s = Add(q, q)",
        )
    )
    candidate = certify_file(ceil, reference_of(other))
    assert not candidate.structure.passed
    assert candidate.structure.differences == (
        "`MaxPool_3` (MaxPool) has pads [0, 0, 1, 1], the reference [0, 0, 0, 0]",
    )


def test_another_form_is_said_to_prove_nothing():
    candidate = certify_file(network(FOLDED.replace("Relu(h)", "Abs(h)")), reference_of(network()))
    assert candidate.missing["structure"] == (
        "not shown to be the reference: "
        "`Relu_1` (Relu) of the reference is `Abs_1` (Abs) of the candidate"
    )
    assert "1 of 3 layers have no counterpart" in candidate.missing["static"]


MEAN, LABELS = JUDGED_METADATA


def certified_with(metadata, reference_metadata, body=FOLDED):
    model = network(body)
    onnx.helper.set_model_props(model, metadata)
    reference = dataclasses.replace(reference_of(network()), metadata=reference_metadata)
    return certify_file(model, reference)


@pytest.mark.parametrize(
    ("stated", "expected", "same"),
    [
        ('{"a": 1, "b": [2.0]}', '{"b": [2], "a": 1.0}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ('["cat", "dog"]', '["dog", "cat"]', False),
        ("no JSON", "no JSON", True),
        ("no JSON", "none either", False),
    ],
)
def test_what_predictions_go_by_is_compared_by_its_values(stated, expected, same):
    candidate = certified_with({LABELS: stated, "note": "x"}, {LABELS: expected})
    assert (candidate.metadata.judged, candidate.metadata.unknown) == ((LABELS,), ())
    assert candidate.metadata.reasons == (
        () if same else (f"the file's {LABELS} is not the reference's",)
    )
    assert "metadata" not in candidate.missing


def test_metadata_that_the_reference_does_not_state_is_missing():
    candidate = certified_with({MEAN: "{}", LABELS: "[]"}, {LABELS: "[]"})
    assert (candidate.metadata.judged, candidate.metadata.unknown) == ((LABELS,), (MEAN,))
    assert candidate.missing["metadata"] == f"the file states {MEAN}, and the reference does not"


def test_a_graph_that_is_not_understood_has_its_metadata_judged():
    candidate = certified_with({LABELS: "[1]"}, {LABELS: "[2]"}, FOLDED.replace("Relu", "Det"))
    assert candidate.metadata.reasons
    why = "Det is not on the closed list of operators. (`Det_1`)"
    assert candidate.missing == {"structure": why, "static": why}


def test_weights_beside_other_operators_are_not_shown_to_be_wrong():
    """A network of the same form with another attribute: its weights may be meant for it."""
    body = FOLDED.replace("h = Conv<pads=[1,1,1,1]>", "h = Conv<pads=[2,2,0,0]>")
    model = network(body, **with_one_weight_changed("w2", 1e-2))
    candidate = certify_file(model, reference_of(network()))
    assert candidate.structure.differences
    assert (candidate.structure.passed, bool(candidate.static.reasons)) == (False, True)


def test_without_a_reference_nodes_are_judged_by_their_own_weights():
    candidate = certify_file(network(), None)
    why = "the original network is not here"
    assert candidate.missing == {"structure": why, "static": why, "metadata": why}
    result, _ = certify_run(candidate, INPUTS, run)
    assert result.passed
    assert certify_file(network(), "it cannot be traced").missing["static"] == "it cannot be traced"


def test_half_precision_has_no_node_bound_of_float32():
    model = network(dtype=np.float16)
    candidate = certify_file(model, reference_of(network()), precision="float16")
    assert candidate.structure.isomorphic
    assert candidate.static.passed
    assert "float16" in certify_run(candidate, INPUTS.astype(np.float16), run)


@pytest.mark.parametrize("producer", ["", "resdeploy", "pytorch"])
def test_the_name_of_the_producer_decides_nothing(producer):
    right, wrong = network(), network(**with_one_weight_changed("w1", 2e-7))
    for model in (right, wrong):
        model.producer_name = producer
    exact = reference_of(network(), is_exact=True)
    assert certify_file(right, exact).static.limit_ulp == ROUNDED_ONCE_ULP
    assert certify_file(right, reference_of(network())).static.limit_ulp > ROUNDED_ONCE_ULP
    assert not certify_file(wrong, exact).static.passed


def test_weights_are_judged_in_the_precision_that_is_claimed():
    rounded = {name: value.astype(np.float32).astype(np.float16) for name, value in WEIGHTS.items()}
    model, reference = network(**rounded), reference_of(network())
    assert not certify_file(model, reference).static.passed
    assert certify_file(model, reference, precision="float16").static.passed
    assert not certify_file(model, reference, precision="tf32").static.passed
    candidate = certify_file(model, reference, precision="float16")
    assert certify_run(candidate, INPUTS, run)[0].passed


@pytest.mark.parametrize(
    ("body", "name"), [(FOLDED, "Conv_2"), (FOLDED, "Gemm_6"), (UNFOLDED, "BatchNormalization_1")]
)
def test_a_fault_is_a_model_of_its_own_that_shows_it(tmp_path, body, name):
    model = network(body)
    candidate = certify_file(model, reference_of(model))
    written = next(layer.writes for layer in candidate.layers if layer.name == name)

    def broken(serialised, inputs):
        values = run(serialised, inputs)
        return {**values, written: values[written] * 2}

    _, fault = certify_run(candidate, INPUTS, broken)
    path = write_fault(tmp_path / "faults", fault, model)
    assert path.name == f"{name}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    with np.load(path.with_suffix(".npz")) as arrays:
        (y,) = run(path.read_bytes(), {"x": arrays["x"]}).values()
        np.testing.assert_allclose(y, arrays["exact"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(arrays["computed"], 2 * y, rtol=1e-4, atol=1e-4)


# --- another ONNX file as the reference ---


def open_model(model: bytes):
    return functools.partial(run, model)


def test_an_onnx_file_is_evaluated_in_float64(tmp_path):
    path = tmp_path / "reference.onnx"
    path.write_bytes(network(UNFOLDED).SerializeToString())
    golden, reference = load_reference(path, num_inputs=10, open_model=open_model)
    assert golden.reference.shape == (10, 5)
    (y,) = run(path.read_bytes(), {"x": golden.inputs}).values()
    np.testing.assert_allclose(golden.reference, y, rtol=1e-4)
    assert (golden.noise_l2 > 0).all()
    assert "BatchNormalization" not in {node.op_type for node in reference.model.graph.node}
    assert not reference.is_exact


def test_a_reference_of_fixed_batch_is_fed_in_batches_of_that_size(tmp_path):
    model = network()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    path = tmp_path / "reference.onnx"
    path.write_bytes(model.SerializeToString())
    golden, _ = load_reference(path, num_inputs=6, open_model=open_model)
    assert golden.reference.shape == (6, 5)


def test_a_reference_of_unknown_shape_is_refused(tmp_path):
    model = network()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    path = tmp_path / "reference.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModelError, match="known shape"):
        load_reference(path, num_inputs=2, open_model=open_model)


def test_a_missing_reference_is_an_error(tmp_path):
    with pytest.raises(ResdeployError, match="no such model file"):
        load_reference(tmp_path / "absent.onnx", num_inputs=2, open_model=open_model)


# --- CastLike ---


def test_a_castlike_of_known_type_is_a_cast():
    import onnx_ir as ir

    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]>\n'
        "g (float16[N] x, double[N] z) => (float16[N] y) "
        "{ a = CastLike(z, x) y = Add(x, a) }"
    )
    model = ir.from_proto(proto)
    assert resolve_castlike(model).num_changed == 1
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    cast = after.graph.node[0]
    assert (cast.op_type, cast.output[0]) == ("Cast", "a")
    assert onnx.helper.get_node_attr_value(cast, "to") == onnx.TensorProto.FLOAT16


def test_a_castlike_of_unknown_type_stays():
    import onnx_ir as ir

    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]>\n'
        "g (float[N] x, double[N] z) => (float[N] y) "
        "{ h = Relu(x) a = CastLike(z, h) y = Add(x, a) }"
    )
    model = ir.from_proto(proto)
    assert resolve_castlike(model).num_changed == 0
