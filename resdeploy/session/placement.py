"""Placement of a model in the runtime's own records: the plan, and the profile of one run."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from resdeploy.errors import ProviderError
from resdeploy.schema.sessions import Placement, SessionSpec
from resdeploy.session.placement_proof import Kernel, judge_placement
from resdeploy.session.providers import find_provider
from resdeploy.session.run import session_outputs
from resdeploy.session.session import Session, open_session, planned_kernels

__all__ = ["kernel_events", "read_events", "read_placement"]

T = TypeVar("T")


def read_placement(model: Path | bytes, session: Session, inputs: np.ndarray) -> Placement:
    """Return the placement of `model` in a session like `session`, by a profile of one run.

    Another session, because profiling takes time and cannot be switched off again without ending
    the profile. Of `inputs` (N, ...) the first is run.

    Raises:
        ProviderError: the profile cannot be read.
    """
    spec = session.info.spec
    executed = read_events(
        model, spec, lambda profiled: session_outputs(profiled, inputs[:1], batch_size=1), _kernels
    )
    return judge_placement(
        find_provider(spec.provider).ort_name,
        planned=planned_kernels(session.ort),
        executed=executed,
    )


def read_events(
    model: Path | bytes,
    spec: SessionSpec,
    run: Callable[[Session], object],
    read: Callable[[list[Any]], T],
) -> T:
    """Return `read` of the events in the runtime's profile of `run`.

    Raises:
        ProviderError: the profile cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="resdeploy-profile-") as folder:
        session = open_session(model, spec, profile_prefix=Path(folder) / "run")
        try:
            run(session)
        finally:
            # Also on a failure: a session that is profiling holds the file open.
            path = Path(session.ort.end_profiling())
        try:
            return read(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ProviderError(
                f"The profile of a run cannot be read: {error!r}.",
                where=f"onnxruntime {session.info.runtime_version}",
            ) from error


def kernel_events(events: list[Any]) -> list[Any]:
    """Return the events of kernels, in the order in which they ran."""
    # Versions before 1.17 wrote events around each kernel too, which name no provider.
    return [e for e in events if e.get("cat") == "Node" and "provider" in e.get("args", {})]


def _kernels(events: list[Any]) -> tuple[Kernel, ...]:
    return tuple(
        Kernel(
            name=event["name"].removesuffix("_kernel_time"),
            op=event["args"]["op_name"],
            provider=event["args"]["provider"],
        )
        for event in kernel_events(events)
    )
