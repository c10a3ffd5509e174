"""Data sets: every format in tiny, the order of the samples, and what is refused."""

import io
import os
import pickle
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from resdeploy.data.datasets import (
    DATA_NAMES,
    epoch_order,
    load_dataset,
    load_labelled,
    parse_data,
    stratified_split,
)
from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import DataSpec, Preprocess

ANY = Preprocess(input_shape=(3, 32, 32), divisor=255)
SMALL = Preprocess(input_shape=(3, 4, 4), divisor=255)
NAMES10 = [f"class{i}" for i in range(10)]
NAMES100 = [f"class{i:02}" for i in range(100)]


# --- embedded ------------------------------------------------------------------------------------


def test_digits_are_eight_bit_images_split_by_class():
    data = load_dataset(DataSpec(name="digits"), ANY)
    assert data.train_x.dtype == np.uint8
    assert data.train_x.shape == (1438, 1, 8, 8)
    assert data.test_x.shape == (359, 1, 8, 8)
    assert data.train_x.max() == 255
    assert data.train_y.dtype == np.int64
    assert data.labels == tuple("0123456789")
    for digit in range(10):
        num_test, num_train = (data.test_y == digit).sum(), (data.train_y == digit).sum()
        assert num_test == round(0.2 * (num_test + num_train))


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = load_dataset(DataSpec(name="digits"), ANY)
    theirs = {image.astype(np.uint8).tobytes() for image in load_digits().images}
    ours = np.concatenate([data.train_x, data.test_x])
    sixteenths = np.rint(ours / 255 * 16).astype(np.uint8)
    assert {image.tobytes() for image in sixteenths} == theirs


def test_another_split_seed_holds_out_other_samples_and_the_same_seed_the_same():
    first, again, other = (
        load_dataset(DataSpec(name="digits", split_seed=seed), ANY) for seed in (0, 0, 1)
    )
    assert first.test_x.tobytes() == again.test_x.tobytes()
    assert first.test_x.tobytes() != other.test_x.tobytes()


def test_mnist1d_is_generated_and_leaves_the_global_generators_alone():
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    data = load_dataset(DataSpec(name="mnist1d"), ANY)
    assert (random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert data.train_x.shape == (4000, 40)
    assert data.test_x.shape == (1000, 40)
    assert data.train_x.dtype == np.float32
    assert set(data.train_y) == set(range(10))
    again = load_dataset(DataSpec(name="mnist1d"), ANY)
    assert data.train_x.tobytes() == again.train_x.tobytes()


# --- order and split -----------------------------------------------------------------------------


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    order = epoch_order(100, seed=3, epoch=7)
    assert sorted(order) == list(range(100))
    assert (order == epoch_order(100, seed=3, epoch=7)).all()
    assert (order != epoch_order(100, seed=3, epoch=8)).any()
    assert (order != epoch_order(100, seed=4, epoch=7)).any()


def test_a_split_is_disjoint_complete_and_has_a_fifth_of_each_class():
    y = np.repeat(np.arange(3), (10, 5, 2))
    train, test = stratified_split(y, seed=0)
    assert sorted([*train, *test]) == list(range(17))
    assert np.bincount(y[test]).tolist() == [2, 1, 1]
    assert (np.diff(train) > 0).all()


def test_refuses_to_split_a_class_of_one():
    with pytest.raises(ResdeployError, match="Class 1 has a single sample"):
        stratified_split(np.array([0, 0, 1]), seed=0)


# --- CIFAR ---------------------------------------------------------------------------------------


def random_batch(num_samples, num_classes, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_samples, 3072), dtype=np.uint8)
    return images, rng.integers(0, num_classes, num_samples).tolist()


def pickled(batch):
    return pickle.dumps(batch, protocol=2)


def cifar_batches(name):
    """Return the content of each batch: file stem -> (images, labels)."""
    stems = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    stems = stems if name == "cifar10" else ["train", "test"]
    return {
        stem: random_batch(4, 10 if name == "cifar10" else 100, i) for i, stem in enumerate(stems)
    }


def cifar_files(name, version, *, as_bytes=False):
    """Return the files of an official archive, with four images a batch."""
    num_classes = 10 if name == "cifar10" else 100
    names = NAMES10 if name == "cifar10" else NAMES100
    batches = cifar_batches(name)
    if version == "binary":
        coarse = b"\x07" if name == "cifar100" else b""
        files = {
            f"{stem}.bin": b"".join(
                coarse + bytes([label]) + image.tobytes()
                for image, label in zip(images, labels, strict=True)
            )
            for stem, (images, labels) in batches.items()
        }
        key = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
        return files | {key: "\n".join([*names, ""]).encode()}
    key = "labels" if num_classes == 10 else "fine_labels"
    names_key = "label_names" if num_classes == 10 else "fine_label_names"
    spell = (lambda text: text.encode()) if as_bytes else (lambda text: text)
    files = {
        stem: pickled({spell("data"): images, spell(key): labels, spell("filenames"): []})
        for stem, (images, labels) in batches.items()
    }
    meta = "batches.meta" if num_classes == 10 else "meta"
    return files | {meta: pickled({spell(names_key): [spell(n) for n in names]})}


