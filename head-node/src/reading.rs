//! One read: what is there is taken, what is missing is claimed or joined and waited for, series by series.
//!
//! A read fixes its knowledge time when it begins: the `as_of` that was asked for, but never later than what every shard concerned is
//! known through. So an answer is one cut through all its series, whatever arrives meanwhile: a publish that touches symbols of
//! several shards is in it whole or not at all, and asking again with the receipt's `known_through` gives the same rows.
//!
//! Claims are made ahead of what the reader has taken, up to a window of expected bytes: far enough to fill the calls to the shards,
//! near enough that a reader who stops holds a bounded amount.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;
use trellis_proto::{Code, Error, Result, Symbol};

use crate::{
    chunk::{Chunk, ChunkRef},
    claims::{ColumnSet, FlightId, Outcome, Payload, Plan, Taken, Token, Want},
    datasets::{Dataset, Table},
    fetch::{self, Work},
    flight::Waiter,
    series::{Cell, Fx, Leg},
    shards::{Link, Shard},
    state::Core,
};

/// Expected bytes that one read claims ahead of its reader, as a part of the budget...
const WINDOW_SHARE: u64 = 16;
/// ...and at most.
const WINDOW_BYTES_MAX: u64 = 64 << 20;
/// A read that is expected to take more than this part of the budget leaves nothing behind: kept, it would push out everything that
/// others use, and be gone itself before it is read again.
const SCAN_SHARE: u64 = 4;
/// How often a chunk may come and go before a read gives up on it.
const ROUNDS_MAX: u32 = 8;
/// How long a read waits for shards that are being brought up to date.
pub(crate) const SYNC_WAIT: Duration = Duration::from_secs(5);
/// Chunks of one series in one read, at most: each costs some bookkeeping even if it is empty.
const CHUNKS_MAX: i64 = 1 << 20;
/// Series that are planned in one go, after which others have their turn.
const SERIES_PLANNED: usize = 32;
/// Chunks of a series for which room is made before it is known whether they are there: ten years of days are 57.
const TAKEN_MIN: usize = 64;

/// A question to the engine. Everything in it has been checked.
#[derive(Debug, Clone)]
pub struct Ask {
    /// As [`crate::engine::Engine::dataset`] returned it.
    pub dataset: Arc<Dataset>,
    /// Sorted, without duplicates.
    pub symbols: Vec<Symbol>,
    /// Positions in the dataset's spec; any order.
    pub fields: Vec<usize>,
    /// Event time, inclusive. The engine clamps it to the dataset's bounds.
    pub start: i64,
    /// Event time, exclusive.
    pub end: i64,
    /// Knowledge time, inclusive; `None`: the latest. One that the head has not reached asks for
    /// [`crate::engine::Engine::caught_up`] first.
    pub as_of: Option<i64>,
    /// The shards that this left behind: of what they own nothing later than their knowledge time is known.
    pub behind: Arc<[Arc<str>]>,
    /// Accept what cannot be confirmed as the latest while a shard is away.
    pub allow_stale: bool,
    /// In whose name.
    pub unit: Arc<str>,
    /// When the answer is of no use any more.
    pub deadline: Option<std::time::Instant>,
    /// The reader wants the oldest rows first.
    pub time_order: bool,
    /// The same was read before for the same answer: its hits are not counted again.
    pub again: bool,
}

/// The chunks of one series of an answer.
#[derive(Debug, Clone)]
pub struct SeriesChunks {
    /// Whose.
    pub symbol: Symbol,
    /// Ascending in event time, none empty. The first and the last may hold rows outside the range.
    pub chunks: Vec<ChunkRef>,
}

