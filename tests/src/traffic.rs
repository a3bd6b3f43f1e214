//! Publishers, importers and readers that record every answer. At the end a test compares the records with the stored data,
//! whatever it has killed meanwhile.
//!
//! An [`Output`] is a dataset with one publisher. Its publishes are numbered; publish `n` of a session writes one row for
//! each symbol, and each row contains `n`. So a reader sees whether it got one whole publish, and which one.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use arrow_schema::DataType;
use tokio::sync::{Mutex, RwLock, watch};
use trellis_proto::{
    Code, DatasetName, DatasetSpec, FieldName, SeriesQuery, Symbols, TimeRange, pb,
    runs::LEDGER,
    time::{DAY_NS, format_time},
};
use trellis_qcu::client::Client;

use crate::{
    grid::{batch, spec},
    oracle::Row,
    processes::client,
    rng::Rng,
    tables::StoredRow,
};

/// Rows of one publish, one for each symbol: enough that every shard has some.
pub const ROWS: usize = 12;
/// Fields of every output: the number of the publish, and a value made of it and the symbol.
pub const FIELDS: [&str; 2] = ["n", "x"];
/// How long a call may take: much longer than any outage of the test.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Life of a lease without renewal.
const TTL_MS: u32 = 1_000;
/// A publisher's pause between two publishes. Without one a table gets hundreds of commits between two kills, and a shard in a debug
/// build takes longer to open them all than it lives.
const PAUSE: Duration = Duration::from_millis(400);
/// A killed publisher dies within this time after sending: about as long as a publish takes.
const DEATH_WITHIN: Duration = Duration::from_millis(40);
/// Midnight of the first session, 2016-01-01.
const FIRST_SESSION: i64 = 16_801 * DAY_NS;
/// Reads that a reader keeps, to repeat them.
const REMEMBERED: usize = 64;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A unit publishes sessions, under a lease.
    Session,
    /// A loader imports rows, without a lease.
    Import,
}

/// The record of one publish.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its session.
    pub session: usize,
    /// The acknowledgement; `None` if the publisher did not wait for it, or it did not come.
    pub ack: Option<pb::PublishAck>,
}

/// A dataset with one publisher.
#[derive(Debug)]
pub struct Output {
    /// The dataset.
    pub spec: DatasetSpec,
    door: Door,
    unit: String,
    runs: Mutex<Vec<Run>>,
    /// The publisher holds it while it works. Other tasks take it to make the publisher pause.
    still: RwLock<()>,
}

/// A row as a reader sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub(crate) symbol: String,
    pub(crate) ts: i64,
    pub(crate) known_at: i64,
    pub(crate) n: f64,
    pub(crate) x: f64,
}

impl Seen {
    /// A row with [`FIELDS`] as a foreign reader found it.
    ///
    /// # Errors
    /// When it has no values, because no publisher writes such a row.
    pub(crate) fn stored(row: &StoredRow) -> Result<Self> {
        let [Some(n), Some(x)] = row.values[..] else { bail!("a null in {row:?}") };
        Ok(Self { symbol: row.symbol.clone(), ts: row.ts_ns, known_at: row.known_at_ns, n, x })
    }
}

/// Midnight of a session.
pub(crate) fn midnight(session: usize) -> i64 {
    FIRST_SESSION + session as i64 * DAY_NS
}

/// The session that an event time belongs to.
pub(crate) fn session_of(ts: i64) -> usize {
    usize::try_from((ts - FIRST_SESSION).div_euclid(DAY_NS)).unwrap_or(usize::MAX)
}

/// Rows of one session of a dataset with [`FIELDS`], whoever publishes it.
///
/// # Errors
/// Any error of the grid.
pub async fn look(
    client: &Client,
    dataset: &DatasetName,
    session: usize,
    as_of: Option<i64>,
) -> trellis_proto::Result<(Vec<Seen>, pb::Receipt)> {
    let mut query = SeriesQuery::new(dataset.clone(), Symbols::All);
    query.range = TimeRange::new(Some(midnight(session)), Some(midnight(session + 1)))?;
    query.as_of = as_of;
    query.known_at = true;
    let answer = client.read(&query).await?;
    let seen = answer.batches.iter().flat_map(|batch| (0..batch.num_rows()).map(|i| seen(batch, i)));
    Ok((seen.collect(), answer.receipt()))
}

