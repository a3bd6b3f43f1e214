//! The options of an import: notation, formats of times, the places of the symbol and the header.

use arrow_array::{Date64Array, TimestampMicrosecondArray, TimestampSecondArray};
use parquet::{
    data_type::{Int96, Int96Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use trellis_shard::import::NumberSign;

use super::*;

fn refused(text: &str, spec: &ImportSpec) -> (String, String) {
    let error = import_text(text, spec).unwrap_err();
    (error.to_string(), error.hint().to_owned())
}

#[test]
fn numbers_in_another_notation_are_read_by_the_option_that_the_refusal_names() {
    use NumberSign::{Currency, Parentheses, Percent, Suffix, TrailingMinus};
    let marks = |decimal: Option<&str>, thousands: Option<&str>| ImportSpec {
        decimal: decimal.map(str::to_owned),
        thousands: thousands.map(str::to_owned),
        ..amzn()
    };
    let signs = |notation: &[NumberSign]| ImportSpec { notation: notation.to_vec(), ..amzn() };
    for (cells, hint, spec, values) in [
        (["1,050.5", "1,051.0"], "--thousands ,", marks(None, Some(",")), ["1050.5", "1051.0"]),
        (["1,234,567", "2,234,567"], "--thousands ,", marks(None, Some("comma")), ["1234567", "2234567"]),
        (["10,5", "11,25"], "--decimal ,", marks(Some(","), None), ["10.5", "11.25"]),
        (["1.234,56", "1,5"], "--decimal , --thousands .", marks(Some(","), Some(".")), ["1234.56", "1.5"]),
        (["1'234", "5"], "--thousands apostrophe", marks(None, Some("apostrophe")), ["1234", "5"]),
        (["1 234 567", "5"], "--thousands space", marks(None, Some("space")), ["1234567", "5"]),
        (["1_000", "5"], "--thousands _", marks(None, Some("_")), ["1000", "5"]),
        (["$10", "-$1.5"], "--notation currency", signs(&[Currency]), ["10.0", "-1.5"]),
        (["10 €", "1 €"], "--notation currency", signs(&[Currency]), ["10", "1"]),
        (["12%", "0.5%"], "--notation percent", signs(&[Percent]), ["0.12", "0.005"]),
        (["1.2K", "3M"], "--notation suffix", signs(&[Suffix]), ["1200.0", "3000000.0"]),
        (["(12.5)", "1"], "--notation parentheses", signs(&[Parentheses]), ["-12.5", "1.0"]),
        (["12-", "1"], "--notation trailing-minus", signs(&[TrailingMinus]), ["-12", "1"]),
    ] {
        let text = format!("date,x\n2016-08-10,\"{}\"\n2016-08-11,\"{}\"\n", cells[0], cells[1]);
        let (message, told) = refused(&text, &amzn());
        assert!(message.contains("notation") && told.contains(hint), "{message}; {told}");
        let found = import_text(&text, &spec).unwrap();
        let expected = [format!("AMZN 2016-08-10 {}", values[0]), format!("AMZN 2016-08-11 {}", values[1])];
        assert_eq!(rows(&found), expected, "{cells:?}");
    }
    let (_, told) = refused("date,x\n2016-08-10,\"1,234\"\n", &amzn());
    assert!(told.contains("--thousands , (1,234 is 1234) or --decimal , (1,234 is 1.234)"), "{told}");
    let mixed = "date,x\n2016-08-10,$1\n2016-08-11,€1\n";
    assert!(refused(mixed, &signs(&[Currency])).0.contains("$ and in €"));
}

#[test]
fn what_a_type_does_not_hold_is_refused_unless_the_type_is_said() {
    let ids =
        "date,x\n2016-08-10,9007199254740993\n2016-08-11,NaN\n2016-08-12,\n2016-08-13,9007199254740995\n";
    let found = import_text(ids, &amzn()).unwrap();
    assert_eq!(ints(&found, "x"), [Some(9_007_199_254_740_993), None, None, Some(9_007_199_254_740_995)]);
    assert_eq!(found.sample[0].missing, 2);
    for cell in ["9007199254740993", "12345678901234567890.12"] {
        let text = format!("date,x\n2016-08-10,{cell}\n2016-08-11,1.5\n");
        let (message, told) = refused(&text, &amzn());
        assert!(
            message.contains("float64 does not hold it") && told.contains("--types x=float64"),
            "{message}; {told}"
        );
        let said = |kind: &str| ImportSpec { types: BTreeMap::from([(field("x"), kind.into())]), ..amzn() };
        assert_eq!(import_text(&text, &said("string")).unwrap().rows, 2);
        assert_eq!(floats(&import_text(&text, &said("float64")).unwrap(), "x")[0], cell.parse().ok());
    }
}

#[test]
fn dates_in_other_forms_are_read_by_the_form_that_the_refusal_names() {
    let formed =
        |forms: &[&str]| ImportSpec { ts_format: forms.iter().map(|&f| f.to_owned()).collect(), ..amzn() };
    for (cells, hint, forms, time) in [
        (["13/02/2016", "01/03/2016"], "say --ts-format %d/%m/%Y;", &["%d/%m/%Y"][..], "2016-02-13"),
        (["02/13/2016", "03/01/2016"], "say --ts-format %m/%d/%Y;", &["%m/%d/%Y"], "2016-02-13"),
        (["13-Feb-2016", "1-Mar-2016"], "say --ts-format %d-%b-%Y;", &["%d-%b-%Y"], "2016-02-13"),
        (
            ["2016-02-13", "01/13/2017"],
            "--ts-format %m/%d/%Y --ts-format iso",
            &["%m/%d/%Y", "iso"],
            "2016-02-13",
        ),
        (["201602", "201603"], "say --ts-format %Y%m;", &["%Y%m"], "2016-02-01"),
        (["2016", "2017"], "say --ts-format %Y;", &["%Y"], "2016-01-01"),
        (
            ["20160213093000", "20160301093000"],
            "--ts-format %Y%m%d%H%M%S;",
            &["%Y%m%d%H%M%S"],
            "2016-02-13T09:30:00Z",
        ),
    ] {
        let text = format!("date,x\n{},1\n{},2\n", cells[0], cells[1]);
        let (_, told) = refused(&text, &amzn());
        assert!(told.contains(hint), "{cells:?}: {told}");
        assert_eq!(rows(&import_text(&text, &formed(forms)).unwrap())[0], format!("AMZN {time} 1"));
    }
    let (_, told) = refused("date,x\n01/02/2016,1\n", &amzn());
    assert!(
        told.contains("--ts-format %d/%m/%Y (01/02/2016 is 1 February 2016) or --ts-format %m/%d/%Y (01/02/2016 is 2 January 2016)"),
        "{told}"
    );
    // dates in a field as well
    let (message, told) = refused("date,listed\n2016-08-10,13/02/2016\n", &amzn());
    assert!(message.contains("listed") && told.contains("--ts-format %d/%m/%Y --ts-format iso"), "{told}");
    let both = formed(&["%d/%m/%Y", "iso"]);
    let found = import_text("date,listed\n2016-08-10,13/02/2016\n", &both).unwrap();
    assert_eq!(rows(&found), ["AMZN 2016-08-10 2016-02-13T00:00:00Z"]);
    for (unit, cell) in [(TsUnit::S, "20160810"), (TsUnit::Us, "20160810093000")] {
        let spec = ImportSpec { ts_unit: Some(unit), ..amzn() };
        let (message, _) = refused(&format!("ts,x\n{cell},1\n"), &spec);
        assert!(message.contains("a calendar date"), "{message}");
    }
}

#[test]
fn a_date_and_a_time_may_have_columns_of_their_own() {
    let text = "Date,Time,x\n2016-08-10,09:30:00,1\n20160810,16:00,2\n";
    let (_, told) = refused(text, &amzn());
    assert!(told.contains("--ts-column Date,Time") && told.contains("--ts-column Date if"), "{told}");
    let both = ImportSpec { ts_column: Some("Date,Time".into()), ..amzn() };
    let expected = ["AMZN 2016-08-10T09:30:00Z 1", "AMZN 2016-08-10T16:00:00Z 2"];
    assert_eq!(rows(&import_text(text, &both).unwrap()), expected);
    let folder = Folder::new();
    let file = folder.parquet(
        "p.parquet",
        vec![
            ("Date", Arc::new(Date32Array::from(vec![17_023])) as ArrayRef),
            ("Time", Arc::new(arrow_array::Time64MicrosecondArray::from(vec![34_200_000_000]))),
            ("x", Arc::new(Int64Array::from(vec![1]))),
        ],
    );
    assert_eq!(rows(&import(&[file], &both).unwrap()), expected[..1]);
}

#[test]
fn a_zone_moves_no_dates_and_says_so() {
    let there = ImportSpec { tz: Some("America/New_York".into()), ..amzn() };
    let found = import_text("date,x,ipo\n2020-01-02 09:30,1,2019-05-01\n2020-01-03,2,\n", &there).unwrap();
    assert_eq!(
        rows(&found),
        ["AMZN 2020-01-02T14:30:00Z 1 2019-05-01T00:00:00Z", "AMZN 2020-01-03T05:00:00Z 2 -"],
        "a date beside times is a midnight, and a field of dates has dates"
    );
    let found = import_text("date,x\n2020-01-02,1\n", &there).unwrap();
    assert_eq!(rows(&found), ["AMZN 2020-01-02 1"]);
    assert!(found.notes.iter().any(|n| n.contains("--tz America/New_York")), "{:?}", found.notes);
    let known = ImportSpec { known_at_column: Some("learned".into()), ..there };
    let found = import_text("date,x,learned\n2020-01-02,1,2020-01-03\n", &known).unwrap();
    assert_eq!(found.parts[0].known_at_ns, Some(parse_time("2020-01-03T05:00:00Z").unwrap()), "a moment");
}

#[test]
fn a_unit_that_does_not_fit_its_numbers_is_refused_or_told() {
    let unit = |unit: TsUnit| ImportSpec { ts_unit: Some(unit), ..amzn() };
    for (cell, of, form) in [
        ("201608100930", TsUnit::Ms, "%Y%m%d%H%M"),
        ("2016081009", TsUnit::S, "%Y%m%d%H"),
        ("2018", TsUnit::S, "%Y"),
        ("201608", TsUnit::Ms, "%Y%m"),
    ] {
        let text = format!("ts,x\n{cell},1\n");
        let (message, told) = refused(&text, &unit(of));
        assert!(
            message.contains("a calendar date") && told.ends_with(&format!("--ts-format {form}")),
            "{told}"
        );
        let formed = ImportSpec { ts_format: vec![form.into()], ..amzn() };
        assert!(rows(&import_text(&text, &formed).unwrap())[0].starts_with("AMZN 201"), "{cell}");
    }
    // a history in milliseconds has some numbers that look like dates
    let mixed = import_text("ts,x\n200707200000,1\n200793600000,2\n", &unit(TsUnit::Ms)).unwrap();
    assert!(mixed.notes.is_empty(), "{:?}", mixed.notes);
    let early = import_text("ts,x\n160810,1\n", &unit(TsUnit::S)).unwrap();
    assert!(early.notes[0].contains("--ts-unit s"), "{:?}", early.notes);
    let two = import_text("ts,x\n1577836800000,1\n1735689600000000,2\n", &unit(TsUnit::Us)).unwrap();
    assert!(two.notes[0].contains("--ts-unit ms, --ts-unit us"), "{:?}", two.notes);
    for far in ["2262-04-11T23:47:16.854775807Z", "1677-09-21T00:12:43.145224192Z"] {
        assert_eq!(places(&problems(import_text(&format!("ts,x\n{far},1\n"), &amzn()))), [(2, "ts")]);
    }
}

#[test]
fn what_a_column_without_a_name_holds_is_not_lost() {
    for text in
        ["date,x,\n2016-08-10,1,77\n", "date,x,Unnamed: 2\n2016-08-10,1,77\n", ",date,x\nABC,2016-08-10,1\n"]
    {
        let (message, told) = refused(text, &amzn());
        assert!(
            message.contains("has no name, and values") && told.contains("--skip-rows 1 --columns"),
            "{told}"
        );
    }
    let wide = ImportSpec { wide: Some(field("x")), ..ImportSpec::default() };
    assert!(refused("Date,AAPL,\n2020-01-02,1.5,2\n", &wide).0.contains("column 3 has no name"));
    for text in [",date,x,\n5,2016-08-10,1,\n", "Unnamed: 0.1,Unnamed: 0,date,x\n5,5,2016-08-10,1\n"] {
        let kept = ImportSpec { fields: FieldChoice::parse_list("x").unwrap(), ..amzn() };
        assert_eq!(rows(&import_text(text, &kept).unwrap()), ["AMZN 2016-08-10 1"], "{text:?}");
        assert_eq!(import_text(text, &amzn()).unwrap().rows, 1, "{text:?}");
    }
    let folder = Folder::new();
    let file = folder.parquet(
        "p.parquet",
        vec![
            ("__index_level_0__", Arc::new(StringArray::from(vec!["x"])) as ArrayRef),
            ("date", Arc::new(Date32Array::from(vec![17_023]))),
            ("x", Arc::new(Int64Array::from(vec![1]))),
        ],
    );
    let error = import(std::slice::from_ref(&file), &amzn()).unwrap_err();
    assert!(error.hint().contains("index=__index_level_0__"), "{}", error.hint());
    let both = ImportSpec { fields: FieldChoice::parse_list("x,index=__index_level_0__").unwrap(), ..amzn() };
    assert_eq!(rows(&import(&[file], &both).unwrap()), ["AMZN 2016-08-10 1 x"]);
}

#[test]
fn a_header_that_stands_again_is_a_bad_row_and_no_text_of_its_columns() {
    let text = "date,symbol,close\n2020-01-02,A,1.5\ndate,symbol,close\n2020-01-03,A,2\n";
    let error = import_text(text, &ImportSpec::default()).unwrap_err();
    assert!(error.to_string().contains("p.csv:3: the header stands here again"), "{error}");
    assert!(!error.hint().contains("--types"), "{}", error.hint());
}

#[test]
fn words_for_missing_values_count_in_typed_files_too() {
    let folder = Folder::new();
    let file = folder.parquet(
        "p.parquet",
        vec![
            ("date", Arc::new(Date32Array::from(vec![17_023, 17_024])) as ArrayRef),
            ("text", Arc::new(StringArray::from(vec!["abc", "N/A"]))),
            ("day", Arc::new(Date32Array::from(vec![17_023, 2_932_896]))),
            ("at", Arc::new(TimestampMicrosecondArray::from(vec![0, 253_402_214_400_000_000]))),
        ],
    );
    let error = import(std::slice::from_ref(&file), &amzn()).unwrap_err();
    assert!(error.hint().contains("--null 9999-12-31"), "{}", error.hint());
    let null = ["N/A", "9999-12-31", "9999-12-31T00:00:00"].map(str::to_owned).to_vec();
    let found = import(&[file], &ImportSpec { null, ..amzn() }).unwrap();
    assert_eq!(rows(&found)[1], "AMZN 2016-08-11 - - -");
}

#[test]
fn text_of_a_typed_file_whose_cells_are_dates_is_told_with_the_options_that_read_it() {
    let folder = Folder::new();
    let file = folder.parquet(
        "p.parquet",
        vec![
            ("date", Arc::new(Date32Array::from(vec![17_023])) as ArrayRef),
            ("listed", Arc::new(StringArray::from(vec!["01/02/2016"]))),
        ],
    );
    let found = import(std::slice::from_ref(&file), &amzn()).unwrap();
    let told = &found.notes[0];
    assert!(told.contains("--ts-format %d/%m/%Y (") && told.contains("--types listed=timestamp"), "{told}");
    let typed = ImportSpec {
        ts_format: vec!["%d/%m/%Y".into()],
        types: BTreeMap::from([(field("listed"), "timestamp".into())]),
        ..amzn()
    };
    assert_eq!(rows(&import(&[file], &typed).unwrap()), ["AMZN 2016-08-10 2016-02-01T00:00:00Z"]);
}

#[test]
fn points_that_may_stand_between_thousands_are_told_beside_semicolons() {
    let told = |text: &str, delimiter: &str| {
        let spec = ImportSpec { delimiter: Some(delimiter.into()), ..amzn() };
        import_text(text, &spec).unwrap().notes.iter().any(|n| n.contains("--decimal , --thousands ."))
    };
    assert!(told("date;x\n2016-08-10;1.234\n2016-08-11;5\n", ";"));
    assert!(!told("date;x\n2016-08-10;1.234\n2016-08-11;5.1\n", ";"));
    assert!(!told("date,x\n2016-08-10,1.234\n", ","));
}

#[test]
fn what_stands_above_the_header_is_said_or_asked_about() {
    let skip = |n| ImportSpec { skip_rows: Some(n), ..amzn() };
    for (text, hint, spec) in [
        ("# of today\n# by us\ndate,x\n2016-08-10,1\n", "--skip-rows 2", skip(2)),
        ("Report, of today\n\nDate,x\n2016-08-10,1\n", "--skip-rows 2", skip(2)),
        (
            "Report of today\ndate;x\n2016-08-10;1\n",
            "--skip-rows 1 --delimiter ';'",
            ImportSpec { delimiter: Some(";".into()), ..skip(1) },
        ),
        (
            "date\tx\n2016-08-10\t1\n",
            "--delimiter tab",
            ImportSpec { delimiter: Some("tab".into()), ..amzn() },
        ),
        (
            "date\tx\n2016-08-10\t1\n",
            "--delimiter tab",
            ImportSpec { delimiter: Some("\\t".into()), ..amzn() },
        ),
        (
            "date,x,x\n2016-08-10,1,2\n",
            "--skip-rows 1 --columns date,x,x_2",
            ImportSpec { columns: ["date", "x", "_"].map(str::to_owned).to_vec(), ..skip(1) },
        ),
    ] {
        let (_, told) = refused(text, &amzn());
        assert!(told.contains(hint), "{text:?}: {told}");
        assert_eq!(rows(&import_text(text, &spec).unwrap()), ["AMZN 2016-08-10 1"], "{text:?}");
    }
    for text in [
        "sep=;\nDate;x\n2016-08-10;1\n",
        "\u{feff}\"sep=\t\"\r\nDate\tx\r\n2016-08-10\t1\r\n",
        "#date,x\n2016-08-10,1\n",
    ] {
        assert_eq!(rows(&import_text(text, &amzn()).unwrap()), ["AMZN 2016-08-10 1"], "{text:?}");
    }
    let folder = Folder::new();
    let tabs = folder.put("p.tsv", "date\tx\n2016-08-10\t1\n");
    let text = folder.put("q.txt", "date,x\n2016-08-11,1\n");
    assert_eq!(import(&[tabs, text], &amzn()).unwrap().rows, 2);
}

#[test]
fn a_symbol_may_be_in_the_files_name_or_above_its_column() {
    let folder = Folder::new();
    let files = [
        folder.put("WIKI-BRK.B.csv", "date,close\n2016-08-10,1\n"),
        folder.put("WIKI-AMZN.csv.gz", gzip("date,close\n2016-08-10,2\n")),
    ];
    let named =
        |pattern: &str| ImportSpec { symbol_from_name: Some(pattern.into()), ..ImportSpec::default() };
    let expected = ["AMZN 2016-08-10 2", "BRK.B 2016-08-10 1"];
    assert_eq!(rows(&import(&files, &named("WIKI-{}")).unwrap()), expected);
    assert!(import(&files, &named("QUANDL-{}")).unwrap_err().to_string().contains("WIKI-BRK.B"));

    let wide = ImportSpec { wide: Some(field("close")), ..ImportSpec::default() };
    let found = import_text("Date,AMZN,BRK.B\n2016-08-10,2,1\n2016-08-11,,3.5\n", &wide).unwrap();
    assert_eq!(types(&found), [("close", FieldType::Float64)]);
    assert_eq!(rows(&found), ["AMZN 2016-08-10 2.0", "BRK.B 2016-08-10 1.0", "BRK.B 2016-08-11 3.5"]);
    assert_eq!(found.sample[0].column.as_deref(), Some("(2 columns)"));
    let bad = problems(import_text("Date,AMZN,B\n2016-08-10,2,1\n2016-08-11,x,3\n2016-08-12,1,1\n", &wide));
    assert_eq!(places(&bad), [(3, "AMZN")]);
}

#[test]
fn the_last_of_repeated_rows_can_win_and_is_told() {
    let text = "date,x\n2016-08-10,1\n2016-08-11,5\n2016-08-10,2\n2016-08-10,3\n";
    let last = ImportSpec { repeats: Repeats::Last, ..amzn() };
    let found = import_text(text, &last).unwrap();
    assert_eq!(rows(&found), ["AMZN 2016-08-10 3", "AMZN 2016-08-11 5"]);
    assert!(found.notes.iter().any(|n| n.starts_with("2 rows gave way")), "{:?}", found.notes);
}

#[test]
fn an_archive_says_what_of_it_is_left_out() {
    let folder = Folder::new();
    let data = "date,x\n2016-08-10,1\n";
    let file = folder
        .zip("p.zip", &[("README.txt", "read me"), ("./in/.v2/p.csv", data), ("__MACOSX/._p.csv", "?")]);
    let found = import(std::slice::from_ref(&file), &amzn()).unwrap();
    assert_eq!(found.rows, 1);
    let told = found.notes.join("\n");
    assert!(told.contains("left out README.txt, __MACOSX/._p.csv"), "{told}");
    let chosen = ImportSpec { member: vec!["README.txt".into()], ..amzn() };
    assert!(import(std::slice::from_ref(&file), &chosen).is_err());
    let absent = ImportSpec { member: vec!["q.csv".into()], ..amzn() };
    assert!(import(&[file], &absent).unwrap_err().hint().contains("README.txt"));
    let plain = folder.put("p.csv", data);
    assert!(import(&[plain], &absent).unwrap_err().to_string().contains("--member"));
}

#[test]
fn local_midnights_are_dates_where_the_dataset_or_the_option_says_so() {
    let text = "Date,Close\n2023-03-09 00:00:00-05:00,10\n2023-03-10 00:00:00-05:00,11\n2023-03-13 00:00:00-04:00,12\n";
    let plain = import_text(text, &amzn()).unwrap();
    assert_eq!(plain.first_ts, parse_time("2023-03-09T05:00:00Z").unwrap());
    let note = plain.notes.iter().find(|n| n.contains("--date-zone America/New_York"));
    assert!(note.is_some(), "{:?}", plain.notes);
    let zoned = ImportSpec { date_zone: Some("America/New_York".into()), ..amzn() };
    let found = import_text(text, &zoned).unwrap();
    assert_eq!(rows(&found), ["AMZN 2023-03-09 10", "AMZN 2023-03-10 11", "AMZN 2023-03-13 12"]);
    assert_eq!(found.spec.settings.date_zone.as_deref(), Some("America/New_York"));
    assert!(found.notes.is_empty(), "{:?}", found.notes);

    let folder = Folder::new();
    let into = |text: &str, spec: &ImportSpec| {
        read(&dataset(), &[folder.put("p.csv", text)], spec, Some(&found.spec), &mut |_| {})
    };
    assert_eq!(rows(&into(text, &amzn()).unwrap()), rows(&found), "the setting rules");
    assert_eq!(rows(&into("Date,Close\n2023-03-09,10\n", &amzn()).unwrap()), rows(&found)[..1]);
    let bad = problems(into("Date,Close\n2023-03-09 16:00-05:00,10\n", &amzn()));
    assert!(bad[0].reason.contains("not a midnight of America/New_York"), "{}", bad[0]);
    let other = ImportSpec { date_zone: Some("Europe/London".into()), ..amzn() };
    assert!(into(text, &other).unwrap_err().to_string().contains("America/New_York"));
    let mut without = found.spec.clone();
    without.settings = Default::default();
    let once = read(&dataset(), &[folder.put("p.csv", text)], &zoned, Some(&without), &mut |_| {}).unwrap();
    let told = "trellis dataset alter equities.daily --date-zone America/New_York";
    assert!(once.notes.iter().any(|n| n.ends_with(told)), "{:?}", once.notes);
    for (text, zone) in [
        ("date,x\n2023-01-09 00:00:00+00:00,1\n2023-07-10 00:00:00+01:00,2\n", "Europe/London"),
        ("date,x\n2023-01-09 00:00:00+04:00,1\n", "Asia/Dubai"),
    ] {
        let note = import_text(text, &amzn()).unwrap().notes.join("\n");
        let typed = note.split("--date-zone ").nth(1).unwrap().to_owned();
        let dates = |zone: &str| {
            rows(&import_text(text, &ImportSpec { date_zone: Some(zone.into()), ..amzn() }).unwrap())
        };
        assert_eq!(dates(&typed), dates(zone), "{note}");
    }
    let calendar = ImportSpec { calendar: Some("XNYS".into()), ..amzn() };
    assert_eq!(import_text(text, &calendar).unwrap().spec.settings.calendar.as_deref(), Some("XNYS"));
}

#[test]
fn a_sample_says_what_was_understood() {
    let found = import_text(LONG, &named()).unwrap();
    let close = &found.sample[0];
    assert_eq!(
        (close.field.as_str(), close.data_type, close.column.as_deref()),
        ("close", FieldType::Float64, Some("close"))
    );
    assert_eq!(
        (close.missing, close.first.clone()),
        (0, ["1.5", "2.25", "2.5"].map(|v| Some(v.to_owned())).to_vec())
    );
}

#[test]
fn no_time_of_a_typed_file_wraps() {
    let folder = Folder::new();
    let far = 253_402_214_400_i64; // 9999-12-31
    let ok = 1_470_787_200_i64;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("s", Arc::new(TimestampSecondArray::from(vec![ok, far]))),
        ("ms", Arc::new(TimestampMillisecondArray::from(vec![ok * 1_000, far * 1_000]))),
        ("us", Arc::new(TimestampMicrosecondArray::from(vec![ok * 1_000_000, far * 1_000_000]))),
        ("d32", Arc::new(Date32Array::from(vec![17_023, 2_932_896]))),
        ("d64", Arc::new(Date64Array::from(vec![ok * 1_000, far * 1_000]))),
        ("text", Arc::new(StringArray::from(vec!["2016-08-10", "9999-12-31"]))),
    ];
    for (name, times) in columns {
        let file = folder
            .parquet("p.parquet", vec![("ts", times.clone()), ("x", Arc::new(Int64Array::from(vec![1, 2])))]);
        let bad = problems(import(&[file], &amzn()));
        assert_eq!(places(&bad), [(2, "ts")], "{name}");
        assert!(
            bad[0].reason.contains("1678") && bad[0].value.starts_with("9999-12-31"),
            "{name}: {}",
            bad[0]
        );
        let file = folder.parquet(
            "q.parquet",
            vec![
                ("ts", Arc::new(StringArray::from(vec!["2016-08-10", "2016-08-11"])) as ArrayRef),
                ("until", times),
            ],
        );
        if name != "text" {
            let bad = problems(import(&[file], &amzn()));
            assert_eq!(places(&bad), [(2, "until")], "{name}");
        }
    }
}

#[test]
fn times_of_96_bits_do_not_wrap() {
    let folder = Folder::new();
    let path = folder.path("p.parquet");
    let schema = Arc::new(parse_message_type("message m { required int96 ts; required int64 x; }").unwrap());
    let mut writer = SerializedFileWriter::new(
        File::create(&path).unwrap(),
        schema,
        Arc::new(WriterProperties::builder().build()),
    )
    .unwrap();
    let mut group = writer.next_row_group().unwrap();
    // nanoseconds of the day, and the day by Julian count: 2440588 is 1970-01-01
    let at = |days: u32, ns: u64| {
        let mut value = Int96::new();
        value.set_data(ns as u32, (ns >> 32) as u32, 2_440_588 + days);
        value
    };
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int96Type>()
        .write_batch(&[at(17_023, 34_200_000_000_001), at(2_932_896, 0)], None, None)
        .unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<parquet::data_type::Int64Type>().write_batch(&[1, 2], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let quarantine = ImportSpec { quarantine: Some(folder.path("bad.csv")), ..amzn() };
    let found = import(&[path], &quarantine).unwrap();
    assert_eq!(rows(&found), ["AMZN 2016-08-10T09:30:00.000000001Z 1"]);
    assert!(found.problems[0].value.starts_with("9999-12-31"), "{}", found.problems[0]);
}

#[test]
fn typed_numbers_are_exact_or_refused() {
    let folder = Folder::new();
    let big = 9_007_199_254_740_993_i64;
    let dates = || Arc::new(StringArray::from(vec!["2016-08-10", "2016-08-11"])) as ArrayRef;
    let decimals = |values: Vec<i128>, precision, scale| {
        Arc::new(Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap())
            as ArrayRef
    };
    let ids =
        folder.parquet("a.parquet", vec![("date", dates()), ("x", decimals(vec![big.into(), 1], 38, 0))]);
    assert_eq!(ints(&import(&[ids], &amzn()).unwrap(), "x"), [Some(big), Some(1)]);
    let fine = folder.parquet(
        "b.parquet",
        vec![("date", dates()), ("x", decimals(vec![12_345_678_901_234_567_891, 125], 38, 2))],
    );
    assert_eq!(places(&problems(import(&[fine], &amzn()))), [(1, "x")]);
    let into = |array: ArrayRef, kind| {
        let there = DatasetSpec::new(
            dataset(),
            vec![FieldSpec { name: field("x"), data_type: kind, nullable: true }],
            ChunkSpan::new(DAY_NS).unwrap(),
        );
        let file = folder.parquet("c.parquet", vec![("date", dates()), ("x", array)]);
        read(&dataset(), &[file], &amzn(), Some(&there.unwrap()), &mut |_| {})
    };
    let found = into(Arc::new(Int64Array::from(vec![1, 2])), FieldType::Float64).unwrap();
    assert_eq!(floats(&found, "x"), [Some(1.0), Some(2.0)]);
    assert_eq!(
        places(&problems(into(Arc::new(Int64Array::from(vec![big, 2])), FieldType::Float64))),
        [(1, "x")]
    );
    let wider = into(Arc::new(Float64Array::from(vec![1.5, 2.0])), FieldType::Int64).unwrap();
    assert_eq!(
        (types(&wider), floats(&wider, "x")),
        (vec![("x", FieldType::Float64)], vec![Some(1.5), Some(2.0)])
    );
    let whole = into(Arc::new(Float64Array::from(vec![1.0, f64::NAN])), FieldType::Int64).unwrap();
    assert_eq!(ints(&whole, "x"), [Some(1), None]);
}

#[test]
fn a_column_without_values_is_no_field_unless_its_type_is_said() {
    let text = "date,x,y,z\n2016-08-10,1,,NaN\n2016-08-11,2,,\n";
    let found = import_text(text, &amzn()).unwrap();
    assert_eq!(types(&found), [("x", FieldType::Int64)]);
    assert!(found.notes.iter().any(|n| n.contains("column of y has no values yet")), "{:?}", found.notes);
    let said = ImportSpec { types: [(field("y"), "string".to_owned())].into(), ..amzn() };
    assert_eq!(
        types(&import_text(text, &said).unwrap()),
        [("x", FieldType::Int64), ("y", FieldType::String)]
    );
    let required = ImportSpec { required: vec![field("y")], ..amzn() };
    assert_eq!(places(&problems(import_text(text, &required))), [(2, "y"), (3, "y")]);

    // an existing field is missing in the file
    let folder = Folder::new();
    let file = folder.put("b.csv", "date,x,y\n2016-08-12,,\n");
    let there = import_text(text, &said).unwrap().spec;
    let again = read(&dataset(), &[file], &amzn(), Some(&there), &mut |_| {}).unwrap();
    assert_eq!(rows(&again), ["AMZN 2016-08-12 - -"]);
}

#[test]
fn a_new_dataset_has_chunks_with_which_a_read_takes_all_of_it() {
    let ticks: String = (0..9).map(|i| format!("2024-01-02T10:00:00.{i:09},{i}\n")).collect();
    let near = import_text(&format!("date,x\n{ticks}"), &amzn()).unwrap();
    assert_eq!(near.spec.chunk.ns(), 3_600_000_000_000);
    near.check_span(Some((parse_time("2000-01-01").unwrap(), near.last_ts))).unwrap();
    near.check_span(Some((parse_time("1700-01-01").unwrap(), near.last_ts))).unwrap_err();
    let far = "1677-09-22,1\n2262-04-11,2\n";
    let wide = import_text(&format!("date,x\n{far}{ticks}"), &amzn()).unwrap();
    wide.check_span(None).unwrap();
    assert!(wide.notes[0].contains("1677-09-22 to 2262-04-11"), "{:?}", wide.notes);
}
