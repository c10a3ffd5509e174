"""Class names: every usual file, in the order of the outputs, or refused."""

import hashlib

import pytest

from resdeploy.data.labels import load_labels
from resdeploy.errors import ResdeployError

NAMES = ("bolt", "great white shark", "nut")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "bolt\ngreat white shark\nnut\n"),
        ("labels.txt", "\ufeffbolt\r\ngreat white shark\r\nnut\r\n\r\n"),
        ("labels.txt", "0 bolt\n1 great white shark\n2 nut"),
        ("labels.txt", "2: nut\n0: bolt\n1: great white shark\n"),
        ("classes.names", "0, bolt\n1,great white shark\n2,nut\n"),
        ("labels.json", '["bolt", "great white shark", "nut"]'),
        ("labels.json", '{"2": "nut", "0": "bolt", "1": "great white shark"}'),
        ("labels.json", '{"nut": 2, "bolt": 0, "great white shark": 1}'),
        (
            "imagenet_class_index.json",
            '{"0": ["n1", "bolt"], "1": ["n2", "great white shark"], "2": ["n3", "nut"]}',
        ),
        ("labels.csv", "bolt\ngreat white shark\nnut\n"),
        ("labels.csv", "name\nbolt\ngreat white shark\nnut\n"),
        ("labels.csv", "index,name\n1,great white shark\n0,bolt\n2,nut\n"),
        ("labels.csv", "bolt,0\ngreat white shark,1\nnut,2\n"),
        ("labels.csv", 'id,class_name,wnid\n0,bolt,n1\n1,"great white shark",n2\n2,nut,n3\n'),
    ],
)
def test_the_usual_files_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_labels(tmp_path / name) == NAMES


def test_numbers_may_be_names(tmp_path):
    (tmp_path / "labels.txt").write_text("0\n1\n2\n")
    assert load_labels(tmp_path / "labels.txt") == ("0", "1", "2")


@pytest.mark.parametrize("part", ["", "train", "val"])
def test_a_folder_of_class_folders_is_read(tmp_path, part):
    for name in ("nut", "bolt", ".git"):
        (tmp_path / part / name).mkdir(parents=True)
    (tmp_path / part / "Thumbs.db").touch()
    assert load_labels(tmp_path) == ("bolt", "nut")


def test_imagenets_names_are_in_the_package():
    """The digest is that of torchvision's list, one name a line."""
    names = load_labels("imagenet")
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[281], names[999]) == ("tench", "tabby", "toilet tissue")
    digest = hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
    assert digest == "ee4fa67b1dd46919ef87529b70e25bdd1ec9ebd350de3ad426e6640eb70320a1"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "bolt\n\nnut\n", "not every entry is a name"),
        ("a.txt", "", "neither a list nor a table"),
        ("a.json", "[", "no class names"),
        ("a.json", "3", "neither a list nor a table"),
        ("a.json", "[]", "neither a list nor a table"),
        ("a.json", '["a", 3]', "not every entry is a name"),
        ("a.json", '{"1": "a", "2": "b"}', "indices are not 0 to 1"),
        ("a.json", '{"a": "b"}', "'a' is no index"),
        ("a.csv", "a,b\nc,d\n", "which column"),
        ("a.csv", "a,b\nc\n", "not of one length"),
        ("a.csv", "index,name\n1,a\n2,b\n", "indices are not 0 to 1"),
    ],
)
def test_what_are_no_names_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ResdeployError, match=message) as caught:
        load_labels(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)


def test_bytes_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ResdeployError, match="cannot be read"):
        load_labels(tmp_path / "a.txt")
    with pytest.raises(ResdeployError, match="no labels"):
        load_labels(tmp_path / "gone.txt")
    with pytest.raises(ResdeployError, match="holds no class folders"):
        load_labels(tmp_path)
