"""The names that other programs give to a ResNet's weights, and ours, which are torchvision's.

A scheme is a table of renamings, and an anchor, a name by which the scheme is known. What comes
before the anchor is the network's root; what lies beside the root is not renamed. Two names that
become one are no such network.

The last layer has many names, and lies beside the trunk in some programs; `CLASSIFIERS` lists them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["CLASSIFIERS", "SCHEMES", "Scheme", "View", "views"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """Names of a ResNet's tensors in one program.

    Attributes:
        program: it, for a person.
        anchor: the end of one of its names; a regular expression.
        renamings: expressions with what takes their place, on names without the root; each is
            tried in turn on a name, and the first that fits is used.
        stride_unsaid: True where bottlenecks of this program may have their stride in the 1x1
            convolution, which no shape tells.
    """

    program: str
    anchor: str
    renamings: tuple[tuple[str, str], ...]
    stride_unsaid: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The names under one root of a file, as ours.

    Attributes:
        root: what comes before each of them in the file, "" or with a dot at its end.
        scheme: the program whose names were changed; None where they are as in the file.
        names: the file's full name, by ours.
    """

    root: str
    scheme: Scheme | None
    names: Mapping[str, str]


SCHEMES = (
    # transformers/models/resnet/modeling_resnet.py: stages and layers count from 0.
    Scheme(
        program="transformers",
        anchor=r"embedder\.embedder\.convolution\.weight",
        renamings=(
            (r"embedder\.embedder\.convolution\.(.*)", r"conv1.\1"),
            (r"embedder\.embedder\.normalization\.(.*)", r"bn1.\1"),
            (
                r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.(.*)",
                r"layer{1+1}.\2.conv{3+1}.\4",
            ),
            (
                r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.(.*)",
                r"layer{1+1}.\2.bn{3+1}.\4",
            ),
            (
                r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.(.*)",
                r"layer{1+1}.\2.downsample.0.\3",
            ),
            (
                r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.(.*)",
                r"layer{1+1}.\2.downsample.1.\3",
            ),
        ),
    ),
    # detectron2/modeling/backbone/resnet.py: res2 is the first stage, a norm lies in its layer.
    # MODEL.RESNETS.STRIDE_IN_1X1 is True by default (detectron2/config/defaults.py).
    Scheme(
        program="detectron2",
        anchor=r"stem\.conv1\.norm\.running_mean",
        renamings=(
            (r"stem\.conv1\.norm\.(.*)", r"bn1.\1"),
            (r"stem\.conv1\.(weight|bias)", r"conv1.\1"),
            (r"res(\d)\.(\d+)\.conv(\d)\.norm\.(.*)", r"layer{1-1}.\2.bn\3.\4"),
            (r"res(\d)\.(\d+)\.conv(\d)\.(weight|bias)", r"layer{1-1}.\2.conv\3.\4"),
            (r"res(\d)\.(\d+)\.shortcut\.norm\.(.*)", r"layer{1-1}.\2.downsample.1.\3"),
            (r"res(\d)\.(\d+)\.shortcut\.(weight|bias)", r"layer{1-1}.\2.downsample.0.\3"),
        ),
        stride_unsaid=True,
    ),
    # kuangliu/pytorch-cifar, models/resnet.py.
    Scheme(
        program="pytorch-cifar",
        anchor=r"layer1\.0\.conv1\.weight",
        renamings=((r"(layer\d\.\d+)\.shortcut\.(.*)", r"\1.downsample.\2"),),
    ),
    # nn.Sequential(*resnet.children()), which keeps the places: conv1, bn1, relu, maxpool, layer1…
    Scheme(
        program="nn.Sequential of torchvision's children",
        anchor=r"4\.0\.conv1\.weight",
        renamings=(
            (r"0\.(weight|bias)", r"conv1.\1"),
            (r"1\.(weight|bias|running_mean|running_var|num_batches_tracked)", r"bn1.\1"),
            (r"([4-7])\.(\d+)\.(.*)", r"layer{1-3}.\2.\3"),
            (r"9\.(weight|bias)", r"fc.\1"),
        ),
    ),
)

# In the trunk's module, or in the one that it lies in. With a number, the last of an nn.Sequential
# after layers without weights: on the pooled features Dropout, Flatten and ReLU change nothing.
CLASSIFIERS = (
    *("fc", "linear", "classifier", "head", "last_linear", "logits", "cls_head"),
    *("head.fc", "cls_head.fc", "head.linear", "classifier.fc", "head.classifier"),
    *(f"{name}.{n}" for n in (0, 1, 2) for name in ("fc", "classifier", "head", "linear")),
)


def views(names: Iterable[str], anchors: Iterable[str]) -> Iterator[View]:
    """Yield the names of a file as each scheme reads them, under each root where it may.

    `anchors` are names of ours, by which roots are found whose names need no change.
    """
    names = [*names]
    for anchor in sorted(set(anchors)):
        for root in _roots(names, re.escape(anchor)):
            yield View(root=root, scheme=None, names=_below(names, root))
    for scheme in SCHEMES:
        for root in _roots(names, scheme.anchor):
            below = _below(names, root)
            renamed = {_renamed(name, scheme): full for name, full in below.items()}
            if len(renamed) == len(below) and renamed != below:
                yield View(root=root, scheme=scheme, names=renamed)


def _roots(names: Iterable[str], anchor: str) -> list[str]:
    pattern = re.compile(rf"(|.*\.){anchor}")
    return sorted({match[1] for name in names if (match := pattern.fullmatch(name))})


def _below(names: Iterable[str], root: str) -> dict[str, str]:
    return {name.removeprefix(root): name for name in names if name.startswith(root)}


def _renamed(name: str, scheme: Scheme) -> str:
    for pattern, replacement in scheme.renamings:
        if match := re.fullmatch(pattern, name):
            counted = re.sub(
                r"\{(\d)([+-]\d)\}", lambda m: str(int(match[int(m[1])]) + int(m[2])), replacement
            )
            return match.expand(counted)
    return name