/// Counts of events. The killer waits for them.
#[derive(Debug, Default)]
pub struct Pulse {
    sent: watch::Sender<u64>,
    acknowledged: watch::Sender<u64>,
    read: AtomicU64,
    abandoned: AtomicU64,
    duplicates: AtomicU64,
    tried_again: AtomicU64,
}

impl Pulse {
    /// Publishes that have been sent.
    #[must_use]
    pub fn sent(&self) -> watch::Receiver<u64> {
        self.sent.subscribe()
    }

    /// Publishes that have been acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> watch::Receiver<u64> {
        self.acknowledged.subscribe()
    }

    /// One line of counts.
    #[must_use]
    pub fn summary(&self) -> String {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} publishes sent, {} acknowledged ({} of them committed by an earlier attempt), {} abandoned; {} reads, {} \
             of them failed with an error to try again",
            *self.sent.borrow(),
            *self.acknowledged.borrow(),
            load(&self.duplicates),
            load(&self.abandoned),
            load(&self.read),
            load(&self.tried_again)
        )
    }
}

impl Output {
    /// An output that nothing has been published to.
    #[must_use]
    pub fn new(dataset: &str, door: Door) -> Self {
        let unit = dataset.replace('.', "-");
        Self { spec: spec(dataset, &FIELDS), door, unit, runs: Mutex::default(), still: RwLock::default() }
    }

