//! How far an engine is, for those who show it.

use std::time::Duration;

use super::{
    engine::Engine,
    state::Listing,
    step::{Seen, Step, Wait, Wish},
};
use crate::{
    model::{Place, Role},
    pace::Category,
};

/// How far it is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Services that should be.
    pub wanted: usize,
    /// As wanted.
    pub settled: usize,
    /// Being started or stopped by ECS.
    pub moving: usize,
    /// Failed, or refused by AWS.
    pub failed: usize,
    /// Not wanted, and still there.
    pub extra: usize,
    /// Changes that are still to be sent, at least.
    pub changes_left: usize,
    /// Changes a second, at present, of all places.
    pub per_second: f64,
    /// At least this long until the last change is sent.
    pub left: Duration,
}

/// One service, for showing.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its place.
    pub place: Place,
    /// Its cluster.
    pub cluster: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Whether it is wanted.
    pub wanted: bool,
    /// What is known.
    pub seen: Seen,
    /// What is next.
    pub step: Step,
    /// What ECS said last.
    pub note: String,
}

impl Engine {
    /// Every service that is wanted or was found.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.entries.iter().map(|entry| Row {
            place: self.places[self.clusters[entry.cluster].place].clone(),
            cluster: self.clusters[entry.cluster].name.clone(),
            name: entry.name.clone(),
            role: entry.role,
            wanted: matches!(entry.wish, Wish::Be(..)),
            seen: entry.seen.clone(),
            step: entry.step.clone(),
            note: entry.note.clone(),
        })
    }

    /// Why a cluster could not be listed, if one could not.
    #[must_use]
    pub fn unlisted(&self) -> Option<&str> {
        self.clusters.iter().find_map(|cluster| match &cluster.listing {
            Listing::Refused(why) => Some(why.as_str()),
            _ => None,
        })
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let mut progress = Progress::default();
        let mut left = vec![0_usize; self.places.len()];
        for entry in &self.entries {
            let wanted = matches!(entry.wish, Wish::Be(..));
            progress.wanted += usize::from(wanted);
            match &entry.step {
                Step::Settled => progress.settled += usize::from(wanted),
                Step::Failed(_) | Step::Refused(_) => progress.failed += 1,
                Step::Wait(Wait::Rollout) => progress.moving += 1,
                Step::Wait(Wait::Names) => left[self.clusters[entry.cluster].place] += 1,
                step if step.is_change() && (wanted || self.mode.remove) => {
                    // a removal is two changes
                    let count = if wanted || matches!(step, Step::Delete) { 1 } else { 2 };
                    left[self.clusters[entry.cluster].place] += count;
                }
                _ => {}
            }
            if !wanted && entry.step != Step::Settled {
                progress.extra += 1;
            }
        }
        for (place, count) in left.into_iter().enumerate() {
            let per_second = self.pace.per_second(&self.places[place], Category::ServiceModify);
            progress.changes_left += count;
            if count > 0 {
                progress.per_second += per_second;
                progress.left = progress.left.max(Duration::from_secs_f64(count as f64 / per_second));
            }
        }
        progress
    }
}
