//! Rows from Parquet. The columns are typed. They are brought to one of a few shapes, and go into the table the same way as text, so
//! that both kinds of file obey the same rules.
//!
//! No cast rounds or wraps: decimals are read as their text, and times by checked arithmetic.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray,
    cast::AsArray,
    types::{
        Date32Type, Date64Type, Float64Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType,
    },
};
use arrow_buffer::NullBuffer;
use arrow_cast::{
    CastOptions, cast_with_options,
    display::{ArrayFormatter, FormatOptions},
};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use chrono::{NaiveDate, Offset, TimeDelta, TimeZone};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    },
    basic::Type as PhysicalType,
};
use trellis_proto::{DatasetSpec, FieldName, FieldType, time::DAY_NS};

use super::{
    choice::{Checked, Header, ImportSpec, Surveyed, Types, resolve, shell},
    rows::{Record, Role, Target, rows},
    source::{Source, quoted},
    table::Table,
    text::present,
    told::{BadRows, ImportError, Ticker},
    values::{
        self, BEYOND_32, Cell, Clock, Dates, OUTSIDE, Reading, Reason, Seen, Stamp, Stamps, Wanted, When,
        float32, float64, missing,
    },
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
        // Databases write integers as NUMBER(38, 0).
        DataType::Decimal32(_, scale)
        | DataType::Decimal64(_, scale)
        | DataType::Decimal128(_, scale)
        | DataType::Decimal256(_, scale)
            if *scale <= 0 =>
        {
            FieldType::Int64
        }
        DataType::Float64
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => FieldType::Float64,
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

/// Reads the header, and for each field its type; looks at every cell of text, and at the numbers that a field of the
/// dataset may not hold.
pub(crate) fn survey(
    source: &Source,
    spec: &ImportSpec,
    checked: &Checked,
    existing: Option<&DatasetSpec>,
    ticker: &mut Ticker<'_>,
) -> Result<Surveyed, ImportError> {
    let schema = builder(source)?.schema().clone();
    let names: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
    let header = resolve(&source.name, &names, spec)?;
    for &column in header.symbol.iter().chain([&header.ts]) {
        let data_type = schema.field(column).data_type();
        if field_type(data_type).is_none() && *data_type != DataType::Null {
            return Err(ImportError::file(
                &source.name,
                format!(
                    "the column {:?} has the type {data_type}, which is no symbol and no time",
                    names[column]
                ),
                "choose another column, or write the file again",
            ));
        }
    }
    for &column in &header.left_out {
        let data_type = schema.field(column).data_type();
        if !data_type.is_integer() && *data_type != DataType::Null {
            let name = shell(&names[column]);
            return Err(ImportError::file(
                &source.name,
                format!(
                    "the column {:?} is named as an index, and is no count of rows: it is {data_type}",
                    names[column]
                ),
                format!("choose the columns with --fields: index={name} to have it, or without it"),
            ));
        }
    }
    let mut typed: Types = Vec::with_capacity(header.fields.len());
    let mut seen = Vec::with_capacity(header.fields.len());
    for (place, (name, _)) in header.fields.iter().enumerate() {
        let mut both: Option<FieldType> = None;
        let mut text = false;
        for &column in header.columns_of(place) {
            let data_type = schema.field(column).data_type();
            let found = field_type(data_type);
            if found.is_none() && *data_type != DataType::Null {
                return Err(ImportError::file(
                    &source.name,
                    format!(
                        "the column {:?} has the type {data_type}, which no field can have",
                        names[column]
                    ),
                    format!("leave it out: {}", others(&header, &schema, spec)),
                ));
            }
            text |= found == Some(FieldType::String);
            both = match (both, found) {
                (Some(a), Some(b)) => Some(a.common(b).ok_or_else(|| {
                    ImportError::file(
                        &source.name,
                        format!("the columns of {name} are {a} and {b}"),
                        "leave one out, or write the file again with one type",
                    )
                })?),
                (a, b) => a.or(b),
            };
        }
        // The cells of text decide.
        typed.push((name.clone(), both.filter(|_| !text)));
        seen.push((name.clone(), if text { Seen::of_text_column() } else { Seen::of_number_column() }));
    }
    let mut surveyed = Surveyed {
        header,
        seen,
        typed,
        stamps: Stamps::default(),
        known: Dates::default(),
        zone: None,
        semicolon: false,
    };
    let known = |name: &FieldName| existing.is_some_and(|e| e.field(name.as_str()).is_some());
    look(source, checked, &schema, &known, &mut surveyed, ticker)?;
    Ok(surveyed)
}

/// How to choose the columns that can be fields.
fn others(header: &Header, schema: &Schema, spec: &ImportSpec) -> String {
    let fit = |(_, column): &&(FieldName, usize)| {
        let data_type = schema.field(*column).data_type();
        field_type(data_type).is_some() || *data_type == DataType::Null
    };
    let names: Vec<&str> = header.fields.iter().filter(fit).map(|(name, _)| name.as_str()).collect();
    if names.is_empty() || !spec.fields.is_empty() || spec.wide.is_some() {
        return "choose other columns with --fields".to_owned();
    }
    format!("say --fields {}", names.join(","))
}

/// Looks at the cells whose meaning the column types leave open.
fn look(
    source: &Source,
    checked: &Checked,
    schema: &Schema,
    known: &dyn Fn(&FieldName) -> bool,
    surveyed: &mut Surveyed,
    ticker: &mut Ticker<'_>,
) -> Result<(), ImportError> {
    let header = &surveyed.header;
    let open = |place: usize, column: usize| match field_type(schema.field(column).data_type()) {
        Some(FieldType::String) => true,
        Some(FieldType::Int64 | FieldType::Int32 | FieldType::Float64 | FieldType::Float32) => {
            known(&header.fields[place].0)
        }
        Some(FieldType::Bool | FieldType::Timestamp) | None => false,
    };
    let cells = |place: usize| header.columns_of(place).iter().copied().filter(move |c| open(place, *c));
    let mut wanted: Vec<usize> =
        (0..header.fields.len()).flat_map(cells).chain([header.ts]).chain(header.time).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let at = |column: usize| wanted.binary_search(&column).ok();
    let mut line = 0;
    for batch in reader(source, &wanted)? {
        let batch = batch.map_err(|e| damaged(source, &e))?;
        let texts = |column: usize| -> Result<Option<StringArray>, ImportError> {
            let Some(place) = at(column) else { return Ok(None) };
            let array = batch.column(place);
            let options = CastOptions { safe: true, ..CastOptions::default() };
            let text =
                cast_with_options(array, &DataType::Utf8, &options).map_err(|e| damaged(source, &e))?;
            Ok(Some(text.as_string::<i32>().clone()))
        };
        for (place, (_, seen)) in surveyed.seen.iter_mut().enumerate() {
            for column in cells(place) {
                let Some(cells) = texts(column)? else { continue };
                for (row, cell) in cells.iter().enumerate() {
                    seen.look(cell.unwrap_or_default(), line + 1 + row as u64, &checked.reading);
                }
            }
        }
        let zone = match schema.field(header.ts).data_type() {
            DataType::Timestamp(_, Some(zone)) => zone.parse::<chrono_tz::Tz>().ok(),
            _ => None,
        };
        match (zone, header.time, field_type(schema.field(header.ts).data_type())) {
            (Some(zone), None, _) if zone != chrono_tz::Tz::UTC => {
                surveyed.zone = Some(zone.name().to_owned());
                let Some(place) = at(header.ts) else { continue };
                let times = nanos(batch.column(place)).map_err(|e| damaged(source, &e))?;
                for ns in times.iter().flatten() {
                    let at = zone.from_utc_datetime(&chrono::DateTime::from_timestamp_nanos(ns).naive_utc());
                    let offset_s = Some(at.offset().fix().local_minus_utc());
                    surveyed.stamps.look_at(Stamp { at: at.naive_local(), offset_s, timed: true });
                }
            }
            (_, None, Some(FieldType::String | FieldType::Int64 | FieldType::Int32)) => {
                let cells = texts(header.ts)?;
                for (row, cell) in cells.iter().flatten().enumerate() {
                    let line = line + 1 + row as u64;
                    surveyed.stamps.look(cell.unwrap_or_default(), line, &checked.clock);
                }
            }
            _ => {}
        }
        for _ in 0..batch.num_rows() {
            line += 1;
            ticker.tick();
        }
    }
    Ok(())
}

/// Refuses columns whose type cannot become the field's.
pub(crate) fn check_types(source: &Source, types: &Types, fields: &[Wanted]) -> Result<(), ImportError> {
    for (name, from) in types {
        let to = fields.iter().find(|f| f.spec.name == *name).map(|f| f.spec.data_type);
        if let (Some(from), Some(to)) = (*from, to)
            && !fits(from, to)
        {
            return Err(ImportError::file(
                &source.name,
                format!("the field {name} is {from} there, and {to} in the dataset"),
                "choose other columns with --fields, or import into a new dataset",
            ));
        }
    }
    Ok(())
}

enum Values {
    Text(StringArray),
    /// Digits with a point, exact.
    Decimal(StringArray),
    Int(Int64Array),
    Float(Float64Array),
    Bool(BooleanArray),
    /// Nanoseconds at the midnights of dates.
    Day(TimestampNanosecondArray),
    /// Local times.
    Local(TimestampNanosecondArray),
    Instant(TimestampNanosecondArray),
    /// A column of nulls alone.
    Nothing,
}

/// Times as nanoseconds; null where nanoseconds cannot hold them.
fn nanos(array: &ArrayRef) -> Result<TimestampNanosecondArray, arrow_schema::ArrowError> {
    let by = |factor: i64| move |value: i64| value.checked_mul(factor);
    Ok(match array.data_type() {
        DataType::Date32 => array
            .as_primitive::<Date32Type>()
            .unary_opt::<_, TimestampNanosecondType>(|days| by(86_400_000_000_000)(days.into())),
        DataType::Date64 => array.as_primitive::<Date64Type>().unary_opt(by(1_000_000)),
        DataType::Timestamp(TimeUnit::Second, _) => {
            array.as_primitive::<TimestampSecondType>().unary_opt(by(1_000_000_000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            array.as_primitive::<TimestampMillisecondType>().unary_opt(by(1_000_000))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            array.as_primitive::<TimestampMicrosecondType>().unary_opt(by(1_000))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            array.as_primitive::<TimestampNanosecondType>().clone().with_timezone_opt(None::<Arc<str>>)
        }
        DataType::Dictionary(_, values) => {
            let options = CastOptions { safe: true, ..CastOptions::default() };
            return nanos(&cast_with_options(array, values, &options)?);
        }
        other => return Err(arrow_schema::ArrowError::CastError(format!("{other} is no time"))),
    })
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
        let flat = match array.data_type() {
            DataType::Dictionary(_, values) => values.as_ref(),
            other => other,
        };
        let values = match (flat, field_type(flat)) {
            (_, None) => Values::Nothing,
            (
                DataType::Decimal32(..)
                | DataType::Decimal64(..)
                | DataType::Decimal128(..)
                | DataType::Decimal256(..),
                _,
            ) => Values::Decimal(cast(&DataType::Utf8)?.as_string::<i32>().clone()),
            (_, Some(FieldType::Float64 | FieldType::Float32)) => {
                Values::Float(cast(&DataType::Float64)?.as_primitive::<Float64Type>().clone())
            }
            (_, Some(FieldType::Int64 | FieldType::Int32)) => {
                Values::Int(cast(&DataType::Int64)?.as_primitive::<Int64Type>().clone())
            }
            (_, Some(FieldType::Bool)) => Values::Bool(cast(&DataType::Boolean)?.as_boolean().clone()),
            (_, Some(FieldType::String)) => Values::Text(cast(&DataType::Utf8)?.as_string::<i32>().clone()),
            // The zone is a label: the numbers are in UTC.
            (DataType::Timestamp(_, Some(_)), _) => Values::Instant(nanos(array)?),
            (DataType::Timestamp(_, None), _) => Values::Local(nanos(array)?),
            (_, Some(FieldType::Timestamp)) => Values::Day(nanos(array)?),
        };
        Ok(Self { nulls: array.logical_nulls(), values })
    }

    fn is_time(&self) -> bool {
        matches!(self.values, Values::Day(_) | Values::Local(_) | Values::Instant(_))
    }

    fn is_null(&self, row: usize) -> bool {
        matches!(self.values, Values::Nothing) || self.nulls.as_ref().is_some_and(|n| n.is_null(row))
    }

    fn cell(&self, row: usize, field: &Wanted, reading: &Reading) -> Result<Cell<'_>, Reason> {
        let nullable = field.spec.nullable;
        if self.is_null(row) {
            return missing(nullable);
        }
        let to = field.spec.data_type;
        let cell = match &self.values {
            Values::Text(v) if to == FieldType::String => {
                let text = v.value(row);
                let null = !text.is_empty() && reading.is_null(text.trim_ascii());
                return if null { missing(nullable) } else { Ok(Cell::Text(text)) };
            }
            Values::Text(v) => return reading.cell(v.value(row), field),
            Values::Decimal(v) => number_cell(v.value(row), field)?,
            Values::Int(v) => {
                let value = held(v, row)?;
                match to {
                    FieldType::Int64 => Cell::Int(value),
                    FieldType::Timestamp => Cell::Time(reading.day(value)?),
                    _ => number_cell(&value.to_string(), field)?,
                }
            }
            Values::Float(v) => {
                let value = held(v, row)?;
                match to {
                    FieldType::Float64 => Cell::Float(value),
                    FieldType::Float32 if !value.is_finite() || f64::from(value as f32) == value => {
                        Cell::Float32(value as f32)
                    }
                    _ if value.is_nan() => return missing(nullable),
                    _ => number_cell(&value.to_string(), field)?,
                }
            }
            Values::Bool(v) => Cell::Bool(v.value(row)),
            Values::Day(_) | Values::Local(_) | Values::Instant(_) => {
                Cell::Time(reading.clock.resolve(self.when(row)?)?)
            }
            Values::Nothing => Cell::Null,
        };
        cell.checked(nullable)
    }

    fn when(&self, row: usize) -> Result<When, Reason> {
        let at = |v: &TimestampNanosecondArray| {
            if v.is_null(row) { Err(Reason::from(OUTSIDE)) } else { Ok(v.value(row)) }
        };
        let local = |ns| chrono::DateTime::from_timestamp_nanos(ns).naive_utc();
        match &self.values {
            // Dates of 64 bits hold milliseconds, and some tools put times in them.
            Values::Day(v) if !v.is_null(row) && v.value(row) % DAY_NS != 0 => Ok(When::Local(local(at(v)?))),
            Values::Day(v) => {
                let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).ok_or(OUTSIDE)?;
                let days = TimeDelta::try_days(at(v)?.div_euclid(DAY_NS));
                Ok(When::Day(days.and_then(|days| epoch.checked_add_signed(days)).ok_or(OUTSIDE)?))
            }
            Values::Local(v) => Ok(When::Local(local(at(v)?))),
            Values::Instant(v) => Ok(When::At(at(v)?)),
            _ => Err("not a time".into()),
        }
    }

    fn time(&self, row: usize, clock: &Clock) -> Result<i64, Reason> {
        if self.is_null(row) {
            return Err("the key is missing".into());
        }
        match &self.values {
            Values::Text(v) => clock.text(present(v.value(row))?),
            Values::Decimal(v) => clock.text(v.value(row)),
            Values::Int(v) => clock.integer(held(v, row)?),
            Values::Float(v) => clock.text(&held(v, row)?.to_string()),
            Values::Day(_) | Values::Local(_) | Values::Instant(_) => clock.resolve(self.when(row)?),
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
            _ => Err("a symbol is text".into()),
        }
    }
}