/// How a read was answered so far.
#[derive(Debug, Clone, Default)]
pub struct ReadCounts {
    /// Chunks that were there.
    pub hit: u64,
    /// Chunks that others had asked a shard for.
    pub joined: u64,
    /// Chunks that this read asked a shard for.
    pub fetched: u64,
    /// Rows that came because this read asked.
    pub rows_fetched: u64,
    /// The shards concerned.
    pub shards: BTreeSet<String>,
    /// Oldest and newest version of any chunk; `None`: no chunks.
    pub versions: Option<(u64, u64)>,
    /// The knowledge time for which the answer is true; `None` before the read has begun.
    pub known_through: Option<i64>,
    /// The least of the shards' watermarks; `None`: one of them did not say.
    pub watermark: Option<i64>,
    /// Some of it could not be confirmed as the latest.
    pub stale: bool,
}

/// An answer in the making. Dropping it at any point is safe and disturbs nobody else.
#[derive(Debug)]
pub struct Reading {
    core: Arc<Core>,
    table: Arc<Table>,
    ask: Ask,
    state: Begun,
    counts: ReadCounts,
    cut: Option<i64>,
}

#[derive(Debug)]
enum Begun {
    No,
    Yes(Going),
    Over,
}

#[derive(Debug)]
struct Going {
    columns: ColumnSet,
    /// Clamped.
    start: i64,
    end: i64,
    as_of: i64,
    store: bool,
    /// Expected bytes of one series, and of what may be claimed ahead.
    series_bytes: u64,
    window: u64,
    /// The window is being filled.
    refilling: bool,
    /// Claims that wait for the rest of the window.
    works: Vec<Work>,
    core: Arc<Core>,
    upcoming: VecDeque<Source>,
    ahead: VecDeque<Pending>,
}

/// A series that is still to be planned.
#[derive(Debug)]
struct Source {
    cell: Arc<Cell>,
    legs: Arc<[Leg]>,
}

/// A series that has been planned.
#[derive(Debug)]
struct Pending {
    cell: Arc<Cell>,
    waiter: Arc<Waiter>,
    legs: Vec<PendingLeg>,
    taken: Vec<Taken<Arc<Chunk>>>,
}

#[derive(Debug)]
struct PendingLeg {
    leg: Leg,
    want: Want,
    missing: Vec<i64>,
    stakes: Stakes,
    rounds: u32,
}

/// Stakes in flights, given back when dropped.
#[derive(Debug)]
struct Stakes {
    core: Arc<Core>,
    cell: Arc<Cell>,
    shard: Arc<Shard>,
    token: Token,
    flights: Vec<FlightId>,
    /// Those of `flights` that this read claimed.
    claimed: Vec<FlightId>,
}

impl Drop for Stakes {
    fn drop(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        let mut fx = Fx::default();
        self.cell.lock().series.leave(&self.flights, self.token, &mut fx);
        self.core.settle(&self.cell, &self.shard, fx);
    }
}

/// What keeps a read from beginning right now.
enum Obstacle {
    /// These are being brought up to date.
    Syncing(Vec<Arc<Shard>>),
    /// A shard has not spoken of the dataset, which may be new: it can be asked.
    Undescribed(Error),
    Error(Error),
}

impl Reading {
    pub(crate) fn new(core: Arc<Core>, table: Arc<Table>, ask: Ask) -> Self {
        Self { core, table, ask, state: Begun::No, counts: ReadCounts::default(), cut: None }
    }

    /// How it was answered so far.
    #[must_use]
    pub fn counts(&self) -> &ReadCounts {
        &self.counts
    }

    /// The knowledge time to cut at: rows with a later `known_at` are not part of the answer. `None` before the read has begun, which
    /// the first call of [`Self::next`] or [`Self::try_all_ready`] does. Other reads of the same answer are to be asked `as_of` it.
    #[must_use]
    pub fn cut(&self) -> Option<i64> {
        self.cut
    }

