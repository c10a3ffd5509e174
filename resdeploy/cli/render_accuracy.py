"""Accuracy as text: evaluations with their intervals, quantisations with their trials."""

from resdeploy.cli.tables import Lines, pass_or_fail, table
from resdeploy.schema.evaluations import EvaluateReport, Flip, PairedResult
from resdeploy.schema.quants import QuantQuality, QuantReport

__all__ = ["render_evaluate", "render_quantize"]

_MOST_FLIPS = 20
_MOST_SATURATING = 3


def render_evaluate(report: EvaluateReport) -> Lines:
    """Yield the accuracy of each model, their difference, and the samples that changed class."""
    rows = [
        (
            model.name,
            model.session.spec.provider,
            f"{model.result.num_correct} of {model.result.num_samples}",
            f"{model.result.accuracy:.2%}",
            "{:.2%} to {:.2%}".format(*model.result.interval),
        )
        for model in (report.model, report.against)
        if model is not None
    ]
    columns = ("model", "provider", "right", "accuracy", f"{report.confidence:.0%} interval")
    yield from table(report.samples, columns, rows)
    if report.paired is None or report.drop is None:
        return
    paired = report.paired
    low, high = paired.drop_interval
    yield (
        f"drop: {100 * report.drop:+.2f} points, {report.confidence:.0%} interval "
        f"{100 * low:+.2f} to {100 * high:+.2f}"
    )
    yield (
        f"only this model right: {paired.num_model_only}, only the other: "
        f"{paired.num_against_only}; McNemar's exact test: p = {paired.p_value:.3g}"
    )
    yield from _flips(paired, report.labels)
    if report.max_drop is not None:
        yield _verdict(report.max_drop, low, high)


def _flips(paired: PairedResult, labels: tuple[str, ...]) -> Lines:
    if not paired.flips:
        yield "no sample changed its class"
        return

    def name(place: int) -> str:
        return labels[place] if place < len(labels) else str(place)

    def row(flip: Flip) -> tuple[str, ...]:
        return (
            *(flip.sample, name(flip.label)),
            *(name(flip.predicted), f"{flip.margin:.3g}"),
            *(name(flip.against_predicted), f"{flip.against_margin:.3g}"),
        )

    columns = ("sample", "label", "this model", "margin", "the other", "margin")
    title = f"{len(paired.flips)} samples changed their class"
    yield from table(title, columns, map(row, paired.flips[:_MOST_FLIPS]))
    if len(paired.flips) > _MOST_FLIPS:
        yield f"and {len(paired.flips) - _MOST_FLIPS} more (--json has them all)"


def _verdict(max_drop: float, low: float, high: float) -> str:
    limit = f"{100 * max_drop:g} point{'' if max_drop == 0.01 else 's'}"
    if high <= max_drop:
        return f"PASS: the drop is at most {limit}"
    if low > max_drop:
        return f"FAIL: the drop is more than {limit}"
    return f"FAIL: a drop of at most {limit} is not shown; more samples would tell"


def render_quantize(report: QuantReport) -> Lines:
    """Yield the trials, the layers kept in float32, and the quality of the result."""
    rows = [
        (t.stage, t.name, f"{t.quality.error:.4f}", _changed(t.quality), "kept" if t.kept else "")
        for t in report.trials
    ]
    title = f"{report.spec.precision} with {report.num_calibration} samples of {report.calibration}"
    yield from table(title, ("stage", "tried", "relative error", "flips", ""), rows)
    quality = report.quality
    margin = (
        f", of margins up to {quality.largest_flip_margin:.3g} (median {quality.median_margin:.3g})"
        if quality.num_flips
        else ""
    )
    yield (
        f"result   {pass_or_fail(report.passed)}  relative error {quality.error:.4f}, "
        f"{quality.agreement:.2%} of predictions as before: {_changed(quality)} flips{margin}"
    )
    yield f"judged   on {quality.num_inputs} held-out samples; {report.judged_on}"
    if report.proof is not None:
        counts = ", ".join(f"{n} {op}" for op, n in report.proof.operators.items())
        yield f"runs     {counts} ({report.proof.runtime})"
    for layer in report.kept_float:
        yield f"float32  {layer.node} ({layer.op}): {layer.reason}"
    if report.saturating and not report.spec.reduce_range:
        few = ", ".join(report.saturating[:_MOST_SATURATING])
        yield (
            f"note     {len(report.saturating)} layers ({few}, …) would saturate on an x86 CPU "
            "without VNNI: --reduce-range for those"
        )
    yield from (f"warning  {warning}" for warning in report.warnings)
    yield from (f"failed   {reason}" for reason in report.reasons)
    if report.output is not None:
        yield f"wrote    {report.output}"


def _changed(quality: QuantQuality) -> str:
    return f"{quality.num_flips}/{quality.num_inputs}"
