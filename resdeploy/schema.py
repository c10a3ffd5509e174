"""Every record that crosses a stage, and its JSON form.

A record is frozen, holds no arrays, names its units, and stores nothing that can be derived.
`XSpec` is a request, `XReport` or `XResult` an outcome, `XInfo` something observed. A verdict is a
property with a name (`passed`, `complete`), never the record's truth value.

The standard library only: a target that cannot import numpy can still read a record.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from resdeploy.errors import ResdeployError

__all__ = [
    "SCHEMA_VERSION",
    "AugmentSpec",
    "BenchBlock",
    "BenchComparison",
    "BenchJob",
    "BenchReport",
    "BenchResult",
    "BenchSide",
    "BenchSpec",
    "CheckReport",
    "CheckpointInfo",
    "ClassScore",
    "Comparison",
    "Conformance",
    "DataSpec",
    "DemoReport",
    "DemoStage",
    "DoctorReport",
    "Environment",
    "EpochMetrics",
    "ExportReport",
    "ExportSpec",
    "FileInfo",
    "Finding",
    "FoldReport",
    "FoldedSite",
    "GoldenInfo",
    "GpuState",
    "GraphLevel",
    "LatencySummary",
    "LayerTime",
    "MachineState",
    "Manifest",
    "ModelSpec",
    "NodeError",
    "NodeLocalResult",
    "PassReport",
    "Placement",
    "PlantedFault",
    "Precision",
    "PrecisionHint",
    "PrecisionName",
    "PrecisionNoise",
    "PredictReport",
    "Prediction",
    "Preprocess",
    "ProbeReport",
    "Profile",
    "ProviderProbe",
    "ProviderVerdict",
    "Recipe",
    "RefusedSite",
    "Scalar",
    "Scenario",
    "SelftestReport",
    "SessionInfo",
    "SessionSpec",
    "SourceSpec",
    "SpeedRatio",
    "StaticLayer",
    "StaticResult",
    "StructureResult",
    "TensorDiff",
    "TensorSpec",
    "TrainReport",
    "TrainSpec",
    "VerifyReport",
    "dump_json",
    "from_json",
    "load_json",
    "to_json",
]

# 1  first version
SCHEMA_VERSION = 1

Scalar = str | int | float | bool

GraphLevel = Literal["disabled", "basic", "extended", "all"]
PrecisionHint = Literal["default", "f32", "bf16"]
Scenario = Literal["single-stream", "offline", "server"]

T = TypeVar("T")


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Make `cls` a record: frozen, slotted, keyword-only."""
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)


# --- models, data, recipes -----------------------------------------------------------------------


@record
class Preprocess:
    """How a raw sample becomes the network's input, per channel: `(raw / divisor - mean) / std`.

    Attributes:
        input_shape: (C, H, W) of one image or (F,) of one vector, without the batch.
        divisor: the raw value that stands for 1.0 (255 for 8-bit images).
        mean: one value per channel, or a single one for all; in units of raw / divisor.
        std: likewise.
        color: what an image file is converted to; "none" where samples are vectors.
        resize: length in pixels of an image file's shorter side before the centre crop to
            (H, W); None to scale straight to (H, W).
        interpolation: the filter of that resize, always antialiased.
    """

    input_shape: tuple[int, ...]
    divisor: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    color: Literal["rgb", "gray", "none"] = "rgb"
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@record
class ModelSpec:
    """An architecture by name, with its options."""

    arch: str
    num_classes: int
    options: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)


@record
class AugmentSpec:
    """Random changes to training images, on whole batches in tensors; zero or False is off.

    Attributes:
        shift_px: each image is moved by up to this many pixels in each direction.
        horizontal_flip: half of the images are mirrored.
        rotate_degrees: each image is turned by up to this angle either way.
        scale: each image is zoomed by a factor in [1 - scale, 1 + scale].
        noise_std: normal noise of this standard deviation, in units of the normalised input.
    """

    shift_px: int = 0
    horizontal_flip: bool = False
    rotate_degrees: float = 0.0
    scale: float = 0.0
    noise_std: float = 0.0


@record
class DataSpec:
    """A data set by name: `digits`, `mnist1d`, `cifar10`, `cifar100`, `image-folder`, `npz`.

    `path` is where the user keeps it, for those that are not embedded; `split_seed` decides which
    samples are held out where the data set has no official test split.
    """

    name: str
    path: str | None = None
    split_seed: int = 0
    augment: AugmentSpec = AugmentSpec()


@record
class TrainSpec:
    """Stochastic gradient descent with momentum, cosine decay and linear warm-up."""

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 0


