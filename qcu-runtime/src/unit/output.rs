//! Checks a strategy's result against the unit's declaration, before anything is published. Pure.
//!
//! The error tells every problem at once, each with the column, the expected and the found type: a run may take an hour, and nobody
//! wants to correct one column per hour. A cast is allowed only if it changes no value: to a wider number, to another
//! encoding of text, to another unit of time. The error names the first value that a cast would change.

use std::{fmt::Display, sync::Arc};

use arrow_array::{
    Array, ArrayRef, RecordBatch, StringArray, TimestampNanosecondArray, UInt32Array,
    cast::AsArray,
    types::{Float32Type, Float64Type, TimestampNanosecondType},
};
use arrow_schema::{DataType, SchemaRef};
use arrow_select::{concat::concat_batches, take::take_record_batch};
use chrono::NaiveDate;
use trellis_proto::{
    Code, DatasetSpec, Error, Result, Side, Symbol,
    name::listed,
    spec::{FieldSpec, time_type},
    time::{DAY_NS, format_time},
};

use super::{calendar::midnight_ns, lossless::cast_unchanged};

/// Most problems in one error; more would hide the first.
const PROBLEMS_MAX: usize = 8;

/// The rows to publish: `symbol` (utf8), `ts`, the declared fields in their order, sorted by (symbol, ts). A frame without
/// `ts` gets the midnight UTC that the session's day starts with. A frame without rows is fine.
///
/// # Errors
/// `BadRows` on the strategy's side, naming unit, session and every problem.
pub fn check_output(
    unit: &str,
    spec: &DatasetSpec,
    session: NaiveDate,
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<RecordBatch> {
    let mut check = Check { spec, session, problems: Vec::new() };
    let rows = concat_batches(schema, batches).map_err(|e| check.refuse(unit, &e.to_string()))?;
    let checked = check.columns(&rows).and_then(|columns| check.keys(columns));
    match checked {
        Some(rows) if check.problems.is_empty() => Ok(rows),
        _ => {
            let problems = check.problems.join("; ");
            Err(check.refuse(unit, &problems))
        }
    }
}

struct Check<'a> {
    spec: &'a DatasetSpec,
    session: NaiveDate,
    problems: Vec<String>,
}

