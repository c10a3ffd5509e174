"""Timing of one runner in this process: raw latencies, with the warm-up kept apart."""

import functools
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resdeploy.bench.layer_times import check_profile, read_profile
from resdeploy.bench.loadgen import Times, drive, require_loadgen
from resdeploy.bench.runners import Runner, activate
from resdeploy.bench.stability import machine_reasons, unstable_reasons
from resdeploy.data.input_kinds import KINDS
from resdeploy.data.named_inputs import by_name, joined
from resdeploy.errors import ResdeployError
from resdeploy.files import file_info
from resdeploy.machine.environment import read_environment
from resdeploy.machine.state import peak_ram_bytes, read_machine_state
from resdeploy.schema.benchmarks import BenchResult, BenchSpec
from resdeploy.schema.files import TensorSpec
from resdeploy.schema.machines import MachineState
from resdeploy.session.onnx_wire import count_subnormal_weights
from resdeploy.session.providers import find_provider
from resdeploy.statistics.latency import is_settled, poisson_arrivals, summarise

__all__ = ["TimedRunner", "check_spec", "collector_off", "measure", "set_up"]

# The time of a ResNet does not depend on its input, as long as the numbers are ordinary ones;
# zeros and subnormals are not.
_INPUT_SEED = 0

# Waiting for a moment: asleep until this much before it, then awake, as a sleep may end late.
_AWAKE_NS = 500_000


@dataclass(slots=True, kw_only=True)
class TimedRunner:
    """A runner ready to be timed; `once` runs it from host memory to host memory."""

    spec: BenchSpec
    runner: Runner
    values: np.ndarray
    load_ns: int
    once: Callable[[], Sequence[np.ndarray]]
    on_run: Callable[[int], None] | None = None
    num_done: int = 0

    @property
    def feed(self) -> dict[str, np.ndarray]:
        """The inputs by name."""
        return by_name(self.values, [tensor.name for tensor in self.runner.inputs])

    def time(self, launch: Callable[[], object]) -> int:
        """Return the time of one `launch`, in nanoseconds."""
        try:
            start_ns = time.perf_counter_ns()
            launch()
            duration_ns = time.perf_counter_ns() - start_ns
        except Exception:
            # Only now: entering the block costs more than all else that is not timed.
            with self.runner.errors():
                raise
        self.num_done += 1
        if self.on_run is not None:
            self.on_run(self.num_done)
        return duration_ns

    def bind(self) -> Callable[[], object]:
        """Return a call that runs once with input and output in device memory; it has run once.

        Raises:
            ResdeployError: the runtime offers no such call.
        """
        if self.runner.bind is None:
            raise ResdeployError(
                f"{self.runner.info.runtime} is timed from host memory to host memory alone."
            )
        with self.runner.errors():
            launch = self.runner.bind(self.values)
        self.time(launch)  # the first makes the output
        return launch

    def settle(self, launch: Callable[[], object]) -> list[int]:
        """Return the times of warm-up runs, until they have settled or the spec's most are done."""
        times_ns: list[int] = []
        least = max(1, self.spec.num_warmup)
        while len(times_ns) < least or (
            len(times_ns) < self.spec.max_warmup and not is_settled(times_ns)
        ):
            times_ns.append(self.time(launch))
        return times_ns


