"""Maps and the changes they go through, each held against what it does to real numbers."""

import numpy as np
import pytest

from resdeploy.fold.affine_map import (
    AffineMap,
    add_constant,
    along_axis,
    compose,
    flatten_axes,
    multiply_by_constant,
    part,
    per_channel,
    permute,
    reshape,
    unshuffle_pixels,
    whole,
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def random_map(*shape: int) -> AffineMap:
    scale, shift = normal(*shape, seed=1), normal(*shape, seed=2)
    return AffineMap(scale.astype(np.longdouble), shift.astype(np.longdouble))


def apply(affine: AffineMap | None, value: np.ndarray) -> np.ndarray:
    assert affine is not None
    assert affine.scale.ndim == affine.shift.ndim == affine.rank == value.ndim
    result = affine.scale * value + affine.shift
    assert result.shape == value.shape, "a map has the shape of its value"
    return result


def assert_crosses(after, before, operation, value):
    """The map `after` the operation does what the map `before` it does."""
    np.testing.assert_allclose(
        apply(after, operation(value)).astype(float),
        operation(apply(before, value)).astype(float),
        rtol=1e-12,
        atol=1e-12,
    )


# --- the map itself ---


def test_along_an_axis():
    assert along_axis(np.arange(3.0).astype(np.longdouble), 1, 4).shape == (1, 3, 1, 1)


def test_two_maps_in_one():
    first, then = random_map(1, 4, 1), random_map(1, 4, 5)
    x = normal(2, 4, 5)
    np.testing.assert_allclose(
        apply(compose(first, then), x).astype(float),
        apply(then, apply(first, x)).astype(float),
        rtol=1e-14,
    )


def test_what_varies_is_seen_in_either_array():
    scale = np.ones((1, 4, 5), np.longdouble)
    uneven = scale.copy()
    uneven[0, 0, 4] = 2
    assert flatten_axes(AffineMap(scale, scale), [1, 2]) is not None
    assert flatten_axes(AffineMap(uneven, scale), [2]) is None
    assert flatten_axes(AffineMap(scale, uneven), [2]) is None
    assert flatten_axes(AffineMap(scale, uneven), [1]) is None


def test_a_flat_axis_has_length_1():
    affine = random_map(1, 4, 1).each(lambda array: np.broadcast_to(array, (1, 4, 7)))
    flat = flatten_axes(affine, [2])
    assert flat.scale.shape == flat.shift.shape == (1, 4, 1)
    assert flatten_axes(random_map(1, 4, 7), [2]) is None


def test_a_vector_per_channel():
    affine = random_map(1, 4, 1)
    scale, shift = per_channel(affine, 1, 4)
    np.testing.assert_array_equal(scale, affine.scale.ravel())
    np.testing.assert_array_equal(shift, affine.shift.ravel())
    one = AffineMap(affine.scale, np.ones((1, 1, 1), np.longdouble))
    assert per_channel(one, 1, 4)[1].shape == (4,)


@pytest.mark.parametrize("axis", [0, 2])
def test_no_vector_where_another_axis_varies(axis):
    assert per_channel(random_map(1, 4, 1), axis, 4) is None


def test_no_vector_of_another_length():
    assert per_channel(random_map(1, 4, 1), 1, 8) is None


def test_without_shift():
    affine = random_map(1, 4)
    assert not affine.without_shift().shift.any()
    assert affine.without_shift().scale is affine.scale


# --- moving elements about ---


@pytest.mark.parametrize(
    ("affine", "shape", "wanted"),
    [
        ((1, 4, 1, 1), (2, 4, 3, 5), (2, 60)),
        ((1, 60), (2, 60), (2, 4, 3, 5)),
        ((1, 4, 3, 1), (2, 4, 3, 5), (2, 12, 5)),
        ((1, 1, 5), (2, 3, 5), (6, 5)),  # the batch takes in an axis that does not vary
        ((1, 5), (6, 5), (2, 3, 5)),
        ((1, 4, 1, 1), (2, 4, 3, 5), (2, 4, 15)),
        ((1, 5), (2, 5), (2, 1, 5, 1)),
    ],
)
def test_reshape(affine, shape, wanted):
    before = random_map(*affine)
    assert_crosses(
        reshape(before, shape, wanted), before, lambda x: x.reshape(wanted), normal(*shape)
    )


@pytest.mark.parametrize(
    ("affine", "shape", "wanted", "expected"),
    [
        ((1, 4, 1, 1), ("n", 4, "h", "w"), ("n", 4, "hw"), (1, 4, 1)),
        ((1, 4, 1, 1), ("n", 4, 3, 5), ("m", 60), (1, 60)),  # equal counts: the same batch
        ((1, 1, 4), ("n", "l", 4), ("nl", 4), (1, 4)),
        ((1, 4), ("nl", 4), ("n", "l", 4), (1, 1, 4)),
    ],
)
def test_reshape_of_lengths_that_are_not_known(affine, shape, wanted, expected):
    changed = reshape(random_map(*affine), shape, wanted)
    assert changed.scale.shape == changed.shift.shape == expected


@pytest.mark.parametrize(
    ("affine", "shape", "wanted"),
    [
        ((1, 4, 1, 1), ("n", 4, "h", "w"), ("n", "c", "hw")),  # what varies is split up
        ((1, 4), (3, 4), (1, 4, 3)),
        ((1, 4, 1), ("n", 4, "l"), ("n", "l", 4)),
        ((1, 3, 1), (2, 3, 5), (6, 5)),  # what varies goes into the batch
        ((4, 1), (4, 1), (4, 1, 1)),  # the batch itself varies
        ((1, 4), (1, 4), ()),
    ],
)
def test_no_reshape_that_loses_what_varies(affine, shape, wanted):
    assert reshape(random_map(*affine), shape, wanted) is None


def test_permute():
    order = [0, 2, 3, 1]
    before = random_map(1, 4, 1, 5)
    assert_crosses(permute(before, order), before, lambda x: x.transpose(order), normal(2, 4, 3, 5))


@pytest.mark.parametrize("shape", [(1, 6, 1), (1, 6, 5), (1, 1, 5)])
def test_a_part_of_what_was_joined(shape):
    affine, chosen, x = random_map(*shape), range(2, 5), normal(2, 6, 5)
    np.testing.assert_allclose(apply(part(affine, 1, chosen), x[:, 2:5]), apply(affine, x)[:, 2:5])


def test_no_part_where_places_are_not_known_and_the_map_varies():
    assert part(random_map(1, 6, 1), 1, None) is None
    assert part(random_map(1, 6, 1), 2, None) is not None


@pytest.mark.parametrize("shape", [(1, 3, 1), (1, 1, 5)])
def test_the_whole_of_a_slice(shape):
    after, chosen = random_map(*shape), np.arange(8)[6:1:-2]
    assert_crosses(after, whole(after, 1, 8, chosen), lambda x: x[:, chosen], normal(2, 8, 5))


def test_the_whole_of_a_slice_leaves_the_rest_alone():
    before = whole(random_map(1, 3), 1, 5, np.array([0, 1, 2]))
    assert list(before.scale[0, 3:]) == [1, 1]
    assert list(before.shift[0, 3:]) == [0, 0]


def test_no_whole_of_a_slice_of_another_length():
    assert whole(random_map(1, 3), 1, 5, np.arange(2)) is None


def blocks_to_pixels(x, r, *, depth_first):
    n, c, h, w = x.shape
    if depth_first:
        y = x.reshape(n, r, r, c // r**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // r**2, r, r, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // r**2, h * r, w * r)


@pytest.mark.parametrize("depth_first", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_unshuffle_pixels(channels, depth_first):
    after = random_map(1, channels, 1, 1)
    assert_crosses(
        after,
        unshuffle_pixels(after, 2, depth_first=depth_first),
        lambda x: blocks_to_pixels(x, 2, depth_first=depth_first),
        normal(2, 12, 2, 2),
    )


@pytest.mark.parametrize("shape", [(1, 3, 4, 1), (1, 3, 1)])
def test_no_unshuffling_of_pixels_that_differ_or_of_no_image(shape):
    assert unshuffle_pixels(random_map(*shape), 2) is None


# --- constants ---


@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 1), (1, 4, 5)])
def test_sums_and_products_with_constants(shape):
    affine, constant, x = random_map(1, 4, 1), normal(*shape), normal(2, 4, 5)
    for taken_in, inside in (
        (add_constant(affine, constant, x.shape), x + constant),
        (add_constant(affine, constant, x.shape, sign=-1), x - constant),
        (multiply_by_constant(affine, constant, x.shape), x * constant),
        (multiply_by_constant(affine, constant, x.shape, divide=True), x / constant),
    ):
        np.testing.assert_allclose(
            apply(taken_in, x).astype(float), apply(affine, inside).astype(float), atol=1e-12
        )


@pytest.mark.parametrize(
    ("constant", "shape"),
    [
        (np.ones((2, 1, 1)), (2, 4, 5)),  # one for each sample
        (np.ones((1, 2, 4, 5)), (2, 4, 5)),  # adds an axis
        (np.ones((1, 1, 1, 1)), (2, 4, 5)),  # and nothing else
        (np.ones((4, 1)), (2, 1, 5)),  # makes the value larger
        (np.ones(5), (2, 4, "w")),  # may make it larger
        (np.full((4, 1), np.inf), (2, 4, 5)),
        (np.ones(5), (2, 4)),
    ],
)
def test_no_constant_that_does_more_than_a_map(constant, shape):
    assert add_constant(random_map(1, 4, 1), constant, shape) is None
    assert multiply_by_constant(random_map(1, 4, 1), constant, shape) is None


def test_no_division_by_zero():
    constant = np.array([1.0, 0.0, 1.0, 1.0]).reshape(4, 1)
    assert multiply_by_constant(random_map(1, 4, 1), constant, (2, 4, 5), divide=True) is None
    assert multiply_by_constant(random_map(1, 4, 1), constant, (2, 4, 5)) is not None
