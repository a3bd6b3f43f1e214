"""The targets of the same reads: the grid with two clients, and the systems that one would use in its place.

A target is made before its process forks into clients, so it may import its library but open nothing.
`connect` opens connections in each client, after the first client has filled the store with `load`. `ask`
returns the number of rows that it got; the rows are then in memory, in the target's own kind of table. Each
peer is asked in the quickest way that was found. It need not sort rows that its storage has in order.

`world` has the places: `grid` and `head` are the addresses of the servers, `lake` has each dataset's files in
the grid's lake, `kept` is a folder for all tables of a run, `symbols` a folder with copies of single symbols,
`answers` a folder with the exact answers.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(ns: int) -> datetime:
    return EPOCH + timedelta(microseconds=ns // 1000)


class Target:
    #: the name in tables
    title = ""
    #: distributions whose versions a figure names
    packages: tuple[str, ...] = ()
    #: modules that it imports
    modules: tuple[str, ...] = ()

    def __init__(self, world: dict[str, Any]) -> None:
        self.world = world
        self.idle: list[Any] = []
        for name in self.modules:
            setattr(self, name.rpartition(".")[2], importlib.import_module(name))

    def load(self) -> None:
        """Fills the store. One client does it, before any connects."""

    def connect(self) -> None:
        """Opens connections."""

    def columns(self, question: dict[str, Any]) -> list[str]:
        """The columns of an answer; the symbol only if the read has several."""
        return [*([] if question["symbols"] else ["symbol"]), "ts", *question["fields"]]

    @contextlib.contextmanager
    def borrowed(self, make: Callable[[], Any]) -> Iterator[Any]:
        """A connection that no other thread uses meanwhile. A new one is made if all are in use."""
        try:
            connection = self.idle.pop()
        except IndexError:
            connection = make()
        yield connection
        self.idle.append(connection)

    def ask(self, question: dict[str, Any]) -> int:
        raise NotImplementedError


class Wheel(Target):
    title = "trellis, the wheel"
    packages = ("pyarrow",)
    modules = ("trellis", "pyarrow")

    def connect(self) -> None:
        self.grid = self.trellis.connect(self.world["grid"])

    def read(self, question: dict[str, Any], as_of: str | None = None) -> Any:
        return self.grid.read(
            question["dataset"],
            question["fields"],
            symbols=question["symbols"] or "*",
            start=question["start"],
            end=question["end"],
            as_of=as_of,
        )

    def ask(self, question: dict[str, Any]) -> int:
        return self.read(question).arrow().num_rows


class WheelAgain(Wheel):
    """Reads as of a fixed time, like those of a run; each read repeats the first one."""

    title = "trellis, the wheel, a read that repeats another"

    def connect(self) -> None:
        super().connect()
        self.known: dict[str, str] = {}

    def ask(self, question: dict[str, Any]) -> int:
        if question["name"] not in self.known:
            self.known[question["name"]] = self.read(question).receipt.known_through
        return self.read(question, self.known[question["name"]]).arrow().num_rows


class _Flight(Target):
    packages = ("pyarrow",)
    modules = ("pyarrow.flight",)
    address = ""

    def connect(self) -> None:
        self.client = self.flight.connect(f"grpc://{self.world[self.address]}")

    def ask(self, question: dict[str, Any]) -> int:
        ticket = self.flight.Ticket(self.ticket(question).encode())
        return self.client.do_get(ticket).read_all().num_rows

    def ticket(self, question: dict[str, Any]) -> str:
        raise NotImplementedError


class StockFlight(_Flight):
    """The grid's head, read by a plain Flight client."""

    title = "trellis, stock pyarrow client"
    address = "head"

    def ticket(self, question: dict[str, Any]) -> str:
        return question["ticket"]


class ArrowFlight(_Flight):
    """Arrow Flight's C++ server with the exact answers."""

    title = "Arrow Flight C++ server"
    address = "flight"

    def ticket(self, question: dict[str, Any]) -> str:
        return question["name"]


