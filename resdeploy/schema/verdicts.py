"""References, the layers of a verdict, and the self-test."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from resdeploy.schema.codec import Record, record
from resdeploy.schema.files import FileInfo
from resdeploy.schema.sessions import Placement, PrecisionName, SessionInfo

__all__ = [
    "ArithmeticResult",
    "Attribution",
    "Comparison",
    "Conformance",
    "GoldenInfo",
    "NodeError",
    "NodeLocalResult",
    "PlantedFault",
    "Precision",
    "PrecisionNoise",
    "ProviderVerdict",
    "SelftestReport",
    "StaticLayer",
    "StaticResult",
    "StructureResult",
    "TensorDiff",
    "VerifyReport",
]


@record
class PrecisionNoise(Record):
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
class GoldenInfo(Record):
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
class TensorDiff(Record):
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


@record
class Precision(Record):
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
class Comparison(Record):
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
class StructureResult(Record):
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
class StaticLayer(Record):
    """Largest distances of a layer's weights and biases from their exact values, in ulp."""

    layer: str
    weight_ulp: float
    bias_ulp: float


@record
class StaticResult(Record):
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
class NodeError(Record):
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
class NodeLocalResult(Record):
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
class Conformance(Record):
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
class ArithmeticResult(Record):
    """The error of one position of a provider's switch between arithmetics.

    Attributes:
        options: the provider options that make this position, such as "use_tf32=1"; "default"
            where it is none of them.
        rel_l2: the outputs' distance from the reference, as in `TensorDiff`.
        found: the arithmetic that the error is the size of.
    """

    options: str
    rel_l2: float
    found: PrecisionName


@record
class Attribution(Record):
    """The same inputs under both positions of a provider's switch: what of an error is whose.

    It is told, not judged: the session that was asked for is.
    """

    exact: ArithmeticResult
    fast: ArithmeticResult

    @property
    def matters(self) -> bool:
        """Whether the fast arithmetic, and not chance, makes most of its error."""
        return self.fast.rel_l2 > 2 * self.exact.rel_l2


@record
class ProviderVerdict(Record):
    """One provider's session, the evidence on what it computed there, and what is missing of it.

    `accuracy` is the fraction of correct labels, where the inputs came with labels; `placement`,
    `conformance` and `attribution` are None where they were not looked at; `missing` says of each
    other layer of evidence that could not be had why.
    """

    session: SessionInfo
    comparison: Comparison
    accuracy: float | None = None
    node_local: NodeLocalResult | None = None
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    placement: Placement | None = None
    conformance: Conformance | None = None
    attribution: Attribution | None = None

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
class VerifyReport(Record):
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
class PlantedFault(Record):
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
class SelftestReport(Record):
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
