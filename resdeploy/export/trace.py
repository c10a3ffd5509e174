"""Turn a torch module into a functional ATen graph.

Legality of a fold is a question about call sites: who reads this value? Modules cannot answer it (a
module may be called twice, a hook may sit between, a subclass may do something else). The graph of
`torch.export` can, once it is functional: every value is written once, so "one reader" means one.
"""

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, cast

import torch
from torch import fx, nn
from torch.export.graph_signature import ConstantArgument, OutputKind
from torch.utils import _pytree

from resdeploy.errors import UnsupportedModelError
from resdeploy.export.inner_graphs import each_graph, inline_regions
from resdeploy.export.run_module import know_dataclasses, name_outputs, run_once
from resdeploy.export.trace_refusals import (
    call_arguments,
    module_path,
    refuse_what_onnx_would_drop,
)
from resdeploy.schema.files import IMAGE_SIDES

__all__ = ["BATCH_DIMENSION", "output_names", "trace"]

BATCH_DIMENSION = "batch"

_IMAGE_RANK = 4

aten = torch.ops.aten

_AVERAGES = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
_BATCH_NORMS = (
    *(aten.native_batch_norm.default, aten._native_batch_norm_legit.default),
    *(aten._native_batch_norm_legit_no_training.default, aten._batch_norm_no_update.default),
    *(aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default),
)


