"""Gain of the graph passes: option A's shortcut in three forms, the mean in two.

One model in several forms is timed in turn; the claim is the ratio to the form that torch exports,
with its interval over blocks of fresh processes, each on one core.

    slice           Slice, Pad: as torch exports it
    maxpool         MaxPool of one pixel, Pad
    conv            one convolution 1x1: what resdeploy writes up to 64 channels
    ...-mean        with ReduceMean in place of GlobalAveragePool

First a whole ResNet-20, then one block alone for growing channels; and how many operators of each
kind are left of the ResNet-20 in int8, by ONNX Runtime's own quantiser.

    python benchmarks/export/shortcut.py --json benchmarks/export/shortcut.json
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from forms import command, medians_of, ratios_to
from onnx import TensorProto, helper, numpy_helper

from resdeploy.export.export import export_onnx
from resdeploy.export.source import SourceModel
from resdeploy.networks import build_network
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec
from resdeploy.session.runtime import onnxruntime

END = np.iinfo(np.int64).max
# (channels, height and width) of the shortcut's input.
BLOCKS = ((16, 32), (32, 16), (64, 8), (64, 56), (128, 28), (256, 14))


def rewritten(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """Return the model as resdeploy exports it with its shortcuts in another form."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}

    def constant(name: str, values: list[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    for node in list(graph.node):
        if node.op_type == "GlobalAveragePool" and form.endswith("-mean"):
            node.op_type = "ReduceMean"
            node.input.append(constant("spatial", [2, 3]))
        if "shortcut" not in node.name or form.startswith("conv"):
            continue
        num_outputs, num_inputs = arrays[node.input[1]].shape[:2]
        before = (num_outputs - num_inputs) // 2
        after = num_outputs - num_inputs - before
        picked, name = f"{node.name}_picked", node.name
        if form.startswith("slice"):
            names = ("starts", "ends", "axes", "steps")
            values = ([0, 0], [END, END], [2, 3], [2, 2])
            bounds = [constant(f"{name}_{n}", v) for n, v in zip(names, values, strict=True)]
            pick = helper.make_node("Slice", [node.input[0], *bounds], [picked])
        else:
            window = {"kernel_shape": [1, 1], "strides": [2, 2]}
            pick = helper.make_node("MaxPool", [node.input[0]], [picked], **window)
        pads = constant(f"{name}_pads", [0, before, 0, 0, 0, after, 0, 0])
        pad = helper.make_node("Pad", [picked, pads], list(node.output), name=name)
        place = list(graph.node).index(node)
        graph.node.remove(node)
        graph.node.insert(place, pad)
        graph.node.insert(place, pick)
    read = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)
    return model


def block(channels: int, size: int) -> onnx.ModelProto:
    """Return a convolution, then a residual block with option A, then a convolution."""
    rng = np.random.default_rng(0)
    weights, nodes = [], []

    def layer(x: str, y: str, shape: tuple[int, ...], stride: int) -> None:
        kernel = shape[-1]
        weight = (rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"{y}_w"))
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        nodes.append(helper.make_node("Conv", [x, f"{y}_w"], [y], name=y, **window))

    def relu(x: str, y: str) -> None:
        nodes.append(helper.make_node("Relu", [x], [y]))

    double = 2 * channels
    layer("input", "stem", (channels, channels, 3, 3), 1)
    relu("stem", "x")
    layer("x", "conv1", (double, channels, 3, 3), 2)
    relu("conv1", "h")
    layer("h", "conv2", (double, double, 3, 3), 1)
    layer("x", "shortcut", (double, channels, 1, 1), 2)
    eye = np.eye(double, channels, k=-(channels // 2), dtype=np.float32)[:, :, None, None]
    weights[-1] = numpy_helper.from_array(eye, "shortcut_w")
    nodes.append(helper.make_node("Add", ["conv2", "shortcut"], ["sum"]))
    relu("sum", "z")
    layer("z", "logits", (double, double, 3, 3), 1)
    shapes = (["n", channels, size, size], ["n", double, size // 2, size // 2])
    values = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(("input", "logits"), shapes, strict=True)
    )
    graph = helper.make_graph(nodes, "block", [next(values)], [next(values)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def int8_operators(model: onnx.ModelProto, folder: Path) -> dict[str, int]:
    """Return the operators that ONNX Runtime runs of the model, quantised."""
    from onnxruntime import quantization as quant

    rng = np.random.default_rng(0)
    batches = [{"input": rng.normal(size=(8, 3, 32, 32)).astype(np.float32)} for _ in range(4)]

    class Reader(quant.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    onnx.save(model, folder / "float.onnx")
    quant.quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Reader(),
        per_channel=True,
        activation_type=quant.QuantType.QUInt8,
        weight_type=quant.QuantType.QInt8,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "run.onnx")
    onnxruntime.InferenceSession(folder / "int8.onnx", options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "run.onnx").graph.node
    return dict(sorted(Counter(node.op_type for node in nodes).items()))


def measure(blocks: int) -> dict[str, Any]:
    """Time the forms in turn and count the operators of int8."""
    spec = ModelSpec(arch="cifar_resnet20", num_classes=10)
    source = SourceModel(
        module=build_network(spec).eval(),
        input_shape=(3, 32, 32),
        description="cifar_resnet20",
        info=CheckpointInfo(model=spec),
    )
    forms = ("slice-mean", "slice", "maxpool", "conv-mean", "conv")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(source, ExportSpec(), path)
        models = {form: rewritten(onnx.load(path), form) for form in forms}
        for batch in (1, 8):
            medians = medians_of(models, batch_size=batch, blocks=blocks)
            result[f"resnet20, batch {batch}"] = ratios_to(forms[0], medians)
        result["int8 operators"] = {
            form: int8_operators(models[form], Path(folder)) for form in ("slice-mean", "conv")
        }
    for channels, size in BLOCKS:
        model = block(channels, size)
        models = {form: rewritten(model, form) for form in ("slice", "maxpool", "conv")}
        medians = medians_of(models, batch_size=1, blocks=blocks)
        result[f"block, {channels} channels of {size}x{size}"] = ratios_to("slice", medians)
    return result


main = command(measure)

if __name__ == "__main__":
    main()
