//! The claim map against a naive oracle, over random interleavings of everything that can happen to one series.
//!
//! The world has a shard with a list of commits, a log on its way to the head, calls with several flights each on their way there and
//! back, readers that come, wait, and leave, and evictions. A deterministic scheduler picks one step at a time. The oracle knows only the
//! list of commits: an answer at knowledge time T must have, of every column asked for, exactly the rows that were committed with a
//! known_at up to T. It also knows the chunks in flight: a chunk that would answer a reader is never fetched again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io::Write as _,
};

use trellis_proto::{Code, Error};

use super::*;

const CHUNKS: i64 = 12;
const COLUMNS: u32 = 4;
/// Worlds and steps of each: 10^6 together.
const WORLDS: u64 = 400;
const STEPS: usize = 2_500;

type Row = (i64, i64);

/// The rows of each column by itself, so that a mix of versions would show.
#[derive(Debug, Clone, PartialEq)]
struct Rows {
    columns: BTreeMap<u32, Vec<Row>>,
    version: u64,
    known_through: i64,
}

impl Payload for Rows {
    fn columns(&self) -> ColumnSet {
        ColumnSet(self.columns.keys().fold(0, |set, column| set | 1 << column))
    }
    fn version(&self) -> u64 {
        self.version
    }
    fn known_through(&self) -> i64 {
        self.known_through
    }
    fn rows(&self) -> u32 {
        self.columns.values().next().map_or(0, |rows| rows.len() as u32)
    }
    fn same_rows(&self, other: &Self) -> bool {
        self.columns.values().next() == other.columns.values().next()
    }
    fn join(&self, other: &Self) -> Self {
        let mut columns = self.columns.clone();
        columns.extend(other.columns.clone());
        Self {
            columns,
            version: self.version.max(other.version),
            known_through: self.known_through.max(other.known_through),
        }
    }
}

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The seed in `TRELLIS_SEED`, or a random one.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("TRELLIS_SEED").ok().map(|seed| seed.parse().unwrap());
    given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0)
}

/// Prints a line even if the test succeeds: other output of tests is captured.
pub(crate) fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

#[derive(Debug, Clone)]
struct Commit {
    version: u64,
    known_at: i64,
    rows: BTreeMap<i64, i64>,
}

/// A claim on its way.
#[derive(Debug, Clone)]
struct Fetch {
    claim: Claim,
    /// The call that it went with, and the standing at that time.
    call: Option<(u64, Standing)>,
    /// Chunks that the shard has read and that have not come yet: chunk, rows.
    read: BTreeMap<i64, Rows>,
    open: BTreeSet<i64>,
    /// Chunks of `open` that are asked for again when the call is over.
    failed: BTreeSet<i64>,
    /// The least knowledge time of the changes that came since the call went: chunk, time.
    poisoned: BTreeMap<i64, i64>,
    store: bool,
}

impl Fetch {
    fn new(claim: Claim, store: bool) -> Self {
        let open = claim.chunks.clone().collect();
        let (read, failed, poisoned) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { claim, call: None, read, open, failed, poisoned, store }
    }

    /// Whether its chunks will hold every commit up to `as_of`.
    fn answers(&self, chunk: i64, as_of: i64, standing: &Standing) -> bool {
        let Some((_, at)) = self.call else { return true };
        let known = at.generation == standing.generation || as_of <= at.known_through;
        known && self.poisoned.get(&chunk).is_none_or(|known_at| as_of < *known_at)
    }
}

#[derive(Debug)]
struct Reader {
    want: Want,
    token: Token,
    taken: BTreeMap<i64, Rows>,
    missing: BTreeSet<i64>,
    flights: Vec<FlightId>,
    pending: i64,
    rounds: u32,
}

/// The state of a resynchronisation after a lost log.
#[derive(Debug)]
enum Sync {
    Live,
    Lost,
    Described { known_through: i64, generation: Generation },
    Asked { known_through: i64, generation: Generation, held: Vec<(Range<i64>, u64)>, verdict: Vec<bool> },
}