def trace(
    module: nn.Module,
    example_inputs: Sequence[torch.Tensor],
    *,
    by_name: Mapping[str, torch.Tensor] | None = None,
    dynamic_batch: bool = True,
    open_sides: Sequence[str] = (),
) -> torch.export.ExportedProgram:
    """Return `module` as an exported program whose graph is functional (no in-place operation).

    Args:
        module: in the mode (eval or train) it is to be judged in; it is not changed.
        example_inputs: the positional inputs; with `dynamic_batch`, axis 0 of each is the batch
            and must be at least 2 long, as torch.export treats sizes 0 and 1 as fixed.
        by_name: the other inputs.
        dynamic_batch: trace for any batch size.
        open_sides: of images, of any size too: "height", "width".

    Raises:
        UnsupportedModelError: the module cannot be traced, bakes its batch size in, or does
            what its ONNX graph would not (`trace_refusals`).
    """
    args, kwargs = tuple(example_inputs), dict(by_name or {})
    batch = {0: torch.export.Dim(BATCH_DIMENSION, min=1)} if dynamic_batch else {}
    sides = {IMAGE_SIDES[name]: torch.export.Dim.DYNAMIC for name in open_sides}
    try:
        with _quiet_torch(), torch.no_grad():
            shapes = _dynamic_shapes(module, args, kwargs, batch, sides) if batch or sides else None
            try:
                program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
            except Exception:
                # Such as an output of a dataclass that nobody told torch about.
                if not know_dataclasses(module(*args, **kwargs)):
                    raise
                program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
            _resolve_lazy_views(program)
            inline_regions(program)
            _drop_metadata_checks(program)
            _use_plain_forms(program)
            program = _functionalise(program)
            refuse_what_onnx_would_drop(program)
            return program
    except UnsupportedModelError:
        raise
    except Exception as error:  # torch.export has no common base for what it raises
        with _quiet_torch(), torch.no_grad():
            run_once(module, args, kwargs)  # a module that fails by itself is no matter of tracing
        raise UnsupportedModelError(
            f"torch.export cannot trace {type(module).__name__}: {_first_line(error)}",
            where=_user_line(error),
            fix=(
                "make the forward pass free of data-dependent Python control flow"
                + (", or leave --dynamic out" if open_sides else "")
                + (", or fix the batch size with --batch N" if dynamic_batch else "")
            ),
        ) from error


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """Return the names of a program's outputs, as `run_module` gives them to the module's."""
    specs = [
        s.arg for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT
    ]
    nest = _pytree.tree_unflatten(specs, program.call_spec.out_spec)
    paths, _ = _pytree.tree_flatten_with_path(nest)
    return name_outputs(p for p, arg in paths if not isinstance(arg, ConstantArgument))


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Hold back what torch warns of and logs as it traces: the error says what matters."""
    logger = logging.getLogger("torch")
    was_disabled = {one: one.disabled for one in (logger, *_children(logger))}
    # On stderr it prints the graph of a failed trace.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for one in was_disabled:
                one.disabled = True
            yield
        finally:
            for one, disabled in was_disabled.items():
                one.disabled = disabled


def _children(logger: logging.Logger) -> list[logging.Logger]:
    known = logging.Logger.manager.loggerDict
    return [
        one
        for name, one in known.items()
        if name.startswith(f"{logger.name}.") and isinstance(one, logging.Logger)
    ]


def _dynamic_shapes(
    module: nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    batch: dict[int, Any],
    sides: dict[int, Any],
) -> dict[str, Any]:
    """Return, by parameter of `forward`, the open axes of each input."""

    def axes(x: torch.Tensor) -> dict[int, Any]:
        return {**batch, **(sides if x.ndim == _IMAGE_RANK else {})}

    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if isinstance(value, tuple):
            found[name] = tuple(axes(one) for one in value)
        else:
            found[name] = axes(value)
    return found


def _resolve_lazy_views(program: torch.export.ExportedProgram) -> None:
    """Write out parameters that are views marked as negated: their memory holds other numbers."""
    for tensors in (program.state_dict, program.constants):
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and value.is_neg():
                resolved = value.detach().resolve_neg()
                is_parameter = isinstance(value, nn.Parameter)
                tensors[name] = nn.Parameter(resolved, False) if is_parameter else resolved


def _drop_metadata_checks(program: torch.export.ExportedProgram) -> None:
    """Erase the type checks that a cast leaves behind: they read a value without using it."""
    for module in each_graph(program.graph_module):
        for node in list(module.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                module.graph.erase_node(node)
        module.recompile()


def _use_plain_forms(program: torch.export.ExportedProgram) -> None:
    """Write some operators as the plainer ones that they are, which ONNX says more of.

    A BatchNorm at inference has several spellings, some with outputs beside its result, which
    nobody reads. An InstanceNorm with running statistics is one, too, of the same arguments; its
    translation repeats every parameter for each sample. An average over windows that reach beyond
    the value (`ceil_mode`) counts nothing there; without padding, there is no more to count.
    """
    for module in each_graph(program.graph_module):
        for node in list(module.graph.nodes):
            values = list(node.args)
            if (
                node.target is aten.instance_norm.default
                and values[3] is not None
                and not values[5]
            ):
                node.target = aten.batch_norm.default
            elif node.target in _BATCH_NORMS:
                _use_batch_norm(node, program.graph_signature)
            elif node.target in _AVERAGES and len(values) > 4:
                _, _, _, padding, ceil_mode, *_ = values
                if ceil_mode and not any([padding] if isinstance(padding, int) else padding):
                    node.args = (*values[:5], False, *values[6:])
        module.recompile()


def _use_batch_norm(node: fx.Node, signature: torch.export.ExportGraphSignature) -> None:
    """Write a BatchNorm at inference, of any spelling, as ATen's usual one if its result is all."""
    given = call_arguments(node)
    results = [(reader, reader.args[1]) for reader in node.users]
    in_training = given.get("training", False) or given["running_mean"] is None
    if in_training or any(at != 0 and reader.users for reader, at in results):
        return
    with node.graph.inserting_before(node):
        names = ("input", "weight", "bias", "running_mean", "running_var")
        eps = given["eps"] if "eps" in given else given["epsilon"]
        values = (*(given[name] for name in names), False, 0.0, eps, False)
        plain = node.graph.call_function(aten.batch_norm.default, values)
    plain.meta = {**node.meta, "val": node.meta["val"][0]}
    for reader, at in results:
        if at == 0:
            reader.replace_all_uses_with(plain)
            signature.replace_all_uses(reader.name, plain.name)
        node.graph.erase_node(reader)
    node.graph.erase_node(node)


