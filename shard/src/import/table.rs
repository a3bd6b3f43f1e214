//! The good rows of an import: collected by column, sorted, checked for doubles, cut into batches and digested.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{
    Array, ArrayRef, RecordBatch, StringArray, TimestampNanosecondArray, UInt32Array,
    builder::{
        BooleanBuilder, Float32Builder, Float64Builder, Int32Builder, Int64Builder, StringBuilder,
        TimestampNanosecondBuilder,
    },
    cast::AsArray,
    types::{Float32Type, Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use arrow_schema::{Schema, SchemaRef};
use arrow_select::take::take;
use sha2::{Digest, Sha256};
use trellis_proto::{DatasetSpec, FieldType, Symbol, spec::FieldSpec, time::DAY_NS, time::SECOND_NS};

use super::{
    choice::Repeats,
    told::{Bad, BadRows, ImportError, Part, Place, REPEATED},
    values::{Cell, Reason},
};

/// Most rows of one import: everything is sorted in memory, at about 44 bytes a row and 8 a field, and the batches beside
/// it at 24 a row and 8 a field. 20 million rows of five fields are 3 GB.
pub(crate) const ROWS_MAX: usize = 20_000_000;

/// Rows of a batch: with a handful of fields 0.5 to 1 MiB, the best size of a message.
const BATCH_ROWS: usize = 16_384;

/// Most knowledge times of one import: each is a publish, and a version of the dataset.
const PARTS_MAX: usize = 10_000;

/// The distance of rows of one symbol and time that are spread: the least there is.
const REPEAT_STEP_NS: i64 = 1;

enum Column {
    Float64(Float64Builder),
    Float32(Float32Builder),
    Int64(Int64Builder),
    Int32(Int32Builder),
    Bool(BooleanBuilder),
    String(StringBuilder),
    Timestamp(TimestampNanosecondBuilder),
}

impl Column {
    fn new(data_type: FieldType) -> Self {
        match data_type {
            FieldType::Float64 => Self::Float64(Float64Builder::new()),
            FieldType::Float32 => Self::Float32(Float32Builder::new()),
            FieldType::Int64 => Self::Int64(Int64Builder::new()),
            FieldType::Int32 => Self::Int32(Int32Builder::new()),
            FieldType::Bool => Self::Bool(BooleanBuilder::new()),
            FieldType::String => Self::String(StringBuilder::new()),
            FieldType::Timestamp => Self::Timestamp(TimestampNanosecondBuilder::new().with_timezone("UTC")),
        }
    }

    /// Appends a cell. A cell of another type becomes null, which does not occur: readers make cells of the column's type.
    fn push(&mut self, cell: Cell<'_>) {
        match (self, cell) {
            (Self::Float64(to), Cell::Float(v)) => to.append_value(v),
            (Self::Float32(to), Cell::Float32(v)) => to.append_value(v),
            (Self::Int64(to), Cell::Int(v)) => to.append_value(v),
            (Self::Int32(to), Cell::Int32(v)) => to.append_value(v),
            (Self::Bool(to), Cell::Bool(v)) => to.append_value(v),
            (Self::String(to), Cell::Text(v)) => to.append_value(v),
            (Self::Timestamp(to), Cell::Time(v)) => to.append_value(v),
            (Self::Float64(to), _) => to.append_null(),
            (Self::Float32(to), _) => to.append_null(),
            (Self::Int64(to), _) => to.append_null(),
            (Self::Int32(to), _) => to.append_null(),
            (Self::Bool(to), _) => to.append_null(),
            (Self::String(to), _) => to.append_null(),
            (Self::Timestamp(to), _) => to.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Float64(b) => Arc::new(b.finish()),
            Self::Float32(b) => Arc::new(b.finish()),
            Self::Int64(b) => Arc::new(b.finish()),
            Self::Int32(b) => Arc::new(b.finish()),
            Self::Bool(b) => Arc::new(b.finish()),
            Self::String(b) => Arc::new(b.finish()),
            Self::Timestamp(b) => Arc::new(b.finish()),
        }
    }

    fn text_bytes(&self) -> usize {
        if let Self::String(b) = self { b.values_slice().len() } else { 0 }
    }
}

/// Symbols by number, in the order of their first rows. Each is checked once.
#[derive(Default)]
struct Symbols {
    numbers: HashMap<Symbol, u32>,
    names: Vec<Symbol>,
    last: u32,
}

impl Symbols {
    fn number(&mut self, name: &str) -> Result<u32, Reason> {
        if self.names.get(self.last as usize).is_some_and(|last| last.as_str() == name) {
            return Ok(self.last);
        }
        if let Some(&number) = self.numbers.get(name) {
            self.last = number;
            return Ok(number);
        }
        let symbol = Symbol::new(name).map_err(|e| e.message().to_owned())?;
        // There are fewer than ROWS_MAX.
        self.last = self.names.len() as u32;
        self.names.push(symbol.clone());
        self.numbers.insert(symbol, self.last);
        Ok(self.last)
    }

    /// For each number its rank by name.
    fn ranks(&self) -> Vec<u32> {
        let mut by_name: Vec<u32> = (0..self.names.len() as u32).collect();
        by_name.sort_unstable_by_key(|&number| &self.names[number as usize]);
        let mut ranks = vec![0; by_name.len()];
        for (rank, number) in by_name.into_iter().enumerate() {
            ranks[number as usize] = rank as u32;
        }
        ranks
    }
}

/// The key of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) symbol: u32,
    pub(crate) ts: i64,
    pub(crate) known_at: Option<i64>,
}

