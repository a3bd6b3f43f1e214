//! Applying one change of a shard's log to everything that is held.
//!
//! Order: first the dataset's bounds, then each touched chunk, then the knowledge time. A reader takes the knowledge time first and
//! the rest after, so it never believes in a commit that has not been applied.

use std::{collections::HashMap, ops::Range, sync::Arc};

use arrow_array::{Array, RecordBatch, cast::AsArray, types::TimestampNanosecondType};
use trellis_proto::{Code, Error, Result, pb};

use crate::{
    chunk::{self, ChangeRows, Chunk, Stamp},
    claims::{ColumnSet, Event, Standing},
    datasets::{Part, Table},
    series::{Cell, Fx},
    shards::Shard,
    state::Core,
};

/// Rows that came with a change, and where each symbol's are.
struct Inline {
    rows: ChangeRows,
    symbols: HashMap<String, Range<usize>>,
}

pub(crate) fn apply(core: &Arc<Core>, shard: &Arc<Shard>, change: &pb::Change) {
    let table = match &change.description {
        Some(said) => match core.table_of(said) {
            Ok(table) => table,
            Err(error) => {
                tracing::error!(%error, shard = %shard.id, "a change describes a dataset that is not usable");
                None
            }
        },
        None => change.dataset.parse().ok().and_then(|name| core.table(&name)),
    };
    let Some(table) = table else {
        // whoever waits for the dataset learns that there is none
        core.notify();
        return;
    };
    // rows of another spec are not this table's, even where they would fit
    let same_spec = change.description.as_ref().is_some_and(|said| said.schema == table.schema);

    let generation = shard.generation();
    let before = table.part(&shard.id);
    let last_ts = before.as_ref().and_then(|part| part.last_ts());
    let part = match (&change.description, before.clone()) {
        (Some(said), before) => {
            let known_through = before.map_or(said.known_through_ns, |part| part.standing().known_through);
            table.describe(shard, Standing { generation, known_through }, said)
        }
        (None, Some(part)) => part,
        (None, None) => return,
    };
    let spans = change.spans.iter().map(|span| span.symbol.as_str());
    table.symbols_may_grow((!change.everything).then_some(spans));

    let known_through = change
        .description
        .as_ref()
        .map_or(change.known_at_max_ns, |said| said.known_through_ns.max(change.known_at_max_ns));
    let update = Update { core, shard, table: &table, part: &part, change, known_through, last_ts };
    if change.everything {
        for cell in table.all_cells() {
            // without a valid map it cannot be said whose the series is: better once too often
            match cell.owned_by(core, &table, &shard.id) {
                Ok(owned) => owned.into_iter().for_each(|chunks| update.close(&cell, chunks)),
                Err(_) => update.close(&cell, i64::MIN..i64::MAX),
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
            let Some(cell) = table.cell(&span.symbol) else { continue };
            let chunks = table.spec.chunk.cover(span.start_ns, span.end_ns);
            match cell.owned_by(core, &table, &shard.id) {
                Ok(owned) => {
                    for owned in owned {
                        let chunks = chunks.start.max(owned.start)..chunks.end.min(owned.end);
                        update.span(&cell, &span.symbol, chunks, inline.as_ref());
                    }
                }
                // it cannot be said whose the series is: better closed once too often
                Err(_) => update.close(&cell, chunks),
            }
        }
    }
    part.advance(known_through);
    if before.is_none() {
        // routes of this dataset could not be made without its part
        core.rebuild_ownership();
    } else {
        core.notify();
    }
}

struct Update<'a> {
    core: &'a Arc<Core>,
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

    fn close(&self, cell: &Arc<Cell>, chunks: Range<i64>) {
        let mut fx = Fx::default();
        cell.lock().series.change(
            &self.event(chunks),
            &self.part.standing(),
            |_, _| None,
            &mut || self.core.cache.next_id(),
            &mut fx,
        );
        self.core.settle(cell, self.shard, fx);
    }

    fn span(&self, cell: &Arc<Cell>, symbol: &str, chunks: Range<i64>, inline: Option<&Inline>) {
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
        let mut fx = Fx::default();
        {
            let mut inner = cell.lock();
            inner.series.change(
                &self.event(chunks.clone()),
                &standing,
                |chunk, payload| {
                    let rows = rows(chunk)?;
                    let columns = crate::claims::Payload::columns(payload);
                    payload.patched(&rows, self.table.layout, stamp(columns), &self.table.spec).ok()
                },
                &mut || self.core.cache.next_id(),
                &mut fx,
            );
            // A chunk that begins after everything that was there holds nothing but this change's rows. Readers who follow this series
            // will want it next, with the columns they have.
            if let Some((tail, columns)) = inner.series.tail() {
                for chunk in chunks.filter(|chunk| *chunk > tail) {
                    let begins_after =
                        self.last_ts.is_some_and(|last| self.table.spec.chunk.start(chunk) > last);
                    if begins_after
                        && let Some(rows) = rows(chunk).filter(|rows| rows.batch.num_rows() > 0)
                        && let Ok(payload) = Chunk::planted(
                            &self.core.memory,
                            &rows,
                            self.table.layout,
                            stamp(columns),
                            &self.table.spec,
                        )
                    {
                        inner.series.plant(
                            chunk,
                            payload,
                            &standing,
                            &mut || self.core.cache.next_id(),
                            &mut fx,
                        );
                    }
                }
            }
        }
        self.core.settle(cell, self.shard, fx);
    }
}

fn inline(table: &Table, change: &pb::Change, same_spec: bool) -> Result<Option<Inline>> {
    if change.data_header.is_empty() || !same_spec {
        return Ok(None);
    }
    let batch = chunk::decode(&change.data_header, change.data_body.clone(), table.spec.change_schema())?;
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
    let retracted = chunk::retractions(&change.retracted, batch.num_rows())?;
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
