"""Recipes: the zoo is whole, and what a recipe must not say is named."""

from dataclasses import replace

import pytest

from resdeploy.errors import ResdeployError
from resdeploy.recipe import adjust_recipe, load_inputs, load_recipe, zoo, zoo_directory
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.recipes import DataSpec, Preprocess, Recipe

MINIMAL = """
[model]
arch = "resnet8_tiny"
num_classes = 2
[data]
name = "digits"
[preprocess]
input_shape = [1, 8, 8]
[train]
epochs = 1
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.toml").write_text(MINIMAL)
    return tmp_path / "mine"


def test_the_zoo_has_the_models_the_documentation_names():
    assert set(zoo()) == {
        "cifar10-resnet20",
        "digits-resnet8",
        "imagenet-resnet50",
        "mnist1d-layernorm-mlp",
        "mnist1d-postnorm-mlp",
        "mnist1d-preact-mlp",
    }


@pytest.mark.parametrize("name", zoo())
def test_every_named_model_has_a_recipe_that_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.data.path is None
    assert load_json(Recipe, dump_json(recipe), where="test") == recipe
    assert len((zoo_directory() / name / "README.md").read_text(encoding="utf-8")) > 300
    assert {p.name for p in (zoo_directory() / name).iterdir()} <= {
        "README.md",
        "labels.txt",
        "recipe.toml",
    }


@pytest.mark.parametrize("name", zoo())
def test_every_named_model_can_be_built_and_fed(name):
    torch = pytest.importorskip("torch", reason="the host part is not installed")
    from resdeploy.data.datasets import DATA_NAMES
    from resdeploy.networks import build_network
    from resdeploy.training.augment import check_augment

    recipe = load_recipe(name)
    shape = recipe.preprocess.input_shape
    check_augment(recipe.data.augment, sample_ndim=len(shape))
    assert recipe.data.name in DATA_NAMES
    with torch.device("meta"):
        logits = build_network(recipe.model)(torch.zeros(2, *shape))
    assert logits.shape == (2, recipe.model.num_classes)


def test_a_recipe_is_found_by_folder_and_by_file(folder):
    by_folder, by_file = load_recipe(folder), load_recipe(folder / "recipe.toml")
    assert by_folder == by_file
    assert by_folder.name == "mine"
    assert by_folder.labels == ()


def test_labels_stand_beside_the_recipe(folder):
    (folder / "labels.txt").write_text("no\nyes\n", encoding="utf-8")
    assert load_recipe(folder).labels == ("no", "yes")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 1", "", "The field 'epochs' is missing"),
        ("epochs = 1", "epochs = 1.5", "Expected a whole number, found 1.5"),
        ("epochs = 1", "epochs = true", "Expected a whole number, found True"),
        ("epochs = 1", "epochs = 1\nepoch = 2", "Unknown field 'epoch'"),
        ("[train]\nepochs = 1", "", "The field 'train' is missing"),
        ("input_shape = [1, 8, 8]", 'input_shape = "1x8x8"', "Expected a list"),
        ("input_shape = [1, 8, 8]", 'input_shape = [1]\ncolor = "bgr"', "Expected one of 'rgb'"),
        ("[model]", "[model", "cannot be read"),
        ("[model]", 'labels = ["a", "b"]\n[model]', "Labels belong in labels.txt"),
    ],
)
def test_refuses_what_a_recipe_must_not_say(folder, old, new, message):
    assert old in MINIMAL
    (folder / "recipe.toml").write_text(MINIMAL.replace(old, new))
    with pytest.raises(ResdeployError, match=message) as caught:
        load_recipe(folder)
    assert str(folder / "recipe.toml") in str(caught.value.where)


def test_refuses_bytes_that_are_no_text(folder):
    (folder / "recipe.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ResdeployError, match="cannot be read"):
        load_recipe(folder)


def test_refuses_labels_that_are_too_many(folder):
    (folder / "labels.txt").write_text("a\nb\nc\n")
    with pytest.raises(ResdeployError, match=r"3 labels for 2 classes(.|\n)*labels\.txt"):
        load_recipe(folder)


def test_a_recipe_may_hold_only_what_it_says(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[preprocess]\ninput_shape = [3, 8, 8]\n")
    assert load_inputs(tmp_path) == (Preprocess(input_shape=(3, 8, 8)), ())
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    assert load_inputs(tmp_path)[1] == ("no", "yes")
    recipe.write_text("")
    assert load_inputs(tmp_path) == (None, ("no", "yes"))
    with pytest.raises(ResdeployError, match="The field 'model' is missing"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "says neither how samples become inputs nor"),
        ("[preproces]\ninput_shape = [3, 8, 8]", "Unknown field 'preproces'"),
        ("[preprocess]\ndivisor = 255", "The field 'input_shape' is missing"),
    ],
)
def test_a_recipe_that_says_nothing_of_inputs_is_refused(tmp_path, text, message):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ResdeployError, match=message):
        load_inputs(tmp_path)


def test_an_unknown_name_lists_the_zoo():
    with pytest.raises(ResdeployError, match=r"no recipe 'resnet999'(.|\n)*digits-resnet8"):
        load_recipe("resnet999")


def test_adjusting_changes_what_is_asked_for_and_nothing_else(folder):
    recipe = load_recipe(folder)
    assert adjust_recipe(recipe) == recipe
    changed = adjust_recipe(recipe, data=DataSpec(name="npz", path="x.npz"), epochs=7, seed=3)
    assert (changed.train.epochs, changed.train.seed) == (7, 3)
    assert (changed.data.name, changed.data.path) == ("npz", "x.npz")
    assert changed.data.augment == recipe.data.augment
    assert replace(changed, data=recipe.data, train=recipe.train) == recipe
