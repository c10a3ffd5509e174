"""Error rates of `bench --against`: a model slower than itself, and 3 % unseen.

Each A/A trial is a whole comparison of a small network with itself: every verdict but "cannot tell"
is a false call. Each slow trial compares it with one that has a further 1 x 1 convolution, some 3 %
of the work. The raw latencies also go through two other ways to an interval, to show why they are
not used: resampling blocks and then runs (the percentile bootstrap), and resampling runs as if
they were independent.

    python benchmarks/bench/aa.py --json benchmarks/bench/aa.json
    python benchmarks/bench/aa.py --trials 40 --slow-trials 10    # some 12 minutes on two cores
"""

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import helper, numpy_helper

from resdeploy.bench.in_turn import bench_in_turn
from resdeploy.cli.progress import show_steps
from resdeploy.machine.environment import read_environment
from resdeploy.schema.benchmarks import BenchBlock, BenchComparison, BenchSpec
from resdeploy.schema.codec import to_json
from resdeploy.schema.sessions import SessionSpec
from resdeploy.statistics.paired import block_log_ratios

CHANNELS, SIZE, NUM_LAYERS = 32, 32, 4
NUM_RESAMPLES = 1000


def write_model(path: Path, *, extra: bool) -> Path:
    """Write 3 x 3 convolutions with ReLU, and for the slow one a 1 x 1 convolution after them."""
    rng = np.random.default_rng(0)
    kernels = [3] * NUM_LAYERS + [1] * extra
    nodes, weights, value = [], [], "x"
    for number, kernel in enumerate(kernels):
        shape = (CHANNELS, CHANNELS, kernel, kernel)
        weight = rng.standard_normal(shape, dtype=np.float32) / math.sqrt(CHANNELS * kernel**2 / 2)
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [value, f"w{number}"], [f"c{number}"], pads=pads))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        value = f"r{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"]))
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", float32, ["N", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", float32, ["N", CHANNELS, 1, 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def bootstrap_over_blocks(blocks: Sequence[BenchBlock], seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap's 95 % interval: blocks resampled, then runs in each."""
    rng = np.random.default_rng(seed)
    sides = [
        (np.concatenate(b.candidate_ns).astype(float), np.concatenate(b.baseline_ns).astype(float))
        for b in blocks
    ]
    draws = []
    for _ in range(NUM_RESAMPLES):
        logs = []
        for index in rng.integers(len(sides), size=len(sides)):
            medians = [np.median(rng.choice(side, side.size)) for side in sides[index]]
            logs.append(math.log(medians[0] / medians[1]))
        draws.append(np.mean(logs))
    return tuple(np.exp(np.quantile(draws, (0.025, 0.975))).tolist())


def bootstrap_over_runs(blocks: Sequence[BenchBlock], seed: int) -> tuple[float, float]:
    """Return the interval that takes every run for independent of every other."""
    rng = np.random.default_rng(seed)
    candidate = np.concatenate([x for block in blocks for x in block.candidate_ns]).astype(float)
    baseline = np.concatenate([x for block in blocks for x in block.baseline_ns]).astype(float)
    draws = [
        np.median(rng.choice(candidate, candidate.size))
        / np.median(rng.choice(baseline, baseline.size))
        for _ in range(NUM_RESAMPLES)
    ]
    return tuple(np.quantile(draws, (0.025, 0.975)).tolist())


def trial(comparison: BenchComparison, seed: int) -> dict:
    """Return the result of one comparison; of the raw latencies, the ratio of each block."""
    return {
        "p50": to_json(comparison.p50),
        "p99": to_json(comparison.p99),
        "bootstrap_over_blocks": bootstrap_over_blocks(comparison.blocks, seed),
        "bootstrap_over_runs": bootstrap_over_runs(comparison.blocks, seed),
        "block_log_ratios": block_log_ratios(comparison.blocks, 50),
        "load_average_1min": comparison.after and comparison.after.load_average_1min,
    }


def share_of_calls(trials: Sequence[dict], key: str) -> float:
    """Return the fraction of trials whose interval lies on one side of 1."""
    ends = [
        t[key] if isinstance(t[key], tuple) else (t[key]["low"], t[key]["high"]) for t in trials
    ]
    return sum(low > 1 or high < 1 for low, high in ends) / max(1, len(ends))


@click.command()
@click.option("--trials", default=200, show_default=True, help="Comparisons with itself.")
@click.option("--slow-trials", default=50, show_default=True, help="Comparisons with the slow one.")
@click.option("--blocks", default=8, show_default=True, help="Pairs of processes of each.")
@click.option("--runs", default=100, show_default=True, help="Runs of each process.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(trials: int, slow_trials: int, blocks: int, runs: int, json_path: Path | None) -> None:
    """Compare a network with itself and with a slower one, many times."""
    environment = read_environment()
    spec = BenchSpec(session=SessionSpec(num_threads=1), num_runs=runs)
    done: dict[str, list[dict]] = {"same": [], "slow": []}
    # Spread over the whole time, so that both kinds meet the same machine.
    slow_at = set(np.linspace(0, trials + slow_trials - 1, slow_trials).astype(int).tolist())
    with tempfile.TemporaryDirectory() as folder, show_steps("A/A") as update:
        plain, extra = (
            write_model(Path(folder) / f"{name}.onnx", extra=name == "extra")
            for name in ("plain", "extra")
        )
        for number in range(trials + slow_trials):
            slow = number in slow_at
            comparison = bench_in_turn(
                (extra if slow else plain, spec), (plain, spec), num_blocks=blocks
            )
            done["slow" if slow else "same"].append(trial(comparison, number))
            update(number + 1, trials + slow_trials, comparison.p50.verdict)
            if json_path is not None:
                write(json_path, summary(done), environment, spec, blocks)
    figures = summary(done)
    click.echo(json.dumps({k: v for k, v in figures.items() if k != "trials"}, indent=2))


def summary(done: dict[str, list[dict]]) -> dict:
    """Return the figures, and the trials that they come from."""
    same, slow = done["same"], done["slow"]
    ratios = [t["p50"]["ratio"] for t in slow]
    widths = [(t["p50"]["high"] - t["p50"]["low"]) / 2 for t in same]
    return {
        "num_same": len(same),
        "false_calls_p50": share_of_calls(same, "p50"),
        "false_calls_p99": share_of_calls(same, "p99") if same and same[0]["p99"] else None,
        "false_calls_bootstrap_over_blocks": share_of_calls(same, "bootstrap_over_blocks"),
        "false_calls_bootstrap_over_runs": share_of_calls(same, "bootstrap_over_runs"),
        "median_half_width": float(np.median(widths)) if widths else None,
        "num_slow": len(slow),
        "called_slower": sum(t["p50"]["low"] > 1 for t in slow) / max(1, len(slow)),
        "slow_ratio": float(np.median(ratios)) if ratios else None,
        "trials": done,
    }


def write(path: Path, figures: dict, environment: object, spec: BenchSpec, blocks: int) -> None:
    result = {
        "question": "verdicts of a network against itself, and against one with a further layer",
        **figures,
        "num_blocks": blocks,
        "spec": to_json(spec),
        "environment": to_json(environment),
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
