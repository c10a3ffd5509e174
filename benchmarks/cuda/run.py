"""Carry out cases one by one, each in a process of its own, and keep what each came to.

The report is written anew, whole, after every case: whatever ends the run, what was done stays.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.cuda.models import Files
from benchmarks.cuda.records import Case, GpuReport, Outcome, RunSpec
from benchmarks.cuda.table import page_of
from benchmarks.cuda.worker import Task
from resdeploy.errors import ResdeployError
from resdeploy.files import atomic_write
from resdeploy.machine.environment import read_environment
from resdeploy.schema.codec import dump_json, load_json, to_json
from resdeploy.schema.machines import Environment

__all__ = ["Limits", "Store", "carry_out"]

REPORT_NAME, PAGE_NAME = "report.json", "report.md"

# A case is not begun with less time left: it would only be cut off. Peers compile.
_LEAST_S = {"peers": 120.0, "settings": 45.0, "model": 20.0}
_LEAST_OTHERS_S = 10.0
# Of the time that a case of competitors may take, what a single one may need to be ready, and all.
_START_SHARE, _ALL_STARTED_SHARE = 0.4, 0.7


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits: of a case, of the whole run (on `time.monotonic`), and the peers left out.

    `end_s` is None where nobody waits.
    """

    case_s: float
    end_s: float | None = None
    skip_peers: tuple[str, ...] = ()

    def left_for(self, case: Case) -> float | None:
        """Return the seconds that `case` may take now; None if it is better not begun."""
        if self.end_s is None:
            return self.case_s
        left_s = self.end_s - time.monotonic()
        least_s = min(_LEAST_S.get(case.kind, _LEAST_OTHERS_S), self.case_s)
        return None if left_s < least_s else min(left_s, self.case_s)


class Store:
    """The report in its folder: read at the start, written after every case."""

    def __init__(self, folder: Path, report: GpuReport, *, retry: bool) -> None:
        """Hold `report`, which is or will be in `folder`; with `retry`, failures are undone."""
        self._folder, self.report, self._retry = folder, report, retry

    @classmethod
    def open(cls, folder: Path, spec: RunSpec, *, retry: bool = False) -> "Store":
        """Return the store of a folder, with what an earlier run left there.

        Raises:
            ResdeployError: what is there is of another machine or another request, or damaged; or
                the folder cannot be made.
        """
        here = read_environment()
        path = folder / REPORT_NAME
        if not path.is_file():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResdeployError(
                    f"The folder cannot be made: {error.strerror}.",
                    where=str(folder),
                    fix="give another one with --out",
                ) from error
            return cls(folder, GpuReport(spec=spec, environment=here), retry=retry)
        report = load_json(GpuReport, path.read_bytes(), where=str(path))
        if (reason := _why_not_the_same(report, spec, here)) is not None:
            raise ResdeployError(
                f"The report in this folder is of another run: {reason}.",
                where=str(path),
                fix="give another folder with --out",
            )
        return cls(folder, report, retry=retry)

    def is_done(self, case: Case) -> bool:
        """Test for a case that needs no further run."""
        outcome = next((o for o in self.report.outcomes if o.case.key == case.key), None)
        return outcome is not None and (outcome.passed or not self._retry)

    def add(self, outcome: Outcome, *, num_left: int) -> None:
        """Write the report with one more outcome, in place of an earlier one of the same case."""
        others = tuple(o for o in self.report.outcomes if o.case.key != outcome.case.key)
        self.report = dataclasses.replace(self.report, outcomes=(*others, outcome))
        self.write(num_left=num_left)

    def write(self, *, num_left: int) -> None:
        """Write both files, each whole or not at all."""
        texts = {REPORT_NAME: dump_json(self.report, indent=None) + "\n"}
        texts[PAGE_NAME] = page_of(self.report, num_left=num_left)
        for name, text in texts.items():
            with atomic_write(self._folder / name, force=True) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _why_not_the_same(report: GpuReport, spec: RunSpec, here: Environment) -> str | None:
    if report.spec != spec:
        return f"it asks for {to_json(report.spec)}, not {to_json(spec)}"
    for name in ("machine", "cpu_model", "gpu_names", "versions"):
        if getattr(report.environment, name) != getattr(here, name):
            there, now = getattr(report.environment, name), getattr(here, name)
            return f"its {name} is {there}, here it is {now}"
    return None


