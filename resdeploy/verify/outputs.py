"""The outputs of a model on named providers, judged against a golden file: L3 of a verdict.

Not the full verdict: a weight may be moved by several float steps and every output still be within
the noise of float32. `resdeploy.verify` adds the wiring, the weights and the layers; this part
needs neither the network nor onnx, as on a device. The report names its missing evidence.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resdeploy.files import file_info
from resdeploy.schema.sessions import PrecisionName, SessionSpec
from resdeploy.schema.verdicts import Attribution, ProviderVerdict, VerifyReport
from resdeploy.session.placement import read_placement
from resdeploy.session.run import session_outputs
from resdeploy.session.session import Session, open_session
from resdeploy.verify.attribution import attribute_error, facts
from resdeploy.verify.compare import accuracy
from resdeploy.verify.conformance import check_conformance
from resdeploy.verify.golden_file import Golden
from resdeploy.verify.named_outputs import float_columns, judge_named_outputs

__all__ = ["judge_outputs", "judge_session_outputs", "open_sessions"]

_ONLY_OUTPUTS = "a golden file holds outputs only, not the network"


def judge_outputs(
    model: Path,
    golden: Golden,
    specs: Sequence[SessionSpec],
    *,
    precision: PrecisionName = "float32",
) -> VerifyReport:
    """Return the verdict on the outputs of `model` for each session of `specs`, in that order.

    Args:
        model: an ONNX file.
        golden: inputs, float64 reference and the noise of float32.
        specs: where to run it.
        precision: the arithmetic it is said to compute in, whose noise is the yardstick.

    Raises:
        ResdeployError: the model is not the network of the reference (shapes differ), or cannot be
            read.
        ProviderError: a provider did not start.
    """
    return judge_session_outputs(model, golden, open_sessions(model, specs), precision=precision)


def open_sessions(model: Path, specs: Sequence[SessionSpec]) -> list[Session]:
    """Open every session before any is run: a provider that does not start is known at once.

    Raises:
        ResdeployError: the model cannot be read.
        ProviderError: a provider did not start.
    """
    return [open_session(model, spec) for spec in specs]


def judge_session_outputs(
    model: Path,
    golden: Golden,
    sessions: Sequence[Session],
    *,
    precision: PrecisionName = "float32",
    conformance: bool = False,
) -> VerifyReport:
    """Return the verdict on the outputs of open sessions: L3, placement and conformance.

    Args:
        model: their file.
        golden: inputs, float64 reference and the noise of float32.
        sessions: those to be judged.
        precision: the arithmetic they are said to compute in.
        conformance: whether to call each in other ways too: batches, graph levels, odd values.

    Raises:
        ResdeployError: the model is not the network of the reference (shapes differ).
    """
    missing = {"node_local": _ONLY_OUTPUTS}
    if conformance and precision != "float32":
        conformance = False
        missing["conformance"] = "its unit is the noise of float32"
    verdicts = []
    for session in sessions:
        outputs = session_outputs(session, golden.inputs)
        attribution = attribute_error(model, golden, session, outputs)
        unattributed = {"attribution": attribution} if isinstance(attribution, str) else {}
        verdicts.append(
            ProviderVerdict(
                session=session.info,
                comparison=judge_named_outputs(
                    outputs, golden, precision=precision, facts=facts(session.info.spec)
                ),
                accuracy=_accuracy(float_columns([*outputs.values()], golden.info.outputs), golden),
                missing=missing | unattributed,
                placement=read_placement(model, session, golden.inputs),
                conformance=check_conformance(model, golden, session) if conformance else None,
                attribution=attribution if isinstance(attribution, Attribution) else None,
            )
        )
    return VerifyReport(
        model=file_info(model, relative_to=model.parent),
        golden=golden.info,
        verdicts=tuple(verdicts),
        reference_accuracy=_accuracy(golden.reference, golden),
        missing=dict.fromkeys(("structure", "static", "metadata"), _ONLY_OUTPUTS),
        accepts="outputs",
    )


def _accuracy(outputs_NK: np.ndarray, golden: Golden) -> float | None:
    if golden.labels is None or not outputs_NK.shape[1]:
        return None
    return accuracy(outputs_NK, golden.labels)
