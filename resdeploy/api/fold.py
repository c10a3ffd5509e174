"""`resdeploy.fold_batchnorm`: the BatchNorms of a module, or of a file, folded into its layers."""

from typing import TYPE_CHECKING, Any, overload

from resdeploy.api.arguments import PathLike, is_onnx, model_of, optional_path, path_of, source_spec
from resdeploy.errors import ResdeployError
from resdeploy.schema.recipes import SourceSpec

if TYPE_CHECKING:
    from torch import nn

    from resdeploy.export.fold_module import FoldedModule
    from resdeploy.export.source import SourceModel
    from resdeploy.schema.folds import FoldReport

__all__ = ["fold_batchnorm"]


@overload
def fold_batchnorm(
    source: "nn.Module | SourceModel", example: Any = None, *, layernorm: bool = False
) -> "FoldedModule": ...
@overload
def fold_batchnorm(
    source: PathLike | SourceSpec,
    *,
    out: PathLike | None = None,
    layernorm: bool = False,
    force: bool = False,
) -> "FoldReport": ...
def fold_batchnorm(
    source: "nn.Module | SourceModel | SourceSpec | PathLike",
    example: Any = None,
    *,
    out: PathLike | None = None,
    layernorm: bool = False,
    force: bool = False,
) -> "FoldedModule | FoldReport":
    """Fold every BatchNorm that may be folded, and report the reason for each refusal.

    Args:
        source: a torch module in eval mode, or a `Model`, which stay as they are; or the path of a
            checkpoint or of an ONNX file.
        example: of a module: an input to trace it with, where its shape is not to be guessed.
        out: of a path: the file to write, of the same kind; None only to report.
        layernorm: fold the affine parts of LayerNorms too.
        force: replace an existing file.

    Returns:
        Of a module, a `FoldedModule` with `.module`, of the same class with identities for its
        norms, and `.report`; of a path, the report. `report.complete` is True if none is left.

    Raises:
        ResdeployError: the file is not what it should be, or `out` exists; or an argument is not
            for such a source.
        UnsupportedModelError: the module cannot be traced, or cannot hold the fold.
        TypeError: `source` is something else.

    Example:
        >>> folded = resdeploy.fold_batchnorm(model.module)
        >>> folded.module(images), folded.report.complete
    """
    spec = source_spec(source)
    if spec is None:
        if out is not None:
            raise ResdeployError("out is for a file; a module's fold is in what is returned.")
        return _fold_module(source, example, layernorm=layernorm)
    if example is not None:
        raise ResdeployError("An example is for a module; a file says what it takes.")
    path = optional_path(out, "out")
    if is_onnx(spec):
        if spec != SourceSpec(path=spec.path, input_shape=spec.input_shape):
            raise ResdeployError("An ONNX file needs no architecture, factory or recipe.")
        from resdeploy.api.fold_onnx import fold_file

        model, shape = path_of(spec.path, "source"), spec.input_shape
        return fold_file(model, path, input_shape=shape, layernorm=layernorm, force=force)
    from resdeploy.export.fold_checkpoint import fold_checkpoint

    return fold_checkpoint(model_of(spec), path, layernorm=layernorm, force=force)


def _fold_module(source: Any, example: Any, *, layernorm: bool) -> "FoldedModule":
    from resdeploy.export.source import SourceModel, example_inputs, require_module

    if isinstance(source, SourceModel):
        example = example_inputs(source)[0] if example is None else example
        source = source.module
    module = require_module(source, "source")
    from resdeploy.export.fold_module import fold_batchnorm as fold_module

    return fold_module(module, example, layernorm=layernorm)
