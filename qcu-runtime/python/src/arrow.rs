//! `Rows`: an immutable table between Rust and Python, by the Arrow C interface in both directions.
//!
//! Rows go out shared, not copied. Nothing here needs pyarrow: any library that speaks the PyCapsule interface reads `Rows`. The file
//! `columns` makes rows from Python's values.

use std::{
    collections::HashMap,
    fs::File,
    io::Write,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    path::PathBuf,
    ptr::NonNull,
    sync::Arc,
};

use arrow_array::{
    Array, ArrayRef, RecordBatch, StructArray,
    cast::AsArray,
    types::{Float32Type, Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, DataType, Field, SchemaRef};
use arrow_select::concat::concat;
use pyo3::{
    exceptions::PyOSError,
    prelude::*,
    types::{PyBytes, PyCapsule},
};
use pyo3_arrow::{
    buffer::PyArrowBuffer,
    error::PyArrowResult,
    ffi::{ArrayIterator, to_schema_pycapsule, to_stream_pycapsule},
};
use trellis_proto::{Code, Error, FieldType};
use trellis_qcu::{
    child::{read_table, write_table},
    unit::Calendar,
};

use crate::{
    cells::Cells,
    error::{OrRaise, Result},
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

/// Notes the size of each allocation by its address, so that each counts once.
fn note_allocations(data: &ArrayData, allocations: &mut HashMap<NonNull<u8>, usize>) {
    let nulls = data.nulls().map(|nulls| nulls.buffer());
    allocations
        .extend(data.buffers().iter().chain(nulls).map(|buffer| (buffer.data_ptr(), buffer.capacity())));
    data.child_data().iter().for_each(|child| note_allocations(child, allocations));
}

#[pymethods]
impl Rows {
    fn __len__(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Bytes of memory that these rows keep, each allocation once: the columns of a batch are cut from one message.
    #[getter]
    fn nbytes(&self) -> usize {
        let mut allocations = HashMap::new();
        for column in self.batches.iter().flat_map(RecordBatch::columns) {
            note_allocations(&column.to_data(), &mut allocations);
        }
        allocations.into_values().sum()
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

    /// One column in the parts from which numpy makes an array: kind, values, and a mask of the values that are there (None: all).
    ///
    /// Numbers, times (int64 nanoseconds) and booleans (bytes) come as a buffer, text as a list, symbols as a pair: a buffer of int32
    /// codes and the list that they index.
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
            // a column of nulls only has no type
            DataType::Null => ("string", vec![None::<&str>; array.len()].into_pyobject(py)?.into_any()),
            _ => {
                let texts: Vec<Option<&str>> = array.as_string::<i32>().iter().collect();
                ("string", texts.into_pyobject(py)?.into_any())
            }
        };
        Ok((kind, values, valid))
    }

    /// The field as a matrix: times (int64 nanoseconds), symbols, values (float64, row-major), and whether the times are the sessions
    /// of `calendar` in `[start_ns, end_ns)`. They are not if a row has a time of day. The symbols in `named` always get a
    /// column.
    #[pyo3(signature = (field, calendar, start_ns, end_ns, named))]
    fn wide(
        &self,
        py: Python<'_>,
        field: &str,
        calendar: Option<&str>,
        start_ns: Option<i64>,
        end_ns: Option<i64>,
        named: Vec<String>,
    ) -> PyResult<(PyArrowBuffer, Vec<String>, PyArrowBuffer, bool)> {
        let calendar = calendar.map(Calendar::named).transpose().or_raise(py)?;
        let window = calendar.map(|calendar| wide::Window { calendar, start: start_ns, end: end_ns });
        let wide = detached(py, || wide::pivot(&self.batches, field, window.as_ref(), named))?;
        let buffer = |b| PyArrowBuffer::new(b);
        let (index, values) = (Buffer::from_vec(wide.index), Buffer::from_vec(wide.values));
        Ok((buffer(index), wide.symbols, buffer(values), wide.aligned))
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
        // Python's own errors have the file's name, too
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

/// Kind, values, mask.
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
                    for batch in &self.batches {
                        writer.write(batch)?;
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
}

/// The rows of an Arrow IPC file that `write` made.
#[pyfunction]
pub(crate) fn rows_of_ipc(py: Python<'_>, bytes: Vec<u8>) -> PyResult<Rows> {
    let (schema, batches) = detached(py, || {
        let file = arrow_ipc::reader::FileReader::try_new(std::io::Cursor::new(bytes), None).map_err(bug)?;
        let schema = file.schema();
        Ok((schema, file.collect::<std::result::Result<_, _>>().map_err(bug)?))
    })?;
    Ok(Rows::new(schema, batches))
}

/// Maps a table that the parent of this process sent. Takes the descriptor; copies nothing.
#[pyfunction]
pub(crate) fn map_table(py: Python<'_>, fd: i32) -> PyResult<Rows> {
    // SAFETY: the caller got the descriptor with the message and hands it over, so no other code closes it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let (schema, batches) = detached(py, || read_table(&fd).map_err(bug))?;
    Ok(Rows::new(schema, batches))
}

/// The rows as a sealed memfd, for the parent of this process.
#[pyfunction]
pub(crate) fn table_to_fd(py: Python<'_>, rows: &Rows) -> PyResult<i32> {
    let fd = detached(py, || write_table(&rows.schema, &rows.batches).map_err(bug))?;
    Ok(fd.into_raw_fd())
}
