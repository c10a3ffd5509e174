"""References, the layers of a verdict, and the self-test."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from resdeploy.schema.codec import Judged, Record, record
from resdeploy.schema.files import FileInfo, Verdict
from resdeploy.schema.sessions import Placement, PrecisionName, SessionInfo

# The least that passes: the whole proof, or outputs that agree.
Accepts = Literal["proof", "outputs"]


@record
class PrecisionNoise(Record):
    """Errors of this very network in each precision: relative L2, on a few of the inputs.

    `float32` is measured, the others are simulated; None where the outputs are not finite.
    """

    num_inputs: int
    float32: float | None
    tf32: float | None
    float16: float | None
    bfloat16: float | None
    int8: float | None


@record
class OutputInfo(Record):
    """An output of the reference: its name, its type, and the shape of one sample.

    `is_exact` of integers and bools: they are compared one by one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_exact(self) -> bool:
        """True if its values are decisions, without noise."""
        return not self.dtype.startswith("float")

    @property
    def width(self) -> int:
        """The number of its values for one sample."""
        return math.prod(self.shape)


@record
class GoldenInfo(Record):
    """Origin of reference outputs: `num_inputs` inputs through the model `source` in float64.

    Attributes:
        inputs: in words.
        precision: the arithmetic whose rounding noise is the yardstick.
        precision_noise: errors in other arithmetics; None if not simulated.
        weight_noise_l2: norm of the outputs' mean shift over all inputs when parameters are rounded
            to float32, and sums of equal terms are; None if not measured.
        sigma_missing: the reason why the golden file has no sigma; None if it has one.
        drawn_noise: relative L2 of errors drawn for sums in whatever order; None without sigma.
        outputs: each output of the model, in its order; () in files of before.
    """

    source: str
    inputs: str
    num_inputs: int
    precision: Literal["float32"] = "float32"
    precision_noise: PrecisionNoise | None = None
    weight_noise_l2: float | None = None
    sigma_missing: str | None = None
    drawn_noise: float | None = None
    outputs: tuple[OutputInfo, ...] = ()

    def place(self, column: int, *, exact: bool = False) -> str:
        """Return the words for a column of the floats, or of the integers."""
        start = 0
        for output in self.outputs:
            if output.is_exact is exact:
                if column < start + output.width:
                    index = _unravelled(column - start, output.shape)
                    return f"output {output.name!r}{index or ''}"
                start += output.width
        return f"output {column}"


def _unravelled(index: int, shape: tuple[int, ...]) -> list[int]:
    """Return the place of a value in an array, row by row."""
    places = []
    for size in reversed(shape):
        index, place = divmod(index, size)
        places.append(place)
    return places[::-1]


@record
class TensorDiff(Record):
    """Distance of a candidate's output from the float64 reference.

    `max_abs` is the largest difference of one element; `rel_l2` the Euclidean norm of the
    difference over that of the reference; `num_nonfinite` counts elements that are NaN or infinite
    in the candidate alone.
    """

    max_abs: float
    rel_l2: float
    num_nonfinite: int


@record
class Precision(Record):
    """The arithmetic that matches a candidate's error, beside the claimed one.

    The candidate is judged by the one `claimed`; `found` is "unknown" if no arithmetic has an error
    of this size; `ratio` is the error over the noise of the claimed arithmetic.
    """

    claimed: PrecisionName
    found: PrecisionName
    ratio: float


