"""A torch module of the user's own: named in Python, in a file, or saved as a TorchScript program.

package.module:NAME     a function that returns a module, a class of one, or the module itself
path/to/file.py:NAME    the same in a file that is no package
path/to/file.pt         a program that torch.jit.save wrote
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

from resdeploy.errors import ResdeployError, UnsupportedModelError

__all__ = ["is_torchscript", "load_torchscript", "own_module"]

_EXAMPLE = "--model package.module:NAME, or --model path/to/file.py:NAME"


def own_module(text: str, input_shape: tuple[int, ...]) -> nn.Module:
    """Return the module that --model names, in eval mode. The code of the user runs.

    Raises:
        ResdeployError: there is no such module or name; the code raises; a factory needs arguments.
        UnsupportedModelError: what it names is, or returns, no torch module; or a TorchScript
            program does what torch.export does not take.
    """
    where = f"--model {text}"
    place, colon, name = text.rpartition(":")
    if not colon and Path(text).is_file() and not text.endswith(".py"):
        return load_torchscript(Path(text), input_shape)
    if not colon:
        place = text
    module = _imported(place, where)
    if not name or not colon:
        raise ResdeployError(
            f"The name of the model in {place} is missing.",
            where=where,
            fix=f"--model {place}:{' or :'.join(_candidates(module)) or 'NAME'}",
        )
    if not hasattr(module, name):
        candidates = _candidates(module)
        near = difflib.get_close_matches(name, candidates) or candidates
        raise ResdeployError(
            f"There is no {name!r} in {place}.",
            where=where,
            fix=f"did you mean {' or '.join(near)}?" if near else f"{_EXAMPLE}",
        )
    return _constructed(getattr(module, name), where).eval()


def is_torchscript(path: Path) -> bool:
    """Test for a file of torch.jit.save, without running it."""
    try:
        reader = torch._C.PyTorchFileReader(str(path))
    except RuntimeError:  # no archive, or a damaged one
        return False
    return "constants.pkl" in reader.get_all_records()


def load_torchscript(path: Path, input_shape: tuple[int, ...]) -> nn.Module:
    """Return a TorchScript program as a module that torch.export can trace, with its names.

    Raises:
        ResdeployError: the file is no TorchScript program.
        UnsupportedModelError: torch cannot convert it.
    """
    if not is_torchscript(path):
        raise ResdeployError(
            "This is no TorchScript program.",
            where=str(path),
            fix=f"give weights as SRC with --arch, or the network with {_EXAMPLE}",
        )
    converter = importlib.import_module("torch._export.converter")  # takes a second
    x = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the converter leaves out: counters, mostly
        program = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        try:
            with torch.no_grad():
                exported = converter.TS2EPConverter(program, (x,)).convert()
                module: Any = exported.module(check_guards=False)
        except Exception as error:  # the converter has no common base for what it raises
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UnsupportedModelError(
                f"torch cannot turn this TorchScript program into a graph: {reason}",
                where=str(path),
                fix="give the network it was made from, with --model package.module:NAME",
            ) from error
    return _plain_module(module, str(getattr(program, "original_name", "TorchScript")))


def _plain_module(module: Any, name: str) -> nn.Module:
    """Return an exported module as an ordinary one: torch's own refuses eval().

    One tensor is returned as it is, without the record of a nest, which torch warns of in a copy.
    """
    graph = module.graph
    results = graph.output_node().args[0]
    if len(results) == 1 and module._out_spec.is_leaf():
        graph.output_node().args = (results[0],)
        graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(module, graph, class_name=name).requires_grad_(False).eval()


def _imported(place: str, where: str) -> ModuleType:
    """Return the Python module of that name or path."""
    # What `python -m` does: the user's code lies where the command is run.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError as error:
        if not place.endswith(".py") or Path(place).exists():
            raise _failed("The import", error, where) from error
        raise ResdeployError("There is no such file.", where=where, fix=_EXAMPLE) from error
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise _failed("The import", error, where) from error
        raise ResdeployError(
            f"There is no Python module {error.name!r} here.",
            where=where,
            fix=f"run the command in the folder that {error.name} lies in, or give its file: "
            "--model path/to/file.py:NAME",
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise _failed("The import", error, where) from error


def _from_file(path: Path) -> ModuleType:
    """Return a file as a Python module; what lies beside it can be imported, as in a script."""
    if not path.is_file():
        raise FileNotFoundError(path)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_of_{abs(hash(folder))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _constructed(found: Any, where: str) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise UnsupportedModelError(
            f"This is a {type(found).__name__}, neither a torch module nor what makes one.",
            where=where,
            fix="name a function that returns a torch module, a class of one, or the module",
        )
    if missing := _required(found):
        raise ResdeployError(
            f"{found.__name__} needs arguments: {', '.join(missing)}.",
            where=where,
            fix=f"name a function without any: def build(): return {found.__name__}(…)",
        )
    try:
        module = found()
    except Exception as error:  # the user's code may raise anything
        raise _failed("The factory", error, where) from error
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            f"The factory returned {type(module).__name__}, not a torch module.", where=where
        )
    return module


def _required(function: Any) -> list[str]:
    """Return the parameters without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one that is written in C
        return []
    skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in skipped]


def _candidates(module: ModuleType) -> list[str]:
    """Return the names in a Python module that may be, or make, a torch module."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            isinstance(value, nn.Module)
            or (
                getattr(value, "__module__", None) == module.__name__
                and (inspect.isfunction(value) or inspect.isclass(value))
                and not (inspect.isclass(value) and not issubclass(value, nn.Module))
            )
        )
    ]


def _failed(what: str, error: Exception, where: str) -> ResdeployError:
    return ResdeployError(f"{what} failed: {type(error).__name__}: {error}", where=where)
