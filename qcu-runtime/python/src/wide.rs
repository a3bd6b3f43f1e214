//! Sessions x symbols: rows sorted by (symbol, ts) as one matrix. Pure.
//!
//! With a window, the matrix has a row for every session of a calendar, whatever rows exist. Without a window, or if a row has a time of
//! day, it has the times of the rows.
//!
//! One pass finds the axes, another fills the values. Series of one dataset mostly have the same times. So the union of times is a
//! sorted list, and each run of rows is first compared with the whole list: the usual case costs one memcmp.

use std::collections::HashMap;

use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{Float32Type, Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use arrow_schema::DataType;

use trellis_proto::{
    Code, Error,
    time::{DAY_NS, format_time},
};
use trellis_qcu::unit::{Calendar, date_of, midnight_ns};

use crate::error::Result;

/// A matrix in row-major order, `index.len() x symbols.len()`; NaN where there is no row or no value.
pub(crate) struct Wide {
    pub(crate) index: Vec<i64>,
    pub(crate) symbols: Vec<String>,
    pub(crate) values: Vec<f64>,
    /// Whether `index` is the sessions of the window's calendar.
    pub(crate) aligned: bool,
}

/// The sessions of the matrix: those of `calendar` in `[start, end)`. If a side is open, or lies before 1970 or before the calendar
/// begins, the matrix ends there with the rows.
pub(crate) struct Window {
    pub(crate) calendar: Calendar,
    pub(crate) start: Option<i64>,
    pub(crate) end: Option<i64>,
}

/// Consecutive rows of one batch with one symbol and ascending times.
struct Run<'a> {
    column: usize,
    ts: &'a [i64],
    batch: usize,
    first: usize,
}

/// Makes the matrix of `field`. The symbols in `named` get a column even if they have no row.
///
/// # Errors
/// `InvalidRequest` if `field` does not exist, is no number, or holds an integer that float64 would change, and if a row is on a day
/// that is no session of the window's calendar.
pub(crate) fn pivot(
    batches: &[RecordBatch],
    field: &str,
    window: Option<&Window>,
    named: Vec<String>,
) -> Result<Wide> {
    let mut symbols: Vec<String> = Vec::new();
    let mut columns: HashMap<String, usize> = HashMap::new();
    let mut index: Vec<i64> = Vec::new();
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut values: Vec<ArrayRef> = Vec::new();
    for (b, batch) in batches.iter().enumerate() {
        values.push(numbers(batch, field)?);
        if batch.num_rows() == 0 {
            continue;
        }
        let ts = column(batch, "ts")?
            .as_primitive_opt::<TimestampNanosecondType>()
            .ok_or_else(|| Error::new(Code::InvalidRequest, "the column ts is not timestamp[ns]"))?
            .values();
        let names = Names::of(batch)?;
        let mut first = 0;
        while first < ts.len() {
            let name = names.get(first);
            let mut end = first + 1;
            while end < ts.len() && ts[end - 1] < ts[end] && names.same(first, end) {
                end += 1;
            }
            let next = symbols.len();
            let column = match columns.get(name) {
                Some(&column) => column,
                None => {
                    columns.insert(name.to_owned(), next);
                    symbols.push(name.to_owned());
                    next
                }
            };
            merge(&mut index, &ts[first..end]);
            runs.push(Run { column, ts: &ts[first..end], batch: b, first });
            first = end;
        }
    }

    let window = window.filter(|_| index.iter().all(|t| t.rem_euclid(DAY_NS) == 0));
    if let Some(window) = window {
        let sessions = window.sessions(&index);
        if let Some(stray) = first_beyond(&index, &sessions) {
            let run = runs.iter().find(|run| run.ts.contains(&stray));
            let symbol = run.map_or("", |run| symbols[run.column].as_str());
            return Err(window.no_session(stray, symbol));
        }
        index = sessions;
    }
    for symbol in named {
        if !columns.contains_key(&symbol) {
            columns.insert(symbol.clone(), symbols.len());
            symbols.push(symbol);
        }
    }

    // the position of each symbol after sorting; a grid's answers are sorted already
    let mut order: Vec<usize> = (0..symbols.len()).collect();
    order.sort_by(|&a, &b| symbols[a].cmp(&symbols[b]));
    let mut position = vec![0; symbols.len()];
    for (to, &from) in order.iter().enumerate() {
        position[from] = to;
    }

    let width = symbols.len();
    let mut matrix = vec![f64::NAN; index.len() * width];
    for run in &runs {
        let source = values[run.batch].as_primitive::<Float64Type>();
        let Some(&start) = run.ts.first() else { continue };
        let mut row = index.partition_point(|&t| t < start);
        for (i, &ts) in run.ts.iter().enumerate() {
            while index[row] < ts {
                row += 1;
            }
            let at = run.first + i;
            if source.is_valid(at) {
                matrix[row * width + position[run.column]] = source.value(at);
            }
        }
    }
    symbols.sort();
    Ok(Wide { index, symbols, values: matrix, aligned: window.is_some() })
}