/// The rows of one record: for each key as many cells as the dataset has fields.
pub(crate) struct Rows<'a> {
    pub(crate) keys: Vec<Key>,
    pub(crate) cells: Vec<Cell<'a>>,
}

pub(crate) struct Table {
    symbols: Symbols,
    keys: Vec<Key>,
    /// Source and line of each row. Lines beyond 32 bits are shown as the greatest: files have fewer.
    places: Vec<(u32, u32)>,
    columns: Vec<Column>,
}

impl Table {
    pub(crate) fn new(types: impl IntoIterator<Item = FieldType>) -> Self {
        Self {
            symbols: Symbols::default(),
            keys: Vec::new(),
            places: Vec::new(),
            columns: types.into_iter().map(Column::new).collect(),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn symbol(&mut self, name: &str) -> Result<u32, Reason> {
        self.symbols.number(name)
    }

    /// Adds a row; `cells` has one cell for each column, of its type or null.
    pub(crate) fn push(&mut self, key: Key, place: Place, cells: &[Cell<'_>]) -> Result<(), ImportError> {
        if self.keys.len() >= ROWS_MAX {
            return Err(ImportError::TooLarge {
                message: format!("more than {ROWS_MAX} rows in one import"),
            });
        }
        self.keys.push(key);
        self.places.push((place.0, u32::try_from(place.1).unwrap_or(u32::MAX)));
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            let text = if let Cell::Text(text) = cell { text.len() } else { 0 };
            if text > 0 && column.text_bytes() + text > i32::MAX as usize {
                return Err(ImportError::TooLarge {
                    message: "more than 2 GiB of text of one field in one import".to_owned(),
                });
            }
            column.push(*cell);
        }
        Ok(())
    }

    /// Adds the rows of one record.
    pub(crate) fn push_all(&mut self, rows: &Rows<'_>, place: Place) -> Result<(), ImportError> {
        let width = self.columns.len();
        for (i, key) in rows.keys.iter().enumerate() {
            self.push(*key, place, &rows.cells[i * width..(i + 1) * width])?;
        }
        Ok(())
    }

    /// Sorts by (knowledge time, symbol, time), and moves rows with the key of an earlier row to `bad`, unless `repeats`
    /// spreads them or takes the last.
    pub(crate) fn check(
        mut self,
        repeats: Repeats,
        ts_column: &dyn Fn(u32) -> String,
        file_of: &dyn Fn(u32) -> String,
        bad: &mut BadRows,
    ) -> Checked {
        let ranks = self.symbols.ranks();
        let keys = &self.keys;
        let by = |row: u32| {
            let key = keys[row as usize];
            (key.known_at, ranks[key.symbol as usize], key.ts, row)
        };
        let mut order: Vec<u32> = (0..self.keys.len() as u32).collect();
        if !order.is_sorted_by_key(|&row| by(row)) {
            order.sort_unstable_by_key(|&row| by(row));
        }
        if repeats == Repeats::Spread {
            self.spread(&order);
        }
        let mut replaced = 0;
        if repeats == Repeats::Last {
            let before = order.len();
            // The rows are in the order of their keys, and rows of one key in the order of the files.
            order.reverse();
            order.dedup_by_key(|row| self.keys[*row as usize]);
            order.reverse();
            replaced = before - order.len();
        }
        let mut kept: Option<u32> = None;
        order.retain(|&row| {
            let key = self.keys[row as usize];
            let first = kept.filter(|&first| self.keys[first as usize] == key);
            let Some(first) = first else {
                kept = Some(row);
                return true;
            };
            let (source, line) = self.places[row as usize];
            bad.add((source, line.into()), || {
                let (first_source, first_line) = self.places[first as usize];
                let symbol = &self.symbols.names[key.symbol as usize];
                Bad::cell(
                    &ts_column(source),
                    &trellis_proto::time::format_time(key.ts),
                    format!("{symbol} {REPEATED}, in {}:{first_line}", file_of(first_source)),
                )
            });
            false
        });
        Checked { table: self, order, replaced: replaced as u64 }
    }

    /// Moves the second and later rows of one key by a nanosecond each, but never onto or past the next time.
    fn spread(&mut self, order: &[u32]) {
        let mut start = 0;
        while start < order.len() {
            let key = self.keys[order[start] as usize];
            let same = order[start..].iter().take_while(|&&row| self.keys[row as usize] == key).count();
            let limit = order
                .get(start + same)
                .map(|&next| self.keys[next as usize])
                .filter(|next| next.symbol == key.symbol && next.known_at == key.known_at)
                .map_or(i64::MAX, |next| next.ts);
            let mut ts = key.ts;
            for &row in &order[start..start + same] {
                if row != order[start] && ts.saturating_add(REPEAT_STEP_NS) < limit {
                    ts += REPEAT_STEP_NS;
                }
                self.keys[row as usize].ts = ts;
            }
            start += same;
        }
    }
}

/// A table whose rows are sorted and unique.
pub(crate) struct Checked {
    table: Table,
    /// Row numbers by (knowledge time, symbol, time).
    order: Vec<u32>,
    /// How many rows a later row of the same key has replaced.
    pub(crate) replaced: u64,
}

impl Checked {
    pub(crate) fn rows(&self) -> usize {
        self.order.len()
    }

    /// The symbols that have rows, sorted.
    pub(crate) fn symbols(&self) -> Vec<Symbol> {
        let mut has = vec![false; self.table.symbols.names.len()];
        for &row in &self.order {
            has[self.table.keys[row as usize].symbol as usize] = true;
        }
        let names = self.table.symbols.names.iter().zip(has);
        let mut found: Vec<Symbol> = names.filter(|(_, has)| *has).map(|(name, _)| name.clone()).collect();
        found.sort_unstable();
        found
    }

    /// Least and greatest time.
    pub(crate) fn span(&self) -> Option<(i64, i64)> {
        let times = || self.order.iter().map(|&row| self.table.keys[row as usize].ts);
        Some((times().min()?, times().max()?))
    }

    /// The chunk that fits the rows: see [`chunk_for`].
    pub(crate) fn chunk_ns(&self) -> i64 {
        let keys = &self.table.keys;
        let steps = self.order.windows(2).filter_map(|pair| {
            let (a, b) = (keys[pair[0] as usize], keys[pair[1] as usize]);
            (a.symbol == b.symbol && a.known_at == b.known_at).then(|| b.ts.saturating_sub(a.ts))
        });
        chunk_for(&mut steps.collect::<Vec<_>>())
    }

    /// The rows as batches, one part for each knowledge time. `default` is the knowledge time of rows without their own.
    pub(crate) fn parts(
        mut self,
        spec: &DatasetSpec,
        default: Option<i64>,
    ) -> Result<Vec<Part>, ImportError> {
        // A retraction is a key without fields.
        let schema = spec.rows_schema();
        let read = schema.fields().iter().take(2 + self.table.columns.len()).cloned();
        let schema: SchemaRef = Arc::new(Schema::new(read.collect::<Vec<_>>()));
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.table.columns.len());
        for column in &mut self.table.columns {
            columns.push(column.finish());
        }
        let known = |row: u32| self.table.keys[row as usize].known_at;
        let mut parts = Vec::new();
        for rows in self.order.chunk_by(|&a, &b| known(a) == known(b)) {
            if parts.len() == PARTS_MAX {
                return Err(ImportError::TooLarge {
                    message: format!("more than {PARTS_MAX} knowledge times in one import"),
                });
            }
            let known_at_ns = known(rows[0]).or(default);
            let mut digest = RowsDigest::new(spec, known_at_ns);
            let mut batches = Vec::with_capacity(rows.len().div_ceil(BATCH_ROWS));
            for rows in rows.chunks(BATCH_ROWS) {
                let batch = self.batch(&schema, &columns, rows)?;
                digest.add(&batch);
                batches.push(batch);
            }
            parts.push(Part { known_at_ns, batches, rows: rows.len() as u64, digest: digest.finish() });
        }
        Ok(parts)
    }

    fn batch(
        &self,
        schema: &SchemaRef,
        columns: &[ArrayRef],
        rows: &[u32],
    ) -> Result<RecordBatch, ImportError> {
        // This cannot fail for rows and columns of this table.
        let failed =
            |e: arrow_schema::ArrowError| ImportError::options(format!("a batch cannot be made: {e}"), "");
        let key = |row: &u32| self.table.keys[*row as usize];
        let symbols = StringArray::from_iter_values(
            rows.iter().map(|r| &self.table.symbols.names[key(r).symbol as usize]),
        );
        let ts =
            TimestampNanosecondArray::from_iter_values(rows.iter().map(|r| key(r).ts)).with_timezone("UTC");
        let indices = UInt32Array::from(rows.to_vec());
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(symbols), Arc::new(ts)];
        for column in columns {
            arrays.push(take(column, &indices, None).map_err(failed)?);
        }
        RecordBatch::try_new(Arc::clone(schema), arrays).map_err(failed)
    }
}

