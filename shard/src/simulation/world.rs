//! Two shards, publishers, an importer, a reader, and the scheduler that picks the next event.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};
use trellis_proto::{Code, Error, Result, pb};
use url::Url;

use super::{
    calls::{Ask, Reply, perform},
    disk::{Disk, Op},
    model::{Model, Row, Sent},
    seed::Seed,
};
use crate::{
    clock::WallClock,
    config::{self, Config},
    files::Lake,
    shard::Shard,
    testing::{DATASET, watch_start},
    watch_log::{News, Subscription},
    write::Effect,
};

/// If a message or operation is older than this, no time passes until it has ended. So each ends within this time and one step of
/// time, of four minutes at most.
const AGE_MAX: Duration = Duration::from_secs(120);
/// Files are removed after this long: more than the age of anything under way, and the difference of two clocks.
pub(super) const RETENTION: Duration = Duration::from_secs(2_400);
/// The time at which a simulation begins: long ago, so that a real time is noticed.
const BEGIN_NS: i64 = 1_000_000_000_000_000_000;
/// Each is told apart by the process that holds the lease; the first two are two lives of one unit.
pub(super) const PUBLISHERS: [(&str, &str); 3] = [("mom", "1"), ("mom", "2"), ("rev", "1")];
/// One in so many times a watcher loses its stream and goes on where it was, or leaves the dataset and names it again.
const RESUMES: usize = 64;
/// Lines of the trace that a failure shows.
const TRACE_SHOWN: usize = 60;

/// The ways to write rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Session,
    Import,
}

/// The caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actor {
    Publisher(usize),
    Importer,
    Reader,
    /// The shard itself.
    Upkeep,
}

/// A call, from the message that asks to the message that answers.
pub(super) struct Call {
    pub(super) id: usize,
    pub(super) actor: Actor,
    pub(super) node: usize,
    pub(super) ask: Ask,
    pub(super) stage: Stage,
    since: Instant,
    /// Whether the caller still waits.
    pub(super) awaited: bool,
}

pub(super) enum Stage {
    Asked,
    Running { life: usize, floor: Option<usize>, task: JoinHandle<Result<Reply>> },
    Answered(Result<Reply>),
}

/// A shard, life after life.
pub(super) struct Node {
    pub(super) life: usize,
    pub(super) skew_ns: Arc<AtomicI64>,
    pub(super) state: State,
    pub(super) awake_at: Instant,
}

pub(super) enum State {
    Down,
    Opening(JoinHandle<Result<Arc<Shard>>>),
    Up { shard: Arc<Shard>, watcher: Box<Subscription>, told: Option<u64> },
}

/// The state of a publisher as it believes.
#[derive(Default)]
pub(super) struct Belief {
    epoch: Option<u64>,
    /// The run that is not known to be published.
    pub(super) open: Option<String>,
    calls: bool,
}

/// A possible next event.
type Event = fn(&mut World);

/// The trace of a run, and counts of its events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) trace: Vec<String>,
    pub(super) counts: BTreeMap<&'static str, usize>,
}

pub(super) struct World {
    pub(super) seed: Seed,
    pub(super) disk: Arc<Disk>,
    pub(super) model: Model,
    pub(super) nodes: Vec<Node>,
    pub(super) calls: Vec<Call>,
    pub(super) publishers: [Belief; PUBLISHERS.len()],
    importer: Belief,
    reads: bool,
    /// The newest version that the reader has seen of each symbol.
    seen: BTreeMap<String, usize>,
    /// Writes that are still on their way, although their shards were told that they failed.
    pub(super) late: Vec<(Op, Instant)>,
    now_ns: Arc<AtomicI64>,
    begin: Instant,
    lives: usize,
    asked: usize,
    runs: usize,
    names: BTreeMap<String, usize>,
    outcome: Outcome,
}

