"""Calibration: a histogram of every tensor over samples, in one pass with memory for one batch.

onnxruntime's own calibrators keep the tensors of all batches until the last one; here each batch is
counted and dropped.
"""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError
from resdeploy.quant.onnx_graph import channels_first_shapes, float_inputs
from resdeploy.quant.runtime import Runner, with_outputs
from resdeploy.quant.samples import batches

__all__ = ["StreamHistogram", "calibrate", "float_tensors"]

_NUM_BINS = 16384


class StreamHistogram:
    """Histogram of a stream of unknown range, with its exact least and largest value.

    The bins cover [-reach, reach] evenly, with a fixed even number of them. When a value lies
    beyond, reach is doubled and each two neighbours become one, so that nothing is read twice.
    """

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(_NUM_BINS, np.int64)
        self.reach = 0.0
        self.low = np.inf
        self.high = -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Count finite values."""
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if largest == 0.0:
            self.counts[_NUM_BINS // 2] += flat.size
            return
        self.reach = self.reach or largest
        while self.reach < largest:
            self._double()
        half = _NUM_BINS // 2
        places = (flat * np.float32(half / self.reach) + np.float32(half)).astype(np.int32)
        # The largest value itself would be one beyond the last bin.
        np.clip(places, 0, _NUM_BINS - 1, out=places)
        self.counts += np.bincount(places, minlength=_NUM_BINS)

    def edges(self) -> NDArray[np.float64]:
        """Return the edges of the bins, one more than there are bins."""
        return np.linspace(-self.reach, self.reach, _NUM_BINS + 1)

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(_NUM_BINS, np.int64)
        quarter = _NUM_BINS // 4
        self.counts[quarter : 3 * quarter] = pairs
        self.reach *= 2


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
    num: int = 0,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> dict[str, StreamHistogram]:
    """Return the histogram of every tensor of a float32 model on samples, its inputs among them.

    `on_stage` is told how many of the `num` samples are done.

    Raises:
        ResdeployError: a tensor becomes NaN or infinite.
    """
    names = float_tensors(model)
    runner = Runner(with_outputs(model, names), optimize=False)
    given = float_inputs(model)
    histograms = {name: StreamHistogram() for name in (*given, *names)}
    done = 0
    for batch in batches(samples, runner.batch_size):
        ((inputs, found),) = runner.run_batches(batch)
        for name, values in ({name: inputs[name] for name in given} | found).items():
            if not np.isfinite(values).all():
                raise ResdeployError(
                    "The model computes NaN or infinity on a calibration sample.",
                    where=f"{name}, samples {done} to {done + len(batch) - 1}",
                    fix="check the model's weights, and the samples for huge values",
                )
            histograms[name].add(values)
        done += len(batch)
        on_stage(f"calibrate: {done} of {num} samples")
    return histograms