FOLDERS = {
    ("cifar10", "python"): ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    ("cifar10", "binary"): ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    ("cifar100", "python"): ("cifar-100-python", "cifar-100-python.tar.gz"),
    ("cifar100", "binary"): ("cifar-100-binary", "cifar-100-binary.tar.gz"),
}


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("place", ["holder", "folder", "archive", "holder of archive"])
@pytest.mark.parametrize(("name", "version"), FOLDERS)
def test_official_cifar_is_read_from_wherever_it_lies(tmp_path, name, version, place):
    folder, archive = FOLDERS[name, version]
    files = cifar_files(name, version)
    if "archive" in place:
        path = write_tar(tmp_path / archive, folder, files)
        path = path if place == "archive" else tmp_path
    else:
        path = write_folder(tmp_path / folder, files)
        path = path if place == "folder" else tmp_path
    data = load_dataset(DataSpec(name=name, path=str(path)), ANY)
    batches = cifar_batches(name)
    *train, test = batches.values()
    np.testing.assert_array_equal(
        data.train_x.reshape(-1, 3072), np.concatenate([images for images, _ in train])
    )
    assert data.train_y.tolist() == [label for _, labels in train for label in labels]
    np.testing.assert_array_equal(data.test_x, test[0].reshape(-1, 3, 32, 32))
    assert data.test_y.tolist() == test[1]
    assert data.labels == tuple(NAMES10 if name == "cifar10" else NAMES100)
    samples = load_labelled(DataSpec(name=name, path=str(path)), ANY)
    assert samples.x.tobytes() == data.test_x.tobytes()
    assert samples.y is not None
    assert samples.y.tolist() == data.test_y.tolist()


def test_keys_that_are_bytes_are_read_too(tmp_path):
    write_folder(tmp_path / "cifar-10-batches-py", cifar_files("cifar10", "python", as_bytes=True))
    data = load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)
    assert len(data.train_y) == 20
    assert data.labels == tuple(NAMES10)


def test_a_pickle_written_by_python_2_is_read(tmp_path):
    """Its byte strings are opcode U and its array's module is numpy.core: spelled out by hand."""
    images, labels = random_batch(1, 10, 0)
    raw = images.tobytes()
    python2 = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02"
        b"cnumpy\nndarray\nq\x03K\x00\x85U\x01bq\x04\x87q\x05Rq\x06(K\x01K\x01M\x00\x0c\x86"
        b"cnumpy\ndtype\nq\x07U\x02u1q\x08K\x00K\x01\x87q\x09Rq\x0a(K\x03U\x01|q\x0bNNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0cb\x89T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"q\x0dtq\x0ebU\x06labelsq\x0f]q\x10K"
        + bytes(labels)
        + b"au."
    )
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    files = dict.fromkeys(names, python2) | {"batches.meta": pickled({"label_names": NAMES10})}
    write_folder(tmp_path / "cifar-10-batches-py", files)
    data = load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)
    assert data.test_x.tobytes() == raw
    assert data.test_y.tolist() == labels


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path):
    trap = tmp_path / "executed"
    files = cifar_files("cifar10", "python")
    files["data_batch_3"] = pickled({"data": Malicious(str(trap)), "labels": []})
    write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(ResdeployError, match=r"it wants \w+\.mkdir, which is not data"):
        load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)
    assert not trap.exists()
    # The trap does work where the pickle is trusted.
    pickle.loads(files["data_batch_3"])
    assert trap.exists()


def test_a_pickle_may_not_name_a_codec(tmp_path):
    files = cifar_files("cifar10", "python")
    files["test_batch"] = (
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    )
    write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(ResdeployError, match="wants the encoding 'rot13'"):
        load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)


