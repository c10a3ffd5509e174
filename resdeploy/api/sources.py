"""SRC, the one notion of a model that commands share: its three forms, each taken where it can be.

A trained model is a run directory, a checkpoint, a factory or a live module. An ONNX file is any
tool's. A bundle is a folder or a `.zip`. A command that runs a file takes the file of a bundle; one
that needs a bundle makes one of an ONNX file, for as long as it runs.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resdeploy.errors import ResdeployError
from resdeploy.schema.files import CHECKPOINT_SUFFIXES, MANIFEST, SourceSpec
from resdeploy.schema.sessions import SessionSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.verify.certify import Reference
    from resdeploy.verify.golden_file import Golden

__all__ = [
    *("Form", "as_bundle", "as_onnx", "form_of", "reference_of_onnx", "refuse_checkpoint"),
]

Form = Literal["trained", "onnx", "bundle"]

# Of a bundle that is made for one command: float64 on more would take longer than the command.
_NUM_INPUTS = 8


def form_of(path: Path) -> Form:
    """Return the form of the model at a path; what is neither of the others counts as trained."""
    if path.suffix.lower() == ".onnx":
        return "onnx"
    is_bundle = path.suffix.lower() == ".zip" or (path / MANIFEST).is_file()
    return "bundle" if is_bundle else "trained"


@contextlib.contextmanager
def as_onnx(path: Path) -> Iterator[Path]:
    """Yield the ONNX file of a source: itself, or the model of a bundle, checked to the last byte.

    Raises:
        BundleError: the bundle is damaged.
        ResdeployError: the source is a trained model.
    """
    if form_of(path) == "bundle":
        from resdeploy.bundle.archive import opened_bundle

        with opened_bundle(path) as opened:
            yield opened.model
    elif path.is_dir():
        raise _not_exported(path)
    else:  # whatever its name: the reader says what is wrong with it
        refuse_checkpoint(path)
        yield path


@contextlib.contextmanager
def as_bundle(path: Path) -> Iterator[Path]:
    """Yield the bundle of a source: itself, or one made of an ONNX file, which is removed again.

    Raises:
        ResdeployError: the source is a trained model; or the ONNX file cannot be bundled.
    """
    if form_of(path) == "onnx":
        from resdeploy.api.bundle import bundle

        with tempfile.TemporaryDirectory(prefix="resdeploy-") as folder:
            made = Path(folder) / path.stem
            bundle(path, made, num_inputs=_NUM_INPUTS)
            yield made
    else:  # the reader of bundles says what is missing
        refuse_checkpoint(path)
        yield path


def reference_of_onnx(
    spec: SourceSpec,
    *,
    num_inputs: int,
    given: "tuple[NDArray[Any], str] | None" = None,
    num_threads: int | None = None,
) -> "tuple[Golden, Reference]":
    """Return the golden outputs and the graph of an ONNX file, or of a bundle's, in float64."""
    from resdeploy.session.session import open_session
    from resdeploy.verify.reference_file import load_reference

    as_it_stands = SessionSpec(graph_level="disabled", num_threads=num_threads)
    with as_onnx(Path(spec.path or "")) as path:
        return load_reference(
            path,
            num_inputs=num_inputs,
            input_shape=spec.input_shape,
            given=given,
            open_model=lambda model: open_session(model, as_it_stands).run,
        )


def refuse_checkpoint(path: Path) -> None:
    """Raise ResdeployError for the weights of a trained model, where a file to run is needed."""
    if path.is_file() and path.suffix.lower() in CHECKPOINT_SUFFIXES:
        raise _not_exported(path)


def _not_exported(path: Path) -> ResdeployError:
    return ResdeployError(
        "This is no ONNX file and no bundle.",
        where=str(path),
        fix=f"of a trained model, export it first: resdeploy export {path} -o model.onnx",
    )
