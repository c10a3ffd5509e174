"""Evaluations as text: accuracies with their intervals, and the changed predictions."""

import click

from resdeploy.cli.tables import print_table
from resdeploy.schema.evaluations import EvaluatedModel, EvaluateReport, Flip, PairedResult

__all__ = ["render_evaluate"]

_MOST_FLIPS = 20


def render_evaluate(report: EvaluateReport) -> None:
    """Print the accuracy of each model, their difference, and the samples that changed class."""
    rows = [_row(model) for model in (report.model, report.against) if model is not None]
    columns = ("model", "provider", "right", "accuracy", f"{report.confidence:.0%} interval")
    print_table(report.samples, columns, rows)
    if report.paired is None or report.drop is None:
        return
    paired = report.paired
    low, high = paired.drop_interval
    click.echo(
        f"drop: {100 * report.drop:+.2f} points, {report.confidence:.0%} interval "
        f"{100 * low:+.2f} to {100 * high:+.2f}"
    )
    click.echo(
        f"only this model right: {paired.num_model_only}, only the other: "
        f"{paired.num_against_only}; McNemar's exact test: p = {paired.p_value:.3g}"
    )
    _flips(paired, report.labels)
    if report.max_drop is not None:
        click.echo(_verdict(report.max_drop, low, high))


def _row(model: EvaluatedModel) -> tuple[str, ...]:
    result = model.result
    low, high = result.interval
    return (
        model.name,
        model.session.spec.provider,
        f"{result.num_correct} of {result.num_samples}",
        f"{result.accuracy:.2%}",
        f"{low:.2%} to {high:.2%}",
    )


def _flips(paired: PairedResult, labels: tuple[str, ...]) -> None:
    if not paired.flips:
        click.echo("no sample changed its class")
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
    print_table(title, columns, map(row, paired.flips[:_MOST_FLIPS]))
    if len(paired.flips) > _MOST_FLIPS:
        click.echo(f"and {len(paired.flips) - _MOST_FLIPS} more (--json has them all)")


def _verdict(max_drop: float, low: float, high: float) -> str:
    limit = f"{100 * max_drop:g} point{'' if max_drop == 0.01 else 's'}"
    if high <= max_drop:
        return f"PASS: the drop is at most {limit}"
    if low > max_drop:
        return f"FAIL: the drop is more than {limit}"
    return f"FAIL: a drop of at most {limit} is not shown; more samples would tell"