impl Check<'_> {
    fn refuse(&self, unit: &str, problems: &str) -> Error {
        let expected = self.spec.fields.iter().map(|field| format!("{}: {}", field.name, expected(field)));
        Error::new(
            Code::BadRows,
            format!(
                "{unit} for {} returned rows that do not fit {}: {problems}",
                self.session, self.spec.dataset
            ),
        )
        .hint(format!("declared are symbol, {}", listed(expected)))
        .side(Side::Strategy)
        .dataset(&self.spec.dataset)
    }

    fn problem(&mut self, problem: impl Display) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem.to_string());
        }
    }

    /// Every declared column, in its order and type. `None` if there are problems.
    fn columns(&mut self, rows: &RecordBatch) -> Option<Vec<ArrayRef>> {
        let schema = rows.schema();
        for (i, field) in schema.fields().iter().enumerate() {
            let name = field.name().as_str();
            if schema.fields()[..i].iter().any(|other| other.name() == name) {
                self.problem(format!("column `{name}` is there twice"));
            } else if name != "symbol" && name != "ts" && self.spec.field(name).is_none() {
                self.problem(format!("column `{name}` is not declared"));
            }
        }
        let symbol = self.column(rows, "symbol", &DataType::Utf8, "text");
        let ts = match schema.column_with_name("ts") {
            Some(_) => self.column(rows, "ts", &time_type(), "a time"),
            None => self.session_start(rows.num_rows()),
        };
        let mut columns = vec![symbol, ts];
        for field in &self.spec.fields {
            let column =
                self.column(rows, field.name.as_str(), &field.data_type.to_arrow(), field.data_type.name());
            if let Some(column) = &column {
                self.missing_values(field, column, rows);
            }
            columns.push(column);
        }
        columns.into_iter().collect()
    }

    fn session_start(&mut self, rows: usize) -> Option<ArrayRef> {
        let Some(midnight) = midnight_ns(self.session) else {
            self.problem("the session is beyond what nanoseconds reach");
            return None;
        };
        Some(Arc::new(TimestampNanosecondArray::from_value(midnight, rows).with_timezone("UTC")))
    }

    fn column(&mut self, rows: &RecordBatch, name: &str, want: &DataType, word: &str) -> Option<ArrayRef> {
        let Some(column) = rows.column_by_name(name) else {
            self.problem(format!("column `{name}` is missing"));
            return None;
        };
        match cast_unchanged(column, want) {
            Ok(column) => Some(column),
            Err(why) => {
                self.problem(format!("column `{name}`: expected {word}, found {}{why}", column.data_type()));
                None
            }
        }
    }

    fn missing_values(&mut self, field: &FieldSpec, column: &ArrayRef, rows: &RecordBatch) {
        if field.nullable {
            return;
        }
        let bad = |i: &usize| column.is_null(*i) || is_no_number(column, *i);
        let count = (0..column.len()).filter(bad).count();
        if let Some(row) = (0..column.len()).find(bad) {
            let what = match () {
                () if column.is_null(row) => "null",
                () if is_infinite(column, row) => "infinity",
                () => "NaN",
            };
            let whose = symbol_text(rows, row).map(|s| format!(" (symbol {s})")).unwrap_or_default();
            self.problem(format!(
                "column `{}`: {count} of {} values are missing or infinite, first {what} in row {row}{whose}; leave those \
                 rows out, or declare \"{}?\"",
                field.name,
                column.len(),
                field.data_type.name()
            ));
        }
    }

    /// Checks symbols and times, and sorts the rows by them.
    fn keys(&mut self, columns: Vec<ArrayRef>) -> Option<RecordBatch> {
        let symbols = columns[0].as_string::<i32>().clone();
        let ts = columns[1].as_primitive::<TimestampNanosecondType>().clone();
        let day = midnight_ns(self.session)?;
        let mut before: Option<&str> = None;
        for row in 0..symbols.len() {
            if symbols.is_null(row) {
                self.problem(format!("column `symbol`: null in row {row}"));
                return None;
            }
            let symbol = symbols.value(row);
            if before != Some(symbol)
                && let Err(e) = Symbol::new(symbol)
            {
                self.problem(format!("column `symbol`, row {row}: {}", e.message()));
                return None;
            }
            before = Some(symbol);
            if ts.is_null(row) {
                self.problem(format!("column `ts`: null in row {row} (symbol {symbol})"));
                return None;
            }
            let at = ts.value(row);
            if !(day..day.saturating_add(DAY_NS)).contains(&at) {
                let at = format_time(at);
                self.problem(format!(
                    "column `ts`: {at} in row {row} (symbol {symbol}) is outside the session's day"
                ));
                return None;
            }
        }
        let rows = RecordBatch::try_new(self.spec.rows_schema(), columns);
        let sorted = rows.and_then(|rows| {
            let (symbols, ts) =
                (rows.column(0).as_string::<i32>(), rows.column(1).as_primitive::<TimestampNanosecondType>());
            let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
            order.sort_by_key(|&row| (symbols.value(row as usize), ts.value(row as usize)));
            take_record_batch(&rows, &UInt32Array::from(order))
        });
        let sorted = sorted.map_err(|e| self.problem(e)).ok()?;
        self.unique(&sorted);
        Some(sorted)
    }

    fn unique(&mut self, sorted: &RecordBatch) {
        let symbols: &StringArray = sorted.column(0).as_string();
        let ts = sorted.column(1).as_primitive::<TimestampNanosecondType>();
        let twice = (1..sorted.num_rows())
            .find(|&i| symbols.value(i - 1) == symbols.value(i) && ts.value(i - 1) == ts.value(i));
        if let Some(row) = twice {
            let (symbol, at) = (symbols.value(row), format_time(ts.value(row)));
            self.problem(format!("symbol {symbol} is there twice at {at}"));
        }
    }
}

fn expected(field: &FieldSpec) -> String {
    format!("{}{}", field.data_type.name(), if field.nullable { "?" } else { "" })
}

