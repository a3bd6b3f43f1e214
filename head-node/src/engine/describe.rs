//! Asking every shard which datasets it has.

use std::sync::Arc;

use futures::future::join_all;
use trellis_fabric::single::Single;
use trellis_proto::{Error, Result, pb};

use crate::{
    error::lost,
    follow::LIVE_WAIT,
    held::{Dataset, Standing, Tables},
    shards::{Shard, Shards},
};

/// A list of all datasets.
type List = Arc<[Arc<Dataset>]>;

/// Rounds of the question: one is under way at a time.
#[derive(Debug, Default)]
pub(super) struct Describer {
    rounds: Single<Result<List>>,
}

impl Describer {
    /// Asks every shard which datasets it has. The list is sorted by name, and nothing of it is kept. All callers that come while a round
    /// is under way share the next one. Cancel safe.
    ///
    /// # Errors
    /// That of a shard that could not be asked; the reason why a dataset does not open, with the code of that reason.
    pub(super) async fn describe_all(&self, shards: &Arc<Shards>) -> Result<List> {
        let shards = Arc::clone(shards);
        self.rounds.fresh(|| round(shards)).await.unwrap_or_else(|_| Err(lost("the datasets")))
    }
}

async fn round(shards: Arc<Shards>) -> Result<List> {
    let answers: Vec<_> = join_all(shards.all().into_iter().map(describe)).await;
    let tables = Tables::default();
    for answer in answers {
        let (shard, said) = answer?;
        not_whole(&shard.id, said.unopened)?;
        for said in &said.datasets {
            if let Some(table) = tables.take(said)?.now {
                let standing = Standing { generation: 0, known_through: said.known_through_ns };
                table.describe(&shard, standing, said);
            }
        }
    }
    let mut datasets: Vec<Arc<Dataset>> = Vec::with_capacity(tables.len());
    for table in tables.all() {
        table.refresh();
        datasets.push(table.described());
    }
    datasets.sort_by(|a, b| a.spec.dataset.cmp(&b.spec.dataset));
    Ok(datasets.into())
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

async fn describe(shard: Arc<Shard>) -> Result<(Arc<Shard>, pb::ShardDescription)> {
    shard.live(LIVE_WAIT).await?;
    let said = shard.describe(false).await?;
    Ok((shard, said))
}
