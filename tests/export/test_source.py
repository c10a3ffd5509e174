"""SRC: what a command may be given, and what each wrong thing is told."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from resdeploy.errors import ResdeployError, UnsupportedModelError
from resdeploy.export.embedded import embed_preprocess
from resdeploy.export.source import example_inputs, load_source
from resdeploy.networks import build_network
from resdeploy.schema.recipes import CheckpointInfo, ModelSpec, Preprocess, SourceSpec
from resdeploy.training.checkpoint import save_checkpoint

MODEL = ModelSpec(arch="residual_mlp", num_classes=3, options={"width": 8, "hidden_layers": 3})
OPTIONS = {name: str(value) for name, value in MODEL.options.items()}
PREPROCESS = Preprocess(input_shape=(40,), color="none")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network(MODEL).eval()


@pytest.fixture
def own(tmp_path, network):
    path = tmp_path / "checkpoint.safetensors"
    info = CheckpointInfo(model=MODEL, preprocess=PREPROCESS, labels=("a", "b", "c"))
    save_checkpoint(path, network, info)
    return path


@pytest.fixture
def foreign(tmp_path, network):
    path = tmp_path / "weights.pth"
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "best": 0.9}, path)
    return path


def same_outputs(a: nn.Module, b: nn.Module) -> bool:
    x = torch.randn(3, 40)
    with torch.no_grad():
        return torch.equal(a(x), b(x))


@pytest.mark.parametrize("as_directory", [False, True])
def test_a_checkpoint_of_ours_says_what_it_is(own, network, as_directory):
    source = load_source(SourceSpec(path=str(own.parent if as_directory else own)))
    assert same_outputs(source.module, network)
    assert not source.module.training
    assert source.info.labels == ("a", "b", "c")
    assert source.input_shape == (40,)
    assert source.description.endswith("from checkpoint.safetensors")
    assert str(own.parent) not in source.description


def test_weights_from_elsewhere_may_say_their_architecture(foreign, network):
    source = load_source(SourceSpec(path=str(foreign), arch="residual_mlp", options=OPTIONS))
    assert same_outputs(source.module, network)
    assert source.notes == ("weights: state_dict.module",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"width": "eight"}, "must be a whole number"),
        ({"block": "middle"}, "must be 'post' or 'pre'"),
        ({"no_such": "1"}, "has no option 'no_such'"),
    ],
)
def test_an_option_that_is_none_is_refused(foreign, text, message):
    with pytest.raises(ResdeployError, match=message):
        load_source(SourceSpec(path=str(foreign), arch="residual_mlp", options=OPTIONS | text))


def test_a_recipe_brings_preprocessing_and_labels(foreign):
    spec = SourceSpec(
        path=str(foreign),
        arch="residual_mlp",
        options=OPTIONS,
        recipe="mnist1d-postnorm-mlp",
    )
    info = load_source(spec).info
    assert info.preprocess.input_shape == (40,)
    assert len(info.labels) == 10


IMAGES = ModelSpec(arch="resnet8_tiny", num_classes=3)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


@pytest.fixture
def images(tmp_path):
    """Weights for images in a folder of timm's, with all that it says."""
    network = build_network(IMAGES)
    torch.save({"model": network.state_dict()}, tmp_path / "pytorch_model.bin")
    cfg = {"input_size": [3, 48, 48], "crop_pct": 0.75, "mean": MEAN, "std": STD}
    config = {"pretrained_cfg": cfg, "label_names": ["nut", "bolt", "screw"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("as_folder", [False, True])
def test_what_lies_beside_the_weights_is_taken(images, as_folder):
    path = images if as_folder else images / "pytorch_model.bin"
    source = load_source(SourceSpec(path=str(path)))
    assert source.preprocess == Preprocess(
        input_shape=(3, 48, 48), divisor=255, mean=MEAN, std=STD, resize=64
    )
    assert source.input_shape == (3, 48, 48)
    assert source.labels == ("nut", "bolt", "screw")
    assert source.notes == (
        "network: resnet8_tiny, 3 classes, by the weights' names and shapes",
        "weights: model",
        "preprocessing: from config.json",
        "class names: from config.json: label_names",
    )


def test_what_is_asked_for_comes_before_what_lies_beside(images):
    spec = SourceSpec(path=str(images), std=(1.0,), labels=str(images / "names.txt"))
    (images / "names.txt").write_text("a\nb\nc\n")
    source = load_source(spec)
    assert (source.preprocess.mean, source.preprocess.std) == (MEAN, (1.0,))
    assert source.labels == ("a", "b", "c")
    assert not any(note.startswith("preprocessing") for note in source.notes)
    half = load_source(SourceSpec(path=str(images), preprocess_as="half", input_shape=(3, 40, 40)))
    assert half.preprocess.input_shape == half.input_shape == (3, 40, 40)


def test_what_lies_beside_is_not_taken_for_another_size(images):
    source = load_source(SourceSpec(path=str(images), input_shape=(3, 32, 32)))
    assert source.preprocess is None
    assert source.input_shape == (3, 32, 32)
    assert any("not taken from config.json" in note for note in source.notes)


def test_labels_must_be_as_many_as_the_outputs(images):
    with pytest.raises(ResdeployError, match="1000 labels for 3 classes"):
        load_source(SourceSpec(path=str(images), labels="imagenet"))


def test_preprocessing_and_labels_may_be_asked_of_a_checkpoint_of_ours(tmp_path):
    info = CheckpointInfo(model=IMAGES, labels=("x", "y", "z"))
    save_checkpoint(tmp_path / "a.safetensors", build_network(IMAGES), info)
    spec = SourceSpec(path=str(tmp_path / "a.safetensors"), preprocess_as="cifar10")
    source = load_source(spec)
    assert source.preprocess.mean == (0.4914, 0.4822, 0.4465)
    assert source.labels == ("x", "y", "z")
    with pytest.raises(ResdeployError, match="one set of weights"):
        load_source(dataclasses.replace(spec, weights="ema"))


def test_a_recipe_may_hold_preprocessing_alone(images):
    recipe = images / "recipe.toml"
    recipe.write_text("[preprocess]\ninput_shape = [3, 24, 24]\ndivisor = 255\n")
    source = load_source(SourceSpec(path=str(images), recipe=str(recipe)))
    assert source.preprocess == Preprocess(input_shape=(3, 24, 24), divisor=255)
    assert source.input_shape == (3, 24, 24)
    assert source.labels == ("nut", "bolt", "screw")


def test_an_arch_that_contradicts_the_checkpoint_is_refused(own):
    with pytest.raises(ResdeployError, match="is a residual_mlp, not a resnet50") as caught:
        load_source(SourceSpec(path=str(own), arch="resnet50"))
    assert "leave --arch out" in caught.value.fix


def test_a_wrong_arch_names_the_one_that_fits(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(build_network(ModelSpec(arch="cifar_resnet20", num_classes=10)).state_dict(), path)
    with pytest.raises(ResdeployError, match="do not fit the network") as caught:
        load_source(SourceSpec(path=str(path), arch="cifar_resnet32"))
    assert "cifar_resnet20" in caught.value.fix


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "missing"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ResdeployError) as caught:
        load_source(SourceSpec(path=str(tmp_path / name), arch="resnet18"))
    assert name in caught.value.where


def test_an_onnx_file_is_not_a_source(tmp_path):
    with pytest.raises(ResdeployError, match="is an ONNX file"):
        load_source(SourceSpec(path=str(tmp_path / "model.onnx")))


def test_nothing_given_is_refused():
    with pytest.raises(ResdeployError, match="No model was given"):
        load_source(SourceSpec())


# --- factories ---


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))\n"
        "def number(): return 3\n"
        "def broken(): raise RuntimeError('no weights here')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "my_models"


