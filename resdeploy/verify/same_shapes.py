"""The shapes of a model and of its reference, compared before anything is computed."""

from collections.abc import Sequence

from resdeploy.errors import ResdeployError

__all__ = ["refuse_other_shapes"]

Shape = Sequence[int | str]


def refuse_other_shapes(
    kind: str, found: Sequence[Shape], expected: Sequence[Shape], *, reference: str
) -> None:
    """Refuse a reference whose tensors cannot be those of the model.

    Args:
        kind: "input" or "output", for the message.
        found: of the model: one shape for each tensor, the batch first; a text is an open size.
        expected: of the reference, likewise.
        reference: the name of the reference, for the message.

    Sizes in another order are left to the comparison of the networks, which knows of layouts.

    Raises:
        ResdeployError: a tensor has other sizes than its counterpart.
    """
    for model_shape, its_shape in zip(found, expected, strict=False):
        ours, theirs = model_shape[1:], its_shape[1:]
        if any(isinstance(size, str) for size in (*ours, *theirs)):
            continue
        if sorted(map(int, ours)) != sorted(map(int, theirs)):
            raise ResdeployError(
                f"The reference is another network: its {kind} has shape {_text(theirs)}, that of "
                f"the model {_text(ours)}.",
                where=reference,
                fix="give the trained model that this file was made of"
                + ("; --input says the size of a sample" if kind == "input" else ""),
            )


def _text(sizes: Shape) -> str:
    return f"({', '.join(map(str, sizes))})"