/// 64 days for daily rows, 4 days for bars, an hour for ticks, by the median step between rows of one symbol. A chunk then has tens of
/// rows of a daily series, and thousands of a series by the minute. A single row counts as daily.
pub(crate) fn chunk_for(steps: &mut [i64]) -> i64 {
    const DAILY_NS: i64 = DAY_NS / 2;
    const BAR_NS: i64 = SECOND_NS;
    if steps.is_empty() {
        return 64 * DAY_NS;
    }
    let middle = (steps.len() - 1) / 2;
    let (_, median, _) = steps.select_nth_unstable(middle);
    match *median {
        DAILY_NS.. => 64 * DAY_NS,
        BAR_NS..DAILY_NS => 4 * DAY_NS,
        _ => 3_600 * SECOND_NS,
    }
}

/// SHA-256 over a spec and sorted rows, column by column, so that it does not depend on how the rows are cut.
struct RowsDigest {
    head: Sha256,
    columns: Vec<Sha256>,
    scratch: Vec<u8>,
}

impl RowsDigest {
    fn new(spec: &DatasetSpec, known_at_ns: Option<i64>) -> Self {
        let mut head = Sha256::new();
        let mut text = |text: &str| {
            head.update((text.len() as u64).to_le_bytes());
            head.update(text);
        };
        text("trellis import 1");
        text(spec.dataset.as_str());
        for FieldSpec { name, data_type, nullable } in &spec.fields {
            text(name.as_str());
            text(data_type.name());
            text(if *nullable { "null" } else { "not null" });
        }
        head.update([u8::from(known_at_ns.is_some())]);
        head.update(known_at_ns.unwrap_or_default().to_le_bytes());
        Self { head, columns: vec![Sha256::new(); spec.fields.len() + 2], scratch: Vec::new() }
    }

