"""Accuracy of the embedded recipes of the zoo: after the last epoch, seed by seed.

python benchmarks/train/zoo.py --json benchmarks/train/zoo.json    # some five minutes
python benchmarks/train/zoo.py --recipe digits-resnet8 --seeds 1 --json one.json
"""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import click
import torch

from resdeploy.machine.environment import read_environment
from resdeploy.recipe import adjust_recipe, load_recipe
from resdeploy.schema.codec import to_json
from resdeploy.training.loop import train

EMBEDDED = (
    *("digits-resnet8", "mnist1d-postnorm-mlp", "mnist1d-preact-mlp", "mnist1d-layernorm-mlp"),
    "mnist1d-postnorm-mlp without shifts",
)


def accuracy_of(name: str, seed: int) -> tuple[float, float]:
    """Return the test accuracy of a recipe, with or without its shifts, and its CPU seconds."""
    name, _, without = name.partition(" without ")
    recipe = adjust_recipe(load_recipe(name), seed=seed)
    if without:
        augment = dataclasses.replace(recipe.data.augment, shift_px=0)
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, augment=augment))
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        report = train(recipe, Path(folder) / "run")
    return report.last.test_accuracy, time.process_time() - started


@click.command()
@click.option("--recipe", "recipes", multiple=True, default=EMBEDDED)
@click.option("--seeds", default=5, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), required=True)
def main(recipes: tuple[str, ...], seeds: int, json_path: Path) -> None:
    """Train each recipe with each seed, on one thread."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    for name in recipes:
        pairs = [accuracy_of(name, seed) for seed in range(1 if "without" in name else seeds)]
        found[name] = {"test_accuracy": [a for a, _ in pairs], "cpu_s": [s for _, s in pairs]}
        click.echo(f"{name}: {found[name]['test_accuracy']}")
    record = {"recipes": found, "environment": to_json(read_environment())}
    json_path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
