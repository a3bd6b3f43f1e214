"""`trellis import`: all or nothing, with file, line, column and reason."""

import datetime
import decimal
import json
import re
import shlex
import zipfile

import numpy
import pandas
import pyarrow
import pytest
from conftest import cli
from pyarrow import parquet

from trellis.cli import commands as command_line
from trellis.errors import BadRequest, BadRows, TrellisError
from trellis.importing import import_files

GOOD = "symbol,ts,close,volume\nA,2020-01-02,1.5,10\nA,2020-01-03,2.5,20\nB,2020-01-02,3.5,30\n"


def test_a_file_is_its_rows_and_twice_is_once(empty, tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(GOOD)
    told = []
    first = import_files(empty, "t.x", [path], show=told.append)
    assert (first["rows"], first["symbols"], first["first"], first["last"]) == (3, 2, "2020-01-02", "2020-01-03")
    again = import_files(empty, "t.x", [path])
    assert again["duplicate"] and again["version"] == first["version"]
    assert len(empty.read("t.x", known_at=True)) == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD + "C,2020-01-02,abc,1\n", r"prices.csv:5:close"),
        (GOOD + ",2020-01-02,1.0,1\n", r"prices.csv:5:symbol"),
        (GOOD + "C,,1.0,1\n", r"prices.csv:5:ts"),
        (GOOD + "C,2020-13-45,1.0,1\n", r"prices.csv:5:ts"),
        (GOOD + "A,2020-01-02,9.0,1\n", r"prices.csv:5"),
        (GOOD + "C,2020-01-02,1.0\n", r"prices.csv:5"),
    ],
)
def test_a_bad_row_refuses_the_import_and_the_dataset_stays_as_it_was(empty, tmp_path, text, told):
    good = tmp_path / "good.csv"
    good.write_text(GOOD)
    import_files(empty, "t.x", [good])
    before = empty.describe("t.x")
    bad = tmp_path / "prices.csv"
    bad.write_text(text.replace("A,2020-01-03,2.5,20", "A,2020-01-03,7.5,20"))
    with pytest.raises(BadRows, match=told) as refused:
        import_files(empty, "t.x", [bad])
    assert "--quarantine" in refused.value.hint
    after = empty.describe("t.x")
    assert (after["version"], after["rows"]) == (before["version"], before["rows"])
    with pytest.raises(BadRows):
        import_files(empty, "t.new", [bad])
    assert "t.new" not in empty.datasets()


def test_a_quarantine_keeps_the_good_rows(empty, tmp_path):
    path, aside = tmp_path / "prices.csv", tmp_path / "bad.csv"
    path.write_text(GOOD + "C,2020-01-02,abc,1\n")
    # the column must have a type: with a value that is not a number it would be text
    result = import_files(empty, "t.x", [path], types={"close": "float64"}, quarantine=str(aside))
    assert result["rows"] == 3 and result["quarantined"] == 1
    assert "abc" in aside.read_text() and len(empty.read("t.x")) == 3


