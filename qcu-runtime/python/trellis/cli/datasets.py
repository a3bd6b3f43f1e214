"""The commands `trellis dataset ...`: list datasets, show and change one."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

from .._values import format_table
from ..errors import BadRequest
from ..grid import connect


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    """Adds a command, with the option `--json`, to the subparsers `commands`."""
    command = commands.add_parser(name, help=about, description=about)
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="JSON instead of text")
    return command


def add_commands(dataset: argparse.ArgumentParser) -> None:
    """Adds the commands to the parser of `trellis dataset`."""
    actions = dataset.add_subparsers(dest="action", required=True, metavar="ACTION")

    action = functools.partial(add_command, actions)
    action("list", _list, "List all datasets with their rows and fields.")

    show = action("show", _show, "Show a dataset's fields, settings, size and version.")
    show.add_argument("dataset", metavar="DATASET")

    alter = action(
        "alter",
        _alter,
        "Change a dataset's fields or settings, all in one version. Every row stays. Only new fields and settings are "
        "quick: any other change rewrites the dataset's files.",
    )
    alter.add_argument("dataset", metavar="DATASET")
    alter.add_argument(
        "--widen", metavar="F=TYPE", action="append", help="int32 to int64 or float64; int64, float32 to float64"
    )
    alter.add_argument("--add", metavar="F=TYPE", action="append", help="a new field, missing in all present rows")
    alter.add_argument("--rename-field", metavar="OLD=NEW", action="append")
    alter.add_argument("--drop-field", metavar="F", action="append")
    alter.add_argument("--calendar", metavar="NAME", help='exchange calendar of the dates: XNYS; "" for none')
    alter.add_argument(
        "--date-zone", metavar="ZONE", help='zone whose local midnights mean dates: America/New_York; "" for none'
    )

    alter.add_argument(
        "--copies", metavar="N", type=int, help="how many times its heads exist, for many readers; 0: once"
    )
    alter.add_argument("--spread", metavar="N", type=int, help="how many heads serve it in each copy; 0: by its size")

    drop = action("drop", _drop, "End a dataset and free its name. Its rows stay in the lake, in older versions.")
    drop.add_argument("dataset", metavar="DATASET")
    drop.add_argument("--yes", action="store_true", help="do not ask")

    rename = action("rename", _rename, "Give a dataset another name, which must be free. Its rows stay as they are.")
    rename.add_argument("dataset", metavar="OLD")
    rename.add_argument("to", metavar="NEW")

    release = action(
        "release",
        _release,
        "End a unit's ownership of its output. Imports and alterations are then allowed, and any unit may publish to "
        "it next. The rows stay.",
    )
    release.add_argument("dataset", metavar="DATASET")
    release.add_argument(
        "--take-over", action="store_true", help="even though a process of the unit runs; that process ends"
    )


def _list(args: argparse.Namespace) -> None:
    with connect() as grid:
        datasets = grid.describe()
    _print(args, datasets, format_table(*table_of(datasets)))


def _show(args: argparse.Namespace) -> None:
    with connect() as grid:
        dataset = grid.describe(args.dataset)
    settings = [f"\n  {name}: {dataset[name]}" for name in ("calendar", "date_zone") if dataset[name]]
    copies = f" in each of {dataset['copies']} copies" if dataset["copies"] > 1 else ""
    heads = f"\n  heads: {dataset['spread']}{copies}"
    _print(args, dataset, f"{dataset}{''.join(settings)}{heads}")


def _alter(args: argparse.Namespace) -> None:
    change: dict[str, Any] = {
        "widen": pairs("--widen", args.widen),
        "add": pairs("--add", args.add),
        "rename": pairs("--rename-field", args.rename_field),
        "drop": [name for text in args.drop_field or [] for name in text.split(",")],
        "calendar": args.calendar,
        "date_zone": args.date_zone,
        "copies": args.copies,
        "spread": args.spread,
    }
    if not any(value or value in ("", 0) for value in change.values()):
        raise BadRequest("no change was given", hint="the changes are listed by: trellis dataset alter --help")
    with connect() as grid:
        done = grid.alter(args.dataset, **change)
        now = grid.describe(args.dataset)
    told = f"{done['dataset']}: {_fields(now)}, version {done['version']}"
    _print(args, {**done, "fields": now["fields"]}, told)


def _drop(args: argparse.Namespace) -> None:
    with connect() as grid:
        if not args.yes:
            if not sys.stdin.isatty():
                raise BadRequest(
                    f"dropping {args.dataset} needs a confirmation, and stdin is not a terminal", hint="add --yes"
                )
            dataset = grid.describe(args.dataset)
            print(dataset, file=sys.stderr)
            print("to drop it, type its name: ", file=sys.stderr, end="", flush=True)
            if sys.stdin.readline().strip() != args.dataset:
                raise BadRequest("the name does not match: nothing was dropped")
        done = grid.drop(args.dataset)
    told = f"{done['dataset']}: dropped; version {done['version'] - 1} of its table in the lake has its rows"
    _print(args, done, told)


def _rename(args: argparse.Namespace) -> None:
    with connect() as grid:
        done = grid.rename(args.dataset, args.to)
    _print(args, done, f"{args.dataset} is now {done['dataset']}, version {done['version']}")


def _release(args: argparse.Namespace) -> None:
    with connect() as grid:
        grid.release(args.dataset, take_over=args.take_over)
    _print(args, {"dataset": args.dataset}, f"{args.dataset}: no unit owns it now")


def _print(args: argparse.Namespace, result: Any, text: str) -> None:
    print(json.dumps(result) if args.json else text)


def table_of(datasets: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table of datasets."""
    header = ["dataset", "rows", "symbols", "first", "last", "version", "fields"]
    return header, [[*(_cell(d[k]) for k in header[:-1]), _fields(d)] for d in datasets]


def _fields(dataset: dict[str, Any]) -> str:
    return ", ".join(f"{f['name']} {f['type']}" for f in dataset["fields"])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def pairs(option: str, items: list[str] | None) -> dict[str, str]:
    """The `name=value` pairs of an option that may be repeated, or take several pairs with commas between them.

    Raises:
        BadRequest: an item is not name=value, or a name is there twice.
    """
    pairs: dict[str, str] = {}
    for item in (part for text in items or [] for part in text.split(",")):
        name, given, value = item.partition("=")
        if not given or not name.strip() or not value.strip():
            raise BadRequest(f"{option} {item}: write it as name=value")
        if name.strip() in pairs:
            raise BadRequest(f"{option} names {name.strip()} twice")
        pairs[name.strip()] = value.strip()
    return pairs
