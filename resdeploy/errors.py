"""The errors resdeploy raises on purpose, and the exit code each one means.

::

    ReportedError
      ResdeployError            2   the input or the request is wrong
        UnsupportedModelError         a layer or graph resdeploy will not touch
        BundleError                   damaged, or not a bundle
      EnvironmentLacksError     3   this machine cannot do what was asked
        MissingExtraError             a Python package is not installed
        ProviderError                 an execution provider did not start

A failed check (numbers differ, slower than asked) is not an error: it is a record, and exit code 1.
Anything else that escapes is a bug, and exit code 70.
"""

from typing import ClassVar

from resdeploy.extras import install_extra

__all__ = [
    "EXIT_BUG",
    "EXIT_CHECK_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_PASSED",
    "BundleError",
    "EnvironmentLacksError",
    "MissingExtraError",
    "ProviderError",
    "ReportedError",
    "ResdeployError",
    "UnsupportedModelError",
]

EXIT_PASSED = 0
EXIT_CHECK_FAILED = 1
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class ReportedError(Exception):
    """An error in three parts: what happened, where, and the fix."""

    exit_code: ClassVar[int]

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        parts = (("", self.what), ("  where: ", self.where), ("  fix:   ", self.fix))
        return "\n".join(f"{title}{part}" for title, part in parts if part is not None)


class ResdeployError(ReportedError):
    """The input or the request is wrong."""

    exit_code = 2


class UnsupportedModelError(ResdeployError):
    """A layer or a graph that resdeploy will not touch."""


class BundleError(ResdeployError):
    """A bundle that is damaged, or a folder that is not a bundle."""


class EnvironmentLacksError(ReportedError):
    """This machine cannot do what was asked."""

    exit_code = 3


class MissingExtraError(EnvironmentLacksError):
    """A Python package is not installed; `extra` names the extra that brings it."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(
            f"The package {package!r} is not installed.",
            fix=install_extra(extra),
        )
        self.package = package
        self.extra = extra


class ProviderError(EnvironmentLacksError):
    """An execution provider did not start; the message names the library that is missing."""
