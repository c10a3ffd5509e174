"""A residual network of a few thousand weights, with a shortcut that pads channels, and images."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.quant.prepare import prepare
from resdeploy.schema.recipes import Preprocess

PREPROCESS = Preprocess(
    input_shape=(3, 8, 8), divisor=255.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), color="rgb"
)


def images(num: int, *, seed: int = 0) -> np.ndarray:
    """Smooth random pixels, uint8 (N, 3, 8, 8)."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, size=(num, 3, 4, 4))
    return np.kron(coarse, np.ones((2, 2))).astype(np.uint8)


def inputs(num: int, *, seed: int = 0) -> np.ndarray:
    from resdeploy.data.preprocess import preprocess_batch

    return preprocess_batch(images(num, seed=seed), PREPROCESS)


def small_resnet(*, seed: int = 0, opset: int = 18) -> onnx.ModelProto:
    """conv - [conv conv +] - [conv conv + padded shortcut] - mean over the image - Gemm."""
    random = np.random.default_rng(seed)
    initializers, nodes = [], []

    def constant(name, array):
        initializers.append(numpy_helper.from_array(array, name))
        return name

    def conv(name, source, num_in, num_out, *, stride=1):
        weight = random.normal(size=(num_out, num_in, 3, 3)) * np.sqrt(2 / (9 * num_in))
        parameters = [
            constant(f"{name}.weight", weight.astype(np.float32)),
            constant(f"{name}.bias", random.normal(size=num_out).astype(np.float32) * 0.1),
        ]
        nodes.append(
            helper.make_node(
                "Conv",
                [source, *parameters],
                [name],
                name=f"{name}/Conv",
                kernel_shape=[3, 3],
                pads=[1] * 4,
                strides=[stride] * 2,
            )
        )
        return name

    def relu(source):
        nodes.append(helper.make_node("Relu", [source], [f"{source}.relu"], name=f"{source}/Relu"))
        return f"{source}.relu"

    def add(name, a, b):
        nodes.append(helper.make_node("Add", [a, b], [name], name=f"{name}/Add"))
        return name

    stem = relu(conv("stem", "input", 3, 8))
    first = relu(conv("block1.conv1", stem, 8, 8))
    stream = relu(add("block1", conv("block1.conv2", first, 8, 8), stem))
    second = relu(conv("block2.conv1", stream, 8, 12, stride=2))
    steps = [("starts", [0, 0]), ("ends", [8, 8]), ("axes", [2, 3]), ("steps", [2, 2])]
    nodes.append(
        helper.make_node(
            "Slice",
            [stream, *(constant(name, np.array(v, np.int64)) for name, v in steps)],
            ["halved"],
            name="shortcut/Slice",
        )
    )
    pads = constant("pads", np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64))
    zero = constant("zero", np.array(0, np.float32))
    nodes.append(helper.make_node("Pad", ["halved", pads, zero], ["padded"], name="shortcut/Pad"))
    last = relu(add("block2", conv("block2.conv2", second, 12, 12), "padded"))
    if opset >= 18:
        axes = constant("axes_hw", np.array([2, 3], np.int64))
        nodes.append(helper.make_node("ReduceMean", [last, axes], ["mean"], keepdims=1))
    else:
        nodes.append(helper.make_node("ReduceMean", [last], ["mean"], axes=[2, 3], keepdims=1))
    nodes.append(helper.make_node("Flatten", ["mean"], ["features"], name="flatten"))
    parameters = [
        constant("fc.weight", random.normal(size=(5, 12)).astype(np.float32)),
        constant("fc.bias", random.normal(size=5).astype(np.float32)),
    ]
    gemm = helper.make_node("Gemm", ["features", *parameters], ["logits"], name="fc", transB=1)
    nodes.append(gemm)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", 1, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", 1, ["N", 5])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def prepared_resnet() -> onnx.ModelProto:
    return prepare(small_resnet())
