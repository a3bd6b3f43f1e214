//! Rows from Parquet. Columns come typed; they are brought to one of a few shapes by Arrow's casts, and from there take
//! the same way into the table as text does, so that both kinds of file obey the same rules.

use arrow_array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray,
    cast::AsArray,
    types::{Float64Type, Int64Type, TimestampNanosecondType},
};
use arrow_buffer::NullBuffer;
use arrow_cast::{
    CastOptions, cast_with_options,
    display::{ArrayFormatter, FormatOptions},
};
use arrow_schema::{DataType, TimeUnit};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
};
use trellis_proto::{FieldName, FieldType, spec::FieldSpec};

use super::{
    ImportSpec, Ticker,
    cell::{Cell, Reading, missing, narrow, whole},
    clock::{Clock, Reason},
    header::{Header, resolve},
    problem::{Bad, BadRows, ImportError},
    source::Source,
    table::{Key, Table},
    text::{Role, Target, present},
};

const BATCH_ROWS: usize = 16_384;

fn damaged(source: &Source, error: &dyn std::fmt::Display) -> ImportError {
    ImportError::file(
        &source.name,
        format!("not Parquet that can be read: {error}"),
        "fetch or write the file again",
    )
}

fn builder(source: &Source) -> Result<ParquetRecordBatchReaderBuilder<std::fs::File>, ImportError> {
    ParquetRecordBatchReaderBuilder::try_new(source.open()?).map_err(|e| damaged(source, &e))
}

/// The types a Parquet column may be read as: the natural one first.
fn field_type(data_type: &DataType) -> Option<FieldType> {
    Some(match data_type {
        DataType::Float64 | DataType::Decimal128(..) | DataType::Decimal256(..) => FieldType::Float64,
        DataType::Float16 | DataType::Float32 => FieldType::Float32,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
            FieldType::Int32
        }
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => FieldType::Int64,
        DataType::Boolean => FieldType::Bool,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => FieldType::String,
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => FieldType::Timestamp,
        DataType::Dictionary(_, values) => return field_type(values),
        _ => return None,
    })
}

/// Whether values of `from` can be values of a field of type `to`.
fn fits(from: FieldType, to: FieldType) -> bool {
    use FieldType::{Float32, Float64, Int32, Int64, String, Timestamp};
    let number = |t| matches!(t, Float64 | Float32 | Int64 | Int32);
    from == to || from == String || (number(from) && number(to)) || (from == Int64 && to == Timestamp)
}

/// The fields of a file; a column of nothing but nulls may have no type.
pub(crate) type Types = Vec<(FieldName, Option<FieldType>)>;

/// Reads the header; for each field its type.
pub(crate) fn survey(source: &Source, spec: &ImportSpec) -> Result<(Header, Types), ImportError> {
    let schema = builder(source)?.schema().clone();
    let names: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
    let header = resolve(&source.name, &names, spec)?;
    let mut types = Vec::with_capacity(header.fields.len());
    for (name, column) in &header.fields {
        let data_type = schema.field(*column).data_type();
        let found = field_type(data_type);
        if found.is_none() && *data_type != DataType::Null {
            return Err(ImportError::file(
                &source.name,
                format!("the column {:?} has the type {data_type}, which no field can have", names[*column]),
                "leave it out: choose columns with --fields",
            ));
        }
        types.push((name.clone(), found));
    }
    Ok((header, types))
}

/// Refuses columns whose type cannot become the field's.
pub(crate) fn check_types(
    source: &Source,
    types: &[(FieldName, Option<FieldType>)],
    fields: &[FieldSpec],
) -> Result<(), ImportError> {
    for (name, from) in types {
        let to = fields.iter().find(|f| f.name == *name).map(|f| f.data_type);
        if let (Some(from), Some(to)) = (*from, to)
            && !fits(from, to)
        {
            return Err(ImportError::file(
                &source.name,
                format!("the field {name} is {from} there, and {to} in the dataset"),
                "",
            ));
        }
    }
    Ok(())
}

enum Values {
    Text(StringArray),
    Int(Int64Array),
    Float(Float64Array),
    Bool(BooleanArray),
    /// By the clock on the wall.
    Local(TimestampNanosecondArray),
    Instant(TimestampNanosecondArray),
    /// All null.
    Nothing,
}

struct Column {
    nulls: Option<NullBuffer>,
    values: Values,
}

