//! One read: ready chunks are taken, the others joined or claimed and then waited for, series by series.
//!
//! A read fixes its knowledge time when it begins: the `as_of` that was asked for, but never later than the knowledge time of each shard
//! concerned. So an answer is one cut through all its series, whatever arrives meanwhile. A publish that touches symbols of several shards
//! is in it whole or not at all, and a later read as of the receipt's `known_through` gets the same rows.
//!
//! Claims are made ahead of the reader, up to a window of expected bytes: far enough to fill the calls to the shards, near enough that a
//! reader that stops holds a bounded amount.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Range,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tracing::Span;
use trellis_fabric::telemetry::SpanRef;
use trellis_proto::{Code, Error, Result, Symbol, TimeRange, pb::FetchOrder};

use super::{
    core::Core,
    fetch::{Fetcher, Work},
    traces::CallLink,
};
use crate::{
    answer::Source,
    held::{
        Chunk, ChunkOutcome, ClaimPlan, ColumnSet, Dataset, FlightId, Holdings, Part, Payload, Route, Series,
        SeriesEffects, Table, Taken, Token, Unrouted, Waiter, Want, routes_of,
    },
    shards::{Link, Shard},
};

/// Expected bytes that one read claims ahead of its reader, as a part of the budget.
const WINDOW_SHARE: u64 = 16;
/// Most such bytes of one read: the limit for large budgets.
const WINDOW_BYTES_MAX: u64 = 64 << 20;
/// The chunks of a read that is expected to take more than this part of the budget are not stored: they would evict everything that
/// other reads use, and would be evicted themselves before they are read again.
const SCAN_SHARE: u64 = 4;
/// Most times that a read plans a lost chunk again. Then the read fails.
const ROUNDS_MAX: u32 = 8;
/// How long a read waits for shards that are being brought up to date.
pub(crate) const SYNC_WAIT: Duration = Duration::from_secs(5);
/// Most chunks of one series in one read: each costs some bookkeeping even if it is empty.
const CHUNKS_MAX: i64 = 1 << 20;
/// Series that are planned before other tasks may run.
const SERIES_PLANNED: usize = 32;
/// Most calls of other reads that the span of one read is linked with: more tell no more.
const LINKS_MAX: usize = 16;
/// Most chunks of a series for which a hit allocates before it looks for them: ten years of days are 57.
const TAKEN_MIN: usize = 64;

/// The question of one read. Everything in it has been checked.
#[derive(Debug, Clone)]
pub(crate) struct ReadQuery {
    /// The dataset as [`super::facade::Engine::dataset`] returned it.
    pub(crate) dataset: Arc<Dataset>,
    /// Sorted, without duplicates.
    pub(crate) symbols: Vec<Symbol>,
    /// Positions in the dataset's spec, in any order.
    pub(crate) fields: Vec<usize>,
    /// Event time, inclusive. The engine clamps it to the dataset's bounds.
    pub(crate) start: i64,
    /// Event time, exclusive.
    pub(crate) end: i64,
    /// Knowledge time, inclusive; `None`: the latest. For a time that the head has not reached, the caller first calls
    /// [`super::facade::Engine::caught_up`].
    pub(crate) as_of: Option<i64>,
    /// The shards that did not answer that call. Of their series nothing after their knowledge time is known.
    pub(crate) behind: Arc<[Arc<str>]>,
    /// Accept chunks that cannot be confirmed as the latest while a shard is away.
    pub(crate) allow_stale: bool,
    /// The unit that asks.
    pub(crate) unit: Arc<str>,
    /// The read fails after this time.
    pub(crate) deadline: Option<std::time::Instant>,
    /// Which chunks the shards send first.
    pub(crate) order: FetchOrder,
}

/// The chunks of one series of an answer.
#[derive(Debug, Clone)]
pub(crate) struct SeriesChunks {
    pub(crate) symbol: Symbol,
    /// Ascending in event time, none empty. The first and the last may hold rows outside the range.
    pub(crate) chunks: Vec<Arc<Chunk>>,
}

