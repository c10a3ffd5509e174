"""An exported program under edit: its functional graph and the tensors its inputs stand for."""

import dataclasses
import itertools
import operator
import re
from typing import Any, cast

import torch
from torch import fx, nn
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    TensorArgument,
)

__all__ = ["CLONE_MARK", "ProgramEditor"]

# Sets a call site's own copy of a shared weight apart; no attribute of a module can be called so.
CLONE_MARK = "@"


class ProgramEditor:
    """Replaces weights of an exported program, call site by call site; uses the program up."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._program = program
        # The graph is edited where it is (a copy would rename its nodes, which the signature goes
        # by); the tensors are the module's own, so they are replaced, never written into.
        self._module = program.graph_module
        self.graph = self._module.graph
        self._tensors: dict[str, Any] = {**program.state_dict, **program.constants}
        self._constants: dict[fx.Node, Any] = {}
        signature = program.graph_signature
        self._specs = {spec.arg.name: spec for spec in signature.input_specs}
        self._mutated = {
            *signature.buffers_to_mutate.values(),
            # torch 2.9 has no mutated parameters to tell of
            *getattr(signature, "parameters_to_mutate", {}).values(),
        }

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node is a parameter or buffer that no call of the model changes."""
        if node.op != "placeholder":
            return False
        target = self._specs[node.name].target
        return target in self._tensors and target not in self._mutated

    def is_input(self, node: fx.Node) -> bool:
        """Whether a node is an input of the model."""
        return node.op == "placeholder" and self._specs[node.name].kind is InputKind.USER_INPUT

    def constant(self, node: fx.Node) -> torch.Tensor | None:
        """Return the value of a node that no input and no earlier call decides; None if one does.

        A parameter or buffer is itself; what is computed from such is computed in float64.
        """
        value = self._value(node)
        return value if isinstance(value, torch.Tensor) else None

    def owner(self, node: fx.Node) -> str:
        """Return the name of the module that a parameter or buffer belongs to, "" for the root."""
        return self._name(node).rpartition(".")[0]

    def replace(
        self, node: fx.Node, tensor: torch.Tensor, *, name: str, reader: fx.Node
    ) -> fx.Node:
        """Return the node from which `reader` shall read `tensor` in place of `node`'s value.

        Where others read that value too, or it is computed, this is a new parameter called `name`.
        """
        if not self.is_constant(node):
            return self.add(name, tensor, beside=None)
        if list(node.users) == [reader]:
            self._tensors[self._name(node)] = nn.Parameter(tensor, requires_grad=False)
            return node
        return self.add(self._name(node), tensor, beside=node)

    def add(self, name: str, tensor: torch.Tensor, *, beside: fx.Node | None) -> fx.Node:
        """Return a new parameter called `name`, or a variation of it where that is taken."""
        if name in self._tensors:
            name = next(
                n for k in itertools.count() if (n := f"{name}{CLONE_MARK}{k}") not in self._tensors
            )
        self._tensors[name] = nn.Parameter(tensor, requires_grad=False)
        # Parameters stand before buffers; beside the weight is where a reader would look.
        if beside is not None and self._specs[beside.name].kind is InputKind.PARAMETER:
            place = self.graph.inserting_after(beside)
        else:
            place = self.graph.inserting_before(next(iter(self.graph.nodes)))
        with place:
            node: fx.Node = self.graph.placeholder("p_" + re.sub(r"\W", "_", name))
            node.target = node.name  # fx made the name unique; the generated code uses the target
        node.meta["val"] = self._fake_mode().from_tensor(self._tensors[name], static_shapes=True)
        self._specs[node.name] = InputSpec(
            InputKind.PARAMETER, TensorArgument(node.name), name, persistent=None
        )
        return node

    def erase_unused(self, node: fx.Node) -> None:
        """Erase a node that nothing reads, and what was computed for it alone."""
        sources = node.all_input_nodes
        self.graph.erase_node(node)
        for source in sources:
            if source.op == "call_function" and not source.users:
                self.erase_unused(source)

    def finish(self) -> torch.export.ExportedProgram:
        """Return the edited program, without what nothing reads any more."""
        self.graph.eliminate_dead_code()
        for node in [n for n in self.graph.nodes if n.op == "placeholder" and not n.users]:
            spec = self._specs[node.name]
            # A buffer that a call changes is still where the change goes.
            if spec.kind is not InputKind.USER_INPUT and spec.target not in self._mutated:
                self.graph.erase_node(node)
        self.graph.lint()
        self._module.recompile()
        input_specs = [self._specs[n.name] for n in self.graph.nodes if n.op == "placeholder"]
        # A BatchNorm that was an output is now another value, and the signature goes by names.
        outputs = cast("tuple[fx.Node, ...]", self.graph.output_node().args[0])
        output_specs = [
            dataclasses.replace(spec, arg=TensorArgument(node.name))
            if isinstance(spec.arg, TensorArgument)
            else spec
            for spec, node in zip(self._program.graph_signature.output_specs, outputs, strict=True)
        ]
        kept = {spec.target for spec in input_specs if spec.target is not None}
        tensors = {name: tensor for name, tensor in self._tensors.items() if name in kept}
        constants = {n: tensor for n, tensor in tensors.items() if n in self._program.constants}
        return torch.export.ExportedProgram(
            root=self._module,
            graph=self.graph,
            graph_signature=ExportGraphSignature(
                input_specs=input_specs, output_specs=output_specs
            ),
            state_dict={n: tensor for n, tensor in tensors.items() if n not in constants},
            range_constraints=self._program.range_constraints,
            module_call_graph=self._program.module_call_graph,
            example_inputs=self._program.example_inputs,
            constants=constants,
            verifiers=self._program.verifiers,
        )

    def _value(self, node: fx.Node) -> Any:
        if node not in self._constants:
            self._constants[node] = self._evaluate(node)
        return self._constants[node]

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._tensors[self._name(node)] if self.is_constant(node) else None
        if node.op != "call_function" or not _is_pure(node):
            return None
        values = {source: self._value(source) for source in node.all_input_nodes}
        if not values or any(value is None for value in values.values()):
            return None

        def in_float64(source: fx.Node) -> Any:
            value = values[source]
            is_real = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.double() if is_real else value

        arguments, options = fx.node.map_arg((node.args, node.kwargs), in_float64)
        try:
            with torch.no_grad():
                return cast(Any, node.target)(*arguments, **options)
        except (RuntimeError, TypeError, NotImplementedError):  # no kernel for float64
            return None

    def _fake_mode(self) -> Any:
        """Return what the values of the graph were traced with."""
        return next(
            value.fake_mode
            for node in self.graph.nodes
            if hasattr(value := node.meta.get("val"), "fake_mode")
        )

    def _name(self, node: fx.Node) -> str:
        target = self._specs[node.name].target
        assert target is not None, f"{node.name} is not a constant"
        return str(target)


def _is_pure(node: fx.Node) -> bool:
    """Whether a call gives the same value for the same arguments and changes nothing."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
