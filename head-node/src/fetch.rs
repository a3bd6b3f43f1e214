//! Asking shards for chunks.
//!
//! Per shard there is a queue of claims and a small number of calls. When a call is free it takes everything that is queued, across
//! datasets, symbols and columns, as one streaming call: a group commit without a timer. An idle shard is asked at once; while all calls
//! are busy, the queue grows into the next batch by itself. A fixed waiting time was rejected: it gains no calls when idle and costs its
//! length every time.
//!
//! What does not fit into one call waits for the next, and what goes first is decided by bytes per unit ([`crate::fair`]): in order of
//! arrival, who asks for everything in one go would stand before everybody who comes while it is fetched. A chunk that several units wait
//! for is charged to the one that claimed it.
//!
//! Chunks are delivered as they come, each to its own waiters, though many come in one message. What fails is a chunk, not a call: a
//! retry asks only for what is still open, and only if somebody still waits for it. A call fails as a whole if it breaks off, or if
//! the shard does not keep to the contract ([`Awaited`]): then nothing more that it says is believed.

use std::{
    collections::HashSet,
    ops::Range,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use trellis_proto::{
    Code, Error, Result,
    fetch::{Answer, Awaited, ChunkBatch},
    pb,
};

use crate::{
    chunk::{RunShape, Stamp},
    claims::{ColumnSet, FlightId, Payload, Standing},
    datasets::{Part, Table},
    fair::{self, Verdict},
    memory::Reservation,
    metrics,
    reading::Ask,
    series::{Cell, Fx, Leg},
    shards::{Shard, about, jitter},
    state::Core,
};

/// Calls under way to one shard. Two keep the connection busy while the third is being planned; more would divide a burst into
/// smaller batches, and a shard reads in parallel within a call.
const CALLS_MAX: usize = 3;
/// Expected bytes of one call, at most: bounds what one reservation takes, and the time until a call is free again.
const CALL_BYTES_MAX: u64 = 64 << 20;
/// The same as a part of the budget, for small ones.
const CALL_BUDGET_SHARE: u64 = 8;
/// Ranges of one call, at most: bounds the size of the request.
const CALL_RANGES_MAX: usize = 50_000;
/// How long a call waits for a shard that is being brought up to date.
const LIVE_WAIT: Duration = Duration::from_secs(5);
/// How often a chunk is asked for again after a failure that may pass, before its readers are told.
const RETRIES: u32 = 2;
/// Wait before the first retry, doubled for the next, with jitter.
const RETRY_WAIT: Duration = Duration::from_millis(40);

/// A claim on its way to a shard.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    /// In whose name it was claimed.
    unit: Arc<str>,
    pub(crate) table: Arc<Table>,
    pub(crate) part: Arc<Part>,
    pub(crate) cell: Arc<Cell>,
    pub(crate) flight: FlightId,
    pub(crate) columns: ColumnSet,
    pub(crate) chunks: Range<i64>,
    /// The reader streams in time order; others are served newest first.
    pub(crate) oldest_first: bool,
    /// Whether the chunks may stay when their readers are gone.
    pub(crate) store: bool,
    /// Expected bytes.
    pub(crate) bytes: u64,
    /// When it was queued last.
    queued: Instant,
    attempt: u32,
    /// It has been sent to another owner once.
    rerouted: bool,
}

impl Work {
    pub(crate) fn new(
        ask: &Ask,
        table: &Arc<Table>,
        part: &Arc<Part>,
        cell: &Arc<Cell>,
        claim: crate::claims::Claim,
        store: bool,
    ) -> Self {
        let chunks = (claim.chunks.end - claim.chunks.start) as u64;
        Self {
            unit: Arc::clone(&ask.unit),
            bytes: table.expected_bytes(chunks, claim.columns),
            table: Arc::clone(table),
            part: Arc::clone(part),
            cell: Arc::clone(cell),
            flight: claim.flight,
            columns: claim.columns,
            chunks: claim.chunks,
            oldest_first: ask.time_order,
            store,
            queued: Instant::now(),
            attempt: 0,
            rerouted: false,
        }
    }