/// Runs one simulation to its end; panics where something that must be true is not.
pub(super) fn simulate(seed: u64, steps: usize) -> Outcome {
    // One blocking thread, so that what is decoded off the main thread comes back in the order in which it was asked for. Tokio
    // looks first at what came back from other threads at every 31st step. Whether something has come back by then depends on the
    // machine's load, so this runtime looks there only when nothing else is ready.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .global_queue_interval(u32::MAX)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed);
        for _ in 0..steps {
            world.step().await;
        }
        world.end().await;
        std::mem::take(&mut world.outcome)
    })
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let node = || Node { life: 0, skew_ns: Arc::default(), state: State::Down, awake_at: now };
        Self {
            seed: Seed::new(seed),
            disk: Disk::new(),
            model: Model::new(),
            nodes: vec![node(), node()],
            calls: Vec::new(),
            publishers: Default::default(),
            importer: Belief::default(),
            reads: false,
            seen: BTreeMap::new(),
            late: Vec::new(),
            now_ns: Arc::new(AtomicI64::new(BEGIN_NS)),
            begin: now,
            lives: 0,
            asked: 0,
            runs: 0,
            names: BTreeMap::new(),
            outcome: Outcome::default(),
        }
    }

    /// One thing happens; then everybody runs until all wait for the next one.
    async fn step(&mut self) {
        self.happen().await;
        self.settle().await;
    }

    async fn happen(&mut self) {
        let now = Instant::now();
        let late = |since: Instant| now - since > AGE_MAX;
        let overdue = self.disk.waiting().iter().any(|w| late(w.2))
            || self.calls.iter().any(|call| late(call.since))
            || self.late.iter().any(|(_, since)| late(*since));
        if overdue {
            for node in &mut self.nodes {
                node.awake_at = now;
            }
        }
        let ops = self.ready_ops();
        let messages = self.ready_messages();
        let idle = self.idle();
        let mut choices: Vec<(usize, Event)> = Vec::new();
        let mut choice = |weight: usize, there: bool, what: Event| {
            if there {
                choices.push((weight, what));
            }
        };
        choice(14, !ops.is_empty(), Self::release);
        choice(7, !messages.is_empty(), Self::deliver);
        choice(3, !self.late.is_empty(), Self::apply_late);
        if !overdue {
            choice(5, !idle.is_empty(), Self::act);
            choice(2, true, Self::maintain);
            choice(1, true, Self::fail);
        }
        let time = if overdue { 0 } else { 3 };
        let all: usize = choices.iter().map(|c| c.0).sum::<usize>() + time;
        let mut picked = self.seed.below(all.max(1));
        for (weight, what) in choices {
            if picked < weight {
                return what(self);
            }
            picked -= weight;
        }
        if !overdue {
            self.pass_time().await;
        }
    }

    /// Runs until nobody can go on: paused time moves only then. Then looks at what came of it.
    pub(super) async fn settle(&mut self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now_ns = BEGIN_NS + self.begin.elapsed().as_nanos() as i64;
        self.now_ns.store(now_ns, Ordering::SeqCst);
        self.disk.set_time(now_ns / 1_000_000);
        self.model.observe(&self.disk);
        self.follow_nodes().await;
        self.follow_calls().await;
    }

    async fn follow_nodes(&mut self) {
        for i in 0..self.nodes.len() {
            if matches!(&self.nodes[i].state, State::Opening(task) if task.is_finished()) {
                let State::Opening(task) = std::mem::replace(&mut self.nodes[i].state, State::Down) else {
                    continue;
                };
                match task.await.unwrap() {
                    Ok(shard) => {
                        let none = HashMap::new();
                        let watcher = Box::new(shard.subscribe(&watch_start(), &none).unwrap());
                        let told = shard.catalog.newest_told();
                        self.nodes[i].state = State::Up { shard, watcher, told };
                        self.note(format!("shard {i} is up at {told:?}"));
                    }
                    Err(error) => {
                        assert!(error.retryable(), "{error:?}");
                        self.note(format!("shard {i} does not open: {:?}", error.code()));
                    }
                }
            }
            if let State::Up { shard, watcher, told } = &mut self.nodes[i].state {
                for change in watcher.changes() {
                    self.model.told(&change);
                    *told = Some(change.version);
                    watcher.acknowledger()(change.seq);
                }
                let visible = version_of(shard);
                assert!(*told >= visible, "shard {i} serves {visible:?}; its watchers know of {told:?}");
                match self.seed.below(RESUMES) {
                    0 => {
                        let end = watcher.position(0);
                        let seq = self.seed.below(end as usize + 1) as u64;
                        **watcher = come_back(shard, seq);
                        assert_eq!((watcher.seq, watcher.first.len() as u64), (seq, end - seq));
                        let newest = watcher.first.pop().map(|news| match news {
                            News::Change(change) => Some(change.version),
                            News::Subscribed(_) => None,
                        });
                        assert!(
                            newest.is_none_or(|newest| newest == *told),
                            "{newest:?}, and it knew {told:?}"
                        );
                    }
                    1 => {
                        watcher.leave(&[DATASET.to_owned()]);
                        shard.follow(watcher, DATASET, None);
                        let said = match watcher.queue.try_recv() {
                            Ok(News::Subscribed(answer)) => version_said(&answer),
                            other => panic!("{other:?}"),
                        };
                        assert!(said >= visible, "shard {i} serves {visible:?} and says {said:?}");
                        *told = said.max(*told);
                    }
                    _ => {}
                }
            }
        }
    }

    async fn follow_calls(&mut self) {
        let mut i = 0;
        while i < self.calls.len() {
            let done = matches!(&self.calls[i].stage, Stage::Running { task, .. } if task.is_finished());
            if !done {
                i += 1;
                continue;
            }
            let Stage::Running { floor, task, .. } =
                std::mem::replace(&mut self.calls[i].stage, Stage::Asked)
            else {
                continue;
            };
            let reply = task.await.unwrap();
            self.note_reply(i, &reply);
            self.check(&self.calls[i].ask.clone(), &reply, floor);
            if self.calls[i].awaited && self.calls[i].actor != Actor::Upkeep {
                self.calls[i].stage = Stage::Answered(reply);
                i += 1;
            } else {
                self.calls.remove(i);
            }
        }
    }

    fn note_reply(&mut self, call: usize, reply: &Result<Reply>) {
        let call = &self.calls[call];
        let text = match reply {
            Ok(reply) => reply.to_string(),
            Err(error) => error.to_string(),
        };
        let text = format!("call {} to shard {}: {:?}: {text}", call.id, call.node, call.ask);
        self.note(text);
    }

    /// What a shard answers must be true whether or not the answer arrives.
    pub(super) fn check(&mut self, ask: &Ask, reply: &Result<Reply>, floor: Option<usize>) {
        match reply {
            Ok(Reply::Published(ack)) => {
                let (Ask::Publish { run, .. } | Ask::Once { run, .. } | Ask::Import { run, .. }) = ask else {
                    unreachable!()
                };
                self.model.acknowledged(run, ack);
                self.count(if ack.duplicate { "acknowledged again" } else { "acknowledged" });
            }
            Ok(Reply::Looked { look, missing }) => {
                for symbol in missing {
                    self.model.found_nothing(floor, Some(symbol));
                }
                if let Some(look) = look {
                    for symbol in look.rows.keys() {
                        self.seen.insert(symbol.clone(), look.version);
                    }
                    self.count("looked");
                    self.model.looked(look.clone(), floor);
                }
            }
            Ok(Reply::Confirmed(unchanged)) => {
                let Ask::Confirm { held } = ask else { unreachable!() };
                for ((symbol, since), unchanged) in held.iter().zip(unchanged) {
                    if *unchanged {
                        self.count("confirmed");
                        self.model.unchanged(symbol, *since, floor);
                    }
                }
            }
            Ok(Reply::Granted(lease)) => {
                assert!(lease.epoch > 0);
                self.count("granted");
            }
            Ok(Reply::Done(done)) => {
                if *done {
                    self.count(ask.name());
                }
            }
            Err(error) => {
                let expected = match error.code() {
                    Code::Fenced => matches!(ask, Ask::Publish { .. } | Ask::Renew { .. }),
                    Code::Conflict => {
                        matches!(ask, Ask::Acquire { .. } | Ask::Once { .. } | Ask::EndOwnership { .. })
                    }
                    Code::BadRows => {
                        matches!(ask, Ask::Import { sent, .. } if sent.effect == Effect::Retracts)
                    }
                    Code::PermissionDenied => !matches!(
                        ask,
                        Ask::Acquire { take_over: true, .. } | Ask::Once { take_over: true, .. }
                    ),
                    Code::UnknownDataset => {
                        self.model.found_nothing(floor, None);
                        true
                    }
                    Code::DataCorrupt => {
                        self.count("flips noticed");
                        self.outcome.counts.contains_key("bits flipped")
                    }
                    _ => error.retryable(),
                };
                assert!(expected, "{ask:?}: {error:?}");
                self.count(if error.retryable() { "failed" } else { "refused" });
            }
        }
    }

    // The possible events.

    fn awake(&self, node: usize) -> bool {
        self.nodes[node].awake_at <= Instant::now()
    }

    pub(super) fn ready_ops(&self) -> Vec<u64> {
        let awake: Vec<usize> =
            (0..self.nodes.len()).filter(|&i| self.awake(i)).map(|i| self.nodes[i].life).collect();
        self.disk.ordered(&awake, |op| {
            named(op, |token| self.names.get(token).map_or("#new".to_owned(), |n| format!("#{n}")))
        })
    }

    pub(super) fn ready_messages(&self) -> Vec<usize> {
        let ready = |call: &Call| match call.stage {
            Stage::Asked => self.awake(call.node),
            Stage::Running { .. } => false,
            Stage::Answered(_) => true,
        };
        (0..self.calls.len()).filter(|&i| ready(&self.calls[i])).collect()
    }

    fn idle(&self) -> Vec<Actor> {
        let mut idle: Vec<Actor> =
            (0..self.publishers.len()).filter(|&i| !self.publishers[i].calls).map(Actor::Publisher).collect();
        if !self.importer.calls {
            idle.push(Actor::Importer);
        }
        if !self.reads {
            idle.push(Actor::Reader);
        }
        idle
    }

    /// A message arrives.
    pub(super) fn deliver(&mut self) {
        let ready = self.ready_messages();
        let i = *self.seed.pick(&ready);
        if matches!(self.calls[i].stage, Stage::Answered(_)) {
            let call = self.calls.remove(i);
            let Stage::Answered(reply) = call.stage else { return };
            self.note(format!("call {}: the answer arrives", call.id));
            return self.hear(call.actor, &call.ask, reply);
        }
        let node = &self.nodes[self.calls[i].node];
        let State::Up { shard, .. } = &node.state else {
            let call = self.calls.remove(i);
            self.note(format!("call {}: nobody is there", call.id));
            if call.awaited {
                self.hear(call.actor, &call.ask, Err(gone()));
            }
            return;
        };
        let task = tokio::spawn(perform(shard.clone(), self.calls[i].ask.clone()));
        self.calls[i].stage = Stage::Running { life: node.life, floor: self.model.newest(), task };
        self.note(format!("call {}: arrives", self.calls[i].id));
    }

    /// A publisher or reader learns what came of its call.
    pub(super) fn hear(&mut self, actor: Actor, ask: &Ask, reply: Result<Reply>) {
        let belief = match actor {
            Actor::Publisher(i) => &mut self.publishers[i],
            Actor::Importer => &mut self.importer,
            Actor::Reader => {
                self.reads = false;
                return;
            }
            Actor::Upkeep => return,
        };
        belief.calls = false;
        match reply {
            Ok(Reply::Granted(lease)) => belief.epoch = Some(lease.epoch),
            Ok(Reply::Published(_)) => belief.open = None,
            Err(error) if matches!(error.code(), Code::Fenced | Code::PermissionDenied) => {
                belief.epoch = None
            }
            // The rows to retract do not hold: it makes another request next.
            Err(error) if error.code() == Code::BadRows => belief.open = None,
            Ok(_) | Err(_) => {}
        }
        if matches!(ask, Ask::Release { .. }) {
            belief.epoch = None;
        }
    }

    /// An idle caller makes a call.
    fn act(&mut self) {
        let idle = self.idle();
        let actor = *self.seed.pick(&idle);
        // Most of their calls are refused while somebody holds the lease.
        let rarely = match actor {
            Actor::Publisher(i) => self.publishers[i].epoch.is_none(),
            Actor::Importer => true,
            Actor::Reader | Actor::Upkeep => false,
        };
        if rarely && !self.seed.once_in(3) {
            return;
        }
        let ask = match actor {
            Actor::Publisher(i) => self.publishers_ask(i),
            Actor::Importer => self.importers_ask(),
            Actor::Reader | Actor::Upkeep => self.readers_ask(),
        };
        match actor {
            Actor::Publisher(i) => self.publishers[i].calls = true,
            Actor::Importer => self.importer.calls = true,
            Actor::Reader => self.reads = true,
            Actor::Upkeep => {}
        }
        let node = self.seed.below(self.nodes.len());
        self.ask(actor, node, ask);
    }

    fn ask(&mut self, actor: Actor, node: usize, ask: Ask) -> usize {
        let id = self.asked;
        self.asked += 1;
        self.note(format!("call {id}: {actor:?} asks shard {node}: {ask:?}"));
        let since = Instant::now();
        self.calls.push(Call { id, actor, node, ask, stage: Stage::Asked, since, awaited: true });
        id
    }

    fn publishers_ask(&mut self, i: usize) -> Ask {
        let (unit, instance) = PUBLISHERS[i];
        let (unit, instance) = (unit.to_owned(), instance.to_owned());
        let take_over = self.seed.once_in(6);
        let acquire = Ask::Acquire { unit: unit.clone(), instance: instance.clone(), take_over };
        let held = self.publishers[i].epoch;
        let (step, once) = (self.seed.below(10), self.seed.once_in(3));
        match (held, step) {
            (None, _) if !once => acquire,
            (Some(_), 0) => acquire,
            (Some(epoch), 1) => Ask::Renew { unit, instance, epoch },
            (Some(epoch), 2) => Ask::Release { unit, instance, epoch },
            _ => {
                let run = match self.publishers[i].open.clone() {
                    Some(run) => run,
                    None => self.new_run(Door::Session),
                };
                self.publishers[i].open = Some(run.clone());
                let sent = self.model.sent(&run);
                match held {
                    Some(epoch) => Ask::Publish { unit, epoch, run, sent },
                    None => Ask::Once { unit, instance, take_over, run, sent },
                }
            }
        }
    }

    fn importers_ask(&mut self) -> Ask {
        if self.seed.once_in(3) {
            return Ask::EndOwnership { take_over: self.seed.once_in(2) };
        }
        let run = match self.importer.open.clone() {
            Some(run) => run,
            None => self.new_run(Door::Import),
        };
        self.importer.open = Some(run.clone());
        Ask::Import { sent: self.model.sent(&run), run }
    }

    fn readers_ask(&mut self) -> Ask {
        if self.seed.once_in(4) && !self.seen.is_empty() {
            return Ask::Confirm { held: self.seen.iter().map(|(s, v)| (s.clone(), *v)).collect() };
        }
        Ask::Look
    }

    /// Rows that no other run has: a value is given once. A session has two event times, and now and then two partitions.
    pub(super) fn new_run(&mut self, door: Door) -> String {
        let n = self.runs;
        self.runs += 1;
        let mut partition = "";
        let effect = match door {
            Door::Session => {
                let first = 2 * self.seed.below(2) as i64;
                partition = *self.seed.pick(&["", "", "p", "q"]);
                Effect::Replaces(first..first + 2)
            }
            Door::Import if self.seed.once_in(3) => Effect::Retracts,
            Door::Import => Effect::Adds,
        };
        let mut rows: Vec<Row> = Vec::new();
        for k in 0..self.seed.below(4) {
            let symbol = if self.seed.once_in(2) { "A" } else { "B" };
            let ts = match &effect {
                Effect::Replaces(range) => range.start + self.seed.below(2) as i64,
                Effect::Adds | Effect::Retracts => self.seed.below(4) as i64,
            };
            if rows.iter().all(|row| (row.0.as_str(), row.1) != (symbol, ts)) {
                rows.push((symbol.to_owned(), ts, (n * 4 + k) as f64));
            }
        }
        let run = format!("run-{n}");
        self.model.sends(&run, Sent { rows, effect, partition: partition.to_owned() });
        run
    }

    /// A shard does some upkeep. A shard that is down is started.
    fn maintain(&mut self) {
        let node = self.seed.below(self.nodes.len());
        if !self.awake(node) {
            return;
        }
        let ask = match self.seed.below(10) {
            0..=3 => Ask::Refresh,
            8 | 9 => Ask::Close,
            4 | 5 => Ask::Compact,
            6 => Ask::Checkpoint,
            _ => Ask::Sweep,
        };
        match &self.nodes[node].state {
            State::Down => self.start(node),
            State::Opening(_) => {}
            State::Up { shard, .. } => {
                let task = tokio::spawn(perform(shard.clone(), ask.clone()));
                self.ask(Actor::Upkeep, node, ask);
                let (life, floor) = (self.nodes[node].life, self.model.newest());
                if let Some(call) = self.calls.last_mut() {
                    call.stage = Stage::Running { life, floor, task };
                }
            }
        }
    }

    pub(super) fn start(&mut self, node: usize) {
        self.lives += 1;
        let life = self.lives;
        let (now, skew) = (self.now_ns.clone(), self.nodes[node].skew_ns.clone());
        let clock = WallClock::of(move || now.load(Ordering::SeqCst) + skew.load(Ordering::SeqCst));
        let port = Arc::new(self.disk.port(life));
        self.nodes[node].life = life;
        self.nodes[node].state = State::Opening(tokio::spawn(async move {
            let config = config();
            let lake = Lake::over(port.clone(), Some(port), &config.lake)?;
            let shard = Shard::over(config, lake, clock).await?;
            // A head asks for the list before it follows the log.
            shard.describe(false).await?;
            Ok(shard)
        }));
        self.note(format!("shard {node} starts as life {life}"));
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.outcome.counts.entry(what).or_default() += 1;
    }

    /// Adds a line to the trace, with ordinals for names that are made at random.
    pub(super) fn note(&mut self, line: String) {
        let names = &mut self.names;
        let line = named(&line, |token| {
            let next = names.len();
            format!("#{}", names.entry(token.to_owned()).or_insert(next))
        });
        self.outcome.trace.push(line);
    }
}

