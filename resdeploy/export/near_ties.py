"""Near-ties of integer outputs: the other values that the noise of float32 explains as well.

An integer is a decision on floats. From each integer output the graph is followed back, as long as
one value alone decides, to the operator that took the decision, and to the floats s before it:

1. a rank (argmax, topk, sort): another place is as good where its s is within the margin;
2. a comparison, a rounding or a cast: it is taken again at s + margin and s - margin.

What follows the decision is computed again from each. The margin is 4 deviations of the difference
of two values that each err as far as the outputs of a correct implementation may, 4 e, where e is
the error of float32 in s: its root mean square for this input, not below what the relative error of
the whole batch says, nor below u |s|.
"""

import copy
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.embedded import input_roundings, split_preprocess
from resdeploy.export.interpret import GraphWalker, output_nodes
from resdeploy.export.run_module import AllFloat64
from resdeploy.export.signature import bind, tensors
from resdeploy.export.trace import trace
from resdeploy.export.trace_refusals import call_arguments, operator_name
from resdeploy.schema.verdicts import OutputInfo
from resdeploy.session.batches import BATCH_SIZE
from resdeploy.verify.end_to_end import NOISE_RATIO_LIMIT
from resdeploy.verify.precision import FLOAT32_ROUNDOFF

__all__ = ["find_near_ties"]

_MARGIN = 4 * math.sqrt(2) * NOISE_RATIO_LIMIT

# Places that are as good as one, of which more are not looked for.
_MOST_TIES = 64

