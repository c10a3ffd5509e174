"""Conversion of a folded model to float16 or bfloat16, judged by its simulated rounding.

Every node computes in the lower precision but those that measurement keeps in float32: writers and
readers of a tensor beyond the largest float16, and, where the budget does not hold, the layers of
the costliest rounding. Casts stand where the precision changes.

The CPU provider has no float16 kernels: it computes such a model in float32, and comparing its
outputs proves nothing. So the rounding itself is simulated, on a float32 graph: the weights, and
every tensor that a node computes, are rounded to the lower precision, while the sums inside a node
stay in float32, as matrix units keep them. A fault that no simulation shows, such as a kernel of a
device, is shown by `verify --precision float16 --provider …` there.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resdeploy.graph.onnx_file import copy_of, opset_of
from resdeploy.quant.calibration import calibrate, float_tensors
from resdeploy.quant.held_out import HeldOut
from resdeploy.quant.keep_float import keep_sensitive
from resdeploy.quant.onnx_graph import drop_unread, float_inputs
from resdeploy.quant.prepare import prepare
from resdeploy.quant.runtime import Runner
from resdeploy.quant.samples import Samples
from resdeploy.schema.quants import KeptFloat, QuantQuality, QuantReport, QuantSpec, QuantTrial
from resdeploy.schema.recipes import Preprocess

__all__ = ["convert", "quantize_float16", "simulate"]

_TYPES: Mapping[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Conv takes bfloat16 from here on.
_OPSETS = {"float16": 13, "bfloat16": 22}
_IR_VERSIONS = {"float16": 7, "bfloat16": 10}
# Operators with one type for all their floating-point inputs and outputs.
_CONVERTED = frozenset(
    {
        *("Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Relu", "Clip", "MaxPool"),
        *("AveragePool", "GlobalAveragePool", "ReduceMean", "Reshape", "Flatten", "Transpose"),
        *("Squeeze", "Unsqueeze", "Slice", "Concat", "Pad", "Identity", "Sigmoid", "Tanh"),
        *("Softmax", "LayerNormalization", "Sqrt", "Erf", "Gather", "Expand", "Shape"),
    }
)
_NUM_RANKED_WITH = 64


def quantize_float16(
    model: onnx.ModelProto,
    samples: Samples,
    spec: QuantSpec,
    *,
    preprocess: Preprocess | None = None,
    class_names: tuple[str, ...] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
    on_warning: Callable[[str], None] = lambda warning: None,
) -> tuple[onnx.ModelProto, QuantReport]:
    """Return the converted model, and the measurements; see `quantize_int8`."""
    prepared = _raised(prepare(model), spec.precision)
    on_stage("read samples")
    held_out = HeldOut.of(
        prepared,
        samples,
        spec,
        preprocess=preprocess,
        class_names=class_names,
        on_warning=on_warning,
    )
    split, gate = held_out.split, held_out.gate
    num = len(split.calibrate)
    histograms = calibrate(prepared, split.read_calibration(), num=num, on_stage=on_stage)
    largest = {name: max(-h.low, h.high) for name, h in histograms.items()}
    kept = [*_without_form(prepared), *_overflowing(prepared, largest, spec.precision)]
    always = tuple(layer.node for layer in kept)

    def judged(names: tuple[str, ...], which: slice = slice(None)) -> QuantQuality:
        rounded = Runner(simulate(prepared, spec.precision, names), optimize=False)
        return held_out.quality(rounded, which)

    on_stage("simulate the rounding")
    trials = [_trial("every node", judged(()), kept=not always)]
    if always:
        trials.append(_trial("without overflow", judged(always), kept=True))
    nodes = [node for node in prepared.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    sensitive = keep_sensitive(
        [node for node in nodes if node.name not in always],
        judged,
        gate.holds,
        ranked_with=_NUM_RANKED_WITH,
        always=always,
        on_stage=on_stage,
    )
    names = (*always, *(layer.node for layer in sensitive))
    quality = judged(names)
    if sensitive:
        trials.append(_trial("sensitive layers in float32", quality, kept=True))
    lowered = convert(prepared, spec.precision, names, keep_io=spec.keep_io)
    return lowered, QuantReport(
        spec=spec,
        output=None,
        calibration=samples.description,
        num_calibration=num,
        quality=quality,
        judged_on=f"simulated rounding to {spec.precision}; the CPU computes float32 in its place",
        budget=gate.budget,
        outputs=tuple(held_out.judge.outputs),
        trials=tuple(trials),
        kept_float=(*kept, *sensitive),
        warnings=held_out.warnings,
        failures=gate.failures(quality),
        not_shown=gate.not_shown(quality),
    )


def simulate(
    model: onnx.ModelProto, precision: str, kept_float: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a float32 model that rounds as `convert`'s does, to be run without optimisations."""
    return _Converter(model, precision, kept_float).simulated()