@record
class Recipe:
    """Everything that decides a trained model: network, data, preprocessing, schedule, labels."""

    name: str
    model: ModelSpec
    data: DataSpec
    preprocess: Preprocess
    train: TrainSpec
    labels: tuple[str, ...] = ()


@record
class EpochMetrics:
    """One line of a run's metrics.jsonl. Losses in nats, accuracies as fractions."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    duration_s: float


@record
class CheckpointInfo:
    """What a resdeploy checkpoint says of itself, in the metadata of its safetensors file.

    Attributes:
        model: the network the weights belong to, before anything was folded.
        preprocess: what its inputs went through in training, where that is known.
        labels: one name per class, or none.
        recipe: how it was trained, if by resdeploy.
        epoch: epochs trained.
        test_accuracy: fraction of the held-out samples it gets right.
        folded: the BatchNorms that are already part of their layers.
    """

    model: ModelSpec
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    recipe: Recipe | None = None
    epoch: int | None = None
    test_accuracy: float | None = None
    folded: tuple["FoldedSite", ...] = ()


@record
class TrainReport:
    """What `train` did: the last epoch's metrics and the files it wrote."""

    recipe: Recipe
    run_directory: str
    checkpoint: str
    num_train: int
    num_test: int
    num_parameters: int
    last: EpochMetrics


@record
class SourceSpec:
    """The trained model that a command is given.

    Attributes:
        path: a run directory, a resdeploy checkpoint, or weights from elsewhere; None with a
            `factory` that makes a trained module by itself.
        arch: the architecture that weights from elsewhere belong to.
        options: that architecture's options, as text.
        factory: "package.module:function" that returns a torch module.
        input_shape: of one sample, for a factory's module.
        recipe: a recipe whose preprocessing and labels apply.
    """

    path: str | None = None
    arch: str | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    factory: str | None = None
    input_shape: tuple[int, ...] | None = None
    recipe: str | None = None


# --- fold and export -----------------------------------------------------------------------------


@record
class FoldedSite:
    """A BatchNorm that is now part of a layer before or after it.

    Attributes:
        site: the BatchNorm's name in the model.
        producer: the name of the layer it went into; of several, joined by ", ".
        op: that layer's operator.
        max_ulp: largest distance of a folded weight or bias from its exact value, in units in the
            last place of the stored type.
        num_flushed: folded values that were subnormal and became zero.
        num_consumers: how many read the value that the BatchNorm read, itself among them.
        norm: "batch", or "layer" where only the affine part of a LayerNorm was folded: it stays,
            with a scale of one and a shift of zero.
    """

    site: str
    producer: str
    op: str
    max_ulp: float
    num_flushed: int = 0
    num_consumers: int = 1
    norm: Literal["batch", "layer"] = "batch"


@record
class RefusedSite:
    """A BatchNorm (or, where asked for, a LayerNorm's affine part) that stays, and why.

    Attributes:
        site: its name in the model.
        reason: what stands in the way.
        num_consumers: how many readers its input has, itself among them.
    """

    site: str
    reason: str
    num_consumers: int = 1


@record
class FoldReport:
    """What was folded and what was refused, in the order of the graph.

    `comparison` judges the folded model against the model in float64, where that was done;
    `not_judged` says why it was not, where it was to be done.
    """

    folded: tuple[FoldedSite, ...] = ()
    refused: tuple[RefusedSite, ...] = ()
    comparison: "Comparison | None" = None
    not_judged: str | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing that was to be folded is left."""
        return not self.refused


@record
class TensorSpec:
    """A model's input or output; a dimension is a number, or the name of a dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@record
class FileInfo:
    """A file by content; `path` is relative to the record that names it, with `/`."""

    path: str
    sha256: str
    size_bytes: int


@record
class PassReport:
    """One pass over an ONNX graph: how many places it changed."""

    name: str
    num_changed: int


@record
class ExportSpec:
    """How to export. `batch` is "dynamic" or a fixed number of samples.

    `newest_ir_version` is the newest form of the file that the target reads; None for any.
    """

    opset: int = 18
    batch: int | Literal["dynamic"] = "dynamic"
    fold: bool = True
    newest_ir_version: int | None = None


