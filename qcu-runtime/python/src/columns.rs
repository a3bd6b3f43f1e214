//! Rows from Python's own values: numpy arrays, lists, Arrow arrays of any library.
//!
//! Buffers are copied, because a strategy may go on writing to its own. Values are cast to the types of fields if the cast changes
//! none of them.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array,
    RecordBatch, StringArray, TimestampNanosecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
    cast::AsArray,
    new_empty_array, new_null_array,
    types::{Float32Type, Float64Type},
};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::{concat::concat, nullif::nullif, take::take};
use pyo3::{
    buffer::PyBuffer,
    prelude::*,
    types::{PyBool, PyInt, PyList, PyString},
};
use pyo3_arrow::input::AnyArray;
use trellis_proto::{Code, Error, FieldType};
use trellis_qcu::unit::{decimals_to_numbers, is_decimal, times_to_ns};

use crate::{
    arrow::Rows,
    error::{OrRaise, Result, to_py},
    runtime::bug,
};

/// Makes rows from columns, in the given order. A column is a kind, its data, and a mask of the values that are there (None: all).
///
/// * `arrow`: any object of the Arrow C interface;
/// * `buffer`: a one-dimensional contiguous buffer of numbers; `time`: of int64 nanoseconds;
/// * `list`: a list of one kind of value, with None for a missing value;
/// * `scalar`: one value, for all rows.
///
/// NaN becomes a missing value. A later check compares the rows with the unit's declaration.
#[pyfunction]
pub(crate) fn make_rows(py: Python<'_>, columns: Vec<Given<'_>>) -> PyResult<Rows> {
    let refuse = |message: String| to_py(py, &Error::new(Code::BadRows, message));
    let mut length = None;
    let mut made = Vec::with_capacity(columns.len());
    for (name, kind, data, mask) in &columns {
        let array = match kind.as_str() {
            "arrow" => arrow_array_of(data, name)?,
            "buffer" => buffer_array(data, name)?,
            "time" => {
                let ns = PyBuffer::<i64>::get(data)?.to_vec(py)?;
                Arc::new(TimestampNanosecondArray::from(ns).with_timezone("UTC")) as ArrayRef
            }
            _ => list_array(data.cast::<PyList>()?, name)?,
        };
        let array = masked(array, mask.as_ref())?;
        let array = grid_type(array, name).and_then(nan_to_null).or_raise(py)?;
        if kind != "scalar" {
            match length {
                None => length = Some((name, array.len())),
                Some((_, rows)) if rows == array.len() => {}
                Some((first, rows)) => {
                    let lengths = format!("{first} has {rows} values, {name} has {}", array.len());
                    return Err(refuse(format!("the columns have different lengths: {lengths}")));
                }
            }
        }
        made.push((name, kind == "scalar", array));
    }
    let rows = length.map_or(1, |(_, rows)| rows);
    let columns = made.into_iter().map(|(name, scalar, array)| {
        let array = if scalar { repeat(&array, rows)? } else { array };
        Ok((Field::new(name, array.data_type().clone(), true), array))
    });
    let (fields, arrays): (Vec<_>, Vec<_>) =
        columns.collect::<Result<Vec<_>>>().or_raise(py)?.into_iter().unzip();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(bug).or_raise(py)?;
    Ok(Rows::new(schema, vec![batch]))
}

/// Name, kind, data, mask.
type Given<'py> = (String, String, Bound<'py, PyAny>, Option<Bound<'py, PyAny>>);

