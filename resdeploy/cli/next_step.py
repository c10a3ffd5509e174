"""The next sensible command after each one, in the words of the one that ran."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from resdeploy.cli.command import as_written

__all__ = ["next_step"]

# Options about what a trained model is, and about where to run.
_OF_A_MODEL = (
    *("arch", "options", "weights", "factory", "input_shapes", "recipe"),
    *("preprocess_as", "mean", "std", "resize", "crop", "labels"),
)
_OF_DEVICES = ("addresses", "fleet")


def next_step(context: click.Context, *, passed: bool) -> str | None:
    """Return the command line to go on with, or None where that is for the user to say."""
    options = context.params
    devices = _words(context, _OF_DEVICES)
    source = [options["source"]] if options.get("source") else []
    source += _words(context, _OF_A_MODEL)
    words: list[Any] | None = None
    match context.command.name:
        case "train":
            recipe = Path(options["recipe"])
            name = recipe.parent.name if recipe.suffix == ".toml" else recipe.name
            run = options["out"] or Path("runs") / name
            words = ["export", run, "-o", f"{run.name}.onnx"]
        case "export" if passed:
            trained = ["--reference", *source] if options["source"] else source
            words = ["verify", options["out"], *trained]
        case "fold-bn" if options["out"] is None:
            words = ["fold-bn", *source, "-o", "OUTPUT"]
        case "fold-bn" if options["out"].suffix == ".onnx":
            words = ["verify", options["out"], "--reference", *source]
        case "fold-bn":
            words = ["export", options["out"], "-o", options["out"].with_suffix(".onnx")]
        case "verify" if passed:
            words = ["bench", options["model"]]
        case "verify" if options["reference"] and options["artifacts"] is None:
            words = ["verify", options["model"], "--reference", options["reference"], *source]
            words += ["--artifacts", "faults"]
        case "quantize" if passed:
            words = ["evaluate", options["out"], "--against", options["model"]]
            words += ["--data", options["calibration"]]
        case "tune" if options["out"] is None:
            words = ["tune", options["bundle"], "-o", "tuned", *devices]
        case "tune" | "bundle":
            words = ["check", options["out"], *devices]
        case "bench" if _is_plain(options) and not devices:
            words = ["bench", options["model"], "--profile"]
        case "check" if passed and devices:
            words = ["bench", options["bundle"], *devices]
        case "ship" if passed:
            words = ["check", options["out"]]
        case "check" if passed:
            words = ["predict", options["bundle"], "IMAGE"]
        case "predict" if options["out"] is None:
            words = ["evaluate", options["bundle"], "--data", "FOLDER"]
        case "evaluate" if options["against"] is None:
            words = ["evaluate", options["model"], "--data", options["data"], "--against", "OTHER"]
        case "probe" if options["out"] is None:
            words = ["probe", *devices, "-o", "target.json"]
        case "probe":
            words = ["export", "CHECKPOINT", "-o", "model.onnx", "--for", options["out"]]
        case "doctor" if passed:
            words = ["probe"]
        case "demo" if passed:
            words = ["check", options["out"] / "bundle"]
        case "selftest" if passed and not options["attack"]:
            words = ["selftest", *source, "--attack"]
    return None if words is None else shlex.join(["resdeploy", *map(str, words)])


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Return True for a `bench` that `--profile` can be added to."""
    others = (
        options["against"],
        options["against_options"],
        options["profile"],
        options["loadgen"],
    )
    return options["provider"] == "cpu" and not any(others)


def _words(context: click.Context, names: tuple[str, ...]) -> list[str]:
    return [word for option in as_written(context, names) for word in option]