def test_a_factory_makes_any_module(factories):
    spec = SourceSpec(factory=f"{factories}:net", input_shape=(3, 8, 8))
    source = load_source(spec)
    assert source.info is None
    assert not source.module.training
    assert example_inputs(source)[0].shape == (2, 3, 8, 8)


def test_a_factory_may_have_preprocessing_and_labels(factories, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    spec = SourceSpec(
        factory=f"{factories}:net",
        input_shape=(3, 8, 8),
        preprocess_as="unit",
        labels=str(tmp_path / "names.txt"),
    )
    source = load_source(spec)
    assert source.preprocess == Preprocess(input_shape=(3, 8, 8), divisor=255)
    assert source.labels == ("a", "b")
    assert embed_preprocess(source).preprocess.embedded


def test_a_factory_takes_weights_too(factories, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    spec = SourceSpec(
        path=str(tmp_path / "weights.pt"), factory=f"{factories}:net", input_shape=(3, 8, 8)
    )
    assert torch.equal(load_source(spec).module[0].weight, network[0].weight)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "RuntimeError: no weights here"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_a_factory_that_fails_is_reported(factories, function, message):
    spec = SourceSpec(factory=f"{factories}:{function}", input_shape=(3, 8, 8))
    with pytest.raises(ResdeployError, match=message):
        load_source(spec)


def test_a_factory_must_return_a_module(factories):
    spec = SourceSpec(factory=f"{factories}:number", input_shape=(3, 8, 8))
    with pytest.raises(UnsupportedModelError, match="returned int"):
        load_source(spec)


@pytest.mark.parametrize(
    "change", [{"input_shape": None}, {"factory": "my_models"}], ids=["no shape", "no function"]
)
def test_a_factory_needs_its_function_and_shape(factories, change):
    spec = SourceSpec(factory=f"{factories}:net", input_shape=(3, 8, 8))
    with pytest.raises(ResdeployError, match="needs its factory and its input shape"):
        load_source(dataclasses.replace(spec, **change))
