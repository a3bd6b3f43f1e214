"""`flight_server.py FOLDER`: Arrow Flight's C++ server with a folder's tables in memory. Prints its address.

A ticket is a file's path in the folder without its suffix: the answer is the whole table. Or it is JSON of
`table` (that path), `columns`, `start` and `end`: the answer is the part of the table with these `ts`. Python
selects the part without copying it; C++ sends the rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.parquet as pq


def read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        # one chunk, so that a slice of it is one batch
        return pq.read_table(path).combine_chunks()
    return pa.ipc.open_stream(path.read_bytes()).read_all()


class Server(flight.FlightServerBase):
    def __init__(self, folder: Path) -> None:
        super().__init__("grpc://127.0.0.1:0")
        files = (path for path in folder.rglob("*") if path.is_file())
        self.tables = {str(path.relative_to(folder).with_suffix("")): read(path) for path in files}
        self.times = {
            name: table.column("ts").cast(pa.timestamp("ns", "UTC")).cast("int64").to_numpy()
            for name, table in self.tables.items()
        }

    def do_get(self, _context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        asked = ticket.ticket.decode()
        if not asked.startswith("{"):
            return flight.RecordBatchStream(self.tables[asked])
        cut = json.loads(asked)
        first, end = self.times[cut["table"]].searchsorted([cut["start"], cut["end"]])
        return flight.RecordBatchStream(
            self.tables[cut["table"]].select(cut["columns"]).slice(first, end - first)
        )


if __name__ == "__main__":
    server = Server(Path(sys.argv[1]))
    print(f"127.0.0.1:{server.port}", flush=True)
    server.serve()
