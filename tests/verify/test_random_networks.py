"""Random networks and random edits: what the normal form takes for one network computes the same.

Every operator here takes (N, 4, 4, 4) and gives it back, so that each edit, such as two neighbours
that change places, leaves a network: most are others, some are the same one.
"""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from networks_as_text import are_equal, is_same, network
from numpy.random import default_rng

RNG = default_rng(0)
WEIGHTS = {
    "w1": RNG.normal(size=(4, 4, 1, 1)) / 2,
    "w3": RNG.normal(size=(4, 4, 3, 3)) / 6,
    "bias": RNG.normal(size=4),
    "m4": RNG.normal(size=(4, 4)) / 2,
    "c4": RNG.normal(size=(4, 1, 1)),
    "r4": RNG.normal(size=4),
    "g4": RNG.uniform(0.5, 2, 4),
}
# {x} is the value before, {e} one of any value so far, {o} the name of the result.
STEPS = [
    "{o} = Relu({x})",
    "{o} = Tanh({x})",
    "{o} = Neg({x})",
    "{o} = Elu<alpha=0.5>({x})",
    "{o} = LeakyRelu<alpha=0.25>({x})",
    "{o} = HardSigmoid<alpha=0.25, beta=0.5>({x})",
    "{o} = Clip({x}, $-0.5, $1.5)",
    "{o} = Min({x}, $0.75)",
    "{o} = Max({x}, $-0.25)",
    "{o} = Mul({x}, $2.0)",
    "{o} = Mul({x}, $-0.5)",
    "{o} = Add({x}, $0.5)",
    "{o} = Sub($1.0, {x})",
    "{o} = Mul({x}, c4)",
    "{o} = Add({x}, c4)",
    "{o} = Mul({x}, r4)",
    "{o} = Add({x}, r4)",
    "{o} = PRelu({x}, c4)",
    "{o} = Add({x}, {e})",
    "{o} = Sub({x}, {e})",
    "{o} = Mul({x}, {e})",
    "{o} = Max({x}, {e})",
    "{o} = MatMul({x}, {e})",
    "{o} = MatMul({x}, m4)",
    "{o} = MatMul(m4, {x})",
    "{o} = Conv({x}, w1)",
    "{o} = Conv<pads=[1,1,1,1]>({x}, w3, bias)",
    "{o} = BatchNormalization({x}, g4, bias, bias, g4)",
    "{o} = Transpose<perm=[0,2,3,1]>({x})",
    "{o} = Transpose<perm=[0,1,3,2]>({x})",
    (
        "{o}r = Reshape({x}, %[0,16,4]) {o}t = Transpose<perm=[0,2,1]>({o}r)"
        " {o} = Reshape({o}t, %[-1,4,4,4])"
    ),
    (
        "{o}r = Reshape({x}, %[0,2,2,16]) {o}t = Transpose<perm=[0,2,1,3]>({o}r)"
        " {o} = Reshape({o}t, %[0,4,4,4])"
    ),
    "{o}r = Reshape({x}, %[-1,4]) {o}l = Gemm({o}r, m4, r4) {o} = Reshape({o}l, %[-1,4,4,4])",
    "{o} = Softmax<axis=1>({x})",
    "{o} = Softmax<axis=-1>({x})",
    "{o}m = ReduceMean({x}, %[2]) {o} = Sub({x}, {o}m)",
    "{o}m = ReduceMean({x}, %[2,3]) {o} = Add({o}m, {x})",
    "{o}m = ReduceMax({x}, %[3]) {o}n = ReduceMax({o}m, %[1]) {o} = Expand({o}n, %[1,4,4,4])",
    "{o} = LayerNormalization({x}, g4, r4)",
    "{o}a, {o}b = Split<axis=1, num_outputs=2>({x}) {o} = Concat<axis=1>({o}b, {o}a)",
    "{o}a = Slice({x}, %[0], %[4], %[2], %[2]) {o} = Concat<axis=2>({o}a, {o}a)",
    "{o}p = Pad({x}, %[1,1], $0.0, %[2]) {o} = MaxPool<kernel_shape=[3,1]>({o}p)",
    "{o}p = Pad({x}, %[1,1], $0.0, %[3]) {o} = AveragePool<kernel_shape=[1,3]>({o}p)",
    "{o} = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({x})",
    "{o}d = DepthToSpace<blocksize=2>({x}) {o} = SpaceToDepth<blocksize=2>({o}d)",
]
CHAINS = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 6)), min_size=2, max_size=7)


def written(chain):
    names, lines = ["x"], []
    for k, (step, which) in enumerate(chain):
        earlier = names[which % len(names)]
        lines.append(step.format(x=names[-1], e=earlier, o=f"v{k}"))
        names.append(f"v{k}")
    body = " ".join([*lines, f"y = Identity({names[-1]})"])
    return network(body, WEIGHTS, inputs="double[N, 4, 4, 4] x")


@st.composite
def edits(draw):
    """Return a network, and it with one or two edits."""
    chain = draw(CHAINS)
    edited = list(chain)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(edited) - 1))
        kind = draw(st.sampled_from(["swap", "swap", "other", "drop", "twice", "rewire"]))
        if kind == "swap" and at + 1 < len(edited):
            edited[at : at + 2] = edited[at : at + 2][::-1]
        elif kind == "other":
            edited[at] = (draw(st.sampled_from(STEPS)), edited[at][1])
        elif kind == "drop" and len(edited) > 1:
            del edited[at]
        elif kind == "twice":
            edited.insert(at, edited[at])
        elif kind == "rewire":
            edited[at] = (edited[at][0], draw(st.integers(0, 6)))
    assume(edited != chain)
    return chain, edited


def _check(pair):
    first, second = map(written, pair)
    if is_same(first, second):
        # The numbers may differ by half a float32 ulp.
        assert are_equal(first, second, 3, rtol=1e-5)
        assert are_equal(first, second, 1, rtol=1e-5)


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@settings(max_examples=100, deadline=None, suppress_health_check=QUIET)
@given(edits())
def test_what_is_one_network_computes_the_same(pair):
    _check(pair)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=QUIET)
@given(edits())
def test_what_is_one_network_computes_the_same_at_length(pair):
    _check(pair)
