"""Roundings of sums, by their model and by float32 itself, added one by one."""

import numpy as np
import pytest
import torch

from resdeploy.export.rounding import rounding, share_of_repeats, sum_roundings

ROUNDOFF = 2.0**-24
NUM_SUMS, NUM_TERMS = 400, 4800


def one_by_one_in_sigmas(terms, *, parts=1):
    """Errors of float32 sums, added in turn by so many accumulators, in modelled deviations."""
    terms = terms.astype(np.float32)
    sums = np.zeros((len(terms), parts), np.float32)
    for start in range(0, terms.shape[1], parts):
        sums += terms[:, start : start + parts]
    total = sums[:, 0]
    for part in range(1, parts):
        total = total + sums[:, part]
    exact = terms.astype(np.float64)
    sigma = ROUNDOFF * np.sqrt(sum_roundings(torch.from_numpy(exact)).numpy())
    return (total - exact.sum(1)) / sigma


def drawn_terms(kind):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(NUM_SUMS, NUM_TERMS))
    return {
        "of either sign": noise,
        "positive": np.abs(noise),
        "rectified": np.maximum(noise, 0),
        "along a slope": noise * 0.1 + np.linspace(-3, 3, NUM_TERMS),
        "equal": np.repeat(rng.uniform(0.5, 2, size=(NUM_SUMS, 1)), NUM_TERMS, axis=1),
        "equal by half": np.where(noise > 0, rng.uniform(0.5, 2, size=(NUM_SUMS, 1)), noise),
        "nearly equal": rng.uniform(0.5, 2, size=(NUM_SUMS, 1)) * (1 + 1e-5 * noise),
    }[kind]


@pytest.mark.parametrize("parts", [1, 8])
@pytest.mark.parametrize(
    "kind",
    [
        *("of either sign", "positive", "rectified", "along a slope"),
        *("equal", "equal by half", "nearly equal"),
    ],
)
def test_sums_in_this_order_stay_within_the_model(kind, parts):
    z = one_by_one_in_sigmas(drawn_terms(kind), parts=parts)
    assert np.sqrt(np.mean(z**2)) < 1
    assert np.abs(z).max() < 4


def test_the_model_is_not_far_above_a_sum_one_by_one():
    """The bound of each rounding is sqrt(3) deviations; other orders are worse than this one."""
    assert np.sqrt(np.mean(one_by_one_in_sigmas(drawn_terms("positive")) ** 2)) > 0.3
    assert np.sqrt(np.mean(one_by_one_in_sigmas(drawn_terms("along a slope")) ** 2)) > 0.3
    assert np.sqrt(np.mean(one_by_one_in_sigmas(drawn_terms("equal")) ** 2)) > 0.2


def test_zeros_are_added_exactly():
    terms = torch.zeros(1, 1000, dtype=torch.float64)
    terms[0, 3] = 1.0
    padded = torch.nn.functional.pad(terms, (0, 100_000))
    # At random they would be added before it, too: n/3 y^2 and n/6 S are on average over orders.
    assert sum_roundings(terms).item() == pytest.approx(500)
    assert sum_roundings(0 * padded).item() == 0


def test_a_rounding_below_the_normal_numbers_is_absolute():
    tiny = torch.tensor([1e-43, 0.0, 1.0], dtype=torch.float64)
    deviation = ROUNDOFF * rounding(tiny).sqrt().numpy()
    np.testing.assert_allclose(deviation, [2.0**-150, 2.0**-150, ROUNDOFF])


@pytest.mark.parametrize(
    ("image", "share"),
    [
        (torch.arange(1.0, 145.0), 1 / 144),
        (torch.ones(144), 1.0),
        (torch.cat([torch.ones(72), torch.arange(2.0, 74.0)]), None),
        (torch.zeros(144), 1 / 144),
    ],
)
def test_positions_of_one_value_share_their_roundings(image, share):
    found = share_of_repeats(image.double().reshape(1, 1, 12, 12)).item()
    if share is None:
        assert 0 < found < 1
    else:
        assert found == pytest.approx(share)
