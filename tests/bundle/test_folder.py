"""Bundles: written whole and reproducibly, and refused after any change to any byte."""

import dataclasses
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from resdeploy.bundle import folder as bundle_folder
from resdeploy.bundle.folder import MANIFEST, read_bundle, write_bundle
from resdeploy.errors import BundleError, ResdeployError
from resdeploy.schema.exports import ExportReport, ExportSpec
from resdeploy.schema.files import FileInfo, TensorSpec
from resdeploy.schema.recipes import Preprocess
from resdeploy.schema.verdicts import GoldenInfo, VerifyReport
from resdeploy.verify import golden_file as golden_file_module
from resdeploy.verify.golden_file import Golden, load_golden, save_golden

FILES = ["README.md", "golden.npz", "labels.txt", "manifest.json", "model.onnx"]


def make_golden(num_inputs=2, num_outputs=3, *, with_labels=True):
    rng = np.random.default_rng(0)
    return Golden(
        inputs=rng.standard_normal((num_inputs, 4), dtype=np.float32),
        reference=rng.standard_normal((num_inputs, num_outputs)),
        noise_l2=np.full(num_inputs, 1e-7),
        labels=np.arange(num_inputs) if with_labels else None,
        sigma=np.full((num_inputs, num_outputs), 2e-8),
        info=GoldenInfo(source="tiny", inputs="random", num_inputs=num_inputs),
    )


def make_export(directory):
    file = FileInfo(path=f"{directory}/tiny.onnx", sha256="0" * 64, size_bytes=9)
    return ExportReport(
        spec=ExportSpec(),
        file=file,
        fold=None,
        passes=(),
        inputs=(),
        outputs=(),
        num_nodes=1,
        versions={"onnx": "1"},
        verification=VerifyReport(model=file, golden=make_golden().info, verdicts=()),
    )


def write(out, model, **changes):
    arguments = {
        "name": "tiny",
        "model": model,
        "golden": make_golden(),
        "labels": ("cat", "dog", "Bär"),
        "preprocess": Preprocess(input_shape=(4,), color="none"),
        "export": None,
        "inputs": (TensorSpec(name="x", dtype="float32", shape=("N", 4)),),
        "outputs": (TensorSpec(name="y", dtype="float32", shape=("N", 3)),),
        "versions": {"resdeploy": "0.1.0"},
    }
    return write_bundle(out, **(arguments | changes))


