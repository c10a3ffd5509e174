"""Models, data, recipes and training."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record
from resdeploy.schema.files import SourceSpec as SourceSpec
from resdeploy.schema.folds import FoldedSite

Scalar = str | int | float | bool
TrainPrecision = Literal["float32", "bfloat16"]


@record
class Preprocess(Record):
    """Preprocessing of a raw sample, per channel: `(raw / divisor - mean) / std`.

    Attributes:
        input_shape: (C, H, W) of one image or (F,) of one vector, without the batch.
        divisor: the raw value that stands for 1.0 (255 for 8-bit images).
        mean: one value per channel, or a single one for all, as `std`; in units of raw / divisor.
        color: the colour space of image files; "none" if samples are vectors.
        resize: length in pixels of an image file's shorter side before the centre crop to (H, W);
            None to scale straight to (H, W).
        interpolation: the filter of that resize, always antialiased.
        crop_corner: where the centre crop begins when the margin is odd: "round", half to even, as
            torchvision, or "floor", as transformers.
        embedded: True if divisor, mean and std are part of the model, which then takes pixels:
            uint8 (N, H, W, C), resized and cut already.
        layout: the axes of the model's images, float32, in their order.
    """

    input_shape: tuple[int, ...]
    divisor: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: Literal["rgb", "gray", "none"] = "rgb"
    resize: int | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop_corner: Literal["round", "floor"] = "round"
    embedded: bool = False
    layout: Literal["NCHW", "NHWC"] = "NCHW"


@record
class ModelSpec(Record):
    """An architecture by name, with its options."""

    arch: str
    num_classes: int
    options: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)


@record
class AugmentSpec(Record):
    """Random changes to training images, on whole batches in tensors; zero or False is off.

    An image is moved by up to `shift_px` pixels in each direction, mirrored in half of the cases,
    turned by up to `rotate_degrees` either way, zoomed by a factor in [1 - scale, 1 + scale], and
    gets normal noise of `noise_std`, in units of the normalised input.
    """

    shift_px: int = 0
    horizontal_flip: bool = False
    rotate_degrees: float = 0.0
    scale: float = 0.0
    noise_std: float = 0.0


@record
class DataSpec(Record):
    """A data set by name: `digits`, `mnist1d`, `cifar10`, `cifar100`, `image-folder`, `npz`.

    `path` is where the user keeps it, for those that are not embedded; `split_seed` decides which
    samples are held out where the data set has no official test split.
    """

    name: str
    path: str | None = None
    split_seed: int = 0
    augment: AugmentSpec = AugmentSpec()


@record
class TrainSpec(Record):
    """Stochastic gradient descent with momentum, cosine decay and linear warm-up.

    `precision` is that of the forward and backward passes in training: with bfloat16, torch's
    autocast decides layer by layer, while weights, gradients of weights, BatchNorm statistics and
    the loss stay float32. `channels_last` is how images lie in memory, and `compile` lets
    `torch.compile` make the training step's kernels. All three are about speed: a test accuracy is
    always that of the float32 network as it is saved.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0
    precision: TrainPrecision = "float32"
    channels_last: bool = False
    compile: bool = False


@record
class Recipe(Record):
    """Everything that decides a trained model: network, data, preprocessing, schedule, labels."""

    name: str
    model: ModelSpec
    data: DataSpec
    preprocess: Preprocess
    train: TrainSpec
    labels: tuple[str, ...] = ()


@record
class EpochMetrics(Record):
    """One line of a run's metrics.jsonl. Losses in nats, accuracies as fractions."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    duration_s: float


@record
class CheckpointInfo(Record):
    """The metadata of a resdeploy checkpoint, in its safetensors file.

    `model` is the network before any fold; `preprocess` is of its inputs in training; `recipe` is
    of a training by resdeploy, after `epoch` epochs; `test_accuracy` is a fraction of the held-out
    samples; `folded` are the BatchNorms that are already part of their layers.
    """

    model: ModelSpec
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    recipe: Recipe | None = None
    epoch: int | None = None
    test_accuracy: float | None = None
    folded: tuple[FoldedSite, ...] = ()


@record
class TrainReport(Record):
    """A finished training: the last epoch's metrics and the written files."""

    recipe: Recipe
    run_directory: str
    checkpoint: str
    num_train: int
    num_test: int
    num_parameters: int
    last: EpochMetrics
