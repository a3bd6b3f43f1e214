"""`make demo`: runs a whole grid on this machine, from an empty folder to published results.

    python -m trellis._demo [--data FOLDER]

It uses real processes: `trellis up` starts head nodes and shards, files are imported, three strategies are deployed as
units, and their results are read back. Without FOLDER the prices are generated. FOLDER has real prices:
`sp500_5yr.csv.gz` and `wiki/WIKI-{AAPL,AMZN,FB,GOOG}.csv.gz`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import trellis
from trellis._grids import local
from trellis._values import format_table
from trellis.cli import log_tail, stats_table
from trellis.deploy import deploy_strategies, load_strategies
from trellis.errors import BadRequest, TrellisError, Unavailable
from trellis.importing import import_files

HEADS, SHARDS = 2, 3
# the last session of the real AMZN prices; the generated prices end later
SESSION = "2016-08-10"
STATE = pathlib.Path(local.STATE, "demo")
EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
# starting and running take seconds; on a busy machine perhaps a minute
START_WAIT_S = 120.0
RESULT_WAIT_S = 120.0
STOP_WAIT_S = 40.0
TRELLIS = [sys.executable, "-m", "trellis.cli"]
# symbols whose long history is in a file for each
WIKI = ["AAPL", "AMZN", "FB", "GOOG"]
PRICES = "open,high,low,close,volume"


class Steps:
    """Prints each step and the time that it took. On a terminal it also shows the progress of the present step."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0
        self.alive = sys.stderr.isatty()

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[Callable[[str], None]]:
        self.number += 1
        head = f"[{self.number}/{self.total}] {what}"
        started = time.monotonic()
        done = threading.Event()
        note = ""

        def show(text: str) -> None:
            nonlocal note
            note = text

        def animate() -> None:
            while not done.wait(0.1):
                line = f"\r\x1b[K{head} … {time.monotonic() - started:.0f} s  {note}"
                sys.stderr.write(line[: shutil.get_terminal_size().columns + 4])
                sys.stderr.flush()

        ticker = threading.Thread(target=animate, daemon=True)
        if self.alive:
            ticker.start()
        try:
            yield show
        finally:
            done.set()
            if self.alive:
                ticker.join()
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
        print(f"{head}: {time.monotonic() - started:.1f} s", flush=True)


