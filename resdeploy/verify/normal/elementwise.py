"""Operators of each element: activations written out, sums, products, comparisons."""

from collections.abc import Sequence

import numpy as np

from resdeploy.verify.compare_structure import Numbers
from resdeploy.verify.normal.builder import Builder, Known, Tensor, Value, broadcast
from resdeploy.verify.normal.reading import Operator, Reading, Rule

__all__ = ["ELEMENTWISE", "gelu", "hard_sigmoid", "swish"]


def _unary(*names: tuple[str, float]) -> Rule:
    """Return the rule of a function of each element; `names` are its numbers, with defaults."""

    def rule(r: Reading, op: Operator) -> Sequence[Value]:
        numbers = [
            Numbers.of(op.attributes.get(name, default), roundings=1) for name, default in names
        ]
        return [r.build.unary(op.node.op_type, op.tensor(), *numbers)]

    return rule


def _relu(r: Reading, op: Operator) -> Sequence[Value]:
    return [r.build.clip(op.tensor(), Numbers.zero(), Numbers.of(np.inf))]


def _clip(r: Reading, op: Operator) -> Sequence[Value]:
    x = op.tensor()
    bounds = []
    for which, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        known = op.known(which)
        if known is not None:
            bounds.append(r.numbers(known).map(lambda a: a.reshape(-1)))
        else:
            value = float(op.attributes.get(name, default))
            limit = float(np.finfo(np.float32).max)
            # Before opset 11 the defaults are the largest numbers of float32.
            bounds.append(Numbers.of(np.copysign(np.inf, value) if abs(value) >= limit else value))
    if not x.is_float:
        attributes = {"low": bounds[0].values.item(), "high": bounds[1].values.item()}
        return [r.build.add("Clip", [x], x.shape, attributes=attributes)]
    if any(b.values.size != 1 for b in bounds) or bounds[0].values.item() > bounds[1].values.item():
        raise op.refuse("has bounds in the wrong order")
    return [r.build.clip(x, *bounds)]


def _hard_sigmoid(r: Reading, op: Operator) -> Sequence[Value]:
    alpha, beta = (_exact_sixth(op.attributes[name]) for name in ("alpha", "beta"))
    return [hard_sigmoid(r.build, op.tensor(), alpha, beta)]


def hard_sigmoid(build: Builder, x: Tensor, alpha: float, beta: float) -> Tensor:
    """Return clip(alpha x + beta, 0, 1)."""
    scale, shift = (Numbers.of(number, roundings=1) for number in (alpha, beta))
    inner = build.scale_shift(x, scale, shift, x.shape)
    return build.clip(inner, Numbers.zero(), Numbers.one())


def _exact_sixth(value: float) -> float:
    """Return 1/6 for its float32, which attributes hold and torch's own hardsigmoid does not."""
    return 1 / 6 if np.float32(value) == np.float32(1 / 6) else value


def _hard_swish(r: Reading, op: Operator) -> Sequence[Value]:
    """HardSwish: x clip(x / 6 + 1/2, 0, 1)."""
    x, build = op.tensor(), r.build
    inner = build.scale_shift(x, Numbers.of(1 / 6), Numbers.of(0.5), x.shape)
    return [build.times([x, build.clip(inner, Numbers.zero(), Numbers.one())], x.shape)]


def _leaky_relu(r: Reading, op: Operator) -> Sequence[Value]:
    return [r.build.leaky(op.tensor(), Numbers.of(op.attributes["alpha"], roundings=1))]


def _prelu(r: Reading, op: Operator) -> Sequence[Value]:
    slope = op.known(1)
    assert slope is not None
    return [r.build.leaky(op.tensor(), r.numbers(slope))]


def _gelu(r: Reading, op: Operator) -> Sequence[Value]:
    """Gelu, by the error function or by tanh."""
    x = op.tensor()
    return [gelu(r.build, x, approximate=op.string("approximate", "none"))]


def gelu(build: Builder, x: Tensor, *, approximate: str) -> Tensor:
    """Return x / 2 (1 + erf(x / sqrt 2)); "tanh" has tanh(sqrt(2 / pi) (x + 0.044715 x^3))."""
    if approximate == "tanh":
        cube = build.times([x, x, x], x.shape)
        inner = build.total([x, build.scaled(cube, Numbers.of(0.044715))], x.shape)
        bend = build.unary("Tanh", build.scaled(inner, Numbers.of((2 / np.pi) ** 0.5)))
    else:
        bend = build.unary("Erf", build.scaled(x, Numbers.of(0.5**0.5)))
    half = Numbers.of(0.5)
    return build.times([x, build.scale_shift(bend, half, half, x.shape)], x.shape)


