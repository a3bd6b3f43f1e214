//! One session of a shard's log of changes.
//!
//! The head first asks whether it may have missed a change. If the shard is the same process, and its log goes on exactly where the
//! head had stopped, the head has missed nothing, and its chunks stay confirmed. Otherwise everything held from this shard is unconfirmed. The head then begins a new
//! [generation](crate::shards::Generation), and one batched check finds out which chunks have changed.
//!
//! The order at the beginning of a generation matters: hello, then describe, then confirm, then live. The shard reads everything that
//! is fetched or confirmed in the generation after it has described itself. So a chunk of the generation holds every commit that the
//! described knowledge time covers, also a commit whose change is still on its way in the log.
//!
//! Then the head acknowledges its position, and applies the changes until the shard's answer. From then on it has every publish that was
//! acknowledged, and the session is live.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt as _;
use tokio::sync::mpsc;
use tonic::Streaming;
use trellis_proto::{Code, Error, Result, pb};

use super::changes;
use crate::{
    held::{Holdings, Part, Series, Standing, Table, chunks_owned},
    shards::{Link, Shard, Shards},
};

/// Most acknowledgements queued for the shard, which needs only the newest one.
const ACKS_QUEUED: usize = 16;
/// A shard that does not begin its log within this time is away.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A log that brings nothing for so long is lost: the shard tells every second that nothing has happened.
const LOG_SILENCE_MAX: Duration = Duration::from_secs(5);
/// Longest time of one batched check, which takes seconds for millions of chunks.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// Most runs of chunks in one check. A run takes about 64 bytes, so that a check is far below the limit of a message. More than one check
/// is needed only if some hundred thousand series are held.
const CONFIRM_RUNS_MAX: usize = 200_000;

/// How far a shard's log has been applied.
#[derive(Debug, Default)]
pub(crate) struct Position {
    incarnation: String,
    seq: u64,
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// It was live, or about to be.
    pub(crate) was_live: bool,
    pub(crate) error: Error,
}

/// Follows the logs of the shards.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) shards: Arc<Shards>,
    pub(crate) holdings: Arc<Holdings>,
    /// Name of this head, as shards see it.
    pub(crate) head_id: String,
    /// Batched checks so far.
    pub(crate) confirms: AtomicU64,
}

impl Follower {
    /// Follows a shard's log until it is lost.
    pub(super) async fn follow(&self, shard: &Arc<Shard>, position: &mut Position) -> Ended {
        let mut was_live = false;
        let error = match session(self, shard, position, &mut was_live).await {
            Ok(()) => Error::new(Code::Unavailable, "the shard ended its log"),
            Err(error) => error,
        };
        Ended { was_live, error }
    }
}

async fn session(
    follower: &Follower,
    shard: &Arc<Shard>,
    position: &mut Position,
    was_live: &mut bool,
) -> Result<()> {
    let shards = &follower.shards;
    // a suspicion from before this session is answered by the session itself
    let _ = shard.suspect.notified().now_or_never();
    let (acks, mut requests) = mpsc::channel(ACKS_QUEUED);
    let requests = futures::stream::poll_fn(move |cx| requests.poll_recv(cx));
    let start = pb::WatchStart {
        head: follower.head_id.clone(),
        incarnation: position.incarnation.clone(),
        seq: position.seq,
    };
    send(&acks, pb::watch_request::Request::Start(start)).await?;
    let open = async {
        let mut events = shard.client().watch(requests).await?.into_inner();
        let first = events.message().await?;
        Ok::<_, tonic::Status>((events, first))
    };
    let (mut events, first) = tokio::time::timeout(HELLO_TIMEOUT, open)
        .await
        .map_err(|_| Error::new(Code::Unavailable, "the shard did not begin its log in time"))??;
    let Some(pb::watch_event::Event::Hello(hello)) = first.and_then(|event| event.event) else {
        return Err(Error::new(Code::DataCorrupt, "the shard's log does not begin with a hello"));
    };

    let resumed = !position.incarnation.is_empty()
        && hello.incarnation == position.incarnation
        && hello.seq == position.seq;
    if !resumed {
        // set only now, when everything held has been checked against this log
        begin_generation(follower, shard).await?;
        *position = Position { incarnation: hello.incarnation.clone(), seq: hello.seq };
    }
    if hello.ownership_epoch != shard.epoch() {
        shards.redescribe(shard, &shard.describe(true).await?);
    }
    *was_live = true;
    // The shard acknowledges publishes without this head until its answer, and never after it. So the changes up to the answer come first.
    send(&acks, pb::watch_request::Request::Applied(position.seq)).await?;
    loop {
        match next(follower, shard, &mut events, &acks, position).await? {
            Came::Change => {}
            Came::Heartbeat => break,
            Came::End => return Ok(()),
        }
    }
    shards.set_link(shard, Link::Live);
    tracing::info!(shard = %shard.id, seq = position.seq, resumed, "following a shard's log");
    loop {
        tokio::select! {
            came = next(follower, shard, &mut events, &acks, position) => if matches!(came?, Came::End) {
                return Ok(());
            },
            () = shard.suspect.notified() => {
                return Err(Error::new(Code::Unavailable, "the log is suspected to be behind"));
            }
        }
    }
}

/// What has come of a log.
enum Came {
    Change,
    Heartbeat,
    End,
}

