"""Ways to run one network, timed in turn: each in a fresh process, in bursts that alternate.

    python -m benchmarks.competitors    the worker: a job on standard input, answers on the other

What the machine does to one competitor it does to the others a moment later. Each is timed twice:
from host memory to host memory, as a caller without a GPU of its own sees it, and from and to the
device's memory. Each also answers the golden inputs, so that a fast wrong one is seen to be wrong.

Needs ONNX Runtime everywhere, torch beside it for the kind "torch", and the package openvino for
that of its name. As no environment has all of them, each competitor may have an interpreter of its
own.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Literal

import numpy as np

from resdeploy.compare import tensor_diff
from resdeploy.errors import EnvironmentLacksError, ReportedError
from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.codec import Record, from_json, record, to_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.stats import is_settled

__all__ = ["Competitor", "Timed", "TorchWay", "replace_options", "time_competitors"]

TorchWay = Literal[
    "eager",
    "eager, exact",
    "channels last",
    "channels last, AMP float16",
    "compile",
    "compile, default mode",
    "compile, channels last, AMP float16",
    "CUDA graph",
    "CUDA graph, channels last, AMP float16",
]
Memory = Literal["host", "device"]

_LEAST_WARMUP = 10
_MOST_WARMUP = 200
# A large batch on a slow machine is warm long before that many runs.
_WARMUP_S = 20.0


@record
class Competitor(Record):
    """One way to run a network.

    Attributes:
        name: in tables.
        kind: a session of resdeploy, ONNX Runtime's own session without any option, torch, or
            OpenVINO itself with the hint that `benchmark_app -hint latency` gives.
        model: an ONNX file, or for torch a checkpoint.
        session: of the first kind, what to open; of the others, only its provider counts.
        options: provider options in place of those that resdeploy chooses.
        way: of torch.
        python: the interpreter; None for the one that asks.
    """

    name: str
    kind: Literal["session", "default session", "torch", "openvino"]
    model: str
    session: SessionSpec = SessionSpec()
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    way: TorchWay = "eager"
    python: str | None = None


@record
class Timed(Record):
    """What became of one competitor in one process.

    Attributes:
        name: the competitor's.
        failure: why it was not timed, or stopped; None if all went well.
        host_ns: latencies from host memory to host memory.
        device_ns: and from and to the device's.
        rel_l2: distance of its outputs from the float64 reference.
        options: the provider options in force, in the runtime's own words.
    """

    name: str
    failure: str | None = None
    host_ns: tuple[int, ...] = ()
    device_ns: tuple[int, ...] = ()
    rel_l2: float | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


@record
class _Job(Record):
    competitor: Competitor
    golden: str
    batch_size: int
    memories: tuple[Memory, ...] = ("host", "device")


def time_competitors(
    competitors: Sequence[Competitor],
    *,
    golden: Path,
    batch_size: int,
    num_runs: int,
    num_bursts: int = 4,
    last_first: bool = False,
    memories: tuple[Memory, ...] = ("host", "device"),
    start_limit_s: float = 240.0,
    all_started_s: float = 1200.0,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> tuple[Timed, ...]:
    """Time each competitor in a process of its own; one that fails does not stop the others.

    All processes live to the end, so all must fit into memory together.

    Args:
        competitors: in the order of the result.
        golden: the golden file whose inputs they answer and are timed with.
        batch_size: samples of one run; the golden inputs are repeated up to there.
        num_runs: of each competitor and each kind of memory.
        num_bursts: they come in; even, so that a drift cancels.
        memories: where a run begins and ends.
        last_first: begin with the last one, as every other block should.
        start_limit_s: how long one may take to be ready, or for one burst.
        all_started_s: how long all may take to be ready; who is not begun by then is left out.
        on_stage: is told who is being started or timed.
    """
    order = list(range(len(competitors)))
    if last_first:
        order.reverse()
    found = [Timed(name=one.name) for one in competitors]
    end = time.monotonic() + all_started_s
    with ExitStack() as stack:
        alive: dict[int, _Process] = {}
        for place in order:
            one = competitors[place]
            left_s = end - time.monotonic()
            if left_s <= 0:
                found[place] = dataclasses.replace(found[place], failure="no time to start it")
                continue
            on_stage(f"start {one.name}")
            job = _Job(
                competitor=one,
                golden=str(golden.resolve()),
                batch_size=batch_size,
                memories=memories,
            )
            process = stack.enter_context(_Process(job, limit_s=min(start_limit_s, left_s)))
            answer = process.receive()
            found[place] = _updated(found[place], answer)
            if found[place].failure is None:
                alive[place] = process
        for burst in range(num_bursts):
            share = (burst + 1) * num_runs // num_bursts - burst * num_runs // num_bursts
            for place in order if burst % 2 == 0 else order[::-1]:
                for memory in memories:
                    if place not in alive:
                        continue
                    on_stage(competitors[place].name)
                    alive[place].send({"memory": memory, "num_runs": share})
                    found[place] = _updated(found[place], alive[place].receive())
                    if found[place].failure is not None:
                        del alive[place]
    return tuple(found)


def _updated(timed: Timed, answer: Mapping[str, Any]) -> Timed:
    match answer["kind"]:
        case "failure":
            return dataclasses.replace(timed, failure=answer["what"])
        case "ready":
            return dataclasses.replace(timed, rel_l2=answer["rel_l2"], options=answer["options"])
        case "host":
            return dataclasses.replace(timed, host_ns=(*timed.host_ns, *answer["latencies_ns"]))
        case _:
            return dataclasses.replace(timed, device_ns=(*timed.device_ns, *answer["latencies_ns"]))


class _Process:
    """A competitor's process: killed where it does not answer in time, and gone with the block."""

    def __init__(self, job: _Job, *, limit_s: float) -> None:
        self._job, self._limit_s = job, limit_s

    def __enter__(self) -> "_Process":
        self._printed = tempfile.TemporaryFile()
        root = str(Path(__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [self._job.competitor.python or sys.executable, "-P", "-m", "benchmarks.competitors"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            encoding="utf-8",
        )
        self.send(to_json(self._job))
        return self

    def __exit__(self, *_: object) -> None:
        # What it holds is of no use any more, and a compiler's threads may take long to end.
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass
        self._printed.close()

    def send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `receive` says why it died

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(self._limit_s, kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if line.endswith("\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        if is_late.is_set():
            return {"kind": "failure", "what": f"no answer within {self._limit_s:.0f} s"}
        code = self._process.wait()
        self._printed.seek(0)
        printed = self._printed.read().decode(errors="replace").strip().splitlines()
        last = printed[-1] if printed else "nothing was printed"
        return {"kind": "failure", "what": f"ended with code {code}: {last}"}


# --- in the process of one competitor ------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stand:
    """One competitor, ready to run.

    Attributes:
        answer: the outputs for the inputs, as an array (N, K).
        runs: one run, by the memory it begins and ends in.
        options: the provider options in force.
    """

    answer: Callable[[], np.ndarray]
    runs: Mapping[Memory, Callable[[], object]]
    options: Mapping[str, str]


def replace_options(provider: str, options: Mapping[str, str]) -> None:
    """Let every later session of this process have `options` in place of resdeploy's own choice.

    For benchmarks alone: users get what the table of `resdeploy.target.providers` says.
    """
    from resdeploy.target import providers

    chosen = providers.find_provider(provider)
    replaced = dataclasses.replace(chosen, options=lambda spec: {**chosen.options(spec), **options})
    providers.PROVIDERS = MappingProxyType({**providers.PROVIDERS, provider: replaced})


def _session_stand(job: _Job, inputs: np.ndarray) -> _Stand:
    from resdeploy.target.measure import bind, set_up

    one = job.competitor
    if one.options:
        replace_options(one.session.provider, one.options)
    stand = set_up(Path(one.model), BenchSpec(session=one.session, batch_size=job.batch_size))
    typed = inputs.astype(stand.values.dtype)

    def answer() -> np.ndarray:
        outputs = stand.session.run({stand.input_name: typed}).values()
        return np.concatenate([output.reshape(len(typed), -1) for output in outputs], axis=1)

    answer()
    return _Stand(
        answer=answer,
        runs={"host": stand.once, "device": bind(stand)},
        options=_options_in_force(stand.session.ort),
    )


def _default_stand(job: _Job, inputs: np.ndarray) -> _Stand:
    """Return ONNX Runtime as its first example has it: the provider's name and nothing else."""
    from resdeploy.target.providers import find_provider
    from resdeploy.target.runtime import onnxruntime, preload_libraries

    provider = find_provider(job.competitor.session.provider)
    if provider.preload:
        preload_libraries()
    ort = onnxruntime.InferenceSession(job.competitor.model, providers=[provider.ort_name])
    if ort.get_providers()[0] != provider.ort_name:
        raise EnvironmentLacksError(f"ONNX Runtime ran on {ort.get_providers()[0]} instead")
    name = ort.get_inputs()[0].name
    device = "cpu" if provider.name == "cpu" else "cuda"
    binding = ort.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(inputs, device, 0)
    binding.bind_ortvalue_input(name, value)
    for output in ort.get_outputs():
        binding.bind_output(output.name, device, 0)

    def run() -> list[np.ndarray]:
        outputs: list[np.ndarray] = ort.run(None, {name: inputs})
        return outputs

    return _Stand(
        answer=lambda: np.concatenate([y.reshape(len(inputs), -1) for y in run()], axis=1),
        runs={"host": run, "device": lambda: ort.run_with_iobinding(binding)},
        options=_options_in_force(ort),
    )


def _openvino_stand(job: _Job, inputs: np.ndarray) -> _Stand:
    """Return OpenVINO without ONNX Runtime, which chooses the arithmetic itself.

    It is given the shape, as benchmark_app gives it.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(job.competitor.model)
    model.reshape(list(inputs.shape))
    compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()

    def run() -> np.ndarray:
        output: np.ndarray = request.infer({0: inputs})[0]
        return output

    said = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS")
    return _Stand(
        answer=lambda: run().reshape(len(inputs), -1),
        runs={"host": run},
        options={
            "openvino": openvino.__version__,
            **{name: str(compiled.get_property(name)) for name in said},
        },
    )


def _options_in_force(ort: Any) -> dict[str, str]:
    options: dict[str, str] = ort.get_provider_options().get(ort.get_providers()[0], {})
    return {str(name): str(value) for name, value in options.items()}


def _torch_stand(job: _Job, inputs: np.ndarray) -> _Stand:
    import torch

    from resdeploy.host.build import load_source
    from resdeploy.schema.recipes import SourceSpec

    way = job.competitor.way
    device = torch.device("cpu" if job.competitor.session.provider == "cpu" else "cuda")
    if way.startswith("CUDA graph") and device.type != "cuda":
        raise EnvironmentLacksError("a CUDA graph needs a CUDA device")
    if "exact" in way:
        # torch multiplies matrices in float32 by default, but convolves in TF32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    # As a careful user would: the shape does not change, so that the search pays.
    torch.backends.cudnn.benchmark = True
    module: Any = load_source(SourceSpec(path=job.competitor.model)).module.eval().to(device)
    on_host = torch.from_numpy(inputs)
    layout = torch.contiguous_format
    if "channels last" in way and inputs.ndim == 4:
        layout = torch.channels_last
        module = module.to(memory_format=layout)
    if way.startswith("compile"):
        module = torch.compile(module, mode="default" if "default" in way else "max-autotune")
    is_half = "float16" in way

    def plain(x: Any) -> Any:
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.float16, enabled=is_half):
            return module(x)

    def to_device() -> Any:
        return on_host.to(device).contiguous(memory_format=layout)

    on_device = to_device()
    is_recorded = way.startswith("CUDA graph")
    forward = _recorded(plain, on_device) if is_recorded else plain

    def run_on_device() -> None:
        forward(on_device)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return _Stand(
        answer=lambda: forward(on_device).float().cpu().numpy(),
        runs={"host": lambda: forward(to_device()).cpu(), "device": run_on_device},
        options={
            "torch": torch.__version__,
            "cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    )


def _recorded(forward: Callable[[Any], Any], example: Any) -> Callable[[Any], Any]:
    """Return `forward` recorded as a CUDA graph, which reads and writes the same memory each time.

    https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs"
    """
    import torch

    held = example.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is searched for and allocated at first must not be recorded
            forward(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = forward(held)

    def replay(x: Any) -> Any:
        held.copy_(x)
        graph.replay()
        return output

    return replay


_STANDS: Mapping[str, Callable[[_Job, np.ndarray], _Stand]] = {
    "session": _session_stand,
    "default session": _default_stand,
    "torch": _torch_stand,
    "openvino": _openvino_stand,
}


def _timed(run: Callable[[], object]) -> int:
    start_ns = time.perf_counter_ns()
    run()
    return time.perf_counter_ns() - start_ns


def _warm_up(run: Callable[[], object]) -> None:
    times: list[int] = []
    end = time.monotonic() + _WARMUP_S
    while len(times) < _LEAST_WARMUP or (len(times) < _MOST_WARMUP and not is_settled(times)):
        times.append(_timed(run))
        if time.monotonic() > end and len(times) > 1:
            return


def _serve(job: _Job, say: Callable[..., None], orders: IO[str]) -> None:
    from resdeploy.golden_file import load_golden
    from resdeploy.target.measure import collector_off

    golden = load_golden(Path(job.golden))
    # Again and again, up to the batch.
    inputs = np.resize(golden.inputs, (job.batch_size, *golden.inputs.shape[1:]))
    stand = _STANDS[job.competitor.kind](job, inputs)
    num = min(job.batch_size, len(golden.inputs))
    rel_l2 = tensor_diff(stand.answer()[:num], golden.reference[:num]).rel_l2
    with collector_off():
        for memory in job.memories:
            _warm_up(stand.runs[memory])
        # Not finite is no JSON number; it is said by None, as a failure of the outputs.
        say("ready", rel_l2=rel_l2 if np.isfinite(rel_l2) else None, options=dict(stand.options))
        for line in orders:
            order = json.loads(line)
            run = stand.runs[order["memory"]]
            say(order["memory"], latencies_ns=[_timed(run) for _ in range(order["num_runs"])])


def main() -> None:
    """Be the competitor that standard input describes."""
    from resdeploy.target.bench_worker import own_standard_output

    answers = own_standard_output()

    def say(kind: str, **content: Any) -> None:
        answers.write(json.dumps({"kind": kind, **content}, allow_nan=False) + "\n")
        answers.flush()

    job = from_json(_Job, json.loads(sys.stdin.readline()), where="the job")
    try:
        _serve(job, say, sys.stdin)
    except ReportedError as error:
        say("failure", what=str(error))
    except Exception as error:  # any of torch's or the runtime's: this competitor alone is out
        say("failure", what=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


if __name__ == "__main__":
    main()
