"""The behaviour of records, and their JSON form."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from resdeploy.errors import ResdeployError

__all__ = [
    "SCHEMA_VERSION",
    "Judged",
    "Record",
    "dump_json",
    "from_json",
    "load_json",
    "record",
    "to_json",
]

# 1  first version
SCHEMA_VERSION = 1

T = TypeVar("T")


class Record:
    """The behaviour of every record: made by keyword, frozen, compared by value, drawn, written.

    Shared, because the methods that `dataclass` compiles for each class cost 0.3 ms a class: for
    all records together a third of the time that `resdeploy --help` took.
    """

    __slots__ = ()
    # Properties that its JSON states too, for readers of it alone.
    stated: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        for field in _fields(self):
            if field.name in values:
                value = values.pop(field.name)
            elif field.default is not dataclasses.MISSING:
                value = field.default
            elif field.default_factory is not dataclasses.MISSING:
                value = field.default_factory()
            else:
                raise TypeError(f"{type(self).__name__} needs the field {field.name!r}")
            object.__setattr__(self, field.name, value)
        if values:
            raise TypeError(f"{type(self).__name__} has no field {min(values)!r}")

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in _fields(self))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for field, value in zip(_fields(self), state, strict=True):
            object.__setattr__(self, field.name, value)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash((type(self), self.__getstate__()))

    def __repr__(self) -> str:
        values = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in _fields(self))
        return f"{type(self).__name__}({values})"

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def to_json(self) -> str:
        """Return the record as JSON text, as the command's --json prints it."""
        return dump_json(self)

    def _repr_html_(self) -> str:
        from resdeploy.schema.notebook import html_of  # noqa: PLC0415 - a notebook alone needs it

        return html_of(self)


class Judged(Record):
    """A record of a check; it has the reasons for a failure."""

    __slots__ = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for a failure; empty for a pass."""
        raise NotImplementedError

    @property
    def passed(self) -> bool:
        """True without a reason for a failure."""
        return not self.reasons


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Make `cls`, a subclass of `Record`, a record: slotted, its fields keyword-only."""
    if not issubclass(cls, Record):
        raise TypeError(f"{cls.__name__} must derive from Record")
    return dataclass(init=False, repr=False, eq=False, slots=True, kw_only=True)(cls)


def to_json(value: Any) -> Any:
    """Return `value`, a record or a part of one, as JSON data.

    A NaN or infinite float becomes the string "NaN", "Infinity" or "-Infinity", as JSON has none.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def dump_json(value: Any, *, indent: int | None = 2) -> str:
    """Return one record as JSON text, with its kind and the schema version."""
    head = {"kind": type(value).__name__, "schema_version": SCHEMA_VERSION}
    stated = {name: to_json(getattr(value, name)) for name in getattr(value, "stated", ())}
    return json.dumps(head | stated | to_json(value), indent=indent, allow_nan=False)


def load_json(cls: type[T], text: str | bytes, *, where: str) -> T:
    """Return the record of type `cls` that `dump_json` wrote; `where` names the file in errors.

    Raises:
        ResdeployError: the text is not JSON, is another kind of record, comes from a newer schema,
            or a field is missing, unknown or of another type.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ResdeployError(f"This is not JSON: {error}.", where=where) from error
    kind = data.pop("kind", None) if isinstance(data, dict) else None
    if kind != cls.__name__:
        raise ResdeployError(
            f"This is not a {cls.__name__} record (its kind is {kind!r}).", where=where
        )
    if (version := data.pop("schema_version", None)) != SCHEMA_VERSION:
        raise ResdeployError(
            f"The record has schema version {version!r}; this resdeploy reads {SCHEMA_VERSION}.",
            where=where,
            fix="write the record again with this version, or install the one that wrote it",
        )
    for name in getattr(cls, "stated", ()):
        data.pop(name, None)
    return from_json(cls, data, where=where)


def from_json(cls: type[T], data: Any, *, where: str) -> T:
    """Return JSON data as the record type `cls`; the inverse of `to_json`.

    Raises:
        ResdeployError: a field is missing, unknown or of another type; the message names it.
    """
    return typing.cast(T, _parse(cls, data, where))


def _parse(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(arguments, data, where)
    if origin is Literal:
        if data in arguments:
            return data
        raise _mismatch(f"one of {', '.join(map(repr, arguments))}", data, where)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise _mismatch("a list", data, where)
        return tuple(_parse(arguments[0], x, f"{where}[{i}]") for i, x in enumerate(data))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise _mismatch("an object", data, where)
        return {str(key): _parse(arguments[1], x, f"{where}.{key}") for key, x in data.items()}
    if dataclasses.is_dataclass(kind):
        return _parse_record(kind, data, where)
    return _parse_scalar(kind, data, where)


def _parse_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    # An exact scalar type first, so that 1 stays an int in `int | float | bool`.
    if type(data) in kinds:
        return data
    errors = []
    for kind in kinds:
        try:
            return _parse(kind, data, where)
        except ResdeployError as error:
            errors.append(error)
    raise errors[0]


def _parse_record(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _mismatch("an object", data, where)
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(data) - set(hints)):
        raise ResdeployError(
            f"Unknown field {unknown[0]!r}.",
            where=where,
            fix=f"the fields of {cls.__name__} are {', '.join(hints)}",
        )
    for field in dataclasses.fields(cls):
        is_required = field.default is field.default_factory is dataclasses.MISSING
        if is_required and field.name not in data:
            raise ResdeployError(f"The field {field.name!r} is missing.", where=where)
    return cls(**{key: _parse(hints[key], x, f"{where}: {key}") for key, x in data.items()})


def _parse_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float:
        if isinstance(data, str) and data in ("NaN", "Infinity", "-Infinity"):
            return float(data)
        if isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
        raise _mismatch("a number", data, where)
    if type(data) is kind:
        return data
    names = {int: "a whole number", str: "a text", bool: "true or false"}
    raise _mismatch(names.get(kind, str(kind)), data, where)


def _mismatch(expected: str, data: Any, where: str) -> ResdeployError:
    return ResdeployError(f"Expected {expected}, found {data!r}.", where=where)
