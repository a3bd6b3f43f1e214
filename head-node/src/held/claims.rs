//! The claim map of one series: which chunks are ready, which are being fetched, and which reads wait for them. Pure: no clock, no
//! task, no I/O.
//!
//! A series is a plane of (column x chunk). Each point of it is *absent*, *claimed* by one flight, or *ready* in a slot. A read names a
//! rectangle. One call of [`ClaimMap::plan`] takes the ready points, joins the claimed ones, and claims the absent ones. So two reads
//! that overlap in time or in columns never fetch a point twice, in whichever order they come. The rejected choice is one growing extent
//! per series: to merge extents copies data that is already there, and two reads of different ranges fetch and store the same extent
//! twice.
//!
//! **Versions.** Every read has a knowledge time; "the latest" is the [`Standing::known_through`] of the moment the read began. A slot
//! answers a read if all commits up to that time are in it. That is so if the slot is *confirmed* (fetched, patched or checked in the
//! current [`Generation`] of the shard's log, and not touched by a change since), or if its own `known_through` reaches that far. A
//! change that cannot be patched into a slot *closes* it: the slot answers earlier knowledge times for ever, and no later one. Rows are
//! identified by (ts, known_at) and never change. So two payloads with the same row keys are the same version, and their columns can be
//! joined; otherwise the older payload is dropped.
//!
//! **Poison.** A change that overlaps a chunk in flight may or may not be in the data that the shard is about to send. Reads that joined
//! before have an earlier knowledge time, and may have the data. Later reads do not join. If the data turns out to be older than the
//! change, it is not stored.
//!
//! The map wakes nobody and calls nobody: the caller carries out the [`Effects`] that it returns.

use std::{collections::BTreeMap, ops::Range};

use trellis_proto::Error;

use crate::shards::Generation;

/// Identity of one fetch of adjacent chunks of one series. Never reused.
pub(crate) type FlightId = u64;
/// Identity of one insertion into a slot. Never reused, so that a late message about one insertion is not taken for another.
pub(crate) type SlotId = u64;
/// Identity of one read's stakes in flights. Never reused.
pub(crate) type Token = u64;
/// The generation of a slot that is known not to be the latest.
pub(crate) const CLOSED: Generation = 0;

/// Ready chunks between two claims are fetched again if they hold at most this many rows together: another range costs the shard a seek
/// (2 to 5 us), about as much as to decode and send these rows.
pub(crate) const ISLAND_ROWS_MAX: u64 = 64;

/// A set of columns, as bits. [`super::chunk::ColumnLayout`] says which fields a bit stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct ColumnSet(pub(crate) u128);

impl ColumnSet {
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub(crate) fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }
    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    pub(crate) fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    pub(crate) fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// The content of a slot: all known rows of some columns of one chunk.
pub(crate) trait Payload: Clone {
    fn columns(&self) -> ColumnSet;
    /// Version of the table that it was read from.
    fn version(&self) -> u64;
    /// The knowledge time up to which it is complete.
    fn known_through(&self) -> i64;
    fn rows(&self) -> u32;
    /// Whether both hold the same rows, and so the same version, whatever their columns.
    fn same_rows(&self, other: &Self) -> bool;
    /// The columns of both; only called if [`Self::same_rows`].
    fn join(&self, other: &Self) -> Self;
}

/// How far one dataset is known from the shard that owns the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) generation: Generation,
    /// All commits with a known_at up to this have been applied to every slot of this generation.
    pub(crate) known_through: i64,
}

/// The rectangle that a read wants, and its knowledge time.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    pub(crate) chunks: Range<i64>,
    pub(crate) columns: ColumnSet,
    /// At most the standing's `known_through`.
    pub(crate) as_of: i64,
}

/// One chunk of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Taken<P> {
    pub(crate) chunk: i64,
    pub(crate) payload: P,
    /// The knowledge time up to which the payload is complete.
    pub(crate) known_through: i64,
}

/// A flight that the caller has to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) flight: FlightId,
    pub(crate) columns: ColumnSet,
    pub(crate) chunks: Range<i64>,
}

