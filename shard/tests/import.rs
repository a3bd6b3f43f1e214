//! Import, from files on disk to rows. The tests write the files, or use public market data (`TRELLIS_SHARED_DATA`, or
//! `../shared/data` beside the checkout; without it they print a line).

#![allow(clippy::unwrap_used)] // tests, and helpers that only tests call

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{
    ArrayRef, Date32Array, Decimal128Array, DictionaryArray, Float32Array, Float64Array, Int32Array,
    Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, TimestampNanosecondArray, UInt64Array,
    cast::AsArray,
    types::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use flate2::{Compression, write::GzEncoder};
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;
use trellis_proto::{
    ChunkSpan, DatasetName, DatasetSpec, FieldName, FieldType,
    spec::FieldSpec,
    time::{DAY_NS, parse_time},
};
use trellis_shard::import::{
    FieldChoice, Import, ImportError, ImportSpec, Phase, Problem, Repeats, TsUnit, read,
};
use zip::{ZipWriter, write::SimpleFileOptions};

#[path = "import/faithful.rs"]
mod faithful;
#[path = "import/options.rs"]
mod options;
#[path = "import/oracle.rs"]
mod oracle;
#[path = "import/real.rs"]
mod real;

fn dataset() -> DatasetName {
    DatasetName::new("equities.daily").unwrap()
}

fn field(name: &str) -> FieldName {
    FieldName::new(name).unwrap()
}

fn named() -> ImportSpec {
    ImportSpec { symbol_column: Some("Name".into()), ts_column: Some("date".into()), ..ImportSpec::default() }
}

fn amzn() -> ImportSpec {
    ImportSpec { symbol: Some("AMZN".into()), ..ImportSpec::default() }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn parquet(&self, name: &str, columns: Vec<(&str, ArrayRef)>) -> PathBuf {
        let path = self.path(name);
        let batch =
            RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        path
    }

    fn zip(&self, name: &str, members: &[(&str, &str)]) -> PathBuf {
        let path = self.path(name);
        let mut archive = ZipWriter::new(File::create(&path).unwrap());
        for (member, content) in members {
            archive.start_file(*member, SimpleFileOptions::default()).unwrap();
            archive.write_all(content.as_bytes()).unwrap();
        }
        archive.finish().unwrap();
        path
    }
}

fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn import(files: &[PathBuf], spec: &ImportSpec) -> Result<Import, ImportError> {
    read(&dataset(), files, spec, None, &mut |_| {})
}

fn import_text(text: &str, spec: &ImportSpec) -> Result<Import, ImportError> {
    let folder = Folder::new();
    import(&[folder.put("p.csv", text)], spec)
}

/// One line for each row, in order: `SYMBOL time value value`.
fn rows(import: &Import) -> Vec<String> {
    let mut found = Vec::new();
    for batch in import.batches() {
        assert_eq!(batch.schema(), import.spec.rows_schema());
        let symbols = batch.column(0).as_string::<i32>();
        let ts = batch.column(1).as_primitive::<TimestampNanosecondType>();
        for row in 0..batch.num_rows() {
            let mut line =
                format!("{} {}", symbols.value(row), trellis_proto::time::format_time(ts.value(row)));
            for column in &batch.columns()[2..] {
                let cell = arrow_cast::display::array_value_to_string(column, row).unwrap();
                write!(line, " {}", if cell.is_empty() { "-" } else { &cell }).unwrap();
            }
            found.push(line);
        }
    }
    assert_eq!(found.len() as u64, import.rows);
    found
}

fn types(import: &Import) -> Vec<(&str, FieldType)> {
    import.spec.fields.iter().map(|f| (f.name.as_str(), f.data_type)).collect()
}

fn problems(result: Result<Import, ImportError>) -> Vec<Problem> {
    match result.unwrap_err() {
        ImportError::Rows { problems, .. } => problems,
        other => panic!("{other}"),
    }
}

fn places(problems: &[Problem]) -> Vec<(u64, &str)> {
    problems.iter().map(|p| (p.line, p.column.as_deref().unwrap_or("-"))).collect()
}

const LONG: &str = "date,close,volume,Name\n2016-08-10,2.5,20,B\n2016-08-09,2.25,10,B\n2016-08-10,1.5,7,A\n";

#[test]
fn rows_come_out_sorted_by_symbol_and_time_with_types_of_their_cells() {
    let found = import_text(LONG, &named()).unwrap();
    assert_eq!(types(&found), [("close", FieldType::Float64), ("volume", FieldType::Int64)]);
    assert_eq!(rows(&found), ["A 2016-08-10 1.5 7", "B 2016-08-09 2.25 10", "B 2016-08-10 2.5 20"]);
    assert!(found.spec.fields.iter().all(|f| f.nullable));
    assert_eq!(found.spec.chunk.ns(), 64 * DAY_NS);
    assert_eq!(found.symbols.iter().map(|s| s.as_str()).collect::<Vec<_>>(), ["A", "B"]);
    assert_eq!(found.first_ts, parse_time("2016-08-09").unwrap());
    assert_eq!(found.last_ts, parse_time("2016-08-10").unwrap());
    assert_eq!(found.problems_total, 0);
}

#[test]
fn a_column_of_whole_numbers_in_one_file_and_fractions_in_another_is_float() {
    let folder = Folder::new();
    let files = [
        folder.put("a.csv", "date,x,y\n2016-08-10,1,1234.0\n"),
        folder.put("b.csv.gz", gzip("date,x,y\n2016-08-11,1.5,5.0\n")),
        folder.zip(
            "c.zip",
            &[
                ("in/c.csv", "date,x\n2016-08-12,2\n"),
                ("__MACOSX/._c.csv", "junk"),
                ("d.csv", "date,x\n2016-08-13,\n"),
            ],
        ),
    ];
    let found = import(&files, &amzn()).unwrap();
    assert_eq!(types(&found), [("x", FieldType::Float64), ("y", FieldType::Float64)]);
    assert_eq!(
        rows(&found),
        [
            "AMZN 2016-08-10 1.0 1234.0",
            "AMZN 2016-08-11 1.5 5.0",
            "AMZN 2016-08-12 2.0 -",
            "AMZN 2016-08-13 - -"
        ]
    );
    assert!(
        found.notes.iter().any(|n| n.contains("c.zip:in/c.csv") && n.contains(" y")),
        "{:?}",
        found.notes
    );
}

#[test]
fn bad_rows_refuse_the_import_with_file_line_column_and_reason() {
    let text = "date,close,Name\r\n\
                2016-08-10,1.5,A\r\n\
                2016-08-11,abc,A\r\n\
                2016-13-11,1.5,A\r\n\
                \r\n\
                2016-08-12,1.5,\r\n\
                2016-08-13,1.5\r\n\
                2016-08-10,\"1.5\",A\r\n\
                ,2,A\r\n\
                2016-08-15,2,A\r\n\
                2016-08-16,3,A\r\n";
    let error = import_text(text, &named()).unwrap_err();
    let message = error.to_string();
    assert!(error.hint().contains("--quarantine"));
    for part in [
        "6 rows are bad (3 good), nothing was imported",
        "p.csv:3:close: not a number: \"abc\"",
        "p.csv:4:date: not a date",
        "p.csv:6:Name: the key is missing",
        "p.csv:7: 2 cells instead of 3",
        "p.csv:8:date: A has this time already, in ",
        "p.csv:2: \"2016-08-10\"",
        "p.csv:9:date: the key is missing",
    ] {
        assert!(message.contains(part), "{part} is not in\n{message}");
    }
    let error: trellis_proto::Error = error.into();
    assert_eq!((error.code(), error.code().exit_code()), (trellis_proto::Code::BadRows, 3));

    let few = ImportSpec { problems_shown: 2, ..named() };
    let message = import_text(text, &few).unwrap_err().to_string();
    assert!(message.contains("6 rows are bad") && message.ends_with("and 4 more"), "{message}");
}

#[test]
fn a_quarantine_keeps_the_good_rows_and_takes_the_bad_ones_as_they_stand() {
    let folder = Folder::new();
    let quarantine = folder.put("bad.csv", "file,line,column,reason,row\nleft from an earlier import");
    let first =
        folder.put("a.csv", "date,close,Name\n2016-08-10,1,A\n2016-08-11,\"x,\"\"y\",A\n2016-08-10,2,A\n");
    let second =
        folder.put("b.csv", "date,close,Name\n\"2016-08-10\",3,A\n2016-08-12,4,\"A\nB\"\n2016-08-12,5,A\n");
    let spec = ImportSpec { quarantine: Some(quarantine.clone()), ..named() };
    let found = import(&[first.clone(), second.clone()], &spec).unwrap();
    assert_eq!(rows(&found), ["A 2016-08-10 1", "A 2016-08-12 5"]);
    assert_eq!((found.problems_total, found.problems.len()), (4, 4));
    assert!(found.problems[2].reason.contains(&format!("{}:2", first.display())), "{}", found.problems[2]);

    let written = fs::read_to_string(&quarantine).unwrap();
    let (a, b) = (first.display(), second.display());
    let expected = [
        "file,line,column,reason,row".to_owned(),
        format!("{a},3,close,not a number,\"2016-08-11,\"\"x,\"\"\"\"y\"\",A\""),
        format!("{a},4,date,\"A has this time already, in {a}:2\",\"2016-08-10,2,A\""),
        format!("{b},2,date,\"A has this time already, in {a}:2\",\"\"\"2016-08-10\"\",3,A\""),
    ];
    assert!(written.starts_with(&(expected.join("\n") + "\n")), "{written}");
    assert!(written.contains(&format!("{b},3,Name,")), "{written}");
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 3, "no temporary file is left");

    let clean = folder.put("c.csv", LONG);
    import(&[clean], &spec).unwrap();
    assert_eq!(fs::read_to_string(&quarantine).unwrap(), "file,line,column,reason,row\n");

    let hopeless = folder.put("d.csv", "date,close,Name\nx,1,A\n");
    let error = import(&[hopeless], &spec).unwrap_err();
    assert!(
        matches!(error, ImportError::Empty { .. }) && error.to_string().contains("all 1 rows are bad"),
        "{error}"
    );

    let nowhere = ImportSpec { quarantine: Some(folder.path("no/such/bad.csv")), ..named() };
    let error = import(&[second], &nowhere).unwrap_err();
    assert!(matches!(error, ImportError::Quarantine { .. }), "{error}");
}

