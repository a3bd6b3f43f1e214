"""The command `trellis`.

Exit codes: 0 ok, 1 a bug, 2 wrong usage or configuration, 3 bad input, 4 unavailable, 5 fenced or conflicting.
Results go to stdout; receipts, progress and errors go to stderr. With `--json` both are JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from .. import __version__, _trellis
from .._code import frames_of
from .._grids import local
from .._values import format_table, to_session
from ..errors import BadRequest, DataCorrupt, StrategyError, TrellisError, Unavailable
from ..frame import Frame
from ..grid import connect
from .datasets import add_command, add_commands, pairs, table_of
from .up import Up, detached, end

# the most rows that a table shows; the other formats have all rows
TABLE_ROWS = 40
# longest wait for the list of datasets; the status is printed without them after that. A head waits five seconds for
# its shards.
STATUS_WAIT_S = 6.0

FORMAT_HELP = (
    "default: table. A missing value is empty in csv and null in json. JSON cannot express NaN and the infinities: "
    'they are the texts "NaN", "Infinity" and "-Infinity" there'
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if getattr(args, "traceback", False):
        os.environ["TRELLIS_TRACEBACK"] = "1"
    try:
        args.run(args)
        sys.stdout.flush()
        return 0
    except TrellisError as error:
        _print_error(error, args.json)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the pipe, `head` say, has ended. Python must not flush stdout again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _print_error(TrellisError(str(error)), args.json)
        return 3


def _print_error(error: TrellisError, as_json: bool) -> None:
    if as_json:
        fields = ("code", "message", "hint", "dataset", "symbol", "shard", "retryable")
        told = {name: getattr(error, name) for name in fields if getattr(error, name)}
        told["error"] = type(error).__name__
        if getattr(error, "traceback", ""):
            told["traceback"] = error.traceback  # type: ignore[attr-defined]
        print(json.dumps(told), file=sys.stderr)
        return
    print(f"trellis: {error}", file=sys.stderr)
    if isinstance(error, StrategyError) and error.traceback:
        print(frames_of(error.traceback), file=sys.stderr, end="")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trellis",
        description="A quant compute grid: start one, import data, read it, run and deploy strategies.",
        epilog="TRELLIS_URL names the grid. Without it, commands use the grid of this folder, whose state is in "
        "./.trellis: the one that `trellis up` runs, or one inside the command.",
    )
    parser.add_argument("--version", action="version", version=f"trellis {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = functools.partial(add_command, commands)
    up = command("up", _up, "Run a grid of processes on this machine, until SIGINT or SIGTERM.")
    up.add_argument("--heads", type=int, default=1, metavar="N", help="head nodes (default 1)")
    up.add_argument("--shards", type=int, default=1, metavar="N", help="shards (default 1)")
    up.add_argument("--detach", action="store_true", help="return when the grid is ready; `trellis down` ends it")
    _add_state(up, local.STATE)

    down = command("down", _down, "Stop the grid that `trellis up` runs, and wait until it has ended.")
    _add_state(down, local.STATE)

    status = command("status", _status, "Show the grid's processes, units, datasets and counters.")
    _add_state(status)

    read = command("read", _read, "Read rows, sorted by symbol and time. The receipt goes to stderr.")
    read.add_argument("dataset", metavar="DATASET")
    read.add_argument("--fields", metavar="A,B", help="default: all")
    read.add_argument("--symbols", metavar="X,Y", help='default: all ("*")')
    read.add_argument(
        "--start", metavar="T", help="event time, inclusive: 2016-08-10, 2016-08-10T14:30Z, or nanoseconds"
    )
    read.add_argument("--end", metavar="T", help="event time, exclusive")
    read.add_argument(
        "--as-of", metavar="T", help="knowledge time: the rows as they were known then; default: the latest"
    )
    read.add_argument("--known-at", action="store_true", help="add the column known_at")
    read.add_argument(
        "--allow-stale",
        action="store_true",
        help="accept rows that may not be the latest while a shard cannot be reached",
    )
    read.add_argument("--format", choices=["table", "csv", "json", "parquet", "arrow"], help=FORMAT_HELP)
    read.add_argument("--out", metavar="FILE", help="default: stdout")

    _add_import(command("import", _import, "Import CSV and Parquet files, all of them or none."))

    add_commands(commands.add_parser("dataset", help="List datasets, show and change one."))

    run = command("run", _run, "Run a strategy for one session, in this process, and print its output.")
    run.add_argument("target", metavar="FILE[:unit]")
    run.add_argument("--session", required=True, metavar="DATE")
    _add_traceback(run)
    run.add_argument("--as-of", metavar="T", help="read the inputs as known at that time; default: now")
    run.add_argument(
        "--publish",
        action="store_true",
        help="publish the output, as the deployed unit would; it replaces the earlier output for the session",
    )
    _add_take_over(run)
    run.add_argument("--format", choices=["table", "csv", "json", "parquet", "arrow"], help=FORMAT_HELP)
    run.add_argument("--out", metavar="FILE", help="default: stdout")

    deploy = command(
        "deploy",
        _deploy,
        "Deploy strategies to a grid of `trellis up` on this machine, and print what each unit does first. With --env: "
        "submit them to production. Each bundle goes to S3, and units/NAME.json into the folder of --fleet; a person "
        "commits that file, and `fleet apply` starts the unit.",
    )
    deploy.add_argument("targets", nargs="+", metavar="FILE[:unit]", help="with --env also a folder: all of its files")
    deploy.add_argument("--env", metavar="NAME", help="submit to production: the `environment` of --fleet's grid.json")
    deploy.add_argument(
        "--fleet",
        metavar="DIR",
        help="with --env: the folder that `fleet` applies, in your checkout of it; default TRELLIS_FLEET_DIR",
    )
    deploy.add_argument("--session", metavar="DATE", help="run once, for this session; default: run by the schedule")
    _add_traceback(deploy)
    _add_take_over(deploy)
    wait = deploy.add_mutually_exclusive_group()
    wait.add_argument(
        "--wait", action="store_true", help="with --session: wait for the end of the run, and exit as it did"
    )
    wait.add_argument(
        "--no-wait", action="store_true", help="only write the units' files; works without a running grid"
    )
    _add_state(deploy)

    undeploy = command(
        "undeploy", _undeploy, "Take units out of service: their processes end, their published rows stay."
    )
    undeploy.add_argument("units", nargs="+", metavar="UNIT")
    _add_state(undeploy)

    doctor = command(
        "doctor", _doctor, "Compare every file of a lake with its checksums, and list what is damaged or missing."
    )
    doctor.add_argument(
        "--lake",
        metavar="DIR|URL",
        help=f"folder or s3://bucket/prefix (default ./{local.STATE}/lake); works without a running grid",
    )
    return parser


def _add_state(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument(
        "--state",
        default=default,
        metavar="DIR",
        help=f"folder of the grid's state (default {'' if default else 'that of TRELLIS_URL, else '}./{local.STATE})",
    )


def _add_traceback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traceback", action="store_true", help="show every frame of a strategy's error (as TRELLIS_TRACEBACK=1)"
    )


def _add_take_over(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="publish even if a deployed process of the unit runs (it goes on with later sessions), or the dataset is "
        "another unit's output",
    )


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", metavar="DATASET")
    add("files", nargs="+", metavar="FILE", help=".csv, .tsv or .txt, these as .gz, a .zip of them, .parquet")
    add("--symbol-column", metavar="NAME", help="column with the symbol; default symbol or ticker")
    add("--symbol", metavar="X", help="the symbol of all rows, where no column holds it")
    add(
        "--symbol-from-name",
        metavar="PATTERN",
        help="take the symbol from the file's name, where {} stands: {}, WIKI-{}, *_{}_*",
    )
    add("--wide", metavar="FIELD", help="every column except the time is a symbol, and its cells are this field")
    add(
        "--ts-column",
        metavar="NAME",
        help="column with the event time; default ts, timestamp, date or datetime; Date,Time are two columns",
    )
    add(
        "--ts-unit",
        metavar="UNIT",
        help="unit of times that are numbers: s, ms, us, ns since 1970; excel; ms-of-day, ...",
    )
    add(
        "--ts-format",
        action="append",
        metavar="FORM",
        help="format of times that are text: %%d/%%m/%%Y, '%%Y%%m%%d %%H:%%M:%%S.%%f', iso (default); may be repeated",
    )
    add("--tz", metavar="ZONE", help="zone of times (not of dates) that name none: America/New_York; default UTC")
    add("--date", metavar="DATE", help="the day of times within a day; default: the one in the file's name")
    add("--date-zone", metavar="ZONE", help="zone whose local midnights mean dates; a new dataset keeps it")
    add("--calendar", metavar="NAME", help="exchange calendar of a new dataset: XNYS")
    add("--known-at", metavar="T", help="when the rows became known; default: now")
    add("--known-at-column", metavar="NAME", help="column with each row's knowledge time")
    add("--fields", metavar="F=COL,..", help="fields to import and their columns; default: every column")
    add("--columns", metavar="A,B,..", help="names of the columns, for CSV files without a header; _ leaves one out")
    add("--types", metavar="F=TYPE,..", help="types of fields whose values look like another type")
    add("--required", metavar="F,..", help="fields of a new dataset that may not be missing")
    add("--null", action="append", metavar="TEXT", help="text that means a missing value; may be repeated")
    add("--decimal", metavar="C", help="decimal sign: . (default) or ,")
    add("--thousands", metavar="C", help="sign between thousands: , . _ space or apostrophe; default none")
    add(
        "--notation",
        metavar="KIND,..",
        help="signs to accept at numbers: currency, percent (12%% is 0.12), suffix (1K), parentheses, trailing-minus",
    )
    add("--delimiter", metavar="C", help="sign between cells: a character or tab; default a comma, in .tsv a tab")
    add("--skip-rows", type=int, metavar="N", help="lines of each CSV file above its header")
    add(
        "--member",
        action="append",
        metavar="NAME",
        help="member of a .zip to import; may be repeated",
    )
    add(
        "--repeats",
        choices=["refuse", "spread", "last"],
        help="rows of the same symbol and time: refuse them (default), spread them a ns apart, or keep the last",
    )
    add(
        "--chunk",
        metavar="SPAN",
        help="length of a new dataset's chunks: 64d, 4d, 1h; default: by how dense its rows are",
    )
    add("--quarantine", metavar="FILE", help="import the good rows, and write the bad ones to this file")
    add(
        "--run-id",
        metavar="ID",
        help="identity of the import; without one, importing the latest rows again adds nothing",
    )
    add("--retract", action="store_true", help="the files name symbol and time of rows to retract")
    add("--dry-run", action="store_true", help="only print what the import understands; write nothing")


# --- commands


def _up(args: argparse.Namespace) -> None:
    def say(text: str) -> None:
        print(f"trellis: {text}", file=sys.stderr, flush=True)

    def on_ready(info: dict[str, Any]) -> None:
        if args.json:
            shown = {key: info[key] for key in ("url", "heads", "shards", "state")}
            print(json.dumps(shown), flush=True)
            return
        print(f"grid ready: {len(info['heads'])} heads, {len(info['shards'])} shards, state in {info['state']}")
        print(f"  export TRELLIS_URL={info['url']}", flush=True)

    if args.detach:
        on_ready(detached(pathlib.Path(args.state), args.heads, args.shards))
    else:
        Up(pathlib.Path(args.state), args.heads, args.shards, say).run(on_ready)


def _down(args: argparse.Namespace) -> None:
    ended = end(pathlib.Path(args.state))
    if args.json:
        print(json.dumps({"state": str(pathlib.Path(args.state).resolve()), "ended": ended}))
    else:
        print("the grid has ended" if ended else "no grid of `trellis up` runs here")


def _status(args: argparse.Namespace) -> None:
    from ..deploy import process_list

    url = None if args.state else os.environ.get("TRELLIS_URL")
    if not url:
        state = pathlib.Path(args.state or local.STATE).resolve()
        holder = local.started(state)
        if holder is None:
            raise Unavailable(f"no grid runs in {state}", hint="start one with `trellis up`, or set TRELLIS_URL")
        url = holder["url"]
    with connect(url) as grid:
        heads, folder = grid.stats(), grid._folder_of_up()
        datasets, missing = [], None
        try:
            datasets = grid._described(STATUS_WAIT_S)
        except Unavailable as error:
            # a shard cannot be reached: the status shows the error, which names the shard
            missing = str(error)
    processes = process_list(folder) if folder else []
    if args.json:
        told = {"url": url, "processes": processes, "datasets": None if missing else datasets, "heads": heads}
        print(json.dumps(told | ({"error": missing} if missing else {})))
        return
    print(f"grid {url}\n")
    servers = [p for p in processes if p["role"] != "qcu"]
    if servers:
        header = ["process", "state", "pid", "listen", "restarts", "note"]
        keys = ["name", "state", "pid", "listen", "restarts", "note"]
        _print_table(header, [[_plain(p[k]) for k in keys] for p in servers])
    units = [p for p in processes if p["role"] == "qcu"]
    if units:
        _print_table(["unit", "state", "pid", "restarts", "now", "last run"], [_unit_cells(p) for p in units])
    if missing:
        print(f"the datasets cannot be listed now: {missing}\n")
    else:
        _print_table(*table_of(datasets))
    print(stats_table(heads, _width()))


def _doctor(args: argparse.Namespace) -> None:
    lake = args.lake or os.path.join(local.STATE, "lake")
    if "://" not in lake and not os.path.isdir(lake):
        raise BadRequest(f"there is no folder {lake}", hint="name the lake with --lake")
    (datasets, files, size, without), problems = _trellis.check_lake(lake)
    if args.json:
        keys = ("code", "dataset", "message", "hint")
        told = {"lake": lake, "datasets": datasets, "files": files, "bytes": size, "without_checksums": without}
        print(json.dumps(told | {"problems": [dict(zip(keys, problem, strict=True)) for problem in problems]}))
    else:
        print(f"{lake}: {datasets:,} datasets, {files:,} files, {size:,} bytes of rows")
        if without:
            print(
                f"{without:,} files have no checksums, and were not compared: another tool or an earlier release "
                "wrote them"
            )
        for code, dataset, message, _ in problems:
            print(f"{dataset}: {code}: {message}")
    if problems:
        damaged = [problem for problem in problems if problem[0] == "DATA_CORRUPT"]
        _, dataset, message, hint = (damaged or problems)[0]
        kind, what = (DataCorrupt, "damaged or missing") if damaged else (Unavailable, "not checked")
        raise kind(f"{len(damaged or problems)} files are {what}, first: {message}", hint=hint, dataset=dataset)
    if not args.json:
        print("every byte that has a checksum is as it was written")


def _unit_cells(process: dict[str, Any]) -> list[str]:
    status, run = process["status"] or {}, process["last_run"] or process.get("previous_run")
    last = "-"
    if run:
        result = run["error_line"] or f"{run['rows']:,} rows, version {run['version']}"
        last = f"{run['session']} {run['outcome']} at {run['finished_at']}: {result}"
    state = status.get("state", process["state"])
    # the column "last run" shows the error of a failed run already
    note = status.get("note") or ("-" if run and run["error_line"] == process["note"] else process["note"]) or "-"
    return [process["name"], state, _plain(process["pid"]), str(process["restarts"]), note, last]


def _read(args: argparse.Namespace) -> None:
    form = _format_of(args)
    with connect() as grid:
        frame = grid.read(
            args.dataset,
            _names(args.fields),
            # a list that is empty by mistake must not read every symbol
            symbols="*" if args.symbols is None else _names(args.symbols),
            start=args.start,
            end=args.end,
            as_of=args.as_of,
            known_at=args.known_at,
            allow_stale=args.allow_stale,
        )
    _write(frame, form, args.out)
    assert frame.receipt is not None
    receipt = json.dumps(frame.receipt.to_dict()) if args.json else str(frame.receipt)
    print(receipt, file=sys.stderr)


def _import(args: argparse.Namespace) -> None:
    from ..importing import import_files

    with connect() as grid, progress("importing") as show:
        result = import_files(grid, args.dataset, args.files, show=show, **_import_options(args))
    for note in result["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if args.json:
        print(json.dumps(result))
        return
    print(_keys(result))
    if not args.retract:
        print(_sample(result))
    if result["dry_run"]:
        told = "nothing was written"
    else:
        told = f"version {result['version']}" + (" (these rows were imported before)" if result["duplicate"] else "")
    what = "rows retracted of" if args.retract else "rows of"
    print(
        f"{result['dataset']}: {result['rows']:,} {what} {result['symbols']:,} symbols, "
        f"{result['first']} … {result['last']}, {told}"
    )
    if result["quarantined"]:
        place = "would be" if result["dry_run"] else "are"
        print(f"{result['quarantined']:,} bad rows {place} in {args.quarantine}", file=sys.stderr)


def _import_options(args: argparse.Namespace) -> dict[str, Any]:
    plain = (
        "symbol", "symbol_column", "symbol_from_name", "wide", "ts_column", "ts_unit", "ts_format", "tz", "date",
        "date_zone", "calendar", "known_at", "known_at_column", "fields", "null", "decimal", "thousands", "delimiter",
        "skip_rows", "member", "repeats", "chunk", "quarantine", "run_id", "dry_run", "retract",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in plain if getattr(args, name) is not None}
    for name in ("columns", "required", "notation"):
        if getattr(args, name) is not None:
            options[name] = _names(getattr(args, name))
    if args.types is not None:
        options["types"] = pairs("--types", [args.types])
    return options


def _keys(result: dict[str, Any]) -> str:
    """One line with the columns that time and symbol were read from."""
    symbols = ", ".join(result["symbol_columns"])
    return f"time: column {', '.join(result['ts_columns'])}; symbol: {f'column {symbols}' if symbols else 'by option'}"


def _sample(result: dict[str, Any]) -> str:
    """The fields as the import understood them, with their first values, and the days compared with the calendar."""
    rows = [
        [
            field["field"],
            field["type"],
            "-" if field["column"] is None else field["column"],
            f"{field['missing']:,}",
            ", ".join("-" if value is None else _short(value) for value in field["first"]),
        ]
        for field in result["sample"]
    ]
    text = format_table(["field", "type", "column", "missing", "first values"], rows)
    days = result["calendar"]
    if days is None:
        return text

    def some(named: list[str], count: int) -> str:
        dots = ", …" if count > len(named) else ""
        return f" ({', '.join(named)}{dots})" if named else ""

    gaps = [f"{symbol} {count}" for symbol, count in days["gaps"]]
    return (
        f"{text}\n{days['calendar']}: {days['sessions']:,} sessions, "
        f"{days['sessions_missing']:,} without a row{some(days['missing'], days['sessions_missing'])}; "
        f"{days['symbols_with_gaps']:,} symbols with gaps{some(gaps, days['symbols_with_gaps'])}; "
        f"{days['rows_on_other_days']:,} rows on other days"
        + (f" ({', '.join(days['other_days'])})" if days["other_days"] else "")
    )


# longest text of a value in a table
VALUE_SHOWN = 24


def _short(value: str) -> str:
    return value if len(value) <= VALUE_SHOWN else value[: VALUE_SHOWN - 1] + "…"


def _run(args: argparse.Namespace) -> None:
    from .._code import inside
    from ..deploy import load_strategies

    form = _format_of(args)
    with inside.stdout_to_stderr():
        found = load_strategies(args.target)
        if len(found) > 1:
            names = ", ".join(f"{args.target}:{s.name}" for s in found)
            raise BadRequest(f"{args.target} has several strategies", hint=f"choose one: {names}")
        with connect() as grid:
            frame = found[0].run(
                session=args.session, grid=grid, as_of=args.as_of, publish=args.publish, take_over=args.take_over
            )
    _write(frame, form, args.out)
    if frame.published:
        told = json.dumps(frame.published) if args.json else _published(frame.published)
        print(told, file=sys.stderr)


def _published(ack: dict[str, Any]) -> str:
    again = ", which already had these rows" if ack["duplicate"] else ""
    gone = f"; {ack['retracted']:,} earlier rows of the session are retracted" if ack["retracted"] else ""
    return f"published {ack['rows']:,} rows to {ack['dataset']}, version {ack['version']}{again}{gone}"


def _submit(args: argparse.Namespace) -> None:
    from .._code import inside
    from ..submit import load_targets, read_fleet, submit_strategies, told

    local_only = [n for n in ("session", "wait", "no_wait", "take_over", "state") if getattr(args, n)]
    folder = args.fleet or os.environ.get("TRELLIS_FLEET_DIR")
    if local_only:
        raise BadRequest(f"--{local_only[0].replace('_', '-')} is for a local grid, not for --env", hint="leave it out")
    if not args.env or not folder:
        raise BadRequest(
            "--env and --fleet belong together", hint="trellis deploy FILE --env prod --fleet DIR, or TRELLIS_FLEET_DIR"
        )
    fleet = read_fleet(folder, args.env)
    with inside.stdout_to_stderr():
        strategies = load_targets(args.targets)
    with progress("putting") as show:
        units = submit_strategies(strategies, fleet, show=show)
    print(json.dumps(units) if args.json else "\n".join(told(units, fleet)))


def _deploy(args: argparse.Namespace) -> None:
    if args.env or args.fleet:
        return _submit(args)
    from .._code import inside
    from ..deploy import Until, deploy_strategies, failure, load_strategies

    with inside.stdout_to_stderr():
        strategies = [s for target in args.targets for s in load_strategies(target)]
    session = to_session(args.session) if args.session else None
    until = Until.ENDED if args.wait else Until.WRITTEN if args.no_wait else Until.STARTED
    names = [strategy.name for strategy in strategies]
    with progress("deploying", lines=args.wait) as show, _told_if_interrupted(names, until is Until.ENDED):
        state = _state_of_units(args)
        units = deploy_strategies(strategies, state, session=session, take_over=args.take_over, until=until, show=show)
    failed = [unit for unit in units if unit.get("state") == "failed"]
    if args.json:
        print(json.dumps(units))
    else:
        for unit in units:
            print(f"{unit['unit']}  {unit['digest'][:19]}  {_deployed(unit)}")
        for unit in units:
            if unit["ended_schedule"]:
                note = "ran by its schedule until now; deploy it again without --session to go on with the schedule"
                print(f"{unit['unit']} {note}", file=sys.stderr)
        if until is Until.STARTED and not failed:
            print("`trellis status` shows their progress", file=sys.stderr)
    if failed:
        raise failure(failed[0])


@contextlib.contextmanager
def _told_if_interrupted(units: list[str], waits: bool) -> Iterator[None]:
    """Says that Ctrl-C has ended the wait and not the units."""
    try:
        yield
    except KeyboardInterrupt:
        if waits:
            names = " ".join(units)
            print(
                f"\nno longer waiting; what is deployed goes on: `trellis status` shows it, "
                f"`trellis undeploy {names}` ends it",
                file=sys.stderr,
            )
        raise


def _undeploy(args: argparse.Namespace) -> None:
    from ..deploy import undeploy_units

    with progress("undeploying") as show:
        undeploy_units(args.units, _state_of_units(args), show=show)
    if args.json:
        print(json.dumps({"undeployed": args.units}))
    else:
        print(f"undeployed {', '.join(args.units)}")


def _state_of_units(args: argparse.Namespace) -> str | os.PathLike[str]:
    if args.state or not os.environ.get("TRELLIS_URL"):
        return args.state or local.STATE
    with connect() as grid:
        return grid._state()


def _deployed(unit: dict[str, Any]) -> str:
    run = unit.get("last_run")
    if unit.get("state") == "failed":
        return f"failed: {unit['note']}"
    if unit.get("state") == "finished" and run:
        return (
            f"{run['outcome']}: {run['rows']:,} rows of {run['session']} in {run['dataset']}, version {run['version']}"
        )
    note = (unit.get("status") or {}).get("note")
    return f"deployed: {note}" if note else "deployed"


# --- parts


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def _plain(value: Any) -> str:
    return "-" if value in (None, "") else str(value)


def _width() -> int | None:
    """The width of the terminal; None if stdout is not one: lines are then not cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    print(format_table(header, rows, width=_width()) + "\n")


