"""Quantisations as text."""

from collections.abc import Iterable

import click

from resdeploy.cli.tables import pass_or_fail, print_table
from resdeploy.schema.quants import QuantQuality, QuantReport

__all__ = ["render_quantize"]

_NUM_SHOWN = 3


def render_quantize(report: QuantReport) -> None:
    """Print the trials, the layers kept in float32, and the quality of the result."""
    rows = [
        (t.stage, t.name, f"{t.quality.error:.4f}", _flips(t.quality), "kept" if t.kept else "")
        for t in report.trials
    ]
    title = f"{report.spec.precision} with {report.num_calibration} samples of {report.calibration}"
    print_table(title, ("stage", "tried", "relative error", "flips", ""), rows)
    click.echo("\n".join(_lines(report)))


def _lines(report: QuantReport) -> Iterable[str]:
    quality = report.quality
    margin = (
        f", of margins up to {quality.largest_flip_margin:.3g} (median {quality.median_margin:.3g})"
        if quality.num_flips
        else ""
    )
    yield (
        f"result   {pass_or_fail(report.passed)}  relative error {quality.error:.4f}, "
        f"{quality.agreement:.2%} of predictions as before: {_flips(quality)} flips{margin}"
    )
    yield f"judged   on {quality.num_inputs} held-out samples; {report.judged_on}"
    if report.proof is not None:
        counts = ", ".join(f"{n} {op}" for op, n in report.proof.operators.items())
        yield f"runs     {counts} ({report.proof.runtime})"
    for layer in report.kept_float:
        yield f"float32  {layer.node} ({layer.op}): {layer.reason}"
    if report.saturating and not report.spec.reduce_range:
        few = ", ".join(report.saturating[:_NUM_SHOWN])
        yield (
            f"note     {len(report.saturating)} layers ({few}, …) would saturate on an x86 CPU "
            "without VNNI: --reduce-range for those"
        )
    for warning in report.warnings:
        yield f"warning  {warning}"
    for reason in report.reasons:
        yield f"failed   {reason}"
    if report.output is not None:
        yield f"wrote    {report.output}"


def _flips(quality: QuantQuality) -> str:
    return f"{quality.num_flips}/{quality.num_inputs}"
