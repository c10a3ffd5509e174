"""Runs of a session that replays a CUDA graph: recorded once, launched as one.

A recorded graph holds addresses and shapes. So each shape of the inputs has tensors of its own on
the device, into which inputs are copied and from which outputs are read, and a graph of its own,
with a number. ONNX Runtime records after its first runs of a shape.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "CUDA graphs"
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resdeploy.errors import ResdeployError
from resdeploy.schema.files import numpy_name
from resdeploy.session.runtime import onnxruntime

__all__ = ["Recorded", "RecordedRuns"]

# The run option with the number of a graph; 0 is ONNX Runtime's own, and -1 none.
_GRAPH_NUMBER = "gpu_graph_id"
_FIRST_NUMBER = 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """One shape of the inputs: tensors on the device, bound to the session, and its graph."""

    binding: Any
    inputs: Mapping[str, Any]
    options: Any


class RecordedRuns:
    """Runs a session from tensors that stay where they are, for each shape of its inputs."""

    def __init__(self, session: Any, device: str) -> None:
        """Take an ONNX Runtime session, and the name of the device it computes on."""
        self._session = session
        self._device = device
        self._recorded: dict[tuple[tuple[str, tuple[int, ...]], ...], Recorded] = {}

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the outputs in the session's order, copied from the device.

        Raises:
            ResdeployError: the shape of an output does not follow from the inputs'.
        """
        recorded = self.recorded(feed)
        for name, value in feed.items():
            recorded.inputs[name].update_inplace(np.ascontiguousarray(value))
        self.launch(recorded)
        outputs: list[NDArray[Any]] = recorded.binding.copy_outputs_to_cpu()
        return outputs

    def launch(self, recorded: Recorded) -> None:
        """Run once on the inputs that lie on the device; the outputs stay there."""
        self._session.run_with_iobinding(recorded.binding, recorded.options)

    def recorded(self, feed: Mapping[str, NDArray[Any]]) -> Recorded:
        """Return the record for the shapes of `feed`, made at their first run."""
        key = tuple((name, value.shape) for name, value in sorted(feed.items()))
        if key not in self._recorded:
            self._recorded[key] = self._record(feed, number=_FIRST_NUMBER + len(self._recorded))
        return self._recorded[key]

    def _record(self, feed: Mapping[str, NDArray[Any]], *, number: int) -> Recorded:
        value_of = onnxruntime.OrtValue
        inputs = {
            name: value_of.ortvalue_from_numpy(np.ascontiguousarray(value), self._device, 0)
            for name, value in feed.items()
        }
        batch_size = next(iter(feed.values())).shape[0]
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for output in self._session.get_outputs():
            shape = _shape_for(output, batch_size)
            empty = value_of.ortvalue_from_shape_and_type(
                shape, numpy_name(output.type), self._device, 0
            )
            binding.bind_ortvalue_output(output.name, empty)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(_GRAPH_NUMBER, str(number))
        return Recorded(binding=binding, inputs=inputs, options=options)


def _shape_for(output: Any, batch_size: int) -> list[int]:
    """Return an output's shape for a batch; only its first dimension may be open."""
    first, *rest = output.shape or [None]
    if not output.shape or not all(isinstance(size, int) for size in rest):
        raise ResdeployError(
            f"A CUDA graph needs outputs of known shape; {output.name} is {output.shape}.",
            fix="export the model with fixed sizes, or leave out --cuda-graph",
        )
    return [first if isinstance(first, int) else batch_size, *rest]
