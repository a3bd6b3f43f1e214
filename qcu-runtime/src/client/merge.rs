//! Answers of several heads, merged into one. Pure.
//!
//! Each part is sorted by (symbol, ts), and no symbol is in two parts. So the merge only orders runs of equal symbols and compares
//! no rows. It copies rows once, column by column. It writes the symbol column anew, because each head numbers its
//! symbols for itself and the result has one dictionary.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, DictionaryArray, RecordBatch, StringArray, cast::AsArray, types::Int32Type,
};
use arrow_schema::SchemaRef;
use trellis_proto::{Code, Error, Result};

/// Most rows of a merged batch: bounds the memory that a merge needs at once, and keeps string offsets within 32 bits.
const BATCH_ROWS_MAX: usize = 1 << 20;

/// The rows that one head sent.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
}

/// Adjacent rows of one symbol in one batch.
struct Run<'a> {
    symbol: &'a str,
    batch: &'a RecordBatch,
    start: usize,
    rows: usize,
}

/// Merges parts into one answer in symbol order. A part may be empty; there must be at least one part.
///
/// # Errors
/// `StaleSchema` if the parts have other fields or types: the dataset was changed between the heads' answers. `Internal` if a
/// symbol is out of order.
pub(crate) fn merge(mut parts: Vec<Part>) -> Result<Part> {
    let Some(first) = parts.first() else { return Err(broken("no parts")) };
    let schema = first.schema.clone();
    if parts.iter().any(|part| part.schema != schema) {
        let changed = "the dataset's fields were changed while it was read: the heads answer with other ones";
        return Err(Error::new(Code::StaleSchema, changed).hint("ask again"));
    }
    if parts.len() == 1 {
        return parts.pop().ok_or_else(|| broken("no parts"));
    }

    let mut symbols: Vec<&str> = Vec::new();
    let mut runs: Vec<Run<'_>> = Vec::new();
    for part in &parts {
        let before = runs.len();
        // the batches of a stream share their dictionary, so the merge reads it once
        let mut seen: Option<&StringArray> = None;
        for batch in &part.batches {
            let (keys, values) = symbol_column(batch)?;
            if seen.is_none_or(|seen| !std::ptr::eq(seen, values)) {
                symbols.extend(values.iter().flatten());
                seen = Some(values);
            }
            push_runs(batch, keys, values, &mut runs)?;
        }
        if runs[before..].windows(2).any(|pair| pair[0].symbol > pair[1].symbol) {
            return Err(broken("a head's rows are not in the order of their symbols"));
        }
    }
    symbols.extend(runs.iter().map(|run| run.symbol));
    symbols.sort_unstable();
    symbols.dedup();
    // a stable sort: the runs of one symbol all come from one part and keep the order of time
    runs.sort_by_key(|run| run.symbol);

    let dictionary: ArrayRef = Arc::new(StringArray::from(symbols.clone()));
    let mut batches = Vec::new();
    let mut rest = runs;
    while !rest.is_empty() {
        let mut rows = 0;
        let mut taken = 0;
        while taken < rest.len() && rows < BATCH_ROWS_MAX {
            let room = BATCH_ROWS_MAX - rows;
            if rest[taken].rows > room {
                let Run { symbol, batch, start, rows: all } = rest[taken];
                rest[taken].rows = room;
                rest.insert(taken + 1, Run { symbol, batch, start: start + room, rows: all - room });
            }
            rows += rest[taken].rows;
            taken += 1;
        }
        let tail = rest.split_off(taken);
        batches.push(gather(&schema, &rest, &symbols, &dictionary)?);
        rest = tail;
    }
    Ok(Part { schema, batches })
}

fn symbol_column(batch: &RecordBatch) -> Result<(&[i32], &StringArray)> {
    let column =
        batch.columns().first().and_then(|c| c.as_any().downcast_ref::<DictionaryArray<Int32Type>>());
    let column = column.ok_or_else(|| broken("the first column is not a dictionary of symbols"))?;
    let values = column.values().as_string_opt::<i32>();
    Ok((column.keys().values(), values.ok_or_else(|| broken("the symbols are not utf8"))?))
}

fn push_runs<'a>(
    batch: &'a RecordBatch,
    keys: &[i32],
    values: &'a StringArray,
    runs: &mut Vec<Run<'a>>,
) -> Result<()> {
    let mut start = 0;
    for equal in keys.chunk_by(|a, b| a == b) {
        let index = usize::try_from(equal[0]).ok().filter(|i| *i < values.len());
        let index = index.ok_or_else(|| broken("a symbol outside the dictionary"))?;
        runs.push(Run { symbol: values.value(index), batch, start, rows: equal.len() });
        start += equal.len();
    }
    Ok(())
}

