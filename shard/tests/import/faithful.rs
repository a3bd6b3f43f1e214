//! An import never changes a value silently: cells of random dirty columns are read exactly, or refused.

use proptest::prelude::*;

use super::*;

/// A number as sign, digits without zeros at their ends, and the power of ten of the last digit.
type Decimal = (bool, String, i64);

fn decimal(plain: &str) -> Option<Decimal> {
    let (minus, unsigned) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(plain)),
    };
    let lower = unsigned.to_lowercase();
    let (mantissa, exponent) = match lower.split_once('e') {
        Some((mantissa, exponent)) => (mantissa.to_owned(), exponent.parse::<i64>().ok()?),
        None => (lower, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((&mantissa, ""));
    let all = format!("{whole}{fraction}");
    if all.is_empty() || !all.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = all.trim_start_matches('0');
    let kept = digits.trim_end_matches('0');
    if kept.is_empty() {
        return Some((false, String::new(), 0));
    }
    let power = exponent - fraction.len() as i64 + (digits.len() - kept.len()) as i64;
    Some((minus, kept.to_owned(), power))
}

/// The number in a cell, read by the options and written without marks and signs: slowly, character by character.
fn said(cell: &str, spec: &ImportSpec) -> Option<Decimal> {
    let point = spec.decimal.as_deref().unwrap_or(".");
    let mut text = cell.to_owned();
    if let Some(mark) = &spec.thousands {
        text = text.replace(mark.as_str(), "");
    }
    if point == "," {
        if text.contains('.') {
            return None;
        }
        text = text.replace(',', ".");
    }
    decimal(&text)
}

/// Whether the float equals the cell, in its shortest digits or in as many digits as the cell has.
fn same(value: f64, cell: &Decimal) -> bool {
    let digits = cell.1.len().max(1) - 1;
    decimal(&format!("{value:e}")).as_ref() == Some(cell)
        || decimal(&format!("{value:.digits$e}")).as_ref() == Some(cell)
}

fn looks_numeric(cell: &str) -> bool {
    let core = cell.trim_matches(|c: char| "$€%()-+ KMB".contains(c));
    core.starts_with(|c: char| c.is_ascii_digit())
        && core.ends_with(|c: char| c.is_ascii_digit())
        && core.bytes().all(|b| b.is_ascii_digit() || b"., '_".contains(&b))
        && !core.contains("..")
        && grouped(core)
}

/// Digits in groups of three, and at most one other mark before a fraction.
fn grouped(core: &str) -> bool {
    ["", ",", ".", "'", " ", "_"].iter().any(|mark| {
        [".", ","].iter().filter(|point| *point != mark).any(|point| {
            let (whole, fraction) = core.split_once(point).unwrap_or((core, "0"));
            let groups: Vec<&str> = if mark.is_empty() { vec![whole] } else { whole.split(mark).collect() };
            let sound = groups.len() == 1
                || (groups[1..].iter().all(|g| g.len() == 3)
                    && (1..=3).contains(&groups[0].len())
                    && !groups[0].starts_with('0'));
            let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
            sound && groups.iter().all(|g| digits(g)) && digits(fraction)
        })
    })
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any::<i32>().prop_map(|v| v.to_string()),
        2 => any::<i64>().prop_map(|v| v.to_string()),
        4 => (-1e6..1e6_f64).prop_map(|v| v.to_string()),
        2 => (any::<i32>(), 0..100_u32).prop_map(|(v, c)| format!("{v}.{c:02}")),
        1 => any::<f64>().prop_filter("finite", |v| v.is_finite()).prop_map(|v| format!("{v:e}")),
        1 => "[1-9][0-9]{15,24}(\\.[0-9]{1,8})?",
        1 => "0\\.[0-9]{14,22}",
        1 => "[+-]?[0-9]{1,6}",
    ]
}

fn dirt() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "",
        "NaN",
        "nan",
        "n/a",
        "null",
        "-",
        "inf",
        "-Infinity",
        "TRUE",
        "false",
        "T",
        "yes",
        "007",
        "1,234",
        "1,050.5",
        "10,5",
        "1.234,56",
        "1.234",
        "$10",
        "10 €",
        "12%",
        "1.2K",
        "(12.5)",
        "12-",
        "1'234",
        "1 234",
        "1_000",
        "0x10",
        "1e5",
        "12E5",
        "+5",
        "2016-08-10",
        "2016-08-10T10:00:00Z",
        "01/02/2016",
        "20160810",
        "abc",
        "3M",
        "1.2.3",
        "5.",
    ])
    .prop_map(str::to_owned)
}

