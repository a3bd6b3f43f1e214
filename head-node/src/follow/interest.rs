//! The datasets that this head follows: those that it holds something of, and those that it was asked for lately.
//!
//! The first question for a dataset asks the shards that may have a part of it, and waits for the answer of each. From then on their
//! changes of the dataset come. A dataset that nobody has asked for in a while, and of which the head holds nothing, is left again, so
//! that nothing in a head, and nothing between it and the shards, grows with the datasets that there are.
//!
//! A change or an answer is applied under the shared lock of the names, and only for a name that the head follows. A name is left under
//! the exclusive lock, with its table. So no table is made, or goes on being read, that the head does not follow.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trellis_fabric::{bound::Bound, retry::up_to};
use trellis_proto::{Code, DatasetName, Error, Result, pb};

use super::follower::{Asked, Follower};
use crate::{
    held::Standing,
    shards::{Shard, Stage, left},
};

/// How long a question for a dataset waits for a shard that is being brought up to date.
pub(crate) const LIVE_WAIT: Duration = Duration::from_secs(5);
/// Longest time of the answer for one dataset. The shard may have to open its table.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// For this long, with jitter, the head answers that a dataset is unknown without asking the shards again: a client that polls for a
/// dataset must not cause a question to every shard each time. A dataset that is made meanwhile is a change.
const UNKNOWN_TTL: Duration = Duration::from_millis(500);
/// Most names without a dataset. Beyond it they are left, and the shards are asked again.
const UNKNOWN_MAX: usize = 4_096;
static UNKNOWN: Bound = Bound::new("head.unknown_datasets");
/// A dataset of which the head holds nothing is left when nobody has asked for it for so long: longer than the pauses of units that read
/// it every few minutes.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(10 * 60);
/// A name without a dataset is left after this time. It is longer than any question takes.
const NAME_IDLE_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks for what can be left. A look costs about a microsecond for each dataset.
const LOOK_PAUSE: Duration = Duration::from_secs(30);

impl Follower {
    /// Follows a dataset on each shard that may have a part of it, and waits for their answers. Returns the error of one that cannot be
    /// asked or cannot say what the dataset is; else, if none knows it, that. Cancel safe.
    pub(crate) async fn follow_dataset(&self, dataset: &DatasetName) -> Result<()> {
        self.interest.ask(dataset);
        let asked = self.shards.serving(dataset).into_iter().map(|shard| self.ask(shard, dataset));
        let mut unknown = Ok(());
        let mut known = false;
        for answer in join_all(asked).await {
            match answer {
                Ok(()) => known = true,
                Err(error) if error.code() == Code::UnknownDataset => unknown = Err(error),
                Err(error) => return Err(error.dataset(dataset)),
            }
        }
        if known { Ok(()) } else { unknown }
    }

    async fn ask(&self, shard: Arc<Shard>, dataset: &DatasetName) -> Result<()> {
        shard.live(LIVE_WAIT).await?;
        let told = {
            let _kept = self.interest.kept();
            shard.following.ask(dataset)
        };
        let answer = async {
            let told = told.await.unwrap_or_else(|_| Err(left(dataset)));
            told.map_err(tonic::Status::from)
        };
        shard.answer(&format!("say what {dataset} is"), ANSWER_TIMEOUT, answer).await
    }

    /// The error for a dataset that no shard knew a moment ago.
    pub(crate) fn known_as_unknown(&self, dataset: &DatasetName) -> Option<Error> {
        let names = self.interest.kept();
        let (until, error) = names.get(dataset)?.unknown.as_ref()?;
        (*until > Instant::now()).then(|| error.clone())
    }

    /// For a moment the head says that there is no such dataset, without asking. It follows the name as long.
    pub(crate) fn note_unknown(&self, dataset: &DatasetName, error: &Error) {
        let until = Instant::now() + UNKNOWN_TTL * 3 / 4 + up_to(UNKNOWN_TTL / 2);
        let many: Vec<DatasetName> = {
            let mut names = self.interest.all();
            let mut many = Vec::new();
            if names.len() >= self.holdings.tables().len() + UNKNOWN_MAX {
                UNKNOWN.hit();
                many.extend(
                    names.iter().filter(|(_, of)| of.unknown.is_some()).map(|(name, _)| name.clone()),
                );
            }
            if let Some(name) = names.get_mut(dataset) {
                name.unknown = Some((until, error.clone()));
            }
            many
        };
        many.iter().for_each(|name| self.leave(name, |asked| asked.unknown.is_some()));
    }