    /// Everything, if all of it is in memory: no waiting, one short lock for each series. `None` changes nothing.
    pub fn try_all_ready(&mut self) -> Option<Vec<SeriesChunks>> {
        if matches!(self.state, Begun::No) && self.begin(false).is_err() {
            return None;
        }
        let Begun::Yes(going) = &mut self.state else { return None };
        if !going.ahead.is_empty() {
            return None;
        }
        let now = self.core.now();
        let mut series: Vec<Vec<Taken<Arc<Chunk>>>> = Vec::with_capacity(going.upcoming.len());
        let mut touch = Vec::new();
        let chunks = self.table.spec.chunk.cover(going.start, going.end);
        for source in &going.upcoming {
            let mut taken = Vec::with_capacity(((chunks.end - chunks.start) as usize).min(TAKEN_MIN));
            let mut inner = source.cell.lock();
            for leg in source.legs.iter() {
                let Some(want) = going.want(&self.table, leg) else { continue };
                if !inner.series.take_ready(&want, &leg.part.standing(), now, &mut taken, &mut touch) {
                    return None;
                }
            }
            series.push(taken);
        }
        self.core.cache.touch(&touch);
        let sources = std::mem::take(&mut going.upcoming);
        let Going { start, end, as_of, .. } = *going;
        let mut answer = Vec::with_capacity(series.len());
        for (source, taken) in sources.into_iter().zip(series) {
            self.counts.hit += taken.len() as u64;
            if !self.ask.again {
                self.table.counters.chunks_hit.fetch_add(taken.len() as u64, Relaxed);
            }
            let finish = Finish { table: &self.table, as_of, start, end };
            answer.push(finish.series(&mut self.counts, &source.cell, taken));
        }
        Some(answer)
    }

