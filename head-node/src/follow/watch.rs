//! One session of a shard's log of changes.
//!
//! The head names the datasets that it [follows](super::interest), and asks first whether it may have missed a change of them. If the
//! shard is the same process, and its log goes on exactly where the head had stopped, the head has missed nothing, and its chunks stay
//! confirmed. Otherwise everything held from this shard is unconfirmed. The head then begins a new
//! [generation](crate::shards::Generation), and one batched check finds out which chunks have changed.
//!
//! The order at the beginning of a generation matters: hello, then describe, then confirm, then live. The shard reads everything that
//! is fetched or confirmed in the generation after it has described the dataset. So a chunk of the generation holds every commit that
//! the described knowledge time covers, also a commit whose change is still on its way in the log. A dataset that the head names later
//! begins a generation of its own with the shard's description, before anything of it is fetched.
//!
//! Then the head acknowledges its position, and applies the changes until the shard's answer. From then on it has every publish that was
//! acknowledged, and the session is live.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{sync::mpsc, time::Instant};
use tonic::Streaming;
use trellis_proto::{
    Code, DatasetName, Error, Result,
    pb::{self, watch_event::Event, watch_request::Request},
};

use super::{changes, follower::Follower, interest::said};
use crate::{
    held::{Holdings, Part, Series, Standing, Table, chunks_owned},
    shards::{Generation, Link, Shard, Stage, Wish},
};

/// Most acknowledgements queued for the shard, which needs only the newest one.
const ACKS_QUEUED: usize = 16;
/// A shard that does not begin its log within this time is away.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A log that brings nothing for this long is lost: the shard tells every second that nothing has happened.
const LOG_SILENCE_MAX: Duration = Duration::from_secs(5);
/// Longest time of one batched check, which takes seconds for millions of chunks.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// Most runs of chunks in one check. A run takes about 64 bytes, so that a check is far below the limit of a message. More than one check
/// is needed only if the head holds hundreds of thousands of series.
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
    /// Whether the session was live, or about to be.
    pub(crate) was_live: bool,
    pub(crate) error: Error,
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
    let (datasets, all_followed) = begin(follower, shard);
    if !all_followed {
        // the shard may go on only with what it has told this head of
        *position = Position::default();
    }
    let (acks, mut requests) = mpsc::channel(ACKS_QUEUED);
    let requests = futures::stream::poll_fn(move |cx| requests.poll_recv(cx));
    let start = pb::WatchStart {
        head: follower.head_id.clone(),
        incarnation: position.incarnation.clone(),
        seq: position.seq,
        datasets: names(&datasets),
    };
    send(&acks, Request::Start(start)).await?;
    let open = async {
        let mut events = shard.client().watch(requests).await?.into_inner();
        let first = events.message().await?;
        Ok::<_, tonic::Status>((events, first))
    };
    let (mut events, first) = tokio::time::timeout(HELLO_TIMEOUT, open)
        .await
        .map_err(|_| Error::new(Code::Unavailable, "the shard did not begin its log in time"))??;
    let Some(Event::Hello(hello)) = first.and_then(|event| event.event) else {
        return Err(Error::new(Code::DataCorrupt, "the shard's log does not begin with a hello"));
    };

    let resumed = !position.incarnation.is_empty()
        && hello.incarnation == position.incarnation
        && hello.seq == position.seq;
    if !resumed {
        let answers = answers(&mut events, &datasets, hello.seq).await?;
        // set only now, when everything held has been checked against this log
        begin_generation(follower, shard, answers).await?;
        *position = Position { incarnation: hello.incarnation.clone(), seq: hello.seq };
    }
    if hello.ownership_epoch != shard.epoch() {
        shards.redescribe(shard, &shard.describe(true).await?);
    }
    *was_live = true;
    // The shard acknowledges publishes without this head until its answer, and never after it. So the changes up to the answer come first.
    send(&acks, Request::Applied(position.seq)).await?;
    loop {
        match next(&mut events, silent_at()).await? {
            Some(event) => {
                if take(follower, shard, event, &acks, position).await? {
                    break;
                }
            }
            None => return Ok(()),
        }
    }
    shards.set_link(shard, Link::Live);
    tracing::info!(shard = %shard.id, seq = position.seq, resumed, datasets = datasets.len(), "following a shard's log");
    let mut silent = silent_at();
    loop {
        tokio::select! {
            event = next(&mut events, silent) => match event? {
                Some(event) => {
                    take(follower, shard, event, &acks, position).await?;
                    silent = silent_at();
                }
                None => return Ok(()),
            },
            () = shard.following.wished() => tell(shard, &acks).await?,
            () = shard.suspect.notified() => {
                return Err(Error::new(Code::Unavailable, "the log is suspected to be behind"));
            }
        }
    }
}

