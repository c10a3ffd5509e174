"""What a mutation is: a condition of the fold, the text that says it, and what breaks it."""

from dataclasses import dataclass

__all__ = ["Mutation", "mutations"]


@dataclass(frozen=True)
class Mutation:
    """One condition, broken.

    Attributes:
        condition: what the code makes sure of.
        files: where under resdeploy/ the text may be; it occurs once in all of them.
        source: the text.
        broken: what stands in its place in the mutant.
        killer: the test that goes red, as pytest names it.
    """

    condition: str
    files: tuple[str, ...]
    source: str
    broken: str
    killer: str


def mutations(files: tuple[str, ...], *rows: tuple[str, str, str, str]) -> list[Mutation]:
    """Return rows of (condition, source, broken, killer) as mutations of these files."""
    return [Mutation(condition, files, *rest) for condition, *rest in rows]
