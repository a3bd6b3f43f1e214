"""The digest of a run's code: different code has a different digest, the same code has the same."""

import importlib
import os
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
from conftest import WAIT_S

import trellis
from trellis.deploy import bundle_of, code_digest, make_bundle
from trellis.errors import BadRequest

HEAD = """
import functools
import trellis

declare = trellis.strategy("x", inputs={}, output=trellis.output("tests.x", score="float64"))
"""


def cell(text, **values):
    """The strategy `x` of a notebook with the cells `text`."""
    notebook = {"__name__": "__main__", **values}
    exec(compile(HEAD + text, "<cell>", "exec"), notebook)
    return notebook["x"]


def told(text, **values):
    digest = code_digest(cell(text, **values))
    assert digest.startswith("live:sha256:"), digest
    return digest


EDITS = {
    "itself": ("@declare\ndef x(ctx):\n    return {}", "1", "2"),
    "helper": ("def helper(ctx):\n    return {}\n\n@declare\ndef x(ctx):\n    return helper(ctx)", "1", "2"),
    "helper of a helper": ("def a():\n    return {}\ndef b():\n    return a()\nx = declare(lambda ctx: b())", "1", "2"),
    "global": ("N = {}\n\n@declare\ndef x(ctx):\n    return N", "1", "7"),
    "global list": ("N = [1, {{'a': ({},)}}]\nx = declare(lambda ctx: N)", "1", "1.0"),
    "global set": ("N = {{'a', 'b', '{}'}}\nx = declare(lambda ctx: N)", "c", "d"),
    "global in a comprehension": ("N = {}\nx = declare(lambda ctx: [N for _ in range(3)])", "1", "2"),
    "closure": ("def make(n):\n    return lambda ctx: n\nx = declare(make({}))", "1", "2"),
    "partial": ("x = declare(functools.partial(lambda n, ctx: n, {}))", "1", "2"),
    "partial by name": ("x = declare(functools.partial(lambda ctx, n: n, n={}))", "1", "2"),
    "default": ("def x(ctx, n={}):\n    return n\nx = declare(x)", "1", "2"),
    "decorator": (
        "def scaled(f):\n    def g(ctx):\n        return f(ctx) * {}\n    return g\n\n"
        "@declare\n@scaled\ndef x(ctx):\n    return 1",
        "1",
        "2",
    ),
    "under a decorator": (
        "def logged(f):\n    def g(ctx):\n        return f(ctx)\n    return g\n\n"
        "@declare\n@logged\ndef x(ctx):\n    return {}",
        "1",
        "2",
    ),
    "under a cache": ("@functools.cache\ndef h():\n    return {}\nx = declare(lambda ctx: h())", "1", "2"),
    "class": ("class C:\n    N = {}\n    def __call__(self, ctx):\n        return self.N\nx = declare(C())", "1", "2"),
    "method": ("class C:\n    def run(self, ctx):\n        return {}\nx = declare(C().run)", "1", "2"),
    "static method": (
        "class C:\n    @staticmethod\n    def h():\n        return {}\nx = declare(lambda ctx: C.h())",
        "1",
        "2",
    ),
    "property": (
        "class C:\n    @property\n    def h(self):\n        return {}\nx = declare(lambda ctx: C().h)",
        "1",
        "2",
    ),
    "instance": (
        "class C:\n    def __init__(self, n):\n        self.n = n\n    def __call__(self, ctx): ...\n"
        "x = declare(C({}))",
        "1",
        "2",
    ),
    "base class": (
        "class B:\n    def h(self):\n        return {}\nclass C(B):\n    def __call__(self, ctx):\n"
        "        return self.h()\nx = declare(C())",
        "1",
        "2",
    ),
    "dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass P:\n    n: int = {}\nx = declare(lambda ctx: P())",
        "1",
        "2",
    ),
    "another strategy": (
        "@declare\ndef first(ctx):\n    return {}\n\n@declare\ndef x(ctx):\n    return first(ctx)",
        "1",
        "2",
    ),
    "declaration": (
        "x = trellis.strategy('x', inputs=dict(px=trellis.series('a.b', lookback='{} sessions')),\n"
        "    output=trellis.output('tests.x', score='float64'))(lambda ctx, px: px)",
        "2",
        "3",
    ),
}