/// The result of [`ClaimMap::plan`].
#[derive(Debug)]
pub(crate) struct ClaimPlan<P> {
    pub(crate) taken: Vec<Taken<P>>,
    /// Chunks that the read has to wait for, ascending.
    pub(crate) missing: Vec<i64>,
    /// Flights with a stake of this read's token, own claims included.
    pub(crate) flights: Vec<FlightId>,
    pub(crate) claims: Vec<Claim>,
    /// Chunks that joined other flights, without a claim.
    pub(crate) joined: u64,
    /// Chunks with a claim.
    pub(crate) claimed: u64,
    /// Stakes taken. Each is settled once, by [`Effects::wake`].
    pub(crate) stakes: usize,
    /// Slots that the read uses, and whose last use was at an earlier `now`. The caller tells the cache of the use.
    pub(crate) touch: Vec<SlotId>,
}

impl<P> Default for ClaimPlan<P> {
    fn default() -> Self {
        Self {
            taken: Vec::new(),
            missing: Vec::new(),
            flights: Vec::new(),
            claims: Vec::new(),
            joined: 0,
            claimed: 0,
            stakes: 0,
            touch: Vec::new(),
        }
    }
}

/// The state of a chunk that a read waits for.
#[derive(Debug)]
pub(crate) enum ChunkOutcome<P> {
    Taken(Taken<P>),
    Failed(Error),
    /// Still in flight.
    Waiting,
    /// It has come and is gone (evicted, superseded, of another version than its other columns): the read must plan it again.
    Lost,
}

/// A flight whose last reader has left. A reader that joins and leaves again begins a new grace, so the number of times counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Abandoned {
    pub(crate) flight: FlightId,
    times: u32,
}

/// What the caller has to do, in any order, when it no longer holds the lock of the series.
#[derive(Debug)]
pub(crate) struct Effects<P, W> {
    /// Waiters of stakes that are settled: every chunk has come or failed.
    pub(crate) wake: Vec<W>,
    /// Waiters of stakes of which one chunk has failed while others are on their way: a reader that needs that chunk need not wait.
    pub(crate) broken: Vec<W>,
    pub(crate) inserted: Vec<(i64, SlotId, P)>,
    pub(crate) removed: Vec<(SlotId, P)>,
    /// Flights whose last reader has left.
    pub(crate) abandoned: Vec<Abandoned>,
    /// Flights poisoned for the first time.
    pub(crate) poisoned: u64,
    /// Slots that a change has closed or patched.
    pub(crate) touched: u64,
}

impl<P, W> Default for Effects<P, W> {
    fn default() -> Self {
        Self {
            wake: Vec::new(),
            broken: Vec::new(),
            inserted: Vec::new(),
            removed: Vec::new(),
            abandoned: Vec::new(),
            poisoned: 0,
            touched: 0,
        }
    }
}

/// A commit that touches chunks of this series.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) version: u64,
    pub(crate) known_at_min: i64,
    /// Later commits have a greater known_at than this.
    pub(crate) known_through: i64,
    pub(crate) chunks: Range<i64>,
}

#[derive(Debug)]
struct Slot<P> {
    id: SlotId,
    payload: P,
    /// Newest version of the table at which the payload is known to be complete.
    version: u64,
    generation: Generation,
    known_through: i64,
    touched: u32,
}

impl<P> Slot<P> {
    fn answers(&self, as_of: i64, standing: &Standing) -> bool {
        self.generation == standing.generation || self.known_through >= as_of
    }
    fn known_through(&self, standing: &Standing) -> i64 {
        if self.generation == standing.generation {
            self.known_through.max(standing.known_through)
        } else {
            self.known_through
        }
    }
}

/// The changes that came while a chunk was in flight: the newest version, and the least known_at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Poison {
    version: u64,
    known_at: i64,
}

/// Whether the shard has been asked for a chunk in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upstream {
    /// Not yet. Its answer will be as new as the moment at which it is asked.
    Queued,
    /// Asked at this standing.
    Asked { at: Standing, poison: Option<Poison> },
}

