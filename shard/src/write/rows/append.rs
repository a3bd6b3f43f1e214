//! Published rows: checked against the dataset, brought into one form and sorted. Pure.
//!
//! A row that could be unreadable or ambiguous later is refused here, with its number as the publisher counts it (from 0, over all
//! batches). So committed rows need no second check.

use std::{collections::BTreeSet, ops::Range};

use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray,
    cast::AsArray,
    downcast_dictionary_array,
    types::{Float32Type, Float64Type, Int64Type, TimestampNanosecondType},
};
use arrow_buffer::ArrowNativeType;
use arrow_schema::{DataType, Schema, TimeUnit};
use sha2::{Digest, Sha256};
use trellis_proto::{
    ChunkSpan, Code, DatasetSpec, Error, FieldType, Result, Symbol,
    name::listed,
    spec::{Evolved, FieldSpec},
    time::{REACH, format_time},
};

use super::convert::converted;
use crate::{
    error::internal,
    files::{TS_MAX, TS_MIN, exact_schema, exact_time, readable_ts, sort_by_key, sort_order, wire_time},
    scan::Key,
};

/// The hint of a refusal that names rows.
const ROWS_HINT: &str = "rows are counted from 0; nothing was written";
/// Most problems that one refusal lists.
pub(crate) const PROBLEMS_MAX: usize = 5;

/// Checked rows: `symbol` (utf8), `ts_ns`, fields in wire types; sorted by (symbol, ts), each (symbol, ts) once.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    batch: RecordBatch,
}

impl Rows {
    /// Checks `batches`, which all have `schema`.
    ///
    /// `within`: event times that the rows must lie in, for a publish of one session.
    ///
    /// # Errors
    /// [`Code::BadRows`] naming columns or rows.
    pub(crate) fn check(
        spec: &DatasetSpec,
        schema: &Schema,
        batches: Vec<RecordBatch>,
        within: Option<Range<i64>>,
    ) -> Result<Self> {
        let positions = match_columns(spec, schema)?;
        let mut parts = Vec::with_capacity(batches.len());
        let mut base = 0;
        let mut problems = Problems::default();
        for batch in batches {
            parts.push(convert(spec, &positions, &batch, base, &mut problems)?);
            base += batch.num_rows();
        }
        problems.refuse(spec, || ROWS_HINT.to_owned())?;
        let joined = match <[RecordBatch; 1]>::try_from(parts) {
            Ok([only]) => only,
            Err(parts) => arrow_select::concat::concat_batches(&rows_schema(spec), &parts)
                .map_err(|e| internal("joining rows", e))?,
        };
        let ts = joined.column(1).as_primitive::<Int64Type>();
        if let Some(within) = within {
            for (row, &ts) in ts.values().iter().enumerate().filter(|(_, ts)| !within.contains(*ts)) {
                problems.add(|| {
                    format!(
                        "row {row}: ts {} is outside of the session [{}, {})",
                        format_time(ts),
                        format_time(within.start),
                        format_time(within.end)
                    )
                });
            }
        }
        let order = sort_order(&joined, &[0, 1])?;
        let symbols = joined.column(0).as_string::<i32>();
        for pair in order.values().windows(2) {
            let (a, b) = (pair[0] as usize, pair[1] as usize);
            if ts.value(a) == ts.value(b) && symbols.value(a) == symbols.value(b) {
                problems.add(|| {
                    format!(
                        "rows {} and {}: both are {} at {}",
                        a.min(b),
                        a.max(b),
                        symbols.value(a),
                        format_time(ts.value(a))
                    )
                });
            }
        }
        problems.refuse(spec, || ROWS_HINT.to_owned())?;
        let batch = arrow_select::take::take_record_batch(&joined, &order)
            .map_err(|e| internal("sorting rows", e))?;
        Ok(Self { batch })
    }

    /// Rows that the shard itself made: in the shape of [`rows_schema`], in any order.
    pub(crate) fn trusted(batch: &RecordBatch) -> Result<Self> {
        Ok(Self { batch: sort_by_key(batch, &[0, 1])? })
    }

