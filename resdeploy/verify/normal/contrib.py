"""The operators that ONNX Runtime fuses others into (com.microsoft), taken apart again."""

from collections.abc import Sequence

import numpy as np
import onnx

from resdeploy.verify.compare_structure import Numbers
from resdeploy.verify.normal.builder import Known, Tensor, Value
from resdeploy.verify.normal.elementwise import gelu, hard_sigmoid, swish
from resdeploy.verify.normal.layers import conv, gemm, matmul
from resdeploy.verify.normal.normalisations import epsilon, scale_and_bias, standardized
from resdeploy.verify.normal.reading import Operator, Reading, Rule

__all__ = ["CONTRIB"]


def _fused_conv(r: Reading, op: Operator) -> Sequence[Value]:
    """Conv with what follows it: Z added, then an activation."""
    (found,) = conv(r, _without_activation(op, "Conv", 3))
    assert isinstance(found, Tensor)
    if (added := op.at(3)) is not None:
        if not isinstance(added, Tensor):
            raise op.refuse("adds a constant")
        if added.shape != found.shape:
            raise op.refuse("adds a value of another shape")
        found = r.build.total([found, added], found.shape)
    return [_activated(r, op, found)]


def _fused_gemm(r: Reading, op: Operator) -> Sequence[Value]:
    (found,) = gemm(r, _without_activation(op, "Gemm", 3))
    assert isinstance(found, Tensor)
    return [_activated(r, op, found)]


def _without_activation(op: Operator, op_type: str, num_operands: int) -> Operator:
    """Return the operator of ONNX that a fused one begins with."""
    plain = onnx.NodeProto()
    plain.CopyFrom(op.node)
    plain.op_type, plain.domain = op_type, ""
    kept = [a for a in plain.attribute if not a.name.startswith("activation")]
    del plain.attribute[:]
    plain.attribute.extend(kept)
    return Operator(plain, op.attributes, op.operands[:num_operands])


def _activated(r: Reading, op: Operator, x: Tensor) -> Tensor:
    kind = op.string("activation")
    apart = [op.attributes.get(f"activation_{name}") for name in ("alpha", "beta")]  # of FusedGemm
    stated = op.attributes.get("activation_params") or [v for v in apart if v is not None]
    given = [float(v) for v in stated]
    if not kind:
        return x
    if kind == "Relu":
        return r.build.clip(x, Numbers.zero(), Numbers.of(np.inf))
    if kind == "Clip" and len(given) == 2:
        low, high = (Numbers.of(v, roundings=1) for v in given)
        return r.build.clip(x, low, high)
    if kind == "LeakyRelu" and given:
        return r.build.leaky(x, Numbers.of(given[0], roundings=1))
    if kind == "HardSigmoid" and len(given) == 2:
        return hard_sigmoid(r.build, x, *given)
    if kind in ("Sigmoid", "Tanh"):
        return r.build.unary(kind, x)
    raise op.refuse(f"ends in the activation {kind!r}")


def _fused_matmul(r: Reading, op: Operator) -> Sequence[Value]:
    """FusedMatMul: alpha A B, either of them transposed in its last two axes."""
    if op.flag("transBatchA") or op.flag("transBatchB"):
        raise op.refuse("transposes its batch")
    turned: list[Value] = []
    for which, name in enumerate(("transA", "transB")):
        value = op.at(which)
        assert value is not None
        if op.flag(name):
            if isinstance(value, Tensor):
                order = [*range(value.rank - 2), value.rank - 1, value.rank - 2]
                value = r.build.transpose(value, order)
            else:
                value = Known(values=value.values.swapaxes(-1, -2), dtype=value.dtype)
        turned.append(value)
    alpha = Numbers.of(op.attributes.get("alpha", 1.0), roundings=1)
    plain = onnx.helper.make_node("MatMul", op.node.input, op.node.output, name=op.node.name)
    (found,) = matmul(r, Operator(plain, {}, turned))
    assert isinstance(found, Tensor)
    return [r.build.scaled(found, alpha)]


def _contrib_gelu(approximate: str) -> Rule:
    def rule(r: Reading, op: Operator) -> Sequence[Value]:
        x, bias = op.tensor(), op.at(1)
        if isinstance(bias, Known):
            x = r.build.scale_shift(x, Numbers.one(), r.numbers(bias), x.shape)
        elif bias is not None:
            raise op.refuse("adds a value")
        return [gelu(r.build, x, approximate=approximate)]

    return rule


def _skip_layer_norm(r: Reading, op: Operator) -> Sequence[Value]:
    """LayerNormalization over the last axis of input + skip + bias."""
    x, skip, bias = op.tensor(), op.tensor(1), op.known(4)
    if len(op.node.output) > 1 and any(op.node.output[1:3]):
        raise op.refuse("tells its mean")
    if x.shape != skip.shape:
        raise op.refuse("broadcasts its skip")
    total = r.build.total([x, skip], x.shape, merge=[r.is_read_once(n) for n in op.node.input[:2]])
    if bias is not None:
        total = r.build.scale_shift(total, Numbers.one(), r.numbers(bias), x.shape)
    flat = standardized(r, total, [x.rank - 1], epsilon(op, 1e-12))
    return [scale_and_bias(r, op, flat, x.rank - 1, 2), total, total, total]


CONTRIB: dict[str, Rule] = {
    "SkipLayerNormalization": _skip_layer_norm,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    **dict.fromkeys(("Gelu", "BiasGelu"), _contrib_gelu("none")),
    "FastGelu": _contrib_gelu("tanh"),
    "QuickGelu": swish(1.702),
}