@pytest.mark.parametrize(("text", "one", "other"), EDITS.values(), ids=EDITS)
def test_an_edit_of_anything_that_a_cells_strategy_refers_to_is_other_code(text, one, other):
    assert told(text.format(one)) == told(text.format(one)) == told("# a comment\n" + text.format(one))
    assert told(text.format(one)) != told(text.format(other))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: np.array([1.0, n]),
        lambda n: np.array(["a", n], dtype=object),
        lambda n: pd.DataFrame({"x": [1.0, n]}),
        lambda n: pd.Series([1.0, n]),
        lambda n: trellis.Row(("A", "B"), np.array([1.0, n])),
        lambda n: pd.Timestamp("2020-01-01") + pd.Timedelta(days=n),
        lambda n: np.random.default_rng(n),
    ],
    ids=range(7),
)
def test_a_value_that_a_cells_strategy_uses_counts_by_its_content(make):
    text = "x = declare(lambda ctx: value)"
    assert told(text, value=make(2)) == told(text, value=make(2)) != told(text, value=make(3))


def test_what_a_strategy_does_not_refer_to_is_no_code_of_it():
    text = "N = {}\ndef other():\n    return N\nx = declare(lambda ctx: ctx.N)"
    assert told(text.format(1)) == told(text.format(2))


def test_what_cannot_be_taken_apart_does_not_stop_a_run():
    text = "x = declare(lambda ctx: value)"
    loop = []
    loop.append(loop)
    deep = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    for value in (
        threading.Lock(),
        sys.__stderr__,
        (n for n in ()),
        loop,
        sys,
        type("T", (), {"__reduce_ex__": 1})(),
    ):
        assert told(text, value=value) == told(text, value=value)
    assert code_digest(cell(text, value=deep)).startswith("unknown:")


def test_the_digest_of_a_cell_is_the_same_in_another_process(tmp_path):
    text = HEAD + "N = {'a', 'b', 'c'}\nx = declare(lambda ctx: [ctx in {'x', 'y', 'z'}, N])\n"
    text += "from trellis.deploy import code_digest\nprint(code_digest(x))"
    runs = [
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=WAIT_S).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and runs[0].startswith("live:sha256:")


# --- files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    names = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - names:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def imported(folder, **files):
    """Imports the first of the files as a module, as if all were older than this process."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    return importlib.import_module(next(iter(files)))


@pytest.fixture(autouse=True)
def everything_was_there_before(monkeypatch):
    """Pretends that this process began now; `edited` makes a file newer than that."""
    monkeypatch.setattr("trellis.deploy.PROCESS_STARTED", float("inf"))


LOGGED = """
def logged(f):
    def wrapper(ctx):
        return f(ctx)
    return wrapper

def core(n, ctx):
    return n
