"""`trellis import`: all or nothing, with file, line, column and reason."""

import json

import pytest
from conftest import cli

from trellis.errors import BadRequest, BadRows, Conflict
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
    # what the column is must be known: with a value that is no number it would be text
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
        {"unknown": 1},
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
    other.write_text("symbol,ts,close,mood\nA,2020-01-06,1.0,good\n")
    with pytest.raises((BadRequest, BadRows, Conflict), match="mood"):
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
