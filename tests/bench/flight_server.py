"""`flight_server.py FOLDER`: Arrow Flight's C++ server with the tables of a folder in memory; prints its
address.

A ticket is a file's name. Only the choice of the table is Python; rows go out as C++ sends them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight


class Server(flight.FlightServerBase):
    def __init__(self, folder: Path) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.tables = {
            path.stem: pa.ipc.open_stream(path.read_bytes()).read_all() for path in folder.iterdir()
        }

    def do_get(self, _context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        return flight.RecordBatchStream(self.tables[ticket.ticket.decode()])


if __name__ == "__main__":
    server = Server(Path(sys.argv[1]))
    print(f"127.0.0.1:{server.port}", flush=True)
    server.serve()
