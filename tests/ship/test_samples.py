"""Samples split by content: no copy on both sides, the same split everywhere, and refusals."""

import shutil

import numpy as np
import pytest
from PIL import Image

from resdeploy.data.datasets import load_labelled, training_labels
from resdeploy.errors import ResdeployError
from resdeploy.quant.calibration_data import load_calibration
from resdeploy.schema.recipes import DataSpec, Preprocess
from resdeploy.ship.samples import read_samples_of, split_by_content, split_data, write_split

PIXELS = Preprocess(input_shape=(3, 8, 8), divisor=255.0)


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    for number in range(24):
        picture(tmp_path / "photos" / f"kind{number % 3}" / f"{number}.png", number)
    return tmp_path / "photos"


def split_of(folder):
    return split_by_content(
        read_samples_of(DataSpec(name="image-folder", path=str(folder))), where="photos"
    )


def digests(side):
    return {one.digest for one in side}


def test_a_quarter_of_each_class_calibrates_and_the_rest_judges(photos):
    split = split_of(photos)
    for side, num in ((split.calibration, 2), (split.held_out, 6)):
        for label in ("kind0", "kind1", "kind2"):
            assert sum(one.label == label for one in side) == num
    assert not digests(split.calibration) & digests(split.held_out)
    assert split.labels == ("kind0", "kind1", "kind2")


def test_the_split_is_that_of_the_contents_whatever_the_names_are(photos, tmp_path):
    for path in sorted(photos.rglob("*.png")):
        new = tmp_path / "renamed" / path.parent.name / f"z{100 - int(path.stem)}.PNG"
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, new)
    first, second = split_of(photos), split_of(tmp_path / "renamed")
    assert digests(first.calibration) == digests(second.calibration)
    assert first.digest == second.digest


def test_another_photo_is_another_split(photos):
    before = split_of(photos).digest
    picture(photos / "kind1" / "new.png", 99)
    assert split_of(photos).digest != before


def test_a_copy_is_left_out_also_where_it_lies_in_another_class(photos):
    before = split_of(photos)
    for path in sorted((photos / "kind0").iterdir()):
        shutil.copy(path, photos / "kind0" / f"copy-of-{path.name}")
        shutil.copy(path, photos / "kind1" / f"copy-of-{path.name}")
    split = split_of(photos)
    assert split.num_copies == 16
    assert len(split.calibration) + len(split.held_out) == 24
    assert not digests(split.calibration) & digests(split.held_out)
    assert digests(split.held_out) | digests(split.calibration) == digests(
        before.held_out
    ) | digests(before.calibration)


def test_parts_stay_but_a_training_photo_that_is_also_held_out_goes(tmp_path):
    for number in range(12):
        part = "train" if number < 6 else "val"
        picture(tmp_path / "data" / part / f"kind{number % 2}" / f"{number}.png", number)
    shutil.copy(tmp_path / "data/val/kind0/6.png", tmp_path / "data/train/kind0/leaked.png")
    split = split_of(tmp_path / "data")
    assert {one.place.parts[-3] for one in split.calibration} == {"train"}
    assert {one.place.parts[-3] for one in split.held_out} == {"val"}
    assert (len(split.calibration), len(split.held_out), split.num_copies) == (6, 6, 1)


def test_a_class_of_one_photo_is_refused_by_name(photos):
    picture(photos / "lonely" / "one.png", 50)
    picture(photos / "lonely" / "two.png", 51)
    assert split_of(photos).labels[-1] == "lonely"
    shutil.copy(photos / "lonely" / "one.png", photos / "lonely" / "two.png")
    with pytest.raises(ResdeployError, match="too few samples of lonely"):
        split_of(photos)


def test_both_sides_are_read_by_the_other_verbs(photos, tmp_path):
    data = DataSpec(name="image-folder", path=str(photos))
    split = split_by_content(read_samples_of(data), where="photos")
    write_split(data, split, tmp_path / "split")
    calibration, held_out = split_data(tmp_path / "split", is_labelled=True)
    assert len(training_labels(calibration)[0]) == 6
    labelled = load_labelled(held_out, PIXELS)
    assert labelled.labels == ("kind0", "kind1", "kind2")
    assert sorted(labelled.y.tolist()) == [0] * 6 + [1] * 6 + [2] * 6


def test_photos_without_classes_are_split_too(tmp_path):
    for number in range(12):
        picture(tmp_path / "loose" / f"{number}.png", number)
    data = DataSpec(name="image-folder", path=str(tmp_path / "loose"))
    split = split_by_content(read_samples_of(data), where="loose")
    write_split(data, split, tmp_path / "split")
    calibration, held_out = split_data(tmp_path / "split", is_labelled=False)
    assert split.labels == ()
    assert len(training_labels(calibration)[0]) == 3
    assert len(load_labelled(held_out, PIXELS).x) == 9


@pytest.mark.parametrize("has_parts", [True, False])
def test_arrays_are_split_by_row_and_keep_their_classes(tmp_path, has_parts):
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
    y = np.arange(20) % 2
    arrays = {"x": x, "y": y}
    if has_parts:
        arrays = {"train_x": x[:8], "train_y": y[:8], "test_x": x[8:], "test_y": y[8:]}
    np.savez(tmp_path / "all.npz", **arrays)
    data = DataSpec(name="npz", path=str(tmp_path / "all.npz"))
    split = split_by_content(read_samples_of(data), where="all.npz")
    (tmp_path / "split").mkdir()
    write_split(data, split, tmp_path / "split")
    calibration, held_out = split_data(tmp_path / "split", is_labelled=True)
    num = 8 if has_parts else 4
    assert load_calibration(calibration, PIXELS).num == num
    judged = load_labelled(held_out, PIXELS)
    assert len(judged.x) == 20 - num
    class_of = {row.tobytes(): label for row, label in zip(x, y, strict=True)}
    assert [class_of[row.tobytes()] for row in judged.x] == judged.y.tolist()


def test_an_npz_without_samples_is_refused(tmp_path):
    np.savez(tmp_path / "odd.npz", images=np.zeros((3, 2)))
    with pytest.raises(ResdeployError, match="neither 'x' nor"):
        read_samples_of(DataSpec(name="npz", path=str(tmp_path / "odd.npz")))