@record
class ExportReport:
    """An exported file, what was folded into it, and the passes it went through."""

    spec: ExportSpec
    file: FileInfo
    fold: FoldReport | None
    passes: tuple[PassReport, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_nodes: int
    versions: Mapping[str, str]
    verification: "VerifyReport | None" = None


# --- sessions, verification ----------------------------------------------------------------------


@record
class SessionSpec:
    """A session to open: one provider, and nothing else may run a node.

    `provider` is a short name of `resdeploy.target.providers`; `num_threads` None leaves ONNX
    Runtime's own choice; `use_tf32` concerns CUDA only, and `precision_hint`, the arithmetic that
    may stand in for float32, OpenVINO only.
    """

    provider: str = "cpu"
    num_threads: int | None = None
    graph_level: GraphLevel = "all"
    use_tf32: bool = False
    precision_hint: PrecisionHint = "default"


@record
class SessionInfo:
    """A session that started: what it runs on, and how many nodes each provider was given.

    `nodes_by_provider` is None where the runtime cannot tell (ONNX Runtime before 1.24).
    `disabled_optimizers` are graph optimisations of the runtime that are known to change what
    this model computes, and so were switched off.
    """

    spec: SessionSpec
    runtime: str
    runtime_version: str
    active_providers: tuple[str, ...]
    nodes_by_provider: Mapping[str, int] | None
    disabled_optimizers: tuple[str, ...] = ()


@record
class PrecisionNoise:
    """What each precision does to this very network: relative L2 errors on a few of the inputs.

    `float32` is measured, the others are simulated; None where the outputs are not finite.
    """

    num_inputs: int
    float32: float | None
    tf32: float | None
    float16: float | None
    bfloat16: float | None
    int8: float | None


@record
class GoldenInfo:
    """Where reference outputs came from: `num_inputs` inputs through the model in float64.

    Attributes:
        source: the model.
        inputs: what it was fed, in words.
        num_inputs: how many.
        precision: the arithmetic whose rounding noise is the yardstick.
        precision_noise: what other arithmetic would do; None where it was not simulated.
        weight_noise_l2: how far the outputs move, averaged over all inputs alike, when parameters
            are rounded to float32 (norm over the outputs); None where it was not measured.
        sigma_missing: why the golden file has no sigma, None where it has one.
    """

    source: str
    inputs: str
    num_inputs: int
    precision: Literal["float32"] = "float32"
    precision_noise: PrecisionNoise | None = None
    weight_noise_l2: float | None = None
    sigma_missing: str | None = None


@record
class TensorDiff:
    """Distance of a candidate's output from the float64 reference.

    Attributes:
        max_abs: largest absolute difference of one element.
        rel_l2: Euclidean norm of the difference over that of the reference.
        num_nonfinite: elements of the candidate that are NaN or infinite where the reference is
            not.
    """

    max_abs: float
    rel_l2: float
    num_nonfinite: int


PrecisionName = Literal["float32", "tf32", "float16", "bfloat16", "int8", "unknown"]


@record
class Precision:
    """The arithmetic that a candidate's error is the size of, beside what was claimed.

    Attributes:
        claimed: what the candidate was said to compute in, and is judged by.
        found: what its error is the size of; "unknown" where it is that of none.
        ratio: its error over the noise of the claimed arithmetic.
    """

    claimed: PrecisionName
    found: PrecisionName
    ratio: float


@record
class Comparison:
    """One candidate judged against the reference; a figure that is None is named in `missing`.

    Attributes:
        diff: the candidate's distance from the float64 reference.
        noise_rel_l2: the yardstick's own distance from it (PyTorch in float32 on the CPU), over
            the norm of the reference.
        noise_ratio: the ratio R of the two distances (infinite if the candidate is not finite).
        worst_input_ratio: the largest R of a single input.
        noise_ratio_limit: the R above which the verdict is a failure.
        top1_agreement: fraction of inputs whose largest output is the reference's.
        reasons: why the verdict is a failure; empty when it passed.
        z_rms: root mean square of z, each output's error over its propagated standard deviation.
        z_max: the largest |z| of one output.
        systematic: the statistic T: how much more of the error is the same for every input than
            chance leaves, beyond what rounded weights explain; 1 or less for noise, N for an
            offset.
        systematic_limit: the T above which the verdict is a failure.
        num_changed_top1: inputs whose largest output is another one; the reference's margin
            must excuse each.
        precision: the arithmetic that the error is the size of.
        missing: what could not be judged, and why: it is not assumed to have passed.
    """

    diff: TensorDiff
    noise_rel_l2: float
    noise_ratio: float
    worst_input_ratio: float
    noise_ratio_limit: float
    top1_agreement: float
    reasons: tuple[str, ...] = ()
    z_rms: float | None = None
    z_max: float | None = None
    systematic: float | None = None
    systematic_limit: float | None = None
    num_changed_top1: int | None = None
    precision: Precision | None = None
    missing: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the candidate."""
        return not self.reasons


@record
class StructureResult:
    """Whether the candidate is the graph of the reference, once what folds is folded in both.

    Attributes:
        num_nodes: operators of the reference.
        num_layers: affine layers among them.
        num_aligned: affine layers whose counterpart in the candidate was found.
        same_form: whether both are written in the same operators; where not, nothing is proven
            either way.
        differences: what differs, in words, the first few.
    """

    num_nodes: int
    num_layers: int
    num_aligned: int
    same_form: bool
    differences: tuple[str, ...] = ()

    @property
    def isomorphic(self) -> bool:
        """Whether the two are one graph."""
        return not self.differences

    @property
    def passed(self) -> bool:
        """Whether nothing was found that makes the candidate another network."""
        return self.isomorphic or not self.same_form


@record
class StaticLayer:
    """Largest distances of a layer's weights and biases from their exact values, in ulp."""

    layer: str
    weight_ulp: float
    bias_ulp: float


@record
class StaticResult:
    """Every weight of the candidate against its exact value, in the order of the network."""

    layers: tuple[StaticLayer, ...]
    limit_ulp: float
    reasons: tuple[str, ...] = ()

    @property
    def max_ulp(self) -> float:
        """The largest distance of all."""
        return max((max(x.weight_ulp, x.bias_ulp) for x in self.layers), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether every weight is as near as it has to be."""
        return not self.reasons


@record
class Placement:
    """Where a model ran: what was planned, and what a profile of one run saw.

    Attributes:
        planned: nodes of the graph by the provider they were assigned to; None where the runtime
            cannot tell (ONNX Runtime before 1.24).
        executed: kernels of the run by the provider whose kernel it was. They are fewer than the
            nodes where kernels do the work of several; a compiled subgraph is one.
        num_copies: kernels that did nothing but move a tensor between devices.
        strays: nodes and kernels of other providers, "name (operator) on provider"; those that only
            describe or arrange values are no failure.
        reasons: why the placement is a failure; empty when it passed.
    """

    planned: Mapping[str, int] | None
    executed: Mapping[str, int]
    num_copies: int
    strays: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything that computes was on the provider asked for."""
        return not self.reasons


@record
class NodeError:
    """How far one node's outputs are from what its own inputs demand, as fractions of two bounds.

    Attributes:
        node: its name.
        of_bound: of the rigorous one, gamma_n times the sum of the products' magnitudes.
        of_estimate: of the statistical one, with the square root of n.
    """

    node: str
    of_bound: float
    of_estimate: float


@record
class NodeLocalResult:
    """Every affine node run on the provider, judged on the inputs it had there.

    `num_inputs` samples were run; `reasons` names the nodes that are wrong, the first one first.
    """

    nodes: tuple[NodeError, ...]
    num_inputs: int
    reasons: tuple[str, ...] = ()

    @property
    def worst(self) -> NodeError | None:
        """The node nearest to its bound, or furthest beyond it."""
        return max(self.nodes, key=lambda node: node.of_estimate, default=None)

    @property
    def passed(self) -> bool:
        """Whether every node computes what it should."""
        return not self.reasons


@record
class Conformance:
    """Whether a session computes the same in every way it may be called.

    Distances are the largest of one input, in units of the network's float32 noise.

    Attributes:
        batches: by batch size, the distance of a row from its result in a batch of one.
        levels: by graph-optimisation level, the distance from the session that was asked for.
        stress: by kind of input (constant, subnormal, extreme), the distance from the CPU without
            any optimisation.
        limit: the distance above which the verdict is a failure.
        deterministic: whether the same run again gave the same bits; reported, not judged.
        max_run_to_run: the largest difference of an output element between two such runs.
        reasons: why the verdict is a failure; empty when it passed.
        missing: what was not looked at, and why.
    """

    batches: Mapping[str, float]
    levels: Mapping[str, float]
    stress: Mapping[str, float]
    limit: float
    deterministic: bool
    max_run_to_run: float
    reasons: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the session."""
        return not self.reasons


@record
class ProviderVerdict:
    """One provider's session, the evidence on what it computed there, and what is missing of it.

    `accuracy` is the fraction of correct labels, where the inputs came with labels; `placement` and
    `conformance` are None where they were not looked at; `missing` says of each other layer of
    evidence that could not be had why.
    """

    session: SessionInfo
    comparison: Comparison
    accuracy: float | None = None
    node_local: NodeLocalResult | None = None
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    placement: Placement | None = None
    conformance: Conformance | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is a failure; empty when it passed."""
        judged = (self.placement, self.node_local, self.comparison, self.conformance)
        return tuple(reason for one in judged if one is not None for reason in one.reasons)

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against what this provider does."""
        return not self.reasons


@record
class VerifyReport:
    """A model judged as a file, and on each provider that was asked for.

    `missing` says of each layer of evidence on the file that could not be had why.
    """

    model: FileInfo
    golden: GoldenInfo
    verdicts: tuple[ProviderVerdict, ...]
    reference_accuracy: float | None = None
    structure: StructureResult | None = None
    static: StaticResult | None = None
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What speaks against the file itself; empty if nothing does."""
        differs = self.structure is not None and not self.structure.passed
        return (
            *(self.structure.differences if differs and self.structure else ()),
            *(self.static.reasons if self.static else ()),
        )

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the file, and every provider passed: at least one."""
        return bool(self.verdicts) and not self.reasons and all(v.passed for v in self.verdicts)


@record
class PlantedFault:
    """What became of one fault that was planted into a correct model, or of a control.

    Attributes:
        name: what is wrong with the model.
        layer: the one layer it sits in, if it is of a single layer.
        caught_by: the layers of evidence that saw it.
        named: the first layer they named.
        accepted_by: the fixed tolerances that would have let it pass.
    """

    name: str
    layer: str | None
    caught_by: tuple[str, ...]
    named: str | None
    accepted_by: tuple[str, ...]

    @property
    def caught(self) -> bool:
        """Whether any layer of evidence saw it and, where it sits in one layer, named that one."""
        return bool(self.caught_by) and (self.layer is None or self.named == self.layer)


@record
class SelftestReport:
    """Faults planted into a model, and what saw them.

    `controls` are correct models, which must pass; `not_applicable` are faults that this network
    has no place for; `tolerances` are the fixed ones it is compared with.
    """

    model: str
    num_inputs: int
    faults: tuple[PlantedFault, ...]
    controls: tuple[PlantedFault, ...]
    not_applicable: tuple[str, ...]
    tolerances: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every fault was caught and no correct model was."""
        return all(f.caught for f in self.faults) and not any(c.caught_by for c in self.controls)


# --- benchmarks ----------------------------------------------------------------------------------


@record
class Environment:
    """The machine and the software a measurement was made with; None is "not readable here".

    `cpu_features` are the instruction sets that decide how fast a network runs; `cpu_limit` (in
    CPUs) and `ram_limit_bytes` are what a container allows, None where it sets no limit.
    """

    machine: str
    system: str
    cpu_model: str | None
    num_cpus: int
    num_cpus_allowed: int
    ram_bytes: int | None
    load_average_1min: float | None
    cpu_governor: str | None
    gpu_names: tuple[str, ...]
    versions: Mapping[str, str]
    cpu_features: tuple[str, ...] = ()
    cpu_limit: float | None = None
    ram_limit_bytes: int | None = None


@record
class GpuState:
    """One GPU at one moment; None is "not readable here".

    `slowed_by` are the bits of NVML's clocks event reasons, 0 if nothing slows it; bit 0 is "idle".
    """

    clock_mhz: int | None
    temperature_c: int | None
    used_bytes: int | None
    slowed_by: int | None


@record
class MachineState:
    """The machine at one moment; None is "not readable here".

    Attributes:
        time_s: on a clock that only the difference of two states says anything about.
        load_average_1min: processes that ran or wanted to, over the last minute.
        cpu_frequency_mhz: mean over the CPUs.
        temperature_c: of the hottest sensor.
        num_throttles: how often a core was slowed for its heat or power, since boot.
        limited_s: time for which this container was stopped, having used up its share of CPU.
        busy_s: CPU time used by everyone on the machine since boot.
        stolen_s: CPU time that the host of this virtual machine gave to others, since boot.
        gpus: the GPUs.
    """

    time_s: float
    load_average_1min: float | None = None
    cpu_frequency_mhz: float | None = None
    temperature_c: float | None = None
    num_throttles: int | None = None
    limited_s: float | None = None
    busy_s: float | None = None
    stolen_s: float | None = None
    gpus: tuple[GpuState, ...] = ()


@record
class BenchSpec:
    """What to time: `num_runs` runs of one session after its warm-up.

    Attributes:
        session: on what, and how.
        batch_size: samples of one run.
        num_warmup: runs of warm-up, at least; the first run is always one.
        max_warmup: runs of warm-up at most; up to there it goes on until the times have settled.
            No more than `num_warmup` where they need not.
        num_runs: how many are timed.
        num_bound_runs: runs timed in turn with those, whose input and output stay where the
            provider computes.
        num_profile_runs: runs of another session, to time each layer; 0 for none.
        scenario: one run after the other ("single-stream"); all samples there at once
            ("offline"); or runs asked for at random times ("server").
        qps: in "server", how many runs are asked for in a second, on average.
        seed: of those random times.
    """

    session: SessionSpec
    batch_size: int = 1
    num_warmup: int = 10
    max_warmup: int = 200
    num_runs: int = 100
    num_bound_runs: int = 0
    num_profile_runs: int = 0
    scenario: Scenario = "single-stream"
    qps: float | None = None
    seed: int = 0


@record
class LatencySummary:
    """What a list of latencies comes to.

    Attributes:
        num_runs: how many latencies there were.
        mean_ns: their arithmetic mean.
        min_ns: the shortest.
        p50_ns: 50 % of the runs took no longer than this; likewise `p90_ns`, `p99_ns` and
            `p999_ns`, which is 99.9 %. With fewer than 100 runs `p99_ns` is the longest, with fewer
            than 1000 `p999_ns`.
        max_ns: the longest.
        throughput_per_s: samples answered per second.
        p50_interval_ns: low and high end of the 95 % interval, for these runs in this process.
        p99_interval_ns: likewise; empty with fewer than 100 runs, which have no p99.
    """

    num_runs: int
    mean_ns: float
    min_ns: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int
    throughput_per_s: float
    p50_interval_ns: tuple[float, ...]
    p99_interval_ns: tuple[float, ...]


@record
class LayerTime:
    """One kernel of the model: the median of its times, and the work that its shapes mean.

    `name` is that of the model's node, where the runtime's can be traced to one; `num_macs` are
    multiplications with an addition; `num_bytes` are what it must read and write at least, weights
    included.
    """

    name: str
    op: str
    p50_ns: int
    num_macs: int
    num_bytes: int


@record
class Profile:
    """Where the time of a run goes, and what the machine could do at best in the same minute.

    `peak_macs_per_s` is that of a large matrix product on the same threads, `peak_bytes_per_s` that
    of copying arrays that no cache holds, read and written bytes together.
    """

    layers: tuple[LayerTime, ...]
    num_runs: int
    run_p50_ns: int
    peak_macs_per_s: float
    peak_bytes_per_s: float


@record
class BenchResult:
    """Raw latencies of one session in a process of its own, warm-up apart, and their summary.

    Attributes:
        spec: what was asked for.
        model: the file.
        session: what it ran on.
        environment: the machine and the software.
        input_shape: of one run.
        load_ns: from the file to an open session.
        warmup_ns: time of each run of the warm-up; the first is the first run.
        latencies_ns: of each run, from host memory to host memory: the copies are in it.
        bound_ns: of each run in turn with those, from and to the provider's own memory by an I/O
            binding: the copies are not in it.
        arrivals_ns: when each run was asked for, since the start; empty in "single-stream". The
            latency then counts from there, so that waiting in the queue is in it.
        summary: what the latencies come to.
        unstable_reasons: why the summary is not to be relied on; empty if nothing speaks against.
        before: the machine before the timed runs.
        after: and after.
        process_s: CPU time that this process used in between.
        ram_base_bytes: the process's peak memory before the model was loaded.
        ram_peak_bytes: and at the end; None where it cannot be read.
        gpu_bytes: what the GPU's used memory grew by, whoever used it.
        placement: where the kernels of one further run were; None where that was not looked at.
        num_subnormal_weights: weights that are subnormal, which some CPUs compute slowly with;
            None where they cannot be read.
        warnings: what the runtime said of itself being slow.
        profile: times of the layers, where asked for.
    """

    spec: BenchSpec
    model: FileInfo
    session: SessionInfo
    environment: Environment
    input_shape: tuple[int, ...]
    load_ns: int
    warmup_ns: tuple[int, ...]
    latencies_ns: tuple[int, ...]
    summary: LatencySummary
    unstable_reasons: tuple[str, ...] = ()
    bound_ns: tuple[int, ...] = ()
    arrivals_ns: tuple[int, ...] = ()
    before: MachineState | None = None
    after: MachineState | None = None
    process_s: float | None = None
    ram_base_bytes: int | None = None
    ram_peak_bytes: int | None = None
    gpu_bytes: int | None = None
    placement: Placement | None = None
    num_subnormal_weights: int | None = None
    warnings: tuple[str, ...] = ()
    profile: Profile | None = None

    @property
    def stable(self) -> bool:
        """Whether nothing speaks against the summary."""
        return not self.unstable_reasons


@record
class BenchReport:
    """One result for each configuration that was asked for."""

    results: tuple[BenchResult, ...]


@record
class BenchJob:
    """What a worker process is told to do: time a model, all at once or in bursts on command."""

    model: str
    spec: BenchSpec
    in_bursts: bool = False
    prove_placement: bool = True


@record
class BenchSide:
    """One of two that are compared: a model in a session."""

    spec: BenchSpec
    model: FileInfo
    session: SessionInfo


@record
class BenchBlock:
    """Latencies of one pair of fresh processes, in bursts that took turns: A B B A or B A A B."""

    candidate_ns: tuple[tuple[int, ...], ...]
    baseline_ns: tuple[tuple[int, ...], ...]
    candidate_first: bool


@record
class SpeedRatio:
    """Time of the candidate over that of the baseline, with its interval."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["faster", "slower", "cannot tell"]:
        """What the candidate is, if the whole interval says so."""
        if self.low > 1:
            return "slower"
        return "faster" if self.high < 1 else "cannot tell"


@record
class BenchComparison:
    """Two sessions timed in turn, or one against a saved result, and the ratio of their times.

    Attributes:
        candidate: the one in question.
        baseline: the one it is held against.
        environment: the machine and the software.
        interleaved: whether both were timed in turn; False is weaker evidence.
        blocks: the raw latencies.
        confidence: of the intervals.
        p50: ratio of the medians.
        p99: ratio of the 99th percentiles; None if there were too few runs.
        max_slowdown: the candidate may be slower by this fraction; None if that was not asked.
        caveats: what the reader must know before believing it.
        before: the machine before.
        after: and after.
    """

    candidate: BenchSide
    baseline: BenchSide
    environment: Environment
    interleaved: bool
    blocks: tuple[BenchBlock, ...]
    confidence: float
    p50: SpeedRatio
    p99: SpeedRatio | None
    max_slowdown: float | None = None
    caveats: tuple[str, ...] = ()
    before: MachineState | None = None
    after: MachineState | None = None

    @property
    def passed(self) -> bool:
        """Whether the candidate is not proven slower than allowed: all of the interval beyond."""
        return self.max_slowdown is None or self.p50.low <= 1 + self.max_slowdown


# --- bundles -------------------------------------------------------------------------------------


@record
class Manifest:
    """The table of contents of a bundle, with the records that led to it."""

    name: str
    files: tuple[FileInfo, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None
    num_labels: int
    golden: GoldenInfo
    export: ExportReport | None
    versions: Mapping[str, str]


@record
class CheckReport:
    """A bundle whose files are intact, and what each provider computed from its golden inputs."""

    name: str
    num_files: int
    verification: VerifyReport

    @property
    def passed(self) -> bool:
        """Whether the model computes what the bundle says it should."""
        return self.verification.passed


@record
class ClassScore:
    """One class of a prediction: its place among the outputs, its name, and its probability.

    `label` is None where the bundle names no classes; `probability` is the softmax of the model's
    outputs, computed in float64.
    """

    index: int
    label: str | None
    probability: float


@record
class Prediction:
    """The likeliest classes of one input, the likeliest first; `input` is its file, and its row."""

    input: str
    classes: tuple[ClassScore, ...]


@record
class PredictReport:
    """What the model of a bundle says of each input, in the order they were given.

    `digest` stands for the bundle, every byte of which was checked first.
    """

    name: str
    digest: str
    session: SessionInfo
    predictions: tuple[Prediction, ...]


# --- the machine ---------------------------------------------------------------------------------


@record
class ProviderProbe:
    """Whether a session really starts on an execution provider, and computes there.

    Attributes:
        provider: the short name of `resdeploy.target.providers`, or ONNX Runtime's own name of a
            provider that resdeploy has no settings for.
        ort_name: ONNX Runtime's name for it.
        starts: whether a tiny model ran on it.
        why_not: what stood in the way.
        fix: what helps, where that is known.
    """

    provider: str
    ort_name: str
    starts: bool
    why_not: str | None = None
    fix: str | None = None


@record
class ProbeReport:
    """What a machine can run: its runtime, its providers, and what decides its speed.

    Attributes:
        environment: the machine and its software.
        runtime: the package that holds ONNX Runtime.
        runtime_version: its version.
        available_providers: those the runtime was built with, in its order; not yet those that
            start.
        providers: what happened when a tiny model was opened on each.
        plugins: the packages of plugin providers that are installed, with their versions.
        cpu_features: instructions that decide the speed of a network, and whether this CPU has
            them; empty where that cannot be read.
        lacks: what this version of the runtime cannot tell or do for resdeploy.
    """

    environment: Environment
    runtime: str
    runtime_version: str
    available_providers: tuple[str, ...]
    providers: tuple[ProviderProbe, ...]
    plugins: Mapping[str, str]
    cpu_features: Mapping[str, bool]
    lacks: tuple[str, ...] = ()


@record
class Finding:
    """One thing that was looked at in an installation.

    A "fault" stops what was asked for; a "remark" does not. `fix` says what helps.
    """

    subject: str
    verdict: Literal["ok", "remark", "fault"]
    what: str
    fix: str | None = None


@record
class DoctorReport:
    """An installation, looked over: everything that was looked at, in that order."""

    providers: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether all that was asked for can run."""
        return all(finding.verdict != "fault" for finding in self.findings)


@record
class DemoStage:
    """One stage of the demo: what came of it, in words, and how long it took."""

    stage: str
    outcome: str
    duration_s: float


@record
class DemoReport:
    """The whole chain on embedded data: the records of its stages and the files it wrote.

    `paths` are by what they are; `unavailable` says of each provider that did not start why.
    """

    train: TrainReport
    export: ExportReport
    verification: VerifyReport
    bench: tuple[BenchResult, ...]
    check: CheckReport
    stages: tuple[DemoStage, ...]
    unavailable: Mapping[str, str]
    paths: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every verdict along the way was a pass."""
        exported = self.export.verification
        return (
            exported is not None
            and exported.passed
            and self.verification.passed
            and self.check.passed
        )


# --- JSON ----------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Return `value` (a record, or what records are made of) as JSON data.

    A NaN or infinite float becomes the string "NaN", "Infinity" or "-Infinity", as JSON has none.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def dump_json(value: Any, *, indent: int | None = 2) -> str:
    """Return one record as JSON text, with its kind and the schema version."""
    head = {"kind": type(value).__name__, "schema_version": SCHEMA_VERSION}
    return json.dumps(head | to_json(value), indent=indent, allow_nan=False)


def load_json(cls: type[T], text: str | bytes, *, where: str) -> T:
    """Return the record of type `cls` that `dump_json` wrote; `where` names the file in errors.

    Raises:
        ResdeployError: the text is not JSON, is another kind of record, comes from a newer schema,
            or a field is missing, unknown or of another type.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ResdeployError(f"This is not JSON: {error}.", where=where) from error
    if not isinstance(data, dict) or data.get("kind") != cls.__name__:
        found = data.get("kind") if isinstance(data, dict) else None
        raise ResdeployError(
            f"This is not a {cls.__name__} record (its kind is {found!r}).", where=where
        )
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ResdeployError(
            f"The record has schema version {version!r}; this resdeploy reads {SCHEMA_VERSION}.",
            where=where,
            fix="write the record again with this version, or install the one that wrote it",
        )
    fields = {key: value for key, value in data.items() if key not in ("kind", "schema_version")}
    return from_json(cls, fields, where=where)


def from_json(cls: type[T], data: Any, *, where: str) -> T:
    """Return JSON data as the record type `cls`; the inverse of `to_json`.

    Raises:
        ResdeployError: a field is missing, unknown or of another type; the message names it.
    """
    return typing.cast(T, _parse(cls, data, where))


def _parse(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(arguments, data, where)
    if origin is Literal:
        if data in arguments:
            return data
        raise _mismatch(f"one of {', '.join(map(repr, arguments))}", data, where)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise _mismatch("a list", data, where)
        return tuple(_parse(arguments[0], x, f"{where}[{i}]") for i, x in enumerate(data))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise _mismatch("an object", data, where)
        return {str(key): _parse(arguments[1], x, f"{where}.{key}") for key, x in data.items()}
    if dataclasses.is_dataclass(kind):
        return _parse_record(kind, data, where)
    return _parse_scalar(kind, data, where)


def _parse_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    # An exact scalar type first, so that 1 stays an int in `int | float | bool`.
    if type(data) in kinds:
        return data
    error: ResdeployError | None = None
    for kind in kinds:
        try:
            return _parse(kind, data, where)
        except ResdeployError as raised:
            error = error or raised
    raise error or _mismatch("a value", data, where)


def _parse_record(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _mismatch("an object", data, where)
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ResdeployError(
            f"Unknown field {unknown[0]!r}.",
            where=where,
            fix=f"the fields of {cls.__name__} are {', '.join(hints)}",
        )
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(data))
    if missing:
        raise ResdeployError(f"The field {missing[0]!r} is missing.", where=where)
    return cls(**{key: _parse(hints[key], x, f"{where}: {key}") for key, x in data.items()})


def _parse_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float:
        if isinstance(data, str) and data in ("NaN", "Infinity", "-Infinity"):
            return float(data)
        if isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
        raise _mismatch("a number", data, where)
    if type(data) is kind:
        return data
    names = {int: "a whole number", str: "a text", bool: "true or false"}
    raise _mismatch(names.get(kind, str(kind)), data, where)


def _mismatch(expected: str, data: Any, where: str) -> ResdeployError:
    return ResdeployError(f"Expected {expected}, found {data!r}.", where=where)
