"""The stages of `ship`, each of which is a verb: kept between runs, timed, put into the record."""

import dataclasses
import math
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy import __version__
from resdeploy.api.arguments import OnStage, model_of
from resdeploy.api.ship_inputs import with_found_inputs
from resdeploy.errors import ResdeployError
from resdeploy.schema.codec import from_json
from resdeploy.schema.quants import QuantizedPrecision, QuantReport
from resdeploy.schema.ships import ShipReport, ShipSamples, ShipStage
from resdeploy.schema.verdicts import Accepts
from resdeploy.ship.wording import (
    device_commands,
    duration_text,
    lost_reasons,
    quantized_outcome,
    samples_line,
    too_few_reason,
    tuned_outcome,
)

if TYPE_CHECKING:
    from resdeploy.export.source import SourceModel
    from resdeploy.schema.recipes import DataSpec
    from resdeploy.ship.samples import SplitSamples
    from resdeploy.ship.stages import Clock, Finding, Stages

__all__ = ["BUDGET", "CONFIDENCE", "ShipRun"]

# The drop in accuracy, or the changed predictions, where none is given.
BUDGET = 0.01
CONFIDENCE = 0.95
# Runs of a process while a run is timed for the time told, and in each process of the search.
_NUM_RUNS = 20
# Golden inputs, of which the float64 reference is most of the work: fewer where they are large.
_GOLDEN_ELEMENTS = 8 * 3 * 224 * 224
_MOST_GOLDEN = 32
# Of `quantize`, what takes minutes on a large network: ranges alone, and layers left in float32
# where the budget needs it, are mostly sufficient.
_CHEAPEST: Mapping[str, Any] = dict.fromkeys(
    ("equalize", "pixel_grid", "refine", "rounding", "bias_correction"), "off"
)
_SHORT_NAMES: Mapping[QuantizedPrecision, str] = {
    "int8": "int8",
    "float16": "fp16",
    "bfloat16": "bf16",
}