/// The datasets that a session begins with, and whether the shard has told this head of all of them.
fn begin(follower: &Follower, shard: &Shard) -> (Vec<DatasetName>, bool) {
    let _kept = follower.interest.kept();
    let ownership = follower.shards.ownership();
    let tables = follower.holdings.tables().all().into_iter().filter(|table| {
        table.part(&shard.id).is_some() || follower.shards.serves(&ownership, shard, &table.name)
    });
    shard.following.begin(tables.map(|table| table.name.clone()))
}

/// The shard's answers for the datasets that the session has begun with. They come before everything else.
async fn answers(
    events: &mut Streaming<pb::WatchEvent>,
    datasets: &[DatasetName],
    seq: u64,
) -> Result<Vec<pb::Subscribed>> {
    let mut answers = Vec::with_capacity(datasets.len());
    for dataset in datasets {
        match next(events, silent_at()).await?.map(|event| (event.after, event.event)) {
            Some((after, Some(Event::Subscribed(answer))))
                if after == seq && answer.seq == seq && answer.dataset == dataset.as_str() =>
            {
                answers.push(answer);
            }
            _ => {
                let message = format!("the shard's log does not begin with what {dataset} is");
                return Err(Error::new(Code::DataCorrupt, message));
            }
        }
    }
    Ok(answers)
}

/// When a log that brings nothing from now on is lost.
fn silent_at() -> Instant {
    Instant::now() + LOG_SILENCE_MAX
}

/// Waits for one event; `None`: the log has ended. Cancel safe.
async fn next(events: &mut Streaming<pb::WatchEvent>, silent: Instant) -> Result<Option<pb::WatchEvent>> {
    match tokio::time::timeout_at(silent, events.message()).await {
        Ok(event) => Ok(event?),
        Err(_) => {
            let message = format!("the shard's log has brought nothing for {LOG_SILENCE_MAX:?}");
            Err(Error::new(Code::Unavailable, message))
        }
    }
}

/// Applies one event. Returns whether it answers the first acknowledgement. Not cancel safe: an acknowledgement may be left out.
async fn take(
    follower: &Follower,
    shard: &Arc<Shard>,
    event: pb::WatchEvent,
    acks: &mpsc::Sender<pb::WatchRequest>,
    position: &mut Position,
) -> Result<bool> {
    if event.after != position.seq {
        let message = format!("the shard's log went from {} to {}", position.seq, event.after);
        return Err(Error::new(Code::Unavailable, message));
    }
    match event.event {
        Some(Event::Change(change)) => {
            follower.changed(shard, &change);
            position.seq = change.seq;
            send(acks, Request::Applied(change.seq)).await?;
            Ok(false)
        }
        Some(Event::Subscribed(answer)) => {
            position.seq = answer.seq;
            follower.subscribed(shard, answer);
            Ok(false)
        }
        Some(Event::Heartbeat(heartbeat)) => {
            position.seq = heartbeat.seq;
            if heartbeat.ownership_epoch != shard.epoch() {
                follower.shards.redescribe(shard, &shard.describe(true).await?);
            }
            Ok(heartbeat.answers)
        }
        Some(Event::Hello(_)) | None => {
            Err(Error::new(Code::DataCorrupt, "the shard's log holds something that is no change"))
        }
    }
}

