//! Compares the import with a slow oracle, which reads random small dirty files character by character and row by row.

use std::collections::btree_map::Entry;

use chrono::NaiveDate;
use proptest::prelude::*;

use super::*;

/// (line, column or nothing)
type Spot = (u64, Option<String>);
/// (symbol, nanoseconds) -> price, count, note
type Rows = BTreeMap<(String, i64), (Option<f64>, Option<i64>, Option<String>)>;

/// Records with their line numbers, exactly by RFC 4180. Lines end in LF, CRLF or CR; blank lines are not records.
fn records(text: &str) -> Vec<(u64, Vec<String>)> {
    let chars: Vec<char> = text.chars().collect();
    let (mut found, mut cells, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut start, mut quoted, mut any, mut i) = (1, 1, false, false, 0);
    while i < chars.len() {
        let c = chars[i];
        let end = c == '\n' || c == '\r';
        let wide = c == '\r' && chars.get(i + 1) == Some(&'\n');
        if !any && !end {
            start = line;
        }
        if end {
            line += 1;
        }
        if quoted {
            if c == '"' && chars.get(i + 1) == Some(&'"') {
                cell.push('"');
                i += 1;
            } else if c == '"' {
                quoted = false;
            } else {
                cell.push(c);
                if wide {
                    cell.push('\n');
                }
            }
        } else if end {
            if any {
                cells.push(std::mem::take(&mut cell));
                found.push((start, std::mem::take(&mut cells)));
                any = false;
            }
        } else if c == ',' {
            cells.push(std::mem::take(&mut cell));
            any = true;
        } else {
            any = true;
            if c == '"' && cell.is_empty() {
                quoted = true;
            } else {
                cell.push(c);
            }
        }
        i += if wide { 2 } else { 1 };
    }
    if any {
        cells.push(cell);
        found.push((start, cells));
    }
    found
}

fn day(text: &str) -> Option<i64> {
    let text = text.trim();
    let format = match text.len() {
        8 if text.bytes().all(|b| b.is_ascii_digit()) => "%Y%m%d",
        10 => "%Y-%m-%d",
        _ => return None,
    };
    let day = NaiveDate::parse_from_str(text, format).ok()?;
    day.and_hms_opt(0, 0, 0)?.and_utc().timestamp_nanos_opt()
}

struct Oracle {
    rows: Rows,
    bad: Vec<Vec<Spot>>,
}

fn judge(files: &[String]) -> Oracle {
    let mut oracle = Oracle { rows: Rows::new(), bad: Vec::new() };
    for text in files {
        let mut bad = Vec::new();
        for (line, cells) in records(text).into_iter().skip(1) {
            match judge_row(&cells) {
                Err(column) => bad.push((line, column.map(str::to_owned))),
                Ok((key, values)) => {
                    if let Entry::Vacant(free) = oracle.rows.entry(key) {
                        free.insert(values);
                    } else {
                        bad.push((line, Some("date".to_owned())));
                    }
                }
            }
        }
        oracle.bad.push(bad);
    }
    oracle
}

type Values = (Option<f64>, Option<i64>, Option<String>);

fn judge_row(cells: &[String]) -> Result<((String, i64), Values), Option<&'static str>> {
    let [symbol, date, price, count, note] = cells else { return Err(None) };
    let symbol = symbol.trim_matches(' ');
    if symbol.is_empty() || symbol == "*" || symbol.chars().any(char::is_control) {
        return Err(Some("Name"));
    }
    let ts = day(date).ok_or(Some("date"))?;
    let price = match price.trim_matches(' ') {
        "" | "NA" | "nan" => None,
        text => Some(text.parse::<f64>().map_err(|_| Some("price"))?),
    };
    let count = match count.trim_matches(' ') {
        "" | "NA" => None,
        text => match text.strip_suffix(".0").unwrap_or(text).parse::<i64>() {
            Ok(count) => Some(count),
            Err(_) => return Err(Some("count")),
        },
    };
    let note = if matches!(note.trim_matches(' '), "" | "NA") { None } else { Some(note.clone()) };
    Ok(((symbol.to_owned(), ts), (price, count, note)))
}

fn accepted(import: &Import) -> Rows {
    let mut rows = Rows::new();
    let mut last = None;
    for batch in import.batches() {
        let (symbols, notes) = (batch.column(0).as_string::<i32>(), batch.column(4).as_string::<i32>());
        let ts = batch.column(1).as_primitive::<TimestampNanosecondType>();
        let prices = batch.column(2).as_primitive::<Float64Type>();
        let counts = batch.column(3).as_primitive::<Int64Type>();
        let columns = prices.iter().zip(counts.iter()).zip(notes.iter());
        for (row, ((price, count), note)) in columns.enumerate() {
            let key = (symbols.value(row).to_owned(), ts.value(row));
            assert!(last.as_ref().is_none_or(|last| *last < key), "sorted, each key once");
            last = Some(key.clone());
            rows.insert(key, (price, count, note.map(str::to_owned)));
        }
    }
    rows
}

/// Exact equality, except that NaN equals NaN.
fn bits(rows: &Rows) -> Vec<String> {
    rows.iter().map(|(key, (p, c, n))| format!("{key:?} {:?} {c:?} {n:?}", p.map(f64::to_bits))).collect()
}

