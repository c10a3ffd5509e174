"""The inputs of a module by the parameters of its `forward`, and the arguments of a call."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from resdeploy.data.input_kinds import KINDS
from resdeploy.data.named_inputs import each_input, joined
from resdeploy.errors import ResdeployError
from resdeploy.schema.files import InputSpec

__all__ = ["bind", "draw", "module_inputs", "rows_of", "tensors"]

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_SEED = 0


def module_inputs(module: nn.Module, asked: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """Return the inputs asked for, each with its name, in the order of `forward`'s parameters.

    One without a name is the next parameter; () for a single one of floats without a name.

    Raises:
        ResdeployError: `forward` has no such parameter, or needs another.
    """
    parameters = _parameters(module)
    if parameters is None:
        return () if _is_plain(asked) else _by_place(asked)
    for name, parameter in parameters.items():
        if (kind := _container(parameter)) and parameter.default is parameter.empty:
            raise ResdeployError(
                f"The input {name!r} of the module is a {kind}, not a tensor.",
                where=type(module).__name__,
                fix="wrap it in a module whose forward takes each tensor by a name of its own",
            )
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    named = {one.name for one in asked if one.name}
    free = [n for n, p in parameters.items() if p.kind in _BY_PLACE and n not in named]
    known = {n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if unknown := sorted(named - known):
        raise _misfit(module, f"has no input {unknown[0]!r}", parameters, asked)
    found: list[InputSpec] = []
    for one in asked:
        if one.name:
            found.append(one)
        elif free:
            found.append(replace(one, name=free.pop(0)))
        elif takes_more:
            found.append(replace(one, name=f"input_{len(found)}"))
        else:
            raise _misfit(
                module, f"takes {_counted(len(known))}, not {len(asked)}", parameters, asked
            )
    names = [one.name for one in found]
    if len({*names}) != len(names):
        raise _misfit(module, "is given an input twice", parameters, asked)
    for name, parameter in parameters.items():
        if name in known and parameter.default is parameter.empty and name not in names:
            raise _misfit(module, f"needs an input {name!r}", parameters, asked)
    if _is_plain(asked):
        return ()
    order = {name: place for place, name in enumerate(parameters)}
    return tuple(
        replace(one, num_values=_num_values(module))
        for one in sorted(found, key=lambda one: order.get(one.name, len(order)))
    )


def draw(inputs: Sequence[InputSpec], num: int) -> tuple[NDArray[Any], str]:
    """Return seeded samples of several inputs, as records (N,), and their description."""
    rng = np.random.default_rng(_SEED)
    arrays = {}
    for one in inputs:
        kind, shape = KINDS[one.dtype], (num, *one.shape)
        is_integer = one.dtype.startswith("int")
        sample = rng.integers(0, one.num_values, shape) if is_integer else kind.sample(rng, shape)
        arrays[one.name] = sample.astype(kind.dtypes[0])
    names = ", ".join(arrays)
    return joined(arrays), f"{num} seeded samples of {names}"


def tensors(samples: NDArray[Any], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return samples as tensors, one for each input: floats and pixels in a type, others as is."""
    found = [torch.from_numpy(array) for array in each_input(samples)]
    return [x.to(dtype) if x.is_floating_point() or x.dtype is torch.uint8 else x for x in found]


def rows_of(output: torch.Tensor) -> torch.Tensor:
    """Return an output (N, ...) as (N, K)."""
    return output.reshape(len(output), -1)


def bind(
    module: nn.Module, samples: NDArray[Any], dtype: torch.dtype
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Return the arguments of a call: those by place, as far as `forward` takes them, and by name.

    Args:
        module: the one to be called.
        samples: (N, ...) of its one input, or records (N,) with its inputs by name.
        dtype: of the floats.
    """
    values, names = tensors(samples, dtype), samples.dtype.names
    parameters = None if names is None else _parameters(module)
    if names is None or parameters is None:
        return tuple(values), {}
    given = dict(zip(names, values, strict=True))
    by_place: list[torch.Tensor] = []
    for name, parameter in parameters.items():
        if parameter.kind in _BY_PLACE and name in given:
            by_place.append(given.pop(name))
        elif parameter.kind is parameter.VAR_POSITIONAL and len(by_place) == len(names) - len(
            given
        ):
            by_place += [given.pop(name) for name in [*given] if name not in parameters]
        else:
            break
    return tuple(by_place), given


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of `forward`; None where it has no signature, as of TorchScript."""
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return None


def _container(parameter: inspect.Parameter) -> str | None:
    """Return the kind of container that a parameter is said to be; None for any other."""
    kind = typing.get_origin(parameter.annotation) or parameter.annotation
    is_container = isinstance(kind, type) and issubclass(kind, (list, tuple, dict))
    return kind.__name__ if is_container else None


def _is_plain(asked: Sequence[InputSpec]) -> bool:
    return len(asked) == 1 and not asked[0].name and asked[0].dtype == "float32"


def _by_place(asked: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    return tuple(replace(one, name=one.name or f"input_{k}") for k, one in enumerate(asked))


def _num_values(module: nn.Module) -> int:
    """Return how many integers every embedding of the module has a row for."""
    sizes = [one.num_embeddings for one in module.modules() if isinstance(one, nn.Embedding)]
    return max(2, min(sizes, default=2))


def _counted(num: int) -> str:
    return f"{num or 'no'} input{'' if num == 1 else 's'}"


def _misfit(
    module: nn.Module,
    what: str,
    parameters: Mapping[str, inspect.Parameter],
    asked: Sequence[InputSpec],
) -> ResdeployError:
    shape = asked[0].shape if asked else (3, 224, 224)
    example = " ".join(
        f"--input {name}={','.join(map(str, shape))}"
        for name, p in parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.default is p.empty
    )
    takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return ResdeployError(
        f"The module {what}: its forward is forward({', '.join(map(str, parameters.values()))}).",
        where=type(module).__name__,
        fix="wrap it in a module whose forward takes each tensor by a name of its own"
        if takes_any_name
        else f"name its inputs and their shapes: {example or '--input NAME=SHAPE'}",
    )