/// The figures of a read so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadCounts {
    /// Chunks that were ready.
    pub(crate) hit: u64,
    /// Chunks that other reads had claimed.
    pub(crate) joined: u64,
    /// Chunks that this read claimed.
    pub(crate) fetched: u64,
    /// Rows that came for the claims of this read.
    pub(crate) rows_fetched: u64,
    /// The shards concerned.
    pub(crate) shards: BTreeSet<String>,
    /// Oldest and newest version of any chunk; `None`: no chunks.
    pub(crate) versions: Option<(u64, u64)>,
    /// The knowledge time for which the answer is true; `None` before the read has begun.
    pub(crate) known_through: Option<i64>,
    /// The least of the shards' watermarks; `None`: a shard has none.
    pub(crate) watermark: Option<i64>,
    /// Some chunks could not be confirmed as the latest.
    pub(crate) stale: bool,
    /// The calls that the read's span is linked with: they fetched the chunks that the read joined.
    linked: Vec<SpanRef>,
}

impl ReadCounts {
    /// Links the read's span with the calls of flights that it joined.
    fn link(&mut self, calls: Vec<CallLink>) {
        for link in calls.iter().filter_map(|call| call.get()) {
            if self.linked.len() < LINKS_MAX && !self.linked.contains(link) {
                link.add_to(&Span::current());
                self.linked.push(link.clone());
            }
        }
    }
}

/// A read. It can be dropped at any point, and no other read is disturbed.
#[derive(Debug)]
pub(crate) struct Reading {
    core: Arc<Core>,
    table: Arc<Table>,
    query: ReadQuery,
    phase: Phase,
    counts: ReadCounts,
    cut: Option<i64>,
}

#[derive(Debug)]
enum Phase {
    /// The read has not begun. It becomes `Running` as soon as its shards can be asked.
    New,
    /// → `Over`, after the last series or an error.
    Running(Running),
    Over,
}

/// A read that has begun.
#[derive(Debug)]
struct Running {
    columns: ColumnSet,
    /// The range asked for, cut to the dataset's bounds.
    start: i64,
    end: i64,
    as_of: i64,
    /// Whether the chunks may stay when their readers are gone.
    store: bool,
    /// Expected bytes of one series.
    series_bytes: u64,
    /// Expected bytes that may be claimed ahead of the reader.
    window: u64,
    /// The window is being filled.
    refilling: bool,
    /// Claims that wait for the rest of the window.
    works: Vec<Work>,
    fetcher: Arc<Fetcher>,
    upcoming: VecDeque<RoutedSeries>,
    ahead: VecDeque<PlannedSeries>,
}

/// A series that is still to be planned.
#[derive(Debug)]
struct RoutedSeries {
    series: Arc<Series>,
    routes: Arc<[Route]>,
}

/// A series of which the ready chunks are taken, and the others joined or claimed.
#[derive(Debug)]
struct PlannedSeries {
    series: Arc<Series>,
    waiter: Arc<Waiter>,
    routes: Vec<PlannedRoute>,
    taken: Vec<Taken<Arc<Chunk>>>,
}

#[derive(Debug)]
struct PlannedRoute {
    route: Route,
    want: Want,
    missing: Vec<i64>,
    stakes: Stakes,
    rounds: u32,
}

/// Stakes in flights, given back when dropped.
#[derive(Debug)]
struct Stakes {
    holdings: Arc<Holdings>,
    series: Arc<Series>,
    shard: Arc<Shard>,
    token: Token,
    flights: Vec<FlightId>,
    /// Those of `flights` that this read claimed.
    claimed: Vec<FlightId>,
    /// The calls of the others, while traces are exported.
    joined: Vec<CallLink>,
}

impl Drop for Stakes {
    fn drop(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        let mut effects = SeriesEffects::default();
        self.series.lock().claims.leave(&self.flights, self.token, &mut effects);
        self.holdings.settle(&self.series, &self.shard, effects);
    }
}

/// Why a read cannot begin now.
enum Obstacle {
    /// These shards are being brought up to date.
    Syncing(Vec<Arc<Shard>>),
    /// A shard has not described the dataset, which may be new: the head can ask for a description.
    Undescribed(Error),
    Error(Error),
}

