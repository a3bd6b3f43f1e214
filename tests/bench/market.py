"""The reads of the benches, and generated prices for them, the same for the same seed.

`equities.daily` holds ten years of 500 symbols, `equities.minute` two years of a few; both with open,
high, low, close and volume. Prices are random walks in cents, so that they compress as prices do.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEED = 7
DAILY, MINUTE = "equities.daily", "equities.minute"
OHLCV = ["open", "high", "low", "close", "volume"]
SESSIONS_A_YEAR = 252
DAILY_YEARS, MINUTE_YEARS = 10, 2
DAILY_SYMBOLS = [f"D{n:03}" for n in range(500)]
MINUTES_A_SESSION = 390
OPENING = np.timedelta64(14 * 60 + 30, "m")
LAST_SESSION = date(2018, 2, 7)
NS = "datetime64[ns]"


@dataclass(frozen=True)
class Question:
    """A read of a dataset. Times are nanoseconds in UTC; no symbols means all."""

    name: str
    dataset: str
    fields: list[str]
    symbols: list[str]
    start: int
    end: int

    def ticket(self) -> str:
        """The read as a Flight ticket of the grid."""
        fields = asdict(self)
        del fields["name"]
        if not self.symbols:
            del fields["symbols"]
        return json.dumps(fields)


def sessions(years: int) -> np.ndarray:
    """The last weekdays, as many as `years` years have trading days."""
    count = years * SESSIONS_A_YEAR
    days = (LAST_SESSION - timedelta(n) for n in range(2 * count))
    return np.array([day for day in days if day.weekday() < 5][:count][::-1], dtype="datetime64[D]")


def times(dataset: str) -> np.ndarray:
    """Event times of each symbol of a dataset, nanoseconds."""
    if dataset == DAILY:
        return sessions(DAILY_YEARS).astype(NS).astype(np.int64)
    minutes = OPENING + np.arange(MINUTES_A_SESSION) * np.timedelta64(1, "m")
    return (sessions(MINUTE_YEARS).astype(NS)[:, None] + minutes).ravel().astype(np.int64)


def minute_symbols(count: int) -> list[str]:
    return [f"M{n:03}" for n in range(count)]


def write(path: Path, dataset: str, symbols: list[str]) -> None:
    """One Parquet file of a dataset, sorted by symbol and time."""
    chance = np.random.default_rng(SEED)
    at = times(dataset)
    shape = (len(symbols), len(at))
    close = chance.uniform(20, 400, (len(symbols), 1)) * np.exp(
        np.cumsum(chance.normal(0, 0.001, shape), axis=1)
    )
    opened = np.concatenate([close[:, :1], close[:, :-1]], axis=1)
    spread = np.abs(chance.normal(0, 0.0005, (2, *shape)))
    prices = {
        "open": opened,
        "high": np.maximum(opened, close) * (1 + spread[0]),
        "low": np.minimum(opened, close) * (1 - spread[1]),
        "close": close,
    }
    table = pa.table(
        {
            "symbol": pa.array(np.repeat(symbols, len(at)).tolist()),
            "ts": pa.array(np.tile(at, len(symbols)), pa.timestamp("ns", "UTC")),
            **{name: price.round(2).ravel() for name, price in prices.items()},
            "volume": chance.integers(100, 1_000_000, shape).ravel(),
        }
    )
    pq.write_table(table, path, compression="zstd")


def _last_year(name: str, dataset: str, fields: list[str], symbols: list[str], years: int = 1) -> Question:
    day = sessions(years).astype(NS).astype(np.int64)
    end = day[-1] + np.timedelta64(1, "D").astype("timedelta64[ns]").astype(np.int64)
    return Question(name, dataset, fields, symbols, int(day[0]), int(end))


# The name of each read in the tables, and its number of rows.
QUESTIONS = {
    "2,520 rows": _last_year("2,520 rows", DAILY, ["close"], ["D007"], DAILY_YEARS),
    "98,280 x 6": _last_year("98,280 x 6", MINUTE, OHLCV, ["M000"]),
    "500 symbols": _last_year("500 symbols", DAILY, ["close"], []),
}
ROWS = {
    "2,520 rows": DAILY_YEARS * SESSIONS_A_YEAR,
    "98,280 x 6": SESSIONS_A_YEAR * MINUTES_A_SESSION,
    "500 symbols": len(DAILY_SYMBOLS) * SESSIONS_A_YEAR,
}
# The reads whose time depends on their bytes.
LARGE = {"98,280 x 6", "500 symbols"}