class ArrowFlightSeries(_Flight):
    """Arrow Flight's C++ server with all rows of a symbol, which it slices."""

    title = "Arrow Flight C++ server, cutting a symbol's table"
    modules = ("json", "pyarrow.flight")
    address = "flight-series"

    def ticket(self, question: dict[str, Any]) -> str:
        return self.json.dumps(
            {
                "table": f"{question['dataset']}/{question['symbols'][0]}",
                "columns": self.columns(question),
                "start": question["start"],
                "end": question["end"],
            }
        )


class _Redis(Target):
    packages = ("redis", "hiredis", "pyarrow")
    modules = ("redis", "pyarrow")

    def connect(self) -> None:
        host, port = self.world["redis"].split(":")
        self.client = self.redis.Redis(host, int(port))

    def table(self, key: str) -> Any:
        return self.pyarrow.ipc.open_stream(self.client.get(key)).read_all()


class RedisAnswer(_Redis):
    """Redis with the exact answer under one key, as an Arrow stream: the least that a GET can be."""

    title = "Redis GET of the exact answer"

    def load(self) -> None:
        self.connect()
        for path in Path(self.world["answers"]).iterdir():
            self.client.set(f"answer:{path.stem}", path.read_bytes())
        self.client.close()

    def ask(self, question: dict[str, Any]) -> int:
        return self.table(f"answer:{question['name']}").num_rows


