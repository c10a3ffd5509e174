"""`resdeploy evaluate`."""

from pathlib import Path

import click

from resdeploy.cli.options import Number, json_option, session_options
from resdeploy.errors import EXIT_CHECK_FAILED
from resdeploy.schema.sessions import SessionSpec


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Labelled samples: NAME, NAME:PATH, x.npz, a folder.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Another model on the same samples: what it was before, or a larger one.",
)
@click.option(
    "--max-drop",
    "max_drop_points",
    type=Number(min=0, max=100),
    metavar="POINTS",
    help="Exit with 1 unless MODEL is shown to be at most so many points below OTHER.",
)
@session_options()
@json_option
def evaluate(
    model: Path,
    data: str,
    against: Path | None,
    max_drop_points: float | None,
    session: SessionSpec,
    as_json: bool,
) -> None:
    """Say how often MODEL is right on held-out samples, and how sure that is. Needs no torch.

    MODEL and OTHER are ONNX files of resdeploy or bundles. The interval of an accuracy is exact
    (Clopper and Pearson). Two models are compared sample by sample: McNemar's exact test, Tango's
    score interval of the difference, and every sample whose class changed, with the margins by
    which either model decided. All at 95 % confidence.

    --max-drop asks for proof: the whole interval of the drop must be within POINTS, so that too few
    samples fail like too large a drop.

    \b
    Example:
        resdeploy evaluate digits-bundle --data digits
        resdeploy evaluate int8.onnx --data cifar10:data --against resnet20.onnx --max-drop 0.5
    """
    if max_drop_points is not None and against is None:
        raise click.UsageError("--max-drop needs the model that it is a drop from: --against OTHER")
    from resdeploy.api.evaluate import evaluate as evaluate_models
    from resdeploy.cli.progress import show_steps
    from resdeploy.cli.render import emit

    with show_steps("evaluate") as on_progress:
        report = evaluate_models(
            model,
            data,
            against=against,
            max_drop=None if max_drop_points is None else max_drop_points / 100,
            provider=session,
            on_progress=on_progress,
        )
    emit(report, as_json=as_json)
    if not report.passed:
        raise SystemExit(EXIT_CHECK_FAILED)
