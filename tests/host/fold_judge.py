"""Whether a candidate computes the function of a module, by the module's own rounding error."""

import copy

import torch
from torch import Tensor, nn

__all__ = ["assert_same_function", "run"]


def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs, with the same random numbers each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = module(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def assert_same_function(candidate: nn.Module, module: nn.Module, inputs, *, random: bool) -> None:
    """Hold candidate and module against the module in float64, by the module's own error."""
    # A copy each time: a call may change the statistics.
    own = run(copy.deepcopy(module), inputs)
    exact = own  # Random numbers differ between types.
    if not random:
        exact = run(copy.deepcopy(module).double(), tuple(x.double() for x in inputs))
    got = run(candidate, inputs)
    assert len(got) == len(exact)
    for mine, theirs, reference in zip(got, own, exact, strict=True):
        assert mine.dtype is theirs.dtype
        assert mine.shape == reference.shape
        finite = reference.isfinite() & theirs.isfinite()
        assert torch.equal(mine.isfinite(), theirs.isfinite())
        mine, theirs, reference = (t[finite].double() for t in (mine, theirs, reference))
        unit = torch.finfo(got[0].dtype).eps / 2
        noise = (theirs - reference).norm() + unit * reference.norm()
        assert (mine - reference).norm() <= 4 * noise