def carry_out(
    cases: Sequence[Case],
    store: Store,
    models: Path,
    limits: Limits,
    *,
    say: Callable[[str], None],
) -> None:
    """Run every case that is not done yet, in their order.

    Args:
        cases: what to do.
        store: what is done, and where the rest goes.
        models: the folder of the networks; those that are missing are made.
        limits: of each case, and of all.
        say: is told a line for each case.

    Raises:
        KeyboardInterrupt: as it was; the case in hand is undone, and its processes are gone.
    """
    files_of = {case.network: Files.of(models, case.network, store.report.spec) for case in cases}
    left = [
        case
        for case in cases
        if not store.is_done(case)
        # The report may have come here without the models.
        or (case.kind == "model" and not files_of[case.network].model(case.form).exists())
    ]
    say(f"{len(cases)} cases, {len(cases) - len(left)} of them done")
    num_left = len(left)
    for case in left:
        if (case_s := limits.left_for(case)) is None:
            continue
        outcome = _needs(case, files_of[case.network], store) or run_case(
            case, store.report.spec, models, limits, case_s=case_s
        )
        if outcome is None:
            say(f"{case.title}: cut off by the end of the time, and still to do")
            continue
        num_left -= 1
        store.add(outcome, num_left=num_left)
        say(f"{outcome.duration_s:6.1f} s  {case.title}: {_summary(outcome)}")
    store.write(num_left=num_left)
    if num_left:
        say(f"{num_left} cases are left: the same command goes on with them")


def _needs(case: Case, files: Files, store: Store) -> Outcome | None:
    """Return the failure of a case whose model is not there; None if nothing is missing."""
    forms = {"verify": (case.form,), "bench": (case.form,), "settings": (case.form,)}
    for form in forms.get(case.kind, ("float32",) if case.kind == "peers" else ()):
        if not files.model(form).exists():
            why = next(
                (
                    o.failure
                    for o in store.report.outcomes
                    if o.case.kind == "model"
                    and (o.case.network, o.case.form) == (case.network, form)
                ),
                None,
            )
            reason = why or f'none is there; leave --only out, or add "model {case.network}"'
            return Outcome(case=case, failure=f"It has no {form} model: {reason}")
    return None


def run_case(
    case: Case, spec: RunSpec, models: Path, limits: Limits, *, case_s: float
) -> Outcome | None:
    """Return the outcome of a case in a process of its own; None if the end of the run cut it off.

    Args:
        case: what to do.
        spec: what decides its numbers.
        models: the folder of the networks.
        limits: the limit of a case says whether being late is its own failure.
        case_s: seconds that it may take.
    """
    task = Task(
        case=case,
        spec=spec,
        folder=str(models.resolve()),
        start_limit_s=_START_SHARE * case_s,
        all_started_s=_ALL_STARTED_SHARE * case_s,
        skip_peers=limits.skip_peers,
    )
    begun = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.cuda.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            env=_environment(spec.provider, models),
            text=True,
            encoding="utf-8",
            # A group of its own: all that it starts ends with it, and Ctrl-C comes here alone.
            start_new_session=True,
        )
        try:
            text, _ = process.communicate(json.dumps(to_json(task)) + "\n", timeout=case_s)
        except subprocess.TimeoutExpired:
            if case_s < limits.case_s:
                return None
            text = ""
            why = f"not done within {case_s:.0f} s"
        else:
            why = f"ended with code {process.returncode}"
        finally:
            _end(process)
        printed.seek(0)
        lines = printed.read().decode(errors="replace").strip().splitlines()
    if text.endswith("\n"):
        outcome = load_json(Outcome, text, where="the process of a case")
        return dataclasses.replace(outcome, duration_s=time.monotonic() - begun)
    at = f"; it last said: {lines[-1]}" if lines else ""
    return Outcome(case=case, duration_s=time.monotonic() - begun, failure=f"It was {why}{at}")


def _end(process: subprocess.Popen[str]) -> None:
    # Also of a process that is gone: what it started may be left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _environment(provider: str, models: Path) -> dict[str, str]:
    """Return the variables of a case's process: where Python and the loader find what they need."""
    changed = dict(os.environ)
    root = str(Path(__file__).parents[2])
    changed["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # Compiled networks are found again by the next block and the next run.
    changed.setdefault("TORCHINDUCTOR_CACHE_DIR", str(models.resolve() / "inductor"))
    if provider in ("cuda", "tensorrt"):
        paths = (*_cuda_folders(), os.environ.get("LD_LIBRARY_PATH"))
        changed["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    return changed


def _cuda_folders() -> list[str]:
    """Return where Python packages keep CUDA's libraries, cuDNN and TensorRT.

    torch's own packages bring them, beside torch and not beside ONNX Runtime, which then needs to
    be told; nothing is imported here.
    """
    folders: list[Path] = []
    for package, patterns in (
        ("nvidia", ("*/lib",)),
        ("torch", ("lib",)),
        ("tensorrt_libs", (".",)),
    ):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec is not None else ():
            folders += (path for pattern in patterns for path in sorted(Path(root).glob(pattern)))
    return [str(folder) for folder in folders if folder.is_dir()]


def _summary(outcome: Outcome) -> str:
    if outcome.failure is not None:
        return f"FAILED: {' '.join(outcome.failure.split())}"
    if outcome.verify is not None:
        verdict = outcome.verify.verdicts[0]
        word = "pass" if outcome.verify.passed else "FAIL"
        return f"{word}, R = {verdict.comparison.noise_ratio:.3g}"
    if outcome.bench is not None:
        return f"{outcome.bench.summary.p50_ns / 1e6:.3f} ms"
    if outcome.timed:
        return f"{sum(one.failure is None for one in outcome.timed)} of {len(outcome.timed)} timed"
    return "done"
