//! Rows as text, for people and for CSV and JSON. Pure.
//!
//! If every time of a column is a midnight (daily data), its times are dates, otherwise full ISO 8601 with `Z`. A column has one form,
//! so that a parser need not guess.

use std::{fmt::Write as _, io};

use arrow_array::{
    Array, RecordBatch,
    cast::AsArray,
    types::{Float32Type, Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use arrow_schema::{DataType, SchemaRef};
use trellis_proto::time::{DAY_NS, format_time};

/// How the times of one column are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TimeForm {
    Date,
    Full,
}

/// The text form of each column, chosen over all batches.
pub(crate) struct Cells<'a> {
    schema: SchemaRef,
    batches: &'a [RecordBatch],
    forms: Vec<TimeForm>,
}

impl<'a> Cells<'a> {
    pub(crate) fn new(schema: SchemaRef, batches: &'a [RecordBatch]) -> Self {
        let form = |column: usize| {
            let midnights = batches.iter().all(|batch| {
                batch
                    .column(column)
                    .as_primitive_opt::<TimestampNanosecondType>()
                    .is_some_and(|times| times.iter().flatten().all(|t| t.rem_euclid(DAY_NS) == 0))
            });
            if midnights { TimeForm::Date } else { TimeForm::Full }
        };
        let forms = (0..schema.fields().len()).map(form).collect();
        Self { schema, batches, forms }
    }

    /// Appends one value. For a missing value it appends nothing and returns false.
    fn text(&self, batch: &RecordBatch, column: usize, row: usize, out: &mut String) -> bool {
        let array = batch.column(column);
        if array.is_null(row) || *array.data_type() == DataType::Null {
            return false;
        }
        // writing to a String cannot fail
        let _ = match array.data_type() {
            DataType::Float64 => write!(out, "{}", array.as_primitive::<Float64Type>().value(row)),
            DataType::Float32 => write!(out, "{}", array.as_primitive::<Float32Type>().value(row)),
            DataType::Int64 => write!(out, "{}", array.as_primitive::<Int64Type>().value(row)),
            DataType::Int32 => write!(out, "{}", array.as_primitive::<Int32Type>().value(row)),
            DataType::Boolean => write!(out, "{}", array.as_boolean().value(row)),
            DataType::Timestamp(..) => {
                let ns = array.as_primitive::<TimestampNanosecondType>().value(row);
                let text = format_time(ns);
                match self.forms[column] {
                    TimeForm::Date => out.write_str(text.split('T').next().unwrap_or(&text)),
                    TimeForm::Full if text.contains('T') => out.write_str(&text),
                    TimeForm::Full => write!(out, "{text}T00:00:00Z"),
                }
            }
            DataType::Dictionary(..) => {
                let dictionary = array.as_dictionary::<Int32Type>();
                let key = dictionary.keys().value(row).unsigned_abs() as usize;
                out.write_str(dictionary.values().as_string::<i32>().value(key))
            }
            // rows hold only the types of fields, and this is the last of them
            _ => out.write_str(array.as_string::<i32>().value(row)),
        };
        true
    }

    /// The first `head` and the last `tail` rows, each once; `None` for a missing value.
    pub(crate) fn some(&self, head: usize, tail: usize) -> Vec<Vec<Option<String>>> {
        let total: usize = self.batches.iter().map(RecordBatch::num_rows).sum();
        let mut rows = Vec::new();
        let mut before = 0;
        for batch in self.batches {
            let n = batch.num_rows();
            let wanted = (0..n).filter(|i| before + i < head || before + i + tail >= total);
            for row in wanted {
                let cell = |column| {
                    let mut text = String::new();
                    self.text(batch, column, row, &mut text).then_some(text)
                };
                rows.push((0..batch.num_columns()).map(cell).collect());
            }
            before += n;
        }
        rows
    }

    /// CSV with a header. Missing values are empty; text is quoted if RFC 4180 demands it.
    pub(crate) fn csv(&self, out: &mut impl io::Write) -> io::Result<()> {
        let mut line = String::new();
        for (i, field) in self.schema.fields().iter().enumerate() {
            if i > 0 {
                line.push(',');
            }
            quote_csv(field.name(), &mut line);
        }
        line.push('\n');
        out.write_all(line.as_bytes())?;
        let mut cell = String::new();
        for batch in self.batches {
            for row in 0..batch.num_rows() {
                line.clear();
                for column in 0..batch.num_columns() {
                    if column > 0 {
                        line.push(',');
                    }
                    cell.clear();
                    if self.text(batch, column, row, &mut cell) {
                        quote_csv(&cell, &mut line);
                    }
                }
                line.push('\n');
                out.write_all(line.as_bytes())?;
            }
        }
        Ok(())
    }

    /// One JSON array with one object for each row, on its own line. A missing value is null. JSON cannot write three floats: they
    /// are the texts "NaN", "Infinity" and "-Infinity", as in protobuf's JSON.
    pub(crate) fn json(&self, out: &mut impl io::Write) -> io::Result<()> {
        let names: Vec<String> = self
            .schema
            .fields()
            .iter()
            .map(|f| serde_json::Value::from(f.name().as_str()).to_string())
            .collect();
        let mut cell = String::new();
        let mut first = true;
        out.write_all(b"[")?;
        for batch in self.batches {
            for row in 0..batch.num_rows() {
                let mut line = String::from(if first { "\n{" } else { ",\n{" });
                first = false;
                for (column, name) in names.iter().enumerate() {
                    if column > 0 {
                        line.push_str(", ");
                    }
                    line.push_str(name);
                    line.push_str(": ");
                    cell.clear();
                    let there = self.text(batch, column, row, &mut cell);
                    match batch.column(column).data_type() {
                        _ if !there => line.push_str("null"),
                        DataType::Float64 | DataType::Float32 if cell == "NaN" => line.push_str("\"NaN\""),
                        DataType::Float64 | DataType::Float32 if cell == "inf" => {
                            line.push_str("\"Infinity\"");
                        }
                        DataType::Float64 | DataType::Float32 if cell == "-inf" => {
                            line.push_str("\"-Infinity\"");
                        }
                        DataType::Float64
                        | DataType::Float32
                        | DataType::Int64
                        | DataType::Int32
                        | DataType::Boolean => line.push_str(&cell),
                        _ => line.push_str(&serde_json::Value::from(cell.as_str()).to_string()),
                    }
                }
                line.push('}');
                out.write_all(line.as_bytes())?;
            }
        }
        out.write_all(if first { b"]\n" } else { b"\n]\n" })
    }
}

fn quote_csv(text: &str, line: &mut String) {
    if text.contains([',', '"', '\n', '\r']) {
        line.push('"');
        line.push_str(&text.replace('"', "\"\""));
        line.push('"');
    } else {
        line.push_str(text);
    }
}
