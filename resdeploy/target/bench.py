"""Time one session: raw latencies, with the first runs kept apart."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from resdeploy.errors import ResdeployError
from resdeploy.files import file_info
from resdeploy.schema import BenchResult, BenchSpec, TensorSpec
from resdeploy.target.diagnosis import run_errors
from resdeploy.target.environment import read_environment
from resdeploy.target.session import input_specs, open_session

__all__ = ["bench"]

# The time of a ResNet does not depend on its input, as long as the numbers are ordinary ones;
# zeros and subnormals are not.
_INPUT_SEED = 0


def bench(
    model: Path, spec: BenchSpec, *, on_run: Callable[[int], None] | None = None
) -> BenchResult:
    """Time `spec.num_runs` runs of `model`, one after the other, from host memory to host memory.

    One input, drawn once, is used throughout. The clock runs around the session's run and nothing
    else; Python's garbage collector is off meanwhile.

    Args:
        model: an ONNX file with one float input whose only dynamic dimension, if any, is the
            first.
        spec: the session, the batch size and the numbers of runs. The first run is always counted
            as warm-up.
        on_run: called with the number of runs done after each, warm-up included, off the clock.

    Raises:
        ResdeployError: the numbers of `spec` are out of range, or the model cannot be read or
            cannot be timed with this batch size.
        ProviderError: the provider did not start, or failed.
    """
    _check_counts(spec)
    environment = read_environment()  # before this process adds to the load
    start_ns = time.perf_counter_ns()
    session = open_session(model, spec.session)
    load_ns = time.perf_counter_ns() - start_ns

    tensor = _only_input(input_specs(session), where=str(model))
    shape = _input_shape(tensor, spec.batch_size, where=str(model))
    values = np.random.default_rng(_INPUT_SEED).standard_normal(shape, dtype=np.float32)
    feed = {tensor.name: values.astype(tensor.dtype)}
    run = session.ort.run

    num_warmup = max(1, spec.num_warmup)
    durations_ns: list[int] = []
    with _garbage_collector_off():
        for num_done in range(1, num_warmup + spec.num_runs + 1):
            with run_errors(session.info):
                start_ns = time.perf_counter_ns()
                run(None, feed)
                durations_ns.append(time.perf_counter_ns() - start_ns)
            if on_run is not None:
                on_run(num_done)
    return BenchResult(
        spec=spec,
        model=file_info(model, relative_to=model.parent),
        session=session.info,
        environment=environment,
        input_shape=shape,
        load_ns=load_ns,
        warmup_ns=tuple(durations_ns[:num_warmup]),
        latencies_ns=tuple(durations_ns[num_warmup:]),
    )


def _check_counts(spec: BenchSpec) -> None:
    for name, value, least in (
        ("batch size", spec.batch_size, 1),
        ("number of runs", spec.num_runs, 1),
        ("number of warm-up runs", spec.num_warmup, 0),
    ):
        if value < least:
            raise ResdeployError(f"The {name} is {value}.", fix=f"ask for at least {least}")


def _only_input(inputs: tuple[TensorSpec, ...], *, where: str) -> TensorSpec:
    if len(inputs) != 1:
        raise ResdeployError(
            f"The model has {len(inputs)} inputs; a model with one can be timed.", where=where
        )
    if inputs[0].dtype not in ("float16", "float32", "float64"):
        raise ResdeployError(
            f"The input {inputs[0].name!r} is {inputs[0].dtype}; a model that takes floating-point "
            "numbers can be timed.",
            where=where,
        )
    return inputs[0]


def _input_shape(tensor: TensorSpec, batch_size: int, *, where: str) -> tuple[int, ...]:
    """Return the input's shape with its batch dimension set to `batch_size`."""
    if not tensor.shape:
        raise ResdeployError(f"The input {tensor.name!r} has no batch dimension.", where=where)
    batch, *rest = tensor.shape
    sizes = [size for size in rest if isinstance(size, int)]
    if len(sizes) != len(rest):
        raise ResdeployError(
            f"The input {tensor.name!r} has shape {list(tensor.shape)}: more than its batch is "
            "dynamic, so there is no one size to time.",
            where=where,
            fix="export the model with fixed sizes",
        )
    if isinstance(batch, int) and batch != batch_size:
        raise ResdeployError(
            f"The model takes batches of {batch}, not of {batch_size}.",
            where=where,
            fix=f"ask for batch size {batch}, or export with a dynamic batch",
        )
    return (batch_size, *sizes)


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
