"""Generates a stock market as CSV files, the same files for the same seed.

``python -m trellis._market OUTDIR --seed 7`` writes daily prices of twenty symbols over the twelve years that
end on 2018-02-07. The files have the two usual forms of price files, so that imports are tried with both:

``SYMBOL.csv`` (AAPL, AMZN, GOOGL, JPM)
    one file per symbol, without a symbol column: import each with ``--symbol SYMBOL``. The oldest row is first,
    except in ``JPM.csv``, where the newest is.
``market.csv``
    the other sixteen symbols in one file: import it with ``--symbol-column Name``.

Columns of both:

=========  =================================================================================================
Date       session of the New York exchange, ISO date
Open       first, highest, lowest and last price of the session, in dollars, as traded: **not** adjusted
High
Low
Close
Volume     shares, as traded
Split      new shares per old one, on the first session that trades in new shares; otherwise 1
Name       the symbol (``market.csv`` only)
=========  =================================================================================================

A day's return is ``beta * market + own``, both normally distributed: prices are a geometric random walk. There
are two splits (AMZN 2:1, KO 3:1), one delisting (the rows of LEH end early) and one late listing (the rows of TSLA
begin late). Nothing else is irregular: no gaps, no duplicates, no missing cells. The names are of real companies,
so that examples read naturally; the prices are made up.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

FIRST = date(2006, 2, 8)
LAST = date(2018, 2, 7)
HEADER = ["Date", "Open", "High", "Low", "Close", "Volume", "Split"]

#: Mean and deviation of the market's daily return: about 7 % and 17 % a year.
MARKET_DRIFT, MARKET_VOLATILITY = 0.00027, 0.0107


@dataclass(frozen=True)
class Stock:
    symbol: str
    #: Price of the first session, dollars.
    price: float
    beta: float
    #: Deviation of the stock's own daily return.
    volatility: float
    #: Typical volume, shares.
    volume: int
    #: Mean of the stock's own daily return.
    drift: float = 0.0
    listed: date = FIRST
    delisted: date = LAST
    split: tuple[date, int] | None = None


STOCKS = [
    Stock("AAPL", 68.8, 1.1, 0.015, 24_000_000),
    Stock("AMZN", 38.4, 1.3, 0.018, 7_000_000, split=(date(2012, 6, 4), 2)),
    Stock("BA", 73.1, 1.1, 0.012, 4_500_000),
    Stock("CAT", 70.4, 1.2, 0.012, 6_000_000),
    Stock("CVX", 57.6, 0.9, 0.010, 8_000_000),
    Stock("DIS", 26.6, 1.0, 0.010, 10_000_000),
    Stock("GE", 33.1, 1.1, 0.011, 45_000_000),
    Stock("GOOGL", 185.2, 1.1, 0.013, 4_000_000),
    Stock("HD", 39.9, 1.0, 0.011, 7_500_000),
    Stock("IBM", 80.2, 0.8, 0.009, 5_500_000),
    Stock("INTC", 20.8, 1.1, 0.013, 35_000_000),
    Stock("JNJ", 57.5, 0.5, 0.007, 8_500_000),
    Stock("JPM", 39.6, 1.4, 0.014, 20_000_000),
    Stock("KO", 120.3, 0.6, 0.008, 6_000_000, split=(date(2010, 8, 16), 3)),
    Stock("LEH", 141.0, 1.6, 0.024, 3_000_000, drift=-0.003, delisted=date(2011, 9, 15)),
    Stock("MSFT", 26.9, 1.0, 0.011, 40_000_000),
    Stock("PG", 58.9, 0.5, 0.007, 9_000_000),
    Stock("TSLA", 23.9, 1.4, 0.028, 3_500_000, listed=date(2010, 6, 29)),
    Stock("WMT", 45.4, 0.5, 0.009, 9_500_000),
    Stock("XOM", 61.2, 0.8, 0.009, 14_000_000),
]

#: Symbols with a file for each.
SINGLE = ["AAPL", "AMZN", "GOOGL", "JPM"]
#: The symbol of SINGLE whose file begins with its newest row.
DESCENDING = "JPM"


def _easter(year: int) -> date:
    """Easter Sunday of the Gregorian calendar (the anonymous algorithm of 1876)."""
    a, (b, c) = year % 19, divmod(year, 100)
    d, e = divmod(b, 4)
    g = (8 * b + 13) // 25
    h = (19 * a + b - d - g + 15) % 30
    i, k = divmod(c, 4)
    m = (32 + 2 * e + 2 * i - h - k) % 7
    n = (a + 11 * h + 22 * m) // 451
    month, day = divmod(h + m - 7 * n + 114, 31)
    return date(year, month, day + 1)


def _nth_weekday(year: int, month: int, weekday: int, n: int) -> date:
    """The n-th of a weekday (0 is Monday) in a month; n = -1 is the last."""
    if n > 0:
        first = date(year, month, 1)
        return first + timedelta((weekday - first.weekday()) % 7 + 7 * (n - 1))
    last = (date(year, month, 28) + timedelta(4)).replace(day=1) - timedelta(1)
    return last - timedelta((last.weekday() - weekday) % 7)


def _observed(day: date) -> date:
    """The day off for a fixed holiday: Friday if it falls on a Saturday, Monday if on a Sunday."""
    return day + timedelta({5: -1, 6: 1}.get(day.weekday(), 0))


def holidays(year: int) -> set[date]:
    """Weekdays of a year on which the exchange is closed by rule."""
    new_year = date(year, 1, 1)
    # a New Year on a Saturday gives no day off: the exchange trades on the last day of the year
    new_year = new_year if new_year.weekday() == 5 else _observed(new_year)
    return {
        new_year,
        _nth_weekday(year, 1, 0, 3),  # Martin Luther King
        _nth_weekday(year, 2, 0, 3),  # Washington's birthday
        _easter(year) - timedelta(2),  # Good Friday
        _nth_weekday(year, 5, 0, -1),  # Memorial Day
        _observed(date(year, 7, 4)),
        _nth_weekday(year, 9, 0, 1),  # Labor Day
        _nth_weekday(year, 11, 3, 4),  # Thanksgiving
        _observed(date(year, 12, 25)),
    }


# the mourning for Gerald Ford, and hurricane Sandy
_CLOSED_OUT_OF_TURN = {date(2007, 1, 2), date(2012, 10, 29), date(2012, 10, 30)}


def sessions(first: date = FIRST, last: date = LAST) -> list[date]:
    """Trading days from first to last, both included."""
    closed = _CLOSED_OUT_OF_TURN.union(*(holidays(year) for year in range(first.year, last.year + 1)))
    days = (first + timedelta(n) for n in range((last - first).days + 1))
    return [day for day in days if day.weekday() < 5 and day not in closed]


def _rows(stock: Stock, days: list[date], market: list[float], chance: random.Random) -> Iterator[list[object]]:
    price = stock.price
    split_day, ratio = stock.split or (None, 1)
    shares = 1
    for day, common in zip(days, market, strict=True):
        # drawn for every session, also before the listing: a change of the listing date then changes no price
        own, gap, up, down, busy = (chance.gauss(0.0, 1.0) for _ in range(5))
        if not stock.listed <= day <= stock.delisted:
            continue
        split = 1
        if day == split_day:
            split = shares = ratio
            price /= ratio
        before = price
        price = before * math.exp(stock.beta * common + stock.drift + stock.volatility * own)
        opened = before * math.exp(0.3 * stock.volatility * gap)
        high = max(opened, price) * math.exp(0.4 * stock.volatility * abs(up))
        low = min(opened, price) * math.exp(-0.4 * stock.volatility * abs(down))
        volume = int(stock.volume * shares * math.exp(0.35 * busy + 8.0 * abs(common)))
        yield [
            day.isoformat(),
            *(f"{value:.4f}" for value in (opened, high, low, price)),
            volume,
            split,
        ]


def generate(seed: int = 7) -> dict[str, list[list[object]]]:
    """Every symbol's rows, oldest first, in the order of ``HEADER``."""
    days = sessions()
    factor = random.Random(f"{seed}:market")
    market = [factor.gauss(MARKET_DRIFT, MARKET_VOLATILITY) for _ in days]
    # each stock has its own generator, so that its settings do not change the other stocks
    return {stock.symbol: list(_rows(stock, days, market, random.Random(f"{seed}:{stock.symbol}"))) for stock in STOCKS}


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(header)
        out.writerows(rows)


def write(folder: Path, seed: int = 7) -> int:
    """Writes all files into ``folder``, which is made if missing. Returns the number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    stocks = generate(seed)
    for symbol in SINGLE:
        rows = stocks[symbol]
        _write(folder / f"{symbol}.csv", HEADER, rows[::-1] if symbol == DESCENDING else rows)
    rest = sorted(symbol for symbol in stocks if symbol not in SINGLE)
    _write(
        folder / "market.csv",
        [*HEADER, "Name"],
        [[*row, symbol] for symbol in rest for row in stocks[symbol]],
    )
    return sum(map(len, stocks.values()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trellis._market", description="Write a made-up stock market as CSV."
    )
    parser.add_argument("folder", type=Path, metavar="OUTDIR")
    parser.add_argument("--seed", type=int, default=7, help="same seed, same files (default 7)")
    options = parser.parse_args(arguments)
    rows = write(options.folder, options.seed)
    print(f"{rows} rows of {len(STOCKS)} symbols, {FIRST} to {LAST}, in {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
