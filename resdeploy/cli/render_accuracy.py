"""Accuracy as text: evaluations with their intervals, quantisations with their trials."""

from collections.abc import Iterator, Sequence

from resdeploy.cli.tables import Lines, table
from resdeploy.schema.evaluations import EvaluateReport, Flip, PairedResult
from resdeploy.schema.quants import KeptFloat, OutputQuality, QuantQuality, QuantReport

__all__ = ["render_evaluate", "render_quantize"]

_MOST_FLIPS = 20
_MOST_SATURATING = 3
_MOST_NAMED = 3


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
    """Yield the trials, what stays in float32, and the quality of each output of the result."""
    decides = any(output.decides for output in report.outputs)
    rows = [
        (
            *(t.stage, t.name, f"{t.quality.error:.4f}"),
            *((_changed(t.quality),) if decides else ()),
            "kept" if t.kept else "",
        )
        for t in report.trials
    ]
    columns = ("stage", "tried", "relative error", *(("flips",) if decides else ()), "")
    title = f"{report.spec.precision} with {report.num_calibration} samples of {report.calibration}"
    yield from table(title, columns, rows)
    quality = report.quality
    yield f"result   {report.verdict}  relative error {quality.error:.4f}"
    for output in report.outputs:
        yield f"output   {output.name} judged as {output.judged_as} ({output.because})"
    for one in quality.outputs:
        of = f"{one.name}: " if len(quality.outputs) > 1 else ""
        yield from (f"         {of}{line}" for line in _output_lines(one, quality))
    yield f"judged   on {quality.num_inputs} held-out samples; {report.judged_on}"
    if report.proof is not None:
        counts = ", ".join(f"{n} {op}" for op, n in report.proof.operators.items())
        yield f"runs     {counts} ({report.proof.runtime})"
    yield from _kept_float(report.kept_float)
    if report.saturating and not report.spec.reduce_range:
        few = ", ".join(report.saturating[:_MOST_SATURATING])
        yield (
            f"note     {len(report.saturating)} layers ({few}, …) would saturate on an x86 CPU "
            "without VNNI: --reduce-range for those"
        )
    yield from (f"warning  {warning}" for warning in report.warnings)
    yield from (f"failed   {reason}" for reason in report.failures)
    yield from (f"unshown  {reason}" for reason in report.not_shown)
    if report.output is not None:
        yield f"wrote    {report.output}"


def _output_lines(one: OutputQuality, quality: QuantQuality) -> Iterator[str]:
    """Yield the measurements of an output, in the words of its kind."""
    if one.changed is not None and one.changed_at_most is not None:
        fraction = one.changed / quality.num_inputs
        flips = {
            "scores": f": {_changed(quality)} flips",
            "logit": f": {one.changed:.0f} of {quality.num_inputs} changed sides",
            "classes": "",
        }[one.judged_as]
        margin = ""
        if quality.num_flips and quality.largest_flip_margin:
            margin = (
                f", of margins up to {quality.largest_flip_margin:.3g} "
                f"(median {quality.median_margin:.3g})"
            )
        what = {"scores": "predictions", "logit": "decisions", "classes": "classes"}[one.judged_as]
        yield (
            f"{1 - fraction:.2%} of {what} as before{flips}{margin}; shown: at most "
            f"{100 * one.changed_at_most:.3g} % change (exact, one-sided 95 %)"
        )
    if one.accuracy is not None and one.lost is not None and one.lost_at_most is not None:
        iou = "" if one.iou is None else f", IoU {one.iou:.4f} ({one.iou_before:.4f} in float32)"
        yield (
            f"accuracy {one.accuracy:.2%} ({one.accuracy_before:.2%} in float32){iou}; shown: at "
            f"most {100 * one.lost_at_most:.3g} % are lost (exact, one-sided 95 %)"
        )
    if one.error is None:
        return
    worst = f"relative error {one.error:.4f}, {one.worst_error:.4f} for the worst input"
    if one.least_cosine is not None:
        yield (
            f"{worst}; cosine {one.mean_cosine:.5f}, at least {one.least_cosine:.5f}; nearest "
            f"neighbour the same for {one.same_nearest:.1%}"
        )
    elif one.largest_error is not None:
        yield f"{worst}; off by at most {one.largest_error:.4g}"
    else:
        yield worst


def _kept_float(kept: Sequence[KeptFloat]) -> Iterator[str]:
    """Yield the layers that stay in float32, those of one kind and reason in one line."""
    groups: dict[tuple[str, str], list[KeptFloat]] = {}
    for node in kept:
        groups.setdefault((node.op, node.reason), []).append(node)
    for (op, reason), nodes in groups.items():
        names = ", ".join(node.node for node in nodes[:_MOST_NAMED])
        more = f" and {len(nodes) - _MOST_NAMED} more" if len(nodes) > _MOST_NAMED else ""
        shares = [node.time_share for node in nodes if node.time_share is not None]
        share = f"; {sum(shares):.0%} of the time" if shares else ""
        yield f"float32  {names}{more} ({op}): {reason}{share}"


def _changed(quality: QuantQuality) -> str:
    return f"{quality.num_flips}/{quality.num_inputs}"
