"""The affine layers of an ONNX graph: their nodes, their numbers, and new numbers for them.

A layer computes W x + b per position. It is one of

1. Conv and ConvTranspose: the features are axis 1;
2. Gemm: alpha A B + beta C, the features of its output the last axis. With transA, those of its
   input are axis 0. C is one number, one per feature, or, as (M, 1) or (M, N), one per row as well;
3. MatMul by a matrix on the right, which has no place for a bias;
4. such a MatMul and the Add of a constant that alone reads it: the bias;
5. MatMul by a matrix on the left, W x: the features are the axis before the last;
6. Einsum of a value and a matrix that replaces one label of the value by another, such as
   "nil,oi->nol": sum_i W[o, i] x[n, i, l]. The features are where these labels stand.

Its parts are given new numbers at the end, when all that is to be folded into it is known. A Gemm
keeps its alpha, while its beta goes into the bias. A MatMul that gains a bias becomes a Gemm, or is
followed by an Add where it works on more than matrices, as 5 and 6 are.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.errors import UnsupportedModelError
from resdeploy.fold import algebra
from resdeploy.graph.affine_layer import AFFINE_OPERATORS, AffineLayer, LayerShape
from resdeploy.graph.editor import (
    GraphEditor,
    bias_name,
    chosen_by_caller,
    constant_array,
    constant_tensor,
    describe,
    is_op,
    module_name,
    optional_input,
    read_ir_layer,
    remove_if_unread,
    why_it_varies,
)

__all__ = ["Layer", "Layers"]

FloatArray = npt.NDArray[np.floating[Any]]

_STORAGE_TYPES = {
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine layer as it was before anything was folded.

    Attributes:
        node: the Conv, ConvTranspose, Gemm or MatMul.
        adder: the node that reads the bias, as its input `bias_index`; the Add, or `node` itself.
        bias_index: see there.
        weight: its weight.
        bias: its bias, or None where there is none.
        name: its name in the model.
        weight_index: the place of the weight among the inputs.
        axes: of the features in the input and the output, counted from the end, if they are not
            those of the operator.
        transposed: True if such a weight is (I, O).
    """

    node: ir.Node
    adder: ir.Node
    bias_index: int
    weight: ir.Value
    bias: ir.Value | None
    name: str
    weight_index: int = 1
    axes: tuple[int, int] | None = None
    transposed: bool = False

    @property
    def input_index(self) -> int:
        """The place of its input."""
        return 1 - self.weight_index

    def input_axis(self, rank: int) -> int:
        """Return the axis of the features in an input of `rank`; below 0 if there is none."""
        if self.axes is not None:
            return rank + self.axes[0]
        return 0 if self.affine.reads_columns else self.output_axis(rank)

    def output_axis(self, rank: int) -> int:
        """Return the axis of the features in an output of `rank`; below 0 if there is none."""
        if self.axes is not None:
            return rank + self.axes[1]
        return rank - 1 if self.affine.is_linear else 1

    @cached_property
    def affine(self) -> AffineLayer:
        """Its layout, factors and window.

        Raises:
            UnsupportedModelError: it is outside the specification.
        """
        if self.axes is None:
            return read_ir_layer(self.node, self.weight)
        shape = tuple(constant_tensor(self.weight).shape.numpy())
        # Of matrices it is one of W x: with any other axes the numbers are the same.
        return AffineLayer(
            op="MatMul", weight_shape=shape, shape=LayerShape(transposed=self.transposed)
        )

    @cached_property
    def refusal(self) -> str | None:
        """The reason why its weight and bias are no constants of a known layout, or None."""
        reason = chosen_by_caller(self.node)
        if reason is not None:
            return reason
        for what, value in (("weight", self.weight), ("bias", self.bias)):
            reason = None if value is None else why_it_varies(value)
            if reason is not None:
                return f"the {what} of {describe(self.node)} {reason}"
        if not constant_tensor(self.weight).size:
            return f"the weight of {describe(self.node)} has no numbers"
        if not is_op(self.node, "Conv", "ConvTranspose") and not _is_constant_matrix(self.weight):
            return f"the weight of {describe(self.node)} is no matrix"
        try:
            _ = self.affine
        except UnsupportedModelError as error:
            return f"{describe(self.node)} is not to be read: {error.what}"
        return None

    @property
    def dtype(self) -> ir.DataType:
        """The storage type of its weights; a computed one may wait in float64."""
        return self.weight.dtype or constant_tensor(self.weight).dtype

    def own_bias(self) -> FloatArray | None:
        """Return the added bias, (..., O): times the beta of a Gemm."""
        if self.bias is None:
            return None
        bias = constant_array(self.bias).astype(np.longdouble) * np.longdouble(self.affine.beta)
        return np.broadcast_to(bias, (*bias.shape[:-1], self.affine.num_outputs))

    def apply(self, edit: algebra.AffineEdit, *, is_calm: bool) -> algebra.FoldedAffine:
        """Return its new weight and bias; the edit is of the layer without its own bias.

        In a model that `is_calm`, no number is so large that a subnormal one could matter.

        Raises:
            NonFiniteFoldError: they would not be finite.
            ValueError: the weights are not floating point.
        """
        own = self.own_bias()
        if own is not None:
            edit = replace(edit, bias=edit.out_scale * own + edit.bias)
        dtype = _STORAGE_TYPES.get(self.dtype, str(self.dtype))
        weight = constant_array(self.weight)
        shape = self.affine.shape
        return algebra.apply_edit(weight, edit, dtype=dtype, shape=shape, is_calm=is_calm)

    def rewrite(self, folded: algebra.FoldedAffine, editor: GraphEditor) -> None:
        """Give the layer its new weight and bias."""
        # Converted to the layer's type: from opset 15 on, the BatchNormalization may have another.
        new_weight, new_bias = (
            ir.tensor(values.astype(self.dtype.numpy()), dtype=self.dtype)
            for values in (folded.weight, folded.bias)
        )
        weight = editor.replace(self.weight, new_weight, reader=self.node)
        self.node.replace_input_with(self.weight_index, weight)
        if self.bias is not None:
            bias = editor.replace(self.bias, new_bias, reader=self.adder)
        else:
            if self.axes is not None:
                new_bias = ir.tensor(
                    new_bias.numpy().reshape(-1, *[1] * (-1 - self.axes[1])), dtype=self.dtype
                )
            bias = editor.add(bias_name(self.weight), new_bias, reader=self.node)
        if self.bias is None and is_op(self.node, "MatMul", "Einsum"):
            _add_bias(self.node, bias, editor, as_gemm=self.axes is None)
        else:
            self.adder.resize_inputs(max(len(self.adder.inputs), self.bias_index + 1))
            self.adder.replace_input_with(self.bias_index, bias)
        if "beta" in self.node.attributes:
            self.node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        for value in (self.weight, self.bias):
            if value is not None:
                remove_if_unread(value)


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of a graph, found once: a bias at the start stays one.

    Attributes:
        editor: of the graph.
        computing: the layer whose result a node computes.
        reading: the layer whose input a node reads.
    """

    editor: GraphEditor
    computing: dict[ir.Node, Layer] = field(default_factory=dict)
    reading: dict[ir.Node, Layer] = field(default_factory=dict)

    @classmethod
    def of(cls, editor: GraphEditor) -> "Layers":
        """Return the layers of a graph and of the graphs inside it."""
        layers = cls(editor)
        for node in editor.graph.all_nodes():
            layer = _as_layer(node)
            if layer is not None:
                layers.computing[layer.adder] = layer
                layers.reading[layer.node] = layer
        return layers


def _as_layer(node: ir.Node) -> Layer | None:
    if is_op(node, "Einsum"):
        return _as_replaced_label(node)
    if not is_op(node, *AFFINE_OPERATORS):
        return None
    weight = node.inputs[1]
    assert weight is not None
    if not is_op(node, "MatMul"):
        return Layer(node, node, 2, weight, optional_input(node, 2), module_name(node))
    if node.inputs[0] is not None and _is_constant_matrix(node.inputs[0]):
        # 5; of two constant matrices, the other one is no input
        return Layer(node, node, 2, node.inputs[0], None, module_name(node), 0, (-2, -2))
    product = node.outputs[0]
    if len(product.uses()) == 1 and not product.is_graph_output() and _is_constant_matrix(weight):
        ((reader, index),) = product.uses()
        bias = reader.inputs[1 - index] if is_op(reader, "Add") else None
        if bias is not None and reader.graph is node.graph and why_it_varies(bias) is None:
            lengths = constant_tensor(bias).shape.numpy()
            # Else the Add would give the value more features than the layer has.
            if not lengths or lengths[-1] in (1, constant_tensor(weight).shape.numpy()[1]):
                return Layer(node, reader, 1 - index, weight, bias, module_name(node))
    return Layer(node, node, 2, weight, None, module_name(node))


def _as_replaced_label(node: ir.Node) -> Layer | None:  # 6
    equation = node.attributes.get("equation")
    if equation is None or equation.is_ref() or len(node.inputs) != 2:
        return None
    terms, arrow, result = equation.as_string().replace(" ", "").partition("->")
    both = terms.split(",")
    constant = [value is not None and _is_constant_matrix(value) for value in node.inputs]
    if not arrow or len(both) != 2 or sorted(constant) != [False, True]:
        return None
    at = constant.index(True)
    value, matrix = both[1 - at], both[at]
    distinct = all(len(set(labels)) == len(labels) for labels in (value, matrix, result))
    old, new = set(matrix) & set(value), set(matrix) & set(result)
    replaced = len(old) == len(new) == 1 and old != new and len(matrix) == 2
    rest = set(value) - old == set(result) - new
    if not (distinct and replaced and rest and (terms + result).replace(",", "").isalpha()):
        return None
    summed, added = old.pop(), new.pop()
    axes = value.index(summed) - len(value), result.index(added) - len(result)
    weight = node.inputs[at]
    assert weight is not None
    transposed = matrix[0] == summed
    if constant_tensor(weight).shape.numpy()[matrix.index(summed)] == 1:  # repeated for each input
        return None
    return Layer(node, node, 2, weight, None, module_name(node), at, axes, transposed)


def _is_constant_matrix(value: ir.Value) -> bool:
    return why_it_varies(value) is None and len(constant_tensor(value).shape) == 2


def _add_bias(matmul: ir.Node, bias: ir.Value, editor: GraphEditor, *, as_gemm: bool) -> None:
    """Replace a MatMul of two matrices by a Gemm with a bias; let an Add follow any other."""
    before, left = matmul.outputs[0], matmul.inputs[0]
    assert matmul.graph is not None
    assert left is not None
    after_matrices = as_gemm and editor.rank(left) == 2
    if after_matrices:
        node = ir.node("Gemm", [*matmul.inputs, bias], name=matmul.name)
        node.metadata_props.update(matmul.metadata_props)
    else:
        node = ir.node("Add", [before, bias], name=matmul.name and f"{matmul.name}_bias")
    after = node.outputs[0]
    after.type, after.shape = before.type, before.shape
    matmul.graph.insert_after(matmul, node)
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    if after_matrices:
        matmul.graph.remove(matmul, safe=True)
        after.name = before.name
    else:
        node.replace_input_with(0, before)
        # The name keeps its meaning: that of the whole layer.
        after.name, before.name = before.name, editor.new_name(f"{before.name}_product")