#[test]
fn a_quarantine_is_written_over_no_other_file() {
    let folder = Folder::new();
    let text = "date,x\n2016-08-10,1\nbad,2\n";
    let (file, other) = (folder.put("a.csv", text), folder.put("other.csv", "of somebody"));
    for path in [folder.0.path().join("./a.csv"), other.clone()] {
        let spec = ImportSpec { quarantine: Some(path), ..amzn() };
        let error = import(std::slice::from_ref(&file), &spec).unwrap_err();
        assert!(error.to_string().contains("would be written over"), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    assert_eq!(fs::read_to_string(&other).unwrap(), "of somebody");
    let spec = ImportSpec { quarantine: Some(folder.put("empty.csv", "")), ..amzn() };
    assert_eq!(import(&[file], &spec).unwrap().problems_total, 1);
}

#[test]
fn a_stray_quote_takes_no_other_row_into_its_cell() {
    for (rows, bad) in [
        // each opens a quote twice
        ("2020-01-02,A,\"Foo,1\n2020-01-03,A,\"Bar,2\n2020-01-06,A,Baz,3\n", &[2][..]),
        // a quote at the end of a later cell closes it
        ("2020-01-02,A,\"Foo,1\n2020-01-03,A,5\",2\n", &[2]),
        ("2020-01-02,A,\"Foo,1\n2020-01-03,A,Mid,2\n2020-01-06,A,5\",2\n", &[2]),
        ("2020-01-02,A,\"1\"5,1\n2020-01-03,A,x,2\n", &[2]),
        ("2020-01-02,A,x,1\n2020-01-03,A,\"say \\\"hi\\\"\",2\n", &[3]),
    ] {
        let found = problems(import_text(&format!("date,symbol,name,close\n{rows}"), &ImportSpec::default()));
        let lines: Vec<u64> = found.iter().map(|p| p.line).collect();
        assert_eq!(lines, bad, "{rows}");
    }
    let text = "date,symbol,name,close\n2020-01-02,A,\"of 2020-01-01,\nor later, as told, twice\",1\n2020-01-03,A,6\" pipe,2";
    assert_eq!(import_text(text, &ImportSpec::default()).unwrap().rows, 2);
    let error = import_text("date,symbol,\"x\"y\n2020-01-02,A,1\n", &ImportSpec::default()).unwrap_err();
    assert!(error.to_string().contains("line 1: text stands after the quote"), "{error}");
}

#[test]
fn a_files_lines_are_those_of_an_editor() {
    let text = "\u{feff}date,note,close\n\n2016-08-10,\"two\nlines\",1\n2016-08-11,\"\n\n\",x\n2016-08-12,,2\n2016-08-13,,3\n2016-08-14,,y";
    assert_eq!(places(&problems(import_text(text, &amzn()))), [(5, "close"), (10, "close")]);
}

#[test]
fn text_that_is_not_utf_8_is_a_bad_row_with_its_line() {
    let folder = Folder::new();
    let file = folder.put("p.csv", b"date,note\n2016-08-10,ok\n2016-08-11,caf\xe9\n".as_slice());
    let found = problems(import(&[file], &amzn()));
    assert_eq!(places(&found), [(3, "note")]);
    assert!(found[0].reason.contains("UTF-8"));
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let folder = Folder::new();
    let packed = gzip(&LONG.repeat(50));
    let cases: Vec<(PathBuf, &str)> = vec![
        (folder.path("missing.csv"), "no such file"),
        (folder.0.path().to_owned(), "is a folder"),
        (folder.put("empty.csv", ""), "is empty"),
        (folder.put("blank.csv", "\n\n\n"), "is empty"),
        (folder.put("empty.csv.gz", gzip("")), "is empty"),
        (folder.put("short.csv.gz", &packed[..packed.len() - 12]), "cut off"),
        (folder.put("renamed.csv", &packed), "its content is gzip"),
        (folder.put("renamed.gz", LONG), "its content is not gzip"),
        (folder.put("renamed.zip", LONG), "its content is not a zip archive"),
        (folder.put("renamed.parquet", LONG), "its content is not Parquet"),
        (folder.put("cut.parquet", "PAR1 and then nothing"), "not Parquet that can be read"),
        (folder.put("cut.zip", b"PK\x03\x04 and then nothing"), "not a zip archive"),
        (folder.zip("other.zip", &[("a.xlsx", "x")]), "holds no .csv"),
        (folder.zip("none.zip", &[]), "holds no .csv"),
        (folder.put("p.xlsx", "x"), "of no known kind"),
        (folder.put("plain", LONG), "of no known kind"),
        (folder.put("utf16.csv", b"\xff\xfed\0a\0"), "UTF-16"),
        (folder.put("latin.csv", b"d\xe4te,x\n"), "line 1 is not UTF-8"),
        (folder.put("semicolon.csv", "date;close;Name\n2016-08-10;1;A\n"), "has one column"),
        (folder.put("data.csv", "292,1.38676,1.38686\n"), "holds values"),
    ];
    for (path, reason) in cases {
        let error = import(std::slice::from_ref(&path), &named()).unwrap_err();
        assert!(matches!(error, ImportError::File { .. }), "{error}");
        let message = error.to_string();
        assert!(
            message.contains(reason) && message.contains(&*path.to_string_lossy()),
            "{reason}: {message}"
        );
    }
    let error = import(&[folder.path("semicolon.csv")], &named()).unwrap_err();
    assert!(error.hint().contains("--delimiter ';'"), "{}", error.hint());
    let semicolon = ImportSpec { delimiter: Some(";".into()), ..named() };
    assert_eq!(rows(&import(&[folder.path("semicolon.csv")], &semicolon).unwrap()), ["A 2016-08-10 1"]);
    let header_only = folder.put("header.csv", "date,close,Name\n");
    let error = import(std::slice::from_ref(&header_only), &named()).unwrap_err();
    assert!(matches!(error, ImportError::Empty { .. }), "{error}");
    assert_eq!(import(&[header_only, folder.put("long.csv", LONG)], &named()).unwrap().rows, 3);
}

#[test]
fn options_that_make_no_sense_are_refused_before_any_file_is_read() {
    let nowhere = [PathBuf::from("/nonexistent/p.csv")];
    for spec in [
        ImportSpec { symbol: Some("A".into()), ..named() },
        ImportSpec { tz: Some("Mars/Olympus".into()), ..named() },
        ImportSpec { delimiter: Some("é".into()), ..named() },
        ImportSpec { date: Some("2016-08-10".into()), ..named() },
        ImportSpec { date: Some("10.8.16".into()), ts_unit: Some(TsUnit::MsOfDay), ..named() },
        ImportSpec { known_at_ns: Some(1), known_at_column: Some("k".into()), ..named() },
        ImportSpec { types: BTreeMap::from([(field("close"), "double".into())]), ..named() },
        ImportSpec { symbol: Some("*".into()), ..ImportSpec::default() },
    ] {
        let error = import(&nowhere, &spec).unwrap_err();
        assert!(matches!(error, ImportError::Options { .. }), "{error}");
    }
    let folder = Folder::new();
    let file = folder.put("p.csv", LONG);
    assert!(import(&[file.clone(), file.clone()], &named()).unwrap_err().to_string().contains("twice"));
    assert!(import(&[], &named()).is_err());
    let unknown = ImportSpec { required: vec![field("clse")], ..named() };
    assert!(import(&[file], &unknown).unwrap_err().to_string().contains("clse"));
}

#[test]
fn local_times_are_converted_and_impossible_ones_are_bad_rows() {
    let spec = ImportSpec { tz: Some("America/New_York".into()), ..amzn() };
    let text = "date,x\n2016-11-04 09:30,1\n2016-11-07 09:30,2\n2016-11-06 01:30,3\n2016-03-13 02:30,4\n2016-11-06 01:30-04:00,5\n2016-08-10,6\n";
    let found = problems(import_text(text, &spec));
    assert_eq!(places(&found), [(4, "date"), (5, "date")]);
    assert!(found[0].reason.contains("twice") && found[1].reason.contains("does not exist"));
    let good: Vec<&str> =
        text.lines().enumerate().filter(|(i, _)| ![3, 4].contains(i)).map(|(_, l)| l).collect();
    assert_eq!(
        rows(&import_text(&good.join("\n"), &spec).unwrap()),
        [
            "AMZN 2016-08-10T04:00:00Z 6",
            "AMZN 2016-11-04T13:30:00Z 1",
            "AMZN 2016-11-06T05:30:00Z 5",
            "AMZN 2016-11-07T14:30:00Z 2"
        ]
    );
}

#[test]
fn integers_are_times_by_their_unit_or_as_days() {
    let one = |spec: &ImportSpec, cell: &str| {
        import_text(&format!("ts,x\n{cell},1\n"), spec).map(|i| rows(&i).remove(0))
    };
    let unit = |unit: &str| ImportSpec { ts_unit: Some(TsUnit::parse(unit).unwrap()), ..amzn() };
    assert_eq!(one(&amzn(), "20160810").unwrap(), "AMZN 2016-08-10 1");
    assert_eq!(one(&unit("s"), "1470787200").unwrap(), "AMZN 2016-08-10 1");
    assert_eq!(one(&unit("ns"), "-1").unwrap(), "AMZN 1969-12-31T23:59:59.999999999Z 1");
    let found = problems(import_text("ts,x\n1470787200,1\n", &amzn()));
    assert!(found[0].reason.contains("--ts-unit"), "{}", found[0]);
    let dated = ImportSpec {
        date: Some("2014-05-01".into()),
        tz: Some("America/New_York".into()),
        ..unit("ms-of-day")
    };
    assert_eq!(one(&dated, "34200000").unwrap(), "AMZN 2014-05-01T13:30:00Z 1");
    let error = one(&unit("ms-of-day"), "1").unwrap_err();
    assert!(error.hint().contains("--date"), "{error}");
    let folder = Folder::new();
    let file = folder.put("x_20140502.csv", "ts,x\n1,1\n");
    assert_eq!(rows(&import(&[file], &unit("ms-of-day")).unwrap()), ["AMZN 2014-05-02T00:00:00.001Z 1"]);
}

#[test]
fn repeated_times_can_be_spread_but_never_past_the_next() {
    let text = "ts,x\n1,1\n1,2\n1,3\n2,4\n2,5\n";
    let spec = ImportSpec { ts_unit: Some(TsUnit::Ms), ..amzn() };
    assert_eq!(places(&problems(import_text(text, &spec))), [(3, "ts"), (4, "ts"), (6, "ts")]);
    let spread = ImportSpec { repeats: Repeats::Spread, ..spec };
    let times: Vec<i64> = import_text(text, &spread)
        .unwrap()
        .batches()
        .flat_map(|b| b.column(1).as_primitive::<TimestampNanosecondType>().values().to_vec())
        .collect();
    assert_eq!(times, [1_000_000, 1_000_001, 1_000_002, 2_000_000, 2_000_001]);
    let dense = ImportSpec { ts_unit: Some(TsUnit::Ns), ..spread };
    assert_eq!(places(&problems(import_text("ts,x\n1,1\n1,2\n1,3\n3,4\n", &dense))), [(4, "ts")]);
}

#[test]
fn what_a_field_must_have_is_asked_of_every_row() {
    let text = "date,close,open\n2016-08-10,1,1\n2016-08-11,NaN,2\n2016-08-12,,3\n2016-08-13,-inf,4\n2016-08-14,NA,5\n2016-08-15,2,\n";
    let spec = ImportSpec { required: vec![field("close")], null: vec!["NA".into()], ..amzn() };
    assert_eq!(
        places(&problems(import_text(text, &spec))),
        [(3, "close"), (4, "close"), (5, "close"), (6, "close")]
    );
    let free = ImportSpec { required: Vec::new(), ..spec };
    assert_eq!(import_text(text, &free).unwrap().rows, 6);
}

#[test]
fn an_import_into_a_dataset_obeys_its_fields() {
    let field_spec = |name: &str, data_type, nullable| FieldSpec { name: field(name), data_type, nullable };
    let spec_of = |fields| DatasetSpec::new(dataset(), fields, ChunkSpan::new(5 * DAY_NS).unwrap()).unwrap();
    let there = spec_of(vec![
        field_spec("volume", FieldType::Int64, true),
        field_spec("close", FieldType::Float64, false),
        field_spec("note", FieldType::String, true),
    ]);
    let folder = Folder::new();
    let into = |text: &str, spec: &ImportSpec, there: &DatasetSpec| {
        read(&dataset(), &[folder.put("p.csv", text)], spec, Some(there), &mut |_| {})
    };
    let found = into("date,Close,Volume\n2016-08-10,1,1234.0\n", &amzn(), &there).unwrap();
    assert_eq!(found.spec, there);
    assert_eq!(rows(&found), ["AMZN 2016-08-10 1234 1.0 -"]);
    assert_eq!(
        places(&problems(into("date,close,volume\n2016-08-10,1,x\n", &amzn(), &there))),
        [(2, "volume")]
    );
    let wider = into("date,close,volume,vwap\n2016-08-10,1,0.5,7\n", &amzn(), &there).unwrap();
    assert_eq!(
        types(&wider),
        [
            ("volume", FieldType::Float64),
            ("close", FieldType::Float64),
            ("note", FieldType::String),
            ("vwap", FieldType::Int64)
        ]
    );
    assert_eq!(rows(&wider), ["AMZN 2016-08-10 0.5 1.0 - 7"]);
    let told = wider.notes.join("\n");
    assert!(
        told.contains("volume widens from int64 to float64") && told.contains("new field vwap"),
        "{told}"
    );
    assert!(wider.spec.fields[3].nullable);
    let chosen = ImportSpec { fields: FieldChoice::parse_list("close").unwrap(), ..amzn() };
    assert_eq!(into("date,close,vwap\n2016-08-10,1,1\n", &chosen, &there).unwrap().rows, 1);
    let error = into("date,volume\n2016-08-10,1\n", &amzn(), &there).unwrap_err();
    assert!(error.to_string().contains("close") && error.to_string().contains("may not be null"), "{error}");
    let typed = ImportSpec { types: BTreeMap::from([(field("close"), "int64".into())]), ..amzn() };
    assert!(into("date,close\n2016-08-10,1\n", &typed, &there).is_err());
}

#[test]
fn codes_become_no_numbers_of_a_field_that_is_there_either() {
    let there = |data_type| {
        let fields = vec![FieldSpec { name: field("x"), data_type, nullable: true }];
        DatasetSpec::new(dataset(), fields, ChunkSpan::new(5 * DAY_NS).unwrap()).unwrap()
    };
    let folder = Folder::new();
    let into = |cell: &str, spec: &ImportSpec, data_type| {
        let file = folder.put("p.csv", format!("date,x\n2016-08-10,{cell}\n"));
        read(&dataset(), &[file], spec, Some(&there(data_type)), &mut |_| {})
    };
    for (cell, data_type, value) in [
        ("007", FieldType::Int64, "7"),
        ("007", FieldType::Float64, "7.0"),
        ("01.10", FieldType::Float64, "1.1"),
        ("12E5", FieldType::Int64, "1200000"),
    ] {
        let error = into(cell, &amzn(), data_type).unwrap_err();
        let said = format!("--types x={}", data_type.name());
        assert!(
            error.hint().contains(&said) && error.to_string().contains(cell),
            "{error}; {}",
            error.hint()
        );
        let typed = ImportSpec { types: BTreeMap::from([(field("x"), data_type.name().into())]), ..amzn() };
        assert_eq!(rows(&into(cell, &typed, data_type).unwrap()), [format!("AMZN 2016-08-10 {value}")]);
    }
    for (cell, data_type) in [
        ("7", FieldType::Int64),
        ("12E5", FieldType::Float64),
        ("+5", FieldType::Float64),
        ("+3", FieldType::Int64),
        ("1", FieldType::Bool),
        ("007", FieldType::String),
    ] {
        assert_eq!(into(cell, &amzn(), data_type).unwrap().rows, 1, "{cell}");
    }
    let packed = folder.parquet(
        "p.parquet",
        vec![
            ("date", Arc::new(Date32Array::from(vec![17_023])) as ArrayRef),
            ("x", Arc::new(Float64Array::from(vec![1e16]))),
        ],
    );
    let found = read(&dataset(), &[packed], &amzn(), Some(&there(FieldType::Int64)), &mut |_| {}).unwrap();
    assert_eq!(rows(&found), ["AMZN 2016-08-10 10000000000000000"], "the file says that it is a number");
}

#[test]
fn rows_of_several_knowledge_times_are_parts_in_their_order() {
    let text = "date,x,learned\n2016-08-10,1,2016-08-12\n2016-08-10,2,2016-08-11\n2016-08-09,3,2016-08-11T10:00:00Z\n";
    let spec = ImportSpec { known_at_column: Some("learned".into()), ..amzn() };
    let found = import_text(text, &spec).unwrap();
    let known: Vec<i64> = found.parts.iter().filter_map(|p| p.known_at_ns).collect();
    let times = ["2016-08-11", "2016-08-11T10:00:00Z", "2016-08-12"].map(|t| parse_time(t).unwrap());
    assert_eq!(known, times);
    assert_eq!(rows(&found), ["AMZN 2016-08-10 2", "AMZN 2016-08-09 3", "AMZN 2016-08-10 1"]);
    assert_eq!(found.parts.iter().map(|p| p.run_id()).collect::<std::collections::BTreeSet<_>>().len(), 3);
    let all = ImportSpec { known_at_ns: Some(7), fields: FieldChoice::parse_list("x").unwrap(), ..amzn() };
    let found = import_text("date,x\n2016-08-10,1\n", &all).unwrap();
    assert_eq!(found.parts[0].known_at_ns, Some(7));
}

#[test]
fn the_same_rows_have_the_same_digest_however_they_are_packed() {
    let folder = Folder::new();
    let lines: Vec<&str> = LONG.lines().collect();
    let reversed = [lines[0], lines[3], lines[2], lines[1]].join("\r\n");
    let digest = |files: &[PathBuf], spec: &ImportSpec| import(files, spec).unwrap().content_digest;
    let plain = digest(&[folder.put("a.csv", LONG)], &named());
    assert_eq!(plain.len(), 64);
    assert_eq!(plain, digest(&[folder.put("b.csv.gz", gzip(&reversed))], &named()));
    let split = [
        folder.put("c.csv", lines[..2].join("\n")),
        folder.put("d.csv", [lines[0], lines[2], lines[3]].join("\n")),
    ];
    assert_eq!(plain, digest(&split, &named()));
    let other = LONG.replace("2.25", "2.5");
    assert_ne!(plain, digest(&[folder.put("e.csv", other)], &named()));
    assert_ne!(plain, digest(&[folder.path("a.csv")], &ImportSpec { known_at_ns: Some(7), ..named() }));
    let chunked = ImportSpec { chunk_ns: Some(DAY_NS), ..named() };
    assert_eq!(plain, digest(&[folder.path("a.csv")], &chunked), "the same rows, cut otherwise");
}

#[test]
fn the_chunk_follows_the_step_between_rows() {
    let chunk = |times: &[&str]| {
        let mut text = "ts,x\n".to_owned();
        times.iter().for_each(|t| writeln!(text, "{t},1").unwrap());
        import_text(&text, &amzn()).unwrap().spec.chunk.ns()
    };
    assert_eq!(chunk(&["2016-08-10"]), 64 * DAY_NS);
    assert_eq!(chunk(&["2016-08-05", "2016-08-08", "2016-08-09"]), 64 * DAY_NS);
    assert_eq!(chunk(&["2016-08-10 10:00", "2016-08-10 10:01", "2016-08-11 10:00"]), 4 * DAY_NS);
    assert_eq!(
        chunk(&["2016-08-10 10:00:00.1", "2016-08-10 10:00:00.2", "2016-08-10 10:00:00.35"]),
        DAY_NS / 24
    );
}

#[test]
fn parquet_columns_of_many_types_become_fields() {
    let folder = Folder::new();
    let day = |n| Some(17_000 + n);
    let file = folder.parquet(
        "p.parquet",
        vec![
            ("__index_level_0__", Arc::new(Int64Array::from(vec![0, 1])) as ArrayRef),
            ("Name", Arc::new(["B", "A"].into_iter().collect::<DictionaryArray<Int32Type>>())),
            ("date", Arc::new(Date32Array::from(vec![day(1), day(0)]))),
            ("f32", Arc::new(Float32Array::from(vec![Some(0.5), None]))),
            ("i32", Arc::new(Int32Array::from(vec![1, 2]))),
            ("big", Arc::new(UInt64Array::from(vec![3, 4]))),
            (
                "price",
                Arc::new(Decimal128Array::from(vec![125, 250]).with_precision_and_scale(10, 2).unwrap()),
            ),
            ("at", Arc::new(TimestampMillisecondArray::from(vec![Some(0), None]))),
            ("text", Arc::new(StringArray::from(vec![Some(""), Some("x")]))),
        ],
    );
    let found = import(&[file], &named()).unwrap();
    assert_eq!(
        types(&found),
        [
            ("f32", FieldType::Float32),
            ("i32", FieldType::Int32),
            ("big", FieldType::Int64),
            ("price", FieldType::Float64),
            ("at", FieldType::Timestamp),
            ("text", FieldType::String)
        ]
    );
    assert_eq!(
        rows(&found),
        ["A 2016-07-18 - 2 4 2.5 - x", "B 2016-07-19 0.5 1 3 1.25 1970-01-01T00:00:00Z -"]
    );
}

#[test]
fn parquet_and_csv_of_one_dataset_obey_the_same_rules() {
    let folder = Folder::new();
    let csv = folder.put("a.csv", "Name,ts,close,n\nA,2016-08-10,1.5,1\n");
    let good = folder.parquet(
        "b.parquet",
        vec![
            ("Name", Arc::new(StringArray::from(vec!["A"])) as ArrayRef),
            (
                "ts",
                Arc::new(
                    TimestampNanosecondArray::from(vec![parse_time("2016-08-11").unwrap()])
                        .with_timezone("UTC"),
                ),
            ),
            ("close", Arc::new(Int64Array::from(vec![2]))),
            ("n", Arc::new(Int32Array::from(vec![2]))),
        ],
    );
    let spec = ImportSpec { ts_column: Some("ts".into()), ..named() };
    let found = import(&[csv.clone(), good], &spec).unwrap();
    assert_eq!(types(&found), [("close", FieldType::Float64), ("n", FieldType::Int64)]);
    assert_eq!(rows(&found), ["A 2016-08-10 1.5 1", "A 2016-08-11 2.0 2"]);

    let dirty = folder.parquet(
        "c.parquet",
        vec![
            (
                "Name",
                Arc::new(StringArray::from(vec![Some("A"), None, Some("B"), Some("C"), Some("C")]))
                    as ArrayRef,
            ),
            (
                "ts",
                Arc::new(StringArray::from(vec![
                    "2016-08-12",
                    "2016-08-12",
                    "soon",
                    "2016-08-10",
                    "2016-08-10",
                ])),
            ),
            (
                "close",
                Arc::new(Float64Array::from(vec![Some(1.0), Some(1.0), Some(1.0), Some(f64::NAN), None])),
            ),
            ("n", Arc::new(UInt64Array::from(vec![u64::MAX, 1, 1, 1, 1]))),
        ],
    );
    let quarantine = folder.path("bad.csv");
    let spec = ImportSpec { quarantine: Some(quarantine.clone()), ..spec };
    let found = import(std::slice::from_ref(&dirty), &spec).unwrap();
    assert_eq!(rows(&found), ["C 2016-08-10 NaN 1"]);
    assert_eq!(places(&found.problems), [(1, "n"), (2, "Name"), (3, "ts"), (5, "ts")]);
    let written = fs::read_to_string(quarantine).unwrap();
    assert!(
        written.contains(&format!("{},3,ts,", dirty.display())) && written.contains("\"B,soon,1.0,1\""),
        "{written}"
    );
}

#[test]
fn progress_is_told_and_never_beyond_the_whole() {
    let folder = Folder::new();
    let mut text = "date,x,Name\n".to_owned();
    for i in 0..40_000 {
        writeln!(text, "2016-08-10,{i},S{i}").unwrap();
    }
    let file = folder.put("p.csv.gz", gzip(&text));
    let mut phases: Vec<Phase> = Vec::new();
    let (mut reports, mut last) = (0, 0);
    read(&dataset(), &[file], &named(), None, &mut |p| {
        reports += 1;
        assert!(p.bytes <= p.bytes_total && p.bytes >= last, "{p:?}");
        last = p.bytes;
        if phases.last() != Some(&p.phase) {
            phases.push(p.phase);
        }
    })
    .unwrap();
    assert_eq!(phases, [Phase::Survey, Phase::Read, Phase::Sort]);
    assert!(reports > 5);
}

#[test]
fn a_spec_survives_json() {
    let spec = ImportSpec { ts_unit: Some(TsUnit::MsOfDay), repeats: Repeats::Spread, ..named() };
    let json = serde_json::to_string(&spec).unwrap();
    assert!(json.contains("\"ms-of-day\"") && json.contains("\"spread\""), "{json}");
    assert_eq!(serde_json::from_str::<ImportSpec>(&json).unwrap(), spec);
    assert!(serde_json::from_str::<ImportSpec>("{\"ts_colum\": \"x\"}").is_err());
}

/// The folder of public market data. Without it, prints a line and returns `None`.
fn shared_data(test: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("TRELLIS_SHARED_DATA").map_or(beside, PathBuf::from);
    if folder.join("README.md").is_file() {
        return Some(folder);
    }
    // not by a macro, whose lines the test runner keeps from the output; tests/run.py counts them
    let why = format!("no market data at {} (set TRELLIS_SHARED_DATA)", folder.display());
    let _ = writeln!(std::io::stderr(), "\nskipped: {test}: {why}");
    None
}

/// Values of a column over all batches.
fn floats(import: &Import, name: &str) -> Vec<Option<f64>> {
    let columns = import.batches().map(|b| b.column_by_name(name).unwrap());
    columns.flat_map(|c| c.as_primitive::<Float64Type>().iter().collect::<Vec<_>>()).collect()
}

fn ints(import: &Import, name: &str) -> Vec<Option<i64>> {
    let columns = import.batches().map(|b| b.column_by_name(name).unwrap());
    columns.flat_map(|c| c.as_primitive::<Int64Type>().iter().collect::<Vec<_>>()).collect()
}
