//! Asking every shard which datasets it has.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use trellis_fabric::single::Single;
use trellis_proto::{Error, Result, pb};

use crate::{
    error::lost,
    held::{Holdings, Standing},
    shards::{Shard, Shards},
};

/// How long a call waits for a shard that is being brought up to date.
pub(super) const LIVE_WAIT: Duration = Duration::from_secs(5);

/// Rounds of descriptions: one is under way at a time.
#[derive(Debug, Default)]
pub(super) struct Describer {
    rounds: Single<Option<Error>>,
    /// Rounds of the question whether a shard has unopened datasets.
    opened: Single<Result<()>>,
}

impl Describer {
    /// Asks every shard which datasets it has, and takes each answer when it comes. All callers that come while a round is under way share
    /// the next one. Returns the error of a shard that could not be asked. Cancel safe.
    pub(super) async fn describe_all(&self, shards: &Arc<Shards>, holdings: &Arc<Holdings>) -> Option<Error> {
        let (shards, holdings) = (Arc::clone(shards), Arc::clone(holdings));
        self.rounds.fresh(|| round(shards, holdings)).await.unwrap_or_else(|_| Some(lost("the datasets")))
    }

    /// Asks every shard whether it has opened each of its datasets. Callers share rounds, as those of [`Self::describe_all`] do. Cancel
    /// safe.
    ///
    /// # Errors
    /// That of a shard that could not be asked; the reason why a dataset does not open, with the code of that reason.
    pub(super) async fn all_opened(&self, shards: &Arc<Shards>) -> Result<()> {
        let shards = Arc::clone(shards);
        self.opened.fresh(|| all_opened(shards)).await.unwrap_or_else(|_| Err(lost("the datasets")))
    }
}

async fn all_opened(shards: Arc<Shards>) -> Result<()> {
    let asked = shards.all().into_iter().map(|shard| async move {
        shard.live(LIVE_WAIT).await?;
        not_whole(&shard.id, shard.describe(true).await?.unopened)
    });
    join_all(asked).await.into_iter().collect()
}

/// Refuses a list of datasets that would lack some, and names them.
fn not_whole(shard: &str, unopened: Vec<pb::ErrorDetail>) -> Result<()> {
    let mut unopened = unopened.into_iter().map(Error::from);
    let Some(first) = unopened.next() else { return Ok(()) };
    let dataset = first.place().0;
    let mut message = format!(
        "the list of datasets is not whole: shard {shard} cannot open {dataset}: {}",
        first.message()
    );
    let others: Vec<Error> = unopened.collect();
    if !others.is_empty() {
        let names: Vec<&str> = others.iter().map(|error| error.place().0).collect();
        message = format!("{message}; nor can it open {}", names.join(", "));
    }
    let hint = if first.retryable() {
        "try again in a moment; every other dataset can be read by its name"
    } else {
        "restore the dataset's files, or move its folder out of the lake; every other dataset can be read by its name"
    };
    Err(Error::new(first.code(), message).side(first.whose()).hint(hint).dataset(dataset).shard(shard))
}

async fn round(shards: Arc<Shards>, holdings: Arc<Holdings>) -> Option<Error> {
    let mut asked: FuturesUnordered<_> = shards.all().into_iter().map(describe).collect();
    let mut refused = None;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok((shard, said)) => {
                let mut found = false;
                for said in &said.datasets {
                    let Ok(Some(table)) = holdings.table_of(said) else { continue };
                    if table.part(&shard.id).is_none() {
                        // The described knowledge time may cover changes that are still on their way in the log. The head holds no
                        // chunk of this dataset yet, so no chunk can lack them.
                        let standing =
                            Standing { generation: shard.generation(), known_through: said.known_through_ns };
                        table.describe(&shard, standing, said);
                        found = true;
                    }
                }
                if found {
                    // this wakes the callers that wait for the dataset
                    shards.ownership_changed();
                }
            }
            Err(error) => refused = Some(error),
        }
    }
    refused
}

async fn describe(shard: Arc<Shard>) -> Result<(Arc<Shard>, pb::ShardDescription)> {
    shard.live(LIVE_WAIT).await?;
    let said = shard.describe(false).await?;
    Ok((shard, said))
}
