"""Roofline of a device, and the least time of a network's layers on it.

A layer must do its multiplications and must move its bytes; a device does both at once, each at a
rate that a large matrix product and a large copy show. No run is faster than

    sum over layers of max(macs / macs_per_s, bytes / bytes_per_s)

and the share of that in the measured time says how much there is left to gain. Bytes are those of a
graph whose ReLUs and residual additions are part of their convolutions.

https://doi.org/10.1145/1498765.1498785 (Williams, Waterman, Patterson: Roofline)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.cuda.records import Ceilings, LayerWork, NetworkWork
from resdeploy.schema.sessions import SessionSpec

__all__ = ["Bound", "bound_of", "measure_ceilings", "work_of"]

# Of the values that the arithmetic reads and writes, over float32's. An int8 network on CUDA holds
# float32 between its layers in today's runtimes; what is asked is what the device could do.
_RELATIVE_SIZE = {"float32": 1.0, "tf32": 1.0, "float16": 0.5, "bfloat16": 0.5, "int8": 0.25}

# Whoever asks for a lower precision may be served in a higher one, as a CPU does with float16.
_ALLOWED = {
    "float32": ("float32",),
    "tf32": ("tf32", "float32"),
    "float16": ("float16", "tf32", "float32"),
    "int8": ("int8", "float16", "bfloat16", "tf32", "float32"),
    "bfloat16": ("bfloat16", "tf32", "float32"),
}

# Work of the CPU's own layout, or none at all.
_ARRANGING = frozenset({"ReorderInput", "ReorderOutput", "Reshape", "Flatten"})

_NUM_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The least time of one run, and the share of it in which each ceiling is the one that limits.

    `time_s` is the sum over layers; `memory_share` the part of it that layers limited by memory
    take.
    """

    time_s: float
    memory_share: float

    @property
    def limit(self) -> Literal["arithmetic", "memory"]:
        """Resource that limits most of the time."""
        return "memory" if self.memory_share > 0.5 else "arithmetic"


def bound_of(
    work: NetworkWork, ceilings: Ceilings, *, arithmetic: str, batch_size: int
) -> Bound | None:
    """Return the least time of a run; None where the device's rate in `arithmetic` is not known."""
    rates = [ceilings.macs_per_s[one] for one in _ALLOWED[arithmetic] if one in ceilings.macs_per_s]
    if not rates:
        return None
    macs_per_s = max(rates)
    size = _RELATIVE_SIZE[arithmetic]
    total_s, memory_s = 0.0, 0.0
    for layer in work.layers:
        compute_s = batch_size * layer.num_macs / macs_per_s
        num_bytes = size * (layer.fixed_bytes + batch_size * layer.sample_bytes)
        copy_s = num_bytes / ceilings.copy_bytes_per_s
        total_s += max(compute_s, copy_s)
        memory_s += copy_s if copy_s > compute_s else 0.0
    return Bound(time_s=total_s, memory_share=memory_s / total_s if total_s else 0.0)


def work_of(model: Path) -> NetworkWork:
    """Return the work of each kernel of a float32 model.

    From the shapes of two profiles on the CPU, of one sample and of two: what the second adds
    belongs to a sample, and the rest is shared. At the graph level "all" a convolution takes its
    ReLU and its addition in; what only arranges values for the CPU is left out.

    Raises:
        ProviderError: a profile cannot be read.
    """
    from resdeploy.bench.layer_times import read_profile
    from resdeploy.session.session import input_specs, open_session

    spec = SessionSpec(graph_level="all")
    (tensor,) = input_specs(open_session(model, spec))
    shape = tuple(int(size) for size in tensor.shape[1:])
    one, two = (
        read_profile(
            model,
            spec,
            {tensor.name: np.zeros((size, *shape), np.float32)},
            num_runs=1,
            num_threads=1,
        ).layers
        for size in (1, 2)
    )
    return NetworkWork(
        layers=tuple(
            LayerWork(
                name=a.name,
                op=a.op,
                num_macs=a.num_macs,
                fixed_bytes=max(0, 2 * a.num_bytes - b.num_bytes),
                sample_bytes=b.num_bytes - a.num_bytes,
            )
            for a, b in zip(one, two, strict=True)
            if a.op not in _ARRANGING
        )
    )


def measure_ceilings(device: str, *, matrix_size: int, copy_bytes: int) -> Ceilings:
    """Return the rates of torch's largest products and copies on `device`: the best of some tries.

    Args:
        device: "cpu" or "cuda".
        matrix_size: rows and columns of the matrices; thousands, where a GPU is to be filled.
        copy_bytes: of the array that is copied; more than any cache holds.

    Raises:
        RuntimeError: torch cannot use the device.
    """
    import torch

    name = "CPU" if device == "cpu" else torch.cuda.get_device_name()

    def best_s(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(3):
            run()
        for _ in range(_NUM_TRIES):
            _synchronize(torch, device)
            start = time.perf_counter()
            run()
            _synchronize(torch, device)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    rates, missing = {}, {}
    for arithmetic in ("float32", "tf32", "float16", "bfloat16", "int8"):
        try:
            product = _product(torch, arithmetic, matrix_size, device)
            rates[arithmetic] = matrix_size**3 / best_s(product)
        except (RuntimeError, NotImplementedError) as error:
            missing[arithmetic] = str(error).strip().partition("\n")[0]
    source = torch.ones(copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    copy_s = best_s(lambda: target.copy_(source))
    to_device = None
    if device != "cpu":
        on_host = torch.ones(copy_bytes // 16)
        there = torch.empty_like(on_host, device=device)
        to_device = 4 * on_host.numel() / best_s(lambda: there.copy_(on_host))
    return Ceilings(
        device=name,
        macs_per_s=rates,
        # Each byte is read once and written once.
        copy_bytes_per_s=2 * 4 * source.numel() / copy_s,
        to_device_bytes_per_s=to_device,
        missing=missing,
    )


def _synchronize(torch: Any, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _product(torch: Any, arithmetic: str, size: int, device: str) -> Callable[[], object]:
    """Return one product of two square matrices in an arithmetic.

    Raises:
        RuntimeError: the device has no such arithmetic, or torch none for it.
    """
    if arithmetic == "tf32" and device == "cpu":
        raise NotImplementedError("a CPU has no TF32")
    torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    if arithmetic == "int8":
        left = torch.ones((size, size), dtype=torch.int8, device=device)
        # cuBLAS takes the second matrix column by column.
        right = torch.ones((size, size), dtype=torch.int8, device=device).t()
        return lambda: torch._int_mm(left, right)
    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(arithmetic, torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn((size, size), device=device, generator=generator).to(dtype) for _ in range(2)
    )
    return lambda: left @ right
