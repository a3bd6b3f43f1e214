"""A declaration is checked when it is made."""

import functools
import json
import pickle

import numpy as np
import pandas as pd
import pytest

import trellis
from trellis import _trellis
from trellis.deploy import load_strategies, make_bundle
from trellis.errors import BadRequest

PRICES = trellis.series("equities.daily", ["close"], lookback="260 sessions")
SCORE = trellis.output("signals.x", score="float64")


def declare(name="x", function=None, **changes):
    options = {"inputs": {"px": PRICES}, "output": SCORE, **changes}
    return trellis.strategy(name, **options)(function or compute)


def compute(ctx, px): ...


def test_a_strategy_is_still_its_function():
    @trellis.strategy("x", inputs={"px": PRICES}, output=SCORE)
    def compute(ctx, px):
        "Says what it does."
        return ctx, px

    assert compute(1, px=2) == (1, 2)
    assert compute.__doc__ == "Says what it does." and compute.__name__ == "compute"
    assert "equities.daily -> signals.x" in repr(compute)


def test_the_manifest_is_what_qcu_reads():
    mom = declare(
        "mom_12_1",
        schedule=trellis.at_close("XNYS", delay="20m"),
        retries=2,
        timeout="5m",
        cpu=2,
        memory="512M",
        output=trellis.output("signals.mom", score="float64", rank="int64!", note="string?"),
    )
    manifest = json.loads(_trellis.check_manifest(json.dumps(mom.manifest("momentum.py", "sha256:00"))))
    assert manifest["schedule"] == {"kind": "at_close", "calendar": "XNYS", "delay": "20m"}
    assert manifest["output"]["fields"] == {"score": "float64?", "rank": "int64", "note": "string?"}
    assert manifest["inputs"][0]["lookback"] == {"sessions": 260} and manifest["inputs"][0]["symbols"] == "*"
    assert manifest["memory"] == 512 << 20 and manifest["cpu"] == 2.0

    combo = declare("combo", schedule=trellis.after(mom), inputs={"px": mom.series(lookback="5 sessions")})
    manifest = json.loads(_trellis.check_manifest(json.dumps(combo.manifest("combo.py", "sha256:00"))))
    assert manifest["schedule"] == {"kind": "after", "units": [{"unit": "mom_12_1", "dataset": "signals.mom"}]}
    assert manifest["inputs"][0]["fields"] == ["score", "rank", "note"]


class Callable:
    def __init__(self, n):
        self.n = n

    def __call__(self, ctx, px):
        return self.n


partial = declare(function=functools.partial(lambda n, ctx, px: n, 3))


def test_anything_that_can_be_called_with_its_inputs_is_a_strategy():
    assert partial(None, px=None) == 3 and partial.manifest()["function"] == "partial"
    assert declare(function=Callable(4))(None, px=None) == 4
    assert declare(function=lambda ctx, px: 5)(None, None) == 5
    with pytest.raises(BadRequest, match="cannot be called with its inputs") as refused:
        declare(function=functools.partial(compute, ctx=1))
    assert "(ctx, px)" in refused.value.hint


def test_a_strategy_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(partial)) is partial
    with pytest.raises(TypeError, match="strategy x cannot be pickled: it has no name at the top of a module"):
        pickle.dumps(declare())


@pytest.mark.parametrize(
    "make", [list, tuple, np.array, pd.Index, pd.Series, lambda names: np.array(names, dtype=object)]
)
def test_fields_and_symbols_are_lists_of_any_library(make):
    declared = trellis.series("a.b", make(["close", "volume"]), symbols=make(["A", "B"]), lookback="1 session")
    assert (declared.fields, declared.symbols) == (("close", "volume"), ("A", "B"))
    assert all(type(name) is str for name in declared.fields + declared.symbols)


