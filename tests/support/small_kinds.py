"""Networks of the kinds that people deploy, of a few thousand weights, as ONNX graphs."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Network:
    """A graph under construction: each method adds a node and returns the name of its output."""

    def __init__(self, *, seed: int = 0, **inputs: Sequence[int]) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs = inputs
        self._channels = {name: shape[0] for name, shape in inputs.items()}
        self._dims = len(next(iter(inputs.values()))) - 1

    def constant(self, values) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def normal(self, *shape, scale=1.0) -> str:
        return self.constant((self._random.normal(size=shape) * scale).astype(np.float32))

    def op(self, operator, *inputs, channels=None, outputs=1, **attributes) -> str:
        number = len(self._nodes)
        names = [f"t{number}"] + [f"t{number}.{i}" for i in range(1, outputs)]
        node = helper.make_node(operator, inputs, names, f"n{number}/{operator}", **attributes)
        self._nodes.append(node)
        self._channels[names[0]] = channels or self._channels.get(inputs[0])
        return names[0]

    def conv(self, x, channels, k=3, *, stride=1, group=1, weight=None, bias=True) -> str:
        fan_in = self._channels[x] // group * k**self._dims
        shape = (channels, self._channels[x] // group, *[k] * self._dims)
        weight = weight or self.normal(*shape, scale=np.sqrt(2 / fan_in))
        parameters = [weight, *([self.normal(channels, scale=0.1)] if bias else [])]
        return self.op(
            "Conv",
            *(x, *parameters),
            channels=channels,
            kernel_shape=[k] * self._dims,
            pads=[k // 2] * 2 * self._dims,
            strides=[stride] * self._dims,
            group=group,
        )

    def batch_norm(self, x) -> str:
        num = self._channels[x]
        scale, var = (self._random.uniform(0.5, 1.5, num).astype(np.float32) for _ in range(2))
        parts = [self.constant(scale), self.normal(num, scale=0.2), self.normal(num, scale=0.2)]
        return self.op("BatchNormalization", x, *parts, self.constant(var))

    def relu(self, x) -> str:
        return self.op("Relu", x)

    def prelu(self, x) -> str:
        slope = self._random.uniform(0.1, 0.4, (self._channels[x], *[1] * self._dims))
        return self.op("PRelu", x, self.constant(slope.astype(np.float32)))

    def block(self, x, channels, *, stride=1) -> str:
        """A residual block of two convolutions."""
        y = self.conv(self.relu(self.conv(x, channels, stride=stride)), channels)
        is_same = stride == 1 and self._channels[x] == channels
        short = x if is_same else self.conv(x, channels, 1, stride=stride)
        return self.relu(self.op("Add", y, short))

    def concat(self, *names) -> str:
        channels = sum(self._channels[name] for name in names)
        return self.op("Concat", *names, axis=1, channels=channels)

    def resize(self, x, mode="nearest") -> str:
        scales = np.array([1, 1, *[2] * self._dims], np.float32)
        kind = {"coordinate_transformation_mode": "asymmetric"} if mode == "nearest" else {}
        kind |= {"nearest_mode": "floor"} if mode == "nearest" else {}
        return self.op("Resize", x, "", self.constant(scales), mode=mode, **kind)

    def pool(self, x) -> str:
        """The mean over each map, (N, C)."""
        return self.op("Flatten", self.op("GlobalAveragePool", x))

    def gemm(self, x, width, features=None) -> str:
        features = features or self._channels[x]
        weight = self.normal(width, features, scale=1 / np.sqrt(features))
        bias = self.normal(width, scale=0.1)
        return self.op("Gemm", x, weight, bias, transB=1, channels=width)

    def gate(self, x) -> str:
        """Squeeze and excitation."""
        channels = self._channels[x]
        mean = self.op("GlobalAveragePool", x)
        hidden = self.relu(self.conv(mean, max(2, channels // 4), 1))
        return self.op("Mul", x, self.op("Sigmoid", self.conv(hidden, channels, 1)))

    def model(self, **outputs) -> onnx.ModelProto:
        """The network with these outputs, a tensor by name; of class indices (name, INT64)."""
        ends = []
        for name, tensor in outputs.items():
            tensor, kind = tensor if isinstance(tensor, tuple) else (tensor, TensorProto.FLOAT)
            self._nodes.append(helper.make_node("Identity", [tensor], [name], f"{name}/Identity"))
            ends.append(helper.make_tensor_value_info(name, kind, None))
        _drop_identities(self._nodes)
        graph = helper.make_graph(
            self._nodes,
            "network",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
                for name, shape in self._inputs.items()
            ],
            ends,
            self._constants,
        )
        opset = [helper.make_opsetid("", 18)]
        model = onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opset, ir_version=8)
        )
        for value in model.graph.output:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
        onnx.checker.check_model(model, full_check=True)
        return model


def _drop_identities(nodes: list[onnx.NodeProto]) -> None:
    """Give the outputs' names to the tensors they copy, as exporters do."""
    for end in [node for node in nodes if node.op_type == "Identity"]:
        source, name = end.input[0], end.output[0]
        nodes.remove(end)
        for node in nodes:
            for names in (node.input, node.output):
                names[:] = [name if one == source else one for one in names]