@record
class Comparison(Judged):
    """One candidate judged against the reference; a figure that is None is named in `missing`.

    Attributes:
        noise_rel_l2: the yardstick's distance from the float64 reference (PyTorch in float32 on the
            CPU), over the norm of the reference.
        noise_ratio: the ratio R of the two distances (infinite if the candidate is not finite).
        worst_input_ratio: the largest R of a single input.
        noise_ratio_limit: the largest R that passes.
        top1_agreement: fraction of inputs whose largest output is the reference's.
        z_rms: root mean square of z, each output's error over its propagated standard deviation.
        z_max: the largest |z| of one output.
        systematic: the statistic T, the error common to all inputs beyond chance and rounded
            weights; 1 or less for noise, N for an offset.
        systematic_limit: the largest T that passes.
        num_changed_top1: inputs whose largest output is another one; the reference's margin must
            excuse each.
        precision: the arithmetic with an error of this size.
        missing: evidence that could not be had, with reasons; it is not assumed to have passed.
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


@record
class StructureResult(Record):
    """Comparison of the candidate's graph with the reference's, both in folded normal form.

    `num_nodes` and `num_layers` count operators and affine layers of the reference, `num_aligned`
    affine layers with a counterpart in the candidate. `same_form` is True if both are written in
    the same operators: if not, nothing is shown either way. `differences` are the first few.
    """

    num_nodes: int
    num_layers: int
    num_aligned: int
    same_form: bool
    differences: tuple[str, ...] = ()

    @property
    def isomorphic(self) -> bool:
        """True if the two are one graph."""
        return not self.differences

    @property
    def passed(self) -> bool:
        """True unless the candidate was shown to be another network."""
        return self.isomorphic or not self.same_form


@record
class MetadataResult(Judged):
    """The entries of the candidate's metadata that others go by, compared with the reference's.

    `judged` are those that both state, `unknown` those that the candidate alone does.
    """

    judged: tuple[str, ...]
    unknown: tuple[str, ...]
    reasons: tuple[str, ...] = ()


@record
class StaticLayer(Record):
    """Largest distances of a layer's weights and biases from their exact values, in ulp."""

    layer: str
    weight_ulp: float
    bias_ulp: float


@record
class StaticResult(Judged):
    """Every weight of the candidate against its exact value, in the order of the network."""

    layers: tuple[StaticLayer, ...]
    limit_ulp: float
    reasons: tuple[str, ...] = ()

    @property
    def max_ulp(self) -> float:
        """The largest distance of all."""
        return max((max(x.weight_ulp, x.bias_ulp) for x in self.layers), default=0.0)


@record
class NodeError(Record):
    """Error of one node's outputs for its own inputs, as fractions of two bounds.

    The rigorous bound is gamma_n times the sum of the products' magnitudes; the estimate has the
    square root of n instead of n.
    """

    node: str
    of_bound: float
    of_estimate: float


@record
class NodeLocalResult(Judged):
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


@record
class Conformance(Judged):
    """Agreement of a session with itself over batch sizes, graph levels and odd values.

    Distances are the largest of one input, in units of the network's float32 noise.

    Attributes:
        batches: by batch size, the distance of a row from its result in a batch of one.
        levels: by graph-optimisation level, the distance from the requested session.
        stress: by kind of input (constant, subnormal, extreme), the distance from the CPU without
            any optimisation.
        deterministic: True if the same run again gave the same bits; reported, not judged.
        max_run_to_run: the largest difference of an output element between two such runs.
        missing: untried calls, with reasons.
    """

    batches: Mapping[str, float]
    levels: Mapping[str, float]
    stress: Mapping[str, float]
    limit: float
    deterministic: bool
    max_run_to_run: float
    reasons: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@record
class ArithmeticResult(Record):
    """The error of one position of a provider's switch between arithmetics.

    `options` are the provider options of this position, such as "use_tf32=1", or "default";
    `rel_l2` is as in `TensorDiff`; `found` is the arithmetic with an error of this size.
    """

    options: str
    rel_l2: float
    found: PrecisionName


@record
class Attribution(Record):
    """The errors of both positions of a provider's switch on the same inputs.

    Reported, not judged: the verdict is on the requested session.
    """

    exact: ArithmeticResult
    fast: ArithmeticResult

    @property
    def matters(self) -> bool:
        """True if the fast arithmetic, and not chance, makes most of its error."""
        return self.fast.rel_l2 > 2 * self.exact.rel_l2


