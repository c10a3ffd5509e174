"""Regret of the race of `tune`, and hold of its accuracy budget on other samples.

Regret: `tune` races, and stops timing whoever is beaten. Here every candidate that it let in is
also timed in full, in many more blocks, all of a block in turn. The fastest of these and the pick
of `tune` are then timed side by side, in fresh processes. Regret is by how much the pick is slower;
it is 0, without a measurement, where both are the same, and below 0 where the exhaustive search was
the one that chance misled.

Budget: each repeat splits the labelled samples into two halves, tunes on one within the budget, and
holds the winner, and every model that was let in, to the other. Beside int8 there are worse ones,
made from weights rounded to fewer bits: as fast, so that nothing but the judge keeps them out. A
violation is a drop on the other half beyond the budget; it is shown where its whole interval is.

The samples are those of an .npz: `x` and `y`, or the train and the test arrays together. The first
of them in a seeded order calibrate, and judge nothing. The file is written after every step, and a
run that finds it goes on from there.

    resdeploy bundle resnet20.th --arch cifar_resnet20 --recipe cifar10-resnet20 -o resnet20
    python benchmarks/tune/regret.py resnet20 cifar10.npz --json benchmarks/tune/regret.json
"""

import dataclasses
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import numpy_helper

from resdeploy.bench.in_turn import bench_in_turn, time_in_turn
from resdeploy.bundle.evaluate import evaluate
from resdeploy.bundle.folder import BundleFolder, read_bundle
from resdeploy.cli.progress import show_steps
from resdeploy.data.samples import LabelledSamples
from resdeploy.files import atomic_write, sha256_file
from resdeploy.machine.environment import read_environment
from resdeploy.quant.quantize import quantize_file, spec_for
from resdeploy.schema.codec import from_json, to_json
from resdeploy.schema.quants import QuantSpec
from resdeploy.schema.recipes import DataSpec
from resdeploy.schema.sessions import SessionSpec
from resdeploy.schema.tunings import TuneReport, TuneSpec
from resdeploy.statistics.paired import pooled_percentile
from resdeploy.statistics.proportions import clopper_pearson
from resdeploy.tune.search import tune
from resdeploy.tune.space import Candidate, Variant

LADDER_BITS = (6, 5, 4, 3)

State = dict[str, Any]
Update = Callable[[int, int | None, str], None]


# --- models and samples --------------------------------------------------------------------------