fn gather(
    schema: &SchemaRef,
    runs: &[Run<'_>],
    symbols: &[&str],
    dictionary: &ArrayRef,
) -> Result<RecordBatch> {
    let mut keys: Vec<i32> = Vec::with_capacity(runs.iter().map(|run| run.rows).sum());
    for run in runs {
        let key = symbols.binary_search(&run.symbol).map_err(|_| broken("a symbol is lost"))?;
        let key = i32::try_from(key).map_err(|_| broken("more than 2^31 symbols"))?;
        keys.extend(std::iter::repeat_n(key, run.rows));
    }
    let symbol = DictionaryArray::<Int32Type>::try_new(keys.into(), dictionary.clone());
    let mut columns: Vec<ArrayRef> = vec![Arc::new(symbol.map_err(|e| broken(&e.to_string()))?)];
    for column in 1..schema.fields().len() {
        let slices: Vec<ArrayRef> =
            runs.iter().map(|run| run.batch.column(column).slice(run.start, run.rows)).collect();
        let slices: Vec<&dyn Array> = slices.iter().map(|slice| slice.as_ref()).collect();
        columns.push(arrow_select::concat::concat(&slices).map_err(|e| broken(&e.to_string()))?);
    }
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| broken(&e.to_string()))
}

fn broken(what: &str) -> Error {
    Error::new(Code::Internal, format!("the answers of several heads cannot be merged: {what}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use arrow_array::{
        Float64Array, TimestampNanosecondArray, types::Float64Type, types::TimestampNanosecondType,
    };
    use arrow_schema::{DataType, Field, Schema};
    use proptest::prelude::*;
    use trellis_proto::spec::{symbol_type, time_type};

    use super::*;

    pub(crate) type Row = (String, i64, Option<f64>);

    pub(crate) fn answer_schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("symbol", symbol_type(), false),
            Field::new("ts", time_type(), false),
            Field::new("close", DataType::Float64, true),
        ]))
    }

    /// Rows as a head sends them, cut into batches of `size` rows; the dictionary also has `extra`.
    pub(crate) fn part(rows: &[Row], size: usize, extra: &[&str]) -> Part {
        let mut names: Vec<&str> = rows.iter().map(|r| r.0.as_str()).chain(extra.iter().copied()).collect();
        names.sort_unstable();
        names.dedup();
        let dictionary: ArrayRef = Arc::new(StringArray::from(names.clone()));
        let batches = rows.chunks(size.max(1)).map(|rows| {
            let keys: Vec<i32> = rows.iter().map(|r| names.binary_search(&&*r.0).unwrap() as i32).collect();
            let ts: Vec<i64> = rows.iter().map(|r| r.1).collect();
            let close: Vec<Option<f64>> = rows.iter().map(|r| r.2).collect();
            let columns: Vec<ArrayRef> = vec![
                Arc::new(DictionaryArray::<Int32Type>::try_new(keys.into(), dictionary.clone()).unwrap()),
                Arc::new(TimestampNanosecondArray::from(ts).with_timezone("UTC")),
                Arc::new(Float64Array::from(close)),
            ];
            RecordBatch::try_new(answer_schema(), columns).unwrap()
        });
        Part { schema: answer_schema(), batches: batches.collect() }
    }

    pub(crate) fn rows(batches: &[RecordBatch]) -> Vec<Row> {
        let mut out = vec![];
        for batch in batches {
            let symbols = batch.column(0).as_dictionary::<Int32Type>();
            let names = symbols.values().as_string::<i32>();
            let ts = batch.column(1).as_primitive::<TimestampNanosecondType>();
            let close = batch.column(2).as_primitive::<Float64Type>();
            for i in 0..batch.num_rows() {
                let name = names.value(symbols.key(i).unwrap()).to_owned();
                out.push((name, ts.value(i), close.is_valid(i).then(|| close.value(i))));
            }
        }
        out
    }

    fn world() -> impl Strategy<Value = Vec<Row>> {
        let symbol = proptest::sample::select(vec!["A", "AA", "AMZN", "B", "BRK.B", "Z", "a", "é"]);
        proptest::collection::btree_map((symbol, -5_i64..20), proptest::option::of(-2.0..2.0), 0..80)
            .prop_map(|map| map.into_iter().map(|((s, ts), v)| (s.to_owned(), ts, v)).collect())
    }

    proptest! {
        #[test]
        fn merging_the_parts_of_a_split_answer_gives_the_answer(
            mut all in world(), heads in 1..4_usize, size in 1..9_usize,
        ) {
            all.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
            let head_of = |symbol: &str| symbol.bytes().map(usize::from).sum::<usize>() % heads;
            let parts = (0..heads).map(|head| {
                let mine: Vec<Row> = all.iter().filter(|row| head_of(&row.0) == head).cloned().collect();
                part(&mine, size, &[])
            });
            let merged = merge(parts.collect()).unwrap();
            prop_assert_eq!(rows(&merged.batches), all);
            let dictionaries: Vec<_> = merged.batches.iter()
                .map(|b| b.column(0).as_dictionary::<Int32Type>().values().clone()).collect();
            prop_assert!(dictionaries.windows(2).all(|two| two[0].as_ref() == two[1].as_ref()));
        }
    }

    #[test]
    fn symbols_without_rows_stay_in_the_dictionary() {
        let a = part(&[("B".into(), 1, None)], 1, &["C"]);
        let b = part(&[("A".into(), 1, None)], 1, &[]);
        let merged = merge(vec![a, b]).unwrap();
        let values = merged.batches[0].column(0).as_dictionary::<Int32Type>().values().clone();
        assert_eq!(values.as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["A", "B", "C"]);
    }

    #[test]
    fn a_part_out_of_order_is_not_merged() {
        let a = part(&[("B".into(), 1, None), ("A".into(), 1, None)], 9, &[]);
        let b = part(&[("C".into(), 1, None)], 9, &[]);
        assert!(merge(vec![a, b]).is_err());
    }
}