    /// The dataset's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.spec.dataset.as_str()
    }

    /// The unit's name.
    #[must_use]
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// Pauses the publisher while the guard is held.
    pub async fn hold_still(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.still.write().await
    }

    /// The record of each publish, by its number.
    pub async fn runs(&self) -> Vec<Run> {
        self.runs.lock().await.clone()
    }

    /// Id of publish `n`.
    #[must_use]
    pub fn run_id(&self, n: usize) -> String {
        format!("{}-{n}", self.unit)
    }

    fn rows(n: usize, session: usize) -> Vec<Row> {
        let row = |i: usize| Row {
            symbol: symbol(session, i),
            ts: midnight(session),
            known_at: 0,
            values: vec![Some(n as f64), Some(value(n, i))],
        };
        (0..ROWS).map(row).collect()
    }

    fn header(&self, n: usize, session: usize, lease: Option<&pb::Lease>) -> pb::PublishHeader {
        let mut header = pb::PublishHeader {
            dataset: self.name().to_owned(),
            run_id: self.run_id(n),
            unit: self.unit.clone(),
            ..Default::default()
        };
        match lease {
            Some(lease) => {
                header.kind = pb::PublishKind::Session.into();
                header.session = format_time(midnight(session));
                header.instance = lease.instance.clone();
                header.epoch = lease.epoch;
            }
            None => {
                header.kind = pb::PublishKind::Import.into();
                header.spec = Some((&self.spec).into());
            }
        }
        header
    }

    /// Takes the lease for a new instance, whoever holds it. Imports need no lease.
    ///
    /// # Errors
    /// Any error of the grid.
    pub async fn lease(&self, client: &Client, instance: usize) -> Result<Option<pb::Lease>> {
        if self.door == Door::Import {
            return Ok(None);
        }
        let request = pb::AcquireLeaseRequest {
            dataset: self.name().to_owned(),
            unit: self.unit.clone(),
            instance: format!("i{instance}"),
            take_over: true,
            ttl_ms: TTL_MS,
            spec: Some((&self.spec).into()),
        };
        Ok(Some(client.acquire_lease(request).await.context("acquiring the lease")?))
    }

    /// Publishes `n` for `session` and waits for the acknowledgement.
    ///
    /// # Errors
    /// Any error of the grid.
    pub async fn publish(
        &self,
        client: &Client,
        n: usize,
        session: usize,
        lease: Option<&pb::Lease>,
    ) -> Result<pb::PublishAck> {
        let rows = batch(&self.spec, &Self::rows(n, session))?;
        let published = client.publish(self.header(n, session, lease), vec![rows]).await;
        published.with_context(|| format!("publishing {}", self.run_id(n)))
    }

    /// Publishes, corrects, dies and starts again until told to stop.
    ///
    /// # Errors
    /// A refusal, or an acknowledgement that does not come within [`PATIENCE`].
    pub async fn work(
        self: Arc<Self>,
        heads: Vec<SocketAddr>,
        mut rng: Rng,
        stop: watch::Receiver<bool>,
        pulse: Arc<Pulse>,
    ) -> Result<()> {
        let client = client(&heads, &self.unit, PATIENCE).await?;
        let (mut instance, mut known_at) = (0, i64::MIN);
        let mut lease = self.lease(&client, instance).await?;
        while !*stop.borrow() {
            tokio::time::sleep(PAUSE).await;
            let _working = self.still.read().await;
            let (n, session) = self.begin(&mut rng).await;
            pulse.sent.send_modify(|sent| *sent += 1);
            let publish = self.publish(&client, n, session, lease.as_ref());
            let ack = if rng.once_in(5) {
                let death = DEATH_WITHIN.mul_f64(rng.below(1_000) as f64 / 1_000.0);
                match tokio::time::timeout(death, publish).await {
                    Ok(done) => Some(done?),
                    Err(_) => None,
                }
            } else {
                Some(publish.await?)
            };
            let ack = match ack {
                Some(ack) => ack,
                None => {
                    // A new process of the unit: it knows the session, and so the run id, but not whether the publish was committed.
                    instance += 1;
                    lease = self.lease(&client, instance).await?;
                    if rng.once_in(2) {
                        pulse.abandoned.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    self.publish(&client, n, session, lease.as_ref()).await?
                }
            };
            pulse.duplicates.fetch_add(ack.duplicate.into(), Ordering::Relaxed);
            ensure!(
                known_at < ack.known_at_ns,
                "{}: publish {n} became known at {}, not after {known_at} of the one before",
                self.name(),
                ack.known_at_ns
            );
            known_at = ack.known_at_ns;
            self.acknowledged(n, ack.clone()).await?;
            pulse.acknowledged.send_modify(|acknowledged| *acknowledged += 1);
        }
        Ok(())
    }

    /// The next number and its session: a new session, or a published one, which it corrects.
    pub async fn begin(&self, rng: &mut Rng) -> (usize, usize) {
        let mut runs = self.runs.lock().await;
        let sessions = runs.iter().map(|run| run.session + 1).max().unwrap_or(0);
        let session = if sessions > 0 && rng.once_in(3) { rng.below(sessions) } else { sessions };
        runs.push(Run { session, ack: None });
        (runs.len() - 1, session)
    }

    /// Records that publish `n` was acknowledged.
    ///
    /// # Errors
    /// An acknowledgement of other rows.
    pub async fn acknowledged(&self, n: usize, ack: pb::PublishAck) -> Result<()> {
        ensure!(ack.rows == ROWS as u64, "publish {n} was acknowledged with {} rows", ack.rows);
        self.runs.lock().await[n].ack = Some(ack);
        Ok(())
    }

    /// Rows of one session.
    ///
    /// # Errors
    /// Any error of the grid.
    pub async fn look(
        &self,
        client: &Client,
        session: usize,
        as_of: Option<i64>,
    ) -> trellis_proto::Result<(Vec<Seen>, pb::Receipt)> {
        look(client, &self.spec.dataset, session, as_of).await
    }

    /// The publish that wrote the rows of one session; `None` without rows.
    ///
    /// # Errors
    /// Rows of several publishes, a part of one, or rows that were not published.
    pub async fn whole(&self, session: usize, rows: &[Seen]) -> Result<Option<usize>> {
        let Some(first) = rows.first() else { return Ok(None) };
        let n = first.n as usize;
        let runs = self.runs.lock().await;
        let of_session = runs.get(n).is_some_and(|run| run.session == session);
        let expected = Self::rows(n, session);
        let same = expected.len() == rows.len()
            && expected.iter().zip(rows).all(|(expected, seen)| {
                (&expected.symbol, expected.ts, &expected.values)
                    == (&seen.symbol, seen.ts, &vec![Some(seen.n), Some(seen.x)])
                    && seen.known_at == first.known_at
            });
        ensure!(
            of_session && same,
            "{} session {session}: not the rows of one publish: {}",
            self.name(),
            parts(rows)
        );
        Ok(Some(n))
    }

    /// The newest acknowledged publish of `session` so far.
    async fn newest_acknowledged(&self, session: usize) -> Option<i64> {
        let runs = self.runs.lock().await;
        let of_session = runs.iter().filter(|run| run.session == session);
        of_session.filter_map(|run| run.ack.as_ref()).map(|ack| ack.known_at_ns).max()
    }

    /// Compares the rows of a foreign reader with the acknowledgements: an acknowledged publish must be there once and whole.
    /// Any other publish must be there once and whole, or not at all.
    ///
    /// # Errors
    /// The first publish that breaks this rule.
    pub async fn check_stored(&self, rows: &[StoredRow]) -> Result<()> {
        let runs = self.runs.lock().await;
        let mut stored: BTreeMap<(usize, i64), Vec<Seen>> = BTreeMap::new();
        for row in rows {
            let seen = Seen::stored(row)?;
            stored.entry((seen.n as usize, seen.known_at)).or_default().push(seen);
        }
        let mut known: HashMap<usize, i64> = HashMap::new();
        for (&(n, known_at), seen) in &mut stored {
            seen.sort_by(|a, b| a.symbol.cmp(&b.symbol));
            let run = runs.get(n).with_context(|| format!("{}: {n} was never published", self.name()))?;
            let expected = Self::rows(n, run.session);
            let same = expected.len() == seen.len()
                && expected
                    .iter()
                    .zip(&*seen)
                    .all(|(e, s)| e.symbol == s.symbol && e.ts == s.ts && e.values == [Some(s.n), Some(s.x)]);
            ensure!(same, "{}: publish {n} is stored as {}", self.name(), parts(seen));
            let twice = known.insert(n, known_at);
            ensure!(twice.is_none(), "{}: publish {n} is stored twice: {twice:?}, {known_at}", self.name());
        }
        for (n, run) in runs.iter().enumerate() {
            let Some(ack) = &run.ack else { continue };
            ensure!(
                known.get(&n) == Some(&ack.known_at_ns),
                "{}: publish {n} was acknowledged as known at {}, and is stored as {:?}",
                self.name(),
                ack.known_at_ns,
                known.get(&n)
            );
        }
        Ok(())
    }
}

