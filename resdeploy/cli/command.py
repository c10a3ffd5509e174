"""A command that judges its arguments before it runs, so that a typo does not wait for torch."""

from collections.abc import Container, Mapping
from typing import Any

import click

__all__ = ["Checked", "Command", "as_written"]

_GIVEN = f"{__name__}.given"


class Checked(click.ParamType):  # type: ignore[type-arg]  # click before 8.4 takes none
    """A parameter type with a judgement beyond the form of the text."""

    def check(self, value: Any, params: Mapping[str, Any]) -> None:
        """Raise a `ResdeployError` unless the command can use `value`, beside its other `params`.

        Only what the standard library can tell belongs here; a `value` of None was not given.
        """
        raise NotImplementedError


class Command(click.Command):
    """A command whose `Checked` parameters are checked first, in the order of the help.

    It keeps its options as they were written.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and keep the texts."""
        words = list(args)
        rest = super().parse_args(ctx, args)
        ctx.meta[_GIVEN] = self.make_parser(ctx).parse_args(words)[0]
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Check the parameters, then run."""
        for parameter in self.params:
            if isinstance(parameter.type, Checked) and parameter.name is not None:
                value = ctx.params[parameter.name]
                for one in value if isinstance(value, tuple) else (value,):
                    parameter.type.check(one, ctx.params)
        return super().invoke(ctx)


def as_written(context: click.Context, names: Container[str]) -> list[tuple[str, ...]]:
    """Return the options of a command line that have these names, each as its words."""
    given = context.meta[_GIVEN]
    options: list[tuple[str, ...]] = []
    for option in context.command.params:
        if option.name not in names or not isinstance(option, click.Option):
            continue
        value = given.get(option.name)
        if option.is_flag:
            # Of a pair such as --spinning/--no-spinning, the one that was written.
            flags = option.opts if value else option.secondary_opts
            options += [(flags[0],)] if value is not None and flags else []
        elif option.multiple:
            options += [(option.opts[0], one) for one in value or ()]
        elif isinstance(value, str):
            options.append((option.opts[0], value))
    return options
