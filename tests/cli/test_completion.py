"""Shells complete the names of architectures, providers and recipes."""

import pytest
from click.shell_completion import ShellComplete

from resdeploy.architectures import ARCHITECTURE_NAMES
from resdeploy.cli import cli
from resdeploy.networks import ARCHITECTURES


def completed(*words: str, incomplete: str) -> list[str]:
    shell = ShellComplete(cli, {}, "resdeploy", "_RESDEPLOY_COMPLETE")
    return [item.value for item in shell.get_completions([*words], incomplete)]


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        (("export", "x.pth", "--arch"), "resnet8", ["resnet8_tiny"]),
        (("bench", "x.onnx", "--provider"), "c", ["cpu", "cuda", "coreml"]),
        (("doctor", "--provider"), "ten", ["tensorrt"]),
        (("export", "x.pth", "--recipe"), "imagenet-", ["imagenet-resnet50"]),
        (("train",), "digits-", ["digits-resnet8"]),
        ((), "ver", ["verify"]),
    ],
)
def test_a_shell_completes_a_name(words, incomplete, expected):
    assert completed(*words, incomplete=incomplete) == expected


def test_a_recipe_may_be_a_path():
    assert completed("train", incomplete="my/rec") == ["my/rec"]


def test_the_names_that_are_known_without_torch_are_those_of_the_networks():
    assert set(ARCHITECTURE_NAMES) == set(ARCHITECTURES)
    assert len(set(ARCHITECTURE_NAMES)) == len(ARCHITECTURE_NAMES)
