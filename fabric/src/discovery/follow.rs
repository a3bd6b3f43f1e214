//! Asks again and again, and tells what has changed.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    change::Teller,
    doubt::Doubt,
    options::Options,
    peer::Peers,
    plan::{self, Answer, Failure, Note},
    roster::{Change, Limits, Roster},
    schedule::Schedule,
};
use crate::{retry, telemetry};

/// Whoever answers look-ups of names.
pub(super) trait Ask: Send + Sync + 'static {
    /// What can be asked for, at least one.
    fn names(&self) -> &[String];

    /// One look-up of the name with this index. `doubted`: somebody says that a peer of the last answer does not answer.
    fn ask(&self, name: usize, doubted: bool) -> impl Future<Output = Result<Answer, Failure>> + Send;
}

/// Why nobody is found. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    /// Why the last look-up failed, while no peer is known.
    pub fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, trouble: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// Looks every name up again and again, until the last receiver is dropped.
pub(super) async fn follow(
    url: String,
    asked: impl Ask,
    options: Options,
    sender: watch::Sender<Peers>,
    doubt: Doubt,
    trouble: Trouble,
) {
    let names = asked.names();
    let began = Instant::now();
    let mut roster = Roster::new(names.len(), Limits::from(&options));
    let mut schedule = Schedule::new(names.len());
    let mut pauses: Vec<retry::Pauses> =
        names.iter().map(|_| retry::Pauses::new(options.retry_min, options.retry_max)).collect();
    let mut teller = Teller::new(url, &telemetry::meter("trellis-fabric"));
    let mut under_way = FuturesUnordered::new();
    // Until each name has been asked once, nobody is told: a client that places its first reads on a part of the heads puts their data
    // where nobody looks for it later. One name that nobody answers must not hold up the others for longer than one query.
    let mut unasked: BTreeSet<usize> = (0..names.len()).collect();
    loop {
        let held = !unasked.is_empty() && began.elapsed() < options.query_timeout;
        if !held {
            let change = Change::between(&sender.borrow(), roster.peers());
            if !change.is_empty() {
                sender.send_replace(roster.peers().into());
                teller.changed(began.elapsed(), &change, roster.peers().len());
            }
        }
        while let Some((name, doubted)) = schedule.begin(began.elapsed()) {
            let asked = &asked;
            under_way.push(async move { (name, asked.ask(name, doubted).await) });
        }
        let wake = schedule.wake().into_iter().chain(held.then_some(options.query_timeout)).min();
        tokio::select! {
            Some((name, result)) = under_way.next() => {
                let wait = match &result {
                    Ok(answer) => {
                        pauses[name].reset();
                        let (trusted, more) = plan::trust(answer.ttl, &options);
                        trusted + retry::up_to(more)
                    }
                    Err(_) => pauses[name].next_pause(),
                };
                let now = began.elapsed();
                schedule.end(name, now + wait);
                let note = roster.step(name, now, &result);
                unasked.remove(&name);
                trouble.set(result.err().filter(|_| roster.peers().is_empty()).map(|failure| failure.to_string()));
                match note {
                    Note::Nothing => {}
                    Note::Began(failure) => teller.failed(now, &names[name], &failure, roster.peers_of(name)),
                    Note::Ended { times } => teller.succeeded(now, &names[name], times),
                }
            }
            () = at(began, wake) => {}
            doubted = doubt.raised() => {
                let mut first = false;
                for name in roster.names_of(&doubted) {
                    first |= schedule.doubt(name, options.doubt_min + retry::up_to(options.doubt_min));
                }
                if first {
                    teller.doubted(began.elapsed(), &doubted);
                }
            }
            () = sender.closed() => return,
        }
    }
}

/// Sleeps until `wake` after `began`, or for ever.
async fn at(began: Instant, wake: Option<Duration>) {
    match wake {
        Some(wake) => sleep_until(began + wake).await,
        None => std::future::pending().await,
    }
}
