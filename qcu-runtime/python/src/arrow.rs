//! `Rows`: an immutable table between Rust and Python, by the Arrow C interface in both directions.
//!
//! Whatever comes in is brought to the grid's types and copied where Python could still change it; what goes out is
//! shared. pyarrow is nobody's dependency here: any library that speaks the PyCapsule interface reads `Rows`.

use std::{
    fs::File,
    io::Write,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array,
    RecordBatch, StringArray, StructArray, TimestampNanosecondArray, UInt8Array, UInt16Array, UInt32Array,
    UInt64Array,
    cast::AsArray,
    new_null_array,
    types::{Float32Type, Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use arrow_buffer::Buffer;
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use arrow_select::{
    concat::{concat, concat_batches},
    nullif::nullif,
    take::take,
};
use pyo3::{
    buffer::PyBuffer,
    exceptions::PyOSError,
    prelude::*,
    types::{PyBool, PyBytes, PyCapsule, PyInt, PyList, PyString},
};
use pyo3_arrow::{
    buffer::PyArrowBuffer,
    error::PyArrowResult,
    ffi::{ArrayIterator, to_schema_pycapsule, to_stream_pycapsule},
    input::AnyArray,
};
use trellis_proto::{Code, Error, FieldType, spec::time_type};
use trellis_qcu::ipc;

use crate::{
    cells::Cells,
    error::{OrRaise, Result, to_py},
    runtime::{bug, detached},
    wide,
};

/// Rows of the grid: `symbol`, `ts`, fields, perhaps `known_at`.
#[pyclass(frozen, module = "trellis._trellis")]
pub(crate) struct Rows {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

impl Rows {
    pub(crate) fn new(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        Self { schema, batches }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn batches(&self) -> &[RecordBatch] {
        &self.batches
    }

    /// One column over all batches.
    fn whole(&self, name: &str) -> Result<ArrayRef> {
        let (at, field) = self.schema.column_with_name(name).ok_or_else(|| {
            Error::new(Code::InvalidRequest, format!("there is no column {name} in these rows"))
        })?;
        match self.batches.as_slice() {
            [] => Ok(arrow_array::new_empty_array(field.data_type())),
            [one] => Ok(one.column(at).clone()),
            many => {
                let parts: Vec<&dyn Array> = many.iter().map(|b| b.column(at).as_ref()).collect();
                concat(&parts).map_err(bug)
            }
        }
    }
}

#[pymethods]
impl Rows {
    fn __len__(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Bytes of the values, buffers shared with others included.
    #[getter]
    fn nbytes(&self) -> usize {
        self.batches.iter().map(RecordBatch::get_array_memory_size).sum()
    }

    /// Names and types of the columns.
    #[getter]
    fn columns(&self) -> Vec<(String, String)> {
        let name = |field: &Arc<Field>| match field.data_type() {
            DataType::Dictionary(..) => "symbol".to_owned(),
            other => FieldType::from_arrow(other).map_or_else(|| other.to_string(), |t| t.name().to_owned()),
        };
        self.schema.fields().iter().map(|f| (f.name().clone(), name(f))).collect()
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyArrowResult<Bound<'py, PyCapsule>> {
        to_schema_pycapsule(py, self.schema.as_ref())
    }

    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyCapsule>>,
    ) -> PyArrowResult<Bound<'py, PyCapsule>> {
        let row = Field::new_struct("", self.schema.fields().clone(), false);
        let batches = self.batches.clone().into_iter();
        let structs =
            batches.map(|batch| Ok::<_, ArrowError>(Arc::new(StructArray::from(batch)) as ArrayRef));
        to_stream_pycapsule(py, Box::new(ArrayIterator::new(structs, row.into())), requested_schema)
    }

    /// One column as parts that numpy makes an array of: kind, values, and which are there (None: all).
    ///
    /// Values are a buffer for numbers, times (int64 nanoseconds) and booleans (bytes), a list for text, and for
    /// symbols a pair of a buffer of int32 codes and the list they index.
    fn column<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Column<'py>> {
        let array = self.whole(name).or_raise(py)?;
        let valid = array.logical_nulls().filter(|n| n.null_count() > 0).map(|nulls| {
            let bytes: Vec<u8> = nulls.iter().map(u8::from).collect();
            PyArrowBuffer::new(Buffer::from_vec(bytes))
        });
        let buffer = |b: Buffer| Ok::<_, PyErr>(Bound::new(py, PyArrowBuffer::new(b))?.into_any());
        let (kind, values) = match array.data_type() {
            DataType::Float64 => {
                ("float64", buffer(array.as_primitive::<Float64Type>().values().inner().clone())?)
            }
            DataType::Float32 => {
                ("float32", buffer(array.as_primitive::<Float32Type>().values().inner().clone())?)
            }
            DataType::Int64 => ("int64", buffer(array.as_primitive::<Int64Type>().values().inner().clone())?),
            DataType::Int32 => ("int32", buffer(array.as_primitive::<Int32Type>().values().inner().clone())?),
            DataType::Timestamp(..) => (
                "timestamp",
                buffer(array.as_primitive::<TimestampNanosecondType>().values().inner().clone())?,
            ),
            DataType::Boolean => {
                let bytes: Vec<u8> = array.as_boolean().values().iter().map(u8::from).collect();
                ("bool", buffer(Buffer::from_vec(bytes))?)
            }
            DataType::Dictionary(..) => {
                let dictionary = array.as_dictionary::<Int32Type>();
                let codes = buffer(dictionary.keys().values().inner().clone())?;
                let names: Vec<Option<&str>> = dictionary.values().as_string::<i32>().iter().collect();
                ("symbol", (codes, names).into_pyobject(py)?.into_any())
            }
            // nothing was ever set: a column without a type
            DataType::Null => ("string", vec![None::<&str>; array.len()].into_pyobject(py)?.into_any()),
            _ => {
                let texts: Vec<Option<&str>> = array.as_string::<i32>().iter().collect();
                ("string", texts.into_pyobject(py)?.into_any())
            }
        };
        Ok((kind, values, valid))
    }

    /// The field as a matrix: times (int64 nanoseconds), symbols, values (float64, row-major).
    fn wide(&self, py: Python<'_>, field: &str) -> PyResult<(PyArrowBuffer, Vec<String>, PyArrowBuffer)> {
        let wide = detached(py, || wide::pivot(&self.batches, field))?;
        let buffer = |b| PyArrowBuffer::new(b);
        Ok((buffer(Buffer::from_vec(wide.index)), wide.symbols, buffer(Buffer::from_vec(wide.values))))
    }

    /// The first `head` and last `tail` rows as text, None for missing values.
    fn cells(&self, head: usize, tail: usize) -> Vec<Vec<Option<String>>> {
        Cells::new(Arc::clone(&self.schema), &self.batches).some(head, tail)
    }

    /// The rows as `csv`, `json` or `arrow` (IPC file): to the file `path`, or as bytes.
    #[pyo3(signature = (format, path = None))]
    fn write<'py>(
        &self,
        py: Python<'py>,
        format: &str,
        path: Option<PathBuf>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let Some(path) = path else {
            let mut bytes = Vec::new();
            py.detach(|| self.write_to(format, &mut bytes))?;
            return Ok(Some(PyBytes::new(py, &bytes)));
        };
        let written = py.detach(|| {
            let mut file = std::io::BufWriter::new(File::create(&path)?);
            self.write_to(format, &mut file)?;
            file.flush()
        });
        // with the file's name, as Python's own errors
        written.map_err(|e| match e.raw_os_error() {
            Some(code) => {
                let said = e.to_string();
                let said = said.split(" (os error").next().unwrap_or_default().to_owned();
                PyOSError::new_err((code, said, path))
            }
            None => e.into(),
        })?;
        Ok(None)
    }
}

/// Kind, values, which are there.
type Column<'py> = (&'static str, Bound<'py, PyAny>, Option<PyArrowBuffer>);

impl Rows {
    fn write_to(&self, format: &str, out: &mut impl Write) -> std::io::Result<()> {
        let cells = || Cells::new(Arc::clone(&self.schema), &self.batches);
        match format {
            "csv" => cells().csv(out),
            "json" => cells().json(out),
            "arrow" => {
                let write = || -> std::result::Result<(), ArrowError> {
                    let mut writer = arrow_ipc::writer::FileWriter::try_new(out, &self.schema)?;
                    // the file format holds one dictionary a column: answers of several heads have one each
                    for batch in self.one_dictionary()? {
                        writer.write(&batch)?;
                    }
                    writer.finish()
                };
                write().map_err(|e| match e {
                    ArrowError::IoError(_, io) => io,
                    other => std::io::Error::other(other),
                })
            }
            other => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, format!("no format {other}"))),
        }
    }

    fn one_dictionary(&self) -> std::result::Result<Vec<RecordBatch>, ArrowError> {
        if self.batches.len() < 2 {
            return Ok(self.batches.clone());
        }
        Ok(vec![concat_batches(&self.schema, &self.batches)?])
    }
}

