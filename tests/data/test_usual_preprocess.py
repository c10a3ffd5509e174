"""Preprocessing by name and part by part: the right numbers, and no half of a statement."""

import pytest

from resdeploy.data.usual_preprocess import USUAL, asked_preprocess, says_preprocess
from resdeploy.errors import ResdeployError
from resdeploy.recipe import load_recipe
from resdeploy.schema.files import SourceSpec
from resdeploy.schema.recipes import Preprocess

IMAGE = (3, 224, 224)


def asked(known=None, shape=IMAGE, **options):
    return asked_preprocess(SourceSpec(**options), known, shape)


def test_imagenet_is_what_the_recipe_of_the_zoo_says():
    assert asked(preprocess_as="imagenet") == load_recipe("imagenet-resnet50").preprocess


def test_each_name_is_for_images_of_the_networks_size_or_its_own():
    assert asked(preprocess_as="half", shape=(1, 28, 20)) == Preprocess(
        input_shape=(1, 28, 20), divisor=255, mean=(0.5,), std=(0.5,), color="gray"
    )
    assert asked(preprocess_as="unit").input_shape == IMAGE
    assert asked(preprocess_as="cifar10", shape=(3, 64, 64)).input_shape == (3, 32, 32)
    assert set(USUAL) == {"imagenet", "cifar10", "half", "unit"}


def test_parts_replace_those_of_the_name():
    found = asked(preprocess_as="imagenet", mean=(0.5,), std=(0.25,), resize=300, crop=(288,))
    assert found == Preprocess(
        input_shape=(3, 288, 288), divisor=255, mean=(0.5,), std=(0.25,), resize=300
    )


def test_parts_replace_what_is_known():
    known = Preprocess(input_shape=IMAGE, divisor=255, mean=(0.1,), std=(0.2,), resize=256)
    assert asked(known, std=(0.3,)).mean == (0.1,)
    assert asked(known, std=(0.3,)).std == (0.3,)
    assert asked(known, resize=300).resize == 300


def test_height_and_width_may_differ():
    assert asked(mean=(0.0,), std=(1.0,), crop=(160, 120)).input_shape == (3, 160, 120)


@pytest.mark.parametrize(
    ("mean", "std", "divisor"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 1),
        ((0.0,), (255.0,), 1),
    ],
)
def test_statistics_may_be_those_of_8_bit_pixels(mean, std, divisor):
    found = asked(mean=mean, std=std)
    assert (found.mean, found.std, found.divisor) == (mean, std, divisor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, "scale of the pixels is not known"),
        ({"std": (0.5,)}, "scale of the pixels is not known"),
        ({"crop": (224,)}, "scale of the pixels is not known"),
        ({"preprocess_as": "unit", "mean": (0.5, 0.5)}, "mean must hold 1 or 3"),
        ({"preprocess_as": "unit", "std": (0.0,)}, "must be finite and positive"),
        ({"preprocess_as": "unit", "resize": 200}, "too small to cut"),
        ({"preprocess_as": "imagenet", "crop": (288,)}, "before a crop of 288x288 is not known"),
        ({"preprocess_as": "imagenet", "input_shape": (3, 128, 128)}, "128x128 is not known"),
        (
            {"preprocess_as": "unit", "crop": (8,), "input_shape": (3, 9, 9)},
            "size that --input says",
        ),
    ],
)
def test_half_a_statement_is_refused(options, message):
    with pytest.raises(ResdeployError, match=message):
        asked(**options)


def test_a_request_that_says_nothing_is_known_as_such():
    assert not says_preprocess(SourceSpec(recipe="x", labels="imagenet", input_shape=IMAGE))
    for option in ({"mean": (0.5,)}, {"resize": 3}, {"crop": (3,)}, {"preprocess_as": "unit"}):
        assert says_preprocess(SourceSpec(**option))