#[derive(Debug)]
enum Progress<P> {
    Open(Upstream),
    Done(P),
    Failed(Error),
    /// Given up, because nobody waited for it.
    Dropped,
}

#[derive(Debug)]
struct Stake<W> {
    token: Token,
    waiter: W,
    chunks: Range<i64>,
    left: usize,
}

#[derive(Debug)]
struct Flight<P, W> {
    id: FlightId,
    columns: ColumnSet,
    first: i64,
    chunks: Vec<Progress<P>>,
    open: usize,
    /// Rows received.
    rows: u64,
    stakes: Vec<Stake<W>>,
    /// The last reason why the head asked for chunks of this flight again.
    failed: Option<Error>,
    /// How many times its last reader has left.
    abandoned: u32,
    /// The value of `abandoned` at the last grace that is over.
    expired: u32,
}

impl<P, W> Flight<P, W> {
    fn progress(&self, chunk: i64) -> Option<&Progress<P>> {
        usize::try_from(chunk.checked_sub(self.first)?).ok().and_then(|i| self.chunks.get(i))
    }
    fn progress_mut(&mut self, chunk: i64) -> Option<&mut Progress<P>> {
        usize::try_from(chunk.checked_sub(self.first)?).ok().and_then(|i| self.chunks.get_mut(i))
    }
    fn range(&self) -> Range<i64> {
        self.first..self.first + self.chunks.len() as i64
    }
    /// Whether it has no reader, and its grace is over.
    fn is_idle(&self) -> bool {
        self.stakes.is_empty() && self.expired == self.abandoned
    }
    /// Gives up the open chunks among `chunks` for which `which` holds.
    fn drop_open(&mut self, chunks: &Range<i64>, which: impl Fn(&Upstream) -> bool) {
        let range = self.range();
        for chunk in chunks.start.max(range.start)..chunks.end.min(range.end) {
            if let Some(progress) = self.progress_mut(chunk)
                && matches!(progress, Progress::Open(upstream) if which(upstream))
            {
                *progress = Progress::Dropped;
                self.open -= 1;
            }
        }
    }
    /// Whether the chunk is in flight and will hold every commit up to `as_of`.
    fn joinable(&self, chunk: i64, as_of: i64, standing: &Standing) -> bool {
        match self.progress(chunk) {
            Some(Progress::Open(Upstream::Queued)) => true,
            Some(Progress::Open(Upstream::Asked { at, poison })) => {
                (at.generation == standing.generation || as_of <= at.known_through)
                    && poison.is_none_or(|p| as_of < p.known_at)
            }
            _ => false,
        }
    }
}

/// The claim map of one series. `P` is the payload of a slot, `W` the handle that wakes a reader.
#[derive(Debug)]
pub(crate) struct ClaimMap<P, W> {
    ready: BTreeMap<i64, Slot<P>>,
    /// A few at most: only while chunks are being fetched.
    flights: Vec<Flight<P, W>>,
}

impl<P, W> Default for ClaimMap<P, W> {
    fn default() -> Self {
        Self { ready: BTreeMap::new(), flights: Vec::new() }
    }
}

impl<P: Payload, W: Clone> ClaimMap<P, W> {
    /// Takes all chunks of `want` if all of them are ready; otherwise changes nothing and returns false. `now` is a clock of any unit
    /// and origin; see [`ClaimPlan::touch`].
    pub(crate) fn take_ready(
        &mut self,
        want: &Want,
        standing: &Standing,
        now: u32,
        taken: &mut Vec<Taken<P>>,
        touch: &mut Vec<SlotId>,
    ) -> bool {
        let before = taken.len();
        let mut next = want.chunks.start;
        for (&chunk, slot) in self.ready.range_mut(want.chunks.clone()) {
            if chunk != next
                || !slot.answers(want.as_of, standing)
                || !slot.payload.columns().covers(want.columns)
            {
                break;
            }
            next += 1;
            if slot.touched != now {
                slot.touched = now;
                touch.push(slot.id);
            }
            let known_through = slot.known_through(standing);
            taken.push(Taken { chunk, payload: slot.payload.clone(), known_through });
        }
        if next < want.chunks.end {
            taken.truncate(before);
            return false;
        }
        true
    }