impl Reading {
    pub(super) fn new(core: Arc<Core>, table: Arc<Table>, query: ReadQuery) -> Self {
        Self { core, table, query, phase: Phase::New, counts: ReadCounts::default(), cut: None }
    }

    /// The figures of the read so far.
    pub(crate) fn counts(&self) -> &ReadCounts {
        &self.counts
    }

    /// The knowledge time to cut at: rows with a later `known_at` are not part of the answer. Other reads of the same answer use it as
    /// their `as_of`. `None` before the read has begun, with the first call of [`Self::next`] or [`Self::try_all_ready`].
    pub(crate) fn cut(&self) -> Option<i64> {
        self.cut
    }

    /// All series, if all their chunks are ready; takes short locks of each series, and does not wait. `None` takes nothing.
    pub(crate) fn try_all_ready(&mut self) -> Option<Vec<SeriesChunks>> {
        if matches!(self.phase, Phase::New) && self.begin(false).is_err() {
            return None;
        }
        let Phase::Running(running) = &mut self.phase else { return None };
        if !running.ahead.is_empty() {
            return None;
        }
        let now = self.core.holdings.memory.now();
        // the chunks of each series, and whether the range was asked of it before
        let mut taken_of: Vec<(Vec<Taken<Arc<Chunk>>>, bool)> = Vec::with_capacity(running.upcoming.len());
        let mut touch = Vec::new();
        let chunks = self.table.spec.chunk.cover(running.start, running.end);
        for source in &running.upcoming {
            let mut taken = Vec::with_capacity(((chunks.end - chunks.start) as usize).min(TAKEN_MIN));
            let mut state = source.series.lock();
            for route in source.routes.iter() {
                let Some(want) = running.want(&self.table, route) else { continue };
                if !state.claims.take_ready(&want, &route.part.standing(), now, &mut taken, &mut touch) {
                    return None;
                }
            }
            let asked = state.asked.has(running.start, running.end);
            taken_of.push((taken, asked));
        }
        self.core.holdings.cache.touch(&touch);
        let sources = std::mem::take(&mut running.upcoming);
        let Running { start, end, as_of, .. } = *running;
        let mut answer = Vec::with_capacity(taken_of.len());
        for (source, (taken, asked)) in sources.into_iter().zip(taken_of) {
            self.counts.hit += taken.len() as u64;
            let finish = Finish { table: &self.table, as_of, start, end };
            if !asked {
                finish.count_new(&source.series, &taken);
            }
            answer.push(finish.series(&mut self.counts, &source.series, taken));
        }
        Some(answer)
    }