"""


@pytest.mark.parametrize(
    "text",
    [
        "from logging_of import logged\n@declare\n@logged\ndef x(ctx):\n    return {}",
        "from logging_of import core\nx = declare(functools.partial(core, {}))",
        "from logging_of import core\ndef made(n):\n    return declare(functools.partial(core, n))\nx = made({})",
    ],
    ids=["decorator", "partial", "made"],
)
def test_a_strategy_is_of_the_file_that_declares_it(folder, text):
    module = imported(folder, of_a_file=HEAD + text.format(1), logging_of=LOGGED)
    bundle, name, digest = make_bundle(module.x, folder / "state")
    assert name == "of_a_file.py" and code_digest(module.x) == digest
    assert sorted(p.name for p in bundle.iterdir()) == ["logging_of.py", "of_a_file.py", "packages.lock"]
    (folder / "of_a_file.py").write_text(HEAD + text.format(2))
    assert bundle_of(folder / "of_a_file.py")[1] != digest.removeprefix("sha256:")


def test_a_strategy_that_importing_its_file_does_not_make_has_no_file(folder):
    module = imported(
        folder, makes_some=HEAD + "def make(n):\n    @declare\n    def x(ctx):\n        return n\n    return x"
    )
    one, two = module.make(1), module.make(2)
    assert code_digest(one).startswith("live:sha256:") and code_digest(one) != code_digest(two)
    with pytest.raises(BadRequest, match="has no name at the top of a file"):
        make_bundle(one, folder / "state")


TEXT = HEAD + "import helping\n\n@declare\ndef x(ctx):\n    return helping.N\n"


def test_code_that_was_edited_after_it_was_imported_is_told_by_what_runs(folder, monkeypatch):
    module = imported(folder, runs=TEXT, helping="N = 1\n")
    clean = code_digest(module.x)
    assert clean.startswith("sha256:")
    monkeypatch.setattr("trellis.deploy.PROCESS_STARTED", (folder / "helping.py").stat().st_ctime - 1)
    ran = code_digest(module.x)
    assert ran.startswith("live:sha256:")
    (folder / "helping.py").write_text("N = 2 \n")
    assert code_digest(module.x) == ran, "the old one runs still"
    importlib.reload(module.helping)
    assert code_digest(module.x) not in (ran, clean)


def test_an_edited_file_is_not_deployed_with_what_it_declared_before(folder):
    module = imported(folder, runs=TEXT, helping="N = 1\n")
    # replace the file by another one with an older modification time
    other = folder / "other"
    other.write_text(TEXT.replace("helping.N", "-helping.N"))
    os.utime(other, (1.0, 1.0))
    other.rename(folder / "runs.py")
    assert code_digest(module.x).startswith("live:sha256:")
    with pytest.raises(BadRequest, match=r"runs\.py was edited after it was imported") as refused:
        make_bundle(module.x, folder / "state")
    assert "importlib.reload" in refused.value.hint
    importlib.invalidate_caches()
    make_bundle(importlib.reload(module).x, folder / "state")


SETS = (
    HEAD
    + """
import helping

N, EMPTY = 1, {}
SYMBOLS = ["A", "B"]
CACHE = {}

def helper():
    return N

@declare
def x(ctx):
    CACHE[ctx] = 1
    return helper(), helping.N, SYMBOLS
"""
)


def test_what_is_set_from_outside_is_no_code_of_the_file(folder):
    module = imported(folder, sets=SETS, helping="N: int = 1\nM = N * 2\n")
    clean = code_digest(module.x)
    module.x("ctx")
    assert clean.startswith("sha256:") and code_digest(module.x) == clean
    told = {clean}
    for owner, name, value in [
        (module, "SYMBOLS", ["A", "C"]),
        (module, "helper", lambda: 2),
        (module.helping, "N", 2),
        (module.helping, "N", 1.0),
    ]:
        before = vars(owner)[name]
        setattr(owner, name, value)
        told.add(code_digest(module.x))
        setattr(owner, name, before)
    assert len(told) == 5 and code_digest(module.x) == clean


def test_the_digest_of_a_file_does_not_go_by_what_is_loaded(folder):
    module = imported(
        folder, lazy=HEAD + "@declare\ndef x(ctx):\n    import later\n    return later.N\n", later="N = 1\n"
    )
    before = code_digest(module.x)
    importlib.import_module("later")
    importlib.import_module("sqlite3")
    assert code_digest(module.x) == before
    assert "later.py" in bundle_of(folder / "lazy.py")[0]


def test_a_library_of_ones_own_elsewhere_is_in_the_digest_and_not_in_the_bundle(folder, monkeypatch):
    library, link = folder / "lib", folder / "link"
    library.mkdir()
    monkeypatch.syspath_prepend(str(library))
    (library / "own_library.py").write_text("N = 1\n")
    strategies = folder / "strategies"
    strategies.mkdir()
    link.symlink_to(strategies)
    monkeypatch.syspath_prepend(str(link))
    text = HEAD + "import own_library, beside_it\n\n@declare\ndef x(ctx):\n    return own_library.N\n"
    module = imported(strategies, uses_a_library=text, beside_it="")
    bundle, _, digest = make_bundle(module.x, folder / "state")
    assert sorted(p.name for p in bundle.iterdir()) == ["beside_it.py", "packages.lock", "uses_a_library.py"]
    (library / "own_library.py").write_text("N = 2\n")
    assert make_bundle(module.x, folder / "state")[2] != digest