def convert(
    model: onnx.ModelProto, precision: str, kept_float: Collection[str] = (), *, keep_io: bool
) -> onnx.ModelProto:
    """Return a prepared model in "float16" or "bfloat16", but for the nodes of these names.

    `keep_io` leaves inputs and outputs in float32 too.
    """
    return _Converter(model, precision, kept_float).converted(keep_io=keep_io)


class _Converter:
    """A copy of a model whose nodes are written anew, each with the casts it needs."""

    def __init__(self, model: onnx.ModelProto, precision: str, kept_float: Collection[str]) -> None:
        self._suffix, self._dtype = precision, _TYPES[precision]
        self._element = helper.np_dtype_to_tensor_dtype(self._dtype)
        self._floats, self._constants = _float_values(model), _float_constants(model)
        self._is_lowered = {
            node.name: node.op_type in _CONVERTED and node.name not in kept_float
            for node in model.graph.node
        }
        self._source = model
        self._model = copy_of(model)
        self._nodes = self._model.graph.node
        del self._model.graph.value_info[:]
        del self._nodes[:]
        self._made: set[str] = set()

    def simulated(self) -> onnx.ModelProto:
        """Return the copy in float32, each value rounded where it is read and where it is made."""
        for node in self._source.graph.node:
            if not self._is_lowered[node.name]:
                self._nodes.append(node)
                continue
            fresh = self._with_inputs(node, self._rounded, np.dtype(np.float32))
            made = [name for name in fresh.output if name in self._floats]
            for place, name in enumerate(fresh.output):
                fresh.output[place] = f"{name}.exact" if name in made else name
            self._nodes.append(fresh)
            for name in made:
                self._round(f"{name}.exact", name)
        return self._finished()

    def converted(self, *, keep_io: bool) -> onnx.ModelProto:
        """Return the copy in the lower precision."""
        low = {
            name
            for node in self._source.graph.node
            if self._is_lowered[node.name]
            for name in node.output
            if name in self._floats
        }
        outputs = self._model.graph.output
        if not keep_io:
            low.update(float_inputs(self._source))
            given = self._model.graph.input
            for value in (*(one for one in given if one.name in low), *outputs):
                if value.name in self._floats:
                    value.type.tensor_type.elem_type = self._element
        renamed = {
            value.name: f"{value.name}.{'low' if keep_io else 'float'}"
            for value in outputs
            # It is made in the other type.
            if value.name in self._floats and (value.name in low) == keep_io
        }

        def in_type(name: str, *, lowered: bool) -> str:
            made = renamed.get(name, name)
            return made if (name in low) == lowered else self._cast(made, lowered=lowered)

        for node in self._source.graph.node:
            of_tensor = partial(in_type, lowered=self._is_lowered[node.name])
            fresh = self._with_inputs(node, of_tensor, self._dtype)
            for place, name in enumerate(fresh.output):
                fresh.output[place] = renamed.get(name, name)
            self._nodes.append(fresh)
        element = TensorProto.FLOAT if keep_io else self._element
        for name, made in renamed.items():
            self._nodes.append(helper.make_node("Cast", [made], [name], to=element))
        return self._finished()

    def _with_inputs(
        self, node: onnx.NodeProto, of_tensor: Callable[[str], str], of_constants: np.dtype[Any]
    ) -> onnx.NodeProto:
        fresh = onnx.NodeProto()
        fresh.CopyFrom(node)
        for place, name in enumerate(node.input):
            if name in self._floats:
                fresh.input[place] = of_tensor(name)
            elif name in self._constants and self._is_lowered[node.name]:
                fresh.input[place] = self._constant(name, of_constants)
        return fresh

    def _constant(self, name: str, dtype: np.dtype[Any]) -> str:
        twin = f"{name}.{self._suffix}"
        if self._is_new(twin):
            with np.errstate(over="ignore"):  # the error it makes is measured
                low = numpy_helper.to_array(self._constants[name]).astype(self._dtype)
            tensor = numpy_helper.from_array(low.astype(dtype), twin)
            self._model.graph.initializer.append(tensor)
        return twin

    def _rounded(self, name: str) -> str:
        twin = f"{name}.{self._suffix}"
        if self._is_new(twin):
            self._round(name, twin)
        return twin

    def _round(self, name: str, rounded: str) -> None:
        cast = f"{rounded}.cast"
        self._nodes.append(helper.make_node("Cast", [name], [cast], to=self._element))
        self._nodes.append(helper.make_node("Cast", [cast], [rounded], to=TensorProto.FLOAT))

    def _cast(self, name: str, *, lowered: bool) -> str:
        twin = f"{name}.{self._suffix if lowered else 'float32'}"
        if self._is_new(twin):
            to = self._element if lowered else TensorProto.FLOAT
            self._nodes.append(helper.make_node("Cast", [name], [twin], to=to))
        return twin

    def _is_new(self, twin: str) -> bool:
        is_new = twin not in self._made
        self._made.add(twin)
        return is_new

    def _finished(self) -> onnx.ModelProto:
        drop_unread(self._model)
        return self._model


