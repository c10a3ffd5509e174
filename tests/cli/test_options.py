"""The options of a session: one list, the fields of `SessionSpec`."""

import dataclasses
from typing import Literal, get_args, get_origin

import click
import pytest
from click.testing import CliRunner

from resdeploy.cli import cli
from resdeploy.cli.bench_options import with_options
from resdeploy.cli.tables import session_text
from resdeploy.schema.codec import dump_json, load_json
from resdeploy.schema.sessions import SESSION_OPTIONS, SessionSpec
from resdeploy.session.providers import PROVIDERS

FIELDS = [field.name for field in dataclasses.fields(SessionSpec)]


def other_value(name):
    """Return a value of a field that is not its default, with the text that means it."""
    option = SESSION_OPTIONS[name]
    if option.kind is bool:
        return not option.default, "off" if option.default else "on"
    if get_origin(option.kind) is Literal:
        value = next(value for value in get_args(option.kind) if value != option.default)
        return value, value
    return ("cuda", "cuda") if option.kind is str else (3, "3")


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_is_an_option_of_bench_and_of_what_it_is_compared_with(name):
    flag = SESSION_OPTIONS[name].flag
    (option,) = [p for p in cli.commands["bench"].params if flag in p.opts]
    assert option.name == name
    value, text = other_value(name)
    expected = SessionSpec(**{name: value})
    assert with_options(SessionSpec(), (f"{flag[2:]}={text}",)) == expected
    assert session_text(expected) != session_text(SessionSpec())
    assert load_json(SessionSpec, dump_json(expected), where="x") == expected
    with pytest.raises(click.BadParameter, match=f"is not one of .*{flag[2:]}="):
        with_options(SessionSpec(), (f"{flag[2:]}=",))


@pytest.mark.parametrize("command", ["check", "verify", "predict", "evaluate"])
def test_what_chooses_an_arithmetic_is_an_option_wherever_a_model_is_run(command):
    flags = {flag for param in cli.commands[command].params for flag in param.opts}
    for name, option in SESSION_OPTIONS.items():
        assert (option.flag in flags) is (option.changes_answers or name == "num_threads")


@pytest.mark.parametrize("command", ["bench", "check", "evaluate", "doctor", "tune"])
def test_the_help_names_the_providers_of_the_table(command):
    shown = " ".join(CliRunner().invoke(cli, [command, "--help"]).output.split())
    assert f"Where to run: {', '.join(PROVIDERS)}." in shown