/// The ledger's record of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The unit.
    pub unit: String,
    /// Run id.
    pub run_id: String,
    /// `succeeded`, `failed`, ...
    pub outcome: String,
    /// The version that the publish committed, if any.
    pub version: Option<u64>,
}

/// Every attempt in the ledger, in any order.
///
/// # Errors
/// Any error of the grid.
pub async fn ledger(client: &Client) -> Result<Vec<Recorded>> {
    let mut query = SeriesQuery::new(DatasetName::new(LEDGER)?, Symbols::All);
    for field in ["run_id", "outcome", "output_version"] {
        query.fields.push(FieldName::new(field)?);
    }
    let answer = client.read(&query).await?;
    let mut recorded = Vec::new();
    for batch in &answer.batches {
        let text = |column: usize| arrow_cast::cast(batch.column(column), &DataType::Utf8);
        let (units, ids, outcomes) = (text(0)?, text(2)?, text(3)?);
        let value = |column: &ArrayRef, i: usize| column.as_string::<i32>().value(i).to_owned();
        let versions = batch.column(4).as_primitive::<Int64Type>();
        for i in 0..batch.num_rows() {
            let version = versions.is_valid(i).then(|| versions.value(i).unsigned_abs());
            recorded.push(Recorded {
                unit: value(&units, i),
                run_id: value(&ids, i),
                outcome: value(&outcomes, i),
                version,
            });
        }
    }
    Ok(recorded)
}

/// The `i`-th symbol of a session. Every few sessions have some new symbols.
fn symbol(session: usize, i: usize) -> String {
    format!("S{:04}", session / 4 * 3 + i)
}

/// Whether an acknowledged publish has the symbol.
fn told(runs: &[Run], name: &str) -> bool {
    let acknowledged = runs.iter().filter(|run| run.ack.is_some());
    acknowledged.into_iter().any(|run| (0..ROWS).any(|i| symbol(run.session, i) == name))
}

fn value(n: usize, symbol: usize) -> f64 {
    (n * 100 + symbol) as f64
}

