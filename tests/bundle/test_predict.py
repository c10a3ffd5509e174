"""Predicting with a bundle: the pixels of training, exact probabilities, clear refusals."""

import math

import numpy as np
import onnx
import pytest
from onnx import parser
from PIL import Image

from resdeploy.api.bundle import Bundle
from resdeploy.api.predict import predict
from resdeploy.bundle.archive import write_archive
from resdeploy.bundle.predict import softmax
from resdeploy.data.datasets import load_labelled
from resdeploy.data.preprocess import preprocess_batch
from resdeploy.data.samples import read_samples
from resdeploy.errors import BundleError, ProviderError, ResdeployError
from resdeploy.schema.recipes import DataSpec, Preprocess

GRAY = Preprocess(
    input_shape=(1, 4, 4), divisor=255.0, mean=(0.4,), std=(0.3,), color="gray", resize=5
)
VECTOR = Preprocess(input_shape=(16,), divisor=2.0, color="none")
RGB = Preprocess(
    input_shape=(3, 6, 5),
    divisor=255.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize=7,
    interpolation="bicubic",
)


@pytest.fixture
def photos(tmp_path):
    """Images of several modes, sizes and formats."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name, shape in (
        ("a.png", (30, 41, 3)),
        ("b.jpg", (64, 20, 3)),
        ("c.PNG", (9, 9)),
        ("d.webp", (17, 33, 4)),
        ("e.bmp", (8, 100, 3)),
    ):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not an image, and not read")
    return folder


@pytest.fixture
def gray(tmp_path, write_flat_bundle):
    return write_flat_bundle(tmp_path / "gray", GRAY)


# --- preprocessing -------------------------------------------------------------------------------


@pytest.mark.parametrize("preprocess", [RGB, GRAY], ids=["rgb", "gray"])
def test_the_inputs_are_those_of_the_host_pipeline_to_the_bit(photos, preprocess):
    (photos / "notes.txt").unlink()
    samples = load_labelled(DataSpec(name="image-folder", path=str(photos)), preprocess)
    expected = preprocess_batch(samples.x, preprocess)
    names, inputs = zip(*read_samples([photos], preprocess), strict=True)
    assert [name.rpartition("/")[2] for name in names] == sorted(
        file.name for file in photos.iterdir()
    )
    assert np.stack(inputs).tobytes() == expected.tobytes()
    assert inputs[0].dtype == np.float32


def test_arrays_go_through_the_same_pipeline(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 5), dtype=np.uint8)
    np.save(tmp_path / "x.npy", raw)
    np.savez(tmp_path / "x.npz", x=raw.transpose(0, 2, 3, 1), y=np.zeros(5))
    expected = preprocess_batch(raw, RGB)
    for file in ("x.npy", "x.npz"):
        names, inputs = zip(*read_samples([tmp_path / file], RGB), strict=True)
        assert names == tuple(f"{tmp_path / file}[{i}]" for i in range(5))
        assert np.stack(inputs).tobytes() == expected.tobytes()


def test_one_sample_needs_no_batch_dimension(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(16.0))
    ((name, sample),) = read_samples([tmp_path / "x.npy"], VECTOR)
    assert name == f"{tmp_path / 'x.npy'}[0]"
    np.testing.assert_array_equal(sample, np.arange(16, dtype=np.float32) / 2)


# --- scores --------------------------------------------------------------------------------------


def test_the_classes_are_ordered_named_and_their_probabilities_exact(tmp_path, write_flat_bundle):
    bundle = write_flat_bundle(tmp_path / "vector", VECTOR)
    x = np.random.default_rng(3).normal(size=(20, 16)) * 8
    np.save(tmp_path / "x.npy", x)
    report = predict(bundle, [tmp_path / "x.npy"], provider="cpu")
    assert len(report.predictions) == 20
    for row, prediction in zip(
        x.astype(np.float32) / np.float32(2), report.predictions, strict=True
    ):
        total = math.fsum(math.exp(float(score)) for score in row)
        best = np.argsort(-row)[:5]
        assert [scored.index for scored in prediction.classes] == best.tolist()
        assert [scored.label for scored in prediction.classes] == [f"class {k}" for k in best]
        for scored in prediction.classes:
            exact = math.exp(float(row[scored.index])) / total
            assert scored.probability == pytest.approx(exact, rel=1e-14)


def test_softmax_is_computed_in_float64_and_never_overflows():
    scores = np.array([3e38, 0, -3e38], np.float32)
    np.testing.assert_array_equal(softmax(scores), [1, 0, 0])
    tiny = softmax(np.array([0, -110], np.float32))
    assert tiny[1] == pytest.approx(math.exp(-110), rel=1e-14)
    assert tiny.dtype == np.float64


def test_of_equal_scores_the_first_class_is_named_first(tmp_path, write_flat_bundle):
    bundle = write_flat_bundle(tmp_path / "vector", VECTOR, labels=False)
    np.save(tmp_path / "x.npy", np.zeros(16))
    (prediction,) = predict(bundle, [tmp_path / "x.npy"], provider="cpu", top=99).predictions
    assert [scored.index for scored in prediction.classes] == list(range(16))
    assert {scored.label for scored in prediction.classes} == {None}


def test_images_folders_and_archives_come_in_the_order_given(gray, photos, tmp_path):
    write_archive(gray, tmp_path / "gray.zip")
    paths = [photos / "c.PNG", photos]
    report = predict(gray, paths, provider="cpu", top=2)
    files = [prediction.input.rpartition("/")[2] for prediction in report.predictions]
    assert files == ["c.PNG", "a.png", "b.jpg", "c.PNG", "d.webp", "e.bmp"]
    assert report.predictions[0].classes == report.predictions[3].classes
    assert predict(tmp_path / "gray.zip", paths, provider="cpu", top=2) == report


# --- refusals ------------------------------------------------------------------------------------


def refused(bundle, path, match, *, fix=None):
    with pytest.raises(ResdeployError, match=match) as caught:
        predict(bundle, [path], provider="cpu")
    assert caught.value.where.startswith(str(path))
    if fix is not None:
        assert fix in caught.value.fix


def test_what_is_not_an_image_is_named(gray, tmp_path):
    (tmp_path / "x.png").write_bytes(b"hello")
    refused(gray, tmp_path / "x.png", "cannot be read")
    refused(gray, tmp_path / "none.png", "no such image")
    (tmp_path / "empty").mkdir()
    refused(gray, tmp_path / "empty", "holds no images", fix="jpg")


def test_vectors_where_images_are_expected_are_refused_and_the_other_way(
    gray, photos, tmp_path, write_flat_bundle
):
    np.save(tmp_path / "v.npy", np.zeros((2, 16), np.float32))
    refused(gray, tmp_path / "v.npy", r"\(2, 16\) do not fit")
    vector = write_flat_bundle(tmp_path / "vector", VECTOR)
    refused(vector, photos / "a.png", "takes vectors", fix=".npy")


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 3, 4, 4), (4, 4), (0, 1, 4, 4), ()])
def test_an_array_of_another_shape_is_refused(gray, tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    refused(gray, tmp_path / "x.npy", "do not fit|no samples")


def test_arrays_that_cannot_be_read_are_refused(gray, tmp_path):
    (tmp_path / "x.npy").write_bytes(b"hello")
    refused(gray, tmp_path / "x.npy", "cannot be read", fix="numpy.save")
    np.save(tmp_path / "p.npy", np.array([{}], dtype=object))
    refused(gray, tmp_path / "p.npy", "cannot be read")
    np.savez(tmp_path / "z.npz", images=np.zeros(3))
    refused(gray, tmp_path / "z.npz", r"no array 'x' \(it has images\)")
    refused(gray, tmp_path / "none.npz", "no such file")


def test_without_known_preprocessing_only_network_inputs_are_taken(
    photos, tmp_path, write_flat_bundle
):
    bundle = write_flat_bundle(tmp_path / "bare", None)
    refused(bundle, photos / "a.png", "is not known", fix="--preprocess-as")
    np.save(tmp_path / "u.npy", np.zeros((1, 1, 4, 4), np.uint8))
    refused(bundle, tmp_path / "u.npy", "is not known")
    np.save(tmp_path / "f.npy", np.ones((1, 1, 4, 4), np.float32))
    assert len(predict(bundle, [tmp_path / "f.npy"], provider="cpu").predictions) == 1


def test_scores_that_are_no_numbers_are_refused_and_the_input_named(tmp_path, write_flat_bundle):
    bundle = write_flat_bundle(tmp_path / "vector", VECTOR)
    x = np.zeros((2, 16))
    x[1, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ResdeployError, match="not finite") as caught:
        predict(bundle, [tmp_path / "x.npy"], provider="cpu")
    assert caught.value.where == f"{tmp_path / 'x.npy'}[1]"


def test_a_model_without_a_row_of_scores_is_refused(tmp_path, photos, write_flat_bundle):
    text = (
        '<ir_version: 8, opset_import: ["": 18]> flat (float[N, 1, 4, 4] x) =>'
        " (float[N, 1, 4, 4] y) { y = Relu (x) }"
    )
    bundle = write_flat_bundle(tmp_path / "map", GRAY, model_text=text)
    with pytest.raises(ResdeployError, match="no single row of class scores") as caught:
        predict(bundle, [photos], provider="cpu")
    assert "-o FILE.npz" in caught.value.fix


def test_a_changed_bundle_and_a_missing_provider_end_it_before_anything_runs(
    gray, photos, no_cuda, monkeypatch
):
    with pytest.raises(ProviderError):
        predict(gray, [photos], provider="cuda")
    monkeypatch.setattr("resdeploy.session.session.open_session", lambda *_: pytest.fail("it ran"))
    (gray / "labels.txt").write_text("x")
    with pytest.raises(BundleError, match=r"labels\.txt"):
        predict(gray, [photos], provider="cpu")


# --- outputs that are no class scores ------------------------------------------------------------

MAPS = (
    '<ir_version: 8, opset_import: ["": 18]> maps (float[N, 1, 4, 4] x) =>'
    " (float[N, 1, 4, 4] file, int64[N, 4, 4] mask)"
    " { file = Relu (x)\n mask = ArgMax <axis = 1, keepdims = 0> (x) }"
)


def test_outputs_of_any_kind_are_written_by_name(tmp_path, photos, gray):
    onnx.save(parser.parse_model(MAPS), tmp_path / "maps.onnx")
    inputs = np.random.default_rng(0).normal(size=(9, 1, 4, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", inputs)
    report = predict(tmp_path / "maps.onnx", tmp_path / "x.npy", out=tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as found:
        assert {*found} == {"file", "mask"}
        np.testing.assert_array_equal(found["file"], np.maximum(inputs, 0))
        assert (found["mask"].dtype, found["mask"].shape) == (np.int64, (9, 4, 4))
    assert [one.shape for one in report.outputs] == [(9, 1, 4, 4), (9, 4, 4)]
    assert [one.input for one in report.predictions][8] == f"{tmp_path / 'x.npy'}[8]"
    with pytest.raises(ResdeployError, match="exists already"):
        predict(tmp_path / "maps.onnx", tmp_path / "x.npy", out=tmp_path / "y.npz")
    # Of a bundle, by its own preprocessing.
    with Bundle(gray) as bundle:
        expected = [sample.ravel() for _, sample in read_samples([photos], GRAY)]
        (scores,) = bundle.outputs([photos]).values()
        np.testing.assert_array_equal(scores, expected)


def test_outputs_of_several_sizes_are_refused(tmp_path):
    text = (
        '<ir_version: 8, opset_import: ["": 18]> open (float[N, 1, H, W] x) =>'
        " (float[N, 1, H, W] y) { y = Relu (x) }"
    )
    onnx.save(parser.parse_model(text), tmp_path / "open.onnx")
    sizes = [(8, 1, 4, 4), (1, 1, 5, 5)]
    with pytest.raises(ResdeployError, match="outputs have different shapes"):
        predict(
            tmp_path / "open.onnx",
            [np.zeros(size, np.float32) for size in sizes],
            out=tmp_path / "y.npz",
        )
    assert not (tmp_path / "y.npz").exists()