def measure(
    model: Path,
    spec: BenchSpec,
    *,
    on_run: Callable[[int], None] | None = None,
    prove_placement: bool = True,
) -> BenchResult:
    """Time `spec.num_runs` runs of `model` in this process; arguments and errors are `bench`'s.

    One input, drawn once, is used throughout. The clock runs around the session's run and nothing
    else; Python's garbage collector is off meanwhile. The first run is always counted as warm-up,
    and `on_run` is called after each run, warm-up included, off the clock.
    """
    check_spec(spec)
    environment = read_environment()  # before this process adds to the load
    on_gpu = find_provider(spec.session.provider).on_nvidia
    at_rest = read_machine_state(gpus=on_gpu)
    ram_base_bytes = peak_ram_bytes()
    stand = set_up(model, spec, on_run=on_run)
    with collector_off():
        warmup_ns = stand.settle(stand.once)
        before = read_machine_state(gpus=on_gpu)
        process_start_s = time.process_time()
        times = _timed(stand, typical_ns=float(np.median(warmup_ns)))
        process_s = time.process_time() - process_start_s
        after = read_machine_state(gpus=on_gpu)
    ram_peak_bytes = peak_ram_bytes()

    placement = stand.runner.prove(stand.values) if prove_placement else None
    summary = summarise(
        times.latencies_ns, batch_size=spec.batch_size, arrivals_ns=times.arrivals_ns
    )
    rules = () if times.loadgen is None else times.loadgen.reasons
    reasons = (
        *unstable_reasons(
            spec,
            warmup_ns=warmup_ns,
            latencies_ns=times.latencies_ns,
            arrivals_ns=times.arrivals_ns,
            summary=summary,
        ),
        *(f"LoadGen: {rule}" for rule in rules),
        *machine_reasons(before, after, process_s=process_s, num_cpus=environment.num_cpus),
    )
    num_subnormal_weights = None
    with suppress(OSError, ValueError):
        num_subnormal_weights = count_subnormal_weights(model.read_bytes())
    profile = None
    if spec.num_profile_runs:
        profile = read_profile(
            model,
            spec.session,
            stand.feed,
            num_runs=spec.num_profile_runs,
            num_threads=spec.session.num_threads or environment.num_cpus_allowed,
        )
    return BenchResult(
        spec=spec,
        model=file_info(model, relative_to=model.parent),
        session=stand.runner.info,
        environment=environment,
        input_shape=next(iter(stand.feed.values())).shape,
        load_ns=stand.load_ns,
        warmup_ns=tuple(warmup_ns),
        latencies_ns=times.latencies_ns,
        bound_ns=times.bound_ns,
        arrivals_ns=times.arrivals_ns,
        summary=summary,
        unstable_reasons=reasons,
        before=before,
        after=after,
        process_s=process_s,
        ram_base_bytes=ram_base_bytes,
        ram_peak_bytes=ram_peak_bytes,
        gpu_bytes=_gpu_growth(at_rest, after),
        placement=placement,
        num_subnormal_weights=num_subnormal_weights,
        profile=profile,
        loadgen=times.loadgen,
    )


def set_up(
    model: Path | None,
    spec: BenchSpec,
    *,
    inputs: np.ndarray | None = None,
    on_run: Callable[[int], None] | None = None,
) -> TimedRunner:
    """Activate a runner and draw its input, or repeat `inputs` (N, ...) up to the batch.

    Nothing is run yet.

    Raises:
        ResdeployError: the model cannot be read or cannot be timed with this batch size.
        EnvironmentLacksError: the runner's package is missing, or its provider did not start.
    """
    start_ns = time.perf_counter_ns()
    runner = activate(model, spec)
    load_ns = time.perf_counter_ns() - start_ns
    shapes = {
        tensor.name: _input_shape(tensor, spec, only=len(runner.inputs) == 1, where=str(model))
        for tensor in runner.inputs
    }
    if inputs is None:
        arrays = {
            tensor.name: KINDS[tensor.dtype].draw(shapes[tensor.name], seed=_INPUT_SEED)
            for tensor in runner.inputs
        }
    else:
        repeated = np.resize(inputs, (spec.batch_size, *inputs.shape[1:]))
        arrays = by_name(repeated, [*shapes])
    arrays = {t.name: arrays[t.name].astype(t.dtype) for t in runner.inputs}
    values = joined(arrays) if len(arrays) > 1 else arrays[runner.inputs[0].name]
    with runner.errors():
        once = runner.infer(values)
    return TimedRunner(
        spec=spec, runner=runner, values=values, load_ns=load_ns, once=once, on_run=on_run
    )


# --- the scenarios -------------------------------------------------------------------------------


def _timed(stand: TimedRunner, typical_ns: float) -> Times:
    spec, run = stand.spec, functools.partial(stand.time, stand.once)
    if spec.loadgen is not None:
        return drive(run, spec, spec.loadgen, typical_ns=typical_ns)
    if spec.scenario == "single-stream":
        return _one_after_the_other(stand, run)
    if spec.scenario == "offline":
        arrivals_ns = (0,) * spec.num_runs  # everything is there at once
    else:
        arrivals_ns = poisson_arrivals(spec.num_runs, per_second=spec.qps or 0, seed=spec.seed)
    return Times(latencies_ns=_as_they_come(run, arrivals_ns), arrivals_ns=arrivals_ns)


def _one_after_the_other(stand: TimedRunner, run: Callable[[], int]) -> Times:
    spec = stand.spec
    latencies_ns, bound_ns = [], []
    launch = stand.bind() if spec.num_bound_runs else None
    for number in range(max(spec.num_runs, spec.num_bound_runs)):
        # In turn, so that both see the same machine.
        if number < spec.num_runs:
            latencies_ns.append(run())
        if launch is not None and number < spec.num_bound_runs:
            bound_ns.append(stand.time(launch))
    return Times(latencies_ns=tuple(latencies_ns), bound_ns=tuple(bound_ns))


