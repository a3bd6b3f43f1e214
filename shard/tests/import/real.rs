//! Import of real files: public market data with its real dirt.

use std::{fs::File, io::Read as _, path::PathBuf};

use flate2::read::GzDecoder;

use super::*;

fn wiki(symbol: &str) -> ImportSpec {
    ImportSpec { symbol: Some(symbol.into()), ts_column: Some("Date".into()), ..ImportSpec::default() }
}

/// The cells of a gzipped CSV file without quotes, header first.
fn cells(path: &PathBuf) -> Vec<Vec<String>> {
    let mut text = String::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

#[test]
fn wiki_files_come_whole_with_their_names_in_snake_case() {
    let Some(data) = shared_data("wiki_files_come_whole_with_their_names_in_snake_case") else { return };
    for (symbol, count) in [("AMZN", 4_830), ("AAPL", 8_993), ("FB", 1_052), ("GOOG", 589)] {
        let path = data.join(format!("daily/wiki/WIKI-{symbol}.csv.gz"));
        let found = import(std::slice::from_ref(&path), &wiki(symbol)).unwrap();
        assert_eq!(found.rows, count);
        let names: Vec<&str> = types(&found).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "open",
                "high",
                "low",
                "close",
                "volume",
                "ex_dividend",
                "split_ratio",
                "adj_open",
                "adj_high",
                "adj_low",
                "adj_close",
                "adj_volume"
            ]
        );
        assert!(types(&found).iter().all(|(_, t)| *t == FieldType::Float64), "volumes are written 1225000.0");
        assert_eq!(found.spec.chunk.ns(), 64 * DAY_NS);
        let file = cells(&path);
        let column =
            |i: usize| -> Vec<Option<f64>> { file[1..].iter().map(|row| row[i].parse().ok()).collect() };
        assert!(floats(&found, "close") == column(4) && floats(&found, "adj_volume") == column(12));
        assert_eq!(found.first_ts, parse_time(&file[1][0]).unwrap());
    }
}

#[test]
fn descending_files_of_several_years_are_one_ascending_series() {
    let Some(data) = shared_data("descending_files_of_several_years_are_one_ascending_series") else {
        return;
    };
    let files: Vec<PathBuf> = [2011, 2008, 2009]
        .map(|year| data.join(format!("daily/wiki/WIKI-AIG-{year}-quandl.csv.gz")))
        .to_vec();
    let found = import(&files, &wiki("AIG")).unwrap();
    assert_eq!(found.rows, 253 + 252 + 252);
    let times: Vec<i64> = found
        .batches()
        .flat_map(|b| b.column(1).as_primitive::<TimestampNanosecondType>().values().to_vec())
        .collect();
    assert!(times.is_sorted_by(|a, b| a < b));
    assert_eq!(
        (found.first_ts, found.last_ts),
        (parse_time("2008-01-02").unwrap(), parse_time("2011-12-30").unwrap())
    );
    let twice = [files.clone(), vec![data.join("daily/wiki/WIKI-AMZN.csv.gz")]].concat();
    let ImportError::Rows { total, problems, .. } = import(&twice, &wiki("AIG")).unwrap_err() else {
        panic!("AMZN's days are AIG's too")
    };
    assert_eq!(total, 757);
    assert!(
        problems[0].file.ends_with("WIKI-AMZN.csv.gz") && problems[0].reason.contains("AIG"),
        "{}",
        problems[0]
    );
}

#[test]
fn a_long_form_with_an_index_column_gives_five_symbols() {
    let Some(data) = shared_data("a_long_form_with_an_index_column_gives_five_symbols") else { return };
    let file = data.join("daily/wiki/plotly_dash-stock-ticker-demo.csv.gz");
    let spec = ImportSpec { symbol_column: Some("Stock".into()), ..ImportSpec::default() };
    let found = import(&[file], &spec).unwrap();
    assert_eq!(found.rows, 3_634);
    let symbols: Vec<&str> = found.symbols.iter().map(|s| s.as_str()).collect();
    assert_eq!(symbols, ["AAPL", "COKE", "GOOGL", "TSLA", "YHOO"]);
    assert!(found.spec.field("adj_close").is_some() && found.spec.fields.len() == 12);
}

