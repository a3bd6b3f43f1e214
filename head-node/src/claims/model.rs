//! The claim map against a naive oracle, over random interleavings of everything that can happen to one series.
//!
//! The world has a shard with a list of commits, a log on its way to the head, flights on their way there and back, readers
//! that come, wait, and leave, and an eviction engine. A deterministic scheduler picks one step at a time. The oracle knows
//! only the list of commits: an answer at knowledge time T must hold, of every column asked for, exactly the rows that were
//! committed with a known_at up to T.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use trellis_proto::Code;

use super::*;

const CHUNKS: i64 = 12;
const COLUMNS: u32 = 4;
/// Worlds and steps of each: 10^6 together.
const WORLDS: u64 = 400;
const STEPS: usize = 2_500;

type Row = (i64, i64);

/// Rows of each column, apart, so that columns of different versions would show.
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
    launched: bool,
    /// What has been read and not yet come: chunk, rows.
    read: BTreeMap<i64, Rows>,
    open: BTreeSet<i64>,
    store: bool,
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

/// Where a resynchronisation after a lost log stands.
#[derive(Debug)]
enum Sync {
    Live,
    Lost,
    Described { known_through: i64, generation: Generation },
    Asked { known_through: i64, generation: Generation, held: Vec<(Range<i64>, u64)>, verdict: Vec<bool> },
}

struct World {
    rng: Rng,
    series: Series<Rows, u64>,
    commits: Vec<Commit>,
    now: i64,
    log: VecDeque<Commit>,
    sync: Sync,
    standing: Standing,
    fetches: Vec<Fetch>,
    readers: HashMap<u64, Reader>,
    slots: BTreeMap<SlotId, i64>,
    /// Flights of which something was asked for again; somebody may have asked for it meanwhile.
    retried: BTreeSet<FlightId>,
    next: u64,
    answers: u64,
    joined: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            series: Series::default(),
            commits: Vec::new(),
            now: 100,
            log: VecDeque::new(),
            sync: Sync::Live,
            standing: Standing { generation: 1, known_through: 100 },
            fetches: Vec::new(),
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
            59..=79 => self.look(),
            80..=81 => self.give_up(),
            82..=84 => self.commit(),
            85..=89 => self.apply_one(),
            90..=91 => self.heartbeat(),
            92..=93 => self.evict(),
            94 => self.lose(),
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
        let mut plan = Plan::default();
        for chunks in runs {
            let before = self.states(&want);
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
            if want.as_of == self.standing.known_through {
                self.nothing_claimed_twice(&before, &plan, first);
            }
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
        for claim in plan.claims {
            let open = claim.chunks.clone().collect();
            self.fetches.push(Fetch { claim, launched: false, read: BTreeMap::new(), open, store });
        }
    }

    fn states(&self, want: &Want) -> HashMap<(i64, u32), State> {
        let points = want.chunks.clone().flat_map(|chunk| (0..COLUMNS).map(move |c| (chunk, c)));
        points.map(|(k, c)| ((k, c), self.series.state(k, ColumnSet(1 << c), &self.standing))).collect()
    }

    fn nothing_claimed_twice(&self, before: &HashMap<(i64, u32), State>, plan: &Plan<Rows>, first: usize) {
        for claim in &plan.claims[first..] {
            for chunk in claim.chunks.clone() {
                for column in (0..COLUMNS).filter(|c| claim.columns.0 >> c & 1 == 1) {
                    match before[&(chunk, column)] {
                        State::Absent => {}
                        // an island
                        State::Ready(_) => assert!(plan.taken.iter().any(|t| t.chunk == chunk)),
                        State::Claimed(flight) => panic!("{chunk}/{column} was claimed by {flight}"),
                    }
                }
            }
        }
    }

    fn settle(&mut self, fx: Effects<Rows, u64>) {
        for (chunk, id, _) in fx.inserted {
            assert!(self.slots.insert(id, chunk).is_none(), "an id is used once");
        }
        for (id, _) in fx.removed {
            assert!(self.slots.remove(&id).is_some(), "what is removed was there");
        }
        for waiter in fx.wake {
            if let Some(reader) = self.readers.get_mut(&waiter) {
                reader.pending -= 1;
                assert!(reader.pending >= 0, "a stake is settled once");
            }
        }
        for left in fx.abandoned {
            // the grace passes at once, or somebody joins in it
            if self.rng.one_in(2) && self.series.expire(left) {
                self.fetches.retain(|fetch| fetch.claim.flight != left.flight);
            }
        }
    }

    fn launch(&mut self) {
        let queued: Vec<usize> = (0..self.fetches.len()).filter(|i| !self.fetches[*i].launched).collect();
        if queued.is_empty() {
            return;
        }
        let index = queued[self.rng.below(queued.len() as u64) as usize];
        let fetch = &mut self.fetches[index];
        if !self.series.wanted(fetch.claim.flight) {
            self.series.cancel(fetch.claim.flight);
            self.fetches.swap_remove(index);
            return;
        }
        fetch.launched = true;
        self.series.launch(fetch.claim.flight, &fetch.claim.chunks, self.standing.generation);
    }

    fn pick_launched(&mut self) -> Option<usize> {
        let going: Vec<usize> = (0..self.fetches.len()).filter(|i| self.fetches[*i].launched).collect();
        (!going.is_empty()).then(|| going[self.rng.below(going.len() as u64) as usize])
    }

    fn shard_reads(&mut self) {
        let Some(index) = self.pick_launched() else { return };
        let fetch = self.fetches[index].clone();
        for chunk in fetch.open.iter().filter(|chunk| !fetch.read.contains_key(*chunk)) {
            if !self.rng.one_in(3) {
                let rows = self.read(*chunk, fetch.claim.columns);
                self.fetches[index].read.insert(*chunk, rows);
            }
        }
    }