    pub(crate) fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// Symbol and event time of each row.
    pub(crate) fn keys(&self) -> Result<BTreeSet<Key>> {
        let ts = self.batch.column(1).as_primitive::<Int64Type>();
        let mut keys = BTreeSet::new();
        for (symbol, rows) in self.symbols() {
            let symbol = Symbol::new(symbol)?;
            keys.extend(ts.values()[rows].iter().map(|ts| (symbol.clone(), *ts)));
        }
        Ok(keys)
    }

    /// Least and greatest event time; `None` without rows.
    pub(crate) fn span(&self) -> Option<(i64, i64)> {
        let ts = self.batch.column(1).as_primitive::<Int64Type>().values();
        Some((*ts.iter().min()?, *ts.iter().max()?))
    }

    /// The symbols, each once, with the least and the greatest event time of their rows.
    pub(crate) fn spans(&self) -> Vec<(String, i64, i64)> {
        let ts = self.batch.column(1).as_primitive::<Int64Type>().values();
        let symbols = self.symbols().into_iter();
        symbols.map(|(symbol, rows)| (symbol, ts[rows.start], ts[rows.end - 1])).collect()
    }

    /// Bytes of the fields of a row, on average.
    pub(crate) fn field_bytes(&self) -> usize {
        let fields = self.batch.columns().iter().skip(2);
        let bytes: usize = fields.map(|c| c.to_data().get_slice_memory_size().unwrap_or(0)).sum();
        bytes.div_ceil(self.len().max(1))
    }

    /// How many rows of `symbol` have event times in `range`.
    pub(crate) fn count(&self, symbol: &str, range: &Range<i64>) -> usize {
        let symbols = self.batch.column(0).as_string::<i32>();
        let ts = self.batch.column(1).as_primitive::<Int64Type>().values();
        let before = |bound: i64| {
            let (mut low, mut high) = (0, self.len());
            while low < high {
                let middle = low + (high - low) / 2;
                match (symbols.value(middle), ts[middle]) < (symbol, bound) {
                    true => low = middle + 1,
                    false => high = middle,
                }
            }
            low
        };
        before(range.end) - before(range.start)
    }

    /// The chunks that have rows: symbol, number of the chunk, how many rows.
    pub(crate) fn chunks(&self, chunk: ChunkSpan) -> Vec<(String, i64, usize)> {
        let ts = self.batch.column(1).as_primitive::<Int64Type>().values();
        let mut chunks = Vec::new();
        for (symbol, rows) in self.symbols() {
            let mut rest = &ts[rows];
            while let Some(first) = rest.first() {
                let k = chunk.chunk_of(*first);
                let count = rest.partition_point(|at| chunk.chunk_of(*at) == k);
                chunks.push((symbol.clone(), k, count));
                rest = &rest[count..];
            }
        }
        chunks
    }

    /// The symbols, each once, with their rows.
    pub(crate) fn symbols(&self) -> Vec<(String, Range<usize>)> {
        let symbols = self.batch.column(0).as_string::<i32>();
        let mut out: Vec<(String, Range<usize>)> = Vec::new();
        for i in 0..symbols.len() {
            match out.last_mut() {
                Some((symbol, rows)) if symbol == symbols.value(i) => rows.end = i + 1,
                _ => out.push((symbols.value(i).to_owned(), i..i + 1)),
            }
        }
        out
    }

