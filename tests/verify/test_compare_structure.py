"""L0: which graphs are the same, and what is said of those that are not."""

import dataclasses

import numpy as np

from resdeploy.verify.compare_structure import Affine, Numbers, Skeleton, SkeletonNode, align


def affine(*shape: int) -> Affine:
    weight = np.ones(shape)
    bias = np.zeros(shape[0])
    return Affine(weight=weight, bias=bias, dtype="float32", num_products=9, bias_magnitude=bias)


def node(name: str, op: str, *sources: int, weight: Affine | None = None, **attributes: str):
    return SkeletonNode(
        name=name,
        op=op,
        attributes=tuple(sorted(attributes.items())),
        sources=sources,
        affine=weight,
    )


def residual(**changes: SkeletonNode) -> Skeleton:
    """conv -> relu -> conv2, added to a shortcut of one more convolution."""
    nodes = {
        "conv": node("conv", "Conv", -1, weight=affine(4, 3, 3, 3), pads="1"),
        "relu": node("relu", "Relu", 0),
        "conv2": node("conv2", "Conv", 1, weight=affine(4, 4, 3, 3), pads="1"),
        "short": node("short", "Conv", 0, weight=affine(4, 4, 1, 1), pads="0"),
        "add": node("add", "Add", 2, 3),
    }
    return Skeleton(nodes=tuple({**nodes, **changes}.values()), outputs=(4,))


def test_a_graph_is_itself_under_other_names():
    nodes = (dataclasses.replace(n, name=f"x{k}") for k, n in enumerate(residual().nodes))
    alignment = align(residual(), Skeleton(nodes=tuple(nodes), outputs=(4,)))
    assert alignment.result.isomorphic
    assert [(a.name, b.name) for a, b in alignment.pairs] == [
        ("conv", "x0"),
        ("conv2", "x2"),
        ("short", "x3"),
    ]


def test_a_sum_takes_its_operands_in_any_order():
    alignment = align(residual(), residual(add=node("add", "Add", 3, 2)))
    assert alignment.result.isomorphic
    assert all(mine.name == theirs.name for mine, theirs in alignment.pairs)


def test_a_difference_does_not():
    minus = residual(add=node("sub", "Sub", 2, 3))
    assert not align(minus, residual(add=node("sub", "Sub", 3, 2))).result.isomorphic


def test_another_attribute_is_a_fault_that_is_named():
    padded = node("conv2", "Conv", 1, weight=affine(4, 4, 3, 3), pads="0")
    result = align(residual(), residual(conv2=padded)).result
    assert result.differences == ("`conv2` (Conv) has pads 0, the reference 1",)
    assert not result.passed


def test_another_shape_of_weights_is_a_fault():
    wider = node("conv2", "Conv", 1, weight=affine(4, 4, 5, 5), pads="1")
    result = align(residual(), residual(conv2=wider)).result
    assert "has weights of shape (4, 4, 5, 5)" in result.differences[0]
    assert not result.passed


def test_other_operators_prove_nothing_either_way():
    without_relu = residual(relu=node("clip", "Clip", 0))
    result = align(residual(), without_relu).result
    assert result.differences == (
        "`relu` (Relu) of the reference is `clip` (Clip) of the candidate",
    )
    assert not result.same_form
    assert result.passed


def test_layers_beyond_a_difference_are_still_paired():
    padded = node("conv2", "Conv", 1, weight=affine(4, 4, 3, 3), pads="0")
    assert align(residual(), residual(conv2=padded)).result.num_aligned == 3


def test_another_wiring_is_seen():
    result = align(
        residual(), residual(conv2=node("conv2", "Conv", 0, weight=affine(4, 4, 3, 3), pads="1"))
    ).result
    assert not result.isomorphic


def test_inputs_are_told_apart():
    two = Skeleton(nodes=(node("sub", "Sub", -1, -2),), outputs=(0,))
    swapped = Skeleton(nodes=(node("sub", "Sub", -2, -1),), outputs=(0,))
    assert align(two, two).result.isomorphic
    assert not align(two, swapped).result.isomorphic


def test_deep_networks_need_no_stack():
    chain = [node("n0", "Relu", -1)] + [node(f"n{k}", "Relu", k - 1) for k in range(1, 5000)]
    skeleton = Skeleton(nodes=tuple(chain), outputs=(4999,))
    assert align(skeleton, skeleton).result.isomorphic


def test_another_number_of_outputs_is_seen():
    one = residual()
    two = Skeleton(nodes=one.nodes, outputs=(4, 0))
    assert not align(one, two).result.isomorphic


def numbers(*values, roundings):
    return Numbers.of(values, roundings=roundings)


def test_products_of_constants_keep_what_lies_behind_them():
    found = numbers(2.0, -3.0, roundings=1).times(numbers(4.0, 0.5, roundings=2))
    assert found.values.tolist() == [8.0, -1.5]
    assert found.magnitude.tolist() == [8.0, 1.5]
    assert found.roundings == 3


def test_no_number_times_an_open_bound_is_none():
    found = Numbers.zero().times(Numbers.of(-np.inf))
    assert (found.values.item(), found.magnitude.item()) == (0.0, 0.0)
    assert Numbers.of(2.0).times(Numbers.of(-np.inf)).values.item() == -np.inf


def test_sums_of_constants_have_the_size_of_their_largest_term():
    found = numbers(2.0, -3.0, roundings=1).plus(numbers(-2.0, 1.0, roundings=2))
    assert found.values.tolist() == [0.0, -2.0]
    assert found.magnitude.tolist() == [2.0, 3.0]
    assert found.roundings == 3
    one = numbers(2.0, roundings=1)
    assert one.plus(Numbers.zero()) is one
    assert Numbers.zero().plus(one) is one
