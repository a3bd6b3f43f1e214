"""Imports generated prices as two datasets, `equities.daily` and `equities.history`, when the grid answers.

The same files again add nothing, so this may run at every start.
"""

import os
import pathlib
import sys
import tempfile
import time

import trellis
from trellis import _market
from trellis.errors import Unavailable
from trellis.importing import import_files

# the shards and the store start within seconds; on a busy machine perhaps a minute
START_WAIT_S = 180.0
RETRY_S = 1.0


def bring_in(grid: trellis.Grid, folder: pathlib.Path) -> None:
    single = [folder / f"{symbol}.csv" for symbol in _market.SINGLE]
    options = {"ts_column": "Date", "calendar": "XNYS"}
    # compose.yaml splits this dataset by time, at the end of a chunk. Only a new dataset takes a length
    chunk = None if "equities.history" in grid.datasets() else "64d"
    done = [
        import_files(grid, "equities.daily", [folder / "market.csv"], symbol_column="Name", **options),
        import_files(grid, "equities.daily", single, symbol_from_name="{}", **options),
        import_files(grid, "equities.history", single, symbol_from_name="{}", chunk=chunk, **options),
    ]
    for each in done:
        again = ", imported before" if each["duplicate"] else ""
        print(f"{each['dataset']}: {each['rows']:,} rows of {each['symbols']} symbols{again}", flush=True)


def main() -> None:
    deadline = time.monotonic() + START_WAIT_S
    with tempfile.TemporaryDirectory() as folder:
        _market.write(pathlib.Path(folder))
        while True:
            try:
                with trellis.connect() as grid:
                    bring_in(grid, pathlib.Path(folder))
                break
            except Unavailable as error:
                if time.monotonic() > deadline:
                    sys.exit(f"the grid is not ready: {error}")
                print(f"waiting: {error}", flush=True)
                time.sleep(RETRY_S)
    print(f"the grid is ready: export TRELLIS_URL={os.environ['TRELLIS_PUBLISHED_URL']}", flush=True)


main()