@pytest.fixture
def model(tmp_path):
    """A file in place of a model: the bundle looks at its bytes only."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "tiny.onnx").write_bytes(b"\x08\x08 not really a model")
    return folder / "tiny.onnx"


@pytest.fixture
def bundle(tmp_path, model):
    write(tmp_path / "tiny", model)
    return tmp_path / "tiny"


def rewrite_manifest(bundle, change):
    """Change the manifest as a forger would, with a digest that fits."""
    record = json.loads((bundle / MANIFEST).read_text())
    del record["digest"]
    change(record)
    (bundle / MANIFEST).write_text(bundle_folder._manifest_text(record))


# --- writing -------------------------------------------------------------------------------------


def test_what_is_written_is_what_is_read(tmp_path, model):
    golden = make_golden()
    manifest = write(tmp_path / "out", model, golden=golden)
    found = read_bundle(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == FILES
    assert found.manifest == manifest
    assert found.labels == ("cat", "dog", "Bär")
    assert found.model.read_bytes() == model.read_bytes()
    assert [file.path for file in manifest.files] == [f for f in FILES if f != MANIFEST]
    for name in ("inputs", "reference", "noise_l2", "labels", "sigma"):
        read, written = getattr(found.golden, name), getattr(golden, name)
        assert read.dtype == written.dtype
        assert read.tobytes() == written.tobytes()


def test_without_labels_there_is_no_labels_file(tmp_path, model):
    write(tmp_path / "out", model, labels=(), preprocess=None)
    assert sorted(os.listdir(tmp_path / "out")) == [f for f in FILES if f != "labels.txt"]
    assert read_bundle(tmp_path / "out").labels == ()


def test_the_same_arguments_give_the_same_bytes_wherever_and_whenever(tmp_path, model, monkeypatch):
    write(tmp_path / "first", model, export=make_export("/home/someone/runs"))
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(model, other / "renamed.onnx")
    os.utime(other / "renamed.onnx", (1, 1))
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    write(other / "second", other / "renamed.onnx", export=make_export("C:\\work\\runs"))
    for name in FILES:
        first, second = (tmp_path / "first" / name, other / "second" / name)
        assert first.read_bytes() == second.read_bytes(), name


def test_no_path_of_the_host_is_in_the_bundle(tmp_path, model):
    write(tmp_path / "out", model, export=make_export("/home/someone/runs"))
    for name in FILES:
        data = (tmp_path / "out" / name).read_bytes()
        assert b"someone" not in data
        assert str(tmp_path).encode() not in data


def test_the_digest_stands_for_every_byte_of_the_bundle(tmp_path, model, bundle):
    other_golden = make_golden()
    other_golden.inputs[0, 0] += 1
    write(tmp_path / "other", model, golden=other_golden)
    digests = {read_bundle(bundle).digest, read_bundle(tmp_path / "other").digest}
    assert len(digests) == 2


def test_an_existing_bundle_is_replaced_only_by_force(bundle, model):
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(ResdeployError, match="exists already"):
        write(bundle, model, name="new")
    assert (bundle / MANIFEST).read_bytes() == before
    write(bundle, model, name="new", force=True)
    assert read_bundle(bundle).manifest.name == "new"


def test_force_never_replaces_a_folder_that_is_not_a_bundle(tmp_path, model):
    with pytest.raises(ResdeployError, match="holds something else"):
        write(model.parent, model, force=True)
    assert model.is_file()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_crash_while_writing_leaves_nothing(tmp_path, model, failure, monkeypatch):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(bundle_folder, "readme_text", fail)
    with pytest.raises(failure):
        write(tmp_path / "out", model)
    assert os.listdir(tmp_path) == ["source"]


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ResdeployError, match="no such model") as caught:
        write(tmp_path / "out", tmp_path / "none.onnx")
    assert caught.value.where == str(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a", "b"), "2 labels for 3 outputs"),
        (("a", "b\nc", "d"), "line"),
        (("a", "", "b"), "empty"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, model, labels, message):
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "out", model, labels=labels)
    assert not (tmp_path / "out").exists()


def test_the_readme_says_what_goes_in_and_how_to_check(bundle):
    text = (bundle / "README.md").read_text(encoding="utf-8")
    for fact in ("# tiny", "resdeploy check .", "input `x`: float32, N x 4", "golden.npz", "mean"):
        assert fact in text


# --- reading: damage -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_of_any_file_is_found_and_the_file_named(bundle, name):
    path = bundle / name
    data = path.read_bytes()
    damaged = bytearray(data)
    for position in range(len(data)):
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BundleError) as caught:
            read_bundle(bundle)
        assert name in str(caught.value), position
        damaged[position] = data[position]
    path.write_bytes(data)
    read_bundle(bundle)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_no_byte_of_the_manifest_is_free(position, value):
    """Not even white space, which JSON does not care about."""
    record = {"kind": "Manifest", "schema_version": 1, "name": "tiny"}
    data = bytearray(bundle_folder._manifest_text(record).encode())
    position %= len(data)
    path = bundle_folder.Path("manifest.json")
    if data[position] == value:
        return
    data[position] = value

    class Manifest(type(path)):
        def is_file(self):
            return True

        def read_bytes(self):
            return bytes(data)

    with pytest.raises(BundleError, match=r"damaged|changed"):
        bundle_folder._read_manifest(Manifest("manifest.json"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["shorter", "longer", "empty"])
def test_another_size_is_found(bundle, name, how):
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes({"shorter": data[:-1], "longer": data + b"\n", "empty": b""}[how])
    what = "manifest" if name == MANIFEST else rf"{name} has \d+ bytes; the manifest says \d+"
    with pytest.raises(BundleError, match=what):
        read_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_removed_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        read_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_renamed_file_is_found(bundle, name):
    (bundle / name).rename(bundle / f"{name}.bak")
    with pytest.raises(BundleError, match=name):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["extra.bin", ".hidden", "model.onnx.data"])
def test_an_added_file_is_named(bundle, name):
    (bundle / name).write_bytes(b"")
    with pytest.raises(BundleError, match=rf"{name} is not in the manifest"):
        read_bundle(bundle)


def test_an_added_folder_is_named(bundle):
    (bundle / "more").mkdir()
    with pytest.raises(BundleError, match="more is not in the manifest"):
        read_bundle(bundle)


def test_two_files_that_swapped_their_names_are_found(bundle):
    (bundle / "model.onnx").rename(bundle / "x")
    (bundle / "golden.npz").rename(bundle / "model.onnx")
    (bundle / "x").rename(bundle / "golden.npz")
    with pytest.raises(BundleError, match="golden"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_a_file_is_refused_though_its_content_is_right(bundle, tmp_path, name):
    (bundle / name).rename(tmp_path / "outside")
    (bundle / name).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=name):
        read_bundle(bundle)


def test_a_hard_link_to_a_file_outside_is_refused(bundle, tmp_path):
    os.link(bundle / "model.onnx", tmp_path / "outside")
    with pytest.raises(BundleError, match=r"model\.onnx has a second name"):
        read_bundle(bundle)


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(bundle):
    (bundle / "labels.txt").unlink()
    os.mkfifo(bundle / "labels.txt")
    with pytest.raises(BundleError, match=r"labels\.txt is not an ordinary file"):
        read_bundle(bundle)


# --- reading: forged manifests -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:x", "a\0b", "manifest.json"],
)
def test_a_name_that_leaves_the_folder_is_refused(bundle, tmp_path, name):
    (tmp_path / "outside").write_bytes(b"secret")

    def add(record):
        record["files"].append({"path": name, "sha256": "0" * 64, "size_bytes": 6})

    rewrite_manifest(bundle, add)
    with pytest.raises(BundleError, match="not a file of this folder") as caught:
        read_bundle(bundle)
    assert "no resdeploy wrote it" in caught.value.fix


def test_a_file_listed_twice_is_refused_whatever_its_case(bundle):
    def add(record):
        record["files"].append({**record["files"][0], "path": "Readme.MD"})

    rewrite_manifest(bundle, add)
    with pytest.raises(BundleError, match="twice"):
        read_bundle(bundle)


def test_a_manifest_without_the_model_is_refused(bundle):
    def drop(record):
        record["files"] = [f for f in record["files"] if f["path"] != "model.onnx"]

    rewrite_manifest(bundle, drop)
    with pytest.raises(BundleError, match=r"does not list model\.onnx"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", 3), ("files", {}), ("schema_version", 99), ("kind", "Recipe"), ("surprise", 1)],
)
def test_a_record_of_another_form_is_refused_by_name(bundle, field, value):
    rewrite_manifest(bundle, lambda record: record.update({field: value}))
    with pytest.raises(BundleError, match=MANIFEST):
        read_bundle(bundle)


def test_a_number_of_labels_that_is_not_true_is_refused(bundle):
    rewrite_manifest(bundle, lambda record: record.update(num_labels=2))
    with pytest.raises(BundleError, match="3 labels; the manifest says 2"):
        read_bundle(bundle)


def test_a_golden_file_other_than_the_described_one_is_refused(bundle):
    rewrite_manifest(bundle, lambda record: record["golden"].update(source="another model"))
    with pytest.raises(BundleError, match="not the one that the manifest describes"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '"digest"', "{", "[" * 100_000, '{"digest": 1}', "\xff"]
)
def test_a_manifest_that_is_none_is_refused(bundle, text):
    (bundle / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=MANIFEST):
        read_bundle(bundle)


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match=f"no {MANIFEST}"):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "none")


# --- the golden file -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    inputs=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=3)),
    num_outputs=st.integers(1, 4),
    with_labels=st.booleans(),
)
def test_a_golden_file_gives_back_every_bit(tmp_path_factory, inputs, num_outputs, with_labels):
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    golden = dataclasses.replace(
        make_golden(len(inputs), num_outputs, with_labels=with_labels), inputs=inputs
    )
    save_golden(path, golden)
    read = load_golden(path)
    assert read.info == golden.info
    assert read.inputs.shape == inputs.shape
    assert read.inputs.tobytes() == inputs.tobytes()
    assert read.reference.tobytes() == golden.reference.tobytes()
    assert (read.labels is None) == (golden.labels is None)


def test_how_an_array_lies_in_memory_does_not_show_in_the_file(tmp_path):
    golden = make_golden()
    turned = dataclasses.replace(golden, inputs=np.asfortranarray(golden.inputs))
    save_golden(tmp_path / "a.npz", golden)
    save_golden(tmp_path / "b.npz", turned)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_plain_numpy_reads_a_golden_file(tmp_path):
    save_golden(tmp_path / "golden.npz", make_golden())
    with np.load(tmp_path / "golden.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == [
            "info",
            "inputs",
            "labels",
            "noise_l2",
            "reference",
            "sigma",
        ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("inputs", np.zeros((2, 4)), "'inputs' is float64"),
        ("inputs", np.zeros((3, 4), np.float32), "'inputs' has shape"),
        ("inputs", np.zeros(2, np.float32), "'inputs' has shape"),
        ("reference", np.zeros((2, 3), np.float32), "'reference' is float32"),
        ("reference", np.zeros((2, 3, 1)), "'reference' has shape"),
        ("noise_l2", np.zeros((2, 1)), "'noise_l2' has shape"),
        ("noise_l2", np.array([1e-7, -1e-7]), "no norm"),
        ("noise_l2", np.array([1e-7, np.nan]), "no norm"),
        ("sigma", np.zeros((2, 4)), "'sigma' has shape"),
        ("sigma", np.zeros((9, 3)), "'sigma' has shape"),
        ("sigma", np.zeros((0, 3)), "'sigma' has shape"),
        ("sigma", np.zeros(()), "'sigma' has shape"),
        ("sigma", np.zeros((2, 3), np.float32), "'sigma' is float32"),
        ("sigma", np.full((2, 3), np.nan), "no deviation"),
        ("labels", np.zeros(2, np.int32), "'labels' is int32"),
        ("labels", np.zeros((2, 1), np.int64), "'labels' has shape"),
    ],
)
def test_arrays_of_another_kind_are_neither_written_nor_read(
    tmp_path, monkeypatch, name, value, message
):
    path = tmp_path / "golden.npz"
    wrong = dataclasses.replace(make_golden(), **{name: value})
    with pytest.raises(BundleError, match=message):
        save_golden(path, wrong)
    assert not path.exists()
    with monkeypatch.context() as patch:
        patch.setattr(golden_file_module, "_check", lambda *_, **__: None)
        save_golden(path, wrong)
    with pytest.raises(BundleError, match=message):
        load_golden(path)


def test_a_golden_file_with_a_missing_or_an_unknown_array_is_refused(tmp_path):
    path = tmp_path / "golden.npz"
    save_golden(path, make_golden())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def pack(names):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, members.get(name, members["inputs.npy"]))

    pack([name for name in members if name != "noise_l2.npy"])
    with pytest.raises(BundleError, match="no array 'noise_l2'"):
        load_golden(path)
    pack([*members, "weights.npy"])
    with pytest.raises(BundleError, match="'weights' that does not belong"):
        load_golden(path)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "bomb went off"),))

    path = tmp_path / "golden.npz"
    np.savez(path, info=np.array([Bomb()], dtype=object))
    with pytest.raises(BundleError, match="cannot be read"):
        load_golden(path)
    assert os.listdir(tmp_path) == ["golden.npz"]


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read"):
        load_golden(tmp_path / "golden.npz")


def test_a_lone_array_is_refused(tmp_path):
    np.save(tmp_path / "golden.npy", np.zeros(3))
    with pytest.raises(BundleError, match="cannot be read"):
        load_golden(tmp_path / "golden.npy")


def test_a_missing_golden_file_is_named(tmp_path):
    with pytest.raises(BundleError, match="missing") as caught:
        load_golden(tmp_path / "none.npz")
    assert caught.value.where == str(tmp_path / "none.npz")


def test_a_damaged_golden_file_is_refused_or_reads_the_same(tmp_path):
    """Without a manifest beside it: whatever a byte does, nothing but BundleError comes out."""
    path = tmp_path / "golden.npz"
    save_golden(path, make_golden())
    data = path.read_bytes()
    for position in range(0, len(data), 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        try:
            read = load_golden(path)
        except BundleError:
            continue
        assert read.inputs.tobytes() == make_golden().inputs.tobytes()


def test_a_golden_file_of_before_sigma_is_still_read(tmp_path):
    path = tmp_path / "golden.npz"
    golden = dataclasses.replace(make_golden(), sigma=None)
    save_golden(path, golden)
    with np.load(path) as archive:
        arrays = dict(archive)
    info = json.loads(arrays["info"].tobytes())
    for name in ("precision_noise", "weight_noise_l2", "sigma_missing"):
        del info[name]
    arrays["info"] = np.frombuffer(json.dumps(info).encode(), np.uint8)
    np.savez(path, **arrays)
    read = load_golden(path)
    assert (read.sigma, read.info) == (None, golden.info)
