"""Other tools under each condition of BatchNorm folding.

Every case of `tests/support/fold_suite.py` goes through every peer. The result is held against the
module in float64:

    ok-folded n   the function is kept, n BatchNorm calls are gone
    ok-kept       the function is kept, and so is every BatchNorm
    wrong         the outputs differ by more than 1000 times the module's own rounding error
                  (16 times in 16-bit types), or are finite elsewhere; nobody is wrong for rounding
    crash         the peer raised, died, took too long, or made something that does not run
    n/a           the peer is not installed, or the case does not reach it intact

Peers that read ONNX get an unfolded export; where that export already differs from the module, or
cannot be made, the case says nothing about them and is n/a. Each peer runs in processes of its own.

    python benchmarks/fold/compare_peers.py --json benchmarks/fold/peers.json
"""

import copy
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import to_json

SUITE = Path(__file__).parents[2] / "tests" / "support" / "fold_suite.py"
TIME_LIMIT_S = 60
NUM_PROCESSES = 2
EXPORTS = "COMPARE_PEERS_EXPORTS"
WRONG = {torch.float32: 1e3, torch.float64: 1e3, torch.float16: 16, torch.bfloat16: 16}
PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxsim", "onnxslim", "onnxscript")

Outputs = list[torch.Tensor]


class NotApplicableError(Exception):
    """The case does not reach the peer intact."""


@dataclass(frozen=True)
class Candidate:
    """Result of a peer on a case: a call that runs it, and the number of BatchNorms left."""

    run: Callable[..., Any]
    num_left: int


@dataclass(frozen=True)
class Outcome:
    """Outcome of a case: `kind` is ok, wrong, crash or n/a."""

    kind: str
    folded: int | None = None
    max_abs_diff: float | None = None
    detail: str | None = None

    def __str__(self) -> str:
        match self.kind:
            case "ok":
                return f"ok-folded {self.folded}" if self.folded else "ok-kept"
            case "wrong":
                return f"wrong ({self.max_abs_diff:.3g})"
            case _:
                return f"{self.kind} ({self.detail})"


def load_cases() -> tuple[Any, ...]:
    spec = importlib.util.spec_from_file_location("fold_suite", SUITE)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["fold_suite"] = suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    return suite.CASES


# --- counting what is left -----------------------------------------------------------------------

_NORMALISATIONS = ("batch_norm", "instance_norm", "batchnormalization", "instancenormalization")


def num_left(operators: Iterator[str], case: Any) -> int:
    """Count a case's BatchNorm calls that remain among the operators of a graph."""
    marks = ("mul",) if "arithmetic" in case.tags else _NORMALISATIONS
    count = sum(any(mark in name.lower() for mark in marks) for name in operators)
    return min(count, case.folded + case.refused)


def of_module(module: nn.Module, case: Any) -> Candidate:
    program = torch.export.export(copy.deepcopy(module), case.inputs())
    operators = (str(node.target) for node in program.graph.nodes if node.op == "call_function")
    return Candidate(module, num_left(operators, case))


def of_script(module: Any, case: Any) -> Candidate:
    operators = (node.kind() for node in module.inlined_graph.nodes())
    return Candidate(module, num_left(operators, case))


def of_onnx(model: Any, case: Any) -> Candidate:
    operators = (node.op_type for node in model.graph.node)
    left = num_left(operators, case)

    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return run_onnx(model, inputs)

    return Candidate(run, left)


