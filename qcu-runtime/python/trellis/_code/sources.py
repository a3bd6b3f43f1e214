"""Finds the files that a strategy's file needs, by reading the import statements in it and in the imported files.

Only the text of the files counts, not the modules that a process has loaded. So the same files give the same answer in
a notebook, in a deploy and in the middle of a run.
"""

from __future__ import annotations

import ast
import collections
import importlib.util
import os
import pathlib
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

OURS = pathlib.Path(__file__).parent.parent
_LIBRARIES = [OURS, *(pathlib.Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]


def is_own(file: str) -> bool:
    """Whether a file is the researcher's: not part of Trellis, of Python or of an installed package."""
    path = pathlib.Path(file)
    elsewhere = file.startswith("<frozen ") or any(path.is_relative_to(folder) for folder in _LIBRARIES)
    return not elsewhere and not {"site-packages", "dist-packages"} & set(path.parts)


@dataclass
class Reached:
    """The modules that a file imports, directly or through other files.

    Attributes:
        files: the file itself and the researcher's modules, each with the folder that its module name starts from.
        installed: top-level names of all other modules: `numpy`.
    """

    files: dict[pathlib.Path, pathlib.Path] = field(default_factory=dict)
    installed: set[str] = field(default_factory=set)


def reached_by(file: pathlib.Path) -> Reached:
    """The modules that `file` imports.

    Raises:
        OSError, SyntaxError, ValueError: a file cannot be read.
    """
    return _reached([(file, file.parent)], file.parent)


def reached_by_name(module: str) -> Reached:
    """The modules that a module of the researcher imports, itself included; empty for any other module."""
    folder = _folder_of(module.partition(".")[0])
    return Reached() if folder is None else _reached([(path, folder) for path in _modules(folder, module)], folder)


def _reached(todo: list[tuple[pathlib.Path, pathlib.Path]], root: pathlib.Path) -> Reached:
    reached = Reached()
    while todo:
        path, folder = todo.pop()
        if path in reached.files:
            continue
        reached.files[path] = folder
        for name, relative in _imports(path, folder):
            top = name.partition(".")[0]
            found = folder if relative else _folder_of(top, root, folder)
            if found is None:
                reached.installed.add(top)
            else:
                todo += [(module, found) for module in _modules(found, name)]
    return reached


def _imports(path: pathlib.Path, folder: pathlib.Path) -> Iterator[tuple[str, bool]]:
    """Yields the name of each imported module, as seen from `folder`, and whether the import is relative."""
    package = path.relative_to(folder).parent.parts
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for name in (module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)):
                if name:
                    yield name, node.level > 0


def _folder_of(top: str, *folders: pathlib.Path) -> pathlib.Path | None:
    """The folder that contains a top-level module of the researcher; None for other modules."""
    here = (folder for folder in folders if any(_modules(folder, top)))
    if (found := next(here, None)) is not None:
        return found
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    if spec is not None and spec.has_location and spec.origin and not places:
        places = [spec.origin]
    return next((pathlib.Path(place).parent.resolve() for place in places if is_own(place)), None)


def _modules(folder: pathlib.Path, module: str) -> Iterator[pathlib.Path]:
    """The files of a module and of its parent packages: importing a.b.c runs a and a.b as well."""
    parts = module.split(".")
    for i in range(len(parts)):
        stem = folder.joinpath(*parts[: i + 1])
        for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
            if path.is_file():
                yield path
                break


def set_since(path: pathlib.Path) -> bool:
    """Whether a constant or a function of a file has another value in memory, because other code has set it.

    Only names that the file assigns once are compared. An empty list or dict is not: a run may have filled it.
    """
    modules = [
        m for m in list(sys.modules.values()) if os.path.realpath(getattr(m, "__file__", None) or "") == str(path)
    ]
    if not modules:
        return False
    tree = ast.parse(path.read_bytes(), str(path))
    written: collections.Counter[str] = collections.Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            written[node.id] += 1
        elif isinstance(node, ast.FunctionDef):
            written[node.name] += 1
    return any(
        name in vars(module) and not _is_written(node, vars(module)[name], path)
        for node in tree.body
        if (name := _named(node)) is not None and written[name] == 1
        for module in modules
    )


def _named(node: ast.stmt) -> str | None:
    """The one name that a statement assigns; None if it assigns none or several."""
    if isinstance(node, ast.FunctionDef) and not node.decorator_list:
        return node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else None


def _is_written(node: ast.stmt, value: Any, path: pathlib.Path) -> bool:
    """Whether `value` may be the value that the statement `node` assigns."""
    if isinstance(node, ast.FunctionDef):
        return isinstance(value, types.FunctionType) and os.path.realpath(value.__code__.co_filename) == str(path)
    try:
        literal = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    except (ValueError, TypeError, AttributeError):
        return True
    return literal in ((), [], {}) or (type(value) is type(literal) and value == literal)