    /// Tells the readers of `chunks` that they cannot be had.
    fn fail(&self, core: &Arc<Core>, chunks: Range<i64>, error: Error) {
        let span = self.table.spec.chunk;
        let range = (span.start(chunks.start), span.end(chunks.end - 1));
        let error =
            about(error, &self.part.shard, self.table.name.as_str(), self.cell.symbol.as_str(), range);
        let mut fx = Fx::default();
        self.cell.lock().series.fail(self.flight, chunks, &error, &mut fx);
        core.settle(&self.cell, &self.part.shard, fx);
    }

    /// Whether the chunks may have another owner by now.
    fn moved(&self, error: &Error) -> bool {
        error.code() == Code::StaleEpoch && !self.rerouted
    }

    /// Whether asking again may help. What was planned with another spec is planned anew by its readers.
    fn may_pass(&self, error: &Error) -> bool {
        let replan = error.code() == Code::StaleSchema;
        self.moved(error) || error.retryable() && !replan && self.attempt < RETRIES
    }

    fn fail_open(&self, core: &Arc<Core>, error: &Error) {
        let open = self.cell.lock().series.open(self.flight, &self.chunks);
        for chunks in open {
            self.fail(core, chunks, error.clone());
        }
    }
}

/// What waits for a call to one shard; what wants the one order is in another lane than what wants the other.
#[derive(Debug)]
pub(crate) struct Queue<T = Work> {
    waiting: fair::Queue<T, 2>,
    running: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: fair::Queue::new(), running: 0 }
    }
}

impl<T> Queue<T> {
    /// What comes next and goes together in one call of so many bytes; what is larger goes alone.
    fn take(&mut self, bytes_max: u64) -> Vec<T> {
        let Some(lane) = self.waiting.next_lane() else { return Vec::new() };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < CALL_RANGES_MAX {
            let fits = |_: &Arc<str>, more| match batch.is_empty() || bytes + more <= bytes_max {
                true => Verdict::Granted,
                false => Verdict::Full,
            };
            let Ok((_, more, item)) = self.waiting.pop(lane, fits) else { break };
            bytes += more;
            batch.push(item);
        }
        batch
    }
}

/// Queues claims on one shard, all at once so that they can go as one call.
pub(crate) fn submit(core: &Arc<Core>, shard: &Arc<Shard>, works: impl IntoIterator<Item = Work>) {
    let queued = Instant::now();
    let mut queue = shard.queue.lock();
    for work in works {
        let work = Work { queued, ..work };
        let unit = Arc::clone(&work.unit);
        queue.waiting.push(usize::from(work.oldest_first), &unit, work.bytes, work);
    }
    start(core, shard, &mut queue);
}

fn start(core: &Arc<Core>, shard: &Arc<Shard>, queue: &mut Queue) {
    if queue.running < CALLS_MAX && !queue.waiting.is_empty() {
        queue.running += 1;
        core.runtime().spawn(run(Running { core: Arc::clone(core), shard: Arc::clone(shard) }));
    }
}

/// One of a shard's calls. Gives its place back however it ends.
struct Running {
    core: Arc<Core>,
    shard: Arc<Shard>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut queue = self.shard.queue.lock();
        queue.running -= 1;
        start(&self.core, &self.shard, &mut queue);
    }
}

async fn run(running: Running) {
    let bytes_max = CALL_BYTES_MAX.min(running.core.memory.budget() / CALL_BUDGET_SHARE);
    loop {
        // whoever is about to queue something goes first: costs nothing when idle, and fills the batches of a burst
        tokio::task::yield_now().await;
        let works = running.shard.queue.lock().take(bytes_max);
        if works.is_empty() {
            return;
        }
        let now = Instant::now();
        for work in &works {
            running.core.waits.record(metrics::Queue::Shard, now.saturating_duration_since(work.queued));
        }
        let mut batch = Batch { core: Arc::clone(&running.core), works };
        if let Err(error) = call(&running.core, &running.shard, &mut batch).await {
            batch.fail(&error);
        }
    }
}

/// Claims of one call. If the task that makes the call ends in any way but the ordinary one (it panicked, the runtime stops), their
/// readers are told at once.
struct Batch {
    core: Arc<Core>,
    works: Vec<Work>,
}

