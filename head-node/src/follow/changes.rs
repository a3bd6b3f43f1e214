//! Applying one change of a shard's log to everything that is held.
//!
//! The order is: first the dataset's bounds, then each touched chunk, then the knowledge time. A reader takes the knowledge time first
//! and everything else after it, so it never counts on a commit that has not been applied.

use std::{collections::HashMap, ops::Range, sync::Arc};

use arrow_array::{Array, RecordBatch, cast::AsArray, types::TimestampNanosecondType};
use trellis_proto::{Code, Error, Result, pb};

use crate::{
    held::{
        ChangeRows, Chunk, ColumnSet, Event, Holdings, Part, Payload, Series, SeriesEffects, Stamp, Standing,
        Table, chunks_owned, decode, retractions,
    },
    shards::{Shard, Shards},
};

/// Rows that came with a change, and the range of each symbol in them.
struct Inline {
    rows: ChangeRows,
    symbols: HashMap<String, Range<usize>>,
}

/// Applies one change of a shard's log, of a dataset that the head follows there.
pub(super) fn apply(holdings: &Arc<Holdings>, shards: &Shards, shard: &Arc<Shard>, change: &pb::Change) {
    let table = match &change.description {
        Some(said) => match holdings.table_of(said) {
            Ok(table) => table,
            Err(error) => {
                tracing::error!(%error, shard = %shard.id, "a change describes a dataset that is not usable");
                None
            }
        },
        None => change.dataset.parse().ok().and_then(|name| holdings.table(&name)),
    };
    let Some(table) = table else {
        // readers that wait for the dataset learn that there is none
        shards.notify();
        return;
    };
    // rows of another spec do not belong to this table, even if their types fit
    let same_spec = change.description.as_ref().is_some_and(|said| said.schema == table.schema);

    let before = table.part(&shard.id);
    let last_ts = before.as_ref().and_then(|part| part.last_ts());
    let part = match (&change.description, before.clone()) {
        (Some(said), before) => {
            let known_through = before.map_or(said.known_through_ns, |part| part.standing().known_through);
            let part =
                table.describe(shard, Standing { generation: shards.next_generation(), known_through }, said);
            table.refresh();
            part
        }
        (None, Some(part)) => part,
        (None, None) => return,
    };
    if change.everything {
        table.symbols().forget(&shard.id);
    } else {
        let symbols = change.spans.iter().map(|span| span.symbol.as_str());
        table.symbols().may_grow(&shard.id, Some(symbols));
    }

    let known_through = change
        .description
        .as_ref()
        .map_or(change.known_at_max_ns, |said| said.known_through_ns.max(change.known_at_max_ns));
    let update = Update { holdings, shard, table: &table, part: &part, change, known_through, last_ts };
    if change.everything {
        for series in table.all_series() {
            match chunks_owned(shards, &table, &series, &shard.id) {
                Ok(owned) => owned.into_iter().for_each(|chunks| update.close(&series, chunks)),
                // without a valid map the owner is not known: a chunk closed too often is fetched again, one closed too rarely is wrong
                Err(_) => update.close(&series, i64::MIN..i64::MAX),
            }
        }
    } else {
        let inline = match inline(&table, change, same_spec) {
            Ok(inline) => inline,
            Err(error) => {
                tracing::error!(%error, shard = %shard.id, dataset = %table.name, "the rows of a change do not read");
                None
            }
        };
        for span in &change.spans {
            let Some(series) = table.series(&span.symbol) else { continue };
            let chunks = table.spec.chunk.cover(span.start_ns, span.end_ns);
            match chunks_owned(shards, &table, &series, &shard.id) {
                Ok(owned) => {
                    for owned in owned {
                        let chunks = chunks.start.max(owned.start)..chunks.end.min(owned.end);
                        update.span(&series, &span.symbol, chunks, inline.as_ref());
                    }
                }
                // the owner is not known, as above
                Err(_) => update.close(&series, chunks),
            }
        }
    }
    part.advance(known_through);
    shards.notify();
}

struct Update<'a> {
    holdings: &'a Arc<Holdings>,
    shard: &'a Arc<Shard>,
    table: &'a Arc<Table>,
    part: &'a Arc<Part>,
    change: &'a pb::Change,
    known_through: i64,
    /// Greatest event time before this change.
    last_ts: Option<i64>,
}

