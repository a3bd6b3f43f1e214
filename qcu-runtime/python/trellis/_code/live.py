"""The digest of a strategy's code in memory: for notebook cells, and for files that changed after their import.

The digest covers the bytecode of the function and everything that it refers to: its closure, its defaults, the
arguments of a partial, and the globals, functions, classes and modules that it uses by name, and so on from those.
Values count by their content, also a DataFrame. A module of the researcher counts with all its values, caches included.
An installed package counts by its name and version. Comments and file names do not count.

The digest does not cover files that a strategy opens, environment variables, or attributes that it finds by a computed
name. An object that cannot be pickled (a lock, a connection) counts by its type alone.
"""

from __future__ import annotations

import dis
import hashlib
import json
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .._declaration import Declaration
from ..frame import Frame
from .sources import is_own, reached_by_name

# types whose repr is their whole value
_PLAIN = {bool, int, float, complex, types.NoneType, types.EllipsisType, types.NotImplementedType, range}
_TEXT = {str, bytes}
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
# attributes of a class that are not code, or that differ between two definitions of the same class
_CLASS_NOISE = ("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__")
# attributes in which wrappers keep the wrapped function
_WRAPPED = ("__wrapped__", "__func__", "fget", "fset")


def live_digest(strategy: Declaration) -> str:
    """The digest, in hexadecimal."""
    walk = _Walk({})
    walk.add(strategy)
    return walk.hash.hexdigest()


class _Walk:
    def __init__(self, seen: dict[int, tuple[int, Any]]) -> None:
        self.hash = hashlib.sha256()
        # by id; keeping the object keeps its id from being used again
        self.seen = seen

    def say(self, *parts: Any) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
            self.hash.update(len(data).to_bytes(8, "big"))
            self.hash.update(data)

    def add(self, value: Any) -> None:
        kind = type(value)
        self.say(kind.__module__, kind.__qualname__)
        if kind in _PLAIN:
            self.say(repr(value))
        elif kind in _TEXT:
            self.say(value)
        elif kind is tuple:
            self.all(value)
        elif id(value) in self.seen:
            self.say(self.seen[id(value)][0])
        else:
            self.seen[id(value)] = len(self.seen), value
            self.open(value)

    def all(self, values: Any) -> None:
        self.say(len(values))
        for value in values:
            self.add(value)

    def named(self, values: dict[str, Any]) -> None:
        for name in sorted(values):
            self.say(name)
            self.add(values[name])

    def open(self, value: Any) -> None:
        match value:
            # one repr for the whole container: it may have a million elements
            case list() if type(value) is list and _is_plain(value):
                self.say(repr(value))
            case dict() if type(value) is dict and _is_plain(value) and _is_plain(value.values()):
                self.say(repr(value))
            case list():
                self.all(value)
            case dict():
                self.all(list(value.items()))
            case set() | frozenset() if _is_plain(value):
                self.say(*sorted(map(repr, value)))
            case set() | frozenset():
                self.say(*sorted(self.apart(element) for element in value))
            case types.CodeType():
                self.code(value)
            case types.FunctionType():
                self.function(value)
            case types.ModuleType():
                self.module(value)
            case type():
                self.type(value)
            case Declaration():
                declared = value.manifest()
                self.say(json.dumps({k: v for k, v in declared.items() if k not in ("module", "code_digest")}))
                self.add(value.function)
            case Frame():
                self.say(value.write("arrow"))
            case np.ndarray() if not value.dtype.hasobject:
                self.say(value.dtype, value.shape, value.tobytes())
            case _:
                self.object(value)

    def apart(self, value: Any) -> str:
        """The digest of one element of a set: sets have no order, so the digests are sorted."""
        walk = _Walk(dict(self.seen))
        walk.add(value)
        return walk.hash.hexdigest()

    def code(self, code: types.CodeType) -> None:
        self.say(code.co_code, code.co_exceptiontable, code.co_flags)
        self.say(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self.say(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.all(code.co_consts)

    def function(self, function: types.FunctionType) -> None:
        code = function.__code__
        if is_own(code.co_filename):
            self.add(code)
            used, imported = _names_of(code)
            self.named({n: function.__globals__[n] for n in used if n in function.__globals__})
            for name in sorted(imported):
                self.imported(name)
        else:
            self.installed(function.__module__, function.__qualname__)
        # a wrapper of a library has the researcher's function in its closure
        self.add((function.__defaults__, function.__kwdefaults__, vars(function)))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self.say(name)
            try:
                self.add(cell.cell_contents)
            except ValueError:
                self.say("not assigned yet")

    def module(self, module: types.ModuleType) -> None:
        if _is_own_module(module):
            self.named({n: v for n, v in list(vars(module).items()) if not n.startswith("__")})
        else:
            self.installed(module.__name__)

    def imported(self, name: str) -> None:
        """A module that a function imports when it runs. Its source counts: the module may not be loaded yet."""
        self.say(*(path.read_bytes() for path in sorted(reached_by_name(name).files)))

    def type(self, kind: type) -> None:
        if _is_own_module(sys.modules.get(kind.__module__)):
            self.say(kind.__qualname__)
            self.all(kind.__bases__)
            self.named({n: v for n, v in vars(kind).items() if n not in _CLASS_NOISE})
        else:
            self.installed(kind.__module__, kind.__qualname__)

    def installed(self, module: str | None, name: str = "") -> None:
        package = sys.modules.get((module or "").partition(".")[0])
        self.say(module, name, getattr(package, "__version__", ""))

    def object(self, value: Any) -> None:
        """Any other object counts by its pickled parts."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reduced = value.__reduce_ex__(4)
        except Exception:
            reduced = type(value).__qualname__
        if isinstance(reduced, tuple):
            self.all([list(part) if isinstance(part, Iterator) else part for part in reduced])
            return
        self.say(reduced)
        self.add(type(value))
        self.all([getattr(value, name, None) for name in _WRAPPED])


def _is_plain(values: Iterable[Any]) -> bool:
    return set(map(type, values)) <= _PLAIN | _TEXT


def _is_own_module(module: types.ModuleType | None) -> bool:
    """Whether a module is the researcher's: a notebook, a script, or a file that is_own accepts."""
    if module is None or module.__name__ == "__main__":
        return True
    file = getattr(module, "__file__", None)
    return file is not None and is_own(file)


def _names_of(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The globals that code and its inner functions read, and the modules that they import."""
    used, imported, module = set(), set(), ""
    for step in dis.get_instructions(code):
        if step.opname in _GLOBALS:
            used.add(step.argval)
        elif step.opname == "IMPORT_NAME":
            module = step.argval
            imported.add(module)
        elif step.opname == "IMPORT_FROM":
            imported.add(f"{module}.{step.argval}")
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names = _names_of(inner)
            used, imported = used | names[0], imported | names[1]
    return used, imported
