"""Make golden references: a torch module in float64, and how far float32 strays from it.

With them go the yardsticks of the verdict: the propagated deviation of every output, the noise of
lower precisions, and what rounded weights do to the mean.
"""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from resdeploy.data.datasets import load_labelled
from resdeploy.data.preprocess import kind_for, preprocess_batch
from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export.embedded import input_roundings, split_preprocess
from resdeploy.export.near_ties import find_near_ties
from resdeploy.export.precision_noise import drift_noise, simulated_noise, weight_noise
from resdeploy.export.run_module import module_outputs, run_module
from resdeploy.export.source import SourceModel
from resdeploy.export.variance import draw_outputs, propagated_sigma, trace_any_batch
from resdeploy.schema.recipes import DataSpec
from resdeploy.schema.verdicts import GoldenInfo
from resdeploy.verify.compare import level_infinities
from resdeploy.verify.end_to_end import FEWEST_FOR_SYSTEMATIC, chi_square_quantile
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.named_outputs import float_columns, golden_from_outputs

__all__ = ["golden_for", "make_golden", "run_module"]

_NUM_SYNTHETIC = 32

# Sigma is found for as many inputs as four images of ImageNet's size have values: for all of them
# where they are small. It costs two passes or more, and R and T judge every input.
_SPREAD_ELEMENTS = 4 * 3 * 224 * 224
_FEWEST_SPREAD = 4

# Errors are drawn for two such images, or up to eight times for small inputs: for their root mean
# square alone.
_DRAWN_ELEMENTS = 2 * 3 * 224 * 224
_MOST_DRAWS = 8


def make_golden(
    module: nn.Module,
    inputs: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    source: str,
    inputs_description: str,
    in_detail: bool = True,
) -> Golden:
    """Return `module`'s outputs for `inputs` in float64, and the error of its own float32.

    Args:
        module: in eval mode, float32; it is copied, not changed.
        inputs: (N, ...) float32, preprocessed; or pixels for an `EmbeddedNetwork`.
        labels: (N,) int64, or None.
        source: what the module is, for the record.
        inputs_description: what the inputs are, for the record.
        in_detail: also find out how far rounding carries each output, and what lower precisions
            would do; it takes as long again.

    Raises:
        ResdeployError: the module's outputs are NaN, or infinite not by design, in float32 or even
            in float64; or no tensors with one row for each sample (`module_outputs`).
    """
    # Before the copy: a pruned module can be copied only once it was run without gradients.
    own = module_outputs(module, inputs, dtype=torch.float32)
    exact = module_outputs(copy.deepcopy(module).double(), inputs, dtype=torch.float64)
    golden = golden_from_outputs(
        inputs,
        exact,
        own,
        labels=labels,
        info=GoldenInfo(
            source=source,
            inputs=inputs_description,
            num_inputs=len(inputs),
            sigma_missing="left to the full verification",
        ),
    )
    if golden.exact is not None and golden.near_ties is not None:
        ties = find_near_ties(module, inputs, golden.exact, golden.info.outputs)
        ties = np.unique(np.concatenate([golden.near_ties, ties]), axis=0)
        golden = dataclasses.replace(golden, near_ties=ties)
    if not in_detail:
        return golden
    own_NK = float_columns([*own.values()], golden.info.outputs)
    return _with_detail(golden, module, own_NK.astype(np.float64))


