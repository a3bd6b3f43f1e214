//! Fetching claimed chunks from the shards.
//!
//! For each shard there is a queue of claims and a small number of calls. A call that is free takes everything that is queued, across
//! datasets, symbols and columns, as one streaming RPC: a group commit without a timer. An idle shard is asked at once. While all calls
//! are busy, the queue grows into the next batch. A fixed waiting time was rejected: it saves no calls when the shard is idle, and adds
//! its length to every fetch.
//!
//! Claims that do not fit into one call wait for the next one. Fairness by bytes per unit ([`FairQueue`]) decides which claims go
//! first: in order of arrival, a unit that asks for everything at once would delay every other unit until all of it is fetched. A chunk
//! that several units wait for is charged to the unit that claimed it.
//!
//! Chunks are delivered as they come, each to its own waiters, even if many come in one message. Errors are per chunk: a retry asks only
//! for the chunks that are still open, and only if a reader still waits for them. A call fails as a whole if it breaks off, or if the
//! shard breaks the contract ([`Awaited`]): the head then ignores the rest of its answer.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tonic::Status;
use tracing::{Instrument as _, Span};
use trellis_fabric::{retry::jittered, telemetry::SpanRef};
use trellis_proto::{
    Code, Error, Result, TimeRange,
    fetch::{Answer, Awaited, ChunkBatch},
    pb::{self, FetchOrder},
};

use super::{
    traces::ClaimTrace,
    waits::{WaitQueue, Waits},
};
use crate::{
    held::{
        Claim, ColumnSet, FlightId, Holdings, Part, Payload, Route, RunShape, Series, SeriesEffects, Stamp,
        Table, routes_of,
    },
    limits::{FairQueue, Reservation, Verdict},
    shards::{Shard, Shards},
};

/// Calls under way to one shard. Two keep the connection busy while the third is being planned. More would divide a burst into
/// smaller batches, and a shard reads in parallel within a call.
const CALLS_MAX: usize = 3;
/// Most expected bytes of one call: bounds the bytes of one reservation, and the time until a call is free again.
const CALL_BYTES_MAX: u64 = 64 << 20;
/// The same as a part of the budget, for small budgets.
const CALL_BUDGET_SHARE: u64 = 8;
/// Most ranges of one call: bounds the size of the request.
const CALL_RANGES_MAX: usize = 50_000;
/// How long a call waits for a shard that is being brought up to date.
const LIVE_WAIT: Duration = Duration::from_secs(5);
/// Longest time between two messages of an answer. A shard sends what it has read of a call wave by wave; a wave of a call of
/// [`CALL_BYTES_MAX`] takes seconds on a slow store.
const FETCH_SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often a chunk is asked for again after a failure that may pass, before its readers get the error.
const RETRIES: u32 = 2;
/// Pause before the first retry; it doubles for the next.
const RETRY_WAIT: Duration = Duration::from_millis(40);
/// Most reads that the span of one call names. A call of a herd has claims of hundreds.
const READS_MAX: usize = 16;
/// Fetch orders, each with a queue of its own at each shard: the claims of one call share one order.
const ORDERS: usize = 2;

/// A claim on its way to a shard.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// The unit that claimed it.
    unit: Arc<str>,
    order: FetchOrder,
    table: Arc<Table>,
    pub(super) part: Arc<Part>,
    series: Arc<Series>,
    flight: FlightId,
    columns: ColumnSet,
    chunks: Range<i64>,
    /// Whether the chunks may stay when their readers are gone.
    store: bool,
    /// Expected bytes.
    bytes: u64,
    /// When it was queued last.
    queued: Instant,
    attempt: u32,
    /// It has been sent to another owner once.
    rerouted: bool,
    /// `None` while no traces are exported.
    trace: Option<Arc<ClaimTrace>>,
}