/// A plain number as a value of a field of numbers.
fn number_cell(plain: &str, field: &Wanted) -> Result<Cell<'static>, Reason> {
    let whole = || -> Result<i64, Reason> { Ok(values::whole(plain).ok_or("not a whole number")??) };
    Ok(match field.spec.data_type {
        FieldType::Float64 => float64(plain, field.nearest)?,
        FieldType::Float32 => float32(plain, field.nearest)?,
        FieldType::Int64 => Cell::Int(whole()?),
        FieldType::Int32 => Cell::Int32(i32::try_from(whole()?).map_err(|_| BEYOND_32)?),
        FieldType::Bool | FieldType::String | FieldType::Timestamp => {
            return Err("a number, and the field is none".into());
        }
    })
}

/// The value of a row that is not null, unless the cast could not hold it.
fn held<T: arrow_array::ArrowPrimitiveType>(
    values: &arrow_array::PrimitiveArray<T>,
    row: usize,
) -> Result<T::Native, Reason> {
    if values.is_null(row) { Err("beyond what the type can hold".into()) } else { Ok(values.value(row)) }
}

/// Opens the columns at `wanted`.
fn reader(source: &Source, wanted: &[usize]) -> Result<ParquetRecordBatchReader, ImportError> {
    project(source, builder(source)?, wanted)
}

