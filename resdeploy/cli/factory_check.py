"""`--model PACKAGE.MODULE:NAME` judged by its source text: nothing of it is imported."""

import ast
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from resdeploy.errors import ResdeployError
from resdeploy.near import did_you_mean

__all__ = ["require_factory"]

_EXAMPLE = "--model package.module:function"


def require_factory(text: str) -> None:
    """Raise a `ResdeployError` unless `text` names something in a Python module that is here.

    Also taken is a file: `path/to/file.py:NAME`, or a TorchScript program without a name.
    """
    where = f"--model {text}"
    place, colon, name = text.rpartition(":")
    if not colon:
        place, name = text, ""
        if Path(text).is_file() and not text.endswith(".py"):
            return
    source = _source_file(place, where)
    names = None if source is None else _bound_names(source)
    if not name:
        candidates = sorted(names[0] if names else ())
        known = " or ".join(f":{one}" for one in candidates[:3]) or ":function"
        raise ResdeployError(
            f"Which function of {place} is meant?", where=where, fix=f"--model {place}{known}"
        )
    if names is not None and name not in names[0] | names[1]:
        others = f"{place} has {', '.join(sorted(names[0]))}" if names[0] else _EXAMPLE
        raise ResdeployError(
            f"There is no {name!r} in {place}.",
            where=where,
            fix=did_you_mean(name, sorted(names[0] | names[1]), otherwise=others),
        )


def _source_file(place: str, where: str) -> Path | None:
    """Return the text of a Python module, without importing it or its packages; None without."""
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            near = did_you_mean(str(path), map(str, path.parent.glob("*.py")), otherwise=_EXAMPLE)
            raise ResdeployError("There is no such file.", where=where, fix=near)
        return path
    top, *rest = place.split(".")
    spec = _top_module(top)
    if spec is None:
        here = {one.stem if one.suffix == ".py" else one.name for one in Path().iterdir()}
        fix = did_you_mean(top, here, otherwise=f"run the command in the folder that {top} lies in")
        raise ResdeployError(f"There is no Python module {top!r} here.", where=where, fix=fix)
    for part in rest:
        folders = [*(spec.submodule_search_locations or ())]
        parent, spec = spec, PathFinder.find_spec(f"{spec.name}.{part}", folders)
        if spec is None:
            here = {one.stem for folder in folders for one in Path(folder).glob("[!_]*")}
            fix = did_you_mean(part, here, otherwise=_EXAMPLE)
            what = f"There is no {part!r} in {parent.name}."
            raise ResdeployError(what, where=where, fix=fix)
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _top_module(name: str) -> ModuleSpec | None:
    """Return where a module is, in the folder the command is run in or installed."""
    if not name.isidentifier():
        return None
    if (spec := PathFinder.find_spec(name, [""])) is not None:
        return spec
    from importlib.util import find_spec

    try:
        return find_spec(name)
    except ValueError:  # one without a spec, such as __main__
        return None


def _bound_names(path: Path) -> tuple[set[str], set[str]] | None:
    """Return the names that a module defines, and all that it binds at its top level.

    None where the text does not tell: it is not Python, imports a star, or binds names as it runs.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    if any(map(_binds_as_it_runs, ast.walk(tree))):
        return None
    defined: set[str] = set()
    bound: set[str] = set()
    rest: list[ast.AST] = [tree]
    while rest:
        node = rest.pop()
        match node:
            case ast.Import() | ast.ImportFrom():
                bound |= {(one.asname or one.name).partition(".")[0] for one in node.names}
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                defined.add(node.name)
                continue  # what it binds is its own
            case ast.Name(id=name, ctx=ast.Store()):
                defined.add(name)
        rest += ast.iter_child_nodes(node)
    public = {name for name in defined if not name.startswith("_")}
    return public, bound | defined


def _binds_as_it_runs(node: ast.AST) -> bool:
    match node:
        case ast.ImportFrom(names=[ast.alias(name="*")]) | ast.Global():
            return True
        case ast.FunctionDef(name="__getattr__") | ast.Attribute(attr="modules"):
            return True
        case ast.Name(id="globals" | "exec"):
            return True
    return False