/// Makes rows of columns, in the order given: each a kind, data, and a mask of what is there (None: all of it).
///
/// * `arrow`: any object of the Arrow C interface;
/// * `buffer`: a one-dimensional contiguous buffer of numbers; `time`: of int64 nanoseconds;
/// * `list`: a list of one kind of value, None where there is none;
/// * `scalar`: one value, for all rows.
///
/// NaN becomes a missing value. Whether the rows fit what a unit declares is checked where they are published from.
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

/// Brings an array to a type that fields have, where that changes no value.
fn grid_type(array: ArrayRef, name: &str) -> Result<ArrayRef> {
    let to = match array.data_type() {
        DataType::Null => return Ok(array),
        held if FieldType::from_arrow(held).is_some() => return Ok(array),
        DataType::Float16 => DataType::Float32,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => time_type(),
        text if is_text(text) => DataType::Utf8,
        other => {
            let why = format!("column {name} holds {other}, which no field type holds");
            return Err(Error::new(Code::BadRows, why));
        }
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
        return Ok(arrow_array::new_empty_array(field.data_type()));
    }
    concat(&parts).map_err(|e| {
        to_py(value.py(), &Error::new(Code::BadRows, format!("column {name} cannot be read: {e}")))
    })
}

/// Takes away the values that `mask` (a byte each, 0: not there) says are not there.
fn masked(array: ArrayRef, mask: Option<&Bound<'_, PyAny>>) -> PyResult<ArrayRef> {
    let Some(mask) = mask else { return Ok(array) };
    let py = mask.py();
    let away: BooleanArray =
        PyBuffer::<u8>::get(mask)?.to_vec(py)?.iter().map(|&there| Some(there == 0)).collect();
    nullif(&array, &away).map_err(bug).or_raise(py)
}

/// Copies a one-dimensional contiguous buffer: the strategy may go on writing to its own.
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

/// A table that the parent of this process sent: takes the descriptor, maps it, copies nothing.
#[pyfunction]
pub(crate) fn map_table(py: Python<'_>, fd: i32) -> PyResult<Rows> {
    // SAFETY: the caller was given the descriptor with the message and hands it over: nobody else closes it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let (schema, batches) = detached(py, || ipc::read_table(&fd).map_err(bug))?;
    Ok(Rows::new(schema, batches))
}

/// The rows as a sealed memfd, for the parent of this process.
#[pyfunction]
pub(crate) fn table_to_fd(py: Python<'_>, rows: &Rows) -> PyResult<i32> {
    let fd = detached(py, || ipc::write_table(&rows.schema, &rows.batches).map_err(bug))?;
    Ok(fd.into_raw_fd())
}