    fn arrive(&mut self) {
        let Some(index) = self.pick_launched() else { return };
        let fetch = &mut self.fetches[index];
        let mut fx = Effects::default();
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
            self.series.deliver(flight, chunk, rows, fetch.store, &self.standing, &mut next_slot, &mut fx);
        }
        self.next = next;
        if self.fetches[index].open.is_empty() {
            self.fetches.swap_remove(index);
        }
        self.settle(fx);
    }

    fn fail(&mut self) {
        let Some(index) = self.pick_launched() else { return };
        let fetch = &mut self.fetches[index];
        let open: Vec<i64> = fetch.open.iter().copied().collect();
        let Some(&chunk) = open.get(self.rng.below(open.len() as u64) as usize) else { return };
        let flight = fetch.claim.flight;
        if self.rng.one_in(2) {
            // asked again: what was read is forgotten, the chunk stays claimed
            fetch.read.remove(&chunk);
            fetch.open.remove(&chunk);
            let claim = Claim { chunks: chunk..chunk + 1, ..fetch.claim.clone() };
            let again = Fetch {
                claim,
                launched: false,
                read: BTreeMap::new(),
                open: [chunk].into(),
                store: fetch.store,
            };
            if fetch.open.is_empty() {
                self.fetches.swap_remove(index);
            }
            self.fetches.push(again);
            self.retried.insert(flight);
            self.series.requeue(flight, &(chunk..chunk + 1));
            return;
        }
        fetch.open.remove(&chunk);
        fetch.read.remove(&chunk);
        if fetch.open.is_empty() {
            self.fetches.swap_remove(index);
        }
        let mut fx = Effects::default();
        self.series.fail(flight, chunk..chunk + 1, &Error::new(Code::Unavailable, "as it happens"), &mut fx);
        self.settle(fx);
    }

    fn pick_reader(&mut self) -> Option<u64> {
        let mut ids: Vec<u64> = self.readers.keys().copied().collect();
        ids.sort_unstable();
        (!ids.is_empty()).then(|| ids[self.rng.below(ids.len() as u64) as usize])
    }

    /// A reader looks at what has become of its chunks.
    fn look(&mut self) {
        let Some(id) = self.pick_reader() else { return };
        let standing = self.standing;
        let Some(reader) = self.readers.get_mut(&id) else { return };
        let mut lost: Vec<Range<i64>> = Vec::new();
        let mut failed = false;
        for chunk in reader.missing.clone() {
            match self.series.outcome(chunk, &reader.want, &standing, reader.token) {
                Outcome::Taken(taken) => {
                    reader.taken.insert(chunk, taken.payload);
                    reader.missing.remove(&chunk);
                }
                Outcome::Waiting => {
                    assert!(reader.pending > 0, "who waits will be woken");
                }
                Outcome::Failed(_) => failed = true,
                Outcome::Lost => {
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
            let mut fx = Effects::default();
            self.series.leave(&reader.flights, reader.token, &mut fx);
            self.settle(fx);
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
        let mut fx = Effects::default();
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
            self.series.change(&event, &self.standing, patch, &mut next_slot, &mut fx);
        }
        self.next = next;
        self.standing.known_through = self.standing.known_through.max(commit.known_at);
        self.settle(fx);
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

    /// The log breaks: what was on its way is gone.
    fn lose(&mut self) {
        if self.rng.one_in(3) {
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
        for chunk in 0..CHUNKS {
            for column in (0..COLUMNS).map(|c| ColumnSet(1 << c)) {
                let latest = self.standing.known_through;
                let open = self
                    .series
                    .flights
                    .iter()
                    .filter(|f| f.columns.covers(column) && f.joinable(chunk, latest, &self.standing))
                    .filter(|f| !self.retried.contains(&f.id))
                    .count();
                assert!(open <= 1, "chunk {chunk} is in flight {open} times");
            }
        }
    }

    /// Lets everything come to its end.
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
        }
        assert!(self.readers.is_empty(), "every reader is answered: {:?}", self.readers);
        let mut left: Vec<FlightId> = self.series.flights.iter().map(|f| f.id).collect();
        left.retain(|id| !self.series.cancel(*id));
        assert!(left.is_empty(), "no flight is left behind");
    }
}

#[test]
fn no_interleaving_makes_an_answer_wrong_or_a_reader_wait_for_ever() {
    let seed: u64 = std::env::var("TRELLIS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_160_810);
    let factor: u64 = std::env::var("TRELLIS_STEPS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
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
    println!(
        "seed {seed}: {} steps, {answers} answers, {joined} chunks joined",
        WORLDS * factor * STEPS as u64
    );
    assert!(
        answers > 10_000 && joined > 10_000,
        "the worlds were lively: {answers} answers, {joined} joined"
    );
}

#[test]
fn who_comes_back_and_leaves_again_begins_a_new_grace() {
    let mut series: Series<Rows, u64> = Series::default();
    let want = Want { chunks: 0..2, columns: ColumnSet(1), as_of: 1 };
    let standing = Standing { generation: 1, known_through: 1 };
    let come_and_leave = |series: &mut Series<Rows, u64>, token| {
        let mut plan = Plan::default();
        series.plan(&want, &standing, 1, token, &token, &mut || 7, &mut plan);
        assert_eq!(plan.flights, [7], "one flight for everybody");
        let mut fx = Effects::default();
        series.leave(&plan.flights, token, &mut fx);
        fx.abandoned
    };
    let first = come_and_leave(&mut series, 1);
    let second = come_and_leave(&mut series, 2);
    assert!(!series.expire(first[0]), "the second reader has left a moment ago");
    assert!(series.expire(second[0]));
    assert!(!series.expire(second[0]), "it is gone");
}