fn project(
    source: &Source,
    builder: ParquetRecordBatchReaderBuilder<std::fs::File>,
    wanted: &[usize],
) -> Result<ParquetRecordBatchReader, ImportError> {
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted.iter().copied());
    builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(|e| damaged(source, &e))
}

/// A second reader of the same columns, whose 96 bit times are in seconds. They hold days as far as 5.8 million years away;
/// as nanoseconds, which they become otherwise, they wrap around.
fn seconds(source: &Source, wanted: &[usize]) -> Result<Option<ParquetRecordBatchReader>, ImportError> {
    let builder = builder(source)?;
    let schema = builder.schema().clone();
    let old: Vec<bool> = {
        let parquet = builder.parquet_schema();
        (0..schema.fields().len())
            .map(|root| {
                parquet.columns().iter().enumerate().any(|(leaf, column)| {
                    parquet.get_column_root_idx(leaf) == root && column.physical_type() == PhysicalType::INT96
                })
            })
            .collect()
    };
    if !wanted.iter().any(|&column| old[column]) {
        return Ok(None);
    }
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .zip(&old)
        .map(|(field, old)| {
            let field = field.as_ref().clone();
            if *old { field.with_data_type(DataType::Timestamp(TimeUnit::Second, None)) } else { field }
        })
        .collect();
    let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(fields)));
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(source.open()?, options)
        .map_err(|e| damaged(source, &e))?;
    project(source, builder, wanted).map(Some)
}