impl Column {
    /// What a cast cannot represent becomes null in `values` and not in `nulls`.
    fn new(array: &ArrayRef) -> Result<Self, arrow_schema::ArrowError> {
        let cast = |to: &DataType| {
            cast_with_options(array, to, &CastOptions { safe: true, ..CastOptions::default() })
        };
        let nanos = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Nanosecond, zone.map(Into::into));
        let zoned = matches!(array.data_type(), DataType::Timestamp(_, Some(_)));
        let values = match field_type(array.data_type()) {
            None => Values::Nothing,
            Some(FieldType::Float64 | FieldType::Float32) => {
                Values::Float(cast(&DataType::Float64)?.as_primitive::<Float64Type>().clone())
            }
            Some(FieldType::Int64 | FieldType::Int32) => {
                Values::Int(cast(&DataType::Int64)?.as_primitive::<Int64Type>().clone())
            }
            Some(FieldType::Bool) => Values::Bool(cast(&DataType::Boolean)?.as_boolean().clone()),
            Some(FieldType::String) => Values::Text(cast(&DataType::Utf8)?.as_string::<i32>().clone()),
            Some(FieldType::Timestamp) if zoned => {
                // the zone is a label: the numbers are UTC already
                let DataType::Timestamp(_, zone) = array.data_type() else {
                    return Ok(Self { nulls: array.logical_nulls(), values: Values::Nothing });
                };
                let at = cast(&nanos(zone.as_deref()))?;
                Values::Instant(at.as_primitive::<TimestampNanosecondType>().clone())
            }
            Some(FieldType::Timestamp) => {
                Values::Local(cast(&nanos(None))?.as_primitive::<TimestampNanosecondType>().clone())
            }
        };
        Ok(Self { nulls: array.logical_nulls(), values })
    }

    fn is_null(&self, row: usize) -> bool {
        matches!(self.values, Values::Nothing) || self.nulls.as_ref().is_some_and(|n| n.is_null(row))
    }

    fn cell(&self, row: usize, field: &FieldSpec, reading: &Reading) -> Result<Cell<'_>, Reason> {
        if self.is_null(row) {
            return missing(field.nullable);
        }
        let to = field.data_type;
        let cell = match &self.values {
            Values::Text(v) if to == FieldType::String => Cell::Text(v.value(row)),
            Values::Text(v) => return reading.cell(v.value(row), to, field.nullable),
            Values::Int(v) => {
                let value = held(v, row)?;
                match to {
                    FieldType::Float64 => Cell::Float(value as f64),
                    FieldType::Float32 => Cell::Float32(value as f32),
                    FieldType::Int32 => {
                        Cell::Int32(i32::try_from(value).map_err(|_| "beyond the integers of 32 bits")?)
                    }
                    FieldType::Timestamp => Cell::Time(
                        reading
                            .zone
                            .compact_day(value)
                            .unwrap_or(Err("an integer is a time only as yyyymmdd here".into()))?,
                    ),
                    FieldType::Int64 | FieldType::Bool | FieldType::String => Cell::Int(value),
                }
            }
            Values::Float(v) => {
                let value = held(v, row)?;
                match to {
                    FieldType::Float32 => Cell::Float32(narrow(value)?),
                    FieldType::Int64 => Cell::Int(whole(value)?),
                    FieldType::Int32 => Cell::Int32(
                        i32::try_from(whole(value)?).map_err(|_| "beyond the integers of 32 bits")?,
                    ),
                    FieldType::Float64 | FieldType::Bool | FieldType::String | FieldType::Timestamp => {
                        Cell::Float(value)
                    }
                }
            }
            Values::Bool(v) => Cell::Bool(v.value(row)),
            Values::Local(v) => Cell::Time(reading.zone.wall(held(v, row)?)?),
            Values::Instant(v) => Cell::Time(held(v, row)?),
            Values::Nothing => Cell::Null,
        };
        cell.checked(field.nullable)
    }

    fn time(&self, row: usize, clock: &Clock) -> Result<i64, Reason> {
        if self.is_null(row) {
            return Err("the key is missing".into());
        }
        match &self.values {
            Values::Text(v) => clock.text(present(v.value(row))?),
            Values::Int(v) => clock.integer(held(v, row)?),
            Values::Float(v) => clock.integer(whole(held(v, row)?)?),
            Values::Local(v) => clock.zone.wall(held(v, row)?),
            Values::Instant(v) => held(v, row),
            Values::Bool(_) | Values::Nothing => Err("not a time".into()),
        }
    }

    fn symbol(&self, row: usize, table: &mut Table) -> Result<u32, Reason> {
        if self.is_null(row) {
            return Err("the key is missing".into());
        }
        match &self.values {
            Values::Text(v) => table.symbol(present(v.value(row))?),
            Values::Int(v) => table.symbol(&held(v, row)?.to_string()),
            Values::Float(_) | Values::Bool(_) | Values::Local(_) | Values::Instant(_) | Values::Nothing => {
                Err("a symbol is text".into())
            }
        }
    }
}