    /// Waits for the next series with all its chunks; `None` after the last series, and after an error. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Result<SeriesChunks>> {
        let deadline = self.query.deadline.map(Instant::from_std);
        let next = match deadline {
            None => self.advance().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, self.advance()).await {
                Ok(next) => next,
                Err(_) => Err(self.late()),
            },
        };
        match next {
            Ok(series) => series.map(Ok),
            Err(error) => {
                self.phase = Phase::Over;
                Some(Err(error))
            }
        }
    }

    /// The error at the read's deadline. It names a shard that the read waits for, and what failed last: an answer of that shard, or the
    /// attempt to reach it.
    pub(super) fn late(&self) -> Error {
        let front = match &self.phase {
            Phase::Running(running) => running.ahead.front(),
            Phase::New | Phase::Over => None,
        };
        let missing = front.and_then(|front| {
            let planned = front.routes.iter().find(|planned| !planned.missing.is_empty())?;
            Some((&front.series, planned))
        });
        let message = "the read's deadline passed";
        let failed = missing.and_then(|(series, planned)| {
            let state = series.lock();
            planned.missing.iter().find_map(|chunk| state.claims.failed(*chunk))
        });
        if let (Some(error), Some((series, planned))) = (failed, missing) {
            let told = format!("{}; {message} before the shard was asked again", error.message());
            let told = Error::new(error.code(), told).side(error.whose()).hint(error.hint_text());
            return self.placed(told.symbol(&series.symbol).shard(&planned.route.part.shard.id));
        }
        let error = match missing.map(|(_, planned)| &planned.route.part.shard) {
            Some(shard) => match &*shard.link.borrow() {
                Link::Away(error) => error.clone(),
                Link::Live | Link::Syncing => Error::new(
                    Code::DeadlineExceeded,
                    format!("{message} while it waited for shard {}", shard.id),
                )
                .shard(&shard.id),
            },
            None => Error::new(Code::DeadlineExceeded, message),
        };
        self.placed(error)
    }

    async fn advance(&mut self) -> Result<Option<SeriesChunks>> {
        if matches!(self.phase, Phase::New) {
            self.begin_when_synced().await?;
        }
        loop {
            while self.plan_ahead() {
                tokio::task::yield_now().await;
            }
            let Phase::Running(running) = &mut self.phase else { return Ok(None) };
            let Some(front) = running.ahead.front_mut() else {
                self.phase = Phase::Over;
                return Ok(None);
            };
            let (table, core) = (&self.table, &self.core);
            if front.collect(core, table, &mut self.counts, running.store, &self.query)? {
                let Some(done) = running.ahead.pop_front() else { return Ok(None) };
                let Running { start, end, as_of, .. } = *running;
                let finish = Finish { table: &self.table, as_of, start, end };
                finish.count_new(&done.series, &done.taken);
                return Ok(Some(finish.series(&mut self.counts, &done.series, done.taken)));
            }
            let waiter = Arc::clone(&front.waiter);
            std::future::poll_fn(|cx| waiter.poll(cx)).await;
        }
    }

    async fn begin_when_synced(&mut self) -> Result<()> {
        let until = Instant::now() + SYNC_WAIT;
        let core = Arc::clone(&self.core);
        let mut changed = core.shards.changes();
        let name = self.table.name.clone();
        let mut asked = pin!(core.follower.follow_dataset(&name));
        let mut answer = None;
        loop {
            let syncing = match self.begin(self.query.allow_stale && Instant::now() >= until) {
                Ok(()) => return Ok(()),
                Err(Obstacle::Syncing(shards)) => shards,
                Err(Obstacle::Undescribed(error)) => match answer.take() {
                    None => {
                        tokio::select! {
                            said = &mut asked => answer = Some(said),
                            // the shards of this read may have described it: the others are not waited for
                            Ok(()) = changed.changed() => {}
                        }
                        continue;
                    }
                    // why the owner has not described it
                    Some(Err(why)) => return Err(self.placed(why)),
                    Some(Ok(())) => return Err(self.placed(error)),
                },
                Err(Obstacle::Error(error)) => return Err(error),
            };
            for shard in syncing {
                let left = until.saturating_duration_since(Instant::now());
                match shard.live(left).await {
                    Ok(()) => {}
                    Err(_) if self.query.allow_stale => {}
                    Err(error) => return Err(self.placed(error)),
                }
            }
        }
    }

    fn placed(&self, error: Error) -> Error {
        let range = TimeRange { start: Some(self.query.start), end: Some(self.query.end) };
        error.dataset(&self.table.name).range(range)
    }

    /// Fixes the read's knowledge time and range. Changes nothing if that is not possible now. `unsynced`: chunks of shards that are
    /// being brought up to date are taken, and the answer is marked stale.
    fn begin(&mut self, unsynced: bool) -> std::result::Result<(), Obstacle> {
        let shards = &self.core.shards;
        let all_series = self.table.series_of(&self.query.symbols);
        // All reads of one answer have the same dataset in their queries, and so the same knowledge time.
        let asked = &self.query.dataset;
        let mut known_through = if asked.settled { asked.known_through } else { i64::MAX };
        let mut watermark = Some(i64::MAX);
        let mut counts = ReadCounts::default();
        let mut parts: Vec<&Part> = Vec::new();
        let mut sources = VecDeque::with_capacity(all_series.len());
        for series in all_series {
            let routes = routes_of(shards, &self.table, &series).map_err(|unrouted| match unrouted {
                Unrouted::Undescribed(error) => Obstacle::Undescribed(error),
                Unrouted::Error(error) => Obstacle::Error(self.placed(error)),
            })?;
            sources.push_back(RoutedSeries { series, routes });
        }
        for route in sources.iter().flat_map(|source| source.routes.iter()) {
            let part = &*route.part;
            if parts.iter().any(|known| std::ptr::eq(*known, part)) {
                continue;
            }
            // the knowledge time before everything else, so that everything else is at least as new
            known_through = known_through.min(part.standing().known_through);
            watermark = watermark.min(part.watermark());
            counts.shards.insert(part.shard.id.to_string());
            parts.push(part);
        }
        if self.query.as_of.is_none_or(|as_of| as_of > known_through) {
            let mut syncing = Vec::new();
            for part in &parts {
                let shard = &part.shard;
                if self.query.behind.contains(&shard.id) {
                    if !self.query.allow_stale {
                        let why = format!("shard {} does not say what is newest", shard.id);
                        let error = Error::new(Code::Unavailable, why).shard(&shard.id);
                        return Err(Obstacle::Error(self.placed(error)));
                    }
                    counts.stale = true;
                }
                match &*shard.link.borrow() {
                    Link::Live => {}
                    Link::Syncing if unsynced => counts.stale = true,
                    Link::Syncing => syncing.push(Arc::clone(shard)),
                    Link::Away(_) if self.query.allow_stale => counts.stale = true,
                    Link::Away(error) => return Err(Obstacle::Error(self.placed(error.clone()))),
                }
            }
            if !syncing.is_empty() {
                return Err(Obstacle::Syncing(syncing));
            }
        }
        counts.known_through = Some(known_through);
        counts.watermark = watermark.filter(|_| !parts.is_empty());

        let dataset = self.table.dataset();
        let (start, end) = match (dataset.first_ts, dataset.last_ts) {
            (Some(first), Some(last)) => {
                (self.query.start.max(first), self.query.end.min(last.saturating_add(1)))
            }
            _ => (0, 0),
        };
        let empty = end <= start || sources.is_empty();
        if empty {
            sources.clear();
        }
        let columns = self.table.layout.columns(&self.query.fields);
        let chunks = self.table.spec.chunk.cover(start, end);
        let chunks = if empty { 0 } else { chunks.end - chunks.start };
        if chunks > CHUNKS_MAX {
            return Err(Obstacle::Error(
                self.placed(
                    Error::new(Code::TooLarge, format!("the range spans {chunks} chunks of the dataset"))
                        .hint(format!("at most {CHUNKS_MAX} at once: ask for a shorter range")),
                ),
            ));
        }
        let series_bytes = self.table.expected_bytes(chunks as u64, columns);
        let budget = self.core.holdings.memory.budget();
        let store = series_bytes.saturating_mul(sources.len() as u64) <= budget / SCAN_SHARE;
        let as_of = self.query.as_of.map_or(known_through, |as_of| as_of.min(known_through));
        self.cut = Some(as_of);
        self.counts = counts;
        self.phase = Phase::Running(Running {
            columns,
            start,
            end,
            as_of,
            store,
            series_bytes,
            window: WINDOW_BYTES_MAX.min(budget / WINDOW_SHARE),
            refilling: false,
            works: Vec::new(),
            fetcher: Arc::clone(&self.core.fetcher),
            upcoming: sources,
            ahead: VecDeque::new(),
        });
        Ok(())
    }

    /// Plans some series of the window. When the window is full, its claims go to each shard together. True: there is room for more.
    fn plan_ahead(&mut self) -> bool {
        let Phase::Running(running) = &mut self.phase else { return false };
        let ahead = running.ahead.len() as u64 * running.series_bytes;
        // the window is filled again when it is half empty, so that claims go in batches
        running.refilling |= running.ahead.is_empty() || ahead <= running.window / 2;
        if !running.refilling {
            return false;
        }
        for _ in 0..SERIES_PLANNED {
            let full = (running.ahead.len() as u64 + 1).saturating_mul(running.series_bytes) > running.window;
            let Some(source) = running.upcoming.front().filter(|_| running.ahead.is_empty() || !full) else {
                running.refilling = false;
                break;
            };
            let mut planned = PlannedSeries {
                series: Arc::clone(&source.series),
                waiter: Arc::default(),
                routes: Vec::new(),
                taken: Vec::new(),
            };
            for route in source.routes.iter() {
                let Some(want) = running.want(&self.table, route) else { continue };
                planned.routes.push(PlannedRoute {
                    route: route.clone(),
                    want: want.clone(),
                    missing: Vec::new(),
                    stakes: Stakes {
                        holdings: Arc::clone(&self.core.holdings),
                        series: Arc::clone(&source.series),
                        shard: Arc::clone(&route.part.shard),
                        token: self.core.holdings.next_token(),
                        flights: Vec::new(),
                        claimed: Vec::new(),
                        joined: Vec::new(),
                    },
                    rounds: 0,
                });
                let index = planned.routes.len() - 1;
                let plan = planned.plan(
                    index,
                    &self.core,
                    &self.table,
                    &[want.chunks],
                    running.store,
                    &self.query,
                    &mut running.works,
                );
                self.counts.hit += plan.0;
                self.counts.joined += plan.1;
                self.counts.fetched += plan.2;
                self.table.counters.add(|of| &of.chunks_joined, plan.1);
                self.table.counters.add(|of| &of.chunks_fetched, plan.2);
            }
            running.upcoming.pop_front();
            running.ahead.push_back(planned);
        }
        if !running.refilling {
            running.submit();
        }
        running.refilling
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // other readers may have joined these claims
        self.submit();
    }
}

