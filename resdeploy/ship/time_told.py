"""The time that the long stages will take, told from what the first ones took.

Each stage is a number of runs of the network that is known beforehand, at a cost that was just
measured: one run in ONNX Runtime, one process around such runs, the float64 reference. The factors
that are no such counts are from a ResNet-20 and a ResNet-50: their work grows with the network as
its runs do.
"""

from dataclasses import dataclass

__all__ = ["Costs", "check_s", "quantize_s", "tune_s", "verify_s"]

# The reference is made again, and its evaluation takes about half as long once more.
_VERIFY_PER_REFERENCE = 1.5
# For each calibration sample: all its tensors counted into histograms, its share of the judgements.
_RUNS_PER_CALIBRATION = 8.0
# Models built and sessions opened, however small the network is.
_QUANTIZE_BASE_S = 5.0
# Blocks of the race, of at most eight, that a candidate lives through in the mean.
_BLOCKS_PER_CANDIDATE = 2.6
_FINAL_PROCESSES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Costs as measured, in seconds.

    `run_s` is one sample in a session; `process_s` a fresh process with its warm-up and timed runs,
    as those of the search; `reference_s` the float64 reference, with its evaluation.
    """

    run_s: float
    process_s: float
    reference_s: float


def verify_s(costs: Costs) -> float:
    """Return the time of the proof."""
    return _VERIFY_PER_REFERENCE * costs.reference_s


def quantize_s(costs: Costs, *, num_calibration: int) -> float:
    """Return the time of one quantisation with choices of its ranges alone."""
    return _QUANTIZE_BASE_S + _RUNS_PER_CALIBRATION * num_calibration * costs.run_s


def tune_s(costs: Costs, *, num_candidates: int, num_judged: int, num_samples: int) -> float:
    """Return the time of a search: `num_judged` ways to compute, each on all samples."""
    judging = num_judged * num_samples * costs.run_s
    processes = _BLOCKS_PER_CANDIDATE * num_candidates + _FINAL_PROCESSES
    return judging + processes * costs.process_s


def check_s(costs: Costs, *, num_golden: int) -> float:
    """Return the time of the last check, by the defaults and by the settings found."""
    return 1.0 + 3 * num_golden * costs.run_s