@record
class ProviderVerdict(Judged):
    """One provider's session, the evidence on its outputs, and the missing evidence.

    `accuracy` is the fraction of correct labels, for labelled inputs; `placement`, `conformance`
    and `attribution` are None if not asked for; `missing` has a reason for each other missing layer
    of evidence.
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
        """The reasons of all evidence."""
        judged = (self.placement, self.node_local, self.comparison, self.conformance)
        return tuple(reason for one in judged if one is not None for reason in one.reasons)


@record
class VerifyReport(Record):
    """A model judged as a file, and on each requested provider, in one of three words.

    PROVED: its graph is the reference's, operator by operator and number by number, every layer was
    certified where it runs, the outputs are those that its arithmetic explains, and what others go
    by in its metadata is the same. AGREES: so are the outputs, and something else was not shown; a
    network that differs for other inputs is not excluded. FAIL: something was shown to differ.

    `accepts` is the least that passes; `missing` has the reason for each missing layer of evidence
    on the file; `proved_as` is the SHA-256 of the file that was proved elsewhere, where that is
    known; `source` has a line for each thing that was found in the reference's files, or left out.
    """

    stated: ClassVar[tuple[str, ...]] = ("verdict", "passed", "unproved")

    model: FileInfo
    golden: GoldenInfo
    verdicts: tuple[ProviderVerdict, ...]
    reference_accuracy: float | None = None
    structure: StructureResult | None = None
    static: StaticResult | None = None
    metadata: MetadataResult | None = None
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    accepts: Accepts = "proof"
    proved_as: str | None = None
    source: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons against the file itself."""
        structure = self.structure
        differences = () if structure is None or structure.passed else structure.differences
        judged = (self.static, self.metadata)
        return (*differences, *(reason for one in judged if one for reason in one.reasons))

    @property
    def unproved(self) -> tuple[str, ...]:
        """The evidence that is missing, each with the reason."""
        if self.proved_as is not None and self.proved_as == self.model.sha256:
            return ()
        found = [f"{what}: {why}" for what, why in self.missing.items()]
        found += [
            f"{what}: not judged"
            for what, one in (
                ("structure", self.structure),
                ("static", self.static),
                ("metadata", self.metadata),
            )
            if one is None and what not in self.missing
        ]
        for verdict in self.verdicts:
            if verdict.node_local is None:
                name, why = verdict.session.spec.provider, verdict.missing.get("node_local")
                found.append(f"node_local on {name}: {why or 'not judged'}")
        return tuple(found)

    @property
    def verdict(self) -> Verdict:
        """The verdict in one word."""
        if not self.verdicts or self.reasons or not all(v.passed for v in self.verdicts):
            return "FAIL"
        return "AGREES" if self.unproved else "PROVED"

    @property
    def passed(self) -> bool:
        """True for PROVED, and for AGREES where no more was asked for."""
        return self.verdict == "PROVED" or (self.verdict == "AGREES" and self.accepts == "outputs")


@record
class FileProof(Record):
    """The proof of a model file on the machine that made it, for those that cannot repeat it.

    `sha256` is of the file; the results are those of `VerifyReport`; `unproved` is what was not
    shown, () for a file that is PROVED.
    """

    sha256: str
    structure: StructureResult | None
    static: StaticResult | None
    metadata: MetadataResult | None
    unproved: tuple[str, ...] = ()


@record
class PlantedFault(Record):
    """The outcome of one fault planted into a correct model, or of a control.

    `layer` is the faulty layer, if it is a single one; `caught_by` are the layers of evidence that
    failed, `named` the first layer that they named; `accepted_by` are the fixed tolerances that
    would accept it.
    """

    name: str
    layer: str | None
    caught_by: tuple[str, ...]
    named: str | None
    accepted_by: tuple[str, ...]

    @property
    def caught(self) -> bool:
        """True if evidence failed and, for a fault of one layer, named that layer."""
        return bool(self.caught_by) and (self.layer is None or self.named == self.layer)


@record
class PlantedAttack(Record):
    """A back door planted into a correct model, and its verdict in one word.

    `found` is what was not understood, or differs; `ran` is False for a file that no session took.
    """

    name: str
    verdict: Verdict
    found: str
    ran: bool


@record
class SelftestReport(Record):
    """Faults planted into a model, and their outcomes.

    `controls` are correct models, which must pass; `not_applicable` are faults without a place in
    this network; `tolerances` are the fixed ones to compare with; `attacks` are back doors, if
    asked for.
    """

    model: str
    num_inputs: int
    faults: tuple[PlantedFault, ...]
    controls: tuple[PlantedFault, ...]
    not_applicable: tuple[str, ...]
    tolerances: tuple[str, ...]
    attacks: tuple[PlantedAttack, ...] = ()

    @property
    def passed(self) -> bool:
        """True if every fault was caught, no back door was proved and no correct model caught."""
        is_fooled = any(attack.verdict == "PROVED" for attack in self.attacks)
        caught = all(f.caught for f in self.faults)
        return caught and not is_fooled and not any(c.caught_by for c in self.controls)