impl Work {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        unit: &Arc<str>,
        order: FetchOrder,
        table: &Arc<Table>,
        part: &Arc<Part>,
        series: &Arc<Series>,
        claim: Claim,
        store: bool,
        trace: Option<Arc<ClaimTrace>>,
    ) -> Self {
        let chunks = (claim.chunks.end - claim.chunks.start) as u64;
        Self {
            unit: Arc::clone(unit),
            order,
            bytes: table.expected_bytes(chunks, claim.columns),
            table: Arc::clone(table),
            part: Arc::clone(part),
            series: Arc::clone(series),
            flight: claim.flight,
            columns: claim.columns,
            chunks: claim.chunks,
            store,
            queued: Instant::now(),
            attempt: 0,
            rerouted: false,
            trace,
        }
    }

    /// Fails `chunks` for their readers.
    fn fail(&self, holdings: &Arc<Holdings>, chunks: Range<i64>, error: Error) {
        let span = self.table.spec.chunk;
        let range =
            TimeRange { start: Some(span.start(chunks.start)), end: Some(span.start(chunks.end - 1)) };
        let error = error
            .shard(&self.part.shard.id)
            .dataset(&self.table.name)
            .symbol(&self.series.symbol)
            .range(range);
        let mut effects = SeriesEffects::default();
        self.series.lock().claims.fail(self.flight, chunks, &error, &mut effects);
        holdings.settle(&self.series, &self.part.shard, effects);
    }

    /// Fails the chunks that have neither come nor failed.
    fn fail_open(&self, holdings: &Arc<Holdings>, error: &Error) {
        let open = self.series.lock().claims.open(self.flight, &self.chunks);
        for chunks in open {
            self.fail(holdings, chunks, error.clone());
        }
    }

    /// Whether the chunks may have another owner by now.
    fn moved(&self, error: &Error) -> bool {
        error.code() == Code::StaleEpoch && !self.rerouted
    }

    /// Whether another attempt may help. A claim that was planned with another spec is not sent again: its readers plan anew.
    fn may_pass(&self, error: &Error) -> bool {
        let replan = error.code() == Code::StaleSchema;
        self.moved(error) || error.retryable() && !replan && self.attempt < RETRIES
    }

    /// The traced read that claimed it.
    fn read(&self) -> Option<&SpanRef> {
        self.trace.as_ref()?.read.as_ref()
    }
}

/// The claims that wait for a call to one shard, and the number of its calls under way.
#[derive(Debug)]
struct CallQueue<T = Work> {
    /// One queue for each [`FetchOrder`].
    waiting: FairQueue<T, ORDERS>,
    running: usize,
}

impl<T> Default for CallQueue<T> {
    fn default() -> Self {
        Self { waiting: FairQueue::new(), running: 0 }
    }
}

impl<T> CallQueue<T> {
    /// Takes the next claims for one call of at most `bytes_max`. A claim of more bytes goes alone.
    fn take(&mut self, bytes_max: u64) -> Vec<T> {
        let Some(order) = self.waiting.next_lane() else { return Vec::new() };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < CALL_RANGES_MAX {
            let fits = |_: &Arc<str>, more| match batch.is_empty() || bytes + more <= bytes_max {
                true => Verdict::Granted,
                false => Verdict::Full,
            };
            let Ok((_, more, item)) = self.waiting.pop(order, fits) else { break };
            bytes += more;
            batch.push(item);
        }
        batch
    }
}

/// Fetches claimed chunks.
#[derive(Debug)]
pub(super) struct Fetcher {
    shards: Arc<Shards>,
    holdings: Arc<Holdings>,
    waits: Arc<Waits>,
    /// The queues, by [`Shard::number`]. A shard has a queue while a call to it is under way.
    queues: Mutex<HashMap<u64, CallQueue>>,
    runtime: Handle,
    pub(super) upstream_calls: AtomicU64,
    pub(super) bytes_fetched: AtomicU64,
    /// Claims refused for lack of memory.
    pub(super) shed: AtomicU64,
    #[cfg(test)]
    pub(super) panic_on_arrival: AtomicBool,
}