def _functionalise(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace in-place operations by functional ones.

    The common kind, `relu_` on a value that nobody else reads, is renamed in place: torch's own
    functionalisation retraces the whole graph, which costs more than the trace itself. Any other
    kind (views, buffers, values read twice) goes that way.
    """
    graphs = [module.graph for module in each_graph(program.graph_module)]
    mutating = [node for graph in graphs for node in graph.nodes if _mutates(node)]
    if not mutating:
        return program
    replacements = [_functional_twin(node) for node in mutating]
    if any(twin is None for twin in replacements):
        for node in mutating:
            _refuse_untracked_alias(node)
        return cast(torch.export.ExportedProgram, program.run_decompositions({}))
    for node, twin in zip(mutating, replacements, strict=True):
        node.target = twin
    for module in each_graph(program.graph_module):
        module.recompile()
    return program


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _functional_twin(node: fx.Node) -> Any:
    """Return the functional overload of an in-place node if exchanging them is exact, else None."""
    target: Any = node.target
    mutated = node.args[0]
    name = target._schema.name.removeprefix("aten::")
    twin = getattr(
        getattr(torch.ops.aten, name.removesuffix("_"), None), target._overloadname, None
    )
    if twin is None or not name.endswith("_") or not isinstance(mutated, fx.Node):
        return None
    only_reader = list(mutated.users) == [node] and node.all_input_nodes.count(mutated) == 1
    same_arguments = [a.name for a in twin._schema.arguments] == [
        a.name for a in target._schema.arguments
    ]
    return twin if _is_fresh(mutated) and only_reader and same_arguments else None


# Return memory of their own, always.
_FRESH = frozenset(
    f"aten::{name}"
    for name in (
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "linear"),
        *("conv_transpose3d", "matmul", "batch_norm", "layer_norm", "group_norm", "instance_norm"),
        *("add", "sub", "mul", "div", "relu", "sigmoid", "clone", "cat"),
        *("max_pool2d", "avg_pool2d"),
    )
)

# May return their own input though their schema does not say so, which torch's functionalisation
# goes by: it would lose the change that an in-place operation then makes to that input.
_UNTRACKED_ALIASES = frozenset(
    f"aten::{name}" for name in ("dropout", "feature_dropout", "alpha_dropout", "type_as", "einsum")
)


def _is_fresh(node: fx.Node) -> bool:
    """Return True if no other value of the graph shares memory with this node's."""
    if node.op != "call_function":
        return False
    first = node.args[0] if node.args else None
    if _mutates(node):  # its value is the memory of its first argument
        return isinstance(first, fx.Node) and _is_fresh(first)
    if _schema_name(node) in _FRESH:
        return True
    # A view of a fresh value, or that value itself, is as good if nothing else reads the value.
    return isinstance(first, fx.Node) and list(first.users) == [node] and _is_fresh(first)


def _refuse_untracked_alias(node: fx.Node) -> None:
    """Raise if `node` changes a value that it reads by way of an operation torch thinks copies."""
    value: Any = node.args[0]
    while isinstance(value, fx.Node) and not _is_fresh(value):
        if _schema_name(value) in _UNTRACKED_ALIASES:
            raise UnsupportedModelError(
                f"The in-place operation `{node.name}` changes a value that is read elsewhere.",
                where=module_path(node) or node.name,
                fix="use the operation that returns a new value, such as x + y for x += y",
            )
        value = value.args[0] if value.args else None


def _schema_name(node: fx.Node) -> str | None:
    schema = getattr(node.target, "_schema", None)
    return None if schema is None else str(schema.name)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _user_line(error: BaseException) -> str | None:
    """Return "file:line" of the last frame outside torch, which is where the model is at fault."""
    found = None
    traceback = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if "/torch/" not in file and not file.startswith("<") and file != __file__:
            found = f"{file}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found