    /// Leaves what nobody has asked for lately, until `stop`.
    pub(crate) async fn leave_unused(self: Arc<Self>, stop: CancellationToken) {
        let looks = async {
            loop {
                tokio::time::sleep(LOOK_PAUSE).await;
                self.look(Instant::now());
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = looks => {}
        }
    }

    /// Leaves what nobody has asked for lately.
    pub(crate) fn look(&self, now: Instant) {
        // the tables first: their readers do not lock the names
        let asked: Vec<DatasetName> = {
            let tables = self.holdings.tables().all();
            tables.iter().filter(|table| table.take_asked()).map(|table| table.name.clone()).collect()
        };
        {
            let mut names = self.interest.all();
            for name in asked {
                names.entry(name).or_insert(Asked { at: now, unknown: None }).at = now;
            }
        }
        let idle_for = |name: &DatasetName| match self.holdings.table(name) {
            Some(_) => IDLE_MAX,
            None => NAME_IDLE_MAX,
        };
        let idle =
            |name: &DatasetName, asked: &Asked| now.saturating_duration_since(asked.at) > idle_for(name);
        let unused: Vec<DatasetName> = {
            let names = self.interest.kept();
            names.iter().filter(|(name, asked)| idle(name, asked)).map(|(name, _)| name.clone()).collect()
        };
        unused.iter().for_each(|name| self.leave(name, |asked| idle(name, asked)));
    }

    /// How many names the head follows.
    #[cfg(test)]
    pub(crate) fn names(&self) -> usize {
        self.interest.kept().len()
    }

    /// Leaves a dataset, unless somebody has asked for it meanwhile or the head holds something of it.
    fn leave(&self, dataset: &DatasetName, unused: impl Fn(&Asked) -> bool) {
        let mut names = self.interest.all();
        let Some(name) = names.get_mut(dataset).filter(|asked| unused(asked)) else { return };
        if self.holdings.table(dataset).is_some_and(|table| table.take_asked()) {
            name.at = Instant::now();
            return;
        }
        if self.holdings.tables().forget_unused(dataset) {
            names.remove(dataset);
            for shard in self.shards.all() {
                shard.following.leave(dataset);
            }
        }
    }

    /// A shard has said what a dataset is that the head has named.
    pub(super) fn subscribed(&self, shard: &Arc<Shard>, answer: pb::Subscribed) {
        let Ok(dataset) = answer.dataset.parse::<DatasetName>() else { return };
        let _kept = self.interest.kept();
        let Some(stage) = shard.following.stage(&dataset) else { return };
        let answer = match said(answer) {
            Ok(said) => self.describe(shard, &said, stage),
            Err(error) => Err(error),
        };
        shard.following.answered(&dataset, answer);
        self.shards.notify();
    }

    fn describe(&self, shard: &Arc<Shard>, said: &pb::DatasetDescription, stage: Stage) -> Result<()> {
        let Some(table) = self.holdings.table_of(said)? else { return Ok(()) };
        let generation = self.shards.next_generation();
        let new = Standing { generation, known_through: said.known_through_ns };
        let before = table.part(&shard.id);
        let knew = before.as_ref().map(|part| part.version());
        let part = table.describe(shard, new, said);
        match (&before, stage) {
            // Every change up to this position has been applied. If the head left the dataset and came back meanwhile, one may be missing.
            (Some(before), Stage::Followed) if Arc::ptr_eq(before, &part) && knew >= Some(said.version) => {
                part.advance(said.known_through_ns)
            }
            (Some(before), _) if Arc::ptr_eq(before, &part) => part.begin(new),
            _ => {}
        }
        table.symbols().may_grow(&shard.id, None::<std::iter::Empty<&str>>);
        table.refresh();
        if before.is_some_and(|before| !Arc::ptr_eq(&before, &part)) {
            // routes hold the parts that were there when they were made
            self.shards.ownership_changed();
        }
        Ok(())
    }
}

/// The description in an answer.
///
/// # Errors
/// The shard's.
pub(super) fn said(answer: pb::Subscribed) -> Result<pb::DatasetDescription> {
    match answer.answer {
        Some(pb::subscribed::Answer::Description(said)) => Ok(said),
        Some(pb::subscribed::Answer::Error(error)) => Err(error.into()),
        None => Err(Error::new(Code::DataCorrupt, "a shard's answer for a dataset is empty")),
    }
}