/// Waits for one event and applies it. Cancel safe: an event is applied without a wait, and only then
/// acknowledged; the next acknowledgement covers one that was not sent.
async fn next(
    follower: &Follower,
    shard: &Arc<Shard>,
    events: &mut Streaming<pb::WatchEvent>,
    acks: &mpsc::Sender<pb::WatchRequest>,
    position: &mut Position,
) -> Result<Came> {
    let Ok(came) = tokio::time::timeout(LOG_SILENCE_MAX, events.message()).await else {
        let message = format!("the shard's log has brought nothing for {LOG_SILENCE_MAX:?}");
        return Err(Error::new(Code::Unavailable, message));
    };
    let Some(event) = came? else { return Ok(Came::End) };
    match event.event {
        Some(pb::watch_event::Event::Change(change)) => {
            if change.seq != position.seq + 1 {
                return Err(gap(position.seq, change.seq));
            }
            changes::apply(&follower.holdings, &follower.shards, shard, &change);
            position.seq = change.seq;
            send(acks, pb::watch_request::Request::Applied(change.seq)).await?;
            Ok(Came::Change)
        }
        Some(pb::watch_event::Event::Heartbeat(heartbeat)) => {
            if heartbeat.seq != position.seq {
                return Err(gap(position.seq, heartbeat.seq));
            }
            if heartbeat.ownership_epoch != shard.epoch() {
                follower.shards.redescribe(shard, &shard.describe(true).await?);
            }
            Ok(Came::Heartbeat)
        }
        Some(pb::watch_event::Event::Hello(_)) | None => {
            Err(Error::new(Code::DataCorrupt, "the shard's log holds something that is no change"))
        }
    }
}

fn gap(applied: u64, came: u64) -> Error {
    Error::new(Code::Unavailable, format!("the shard's log went from {applied} to {came}"))
}

async fn send(acks: &mpsc::Sender<pb::WatchRequest>, request: pb::watch_request::Request) -> Result<()> {
    acks.send(pb::WatchRequest { request: Some(request) })
        .await
        .map_err(|_| Error::new(Code::Unavailable, "the shard has closed its log"))
}

fn parts(holdings: &Holdings, shard: &Shard) -> Vec<(Arc<Table>, Arc<Part>)> {
    holdings
        .tables()
        .into_iter()
        .filter_map(|table| Some((table.part(&shard.id)?, table)))
        .map(|(p, t)| (t, p))
        .collect()
}

/// Brings everything that is held from a shard to a new generation.
async fn begin_generation(follower: &Follower, shard: &Arc<Shard>) -> Result<()> {
    let said = shard.describe(false).await?;
    let generation = follower.shards.next_generation();

    // the runs of chunks that the shard has to check; `runs_of` has, for each run, its series and its standing before this check
    let mut held = Vec::new();
    let mut runs_of: Vec<(Arc<Series>, Standing)> = Vec::new();
    for (table, part) in parts(&follower.holdings, shard) {
        let standing = part.standing();
        for series in table.all_series() {
            // without a valid map nothing can be confirmed: these slots keep their old generation
            let owned = chunks_owned(&follower.shards, &table, &series, &shard.id).unwrap_or_default();
            let runs = series.lock().claims.held(&owned);
            for (chunks, version) in runs {
                held.push(pb::HeldChunks {
                    dataset: table.name.to_string(),
                    symbol: series.symbol.to_string(),
                    first: chunks.start,
                    end: chunks.end,
                    version,
                });
                runs_of.push((Arc::clone(&series), standing));
            }
        }
    }
    let mut from = 0;
    while from < held.len() {
        let to = (from + CONFIRM_RUNS_MAX).min(held.len());
        let reply = confirm(shard, held[from..to].to_vec()).await?;
        follower.confirms.fetch_add(1, Relaxed);
        if reply.unchanged.len() != to - from {
            return Err(Error::new(
                Code::DataCorrupt,
                "the shard confirmed another number of chunks than asked",
            ));
        }
        for ((held, (series, standing)), unchanged) in
            held[from..to].iter().zip(&runs_of[from..to]).zip(reply.unchanged)
        {
            series.lock().claims.confirm(held.first..held.end, held.version, standing, generation, unchanged);
        }
        from = to;
    }

    shard.set_generation(generation);
    let mut described = HashSet::new();
    for said in &said.datasets {
        match follower.holdings.table_of(said) {
            Ok(None) => {}
            Ok(Some(table)) => {
                described.insert(table.name.clone());
                let standing = Standing { generation, known_through: said.known_through_ns };
                let part = table.describe(shard, standing, said);
                let known_through = part.standing().known_through.max(said.known_through_ns);
                part.begin(Standing { generation, known_through });
                table.symbols().may_grow(&shard.id, None::<std::iter::Empty<&str>>);
                table.refresh();
            }
            Err(error) => tracing::error!(%error, shard = %shard.id, "a description is not usable"),
        }
    }
    for (table, part) in parts(&follower.holdings, shard) {
        if !described.contains(&table.name) {
            // the shard has lost a dataset that it had: no chunk of it can be confirmed
            part.begin(Standing { generation, ..part.standing() });
        }
    }
    // routes hold the parts that were there when they were made
    follower.shards.ownership_changed();
    Ok(())
}

async fn confirm(shard: &Shard, held: Vec<pb::HeldChunks>) -> Result<pb::ConfirmReply> {
    let mut client = shard.client();
    match tokio::time::timeout(CONFIRM_TIMEOUT, client.confirm(pb::ConfirmRequest { held })).await {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(Error::new(Code::Unavailable, "the shard did not confirm in time")),
    }
}