fn symbol() -> impl Strategy<Value = &'static str> {
    prop_oneof![8 => prop::sample::select(vec!["AMZN", "A", "b", " AMZN ", "NA", "é", "BRK B"]),
                1 => prop::sample::select(vec!["", "  ", "*", "a\u{1}", "x\ny"])]
}

fn date() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (1..28_u32).prop_map(|d| format!("2016-02-{d:02}")),
        2 => (1..28_u32).prop_map(|d| format!(" 201602{d:02}")),
        1 => prop::sample::select(vec!["", "2016-02-30", "20160230", "2016", "02/03/2016", "soon", "12016-02-03"])
            .prop_map(str::to_owned),
    ]
}

fn price() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (-1e6..1e6_f64).prop_map(|p| format!("{p}")),
        2 => prop::sample::select(vec!["", "NA", " 1.5 ", "1e5", "-0", "nan", "inf", ".5", "+2"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["abc", "1,5", "1.2.3", "--1", "$3", "1 2"]).prop_map(str::to_owned),
    ]
}

fn count() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => any::<i64>().prop_map(|c| c.to_string()),
        2 => prop::sample::select(vec!["", "NA", " 7 ", "12.0", "+3"]).prop_map(str::to_owned),
        1 => prop::sample::select(vec!["1.5", "x", "9223372036854775808", "1e400"]).prop_map(str::to_owned),
    ]
}

fn note() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["x", "a,b", "two\nlines", "two\r\nlines", "cr\rx", "\"q\"", "", "NA", " é "])
}

fn row() -> impl Strategy<Value = String> {
    let cells = (symbol(), date(), price(), count(), note());
    let shape = prop_oneof![20 => Just(5_usize), 1 => Just(4), 1 => Just(6), 1 => Just(1)];
    (cells, shape, any::<[bool; 6]>(), 0..3_usize, 0..8_usize).prop_map(
        |((s, d, p, c, n), shape, quote, end, blank)| {
            let cells = [s.to_owned(), d, p, c, n.to_owned(), "more".to_owned()];
            let end = ["\n", "\r\n", "\r"][end];
            let written: Vec<String> = cells[..shape]
                .iter()
                .zip(quote)
                .map(|(cell, quote)| {
                    let must = cell.contains(['"', ',', '\n', '\r']);
                    if quote || must { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.clone() }
                })
                .collect();
            let blank = if blank == 0 { end } else { "" };
            format!("{blank}{}{end}", written.join(","))
        },
    )
}

/// A file whose column types are clear, because clean rows outnumber the dirt.
fn file(number: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(row(), 0..25).prop_map(move |rows| {
        let mut text = "Name,date,price,count,note\n".to_owned();
        for i in 1..=40 {
            writeln!(text, "CLEAN{number},19{:02}-01-01,{i}.5,{i},word", 50 + i).unwrap();
        }
        text.extend(rows);
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        ..ProptestConfig::default()
    })]

    #[test]
    fn rows_and_problems_are_those_of_the_oracle(texts in prop_oneof![
        file(0).prop_map(|f| vec![f]),
        (file(0), file(1)).prop_map(|(a, b)| vec![a, b]),
    ]) {
        let folder = Folder::new();
        let files: Vec<PathBuf> = texts.iter().enumerate().map(|(i, t)| folder.put(&format!("{i}.csv"), t)).collect();
        let oracle = judge(&texts);
        let spots = |problems: &[Problem]| -> Vec<Vec<Spot>> {
            files.iter().map(|file| {
                let name = file.display().to_string();
                problems.iter().filter(|p| p.file == name).map(|p| (p.line, p.column.clone())).collect()
            }).collect()
        };
        let total: usize = oracle.bad.iter().map(Vec::len).sum();

        let spec = ImportSpec {
            null: vec!["NA".into()],
            // 12.0 among them would make it float64
            types: BTreeMap::from([(field("count"), "int64".into())]),
            problems_shown: usize::MAX,
            quarantine: Some(folder.path("bad.csv")),
            ..named()
        };
        let found = import(&files, &spec).unwrap();
        prop_assert_eq!(bits(&accepted(&found)), bits(&oracle.rows));
        prop_assert_eq!(spots(&found.problems), oracle.bad.clone());
        prop_assert_eq!(found.problems_total, total as u64);
        let written = fs::read_to_string(folder.path("bad.csv")).unwrap();
        prop_assert_eq!(records(&written).len(), total + 1);

        let strict = ImportSpec { quarantine: None, ..spec };
        match import(&files, &strict) {
            Ok(found) => {
                prop_assert_eq!(total, 0);
                prop_assert_eq!(bits(&accepted(&found)), bits(&oracle.rows));
            }
            Err(ImportError::Rows { problems, total: counted, good, .. }) => {
                prop_assert_eq!(spots(&problems), oracle.bad);
                prop_assert_eq!((counted, good), (total as u64, oracle.rows.len() as u64));
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), suffix in 0..4_usize) {
        let folder = Folder::new();
        let name = ["x.csv", "x.csv.gz", "x.zip", "x.parquet"][suffix];
        let magic: &[u8] = [&b"date,x\n"[..], b"\x1f\x8b", b"PK\x03\x04", b"PAR1"][suffix];
        let _ = import(&[folder.put(name, [magic, &bytes].concat())], &amzn());
    }
}
