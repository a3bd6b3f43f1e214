//! Asking every shard which datasets it has.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
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
}

impl Describer {
    /// Asks every shard which datasets it has, and takes each answer when it comes. All callers that come while a round is under way share
    /// the next one. Returns the error of a shard that could not be asked. Cancel safe.
    pub(super) async fn describe_all(&self, shards: &Arc<Shards>, holdings: &Arc<Holdings>) -> Option<Error> {
        let (shards, holdings) = (Arc::clone(shards), Arc::clone(holdings));
        self.rounds.fresh(|| round(shards, holdings)).await.unwrap_or_else(|_| Some(lost("the datasets")))
    }
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