/// A text in which every name that was made at random (a UUID) is replaced.
fn named(text: &str, mut replace: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let token = &rest[start..];
        let end = token.find(|c: char| !c.is_ascii_hexdigit() && c != '-').unwrap_or(token.len());
        out.push_str(&rest[..start]);
        if token[..end].bytes().filter(u8::is_ascii_hexdigit).count() == 32 {
            out.push_str(&replace(&token[..end]));
        } else {
            out.push_str(&token[..end]);
        }
        rest = &token[end..];
    }
    out.push_str(rest);
    out
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let trace = &self.outcome.trace;
            for line in &trace[trace.len().saturating_sub(TRACE_SHOWN)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// The error that a caller gets when it is cut off.
pub(super) fn gone() -> Error {
    Error::new(Code::Unavailable, "the shard is gone, or the line to it")
}

fn version_of(shard: &Shard) -> Option<u64> {
    shard.catalog.open_tables().iter().filter_map(|table| table.snapshot()).map(|s| s.version).max()
}

/// The configuration of either shard: both are shard 0 of 1.
fn config() -> Config {
    let lake = Url::parse("s3://simulation/lake").unwrap();
    let owns = config::split_ring(0, 1).unwrap();
    Config {
        upkeep: config::Upkeep { compact_files: 4, retention: RETENTION, ..config::Upkeep::default() },
        ..Config::new("shard-0", lake, owns, vec!["shard-0".to_owned()])
    }
}

/// A watcher that has lost its stream at a position.
fn come_back(shard: &Shard, seq: u64) -> Subscription {
    let start = pb::WatchStart { incarnation: shard.hello(0).incarnation, seq, ..watch_start() };
    shard.subscribe(&start, &HashMap::new()).unwrap()
}

/// The version in an answer; `None`: there is no dataset.
fn version_said(answer: &pb::Subscribed) -> Option<u64> {
    match &answer.answer {
        Some(pb::subscribed::Answer::Description(said)) => Some(said.version),
        _ => None,
    }
}
