"""The shape of a sample on the command line: C,H,W and the slips that are usual."""

import re

import click

__all__ = ["parse_shape"]

_COLOURS = (1, 3, 4)
# A square picture of so many pixels, where a network would have as many channels.
_SURELY_PIXELS = 16


def parse_shape(
    text: str, *, flag: str, form: str = "a shape such as 3,224,224"
) -> tuple[int, ...]:
    """Return the sizes of one sample, as in "3,224,224".

    Raises:
        click.BadParameter: the text is something else, or has the channels last, in numbers that
            can be nothing else; the message has what was meant, if that can be told.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{text!r} is not {form}{_meant(text)}", param_hint=flag)
    sizes = tuple(map(int, parts))
    if sizes != (channels_first := _channels_first(sizes)):
        meant = ",".join(map(str, channels_first))
        raise click.BadParameter(
            f"{text!r} has the channels last; did you mean {meant}?", param_hint=flag
        )
    return sizes


def _channels_first(sizes: tuple[int, ...]) -> tuple[int, ...]:
    match sizes:
        case (height, width, channels) if (
            height == width >= _SURELY_PIXELS and channels in _COLOURS
        ):
            return (channels, height, width)
    return sizes


def _meant(text: str) -> str:
    """Return the shape that a text such as 224x224x3 or (3, 224, 224) stands for, as a question."""
    bare = text.strip("()[] ")
    sizes = tuple(int(size) for size in re.split(r"\s*[x*;/, ]\s*", bare) if size.isdecimal())
    if len(sizes) != len(re.findall(r"\d+", bare)) or 0 in sizes or not sizes:
        return ""
    if len(sizes) == 4 and sizes[0] == 1:  # the batch
        sizes = sizes[1:]
    if len(sizes) in (1, 2) and min(sizes) >= _SURELY_PIXELS:
        sizes = (3, sizes[0], sizes[-1])
    return f"; did you mean {','.join(map(str, _channels_first(sizes)))}?"