impl Update<'_> {
    fn event(&self, chunks: Range<i64>) -> Event {
        Event {
            version: self.change.version,
            known_at_min: self.change.known_at_min_ns,
            known_through: self.known_through,
            chunks,
        }
    }

    fn close(&self, series: &Arc<Series>, chunks: Range<i64>) {
        let mut effects = SeriesEffects::default();
        series.lock().claims.change(
            &self.event(chunks),
            &self.part.standing(),
            |_, _| None,
            &mut || self.holdings.cache.next_id(),
            &mut effects,
        );
        self.holdings.settle(series, self.shard, effects);
    }

    fn span(&self, series: &Arc<Series>, symbol: &str, chunks: Range<i64>, inline: Option<&Inline>) {
        if chunks.is_empty() {
            return;
        }
        let rows = |chunk: i64| -> Option<ChangeRows> {
            let inline = inline?;
            let all = inline.symbols.get(symbol)?;
            let (start, end) = self.table.spec.chunk.range(chunk);
            let ts = inline.rows.batch.column(1).as_primitive::<TimestampNanosecondType>();
            let ts = &ts.values()[all.clone()];
            let from = all.start + ts.partition_point(|t| *t < start);
            let to = all.start + ts.partition_point(|t| *t < end);
            Some(inline.rows.slice(from..to))
        };
        let stamp = |columns: ColumnSet| Stamp {
            columns,
            version: self.change.version,
            known_through: self.known_through,
        };
        let standing = self.part.standing();
        let mut effects = SeriesEffects::default();
        {
            let mut state = series.lock();
            state.claims.change(
                &self.event(chunks.clone()),
                &standing,
                |chunk, payload| {
                    let rows = rows(chunk)?;
                    let columns = Payload::columns(payload);
                    payload.patched(&rows, self.table.layout, stamp(columns), &self.table.spec).ok()
                },
                &mut || self.holdings.cache.next_id(),
                &mut effects,
            );
            // A chunk that begins after every earlier row holds the rows of this change and no others. Readers that follow this series
            // want it next, with the columns that they have read so far.
            if let Some((tail, columns)) = state.claims.tail() {
                for chunk in chunks.filter(|chunk| *chunk > tail) {
                    let begins_after =
                        self.last_ts.is_some_and(|last| self.table.spec.chunk.start(chunk) > last);
                    if begins_after
                        && let Some(rows) = rows(chunk).filter(|rows| rows.batch.num_rows() > 0)
                        && let Ok(payload) = Chunk::planted(
                            &self.holdings.memory,
                            &rows,
                            self.table.layout,
                            stamp(columns),
                            &self.table.spec,
                        )
                    {
                        state.claims.plant(
                            chunk,
                            payload,
                            &standing,
                            &mut || self.holdings.cache.next_id(),
                            &mut effects,
                        );
                    }
                }
            }
        }
        self.holdings.settle(series, self.shard, effects);
    }
}

fn inline(table: &Table, change: &pb::Change, same_spec: bool) -> Result<Option<Inline>> {
    if change.data_header.is_empty() || !same_spec {
        return Ok(None);
    }
    let batch = decode(&change.data_header, change.data_body.clone(), table.spec.change_schema())?;
    let names = batch.column(0).as_string::<i32>();
    let mut symbols: HashMap<String, Range<usize>> = HashMap::new();
    let mut from = 0;
    while from < names.len() {
        let name = names.value(from);
        let mut to = from + 1;
        while to < names.len() && names.value(to) == name {
            to += 1;
        }
        if symbols.insert(name.to_owned(), from..to).is_some() || !sorted(&batch, from..to) {
            return Err(Error::new(Code::DataCorrupt, "the rows of a change are not sorted"));
        }
        from = to;
    }
    let retracted = retractions(&change.retracted, batch.num_rows())?;
    Ok(Some(Inline { rows: ChangeRows { batch, retracted }, symbols }))
}

/// Whether (ts, known_at) ascends strictly.
fn sorted(batch: &RecordBatch, rows: Range<usize>) -> bool {
    let time = |column: usize| {
        &batch.column(column).as_primitive::<TimestampNanosecondType>().values()[rows.clone()]
    };
    let (ts, known) = (time(1), time(2));
    ts.windows(2).zip(known.windows(2)).all(|(t, k)| (t[0], k[0]) < (t[1], k[1]))
}
