"""ResNets in ONNX as other tools wrote them: the model zoo, tf2onnx and Keras, MXNet and Caffe."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_TO_FIRST, _TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


class _Writer:
    """Nodes and seeded weights, collected; a value is its name."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self._random = np.random.default_rng(0)
        self._depth = 0

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights[name] = np.asarray(value)
        return name

    def draw(self, *shape: int, around: float = 0.0) -> np.ndarray:
        """Return normal numbers of the size of a layer's weights, or numbers near `around`."""
        if around:
            return self._random.uniform(0.5 * around, 1.5 * around, shape).astype(np.float32)
        scale = np.sqrt(2 / max(1, np.prod(shape[1:])))
        return (self._random.normal(size=shape) * scale).astype(np.float32)

    def node(self, op: str, *inputs: str, name: str = "", **attributes: object) -> str:
        self._depth += 1
        name = name or f"{op.lower()}{self._depth}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def statistics(self, name: str, channels: int, *, gamma: bool = True) -> list[str]:
        """Return the parameters of a BatchNorm; without `gamma`, MXNet's fix_gamma."""
        scale = self.draw(channels, around=1) if gamma else np.ones(channels, np.float32)
        numbers = {
            "gamma": scale,
            "beta": self.draw(channels, around=0.2),
            "moving_mean": self.draw(channels, around=0.1),
            "moving_var": self.draw(channels, around=1),
        }
        return [self.weight(f"{name}_{key}", value) for key, value in numbers.items()]

    def conv(
        self, x: str, name: str, sizes: Sequence[int], *, stride: int = 1, bias: bool = False
    ) -> str:
        """Return a convolution with weights of (outputs, inputs, kernel, kernel)."""
        kernel = sizes[2]
        inputs = [x, self.weight(f"{name}_weight", self.draw(*sizes))]
        if bias:
            inputs.append(self.weight(f"{name}_bias", self.draw(sizes[0], around=0.1)))
        return self.node(
            "Conv",
            *inputs,
            name=name,
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            strides=[stride, stride],
            dilations=[1, 1],
            group=1,
        )

    def batchnorm(self, x: str, name: str, channels: int, **how: bool) -> str:
        old = {"spatial": 1} if self.opset < 9 else {}
        return self.node(
            "BatchNormalization",
            x,
            *self.statistics(name, channels, **how),
            name=name,
            epsilon=1e-5,
            momentum=0.9,
            **old,
        )

    def model(
        self,
        shape: Sequence[int | str],
        output: str,
        num_classes: int,
        *,
        ir_version: int,
        listed: bool,
        unread: Mapping[str, np.ndarray],
        input_name: str,
    ) -> onnx.ModelProto:
        weights = {**self.weights, **unread}
        inputs = [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, shape)]
        if listed:
            inputs += [
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
                )
                for name, value in weights.items()
            ]
        outputs = [
            helper.make_tensor_value_info(output, TensorProto.FLOAT, [shape[0], num_classes])
        ]
        tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
        graph = helper.make_graph(self.nodes, "network", inputs, outputs, tensors)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=ir_version,
            producer_name="elsewhere",
        )