# As Python 2 wrote no bytes at all: a text of length zero, not a call of bytes().
EMPTY_BATCH = pickled({"data": np.zeros((0, 3072), np.uint8), "labels": []}).replace(
    b"c__builtin__\nbytes\nq\x13)R", b"U\x00q\x13"
)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (b"", "not a CIFAR batch"),
        (cifar_files("cifar10", "python")["test_batch"][:-50], "not a CIFAR batch"),
        (pickled([1, 2]), "not a dictionary"),
        (pickled({"labels": [1]}), "no entry 'data'"),
        (pickled({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]}), r"\(2, 3071\)"),
        (pickled({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}), "float32"),
        (EMPTY_BATCH, r"\(0, 3072\)"),
        (pickled({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "2 images with labels"),
        (pickled({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "outside 0…9"),
        (pickled({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}), "outside 0…9"),
        (pickled({"data": np.zeros((1, 3072), np.uint8), "labels": [0.5]}), "float64"),
    ],
)
def test_refuses_a_python_batch_that_is_damaged(tmp_path, batch, message):
    files = cifar_files("cifar10", "python") | {"test_batch": batch}
    write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(ResdeployError, match=message) as caught:
        load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)
    assert "test_batch" in str(caught.value.where)


def test_refuses_a_binary_file_that_is_cut_inside_a_record(tmp_path):
    files = cifar_files("cifar10", "binary")
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:-1]
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(ResdeployError, match="not a whole number of 3073-byte records"):
        load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)


def test_refuses_a_binary_file_that_is_cut_between_records(tmp_path):
    files = cifar_files("cifar10", "binary")
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:-3073]
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(ResdeployError, match=r"differ in size \(4, 3, 4, 4, 4 images\)"):
        load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)


def test_refuses_class_names_that_are_too_few(tmp_path):
    files = cifar_files("cifar10", "binary") | {"batches.meta.txt": b"cat\ndog\n"}
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    with pytest.raises(ResdeployError, match="names of 10 classes"):
        load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)


def test_refuses_a_folder_with_a_batch_missing(tmp_path):
    files = cifar_files("cifar10", "python")
    del files["data_batch_4"]
    write_folder(tmp_path / "cifar-10-batches-py", files)
    with pytest.raises(ResdeployError, match="data_batch_4 of cifar-10-batches-py is missing"):
        load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95])
def test_refuses_an_archive_that_is_cut_short(tmp_path, keep):
    path = write_tar(
        tmp_path / "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        cifar_files("cifar10", "python"),
    )
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ResdeployError, match="archive cannot be read") as caught:
        load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)
    assert caught.value.where == str(path)


def test_refuses_an_archive_of_something_else(tmp_path):
    path = write_tar(tmp_path / "other.tar.gz", "other", {"readme": b"hello"})
    with pytest.raises(ResdeployError, match="does not hold cifar100"):
        load_dataset(DataSpec(name="cifar100", path=str(path)), ANY)


def test_nothing_is_extracted_from_an_archive(tmp_path):
    write_tar(
        tmp_path / "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        cifar_files("cifar10", "binary"),
    )
    load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("path", [None, "nowhere", "."])
def test_says_what_to_download_and_where_to_put_it(tmp_path, path):
    path = None if path is None else str(tmp_path / path)
    with pytest.raises(ResdeployError) as caught:
        load_dataset(DataSpec(name="cifar10", path=path), ANY)
    assert caught.value.fix is not None
    for part in ("cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar10:PATH", "https://"):
        assert part in caught.value.fix


def test_real_cifar_images_survive_the_official_format(tmp_path, shared_data):
    with np.load(shared_data / "cifar10-sample.npz") as real:
        images, labels = real["test_x"], real["test_y"]
    batch = pickled({"data": images.reshape(-1, 3072), "labels": labels.tolist()})
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    files = dict.fromkeys(names, batch) | {"batches.meta": pickled({"label_names": NAMES10})}
    write_folder(tmp_path / "cifar-10-batches-py", files)
    data = load_dataset(DataSpec(name="cifar10", path=str(tmp_path)), ANY)
    assert data.test_x.tobytes() == images.tobytes()
    assert data.test_y.tolist() == labels.tolist()


# --- image folders -------------------------------------------------------------------------------