    /// A digest of the content: the same rows of the same session give the same digest, however they were sent.
    pub(crate) fn digest(&self, scope: &str) -> Result<String> {
        let fields =
            self.batch.columns().iter().map(|c| arrow_row::SortField::new(c.data_type().clone())).collect();
        let converter = arrow_row::RowConverter::new(fields).map_err(|e| internal("digesting rows", e))?;
        let mut hash = Sha256::new();
        hash.update((scope.len() as u64).to_le_bytes());
        hash.update(scope.as_bytes());
        // In parts, so that a large publish is not in memory a third time.
        for start in (0..self.batch.num_rows()).step_by(65_536) {
            let part = self.batch.slice(start, 65_536.min(self.batch.num_rows() - start));
            let rows =
                converter.convert_columns(part.columns()).map_err(|e| internal("digesting rows", e))?;
            for row in &rows {
                let bytes: &[u8] = row.as_ref();
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Converts these rows of `old` to rows of `new`.
    ///
    /// # Errors
    /// [`Code::BadRows`] if a field lacks a value that it requires now, [`Code::Conflict`] naming a value that the wider type does
    /// not hold.
    pub(crate) fn evolved(&self, old: &DatasetSpec, new: &Evolved) -> Result<Self> {
        let rows = converted(old, new, &self.batch)?;
        let fields = new.spec.fields.iter().zip(&rows.columns()[2..]);
        if let Some((field, _)) =
            fields.into_iter().find(|(field, column)| !field.nullable && column.null_count() > 0)
        {
            let text = format!("{} may not be missing in {}, and rows lack it", field.name, new.spec.dataset);
            return Err(Error::new(Code::BadRows, text).dataset(&new.spec.dataset));
        }
        let batch = RecordBatch::try_new(rows_schema(&new.spec), rows.columns().to_vec());
        Ok(Self { batch: batch.map_err(|e| internal("converting rows", e))? })
    }

    /// The rows as they are stored, all known at `known_at`.
    pub(crate) fn exact(&self, spec: &DatasetSpec, known_at: i64) -> Result<RecordBatch> {
        stamped(spec, self.batch.columns(), known_at, false)
    }
}

/// Retractions as they are stored, all known at `known_at`.
pub(crate) fn retractions<'a>(
    spec: &DatasetSpec,
    keys: impl IntoIterator<Item = &'a Key> + Clone,
    known_at: i64,
) -> Result<RecordBatch> {
    let symbols = StringArray::from_iter_values(keys.clone().into_iter().map(|(symbol, _)| symbol.as_str()));
    let ts = Int64Array::from_iter_values(keys.into_iter().map(|(_, ts)| *ts));
    stamped(spec, &[std::sync::Arc::new(symbols), std::sync::Arc::new(ts)], known_at, true)
}

/// Stored rows of `symbol`, `ts_ns` and fields, all known at `known_at`. Fields that are not given are null.
fn stamped(spec: &DatasetSpec, given: &[ArrayRef], known_at: i64, retracted: bool) -> Result<RecordBatch> {
    let rows = given[0].len();
    let mut columns: Vec<ArrayRef> = given.to_vec();
    columns.insert(2, std::sync::Arc::new(Int64Array::from_value(known_at, rows)));
    columns.insert(3, std::sync::Arc::new(BooleanArray::from(vec![retracted; rows])));
    let schema = exact_schema(spec);
    let missing = &schema.fields()[columns.len()..];
    columns.extend(missing.iter().map(|field| arrow_array::new_null_array(field.data_type(), rows)));
    RecordBatch::try_new(schema, columns).map_err(|e| internal("stamping rows", e))
}

/// `symbol`, `ts_ns`, fields.
pub(crate) fn rows_schema(spec: &DatasetSpec) -> arrow_schema::SchemaRef {
    let exact = exact_schema(spec);
    let keep: Vec<usize> = (0..exact.fields().len()).filter(|&i| i != 2 && i != 3).collect();
    // Projecting by positions that exist cannot fail.
    exact.project(&keep).map_or(exact, std::sync::Arc::new)
}

#[derive(Debug, Default)]
struct Problems {
    texts: Vec<String>,
    count: usize,
}

impl Problems {
    fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.texts.len() < PROBLEMS_MAX {
            self.texts.push(text());
        }
    }

    fn refuse(&self, spec: &DatasetSpec, hint: impl FnOnce() -> String) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let more = self.count - self.texts.len();
        let mut text = self.texts.join("; ");
        if more > 0 {
            text = format!("{text}; and {more} more");
        }
        Err(Error::new(Code::BadRows, text).dataset(&spec.dataset).hint(hint()))
    }
}

