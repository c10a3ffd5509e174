"""The trained model that a command is given."""

import dataclasses
from collections.abc import Mapping

from resdeploy.schema.codec import Record, record


@record
class SourceSpec(Record):
    """The trained model that a command is given.

    Attributes:
        path: a run directory, a resdeploy checkpoint, or weights from elsewhere; None with a
            `factory` that makes a trained module by itself.
        arch: the architecture of weights from elsewhere.
        options: of that architecture, as text.
        factory: "package.module:function" that returns a torch module.
        input_shape: of one sample, for a factory's module.
        recipe: a recipe whose preprocessing and labels apply.
    """

    path: str | None = None
    arch: str | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    factory: str | None = None
    input_shape: tuple[int, ...] | None = None
    recipe: str | None = None
