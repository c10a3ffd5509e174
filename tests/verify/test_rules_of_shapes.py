"""Rewritings of what moves elements or computes shapes; see `test_rules.py`."""

import numpy as np
import pytest
from networks_as_text import check_rule, is_same, network

from resdeploy.errors import UnsupportedModelError
from resdeploy.verify.normal_form import skeleton_of

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.normal(size=(6, 4, 3, 3)),
    "c4": RNG.normal(size=(4, 1, 1)) * 3,
    "table": RNG.normal(size=(3, 5)),
    "row4": RNG.normal(size=4),
    "m88": RNG.normal(size=(8, 8)),
}
WEIGHTS |= {
    "whole4": np.trunc(WEIGHTS["c4"]),
    "tabler": WEIGHTS["table"][::-1].copy(),
    "row4c": WEIGHTS["row4"].reshape(4, 1, 1),
    "soft88": np.exp(WEIGHTS["m88"]) / np.exp(WEIGHTS["m88"]).sum(),
}
AB = "a = Relu(x) b = Abs(x) "
P = "p = GlobalAveragePool(x) "
N = "n = Shape<end=1>(x) "
S = "s = Shape(x) "
EIGHT = AB + "c = Concat<axis=1>(a, x) "
# 0, 1 or 2.
PLACES = "g = Sign(x) h = Add(g, $1.0) i = Cast<to=7>(h) "
TO_SIXTEENTHS = "y = Reshape(x, %[-1, 64])"
ALL = "%[9223372036854775807]"

