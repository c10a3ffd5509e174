"""Names of other programs: each becomes ours, and whatever would be two things is nothing."""

import pytest

from resdeploy.weights.naming import SCHEMES, views


def view_of(program, names, anchors=("conv1.weight",)):
    return [
        v for v in views(names, anchors) if v.scheme is not None and v.scheme.program == program
    ]


@pytest.mark.parametrize(
    ("program", "anchor", "theirs", "ours"),
    [
        *(
            ("transformers", "embedder.embedder.convolution.weight", theirs, ours)
            for theirs, ours in (
                ("embedder.embedder.convolution.weight", "conv1.weight"),
                ("embedder.embedder.normalization.running_var", "bn1.running_var"),
                ("encoder.stages.0.layers.2.layer.1.convolution.weight", "layer1.2.conv2.weight"),
                ("encoder.stages.3.layers.0.layer.2.normalization.bias", "layer4.0.bn3.bias"),
                (
                    "encoder.stages.1.layers.0.shortcut.convolution.weight",
                    "layer2.0.downsample.0.weight",
                ),
                (
                    "encoder.stages.1.layers.0.shortcut.normalization.bias",
                    "layer2.0.downsample.1.bias",
                ),
            )
        ),
        *(
            ("detectron2", "stem.conv1.norm.running_mean", theirs, ours)
            for theirs, ours in (
                ("stem.conv1.weight", "conv1.weight"),
                ("stem.conv1.norm.running_mean", "bn1.running_mean"),
                ("res2.0.conv1.weight", "layer1.0.conv1.weight"),
                ("res5.2.conv3.norm.weight", "layer4.2.bn3.weight"),
                ("res3.0.shortcut.weight", "layer2.0.downsample.0.weight"),
                ("res3.0.shortcut.norm.bias", "layer2.0.downsample.1.bias"),
            )
        ),
        *(
            ("pytorch-cifar", "layer1.0.conv1.weight", theirs, ours)
            for theirs, ours in (
                ("layer2.0.shortcut.0.weight", "layer2.0.downsample.0.weight"),
                ("layer2.0.shortcut.1.running_mean", "layer2.0.downsample.1.running_mean"),
            )
        ),
        *(
            ("nn.Sequential of torchvision's children", "4.0.conv1.weight", theirs, ours)
            for theirs, ours in (
                ("0.weight", "conv1.weight"),
                ("1.running_mean", "bn1.running_mean"),
                ("4.0.conv1.weight", "layer1.0.conv1.weight"),
                ("7.1.downsample.0.weight", "layer4.1.downsample.0.weight"),
            )
        ),
    ],
)
@pytest.mark.parametrize("root", ["", "state_dict.model.backbone."])
def test_each_name_becomes_ours_under_any_root(program, anchor, theirs, ours, root):
    names = dict.fromkeys((f"{root}{anchor}", f"{root}{theirs}", "beside.weight"))
    (view,) = view_of(program, names)
    assert view.root == root
    assert view.names[ours] == f"{root}{theirs}"
    assert "beside.weight" not in view.names or not root


def test_every_scheme_says_its_program_and_has_renamings():
    assert len({scheme.program for scheme in SCHEMES}) == len(SCHEMES) >= 4
    assert all(scheme.renamings for scheme in SCHEMES)


def test_two_names_that_become_one_are_no_such_network():
    names = ["layer1.0.conv1.weight", "layer1.0.shortcut.0.weight", "layer1.0.downsample.0.weight"]
    assert view_of("pytorch-cifar", names[:2])
    assert not view_of("pytorch-cifar", names)


def test_names_of_ours_are_seen_under_each_root():
    names = ["a.conv1.weight", "a.b.conv1.weight", "xconv1.weight", "conv1.weight.more"]
    assert [view.root for view in views(names, {"conv1.weight"})] == ["a.", "a.b."]
