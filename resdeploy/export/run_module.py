"""A torch module run on samples, in batches, in float32 or in float64."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.signature import bind
from resdeploy.session.batches import run_outputs, run_rows, side_by_side

__all__ = [
    *(
        "AllFloat64",
        "know_dataclasses",
        "module_outputs",
        "name_outputs",
        "refuse_failing",
        "refuse_random",
    ),
    "run_module",
]

# Of two runs of float32 in other orders of summation, and far from any random number.
_SAME = 1e-3

# A type as `Tensor.to` and `Tensor.type` take it.
_FLOAT32 = (torch.float32, torch.FloatTensor, "torch.FloatTensor")


def run_module(
    module: nn.Module, inputs: np.ndarray, *, dtype: torch.dtype, batch: int | None = None
) -> np.ndarray:
    """Return the module's floating-point outputs for (N, ...) inputs side by side, as (N, K).

    For arguments and errors see `module_outputs`; it is one, too, if there is no such output.
    """
    with torch.no_grad():
        return run_rows(_runner(module, dtype), inputs, fixed=batch)


def module_outputs(
    module: nn.Module, inputs: np.ndarray, *, dtype: torch.dtype, batch: int | None = None
) -> dict[str, np.ndarray]:
    """Return the module's outputs for (N, ...) inputs, each (N, ...), by name.

    Args:
        module: with parameters of `dtype`.
        inputs: the samples.
        dtype: to compute in. In float64, casts to float32 are casts to float64.
        batch: the one batch size that it takes; None if it takes any.

    Raises:
        UnsupportedModelError: it fails, cannot be computed in float64, or returns something
            else than tensors.
        ResdeployError: an output is complex, has no batch axis, or a shape that depends on values.
    """
    with torch.no_grad():
        return run_outputs(_runner(module, dtype), inputs, fixed=batch)


def name_outputs(paths: Iterable[Sequence[Any]]) -> list[str]:
    """Return a name for each output by its path in a nest of dicts and tuples.

    The keys and field names, joined by dots; "output_0", … where there are places only, and
    "logits" for a single one.
    """
    paths = list(paths)
    names: list[str] = []
    for k, path in enumerate(paths):
        if any(not isinstance(part, _pytree.SequenceKey) for part in path):
            name = ".".join(map(_part, path))
        else:
            name = "logits" if len(paths) == 1 else f"output_{k}"
        names.append(f"{name}_{k}" if name in names else name)
    return names


def _part(key: Any) -> str:
    """Return a key of a dict, a field of a named tuple or a place of a tuple."""
    return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))


class AllFloat64(TorchFunctionMode):
    """The arithmetic of a module in float64 throughout: what says float32 there means float64.

    A cast to float32 would round what is to be exact, and meet the parameters in another type; so
    would a new tensor of the default type.
    """

    def __enter__(self) -> Self:
        """Let new tensors be of float64."""
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *args: object) -> None:
        """Let new tensors be of the type that they were of."""
        torch.set_default_dtype(self._default)
        super().__exit__(*args)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func` with float64 in place of float32."""
        args, kwargs = _pytree.tree_map(_widened, (args, kwargs or {}))
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **kwargs)


def _widened(value: Any) -> Any:
    is_type = isinstance(value, (torch.dtype, type, str))
    return torch.float64 if is_type and value in _FLOAT32 else value


def _runner(module: nn.Module, dtype: torch.dtype) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        args, kwargs = bind(module, batch, dtype)
        if dtype is not torch.float64:
            return _named(run_once(module, args, kwargs))
        try:
            with AllFloat64():
                outputs = _named(module(*args, **kwargs))
        except (RuntimeError, TypeError) as error:
            raise UnsupportedModelError(
                f"{type(module).__name__} cannot be computed in float64: {error}",
                fix="let no operation of the forward pass depend on the type of its values",
            ) from error
        for name, y in outputs.items():
            if y.dtype.kind == "f" and y.dtype != np.float64:
                raise UnsupportedModelError(
                    f"The output {name!r} of {type(module).__name__} is {y.dtype} even in float64.",
                    fix="leave lower precision to the exported file: resdeploy quantize",
                )
        return outputs

    return run


def run_once(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a module returns.

    Raises:
        UnsupportedModelError: it fails; the message has the inputs, and what it raised.
    """
    try:
        return module(*args, **kwargs)
    except Exception as error:  # the user's code may raise anything
        given = [f"{tuple(x.shape)} of {str(x.dtype)[6:]}" for x in (*args, *kwargs.values())]
        first = str(error).strip().partition("\n")[0]
        is_lower = any(kind in first for kind in ("Half", "BFloat16"))
        raise UnsupportedModelError(
            f"{type(module).__name__} fails on inputs of {', '.join(given)}: "
            f"{type(error).__name__}: {first}",
            fix="leave casts to lower precision out of forward, and lower the file: "
            "resdeploy quantize"
            if is_lower
            else "check --input; where a batch size is baked in, give it with --batch N",
        ) from error


def refuse_random(module: nn.Module, inputs: np.ndarray, *, batch: int | None = None) -> None:
    """Raise if two runs of a module on the same input differ by more than sums in another order.

    Raises:
        UnsupportedModelError: as it says.
    """
    first, second = (
        side_by_side(
            (
                y
                for y in module_outputs(
                    module, inputs[:1], dtype=torch.float32, batch=batch
                ).values()
            ),
            1,
        ).astype(np.float64)
        for _ in range(2)
    )
    largest = float(np.abs(first[np.isfinite(first)]).max(initial=0.0))
    if not np.allclose(first, second, rtol=_SAME, atol=_SAME * largest, equal_nan=True):
        raise UnsupportedModelError(
            f"{type(module).__name__} answers at random: two runs on the same input differ.",
            fix="call eval() on all of it; leave dropout, noise and random numbers out of forward, "
            "change no input in place, and keep nothing from one call to the next",
        )


def know_dataclasses(outputs: Any) -> bool:
    """Let torch look into the dataclasses that a module returned; True if there was a new one."""
    found = {
        type(leaf)
        for leaf in _pytree.tree_leaves(outputs)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)
    }
    for kind in found:
        torch.export.register_dataclass(kind)
    return bool(found) and (know_dataclasses(outputs) or True)


def _named(outputs: Any) -> dict[str, np.ndarray]:
    """Return the tensors that a module returned, in the order of torch's pytree; None is none."""
    know_dataclasses(outputs)
    leaves = [(path, y) for path, y in _pytree.tree_flatten_with_path(outputs)[0] if y is not None]
    named = dict(zip(name_outputs(path for path, _ in leaves), (y for _, y in leaves), strict=True))
    for name, y in named.items():
        if not isinstance(y, torch.Tensor):
            raise UnsupportedModelError(
                f"The output {name!r} is of type {type(y).__name__}, not a tensor.",
                fix="return tensors only, in dicts, lists, tuples, named tuples or dataclasses",
            )
        if y.layout is not torch.strided or y.is_quantized or y.dtype is torch.bfloat16:
            raise UnsupportedModelError(
                f"The output {name!r} is a tensor of {y.layout} layout and type {y.dtype}.",
                fix="return dense tensors of float32, integers or bools",
            )
    return {name: y.detach().resolve_conj().numpy() for name, y in named.items()}