fn column() -> impl Strategy<Value = Vec<String>> {
    prop_oneof![
        4 => prop::collection::vec(number(), 1..8),
        2 => prop::collection::vec(prop_oneof![3 => number(), 1 => dirt()], 1..8),
        3 => (dirt(), 1..5_usize).prop_map(|(cell, n)| vec![cell; n]),
        2 => prop::collection::vec(dirt(), 1..6),
    ]
}

fn options() -> impl Strategy<Value = ImportSpec> {
    let marks = prop::sample::select(vec![
        (None, None),
        (None, None),
        (None, Some(",")),
        (Some(","), None),
        (Some(","), Some(".")),
        (None, Some("'")),
    ]);
    marks.prop_map(|(decimal, thousands)| ImportSpec {
        decimal: decimal.map(str::to_owned),
        thousands: thousands.map(str::to_owned),
        ..amzn()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_500,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_cell_is_read_as_what_it_says_or_refused(cells in column(), spec in options(), packed in any::<bool>()) {
        let folder = Folder::new();
        let day = |i: usize| format!("2016-08-{:02}", i + 1);
        let file = if packed {
            let days: Vec<String> = (0..cells.len()).map(day).collect();
            folder.parquet("p.parquet", vec![
                ("date", Arc::new(StringArray::from(days)) as ArrayRef),
                ("x", Arc::new(StringArray::from(cells.clone()))),
            ])
        } else {
            let mut text = "date,x\n".to_owned();
            cells.iter().enumerate().for_each(|(i, c)| writeln!(text, "{},\"{c}\"", day(i)).unwrap());
            folder.put("p.csv", text)
        };
        let found = match import(&[file], &spec) {
            Ok(found) => found,
            Err(error) => {
                prop_assert!(!error.hint().is_empty(), "{error}");
                return Ok(());
            }
        };
        let kind = found.spec.fields[0].data_type;
        let columns: Vec<ArrayRef> = found.batches().map(|b| b.column(2).clone()).collect();
        prop_assert_eq!(columns.len(), 1);
        let column = &columns[0];
        if kind == FieldType::String && !packed {
            // a column of text never reads as numbers
            let others = cells.iter().filter(|c| !c.is_empty() && said(c, &spec).is_none());
            let numeric = others.clone().filter(|c| looks_numeric(c)).count();
            let digits = |c: &String| c.trim_start_matches(['+', '-']).to_owned();
            let padded = cells.iter().map(digits).any(|c| c.len() > 1 && c.starts_with('0'));
            let texts = others.filter(|c| !looks_numeric(c) && !["n/a", "null", "-"].contains(&c.as_str())).count();
            prop_assert!(numeric <= texts || padded, "{:?} became text", cells);
        }
        for (i, cell) in cells.iter().enumerate() {
            use arrow_array::Array as _;
            if column.is_null(i) {
                let no_value = cell.is_empty() || cell.eq_ignore_ascii_case("nan");
                prop_assert!(no_value, "{cell:?} of {cells:?} is lost");
                continue;
            }
            let kept = match kind {
                FieldType::String => column.as_string::<i32>().value(i) == cell,
                FieldType::Bool => column.as_boolean().value(i).to_string().eq_ignore_ascii_case(cell),
                FieldType::Timestamp => {
                    let ns = column.as_primitive::<TimestampNanosecondType>().value(i);
                    parse_time(cell).ok() == Some(ns)
                }
                FieldType::Int64 => {
                    let value = column.as_primitive::<Int64Type>().value(i);
                    said(cell, &spec) == decimal(&value.to_string())
                }
                FieldType::Float64 => {
                    let value = column.as_primitive::<Float64Type>().value(i);
                    match said(cell, &spec) {
                        Some(said) => same(value, &said),
                        None => value.is_infinite() && cell.to_lowercase().contains("inf"),
                    }
                }
                FieldType::Float32 | FieldType::Int32 => false,
            };
            prop_assert!(kept, "{cell:?} of {cells:?} is read as something else, {kind}");
        }
    }
}