impl Fetcher {
    /// Needs a Tokio runtime.
    pub(super) fn new(shards: Arc<Shards>, holdings: Arc<Holdings>, waits: Arc<Waits>) -> Self {
        Self {
            shards,
            holdings,
            waits,
            queues: Mutex::default(),
            runtime: Handle::current(),
            upstream_calls: AtomicU64::new(0),
            bytes_fetched: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            #[cfg(test)]
            panic_on_arrival: AtomicBool::new(false),
        }
    }

    /// Queues claims, those of each shard all at once, so that they can go as one call.
    pub(super) fn submit_all(self: &Arc<Self>, mut works: Vec<Work>) {
        while let Some(first) = works.first() {
            let shard = Arc::clone(&first.part.shard);
            let (these, others): (Vec<_>, Vec<_>) =
                works.into_iter().partition(|work| Arc::ptr_eq(&work.part.shard, &shard));
            self.submit(&shard, these);
            works = others;
        }
    }

    /// Queues at least one claim on one shard.
    fn submit(self: &Arc<Self>, shard: &Arc<Shard>, works: impl IntoIterator<Item = Work>) {
        let queued = Instant::now();
        let mut queues = self.queues.lock();
        let queue = queues.entry(shard.number).or_default();
        for work in works {
            let work = Work { queued, ..work };
            let unit = Arc::clone(&work.unit);
            queue.waiting.push(work.order as usize, &unit, work.bytes, work);
        }
        self.start(shard, queue);
    }

    /// Starts a call if one is free and claims wait.
    fn start(self: &Arc<Self>, shard: &Arc<Shard>, queue: &mut CallQueue) {
        if queue.running < CALLS_MAX && !queue.waiting.is_empty() {
            queue.running += 1;
            self.runtime.spawn(run(Call { fetcher: Arc::clone(self), shard: Arc::clone(shard) }));
        }
    }

    /// Takes the next claims for one call to a shard.
    fn take(&self, shard: &Shard, bytes_max: u64) -> Vec<Work> {
        self.queues.lock().get_mut(&shard.number).map(|queue| queue.take(bytes_max)).unwrap_or_default()
    }
}

/// One of a shard's calls. It is free again when this is dropped.
struct Call {
    fetcher: Arc<Fetcher>,
    shard: Arc<Shard>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut queues = self.fetcher.queues.lock();
        let Some(queue) = queues.get_mut(&self.shard.number) else { return };
        queue.running -= 1;
        self.fetcher.start(&self.shard, queue);
        if queue.running == 0 {
            queues.remove(&self.shard.number);
        }
    }
}

async fn run(call: Call) {
    let Call { fetcher, shard } = &call;
    let bytes_max = CALL_BYTES_MAX.min(fetcher.holdings.memory.budget() / CALL_BUDGET_SHARE);
    loop {
        // Tasks that are about to queue claims run first: this costs nothing when idle, and fills the batches of a burst.
        tokio::task::yield_now().await;
        let works = fetcher.take(shard, bytes_max);
        if works.is_empty() {
            return;
        }
        let now = Instant::now();
        for work in &works {
            fetcher.waits.record(WaitQueue::Shard, now.saturating_duration_since(work.queued));
        }
        let mut batch = Batch { fetcher: Arc::clone(fetcher), works };
        if let Err(error) = fetch(fetcher, shard, &mut batch).await {
            batch.fail(&error);
        }
    }
}

/// The claims of one call. If its task ends early (it panics, or the runtime stops), the drop fails them for their readers at once.
struct Batch {
    fetcher: Arc<Fetcher>,
    works: Vec<Work>,
}