/// Bytes of one column of a batch beside its values.
const COLUMN_BYTES: usize = 256;

/// Bytes that [`Rows::check`] makes of `batch` beside what has arrived: all text becomes plain. A value of a dictionary is written out for
/// each row that has it, and so is a part of a buffer that many views show. The batch must be of columns that [`check_columns`] takes.
pub(crate) fn made_bytes(batch: &RecordBatch) -> usize {
    batch
        .columns()
        .iter()
        .map(|column| COLUMN_BYTES.saturating_add(plain_bytes(column)))
        .fold(0, usize::saturating_add)
}

/// Bytes of a column of text once it is plain; 0 for one that is not converted.
fn plain_bytes(column: &ArrayRef) -> usize {
    if matches!(column.data_type(), DataType::Utf8) || !is_text(column.data_type()) {
        return 0;
    }
    let mut bytes = column.len().saturating_mul(size_of::<i32>());
    each_length(column, &mut |length| bytes = bytes.saturating_add(length));
    bytes
}

/// The length of each text of a column, in order; 0 if it is null.
fn each_length(column: &ArrayRef, see: &mut dyn FnMut(usize)) {
    let of = |i: usize, length: usize| if column.is_null(i) { 0 } else { length };
    downcast_dictionary_array!(
        column => {
            let mut lengths = Vec::with_capacity(column.values().len());
            each_length(column.values(), &mut |length| lengths.push(length));
            for key in column.keys() {
                see(key.and_then(|key| lengths.get(key.as_usize()).copied()).unwrap_or(0));
            }
        },
        DataType::Utf8 => {
            let text = column.as_string::<i32>();
            (0..text.len()).for_each(|i| see(of(i, text.value_length(i) as usize)));
        }
        DataType::LargeUtf8 => {
            let text = column.as_string::<i64>();
            (0..text.len()).for_each(|i| see(of(i, text.value_length(i) as usize)));
        }
        DataType::Utf8View => {
            // The first four bytes of a view are the length.
            let views = column.as_string_view().views();
            views.iter().enumerate().for_each(|(i, view)| see(of(i, *view as u32 as usize)));
        }
        _ => {}
    );
}

/// Checks that `schema` has the columns of the dataset and no others, before any rows are read.
///
/// # Errors
/// [`Code::BadRows`] naming columns.
pub(crate) fn check_columns(spec: &DatasetSpec, schema: &Schema) -> Result<()> {
    match_columns(spec, schema).map(|_| ())
}

