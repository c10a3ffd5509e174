"""Sizes as polynomials: whatever is computed with them holds for every positive size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy.errors import UnsupportedModelError
from resdeploy.verify.normal.dims import (
    Dim,
    floor_div,
    is_above_one,
    product,
    quotient_of,
    symbol,
    text_of,
)

N, H = symbol("n"), symbol("h")
SIZES = st.integers(1, 60)


EXPRESSIONS = st.recursive(
    st.sampled_from(["n", "h"]) | st.integers(-9, 9).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    ),
    max_leaves=6,
)


def evaluated(expression, n, h):
    return eval(expression, {"n": n, "h": h})


@given(EXPRESSIONS, SIZES, SIZES)
def test_arithmetic_is_that_of_integers(expression, n, h):
    size = evaluated(expression, N, H)
    assert floors_at(size, n, h) == evaluated(expression, n, h)


@given(EXPRESSIONS, EXPRESSIONS, st.lists(st.tuples(SIZES, SIZES), min_size=20, max_size=20))
def test_equal_sizes_are_equal_everywhere(first, second, points):
    one, two = (evaluated(e, N, H) for e in (first, second))
    values = [tuple(evaluated(e, *point) for e in (first, second)) for point in points]
    if one == two:
        assert all(a == b for a, b in values)
        assert hash(one) == hash(two)
        assert str(one) == str(two)
    if any(a != b for a, b in values):
        assert one != two


@given(EXPRESSIONS, st.integers(1, 8), st.integers(1, 4), SIZES, SIZES)
def test_a_floor_is_that_of_integers(expression, by, again, n, h):
    once = floor_div(evaluated(expression, N, H), by)
    exact = evaluated(expression, n, h) // by
    assert floors_at(once, n, h) == exact
    twice = floor_div(once + 3 if again > 1 else once, again)
    assert floors_at(twice, n, h) == (exact + 3 if again > 1 else exact) // again


def floors_at(size, n, h):
    """Return the value of a size with floors, written as Python writes them."""
    if isinstance(size, int):
        return size
    total = 0
    for monomial, factor in size._terms.items():
        value = factor
        for name in monomial:
            value *= name_at(name, n, h)
        total += value
    return total


def name_at(name, n, h):
    if not name.startswith("floor("):
        return {"n": n, "h": h}[name]
    inner, _, by = name.removeprefix("floor((").removesuffix(")").rpartition(")/")
    return eval(_python(inner), {"n": n, "h": h}) // int(by)


def _python(text):
    found, at = "", 0
    while at < len(text):
        if not text.startswith("floor((", at):
            found += text[at]
            at += 1
            continue
        depth, end = 1, at + len("floor(")
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        inner, _, by = text[at + len("floor((") : end - 1].rpartition(")/")
        found += f"(({_python(inner)})//{by})"
        at = end
    return found


def test_what_divides_leaves_the_floor():
    assert floor_div(2 * N * H, 2) == N * H
    assert floor_div(4 * N + 7, 2) == 2 * N + 3
    assert floor_div(N + 3, 2) == floor_div(N + 1, 2) + 1
    assert floor_div(N, 2) != floor_div(N + 1, 2)
    assert floor_div(6 * N, 4) == floor_div(3 * N, 2)
    assert floor_div(N * H, N) == H


def test_no_symbol_left_is_an_integer():
    assert N - N == 0
    assert isinstance((N + 2) - N, int)
    assert product([2, 3]) == 6
    assert isinstance(N, Dim)


@given(st.permutations([2, 3, "n", "h", 4]), st.integers(0, 5))
def test_a_quotient_cancels(factors, kept):
    sizes = [{"n": N, "h": H}.get(f, f) for f in factors]
    rest = quotient_of(sizes, sizes[kept:])
    assert rest == product(sizes[:kept])


@pytest.mark.parametrize(
    ("wholes", "parts"), [([N], [2]), ([7], [2]), ([N + 1], [N]), ([4], [N]), ([N, 3], [H])]
)
def test_a_quotient_that_is_not_known_to_be_whole_is_refused(wholes, parts):
    with pytest.raises(UnsupportedModelError, match="whole"):
        quotient_of(wholes, parts)


def test_the_text_of_equal_shapes_is_equal():
    assert text_of([N + H * 2, 3]) == text_of([2 * H + N, 3])
    assert text_of([N * H]) == text_of([H * N])


@pytest.mark.parametrize(
    ("size", "above"),
    [
        (1, False),
        (2, True),
        (symbol("h"), False),
        (2 * symbol("h"), True),
        (symbol("h") + 1, True),
        (3 * symbol("h") - 2, False),
        (4 * floor_div(symbol("h"), 2), False),
    ],
)
def test_a_size_is_above_one_only_where_it_is_for_every_open_dimension(size, above):
    assert is_above_one(size) == above
