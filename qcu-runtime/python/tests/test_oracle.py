"""Compares the grid with a plain list of rows: thousands of random reads, every answer compared exactly.

The oracle keeps what was ever known, row by row, and answers by looking at all of it. Corrections come in between, so
that `as_of` before, between and after them is asked too. The seed is in the test's name.
"""

import csv
import gzip
import random

import pytest

import trellis
from trellis._values import to_ns
from trellis.errors import UnknownSymbol
from trellis.importing import import_files

DAY = 86_400_000_000_000
QUESTIONS = 1_500


class Oracle:
    def __init__(self):
        self.rows = {}  # symbol -> {ts: [(known_at, values)]}
        self.known = []

    def add(self, known_at, rows):
        self.known.append(known_at)
        for symbol, ts, values in rows:
            self.rows.setdefault(symbol, {}).setdefault(ts, []).append((known_at, values))

    def read(self, symbols, start, end, as_of):
        wanted = sorted(self.rows) if symbols == "*" else sorted(set(symbols))
        answer = []
        for symbol in wanted:
            for ts in sorted(self.rows[symbol]):
                if (start is None or ts >= start) and (end is None or ts < end):
                    versions = [v for v in self.rows[symbol][ts] if as_of is None or v[0] <= as_of]
                    if versions:
                        answer.append((symbol, ts, *max(versions, key=lambda v: v[0])[1]))
        return answer


def rows_of(frame, fields):
    table = frame.arrow()
    columns = [table["symbol"].to_pylist(), table["ts"].cast("int64").to_pylist()]
    return list(zip(*columns, *(table[f].to_pylist() for f in fields), strict=True))


def correct(grid, oracle, tmp_path, rng, number):
    """Imports new values for some existing rows, and some new rows."""
    path = tmp_path / f"correction{number}.csv"
    rows = []
    for symbol in rng.sample(sorted(oracle.rows), min(4, len(oracle.rows))):
        days = sorted(oracle.rows[symbol])
        for ts in rng.sample(days, min(30, len(days))):
            rows.append((symbol, ts, (round(rng.uniform(1, 500), 4), rng.randrange(10**9))))
        rows.append((symbol, days[-1] + DAY, (1.0, 1)))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["symbol", "ts", "close", "volume"])
        writer.writerows([symbol, ts, *values] for symbol, ts, values in rows)
    done = import_files(grid, "t.prices", [path], ts_column="ts", ts_unit="ns")
    oracle.add(to_ns(done["known_at"], "known_at"), rows)


def ask(grid, oracle, rng):
    symbols = "*" if rng.random() < 0.1 else rng.choices(sorted(oracle.rows), k=rng.randrange(1, 5))
    times = sorted(oracle.rows[rng.choice(sorted(oracle.rows))])

    def moment():
        return rng.choice(times) + rng.choice([0, 0, 0, 1, -1, DAY, -DAY, 400 * DAY, -400 * DAY])

    start, end = sorted([moment(), moment()])
    start = None if rng.random() < 0.15 else start
    end = None if rng.random() < 0.15 else end if rng.random() < 0.95 else start
    as_of = None
    if rng.random() < 0.4:
        as_of = rng.choice(oracle.known) + rng.choice([0, 1, -1, 10**6])
    fields = rng.choice([["close"], ["volume"], ["close", "volume"]])
    got = rows_of(grid.read("t.prices", fields, symbols, start, end, as_of), fields)
    kept = [["close", "volume"].index(f) + 2 for f in fields]
    expected = [(*row[:2], *(row[i] for i in kept)) for row in oracle.read(symbols, start, end, as_of)]
    assert got == expected, f"{fields=} {symbols=} {start=} {end=} {as_of=}"


@pytest.mark.parametrize("seed", [1, 2])
def test_random_questions_over_a_made_up_market(seed, empty, tmp_path, market):
    rng, oracle = random.Random(seed), Oracle()
    path = tmp_path / "prices.csv"
    rows = [
        (symbol, to_ns(r["Date"], "Date"), (float(r["Close"]), int(r["Volume"])))
        for symbol in ("AMZN", "TSLA", "LEH", "KO", "JPM")
        for r in market[symbol]
    ]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["symbol", "ts", "close", "volume"])
        writer.writerows([symbol, ts, *values] for symbol, ts, values in rng.sample(rows, len(rows)))
    done = import_files(empty, "t.prices", [path], ts_column="ts", ts_unit="ns")
    oracle.add(to_ns(done["known_at"], "known_at"), rows)
    for number in range(QUESTIONS):
        if number % 300 == 150:
            correct(empty, oracle, tmp_path, rng, number)
        ask(empty, oracle, rng)


def test_random_questions_over_real_prices(empty, tmp_path, shared_data):
    rng, oracle = random.Random(20160810), Oracle()
    for name in ("AMZN", "AAPL", "FB", "GOOG"):
        path = shared_data / "daily" / "wiki" / f"WIKI-{name}.csv.gz"
        with gzip.open(path, "rt", newline="") as file:
            rows = [
                (name, to_ns(r["Date"], "Date"), (float(r["Close"]), int(float(r["Volume"]))))
                for r in csv.DictReader(file)
            ]
        done = import_files(
            empty,
            "t.prices",
            [path],
            symbol=name,
            ts_column="Date",
            fields="close=Close,volume=Volume",
            **({"types": {"volume": "int64"}} if name == "AMZN" else {}),
        )
        oracle.add(to_ns(done["known_at"], "known_at"), rows)
    for number in range(QUESTIONS):
        if number % 300 == 150:
            correct(empty, oracle, tmp_path, rng, number)
        ask(empty, oracle, rng)
    with pytest.raises(UnknownSymbol):
        empty.read("t.prices", symbols="NOSUCH")


def test_descending_files_with_reverse_splits_and_gaps_read_back_exactly(empty, shared_data):
    paths = sorted((shared_data / "daily" / "wiki").glob("WIKI-AIG-*.csv.gz"))
    import_files(empty, "t.aig", paths, symbol="AIG", ts_column="Date", fields="close=Close")
    expected = []
    for path in paths:
        with gzip.open(path, "rt", newline="") as file:
            expected += [("AIG", to_ns(r["Date"], "Date"), float(r["Close"])) for r in csv.DictReader(file)]
    assert rows_of(empty.read("t.aig"), ["close"]) == sorted(expected)
    assert isinstance(empty, trellis.Grid)