/// Casts an array to a type of fields, if that changes no value.
fn grid_type(array: ArrayRef, name: &str) -> Result<ArrayRef> {
    let refuse =
        |why: &str| Error::new(Code::BadRows, format!("column {name} holds {}{why}", array.data_type()));
    let to = match array.data_type() {
        DataType::Null => return Ok(array),
        held if FieldType::from_arrow(held).is_some() => return Ok(array),
        DataType::Float16 => DataType::Float32,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => {
            return times_to_ns(&array).map_err(|why| refuse(&why));
        }
        held if is_decimal(held) => {
            return decimals_to_numbers(&array).map_err(|why| refuse(&why));
        }
        text if is_text(text) => DataType::Utf8,
        _ => return Err(refuse(", which no field type holds")),
    };
    let checked = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(&array, &to, &checked)
        .map_err(|e| Error::new(Code::BadRows, format!("column {name} has a value that does not fit: {e}")))
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn repeat(array: &ArrayRef, rows: usize) -> Result<ArrayRef> {
    let all = UInt32Array::from(vec![0; rows]);
    take(array, &all, None).map_err(bug)
}

fn arrow_array_of(value: &Bound<'_, PyAny>, name: &str) -> PyResult<ArrayRef> {
    let (chunks, field) = value.extract::<AnyArray>()?.into_chunked_array()?.into_inner();
    let parts: Vec<&dyn Array> = chunks.iter().map(AsRef::as_ref).collect();
    if parts.is_empty() {
        return Ok(new_empty_array(field.data_type()));
    }
    concat(&parts).map_err(|e| {
        to_py(value.py(), &Error::new(Code::BadRows, format!("column {name} cannot be read: {e}")))
    })
}

/// Makes values null where `mask` (one byte for each) is 0.
fn masked(array: ArrayRef, mask: Option<&Bound<'_, PyAny>>) -> PyResult<ArrayRef> {
    let Some(mask) = mask else { return Ok(array) };
    let py = mask.py();
    let away: BooleanArray =
        PyBuffer::<u8>::get(mask)?.to_vec(py)?.iter().map(|&there| Some(there == 0)).collect();
    nullif(&array, &away).map_err(bug).or_raise(py)
}

/// Copies a one-dimensional contiguous buffer.
fn buffer_array(value: &Bound<'_, PyAny>, name: &str) -> PyResult<ArrayRef> {
    let py = value.py();
    macro_rules! try_each {
        ($($element:ty => $array:ty),*) => {
            $(if let Ok(buffer) = PyBuffer::<$element>::get(value) {
                return Ok(Arc::new(<$array>::from(buffer.to_vec(py)?)));
            })*
        };
    }
    try_each!(
        f64 => Float64Array, f32 => Float32Array, i64 => Int64Array, i32 => Int32Array, i16 => Int16Array,
        i8 => Int8Array, u64 => UInt64Array, u32 => UInt32Array, u16 => UInt16Array, u8 => UInt8Array
    );
    Err(to_py(
        py,
        &Error::new(Code::BadRows, format!("column {name} has a numpy type that no field type holds")),
    ))
}

/// A list of one kind of value; None is missing.
fn list_array(list: &Bound<'_, PyList>, name: &str) -> PyResult<ArrayRef> {
    let py = list.py();
    let there = || list.iter().filter(|item| !item.is_none());
    let wrong = |e: PyErr| {
        let message = format!("column {name}: {}", e.value(py));
        to_py(py, &Error::new(Code::BadRows, message).hint("one column holds one kind of value"))
    };
    let is_int = |item: &Bound<'_, PyAny>| item.is_instance_of::<PyInt>() && !item.is_instance_of::<PyBool>();
    let array: ArrayRef = match there().next() {
        None => new_null_array(&DataType::Null, list.len()),
        Some(item) if item.is_instance_of::<PyString>() => {
            Arc::new(StringArray::from(list.extract::<Vec<Option<String>>>().map_err(wrong)?))
        }
        Some(item) if item.is_instance_of::<PyBool>() => {
            Arc::new(BooleanArray::from(list.extract::<Vec<Option<bool>>>().map_err(wrong)?))
        }
        Some(_) if there().all(|item| is_int(&item)) => {
            Arc::new(Int64Array::from(list.extract::<Vec<Option<i64>>>().map_err(wrong)?))
        }
        Some(_) => Arc::new(Float64Array::from(list.extract::<Vec<Option<f64>>>().map_err(wrong)?)),
    };
    Ok(array)
}

fn nan_to_null(array: ArrayRef) -> Result<ArrayRef> {
    let nan: BooleanArray = match array.data_type() {
        DataType::Float64 => {
            array.as_primitive::<Float64Type>().values().iter().map(|v| Some(v.is_nan())).collect()
        }
        DataType::Float32 => {
            array.as_primitive::<Float32Type>().values().iter().map(|v| Some(v.is_nan())).collect()
        }
        _ => return Ok(array),
    };
    if nan.true_count() == 0 { Ok(array) } else { nullif(&array, &nan).map_err(bug) }
}
