"""Cost of embedded preprocessing, in each of its forms.

A ResNet-20 on pixels, uint8 NHWC, in four forms timed in turn; the claim is the ratio to the first,
with its interval over blocks of fresh processes, each on one core. Beside it stands how far the
outputs are from the first's, for what the form does to rounding.

    outside    NumPy makes the inputs, which takes its time, and the model takes them
    embed      Transpose, Cast, Sub(centre), scale in the first layer: what resdeploy writes
    all        Transpose, Cast, Mul, Sub: nothing folded
    map        Transpose, Cast, scale in the first layer, and behind it an Add of what the centre
               comes to at each position, which at the border is less

    python benchmarks/export/embed.py --json benchmarks/export/embed.json
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from forms import NUM_RUNS, command, medians_of, ratios_to
from onnx import helper, numpy_helper

from resdeploy.data.preprocess import centre_and_scale, preprocess_batch
from resdeploy.export.embedded import embed_preprocess
from resdeploy.export.export import export_onnx
from resdeploy.export.source import SourceModel
from resdeploy.graph.float64 import evaluate_float64
from resdeploy.networks import build_network
from resdeploy.recipe import load_recipe
from resdeploy.schema.exports import ExportSpec
from resdeploy.schema.recipes import CheckpointInfo, Preprocess
from resdeploy.session.runtime import onnxruntime


def with_map(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """Return the embedded model with its centre moved behind the first layer."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    difference = next(node for node in graph.node if node.op_type == "Sub")
    first = next(node for node in graph.node if node.op_type == "Conv")
    centre = arrays[difference.input[1]]
    image = np.broadcast_to(centre, (1, centre.size, size, size)).astype(np.float64)
    alone = onnx.ModelProto.FromString(model.SerializeToString())
    del alone.graph.node[:], alone.graph.output[:]
    alone.graph.node.append(first)
    alone.graph.output.append(onnx.ValueInfoProto(name=first.output[0]))
    alone.graph.input[0].name = first.input[0]
    alone.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    moved = evaluate_float64(alone, {first.input[0]: image})[first.output[0]]
    bias = arrays[first.input[2]].astype(np.float64).reshape(1, -1, 1, 1)
    # The convolution alone adds its bias to what the centre comes to.
    corrected = (2 * bias - moved).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(corrected, "map"))
    place = list(graph.node).index(first) + 1
    graph.node.insert(place, helper.make_node("Add", ["uncentred", "map"], list(first.output)))
    first.output[0] = "uncentred"
    first.input[0] = difference.input[0]
    del first.input[2:]
    graph.node.remove(difference)
    return model


def with_all(model: onnx.ModelProto, spec: Preprocess) -> onnx.ModelProto:
    """Return the plain model behind the whole preprocessing."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    centre_C, scale_C = centre_and_scale(spec)
    constants = {"scale": scale_C, "shift": centre_C * scale_C}
    for name, value in constants.items():
        array = value.astype(np.float32).reshape(1, -1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(array, name))
    graph.node[0].input[0] = "x"
    nodes = [
        helper.make_node("Transpose", ["input"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["numbers"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "shift"], ["x"]),
    ]
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    channels, height, width = spec.input_shape
    entry = helper.make_tensor_value_info(
        "input", onnx.TensorProto.UINT8, ["batch", height, width, channels]
    )
    graph.input[0].CopyFrom(entry)
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input": x})[0]


def preparing_ns(pixels: np.ndarray, spec: Preprocess) -> float:
    """Return the median time of NumPy's preparing."""
    times = []
    for _ in range(NUM_RUNS):
        start = time.perf_counter_ns()
        preprocess_batch(pixels, spec)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times)


def measure(blocks: int) -> dict[str, Any]:
    """Time the forms in turn."""
    recipe = load_recipe("cifar10-resnet20")
    preprocess = recipe.preprocess
    source = SourceModel(
        module=build_network(recipe.model).eval(),
        input_shape=preprocess.input_shape,
        description="cifar_resnet20",
        info=CheckpointInfo(model=recipe.model, preprocess=preprocess),
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("plain", "embedded")}
        export_onnx(source, ExportSpec(), paths["plain"])
        export_onnx(embed_preprocess(source), ExportSpec(), paths["embedded"])
        plain, embedded = (onnx.load(path) for path in paths.values())
    forms = {
        "embed": embedded,
        "all": with_all(plain, preprocess),
        "map": with_map(embedded, preprocess.input_shape[1]),
    }
    result = {}
    rng = np.random.default_rng(0)
    for batch in (1, 8):
        pixels = rng.integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
        expected = run(plain, preprocess_batch(pixels, preprocess))
        medians = medians_of({"outside": plain, **forms}, batch_size=batch, blocks=blocks)
        for one in medians:
            one["outside"] += preparing_ns(pixels, preprocess)
        result[f"batch {batch}"] = {
            **ratios_to("outside", medians),
            "relative_difference": {
                name: float(np.abs(run(model, pixels) - expected).max() / np.abs(expected).max())
                for name, model in forms.items()
            },
        }
    return result


main = command(measure)

if __name__ == "__main__":
    main()