    /// Takes the ready chunks of `want`, joins the claimed ones, and claims the absent ones. The stakes of `token` last until
    /// [`Self::leave`].
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn plan(
        &mut self,
        want: &Want,
        standing: &Standing,
        now: u32,
        token: Token,
        waiter: &W,
        next_flight: &mut dyn FnMut() -> FlightId,
        plan: &mut ClaimPlan<P>,
    ) {
        // (flight index, chunks of it that are needed)
        let mut joins: Vec<(usize, Range<i64>)> = Vec::new();
        let mut claims: Vec<(Range<i64>, ColumnSet)> = Vec::new();
        // rows of the ready chunks since the last claim; `None`: a chunk since then cannot be fetched again
        let mut island: Option<u64> = None;
        for chunk in want.chunks.clone() {
            let mut need = want.columns;
            if let Some(slot) = self.ready.get_mut(&chunk)
                && slot.answers(want.as_of, standing)
            {
                need = need.minus(slot.payload.columns());
                if need.is_empty() {
                    if slot.touched != now {
                        slot.touched = now;
                        plan.touch.push(slot.id);
                    }
                    // a chunk of which other columns are in flight must not be fetched again
                    let quiet =
                        || !self.flights.iter().any(|f| matches!(f.progress(chunk), Some(Progress::Open(_))));
                    island = island
                        .map(|rows| rows + u64::from(slot.payload.rows()))
                        .filter(|rows| *rows <= ISLAND_ROWS_MAX && quiet());
                    let known_through = slot.known_through(standing);
                    plan.taken.push(Taken { chunk, payload: slot.payload.clone(), known_through });
                    continue;
                }
            }
            plan.missing.push(chunk);
            let mut free = need;
            for (index, flight) in self.flights.iter().enumerate() {
                if free.both(flight.columns).is_empty() || !flight.joinable(chunk, want.as_of, standing) {
                    continue;
                }
                free = free.minus(flight.columns);
                match joins.iter_mut().rev().find(|(i, _)| *i == index) {
                    Some((_, run)) if run.end == chunk => run.end += 1,
                    _ => joins.push((index, chunk..chunk + 1)),
                }
            }
            if free.is_empty() {
                plan.joined += 1;
                island = None;
                continue;
            }
            plan.claimed += 1;
            match claims.last_mut() {
                Some((run, columns)) if *columns == free && (run.end == chunk || island.is_some()) => {
                    run.end = chunk + 1;
                }
                _ => claims.push((chunk..chunk + 1, free)),
            }
            island = Some(0);
        }

        for (index, chunks) in joins {
            let left = (chunks.end - chunks.start) as usize;
            let flight = &mut self.flights[index];
            if !plan.flights.contains(&flight.id) {
                plan.flights.push(flight.id);
            }
            flight.stakes.push(Stake { token, waiter: waiter.clone(), chunks, left });
            plan.stakes += 1;
        }
        for (chunks, columns) in claims {
            let id = next_flight();
            let left = (chunks.end - chunks.start) as usize;
            plan.flights.push(id);
            plan.stakes += 1;
            plan.claims.push(Claim { flight: id, columns, chunks: chunks.clone() });
            self.flights.push(Flight {
                id,
                columns,
                first: chunks.start,
                chunks: (0..left).map(|_| Progress::Open(Upstream::Queued)).collect(),
                open: left,
                rows: 0,
                stakes: vec![Stake { token, waiter: waiter.clone(), chunks, left }],
                failed: None,
                abandoned: 0,
                expired: 0,
            });
        }
    }

