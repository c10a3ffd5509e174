"""Read from the runtime where a model runs: the plan, and the profile of one run."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from resdeploy.errors import ProviderError
from resdeploy.schema.sessions import Placement
from resdeploy.session.placement_proof import Kernel, judge_placement
from resdeploy.session.providers import find_provider
from resdeploy.session.run import run_session
from resdeploy.session.session import Session, open_session, planned_kernels

__all__ = ["read_placement"]


def read_placement(model: Path | bytes, session: Session, inputs: np.ndarray) -> Placement:
    """Return where `model` runs, asked of another session that is opened as `session` was.

    Another one, because profiling takes time and cannot be switched off again without ending the
    profile; one run of one input is all it does.

    Args:
        model: what `session` was opened on.
        session: the session to be judged.
        inputs: (N, ...), of which the first is run.

    Raises:
        ProviderError: the profile cannot be read.
    """
    spec = session.info.spec
    with tempfile.TemporaryDirectory(prefix="resdeploy-profile-") as folder:
        profiled = open_session(model, spec, profile_prefix=Path(folder) / "run")
        try:
            run_session(profiled, inputs[:1], batch_size=1)
        finally:
            # Also on a failure: a session that is profiling holds the file open.
            profile = Path(profiled.ort.end_profiling())
        executed = _executed(profile, runtime=session.info.runtime_version)
    return judge_placement(
        find_provider(spec.provider).ort_name,
        planned=planned_kernels(profiled),
        executed=executed,
    )


def _executed(profile: Path, *, runtime: str) -> tuple[Kernel, ...]:
    """Return the kernels of a profile, in the order in which they ran."""
    try:
        events = json.loads(profile.read_text(encoding="utf-8"))
        return tuple(_kernel(event) for event in events if _is_kernel(event))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProviderError(
            f"The profile of a run cannot be read: {error!r}.", where=f"onnxruntime {runtime}"
        ) from error


def _is_kernel(event: Any) -> bool:
    # Versions before 1.17 wrote events around each kernel too, which name no provider.
    return event.get("cat") == "Node" and "provider" in event.get("args", {})


def _kernel(event: Any) -> Kernel:
    return Kernel(
        name=event["name"].removesuffix("_kernel_time"),
        op=event["args"]["op_name"],
        provider=event["args"]["provider"],
    )
