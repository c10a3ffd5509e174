"""The exception tree: what a caller may catch, which exit code it means, what a user reads."""

import re
from pathlib import Path

import pytest

from resdeploy import errors
from resdeploy.errors import (
    BundleError,
    EnvironmentLacksError,
    MissingExtraError,
    ProviderError,
    ReportedError,
    ResdeployError,
    UnsupportedModelError,
)
from resdeploy.extras import install_extra, packages_of


def test_a_message_has_what_where_and_fix_on_lines_of_their_own():
    error = ResdeployError("The file is empty.", where="a.onnx", fix="export it again")
    assert str(error) == "The file is empty.\n  where: a.onnx\n  fix:   export it again"


def test_the_parts_that_are_not_known_leave_no_empty_lines():
    assert str(ResdeployError("The file is empty.")) == "The file is empty."
    assert str(ResdeployError("Empty.", fix="do it again")) == "Empty.\n  fix:   do it again"


@pytest.mark.parametrize(
    ("kind", "parent", "exit_code"),
    [
        (UnsupportedModelError, ResdeployError, 2),
        (BundleError, ResdeployError, 2),
        (ResdeployError, ReportedError, 2),
        (ProviderError, EnvironmentLacksError, 3),
        (EnvironmentLacksError, ReportedError, 3),
    ],
)
def test_an_error_has_its_parent_and_its_exit_code(kind, parent, exit_code):
    error = kind("what")
    assert isinstance(error, parent)
    assert error.exit_code == exit_code


def test_wrong_input_and_a_lacking_machine_are_never_caught_as_one_another():
    assert not issubclass(ResdeployError, EnvironmentLacksError)
    assert not issubclass(EnvironmentLacksError, ResdeployError)


def test_a_missing_package_names_the_extra_that_brings_it():
    error = MissingExtraError("onnxruntime", extra="cpu")
    assert error.exit_code == 3
    assert isinstance(error, EnvironmentLacksError)
    assert (error.package, error.extra) == ("onnxruntime", "cpu")
    assert "'onnxruntime'" in error.what
    assert error.fix == install_extra("cpu")


def test_an_extra_is_installed_from_this_checkout_as_no_index_has_it():
    root = Path(__file__).parent.parent
    assert install_extra("cpu") == f'pip install -e "{root}[cpu]"'


def test_the_packages_of_an_extra_are_those_of_the_extras_in_it():
    requirements = [
        "click>=8.1.7",
        'onnxruntime>=1.18; extra == "cpu"',
        "torch>=2.9; extra == 'export'",
        'resdeploy[export]; extra == "train"',
        'scikit-learn>=1.5; extra == "train"',
    ]
    assert packages_of("cpu", requirements) == ['"onnxruntime>=1.18"']
    assert packages_of("train", requirements) == ['"torch>=2.9"', '"scikit-learn>=1.5"']


def test_nothing_is_advised_that_no_index_has():
    """`pip install resdeploy` finds nothing: the wheel or the checkout is named."""
    root = Path(__file__).parent.parent
    files = [*root.glob("resdeploy/**/*.py"), *root.glob("docs/*.md"), root / "README.md"]
    offenders = [
        str(path)
        for path in files
        if re.search(r"pip install [-\w ]*[\"']?resdeploy(?!-)", path.read_text(encoding="utf-8"))
    ]
    assert offenders == []


def test_the_exit_codes_are_all_different():
    codes = [
        errors.EXIT_PASSED,
        errors.EXIT_CHECK_FAILED,
        ResdeployError.exit_code,
        EnvironmentLacksError.exit_code,
        errors.EXIT_BUG,
    ]
    assert codes == [0, 1, 2, 3, 70]


def test_the_docstring_draws_every_error_under_its_parent():
    lines = [
        line for line in errors.__doc__.splitlines() if line.strip().split(" ")[0] in dir(errors)
    ]
    indents = {line.split()[0]: len(line) - len(line.lstrip()) for line in lines}
    kinds = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, ReportedError)
    ]
    assert set(indents) == {kind.__name__ for kind in kinds}
    for kind in kinds:
        if kind is not ReportedError:
            assert indents[kind.__name__] == indents[kind.__base__.__name__] + 2