impl Running {
    fn submit(&mut self) {
        self.fetcher.submit_all(std::mem::take(&mut self.works));
    }

    /// The part of the read on a route; `None`: no chunks.
    fn want(&self, table: &Table, route: &Route) -> Option<Want> {
        let chunks = table.spec.chunk.cover(self.start, self.end);
        let chunks: Range<i64> = chunks.start.max(route.chunks.start)..chunks.end.min(route.chunks.end);
        (!chunks.is_empty()).then_some(Want { chunks, columns: self.columns, as_of: self.as_of })
    }
}

impl PlannedSeries {
    /// Takes, joins and claims the chunks of a route. Returns the numbers of chunks hit, joined and claimed.
    #[allow(clippy::too_many_arguments)]
    fn plan(
        &mut self,
        index: usize,
        core: &Core,
        table: &Arc<Table>,
        runs: &[Range<i64>],
        store: bool,
        query: &ReadQuery,
        works: &mut Vec<Work>,
    ) -> (u64, u64, u64) {
        let planned = &mut self.routes[index];
        let Core { holdings, flights, .. } = core;
        let now = holdings.memory.now();
        let mut plan = ClaimPlan::default();
        {
            let mut state = self.series.lock();
            let standing = planned.route.part.standing();
            for chunks in runs {
                let want = Want { chunks: chunks.clone(), ..planned.want.clone() };
                let mut next_flight = || {
                    let flight = holdings.next_flight();
                    flights.begin(flight);
                    flight
                };
                state.claims.plan(
                    &want,
                    &standing,
                    now,
                    planned.stakes.token,
                    &self.waiter,
                    &mut next_flight,
                    &mut plan,
                );
            }
            // while the series is locked, so that no stake is settled before it is counted
            self.waiter.expect(plan.stakes);
        }
        holdings.cache.touch(&plan.touch);
        let hit = plan.taken.len() as u64;
        self.taken.append(&mut plan.taken);
        planned.missing.append(&mut plan.missing);
        let stakes = &mut planned.stakes;
        for claim in plan.claims {
            stakes.claimed.push(claim.flight);
            let (part, series) = (&planned.route.part, &self.series);
            let trace = flights.claimed(claim.flight);
            works.push(Work::new(&query.unit, query.order, table, part, series, claim, store, trace));
        }
        for flight in plan.flights {
            if !stakes.flights.contains(&flight) {
                stakes.flights.push(flight);
                if !stakes.claimed.contains(&flight) {
                    stakes.joined.extend(flights.call_of(flight));
                }
            }
        }
        (hit, plan.joined, plan.claimed)
    }