def _elu(r: Reading, op: Operator) -> Sequence[Value]:
    """Elu: max(x, 0) + alpha (exp(min(x, 0)) - 1); Selu is gamma times it, Celu bends x / alpha."""
    x, build = op.tensor(), r.build
    alpha = Numbers.of(op.attributes["alpha"], roundings=1)
    zero, infinite = Numbers.zero(), Numbers.of(np.inf)
    low = build.clip(x, Numbers.of(-np.inf), zero)
    if op.node.op_type == "Celu":
        low = build.scaled(low, alpha.inverse())
    bent = build.unary("Exp", low)
    scaled = build.scale_shift(bent, alpha, alpha.times(Numbers.of(-1.0)), x.shape)
    found = build.total([build.clip(x, zero, infinite), scaled], x.shape)
    if op.node.op_type == "Selu":
        found = build.scaled(found, Numbers.of(op.attributes["gamma"], roundings=1))
    return [found]


def _mish(r: Reading, op: Operator) -> Sequence[Value]:
    """Mish: x tanh(softplus(x))."""
    x = op.tensor()
    return [r.build.times([x, r.build.unary("Tanh", r.build.unary("Softplus", x))], x.shape)]


def swish(default: float) -> Rule:
    """Return the rule of x sigmoid(alpha x), for an operator with this default of alpha."""

    def rule(r: Reading, op: Operator) -> Sequence[Value]:
        x, alpha = op.tensor(), Numbers.of(op.attributes.get("alpha", default), roundings=1)
        return [r.build.times([x, r.build.unary("Sigmoid", r.build.scaled(x, alpha))], x.shape)]

    return rule


def _negative(r: Reading, op: Operator) -> Sequence[Value]:
    return [r.build.scaled(op.tensor(), Numbers.of(-1.0))]


def _reciprocal(r: Reading, op: Operator) -> Sequence[Value]:
    return [r.build.reciprocal(op.tensor())]


def _pow(r: Reading, op: Operator) -> Sequence[Value]:
    """Whole powers are products, half a root, -1 a reciprocal."""
    x, power = op.tensor(), op.known(1)
    assert power is not None
    if power.values.size != 1:
        raise op.refuse("has several powers")
    exponent = float(power.values.item())
    if exponent in (2.0, 3.0, 4.0):
        return [r.build.times([x] * int(exponent), x.shape)]
    if exponent == 1.0:
        return [x]
    if exponent == -1.0:
        return [r.build.reciprocal(x)]
    if exponent == 0.5:
        return [r.build.unary("Sqrt", x)]
    if exponent == -0.5:
        return [r.build.reciprocal(r.build.unary("Sqrt", x))]
    return [r.build.unary("Pow", x, r.numbers(power))]


def _add(r: Reading, op: Operator) -> Sequence[Value]:
    return [_sum(r, op, op.given(), [1.0] * len(op.operands))]


def _sub(r: Reading, op: Operator) -> Sequence[Value]:
    return [_sum(r, op, op.given(), [1.0, -1.0])]


def _sum(r: Reading, op: Operator, values: Sequence[Value], signs: Sequence[float]) -> Value:
    """Return a sum: its tensors, then its constants as a shift."""
    shape = broadcast([value.shape for value in values])
    build = r.build
    if not all(value.is_float for value in values):
        return _plain(r, op)[0]
    tensors, merge, shift = [], [], Numbers.zero()
    for value, sign, name in zip(values, signs, op.node.input, strict=True):
        if isinstance(value, Known):
            shift = shift.plus(_numbers(r, op, value, len(shape)).times(Numbers.of(sign)))
        else:
            tensors.append(value if sign > 0 else build.scaled(value, Numbers.of(-1.0)))
            merge.append(r.is_read_once(name))
    if len(tensors) == 1:
        return build.scale_shift(tensors[0], Numbers.one(), shift, shape)
    found = build.total(tensors, shape, merge=merge)
    return build.scale_shift(found, Numbers.one(), shift, shape)


def _numbers(r: Reading, op: Operator, known: Known, rank: int) -> Numbers:
    if known.is_open:
        raise op.refuse("computes with an open size")
    found = r.numbers(known)
    return found.map(
        lambda a: a.reshape((1,) * (rank - a.ndim) + a.shape) if a.size > 1 else a.reshape(-1)
    )


def _mean_of(r: Reading, op: Operator) -> Sequence[Value]:
    (found,) = _add(r, op)
    assert isinstance(found, Tensor)
    return [r.build.scaled(found, Numbers.of(1 / len(op.operands)))]


def _mul(r: Reading, op: Operator) -> Sequence[Value]:
    return [_product(r, op, op.given(), list(op.node.input))]


