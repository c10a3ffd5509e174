import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resdeploy.data.preprocess import preprocess_batch
from resdeploy.errors import ResdeployError
from resdeploy.quant.calibration_data import check_shapes, load_calibration
from resdeploy.schema.recipes import DataSpec, Preprocess

PREPROCESS = Preprocess(
    input_shape=(3, 8, 8), divisor=255.0, mean=(0.5,), std=(0.25,), color="rgb", resize=None
)


def pixels(num):
    return np.random.default_rng(0).integers(0, 256, size=(num, 3, 8, 8), dtype=np.uint8)


def npz(path):
    return DataSpec(name="npz", path=str(path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_chosen_samples_of_an_npz_are_those_of_the_array(tmp_path, save):
    x = pixels(20)
    save(tmp_path / "x.npz", x=x, y=np.arange(20))
    samples = load_calibration(npz(tmp_path / "x.npz"), PREPROCESS)
    assert samples.num == 20
    chosen = np.stack(list(samples.read([0, 3, 4, 19])))
    assert np.array_equal(chosen, preprocess_batch(x[[0, 3, 4, 19]], PREPROCESS))
    # And again: every pass begins anew.
    assert np.array_equal(next(iter(samples.read([3]))), chosen[1])


def test_training_samples_come_before_held_out_ones(tmp_path):
    np.savez(tmp_path / "d.npz", test_x=pixels(3), train_x=pixels(9), x=pixels(5))
    samples = load_calibration(npz(tmp_path / "d.npz"), PREPROCESS)
    assert samples.num == 9
    assert "train_x" in samples.description


def test_float_samples_need_no_preprocessing_and_raw_ones_do(tmp_path):
    inputs = pixels(4).astype(np.float64) / 7
    np.savez(tmp_path / "f.npz", x=inputs)
    found = next(iter(load_calibration(npz(tmp_path / "f.npz"), None).read([2])))
    assert found.dtype == np.float32
    assert np.array_equal(found, inputs[2].astype(np.float32))
    np.savez(tmp_path / "u.npz", x=pixels(4))
    with pytest.raises(ResdeployError, match="not known") as error:
        load_calibration(npz(tmp_path / "u.npz"), None)
    assert "--recipe" in (error.value.fix or "")


def test_a_folder_of_images_is_decoded_as_it_is_read(tmp_path):
    x = pixels(3)
    for index, image in enumerate(x):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    samples = load_calibration(DataSpec(name="image-folder", path=str(tmp_path)), PREPROCESS)
    assert samples.num == 3
    (tmp_path / "0.png").unlink()  # not read yet, and not asked for
    assert np.array_equal(next(iter(samples.read([2]))), preprocess_batch(x[2:], PREPROCESS)[0])


def test_of_a_folder_with_classes_the_training_part_is_taken(tmp_path):
    for part, num in (("train", 4), ("test", 2)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for index in range(num):
                Image.new("RGB", (8, 8)).save(tmp_path / part / label / f"{index}.png")
    samples = load_calibration(DataSpec(name="image-folder", path=str(tmp_path)), PREPROCESS)
    assert samples.num == 8


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.ones((2, 3))}, "no array 'x'"),
        ({"x": np.ones(3)}, "not a batch"),
        ({"x": np.asfortranarray(np.ones((4, 3)))}, "not a batch"),
        ({"x": np.array([["a"]])}, "not a batch"),
    ],
)
def test_what_is_no_batch_of_numbers_is_an_error(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ResdeployError, match=words):
        load_calibration(npz(tmp_path / "x.npz"), PREPROCESS)


def pair(num):
    random = np.random.default_rng(0)
    return {
        "left": random.normal(size=(num, 3, 4, 4)),
        "right": random.normal(size=(num, 5)),
        "length": random.integers(0, 9, num),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_model_of_several_inputs_takes_an_array_for_each(tmp_path, save):
    arrays = pair(12)
    save(tmp_path / "x.npz", y=np.arange(12), **arrays)
    samples = load_calibration(npz(tmp_path / "x.npz"), None, inputs=("right", "left", "length"))
    assert samples.num == 12
    chosen = list(samples.read([2, 7]))
    assert [one["length"] for one in chosen] == arrays["length"][[2, 7]].tolist()
    assert np.array_equal(chosen[1]["left"], arrays["left"][7].astype(np.float32))
    assert chosen[0].dtype["right"].base == np.float32
    assert chosen[0].dtype["length"] == np.int64
    assert np.array_equal(samples.labels, np.arange(12))
    check_shapes(samples, {"right": (5,), "left": (3, None, 4), "length": ()})


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"left": np.ones((4, 3))}, "no array 'right'"),
        ({"left": np.ones((4, 3)), "right": np.ones((5, 3))}, "different numbers of samples"),
    ],
)
def test_several_inputs_that_do_not_go_together_are_an_error(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ResdeployError, match=words) as error:
        load_calibration(npz(tmp_path / "x.npz"), None, inputs=("left", "right"))
    assert error.value.fix


