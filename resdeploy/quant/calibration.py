"""Calibration: a histogram of every tensor over samples, in one pass with memory for one batch.

onnxruntime's own calibrators keep the tensors of all batches until the last one; here each batch is
counted and dropped.
"""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError
from resdeploy.quant.histogram import StreamHistogram
from resdeploy.quant.onnx_graph import channels_first_shapes
from resdeploy.quant.runtime import Runner, input_of, with_outputs
from resdeploy.quant.samples import batches

__all__ = ["calibrate", "float_tensors"]


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the names of the tensors that nodes compute in float32, in the order of the graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    other = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type not in (0, onnx.TensorProto.FLOAT)
    }
    shapes = channels_first_shapes(model)
    return [
        name
        for node in model.graph.node
        if node.op_type != "Constant"
        for name in node.output
        if name and name not in other and shapes.get(name, (1,)) != ()
    ]


def calibrate(
    model: onnx.ModelProto,
    samples: Iterator[NDArray[np.float32]],
    *,
    on_sample: Callable[[int], None] = lambda done: None,
) -> dict[str, StreamHistogram]:
    """Return the histogram of every tensor of a model on some samples, its input among them.

    Args:
        model: in float32, with one input.
        samples: finite network inputs.
        on_sample: told the number of samples done.

    Raises:
        ResdeployError: a tensor becomes NaN or infinite.
    """
    names = float_tensors(model)
    runner = Runner(with_outputs(model, names), optimize=False)
    histograms = {name: StreamHistogram() for name in (input_of(model).name, *names)}
    done = 0
    for batch in batches(samples, runner.batch_size):
        tensors = {input_of(model).name: batch} | runner.run(batch)
        for name, values in tensors.items():
            if not np.isfinite(values).all():
                raise ResdeployError(
                    "The model computes NaN or infinity on a calibration sample.",
                    where=f"{name}, samples {done} to {done + len(batch) - 1}",
                    fix="check the model's weights, and the samples for huge values",
                )
            histograms[name].add(values)
        done += len(batch)
        on_sample(done)
    return histograms
