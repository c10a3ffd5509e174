"""What `tune` searches: every form of the model, on every provider, opened in every useful way."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.sessions import PrecisionHint, PrecisionName, SessionSpec
from resdeploy.schema.tunings import TuneSpec

__all__ = ["Candidate", "Variant", "candidates_for", "sessions_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A form of the bundle's model: a file, and the arithmetic that it asks for."""

    path: Path
    precision: PrecisionName = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A form of the model in a session, with the number of samples of a run."""

    variant: Variant
    session: SessionSpec
    batch_size: int

    def bench_spec(self, num_runs: int) -> BenchSpec:
        """Return how to time it: warm, whatever that takes."""
        return BenchSpec(session=self.session, batch_size=self.batch_size, num_runs=num_runs)


def candidates_for(
    default: Candidate, variants: Sequence[Variant], spec: TuneSpec
) -> list[Candidate]:
    """Return every combination once, the defaults first."""
    found = [default]
    for variant, provider in itertools.product(variants, spec.providers):
        for session, size in itertools.product(sessions_for(provider, spec), spec.batch_sizes):
            found.append(Candidate(variant=variant, session=session, batch_size=size))
    return list(dict.fromkeys(found))


def sessions_for(provider: str, spec: TuneSpec) -> Iterator[SessionSpec]:
    """Yield the ways to open a session on `provider` that are worth trying; its defaults first.

    Without an accuracy budget no arithmetic but float32 is among them.
    """
    lossless = spec.max_drop is None
    if provider == "cuda":
        tf32 = (False,) if lossless else (False, True)
        for use_tf32, nhwc, graph in itertools.product(tf32, (False, True), (False, True)):
            yield SessionSpec(
                provider=provider, use_tf32=use_tf32, prefer_nhwc=nhwc, cuda_graph=graph
            )
        return
    if provider == "openvino":
        hints: tuple[PrecisionHint, ...] = ("f32",) if lossless else ("default", "f32", "bf16")
        for hint, threads in itertools.product(hints, spec.threads):
            yield SessionSpec(provider=provider, precision_hint=hint, num_threads=threads)
        return
    for threads in spec.threads:
        # One thread has nobody to wait for.
        for spinning in (True,) if threads == 1 else (True, False):
            # "extended" leaves out the layouts of the CPU, whose conversions can cost more than
            # they gain where layers are small.
            for level in ("all", "extended"):
                yield SessionSpec(
                    provider=provider, num_threads=threads, spinning=spinning, graph_level=level
                )