impl Follower {
    /// A shard has said what a dataset is with which the session began. Its part begins a new generation.
    fn begun(&self, shard: &Arc<Shard>, generation: Generation, answer: pb::Subscribed) {
        let Ok(dataset) = answer.dataset.parse::<DatasetName>() else { return };
        let _kept = self.interest.kept();
        if shard.following.stage(&dataset).is_none() {
            return;
        }
        let answer = said(answer).and_then(|said| {
            let Some(table) = self.holdings.table_of(&said)? else { return Ok(()) };
            let standing = Standing { generation, known_through: said.known_through_ns };
            let part = table.describe(shard, standing, &said);
            let known_through = part.standing().known_through.max(said.known_through_ns);
            part.begin(Standing { generation, known_through });
            table.symbols().may_grow(&shard.id, None::<std::iter::Empty<&str>>);
            table.refresh();
            Ok(())
        });
        if let Err(error) = &answer
            && let Some(table) = self.holdings.table(&dataset)
        {
            match (error.code(), table.part(&shard.id)) {
                // the shard has lost a dataset that it had: no chunk of it can be confirmed
                (Code::UnknownDataset, Some(part)) => part.begin(Standing { generation, ..part.standing() }),
                (Code::UnknownDataset, None) => {}
                // Its changes do not come. A reader that needs the part asks for it again, and learns why.
                _ => {
                    tracing::error!(%error, shard = %shard.id, %dataset, "a shard does not say what a dataset is");
                    table.forget(shard);
                }
            }
        }
        shard.following.answered(&dataset, answer);
    }

    /// A shard's log has a change.
    fn changed(&self, shard: &Arc<Shard>, change: &pb::Change) {
        let Ok(dataset) = change.dataset.parse::<DatasetName>() else { return };
        let _kept = self.interest.kept();
        // one that was on its way when the head left the dataset
        if shard.following.stage(&dataset) == Some(Stage::Followed) {
            changes::apply(&self.holdings, &self.shards, shard, change);
        }
    }
}

/// Tells the shard what the head wants to follow, and what no more.
async fn tell(shard: &Shard, requests: &mpsc::Sender<pb::WatchRequest>) -> Result<()> {
    let wishes = shard.following.wishes();
    for run in wishes.chunk_by(|a, b| matches!(a, Wish::Follow(_)) == matches!(b, Wish::Follow(_))) {
        let names = |wish: &Wish| match wish {
            Wish::Follow(dataset) | Wish::Leave(dataset) => dataset.to_string(),
        };
        let names = pb::DatasetNames { datasets: run.iter().map(names).collect() };
        let request = match run[0] {
            Wish::Follow(_) => Request::Subscribe(names),
            Wish::Leave(_) => Request::Unsubscribe(names),
        };
        send(requests, request).await?;
    }
    Ok(())
}

async fn send(requests: &mpsc::Sender<pb::WatchRequest>, request: Request) -> Result<()> {
    let message = pb::WatchRequest { request: Some(request) };
    match tokio::time::timeout(LOG_SILENCE_MAX, requests.send(message)).await {
        Ok(sent) => sent.map_err(|_| Error::new(Code::Unavailable, "the shard has closed its log")),
        Err(_) => Err(Error::new(Code::Unavailable, "the shard does not take what the head tells it")),
    }
}

fn names(datasets: &[DatasetName]) -> Vec<String> {
    datasets.iter().map(DatasetName::to_string).collect()
}

fn parts(holdings: &Holdings, shard: &Shard) -> Vec<(Arc<Table>, Arc<Part>)> {
    holdings
        .tables()
        .all()
        .into_iter()
        .filter_map(|table| Some((table.part(&shard.id)?, table)))
        .map(|(p, t)| (t, p))
        .collect()
}

/// Brings everything that is held from a shard to a new generation.
async fn begin_generation(
    follower: &Follower,
    shard: &Arc<Shard>,
    answers: Vec<pb::Subscribed>,
) -> Result<()> {
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

    for answer in answers {
        follower.begun(shard, generation, answer);
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
