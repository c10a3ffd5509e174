"""Names that are near a mistyped one: "did you mean …?"."""

from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str) -> str:
    """Return the fix for a name that is not known: the near ones, or `otherwise` if none is."""
    import difflib  # noqa: PLC0415 - three milliseconds, of which only a mistake needs them

    by_lower = {one.lower(): one for one in known}
    lower = name.lower()
    near = difflib.get_close_matches(lower, by_lower, cutoff=0.8)
    near = near or difflib.get_close_matches(lower, by_lower)
    return f"did you mean {' or '.join(by_lower[one] for one in near)}?" if near else otherwise