/// The value of a row that is not null, unless the cast could not hold it.
fn held<T: arrow_array::ArrowPrimitiveType>(
    values: &arrow_array::PrimitiveArray<T>,
    row: usize,
) -> Result<T::Native, Reason> {
    if values.is_null(row) { Err("beyond what the type can hold".into()) } else { Ok(values.value(row)) }
}

/// Opens the columns that have a role; with their positions in the file.
fn reader(source: &Source, wanted: &[usize]) -> Result<ParquetRecordBatchReader, ImportError> {
    let builder = builder(source)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted.iter().copied());
    builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(|e| damaged(source, &e))
}

/// Reads every row into `table`, and what is wrong into `bad`. A row's line is its number, from 1.
pub(crate) fn read(
    source: &Source,
    target: &Target<'_>,
    table: &mut Table,
    bad: &mut BadRows,
    ticker: &mut Ticker<'_>,
) -> Result<(), ImportError> {
    let wanted: Vec<usize> = (0..target.roles.len()).filter(|&i| target.roles[i] != Role::Skip).collect();
    let mut line = 0;
    for batch in reader(source, &wanted)? {
        let batch = batch.map_err(|e| damaged(source, &e))?;
        let mut columns = Vec::with_capacity(wanted.len());
        for (array, &place) in batch.columns().iter().zip(&wanted) {
            columns.push((place, target.roles[place], Column::new(array).map_err(|e| damaged(source, &e))?));
        }
        for row in 0..batch.num_rows() {
            line += 1;
            ticker.tick();
            match read_row(row, &columns, &batch, target, table) {
                Ok((key, cells)) => table.push(key, (target.number, line), &cells)?,
                Err(wrong) => bad.add((target.number, line), || wrong),
            }
        }
    }
    ticker.add_bytes(std::fs::metadata(&source.path).map_or(0, |m| m.len()));
    Ok(())
}

fn read_row<'a>(
    row: usize,
    columns: &'a [(usize, Role, Column)],
    batch: &RecordBatch,
    target: &Target<'_>,
    table: &mut Table,
) -> Result<(Key, Vec<Cell<'a>>), Bad> {
    let mut cells = vec![Cell::Null; target.fields.len()];
    let (mut symbol, mut ts, mut known_at) = (target.symbol, 0, None);
    for (position, (place, role, column)) in columns.iter().enumerate() {
        let wrong =
            |reason| Bad::cell(&target.header.names[*place], &shown(batch.column(position), row), reason);
        match *role {
            Role::Skip => {}
            Role::Symbol => symbol = Some(column.symbol(row, table).map_err(wrong)?),
            Role::Ts => ts = column.time(row, &target.ts).map_err(wrong)?,
            Role::KnownAt => known_at = Some(column.time(row, &target.known_at).map_err(wrong)?),
            Role::Field(field) => {
                cells[field] = column.cell(row, &target.fields[field], target.reading).map_err(wrong)?;
            }
        }
    }
    let symbol = symbol.ok_or_else(|| Bad::row("the symbol is missing"))?;
    Ok((Key { symbol, ts, known_at }, cells))
}

fn shown(array: &ArrayRef, row: usize) -> String {
    ArrayFormatter::try_new(array, &FormatOptions::default())
        .map(|formatter| formatter.value(row).to_string())
        .unwrap_or_default()
}

/// Hands each row of the source, by number, as CSV.
pub(crate) fn raw_rows(
    source: &Source,
    mut each: impl FnMut(u64, &str) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let columns = builder(source)?.schema().fields().len();
    let mut line = 0;
    for batch in reader(source, &(0..columns).collect::<Vec<_>>())? {
        let batch = batch.map_err(|e| damaged(source, &e))?;
        for row in 0..batch.num_rows() {
            line += 1;
            let cells: Vec<String> =
                batch.columns().iter().map(|array| super::quarantine::quoted(&shown(array, row))).collect();
            each(line, &cells.join(","))?;
        }
    }
    Ok(())
}