/// Reads the good rows into `table`, and the bad ones into `bad`. The line of a row is its number, from 1.
pub(crate) fn read(
    source: &Source,
    target: &Target<'_>,
    table: &mut Table,
    bad: &mut BadRows,
    ticker: &mut Ticker<'_>,
) -> Result<(), ImportError> {
    let wanted: Vec<usize> = (0..target.roles.len()).filter(|&i| target.roles[i] != Role::Skip).collect();
    let mut line = 0;
    let mut beside = seconds(source, &wanted)?;
    for batch in reader(source, &wanted)? {
        let batch = batch.map_err(|e| damaged(source, &e))?;
        let shown = match beside.as_mut().and_then(Iterator::next) {
            Some(beside) => beside.map_err(|e| damaged(source, &e))?,
            None => batch.clone(),
        };
        let mut columns: Vec<Option<(Column, ArrayRef)>> = target.roles.iter().map(|_| None).collect();
        for ((array, shown), &place) in batch.columns().iter().zip(shown.columns()).zip(&wanted) {
            let exact = agreeing(array, shown).map_err(|e| damaged(source, &e))?;
            let column = Column::new(&exact).map_err(|e| damaged(source, &e))?;
            // a null of the exact values that is none in the file is a time that nanoseconds do not hold
            let column = Column { nulls: array.logical_nulls(), ..column };
            columns[place] = Some((column, Arc::clone(shown)));
        }
        for row in 0..batch.num_rows() {
            line += 1;
            ticker.tick();
            match rows(&BatchRecord { columns: &columns, row }, target, table) {
                Ok(found) => table.push_all(&found, (target.number, line))?,
                Err(wrong) => bad.add((target.number, line), || wrong),
            }
        }
    }
    ticker.add_bytes(std::fs::metadata(&source.path).map_or(0, |m| m.len()));
    Ok(())
}

