"""Outcomes, reasons and commands of `ship` in words, of its records."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resdeploy.schema.ships import ShipSamples
from resdeploy.schema.tunings import TuneReport
from resdeploy.schema.verdicts import Accepts

__all__ = [
    *("device_commands", "duration_text", "lost_reasons", "quantized_outcome", "samples_line"),
    *("too_few_reason", "tuned_outcome"),
]


def samples_line(samples: ShipSamples) -> str:
    """Return the numbers of samples on each side of the split."""
    line = (
        f"samples: {samples.num_calibration} to calibrate with, {samples.num_held_out} others "
        "to judge by"
    )
    copies = samples.num_copies
    return f"{line}; {copies} copies of others left out" if copies else line


def too_few_reason(samples: ShipSamples, budget: float, *, shown: float) -> str:
    """Return the reason why the samples cannot show a budget; `shown` is the one that they can."""
    option, scale = ("--max-drop", 100) if samples.is_labelled else ("--max-flips", 1)
    unit = "points" if samples.is_labelled else "of the predictions"
    # Upwards, so that what is advised is enough.
    enough = (int(shown * 1000) + 1) / 1000 * scale
    return (
        f"{budget * scale:g} {unit} cannot be shown on {samples.num_held_out} held-out "
        f"samples: {samples.num_needed} are needed, if not one prediction is lost. These can "
        f"show {option} {enough:g}"
    )


def device_commands(
    out: Path, digest: str, *, accept: Accepts, sample: Path | None, has_preprocess: bool
) -> tuple[str, ...]:
    """Return the commands for the device; `sample` is a picture of the data, None without."""
    name = shlex.quote(str(out))
    accepting = "" if accept == "proof" else f" --accept {accept}"
    usual = "photo.jpg" if has_preprocess else "inputs.npy"
    example = usual if sample is None else shlex.quote(str(sample))
    return (
        f"resdeploy check {name} --digest {digest}{accepting}",
        f"resdeploy predict {name} {example}",
        f"resdeploy bench {name}",
    )


def duration_text(seconds: float) -> str:
    """Return a duration as 3.2 s, 52 s, 4.1 min or 12 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"


def quantized_outcome(found: Mapping[str, Any]) -> str:
    """Return the outcome of a quantisation, of the JSON of its `QuantReport`."""
    if found["failures"]:
        return f"not made: {found['failures'][0]}"
    quality = found["quality"]
    return (
        f"{quality['num_flips']} of {quality['num_inputs']} predictions changed, "
        f"{len(found['kept_float'])} layers left in float32"
    )


def tuned_outcome(found: Mapping[str, Any]) -> str:
    """Return the outcome of a search, of the JSON of its `TuneReport`."""
    settings = found["settings"]
    ratio = settings["ratio"]
    gain = "" if ratio is None else f", {1 / ratio['ratio']:.2f} times as fast as the defaults"
    return f"{settings['model']}{gain}"


def lost_reasons(tuning: TuneReport, variants: Sequence[Path]) -> list[str]:
    """Return the reason why each lower precision that was made did not win."""
    reasons = []
    for name in [one.name for one in variants]:
        # Of its fastest way, which came closest; one that was not admitted has no time.
        closest = min(
            (one for one in tuning.trials if one.model == name), key=lambda one: one.time_ns
        )
        reasons.append(f"{name}: {closest.out or 'not faster than float32'}")
    return reasons