def _as_they_come(run: Callable[[], int], arrivals_ns: tuple[int, ...]) -> tuple[int, ...]:
    latencies_ns = []
    start_ns = time.perf_counter_ns()
    for arrival_ns in arrivals_ns:
        while (left_ns := start_ns + arrival_ns - time.perf_counter_ns()) > 0:
            if left_ns > _AWAKE_NS:
                time.sleep((left_ns - _AWAKE_NS) / 1e9)
        run()
        latencies_ns.append(time.perf_counter_ns() - start_ns - arrival_ns)
    return tuple(latencies_ns)


# --- checks and readings ----------------------------------------------------


def check_spec(spec: BenchSpec) -> None:
    """Raise ResdeployError if the numbers of `spec` are out of range."""
    for name, value, least in (
        ("batch size", spec.batch_size, 1),
        ("number of runs", spec.num_runs, 1),
        ("number of warm-up runs", spec.num_warmup, 0),
        ("number of bound runs", spec.num_bound_runs, 0),
        ("number of profiled runs", spec.num_profile_runs, 0),
    ):
        if value < least:
            raise ResdeployError(f"The {name} is {value}.", fix=f"ask for at least {least}")
    if (spec.scenario == "server") != (spec.qps is not None):
        raise ResdeployError(
            "The scenario server needs a rate of queries, and no other has one.",
            fix="give --scenario server and --qps together",
        )
    if spec.qps is not None and not 0 < spec.qps < 1e9:
        raise ResdeployError(f"The rate of queries is {spec.qps:g}/s.", fix="ask for more than 0")
    if spec.num_profile_runs:
        check_profile(spec.session)
    if spec.loadgen is None:
        return
    require_loadgen()
    if spec.scenario != "offline" and spec.batch_size != 1:
        raise ResdeployError(
            f"A query of LoadGen's {spec.scenario} is one sample, not {spec.batch_size}.",
            fix="ask for --batch 1, or --scenario offline",
        )
    for name, amount in (
        ("shortest duration", spec.loadgen.min_duration_s),
        ("latency of server", spec.loadgen.target_latency_ms),
    ):
        if not 0 < amount < 1e6:
            raise ResdeployError(f"The {name} is {amount:g}.", fix="ask for more than 0")


def _gpu_growth(before: MachineState, after: MachineState) -> int | None:
    pairs = list(zip(before.gpus, after.gpus, strict=False))
    if not pairs or pairs[0][0].used_bytes is None or pairs[0][1].used_bytes is None:
        return None
    return pairs[0][1].used_bytes - pairs[0][0].used_bytes


def _input_shape(tensor: TensorSpec, spec: BenchSpec, *, only: bool, where: str) -> tuple[int, ...]:
    """Return the input's shape with its batch and its open sizes as they are asked for."""
    batch_size = spec.batch_size
    if not tensor.shape:
        raise ResdeployError(f"The input {tensor.name!r} has no batch dimension.", where=where)
    batch, *rest = tensor.shape
    asked = [one.shape for one in spec.inputs if one.name == tensor.name or (only and not one.name)]
    if asked:
        fits = len(asked[0]) == len(rest) and all(
            not isinstance(size, int) or size == given
            for size, given in zip(rest, asked[0], strict=True)
        )
        if not fits:
            raise ResdeployError(
                f"The input {tensor.name!r} takes samples of shape {tuple(rest)}, not {asked[0]}.",
                where=where,
                fix="give a size for each open dimension, and the model's own for the others",
            )
        rest = list(asked[0])
    sizes = [size for size in rest if isinstance(size, int)]
    if len(sizes) != len(rest):
        raise ResdeployError(
            f"The input {tensor.name!r} has shape {list(tensor.shape)}: more than its batch is "
            "dynamic, so there is no one size to time.",
            where=where,
            fix="give the size to time, as in --input 3,224,224",
        )
    if isinstance(batch, int) and batch != batch_size:
        raise ResdeployError(
            f"The model takes batches of {batch}, not of {batch_size}.",
            where=where,
            fix=f"ask for batch size {batch}, or export with a dynamic batch",
        )
    return (batch_size, *sizes)


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect Python's garbage now, and not until the block ends."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