    /// The next series, as soon as all its chunks are there; `None` when there are no more. After an error there is nothing more.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Result<SeriesChunks>> {
        let deadline = self.ask.deadline.map(Instant::from_std);
        let next = match deadline {
            None => self.advance().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, self.advance()).await {
                Ok(next) => next,
                Err(_) => Err(Error::new(Code::DeadlineExceeded, "the read's deadline passed")
                    .dataset(&self.table.name)),
            },
        };
        match next {
            Ok(series) => series.map(Ok),
            Err(error) => {
                self.state = Begun::Over;
                Some(Err(error))
            }
        }
    }

    async fn advance(&mut self) -> Result<Option<SeriesChunks>> {
        if matches!(self.state, Begun::No) {
            self.begin_when_synced().await?;
        }
        loop {
            while self.plan_ahead() {
                tokio::task::yield_now().await;
            }
            let Begun::Yes(going) = &mut self.state else { return Ok(None) };
            let Some(front) = going.ahead.front_mut() else {
                self.state = Begun::Over;
                return Ok(None);
            };
            let (table, core) = (&self.table, &self.core);
            if front.collect(core, table, &mut self.counts, going.store, &self.ask)? {
                let Some(done) = going.ahead.pop_front() else { return Ok(None) };
                let Going { start, end, as_of, .. } = *going;
                let finish = Finish { table: &self.table, as_of, start, end };
                return Ok(Some(finish.series(&mut self.counts, &done.cell, done.taken)));
            }
            let waiter = Arc::clone(&front.waiter);
            std::future::poll_fn(|cx| waiter.poll(cx)).await;
        }
    }

    async fn begin_when_synced(&mut self) -> Result<()> {
        let until = Instant::now() + SYNC_WAIT;
        let mut asked = false;
        loop {
            let syncing = match self.begin(self.ask.allow_stale && Instant::now() >= until) {
                Ok(()) => return Ok(()),
                Err(Obstacle::Syncing(shards)) => shards,
                Err(Obstacle::Undescribed(_)) if !asked => {
                    asked = true;
                    crate::engine::describe_all(&self.core).await;
                    continue;
                }
                Err(Obstacle::Undescribed(error)) => return Err(error),
                Err(Obstacle::Error(error)) => return Err(error),
            };
            for shard in syncing {
                let left = until.saturating_duration_since(Instant::now());
                match shard.live(left).await {
                    Ok(()) => {}
                    Err(_) if self.ask.allow_stale => {}
                    Err(error) => return Err(self.placed(error)),
                }
            }
        }
    }

    fn placed(&self, error: Error) -> Error {
        let range = trellis_proto::TimeRange { start: Some(self.ask.start), end: Some(self.ask.end) };
        error.dataset(&self.table.name).range(range)
    }

    /// Fixes the read's knowledge time and range. Changes nothing if it cannot be done now. `unsynced`: what is held of shards that are
    /// being brought up to date will do, as stale.
    fn begin(&mut self, unsynced: bool) -> std::result::Result<(), Obstacle> {
        let cells = self.table.cells(&self.ask.symbols);
        // Several reads of one answer share the dataset they were asked with, and so their knowledge time.
        let asked = &self.ask.dataset;
        let mut known_through = if asked.settled { asked.known_through } else { i64::MAX };
        let mut watermark = Some(i64::MAX);
        let mut counts = ReadCounts::default();
        let mut parts: Vec<&Leg> = Vec::new();
        let mut sources = VecDeque::with_capacity(cells.len());
        for cell in cells {
            let legs =
                cell.legs(&self.core, &self.table).map_err(|error| match self.core.ownership().map {
                    Ok(_) => Obstacle::Undescribed(error),
                    Err(_) => Obstacle::Error(error),
                })?;
            sources.push_back(Source { cell, legs });
        }
        for leg in sources.iter().flat_map(|source| source.legs.iter()) {
            if parts.iter().any(|known| Arc::ptr_eq(&known.part, &leg.part)) {
                continue;
            }
            // first of all the knowledge time: what follows is at least as new
            known_through = known_through.min(leg.part.standing().known_through);
            watermark = watermark.min(leg.part.watermark());
            counts.shards.insert(leg.part.shard.id.to_string());
            parts.push(leg);
        }
        if self.ask.as_of.is_none_or(|as_of| as_of > known_through) {
            let mut syncing = Vec::new();
            for leg in &parts {
                let shard = &leg.part.shard;
                if self.ask.behind.contains(&shard.id) {
                    if !self.ask.allow_stale {
                        let why = format!("shard {} does not say what is newest", shard.id);
                        let error = Error::new(Code::Unavailable, why).shard(&shard.id);
                        return Err(Obstacle::Error(self.placed(error)));
                    }
                    counts.stale = true;
                }
                match &*leg.part.shard.link.borrow() {
                    Link::Live => {}
                    Link::Syncing if unsynced => counts.stale = true,
                    Link::Syncing => syncing.push(Arc::clone(&leg.part.shard)),
                    Link::Away(_) if self.ask.allow_stale => counts.stale = true,
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
                (self.ask.start.max(first), self.ask.end.min(last.saturating_add(1)))
            }
            _ => (0, 0),
        };
        let empty = end <= start || sources.is_empty();
        if empty {
            sources.clear();
        }
        let columns = self.table.layout.columns(&self.ask.fields);
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
        let budget = self.core.memory.budget();
        let store = series_bytes.saturating_mul(sources.len() as u64) <= budget / SCAN_SHARE;
        if counts.stale {
            self.core.counters.stale_answers.fetch_add(1, Relaxed);
        }
        let as_of = self.ask.as_of.map_or(known_through, |as_of| as_of.min(known_through));
        self.cut = Some(as_of);
        self.counts = counts;
        self.state = Begun::Yes(Going {
            columns,
            start,
            end,
            as_of,
            store,
            series_bytes,
            window: WINDOW_BYTES_MAX.min(budget / WINDOW_SHARE),
            refilling: false,
            works: Vec::new(),
            core: Arc::clone(&self.core),
            upcoming: sources,
            ahead: VecDeque::new(),
        });
        Ok(())
    }

    /// Plans some series of the window; its claims go to each shard together when it is full. True: there is room for more.
    fn plan_ahead(&mut self) -> bool {
        let Begun::Yes(going) = &mut self.state else { return false };
        let ahead = going.ahead.len() as u64 * going.series_bytes;
        // refilled when half empty, so that claims come in batches
        going.refilling |= going.ahead.is_empty() || ahead <= going.window / 2;
        if !going.refilling {
            return false;
        }
        for _ in 0..SERIES_PLANNED {
            let full = (going.ahead.len() as u64 + 1).saturating_mul(going.series_bytes) > going.window;
            let Some(source) = going.upcoming.front().filter(|_| going.ahead.is_empty() || !full) else {
                going.refilling = false;
                break;
            };
            let mut pending = Pending {
                cell: Arc::clone(&source.cell),
                waiter: Arc::default(),
                legs: Vec::new(),
                taken: Vec::new(),
            };
            for leg in source.legs.iter() {
                let Some(want) = going.want(&self.table, leg) else { continue };
                pending.legs.push(PendingLeg {
                    leg: leg.clone(),
                    want: want.clone(),
                    missing: Vec::new(),
                    stakes: Stakes {
                        core: Arc::clone(&self.core),
                        cell: Arc::clone(&source.cell),
                        shard: Arc::clone(&leg.part.shard),
                        token: self.core.next_token(),
                        flights: Vec::new(),
                        claimed: Vec::new(),
                    },
                    rounds: 0,
                });
                let index = pending.legs.len() - 1;
                let plan = pending.plan(
                    index,
                    &self.core,
                    &self.table,
                    &[want.chunks],
                    going.store,
                    &self.ask,
                    &mut going.works,
                );
                self.counts.hit += plan.0;
                self.counts.joined += plan.1;
                self.counts.fetched += plan.2;
                if !self.ask.again {
                    self.table.counters.chunks_hit.fetch_add(plan.0, Relaxed);
                }
                self.table.counters.chunks_joined.fetch_add(plan.1, Relaxed);
                self.table.counters.chunks_fetched.fetch_add(plan.2, Relaxed);
            }
            going.upcoming.pop_front();
            going.ahead.push_back(pending);
        }
        if !going.refilling {
            going.submit();
        }
        going.refilling
    }
}