fn symbol_text(rows: &RecordBatch, row: usize) -> Option<String> {
    let symbols = cast_unchanged(rows.column_by_name("symbol")?, &DataType::Utf8).ok()?;
    let symbols = symbols.as_string::<i32>();
    symbols.is_valid(row).then(|| symbols.value(row).to_owned())
}

fn is_infinite(column: &ArrayRef, row: usize) -> bool {
    match column.data_type() {
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).is_infinite(),
        DataType::Float32 => column.as_primitive::<Float32Type>().value(row).is_infinite(),
        _ => false,
    }
}

/// NaN or infinite.
fn is_no_number(column: &ArrayRef, row: usize) -> bool {
    match column.data_type() {
        DataType::Float64 => !column.as_primitive::<Float64Type>().value(row).is_finite(),
        DataType::Float32 => !column.as_primitive::<Float32Type>().value(row).is_finite(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{
        BooleanArray, Float64Array, Int32Array, Int64Array, LargeStringArray, TimestampMillisecondArray,
    };
    use proptest::prelude::*;

    use super::super::manifest::{Columns, OutputSpec};
    use super::*;

    fn spec(fields: &[(&str, &str)]) -> DatasetSpec {
        let fields = fields.iter().map(|(name, t)| (name.parse().unwrap(), (*t).to_owned())).collect();
        OutputSpec { dataset: "signals.s".parse().unwrap(), fields: Columns(fields) }.spec().unwrap()
    }

    fn frame(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
    }

    fn check(spec: &DatasetSpec, frame: &RecordBatch) -> Result<RecordBatch> {
        let session = "2016-08-10".parse().unwrap();
        check_output("mom", spec, session, &frame.schema(), std::slice::from_ref(frame))
    }

    fn refused(spec: &DatasetSpec, frame: &RecordBatch) -> String {
        let error = check(spec, frame).unwrap_err();
        assert_eq!((error.code(), error.whose()), (Code::BadRows, Side::Strategy));
        let text = error.to_string();
        assert!(text.contains("mom for 2016-08-10"), "{text}");
        text
    }

    fn names(names: &[&str]) -> ArrayRef {
        Arc::new(StringArray::from(names.to_vec()))
    }

    fn f64s(values: &[f64]) -> ArrayRef {
        Arc::new(Float64Array::from(values.to_vec()))
    }

    #[test]
    fn a_frame_is_sorted_and_stamped_with_the_session() {
        let spec = spec(&[("score", "float64"), ("n", "int64")]);
        let rows = frame(vec![
            ("n", Arc::new(Int32Array::from(vec![2, 1]))),
            ("symbol", Arc::new(LargeStringArray::from(vec!["B", "A"]))),
            ("score", f64s(&[0.5, -1.0])),
        ]);
        let good = check(&spec, &rows).unwrap();
        assert_eq!(good.schema(), spec.rows_schema());
        assert_eq!(good.column(0).as_string::<i32>().value(0), "A");
        let ts = good.column(1).as_primitive::<TimestampNanosecondType>();
        assert_eq!(format_time(ts.value(0)), "2016-08-10");
        assert_eq!(good.column(3).as_primitive::<arrow_array::types::Int64Type>().values(), &[1, 2]);
    }

    #[test]
    fn an_empty_frame_is_published_as_no_rows() {
        let spec = spec(&[("score", "float64")]);
        let rows = frame(vec![("symbol", names(&[])), ("score", f64s(&[]))]);
        assert_eq!(check(&spec, &rows).unwrap().num_rows(), 0);
    }

    #[test]
    fn all_problems_are_told_at_once_with_column_expected_and_found() {
        let spec = spec(&[("score", "float64"), ("ok", "bool")]);
        let rows =
            frame(vec![("symbol", names(&["A"])), ("score", names(&["high"])), ("extra", f64s(&[1.0]))]);
        let text = refused(&spec, &rows);
        for part in [
            "column `extra` is not declared",
            "column `score`: expected float64, found Utf8",
            "column `ok` is missing",
            "declared are symbol, score: float64, ok: bool",
        ] {
            assert!(text.contains(part), "{part} not in: {text}");
        }
    }

    #[test]
    fn missing_values_are_refused_unless_declared() {
        let rows =
            frame(vec![("symbol", names(&["A", "B", "C"])), ("score", f64s(&[1.0, f64::NAN, f64::NAN]))]);
        let text = refused(&spec(&[("score", "float64")]), &rows);
        assert!(
            text.contains("2 of 3 values are missing or infinite, first NaN in row 1 (symbol B)"),
            "{text}"
        );
        assert!(text.contains("\"float64?\""), "{text}");
        assert_eq!(check(&spec(&[("score", "float64?")]), &rows).unwrap().num_rows(), 3);
        let infinite = frame(vec![("symbol", names(&["A"])), ("score", f64s(&[f64::NEG_INFINITY]))]);
        assert!(
            refused(&spec(&[("score", "float64")]), &infinite).contains("first infinity in row 0 (symbol A)")
        );
        assert_eq!(check(&spec(&[("score", "float64?")]), &infinite).unwrap().num_rows(), 1);
    }

    #[test]
    fn keys_must_be_unique_named_and_inside_the_session() {
        let one = spec(&[("score", "float64")]);
        let with_ts = |ts: i64| {
            let ts = TimestampMillisecondArray::from(vec![ts]).with_timezone("UTC");
            frame(vec![("symbol", names(&["A"])), ("ts", Arc::new(ts) as _), ("score", f64s(&[1.0]))])
        };
        let midnight = 1_470_787_200_000;
        assert!(check(&one, &with_ts(midnight + 86_399_999)).is_ok());
        assert!(refused(&one, &with_ts(midnight + 86_400_000)).contains("outside the session's day"));
        let twice = frame(vec![("symbol", names(&["A", "B", "A"])), ("score", f64s(&[1.0, 2.0, 3.0]))]);
        assert!(refused(&one, &twice).contains("symbol A is there twice"));
        let unnamed = frame(vec![("symbol", names(&[""])), ("score", f64s(&[1.0]))]);
        assert!(refused(&one, &unnamed).contains("row 0"));
        let null = frame(vec![
            ("symbol", Arc::new(StringArray::from(vec![None::<&str>])) as _),
            ("score", f64s(&[1.0])),
        ]);
        assert!(refused(&one, &null).contains("null in row 0"));
    }

    #[test]
    fn types_that_could_change_a_value_are_refused() {
        let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
        for (want, column) in [
            ("int64", f64s(&[1.5])),
            ("bool", f64s(&[1.0])),
            ("float64", flags.clone()),
            ("string", f64s(&[1.0])),
            ("int32", Arc::new(Int64Array::from(vec![1_i64 << 40])) as _),
            ("float32", f64s(&[0.1])),
            ("timestamp", f64s(&[0.1])),
        ] {
            let rows = frame(vec![("symbol", names(&["A"])), ("v", column)]);
            assert!(refused(&spec(&[("v", want)]), &rows).contains("column `v`"), "{want}");
        }
        assert!(
            check(&spec(&[("v", "bool")]), &frame(vec![("symbol", names(&["A"])), ("v", flags)])).is_ok()
        );
    }

    proptest! {
        #[test]
        fn accepted_rows_are_the_rows_given(rows_in in proptest::collection::btree_map("[A-Z]{1,3}", -1e9..1e9_f64, 0..30), turn in any::<usize>()) {
            let mut rows: Vec<(String, f64)> = rows_in.into_iter().collect();
            let sorted = rows.clone();
            if !rows.is_empty() {
                let by = turn % rows.len();
                rows.rotate_left(by);
            }
            let symbols: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.0)));
            let given = frame(vec![("symbol", symbols), ("v", Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.1))))]);
            let good = check(&spec(&[("v", "float64")]), &given).unwrap();
            let got: Vec<(String, f64)> = good.column(0).as_string::<i32>().iter().flatten().map(str::to_owned)
                .zip(good.column(2).as_primitive::<Float64Type>().values().iter().copied()).collect();
            prop_assert_eq!(got, sorted);
        }
    }
}