    /// The state of a chunk that [`Self::plan`] reported missing, for the read of `token`.
    pub(crate) fn outcome(
        &self,
        chunk: i64,
        want: &Want,
        standing: &Standing,
        token: Token,
    ) -> ChunkOutcome<P> {
        // A payload that is not stored has only the columns of its flight. The other columns are in the slot, or in another flight.
        let mut part: Option<P> = None;
        if let Some(slot) = self.ready.get(&chunk).filter(|slot| slot.answers(want.as_of, standing)) {
            if slot.payload.columns().covers(want.columns) {
                let known_through = slot.known_through(standing);
                return ChunkOutcome::Taken(Taken { chunk, payload: slot.payload.clone(), known_through });
            }
            part = Some(slot.payload.clone());
        }
        let mut outcome = ChunkOutcome::Lost;
        // Only a stake in this chunk counts: the read may have joined the same flight for other chunks and not for this one.
        let staked =
            |f: &&Flight<P, W>| f.stakes.iter().any(|s| s.token == token && s.chunks.contains(&chunk));
        for flight in self.flights.iter().filter(staked) {
            match flight.progress(chunk) {
                Some(Progress::Done(payload)) => {
                    let payload = match &part {
                        Some(part) if part.same_rows(payload) && !payload.columns().covers(want.columns) => {
                            payload.join(part)
                        }
                        _ => payload.clone(),
                    };
                    if payload.columns().covers(want.columns) {
                        let known_through = payload.known_through().max(want.as_of);
                        return ChunkOutcome::Taken(Taken { chunk, payload, known_through });
                    }
                    part = Some(payload);
                }
                Some(Progress::Failed(error)) => outcome = ChunkOutcome::Failed(error.clone()),
                Some(Progress::Open(_)) if matches!(outcome, ChunkOutcome::Lost) => {
                    outcome = ChunkOutcome::Waiting
                }
                _ => {}
            }
        }
        outcome
    }

    /// The shard is being asked for the open chunks among `chunks`, at the standing `at`.
    pub(crate) fn launch(&mut self, flight: FlightId, chunks: &Range<i64>, at: Standing) {
        self.set_upstream(flight, chunks, Upstream::Asked { at, poison: None });
    }

    /// The open chunks among `chunks` did not come, because of `error`; the shard will be asked for them again.
    pub(crate) fn requeue(&mut self, flight: FlightId, chunks: &Range<i64>, error: &Error) {
        self.set_upstream(flight, chunks, Upstream::Queued);
        if let Some(flight) = self.flights.iter_mut().find(|f| f.id == flight) {
            flight.failed = Some(error.clone());
        }
    }

    /// Why a chunk that is still open had to be asked for again, the last time.
    pub(crate) fn failed(&self, chunk: i64) -> Option<Error> {
        let open = |f: &&Flight<P, W>| matches!(f.progress(chunk), Some(Progress::Open(_)));
        self.flights.iter().filter(open).find_map(|f| f.failed.clone())
    }

    fn set_upstream(&mut self, flight: FlightId, chunks: &Range<i64>, to: Upstream) {
        let Some(flight) = self.flights.iter_mut().find(|f| f.id == flight) else { return };
        for chunk in chunks.start.max(flight.first)..chunks.end.min(flight.range().end) {
            if let Some(Progress::Open(upstream)) = flight.progress_mut(chunk) {
                *upstream = to;
            }
        }
    }

    /// The open chunks of a flight in `within`: those that have neither come nor failed, as runs.
    pub(crate) fn open(&self, flight: FlightId, within: &Range<i64>) -> Vec<Range<i64>> {
        let mut runs: Vec<Range<i64>> = Vec::new();
        let Some(flight) = self.flights.iter().find(|f| f.id == flight) else { return runs };
        for chunk in flight.first.max(within.start)..flight.range().end.min(within.end) {
            if matches!(flight.progress(chunk), Some(Progress::Open(_))) {
                match runs.last_mut() {
                    Some(run) if run.end == chunk => run.end += 1,
                    _ => runs.push(chunk..chunk + 1),
                }
            }
        }
        runs
    }

    /// Rows that have come for a flight so far.
    pub(crate) fn rows_received(&self, flight: FlightId) -> u64 {
        self.flights.iter().find(|f| f.id == flight).map_or(0, |f| f.rows)
    }