struct World {
    rng: Rng,
    series: ClaimMap<Rows, u64>,
    commits: Vec<Commit>,
    now: i64,
    log: VecDeque<Commit>,
    sync: Sync,
    standing: Standing,
    fetches: Vec<Fetch>,
    /// Flights whose grace is running.
    graces: Vec<Abandoned>,
    readers: HashMap<u64, Reader>,
    slots: BTreeMap<SlotId, i64>,
    /// Flights with chunks that were asked for again; another flight may have been claimed for them meanwhile.
    retried: BTreeSet<FlightId>,
    next: u64,
    answers: u64,
    joined: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            series: ClaimMap::default(),
            commits: Vec::new(),
            now: 100,
            log: VecDeque::new(),
            sync: Sync::Live,
            standing: Standing { generation: 1, known_through: 100 },
            fetches: Vec::new(),
            graces: Vec::new(),
            readers: HashMap::new(),
            slots: BTreeMap::new(),
            retried: BTreeSet::new(),
            next: 10,
            answers: 0,
            joined: 0,
        }
    }

    fn version(&self) -> u64 {
        self.commits.len() as u64
    }

    fn truth(&self, chunk: i64, as_of: i64) -> Vec<Row> {
        let mut rows: Vec<Row> = self
            .commits
            .iter()
            .filter(|commit| commit.known_at <= as_of)
            .filter_map(|commit| commit.rows.get(&chunk).map(|ts| (*ts, commit.known_at)))
            .collect();
        rows.sort_unstable();
        rows
    }

    fn read(&self, chunk: i64, columns: ColumnSet) -> Rows {
        let rows = self.truth(chunk, i64::MAX);
        let columns = (0..COLUMNS).filter(|c| columns.0 >> c & 1 == 1).map(|c| (c, rows.clone())).collect();
        Rows { columns, version: self.version(), known_through: self.now }
    }

    fn step(&mut self) {
        self.now += 1;
        match self.rng.below(100) {
            0..=14 => self.ask(),
            15..=25 => self.launch(),
            26..=40 => self.shard_reads(),
            41..=57 => self.arrive(),
            58 => self.fail(),
            59..=78 => self.look(),
            79 => self.give_up(),
            80..=81 => self.expire(),
            82..=84 => self.commit(),
            85..=89 => self.apply_one(),
            90..=91 => self.heartbeat(),
            92..=93 => self.evict(),
            94 => self.lose(),
            95 => self.restart(),
            _ => self.resync(),
        }
        self.check();
    }

    fn ask(&mut self) {
        if self.readers.len() > 12 {
            return;
        }
        let start = self.rng.below(CHUNKS as u64) as i64;
        let end = start + 1 + self.rng.below((CHUNKS - start) as u64) as i64;
        let columns = ColumnSet(u128::from(1 + self.rng.below((1 << COLUMNS) - 1)));
        let latest = self.standing.known_through;
        let as_of = if self.rng.one_in(4) { latest - self.rng.below(60) as i64 } else { latest };
        // readers of the latest are refused while the log is lost; readers of the past are served
        if as_of == latest && !matches!(self.sync, Sync::Live) {
            return;
        }
        let want = Want { chunks: start..end, columns, as_of };
        let id = self.id();
        let mut taken = Vec::new();
        let mut touch = Vec::new();
        if self.series.take_ready(&want, &self.standing, 1, &mut taken, &mut touch) {
            assert_eq!(taken.len() as i64, end - start);
        }
        let reader = Reader {
            want,
            token: self.id(),
            taken: BTreeMap::new(),
            missing: BTreeSet::new(),
            flights: Vec::new(),
            pending: 0,
            rounds: 0,
        };
        self.readers.insert(id, reader);
        self.plan(id, std::iter::once(start..end).collect());
        if self.readers[&id].missing.is_empty() {
            assert_eq!(taken.len() as i64, end - start, "what plan finds ready, take_ready finds ready");
        }
        self.finish_if_whole(id);
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn plan(&mut self, id: u64, runs: Vec<Range<i64>>) {
        let (want, token) = (self.readers[&id].want.clone(), self.readers[&id].token);
        let mut plan = ClaimPlan::default();
        for chunks in runs {
            let mut next = self.next;
            let first = plan.claims.len();
            self.series.plan(
                &Want { chunks, ..want.clone() },
                &self.standing,
                1,
                token,
                &id,
                &mut || {
                    next += 1;
                    next
                },
                &mut plan,
            );
            self.next = next;
            self.nothing_claimed_twice(&plan, first, want.as_of);
        }
        let Some(reader) = self.readers.get_mut(&id) else { return };
        for taken in plan.taken {
            reader.taken.insert(taken.chunk, taken.payload);
        }
        reader.missing.extend(&plan.missing);
        reader.flights.extend(&plan.flights);
        reader.pending += plan.stakes as i64;
        self.joined += plan.joined;
        let store = !self.rng.one_in(8);
        self.fetches.extend(plan.claims.into_iter().map(|claim| Fetch::new(claim, store)));
    }

    fn nothing_claimed_twice(&self, plan: &ClaimPlan<Rows>, first: usize, as_of: i64) {
        for claim in &plan.claims[first..] {
            for chunk in claim.chunks.clone() {
                let going = self.fetches.iter().find(|fetch| {
                    !fetch.claim.columns.both(claim.columns).is_empty()
                        && fetch.open.contains(&chunk)
                        && fetch.answers(chunk, as_of, &self.standing)
                });
                assert!(going.is_none(), "chunk {chunk} as of {as_of} is on its way: {going:?}");
                if let Some(slot) = self.series.ready.get(&chunk)
                    && slot.answers(as_of, &self.standing)
                    && !slot.payload.columns().both(claim.columns).is_empty()
                {
                    assert!(plan.taken.iter().any(|t| t.chunk == chunk), "{chunk} is there, and no island");
                }
            }
        }
    }

    fn settle(&mut self, effects: Effects<Rows, u64>) {
        for (chunk, id, _) in effects.inserted {
            assert!(self.slots.insert(id, chunk).is_none(), "an id is used once");
        }
        for (id, _) in effects.removed {
            assert!(self.slots.remove(&id).is_some(), "what is removed was there");
        }
        for waiter in effects.wake {
            if let Some(reader) = self.readers.get_mut(&waiter) {
                reader.pending -= 1;
                assert!(reader.pending >= 0, "a stake is settled once");
            }
        }
        self.graces.extend(effects.abandoned);
    }

    /// A grace has passed.
    fn expire(&mut self) {
        if self.graces.is_empty() {
            return;
        }
        let left = self.graces.swap_remove(self.rng.below(self.graces.len() as u64) as usize);
        if self.series.expire(left) {
            self.fetches.retain(|fetch| fetch.claim.flight != left.flight || fetch.call.is_some());
            self.end_calls();
        }
    }

    /// Sends the queued claims, most of them as one call.
    fn launch(&mut self) {
        let call = self.id();
        let standing = self.standing;
        let (series, rng) = (&mut self.series, &mut self.rng);
        self.fetches.retain_mut(|fetch| {
            if fetch.call.is_some() || rng.one_in(3) {
                return true;
            }
            if !series.wanted(fetch.claim.flight) {
                series.cancel(fetch.claim.flight, &fetch.claim.chunks);
                return false;
            }
            fetch.call = Some((call, standing));
            series.launch(fetch.claim.flight, &fetch.claim.chunks, standing);
            true
        });
    }

    fn calls(&self) -> BTreeSet<u64> {
        self.fetches.iter().filter_map(|fetch| fetch.call.map(|(call, _)| call)).collect()
    }

    /// Ends the calls that nobody waits for any more, and those that have no chunk left to bring.
    fn end_calls(&mut self) {
        for call in self.calls() {
            let of = |fetch: &&Fetch| fetch.call.is_some_and(|(of, _)| of == call);
            let series = &mut self.series;
            let fetches: Vec<&Fetch> = self.fetches.iter().filter(of).collect();
            if fetches.iter().all(|f| series.is_idle(f.claim.flight, &f.claim.chunks)) {
                assert!(fetches.iter().all(|f| series.let_go(f.claim.flight, &f.claim.chunks)));
                self.fetches.retain(|fetch| !of(&fetch));
            } else if fetches.iter().all(|fetch| fetch.open == fetch.failed) {
                self.end(call);
            }
        }
    }

    /// A call is over: chunks that have not come are asked for again if a reader waits for them.
    fn end(&mut self, call: u64) {
        let mut effects = Effects::default();
        for fetch in std::mem::take(&mut self.fetches) {
            if fetch.call.is_none_or(|(of, _)| of != call) {
                self.fetches.push(fetch);
                continue;
            }
            let flight = fetch.claim.flight;
            for chunk in fetch.open {
                let chunks = chunk..chunk + 1;
                if self.series.wanted(flight) {
                    self.series.requeue(flight, &chunks, &Error::new(Code::Unavailable, "again"));
                    self.retried.insert(flight);
                    self.fetches.push(Fetch::new(Claim { chunks, ..fetch.claim.clone() }, fetch.store));
                } else {
                    let error = Error::new(Code::Unavailable, "as it happens");
                    self.series.fail(flight, chunks, &error, &mut effects);
                }
            }
        }
        self.settle(effects);
    }

    fn pick_launched(&mut self) -> Option<usize> {
        let going: Vec<usize> = (0..self.fetches.len()).filter(|i| self.fetches[*i].call.is_some()).collect();
        (!going.is_empty()).then(|| going[self.rng.below(going.len() as u64) as usize])
    }

    fn shard_reads(&mut self) {
        let Some(index) = self.pick_launched() else { return };
        let fetch = self.fetches[index].clone();
        for chunk in fetch.open.difference(&fetch.failed).filter(|chunk| !fetch.read.contains_key(*chunk)) {
            if !self.rng.one_in(3) {
                let rows = self.read(*chunk, fetch.claim.columns);
                self.fetches[index].read.insert(*chunk, rows);
            }
        }
    }

    fn arrive(&mut self) {
        let Some(index) = self.pick_launched() else { return };
        let fetch = &mut self.fetches[index];
        let mut effects = Effects::default();
        let mut next = self.next;
        let come: Vec<i64> = fetch.read.keys().copied().collect();
        for chunk in come {
            if self.rng.one_in(3) {
                continue;
            }
            let Some(rows) = fetch.read.remove(&chunk) else { continue };
            fetch.open.remove(&chunk);
            let mut next_slot = || {
                next += 1;
                next
            };
            let flight = fetch.claim.flight;
            self.series.deliver(
                flight,
                chunk,
                rows,
                fetch.store,
                &self.standing,
                &mut next_slot,
                &mut effects,
            );
        }
        self.next = next;
        if self.fetches[index].open.is_empty() {
            self.fetches.swap_remove(index);
        }
        self.settle(effects);
        self.end_calls();
    }

    fn fail(&mut self) {
        let Some(index) = self.pick_launched() else { return };
        let fetch = &mut self.fetches[index];
        let open: Vec<i64> = fetch.open.difference(&fetch.failed).copied().collect();
        if open.is_empty() {
            return;
        }
        let chunk = open[self.rng.below(open.len() as u64) as usize];
        fetch.read.remove(&chunk);
        if self.rng.one_in(2) {
            fetch.failed.insert(chunk);
        } else {
            fetch.open.remove(&chunk);
            let flight = fetch.claim.flight;
            if fetch.open.is_empty() {
                self.fetches.swap_remove(index);
            }
            let mut effects = Effects::default();
            let error = Error::new(Code::Unavailable, "as it happens");
            self.series.fail(flight, chunk..chunk + 1, &error, &mut effects);
            self.settle(effects);
        }
        self.end_calls();
    }

    fn pick_reader(&mut self) -> Option<u64> {
        let mut ids: Vec<u64> = self.readers.keys().copied().collect();
        ids.sort_unstable();
        (!ids.is_empty()).then(|| ids[self.rng.below(ids.len() as u64) as usize])
    }

    /// A reader looks at the state of its chunks.
    fn look(&mut self) {
        let Some(id) = self.pick_reader() else { return };
        let standing = self.standing;
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let mut lost: Vec<Range<i64>> = Vec::new();
        let mut failed = false;
        for chunk in reader.missing.clone() {
            match self.series.outcome(chunk, &reader.want, &standing, reader.token) {
                ChunkOutcome::Taken(taken) => {
                    reader.taken.insert(chunk, taken.payload);
                    reader.missing.remove(&chunk);
                }
                ChunkOutcome::Waiting => {
                    assert!(reader.pending > 0, "who waits will be woken");
                }
                ChunkOutcome::Failed(_) => failed = true,
                ChunkOutcome::Lost => {
                    reader.missing.remove(&chunk);
                    lost.push(chunk..chunk + 1);
                }
            }
        }
        if failed {
            self.leave(id);
            return;
        }
        if !lost.is_empty() {
            reader.rounds += 1;
            assert!(reader.rounds < 50, "a reader gets its chunks in the end");
            self.plan(id, lost);
        }
        self.finish_if_whole(id);
    }

    fn finish_if_whole(&mut self, id: u64) {
        if !self.readers[&id].missing.is_empty() {
            return;
        }
        let reader = &self.readers[&id];
        assert_eq!(reader.taken.len() as i64, reader.want.chunks.end - reader.want.chunks.start, "no hole");
        for (chunk, rows) in &reader.taken {
            let truth = self.truth(*chunk, reader.want.as_of);
            for column in (0..COLUMNS).filter(|c| reader.want.columns.0 >> c & 1 == 1) {
                let got: Vec<Row> =
                    rows.columns[&column].iter().filter(|row| row.1 <= reader.want.as_of).copied().collect();
                assert_eq!(got, truth, "chunk {chunk} column {column} as of {}", reader.want.as_of);
            }
        }
        self.answers += 1;
        self.leave(id);
    }

    fn give_up(&mut self) {
        if let Some(id) = self.pick_reader() {
            self.leave(id);
        }
    }

    fn leave(&mut self, id: u64) {
        if let Some(reader) = self.readers.remove(&id) {
            let mut effects = Effects::default();
            self.series.leave(&reader.flights, reader.token, &mut effects);
            self.settle(effects);
        }
    }

    fn commit(&mut self) {
        let mut rows = BTreeMap::new();
        for _ in 0..1 + self.rng.below(3) {
            let chunk = self.rng.below(CHUNKS as u64) as i64;
            rows.insert(chunk, chunk * 100 + self.rng.below(20) as i64);
        }
        let commit = Commit { version: self.version() + 1, known_at: self.now, rows };
        self.commits.push(commit.clone());
        self.log.push_back(commit);
        self.now += 1;
    }

    fn apply_one(&mut self) {
        if !matches!(self.sync, Sync::Live) {
            return;
        }
        let Some(commit) = self.log.pop_front() else { return };
        let inline = self.rng.one_in(2);
        let mut effects = Effects::default();
        let mut next = self.next;
        for (chunk, ts) in &commit.rows {
            let event = Event {
                version: commit.version,
                known_at_min: commit.known_at,
                known_through: commit.known_at,
                chunks: *chunk..*chunk + 1,
            };
            let patch = |_, payload: &Rows| {
                inline.then(|| {
                    let mut patched = payload.clone();
                    for rows in patched.columns.values_mut() {
                        rows.push((*ts, commit.known_at));
                        rows.sort_unstable();
                    }
                    patched.version = commit.version;
                    patched.known_through = commit.known_at;
                    patched
                })
            };
            let mut next_slot = || {
                next += 1;
                next
            };
            self.series.change(&event, &self.standing, patch, &mut next_slot, &mut effects);
            let overtaken = |fetch: &&mut Fetch| fetch.call.is_some() && fetch.open.contains(chunk);
            for fetch in self.fetches.iter_mut().filter(overtaken) {
                fetch.poisoned.entry(*chunk).or_insert(commit.known_at);
            }
        }
        self.next = next;
        self.standing.known_through = self.standing.known_through.max(commit.known_at);
        self.settle(effects);
    }

    fn heartbeat(&mut self) {
        if matches!(self.sync, Sync::Live) && self.log.is_empty() {
            self.standing.known_through = self.now;
            self.now += 1;
        }
    }

    fn evict(&mut self) {
        let ids: Vec<SlotId> = self.slots.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.rng.below(ids.len() as u64) as usize];
        let chunk = self.slots[&id];
        assert!(self.series.has(chunk, id));
        assert!(self.series.evict(chunk, id).is_some());
        assert!(self.series.evict(chunk, id).is_none(), "a late eviction hits nothing");
        self.slots.remove(&id);
    }

    /// The log breaks: the changes on their way are lost.
    fn lose(&mut self) {
        if self.rng.one_in(4) {
            self.log.clear();
            self.sync = Sync::Lost;
        }
    }

    /// The shard comes back as another process: its calls have broken off, and its log does not go on.
    fn restart(&mut self) {
        if self.rng.one_in(6) {
            self.calls().into_iter().for_each(|call| self.end(call));
            self.log.clear();
            self.sync = Sync::Lost;
        }
    }

    fn resync(&mut self) {
        self.sync = match std::mem::replace(&mut self.sync, Sync::Live) {
            Sync::Live => Sync::Live,
            Sync::Lost => {
                // hello: the log goes on from here; commits from now on are queued
                self.log.clear();
                Sync::Described { known_through: self.now, generation: self.id() }
            }
            Sync::Described { known_through, generation } => {
                let held = self.series.held(&[0..5, 5..CHUNKS]);
                let verdict = held
                    .iter()
                    .map(|(chunks, version)| {
                        let touched =
                            |commit: &&Commit| commit.rows.keys().any(|chunk| chunks.contains(chunk));
                        !self.commits.iter().filter(|c| c.version > *version).any(|c| touched(&c))
                    })
                    .collect();
                Sync::Asked { known_through, generation, held, verdict }
            }
            Sync::Asked { known_through, generation, held, verdict } => {
                for ((chunks, version), unchanged) in held.into_iter().zip(verdict) {
                    self.series.confirm(chunks, version, &self.standing, generation, unchanged);
                }
                self.standing = Standing { generation, known_through };
                Sync::Live
            }
        };
        self.now += 1;
    }

    fn check(&self) {
        assert_eq!(self.series.ready.len(), self.slots.len(), "every slot is known outside");
        // by chunk and column, the flights that a reader of the latest would join (0: none): in the map, and in the world
        let mut claimed = [[0; COLUMNS as usize]; CHUNKS as usize];
        let mut going = claimed;
        let latest = self.standing.known_through;
        let columns = |set: ColumnSet| (0..COLUMNS as usize).filter(move |c| set.0 >> c & 1 == 1);
        for flight in self.series.flights.iter().filter(|f| !self.retried.contains(&f.id)) {
            for chunk in flight.range().filter(|chunk| flight.joinable(*chunk, latest, &self.standing)) {
                columns(flight.columns).for_each(|column| claimed[chunk as usize][column] = flight.id);
            }
        }
        for fetch in self.fetches.iter().filter(|f| !self.retried.contains(&f.claim.flight)) {
            for &chunk in fetch.open.iter().filter(|chunk| fetch.answers(**chunk, latest, &self.standing)) {
                for column in columns(fetch.claim.columns) {
                    let other = std::mem::replace(&mut going[chunk as usize][column], fetch.claim.flight);
                    assert_eq!(other, 0, "{chunk}/{column} is in flight twice, by {}", fetch.claim.flight);
                }
            }
        }
        assert_eq!(claimed, going, "what is on its way can be joined");
    }

    /// Ends all calls and readers.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            if self.readers.is_empty() && self.fetches.is_empty() {
                break;
            }
            self.resync();
            self.launch();
            self.shard_reads();
            self.arrive();
            self.look();
            self.expire();
        }
        assert!(self.readers.is_empty(), "every reader is answered: {:?}", self.readers);
        assert!(self.series.flights.is_empty(), "no flight is left behind: {:?}", self.series.flights);
    }
}