CASES = {
    "casts there and back": (
        "i = CastLike(x, %1) y = CastLike(i, x)",
        "i = Cast<to=7>(x) y = Cast<to=11>(i)",
        "y = Identity(x)",
        "i = Cast<to=9>(x) y = Cast<to=11>(i)",
    ),
    "casts of constants": (
        "i = Cast<to=7>(c4) f = Cast<to=11>(i) y = Add(x, f)",
        "y = Add(x, whole4)",
        "y = Add(x, c4)",
    ),
    "constants of a shape": (
        "z = ConstantOfShape<value = double[1] {0.5}>(%[4, 1, 1]) y = Add(x, z)",
        "y = Add(x, $0.5)",
        "z = ConstantOfShape<value = double[1] {0.25}>(%[4, 1, 1]) y = Add(x, z)",
    ),
    "zeros of a shape": (
        "z = ConstantOfShape(%[1]) y = Max(x, z)",
        "y = Relu(x)",
        "z = ConstantOfShape(%[1]) y = Min(x, z)",
    ),
    "flattened from the end": (
        "y = Flatten<axis=-1>(x)",
        "y = Reshape(x, %[-1, 8])",
        "y = Flatten<axis=-2>(x)",
        "y = Flatten<axis=0>(x)",
    ),
    "expanded": (
        P + S + "e = Expand(p, s) y = Concat<axis=1>(e, x)",
        P + "e = Expand(p, %[1, 1, 8, 8]) y = Concat<axis=1>(e, x)",
        S + "p = GlobalMaxPool(x) e = Expand(p, s) y = Concat<axis=1>(e, x)",
    ),
    "expanded by nothing": (
        "e = Expand(x, %[1, 1, 1]) y = Relu(e)",
        "y = Relu(x)",
        "e = Expand(x, %[2, 1, 1, 1, 1]) y = Relu(e)",
    ),
    "tiles": (
        "y = Tile(x, %[1, 2, 1, 1])",
        "t = Tile(x, %[1, 1, 1, 1]) two = Add(%[0, 1, 0, 0], %[1, 1, 1, 1]) y = Tile(t, two)",
        "y = Tile(x, %[1, 1, 2, 1])",
        "y = Tile(x, %[1, 3, 1, 1])",
    ),
    "parts by their number": (
        "a, b, c = Split<axis=2, num_outputs=3>(x) y = Concat<axis=2>(c, a)",
        "a = Slice(x, %[0], %[3], %[2]) c = Slice(x, %[6], %[8], %[2]) y = Concat<axis=2>(c, a)",
        "a, b, c = Split<axis=2, num_outputs=3>(x) y = Concat<axis=2>(c, b)",
    ),
    "the last of a sequence": (
        ("q = SplitToSequence<axis=2>(x, %3) a = SequenceAt(q, %-1) b = SequenceAt(q, %1)"
        " y = Concat<axis=2>(a, b)"),
        "b = Slice(x, %[3], %[6], %[2]) a = Slice(x, %[6], %[8], %[2]) y = Concat<axis=2>(a, b)",
        ("q = SplitToSequence<axis=2>(x, %3) a = SequenceAt(q, %-1) b = SequenceAt(q, %0)"
        " y = Concat<axis=2>(a, b)"),
    ),
    "a sequence of stated lengths": (
        "q = SplitToSequence<axis=-2>(x, %[1, 5, 2]) y = SequenceAt(q, %1)",
        "y = Slice(x, %[1], %[6], %[2])",
        "q = SplitToSequence<axis=2>(x, %[2, 5, 1]) y = SequenceAt(q, %1)",
    ),
    "all of an open axis": (
        f"a = Slice(x, %[0], {ALL}, %[0]) y = Relu(a)",
        N + "a = Slice(x, %[0], n, %[0], %[1]) y = Relu(a)",
        f"a = Slice(x, %[0], {ALL}, %[0]) y = Abs(a)",
    ),
    "every second of an open axis": (
        f"y = Slice(x, %[0], {ALL}, %[0], %[2])",
        N + "y = Slice(x, %[0], n, %[0], %[2])",
        f"y = Slice(x, %[0], {ALL}, %[0], %[3])",
        f"y = Slice(x, %[1], {ALL}, %[0], %[2])",
    ),
    "an open axis but for the first": (
        f"y = Slice(x, %[1], {ALL}, %[0])",
        N + "y = Slice(x, %[1], n, %[-4])",
        f"y = Slice(x, %[2], {ALL}, %[0])",
    ),
    "entries of a table": (
        PLACES + "y = Gather(table, i)",
        PLACES + "y = Gather<axis=-2>(table, i)",
        PLACES + "y = Gather(tabler, i)",
        PLACES + "y = Gather<axis=1>(table, i)",
    ),
    "columns of a table": (
        PLACES + "y = Gather<axis=-1>(table, i)",
        PLACES + "y = Gather<axis=1>(table, i)",
        PLACES + "y = Gather<axis=1>(tabler, i)",
    ),
    "entries of a table of integers": (
        PLACES + "v = Gather(%[3, 1, 2], i) y = Cast<to=11>(v)",
        PLACES + "v = Gather<axis=-1>(%[3, 1, 2], i) y = Cast<to=11>(v)",
        PLACES + "v = Gather(%[3, 2, 1], i) y = Cast<to=11>(v)",
    ),
    "entries of a value": (
        P + "f = Flatten(p) i = ArgMax<axis=1, keepdims=0>(f) y = Gather<axis=1>(x, i)",
        P + "f = Flatten(p) i = ArgMax<axis=-1, keepdims=0>(f) y = Gather<axis=-3>(x, i)",
        P + "f = Flatten(p) i = ArgMax<axis=1, keepdims=0>(f) y = Gather<axis=2>(x, i)",
        P + "f = Flatten(p) i = ArgMin<axis=1, keepdims=0>(f) y = Gather<axis=1>(x, i)",
    ),
    "indices in no order": (
        "y = Gather<axis=1>(x, %[2, 0, 3])",
        "y = Gather<axis=-3>(x, %[2, -4, -1])",
        "y = Gather<axis=1>(x, %[2, 3, 0])",
    ),
    "rows of zeros before a convolution": (
        "p = Pad(x, %[0, 0, 1, 0, 0, 0, 2, 0]) y = Conv(p, w)",
        "y = Conv<pads=[1, 0, 2, 0]>(x, w)",
        "y = Conv<pads=[2, 0, 1, 0]>(x, w)",
    ),
    "columns of zeros before a padded convolution": (
        "p = Pad(x, %[0, 2], $0.0, %[3]) y = Conv<pads=[0, 1, 0, 1]>(p, w)",
        "y = Conv<pads=[0, 1, 0, 3]>(x, w)",
        "y = Conv<pads=[0, 3, 0, 1]>(x, w)",
    ),
    "rows cut before a convolution": (
        "p = Pad(x, %[0, 0, -1, 0, 0, 0, 0, 0]) y = Conv(p, w)",
        "p = Pad(x, %[-1, 0], $0.0, %[2]) y = Conv(p, w)",
        "p = Pad(x, %[0, -1], $0.0, %[2]) y = Conv(p, w)",
    ),
    "depth to space by rows": (
        EIGHT + "y = DepthToSpace<blocksize=2>(c)",
        EIGHT + "e = Reshape(c, %[0, 2, 2, 2, 8, 8]) t = Transpose<perm=[0, 3, 4, 1, 5, 2]>(e)"
        " y = Reshape(t, %[-1, 2, 16, 16])",
        EIGHT + 'y = DepthToSpace<blocksize=2, mode="CRD">(c)',
    ),
    "depth to space by columns": (
        EIGHT + 'y = DepthToSpace<blocksize=2, mode="CRD">(c)',
        EIGHT + "e = Reshape(c, %[0, 2, 2, 2, 8, 8]) t = Transpose<perm=[0, 1, 4, 2, 5, 3]>(e)"
        " y = Reshape(t, %[-1, 2, 16, 16])",
        EIGHT + 'y = DepthToSpace<blocksize=2, mode="DCR">(c)',
        EIGHT + "e = Reshape(c, %[0, 2, 2, 2, 8, 8]) t = Transpose<perm=[0, 1, 4, 3, 5, 2]>(e)"
        " y = Reshape(t, %[-1, 2, 16, 16])",
    ),
    "the number of elements": (
        "k = Size(x) u = Unsqueeze(k, %[0]) t = Concat<axis=0>(u, %[1]) y = Reshape(x, t)",
        "y = Reshape(x, %[-1, 1])",
        "y = Reshape(x, %[1, -1])",
    ),
    "a product of sizes": (
        N + "m = Mul(n, %[4]) t = Concat<axis=0>(m, %[64]) y = Reshape(x, t)",
        TO_SIXTEENTHS,
        N + "m = Mul(n, %[2]) t = Concat<axis=0>(m, %[128]) y = Reshape(x, t)",
    ),
    "sums of sizes": (
        N + "m = Add(n, n) k = Sub(m, %[0]) q = Add(k, m) t = Concat<axis=0>(q, %[64])"
        " y = Reshape(x, t)",
        TO_SIXTEENTHS,
        N + "m = Add(n, n) k = Sub(m, n) q = Add(k, n) t = Concat<axis=0>(q, %[128])"
        " y = Reshape(x, t)",
    ),
    "a quotient of sizes": (
        N + "m = Mul(n, %[8]) q = Div(m, %[2]) t = Concat<axis=0>(q, %[64]) y = Reshape(x, t)",
        TO_SIXTEENTHS,
        N + "m = Mul(n, %[8]) q = Div(m, %[4]) t = Concat<axis=0>(q, %[128]) y = Reshape(x, t)",
    ),
    "a whole quotient by a size": (
        N + "m = Mul(n, %[64]) q = Div(m, n) t = Concat<axis=0>(%[-1], q) y = Reshape(x, t)",
        TO_SIXTEENTHS,
        N + "m = Mul(n, %[32]) q = Div(m, n) t = Concat<axis=0>(%[-1], q) y = Reshape(x, t)",
    ),
    "casts of sizes": (
        N + "i = Identity(n) c = Cast<to=6>(i) d = Cast<to=7>(c) t = Concat<axis=0>(d, %[-1])"
        " y = Reshape(x, t)",
        "y = Flatten(x)",
        "y = Reshape(x, %[-1, 64])",
    ),
    "sizes picked": (
        S + "n = Gather(s, %0) u = Unsqueeze(n, %[0]) t = Concat<axis=0>(u, %[-1])"
        " y = Reshape(x, t)",
        S + "n = Gather<axis=-1>(s, %[0]) t = Concat<axis=-1>(n, %[-1]) y = Reshape(x, t)",
        S + "n = Gather(s, %[1]) t = Concat<axis=0>(n, %[-1]) y = Reshape(x, t)",
    ),
    "sizes cut out": (
        S + "n = Slice(s, %[0], %[2]) t = Concat<axis=0>(n, %[64]) y = Reshape(x, t)",
        "y = Reshape(x, %[-1, 4, 64])",
        S + "n = Slice(s, %[0], %[3], %[0], %[2]) t = Concat<axis=0>(n, %[32]) y = Reshape(x, t)",
    ),
    "every second size": (
        S + "n = Slice(s, %[0], %[3], %[0], %[2]) t = Concat<axis=0>(n, %[32]) y = Reshape(x, t)",
        "y = Reshape(x, %[-1, 8, 32])",
        S + "n = Slice(s, %[0], %[2]) t = Concat<axis=0>(n, %[64]) y = Reshape(x, t)",
    ),
    "sizes as numbers": (
        N + "q = Squeeze(n) u = Unsqueeze(q, %[0]) t = Concat<axis=0>(u, %[-1]) y = Reshape(x, t)",
        N + "q = Squeeze(n, %[0]) u = Unsqueeze(q, %[-1]) t = Concat<axis=0>(u, %[-1])"
        " y = Reshape(x, t)",
        "y = Reshape(x, %[4, -1])",
    ),
    "an axis more of sizes": (
        S + "u = Unsqueeze(s, %[0]) g = Gather(u, %0) y = Reshape(x, g)",
        S + "u = Unsqueeze(s, %[1]) q = Squeeze(u, %[1]) y = Reshape(x, q)",
        S + "u = Unsqueeze(s, %[1]) g = Gather(u, %0) t = Concat<axis=0>(g, %[-1])"
        " y = Reshape(x, t)",
    ),
    "sizes multiplied": (
        S + "k = ReduceProd(s) y = Reshape(x, k)",
        S + "k = ReduceProd<keepdims=0>(s) u = Unsqueeze(k, %[0]) y = Reshape(x, u)",
        "y = Flatten(x)",
    ),
    "two sizes multiplied": (
        ("s = Shape<end=2>(x) k = ReduceProd(s, %[0]) t = Concat<axis=0>(k, %[64])"
        " y = Reshape(x, t)"),
        TO_SIXTEENTHS,
        "y = Flatten(x)",
    ),
    "sizes in another shape": (
        N + "r = Reshape(n, %[1, 1]) q = Reshape(r, %[-1]) t = Concat<axis=0>(q, %[-1])"
        " y = Reshape(x, t)",
        "y = Flatten(x)",
        TO_SIXTEENTHS,
    ),
    "sizes chosen": (
        P + S + "e = Equal(s, %[-1, -1, -1, 0]) t = Where(e, %[1, 1, 1, 1], s) y = Expand(p, t)",
        P + S + "y = Expand(p, s)",
        P + S + "e = Equal(s, s) t = Where(e, %[1, 1, 1, 1], s) y = Expand(p, t)",
        P + S + "e = Equal(s, %[0, 4, 8, 7]) t = Where(e, %[1, 4, 1, 1], s) y = Expand(p, t)",
    ),
}  # fmt: skip