def write_images(folder, num_images, *, gray=0):
    folder.mkdir(parents=True)
    for i in range(num_images):
        Image.new("RGB", (6, 5), (gray, i, 0)).save(folder / f"{i}.png")


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_an_image_folder_with_parts_is_read_in_the_order_of_names(tmp_path, held_out):
    for index, name in enumerate(("cat", "ant")):
        write_images(tmp_path / "train" / name, 3, gray=50 * index)
        write_images(tmp_path / held_out / name, 2, gray=50 * index + 10)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / ".hidden.png").write_text("not an image either")
    spec = DataSpec(name="image-folder", path=str(tmp_path))
    data = load_dataset(spec, SMALL)
    assert data.labels == ("ant", "cat")
    assert data.train_y.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train_x.shape == (6, 3, 4, 4)
    assert data.train_x[:, 0, 0, 0].tolist() == [50, 50, 50, 0, 0, 0]
    assert data.train_x[:, 1, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    samples = load_labelled(spec, SMALL)
    assert samples.x[:, 0, 0, 0].tolist() == [60, 60, 10, 10]
    assert samples.y is not None
    assert samples.y.tolist() == [0, 0, 1, 1]


def test_an_image_folder_without_parts_is_split_by_class(tmp_path):
    for index, name in enumerate(("a", "b")):
        write_images(tmp_path / name, 10, gray=index * 100)
    spec = DataSpec(name="image-folder", path=str(tmp_path))
    data = load_dataset(spec, SMALL)
    assert np.bincount(data.test_y).tolist() == [2, 2]
    assert np.bincount(data.train_y).tolist() == [8, 8]
    identities = [tuple(x[:2, 0, 0]) for x in (*data.train_x, *data.test_x)]
    assert len(set(identities)) == 20
    assert load_labelled(spec, SMALL).x.tobytes() == data.test_x.tobytes()


def test_loose_images_are_evaluated_without_labels(tmp_path):
    write_images(tmp_path / "photos", 3)
    samples = load_labelled(parse_data(str(tmp_path / "photos")), SMALL)
    assert samples.x.shape == (3, 3, 4, 4)
    assert samples.y is None


def test_labelled_images_are_named_by_their_files_and_say_how_many_were_left_out(tmp_path):
    for index, name in enumerate(("a", "b")):
        write_images(tmp_path / "all" / name, 10, gray=index * 100)
    samples = load_labelled(parse_data(str(tmp_path / "all")), SMALL)
    assert samples.labels == ("a", "b")
    assert samples.description.startswith("4 of 20 images (the fifth of each class held out)")
    for name, x in zip(samples.names, samples.x, strict=True):
        pixels = np.asarray(Image.open(name).convert("RGB").resize((4, 4)))
        assert (x == pixels.transpose(2, 0, 1)).all()
    write_images(tmp_path / "parts" / "train" / "a", 5)
    write_images(tmp_path / "parts" / "test" / "a", 3)
    samples = load_labelled(parse_data(str(tmp_path / "parts")), SMALL)
    assert samples.description.startswith("all 3 images of ")
    with pytest.raises(ResdeployError, match="is not known"):
        load_labelled(parse_data(str(tmp_path / "parts")), None)


def test_rows_of_arrays_are_named_by_their_number(tmp_path):
    samples = load_labelled(npz(tmp_path, x=np.zeros((3, 2)), y=np.arange(3)), None)
    assert samples.names[2].endswith("data.npz[2]")
    assert samples.labels == ()
    assert samples.description.startswith("all 3 held-out samples of ")


def test_refuses_parts_with_different_classes(tmp_path):
    write_images(tmp_path / "train" / "cat", 1)
    write_images(tmp_path / "test" / "dog", 1)
    with pytest.raises(ResdeployError, match="differ in their classes: cat, dog"):
        load_dataset(DataSpec(name="image-folder", path=str(tmp_path)), SMALL)


def test_refuses_an_empty_class_and_an_empty_folder(tmp_path):
    spec = DataSpec(name="image-folder", path=str(tmp_path))
    with pytest.raises(ResdeployError, match="no folder of a class"):
        load_dataset(spec, SMALL)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ResdeployError, match="no image in this class") as caught:
        load_dataset(spec, SMALL)
    assert caught.value.where == str(tmp_path / "cat")


def test_a_broken_image_in_a_folder_is_named(tmp_path):
    write_images(tmp_path / "cat", 4)
    (tmp_path / "cat" / "bad.jpg").write_bytes(b"junk")
    with pytest.raises(ResdeployError, match=r"bad\.jpg"):
        load_dataset(DataSpec(name="image-folder", path=str(tmp_path)), SMALL)


# --- npz -----------------------------------------------------------------------------------------


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return DataSpec(name="npz", path=str(tmp_path / "data.npz"))


def test_an_npz_with_parts_is_a_dataset_and_its_test_part_the_evaluation(tmp_path):
    train_x, test_x = np.zeros((3, 4)), np.ones((2, 4))
    spec = npz(tmp_path, train_x=train_x, train_y=[0, 1, 2], test_x=test_x, test_y=[1, 0])
    data = load_dataset(spec, SMALL)
    np.testing.assert_array_equal(data.train_x, train_x)
    assert data.train_y.tolist() == [0, 1, 2]
    samples = load_labelled(spec, SMALL)
    np.testing.assert_array_equal(samples.x, test_x)
    assert samples.y is not None
    assert samples.y.dtype == np.int64