def unet(up: Callable[[Network, str], str] = Network.resize, classes: int = 3) -> onnx.ModelProto:
    """Encoder, decoder and a skip between them."""
    net = Network(input=(3, 16, 16))
    first = net.block("input", 6)
    deep = net.block(net.block(first, 8, stride=2), 8)
    joined = net.concat(up(net, deep), first)
    return net.model(logits=net.conv(net.relu(net.conv(joined, 8)), classes, 1))


def transposed(net: Network, x: str) -> str:
    """Upsampling by a transposed convolution."""
    channels = net._channels[x]
    weight = net.normal(channels, channels, 2, 2, scale=np.sqrt(1 / channels))
    return net.op("ConvTranspose", x, weight, kernel_shape=[2, 2], strides=[2, 2])


def pyramid() -> onnx.ModelProto:
    """Three maps, each joined with the one above it, of very different sizes of numbers."""
    net = Network(input=(3, 16, 16))
    fine = net.block("input", 6)
    middle = net.block(fine, 8, stride=2)
    coarse = net.block(middle, 8, stride=2)
    top = net.conv(coarse, 6, 1)
    second = net.op("Add", net.conv(middle, 6, 1), net.resize(top))
    third = net.op("Add", net.conv(fine, 6, 1), net.resize(second))
    large = net.op("Mul", third, net.constant(np.float32(1000)))
    return net.model(p5=top, p4=net.conv(second, 6), p3=large)


def siamese(*, head: str = "difference") -> onnx.ModelProto:
    """Two images through the same weights, and their likeness as one number."""
    net = Network(left=(3, 12, 12), right=(3, 12, 12))
    weights = [
        net.normal(8, 3, 3, 3, scale=0.27),
        net.normal(8, 8, 3, 3, scale=0.17),
    ]

    def features(x):
        for weight in weights:
            x = net.relu(net.conv(x, 8, weight=weight))
        return net.pool(x)

    left, right = features("left"), features("right")
    if head == "difference":
        apart = net.op("Sub", left, right)
        return net.model(logit=net.gemm(net.op("Abs", apart), 1))
    return net.model(scores=net.gemm(net.concat(left, right), 4))


def face_embedding() -> onnx.ModelProto:
    """BatchNorm before padded convolutions, PReLU, and a BatchNorm of the features."""
    net = Network(input=(3, 12, 12))
    x = net.prelu(net.conv("input", 8))
    for stride in (1, 2):
        y = net.prelu(net.conv(net.batch_norm(x), 8, bias=False))
        short = x if stride == 1 else net.conv(x, 8, 1, stride=2)
        x = net.op("Add", net.conv(y, 8, stride=stride), short)
    flat = net.op("Flatten", net.batch_norm(x))
    features = net.batch_norm(net.gemm(flat, 24, features=8 * 6 * 6))
    return net.model(embedding=features)


def normalised_embedding() -> onnx.ModelProto:
    net = Network(input=(3, 12, 12))
    features = net.gemm(net.pool(net.block(net.conv("input", 8), 8)), 16)
    return net.model(embedding=net.op("LpNormalization", features, axis=1, p=2))


def one_number(*, last: str | None = None, shift: float = 0.0) -> onnx.ModelProto:
    """A logit, a probability behind a Sigmoid, or with a shift a number that is always positive."""
    net = Network(input=(3, 12, 12))
    y = net.gemm(net.pool(net.block(net.conv("input", 8), 8)), 1)
    y = net.op("Add", y, net.constant(np.float32([shift])))
    return net.model(y=net.op(last, y) if last else y)