def _with_detail(golden: Golden, module: nn.Module, own: np.ndarray) -> Golden:
    """Return `golden` with sigma and the noise of other precisions, as far as they can be had."""
    inputs, reference = golden.inputs, golden.reference
    if not reference.shape[1]:
        info = dataclasses.replace(golden.info, sigma_missing="there are no floating-point outputs")
        return dataclasses.replace(golden, info=info)
    variance, sigma, drawn_noise, precision_noise, missing = None, None, None, None, None
    module, preprocess = split_preprocess(module)
    if preprocess is not None:
        # Beside what rounding its pixels' normalisation adds, it is the network inside.
        inputs, variance = input_roundings(inputs, preprocess)
    has_enough = len(inputs) >= FEWEST_FOR_SYSTEMATIC
    constant_noise = weight_noise(module, inputs) if has_enough else None
    try:
        program = trace_any_batch(module, inputs)
        precision_noise = simulated_noise(program, inputs, reference, own)
        num_spread = max(_FEWEST_SPREAD, _SPREAD_ELEMENTS // math.prod(inputs.shape[1:]))
        sigma = propagated_sigma(
            program,
            inputs[:num_spread],
            variance=None if variance is None else variance[:num_spread],
        )
        sigma = np.where(np.isinf(reference[:num_spread]), 0.0, sigma)
        if sigma.shape != reference[:num_spread].shape or not np.isfinite(sigma).all():
            sigma, missing = None, "the propagated variance overflows"
        else:
            sigma, drawn_noise = _checked_by_draws(program, inputs, variance, reference, sigma)
            if constant_noise is not None:
                constant_noise = math.hypot(constant_noise, drift_noise(program, inputs, reference))
    except UnsupportedModelError as error:
        missing = " ".join(filter(None, (error.what, error.where and f"({error.where})")))
    info = dataclasses.replace(
        golden.info,
        precision_noise=precision_noise,
        weight_noise_l2=constant_noise,
        sigma_missing=missing,
        drawn_noise=drawn_noise,
    )
    return dataclasses.replace(golden, sigma=sigma, info=info)


def _checked_by_draws(
    program: torch.export.ExportedProgram,
    inputs: np.ndarray,
    variance: np.ndarray | None,
    reference_NK: np.ndarray,
    sigma_MK: np.ndarray,
) -> tuple[np.ndarray, float | None]:
    """Return sigma, larger if drawn errors are; and their norm over that of the reference.

    Sigma takes errors that meet again for independent: too small where they add. An output whose
    draws are beyond chance (once in a million) has their deviation instead; and all are multiplied
    by the root mean square of what was drawn for the others.
    """
    num_values = math.prod(inputs.shape[1:])
    affordable = _DRAWN_ELEMENTS // num_values
    count = min(len(sigma_MK), max(1, affordable))
    num_draws = max(1, min(_MOST_DRAWS, affordable // count))
    drawn_DMK = np.stack(
        [
            draw_outputs(
                program,
                inputs[:count],
                seed=seed,
                variance=None if variance is None else variance[:count],
            )
            for seed in range(num_draws)
        ]
    )
    drawn_DMK, reference_MK = level_infinities(drawn_DMK, reference_NK[:count])
    errors_DMK = drawn_DMK - reference_MK
    if not np.isfinite(errors_DMK).all():
        return sigma_MK, None
    drawn_MK, expected_MK = np.mean(errors_DMK**2, axis=0), sigma_MK[:count] ** 2
    is_chance = drawn_MK <= chi_square_quantile(num_draws) * expected_MK
    ratios = drawn_MK[is_chance & (expected_MK > 0)] / expected_MK[is_chance & (expected_MK > 0)]
    sigma_MK = sigma_MK * math.sqrt(max(1.0, float(np.mean(ratios)) if len(ratios) else 1.0))
    sigma_MK[:count] = np.where(is_chance, sigma_MK[:count], np.sqrt(drawn_MK))
    norm = float(np.linalg.norm(reference_MK))
    return sigma_MK, math.sqrt(float(drawn_MK.sum())) / norm if norm else None


def golden_for(
    source: SourceModel,
    *,
    data: DataSpec | None = None,
    given: tuple[np.ndarray, str] | None = None,
    num_inputs: int | None = None,
    in_detail: bool = True,
) -> Golden:
    """Return the golden reference of a trained model on real data, or on given or seeded inputs.

    Args:
        source: the model.
        data: where to take held-out samples from, the first `num_inputs` of them (all by default);
            None for other inputs.
        given: inputs (N, ...) float32 as the model takes them, and what they are, for the record;
            None for synthetic ones.
        num_inputs: how many; by default 32 synthetic ones.
        in_detail: see `make_golden`.

    Raises:
        ResdeployError: the data cannot be read or does not fit the model.
    """
    labels, preprocess = None, source.preprocess
    if data is None:
        shape = (num_inputs or _NUM_SYNTHETIC, *source.input_shape)
        inputs, description = given or kind_for(preprocess).seeded(shape)
    elif preprocess is None:
        raise ResdeployError(
            "How samples become inputs of this model is not known.",
            where=source.description,
            fix="say it, with --preprocess-as, with --mean and --std, or with --recipe",
        )
    else:
        samples = load_labelled(data, preprocess)
        which = "all" if num_inputs is None or num_inputs >= len(samples.x) else "the first"
        title = data.name if data.path is None else f"{data.name} ({Path(data.path).name})"
        inputs = preprocess_batch(samples.x[:num_inputs], preprocess)
        labels = None if samples.y is None else samples.y[:num_inputs]
        description = f"{which} {len(inputs)} held-out samples of {title}"
    if inputs.shape[1:] != source.input_shape:
        raise ResdeployError(
            f"The data has samples of shape {inputs.shape[1:]}; the model takes "
            f"{source.input_shape}.",
            where=description if data is None else data.name,
        )
    return make_golden(
        source.module,
        inputs,
        labels=labels,
        source=source.description,
        inputs_description=description,
        in_detail=in_detail,
    )
