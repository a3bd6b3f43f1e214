//! The stream of one watcher: the changes that it missed, those that come, the answers for the datasets that it names, and a heartbeat
//! when nothing comes.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Status, Streaming};
use trellis_proto::{Code, Error, Result as Known, pb, pb::watch_event::Event, pb::watch_request::Request};

use crate::{
    shard::Shard,
    watch_log::{News, Subscription},
};

/// Idle time after which a watcher is told that nothing happened.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Events of one watcher between the log and the transport.
const WATCH_QUEUE: usize = 16;
/// Datasets that are opened at once for one watcher. An opening takes megabytes for a moment.
const OPEN_PARALLEL: usize = 8;
/// Answers that wait in the queue of a watcher before the next dataset is answered: the rest of the queue is for changes.
const ANSWERS_QUEUED: usize = 256;
/// Most names of a watcher that wait to be opened, as many as it may follow.
const NAMED_MAX: usize = 1 << 17;

/// Sends one watcher the changes after its position. The stream ends when the watcher closes its side or does not keep up.
pub(super) async fn watch(
    shard: Arc<Shard>,
    mut requests: Streaming<pb::WatchRequest>,
) -> Result<mpsc::Receiver<Result<pb::WatchEvent, Status>>, Status> {
    let Some(Request::Start(start)) = requests.message().await?.and_then(|message| message.request) else {
        return Err(Error::new(Code::InvalidRequest, "a watch begins with its start").into());
    };
    let unknown = unknown(&shard, start.datasets.clone()).await;
    let (out, events) = mpsc::channel(WATCH_QUEUE);
    // Subscribe before the headers of the answer go out: a watcher that has them misses nothing.
    let subscription = shard.subscribe(&start, &unknown)?;
    tokio::spawn(async move {
        shard.metrics.watchers.add(1, &[]);
        let sent = Sent { out, at: subscription.seq, quiet_at: Instant::now() + HEARTBEAT };
        // The watcher closed its side, or is gone.
        let _ = send_all(&shard, subscription, requests, sent).await;
        shard.metrics.watchers.add(-1, &[]);
    });
    Ok(events)
}

/// The reasons for the datasets that are not known.
async fn unknown(shard: &Arc<Shard>, datasets: Vec<String>) -> HashMap<String, Error> {
    let known = futures::stream::iter(datasets).map(|dataset| {
        let shard = Arc::clone(shard);
        async move {
            let error = shard.catalog.know(&dataset).await.err()?;
            Some((dataset, error))
        }
    });
    known.buffer_unordered(OPEN_PARALLEL).filter_map(std::future::ready).collect().await
}

/// The watcher does not take any more.
struct Gone;

/// What a watcher has been sent.
struct Sent {
    out: mpsc::Sender<Result<pb::WatchEvent, Status>>,
    /// The position of the last event.
    at: u64,
    /// Then a heartbeat is due, because no event was sent.
    quiet_at: Instant,
}

impl Sent {
    async fn event(&mut self, seq: u64, event: Event) -> Result<(), Gone> {
        let event = pb::WatchEvent { after: std::mem::replace(&mut self.at, seq), event: Some(event) };
        self.quiet_at = Instant::now() + HEARTBEAT;
        self.out.send(Ok(event)).await.map_err(|_| Gone)
    }

    async fn news(&mut self, news: News) -> Result<(), Gone> {
        let seq = news.seq();
        let event = match news {
            News::Change(change) => Event::Change((*change).clone()),
            News::Subscribed(answer) => Event::Subscribed(*answer),
        };
        self.event(seq, event).await
    }

    /// Tells the watcher how far it knows the log, although nothing of it has concerned the watcher.
    async fn heartbeat(
        &mut self,
        shard: &Shard,
        subscription: &Subscription,
        answers: bool,
    ) -> Result<(), Gone> {
        let seq = subscription.position(self.at);
        let heartbeat = pb::Heartbeat { answers, ..shard.heartbeat(seq) };
        self.event(seq, Event::Heartbeat(heartbeat)).await
    }

    async fn error(&self, error: Error) -> Gone {
        let _ = self.out.send(Err(error.into())).await;
        Gone
    }
}

/// The datasets that a watcher has named and that are not answered yet.
#[derive(Default)]
struct Named {
    /// Those that it still wants an answer for.
    wanted: HashSet<String>,
    waiting: VecDeque<String>,
}

impl Named {
    /// # Errors
    /// [`Code::TooLarge`].
    fn add(&mut self, datasets: Vec<String>) -> Known<()> {
        for dataset in datasets {
            if self.waiting.len() >= NAMED_MAX {
                return Err(Error::new(Code::TooLarge, format!("more than {NAMED_MAX} names at once")));
            }
            if self.wanted.insert(dataset.clone()) {
                self.waiting.push_back(dataset);
            }
        }
        Ok(())
    }

    fn leave(&mut self, datasets: &[String]) {
        for dataset in datasets {
            self.wanted.remove(dataset);
        }
    }
}

async fn send_all(
    shard: &Arc<Shard>,
    mut subscription: Subscription,
    mut requests: Streaming<pb::WatchRequest>,
    mut sent: Sent,
) -> Result<(), Gone> {
    let acknowledge = subscription.acknowledger();
    let hello = pb::WatchEvent { after: 0, event: Some(Event::Hello(shard.hello(sent.at))) };
    sent.out.send(Ok(hello)).await.map_err(|_| Gone)?;
    for news in std::mem::take(&mut subscription.first) {
        sent.news(news).await?;
    }
    let (mut named, mut opening) = (Named::default(), FuturesUnordered::new());
    // The watcher's first acknowledgement is answered when it has all changes that have not waited for it.
    let mut answers = false;
    loop {
        if answers && subscription.queue.is_empty() {
            answers = false;
            sent.heartbeat(shard, &subscription, true).await?;
        }
        while opening.len() < OPEN_PARALLEL
            && let Some(dataset) = named.waiting.pop_front()
        {
            let shard = Arc::clone(shard);
            opening.push(async move {
                let unknown = shard.catalog.know(&dataset).await.err();
                (dataset, unknown)
            });
        }
        let answerable = !opening.is_empty() && subscription.queue.len() < ANSWERS_QUEUED;
        tokio::select! {
            news = subscription.queue.recv() => match news {
                Some(news) => sent.news(news).await?,
                None => {
                    let late = Error::new(Code::Unavailable, "disconnected for not keeping up with the watch log")
                        .hint("connect again, and confirm what is held");
                    return Err(sent.error(late).await);
                }
            },
            Some((dataset, unknown)) = opening.next(), if answerable => {
                if named.wanted.remove(&dataset) {
                    shard.follow(&subscription, &dataset, unknown.as_ref());
                }
            }
            message = requests.message() => match message {
                Ok(Some(message)) => match message.request {
                    Some(Request::Applied(applied)) => answers |= acknowledge(applied),
                    Some(Request::Subscribe(names)) => {
                        if let Err(error) = named.add(names.datasets) {
                            return Err(sent.error(error).await);
                        }
                    }
                    Some(Request::Unsubscribe(names)) => {
                        named.leave(&names.datasets);
                        subscription.leave(&names.datasets);
                    }
                    Some(Request::Start(_)) | None => {}
                },
                Ok(None) | Err(_) => return Ok(()),
            },
            () = tokio::time::sleep_until(sent.quiet_at) => sent.heartbeat(shard, &subscription, false).await?,
            () = sent.out.closed() => return Ok(()),
        }
    }
}