def run_onnx(model: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return tuple(torch.from_numpy(y) for y in session.run(None, feeds))


# --- the peers -----------------------------------------------------------------------------------


def resdeploy(case: Any) -> Candidate:
    import onnx_ir as ir

    from resdeploy.errors import UnsupportedModelError
    from resdeploy.export.trace import BATCH_DIMENSION, trace
    from resdeploy.export.translate import translate
    from resdeploy.fold.pipeline import optimize
    from resdeploy.graph.float64 import evaluate_float64

    inputs = case.inputs()
    try:
        translated = translate(trace(case.build(), inputs), opset=18)
    except UnsupportedModelError:  # refused by name: the module stays as it is
        return of_module(case.build(), case)
    model = ir.to_proto(optimize(translated, opset=18, batch_dimension=BATCH_DIMENSION).model)

    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # ONNX Runtime's CPU provider has no convolution of bfloat16 or float64.
        feeds = {i.name: x.double().numpy() for i, x in zip(model.graph.input, inputs, strict=True)}
        found = evaluate_float64(model, feeds).values()
        return tuple(torch.from_numpy(y).to(inputs[0].dtype) for y in found)

    return Candidate(run, of_onnx(model, case).num_left)


def fx_fuse(case: Any) -> Candidate:
    from torch.fx.experimental.optimization import fuse

    return of_module(fuse(case.build()), case)


def ao_fuse_fx(case: Any) -> Candidate:
    from torch.ao.quantization.quantize_fx import fuse_fx

    return of_module(fuse_fx(case.build()), case)


LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def adjacent_pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield (parent, layer, BatchNorm) for children that stand one after the other."""
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (first, layer), (second, norm) in itertools.pairwise(children):
            if isinstance(layer, LAYERS) and isinstance(norm, nn.modules.batchnorm._BatchNorm):
                yield parent, first, second


def ao_fuse_modules(case: Any) -> Candidate:
    from torch.ao.quantization import fuse_modules

    module = case.build()
    for parent, first, second in adjacent_pairs(module):
        fuse_modules(parent, [[first, second]], inplace=True)
    return of_module(module, case)


def walk_children(case: Any) -> Candidate:
    """The few lines that many repositories have."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

    module = case.build()
    for parent, first, second in adjacent_pairs(module):
        layer, norm = getattr(parent, first), getattr(parent, second)
        if isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(layer, norm)
        else:
            is_transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
            fused = fuse_conv_bn_eval(layer, norm, is_transposed)
        setattr(parent, first, fused)
        setattr(parent, second, nn.Identity())
    return of_module(module, case)


def jit_freeze(case: Any) -> Candidate:
    module = case.build()
    try:
        script = torch.jit.script(module)
    except Exception:  # TorchScript is a subset of Python, with no common base for its refusals
        script = torch.jit.trace(module, case.inputs(), check_trace=False)
    return of_script(torch.jit.freeze(script), case)


def export_onnx(case: Any, *, optimize: bool) -> Any:
    if "random" in case.tags:
        raise NotApplicableError("draws random numbers")
    program = torch.onnx.export(
        case.build(), case.inputs(), dynamo=True, optimize=optimize, verbose=False
    )
    return program.model_proto


def onnx_export(case: Any) -> Candidate:
    return of_onnx(export_onnx(case, optimize=True), case)


def unfolded_onnx(case: Any) -> Any:
    """Return the export of a case as it is, or say why an ONNX tool cannot be judged by it."""
    import onnx

    # One export serves all the tools: a model, or the reason why there is none.
    model_path = Path(os.environ[EXPORTS]) / f"{case.name}.onnx"
    reason_path = model_path.with_suffix(".txt")
    if not model_path.exists() and not reason_path.exists():
        result = _export_intact(case)
        path = reason_path if isinstance(result, str) else model_path
        content = result.encode() if isinstance(result, str) else result.SerializeToString()
        # Another process may be reading: the file appears whole or not at all.
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    if reason_path.exists():
        raise NotApplicableError(reason_path.read_text())
    return onnx.load(model_path)


def _export_intact(case: Any) -> Any:
    try:
        model = export_onnx(case, optimize=False)
        outcome = judge(case, of_onnx(model, case))
    except NotApplicableError as error:
        return str(error)
    except Exception as error:  # the exporter has no common base for what it raises
        return f"no export that runs: {type(error).__name__}"
    return model if outcome.kind == "ok" else "the export already differs"


def simplify_with_onnxsim(case: Any) -> Candidate:
    model = unfolded_onnx(case)
    import onnxsim

    simplified, _ = onnxsim.simplify(model)
    return of_onnx(simplified, case)


def slim_with_onnxslim(case: Any) -> Candidate:
    model = unfolded_onnx(case)
    import onnxslim

    return of_onnx(onnxslim.slim(model), case)


def rewrite_with_onnxscript(case: Any) -> Candidate:
    model = unfolded_onnx(case)
    from onnxscript import optimizer, rewriter

    return of_onnx(rewriter.rewrite(optimizer.optimize(model)), case)


def optimise_with_onnxruntime(case: Any) -> Candidate:
    import onnx
    import onnxruntime as ort

    model = unfolded_onnx(case)
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return of_onnx(onnx.load(options.optimized_model_filepath), case)


@dataclass(frozen=True)
class Peer:
    """A tool, and the packages it needs."""

    fold: Callable[[Any], Candidate]
    needs: tuple[str, ...] = ()


PEERS = {
    "resdeploy": Peer(resdeploy),
    "torch.fx fuse": Peer(fx_fuse),
    "torch.ao fuse_fx": Peer(ao_fuse_fx),
    "torch.ao fuse_modules": Peer(ao_fuse_modules),
    "walk over children": Peer(walk_children),
    "torch.jit.freeze": Peer(jit_freeze),
    "torch.onnx.export": Peer(onnx_export, ("onnx", "onnxscript", "onnxruntime")),
    "onnxsim": Peer(simplify_with_onnxsim, ("onnxsim", "onnxscript", "onnxruntime")),
    "onnxslim": Peer(slim_with_onnxslim, ("onnxslim", "onnxscript", "onnxruntime")),
    "onnxscript": Peer(rewrite_with_onnxscript, ("onnxscript", "onnxruntime")),
    "ONNX Runtime basic": Peer(optimise_with_onnxruntime, ("onnxscript", "onnxruntime")),
}


# --- judging -------------------------------------------------------------------------------------


def outputs_of(run: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> Outputs:
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = run(*inputs)
    return list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]


def judge(case: Any, candidate: Candidate) -> Outcome:
    inputs = case.inputs()
    own = outputs_of(case.build(), inputs)
    exact = own
    if "random" not in case.tags:
        exact = outputs_of(case.build().double(), tuple(x.double() for x in inputs))
    got = outputs_of(candidate.run, inputs)
    folded = case.folded + case.refused - candidate.num_left
    if [y.shape for y in got] != [y.shape for y in exact]:
        return Outcome("wrong", folded, float("inf"), "other shapes")
    worst, is_wrong = 0.0, False
    for mine, theirs, reference in zip(got, own, exact, strict=True):
        if not torch.equal(mine.isfinite(), theirs.isfinite()):
            return Outcome("wrong", folded, float("inf"), "finite elsewhere")
        finite = reference.isfinite() & theirs.isfinite()
        m, t, r = (y[finite].double() for y in (mine, theirs, reference))
        noise = (t - r).norm() + torch.finfo(theirs.dtype).eps / 2 * r.norm()
        is_wrong |= bool((m - r).norm() > WRONG[theirs.dtype] * noise)
        worst = max(worst, float((m - r).abs().max()) if m.numel() else 0.0)
    return Outcome("wrong" if is_wrong else "ok", folded, worst)


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome_of(peer: Peer, case: Any) -> Outcome:
    for package in peer.needs:
        if importlib.util.find_spec(package) is None:
            return Outcome("n/a", detail=f"{package} is not installed")
    try:
        with (
            time_limit(),
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            return judge(case, peer.fold(case))
    except NotApplicableError as error:
        return Outcome("n/a", detail=str(error))
    except BaseException as error:  # whatever a peer raises is its result, pyo3's panics included
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome("crash", detail=type(error).__name__)


# --- processes -----------------------------------------------------------------------------------


def work(name: str, first: int) -> None:
    """Run one peer over the cases from `first` on, and write a line for each."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    out = sys.stdout
    for case in load_cases()[first:]:
        outcome = outcome_of(PEERS[name], case)
        print(json.dumps([case.name, asdict(outcome)]), file=out, flush=True)


def run_peer(name: str) -> dict[str, Outcome]:
    cases = [case.name for case in load_cases()]
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(cases):
        command = [sys.executable, __file__, "--peer", name, "--first", str(len(outcomes))]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in done.stdout.splitlines():
            if line.startswith('["'):
                case, fields = json.loads(line)
                outcomes[case] = Outcome(**fields)
        if len(outcomes) < len(cases):
            # The process died in the case after the last one it reported.
            outcomes[cases[len(outcomes)]] = Outcome("crash", detail=f"exit {done.returncode}")
    click.echo(f"{name} done", err=True)
    return outcomes


# --- the report ----------------------------------------------------------------------------------


def summarise(outcomes: dict[str, Outcome]) -> dict[str, int]:
    kinds = Counter(outcome.kind for outcome in outcomes.values())
    right = [outcome for outcome in outcomes.values() if outcome.kind == "ok"]
    return {
        "wrong": kinds["wrong"],
        "crash": kinds["crash"],
        "not_applicable": kinds["n/a"],
        "right": len(right),
        "calls_folded_rightly": sum(outcome.folded or 0 for outcome in right),
    }


def render(cases: tuple[Any, ...], results: dict[str, dict[str, Outcome]]) -> str:
    lines = []
    for case in cases:
        # A line for each case that somebody gets wrong or cannot do; the rest is in the JSON.
        bad = {
            peer: outcomes[case.name]
            for peer, outcomes in results.items()
            if outcomes[case.name].kind in ("wrong", "crash")
        }
        if bad:
            told = "; ".join(f"{peer}: {outcome}" for peer, outcome in bad.items())
            lines.append(f"{case.name} (ideal: {case.folded} folded): {told}")
    total = sum(case.folded for case in cases)
    lines += ["", f"{'peer':24}{'wrong':>7}{'crash':>7}{'n/a':>7}{'right':>7}  folds of {total}"]
    for peer, outcomes in results.items():
        s = summarise(outcomes)
        lines.append(
            f"{peer:24}{s['wrong']:7}{s['crash']:7}{s['not_applicable']:7}{s['right']:7}"
            f"{s['calls_folded_rightly']:7}"
        )
    return "\n".join(lines)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@click.command()
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
@click.option("--peer", hidden=True)
@click.option("--first", default=0, hidden=True)
def main(json_path: Path | None, peer: str | None, first: int) -> None:
    """Run every case through every peer and print who is wrong where."""
    if peer is not None:
        work(peer, first)
        return
    cases = load_cases()
    environment = read_environment()
    with (
        tempfile.TemporaryDirectory() as exports,
        ThreadPoolExecutor(NUM_PROCESSES) as pool,
    ):
        os.environ[EXPORTS] = exports
        results = dict(zip(PEERS, pool.map(run_peer, PEERS), strict=True))
    click.echo(render(cases, results))
    if json_path is not None:
        record = {
            "environment": to_json(environment),
            "packages": versions(),
            "summary": {name: summarise(outcomes) for name, outcomes in results.items()},
            "cases": {
                case.name: {
                    "ideal": {"folded": case.folded, "refused": case.refused},
                    **{name: str(outcomes[case.name]) for name, outcomes in results.items()},
                }
                for case in cases
            },
        }
        json_path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
