"""Make golden references: a torch module in float64, and how far float32 strays from it."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from resdeploy.golden_file import Golden
from resdeploy.schema import GoldenInfo

__all__ = ["make_golden", "run_module", "synthetic_inputs"]

# Large enough to keep the cores busy, small enough for float64 activations of a ResNet-152.
_BATCH_SIZE = 8


def make_golden(
    module: nn.Module,
    inputs: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    source: str,
    inputs_description: str,
) -> Golden:
    """Return `module`'s outputs for `inputs` in float64, and the error of its own float32.

    Args:
        module: in eval mode, float32; it is copied, not changed.
        inputs: (N, ...) float32, preprocessed.
        labels: (N,) int64, or None.
        source: what the module is, for the record.
        inputs_description: what the inputs are, for the record.
    """
    reference = run_module(copy.deepcopy(module).double(), inputs, dtype=torch.float64)
    noise = run_module(module, inputs, dtype=torch.float32).astype(np.float64) - reference
    return Golden(
        inputs=inputs,
        reference=reference,
        noise_l2=np.linalg.norm(noise, axis=1),
        labels=labels,
        info=GoldenInfo(source=source, inputs=inputs_description, num_inputs=len(inputs)),
    )


def run_module(module: nn.Module, inputs: np.ndarray, *, dtype: torch.dtype) -> np.ndarray:
    """Return the module's outputs for (N, ...) inputs as (N, K), computed in `dtype`.

    Several outputs are laid side by side in K.
    """
    rows = []
    with torch.no_grad():
        for batch in _batches(inputs):
            outputs = module(batch.to(dtype))
            outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
            rows.append(torch.cat([output.flatten(1) for output in outputs], dim=1))
    return torch.cat(rows).numpy()


def synthetic_inputs(shape: tuple[int, ...], *, num_inputs: int, seed: int = 0) -> np.ndarray:
    """Return (num_inputs, *shape) float32 normal values, which normalised data resembles."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_inputs, *shape), dtype=np.float32)


def _batches(inputs: np.ndarray) -> Iterator[torch.Tensor]:
    for start in range(0, len(inputs), _BATCH_SIZE):
        yield torch.from_numpy(inputs[start : start + _BATCH_SIZE])
