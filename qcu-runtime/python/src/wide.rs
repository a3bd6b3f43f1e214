//! Sessions x symbols: rows sorted by (symbol, ts) as one matrix. Pure.
//!
//! One pass finds the axes, one fills. Series of one dataset mostly have the same times, so the union of times is kept
//! as a sorted list and compared with each run as a whole before anything is merged: the usual case costs a memcmp.

use std::collections::HashMap;

use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{Float32Type, Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use arrow_schema::DataType;
use trellis_proto::{Code, Error};

use crate::error::Result;

/// A matrix in row-major order, `index.len() x symbols.len()`; NaN where there is no row or no value.
pub(crate) struct Wide {
    pub(crate) index: Vec<i64>,
    pub(crate) symbols: Vec<String>,
    pub(crate) values: Vec<f64>,
}

/// Consecutive rows of one batch with one symbol and ascending times.
struct Run<'a> {
    column: usize,
    ts: &'a [i64],
    batch: usize,
    first: usize,
}

/// # Errors
/// `InvalidRequest` if `field` is not there, or not a number.
pub(crate) fn pivot(batches: &[RecordBatch], field: &str) -> Result<Wide> {
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

    // position of each symbol once they are sorted; the identity for every answer of a grid
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
    Ok(Wide { index, symbols, values: matrix })
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
        // exact up to 2^53, as everywhere in float64
        DataType::Int64 => array.as_primitive::<Int64Type>().unary(|v| v as f64),
        // a column without a single value
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