fn submit_all(core: &Arc<Core>, works: Vec<Work>) {
    let mut works = works;
    while let Some(first) = works.first() {
        let shard = Arc::clone(&first.part.shard);
        let (these, others): (Vec<_>, Vec<_>) =
            works.into_iter().partition(|work| Arc::ptr_eq(&work.part.shard, &shard));
        fetch::submit(core, &shard, these);
        works = others;
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        // others may have joined them
        self.submit();
    }
}

impl Going {
    fn submit(&mut self) {
        submit_all(&self.core, std::mem::take(&mut self.works));
    }

    /// What is wanted of a leg; `None`: nothing.
    fn want(&self, table: &Table, leg: &Leg) -> Option<Want> {
        let chunks = table.spec.chunk.cover(self.start, self.end);
        let chunks: Range<i64> = chunks.start.max(leg.chunks.start)..chunks.end.min(leg.chunks.end);
        (!chunks.is_empty()).then_some(Want { chunks, columns: self.columns, as_of: self.as_of })
    }
}

impl Pending {
    /// Takes, joins and claims the chunks of a leg. Returns how many were hit, joined and claimed.
    #[allow(clippy::too_many_arguments)]
    fn plan(
        &mut self,
        index: usize,
        core: &Arc<Core>,
        table: &Arc<Table>,
        runs: &[Range<i64>],
        store: bool,
        ask: &Ask,
        works: &mut Vec<Work>,
    ) -> (u64, u64, u64) {
        let pending = &mut self.legs[index];
        let now = core.now();
        let mut plan = Plan::default();
        {
            let mut inner = self.cell.lock();
            let standing = pending.leg.part.standing();
            for chunks in runs {
                let want = Want { chunks: chunks.clone(), ..pending.want.clone() };
                let mut next_flight = || core.next_flight();
                inner.series.plan(
                    &want,
                    &standing,
                    now,
                    pending.stakes.token,
                    &self.waiter,
                    &mut next_flight,
                    &mut plan,
                );
            }
            // before anything can be settled, which needs this lock
            self.waiter.expect(plan.stakes);
        }
        core.cache.touch(&plan.touch);
        let hit = plan.taken.len() as u64;
        self.taken.append(&mut plan.taken);
        pending.missing.append(&mut plan.missing);
        for flight in plan.flights {
            if !pending.stakes.flights.contains(&flight) {
                pending.stakes.flights.push(flight);
            }
        }
        for claim in plan.claims {
            pending.stakes.claimed.push(claim.flight);
            works.push(Work::new(ask, table, &pending.leg.part, &self.cell, claim, store));
        }
        (hit, plan.joined, plan.claimed)
    }