impl Window {
    /// Midnights of the sessions, for rows at the sorted midnights `rows`.
    fn sessions(&self, rows: &[i64]) -> Vec<i64> {
        let begins = self.calendar.begins().and_then(midnight_ns).unwrap_or(0).max(0);
        let start = self.start.filter(|start| *start >= begins).or(rows.first().copied());
        let end = self.end.or(rows.last().map(|last| last.saturating_add(1)));
        let (Some(start), Some(end)) = (start, end) else { return Vec::new() };
        // the date of a time of day begins earlier
        let (Some(from), Some(until)) = (date_of(start), date_of(end).and_then(|d| d.succ_opt())) else {
            return Vec::new();
        };
        let midnights = self.calendar.range(from, until).filter_map(midnight_ns);
        midnights.filter(|midnight| (start..end).contains(midnight)).collect()
    }

    fn no_session(&self, at: i64, symbol: &str) -> Error {
        let calendar = self.calendar.name();
        let begins = self.calendar.begins().filter(|begins| midnight_ns(*begins).is_some_and(|b| at < b));
        let (why, instead) = match begins {
            Some(begins) => (format!(", which begins on {begins}"), format!("read from {begins} on")),
            None => (String::new(), "name the calendar of these rows".to_owned()),
        };
        Error::new(
            Code::InvalidRequest,
            format!("{symbol} has a row on {}, which is no session of {calendar}{why}", format_time(at)),
        )
        .symbol(symbol)
        .hint(format!("wide(field, calendar=None) has the days that have rows; or {instead}"))
    }
}

/// The first of the sorted `times` that is not in the sorted `sessions`.
fn first_beyond(times: &[i64], sessions: &[i64]) -> Option<i64> {
    let mut rest = sessions.iter();
    times.iter().copied().find(|t| !rest.any(|session| session == t))
}

/// Makes the sorted list `index` the union of itself and the sorted list `ts`.
fn merge(index: &mut Vec<i64>, ts: &[i64]) {
    let Some(&first) = ts.first() else { return };
    let at = index.partition_point(|&t| t < first);
    if index.get(at..at + ts.len()).is_some_and(|known| known == ts) {
        return;
    }
    if at == index.len() {
        index.extend_from_slice(ts);
        return;
    }
    let tail = index.split_off(at);
    let (mut a, mut b) = (tail.iter().peekable(), ts.iter().peekable());
    loop {
        match (a.peek(), b.peek()) {
            (Some(&&x), Some(&&y)) => {
                index.push(x.min(y));
                a.next_if(|_| x <= y);
                b.next_if(|_| y <= x);
            }
            (Some(&&x), None) => {
                index.push(x);
                a.next();
            }
            (None, Some(&&y)) => {
                index.push(y);
                b.next();
            }
            (None, None) => return,
        }
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| {
        let schema = batch.schema();
        let there: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        Error::new(Code::InvalidRequest, format!("there is no field {name} in these rows"))
            .hint(format!("the columns are {}", there.join(", ")))
    })
}

/// The field as float64.
fn numbers(batch: &RecordBatch, field: &str) -> Result<ArrayRef> {
    let array = column(batch, field)?;
    let converted: arrow_array::Float64Array = match array.data_type() {
        DataType::Float64 => return Ok(array.clone()),
        DataType::Float32 => array.as_primitive::<Float32Type>().unary(f64::from),
        DataType::Int32 => array.as_primitive::<Int32Type>().unary(f64::from),
        DataType::Int64 => {
            let integers = array.as_primitive::<Int64Type>();
            if let Some(changed) = integers.iter().flatten().find(|v| (*v as f64) as i128 != i128::from(*v)) {
                return Err(Error::new(
                    Code::InvalidRequest,
                    format!("the field {field} holds {changed}, which a float64 does not: wide() is a matrix of those"),
                )
                .hint("use .pandas(), .polars() or .arrow(), which keep integers"));
            }
            integers.unary(|v| v as f64)
        }
        // a column without any value
        DataType::Null => arrow_array::Float64Array::new_null(array.len()),
        DataType::Boolean => array.as_boolean().iter().map(|v| v.map(f64::from)).collect(),
        other => {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("the field {field} is {other}; wide() makes a matrix of numbers"),
            )
            .hint("use .pandas() or .polars() and pivot there"));
        }
    };
    Ok(std::sync::Arc::new(converted))
}

/// The symbol column, dictionary or plain.
enum Names<'a> {
    Dictionary { keys: &'a [i32], values: &'a arrow_array::StringArray },
    Plain(&'a arrow_array::StringArray),
}

impl<'a> Names<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        let array = column(batch, "symbol")?;
        if let Some(dictionary) = array.as_dictionary_opt::<Int32Type>()
            && let Some(values) = dictionary.values().as_string_opt::<i32>()
        {
            return Ok(Self::Dictionary { keys: dictionary.keys().values(), values });
        }
        array
            .as_string_opt::<i32>()
            .map(Self::Plain)
            .ok_or_else(|| Error::new(Code::InvalidRequest, "the column symbol is not text"))
    }

    fn get(&self, row: usize) -> &'a str {
        match self {
            Self::Dictionary { keys, values } => values.value(keys[row].unsigned_abs() as usize),
            Self::Plain(values) => values.value(row),
        }
    }

    fn same(&self, a: usize, b: usize) -> bool {
        match self {
            Self::Dictionary { keys, .. } => keys[a] == keys[b],
            Self::Plain(values) => values.value(a) == values.value(b),
        }
    }
}
