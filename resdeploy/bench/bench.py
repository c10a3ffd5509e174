"""Timing of a model in a fresh process for each configuration."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from resdeploy.bench.measure import check_spec
from resdeploy.bench.process import BenchProcess, slow_warnings
from resdeploy.schema.benchmarks import BenchJob, BenchResult, BenchSpec
from resdeploy.schema.codec import from_json

__all__ = ["bench"]


def bench(
    model: Path,
    spec: BenchSpec,
    *,
    on_run: Callable[[int], None] | None = None,
    prove_placement: bool = True,
) -> BenchResult:
    """Time `model` in a process of its own, which has nothing loaded but the runtime.

    Memory, thread pools and caches of an earlier session would change a later one, and its peak
    memory would include theirs.

    Args:
        model: an ONNX file with one float input whose only dynamic dimension, if any, is the
            first.
        spec: session, batch size, numbers of runs, scenario.
        on_run: called with the number of runs done, now and then.
        prove_placement: check the kernels of a profile of one further run.

    Raises:
        ResdeployError: the numbers of `spec` are out of range, or the model cannot be read or
            cannot be timed with this batch size.
        ProviderError: the provider did not start, failed, or left kernels to another.
        EnvironmentLacksError: the process was killed.
    """
    check_spec(spec)
    job = BenchJob(model=str(model), spec=spec, prove_placement=prove_placement)
    with BenchProcess(job) as process:
        while (answer := process.receive())["kind"] == "progress":
            if on_run is not None:
                on_run(answer["done"])
        result = from_json(BenchResult, answer["result"], where="the benchmark process")
        return dataclasses.replace(result, warnings=slow_warnings(process.printed))