impl Batch {
    fn fail(&mut self, error: &Error) {
        for work in std::mem::take(&mut self.works) {
            work.fail_open(&self.fetcher.holdings, error);
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
struct RequestedRange {
    /// Position of its claim in the batch.
    work: usize,
    shape: Arc<RunShape>,
}

/// Makes one call and settles every chunk of the batch, now or by a retry.
///
/// # Errors
/// A failure before the shard was asked. It concerns every chunk of the batch, and no claim has been settled.
async fn fetch(fetcher: &Arc<Fetcher>, shard: &Arc<Shard>, batch: &mut Batch) -> Result<()> {
    let holdings = &fetcher.holdings;
    shard.live(LIVE_WAIT).await?;
    let expected = batch.works.iter().map(|work| work.bytes).sum();
    let reserved = pin!(holdings.memory.reserve(expected));
    let (reserved, _) = fetcher.waits.of(WaitQueue::Memory, reserved).await;
    let mut reservation = reserved.inspect_err(|_| {
        fetcher.shed.fetch_add(batch.works.len() as u64, Relaxed);
    })?;
    holdings.cache.make_room();

    let mut ranges = Vec::new();
    let mut asked = Vec::new();
    let mut shapes: Vec<(Arc<Table>, Arc<RunShape>)> = Vec::new();
    for (index, work) in batch.works.iter().enumerate() {
        let open = {
            let mut state = work.series.lock();
            if !state.claims.wanted(work.flight) {
                // its readers left while it was queued
                state.claims.cancel(work.flight, &work.chunks);
                continue;
            }
            state.claims.launch(work.flight, &work.chunks, work.part.standing());
            state.claims.open(work.flight, &work.chunks)
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
                symbol: work.series.symbol.to_string(),
                fields: shape.names(),
                first: chunks.start,
                end: chunks.end,
                schema: work.table.schema,
            });
            asked.push(RequestedRange { work: index, shape: Arc::clone(&shape) });
        }
    }
    if ranges.is_empty() {
        batch.works.clear();
        return Ok(());
    }
    fetcher.upstream_calls.fetch_add(1, Relaxed);
    let tables: HashSet<_> = asked.iter().map(|a| &batch.works[a.work].table.name).collect();
    for name in tables {
        if let Some(table) = holdings.table(name) {
            // one call may be for several datasets
            table.counters.upstream_calls.fetch_add(1, Relaxed);
        }
    }

    let order = batch.works.first().map_or(FetchOrder::NewestFirst, |work| work.order);
    let request = pb::FetchRequest { ranges, order: order.into(), epoch: shard.epoch() };
    let mut failures: Vec<(usize, Range<i64>, Error)> = Vec::new();
    let span = call_span(shard, &batch.works, request.ranges.len());
    let call = stream(fetcher, shard, batch, &asked, request, &mut reservation, &mut failures);
    let ended = call.instrument(span).await;
    drop(reservation);

    if let Err(error) = ended {
        for (index, work) in batch.works.iter().enumerate() {
            let open = work.series.lock().claims.open(work.flight, &work.chunks);
            failures.extend(open.into_iter().map(|chunks| (index, chunks, error.clone())));
        }
    }
    if failures.iter().any(|(_, _, error)| error.code() == Code::StaleEpoch) {
        // once for the batch; if the shard does not answer, the chunks fail, and readers that still want them ask again
        match shard.describe(true).await {
            Ok(said) => fetcher.shards.redescribe(shard, &said),
            Err(error) => tracing::warn!(%error, shard = %shard.id, "a shard does not say what it owns"),
        }
    }
    for (index, chunks, error) in failures {
        retry(fetcher, shard, &batch.works[index], chunks, error);
    }
    batch.works.clear();
    Ok(())
}

/// The span of one call, below the read of its first traced claim. It is linked with the reads of its other claims. Disabled if no claim
/// is traced.
fn call_span(shard: &Shard, works: &[Work], ranges: usize) -> Span {
    if works.iter().all(|work| work.read().is_none()) {
        return Span::none();
    }
    let queued = works.iter().map(|work| work.queued.elapsed()).max().unwrap_or_default();
    let span = tracing::info_span!(
        target: "trellis::read",
        "fetch",
        trellis.shard = %shard.id,
        trellis.claims = works.len(),
        trellis.ranges = ranges,
        trellis.queue.duration = queued.as_secs_f64(),
    );
    let mut reads: Vec<&SpanRef> = Vec::new();
    for read in works.iter().filter_map(Work::read) {
        if reads.len() == READS_MAX || reads.contains(&read) {
            continue;
        }
        match reads.is_empty() {
            true => read.adopt(&span),
            false => read.add_to(&span),
        }
        reads.push(read);
    }
    if let Some(link) = SpanRef::of(&span) {
        for trace in works.iter().filter_map(|work| work.trace.as_ref()) {
            // a claim that is fetched again keeps its first call
            let _ = trace.call.set(link.clone());
        }
    }
    span
}

/// Makes the call and delivers what comes. Chunks whose failure may pass are added to `failures`.
///
/// # Errors
/// The reason why the call ended early. The chunks that are still open have failed with it.
async fn stream(
    fetcher: &Arc<Fetcher>,
    shard: &Arc<Shard>,
    batch: &Batch,
    asked: &[RequestedRange],
    request: pb::FetchRequest,
    reservation: &mut Reservation,
    failures: &mut Vec<(usize, Range<i64>, Error)>,
) -> Result<()> {
    let mut client = shard.fetch_client(batch.works.iter().map(|work| work.bytes).sum());
    let left = AtomicBool::new(false);
    let call = async {
        let mut awaited = Awaited::of(&request);
        let mut replies = next(shard, client.fetch(request)).await?.into_inner();
        while let Some(reply) = next(shard, replies.message()).await? {
            match awaited.accept(reply)? {
                Answer::Batch(chunks) => {
                    arrive(fetcher, shard, batch, asked, chunks, reservation).await?;
                }
                Answer::Failures(failed) => {
                    for failure in failed {
                        let index = asked[failure.range].work;
                        let work = &batch.works[index];
                        match work.may_pass(&failure.error) {
                            true => failures.push((index, failure.chunks, failure.error)),
                            false => work.fail(&fetcher.holdings, failure.chunks, failure.error),
                        }
                    }
                }
            }
            // this message may have had the last chunk that a reader waited for
            if left.load(Relaxed) && let_go(batch) {
                return Ok(());
            }
        }
        match awaited.is_empty() {
            true => Ok(()),
            false => Err(Error::new(Code::Unavailable, "the shard ended its answer early")),
        }
    };
    tokio::pin!(call);
    loop {
        // registered before the check, so that no cancellation is missed
        let cancelled = shard.flights_cancelled.notified();
        tokio::pin!(cancelled);
        cancelled.as_mut().enable();
        if let_go(batch) {
            return Ok(());
        }
        tokio::select! {
            ended = &mut call => return ended,
            () = cancelled => left.store(true, Relaxed),
        }
    }
}

/// The next part of an answer, for which the head waits only as long as the shard can be asked.
async fn next<T>(shard: &Shard, part: impl Future<Output = Result<T, Status>>) -> Result<T> {
    shard.answer("send more of an answer", FETCH_SILENCE_MAX, part).await
}

/// Gives up the open chunks of a call that no reader waits for. False: a reader waits, or the grace of a flight is not over.
fn let_go(batch: &Batch) -> bool {
    let idle = |work: &Work| work.series.lock().claims.is_idle(work.flight, &work.chunks);
    // a reader that joins between the two keeps the call
    batch.works.iter().all(idle)
        && batch.works.iter().all(|work| work.series.lock().claims.let_go(work.flight, &work.chunks))
}

/// Takes chunks out of a message and delivers them to the claim maps, which wake their waiters. A run that breaks the contract fails
/// its own chunks only. Not cancel safe: chunks that are not delivered stay open.
///
/// # Errors
/// [`Code::DataCorrupt`] if the message cannot be read at all.
async fn arrive(
    fetcher: &Arc<Fetcher>,
    shard: &Arc<Shard>,
    batch: &Batch,
    asked: &[RequestedRange],
    chunks: ChunkBatch,
    reservation: &mut Reservation,
) -> Result<()> {
    #[cfg(test)]
    assert!(!fetcher.panic_on_arrival.load(Relaxed), "as the test wants");
    let holdings = &fetcher.holdings;
    let count = chunks.rows();
    let ChunkBatch { runs, version, known_through, header, body, retracted, .. } = chunks;
    let Some(shape) = runs.first().map(|run| &asked[run.range].shape) else { return Ok(()) };
    fetcher.bytes_fetched.fetch_add((header.len() + body.len() + retracted.len()) as u64, Relaxed);
    let rows = shape.decode(&header, body, count)?;
    let mut unpack = shape.unpack(&holdings.memory, &rows, &retracted)?;
    for run in &runs {
        let work = &batch.works[asked[run.range].work];
        let stamp = Stamp { columns: work.columns, version, known_through };
        reservation.arrived(work.table.expected_bytes(run.chunk_rows.len() as u64, work.columns));
        let payloads = match unpack.next(run, stamp) {
            Ok(payloads) => payloads,
            Err(error) => {
                work.fail(holdings, run.chunks(), error);
                continue;
            }
        };
        work.table.counters.add(|of| &of.rows_fetched, run.rows());
        work.table.learn(payloads.len(), run.rows());

        let store = work.store && reservation.store;
        let standing = work.part.standing();
        let mut effects = SeriesEffects::default();
        {
            let mut state = work.series.lock();
            for (chunk, payload) in run.chunks().zip(payloads) {
                debug_assert_eq!(payload.columns(), work.columns);
                let mut next_slot = || holdings.cache.next_id();
                state.claims.deliver(
                    work.flight,
                    chunk,
                    payload,
                    store,
                    &standing,
                    &mut next_slot,
                    &mut effects,
                );
            }
        }
        holdings.settle(&work.series, shard, effects);
        // a message may have a thousand short series: other tasks run in between
        tokio::task::coop::consume_budget().await;
    }
    holdings.cache.make_room();
    Ok(())
}

/// Asks again for chunks that have failed, if that may help and a reader still waits; otherwise fails them for their readers.
fn retry(fetcher: &Arc<Fetcher>, shard: &Arc<Shard>, work: &Work, chunks: Range<i64>, error: Error) {
    #[cfg(test)]
    assert!(!fetcher.panic_on_arrival.load(Relaxed), "as the test wants");
    if work.moved(&error) {
        reroute(fetcher, Work { chunks, rerouted: true, ..work.clone() }, error);
        return;
    }
    if !work.may_pass(&error) || !work.series.lock().claims.wanted(work.flight) {
        work.fail(&fetcher.holdings, chunks, error);
        return;
    }
    work.series.lock().claims.requeue(work.flight, &chunks, &error);
    let wait = RETRY_WAIT * 2u32.pow(work.attempt);
    let shard = Arc::clone(shard);
    let work = Work { attempt: work.attempt + 1, chunks, ..work.clone() };
    let mut held = Batch { fetcher: Arc::clone(fetcher), works: vec![work] };
    fetcher.runtime.spawn(async move {
        tokio::time::sleep(jittered(wait)).await;
        let works = std::mem::take(&mut held.works);
        held.fetcher.submit(&shard, works);
    });
}

/// Sends a claim to the shard that owns its chunks now, once. The shard that was asked does not own them any more.
fn reroute(fetcher: &Arc<Fetcher>, mut work: Work, error: Error) {
    let routes = routes_of(&fetcher.shards, &work.table, &work.series);
    let chunks = work.chunks.clone();
    let whole = |route: &&Route| route.chunks.start <= chunks.start && chunks.end <= route.chunks.end;
    match routes.as_ref().ok().and_then(|routes| routes.iter().find(whole)) {
        Some(route) => {
            work.series.lock().claims.requeue(work.flight, &chunks, &error);
            work.part = Arc::clone(&route.part);
            fetcher.submit(&route.part.shard, [work]);
        }
        None => {
            let message = format!("the chunks have changed owners: {}", error.message());
            work.fail(&fetcher.holdings, chunks, Error::new(Code::Unavailable, message));
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
        let mut queue = CallQueue::default();
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
    fn a_call_takes_all_claims_of_one_order_up_to_its_bytes() {
        let mut queue = CallQueue::default();
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
