"""A torch module run on samples, in batches."""

import numpy as np
import torch
from torch import nn

from resdeploy.session.batches import run_rows

__all__ = ["run_module"]


def run_module(module: nn.Module, inputs: np.ndarray, *, dtype: torch.dtype) -> np.ndarray:
    """Return the module's outputs for (N, ...) inputs as (N, K), computed in `dtype`.

    Several outputs are laid side by side in K.
    """

    def run(batch: np.ndarray) -> list[np.ndarray]:
        outputs = module(torch.from_numpy(batch).to(dtype))
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
        return [output.numpy() for output in outputs]

    with torch.no_grad():
        return run_rows(run, inputs)