@dataclasses.dataclass(kw_only=True)
class ShipRun:
    """One run through the stages; those that an earlier one finished are taken as they are.

    The arguments are those of `ship`, checked; `origin` is what the source stands for by content,
    None for code; `split` and `samples` are of `data`.
    """

    source: Any
    input_shape: Sequence[int] | None
    origin: Mapping[str, Any] | None
    name: str
    data: "DataSpec | None"
    split: "SplitSamples | None"
    samples: ShipSamples | None
    budget: float | None
    precisions: tuple[QuantizedPrecision, ...]
    providers: tuple[str, ...]
    target: Path | None
    accept: Accepts
    stages: "Stages"
    on_stage: OnStage
    on_note: OnStage
    log: list[ShipStage] = dataclasses.field(default_factory=list)
    told: dict[str, float] = dataclasses.field(default_factory=dict)
    _model: "SourceModel | None" = None

    def to(self, out: Path, *, force: bool) -> ShipReport:
        """Go through all stages, write the bundle, and return the record."""
        from resdeploy.bundle.folder import digest_of
        from resdeploy.machine.probe import starting_providers
        from resdeploy.schema.bundles import CheckReport, Manifest
        from resdeploy.schema.tunings import TuneReport
        from resdeploy.schema.verdicts import VerifyReport

        if self.samples is not None:
            self.on_note(samples_line(self.samples))
        self.providers = self.providers or starting_providers()
        reasons = self._no_lower_precision()
        packed = self._packed()
        for line in packed.data["notes"]:
            self.on_note(line)
        bundle = packed.folder / "bundle"
        manifest = from_json(Manifest, packed.data["manifest"], where=str(bundle))
        digest = digest_of(manifest)
        timed = self._timed(bundle, digest)
        self._tell(packed, timed, digest, make_lower=self.samples is not None and not reasons)

        verified = self._verified(bundle, digest)
        verification = from_json(VerifyReport, verified.data, where="verification")
        if not verification.passed:
            raise ResdeployError(
                f"The exported model was not proved to be the trained one: {verification.verdict}. "
                + "; ".join((*verification.reasons, *verification.unproved))[:500],
                where=packed.data["source"],
                fix="resdeploy verify has the whole verdict",
            )
        quants: list[QuantReport] = []
        variants: list[Path] = []
        if self.samples is not None and not reasons:
            for precision in self._precisions():
                report, file = self._quantized(bundle, digest, precision)
                quants.append(report)
                # What a few calibration samples do not show, the held-out ones of the search may.
                variants += [] if report.failures else [file]
                reasons += [f"{_SHORT_NAMES[precision]}: {why}" for why in report.failures]
        searched = self._tuned(bundle, digest, variants)
        tuning = from_json(TuneReport, searched.data, where="tuning")
        is_lower = tuning.settings.model in {one.name for one in variants}
        reasons = [] if is_lower else [*reasons, *lost_reasons(tuning, variants)]
        checked = self._finished(searched.folder / "tuned", out, force=force)
        check = from_json(CheckReport, checked.data, where="check")
        return ShipReport(
            output=str(out),
            digest=check.digest,
            source=packed.data["source"],
            notes=tuple(packed.data["notes"]),
            samples=self.samples,
            budget=self.budget,
            verification=verification,
            quants=tuple(quants),
            tuning=tuning,
            reasons=tuple(reasons),
            check=check,
            stages=tuple(self.log),
            commands=device_commands(
                out,
                check.digest,
                accept=self.accept,
                sample=self._sample,
                has_preprocess=manifest.preprocess is not None,
            ),
        )

    # --- before the long stages --------------------------------------------------------------

    def _no_lower_precision(self) -> list[str]:
        """Return the reason why no lower precision needs to be tried, if there is one."""
        samples, budget = self.samples, self.budget
        if samples is None or budget is None:
            return ["no samples were given, on which a lower precision could be judged"]
        if samples.can_show:
            return []
        from resdeploy.statistics.proportions import paired_difference_interval

        _, shown = paired_difference_interval(0, 0, samples.num_held_out, confidence=CONFIDENCE)
        reason = too_few_reason(samples, budget, shown=shown)
        self.on_note(f"no lower precision is tried: {reason}")
        return [reason]

    def _tell(self, packed: "Finding", timed: "Finding", digest: str, *, make_lower: bool) -> None:
        """Tell the time of the stages that are not finished, from what the first ones took."""
        from resdeploy.machine.environment import read_environment
        from resdeploy.ship.time_told import Costs, check_s, quantize_s, tune_s, verify_s

        parts = packed.parts_s
        costs = Costs(
            run_s=timed.data["run_s"],
            process_s=timed.duration_s,
            reference_s=parts.get("golden reference", 0.0) + parts.get("pack", 0.0),
        )
        precisions = self._precisions() if make_lower else ()
        num_held_out = 0 if self.samples is None else self.samples.num_held_out
        num_golden = packed.data["num_golden"]
        candidates = self._num_candidates(
            1 + len(precisions), read_environment().num_cpus_allowed, lossless=not precisions
        )
        expected = {"verify": verify_s(costs)}
        for precision in precisions:
            assert self.samples is not None
            is_made = self.stages.has(
                _SHORT_NAMES[precision],
                _of_this_version(self._quantize_inputs(digest, precision)),
            )
            expected[_SHORT_NAMES[precision]] = (
                0.0 if is_made else quantize_s(costs, num_calibration=self.samples.num_calibration)
            )
        expected["tune"] = tune_s(
            costs,
            num_candidates=candidates[0],
            num_judged=candidates[1],
            num_samples=num_held_out if precisions else num_golden,
        )
        expected["finish"] = check_s(costs, num_golden=num_golden)
        if self.stages.has("verify", _of_this_version(self._verify_inputs(digest))):
            expected["verify"] = 0.0
        self.told = expected
        shown = ", ".join(f"{name} {duration_text(s)}" for name, s in expected.items() if s)
        self.on_note(f"time: about {duration_text(sum(expected.values()))} from here ({shown})")

    def _num_candidates(self, forms: int, num_cpus: int, *, lossless: bool) -> tuple[int, int]:
        """Return the number of candidates of the search, and of different ways to compute."""
        from resdeploy.schema.tunings import TuneSpec
        from resdeploy.tune.space import sessions_for

        spec = TuneSpec(
            max_drop=None if lossless else self.budget,
            providers=self.providers,
            threads=(None, *sorted({1, num_cpus})),
        )
        sessions = [one for name in self.providers for one in sessions_for(name, spec)]
        ways = {dataclasses.replace(one, num_threads=None, spinning=True) for one in sessions}
        return forms * len(sessions), forms * len(ways)

    # --- the stages --------------------------------------------------------------------------

    def _once(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        make: "Callable[[Path, Clock], Any]",
        outcome: Callable[[Any], str],
    ) -> "Finding":
        self.on_stage(stage)
        found = self.stages.once(stage, _of_this_version(inputs), make)
        self.log.append(
            ShipStage(
                stage=stage,
                outcome=outcome(found.data),
                duration_s=0.0 if found.was_kept else found.duration_s,
                told_s=self.told.get(stage),
                was_kept=found.was_kept,
            )
        )
        return found

    def _telling(self, stage: str, clock: "Clock") -> OnStage:
        """Return a receiver of the names of a verb's own stages."""

        def tell(part: str) -> None:
            clock(part)
            self.on_stage(f"{stage}: {part}")

        return tell

    def _packed(self) -> "Finding":
        """Export the model, prove its file, and pack it."""
        from resdeploy.api.bundle import bundle

        def make(folder: Path, clock: "Clock") -> Any:
            tell = self._telling("export", clock)
            tell("load")
            model = self._loaded()
            num_golden = _num_golden(model.input_shape)
            manifest = bundle(
                model,
                folder / "bundle",
                name=self.name,
                num_inputs=num_golden,
                target=self.target,
                on_stage=tell,
            )
            return {
                "manifest": manifest,
                "notes": model.notes,
                "source": model.description,
                "num_golden": num_golden,
            }

        inputs = {
            "source": self.origin or _unknown(),
            "input shape": self.input_shape,
            "name": self.name,
            "samples": None if self.split is None else self.split.digest,
            "target": _digest_or_none(self.target),
        }
        return self._once("export", inputs, make, lambda found: str(found["source"]))

    def _loaded(self) -> "SourceModel":
        """Return the trained model, with preprocessing and class names as far as they are found.

        Once: the export reads it, and the proof again.
        """
        if self._model is None:
            model = model_of(self.source, input_shape=self.input_shape)
            self._model = model if self.split is None else with_found_inputs(model, self.split)
        return self._model

    def _timed(self, bundle: Path, digest: str) -> "Finding":
        """Time one run, for the time told."""
        from resdeploy.api.bench import bench

        def make(folder: Path, clock: "Clock") -> Any:
            report = bench(bundle / "model.onnx", num_runs=_NUM_RUNS)
            (result,) = report.results
            return {"run_s": result.p50_ms / 1e3}

        inputs = {"bundle": digest}
        return self._once(
            "time a run", inputs, make, lambda found: f"{1e3 * found['run_s']:.3g} ms"
        )

    def _verify_inputs(self, digest: str) -> Mapping[str, Any]:
        return {
            "bundle": digest,
            "providers": self.providers,
            "source": self.origin,
            "accept": self.accept,
        }

    def _verified(self, bundle: Path, digest: str) -> "Finding":
        from resdeploy.api.verify import verify
        from resdeploy.schema.verdicts import VerifyReport

        return self._once(
            "verify",
            self._verify_inputs(digest),
            lambda folder, clock: verify(
                bundle / "model.onnx",
                self._loaded(),
                num_inputs=_num_golden(self._loaded().input_shape),
                provider=self.providers,
                accept=self.accept,
                on_stage=self._telling("verify", clock),
            ),
            lambda found: from_json(VerifyReport, found, where="verify").verdict,
        )

    def _quantize_options(self, precision: QuantizedPrecision) -> dict[str, Any]:
        from resdeploy.quant.quantize import types_for

        return {
            "precision": precision,
            # Of more changed predictions than the accuracy may fall by, the search decides.
            "max_flips": max(BUDGET, self.budget or 0.0),
            "types": types_for(self.providers),
            **_CHEAPEST,
        }

    def _quantize_inputs(self, digest: str, precision: QuantizedPrecision) -> Mapping[str, Any]:
        return {
            "bundle": digest,
            "samples": self._split_digest,
            "target": _digest_or_none(self.target),
            **self._quantize_options(precision),
        }

    def _quantized(
        self, bundle: Path, digest: str, precision: QuantizedPrecision
    ) -> tuple[QuantReport, Path]:
        from resdeploy.api.quantize import quantize
        from resdeploy.ship.samples import split_data

        name, options = _SHORT_NAMES[precision], self._quantize_options(precision)
        samples, _ = split_data(self._samples_folder(), is_labelled=self._is_labelled)
        found = self._once(
            name,
            self._quantize_inputs(digest, precision),
            lambda folder, clock: quantize(
                bundle / "model.onnx",
                folder / f"{name}.onnx",
                calibration=samples,
                target=self.target,
                on_stage=self._telling(name, clock),
                **options,
            ),
            quantized_outcome,
        )
        return from_json(QuantReport, found.data, where=name), found.folder / f"{name}.onnx"

    def _tuned(self, bundle: Path, digest: str, variants: Sequence[Path]) -> "Finding":
        """Search for the fastest way to run it; without another form of the model, lossless."""
        from resdeploy.api.tune import tune
        from resdeploy.files import sha256_file

        judged: dict[str, Any] = {}
        if variants:
            judged = {"max_drop": self.budget, "data": self._judged_on(bundle, digest)}
        inputs = {
            "bundle": digest,
            "variants": {one.name: sha256_file(one) for one in variants},
            "max drop": judged.get("max_drop"),
            "samples": self._split_digest if variants else None,
            "providers": self.providers,
        }
        # Beside the finding, which appears when the search is over: it has a journal of its own.
        journal = self.stages.folder / self.stages.key("search", inputs)
        return self._once(
            "tune",
            inputs,
            lambda folder, clock: tune(
                bundle,
                folder / "tuned",
                variants=variants,
                providers=self.providers,
                num_runs=_NUM_RUNS,
                work=journal,
                on_progress=lambda done, total, remark: self.on_stage(
                    f"tune: {remark}" if total is None else f"tune: {remark}, {done} of {total}"
                ),
                **judged,
            ),
            tuned_outcome,
        )

    def _finished(self, tuned: Path, out: Path, *, force: bool) -> "Finding":
        """Write the bundle to its place, and check it there."""
        from resdeploy.api.check import check
        from resdeploy.bundle.archive import is_archive, write_archive
        from resdeploy.bundle.folder import MANIFEST
        from resdeploy.files import atomic_directory
        from resdeploy.schema.bundles import CheckReport

        def make(folder: Path, clock: "Clock") -> Any:
            if is_archive(out):
                write_archive(tuned, out, force=force)
            else:
                with atomic_directory(out, force=force, marker=MANIFEST) as written:
                    shutil.copytree(tuned, written, dirs_exist_ok=True)
            return check(out, accept=self.accept)

        # Never kept: the last thing that is done before the folder is removed.
        return self._once(
            "finish",
            _unknown(),
            make,
            lambda found: from_json(CheckReport, found, where="finish").verification.verdict,
        )

    # --- the samples -------------------------------------------------------------------------

    @property
    def _is_labelled(self) -> bool:
        return self.samples is not None and self.samples.is_labelled

    @property
    def _sample(self) -> Path | None:
        """A held-out picture, to name in the commands for the device."""
        place = None if self.split is None else self.split.held_out[0].place
        return place if isinstance(place, Path) else None

    @property
    def _split_digest(self) -> str | None:
        return None if self.split is None else self.split.digest

    def _precisions(self) -> tuple[QuantizedPrecision, ...]:
        from resdeploy.tune.variants import precisions_for

        return self.precisions or precisions_for(self.providers)

    def _samples_folder(self) -> Path:
        """Return the folder with both sides of the split, written once."""
        from resdeploy.ship.samples import write_split

        data, split = self.data, self.split
        assert data is not None
        assert split is not None

        def make(folder: Path, clock: "Clock") -> Any:
            write_split(data, split, folder)
            return {}

        return self.stages.once("samples", {"samples": split.digest}, make).folder

    def _judged_on(self, bundle: Path, digest: str) -> "DataSpec":
        """Return labelled samples; those without get the float32 model's answers as their labels.

        A drop in accuracy from these is the share of changed predictions.
        """
        from resdeploy.schema.recipes import DataSpec
        from resdeploy.ship.samples import split_data, write_labelled

        folder = self._samples_folder()
        _, held_out = split_data(folder, is_labelled=self._is_labelled)
        if self._is_labelled:
            return held_out

        def make(labelled: Path, clock: "Clock") -> Any:
            from resdeploy.api.predict import predict

            write_labelled(
                bundle,
                held_out,
                labelled / "labelled.npz",
                lambda x: [
                    one.classes[0].index for one in predict(bundle, x, provider="cpu").predictions
                ],
            )
            return {}

        inputs = {"samples": self._split_digest, "bundle": digest}
        made = self.stages.once("labelled", inputs, make)
        return DataSpec(name="npz", path=str(made.folder / "labelled.npz"))


def _of_this_version(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**inputs, "version": __version__}


def _unknown() -> Mapping[str, Any]:
    """Return inputs of a stage whose finding is never taken up again."""
    return {"unknown": secrets.token_hex(8)}


def _digest_or_none(path: Path | None) -> str | None:
    from resdeploy.files import sha256_file

    return None if path is None else sha256_file(path)


def _num_golden(input_shape: Sequence[int]) -> int:
    return max(8, min(_MOST_GOLDEN, _GOLDEN_ELEMENTS // math.prod(input_shape)))