impl Batch {
    fn fail(&mut self, error: &Error) {
        for work in std::mem::take(&mut self.works) {
            work.fail_open(&self.core, error);
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if !self.works.is_empty() {
            self.fail(&Error::new(
                Code::Internal,
                "the fetch ended without a result, by a bug in the head node",
            ));
        }
    }
}

/// One range of the request.
struct Asked {
    work: usize,
    shape: Arc<RunShape>,
}

/// Makes one call and settles every chunk of the batch, now or by a retry.
///
/// # Errors
/// What concerns all of the batch; the batch is then as it was.
async fn call(core: &Arc<Core>, shard: &Arc<Shard>, batch: &mut Batch) -> Result<()> {
    shard.live(LIVE_WAIT).await?;
    let expected = batch.works.iter().map(|work| work.bytes).sum();
    // what is over the share in itself goes when nothing else is in flight; over the budget it can never go
    let reserved = pin!(core.memory.reserve(expected));
    let (reserved, _) = core.waits.of(metrics::Queue::Memory, reserved).await;
    let mut reservation = reserved.inspect_err(|_| {
        core.counters.shed.fetch_add(batch.works.len() as u64, Relaxed);
    })?;
    core.cache.make_room();

    let generation = shard.generation();
    let mut ranges = Vec::new();
    let mut asked = Vec::new();
    let mut shapes: Vec<(Arc<Table>, Arc<RunShape>)> = Vec::new();
    for (index, work) in batch.works.iter().enumerate() {
        let open = {
            let mut inner = work.cell.lock();
            if !inner.series.wanted(work.flight) {
                // its readers left while it was queued: nothing is lost by not asking
                inner.series.cancel(work.flight, &work.chunks);
                continue;
            }
            let at = Standing { generation, ..work.part.standing() };
            inner.series.launch(work.flight, &work.chunks, at);
            inner.series.open(work.flight, &work.chunks)
        };
        let known = shapes.iter().find(|(t, s)| Arc::ptr_eq(t, &work.table) && s.columns == work.columns);
        let shape = match known {
            Some((_, shape)) => Arc::clone(shape),
            None => {
                let shape = Arc::new(RunShape::new(&work.table.spec, work.table.layout, work.columns));
                shapes.push((Arc::clone(&work.table), Arc::clone(&shape)));
                shape
            }
        };
        for chunks in open {
            ranges.push(pb::ChunkRange {
                dataset: work.table.name.to_string(),
                symbol: work.cell.symbol.to_string(),
                fields: shape.names(),
                first: chunks.start,
                end: chunks.end,
                schema: work.table.schema,
            });
            asked.push(Asked { work: index, shape: Arc::clone(&shape) });
        }
    }
    if ranges.is_empty() {
        batch.works.clear();
        return Ok(());
    }
    core.counters.upstream_calls.fetch_add(1, Relaxed);
    let tables: HashSet<_> = asked.iter().map(|a| &batch.works[a.work].table.name).collect();
    for name in tables {
        if let Some(table) = core.table(name) {
            table.counters.upstream_calls.fetch_add(1, Relaxed);
        }
    }

    let order = match batch.works.first() {
        Some(work) if work.oldest_first => pb::FetchOrder::OldestFirst,
        _ => pb::FetchOrder::NewestFirst,
    };
    let request = pb::FetchRequest { ranges, order: order.into(), epoch: shard.epoch() };
    let mut failures: Vec<(usize, Range<i64>, Error)> = Vec::new();
    let ended = stream(core, shard, batch, &asked, request, &mut reservation, &mut failures).await;
    drop(reservation);

    if let Err(error) = ended {
        for (index, work) in batch.works.iter().enumerate() {
            let open = work.cell.lock().series.open(work.flight, &work.chunks);
            failures.extend(open.into_iter().map(|chunks| (index, chunks, error.clone())));
        }
    }
    if failures.iter().any(|(_, _, error)| error.code() == Code::StaleEpoch) {
        // once for the batch; if it cannot be had now, the chunks fail and are asked for again by whoever still wants them
        match shard.describe(true).await {
            Ok(said) => shard.redescribed(core, &said),
            Err(error) => tracing::warn!(%error, shard = %shard.id, "a shard does not say what it owns"),
        }
    }
    for (index, chunks, error) in failures {
        again(core, shard, &batch.works[index], chunks, error);
    }
    batch.works.clear();
    Ok(())
}

async fn stream(
    core: &Arc<Core>,
    shard: &Arc<Shard>,
    batch: &Batch,
    asked: &[Asked],
    request: pb::FetchRequest,
    reservation: &mut Reservation,
    failures: &mut Vec<(usize, Range<i64>, Error)>,
) -> Result<()> {
    let mut client = shard.fetch_client(batch.works.iter().map(|work| work.bytes).sum());
    let left = AtomicBool::new(false);
    let fetch = async {
        let mut awaited = Awaited::of(&request);
        let mut replies = client.fetch(request).await?.into_inner();
        while let Some(reply) = replies.message().await? {
            match awaited.accept(reply)? {
                Answer::Batch(chunks) => {
                    arrive(core, shard, batch, asked, chunks, reservation).await?;
                }
                Answer::Failures(failed) => {
                    for failure in failed {
                        let index = asked[failure.range].work;
                        let work = &batch.works[index];
                        match work.may_pass(&failure.error) {
                            true => failures.push((index, failure.chunks, failure.error)),
                            false => work.fail(core, failure.chunks, failure.error),
                        }
                    }
                }
            }
            // what those who stayed waited for may have been in this message
            if left.load(Relaxed) && let_go(batch) {
                return Ok(());
            }
        }
        match awaited.is_empty() {
            true => Ok(()),
            false => Err(Error::new(Code::Unavailable, "the shard ended its answer early")),
        }
    };
    tokio::pin!(fetch);
    loop {
        // registered before the check, so that no cancellation is missed
        let cancelled = shard.flights_cancelled.notified();
        tokio::pin!(cancelled);
        cancelled.as_mut().enable();
        if let_go(batch) {
            return Ok(());
        }
        tokio::select! {
            ended = &mut fetch => return ended,
            () = cancelled => left.store(true, Relaxed),
        }
    }
}

/// Gives up what is still to come of a call that nobody waits for. False: somebody does, or may come back in the grace.
fn let_go(batch: &Batch) -> bool {
    let idle = |work: &Work| work.cell.lock().series.is_idle(work.flight, &work.chunks);
    // whoever joins in between keeps the call
    batch.works.iter().all(idle)
        && batch.works.iter().all(|work| work.cell.lock().series.let_go(work.flight, &work.chunks))
}

/// Chunks have come: out of the message, into the claim maps, to their waiters. Those of a run that is not as the contract says have
/// failed; the others of the message are unaffected. Not cancel safe: what is not delivered stays open.
///
/// # Errors
/// [`Code::DataCorrupt`] if the message cannot be read at all.
async fn arrive(
    core: &Arc<Core>,
    shard: &Arc<Shard>,
    batch: &Batch,
    asked: &[Asked],
    chunks: ChunkBatch,
    reservation: &mut Reservation,
) -> Result<()> {
    #[cfg(test)]
    assert!(!core.panic_on_arrival.load(Relaxed), "as the test wants");
    let count = chunks.rows();
    let ChunkBatch { runs, version, known_through, header, body, retracted, .. } = chunks;
    let Some(shape) = runs.first().map(|run| &asked[run.range].shape) else { return Ok(()) };
    core.counters.bytes_fetched.fetch_add((header.len() + body.len() + retracted.len()) as u64, Relaxed);
    let rows = shape.decode(&header, body, count)?;
    let mut unpack = shape.unpack(&core.memory, &rows, &retracted)?;
    for run in &runs {
        let work = &batch.works[asked[run.range].work];
        let stamp = Stamp { columns: work.columns, version, known_through };
        reservation.arrived(work.table.expected_bytes(run.chunk_rows.len() as u64, work.columns));
        let payloads = match unpack.next(run, stamp) {
            Ok(payloads) => payloads,
            Err(error) => {
                work.fail(core, run.chunks(), error);
                continue;
            }
        };
        work.table.counters.rows_fetched.fetch_add(run.rows(), Relaxed);
        work.table.learn(payloads.len(), run.rows());

        let store = work.store && reservation.store;
        let standing = work.part.standing();
        let mut fx = Fx::default();
        {
            let mut inner = work.cell.lock();
            for (chunk, payload) in run.chunks().zip(payloads) {
                debug_assert_eq!(payload.columns(), work.columns);
                let mut next_slot = || core.cache.next_id();
                inner.series.deliver(work.flight, chunk, payload, store, &standing, &mut next_slot, &mut fx);
            }
        }
        core.settle(&work.cell, shard, fx);
        // a message of short series is a thousand small pieces of work: others have their turn in between
        tokio::task::coop::consume_budget().await;
    }
    core.cache.make_room();
    Ok(())
}

/// A chunk could not be had: ask again if that may help and somebody still waits, else tell its readers.
fn again(core: &Arc<Core>, shard: &Arc<Shard>, work: &Work, chunks: Range<i64>, error: Error) {
    #[cfg(test)]
    assert!(!core.panic_on_arrival.load(Relaxed), "as the test wants");
    if work.moved(&error) {
        reroute(core, Work { chunks, rerouted: true, ..work.clone() }, error);
        return;
    }
    if !work.may_pass(&error) || !work.cell.lock().series.wanted(work.flight) {
        work.fail(core, chunks, error);
        return;
    }
    work.cell.lock().series.requeue(work.flight, &chunks);
    let wait = RETRY_WAIT * 2u32.pow(work.attempt);
    let (core, shard) = (Arc::clone(core), Arc::clone(shard));
    let work = Work { attempt: work.attempt + 1, chunks, ..work.clone() };
    core.runtime().clone().spawn(async move {
        let held = Batch { core: Arc::clone(&core), works: vec![work] };
        tokio::time::sleep(wait.mul_f64(0.5 + jitter())).await;
        resubmit(&core, &shard, held);
    });
}

fn resubmit(core: &Arc<Core>, shard: &Arc<Shard>, mut held: Batch) {
    submit(core, shard, std::mem::take(&mut held.works));
}

/// The shard's ownership is not what this head believed (and has learnt by now): ask whoever owns the chunks, once.
fn reroute(core: &Arc<Core>, mut work: Work, error: Error) {
    let legs = work.cell.legs(core, &work.table);
    let chunks = work.chunks.clone();
    let whole = |leg: &&Leg| leg.chunks.start <= chunks.start && chunks.end <= leg.chunks.end;
    match legs.as_ref().ok().and_then(|legs| legs.iter().find(whole)) {
        Some(leg) => {
            work.cell.lock().series.requeue(work.flight, &chunks);
            work.part = Arc::clone(&leg.part);
            submit(core, &leg.part.shard, [work]);
        }
        None => {
            let message = format!("the chunks have changed owners: {}", error.message());
            work.fail(core, chunks, Error::new(Code::Unavailable, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWEST_FIRST: usize = 0;
    const OLDEST_FIRST: usize = 1;

    fn unit(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn a_light_units_claim_is_in_the_next_call_however_much_of_a_hog_is_queued() {
        let mut queue = Queue::default();
        let (hog, light) = (unit("hog"), unit("light"));
        for i in 0..100 {
            queue.waiting.push(OLDEST_FIRST, &hog, 25, i);
        }
        assert_eq!(queue.take(100), [0, 1, 2, 3]);
        queue.waiting.push(OLDEST_FIRST, &light, 10, 1_000);
        let next = queue.take(100);
        assert!(next.contains(&1_000), "{next:?}");
        assert_eq!(next.iter().filter(|i| **i < 100).copied().collect::<Vec<_>>(), [4, 5, 6]);
        queue.waiting.push(NEWEST_FIRST, &light, 10, 1_001);
        assert_eq!(queue.take(100), [1_001], "the other order, too");
        assert_eq!(queue.take(100), [7, 8, 9, 10]);
    }

    #[test]
    fn a_call_takes_all_that_wants_its_order_up_to_its_bytes() {
        let mut queue = Queue::default();
        let units = [unit("a"), unit("b")];
        for i in 0..6 {
            queue.waiting.push([NEWEST_FIRST, OLDEST_FIRST][i % 2], &units[i / 3], 40, i);
        }
        queue.waiting.push(OLDEST_FIRST, &units[0], 300, 6);
        assert_eq!(queue.take(120), [0, 4, 2]);
        assert_eq!(queue.take(119), [3, 1], "a third one would be over");
        assert_eq!(queue.take(120), [5]);
        assert_eq!(queue.take(120), [6], "more than a call's bytes goes alone");
        assert!(queue.take(120).is_empty());
    }
}