    fn add(&mut self, batch: &RecordBatch) {
        for (digest, array) in self.columns.iter_mut().zip(batch.columns()) {
            self.scratch.clear();
            write_values(array, &mut self.scratch);
            digest.update(&self.scratch);
        }
    }

    fn finish(mut self) -> String {
        for column in self.columns {
            self.head.update(column.finalize());
        }
        format!("{:x}", self.head.finalize())
    }
}

/// Each value as a byte of presence and its bytes, text with its length before it.
fn write_values(array: &ArrayRef, out: &mut Vec<u8>) {
    macro_rules! fixed {
        ($array:expr) => {
            for value in $array.iter() {
                out.push(u8::from(value.is_some()));
                if let Some(value) = value {
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }
        };
    }
    match FieldType::from_arrow(array.data_type()) {
        Some(FieldType::Float64) => fixed!(array.as_primitive::<Float64Type>()),
        Some(FieldType::Float32) => fixed!(array.as_primitive::<Float32Type>()),
        Some(FieldType::Int64) => fixed!(array.as_primitive::<Int64Type>()),
        Some(FieldType::Int32) => fixed!(array.as_primitive::<Int32Type>()),
        Some(FieldType::Timestamp) => fixed!(array.as_primitive::<TimestampNanosecondType>()),
        Some(FieldType::Bool) => {
            out.extend(array.as_boolean().iter().map(|v| v.map_or(0, |v| 1 + u8::from(v))));
        }
        Some(FieldType::String) => {
            for value in array.as_string::<i32>() {
                out.push(u8::from(value.is_some()));
                if let Some(value) = value {
                    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
                    out.extend_from_slice(value.as_bytes());
                }
            }
        }
        // Rows of a dataset have no such column; its length still counts.
        None => out.extend_from_slice(&(array.len() as u64).to_le_bytes()),
    }
}