    /// Takes the chunks that have come. True: no chunk is missing any more.
    ///
    /// # Errors
    /// The error of a chunk that the read needs.
    fn collect(
        &mut self,
        core: &Core,
        table: &Arc<Table>,
        counts: &mut ReadCounts,
        store: bool,
        query: &ReadQuery,
    ) -> Result<bool> {
        let mut whole = true;
        let mut works = Vec::new();
        for index in 0..self.routes.len() {
            if self.routes[index].missing.is_empty() {
                continue;
            }
            let mut lost: Vec<Range<i64>> = Vec::new();
            {
                let planned = &mut self.routes[index];
                let state = self.series.lock();
                let claims = &state.claims;
                let standing = planned.route.part.standing();
                let mut failed = None;
                let taken = &mut self.taken;
                planned.missing.retain(|chunk| {
                    match claims.outcome(*chunk, &planned.want, &standing, planned.stakes.token) {
                        ChunkOutcome::Taken(chunk) => taken.push(chunk),
                        ChunkOutcome::Waiting => return true,
                        ChunkOutcome::Failed(error) => failed = Some(error),
                        ChunkOutcome::Lost => match lost.last_mut() {
                            Some(run) if run.end == *chunk => run.end += 1,
                            _ => lost.push(*chunk..*chunk + 1),
                        },
                    }
                    false
                });
                if let Some(error) = failed {
                    return Err(error);
                }
                if planned.missing.is_empty() {
                    let claimed = std::mem::take(&mut planned.stakes.claimed);
                    let rows: u64 = claimed.iter().map(|flight| claims.rows_received(*flight)).sum();
                    counts.rows_fetched += rows;
                    counts.link(std::mem::take(&mut planned.stakes.joined));
                }
                if !lost.is_empty() {
                    planned.rounds += 1;
                }
            }
            let planned = &mut self.routes[index];
            if planned.rounds > ROUNDS_MAX {
                let shard = &planned.route.part.shard;
                return Err(Error::new(Code::Unavailable, "chunks kept changing while they were read")
                    .shard(&shard.id)
                    .dataset(&table.name)
                    .symbol(&self.series.symbol));
            }
            if !lost.is_empty() {
                // chunks that are hit in this round were counted as claimed or joined before
                let (_, _, _) = self.plan(index, core, table, &lost, store, query, &mut works);
            }
            whole &= self.routes[index].missing.is_empty();
        }
        core.fetcher.submit_all(works);
        if whole {
            self.taken.sort_unstable_by_key(|taken| taken.chunk);
            self.routes.clear();
        }
        Ok(whole)
    }
}

