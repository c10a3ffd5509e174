"""Augmentation: what moves where, exactly, and that only the generator decides."""

import numpy as np
import pytest
import torch

from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import AugmentSpec
from resdeploy.training.augment import augment_batch, check_augment

EVERYTHING = AugmentSpec(
    shift_px=1, horizontal_flip=True, rotate_degrees=10.0, scale=0.1, noise_std=0.1
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def shifted(image, down, right, fill):
    """Move a (C, H, W) numpy image by whole pixels, by the definition of moving."""
    moved = np.empty_like(image)
    for row, column in np.ndindex(image.shape[1:]):
        source = row - down, column - right
        inside = 0 <= source[0] < image.shape[1] and 0 <= source[1] < image.shape[2]
        moved[:, row, column] = image[:, source[0], source[1]] if inside else fill
    return moved


def test_nothing_asked_for_is_nothing_done():
    x = images(2, 3, 4, 5)
    assert augment_batch(x, AugmentSpec(), generator()) is x


@pytest.mark.parametrize("spec", [EVERYTHING, AugmentSpec(shift_px=2), AugmentSpec(noise_std=1.0)])
def test_the_generator_alone_decides(spec):
    x = images(8, 1, 6, 6)
    before = x.clone()
    torch.manual_seed(1)
    first = augment_batch(x, spec, generator())
    torch.manual_seed(2)
    assert torch.equal(first, augment_batch(x, spec, generator()))
    assert not torch.equal(first, augment_batch(x, spec, generator(1)))
    assert torch.equal(x, before)


def test_a_shift_copies_whole_pixels_and_fills_each_channel():
    x = images(64, 2, 4, 5)
    fill = (-1.5, 0.3)
    result = augment_batch(x, AugmentSpec(shift_px=1), generator(), fill=fill).numpy()
    seen = set()
    for image, moved in zip(x.numpy(), result, strict=True):
        matches = [
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if np.array_equal(moved, shifted(image, down, right, np.float32(fill)))
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 9


def test_half_of_the_images_are_mirrored():
    x = images(200, 1, 2, 3)
    result = augment_batch(x, AugmentSpec(horizontal_flip=True), generator())
    mirrored = [torch.equal(after, before.flip(2)) for before, after in zip(x, result, strict=True)]
    same = [torch.equal(after, before) for before, after in zip(x, result, strict=True)]
    assert sum(mirrored) + sum(same) == 200
    assert 70 < sum(mirrored) < 130


def test_noise_has_the_deviation_asked_for():
    noise = augment_batch(torch.zeros(100, 1, 8, 8), AugmentSpec(noise_std=0.3), generator())
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)


def test_a_warp_that_turns_by_almost_nothing_shifts_by_whole_pixels():
    """The two ways to shift agree in size, direction of the axes and fill."""
    x = images(32, 2, 6, 9)
    spec = AugmentSpec(shift_px=2, rotate_degrees=1e-6)
    result = augment_batch(x, spec, generator(), fill=(0.5, -2.0)).numpy()
    moves = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    seen = set()
    for image, moved in zip(x.numpy(), result, strict=True):
        errors = [abs(moved - shifted(image, *m, np.float32([0.5, -2.0]))).max() for m in moves]
        assert min(errors) < 1e-3
        seen.add(moves[int(np.argmin(errors))])
    assert len(seen) > 10


def centroids(batch):
    """Return the centre of mass (row, column) of each (1, H, W), from the centre of the image."""
    height, width = batch.shape[2:]
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    mass = batch.sum((1, 2, 3))
    return torch.stack(
        (
            (batch[:, 0] * rows[:, None]).sum((1, 2)) / mass,
            (batch[:, 0] * columns[None, :]).sum((1, 2)) / mass,
        ),
        dim=1,
    )


def test_a_rotation_keeps_distances_in_an_image_that_is_not_square():
    """With the aspect ratio left out of the matrix, the spot would leave its circle."""
    x = torch.zeros(100, 1, 21, 41)
    x[:, :, 9:12, 29:32] = 1.0  # 10 pixels to the right of the centre
    spots = centroids(augment_batch(x, AugmentSpec(rotate_degrees=40.0), generator()))
    radii, angles = spots.norm(dim=1), torch.atan2(spots[:, 0], spots[:, 1]).rad2deg()
    assert (radii - 10).abs().max() < 0.2
    assert angles.abs().max() <= 40.5
    assert angles.min() < -30
    assert angles.max() > 30


def test_a_zoom_moves_a_spot_by_its_factor():
    x = torch.zeros(100, 1, 21, 41)
    x[:, :, 9:12, 29:32] = 1.0
    spots = centroids(augment_batch(x, AugmentSpec(scale=0.3), generator()))
    assert spots[:, 0].abs().max() < 0.05
    assert 6.8 < spots[:, 1].min() < 8
    assert 12 < spots[:, 1].max() < 13.2


def test_vectors_move_along_the_axis_and_repeat_the_end():
    x = torch.arange(6.0).repeat(50, 1)
    result = augment_batch(x, AugmentSpec(shift_px=1), generator())
    expected = {(0, 0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 5)}
    assert {tuple(row) for row in result.tolist()} == expected


def test_noise_works_on_vectors():
    x = torch.zeros(4, 40)
    assert augment_batch(x, AugmentSpec(noise_std=0.1), generator()).std() > 0.05


@pytest.mark.parametrize(
    "spec",
    [AugmentSpec(horizontal_flip=True), AugmentSpec(rotate_degrees=1.0), AugmentSpec(scale=0.1)],
)
def test_refuses_for_vectors_what_only_images_have(spec):
    with pytest.raises(ResdeployError, match="are for images"):
        augment_batch(torch.zeros(2, 40), spec, generator())


@pytest.mark.parametrize(
    "spec",
    [
        AugmentSpec(shift_px=-1),
        AugmentSpec(noise_std=float("nan")),
        AugmentSpec(rotate_degrees=-5.0),
        AugmentSpec(scale=1.0),
    ],
)
def test_refuses_values_out_of_range(spec):
    with pytest.raises(ResdeployError, match=r"data\.augment"):
        check_augment(spec, sample_ndim=3)