def zoo_resnet(
    *,
    opset: int = 7,
    ir_version: int = 3,
    listed: bool = True,
    widths: Sequence[int] = (8, 16),
    blocks: int = 1,
    side: int = 32,
    num_classes: int = 10,
    batch: int | str = 1,
    probabilities: bool = False,
) -> onnx.ModelProto:
    """Return a ResNet in the published form of opset 7: all weights are inputs too.

    With BatchNormalization's `spatial`, Dropout and, if asked for, the Softmax of its day.
    """
    w = _Writer(opset)
    x = w.batchnorm(w.conv("data", "conv0", (widths[0], 3, 7, 7), stride=2), "bn0", widths[0])
    x = w.node("Relu", x)
    x = w.node("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    x = _stages(w, x, widths, blocks)
    x = w.node("GlobalAveragePool", x)
    if opset < 12:
        x = w.node("Dropout", x, ratio=0.5)
    x = w.node("Reshape", x, w.weight("flat", np.array([0, -1], np.int64)))
    x = w.node(
        "Gemm",
        x,
        w.weight("dense_weight", w.draw(num_classes, widths[-1])),
        w.weight("dense_bias", w.draw(num_classes, around=0.1)),
        transA=0,
        transB=1,
    )
    if probabilities:
        x = w.node("Softmax", x, axis=1)
    unread = {"num_batches_tracked": np.array([7], np.int64)}
    return w.model(
        (batch, 3, side, side),
        x,
        num_classes,
        ir_version=ir_version,
        listed=listed,
        unread=unread,
        input_name="data",
    )


def _stages(w: _Writer, x: str, widths: Sequence[int], blocks: int) -> str:
    channels = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            name, stride = f"stage{stage}_{block}", 2 if stage and not block else 1
            y = w.conv(x, f"{name}_conv0", (width, channels, 3, 3), stride=stride)
            y = w.node("Relu", w.batchnorm(y, f"{name}_bn0", width))
            y = w.conv(y, f"{name}_conv1", (width, width, 3, 3))
            y = w.batchnorm(y, f"{name}_bn1", width)
            if stride != 1 or channels != width:
                x = w.conv(x, f"{name}_conv2", (width, channels, 1, 1), stride=stride)
                x = w.batchnorm(x, f"{name}_bn2", width)
            x = w.node("Relu", w.node("Add", y, x))
            channels = width
    return x


def keras_resnet(
    *,
    opset: int = 11,
    written_out: bool = True,
    transposed_each: bool = True,
    widths: Sequence[int] = (8, 16),
    side: int = 32,
    num_classes: int = 10,
    batch: int | str = "N",
    probabilities: bool = True,
) -> onnx.ModelProto:
    """Return a ResNet as converted from Keras: N, H, W, C outside, transposes around Convs.

    Padding is a Pad of its own. `written_out` has each BatchNorm as a Mul and an Add of constants
    along the last axis; without it, as BatchNormalization between the transposes. Without
    `transposed_each` the graph is channels-first but for one Transpose at its input.
    """
    w = _Writer(opset)
    last = transposed_each

    def conv(x: str, name: str, sizes: Sequence[int], stride: int = 1) -> str:
        if last:
            x = w.node("Transpose", x, perm=_TO_FIRST)
        y = w.node(
            "Conv",
            x,
            w.weight(f"{name}_kernel", w.draw(*sizes)),
            w.weight(f"{name}_bias", w.draw(sizes[0], around=0.1)),
            name=name,
            auto_pad="VALID" if sizes[2] == 7 or stride != 1 else "SAME_UPPER",
            strides=[stride] * 2,
        )
        if not written_out:
            y = w.batchnorm(y, f"{name}_bn", sizes[0])
        if last:
            y = w.node("Transpose", y, perm=_TO_LAST)
        return y if not written_out else scaled(y, f"{name}_bn", sizes[0])

    def scaled(y: str, name: str, width: int) -> str:
        shape = (width,) if last else (1, width, 1, 1)
        y = w.node("Mul", y, w.weight(f"{name}_scale", w.draw(width, around=1).reshape(shape)))
        shift = w.draw(width, around=0.2).reshape(shape)
        return w.node("Add", y, w.weight(f"{name}_shift", shift))

    def pad(x: str, size: int) -> str:
        pads = [0, size, size, 0] if last else [0, 0, size, size]
        if opset < 11:
            return w.node("Pad", x, pads=pads * 2, mode="constant")
        return w.node("Pad", x, w.weight(f"pad{size}_{x}", np.array(pads * 2, np.int64)))

    x = "input_1" if last else w.node("Transpose", "input_1", perm=_TO_FIRST)
    x = w.node("Relu", conv(pad(x, 3), "conv1", (widths[0], 3, 7, 7), 2))
    pool = {"kernel_shape": [3, 3], "strides": [2, 2]}
    x = pad(x, 1)  # of zeros, which are no larger than any Relu
    if last:
        x = w.node("MaxPool", w.node("Transpose", x, perm=_TO_FIRST), **pool)
        x = w.node("Transpose", x, perm=_TO_LAST)
    else:
        x = w.node("MaxPool", x, **pool)
    channels = widths[0]
    for stage, width in enumerate(widths):
        stride, name = 2 if stage else 1, f"conv{stage + 2}"
        y = w.node("Relu", conv(x, f"{name}_1", (width, channels, 1, 1), stride))
        y = conv(y, f"{name}_2", (width, width, 3, 3))
        if stage:
            x = conv(x, f"{name}_0", (width, channels, 1, 1), stride)
        x, channels = w.node("Relu", w.node("Add", y, x)), width
    x = w.node("ReduceMean", x, axes=[1, 2] if last else [2, 3], keepdims=0)
    x = w.node("MatMul", x, w.weight("dense_kernel", w.draw(widths[-1], num_classes)))
    x = w.node("Add", x, w.weight("dense_bias", w.draw(num_classes, around=0.1)))
    if probabilities:
        x = w.node("Softmax", x, **({"axis": 1} if opset < 13 else {}))
    return w.model(
        (batch, side, side, 3),
        x,
        num_classes,
        ir_version=6,
        listed=False,
        unread={},
        input_name="input_1",
    )


def mxnet_resnet(
    *,
    opset: int = 8,
    scale: bool = True,
    data_norm: bool = True,
    widths: Sequence[int] = (8, 16),
    side: int = 32,
    num_classes: int = 10,
) -> onnx.ModelProto:
    """Return a ResNet as exported from MXNet: a BatchNorm on the data, gammas fixed to one.

    With `scale` each BatchNorm has unit parameters, and Caffe's Scale layer after it holds them.
    """
    w = _Writer(opset)

    def norm(x: str, name: str, width: int) -> str:
        y = w.batchnorm(x, name, width, gamma=False)
        if not scale:
            return y
        gamma = w.weight(f"{name}_scale", w.draw(width, around=1).reshape(1, width, 1, 1))
        beta = w.weight(f"{name}_shift", w.draw(width, around=0.2).reshape(1, width, 1, 1))
        return w.node("Add", w.node("Mul", y, gamma), beta)

    x = w.batchnorm("data", "bn_data", 3, gamma=False) if data_norm else "data"
    x = w.node("Relu", norm(w.conv(x, "conv0", (widths[0], 3, 3, 3)), "bn0", widths[0]))
    channels = widths[0]
    for stage, width in enumerate(widths):
        name, stride = f"stage{stage + 1}_unit1", 2 if stage else 1
        y = w.conv(x, f"{name}_conv1", (width, channels, 3, 3), stride=stride)
        y = w.node("LeakyRelu", norm(y, f"{name}_bn1", width), alpha=0.25)
        y = norm(w.conv(y, f"{name}_conv2", (width, width, 3, 3)), f"{name}_bn2", width)
        if stage:
            x = w.conv(x, f"{name}_sc", (width, channels, 1, 1), stride=stride)
            x = norm(x, f"{name}_sc_bn", width)
        x, channels = w.node("Relu", w.node("Add", y, x)), width
    x = w.node("Flatten", w.node("GlobalAveragePool", x))
    x = w.node(
        "Gemm",
        x,
        w.weight("fc1_weight", w.draw(num_classes, widths[-1])),
        w.weight("fc1_bias", w.draw(num_classes, around=0.1)),
        alpha=1.0,
        beta=1.0,
        transA=0,
        transB=1,
    )
    return w.model(
        (1, 3, side, side),
        x,
        num_classes,
        ir_version=3,
        listed=True,
        unread={},
        input_name="data",
    )