def test_images_are_no_samples_of_several_inputs(tmp_path):
    with pytest.raises(ResdeployError, match="2 inputs: left, right") as error:
        load_calibration(
            DataSpec(name="image-folder", path=str(tmp_path)), PREPROCESS, inputs=("left", "right")
        )
    assert "numpy.savez(…, left=, right=)" in error.value.fix


def test_the_array_may_have_the_name_of_the_input(tmp_path):
    np.savez(tmp_path / "x.npz", image=np.ones((4, 3, 2, 2)))
    assert load_calibration(npz(tmp_path / "x.npz"), None, inputs=("image",)).num == 4


@pytest.mark.parametrize("shape", [(3, 8, 9), (3, 8), (1, 8, 8)])
def test_samples_of_another_size_are_an_error_with_both_sizes_and_the_fix(tmp_path, shape):
    np.savez(tmp_path / "x.npz", x=np.ones((4, *shape)))
    samples = load_calibration(npz(tmp_path / "x.npz"), None)
    text = "x".join(map(str, shape))
    with pytest.raises(ResdeployError, match=f"is {text}, the model's input 'x' 3x8x8") as error:
        check_shapes(samples, {"x": (3, 8, 8)})
    assert f"--input {','.join(map(str, shape))}" in error.value.fix
    check_shapes(samples, {"x": (None,) * len(shape)})


def test_labels_lie_beside_the_samples(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((4, 3)), y=np.array([0, 1, 1, 0]))
    assert load_calibration(npz(tmp_path / "x.npz"), None).labels.tolist() == [0, 1, 1, 0]
    np.savez(tmp_path / "x.npz", train_x=np.ones((4, 3)), x=np.ones((2, 3)), y=np.zeros(2, int))
    assert load_calibration(npz(tmp_path / "x.npz"), None).labels is None
    np.savez(tmp_path / "x.npz", x=np.ones((4, 3)), y=np.array([0.5, 1.5, 2.0, 1.0]))
    assert load_calibration(npz(tmp_path / "x.npz"), None).labels is None
    for y in (np.zeros(3, int), np.int64(7)):
        np.savez(tmp_path / "x.npz", x=np.ones((4, 3)), y=y)
        with pytest.raises(ResdeployError, match="4 samples, and the labels have shape"):
            load_calibration(npz(tmp_path / "x.npz"), None)


def test_classes_of_a_folder_are_labels_and_copied_files_are_found(tmp_path):
    for number, label in enumerate(("cat", "dog")):
        folder = tmp_path / label
        folder.mkdir()
        for index, image in enumerate(pixels(20)):
            Image.fromarray((image + number).transpose(1, 2, 0)).save(folder / f"{index:02}.png")
        (folder / "again.png").write_bytes((folder / "07.png").read_bytes())
    samples = load_calibration(DataSpec(name="image-folder", path=str(tmp_path)), PREPROCESS)
    assert samples.label_names == ("cat", "dog")
    assert np.bincount(samples.labels).tolist() == [17, 17]
    again = len({*samples.digests()})
    assert samples.num - 2 <= again < samples.num + 1
    assert samples.warnings == ()


def test_images_that_are_blown_up_are_warned_about(tmp_path):
    for index, image in enumerate(pixels(4)):
        Image.fromarray(image[:, :3, :4].transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    samples = load_calibration(DataSpec(name="image-folder", path=str(tmp_path)), PREPROCESS)
    assert "at most 3 pixels along their shorter side and are enlarged to 8" in samples.warnings[0]


def test_a_damaged_or_missing_file_is_an_error(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(ResdeployError, match="cannot be read"):
        load_calibration(npz(tmp_path / "x.npz"), PREPROCESS)
    with pytest.raises(ResdeployError, match="no such file"):
        load_calibration(npz(tmp_path / "y.npz"), PREPROCESS)


def test_quantising_needs_no_torch():
    script = (
        "import sys, json; sys.modules['torch'] = None; import resdeploy.quant.quantize; "
        "print(json.dumps('torch' in {n.partition('.')[0] for n, m in sys.modules.items() if m}))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) is False
