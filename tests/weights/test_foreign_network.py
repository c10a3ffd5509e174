"""The network in a file from elsewhere: every wrapping comes off, every doubt is a question."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from resdeploy.errors import ResdeployError
from resdeploy.networks import build_network
from resdeploy.schema.recipes import ModelSpec
from resdeploy.weights.foreign_file import ForeignFile, read_foreign
from resdeploy.weights.foreign_network import find_network, weights_for


def weights_of(arch="resnet18", num_classes=10, seed=0, **options):
    """Return weights that take no memory: each tensor is one number, seen as its whole shape."""
    with torch.device("meta"):
        model = ModelSpec(arch=arch, num_classes=num_classes, options=options)
        wanted = build_network(model).state_dict()
    return {
        name: torch.tensor(float(seed + i)).expand(tensor.shape)
        for i, (name, tensor) in enumerate(wanted.items())
    }


def file_of(tensors, words=None, path="weights.pth"):
    return ForeignFile(path=Path(path), tensors=tensors, words=words or {})


def under(prefix, weights):
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def without(weights, *prefixes):
    return {name: t for name, t in weights.items() if not name.startswith(prefixes)}


def renamed(weights, *pairs):
    found = {}
    for name, tensor in weights.items():
        for old, new in pairs:
            name = new + name.removeprefix(old) if name.startswith(old) else name
        found[name] = tensor
    return found


def assert_found(network, weights, arch="resnet18"):
    assert network.model.arch == arch
    assert set(network.state_dict) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(network.state_dict[name], tensor), name


# --- wrappings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder."),
        *("state_dict.", "model_state_dict.module.", "params.net._orig_mod.", "weights."),
        *("module.model.backbone.resnet.", "0.", "checkpoint.state_dict.student_network."),
    ],
)
def test_any_prefix_comes_off(prefix):
    weights = weights_of()
    assert_found(find_network(file_of(under(prefix, weights))), weights)


@pytest.mark.parametrize(
    "extra",
    [
        *("criterion.weight", "loss.center", "optimizer.state.0.exp_avg"),
        *("projector.0.weight", "n_averaged", "train_acc.correct", "aux_head.weight"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_is_no_part_of_the_network_is_left_out_and_named(extra, prefix):
    weights = weights_of()
    network = find_network(file_of(under(prefix, weights) | {extra: torch.ones(3)}))
    assert_found(network, weights)
    assert f"left out: {extra.partition('.')[0]}" in network.notes[-1]


@pytest.mark.parametrize(
    "extra",
    ["layer4.1.conv3.weight", "layer1.2.conv1.weight", "fc.bias2", "attention.weight", "mean"],
)
def test_what_may_be_part_of_the_network_is_a_contradiction(extra):
    with pytest.raises(ResdeployError, match=f"1 unexpected: {extra}"):
        find_network(file_of(weights_of() | {extra: torch.ones(3)}))


def test_a_smaller_network_within_a_larger_one_is_not_found():
    assert find_network(file_of(weights_of("resnet34"))).model.arch == "resnet34"
    assert find_network(file_of(weights_of("cifar_resnet32", shortcut="B"))).model.arch == (
        "cifar_resnet32"
    )


def test_counters_may_be_missing_and_statistics_may_not():
    weights = {n: t for n, t in weights_of().items() if not n.endswith("num_batches_tracked")}
    assert_found(find_network(file_of(weights)), weights)
    del weights["bn1.running_var"]
    with pytest.raises(ResdeployError, match=r"nearest is resnet18: 1 missing: bn1\.running_var"):
        find_network(file_of(weights))


# --- raw and averaged -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("state_dict.model.", "state_dict.ema_model.module."),
        ("state_dict.model.", "state_dict.model_ema."),
        ("student.", "model_ema."),
        ("model.", "state_dict_ema."),
        ("state_dict.model.", "callbacks.EMACallback.ema_weights."),
        ("net.", "swa_model."),
        ("online.", "ema."),
    ],
)
def test_raw_and_averaged_weights_are_a_choice(raw, averaged):
    one, other = weights_of(), weights_of(seed=1)
    file = file_of(under(raw, one) | under(averaged, other))
    with pytest.raises(ResdeployError, match="2 sets of weights") as caught:
        find_network(file)
    assert "--weights raw or --weights ema" in caught.value.fix
    assert_found(find_network(file, weights="raw"), one)
    assert_found(find_network(file, weights="ema"), other)
    assert_found(find_network(file, weights=averaged.removesuffix(".")), other)


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("state_dict.", "state_dict_ema."),
        ("state_dict.module.", "state_dict_ema.module."),
        ("state_dict.module._orig_mod.", "state_dict_ema."),
        ("model.", "model_ema."),
        ("model.", "model_ema.module."),
    ],
)
def test_averaged_weights_of_a_training_script_come_before_the_raw_ones(raw, averaged):
    one, other = weights_of(), weights_of(seed=1)
    file = file_of(
        under(raw, one) | under(averaged, other) | {"model_ema.n_averaged": torch.tensor(3)}
    )
    network = find_network(file)
    assert_found(network, other)
    title = averaged.removesuffix(".")
    said = f"weights: the averaged ones ({title}), as timm loads them; --weights raw for the others"
    assert said in network.notes
    assert any(
        note.startswith("left out: ") and raw.partition(".")[0] in note for note in network.notes
    )
    raw_network = find_network(file, weights="raw")
    assert_found(raw_network, one)
    assert f"weights: {raw.removesuffix('.')}" in raw_network.notes
    assert f"weights: {title}" in find_network(file, weights="ema").notes


def test_averaged_weights_beside_two_raw_sets_are_a_choice():
    sets = ("state_dict.", "state_dict_ema.", "best.")
    tensors = {}
    for seed, prefix in enumerate(sets):
        tensors |= under(prefix, weights_of(seed=seed))
    with pytest.raises(ResdeployError, match="3 sets of weights"):
        find_network(file_of(tensors))


def test_averaged_weights_alone_need_no_choice():
    weights = weights_of()
    file = file_of(under("model_ema.", weights))
    assert_found(find_network(file), weights)
    with pytest.raises(ResdeployError, match="no weights 'raw' in this file; it has model_ema"):
        find_network(file, weights="raw")


def test_two_sets_of_the_same_bits_are_one():
    weights = weights_of()
    file = file_of(under("state_dict_ema.", weights) | under("state_dict.", weights))
    assert "weights: state_dict" in find_network(file).notes


def test_student_and_teacher_are_told_apart_by_their_prefix():
    student, teacher = weights_of(), weights_of(seed=1)
    file = file_of(under("student.", student) | under("teacher.", teacher))
    with pytest.raises(ResdeployError, match="2 sets of weights: student, teacher") as caught:
        find_network(file)
    assert "--weights student or --weights teacher" in caught.value.fix
    assert_found(find_network(file, weights="teacher"), teacher)
    with pytest.raises(ResdeployError, match="no weights 'tutor'"):
        find_network(file, weights="tutor")


# --- names of other programs ----------------------------------------------------------------------


def transformers_names(weights):
    found = {}
    for name, tensor in weights.items():
        first, *rest = name.split(".")
        kinds = {
            "conv": "convolution",
            "bn": "normalization",
            "0": "convolution",
            "1": "normalization",
        }
        if first in ("conv1", "bn1"):
            new = f"resnet.embedder.embedder.{kinds[first[:-1]]}.{rest[0]}"
        elif first == "fc":
            new = f"classifier.1.{rest[0]}"
        else:
            block = f"resnet.encoder.stages.{int(first[5:]) - 1}.layers.{rest[0]}"
            if rest[1] == "downsample":
                new = f"{block}.shortcut.{kinds[rest[2]]}.{rest[3]}"
            else:
                new = f"{block}.layer.{int(rest[1][-1]) - 1}.{kinds[rest[1][:-1]]}.{rest[2]}"
        found[new] = tensor
    return found


def detectron2_names(weights):
    found = {}
    for name, tensor in weights.items():
        first, *rest = name.split(".")
        if name.endswith("num_batches_tracked"):
            continue
        if first == "conv1":
            new = f"stem.conv1.{rest[0]}"
        elif first == "bn1":
            new = f"stem.conv1.norm.{rest[0]}"
        elif first == "fc":
            new = f"linear.{rest[0]}"
        else:
            new = f"res{int(first[5:]) + 1}.{rest[0]}."
            if rest[1] == "downsample":
                new += f"shortcut.{'norm.' if rest[2] == '1' else ''}{rest[3]}"
            elif rest[1].startswith("bn"):
                new += f"conv{rest[1][2:]}.norm.{rest[2]}"
            else:
                new += ".".join(rest[1:])
        found[new] = tensor
    return found


def children_names(weights):
    places = {"conv1": "0", "bn1": "1"} | {f"layer{n}": str(n + 3) for n in range(1, 5)}
    return {
        f"{places[name.partition('.')[0]]}.{name.partition('.')[2]}": tensor
        for name, tensor in without(weights, "fc.").items()
    }


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("prefix", ["", "model.", "state_dict.module."])
def test_transformers_names_are_read(arch, prefix):
    weights = weights_of(arch)
    network = find_network(file_of(under(prefix, transformers_names(weights))))
    assert_found(network, weights, arch)
    assert "names: those of transformers" in network.notes
    assert f"classifier: {prefix}classifier.1" in network.notes


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up.", "model.backbone."])
def test_detectron2_names_are_read(prefix):
    weights = weights_of()
    network = find_network(file_of(under(prefix, detectron2_names(weights))))
    assert_found(network, without_counters(weights))


def without_counters(weights):
    return {n: t for n, t in weights.items() if not n.endswith("num_batches_tracked")}


def test_the_stride_of_detectron2s_bottlenecks_must_be_said(tmp_path):
    weights = weights_of("resnet50")
    file = file_of(detectron2_names(weights), path=tmp_path / "model_final.pth")
    with pytest.raises(ResdeployError, match="STRIDE_IN_1X1") as caught:
        find_network(file)
    assert "--arch resnet50" in caught.value.fix
    assert_found(find_network(file, arch="resnet50"), without_counters(weights), "resnet50")
    config = tmp_path / "config.yaml"
    config.write_text("MODEL:\n  RESNETS:\n    STRIDE_IN_1X1: true\n")
    with pytest.raises(ResdeployError, match="STRIDE_IN_1X1"):
        find_network(file)
    config.write_text("MODEL:\n  RESNETS:\n    STRIDE_IN_1X1: false\n")
    assert find_network(file).model.arch == "resnet50"


@pytest.mark.parametrize(
    "head", ["head.fc.", "head.", "classifier.", "fc.", "cls_head.fc.", "linear."]
)
def test_a_classifier_beside_the_trunk_is_found(head):
    weights = weights_of()
    trunk = under("backbone.", without(weights, "fc."))
    tensors = trunk | {f"{head}{leaf}": weights[f"fc.{leaf}"] for leaf in ("weight", "bias")}
    network = find_network(file_of(under("state_dict.", tensors)))
    assert_found(network, weights)
    assert f"classifier: state_dict.{head.removesuffix('.')}" in network.notes


def test_a_classifier_among_other_layers_is_none():
    weights = weights_of()
    trunk = under("backbone.", without(weights, "fc."))
    head = {"head.0.weight": weights["fc.weight"], "head.0.bias": weights["fc.bias"]}
    assert find_network(file_of(trunk | head))
    for more in ("head.2.weight", "head.norm.weight"):
        with pytest.raises(ResdeployError, match=r"2 missing: fc\.weight, fc\.bias"):
            find_network(file_of(trunk | head | {more: torch.ones(3)}))
    with pytest.raises(ResdeployError, match=r"2 missing: fc\.weight, fc\.bias"):
        find_network(file_of(trunk | head | renamed(head, ("head.0.", "classifier."))))


def test_a_trunk_without_a_classifier_gives_features():
    weights = without(weights_of(), "fc.")
    network = find_network(file_of(weights))
    assert_found(network, weights)
    assert network.model.num_classes == 0
    assert "resnet18, without a head, its outputs are features" in network.notes[0]


@pytest.mark.parametrize("name", ["last_linear", "classifier", "fc.1", "linear"])
def test_the_classifier_may_have_another_usual_name(name):
    weights = weights_of()
    network = find_network(file_of(renamed(weights, ("fc.", f"{name}."))))
    assert_found(network, weights)


def test_the_children_of_a_network_in_a_row_are_read():
    weights = weights_of()
    tensors = under("feature_extractor.", children_names(weights)) | {
        f"classifier.{leaf}": weights[f"fc.{leaf}"] for leaf in ("weight", "bias")
    }
    assert_found(find_network(file_of(tensors)), weights)


def test_shortcut_of_a_cifar_resnet_keeps_its_name():
    weights = weights_of("cifar_resnet20", shortcut="B")
    network = find_network(file_of(renamed(weights, ("linear.", "fc."))))
    assert_found(network, weights, "cifar_resnet20")
    assert network.model.options == {"shortcut": "B"}


# --- the architecture -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet50", {}),
        ("wide_resnet50_2", {}),
        ("resnext50_32x4d", {}),
        ("resnet18", {"in_channels": 1}),
        ("resnet34", {"in_channels": 4}),
        ("resnet18_layernorm", {}),
        ("cifar_resnet20", {"shortcut": "B", "width": 32, "in_channels": 1}),
        ("cifar_resnet20", {"shortcut": "C"}),
        ("cifar_preact_resnet20", {"shortcut": "B"}),
        ("cifar_preact_resnet32", {"width": 8}),
        ("resnet8_tiny", {"in_channels": 1}),
    ],
)
def test_shapes_tell_the_architecture_and_its_options(arch, options):
    weights = weights_of(arch, num_classes=7, **options)
    network = find_network(file_of(under("model.", weights)))
    assert_found(network, weights, arch)
    assert network.model == ModelSpec(arch=arch, num_classes=7, options=options)
    assert network.notes[0].startswith(f"network: {arch}")


def test_networks_that_shapes_do_not_tell_apart_are_listed():
    file = file_of(weights_of("cifar_resnet20"))
    with pytest.raises(ResdeployError, match="fit 2 networks") as caught:
        find_network(file)
    assert caught.value.fix == "say which it is: --arch cifar_resnet20 or --arch cifar_plain20"
    assert find_network(file, arch="cifar_plain20").model.arch == "cifar_plain20"


@pytest.mark.parametrize(
    "words",
    [
        {"arch": "cifar_resnet20"},
        {"args": {"model": "cifar_resnet20"}},
        {"hyper_parameters": {"arch": "cifar_plain20", "backbone": "resnet"}},
        {"config": {"model_name": "CIFAR_ResNet-20"}},
    ],
)
def test_the_words_of_a_file_decide_what_shapes_do_not(words):
    network = find_network(file_of(weights_of("cifar_resnet20"), words))
    assert network.model.arch in json.dumps(words).lower().replace("-", "")


@pytest.mark.parametrize("word", ["resnetblur50", "resnetaa50d", "resnet50_caffe", "resnet_msra50"])
def test_a_network_that_only_looks_like_ours_is_refused_by_name(word):
    file = file_of(weights_of("resnet50"), {"arch": word})
    with pytest.raises(ResdeployError, match=f"says that it is a {word}") as caught:
        find_network(file)
    assert "give --arch resnet50" in caught.value.fix
    assert find_network(file, arch="resnet50").model.arch == "resnet50"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("downsample_in_bottleneck", True),
        ("downsample_in_first_stage", True),
    ],
)
def test_a_variant_of_transformers_is_refused_by_name(tmp_path, key, value):
    config = {"model_type": "resnet", "hidden_act": "relu"}
    file = file_of(transformers_names(weights_of()), path=tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_network(file).model.arch == "resnet18"
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ResdeployError, match=key):
        find_network(file)


def test_a_wrong_architecture_is_answered_with_the_one_that_fits():
    file = file_of(under("module.", weights_of("cifar_resnet20", shortcut="B")))
    with pytest.raises(ResdeployError, match="do not fit the network") as caught:
        find_network(file, arch="cifar_resnet32")
    assert caught.value.fix == "these weights fit --arch cifar_resnet20 --arch-option shortcut=B"


def test_options_that_are_given_are_kept():
    file = file_of(weights_of("cifar_resnet20", shortcut="B"))
    with pytest.raises(ResdeployError, match="do not fit"):
        find_network(file, arch="cifar_resnet20", options={"shortcut": "A"})
    with pytest.raises(ResdeployError, match="no option 'no_such'"):
        find_network(file, arch="cifar_resnet20", options={"no_such": "1"})
    with pytest.raises(ResdeployError, match="no architecture 'resnet51'"):
        find_network(file, arch="resnet51")


def test_weights_of_something_else_are_listed():
    with pytest.raises(ResdeployError, match=r"such weights: a\.weight") as caught:
        find_network(file_of({"a.weight": torch.ones(2, 2)}))
    assert "--model package.module:function" in caught.value.fix


def test_the_published_resnet20_is_found(shared_data):
    file = read_foreign(shared_data / "resnet20-12fca82f.th")
    network = find_network(file, arch="cifar_resnet20")
    assert network.model == ModelSpec(arch="cifar_resnet20", num_classes=10)
    assert "weights: state_dict.module" in network.notes


def test_a_training_checkpoint_is_read_from_its_file(tmp_path):
    """Timm's and torchvision's scripts save their arguments and a score beside the weights."""
    weights = build_network(ModelSpec(arch="resnet8_tiny", num_classes=3)).state_dict()
    content = {"state_dict": weights, "args": argparse.Namespace(lr=1), "epoch": 3, "optimizer": {}}
    torch.save(content, tmp_path / "a.pth.tar")
    assert_found(find_network(read_foreign(tmp_path / "a.pth.tar")), weights, "resnet8_tiny")


# --- into a module of any architecture ------------------------------------------------------------


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model.net."])
def test_the_weights_of_any_module_lose_their_prefix(prefix):
    module = small()
    tensors = under(prefix, module.state_dict()) | {"criterion.weight": torch.ones(1)}
    found, notes = weights_for(module, file_of(tensors))
    assert set(found) == set(module.state_dict())
    assert notes[-1] == "left out: criterion (1 tensor)"


def test_weights_that_do_not_fit_a_module_are_listed():
    tensors = under("net.", small().state_dict())
    del tensors["net.0.weight"]
    with pytest.raises(ResdeployError, match=r"do not fit the module. 1 missing: 0\.weight"):
        weights_for(small(), file_of(tensors))


def test_a_module_with_averaged_weights_beside_it_is_a_choice():
    tensors = under("model.", small().state_dict()) | under("ema.", small().state_dict())
    with pytest.raises(ResdeployError, match="2 sets of weights"):
        weights_for(small(), file_of(tensors))
    found, _ = weights_for(small(), file_of(tensors), weights="ema")
    assert torch.equal(found["0.weight"], tensors["ema.0.weight"])


def test_a_module_takes_the_averaged_weights_of_a_training_script():
    tensors = under("model.", small().state_dict()) | under("model_ema.", small().state_dict())
    found, notes = weights_for(small(), file_of(tensors))
    assert torch.equal(found["0.weight"], tensors["model_ema.0.weight"])
    assert notes[0].startswith("weights: the averaged ones (model_ema)")