    /// A chunk of a flight has come. `store`: it goes into a slot; otherwise only the flight's own readers get it.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn deliver(
        &mut self,
        flight: FlightId,
        chunk: i64,
        payload: P,
        store: bool,
        standing: &Standing,
        next_slot: &mut dyn FnMut() -> SlotId,
        effects: &mut Effects<P, W>,
    ) {
        let Some(index) = self.flights.iter().position(|f| f.id == flight) else { return };
        let flight = &mut self.flights[index];
        let Some(Progress::Open(upstream)) = flight.progress(chunk) else { return };
        let (launched, poison) = match upstream {
            Upstream::Asked { at, poison } => (at.generation, *poison),
            // a late answer to an earlier call: its data is right, but its age is not known
            Upstream::Queued => (CLOSED, None),
        };
        let stale = poison.is_some_and(|p| payload.version() < p.version);
        flight.rows += u64::from(payload.rows());
        let outcome = if stale || !store {
            payload
        } else {
            install(&mut self.ready, chunk, payload, launched, standing, next_slot, effects)
        };
        if let Some(progress) = flight.progress_mut(chunk) {
            *progress = Progress::Done(outcome);
        }
        flight.open -= 1;
        for stake in flight.stakes.iter_mut().filter(|s| s.chunks.contains(&chunk) && s.left > 0) {
            stake.left -= 1;
            if stake.left == 0 {
                effects.wake.push(stake.waiter.clone());
            }
        }
        self.forget_if_done(index);
    }

    /// Chunks of a flight have failed. Wakes only the readers that need them.
    pub(crate) fn fail(
        &mut self,
        flight: FlightId,
        chunks: Range<i64>,
        error: &Error,
        effects: &mut Effects<P, W>,
    ) {
        let Some(index) = self.flights.iter().position(|f| f.id == flight) else { return };
        let flight = &mut self.flights[index];
        for chunk in chunks.start.max(flight.first)..chunks.end.min(flight.range().end) {
            let Some(progress @ Progress::Open(_)) = flight.progress_mut(chunk) else { continue };
            *progress = Progress::Failed(error.clone());
            flight.open -= 1;
            for stake in flight.stakes.iter_mut().filter(|s| s.chunks.contains(&chunk) && s.left > 0) {
                stake.left -= 1;
                match stake.left {
                    0 => effects.wake.push(stake.waiter.clone()),
                    _ => effects.broken.push(stake.waiter.clone()),
                }
            }
        }
        self.forget_if_done(index);
    }

    /// Gives back the stakes of a read, whether it was served or not.
    pub(crate) fn leave(&mut self, flights: &[FlightId], token: Token, effects: &mut Effects<P, W>) {
        for id in flights {
            let Some(index) = self.flights.iter().position(|f| f.id == *id) else { continue };
            let flight = &mut self.flights[index];
            let before = flight.stakes.len();
            flight.stakes.retain(|stake| stake.token != token);
            if before > flight.stakes.len() && flight.stakes.is_empty() && flight.open > 0 {
                flight.abandoned += 1;
                effects.abandoned.push(Abandoned { flight: *id, times: flight.abandoned });
            }
            self.forget_if_done(index);
        }
    }

    /// The grace of an abandoned flight is over. Chunks that no shard has been asked for are absent again. The others may be on their way
    /// in a call that other reads wait for: they can be joined, and are stored, until [`Self::let_go`]. False: a reader has joined the
    /// flight since, or it is done.
    pub(crate) fn expire(&mut self, left: Abandoned) -> bool {
        let same = |f: &Flight<P, W>| f.id == left.flight && f.abandoned == left.times && f.stakes.is_empty();
        let Some(index) = self.flights.iter().position(same) else { return false };
        let flight = &mut self.flights[index];
        flight.expired = left.times;
        flight.drop_open(&flight.range(), |upstream| matches!(upstream, Upstream::Queued));
        self.forget_if_done(index);
        true
    }

    /// Whether nobody needs the open chunks among `chunks`.
    pub(crate) fn is_idle(&self, flight: FlightId, chunks: &Range<i64>) -> bool {
        self.open(flight, chunks).is_empty() || self.flights.iter().any(|f| f.id == flight && f.is_idle())
    }

    /// Gives up the open chunks among `chunks` if [`Self::is_idle`]: they are absent again. False: a reader needs them.
    pub(crate) fn let_go(&mut self, flight: FlightId, chunks: &Range<i64>) -> bool {
        if !self.is_idle(flight, chunks) {
            return false;
        }
        self.cancel(flight, chunks);
        true
    }

    /// Gives up the open chunks among `chunks` if nobody waits for the flight.
    pub(crate) fn cancel(&mut self, flight: FlightId, chunks: &Range<i64>) {
        let idle = |f: &Flight<P, W>| f.id == flight && f.stakes.is_empty();
        if let Some(index) = self.flights.iter().position(idle) {
            self.flights[index].drop_open(chunks, |_| true);
            self.forget_if_done(index);
        }
    }

    /// Whether anybody waits for a flight.
    pub(crate) fn wanted(&self, flight: FlightId) -> bool {
        self.flights.iter().any(|f| f.id == flight && !f.stakes.is_empty())
    }

    /// A commit has touched chunks. `patch` returns a chunk's payload with the commit's rows in it, or `None` to close the slot.
    pub(crate) fn change(
        &mut self,
        event: &Event,
        standing: &Standing,
        mut patch: impl FnMut(i64, &P) -> Option<P>,
        next_slot: &mut dyn FnMut() -> SlotId,
        effects: &mut Effects<P, W>,
    ) {
        for (&chunk, slot) in self.ready.range_mut(event.chunks.clone()) {
            if slot.version >= event.version {
                continue;
            }
            effects.touched += 1;
            let confirmed = slot.generation == standing.generation;
            if confirmed && let Some(payload) = patch(chunk, &slot.payload) {
                let id = next_slot();
                effects.removed.push((slot.id, slot.payload.clone()));
                effects.inserted.push((chunk, id, payload.clone()));
                *slot = Slot {
                    id,
                    payload,
                    version: event.version,
                    generation: standing.generation,
                    known_through: slot.known_through.max(event.known_through),
                    touched: slot.touched,
                };
                continue;
            }
            let before = event.known_at_min.saturating_sub(1);
            slot.known_through = if confirmed { before } else { slot.known_through.min(before) };
            slot.generation = CLOSED;
        }
        for flight in &mut self.flights {
            let range = flight.range();
            let mut first = true;
            for chunk in event.chunks.start.max(range.start)..event.chunks.end.min(range.end) {
                let Some(Progress::Open(Upstream::Asked { poison, .. })) = flight.progress_mut(chunk) else {
                    continue;
                };
                if poison.is_none() && std::mem::take(&mut first) {
                    effects.poisoned += 1;
                }
                let known_at = poison.map_or(i64::MAX, |p| p.known_at).min(event.known_at_min);
                let version = poison.map_or(0, |p| p.version).max(event.version);
                *poison = Some(Poison { version, known_at });
            }
        }
    }

    /// Stores a chunk that the head has never fetched. One change has brought its first rows, so that change has all of its rows. Does
    /// nothing if the chunk is ready or in flight.
    pub(crate) fn plant(
        &mut self,
        chunk: i64,
        payload: P,
        standing: &Standing,
        next_slot: &mut dyn FnMut() -> SlotId,
        effects: &mut Effects<P, W>,
    ) {
        if self.ready.contains_key(&chunk) || self.flights.iter().any(|f| f.progress(chunk).is_some()) {
            return;
        }
        install(&mut self.ready, chunk, payload, standing.generation, standing, next_slot, effects);
    }

    /// The newest ready chunk, and its columns.
    pub(crate) fn tail(&self) -> Option<(i64, ColumnSet)> {
        self.ready.last_key_value().map(|(chunk, slot)| (*chunk, slot.payload.columns()))
    }

    /// The ready chunks in `within` that are to be checked after a gap in the log: runs of chunks of one version each.
    pub(crate) fn held(&self, within: &[Range<i64>]) -> Vec<(Range<i64>, u64)> {
        let mut runs: Vec<(Range<i64>, u64)> = Vec::new();
        let ready = within.iter().flat_map(|range| self.ready.range(range.clone()));
        for (&chunk, slot) in ready.filter(|(_, slot)| slot.generation != CLOSED) {
            match runs.last_mut() {
                Some((run, version)) if run.end == chunk && *version == slot.version => run.end += 1,
                _ => runs.push((chunk..chunk + 1, slot.version)),
            }
        }
        runs
    }

    /// Takes the shard's answer about a run of [`Self::held`]. Slots of the generation of `old` are complete up to its `known_through` in
    /// any case. If the run is unchanged, its slots belong to the generation `new` from here on; otherwise they are closed.
    pub(crate) fn confirm(
        &mut self,
        chunks: Range<i64>,
        version: u64,
        old: &Standing,
        new: Generation,
        unchanged: bool,
    ) {
        for (_, slot) in self.ready.range_mut(chunks) {
            // a slot that was filled since is not the one that the shard was asked about
            if slot.version != version || slot.generation == CLOSED {
                continue;
            }
            slot.known_through = slot.known_through(old);
            slot.generation = if unchanged { new } else { CLOSED };
        }
    }

    /// Whether nothing is held, and nothing is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.flights.is_empty()
    }

    /// Empties all slots. Flights go on for their readers.
    pub(crate) fn clear(&mut self, effects: &mut Effects<P, W>) {
        effects
            .removed
            .extend(std::mem::take(&mut self.ready).into_values().map(|slot| (slot.id, slot.payload)));
    }

    /// The cache has evicted a slot. Returns its payload if the slot was still in place.
    pub(crate) fn evict(&mut self, chunk: i64, slot: SlotId) -> Option<P> {
        if self.ready.get(&chunk)?.id != slot {
            return None;
        }
        self.ready.remove(&chunk).map(|slot| slot.payload)
    }

    /// Whether a slot is still in place.
    pub(crate) fn has(&self, chunk: i64, slot: SlotId) -> bool {
        self.ready.get(&chunk).is_some_and(|s| s.id == slot)
    }

    fn forget_if_done(&mut self, index: usize) {
        let flight = &self.flights[index];
        if flight.open == 0 && flight.stakes.is_empty() {
            self.flights.swap_remove(index);
        }
    }
}

