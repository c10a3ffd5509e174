"""Coverage of every interval that the product prints, at its stated 95 %, by simulation.

Times are normal (10 % of spread), skewed (lognormal, sigma 0.5) or heavy-tailed (Pareto of index 2:
no variance); independent, each like the one before (a Gaussian copula, AR(1)), or in bursts (4 % of
the runs are interrupted, three in a row in the mean). The numbers of runs and blocks are those of
the commands. Proportions need no simulation: their outcomes are summed.

    python -m benchmarks.statistics.coverage --json benchmarks/statistics/coverage.json
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import click
import numpy as np

from resdeploy.cli.progress import show_steps
from resdeploy.machine.environment import read_environment
from resdeploy.schema.benchmarks import BenchBlock
from resdeploy.schema.codec import to_json
from resdeploy.statistics.latency import STABLE_SHIFT_LIMIT
from resdeploy.statistics.paired import ratio_of_single_runs, runs_per_process, speed_ratio
from resdeploy.statistics.proportions import clopper_pearson, paired_difference_interval
from resdeploy.statistics.quantiles import percentile_interval
from resdeploy.statistics.racing import race

LEAST = 0.93

# A cell that comes this near is tried again, so many times as often.
NEAR, CLOSER = 0.94, 6

# Every interval that is printed, with the cells here that try it.
PRINTED = {
    "bench: p50, p90, p99 and p99.9 of a run": "run",
    "bench: the reason that the median is known to so many percent only": "run",
    "bench --against MODEL: ratio of p50 and p99": "blocks",
    "tune: the winner against the defaults, the ratio of p50 over 8 blocks": "blocks",
    "benchmarks/: every ratio over blocks": "blocks",
    "bench --against RESULT.json: ratio of p50 and p99": "saved",
    "evaluate: the accuracy": "proportion",
    "evaluate --against, tune --max-drop: the drop in accuracy": "drop",
    "tune: those that are not significantly slower (a verdict of the race, no interval)": "race",
}

# The normal distribution by a table, as numpy has none.
GRID = np.linspace(-8, 8, 16_001)
BELOW = np.array([NormalDist().cdf(z) for z in GRID])

FAMILIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal": lambda z: 1 + 0.1 * z,
    "lognormal": lambda z: np.exp(0.5 * z),
    "pareto": lambda z: np.exp(np.interp(z, GRID, -0.5 * np.log(BELOW[::-1]))),
}
PAIRS = (*((name, name) for name in FAMILIES), ("lognormal", "normal"), ("pareto", "normal"))


def independent(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal numbers, the runs along the last axis."""
    return rng.standard_normal(shape)