/// Position in `schema` of `symbol`, `ts` and every field, in this order.
fn match_columns(spec: &DatasetSpec, schema: &Schema) -> Result<Vec<usize>> {
    let mut problems = Problems::default();
    let mut positions = Vec::new();
    let mut find = |name: &str, fits: &dyn Fn(&DataType) -> bool, expected: String| {
        let found: Vec<usize> =
            schema.fields().iter().enumerate().filter(|(_, f)| f.name() == name).map(|(i, _)| i).collect();
        match found.as_slice() {
            [] => problems.add(|| format!("the column {name} ({expected}) is missing")),
            [i] if fits(schema.field(*i).data_type()) => positions.push(*i),
            [i] => problems.add(|| {
                format!("the column {name} is {}, expected {expected}", schema.field(*i).data_type())
            }),
            _ => problems.add(|| format!("the column {name} occurs {} times", found.len())),
        }
    };
    find("symbol", &is_text, "utf8".to_owned());
    find("ts", &is_time, "timestamp with time zone UTC".to_owned());
    for field in &spec.fields {
        find(field.name.as_str(), &|t| fits(field, t), field.data_type.name().to_owned());
    }
    for field in schema.fields() {
        let known = field.name() == "symbol" || field.name() == "ts" || spec.field(field.name()).is_some();
        if !known {
            problems.add(|| format!("the column {} is not a field of the dataset", field.name()));
        }
    }
    problems.refuse(spec, || {
        let fields = spec.fields.iter().map(|field| format!("{} {}", field.name, field.data_type));
        format!("the columns are symbol, ts and: {}", listed(fields))
    })?;
    Ok(positions)
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// Whether it is a timestamp of any unit in UTC; one without a zone counts as UTC.
fn is_time(data_type: &DataType) -> bool {
    match data_type {
        DataType::Timestamp(_, None) => true,
        DataType::Timestamp(_, Some(zone)) => {
            matches!(zone.as_ref(), "UTC" | "Z" | "+00:00" | "Etc/UTC" | "GMT")
        }
        _ => false,
    }
}

fn fits(field: &FieldSpec, data_type: &DataType) -> bool {
    match field.data_type {
        FieldType::String => is_text(data_type),
        FieldType::Timestamp => is_time(data_type),
        FieldType::Float64 | FieldType::Float32 | FieldType::Int64 | FieldType::Int32 | FieldType::Bool => {
            *data_type == field.data_type.to_arrow()
        }
    }
}

fn convert(
    spec: &DatasetSpec,
    positions: &[usize],
    batch: &RecordBatch,
    base: usize,
    problems: &mut Problems,
) -> Result<RecordBatch> {
    let column = |i: usize| batch.column(positions[i]);
    let symbols = text(column(0))?;
    let mut last = None;
    for i in 0..symbols.len() {
        let row = base + i;
        if symbols.is_null(i) {
            problems.add(|| format!("row {row}: the symbol is null"));
            continue;
        }
        let symbol = symbols.value(i);
        if last != Some(symbol) {
            if let Err(error) = Symbol::new(symbol) {
                problems.add(|| format!("row {row}: {}", error.message()));
            }
            last = Some(symbol);
        }
    }
    let ts = time(column(1), "ts", base, false, problems)?;
    for (i, &at) in ts.values().iter().enumerate().filter(|(i, at)| ts.is_valid(*i) && !readable_ts(**at)) {
        problems.add(|| format!("row {}: ts {} {}", base + i, format_time(at), unreadable()));
    }
    let mut columns: Vec<ArrayRef> = vec![std::sync::Arc::new(symbols), std::sync::Arc::new(ts)];
    for (field, &position) in spec.fields.iter().zip(&positions[2..]) {
        let column = batch.column(position);
        if !field.nullable && column.null_count() > 0 {
            for i in (0..column.len()).filter(|&i| column.is_null(i)) {
                problems.add(|| format!("row {}: {} is null", base + i, field.name));
            }
        }
        let converted: ArrayRef = match field.data_type {
            FieldType::String => std::sync::Arc::new(text(column)?),
            FieldType::Timestamp => {
                wire_time(&time(column, field.name.as_str(), base, field.nullable, problems)?)
            }
            FieldType::Float64 if !field.nullable => {
                let values: &Float64Array = column.as_primitive::<Float64Type>();
                for i in (0..values.len()).filter(|&i| values.is_valid(i) && !values.value(i).is_finite()) {
                    problems.add(|| format!("row {}: {} is {}", base + i, field.name, values.value(i)));
                }
                column.clone()
            }
            FieldType::Float32 if !field.nullable => {
                let values: &Float32Array = column.as_primitive::<Float32Type>();
                for i in (0..values.len()).filter(|&i| values.is_valid(i) && !values.value(i).is_finite()) {
                    problems.add(|| format!("row {}: {} is {}", base + i, field.name, values.value(i)));
                }
                column.clone()
            }
            FieldType::Float64
            | FieldType::Float32
            | FieldType::Int64
            | FieldType::Int32
            | FieldType::Bool => column.clone(),
        };
        columns.push(converted);
    }
    // With problems the batch is dropped anyway, and it may be impossible to build.
    if problems.count > 0 {
        return Ok(RecordBatch::new_empty(rows_schema(spec)));
    }
    RecordBatch::try_new(rows_schema(spec), columns).map_err(|e| internal("reading published rows", e))
}

/// Why a row with such an event time is refused.
pub(super) fn unreadable() -> String {
    format!("could not be read back: rows lie from {} to {}", format_time(TS_MIN), format_time(TS_MAX))
}

fn text(column: &ArrayRef) -> Result<StringArray> {
    let cast = arrow_cast::cast(column, &DataType::Utf8).map_err(|e| internal("reading text", e))?;
    Ok(cast.as_string::<i32>().clone())
}

/// Nanoseconds of a timestamp column.
fn time(
    column: &ArrayRef,
    name: &str,
    base: usize,
    nullable: bool,
    problems: &mut Problems,
) -> Result<Int64Array> {
    // A value that does not fit becomes null in the cast: a new null is an overflow.
    let zone = match column.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    let cast = arrow_cast::cast(column, &DataType::Timestamp(TimeUnit::Nanosecond, zone))
        .map_err(|e| internal("reading times", e))?;
    for i in (0..column.len()).filter(|&i| cast.is_null(i)) {
        if column.is_valid(i) {
            problems.add(|| format!("row {}: {name} is outside of {REACH}", base + i));
        } else if !nullable && name == "ts" {
            problems.add(|| format!("row {}: ts is null", base + i));
        }
    }
    Ok(exact_time(cast.as_primitive::<TimestampNanosecondType>()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{TimestampMicrosecondArray, TimestampSecondArray};
    use proptest::prelude::*;
    use trellis_proto::{ChunkSpan, DatasetName, name::FieldName, time::DAY_NS};

    use super::*;

    fn spec(nullable: bool) -> DatasetSpec {
        DatasetSpec::new(
            DatasetName::new("signals.mom").unwrap(),
            vec![FieldSpec {
                name: FieldName::new("score").unwrap(),
                data_type: FieldType::Float64,
                nullable,
            }],
            ChunkSpan::new(64 * DAY_NS).unwrap(),
        )
        .unwrap()
    }

    fn batch(symbols: Vec<Option<&str>>, ts: Vec<Option<i64>>, score: Vec<Option<f64>>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([
            ("symbol", Arc::new(StringArray::from(symbols)) as ArrayRef, true),
            ("ts", Arc::new(TimestampSecondArray::from(ts).with_timezone("UTC")) as ArrayRef, true),
            ("score", Arc::new(Float64Array::from(score)) as ArrayRef, true),
        ])
        .unwrap()
    }

    fn check(spec: &DatasetSpec, batches: Vec<RecordBatch>) -> Result<Rows> {
        let schema = batches[0].schema();
        Rows::check(spec, &schema, batches, None)
    }

    #[test]
    fn rows_are_sorted_and_their_digest_does_not_depend_on_how_they_came() {
        let a = batch(vec![Some("B"), Some("A")], vec![Some(1), Some(2)], vec![Some(1.0), None]);
        let b = batch(vec![Some("A")], vec![Some(1)], vec![Some(3.0)]);
        let one = check(&spec(true), vec![a.clone(), b.clone()]).unwrap();
        let other = check(&spec(true), vec![b, a]).unwrap();
        assert_eq!(one.digest("s").unwrap(), other.digest("s").unwrap());
        assert_ne!(one.digest("s").unwrap(), one.digest("t").unwrap());
        assert_eq!(one.symbols(), [("A".to_owned(), 0..2), ("B".to_owned(), 2..3)]);
        let ts = one.batch.column(1).as_primitive::<Int64Type>();
        assert_eq!(ts.values(), &[1_000_000_000, 2_000_000_000, 1_000_000_000]);
    }

    #[test]
    fn bad_rows_are_named_by_their_number() {
        let cases = [
            (
                batch(vec![Some("A"), None], vec![Some(1), Some(1)], vec![None, None]),
                "row 1: the symbol is null",
            ),
            (batch(vec![Some("")], vec![Some(1)], vec![Some(0.0)]), "row 0: "),
            (batch(vec![Some("A")], vec![None], vec![Some(0.0)]), "row 0: ts is null"),
            (
                batch(vec![Some("A"), Some("B"), Some("A")], vec![Some(1); 3], vec![None; 3]),
                "rows 0 and 2: both are A at 1970-01-01T00:00:01Z",
            ),
            (batch(vec![Some("A")], vec![Some(i64::MAX / 2)], vec![None]), "row 0: ts is outside"),
        ];
        for (rows, expected) in cases {
            let error = check(&spec(true), vec![rows]).unwrap_err();
            assert_eq!(error.code(), Code::BadRows);
            assert!(error.message().starts_with(expected), "{} / {expected}", error.message());
        }
        let nan = batch(vec![Some("A"), Some("B")], vec![Some(1); 2], vec![Some(f64::NAN), None]);
        assert!(check(&spec(true), vec![nan.clone()]).is_ok());
        let error = check(&spec(false), vec![nan]).unwrap_err();
        assert_eq!(error.message(), "row 1: score is null; row 0: score is NaN");
        let infinite =
            batch(vec![Some("A"), Some("B")], vec![Some(1); 2], vec![Some(1.0), Some(f64::INFINITY)]);
        assert!(check(&spec(true), vec![infinite.clone()]).is_ok());
        assert_eq!(check(&spec(false), vec![infinite]).unwrap_err().message(), "row 1: score is inf");
    }

    #[test]
    fn columns_that_do_not_fit_say_what_was_expected_and_found() {
        let rows = RecordBatch::try_from_iter([
            ("symbol", Arc::new(StringArray::from(vec!["A"])) as ArrayRef),
            (
                "ts",
                Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("Europe/Berlin")) as ArrayRef,
            ),
            ("score", Arc::new(Int64Array::from(vec![1])) as ArrayRef),
            ("extra", Arc::new(Int64Array::from(vec![1])) as ArrayRef),
        ])
        .unwrap();
        let error = check(&spec(true), vec![rows]).unwrap_err();
        for part in ["the column score is Int64, expected float64", "extra is not a field", "ts is Timestamp"]
        {
            assert!(error.message().contains(part), "{} / {part}", error.message());
        }
    }

    #[test]
    fn rows_of_another_day_do_not_belong_to_the_session() {
        let rows = batch(vec![Some("A"), Some("A")], vec![Some(0), Some(86_400)], vec![None, None]);
        let schema = rows.schema();
        let error = Rows::check(&spec(true), &schema, vec![rows], Some(0..DAY_NS)).unwrap_err();
        assert!(error.message().starts_with("row 1: ts 1970-01-02"), "{}", error.message());
    }

    proptest! {
        #[test]
        fn text_of_every_form_counts_as_much_as_it_takes_once_it_is_plain(
            texts in prop::collection::vec(prop::option::of(".{0,40}"), 0..30),
        ) {
            let plain = StringArray::from(texts);
            let of = |t: DataType| Box::new(t);
            let keys = || of(DataType::Int8);
            for form in [
                DataType::LargeUtf8,
                DataType::Utf8View,
                DataType::Dictionary(keys(), of(DataType::Utf8)),
                DataType::Dictionary(keys(), of(DataType::LargeUtf8)),
                DataType::Dictionary(keys(), of(DataType::Utf8View)),
            ] {
                prop_assert!(is_text(&form));
                let column = arrow_cast::cast(&plain, &form).unwrap();
                let written = plain.iter().flatten().map(str::len).sum::<usize>() + 4 * plain.len();
                prop_assert_eq!(plain_bytes(&column), written, "{}", form);
                let batch = RecordBatch::try_from_iter_with_nullable([("symbol", column, true)]).unwrap();
                prop_assert_eq!(made_bytes(&batch), COLUMN_BYTES + written);
            }
            let plain: ArrayRef = Arc::new(plain);
            prop_assert_eq!(plain_bytes(&plain), 0);
        }
    }
}
