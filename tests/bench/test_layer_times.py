"""Times of layers: under the model's names, with their work, beside what the machine can do."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from resdeploy.bench.ceilings import peak_bytes_per_s, peak_macs_per_s
from resdeploy.bench.layer_times import check_profile, layer_times, num_macs, read_profile
from resdeploy.errors import ResdeployError
from resdeploy.graph.affine_layer import read_layer
from resdeploy.schema.sessions import SessionSpec
from resdeploy.session.onnx_wire import OnnxNode, count_subnormal_weights, read_nodes

FLOAT = TensorProto.FLOAT


def network(*, weight=None):
    """Return a model with a convolution, its ReLU, a residual sum and a dense layer."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((16, 16, 3, 3), dtype=np.float32) if weight is None else weight,
        "d": rng.standard_normal((10, 16), dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="stem/Conv", pads=[1] * 4),
        helper.make_node("Add", ["c", "x"], ["s"], name="stem/Add"),
        helper.make_node("Relu", ["s"], ["r"], name="stem/Relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "d"], ["y"], name="fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 16, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("level", ["all", "extended", "disabled"])
def test_layers_have_the_models_own_names_and_their_work(tmp_path, level):
    path = tmp_path / "model.onnx"
    path.write_bytes(network().SerializeToString())
    spec = SessionSpec(num_threads=1, graph_level=level)
    feed = {"x": np.ones((2, 16, 8, 8), np.float32)}
    profile = read_profile(path, spec, feed, num_runs=3, num_threads=1)
    layers = {layer.name: layer for layer in profile.layers}
    conv, dense = layers["stem/Conv"], layers["fc"]
    assert conv.num_macs == 2 * 16 * 64 * 16 * 9
    assert dense.num_macs == 2 * 10 * 16
    # Input, weight and output at least; the sum is part of the kernel at some levels.
    assert conv.num_bytes >= 4 * (2 * 2 * 16 * 64 + 16 * 16 * 9)
    assert dense.num_bytes == 4 * (2 * 16 + 10 * 16 + 2 * 10)
    assert profile.num_runs == 3
    assert profile.run_p50_ns > 0


def kernel(name, duration, op="Relu"):
    args = {
        "op_name": op,
        "input_type_shape": [{"float": [4]}],
        "output_type_shape": [{"float": [4]}],
    }
    return {"name": f"{name}_kernel_time", "dur": duration, "args": args}


def test_a_layers_time_is_the_median_of_its_runs():
    runs = [[kernel("a", 1), kernel("b", 5)], [kernel("a", 9), kernel("b", 6)]]
    runs.append([kernel("a", 2), kernel("b", 100)])
    assert [layer.p50_ns for layer in layer_times(runs, (), {})] == [2000, 6000]


def test_runs_of_different_kernels_are_refused():
    with pytest.raises(ValueError, match="same kernels"):
        layer_times([[kernel("a", 1)], [kernel("b", 1)]], (), {})
    with pytest.raises(ValueError, match="same kernels"):
        layer_times([], (), {})


def test_a_kernel_named_after_the_value_it_makes_gets_its_nodes_name():
    nodes = (
        OnnxNode("conv", "Conv", ("x", "w"), ("c",)),
        OnnxNode("norm", "BatchNormalization", ("c",), ("b",)),
        OnnxNode("act", "Relu", ("b",), ("r",)),
    )
    names = [
        ("r_nchwc", "Conv"),
        ("c", "Conv"),
        ("act", "Relu"),
        ("ReorderOutput", "ReorderOutput"),
    ]
    runs = [[kernel(name, 1, op) for name, op in names]]
    for event in runs[0]:
        event["args"]["input_type_shape"] *= 2
        event["args"]["input_type_shape"][0] = {"float": [1, 1]}
    assert [layer.name for layer in layer_times(runs, nodes, {})] == [
        "conv",
        "conv",
        "act",
        "ReorderOutput",
    ]


@pytest.mark.parametrize(
    ("op", "inputs", "output", "expected"),
    [
        ("Conv", [[1, 8, 4, 4], [6, 2, 3, 3]], [1, 6, 4, 4], 96 * 18),  # 4 groups
        ("FusedConv", [[1, 8, 4, 4], [6, 8, 1, 1]], [1, 6, 4, 4], 96 * 8),
        ("ConvTranspose", [[1, 8, 4, 4], [8, 6, 2, 2]], [1, 6, 8, 8], 128 * 24),
        ("MatMul", [[2, 3, 5], [5, 7]], [2, 3, 7], 42 * 5),
        ("Gemm", [[3, 5], [7, 5]], [3, 7], 105),
        ("Gemm", [[5, 3], [5, 7]], [3, 7], 105),  # the first transposed
        ("Gemm", [[3, 5], [7]], [3, 7], 105),  # packed: the bias is what is left
        ("QGemm", [[3, 5], []], [3, 7], 105),  # its weight is never there
        ("QLinearMatMul", [[2, 3, 5], []], [2, 3, 7], 42 * 5),
        ("QLinearConv", [[1, 4, 4, 8], []], [1, 4, 4, 6], 0),  # nor here, and it cannot be told
        ("QLinearAdd", [[3, 5], []], [3, 5], 0),
        ("Relu", [[3, 5]], [3, 5], 0),
    ],
)
def test_the_products_of_a_kernel_follow_from_its_shapes(op, inputs, output, expected):
    args = {
        "op_name": op,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    assert num_macs(args) == expected


@pytest.mark.parametrize(
    ("op", "layer", "inputs", "output", "expected"),
    [
        # Packed: what the profile shows second is the bias, and the first is transposed.
        ("Gemm", ("Gemm", {"transA": 1}, (5, 7)), [[5, 3], [7]], [3, 7], 105),
        ("Gemm", ("Gemm", {"transB": 1}, (7, 5)), [[3, 5], [7]], [3, 7], 105),
        ("QLinearConv", ("Conv", {"group": 4}, (8, 2, 3, 3)), [[1, 4, 4, 8]], [1, 4, 4, 8], 2304),
    ],
)
def test_a_packed_weight_is_known_from_the_model(op, layer, inputs, output, expected):
    args = {
        "op_name": op,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    assert num_macs(args, read_layer(*layer)) == expected


class Ones(CalibrationDataReader):
    def __init__(self):
        self._left = [np.ones((1, 16, 8, 8), np.float32)]

    def get_next(self):
        return {"x": self._left.pop()} if self._left else None


def integer_network():
    """Return the network above, its convolution and its dense layer with int8 weights."""

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        quantize_static(
            network(), out, Ones(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8
        )
        return out.read_bytes()


def test_layers_of_integers_have_their_work_and_a_ceiling_of_their_own(tmp_path):
    path = tmp_path / "int8.onnx"
    path.write_bytes(integer_network())
    feed = {"x": np.ones((2, 16, 8, 8), np.float32)}
    profile = read_profile(path, SessionSpec(num_threads=1), feed, num_runs=3, num_threads=1)
    layers = {layer.name: layer for layer in profile.layers}
    conv, dense = layers["stem/Conv"], layers["fc"]
    assert (conv.op, dense.op) == ("QLinearConv", "QGemm")
    assert conv.is_integer
    assert conv.num_macs == 2 * 16 * 64 * 16 * 9
    assert dense.num_macs == 2 * 10 * 16
    # Input, output and weight, a byte each, and scales.
    assert 0 <= conv.num_bytes - (2 * 2 * 16 * 64 + 16 * 16 * 9) < 300
    assert profile.peak_of(conv) == profile.peak_integer_macs_per_s
    assert profile.peak_of(dataclasses.replace(conv, op="Conv")) == profile.peak_macs_per_s


def test_where_nothing_is_integer_no_such_ceiling_is_measured(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(network().SerializeToString())
    feed = {"x": np.ones((1, 16, 8, 8), np.float32)}
    profile = read_profile(path, SessionSpec(num_threads=1), feed, num_runs=3, num_threads=1)
    assert profile.peak_integer_macs_per_s is None


def test_a_provider_whose_profile_holds_no_times_is_refused():
    with pytest.raises(ResdeployError, match="cannot be timed on cuda"):
        check_profile(SessionSpec(provider="cuda"))


def test_the_ceilings_are_those_of_this_machine():
    # A hundred times slower or faster than any processor of today would be a wrong formula.
    for integer in (False, True):
        assert 1e8 < peak_macs_per_s(SessionSpec(num_threads=1), integer=integer) < 1e14
    assert 1e8 < peak_bytes_per_s(2) < 1e13


def test_nodes_are_read_from_the_bytes():
    nodes = read_nodes(network().SerializeToString())
    assert [(node.name, node.op) for node in nodes][:2] == [
        ("stem/Conv", "Conv"),
        ("stem/Add", "Add"),
    ]
    assert nodes[1].inputs == ("c", "x")
    assert nodes[1].outputs == ("s",)
    assert nodes[0].attributes == {"pads": (1, 1, 1, 1)}
    assert nodes[-1].attributes == {"transB": 1}
    extra = helper.make_node("Odd", [], ["o"], alpha=0.5, text="some", axes=[-1, 2], axis=-1)
    model = helper.make_model(helper.make_graph([extra], "g", [], []))
    found = read_nodes(model.SerializeToString())[0].attributes
    assert found == {"alpha": 0.5, "text": "some", "axes": (-1, 2), "axis": -1}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_subnormal_weights_are_counted(dtype, raw):
    if not raw and dtype != "float32":
        pytest.skip("only float32 is stored as a list of floats")
    tiny = np.finfo(dtype).smallest_subnormal
    values = np.array([0, 1, tiny, -tiny, np.finfo(dtype).tiny], dtype)
    model = network()
    if raw:
        tensor = numpy_helper.from_array(values, "extra")
    else:
        tensor = helper.make_tensor("extra", FLOAT, [5], values.tolist())
    model.graph.initializer.append(tensor)
    assert count_subnormal_weights(model.SerializeToString()) == 2


def test_weights_in_another_file_are_not_counted():
    model = network()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    assert count_subnormal_weights(model.SerializeToString()) is None


@pytest.mark.parametrize("data", [b"this is not a model", b"\x3a\xff", b"\x80" * 20])
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(ValueError, match="not an ONNX"):
        read_nodes(data)