def _product(r: Reading, op: Operator, values: Sequence[Value], names: Sequence[str]) -> Value:
    """Return a product: its tensors, then its constants as a scale."""
    shape = broadcast([value.shape for value in values])
    build = r.build
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not all(tensor.is_float for tensor in tensors):
        return _plain(r, op)[0]
    scale = Numbers.one()
    for value in values:
        if isinstance(value, Known):
            scale = scale.times(_numbers(r, op, value, len(shape)))
    merge = [r.is_read_once(n) for n, v in zip(names, values, strict=True) if isinstance(v, Tensor)]
    found = tensors[0] if len(tensors) == 1 else build.times(tensors, shape, merge=merge)
    return build.scale_shift(found, scale, Numbers.zero(), shape)


def _div(r: Reading, op: Operator) -> Sequence[Value]:
    """Div: a / b = a (1 / b)."""
    a, b = op.given()
    if not a.is_float:
        return _plain(r, op)
    if isinstance(b, Known):
        if b.is_open or not b.values.all():
            raise op.refuse("divides by zero or by an open size")
        inverse = Known(values=1 / b.values, dtype=b.dtype, roundings=b.roundings)
        return [_product(r, op, [a, inverse], list(op.node.input))]
    return [_product(r, op, [a, r.build.reciprocal(b)], [op.node.input[0], ""])]


def _maximum(r: Reading, op: Operator) -> Sequence[Value]:
    """With one number, a bound of Clip."""
    values = op.given()
    tensors = [value for value in values if isinstance(value, Tensor)]
    known = [value for value in values if isinstance(value, Known)]
    is_max = op.node.op_type == "Max"
    if len(tensors) == 1 and len(known) == 1 and known[0].values.size == 1:
        x = tensors[0]
        if x.is_float and broadcast([value.shape for value in values]) == x.shape:
            bound = _numbers(r, op, known[0], 1)
            infinite = Numbers.of(np.inf if is_max else -np.inf)
            return [r.build.clip(x, *((bound, infinite) if is_max else (infinite, bound)))]
    return _plain(r, op)


def _plain(r: Reading, op: Operator, dtype: str | None = None) -> Sequence[Value]:
    """Return an operator of each element under its own name, with its constants as numbers."""
    values = op.given()
    shape = broadcast([value.shape for value in values])
    tensors, numbers, attributes = [], [], {}
    for which, value in enumerate(values):
        if isinstance(value, Tensor):
            tensors.append(value)
            attributes[f"operand {which}"] = "value"
        elif value.is_float:
            numbers.append(_numbers(r, op, value, len(shape)))
        elif value.is_open:
            raise op.refuse("computes with an open size")
        else:
            attributes[f"operand {which}"] = f"{value.shape} {value.values.tolist()}"
    if len(tensors) == len(values):
        attributes = {}
    if op.node.op_type == "Where":
        dtype = values[1].dtype
    return [
        r.build.add(op.node.op_type, tensors, shape, dtype=dtype or tensors[-1].dtype,
                    attributes=attributes, numbers=numbers)
    ]  # fmt: skip


def _where(r: Reading, op: Operator) -> Sequence[Value]:
    """Softplus that is x itself beyond a threshold of at least 20 is Softplus.

    log(1 + exp(x)) - x = log(1 + exp(-x)) < exp(-20) < 2.1e-9 there: less than a thousandth of the
    ulp that x has in float32, which is 1.9e-6.
    """
    build, (condition, then, other) = r.build, op.given()
    if isinstance(condition, Tensor) and isinstance(then, Tensor) and isinstance(other, Tensor):
        test = build.made_by(condition, "Greater")
        is_soft = test is not None and build.made_by(other, "Softplus") is not None
        if test is not None and is_soft and condition.shape == then.shape == other.shape:
            compared = dict(test.attributes) == {"operand 0": "value"} and test.numbers
            same = {build.source(condition).place, build.source(other).place, then.place}
            if compared and len(same) == 1 and (test.numbers[0].values >= 20).all():
                return [other]
    return _plain(r, op)


def _compare(r: Reading, op: Operator) -> Sequence[Value]:
    return _plain(r, op, "bool")


ELEMENTWISE: dict[str, Rule] = {
    "Relu": _relu,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Gelu": _gelu,
    "Mish": _mish,
    "Swish": swish(1.0),
    "Neg": _negative,
    "Reciprocal": _reciprocal,
    "Pow": _pow,
    **dict.fromkeys(
        (
            *("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "Not", "Round"),
            *("Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh"),
        ),
        _unary(),
    ),
    **dict.fromkeys(("Elu", "Celu", "Selu"), _elu),
    "ThresholdedRelu": _unary(("alpha", 1.0)),
    **dict.fromkeys(("Add", "Sum"), _add),
    "Sub": _sub,
    "Mean": _mean_of,
    "Mul": _mul,
    "Div": _div,
    **dict.fromkeys(("Max", "Min"), _maximum),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _compare),
    **dict.fromkeys(("And", "Or"), _plain),
    "Where": _where,
}