/// Nanoseconds without those that are not within the second that `seconds` says.
fn agreeing(array: &ArrayRef, seconds: &ArrayRef) -> Result<ArrayRef, arrow_schema::ArrowError> {
    if array.data_type() == seconds.data_type() {
        return Ok(Arc::clone(array));
    }
    let (ns, s) = (nanos(array)?, seconds.as_primitive::<TimestampSecondType>());
    let same = |(ns, s): (Option<i64>, Option<i64>)| ns.filter(|ns| Some(ns.div_euclid(1_000_000_000)) == s);
    Ok(Arc::new(ns.iter().zip(s.iter()).map(same).collect::<TimestampNanosecondArray>()))
}

struct BatchRecord<'a> {
    /// For each column of the file that has a role: its values, and what messages show of them.
    columns: &'a [Option<(Column, ArrayRef)>],
    row: usize,
}

impl<'a> BatchRecord<'a> {
    fn column(&self, column: usize) -> Result<&'a Column, Reason> {
        self.columns[column].as_ref().map(|(values, _)| values).ok_or("the column is not read".into())
    }
}

impl<'a> Record<'a> for BatchRecord<'a> {
    fn symbol(&self, column: usize, table: &mut Table) -> Result<u32, Reason> {
        self.column(column)?.symbol(self.row, table)
    }

    fn time(&self, column: usize, clock: &Clock) -> Result<i64, Reason> {
        self.column(column)?.time(self.row, clock)
    }

    fn date_and_time(&self, date: usize, time: usize, clock: &Clock) -> Result<i64, Reason> {
        let missing = |c: usize| self.columns[c].as_ref().is_none_or(|(_, array)| array.is_null(self.row));
        if missing(date) || missing(time) {
            return Err("the key is missing".into());
        }
        let day = self.shown(date);
        // pandas has no dates, and writes midnights.
        let day = day.strip_suffix("T00:00:00").unwrap_or(&day);
        clock.text(&format!("{} {}", present(day)?, present(&self.shown(time))?))
    }

    fn cell(&self, column: usize, field: &Wanted, reading: &Reading) -> Result<Cell<'a>, Reason> {
        let values = self.column(column)?;
        // of a typed time the word is what is shown of it
        if values.is_time() && reading.null.contains(&self.shown(column)) {
            return missing(field.spec.nullable);
        }
        values.cell(self.row, field, reading)
    }

    fn shown(&self, column: usize) -> String {
        self.columns[column].as_ref().map(|(_, array)| shown(array, self.row)).unwrap_or_default()
    }
}

fn shown(array: &ArrayRef, row: usize) -> String {
    ArrayFormatter::try_new(array, &FormatOptions::default())
        .map(|formatter| formatter.value(row).to_string())
        .unwrap_or_default()
}

/// Gives each row of the source, with its number, as CSV.
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
            let cells: Vec<String> = batch.columns().iter().map(|array| quoted(&shown(array, row))).collect();
            each(line, &cells.join(","))?;
        }
    }
    Ok(())
}
