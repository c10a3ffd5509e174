"""Sizes of tensors as polynomials of open dimensions, so that one comparison holds for every size.

A size is an integer, or a `Dim`: a polynomial with integer coefficients of symbols (batch, height,
width; each a positive integer) and of floors of quotients, which strides make. Two sizes are equal
if their polynomials are; where equality cannot be seen so, it is not assumed.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import gcd, prod

from resdeploy.errors import UnsupportedModelError

__all__ = [
    *("Dim", "Size", "Sizes", "floor_div", "is_above_one", "product", "quotient_of", "symbol"),
    "text_of",
]

_Monomial = tuple[str, ...]


class Dim:
    """A polynomial, never a plain number: arithmetic returns an integer where no symbol is left."""

    __slots__ = ("_terms",)

    def __init__(self, terms: Mapping[_Monomial, int]) -> None:
        self._terms = dict(terms)

    def __add__(self, other: "Size") -> "Size":
        terms = dict(self._terms)
        for monomial, factor in _terms(other).items():
            terms[monomial] = terms.get(monomial, 0) + factor
        return _reduced(terms)

    __radd__ = __add__

    def __neg__(self) -> "Size":
        return _reduced({monomial: -factor for monomial, factor in self._terms.items()})

    def __sub__(self, other: "Size") -> "Size":
        return self + -other

    def __rsub__(self, other: "Size") -> "Size":
        return other + -self

    def __mul__(self, other: "Size") -> "Size":
        terms: dict[_Monomial, int] = {}
        for mine, factor in self._terms.items():
            for theirs, times in _terms(other).items():
                monomial = tuple(sorted(mine + theirs))
                terms[monomial] = terms.get(monomial, 0) + factor * times
        return _reduced(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: "Size") -> "Size":
        return floor_div(self, other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self._terms == other._terms

    def __hash__(self) -> int:
        return hash(frozenset(self._terms.items()))

    def __str__(self) -> str:
        parts = (
            "*".join([str(factor), *monomial] if factor != 1 or not monomial else monomial)
            for monomial, factor in sorted(self._terms.items(), reverse=True)
        )
        return "+".join(parts)

    __repr__ = __str__


Size = int | Dim
Sizes = tuple[Size, ...]


def symbol(name: str) -> Dim:
    """Return an open dimension."""
    return Dim({(name,): 1})


def product(sizes: Iterable[Size]) -> Size:
    """Return the number of elements."""
    return prod(sizes, start=1)


def text_of(sizes: Iterable[Size]) -> str:
    """Return a shape as text, the same for equal ones."""
    return f"({', '.join(map(str, sizes))})"


def floor_div(size: Size, by: Size) -> Size:
    """Return floor(size / by), exactly: what divides leaves the floor, the rest stays in it.

    floor((k a + r) / k) = a + floor(r / k) for integers a, r and k > 0.

    Raises:
        UnsupportedModelError: `by` is open and does not divide `size`.
    """
    if isinstance(size, int) and isinstance(by, int):
        return size // by
    if size == by:
        return 1
    if isinstance(by, Dim):
        return _quotient(size, by)
    whole = {monomial: factor // by for monomial, factor in _terms(size).items()}
    rest = {monomial: factor % by for monomial, factor in _terms(size).items()}
    # A remainder below the divisor adds nothing by itself.
    remainder = _reduced(rest)
    if isinstance(remainder, int):
        return _reduced(whole)
    shared = gcd(by, *_terms(remainder).values())
    inner = _reduced({m: factor // shared for m, factor in _terms(remainder).items()})
    divisor = by // shared
    atom = inner if divisor == 1 else symbol(f"floor(({inner})/{divisor})")
    return _reduced(whole) + atom


def _quotient(size: Size, by: Dim) -> Size:
    """Return size / by for a `by` of one term that divides every term of `size`."""
    if len(by._terms) == 1:
        ((monomial, factor),) = by._terms.items()
        found: dict[_Monomial, int] = {}
        for theirs, times in _terms(size).items():
            rest = _without(theirs, monomial)
            if rest is None or times % factor:
                break
            found[rest] = times // factor
        else:
            return _reduced(found)
    raise UnsupportedModelError(f"A size is {size} / {by}, which is not known to be whole.")


def _without(monomial: _Monomial, part: _Monomial) -> _Monomial | None:
    rest = list(monomial)
    for name in part:
        if name not in rest:
            return None
        rest.remove(name)
    return tuple(rest)


def _terms(size: Size) -> Mapping[_Monomial, int]:
    if isinstance(size, Dim):
        return size._terms
    return {(): int(size)} if size else {}


def _reduced(terms: Mapping[_Monomial, int]) -> Size:
    kept = {monomial: factor for monomial, factor in terms.items() if factor}
    return kept.get((), 0) if set(kept) <= {()} else Dim(kept)


def is_above_one(size: Size) -> bool:
    """True if a size is more than one, whatever the open dimensions are, each at least one."""
    if isinstance(size, int):
        return size > 1
    terms = _terms(size)
    # Of a floor no lower bound is known.
    known = not any("floor" in atom for monomial in terms for atom in monomial)
    return known and min(terms.values()) >= 0 and sum(terms.values()) > 1


def quotient_of(wholes: Sequence[Size], parts: Sequence[Size]) -> Size:
    """Return the product of `wholes` over that of `parts`, equal factors cancelled first."""
    left, right = list(wholes), []
    for part in parts:
        if part in left:
            left.remove(part)
        else:
            right.append(part)
    whole, part = product(left), product(right)
    if isinstance(whole, int) and isinstance(part, int):
        if not part or whole % part:
            raise UnsupportedModelError(f"A reshape of {whole} elements by {part} is not whole.")
        return whole // part
    if isinstance(part, int) and isinstance(whole, Dim):
        return _quotient(whole, Dim({(): part}))
    return floor_div(whole, part)