/// Stores `payload`, joined with the slot's columns if those are of the same rows. Returns the payload for the flight's readers: all
/// known columns of these rows.
fn install<P: Payload, W>(
    ready: &mut BTreeMap<i64, Slot<P>>,
    chunk: i64,
    payload: P,
    generation: Generation,
    standing: &Standing,
    next_slot: &mut dyn FnMut() -> SlotId,
    effects: &mut Effects<P, W>,
) -> P {
    let Some(slot) = ready.get_mut(&chunk) else {
        let slot = fresh(chunk, payload.clone(), generation, next_slot, effects);
        ready.insert(chunk, slot);
        return payload;
    };
    if slot.payload.same_rows(&payload) {
        let confirmed = slot.generation == standing.generation;
        let generation = if confirmed { slot.generation } else { generation };
        let known_through = slot.known_through.max(payload.known_through());
        let version = slot.version.max(payload.version());
        if !slot.payload.columns().covers(payload.columns()) {
            let joined = payload.join(&slot.payload);
            effects.removed.push((slot.id, slot.payload.clone()));
            *slot = fresh(chunk, joined, generation, next_slot, effects);
        }
        slot.generation = generation;
        slot.known_through = known_through;
        slot.version = version;
        return slot.payload.clone();
    }
    if payload.version() < slot.version {
        return payload;
    }
    effects.removed.push((slot.id, slot.payload.clone()));
    *slot = fresh(chunk, payload.clone(), generation, next_slot, effects);
    payload
}

/// A new slot for an insertion.
fn fresh<P: Payload, W>(
    chunk: i64,
    payload: P,
    generation: Generation,
    next_slot: &mut dyn FnMut() -> SlotId,
    effects: &mut Effects<P, W>,
) -> Slot<P> {
    let id = next_slot();
    effects.inserted.push((chunk, id, payload.clone()));
    Slot {
        id,
        version: payload.version(),
        known_through: payload.known_through(),
        generation,
        touched: 0,
        payload,
    }
}

#[cfg(test)]
#[path = "claims/model.rs"]
pub(crate) mod model;