def test_options_that_make_no_sense_are_refused(empty, tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(GOOD)
    for options in (
        {"symbol": "A", "symbol_column": "symbol"},
        {"ts_column": "nope"},
        {"tz": "Mars/Olympus"},
        {"fields": "last=nope"},
        {"chunk": "soon"},
        {"ts_format": "%d/%m"},
        {"calendar": "XMARS"},
        {"run_id": "x", "dry_run": True},
        {"member": "a.csv"},
    ):
        with pytest.raises(BadRequest):
            import_files(empty, "t.x", [path], **options)
    with pytest.raises(BadRequest, match=r"nowhere\.csv"):
        import_files(empty, "t.x", [tmp_path / "nowhere.csv"])
    assert empty.datasets() == []


def test_a_file_of_another_schema_does_not_fit(empty, tmp_path):
    path, other = tmp_path / "prices.csv", tmp_path / "other.csv"
    path.write_text(GOOD)
    import_files(empty, "t.x", [path])
    other.write_text("symbol,ts,close,volume\nA,2020-01-06,1.0,many\n")
    with pytest.raises(BadRows, match=r"volume.*many"):
        import_files(empty, "t.x", [other])


def test_the_command_line_says_the_same(tmp_path):
    path, state = tmp_path / "prices.csv", {"cwd": tmp_path}
    path.write_text(GOOD)
    done = cli("import", "t.x", "prices.csv", "--json", **state)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 3
    path.write_text(GOOD + "C,2020-13-02,1.0,1\n")
    refused = cli("import", "t.x", "prices.csv", **state)
    assert refused.returncode == 3 and "prices.csv:5:ts" in refused.stderr and refused.stdout == ""


def typed(grid, path, options, **more):
    """Imports with options written as in a shell."""
    args = command_line._parser().parse_args(["import", "t.x", str(path), *shlex.split(options)])
    return import_files(grid, args.dataset, args.files, **command_line._import_options(args), **more)


def suggestions(hint):
    """The options in a hint, as a user would copy them."""
    value = r"(?:'[^']*'|[^\s;()']*[^\s;()',:.]|[,.])"
    option = rf"--[a-z-]+(?:=| ){value}"
    return re.findall(rf"{option}(?: {option})*", hint)


HEAD = "date,symbol,x\n"
A = "2020-01-02,A,"
B = "2020-01-03,A,"


@pytest.mark.parametrize(
    ("text", "options", "least"),
    [
        (f'{HEAD}{A}"1,050.5"\n', "", ["--thousands ,"]),
        (f'{HEAD}{A}"1,234,567"\n', "", ["--thousands ,"]),
        (f'{HEAD}{A}"1,234"\n', "", ["--thousands ,", "--decimal ,"]),
        ("Date;Close\n2020-01-02;10,5\n", "--symbol A --delimiter ';'", ["--decimal ,"]),
        ("Date;Close\n2020-01-02;1.010,5\n", "--symbol A --delimiter ';'", ["--decimal , --thousands ."]),
        (f"{HEAD}{A}1'234\n", "", ["--thousands apostrophe"]),
        (f"{HEAD}{A}1 234\n", "", ["--thousands space"]),
        (f"{HEAD}{A}1_234\n", "", ["--thousands _"]),
        (f'{HEAD}{A}"$1,234.5"\n', "", ["--thousands , --notation currency"]),
        (f"{HEAD}{A}10 €\n", "", ["--notation currency"]),
        (f"{HEAD}{A}12%\n", "", ["--notation percent"]),
        (f"{HEAD}{A}1.2K\n{B}3M\n", "", ["--notation suffix"]),
        (f"{HEAD}{A}(12.5)\n{B}$3\n", "", ["--notation currency,parentheses"]),
        (f"{HEAD}{A}12-\n", "", ["--notation trailing-minus"]),
        (f'{HEAD}{A}"1,000.5"\n{B}N/A\n', "", ["--thousands , --null N/A"]),
        (f"{HEAD}{A}1\n{B}null\n", "", ["--null null"]),
        (f"{HEAD}{A}1\n{B}-\n", "", ["--null=-"]),
        ("date,symbol,x,y\n2020-01-02,A,#N/A,1\n2020-01-03,A,N/A,2\n", "",
         ["--null '#N/A' --null N/A", "--types x=string"]),
        (f"{HEAD}{A}007\n{B}1.5\n", "", ["--types x=float64", "--types x=string"]),
        (f"{HEAD}{A}12E5\n", "", ["--types x=float64", "--types x=string"]),
        (f"{HEAD}{A}12.5x\n", "", ["--types x=string"]),
        (f"{HEAD}{A}10 HK$\n{B}11 HK$\n", "", ["--notation currency"]),
        ("date,x\n201608100930,1\n", "--symbol A", ["--ts-format %Y%m%d%H%M"]),
        ("date,x\n2016081009,1\n", "--symbol A", ["--ts-format %Y%m%d%H"]),
        ("date,x\n10-Aug-16,1\n", "--symbol A", ["--ts-format %d-%b-%y"]),
        ("date,x\n01/02/16,1\n", "--symbol A", ["--ts-format %d/%m/%y", "--ts-format %m/%d/%y"]),
        ("date,x\n25/12/16,1\n", "--symbol A --ts-format %d/%m/%Y", ["--ts-format %d/%m/%Y --ts-format %d/%m/%y"]),
        ("date,x\n1470787200.5,1\n", "--symbol A", ["--ts-unit s"]),
        ("date,x\n42592.395833,1\n", "--symbol A", ["--ts-unit excel"]),
        ("date,x\n2016-08,1\n", "--symbol A", ["--ts-format %Y-%m"]),
        ("Date,Time,x\n2016-08-10,0930,1\n", "--symbol A --ts-column Date,Time", ["--ts-format '%Y-%m-%d %H%M'"]),
        ("date x\n2016-08-10 1\n", "--symbol A", ["--delimiter space"]),
        ("date,symbol,x,\n2020-01-02,A,1,77\n", "",
         ["--skip-rows 1 --columns date,symbol,x,column_4", "--skip-rows 1 --columns date,symbol,x,_"]),
        ("Price,Close,High\nTicker,A,A\nDate,,\n2020-01-02,1,2\n", "--symbol A",
         ["--skip-rows 3 --columns Date,Close,High"]),
        ('date,symbol,"Price, USD",P=E,Größe\n2020-01-02,A,1,2,3\n', "",
         ["--fields 'price_usd,p_e,x_gre=Größe'"]),
        (f"{HEAD}{A}01.10\n{B}10.10\n", "", ["--types x=float64", "--types x=string"]),
        ("date;symbol;x;y\n2020-01-02;A;037833E10;10,5\n", "--delimiter ';' --decimal ,",
         ["--types x=float64", "--types x=string"]),
        (f"{HEAD}{A}+491234567\n", "", ["--types x=int64", "--types x=string"]),
        (f"{HEAD}{A}#N/A N/A\n{B}#N/A N/A\n2020-01-06,A,1.5\n", "", ["--null '#N/A N/A'", "--types x=string"]),
        (f"{HEAD}{A}no data\n{B}no data\n2020-01-06,A,1.5\n", "", ["--null 'no data'"]),
        (f"{HEAD}{A}(null)\n{B}—\n2020-01-06,A,15\n", "", ["--null '(null)' --null '—'"]),
        (f"{HEAD}{A}TRUE\n{B}0\n", "", ["--types x=bool"]),
        (f"{HEAD}{A}2016-08-10\n{B}20160811\n", "", ["--types x=timestamp", "--types x=string"]),
        ("date,timestamp,symbol,x\n2020-01-02,2024-05-05 10:00:00,A,1\n", "",
         ["--ts-column date", "--ts-column timestamp"]),
        (f"{HEAD}{A}0x10\n", "", ["--types x=string"]),
        (f"{HEAD}{A}1\n{B}abc\n", "", ["--types x=string"]),
        (f"{HEAD}{A}12345678901234567890.12\n", "", ["--types x=float64", "--types x=string"]),
        (f"{HEAD}{A}9007199254740993\n{B}1.5\n", "", ["--types x=float64"]),
        (f"{HEAD}{A}13/02/2016\n", "", ["--ts-format %d/%m/%Y --ts-format iso", "--types x=string"]),
        (f"{HEAD}{A}2016-01-01\n{B}9999-12-31\n", "", ["--null 9999-12-31"]),
        ("date,x\n01/02/2016,1\n", "--symbol A", ["--ts-format %d/%m/%Y", "--ts-format %m/%d/%Y"]),
        ("date,x\n13 Feb 2016,1\n", "--symbol A", ["--ts-format '%d %b %Y'"]),
        ("date,x\n2016-02-13,1\n01/13/2017,2\n", "--symbol A", ["--ts-format %m/%d/%Y --ts-format iso"]),
        ("date,x\n13.02.2016 09:30,1\n", "--symbol A", ["--ts-format '%d.%m.%Y %H:%M'"]),
        ("date,x\n2016,1\n", "--symbol A", ["--ts-format %Y"]),
        ("date,x\n201608,1\n", "--symbol A", ["--ts-format %Y%m"]),
        ("date,x\n20160810093000,1\n", "--symbol A", ["--ts-format %Y%m%d%H%M%S"]),
        ("date,x\n42592,1\n", "--symbol A", ["--ts-unit excel"]),
        ("date,x\n1470787200,1\n", "--symbol A", ["--ts-unit s"]),
        ("date,x\n1470787200000,1\n", "--symbol A", ["--ts-unit ms"]),
        ("Date,Time,x\n2016-08-10,09:30,1\n", "--symbol A", ["--ts-column Date,Time", "--ts-column Date"]),
        ("date\tx\n2016-08-10\t1\n", "--symbol A", ["--delimiter tab"]),
        ("date;x\n2016-08-10;1\n", "--symbol A", ["--delimiter ';'"]),
        ("date|x\n2016-08-10|1\n", "--symbol A", ["--delimiter '|'"]),
        ("# a\n# b\ndate,x\n2016-08-10,1\n", "--symbol A", ["--skip-rows 2"]),
        ("Report\n\nDate,x\n2016-08-10,1\n", "--symbol A", ["--skip-rows 2"]),
        ("Report\nDate;x\n2016-08-10;1\n", "--symbol A", ["--skip-rows 1 --delimiter ';'"]),
        ("date,x,x\n2016-08-10,1,2\n", "--symbol A", ["--skip-rows 1 --columns date,x,x_2"]),
        ("date,Close,close\n2016-08-10,1,2\n", "--symbol A", ["--fields Close,x_close=close"]),
        ("date,x,52w high\n2016-08-10,1,2\n", "--symbol A", ["--fields 'x,x_52w_high=52w high'"]),
        ("date,x,_\n2016-08-10,1,2\n", "--symbol A", ["--fields x,x_=_"]),
        ("date,x,Größe\n2016-08-10,1,2\n", "--symbol A", ["--fields 'x,x_gre=Größe'"]),
        ("symbol,ts,x,known_at\nA,2016-08-10,1,2016-08-11\n", "",
         ["--known-at-column known_at", "--fields x,x_known_at=known_at"]),
        ("date,x,ts\n2016-08-10,1,5\n", "--symbol A --ts-column date", ["--fields x,x_ts=ts"]),
        ("date,x,symbol\n2016-08-10,1,5\n", "--symbol A", ["--fields x,x_symbol=symbol"]),
        ("date,x,retracted\n2016-08-10,1,5\n", "--symbol A", ["--fields x,x_retracted=retracted"]),
        ("date,x\n01/02/2020,1\n01/14/2020,2\n", "--symbol A", ["--ts-format %m/%d/%Y"]),
        ("date,symbol,x,learned\n2020-01-02,A,1,13/01/2020\n", "--known-at-column learned",
         ["--ts-format %d/%m/%Y --ts-format iso"]),
        ("date,symbol,x\n2020-01-02,A,\n", "", ["--types x=float64"]),
    ],
)  # fmt: skip
def test_every_hint_does_what_it_says_when_it_is_typed(grid, tmp_path, text, options, least):
    path = tmp_path / "p.csv"
    path.write_text(text)
    rows = len(text.splitlines()) - 1
    with pytest.raises(TrellisError) as refused:
        typed(grid, path, f"{options} --dry-run")
    found = [s for s in suggestions(refused.value.hint) if "FILE" not in s and "NAME" not in s and "FIELD" not in s]
    assert set(least) <= set(found), refused.value.hint
    for suggestion in found:
        result = typed(grid, path, f"{options} {suggestion} --dry-run")
        assert 0 < result["rows"] <= rows, suggestion


def test_a_column_without_values_becomes_a_field_with_the_first_file_that_has_some(empty, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("date,symbol,x,y\n2020-01-02,A,1,\n")
    first = typed(empty, path, "")
    assert [field["field"] for field in first["sample"]] == ["x"]
    (note,) = first["notes"]
    assert "has no values yet" in note and suggestions(note) == ["--types y=float64"]
    as_said = import_files(empty, "t.said", [path], types={"y": "float64"})
    assert [field["type"] for field in as_said["sample"]] == ["int64", "float64"]
    path.write_text("date,symbol,x,y\n2020-01-03,A,2,abc\n")
    typed(empty, path, "")
    path.write_text("date,symbol,x,y\n2020-01-06,A,3,\n")
    assert typed(empty, path, "")["notes"] == []
    assert empty.read("t.x").pandas()["y"].fillna("-").tolist() == ["-", "abc", "-"]


def test_a_dry_run_of_a_retraction_refuses_what_the_retraction_would(empty, tmp_path):
    rows = daily(tmp_path, "rows.csv", "2020-01-02,A,1", "2020-01-03,A,2")
    import_files(empty, "t.x", [rows])
    wrong = daily(tmp_path, "wrong.csv", "2020-01-02,A,", "2020-01-03,B,", "2020-01-06,A,")
    for dry_run in (True, False):
        with pytest.raises(BadRows, match="no row of A at 2020-01-06; B at 2020-01-03"):
            import_files(empty, "t.x", [wrong], retract=True, dry_run=dry_run)
    assert import_files(empty, "t.x", [rows], retract=True, dry_run=True)["version"] is None
    assert len(empty.read("t.x")) == 2


def test_whatever_is_imported_can_be_read(empty, tmp_path):
    path = tmp_path / "p.csv"
    ticks = [f"2024-01-02T10:00:00.{i:09},A,{i}\n" for i in range(9)]
    path.write_text("ts,symbol,x\n" + "".join(ticks))
    import_files(empty, "t.ticks", [path])
    far = tmp_path / "far.csv"
    far.write_text("ts,symbol,x\n1899-12-30,A,1\n")
    with pytest.raises(BadRequest, match="1899-12-30 to 2024-01-02"):
        import_files(empty, "t.ticks", [far])
    assert len(empty.read("t.ticks")) == 9
    path.write_text("ts,symbol,x\n1899-12-30,A,1\n2262-01-01,A,2\n" + "".join(ticks))
    assert "the farthest" in typed(empty, path, "")["notes"][0]
    assert len(empty.read("t.x")) == 11
    with pytest.raises(BadRequest, match="a read takes") as refused:
        import_files(empty, "t.new", [path], chunk="1h", dry_run=True)
    assert suggestions(refused.value.hint) == ["--chunk 6h"]
    import_files(empty, "t.new", [path], chunk="6h", dry_run=True)


def test_a_field_that_is_there_says_its_type_to_values_of_another(empty, tmp_path):
    path = daily(tmp_path, "p.csv", "2020-01-02,A,1")
    typed(empty, path, "")
    daily(tmp_path, "p.csv", "2020-01-03,A,abc", "2020-01-06,A,def")
    with pytest.raises(BadRows, match="not a number") as refused:
        typed(empty, path, "")
    assert "close is int64 in the dataset" in refused.value.hint
    assert "--fields close_2=close" in suggestions(refused.value.hint)
    typed(empty, path, "--fields close_2=close")
    assert empty.read("t.x").pandas()["close_2"].fillna("-").tolist() == ["-", "abc", "def"]


def test_the_result_and_what_is_printed_name_the_columns_of_the_keys(grid, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("Day,Name,x\n2020-01-02,A,1\n")
    result = typed(grid, path, "--ts-column day --symbol-column name --dry-run")
    assert (result["ts_columns"], result["symbol_columns"]) == (["Day"], ["Name"])
    assert command_line._keys(result) == "time: column Day; symbol: column Name"
    path.write_text("Date,Time,x\n2020-01-02,09:30,1\n")
    result = typed(grid, path, "--ts-column Date,Time --symbol A --dry-run")
    assert (result["ts_columns"], result["symbol_columns"]) == (["Date,Time"], [])
    assert command_line._keys(result) == "time: column Date,Time; symbol: by option"


def test_decimals_and_columns_of_parquet_that_no_field_holds_say_what_to_do(grid, tmp_path):
    path = tmp_path / "p.parquet"
    keys = {"date": [datetime.date(2016, 8, 10)], "symbol": ["A"]}
    exact = decimal.Decimal("1.123456789012345678")
    parquet.write_table(pyarrow.table({**keys, "x": pyarrow.array([exact], pyarrow.decimal128(38, 18))}), path)
    with pytest.raises(BadRows, match="does not hold it") as refused:
        typed(grid, path, "--dry-run")
    near = typed(grid, path, f"{suggestions(refused.value.hint)[0]} --dry-run")
    assert near["sample"][0]["first"] == ["1.1234567890123457"]
    parquet.write_table(pyarrow.table({**keys, "Close": [1.5], "n": [[1, 2]]}), path)
    with pytest.raises(TrellisError, match="no field can have") as refused:
        typed(grid, path, "--dry-run")
    assert suggestions(refused.value.hint) == ["--fields close"]
    typed(grid, path, "--fields close --dry-run")
    small = pyarrow.array([decimal.Decimal("1.25")], pyarrow.decimal32(5, 2))
    parquet.write_table(pyarrow.table({**keys, "x": small}), path)
    assert typed(grid, path, "--dry-run")["sample"][0]["first"] == ["1.25"]


def test_a_text_beside_a_number_is_text_with_a_note(grid, tmp_path):
    path = tmp_path / "p.csv"
    for cells in (["A", "A", "3"], ["A", "B", "3"], ["ok", "late", "ok", "late", "7"]):
        path.write_text("symbol,date,x\n" + "".join(f"A,2020-01-{i + 1:02},{cell}\n" for i, cell in enumerate(cells)))
        result = typed(grid, path, "--dry-run")
        assert result["sample"][0]["type"] == "string" and "1 of its cells are numbers" in result["notes"][0]


def test_two_currencies_are_kept_as_text_when_somebody_says_so(grid, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(f"{HEAD}{A}$10\n{B}€11\n")
    with pytest.raises(BadRequest, match=r"\$ and in €") as refused:
        typed(grid, path, "--notation currency --dry-run")
    kept = typed(grid, path, f"--notation currency {suggestions(refused.value.hint)[0]} --dry-run")
    assert kept["sample"][0]["first"] == ["$10", "€11"]


def test_an_import_that_fails_between_knowledge_times_says_what_is_in_and_goes_on(empty, tmp_path):
    path = tmp_path / "p.csv"
    text = "date,symbol,x,learned\n2020-01-02,A,1,2020-01-03\n2020-01-02,A,2,2250-01-01\n"
    path.write_text(text)
    with pytest.raises(BadRequest, match=r"future; of 2 knowledge times the first 1 are in \(version \d+\)") as failed:
        typed(empty, path, "--known-at-column learned")
    assert "import the same files again" in failed.value.hint
    assert empty.read("t.x").pandas()["x"].tolist() == [1]
    path.write_text(text.replace("2250", "2021"))
    assert not typed(empty, path, "--known-at-column learned")["duplicate"]
    assert empty.read("t.x").pandas()["x"].tolist() == [2]
    assert empty.read("t.x", as_of="2020-06-01").pandas()["x"].tolist() == [1]


def test_the_unit_of_dates_is_left_out(grid, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("date,x\n20160810,1\n")
    with pytest.raises(BadRows, match="calendar date") as refused:
        typed(grid, path, "--symbol A --ts-unit s --dry-run")
    assert "leave out --ts-unit" in refused.value.hint
    assert typed(grid, path, "--symbol A --dry-run")["first"] == "2016-08-10"


def test_a_dry_run_says_what_was_understood_and_writes_nothing(empty, tmp_path):
    path, bad = tmp_path / "p.csv", tmp_path / "bad.csv"
    path.write_text("date,symbol,Adj Close\n2016-08-08,A,1.5\n2016-08-10,A,\n2016-08-13,A,2\n2016-08-13,A,3\n")
    result = typed(empty, path, f"--calendar XNYS --quarantine {bad} --dry-run")
    assert result["sample"] == [
        {"field": "adj_close", "type": "float64", "column": "Adj Close", "missing": 1, "first": ["1.5", None, "2.0"]}
    ]
    days = result["calendar"]
    assert (days["sessions"], days["missing"], days["gaps"]) == (3, ["2016-08-09"], [("A", 1)])
    assert (days["rows_on_other_days"], days["other_days"]) == (1, ["2016-08-13"])
    assert result["quarantined"] == 1 and result["version"] is None
    assert not bad.exists() and empty.datasets() == []
    text = command_line._sample(result)
    assert "adj_close  float64  Adj Close        1   1.5, -, 2.0" in text
    assert "XNYS: 3 sessions, 1 without a row (2016-08-09); 1 symbols with gaps (A 1); 1 rows on other days" in text
    typed(empty, path, "--calendar XNYS --repeats last")
    assert empty.describe("t.x")["calendar"] == "XNYS"
    assert empty.read("t.x").pandas()["adj_close"].iloc[-1] == 3
    with pytest.raises(BadRequest, match="XNYS"):
        typed(empty, path, "--calendar 24/7")


def test_local_midnights_are_the_sessions_of_plain_dates(empty, tmp_path):
    offset, plain = tmp_path / "US.csv", tmp_path / "US2.csv"
    offset.write_text("Date,Close\n2023-03-09 00:00:00-05:00,10\n2023-03-10 00:00:00-05:00,11\n"
                      "2023-03-13 00:00:00-04:00,12\n")  # fmt: skip
    plain.write_text("Date,Close\n2023-03-09,20\n2023-03-10,21\n2023-03-13,22\n")
    note = typed(empty, offset, "--symbol US --dry-run")["notes"][0]
    typed(empty, offset, f"--symbol US {suggestions(note)[0]}")
    assert empty.describe("t.x")["date_zone"] == "America/New_York"
    typed(empty, plain, "--symbol-from-name '{}'")
    typed(empty, offset, "--symbol US3")
    wide = empty.read("t.x").wide("close").pandas()
    assert wide.shape == (3, 3) and wide.notna().all().all()
    assert [str(day.date()) for day in wide.index] == ["2023-03-09", "2023-03-10", "2023-03-13"]


def test_text_of_parquet_is_not_taken_for_granted(grid, tmp_path):
    path = tmp_path / "p.parquet"
    days = [datetime.date(2016, 8, 10), datetime.date(2016, 8, 11)]
    table = pyarrow.table({"date": days, "symbol": ["A", "A"], "x": ["1,234.5", "5"], "y": ["1.5", "2"]})
    parquet.write_table(table, path)
    with pytest.raises(BadRequest, match="notation") as refused:
        typed(grid, path, "--dry-run")
    assert suggestions(refused.value.hint)[0] == "--thousands ,"
    result = typed(grid, path, "--thousands , --dry-run")
    assert [(f["type"], f["first"]) for f in result["sample"]] == [
        ("float64", ["1234.5", "5.0"]),
        ("string", ["1.5", "2"]),
    ]
    assert "--types y=float64" in " ".join(result["notes"])


def test_an_archive_says_what_it_leaves_out(grid, tmp_path):
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.txt", "read me")
        archive.writestr("./.in/AMZN.csv", "date,x\n2016-08-10,1\n")
    result = typed(grid, path, "--symbol-from-name '{}' --dry-run")
    assert result["rows"] == 1 and "README.txt" in result["notes"][0]


def test_pandas_reads_the_same_numbers(grid, tmp_path):
    path = tmp_path / "p.csv"
    random = numpy.random.default_rng(7)
    days = pandas.date_range("2000-01-01", periods=400)
    prices = pandas.DataFrame(
        {"date": days, "x": random.lognormal(3, 4, 400).round(4), "n": random.integers(0, 1 << 53, 400)}
    )
    prices.loc[random.choice(400, 40, replace=False), "x"] = numpy.nan
    for marks, options in (
        ({}, ""),
        ({"sep": ";", "decimal": ","}, "--delimiter ';' --decimal ,"),
        ({"sep": "\t", "na_rep": "NULL"}, "--delimiter tab --null NULL"),
    ):
        prices.to_csv(path, index=False, **marks)
        result = typed(grid, path, f"--symbol A {options} --dry-run")
        assert [f["missing"] for f in result["sample"]] == [40, 0]
    import_files(grid, "t.pandas", [path], symbol="A", delimiter="tab", null="NULL")
    read = grid.read("t.pandas").pandas()
    assert numpy.array_equal(read["x"], prices["x"], equal_nan=True) and numpy.array_equal(read["n"], prices["n"])


def daily(tmp_path, name, *rows):
    """A file of daily closes."""
    path = tmp_path / name
    path.write_text("\n".join(["date,symbol,close", *rows]) + "\n")
    return path


def test_the_same_rows_again_add_nothing_while_they_hold_and_are_a_correction_after_others(empty, tmp_path):
    first = daily(tmp_path, "first.csv", "2020-01-02,A,1", "2020-01-02,B,2")
    other = daily(tmp_path, "other.csv", "2020-01-02,C,3")
    second = daily(tmp_path, "second.csv", "2020-01-02,A,10")
    versions = [import_files(empty, "f.again", [path])["version"] for path in (first, other)]
    again = import_files(empty, "f.again", [first])
    assert (again["duplicate"], again["version"]) == (True, versions[0]), (
        "another symbol was written, and no row of these"
    )
    import_files(empty, "f.again", [second])
    back = import_files(empty, "f.again", [first])
    assert not back["duplicate"]
    assert empty.read("f.again").pandas()["close"].tolist() == [1, 2, 3]


def test_rows_that_a_file_retracts_are_gone_from_the_latest_and_readable_as_of_before(empty, tmp_path):
    both = daily(tmp_path, "both.csv", "2020-01-02,A,1", "2020-01-03,A,2", "2020-01-02,B,3")
    known = import_files(empty, "f.retract", [both])["known_at"]
    # other columns are not read, so bad values in them do not matter
    wrong = daily(tmp_path, "wrong.csv", "2020-01-03,A,not a number", "2020-01-02,B,")
    taken = import_files(empty, "f.retract", [wrong], retract=True)
    assert taken["rows"] == 2
    assert empty.read("f.retract").pandas()[["symbol", "close"]].values.tolist() == [["A", 1]]
    assert len(empty.read("f.retract", as_of=known)) == 3
    assert import_files(empty, "f.retract", [wrong], retract=True)["duplicate"]

    typo = daily(tmp_path, "typo.csv", "2020-01-02,A,1", "2020-01-04,A,1")
    with pytest.raises(BadRows, match="A at 2020-01-04"):
        import_files(empty, "f.retract", [typo], retract=True)
    with pytest.raises(BadRequest, match="--retract: there is no such dataset"):
        import_files(empty, "f.retract_none", [typo], retract=True)
    import_files(empty, "f.retract", [both])
    assert len(empty.read("f.retract")) == 3, "a file of before brings them back"
