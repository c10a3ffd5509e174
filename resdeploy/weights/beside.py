"""What lies beside weights: preprocessing, class names and the architecture, as their program says.

Each source is read as its program reads it, or not at all: what our `Preprocess` cannot express is
a refusal with its reason. Nothing is guessed from a file's name.

    preprocessor_config.json   transformers: Resize, CenterCrop, rescale and normalize
    config.json                timm: pretrained_cfg; transformers: id2label; both: the architecture
    labels.txt, classes.txt, class_names.json, …
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from resdeploy.data.labels import load_labels, names_in_order
from resdeploy.data.preprocess import check_preprocess
from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import Preprocess
from resdeploy.weights.foreign_file import ForeignFile

__all__ = [
    "Found",
    "class_names",
    "preprocessing",
    "stated_architectures",
    "transformers_config",
]

T_co = TypeVar("T_co", covariant=True)

_LABEL_FILES = (
    *(
        f"{name}.{kind}"
        for name in ("labels", "classes", "class_names")
        for kind in ("txt", "json")
    ),
    *("idx_to_class.json", "class_to_idx.json", "class_indices.json", "id2label.json"),
    *("labels.csv", "classes.csv"),
)
# Entries of a checkpoint that hold settings, and what they call the class names.
_SETTINGS = (
    *("hyper_parameters", "datamodule_hyper_parameters", "hparams", "args", "config", "cfg"),
    *("meta", "meta.dataset_meta"),
)
_NAME_KEYS = (
    *("class_names", "classes", "CLASSES", "labels", "label_names", "id2label", "label2id"),
    *("idx_to_class", "class_to_idx", "idx2label", "categories", "target_names", "names"),
)
_ARCH_KEYS = ("architecture", "arch", "model", "model_name", "backbone", "encoder", "encoder_name")
# PIL.Image.Resampling.
_FILTERS: Mapping[int, Literal["nearest", "lanczos", "bilinear", "bicubic"]] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[T_co]):
    """Something that a file beside the weights says, and which file that is.

    Attributes:
        value: it; None where it was not taken.
        source: the file, or the entry of the checkpoint.
        refusal: the reason why it was not taken.
    """

    value: T_co | None
    source: str
    refusal: str = ""


class _NotExpressibleError(Exception):
    """A step of another program's preprocessing that ours has not."""


def class_names(file: ForeignFile, num_classes: int) -> Found[tuple[str, ...]] | None:
    """Return the names of the classes, or the reason why those that are there are not taken."""
    refused: Found[tuple[str, ...]] | None = None
    for content, source in _named_contents(file):
        try:
            names = load_labels(content) if isinstance(content, Path) else names_in_order(content)
        except (ResdeployError, ValueError) as error:
            refused = refused or Found(value=None, source=source, refusal=str(error))
            continue
        # What transformers writes where nobody named the classes.
        if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
            continue
        if len(names) == num_classes:
            return Found(value=names, source=source)
        reason = f"it names {len(names)} classes, the network has {num_classes}"
        refused = refused or Found(value=None, source=source, refusal=reason)
    return refused


def preprocessing(
    file: ForeignFile, *, channels: int, input_shape: tuple[int, ...] | None = None
) -> Found[Preprocess] | None:
    """Return the preprocessing, or the reason why that which is there is not taken.

    `channels` are the network's; `input_shape` is that which is asked for, if one is.
    """
    config = _json_in(file.folder, "config.json")
    timm = config.get("pretrained_cfg", config if "crop_pct" in config else None)
    sources = (
        (
            "preprocessor_config.json",
            _of_transformers,
            _json_in(file.folder, "preprocessor_config.json"),
        ),
        ("config.json", _of_timm, timm),
    )
    for source, read, content in sources:
        if not isinstance(content, Mapping) or not content:
            continue
        try:
            found = read(content, channels)
            check_preprocess(found)
        except (_NotExpressibleError, ResdeployError) as error:
            return Found(value=None, source=source, refusal=str(error))
        except (TypeError, ValueError, LookupError, AttributeError, ZeroDivisionError) as error:
            reason = f"it is not in its program's form ({type(error).__name__}: {error})"
            return Found(value=None, source=source, refusal=reason)
        if input_shape not in (None, found.input_shape):
            reason = f"it is for samples of {found.input_shape}"
            return Found(value=None, source=source, refusal=reason)
        return Found(value=found, source=source)
    return None


def stated_architectures(file: ForeignFile) -> list[tuple[str, str]]:
    """Return the architectures that the file, or its config.json, names, each with the place."""
    found = []
    config = _json_in(file.folder, "config.json") if _is_standard(file) else {}
    for place, settings in (("config.json", config), *_settings_of(file)):
        for key in _ARCH_KEYS:
            value = settings.get(key)
            if isinstance(value, str):
                found.append((value, f"{place}: {key}"))
    return found


def transformers_config(file: ForeignFile) -> Mapping[str, Any]:
    """Return the config.json of transformers that belongs to the weights; empty without one."""
    config = _json_in(file.folder, "config.json") if _is_standard(file) else {}
    return config if "model_type" in config else {}


def _is_standard(file: ForeignFile) -> bool:
    """Test for weights by the names to which a config.json beside them belongs."""
    names = (
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model.pth",
        "open_clip_pytorch_model.bin",
    )
    return file.path.is_dir() or file.path.name in names


