"""What lies beside weights: taken as its program means it, or not, with the reason."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resdeploy.data.preprocess import load_image
from resdeploy.schema.recipes import Preprocess
from resdeploy.weights.beside import class_names, preprocessing, stated_architectures
from resdeploy.weights.foreign_file import ForeignFile

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM = {
    "input_size": [3, 224, 224],
    "crop_pct": 0.95,
    "interpolation": "bicubic",
    "mean": MEAN,
    "std": STD,
}
CONVNEXT = {
    "size": {"shortest_edge": 224},
    "crop_pct": 0.875,
    "resample": 3,
    "image_mean": MEAN,
    "image_std": STD,
}
VIT = {"size": {"height": 224, "width": 192}, "image_mean": [0.5], "image_std": [0.5]}
BIT = {
    "size": {"shortest_edge": 256},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": MEAN,
    "image_std": STD,
}


def file_in(folder, words=None):
    return ForeignFile(path=folder, tensors={"w": torch.ones(1)}, words=words or {})


def beside(folder, channels=3, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return preprocessing(file_in(folder), channels=channels)


# --- preprocessing --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"resize": 235}),
        ({"crop_pct": 0.875}, {"resize": 256}),
        ({"crop_pct": 1.0}, {"resize": 224}),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, {"resize": None}),
        ({"interpolation": "bilinear", "crop_mode": "center"}, {"interpolation": "bilinear"}),
        (
            {"input_size": [3, 288, 288], "crop_pct": 0.9},
            {"input_shape": (3, 288, 288), "resize": 320},
        ),
    ],
)
def test_timms_pretrained_cfg_is_read(tmp_path, change, expected):
    base = {"resize": 235, "interpolation": "bicubic", "input_shape": (3, 224, 224)}
    found = beside(tmp_path, config={"architecture": "resnet50", "pretrained_cfg": TIMM | change})
    assert found.value == Preprocess(divisor=255, mean=MEAN, std=STD, **base | expected)
    assert found.source == "config.json"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (CONVNEXT, {"resize": 256, "interpolation": "bicubic"}),
        (CONVNEXT | {"size": 224}, {"resize": 256, "interpolation": "bicubic"}),
        (
            CONVNEXT | {"size": {"shortest_edge": 384}},
            {"resize": None, "input_shape": (3, 384, 384)},
        ),
        (
            {k: v for k, v in CONVNEXT.items() if k not in ("crop_pct", "resample")}
            | {"image_processor_type": "ConvNextImageProcessor"},
            {"resize": 256, "interpolation": "bicubic"},
        ),
        (
            CONVNEXT | {"image_processor_type": "ConvNextImageProcessorFast"},
            {"resize": 256, "crop_corner": "round"},
        ),
        (VIT, {"input_shape": (3, 224, 192), "mean": (0.5,), "std": (0.5,), "resize": None}),
        (BIT, {"resize": 256}),
        (BIT | {"size": 256, "crop_size": 224}, {"resize": 256}),
        (BIT | {"resample": 0}, {"interpolation": "nearest"}),
        (BIT | {"rescale_factor": 1 / 127.5}, {"divisor": 127.5}),
        (BIT | {"do_rescale": False}, {"divisor": 1.0}),
        (BIT | {"do_normalize": False}, {"mean": (0.0,), "std": (1.0,)}),
    ],
)
def test_image_processors_of_transformers_are_read(tmp_path, content, expected):
    found = beside(tmp_path, preprocessor_config=content).value
    assert (found.divisor, found.crop_corner) == (
        expected.get("divisor", 255.0),
        expected.get("crop_corner", "floor"),
    )
    for name, value in expected.items():
        assert getattr(found, name) == value


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BIT | {"do_flip_channel_order": True}, "do_flip_channel_order"),
        (BIT | {"do_pad": True}, "do_pad"),
        (BIT | {"do_resize": False}, "do_resize"),
        (BIT | {"resample": 4}, "a filter that ours has not"),
        ({k: v for k, v in BIT.items() if k != "image_mean"}, "does not say image_mean"),
        ({k: v for k, v in BIT.items() if k != "do_center_crop"}, "uncut"),
        (BIT | {"size": {"height": 256, "width": 256}}, "squeezes"),
        (BIT | {"size": "large"}, "not in its program's form"),
        (BIT | {"image_std": [0.0]}, "finite and positive"),
        (BIT | {"crop_size": 288}, "too small to cut"),
    ],
)
def test_steps_that_ours_has_not_are_named(tmp_path, content, reason):
    found = beside(tmp_path, preprocessor_config=content)
    assert found.value is None
    assert reason in found.refusal


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crop_mode": "border"}, "crop_mode border"),
        ({"input_size": [3, 224, 192]}, "crop_mode center"),
        ({"interpolation": "hamming"}, "hamming"),
        ({"mean": None}, "not in its program's form"),
    ],
)
def test_what_timm_does_and_ours_cannot_is_named(tmp_path, change, reason):
    assert reason in beside(tmp_path, config={"pretrained_cfg": TIMM | change}).refusal


def test_a_size_that_is_asked_for_is_not_that_of_the_file(tmp_path):
    beside(tmp_path, config={"pretrained_cfg": TIMM})
    found = preprocessing(file_in(tmp_path), channels=3, input_shape=(3, 288, 288))
    assert found.refusal == "it is for samples of (3, 224, 224)"


@pytest.mark.parametrize("content", ["", "[", "[1]", '{"id2label": {}}'])
def test_files_that_say_nothing_say_nothing(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    assert preprocessing(file_in(tmp_path), channels=3) is None


@pytest.mark.parametrize("width", [300, 301, 303, 305])
@pytest.mark.parametrize("corner", ["round", "floor"])
def test_the_corner_of_an_odd_margin_is_that_of_the_program(width, corner):
    """transformers: (width - crop) // 2; torchvision: int(round((width - crop) / 2))."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, width, 3), dtype=np.uint8)
    spec = Preprocess(input_shape=(3, 224, 224), resize=256, crop_corner=corner)
    left = (width - 224) // 2 if corner == "floor" else round((width - 224) / 2)
    found = load_image(Image.fromarray(pixels), spec)
    assert np.array_equal(found, pixels[16:240, left : left + 224].transpose(2, 0, 1))