def _raised(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return the model at an operator set in which its operators take the lower precision."""
    if opset_of(model) < _OPSETS[precision]:
        model = onnx.version_converter.convert_version(model, _OPSETS[precision])
    model.ir_version = max(model.ir_version, _IR_VERSIONS[precision])
    return model


def _float_values(model: onnx.ModelProto) -> set[str]:
    return {*float_tensors(model), *float_inputs(model)}


def _float_constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}


def _without_form(model: onnx.ModelProto) -> list[KeptFloat]:
    floats = _float_values(model)
    return [
        KeptFloat(node=node.name, op=node.op_type, reason="this operator is not converted")
        for node in model.graph.node
        if node.op_type not in _CONVERTED and any(name in floats for name in node.input)
    ]


def _overflowing(
    model: onnx.ModelProto, largest: Mapping[str, float], precision: str
) -> list[KeptFloat]:
    """Return the nodes that make or read a tensor too large for the lower precision."""
    limit = float(ml_dtypes.finfo(_TYPES[precision]).max)  # type: ignore[no-untyped-call]
    weights = _float_constants(model)
    kept = []
    for node in model.graph.node:
        sizes = {name: largest.get(name, 0.0) for name in (*node.input, *node.output)}
        for name in node.input:
            if name in weights and weights[name].dims:
                sizes[name] = float(np.abs(numpy_helper.to_array(weights[name])).max(initial=0))
        name = max(sizes, key=sizes.__getitem__)
        if node.op_type in _CONVERTED and sizes[name] > limit:
            reason = f"{name} reaches {sizes[name]:.3g}; the largest {precision} is {limit:.3g}"
            kept.append(KeptFloat(node=node.name, op=node.op_type, reason=reason))
    return kept


def _trial(name: str, quality: QuantQuality, *, kept: bool) -> QuantTrial:
    return QuantTrial(stage="rounding", name=name, quality=quality, kept=kept)