def alike(rho: float, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal numbers of which each remembers `rho` of the one before."""
    z = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        z[..., i] = rho * z[..., i - 1] + math.sqrt(1 - rho**2) * z[..., i]
    return z


def drifting(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal numbers, 30 % of their variance a drift that lasts 20 runs."""
    return math.sqrt(0.7) * rng.standard_normal(shape) + math.sqrt(0.3) * alike(0.9, rng, shape)


def in_bursts(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal numbers of which the upper 4 % come three in a row in the mean."""
    share, stay = 0.04, 2 / 3
    on = np.empty(shape, bool)
    on[..., 0] = rng.random(shape[:-1]) < share
    for i in range(1, shape[-1]):
        chance = np.where(on[..., i - 1], stay, (1 - stay) * share / (1 - share))
        on[..., i] = rng.random(shape[:-1]) < chance
    u = rng.random(shape)
    return np.interp(np.where(on, 1 - share * u, (1 - share) * u), BELOW, GRID)


DEPENDENCE: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "independent": independent,
    "AR(0.3)": functools.partial(alike, 0.3),
    "AR(0.5)": functools.partial(alike, 0.5),
    "bursts": in_bursts,
}
# Beyond "mild": shown, not judged.
BEYOND = {"drift": drifting}

# Differences between processes, as logarithms: mean zero.
PROCESSES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "equal": lambda rng, shape: np.zeros(shape),
    "normal": lambda rng, shape: 0.02 * rng.standard_normal(shape),
    "skewed": lambda rng, shape: 0.02 * (rng.exponential(size=shape) - 1),
    "heavy": lambda rng, shape: 0.02 * rng.standard_t(3, shape),
}


def true_quantile(family: str, q: float) -> float:
    """Return the q-th percentile of a family."""
    return float(FAMILIES[family](np.array([NormalDist().inv_cdf(q / 100)]))[0])


def times_of(family: str, z: np.ndarray) -> np.ndarray:
    """Return times in nanoseconds."""
    return np.maximum(1e6 * FAMILIES[family](z), 1.0)


def run_cell(
    rng: np.random.Generator, *, times: str, runs_are: str, num_runs: int, q: float, trials: int
) -> dict[str, Any]:
    """Return the coverage of a percentile of one run."""
    truth = 1e6 * true_quantile(times, q)
    z = (DEPENDENCE | BEYOND)[runs_are](rng, (trials, num_runs))
    ends = np.array([percentile_interval(run, q) for run in times_of(times, z)])
    return {
        "coverage": float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))),
        "with_both_ends": float(np.mean(np.isfinite(ends[:, 1]))),
    }


def blocks_cell(
    rng: np.random.Generator,
    *,
    times: tuple[str, str],
    runs_are: str,
    processes: str,
    num_blocks: int,
    num_runs: int,
    q: float,
    trials: int,
) -> dict[str, Any]:
    """Return the coverage of the ratio of two models timed in turn, where it is given."""
    truth = true_quantile(times[0], q) / true_quantile(times[1], q)
    shape = (trials, num_blocks)
    sides = [
        times_of(family, DEPENDENCE[runs_are](rng, (*shape, num_runs)))
        * np.exp(PROCESSES[processes](rng, (*shape, 1)))
        for family in times
    ]
    given = covered = 0
    for candidate, baseline in zip(*sides, strict=True):
        blocks = [
            BenchBlock(candidate_ns=(new,), baseline_ns=(old,), candidate_first=True)
            for new, old in zip(candidate, baseline, strict=True)
        ]
        if q == 50 or runs_per_process(blocks, q) <= num_runs:
            given += 1
            found = speed_ratio(blocks, q)
            covered += found.low <= truth <= found.high
    return {"coverage": covered / given if given else None, "given": given / trials}


def saved_cell(
    rng: np.random.Generator,
    *,
    times: tuple[str, str],
    runs_are: str,
    processes: str,
    num_runs: int,
    q: float,
    trials: int,
) -> dict[str, Any]:
    """Return the coverage of the ratio of two results that were not measured in turn."""
    truth = true_quantile(times[0], q) / true_quantile(times[1], q)
    new, old = (
        times_of(family, DEPENDENCE[runs_are](rng, (trials, num_runs)))
        * np.exp(PROCESSES[processes](rng, (trials, 1)))
        for family in times
    )
    found = [
        ratio_of_single_runs(a, b, q, unknown=STABLE_SHIFT_LIMIT)
        for a, b in zip(new, old, strict=True)
    ]
    return {
        "coverage": float(np.mean([one.low <= truth <= one.high for one in found])),
        "with_both_ends": float(np.mean([one.low > 0 and one.high < math.inf for one in found])),
    }


def proportion_cell(_: object, *, num_samples: int, accuracy: float) -> dict[str, Any]:
    """Return the coverage of the interval of an accuracy, summed over all counts."""
    total = 0.0
    for k in range(num_samples + 1):
        chance = binomial(num_samples, k, accuracy)
        if chance > 1e-8:
            low, high = accuracy_interval(k, num_samples)
            total += chance * (low <= accuracy <= high)
    return {"coverage": total}


def drop_cell(
    _: object, *, num_samples: int, first_only: float, second_only: float
) -> dict[str, Any]:
    """Return the coverage of the interval of a drop, summed over all pairs of counts.

    `first_only` and `second_only` are the counts to be expected.
    """
    p, other = first_only / num_samples, second_only / num_samples
    total = 0.0
    for b in range(num_samples + 1):
        chance_b = binomial(num_samples, b, p)
        if chance_b < 1e-6:
            continue
        for c in range(num_samples - b + 1):
            chance = chance_b * binomial(num_samples - b, c, other / (1 - p))
            if chance > 1e-7:
                low, high = drop_interval(b, c, num_samples)
                total += chance * (low - 1e-12 <= p - other <= high + 1e-12)
    return {"coverage": total}


def binomial(size: int, count: int, p: float) -> float:
    """Return the probability of a count."""
    if p <= 0:
        return float(count == 0)
    ways = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    return math.exp(ways + count * math.log(p) + (size - count) * math.log1p(-p))


accuracy_interval = functools.cache(clopper_pearson)
drop_interval = functools.cache(paired_difference_interval)


def race_cell(
    rng: np.random.Generator,
    *,
    noise: str,
    num_candidates: int,
    times_as_noisy: float,
    trials: int,
) -> dict[str, Any]:
    """Return how often one of equals is still in the race at its end.

    It varies `times_as_noisy` times as much as each of the others.
    """
    scale = np.ones(num_candidates)
    scale[0] = times_as_noisy

    def measure(alive: Any, number: int) -> list[float]:
        luck = scale[list(alive)] * PROCESSES[noise](rng, (len(alive),))
        return np.exp(0.2 * rng.standard_normal() + luck).tolist()

    stays = sum(0 in race(num_candidates, measure).in_race for _ in range(trials))
    return {"coverage": stays / trials}


# --- all cells -----------------------------------------------------------------------------------


def cells(trials: int) -> Iterator[tuple[str, dict[str, Any], functools.partial[dict[str, Any]]]]:
    """Yield the kind of each cell, its conditions, and a call that returns its coverage."""
    runs = [*itertools.product((20, 100, 200, 400, 1000), (50, 90, 99)), (4000, 99.9)]
    for family, like, (num_runs, q) in itertools.product(FAMILIES, DEPENDENCE | BEYOND, runs):
        about = {"times": family, "runs_are": like, "num_runs": num_runs, "q": q}
        yield "run", about, functools.partial(run_cell, trials=trials, **about)
    # The runs and blocks of `tune`, and of `bench --against`.
    blocks = ((20, 8, 50), (100, 3, 50), (200, 8, 50), (400, 3, 99), (400, 8, 99))
    for pair, like, process, (num_runs, num_blocks, q) in itertools.product(
        PAIRS, ("independent", "AR(0.5)", "bursts"), ("equal", "skewed"), blocks
    ):
        about = {"times": pair, "runs_are": like, "processes": process}
        about |= {"num_runs": num_runs, "num_blocks": num_blocks, "q": q}
        yield "blocks", about, functools.partial(blocks_cell, trials=trials // 2, **about)
    for pair, like, process, num_runs, q in itertools.product(
        PAIRS, ("independent", "AR(0.5)"), ("equal", "normal"), (100, 400), (50, 99)
    ):
        about = {"times": pair, "runs_are": like, "processes": process}
        about |= {"num_runs": num_runs, "q": q}
        yield "saved", about, functools.partial(saved_cell, trials=trials // 2, **about)
    for num_samples, p in itertools.product((50, 359, 2000), (0.5, 0.7, 0.9, 0.95, 0.99)):
        about = {"num_samples": num_samples, "accuracy": p}
        yield "proportion", about, functools.partial(proportion_cell, **about)
    few = (0.0, 0.17, 0.5, 1.0, 2.0, 4.0, 5.56, 8.0, 16.0)
    for num_samples in (25, 100, 359):
        for first, second in itertools.combinations_with_replacement((*few, 0.3 * num_samples), 2):
            if first + second < 0.7 * num_samples:
                about = {"num_samples": num_samples, "first_only": first, "second_only": second}
                yield "drop", about, functools.partial(drop_cell, **about)
    for noise, num_candidates, noisy in itertools.product(
        ("normal", "skewed", "heavy"), (2, 4, 16), (1.0, 3.0)
    ):
        about = {"noise": noise, "num_candidates": num_candidates, "times_as_noisy": noisy}
        yield "race", about, functools.partial(race_cell, trials=trials // 2, **about)


def is_judged(cell: dict[str, Any]) -> bool:
    """Test for a cell that counts: mild dependence, candidates that vary alike, often given."""
    mild = cell.get("runs_are") not in BEYOND and cell.get("times_as_noisy", 1.0) == 1.0
    return mild and cell.get("given", 1.0) >= 0.5


def summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the least coverage of each kind, over the cells that are judged."""
    judged = [one for one in done if is_judged(one)]
    least = {
        kind: min((one for one in judged if one["kind"] == kind), key=lambda one: one["coverage"])
        for kind in dict.fromkeys(one["kind"] for one in judged)
    }
    return {
        "num_judged": len(judged),
        "num_below": sum(one["coverage"] < LEAST for one in judged),
        "least_percent": 100 * min(one["coverage"] for one in judged),
        "least": least,
    }


@click.command()
@click.option("--trials", default=1000, show_default=True, help="Of a run; half for ratios.")
@click.option("--only", help="One kind of cell.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the result here.")
def main(trials: int, only: str | None, json_path: Path | None) -> None:
    """Try every interval; exit with 1 where one covers less than 93 %."""
    todo = [one for one in cells(trials) if only in (None, one[0])]
    done = []
    with show_steps("coverage") as update:
        for number, (kind, about, call) in enumerate(todo):
            found = call(np.random.default_rng(number))
            cell_trials = call.keywords.get("trials")
            if cell_trials is not None and (found["coverage"] or 1.0) < NEAR:
                # From anew, so that a cell is not judged by the luck that made it a close one.
                cell_trials *= CLOSER
                found = call(np.random.default_rng([number, 1]), trials=cell_trials)
            done.append({"kind": kind, **about, "trials": cell_trials, **found})
            update(number + 1, len(todo), kind)
    found = summary(done)
    click.echo(json.dumps(found, indent=2))
    if json_path is not None:
        result = {
            "question": "coverage of every printed interval at its stated 95 %",
            "printed": PRINTED,
            "trials": trials,
            **found,
            "environment": to_json(read_environment()),
            "cells": done,
        }
        json_path.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(1 if found["num_below"] else 0)


if __name__ == "__main__":
    main()