def case(body, **settings):
    return network(body, WEIGHTS, inputs="double[N, 4, 8, 8] x", **settings)


@pytest.mark.parametrize(
    ("first", "second", "others"), [(a, b, c) for a, b, *c in CASES.values()], ids=CASES
)
def test_two_ways_are_one_network_and_a_near_one_is_another(first, second, others):
    check_rule(case(first), case(second), list(map(case, others)))


# The opset of the first network, and the three.
OLDER = {
    "bounds as attributes": (
        10, "y = Clip<min=-0.5, max=0.75>(x)", "y = Clip(x, $-0.5, $0.75)", "y = Clip(x, $-0.5)",
    ),
    "one bound": (10, "y = Clip<max=0.5>(x)", "y = Min(x, $0.5)", "y = Max(x, $0.5)"),
    "the other bound": (10, "y = Clip<min=0.5>(x)", "y = Max(x, $0.5)", "y = Min(x, $0.5)"),
    "a slice by attributes": (
        9,
        "y = Slice<starts=[1, 2], ends=[3, 7], axes=[1, 2]>(x)",
        "y = Slice(x, %[1, 2], %[3, 7], %[1, 2])",
        "y = Slice(x, %[1, 2], %[3, 7], %[1, 3])",
    ),
    "sizes cut out by attributes": (
        9,
        ("s = Shape(x) n = Slice<starts=[0], ends=[1]>(s) t = Concat<axis=0>(n, %[-1])"
        " y = Reshape(x, t)"),
        "y = Flatten(x)",
        "y = Reshape(x, %[-1, 64])",
    ),
    "axes dropped and made by attributes": (
        12,
        "p = GlobalAveragePool(x) q = Squeeze<axes=[2, 3]>(p) y = Unsqueeze<axes=[0, -1]>(q)",
        "p = GlobalAveragePool(x) y = Reshape(p, %[1, -1, 4, 1])",
        "p = GlobalMaxPool(x) y = Reshape(p, %[1, -1, 4, 1])",
    ),
    "an axis of a constant by an attribute": (
        11, "k = Unsqueeze<axes=[1, 2]>(row4) y = Add(x, k)", "y = Add(x, row4c)", "y = Add(x, c4)",
    ),
    "a softmax of a constant over all axes": (
        11, "k = Softmax<axis=0>(m88) y = Add(x, k)", "y = Add(x, soft88)",
        "k = Softmax<axis=0>(m88) y = Add(x, k)",
    ),
    "parts by an attribute": (
        11,
        "a, b = Split<axis=1, split=[1, 3]>(x) y = Mul(a, b)",
        "a, b = Split<axis=1>(x, %[1, 3]) y = Mul(a, b)",
        "a, b = Split<axis=1>(x, %[3, 1]) y = Mul(a, b)",
    ),
    "parts by the outputs": (
        11,
        "a, b = Split<axis=1>(x) y = Sub(a, b)",
        "a, b = Split<axis=1>(x, %[2, 2]) y = Sub(a, b)",
        "b, a = Split<axis=1>(x, %[2, 2]) y = Sub(a, b)",
    ),
    "padding by attributes": (
        10,
        "y = Pad<pads=[0, 1, 0, 0, 0, 2, 0, 0], value=0.5>(x)",
        "y = Pad(x, %[0, 1, 0, 0, 0, 2, 0, 0], $0.5)",
        "y = Pad(x, %[0, 1, 0, 0, 0, 2, 0, 0])",
    ),
    "depth to space without a mode": (
        10,
        EIGHT + "y = DepthToSpace<blocksize=2>(c)",
        EIGHT + 'y = DepthToSpace<blocksize=2, mode="DCR">(c)',
        EIGHT + 'y = DepthToSpace<blocksize=2, mode="CRD">(c)',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("opset", "first", "second", "other"), OLDER.values(), ids=OLDER)
def test_an_older_opset_says_it_in_its_own_way(opset, first, second, other):
    check_rule(case(first, opset=opset), case(second), [case(other)])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (N + "c = CastLike(n, x) y = Mul(x, c)", "makes float64 of an open size"),
        (N + "c = Cast<to=11>(n) y = Mul(x, c)", "makes another type of an open size"),
        (N + "m = Max(n, %[4]) y = Reshape(x, m)", "computes with open sizes"),
        (S + "z = ConstantOfShape(s) y = Add(x, z)", "computes with open sizes"),
        (N + "i = Cast<to=7>(x) k = Mul(i, n) y = Cast<to=11>(k)", "computes with an open size"),
        (N + "i = Cast<to=7>(x) e = Equal(i, n) y = Cast<to=11>(e)", "computes with an open size"),
        (S + "e = Equal(s, %[3, 4, 8, 8]) t = Where(e, %[1, 4, 8, 8], s) y = Reshape(x, t)",
         "depends on an open size"),
        (S + "u = Unsqueeze(s, %[0]) n = Slice(u, %[0], %[1]) y = Reshape(x, n)",
         "cuts sizes of several axes"),
        (S + "u = Unsqueeze(s, %[0]) n = ReduceProd(u) y = Reshape(x, n)", "several axes, or none"),
        (S + "n = ReduceProd<noop_with_empty_axes=1>(s) y = Reshape(x, n)",
         "several axes, or none"),
        ("y = Reshape<allowzero=1>(x, %[0, 4, 64])", "makes an empty value"),
        ("q = SplitToSequence(x, %1) y = SequenceAt(q, %0)", "splits an open size"),
        ("q = SplitToSequence<axis=1>(x) y = SequenceAt(q, %0)", "into single values"),
        ("a, b = Split(x) y = Sub(a, b)", "splits an open size"),
        ("y = Gather(x, %[-1])", "counts from the end of an open size"),
        ("i = Cast<to=7>(x) s = Shape(x) y = Gather(s, i)", "picks sizes by the values"),
        (P + "y = Concat<axis=1>(p, x)", "joins values of other sizes"),
    ],
)  # fmt: skip
def test_a_corner_of_shapes_is_refused_by_name(body, message):
    opset = 13 if "Split(" in body else 20
    with pytest.raises(UnsupportedModelError, match=rf"\w,? {message}"):
        skeleton_of(case(body, opset=opset))


def test_an_axis_of_size_one_is_dropped_where_every_size_is_known():
    closed = [
        network(f"y = Squeeze({axes})", {}, inputs="double[1, 4, 1, 8] x")
        for axes in ("x", "x, %[0, 2]", "x, %[0]")
    ]
    assert skeleton_of(closed[0]).shapes == ((4, 8),)
    assert is_same(closed[0], closed[1])
    assert not is_same(closed[0], closed[2])


def test_two_inputs_are_told_apart():
    inputs = "double[2, 4, 8, 8] x, double[2, 4, 8, 8] z"
    first, second, other = (
        network(body, {}, inputs=inputs)
        for body in ("y = Sub(x, z)", "n = Neg(z) y = Add(n, x)", "y = Sub(z, x)")
    )
    assert is_same(first, second)
    assert not is_same(first, other)
