"""The commands `trellis dataset ...`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from .grid import connect


def add_commands(dataset: argparse.ArgumentParser) -> None:
    """Adds them to the parser of `trellis dataset`."""
    actions = dataset.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace], None], about: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="JSON instead of text")
        return sub

    release = action(
        "release",
        _release,
        "End a unit's ownership of its output: it can then be imported into and altered, and any unit may publish to "
        "it next. The rows stay.",
    )
    release.add_argument("dataset", metavar="DATASET")
    release.add_argument(
        "--take-over", action="store_true", help="even though a process of the unit runs; that process ends"
    )


def _release(args: argparse.Namespace) -> None:
    with connect() as grid:
        grid.release(args.dataset, take_over=args.take_over)
    print(json.dumps({"dataset": args.dataset}) if args.json else f"{args.dataset}: no unit's output now")