/// Hands out the chunks of a series.
struct Finish<'a> {
    table: &'a Table,
    as_of: i64,
    start: i64,
    end: i64,
}

impl Finish<'_> {
    /// Counts the rows that nobody asked for before.
    fn count_new(&self, series: &Series, taken: &[Taken<Arc<Chunk>>]) {
        let mut union = 0;
        series
            .lock()
            .asked
            .add(self.start, self.end, |start, end| union += rows_between(self.table, taken, start, end));
        if union > 0 {
            self.table.counters.add(|of| &of.rows_union, union);
        }
    }

    /// Adds to the counts, and leaves out the empty chunks.
    fn series(
        &self,
        counts: &mut ReadCounts,
        series: &Series,
        taken: Vec<Taken<Arc<Chunk>>>,
    ) -> SeriesChunks {
        let mut chunks = Vec::with_capacity(taken.len());
        for taken in taken {
            let version = taken.payload.version();
            counts.versions = Some(match counts.versions {
                Some((least, most)) => (least.min(version), most.max(version)),
                None => (version, version),
            });
            let known_through = taken.known_through.min(self.as_of);
            counts.known_through = counts.known_through.into_iter().chain([known_through]).min();
            if taken.payload.rows() > 0 {
                chunks.push(taken.payload);
            }
        }
        SeriesChunks { symbol: series.symbol.clone(), chunks }
    }
}

fn rows_between(table: &Table, taken: &[Taken<Arc<Chunk>>], start: i64, end: i64) -> u64 {
    let span = table.spec.chunk;
    let cover = span.cover(start, end);
    let from = taken.partition_point(|t| t.chunk < cover.start);
    let to = taken.partition_point(|t| t.chunk < cover.end);
    taken[from..to.max(from)]
        .iter()
        .map(|t| {
            let ts = t.payload.ts();
            (ts.partition_point(|t| *t < end) - ts.partition_point(|t| *t < start)) as u64
        })
        .sum()
}