class RedisSeries(_Redis):
    """Redis with all rows of a symbol under one key; the client slices them."""

    title = "Redis, a symbol a key"
    modules = ("redis", "pyarrow", "pyarrow.parquet", "numpy")

    def load(self) -> None:
        self.connect()
        for path in Path(self.world["symbols"]).rglob("*.parquet"):
            table = self.parquet.read_table(path).combine_chunks()
            sink = self.pyarrow.BufferOutputStream()
            with self.pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            self.client.set(f"series:{path.parent.name}:{path.stem}", sink.getvalue().to_pybytes())
        self.client.close()

    def ask(self, question: dict[str, Any]) -> int:
        table = self.table(f"series:{question['dataset']}:{question['symbols'][0]}")
        ts = table.column("ts").chunk(0).cast("int64").to_numpy()
        units = 1000 if table.schema.field("ts").type.unit == "us" else 1
        first, last = self.numpy.searchsorted(ts, [question["start"] // units, question["end"] // units])
        return table.select(self.columns(question)).slice(first, last - first).num_rows


class ArcticDb(Target):
    """ArcticDB on LMDB, answering pyarrow tables."""

    title = "ArcticDB (LMDB)"
    packages = ("arcticdb", "pyarrow", "pandas")
    modules = ("arcticdb", "pyarrow.parquet")

    def folder(self) -> Path:
        return Path(self.world["kept"], "arcticdb")

    def open(self, dataset: str) -> Any:
        # 8 GiB of address space, not of disk
        store = self.arcticdb.Arctic(f"lmdb://{self.folder()}?map_size=8GB")
        return store.get_library(dataset, create_if_missing=True)

    def load(self) -> None:
        # each write is synced: it takes a while, and lasts for all tables
        if self.folder().exists():
            return
        for dataset, files in self.world["lake"].items():
            library = self.open(dataset)
            table = self.parquet.read_table(files)
            for symbol, rows in table.to_pandas().groupby("symbol", observed=True):
                rows = rows.set_index(rows["ts"].dt.tz_localize(None).astype("datetime64[ns]").rename("ts"))
                library.write(str(symbol), rows[["open", "high", "low", "close", "volume"]])

    def connect(self) -> None:
        self.libraries = {dataset: self.open(dataset) for dataset in self.world["lake"]}
        self.symbols = {dataset: library.list_symbols() for dataset, library in self.libraries.items()}

    def ask(self, question: dict[str, Any]) -> int:
        library = self.libraries[question["dataset"]]
        # a date range of ArcticDB includes both ends
        how = {
            "date_range": (
                moment(question["start"]).replace(tzinfo=None),
                (moment(question["end"]) - timedelta(microseconds=1)).replace(tzinfo=None),
            ),
            "columns": question["fields"],
        }
        arrow = self.arcticdb.OutputFormat.PYARROW
        if len(question["symbols"]) == 1:
            return library.read(question["symbols"][0], output_format=arrow, **how).data.num_rows
        requests = [self.arcticdb.ReadRequest(s, **how) for s in self.symbols[question["dataset"]]]
        return sum(item.data.num_rows for item in library.read_batch(requests, output_format=arrow))


class _Parquet(Target):
    """Readers of Parquet files: the lake's files with all symbols, or a copy of the one symbol."""

    a_file_a_symbol = False

    def files(self, question: dict[str, Any]) -> list[str]:
        if not self.a_file_a_symbol:
            return self.world["lake"][question["dataset"]]
        (symbol,) = question["symbols"]
        return [f"{self.world['symbols']}/{question['dataset']}/{symbol}.parquet"]

    def filtered(self, question: dict[str, Any]) -> list[str]:
        """The symbol, if the files have others, too."""
        return [] if self.a_file_a_symbol else question["symbols"]


class Polars(_Parquet):
    title = "polars, the lake's Parquet"
    packages = ("polars",)
    modules = ("polars",)

    def ask(self, question: dict[str, Any]) -> int:
        pl = self.polars
        ts = pl.col("ts")
        scan = pl.scan_parquet(self.files(question)).filter(
            (ts >= moment(question["start"])) & (ts < moment(question["end"]))
        )
        for symbol in self.filtered(question):
            scan = scan.filter(pl.col("symbol") == symbol)
        return scan.select(self.columns(question)).collect().height


class PolarsSymbol(Polars):
    title = "polars, a file a symbol"
    a_file_a_symbol = True


class DuckDb(_Parquet):
    title = "DuckDB, the lake's Parquet"
    packages = ("duckdb", "pyarrow")
    modules = ("duckdb", "pyarrow")

    def connect(self) -> None:
        self.connection = self.duckdb.connect()
        self.connection.execute("set timezone = 'UTC'")

    def ask(self, question: dict[str, Any]) -> int:
        sql = (
            f"select {', '.join(self.columns(question))} from read_parquet({self.files(question)!r}) "
            f"where ts >= timestamptz '{moment(question['start'])}' "
            f"and ts < timestamptz '{moment(question['end'])}'"
            + "".join(f" and symbol = '{symbol}'" for symbol in self.filtered(question))
        )
        with self.borrowed(self.connection.cursor) as cursor:
            return cursor.execute(sql).to_arrow_table().num_rows


class DuckDbSymbol(DuckDb):
    title = "DuckDB, a file a symbol"
    a_file_a_symbol = True


class Postgres(Target):
    """PostgreSQL by ADBC, with a unique index over symbol and time."""

    title = "PostgreSQL, ADBC"
    packages = ("adbc-driver-postgresql", "pyarrow")
    modules = ("adbc_driver_postgresql.dbapi", "pyarrow.parquet")

    def open(self) -> Any:
        return self.dbapi.connect(self.world["postgres"], autocommit=True).cursor()

    def relation(self, dataset: str) -> str:
        return dataset.replace(".", "_")

    def load(self) -> None:
        cursor = self.open()
        for dataset, files in self.world["lake"].items():
            name = self.relation(dataset)
            columns = ["symbol", "ts", "open", "high", "low", "close", "volume"]
            cursor.adbc_ingest(name, self.parquet.read_table(files, columns=columns), mode="create")
            cursor.execute(f"create unique index on {name} (symbol, ts)")
            cursor.execute(f"vacuum (analyze) {name}")
        cursor.close()

    def ask(self, question: dict[str, Any]) -> int:
        sql = (
            f"select {', '.join(self.columns(question))} from {self.relation(question['dataset'])} "
            f"where ts >= '{moment(question['start'])}' and ts < '{moment(question['end'])}'"
            + "".join(f" and symbol = '{symbol}'" for symbol in question["symbols"])
            + " order by symbol, ts"
        )
        with self.borrowed(self.open) as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table().num_rows


TARGETS = {
    kind.__name__: kind
    for kind in (
        Wheel,
        WheelAgain,
        StockFlight,
        ArrowFlight,
        ArrowFlightSeries,
        RedisAnswer,
        RedisSeries,
        ArcticDb,
        Polars,
        PolarsSymbol,
        DuckDb,
        DuckDbSymbol,
        Postgres,
    )
}