_RANKS = frozenset(("argmax", "argmin", "max", "min", "topk", "sort", "argsort"))
_COMPARISONS = frozenset(("gt", "ge", "lt", "le", "greater", "less", "greater_equal", "less_equal"))
_STEPS = frozenset((*_COMPARISONS, "round", "floor", "ceil", "trunc", "sign", "bucketize"))
_POINTWISE = frozenset(("clamp", "clamp_min", "clamp_max", "relu", "mul", "add", "sub", "neg"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """The operator that decides on an integer output.

    Attributes:
        node: the decision; of a rank with two results, that of the places.
        rank: the call of a rank; None for a comparison or a cast.
        floats: what it is taken on.
        tail: what is computed from it alone, up to the output.
        sizes: the sizes that the tail reads.
    """

    node: fx.Node
    rank: fx.Node | None
    floats: tuple[fx.Node, ...]
    tail: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


def find_near_ties(
    module: nn.Module,
    inputs: NDArray[Any],
    exact_NJ: NDArray[np.int64],
    outputs: Sequence[OutputInfo],
) -> NDArray[np.int64]:
    """Return the near-ties of a module's integer outputs, (E, 3): input, column, other value.

    Empty where the module cannot be traced; an output has none where no single value decides.

    Args:
        module: in eval mode, float32; it is copied, not changed.
        inputs: (N, ...).
        exact_NJ: its integer outputs in float64, side by side.
        outputs: all its outputs.
    """
    module, preprocess = split_preprocess(module)
    if preprocess is not None:
        inputs, _ = input_roundings(inputs, preprocess)
    two = np.concatenate([inputs[:1], inputs[-1:]])
    found = [np.zeros((0, 3), np.int64)]
    with torch.no_grad():
        try:
            args, kwargs = bind(module, two, torch.float32)
            program = trace(module, args, by_name=kwargs)
            with AllFloat64():
                args, kwargs = bind(module, two, torch.float64)
                exact = trace(copy.deepcopy(module).double(), args, by_name=kwargs)
        except UnsupportedModelError:
            return found[0]
        column = 0
        for k, output in enumerate(outputs):
            if not output.is_exact:
                continue
            columns = slice(column, column + output.width)
            column = columns.stop
            for start, alternative in _alternatives(program, exact, k, inputs):
                rows = alternative.reshape(len(alternative), -1).to(torch.int64).numpy()
                n, j = np.nonzero(rows != exact_NJ[start : start + len(rows), columns])
                found.append(np.stack([n + start, j + columns.start, rows[n, j]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _alternatives(
    program: torch.export.ExportedProgram,
    exact: torch.export.ExportedProgram,
    output: int,
    inputs: NDArray[Any],
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield other values of an output that are explained, each with the place of its first row."""
    rough, fine = _decision(program, output), _decision(exact, output)
    if rough is None or fine is None or len(rough.floats) != len(fine.floats):
        return
    walker = GraphWalker(program, rough.floats)
    with AllFloat64():
        exactly = GraphWalker(exact, (*fine.floats, *fine.sizes))
    num = len(fine.floats)
    for start in range(0, len(inputs), BATCH_SIZE):
        batch = inputs[start : start + BATCH_SIZE]
        noisy = walker.run(tensors(batch, torch.float32), _call)
        with AllFloat64():
            values = exactly.run(tensors(batch, torch.float64), _call)
            known = {**exactly.constants, **dict(zip(fine.sizes, values[num:], strict=True))}
            margin = sum(map(_margin, values[:num], noisy))
            for decided in _decided(fine, values[:num], margin, known):
                yield start, _tail(fine, decided, known)


def _decision(program: torch.export.ExportedProgram, output: int) -> _Decision | None:
    """Return the decision on an output; None if no single value decides on it."""
    node, constants = output_nodes(program)[output], GraphWalker(program, ()).constants
    tail: list[fx.Node] = []
    sizes: list[fx.Node] = []
    while node.op == "call_function":
        sources = [source for source in node.all_input_nodes if source not in constants]
        tensors = [s for s in sources if not isinstance(s.meta["val"], torch.SymInt)]
        name, rank = operator_name(node), node
        if node.target is operator.getitem and node.args[1] == 1:
            rank = tensors[0]
            name = operator_name(rank)
            sources = tensors = [s for s in rank.all_input_nodes if s not in constants]
        is_step = name in _STEPS or (_is_cast(node) and not _is_stepped(tensors[0]))
        if (name in _RANKS or is_step) and tensors and _are_floats(tensors):
            return _Decision(
                node=node,
                rank=None if is_step else rank,
                floats=tuple(tensors),
                tail=tuple(reversed(tail)),
                sizes=tuple(sizes),
            )
        if len(tensors) != 1:
            return None
        tail.append(node)
        sizes += [source for source in sources if source not in tensors]
        node = tensors[0]
    return None


def _is_cast(node: fx.Node) -> bool:
    """True if a node makes integers or bools of floats, one by one."""
    value = node.meta["val"]
    before = [s.meta["val"] for s in node.all_input_nodes]
    is_one = isinstance(value, torch.Tensor) and operator_name(node) in ("to", "_to_copy", "type")
    return is_one and not value.is_floating_point() and before[0].is_floating_point()


def _is_stepped(node: fx.Node) -> bool:
    """True if a float is a rounding's result, scaled or clamped: its cast decides nothing."""
    while operator_name(node) in _POINTWISE:
        node = node.all_input_nodes[0]
    return operator_name(node) in _STEPS


def _are_floats(nodes: Sequence[fx.Node]) -> bool:
    values = [node.meta["val"] for node in nodes]
    return all(isinstance(v, torch.Tensor) and v.is_floating_point() for v in values)


def _call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target: Any = node.target
    return target(*args, **kwargs)


def _margin(exact: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """Return the margin of each input, shaped to go with its values."""
    values = torch.where(exact.isfinite(), exact, 0).reshape(len(exact), -1)
    errors = torch.where(exact.isfinite(), noisy.double() - exact, 0).reshape(len(exact), -1)
    own = errors.square().mean(1).sqrt()
    norm = values.square().sum().sqrt()
    relative = errors.square().sum().sqrt() / norm if norm else torch.tensor(0.0)
    size = values.square().mean(1).sqrt()
    least = FLOAT32_ROUNDOFF * values.abs().amax(1)
    margin = _MARGIN * torch.maximum(torch.maximum(own, relative * size), least)
    return margin.reshape(-1, *(1 for _ in exact.shape[1:]))


def _decided(
    decision: _Decision,
    floats: Sequence[torch.Tensor],
    margin: Any,
    known: dict[fx.Node, Any],
) -> Iterator[torch.Tensor]:
    """Yield other values of the decision itself."""
    if decision.rank is not None:
        yield from _other_places(decision, decision.rank, floats[0], margin, known)
        return
    for sign in (1, -1):
        values = {**known, **dict(zip(decision.floats, floats, strict=True))}
        values[decision.floats[0]] = floats[0] + sign * margin
        args, kwargs = fx.node.map_arg(
            (decision.node.args, decision.node.kwargs), values.__getitem__
        )
        yield _call(decision.node, args, kwargs)


def _other_places(
    decision: _Decision,
    rank: fx.Node,
    floats: torch.Tensor,
    margin: torch.Tensor,
    known: dict[fx.Node, Any],
) -> Iterator[torch.Tensor]:
    """Yield the places with a value within the margin of that of the place taken, nearest first."""
    values = {**known, decision.floats[0]: floats}
    args, kwargs = fx.node.map_arg((rank.args, rank.kwargs), values.__getitem__)
    taken = _call(rank, args, kwargs)
    if decision.node is not rank:
        taken = taken[1]
    dim = call_arguments(rank).get("dim")
    dim = -1 if dim is None else dim
    is_kept = taken.ndim == floats.ndim
    if not is_kept and taken.ndim != floats.ndim - 1:
        return  # over all samples at once
    places = (taken if is_kept else taken.unsqueeze(dim)).movedim(dim, -1)
    scores, margins = floats.movedim(dim, -1), margin.movedim(dim, -1)
    distances = (scores.unsqueeze(-2) - scores.gather(-1, places).unsqueeze(-1)).abs()
    distances = distances.nan_to_num(0.0, math.inf)  # between two of the same infinity
    distances.scatter_(-1, places.unsqueeze(-1), -1.0)  # itself comes first
    nearest = distances.sort(dim=-1, stable=True).indices
    for r in range(1, min(scores.shape[-1], _MOST_TIES)):
        place = nearest[..., r]
        is_near = distances.gather(-1, place.unsqueeze(-1)).squeeze(-1) <= margins
        if not is_near.any():
            return
        others = torch.where(is_near, place, places).movedim(-1, dim)
        yield others if is_kept else others.squeeze(dim)


def _tail(decision: _Decision, decided: torch.Tensor, known: dict[fx.Node, Any]) -> torch.Tensor:
    values = {**known, decision.node: decided}
    for node in decision.tail:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = _call(node, args, kwargs)
    result: torch.Tensor = values[decision.tail[-1] if decision.tail else decision.node]
    return result