def _format_of(args: argparse.Namespace) -> str:
    if args.format:
        return args.format
    if args.json:
        return "json"
    suffix = pathlib.Path(args.out or "").suffix.lower().lstrip(".")
    if args.out and suffix not in ("csv", "json", "parquet", "arrow"):
        raise BadRequest(
            f"--out {args.out}: its suffix does not name a format", hint="add --format csv, json, parquet or arrow"
        )
    form = suffix or "table"
    if form in ("parquet", "arrow") and not args.out and sys.stdout.isatty():
        raise BadRequest(f"{form} is binary and not for a terminal", hint="add --out FILE")
    return form


def _write(frame: Frame, form: str, out: str | None) -> None:
    if form == "table":
        text = _table(frame, None if out else _width()) + "\n"
        if out:
            pathlib.Path(out).write_text(text)
        else:
            sys.stdout.write(text)
        return
    if out:
        frame.write(form, out)
        return
    data = frame.write(form)
    assert data is not None
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _table(frame: Frame, width: int | None) -> str:
    half = TABLE_ROWS // 2
    cells = [["-" if c is None else c for c in row] for row in frame._rows.cells(half, half)]
    left_out = len(frame) - len(cells)
    text = format_table(frame.columns, cells, gap_after=half if left_out else None, width=width)
    return text + (f"\n({left_out:,} rows left out of {len(frame):,})" if left_out else "")