def resnet_1d() -> onnx.ModelProto:
    net = Network(input=(2, 32))
    x = net.block(net.block(net.conv("input", 8, 7), 8), 12, stride=2)
    return net.model(scores=net.gemm(net.pool(x), 5))


def resnet_3d() -> onnx.ModelProto:
    net = Network(input=(2, 4, 8, 8))
    x = net.block(net.block(net.conv("input", 6), 6), 8, stride=2)
    return net.model(scores=net.gemm(net.pool(x), 5))


def densenet() -> onnx.ModelProto:
    """Each layer reads all maps before it, behind a BatchNorm that cannot fold."""
    net = Network(input=(3, 12, 12))
    x = net.conv("input", 8)
    for _ in range(3):
        y = net.conv(net.relu(net.batch_norm(x)), 4)
        x = net.concat(x, y)
    return net.model(scores=net.gemm(net.pool(net.relu(net.batch_norm(x))), 5))


def preactivation() -> onnx.ModelProto:
    net = Network(input=(3, 12, 12))
    x = net.conv("input", 8)
    for _ in range(2):
        y = net.conv(net.relu(net.batch_norm(x)), 8)
        x = net.op("Add", net.conv(net.relu(net.batch_norm(y)), 8), x)
    return net.model(scores=net.gemm(net.pool(net.relu(net.batch_norm(x))), 5))


def mobilenet(activation: str = "HardSwish") -> onnx.ModelProto:
    """Inverted residuals: expanded, depthwise, gated, and projected without an activation."""
    net = Network(input=(3, 12, 12))

    def act(x):
        if activation == "SiLU":
            return net.op("Mul", x, net.op("Sigmoid", x))
        if activation == "ReLU6":
            return net.op("Clip", x, net.constant(np.float32(0)), net.constant(np.float32(6)))
        return net.op(activation, x)

    x = act(net.conv("input", 8))
    for _ in range(2):
        y = act(net.conv(act(net.conv(x, 16, 1)), 16, group=16))
        x = net.op("Add", net.conv(net.gate(y), 8, 1), x)
    return net.model(scores=net.gemm(net.pool(x), 5))


def recurrent() -> onnx.ModelProto:
    """A convolution of a signal, and an LSTM over its steps."""
    net, hidden = Network(input=(2, 24)), 6
    x = net.relu(net.conv("input", 8, 5, stride=2))
    steps = net.op("Transpose", x, perm=[2, 0, 1])
    parts = [net.normal(1, 4 * hidden, size, scale=0.3) for size in (8, hidden)]
    states = net.op("LSTM", steps, *parts, outputs=2, hidden_size=hidden)
    last = net.op("Squeeze", f"{states}.1", net.constant(np.array([0])))
    return net.model(scores=net.gemm(last, 4, features=hidden))


def decides() -> onnx.ModelProto:
    """Class indices alone."""
    net = Network(input=(3, 12, 12))
    scores = net.gemm(net.pool(net.block(net.conv("input", 8), 8)), 5)
    index = net.op("ArgMax", scores, axis=1, keepdims=0)
    return net.model(index=(index, TensorProto.INT64))


def scores_and_map() -> onnx.ModelProto:
    net = Network(input=(3, 12, 12))
    x = net.block(net.conv("input", 8), 8)
    return net.model(scores=net.gemm(net.pool(x), 5), map=net.conv(x, 4))


def products() -> onnx.ModelProto:
    """Layers written as MatMul and Add."""
    net = Network(input=(20,))
    x = "input"
    for width, features in ((16, 20), (16, 16), (5, 16)):
        y = net.op("MatMul", x, net.normal(features, width, scale=1 / np.sqrt(features)))
        x = net.op("Add", y, net.normal(width, scale=0.1))
        x = x if width == 5 else net.relu(x)
    return net.model(scores=x)


def noise(model: onnx.ModelProto, num: int, *, seed: int = 1) -> np.ndarray:
    """Smooth inputs of a model, records of them if it has several."""
    random = np.random.default_rng(seed)
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[1:]
        for value in model.graph.input
    }
    drawn = {
        # Of different brightness, so that predictions differ.
        name: (
            random.normal(size=(num, *shape)) + random.normal(size=(num, *[1] * len(shape))) * 2
        ).astype(np.float32)
        for name, shape in shapes.items()
    }
    if len(drawn) == 1:
        return next(iter(drawn.values()))
    records = np.empty(num, [(name, np.float32, shape) for name, shape in shapes.items()])
    for name, values in drawn.items():
        records[name] = values
    return records