fn seen(batch: &RecordBatch, i: usize) -> Seen {
    let symbols = batch.column(0).as_dictionary::<Int32Type>();
    let symbol = symbols.values().as_string::<i32>().value(symbols.keys().value(i) as usize).to_owned();
    let time = |c: usize| batch.column(c).as_primitive::<TimestampNanosecondType>().value(i);
    let number = |c: usize| batch.column(c).as_primitive::<Float64Type>().value(i);
    Seen { symbol, ts: time(1), known_at: time(4), n: number(2), x: number(3) }
}

/// How many rows of which publish, for messages.
pub(crate) fn parts(rows: &[Seen]) -> String {
    let mut parts: BTreeMap<(i64, i64), Vec<&str>> = BTreeMap::new();
    for row in rows {
        parts.entry((row.n as i64, row.known_at)).or_default().push(&row.symbol);
    }
    let parts: Vec<String> = parts
        .iter()
        .map(|((n, known_at), symbols)| {
            format!("{} rows of {n} known at {known_at} ({})", symbols.len(), symbols.join(" "))
        })
        .collect();
    parts.join(", ")
}

/// Reads sessions of `outputs`, latest and as of knowledge times, through one head or all of them, until told to stop.
///
/// # Errors
/// A part of a publish; a missing acknowledged publish; another answer than before as of the same knowledge time; an error
/// that is not retryable.
pub async fn read(
    outputs: Vec<Arc<Output>>,
    heads: Vec<SocketAddr>,
    mut rng: Rng,
    stop: watch::Receiver<bool>,
    pulse: Arc<Pulse>,
) -> Result<()> {
    let mut clients = vec![client(&heads, "reader", PATIENCE).await?];
    for head in &heads {
        clients.push(client(std::slice::from_ref(head), "reader", PATIENCE).await?);
    }
    let mut remembered: Vec<(usize, usize, i64, Vec<Seen>)> = Vec::new();
    while !*stop.borrow() {
        let which = rng.below(outputs.len());
        let output = &outputs[which];
        let through = rng.below(clients.len());
        let client = &clients[through];
        let runs = output.runs().await;
        if runs.is_empty() {
            tokio::task::yield_now().await;
            continue;
        }
        pulse.read.fetch_add(1, Ordering::Relaxed);
        let n = rng.below(runs.len());
        let failed = match rng.below(3) {
            0 => {
                let Some(ack) = &runs[n].ack else { continue };
                match output.look(client, runs[n].session, Some(ack.known_at_ns)).await {
                    Ok((rows, _)) => {
                        let got = output.whole(runs[n].session, &rows).await.context("as of")?;
                        ensure!(got == Some(n), "as of {}: {got:?} instead of {n}", ack.known_at_ns);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
            1 if !remembered.is_empty() => {
                let (which, session, as_of, before) = rng.pick(&remembered);
                match outputs[*which].look(client, *session, Some(*as_of)).await {
                    Ok((rows, _)) => {
                        ensure!(
                            rows == *before,
                            "{} session {session} as of {as_of} was {}, and is {}",
                            outputs[*which].name(),
                            parts(before),
                            parts(&rows)
                        );
                        None
                    }
                    Err(error) => Some(error),
                }
            }
            _ => {
                let session = runs[n].session;
                let floor = output.newest_acknowledged(session).await;
                match output.look(client, session, None).await {
                    Ok((rows, receipt)) => {
                        let how = || format!("latest, through client {through}, receipt {receipt:?}");
                        output.whole(session, &rows).await.with_context(how)?;
                        let known_at = rows.first().map(|row| row.known_at);
                        ensure!(
                            floor.is_none() || known_at >= floor,
                            "{} session {session}: known at {known_at:?}, although {floor:?} had been acknowledged; {}",
                            output.name(),
                            how()
                        );
                        let look = (which, session, receipt.known_through_ns, rows);
                        if remembered.len() < REMEMBERED {
                            remembered.push(look);
                        } else {
                            remembered[rng.below(REMEMBERED)] = look;
                        }
                        None
                    }
                    Err(error) => Some(error),
                }
            }
        };
        if let Some(error) = failed {
            // Until the publish is acknowledged, some heads may not know its new symbol yet.
            let news = error.code() == Code::UnknownSymbol && !told(&runs, error.place().1);
            if !error.retryable() && !news {
                bail!("a read through client {through} failed for good: {error}");
            }
            pulse.tried_again.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}