#[test]
fn the_sp500_file_keeps_its_missing_cells_as_nulls() {
    let Some(data) = shared_data("the_sp500_file_keeps_its_missing_cells_as_nulls") else { return };
    let path = data.join("daily/sp500_5yr.csv.gz");
    let found = import(std::slice::from_ref(&path), &named()).unwrap();
    assert_eq!((found.rows, found.symbols.len()), (619_040, 505));
    let open = floats(&found, "open");
    assert_eq!(open.iter().filter(|v| v.is_none()).count(), 11);
    assert_eq!(floats(&found, "close").iter().filter(|v| v.is_none()).count(), 0);
    assert_eq!(found.spec.field("volume").unwrap().1.data_type, FieldType::Int64);
    let file = cells(&path);
    let mut sorted = file[1..].to_vec();
    sorted.sort_unstable_by(|a, b| (&a[6], &a[0]).cmp(&(&b[6], &b[0])));
    // not assert_eq: it would print half a million prices
    assert!(open == sorted.iter().map(|row| row[1].parse().ok()).collect::<Vec<Option<f64>>>());
    assert!(ints(&found, "volume") == sorted.iter().map(|row| row[5].parse().ok()).collect::<Vec<_>>());

    let strict = ImportSpec { required: vec![field("open")], problems_shown: 100, ..named() };
    let bad = problems(import(&[path], &strict));
    assert_eq!(bad.len(), 11);
    for problem in bad {
        let line = &file[problem.line as usize - 1];
        assert!(line[1].is_empty() && problem.column.as_deref() == Some("open"), "{problem}");
    }
}

const MINUTE: [&str; 11] = [
    "ms",
    "bid_open",
    "bid_high",
    "bid_low",
    "bid_close",
    "bid_size",
    "ask_open",
    "ask_high",
    "ask_low",
    "ask_close",
    "ask_size",
];

fn eurusd(columns: &[&str]) -> ImportSpec {
    ImportSpec {
        symbol: Some("EURUSD".into()),
        ts_column: Some("ms".into()),
        ts_unit: Some(TsUnit::MsOfDay),
        columns: columns.iter().map(|&c| c.to_owned()).collect(),
        ..ImportSpec::default()
    }
}

fn zips(data: &Path, kind: &str) -> Vec<PathBuf> {
    let days = ["20140501", "20140502", "20140505", "20140506", "20140507"];
    days.iter().map(|day| data.join(format!("{kind}/eurusd_oanda/{day}_quote.zip"))).collect()
}

#[test]
fn ticks_without_a_header_add_up_to_the_minutes_beside_them() {
    let Some(data) = shared_data("ticks_without_a_header_add_up_to_the_minutes_beside_them") else { return };
    let minutes = import(&zips(&data, "minute"), &eurusd(&MINUTE)).unwrap();
    assert_eq!(minutes.spec.chunk.ns(), 4 * DAY_NS);
    assert_eq!(minutes.first_ts, parse_time("2014-05-01").unwrap());

    let ticks = eurusd(&["ms", "bid", "ask"]);
    let ImportError::Rows { total, .. } = import(&zips(&data, "tick"), &ticks).unwrap_err() else {
        panic!("several ticks have the same millisecond")
    };
    assert!(total > 900, "{total}");
    let ticks = import(&zips(&data, "tick"), &ImportSpec { repeats: Repeats::Spread, ..ticks }).unwrap();

    let mut bars: BTreeMap<i64, [f64; 4]> = BTreeMap::new();
    let times =
        ticks.batches().flat_map(|b| b.column(1).as_primitive::<TimestampNanosecondType>().values().to_vec());
    for (ts, bid) in times.zip(floats(&ticks, "bid")) {
        let bid = bid.unwrap();
        let bar = bars.entry(ts.div_euclid(60_000_000_000)).or_insert([bid; 4]);
        *bar = [bar[0], bar[1].max(bid), bar[2].min(bid), bid];
    }
    let columns = ["bid_open", "bid_high", "bid_low", "bid_close"].map(|name| floats(&minutes, name));
    let bars: Vec<[f64; 4]> = bars.into_values().collect();
    assert_eq!(bars.len() as u64, minutes.rows);
    for (i, bar) in bars.iter().enumerate() {
        assert_eq!(columns.each_ref().map(|c| c[i].unwrap()), *bar, "minute {i}");
    }
}

#[test]
fn reference_tables_come_in_by_naming_their_columns() {
    let Some(data) = shared_data("reference_tables_come_in_by_naming_their_columns") else { return };
    let actions = ImportSpec { ts_column: Some("ex_date".into()), ..ImportSpec::default() };
    let result = import(&[data.join("reference/corporate_actions_from_wiki.csv")], &actions);
    let rows = match result {
        Ok(found) => found.rows,
        // a split and a dividend on one day have one key
        Err(ImportError::Rows { good, total, .. }) => good + total,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(rows, 320);
    let calendar =
        ImportSpec { symbol: Some("XNYS".into()), ts_column: Some(String::new()), ..ImportSpec::default() };
    let found = import(&[data.join("reference/calendars/xnys.csv.gz")], &calendar).unwrap();
    assert_eq!(found.rows, 8_324);
    assert_eq!(found.spec.field("open").unwrap().1.data_type, FieldType::Timestamp);
}
