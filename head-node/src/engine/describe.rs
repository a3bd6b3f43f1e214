//! Asking every shard which datasets it has.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use futures::future::join_all;
use trellis_proto::Error;

use crate::{
    held::{Holdings, Standing},
    shards::Shards,
};

/// How long a round waits for a shard that is being brought up to date.
pub(super) const LIVE_WAIT: Duration = Duration::from_secs(5);

/// Rounds of descriptions: one is under way at a time.
#[derive(Debug, Default)]
pub(super) struct Describer {
    /// Rounds begun.
    rounds: AtomicU64,
    /// The error of a shard that could not be asked in the last round. Locked while a round is under way.
    last: tokio::sync::Mutex<Option<Error>>,
}

impl Describer {
    /// Asks every shard which datasets it has. All callers that come while a round is under way share the next one. Returns the error
    /// of a shard that could not be asked.
    pub(super) async fn describe_all(&self, shards: &Shards, holdings: &Holdings) -> Option<Error> {
        let before = self.rounds.load(Relaxed);
        let mut last = self.last.lock().await;
        if self.rounds.load(Relaxed) > before {
            // another round has begun since this call, and is over by now
            return last.clone();
        }
        self.rounds.fetch_add(1, Relaxed);
        let asked = shards.all().into_iter().map(|shard| async move {
            shard.live(LIVE_WAIT).await?;
            let said = shard.describe(false).await?;
            Ok::<_, Error>((shard, said))
        });
        let mut refused = None;
        let mut found = false;
        for answer in join_all(asked).await {
            match answer {
                Ok((shard, said)) => {
                    for said in &said.datasets {
                        let Ok(Some(table)) = holdings.table_of(said) else { continue };
                        if table.part(&shard.id).is_none() {
                            // The described knowledge time may cover changes that are still on their way in the log. The head holds no
                            // chunk of this dataset yet, so no chunk can lack them.
                            let standing = Standing {
                                generation: shard.generation(),
                                known_through: said.known_through_ns,
                            };
                            table.describe(&shard, standing, said);
                            found = true;
                        }
                    }
                }
                Err(error) => refused = Some(error),
            }
        }
        if found {
            shards.rebuild_ownership();
        }
        last.clone_from(&refused);
        refused
    }
}
