"""Option A as one convolution: the same bits, and only where it is that."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from resdeploy.graph.replace_padded_shortcut import MOST_CHANNELS, replace_padded_shortcut
from resdeploy.verify.compare_structure import align
from resdeploy.verify.normal_form import skeleton_of

END = 9223372036854775807
X = np.random.default_rng(0).normal(size=(2, 4, 7, 8)).astype(np.float32)
SLICE = {"starts": [0, 0], "ends": [END, END], "axes": [2, 3], "steps": [2, 2]}
BODY = "r = Abs(x) h = Slice(r, starts, ends, axes, steps) y = Pad(h, pads)"


def graph(body=BODY, *, x="float[N, 4, 7, 8] x", outputs="float[N, a, b, c] y", **changed):
    constants = {**SLICE, "pads": [0, 2, 0, 0, 0, 3, 0, 0], **changed}
    head = f'<ir_version: 8, opset_import: ["": 18]> g ({x}) => ({outputs})'
    proto = parser.parse_model(f"{head} {{ {body} }}")
    read = {name for node in proto.graph.node for name in node.input}
    for name, value in constants.items():
        if name in read:
            array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def replaced(proto):
    model = ir.from_proto(proto)
    report = replace_padded_shortcut(model)
    return ir.to_proto(model), report.num_changed


def run(proto, x=X):
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})


def operators(proto):
    return [node.op_type for node in proto.graph.node]


SAME = {
    "as torch exports it": {
        "starts": [0, 0, 0], "ends": [END] * 3, "axes": [0, 2, 3], "steps": [1, 2, 2]
    },
    "axes from the end": {"axes": [-2, -1]},
    "one step of three": {"steps": [3, 1]},
    "zeros on one side": {"pads": [0, 0, 0, 0, 0, 4, 0, 0]},
    "zeros on the other": {"pads": [0, 4, 0, 0, 0, 0, 0, 0]},
    "32-bit ends": {"ends": [2**31 - 1, 2**31 - 1]},
    "a stated zero": {"body": BODY.replace("(h, pads)", "(h, pads, zero)"), "zero": 0.0},
    "pads of the channels alone": {
        "body": BODY.replace("(h, pads)", "(h, pads, , on)"), "pads": [2, 3], "on": [1]
    },
}  # fmt: skip


@pytest.mark.parametrize("changed", SAME.values(), ids=SAME)
def test_the_convolution_computes_the_same_bits(changed):
    proto = graph(**changed)
    conv, num_changed = replaced(proto)
    assert num_changed == 1
    assert operators(conv) == ["Abs", "Conv"]
    onnx.checker.check_model(conv, full_check=True)
    assert conv.graph.output[0].name == "y"
    assert len(conv.graph.initializer) == 1  # what only the Slice and the Pad read is gone
    assert run(conv)[0].tobytes() == run(proto)[0].tobytes()
    assert replaced(conv)[1] == 0


DIFFERENT = {
    "rows from the second on": {"starts": [1, 0]},
    "rows to the fifth": {"ends": [5, END]},
    "backwards": {"starts": [0, END], "ends": [END, -END], "steps": [2, -1]},
    "every second channel": {"axes": [1, 3]},
    "every second image": {"axes": [0, 3]},
    "rows padded": {"pads": [0, 2, 1, 0, 0, 3, 0, 0]},
    "channels cut": {"pads": [0, 2, 0, 0, 0, -1, 0, 0]},
    "padded with ones": {"body": BODY.replace("(h, pads)", "(h, pads, one)"), "one": 1.0},
    "repeated": {"body": BODY.replace("Pad(", 'Pad<mode="edge">('), "pads": [0] * 8},
    "whole numbers": {
        "body": BODY.replace("Abs(x)", "Cast<to=6>(x)"), "outputs": "int32[N, a, b, c] y"
    },
    "computed pads": {"body": "q = Cast<to=7>(pads) " + BODY.replace("(h, pads)", "(h, q)")},
    "an unknown number of channels": {"x": "float[N, C, 7, 8] x"},
    "too many channels": {"x": f"float[N, {MOST_CHANNELS + 1}, 7, 8] x"},
    "another reader": {"body": BODY + " z = Relu(h)"},
    "the slice an output": {"outputs": "float[N, a, b, c] y, float[N, d, e, f] h"},
    "no slice": {"body": "r = Abs(x) y = Pad(r, pads)"},
}  # fmt: skip


@pytest.mark.parametrize("changed", DIFFERENT.values(), ids=DIFFERENT)
def test_what_is_not_option_a_stays(changed):
    proto = graph(**changed)
    assert replaced(proto)[1] == 0


def test_as_many_channels_as_were_measured_are_taken():
    conv, num_changed = replaced(graph(x=f"float[N, {MOST_CHANNELS}, 7, 8] x"))
    assert num_changed == 1
    x = np.random.default_rng(1).normal(size=(1, MOST_CHANNELS, 7, 8)).astype(np.float32)
    expected = np.abs(x)[:, :, ::2, ::2]
    (y,) = run(conv, x)
    assert (y[:, 2:-3] == expected).all()
    assert not y[:, :2].any()
    assert not y[:, -3:].any()


# --- in the eyes of a certificate ----------------------------------------------------------------


def isomorphic(first, second):
    return align(skeleton_of(first), skeleton_of(second)).result.isomorphic


# Axes from the end are not in normal form: the rank is not known there.
FROM_THE_START = {name: c for name, c in SAME.items() if min(c.get("axes", [0])) >= 0}


@pytest.mark.parametrize("changed", FROM_THE_START.values(), ids=FROM_THE_START)
def test_both_forms_have_one_skeleton(changed):
    proto = graph(**changed)
    conv, _ = replaced(proto)
    assert isomorphic(proto, conv)
    assert isomorphic(conv, proto)


MUTATIONS = {
    "a channel exchanged": lambda w: w[:, [1, 0, 2, 3]],
    "one place further": lambda w: np.roll(w, 1, axis=0),
    "a weight of a half": lambda w: w * np.float32(0.5),
    "a weight one ulp off": lambda w: w * np.nextafter(np.float32(1), np.float32(2)),
    "a channel that leaks": lambda w: np.where(w.sum(1, keepdims=True) == 0, 1e-6, w),
    "a channel lost": lambda w: w * np.array([1, 1, 0, 1]).reshape(1, 4, 1, 1),
    "the zeros last": lambda w: np.roll(w, -2, axis=0),
}


@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
def test_a_shortcut_that_is_another_is_seen(mutate):
    proto = graph()
    conv, _ = replaced(proto)
    (tensor,) = conv.graph.initializer
    wrong = mutate(numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(wrong), tensor.name))
    assert not isomorphic(proto, conv)


@pytest.mark.parametrize(
    ("name", "value"), [("strides", [2, 1]), ("strides", [1, 1]), ("pads", [1, 0, 0, 0])]
)
def test_a_shortcut_with_another_window_is_seen(name, value):
    proto = graph()
    conv, _ = replaced(proto)
    node = conv.graph.node[1]
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
    assert not isomorphic(proto, conv)


def test_a_shortcut_with_a_bias_is_seen():
    proto = graph()
    conv, _ = replaced(proto)
    conv.graph.initializer.append(numpy_helper.from_array(np.full(9, 1e-6, np.float32), "bias"))
    conv.graph.node[1].input.append("bias")
    assert not isomorphic(proto, conv)