def stats_table(heads: list[dict[str, Any]], width: int | None = None) -> str:
    """A table of counters by dataset and head: the rows asked for, and the cost upstream."""
    header = [
        "dataset", "head", "requests", "rows asked", "rows fetched", "minimal union", "hits", "joins", "fetched",
        "calls", "bytes", "ms",
    ]  # fmt: skip
    keys = [
        "requests", "rows_asked", "rows_fetched", "rows_union", "chunks_hit", "chunks_joined", "chunks_fetched",
        "upstream_calls", "bytes_sent",
    ]  # fmt: skip

    def line(dataset: str, head: str, counts: dict[str, Any]) -> list[str]:
        return [dataset, head, *(f"{counts[k]:,}" for k in keys), f"{counts['busy_us'] / 1000:,.1f}"]

    rows = [(d["dataset"], head["head"], d) for head in heads for d in head["datasets"]]
    lines = [line(*row) for row in sorted(rows, key=lambda row: row[:2])]
    lines += [line("(all)", head["head"], head) for head in sorted(heads, key=lambda h: h["head"])]
    return format_table(header, lines, width=width)


@contextlib.contextmanager
def progress(what: str, *, lines: bool = False) -> Iterator[Callable[[str], None]]:
    """Shows the progress of a long step in one line on stderr, if that is a terminal.

    With `lines`, a file or a pipe gets a line for each new note.
    """
    if not sys.stderr.isatty():
        last = ""

        def tell(note: str) -> None:
            nonlocal last
            if lines and note != last:
                print(f"{what}: {note}", file=sys.stderr, flush=True)
                last = note

        yield tell
        return
    started = time.monotonic()

    def show(note: str) -> None:
        line = f"{what}: {note} ({time.monotonic() - started:.0f} s)"
        sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
