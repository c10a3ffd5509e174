"""Search space of `tune`: forms of the model, providers, session options, batch sizes."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resdeploy.schema.benchmarks import BenchSpec
from resdeploy.schema.files import InputSpec
from resdeploy.schema.quants import QuantReport
from resdeploy.schema.sessions import PrecisionName, SessionSpec
from resdeploy.schema.tunings import TuneSpec
from resdeploy.session.onnx_wire import stored_precision
from resdeploy.session.providers import find_provider

__all__ = ["Candidate", "Variant", "candidates_for", "read_variants", "sessions_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A form of the bundle's model: a file, and the arithmetic that it asks for.

    `precision` is of most of its weights; `quant` the report of its quantization, if known;
    `refused` the reason where it could not be made: there is no file then.
    """

    path: Path
    precision: PrecisionName = "float32"
    quant: QuantReport | None = field(default=None, compare=False)
    refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A form of the model in a session, with the number of samples of a run.

    `inputs` are the sizes to time, where the model leaves them open.
    """

    variant: Variant
    session: SessionSpec
    batch_size: int
    inputs: tuple[InputSpec, ...] = ()

    def bench_spec(self, num_runs: int) -> BenchSpec:
        """Return the spec of its timing, with an adaptive warm-up."""
        return BenchSpec(
            session=self.session,
            batch_size=self.batch_size,
            num_runs=num_runs,
            inputs=self.inputs,
        )


def read_variants(paths: Sequence[Path]) -> list[Variant]:
    """Return files as variants, each with the precision of its weights.

    Raises:
        ResdeployError: a file is no model, or is not there.
    """
    return [Variant(path=path, precision=stored_precision(path)) for path in paths]


def candidates_for(
    default: Candidate, variants: Sequence[Variant], spec: TuneSpec
) -> list[Candidate]:
    """Return every combination once, the defaults first; of a variant without a file, one."""
    found = [default]
    found += [dataclasses.replace(default, variant=v) for v in variants if v.refused is not None]
    made = [variant for variant in variants if variant.refused is None]
    for variant, provider in itertools.product(made, spec.providers):
        for session, size in itertools.product(sessions_for(provider, spec), spec.batch_sizes):
            found.append(
                dataclasses.replace(default, variant=variant, session=session, batch_size=size)
            )
    return list(dict.fromkeys(found))


def sessions_for(provider: str, spec: TuneSpec) -> Iterator[SessionSpec]:
    """Yield the useful sessions on `provider`; its defaults first.

    A provider with a faster arithmetic than float32 is tried in both, and without an accuracy
    budget in float32 alone.
    """
    found = find_provider(provider)
    bases = [SessionSpec(provider=provider)]
    if (switch := found.arithmetics) is not None:
        arithmetics = (switch.exact,) if spec.max_drop is None else (switch.fast, switch.exact)
        bases = [dataclasses.replace(bases[0], **options) for options in arithmetics]
    threads = spec.threads if found.on_cpu else (None,)
    for base, number, *values in itertools.product(bases, threads, *found.choices.values()):
        changes = dict(zip(found.choices, values, strict=True))
        session = dataclasses.replace(base, num_threads=number, **changes)
        # One thread waits for no other, so that spinning changes nothing.
        if session.spinning or number != 1:
            yield session
