"""No two modules of the package import each other in a circle, not even inside functions or for types."""

import ast
import graphlib
import pathlib

import trellis

PACKAGE = pathlib.Path(trellis.__file__).parent
MODULES = {path.stem: path for path in PACKAGE.glob("*.py")}


def imported(node):
    """The modules of the package that an import names; `__init__` stands for the names that the package exports."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level and node.module:
        names = [f"trellis.{node.module}"]
    elif isinstance(node, ast.ImportFrom) and (node.level or node.module == "trellis"):
        names = [f"trellis.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module]
    else:
        return
    for name in names:
        package, _, module = name.partition(".")
        module = module.partition(".")[0]
        if package == "trellis" and module != "_trellis":  # the compiled extension
            yield module if module in MODULES else "__init__"


def test_the_modules_of_the_package_import_each_other_without_a_circle():
    imports = {
        name: {other for node in ast.walk(ast.parse(path.read_text())) for other in imported(node)}
        for name, path in MODULES.items()
    }
    assert sum(map(len, imports.values())) > len(imports), "the imports were found"
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