#[test]
fn no_interleaving_makes_an_answer_wrong_or_a_reader_wait_for_ever() {
    let seed = seed();
    let factor: u64 = std::env::var("TRELLIS_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    say(&format!("claims model: seed {seed}, {} steps", WORLDS * factor * STEPS as u64));
    let (mut answers, mut joined) = (0, 0);
    for world in 0..WORLDS * factor {
        let seed = seed.wrapping_add(world);
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.drain();
            (world.answers, world.joined)
        });
        match outcome {
            Ok((a, j)) => {
                answers += a;
                joined += j;
            }
            Err(panic) => {
                println!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{answers} answers, {joined} chunks joined");
    assert!(
        answers > 10_000 && joined > 10_000,
        "the worlds were lively: {answers} answers, {joined} joined"
    );
}

#[test]
fn a_reader_that_comes_back_and_leaves_again_begins_a_new_grace() {
    let mut series: ClaimMap<Rows, u64> = ClaimMap::default();
    let want = Want { chunks: 0..2, columns: ColumnSet(1), as_of: 1 };
    let standing = Standing { generation: 1, known_through: 1 };
    let come_and_leave = |series: &mut ClaimMap<Rows, u64>, token| {
        let mut plan = ClaimPlan::default();
        series.plan(&want, &standing, 1, token, &token, &mut || 7, &mut plan);
        assert_eq!(plan.flights, [7], "one flight for everybody");
        let mut effects = Effects::default();
        series.leave(&plan.flights, token, &mut effects);
        effects.abandoned
    };
    let first = come_and_leave(&mut series, 1);
    let second = come_and_leave(&mut series, 2);
    assert!(!series.expire(first[0]), "the second reader has left a moment ago");
    assert!(series.expire(second[0]));
    assert!(!series.expire(second[0]), "it is gone");
}