@pytest.mark.parametrize("y", [None, np.array([3, 4], dtype=np.uint8)])
def test_an_npz_for_evaluation_has_x_and_perhaps_y(tmp_path, y):
    arrays = {"x": np.zeros((2, 4))} | ({} if y is None else {"y": y})
    samples = load_labelled(npz(tmp_path, **arrays), SMALL)
    assert samples.x.shape == (2, 4)
    assert samples.y is None if y is None else samples.y.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 4)), "y": np.zeros(3, int)}, "2 samples need as many"),
        ({"x": np.zeros((2, 4)), "y": np.zeros(2)}, "whole numbers"),
        ({"x": np.zeros(2)}, "not a batch"),
        ({"x": np.zeros((0, 4))}, "not a batch"),
        ({"images": np.zeros((2, 4))}, "neither 'x' nor 'test_x'; it has images"),
        ({}, "it has none"),
    ],
)
def test_refuses_an_npz_that_does_not_fit_together(tmp_path, arrays, message):
    with pytest.raises(ResdeployError, match=message):
        load_labelled(npz(tmp_path, **arrays), SMALL)


def test_refuses_to_train_on_an_npz_without_parts(tmp_path):
    with pytest.raises(ResdeployError, match="no array 'train_x'; it has x"):
        load_dataset(npz(tmp_path, x=np.zeros((2, 4))), SMALL)


def test_an_npz_with_pickled_objects_is_refused_and_runs_nothing(tmp_path):
    trap = tmp_path / "executed"
    objects = np.empty(1, dtype=object)
    objects[0] = Malicious(str(trap))
    with pytest.raises(ResdeployError, match="cannot be read"):
        load_labelled(npz(tmp_path, x=objects), SMALL)
    assert not trap.exists()


@pytest.mark.parametrize("keep", [0, 10, -30])
def test_refuses_an_npz_that_is_cut_short(tmp_path, keep):
    spec = npz(tmp_path, x=np.zeros((50, 40)))
    assert spec.path is not None
    content = (tmp_path / "data.npz").read_bytes()[:keep]
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(ResdeployError, match="cannot be read") as caught:
        load_labelled(spec, SMALL)
    assert caught.value.where == spec.path


def test_refuses_a_single_array_in_place_of_an_npz(tmp_path):
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.zeros((2, 4)))
    with pytest.raises(ResdeployError, match="single array"):
        load_labelled(DataSpec(name="npz", path=str(tmp_path / "data.npz")), SMALL)


# --- names ---------------------------------------------------------------------------------------


def test_the_command_line_names_a_data_set(tmp_path):
    assert parse_data("digits") == DataSpec(name="digits")
    assert parse_data("mnist1d") == DataSpec(name="mnist1d")
    assert parse_data("cifar10:/data/c") == DataSpec(name="cifar10", path="/data/c")
    assert parse_data("image-folder:a:b") == DataSpec(name="image-folder", path="a:b")
    assert parse_data("some/x.npz") == DataSpec(name="npz", path="some/x.npz")
    assert parse_data(str(tmp_path)) == DataSpec(name="image-folder", path=str(tmp_path))


def test_a_folder_does_not_hide_the_data_set_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_data("digits") == DataSpec(name="digits")
    assert parse_data("./digits") == DataSpec(name="image-folder", path="./digits")


@pytest.mark.parametrize("text", ["imagenet", "/no/such/folder", "digits:here", ""])
def test_refuses_a_name_that_is_none(text):
    with pytest.raises(ResdeployError):
        parse_data(text)


def test_refuses_an_unknown_name_in_a_recipe():
    for load in (load_dataset, load_labelled):
        with pytest.raises(ResdeployError, match=r"no data set 'svhn'(.|\n)*mnist1d"):
            load(DataSpec(name="svhn"), SMALL)


@pytest.mark.parametrize("name", ["image-folder", "npz"])
@pytest.mark.parametrize("path", [None, "/no/such/place"])
def test_says_what_to_give_where_the_data_is_missing(name, path):
    for load in (load_dataset, load_labelled):
        with pytest.raises(ResdeployError) as caught:
            load(DataSpec(name=name, path=path), SMALL)
        assert caught.value.fix


def test_every_name_is_known_to_the_loader(tmp_path):
    for name in set(DATA_NAMES) - {"digits", "mnist1d"}:
        with pytest.raises(ResdeployError) as caught:
            load_dataset(DataSpec(name=name, path=str(tmp_path / "nowhere")), SMALL)
        assert "no data set" not in caught.value.what
