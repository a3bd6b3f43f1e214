"""The rules for imports: no circle, not even inside functions or for types, and each room has one door."""

import ast
import graphlib
import importlib
import pathlib

import pytest

import trellis

PACKAGE = pathlib.Path(trellis.__file__).parent
# the most modules of a folder
MODULES_MAX = 16


def named(path):
    """The full name of a module; a folder's is that of its `__init__.py`."""
    parts = ("trellis", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {named(path): path for path in PACKAGE.rglob("*.py")}
FOLDERS = {name: path.parent for name, path in MODULES.items() if path.stem == "__init__"}
ROOMS = FOLDERS.keys() - {"trellis"}


def folder_of(name):
    return name if name in FOLDERS else name.rpartition(".")[0]


def imports(importer):
    """Each import of the package's modules in a module, as the module and the name from it; None: the module itself."""
    for node in ast.walk(ast.parse(MODULES[importer].read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.partition(".")[0] == "trellis")
        elif isinstance(node, ast.ImportFrom):
            here = folder_of(importer).split(".")
            start = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            if module.partition(".")[0] == "trellis" and module != "trellis._trellis":  # the compiled extension
                names = [alias.name for alias in node.names]
                yield from ((f"{module}.{n}", None) if f"{module}.{n}" in ROOMS else (module, n) for n in names)


def imported(importer):
    """The modules that a module imports. A room's `__init__` stands for all names that the room exports."""
    for module, name in imports(importer):
        inside = f"{module}.{name}"
        if inside == "trellis._trellis":
            continue
        # other modules get a room's modules from its door; the modules of the room get them directly
        yield inside if inside in MODULES and (module == "trellis" or folder_of(importer) == module) else module


def test_the_modules_of_the_package_import_each_other_without_a_circle():
    graph = {name: set(imported(name)) for name in MODULES}
    assert set().union(*graph.values()) <= graph.keys(), "each import names a module"
    assert sum(map(len, graph.values())) > len(graph), "the imports were found"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_other_modules_use_a_room_by_its_door_and_only_what_the_door_exports():
    exported = {room: importlib.import_module(room).__all__ for room in ROOMS}
    beside = [
        f"{importer}: from {module} import {name}"
        for importer in MODULES
        for module, name in imports(importer)
        if folder_of(module) in ROOMS - {folder_of(importer)}
        if name not in exported.get(module, ())
    ]
    assert beside == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_door_says_its_subject_in_one_line_and_exports_only_what_others_use(room):
    door = importlib.import_module(room)
    assert door.__doc__ and len(door.__doc__.splitlines()) == 1
    used = {name for importer in MODULES if folder_of(importer) != room for at, name in imports(importer) if at == room}
    assert set(door.__all__) <= used | {"main"}, "`main` is for the command `trellis`"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_has_few_modules(folder):
    assert len(list(FOLDERS[folder].glob("*.py"))) <= MODULES_MAX