def read_all(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return every labelled sample of an .npz."""
    with np.load(path) as arrays:
        pairs = [
            (arrays[f"{part}x"], arrays[f"{part}y"])
            for part in ("", "train_", "test_")
            if f"{part}x" in arrays
        ]
    return np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])


def labelled(x: np.ndarray, y: np.ndarray, description: str) -> LabelledSamples:
    names = tuple(map(str, range(len(x))))
    return LabelledSamples(
        x=x, y=y.astype(np.int64), names=names, labels=(), description=description
    )


def round_weights(model: Path, out: Path, bits: int) -> Path:
    """Write a model with its weights rounded to so many bits, one scale a tensor."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim >= 2:
            step = float(np.abs(values).max()) / (2 ** (bits - 1) - 1)
            rounded = np.rint(values / step).astype(np.float32) * np.float32(step)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    onnx.save(proto, out)
    return out


def make_int8(
    model: Path, out: Path, bundle: BundleFolder, calibration: Path, *, plain: bool
) -> Variant:
    """Write what `quantize` makes; plainly, where the weights are worse than int8 anyway."""
    off = dict.fromkeys(
        ("equalize", "pixel_grid", "refine", "rounding", "bias_correction"),
        "off" if plain else "auto",
    )
    spec, warnings = spec_for(
        QuantSpec(method="mse" if plain else "auto", max_flips=1.0, **off),
        types=None,
        reduce_range=None,
        target=None,
    )
    data = DataSpec(name="npz", path=str(calibration))
    report = quantize_file(
        model, out, spec, data, preprocess=bundle.manifest.preprocess, warnings=warnings
    )
    if not report.passed:
        raise click.ClickException(f"{out.name} was not made: {report.reasons[0]}")
    return Variant(path=out, precision="int8")


def make_variants(
    bundle: BundleFolder, folder: Path, calibration: Path, update: Update
) -> list[Variant]:
    """Return int8, and worse ones that are as fast."""
    update(0, None, "make int8")
    found = [make_int8(bundle.model, folder / "int8.onnx", bundle, calibration, plain=False)]
    for bits in LADDER_BITS:
        update(0, None, f"make int8 of {bits}-bit weights")
        rounded = round_weights(bundle.model, folder / f"{bits}-bit-float.onnx", bits)
        out = folder / f"int8-{bits}-bit.onnx"
        found.append(make_int8(rounded, out, bundle, calibration, plain=True))
    return found


# --- regret --------------------------------------------------------------------------------------


def key_of(model: str, session: SessionSpec) -> str:
    return json.dumps({"model": model, "session": to_json(session)}, sort_keys=True)


def candidate_of(key: str, paths: dict[str, Path]) -> Candidate:
    data = json.loads(key)
    session = from_json(SessionSpec, data["session"], where="candidate")
    return Candidate(variant=Variant(path=paths[data["model"]]), session=session, batch_size=1)


def let_in(report: TuneReport) -> list[str]:
    return [key_of(t.model, t.session) for t in report.trials if t.times_ns]


def time_all(
    keys: Sequence[str], paths: dict[str, Path], num_runs: int, number: int, at_once: int
) -> dict[str, float]:
    """Return the median of each candidate in one block, in another order each time."""
    order = [*keys[number % len(keys) :], *keys[: number % len(keys)]]
    found = {}
    for start in range(0, len(order), at_once):
        group = [candidate_of(key, paths) for key in order[start : start + at_once]]
        sides = [(one.variant.path, one.bench_spec(num_runs)) for one in group]
        timed = time_in_turn(sides, prove_placement=False)
        for key, one in zip(order[start : start + at_once], timed, strict=True):
            found[key] = pooled_percentile(one.bursts_ns, 50)
    return found


def fastest(blocks: Sequence[dict[str, float]]) -> str:
    return min(
        blocks[0], key=lambda key: statistics.fmean(math.log(block[key]) for block in blocks)
    )


def regret_of(
    pick: str, best: str, paths: dict[str, Path], num_runs: int, num_blocks: int
) -> dict[str, float]:
    """Return by how much the pick is slower than the best, timed side by side."""
    if pick == best:
        return {"regret": 0.0, "low": 0.0, "high": 0.0}
    sides = [candidate_of(key, paths) for key in (pick, best)]
    first, second = [(one.variant.path, one.bench_spec(num_runs)) for one in sides]
    p50 = bench_in_turn(first, second, num_blocks=num_blocks).p50
    return {"regret": p50.ratio - 1, "low": p50.low - 1, "high": p50.high - 1}


# --- budget --------------------------------------------------------------------------------------


def hold_to_other_half(
    bundle: BundleFolder,
    variants: Sequence[Variant],
    spec: TuneSpec,
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
) -> State:
    """Return the admitted models of one half of the samples, and the drop of each on the other."""
    assert spec.max_drop is not None
    order = np.random.default_rng((1, seed)).permutation(len(x))
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    seen, unseen = (labelled(x[half], y[half], "a half") for half in halves)
    report = tune(bundle, spec, variants, load=lambda _: seen)
    paths = {one.path.name: one.path for one in variants}
    admitted = [trial for trial in report.trials if trial.times_ns]
    held: dict[str, State] = {}
    # The winner first: of its model it is the session that counts.
    for trial in (report.best, *admitted):
        if trial.model not in paths or trial.model in held:
            continue
        found = evaluate(
            paths[trial.model],
            lambda _: unseen,
            trial.session,
            against=bundle.model,
            against_spec=SessionSpec(),
        )
        assert found.paired is not None
        assert found.drop is not None
        held[trial.model] = {
            "model": trial.model,
            "drop_seen": trial.drop,
            "drop_unseen": found.drop,
            "interval_unseen": list(found.paired.drop_interval),
            "violates": found.drop > spec.max_drop,
            "violates_for_sure": found.paired.drop_interval[0] > spec.max_drop,
        }
    # The model that all are measured by loses nothing against itself.
    itself = {"model": report.best.model, "violates": False, "violates_for_sure": False}
    return {
        "seed": seed,
        "let_in": list(held.values()),
        "kept_out": sorted({t.model for t in report.trials} - {t.model for t in admitted}),
        "winner": held.get(report.best.model, itself),
    }


def summary(state: State) -> State:
    regrets = [one["regret"]["regret"] for one in state["searches"] if "regret" in one]
    winners = [one["winner"] for one in state["budget"]]
    admitted = [one for run in state["budget"] for one in run["let_in"]]

    def count(what: str, among: list[State]) -> State:
        num = sum(one[what] for one in among)
        low, high = clopper_pearson(num, len(among), confidence=0.95) if among else (0.0, 1.0)
        return {"num": num, "of": len(among), "low": low, "high": high}

    return {
        "regrets": regrets,
        "median_regret": statistics.median(regrets) if regrets else None,
        "winners_that_violate": count("violates", winners),
        "winners_that_violate_for_sure": count("violates_for_sure", winners),
        "let_in_that_violate": count("violates", admitted),
        "let_in_that_violate_for_sure": count("violates_for_sure", admitted),
    }


# --- the run -------------------------------------------------------------------------------------


@click.command()
@click.argument("bundle_path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("data", metavar="SAMPLES.npz", type=click.Path(path_type=Path))
@click.option("--max-drop", default=1.0, show_default=True, help="The budget, in points.")
@click.option("--searches", default=5, show_default=True, help="Searches whose pick is held up.")
@click.option("--blocks", default=32, show_default=True, help="Of the exhaustive search.")
@click.option("--final-blocks", default=16, show_default=True, help="Of pick against best.")
@click.option("--runs", default=100, show_default=True, help="Of each process.")
@click.option("--at-once", default=32, show_default=True, help="Processes alive at a time.")
@click.option("--repeats", default=20, show_default=True, help="Splits that the budget is held to.")
@click.option("--num-calibration", default=1024, show_default=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    bundle_path: Path,
    data: Path,
    max_drop: float,
    searches: int,
    blocks: int,
    final_blocks: int,
    runs: int,
    at_once: int,
    repeats: int,
    num_calibration: int,
    json_path: Path,
) -> None:
    """Measure the regret of `tune`, and how often its budget is broken."""
    bundle = read_bundle(bundle_path)
    x, y = read_all(data)
    order = np.random.default_rng(0).permutation(len(x))
    calibration, judged = order[:num_calibration], order[num_calibration:]
    environment = read_environment()
    spec = TuneSpec(
        max_drop=max_drop / 100,
        threads=(None, *sorted({1, environment.num_cpus_allowed})),
        num_runs=runs,
    )
    with tempfile.TemporaryDirectory() as temporary, show_steps("regret") as update:
        folder = Path(temporary)
        np.savez(folder / "calibration.npz", x=x[calibration])
        variants = make_variants(bundle, folder, folder / "calibration.npz", update)
        paths = {one.path.name: one.path for one in variants} | {"model.onnx": bundle.model}
        state = read_state(
            json_path,
            {
                "question": "how much slower than the fastest candidate the pick of tune is; how "
                "often a winner within the budget on one half of the samples is not on the other",
                "model": bundle.manifest.name,
                "models": {name: sha256_file(path) for name, path in sorted(paths.items())},
                "num_judged": len(judged),
                "spec": to_json(spec),
                "environment": to_json(environment),
            },
        )

        def save() -> None:
            state["summary"] = summary(state)
            with atomic_write(json_path, force=True) as temporary_file:
                temporary_file.write_text(json.dumps(state, indent=1) + "\n")

        everything = labelled(x[judged], y[judged], "all but those that calibrate")
        while len(state["searches"]) < searches:
            report = tune(bundle, spec, variants[:1], load=lambda _: everything, on_progress=update)
            state["searches"].append(
                {
                    "pick": key_of(report.best.model, report.best.session),
                    "let_in": let_in(report),
                    "num_blocks": report.num_blocks,
                }
            )
            save()
        # What is let in is judged by the same answers each time.
        keys = state["searches"][0]["let_in"] if state["searches"] else []
        while keys and len(state["exhaustive"]) < blocks:
            number = len(state["exhaustive"])
            update(number, blocks, f"time all {len(keys)}")
            state["exhaustive"].append(time_all(keys, paths, runs, number, at_once))
            save()
        for number, search in enumerate(state["searches"]):
            if "regret" not in search:
                update(number, searches, "pick against best")
                best = fastest(state["exhaustive"])
                search["best"] = best
                search["regret"] = regret_of(search["pick"], best, paths, runs, final_blocks)
                save()
        # Threads change no answer, and who of the admitted is fastest is not the question here.
        quick = dataclasses.replace(spec, threads=(1,), num_runs=20, max_blocks=2)
        while len(state["budget"]) < repeats:
            seed = len(state["budget"])
            update(seed, repeats, "budget")
            state["budget"].append(
                hold_to_other_half(bundle, variants, quick, x[judged], y[judged], seed)
            )
            save()
    click.echo(json.dumps(state["summary"], indent=1))


def read_state(path: Path, about: State) -> State:
    """Return the blocks of an earlier run with the same identity."""
    fresh: State = {**about, "searches": [], "exhaustive": [], "budget": []}
    if not path.exists():
        return fresh
    state: State = json.loads(path.read_text())
    for name in ("models", "num_judged", "spec"):
        if state.get(name) != about[name]:
            raise click.ClickException(f"{path} is about another {name}: give another --json")
    return state


if __name__ == "__main__":
    main()