@contextlib.contextmanager
def grid_of_processes(show: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Runs `trellis up` as a child process, and stops it at the end."""
    if local.holder(STATE) is None and STATE.exists():
        shutil.rmtree(STATE)
    STATE.mkdir(parents=True, exist_ok=True)
    log = STATE / "up.log"
    with open(log, "wb") as stderr:
        up = subprocess.Popen(
            [*TRELLIS, "up", "--heads", str(HEADS), "--shards", str(SHARDS), "--state", str(STATE), "--json"],
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    try:
        yield _first_line(up, log, show)
    finally:
        up.send_signal(signal.SIGTERM)
        try:
            status = up.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            up.kill()
            status = up.wait()
    if status != 0:
        raise Unavailable(f"the grid ended with exit status {status}\n{log_tail(log)}", hint=f"its logs are in {STATE}")


def _first_line(up: subprocess.Popen[bytes], log: pathlib.Path, show: Callable[[str], None]) -> dict[str, Any]:
    assert up.stdout is not None
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.append(up.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    reader.join(START_WAIT_S)
    if not lines or not lines[0]:
        raise Unavailable(f"the grid did not start\n{log_tail(log)}", hint=f"all logs are in {STATE}/logs")
    info: dict[str, Any] = json.loads(lines[0])
    show(info["url"])
    return info


def bring_in_generated(grid: trellis.Grid, show: Callable[[str], None]) -> list[dict[str, Any]]:
    """Imports generated prices: twenty symbols over twelve years. Four have a file each, the others share one."""
    from trellis import _market

    folder = STATE / "generated"
    show("generating")
    _market.write(folder)
    fields = f"{PRICES},split"
    done = [
        import_files(
            grid,
            "equities.daily",
            [folder / "market.csv"],
            symbol_column="Name",
            ts_column="Date",
            fields=fields,
            show=show,
        )
    ]
    for symbol in _market.SINGLE:
        done.append(
            import_files(
                grid,
                "equities.daily",
                [folder / f"{symbol}.csv"],
                symbol=symbol,
                ts_column="Date",
                fields=fields,
                show=show,
            )
        )
    return done


def bring_in_real(grid: trellis.Grid, data: pathlib.Path, show: Callable[[str], None]) -> list[dict[str, Any]]:
    """Imports real prices: the S&P 500 file as `equities.sp500`, and all files together as `equities.daily`.

    Two vendors have AAPL, AMZN, FB and GOOG, over different years. In one dataset the second import would count as a
    correction of the first. So `equities.daily` takes these four symbols from the files with the longer history, and
    all other symbols from the S&P 500 file.
    """
    sp500 = data / "sp500_5yr.csv.gz"
    wiki = {symbol: data / "wiki" / f"WIKI-{symbol}.csv.gz" for symbol in WIKI}
    for path in [sp500, *wiki.values()]:
        if not path.is_file():
            raise BadRequest(
                f"{data} has no {path.relative_to(data)}",
                hint="DATA is a folder with sp500_5yr.csv.gz and wiki/WIKI-{AAPL,AMZN,FB,GOOG}.csv.gz",
            )
    done = [
        import_files(grid, "equities.sp500", [sp500], symbol_column="Name", ts_column="date", show=show),
    ]
    for symbol, path in wiki.items():
        done.append(
            import_files(
                grid,
                "equities.daily",
                [path],
                symbol=symbol,
                ts_column="Date",
                fields=f"{PRICES},split=Split Ratio",
                show=show,
            )
        )
    rest = STATE / "sp500_rest.csv"
    with gzip.open(sp500, "rt", newline="") as source, open(rest, "w", newline="") as target:
        rows = csv.reader(source)
        writer = csv.writer(target, lineterminator="\n")
        header = next(rows)
        writer.writerow(header)
        name = header.index("Name")
        writer.writerows(row for row in rows if row[name] not in WIKI)
    done.append(
        import_files(
            grid,
            "equities.daily",
            [rest],
            symbol_column="Name",
            ts_column="date",
            fields=PRICES,
            show=show,
        )
    )
    return done


def strategy_of(file: str) -> trellis.Strategy:
    """The one strategy of an example."""
    return load_strategies(str(EXAMPLES / file))[0]


def wait_published(grid: trellis.Grid, strategies: list[trellis.Strategy], show: Callable[[str], None]) -> None:
    """Waits until each strategy has published the session.

    Raises:
        Unavailable: a unit failed or took too long; the message has the end of its log.
    """
    waiting = {s.name: s for s in strategies}
    deadline = time.monotonic() + RESULT_WAIT_S
    while waiting:
        show(f"waiting for {', '.join(waiting)}")
        known = {d["dataset"] for d in grid.describe()}
        for name, strategy in list(waiting.items()):
            dataset = strategy.output.dataset
            if dataset in known and SESSION in grid.sessions(dataset, SESSION):
                del waiting[name]
        failed = [p for p in local.read_json(STATE / "processes.json") or [] if p["state"] == "failed"]
        for process in failed:
            tail = log_tail(pathlib.Path(process["log"]))
            raise Unavailable(f"unit {process['name']} {process['note']}\n{tail}", hint=f"its log is {process['log']}")
        if waiting and time.monotonic() > deadline:
            logs = "\n".join(f"{n}:\n{log_tail(STATE / 'logs' / f'qcu-{n}.log')}" for n in waiting)
            raise Unavailable(f"{', '.join(waiting)} published nothing within {RESULT_WAIT_S:.0f} s\n{logs}")
        time.sleep(0.1)


def run_beside(strategy: trellis.Strategy, grid: trellis.Grid) -> Callable[[], trellis.Frame]:
    """Runs a strategy in a thread of this process. Returns a function that waits for the result."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(strategy.run(session=SESSION, grid=grid))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()

    def result() -> trellis.Frame:
        thread.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    return result


def total(heads: list[dict[str, Any]], dataset: str, counter: str) -> int:
    """A counter of one dataset over all heads."""
    return sum(d[counter] for h in heads for d in h["datasets"] if d["dataset"] == dataset)


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trellis._demo", description="Run the whole grid once.")
    parser.add_argument("--data", type=pathlib.Path, metavar="FOLDER", help="real prices; default: generated ones")
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        demo(options.data)
    except TrellisError as error:
        print(f"\ndemo failed: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(f"\ndone in {time.monotonic() - started:.1f} s; everything is stopped")
    return 0


def demo(data: pathlib.Path | None) -> None:
    """Runs all steps, one after the other."""
    if data is not None and not data.is_dir():
        raise BadRequest(f"there is no folder {data}", hint="make demo DATA=path/to/daily")
    steps = Steps(7)
    mom, combo = strategy_of("momentum.py"), strategy_of("combo.py")
    ten_years, five_years = strategy_of("amzn_long.py"), strategy_of("amzn_short.py")
    with contextlib.ExitStack() as stack:
        with steps.step(f"starting {HEADS} head nodes and {SHARDS} shards") as show:
            info = stack.enter_context(grid_of_processes(show))
            grid = stack.enter_context(trellis.connect(info["url"], unit="demo"))
        with steps.step("importing prices") as show:
            imports = bring_in_generated(grid, show) if data is None else bring_in_real(grid, data, show)
        before = grid.stats()
        with steps.step("AMZN: a deployed unit reads ten years while this process reads five") as show:
            deploy_strategies([ten_years], STATE, session=SESSION)
            volatility = run_beside(five_years, grid)
            wait_published(grid, [ten_years], show)
            short = volatility()
        after = grid.stats()
        with steps.step("deploying momentum, and the portfolio that reads its signal") as show:
            deploy_strategies([mom, combo], STATE, session=SESSION)
            wait_published(grid, [mom, combo], show)
        with steps.step("reading the published results back"):
            results = [grid.read(s.output.dataset, start=SESSION) for s in (mom, combo, ten_years)]
            ledger = grid.read("trellis.runs") if "trellis.runs" in grid.datasets() else None
            heads = grid.stats()
        report(imports, results, short, ledger, before, after, heads)
        how_to_connect(info)
        with steps.step("reading once more, with the command line in a new process"):
            check_with_cli(info, results[1])
        with steps.step("stopping everything"):
            stack.close()


def report(
    imports: list[dict[str, Any]],
    results: list[trellis.Frame],
    short: trellis.Frame,
    ledger: trellis.Frame | None,
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    heads: list[dict[str, Any]],
) -> None:
    """Prints the imports, the results and the counters of the grid."""
    print("\n--- imported\n")
    header = ["dataset", "rows", "symbols", "first", "last", "version"]
    print(format_table(header, [[str(i[k]) for k in header] for i in imports]))
    print(f"\n--- published for session {SESSION}")
    for frame in results:
        assert frame.receipt is not None
        print(f"\n{frame.receipt.dataset}\n{frame}")
    print(f"\namzn_vol, run in this process, not published\n{short}")
    if ledger is not None:
        print(f"\nthe run ledger, trellis.runs: {len(ledger)} runs")
    print("\n--- the two AMZN readers upstream\n")
    counters = ["rows_asked", "rows_fetched", "rows_union", "chunks_fetched", "chunks_joined", "chunks_hit"]
    now, then = after, before
    delta = {c: total(now, "equities.daily", c) - total(then, "equities.daily", c) for c in counters}
    print(
        f"together they asked for {delta['rows_asked']:,} rows, of which {delta['rows_union']:,} are different.\n"
        f"{delta['rows_fetched']:,} rows were fetched, in {delta['chunks_fetched']} chunks, each once. The second\n"
        f"reader joined {delta['chunks_joined']} running fetches and found {delta['chunks_hit']} chunks in memory"
    )
    print("\n--- the grid\n")
    print(stats_table(heads))


def how_to_connect(info: dict[str, Any]) -> None:
    """Prints how to connect from a notebook."""
    print(
        f"""
--- from a notebook (while a grid runs: `trellis up --heads 2 --shards 3`)

    import trellis
    g = trellis.connect()                       # here it was "{info["url"]}"
    px = g.read("equities.daily", ["close"], symbols="AMZN", start="2006-08-10", end="2016-08-10")
    px.pandas(), px.polars(), px.arrow(), px.wide("close"), px.receipt
"""
    )


def check_with_cli(info: dict[str, Any], expected: trellis.Frame) -> None:
    """Checks that `trellis read` in a new process gives the same rows."""
    assert expected.receipt is not None
    read = subprocess.run(
        [*TRELLIS, "read", expected.receipt.dataset, "--format", "csv"],
        env={**os.environ, "TRELLIS_URL": info["url"]},
        capture_output=True,
    )
    if read.returncode != 0:
        raise Unavailable(f"trellis read failed: {read.stderr.decode(errors='replace')}")
    if read.stdout != expected.write("csv"):
        raise Unavailable("trellis read gave other rows than this process read", hint="this is a bug")


if __name__ == "__main__":
    sys.exit(main())