def _named_contents(file: ForeignFile) -> Iterator[tuple[Any, str]]:
    """Yield candidates for class names, in the order in which they are believed."""
    for place, settings in _settings_of(file):
        for key in _NAME_KEYS:
            if isinstance(settings.get(key), list | Mapping):
                yield settings[key], f"{place}: {key}" if place else key
    config = _json_in(file.folder, "config.json")
    if isinstance(config.get("id2label"), Mapping):
        yield config["id2label"], "config.json: id2label"
    timm = {**_mapping(config.get("pretrained_cfg")), **config}
    if isinstance(names := timm.get("label_names"), list):
        described = _mapping(timm.get("label_descriptions"))
        yield [described.get(name, name) for name in names], "config.json: label_names"
    for name in _LABEL_FILES:
        if (file.folder / name).is_file():
            yield file.folder / name, name


def _settings_of(file: ForeignFile) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    yield "", file.words
    for entry in _SETTINGS:
        settings: Any = file.words
        for part in entry.split("."):
            settings = settings.get(part) if isinstance(settings, Mapping) else None
        if isinstance(settings, Mapping):
            yield entry, settings


def _of_transformers(config: Mapping[str, Any], channels: int) -> Preprocess:
    """Read an image processor of transformers: image_processing_{convnext,vit,bit,…}.py."""
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    for step in ("do_flip_channel_order", "do_pad", "do_grayscale", "do_reduce_labels"):
        if config.get(step):
            raise _NotExpressibleError(f"it has a step that ours has not, {step}")
    if config.get("do_resize") is False:
        raise _NotExpressibleError("it takes images of one size alone (do_resize: false)")
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if config.get("do_normalize", True):
        if "image_mean" not in config or "image_std" not in config:
            raise _NotExpressibleError("it does not say image_mean and image_std")
        mean, std = _values(config["image_mean"]), _values(config["image_std"])
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    divisor = round(1 / factor) if math.isclose(1 / factor, round(1 / factor)) else 1 / factor
    shorter, height, width = _sizes_of_transformers(config, kind)
    resample = config.get("resample", 3 if "ConvNext" in kind else 2)
    if resample not in _FILTERS:
        raise _NotExpressibleError(f"it resizes with a filter that ours has not ({resample})")
    return Preprocess(
        input_shape=(channels, height, width),
        divisor=float(divisor),
        mean=mean,
        std=std,
        color="gray" if channels == 1 else "rgb",
        resize=shorter,
        interpolation=_FILTERS[resample],
        # Those on tensors crop as torchvision.
        crop_corner="round" if kind.endswith("Fast") else "floor",
    )


def _sizes_of_transformers(config: Mapping[str, Any], kind: str) -> tuple[int | None, int, int]:
    """Return the shorter side before the crop, or None, and height and width after it."""
    size = config["size"]
    if isinstance(size, int):
        # Before size was a table: the shorter side where a crop or its share follows.
        by_shorter = config.get("do_center_crop") or "crop_pct" in config or "ConvNext" in kind
        size = {"shortest_edge": size} if by_shorter else {"height": size, "width": size}
    if "crop_pct" in config or "ConvNext" in kind:
        # ConvNextImageProcessor: below 384 the share is cut out, from 384 on all is squeezed.
        edge = int(size["shortest_edge"])
        share = config.get("crop_pct") or 224 / 256
        return (int(edge / share) if edge < 384 else None), edge, edge
    if config.get("do_center_crop"):
        crop = config.get("crop_size")
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else _mapping(crop)
        height, width = int(crop["height"]), int(crop["width"])
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), height, width
        if (size.get("height"), size.get("width")) == (height, width):
            return None, height, width
        raise _NotExpressibleError("it squeezes images to one size and then cuts another out")
    if "height" in size and "width" in size:
        return None, int(size["height"]), int(size["width"])
    raise _NotExpressibleError("it leaves images of any shape uncut (size without a crop)")


def _of_timm(config: Mapping[str, Any], _channels: int) -> Preprocess:
    """Read a pretrained_cfg of timm: timm/data/transforms_factory.py, transforms_imagenet_eval."""
    channels, height, width = (int(n) for n in config["input_size"])
    share, mode = float(config["crop_pct"]), config.get("crop_mode", "center")
    if mode == "squash" and share == 1:
        shorter = None
    elif mode in ("center", "") and height == width:
        shorter = math.floor(height / share)
    else:
        raise _NotExpressibleError(f"it cuts images in a way that ours has not (crop_mode {mode})")
    if config.get("interpolation", "bilinear") not in _FILTERS.values():
        raise _NotExpressibleError(
            f"it resizes with a filter that ours has not ({config['interpolation']})"
        )
    return Preprocess(
        input_shape=(channels, height, width),
        divisor=255.0,
        mean=_values(config["mean"]),
        std=_values(config["std"]),
        color="gray" if channels == 1 else "rgb",
        resize=shorter,
        interpolation=config.get("interpolation", "bilinear"),
    )


def _values(content: Any) -> tuple[float, ...]:
    return tuple(
        float(value) for value in (content if isinstance(content, Sequence) else [content])
    )


def _mapping(content: Any) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {}


def _json_in(folder: Path, name: str) -> Mapping[str, Any]:
    """Return the table in a JSON file; empty where there is none, or it is something else."""
    try:
        return _mapping(json.loads((folder / name).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