    /// Takes what has come. True: nothing is missing any more.
    ///
    /// # Errors
    /// Of a chunk that is needed.
    fn collect(
        &mut self,
        core: &Arc<Core>,
        table: &Arc<Table>,
        counts: &mut ReadCounts,
        store: bool,
        ask: &Ask,
    ) -> Result<bool> {
        let mut whole = true;
        let mut works = Vec::new();
        for index in 0..self.legs.len() {
            if self.legs[index].missing.is_empty() {
                continue;
            }
            let mut lost: Vec<Range<i64>> = Vec::new();
            {
                let pending = &mut self.legs[index];
                let mut inner = self.cell.lock();
                let series = &mut inner.series;
                let standing = pending.leg.part.standing();
                let mut failed = None;
                let taken = &mut self.taken;
                pending.missing.retain(|chunk| {
                    match series.outcome(*chunk, &pending.want, &standing, pending.stakes.token) {
                        Outcome::Taken(chunk) => taken.push(chunk),
                        Outcome::Waiting => return true,
                        Outcome::Failed(error) => failed = Some(error),
                        Outcome::Lost => match lost.last_mut() {
                            Some(run) if run.end == *chunk => run.end += 1,
                            _ => lost.push(*chunk..*chunk + 1),
                        },
                    }
                    false
                });
                if let Some(error) = failed {
                    return Err(error);
                }
                if pending.missing.is_empty() {
                    let claimed = std::mem::take(&mut pending.stakes.claimed);
                    let rows: u64 = claimed.iter().map(|flight| series.rows_received(*flight)).sum();
                    counts.rows_fetched += rows;
                }
                if !lost.is_empty() {
                    pending.rounds += 1;
                }
            }
            let pending = &mut self.legs[index];
            if pending.rounds > ROUNDS_MAX {
                let shard = &pending.leg.part.shard;
                return Err(Error::new(Code::Unavailable, "chunks kept changing while they were read")
                    .shard(&shard.id)
                    .dataset(&table.name)
                    .symbol(&self.cell.symbol));
            }
            if !lost.is_empty() {
                // those that were hit in this round were counted as claimed or joined before
                let (_, _, _) = self.plan(index, core, table, &lost, store, ask, &mut works);
            }
            whole &= self.legs[index].missing.is_empty();
        }
        submit_all(core, works);
        if whole {
            self.taken.sort_unstable_by_key(|taken| taken.chunk);
            self.legs.clear();
        }
        Ok(whole)
    }
}

/// What is done with a series before it is handed out.
struct Finish<'a> {
    table: &'a Table,
    as_of: i64,
    start: i64,
    end: i64,
}

impl Finish<'_> {
    /// Counts, and lets the empty chunks go.
    fn series(&self, counts: &mut ReadCounts, cell: &Cell, taken: Vec<Taken<Arc<Chunk>>>) -> SeriesChunks {
        let mut union = 0;
        cell.lock()
            .asked
            .add(self.start, self.end, |start, end| union += rows_between(self.table, &taken, start, end));
        if union > 0 {
            self.table.counters.rows_union.fetch_add(union, Relaxed);
        }
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
                chunks.push(ChunkRef::new(taken.payload, known_through));
            }
        }
        SeriesChunks { symbol: cell.symbol.clone(), chunks }
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