@pytest.mark.parametrize(
    ("lookback", "written"),
    [
        ("1 session", {"sessions": 1}),
        ("260 sessions", {"sessions": 260}),
        ("90 days", {"duration": "90d"}),
        ("2 weeks", {"duration": "2w"}),
        ("1.5 hours", {"duration": "1.5h"}),
        ("10d", {"duration": "10d"}),
    ],
)
def test_lookbacks_are_written_as_people_say_them(lookback, written):
    assert trellis.series("a.b", lookback=lookback).lookback == written


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: declare("Mom"),
        lambda: declare("x" * 64),
        lambda: declare(function=lambda ctx: None),
        lambda: declare(function=functools.partial(compute, ctx=1)),
        lambda: declare(inputs={"px": trellis.series("a.b", {"close": 1}, lookback="1 session")}),
        lambda: declare(timeout="soon"),
        lambda: declare(timeout="0s"),
        lambda: declare(memory="many"),
        lambda: declare(retries=1000),
        lambda: declare(cpu=0),
        lambda: declare(output=trellis.output("signals.x", score="decimal")),
        lambda: declare(output=trellis.output("no spaces", score="float64")),
        lambda: declare(output=trellis.output("signals.x")),
        lambda: declare(output={"score": "float64"}),
        lambda: declare(inputs={"px": "equities.daily"}),
        lambda: declare(inputs={"prices": PRICES}),
        lambda: declare(schedule=trellis.at_close("XMARS")),
        lambda: declare(schedule=trellis.at_close("XNYS", delay="later")),
        lambda: trellis.after(),
        lambda: trellis.after("mom"),
        lambda: trellis.series("a.b"),
        lambda: trellis.series("a.b", lookback="1 sessions", start="2020-01-01"),
        lambda: trellis.series("a.b", lookback="some sessions"),
        lambda: declare(inputs={"px": trellis.series("a.b", lookback="0 sessions")}),
        lambda: trellis.series("a.b", symbols=[], lookback="1 sessions"),
        lambda: trellis.series("a.b", symbols=[1], lookback="1 sessions"),
        lambda: trellis.series("a.b", symbols=np.array("A"), lookback="1 sessions"),
        lambda: trellis.series("a.b", symbols=pd.DataFrame({"A": [1.0]}), lookback="1 sessions"),
        lambda: trellis.series("a.b", np.array("close"), lookback="1 sessions"),
        lambda: declare(inputs={"px": trellis.series("a.b", symbols=["*", "A"], lookback="1 sessions")}),
    ],
)
def test_a_mistake_is_told_where_it_is_made(mistake):
    with pytest.raises(BadRequest):
        mistake()


def test_a_file_that_hides_another_module_is_refused(tmp_path):
    source = "import trellis\n"
    for name in ("random", "numpy"):
        (tmp_path / f"{name}.py").write_text(source)
        with pytest.raises(BadRequest, match=f"hide the module {name}"):
            load_strategies(str(tmp_path / f"{name}.py"))


def test_a_bundle_has_what_the_file_imports_and_nothing_else(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "near.py").write_text("from . import far\nFIELD = far.FIELD\n")
    (tmp_path / "parts" / "far.py").write_text("FIELD = 'close'\n")
    (tmp_path / "beside.py").write_text("raise RuntimeError('nobody imports this')\n")
    (tmp_path / "bundled.py").write_text(
        "import trellis\n"
        "from parts.near import FIELD\n"
        "@trellis.strategy('bundled', output=trellis.output('tests.bundled', x='float64'),\n"
        "    inputs=dict(px=trellis.series('a.b', FIELD, lookback='1 session')))\n"
        "def compute(ctx, px): ...\n"
    )
    (strategy,) = load_strategies(str(tmp_path / "bundled.py"))
    folder, module, digest = make_bundle(strategy, tmp_path / "state")
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == ["bundled.py", "packages.lock", "parts/__init__.py", "parts/far.py", "parts/near.py"]
    assert module == "bundled.py" and digest == f"sha256:{folder.name}"
    assert "numpy==" in (folder / "packages.lock").read_text()
    assert make_bundle(strategy, tmp_path / "state") == (folder, module, digest)