# --- class names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        {"classes": ["bolt", "nut"]},
        {"class_to_idx": {"nut": 1, "bolt": 0}},
        {"hyper_parameters": {"class_names": ["bolt", "nut"], "lr": 0.1}},
        {"hyper_parameters": {"labels": {0: "bolt", 1: "nut"}}},
        {"meta": {"CLASSES": ["bolt", "nut"]}},
        {"meta": {"dataset_meta": {"classes": ["bolt", "nut"]}}},
        {"args": {"names": {"0": "bolt", "1": "nut"}}},
    ],
)
def test_class_names_in_the_file_are_taken(tmp_path, words):
    found = class_names(file_in(tmp_path, words), 2)
    assert found.value == ("bolt", "nut")
    assert next(iter(words)) in found.source


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"id2label": {"1": "nut", "0": "bolt"}}),
        ("config.json", {"label_names": ["bolt", "nut"]}),
        (
            "config.json",
            {
                "pretrained_cfg": {
                    "label_names": ["a", "b"],
                    "label_descriptions": {"a": "bolt", "b": "nut"},
                }
            },
        ),
        ("class_names.json", ["bolt", "nut"]),
        ("idx_to_class.json", {"0": "bolt", "1": "nut"}),
        ("class_to_idx.json", {"bolt": 0, "nut": 1}),
    ],
)
def test_class_names_beside_the_file_are_taken(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    found = class_names(file_in(tmp_path), 2)
    assert found.value == ("bolt", "nut")
    assert found.source.startswith(name)


@pytest.mark.parametrize("name", ["labels.txt", "classes.txt"])
def test_a_list_beside_the_file_is_taken(tmp_path, name):
    (tmp_path / name).write_text("bolt\nnut\n")
    assert class_names(file_in(tmp_path), 2).value == ("bolt", "nut")
    assert class_names(file_in(tmp_path), 3).refusal == "it names 2 classes, the network has 3"


def test_placeholders_are_no_names(tmp_path):
    (tmp_path / "config.json").write_text('{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}')
    assert class_names(file_in(tmp_path), 2) is None


def test_names_that_are_none_are_named(tmp_path):
    (tmp_path / "labels.txt").write_text("bolt\n\nnut\n")
    assert "not every entry is a name" in class_names(file_in(tmp_path), 2).refusal


# --- the architecture -----------------------------------------------------------------------------


def test_a_config_belongs_to_weights_of_its_program_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnetblur50"}')
    assert stated_architectures(file_in(tmp_path)) == [
        ("resnetblur50", "config.json: architecture")
    ]
    assert stated_architectures(file_in(tmp_path / "model.safetensors"))
    assert stated_architectures(file_in(tmp_path / "mine.pth")) == []


def test_a_file_names_its_architecture_in_its_settings():
    words = {"arch": "a", "args": {"model": "b", "lr": 1}, "hyper_parameters": {"backbone": "c"}}
    found = stated_architectures(file_in(Path("none"), words))
    assert [word for word, _ in found] == ["a", "c", "b"]
