//! Whether it is over, and what is not as wanted.

use std::time::Duration;

use super::{
    engine::Engine,
    state::Listing,
    step::{Step, Wait, Wish},
    waves::Stop,
};

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Everything is as wanted, but the services that are named, with the reason.
    Done(Vec<(String, String)>),
    /// Too much failed.
    Stopped(Vec<Stop>, Vec<(String, String)>),
    /// AWS does not answer.
    Unavailable(String),
}

impl Engine {
    pub(super) fn outcome(&self, now: Duration) -> Option<Outcome> {
        if let Some(why) = &self.gave_up {
            return Some(Outcome::Unavailable(why.clone()));
        }
        let busy = self.in_flight.iter().any(|count| *count > 0)
            || self.pauses.iter().any(|pause| pause.until > now)
            || self.asked.iter().any(|asked| !asked.is_empty())
            || self.clusters.iter().any(|cluster| {
                let unlisted = !cluster.listed_once && !matches!(cluster.listing, Listing::Refused(_));
                unlisted
                    || !cluster.look.is_empty()
                    || !cluster.sweep.is_empty()
                    || !cluster.forget.is_empty()
            });
        let waiting = self.mode.change
            && (!self.timers.is_empty()
                || (0..self.places.len()).any(|place| self.first_ready(place).is_some()));
        if busy || waiting || self.mode.keep {
            return None;
        }
        let stops = self.waves.stops();
        let problems = self.unsettled();
        Some(if stops.is_empty() { Outcome::Done(problems) } else { Outcome::Stopped(stops, problems) })
    }

    /// Services that are not as wanted, with the reason.
    #[must_use]
    pub fn unsettled(&self) -> Vec<(String, String)> {
        let mut problems: Vec<(String, String)> = self
            .clusters
            .iter()
            .filter_map(|cluster| match &cluster.listing {
                Listing::Refused(why) => Some((cluster.name.clone(), why.clone())),
                _ => None,
            })
            .collect();
        problems.extend(self.entries.iter().filter_map(|entry| {
            let why = match &entry.step {
                Step::Failed(why) | Step::Refused(why) => why.clone(),
                Step::Settled => return None,
                _ if entry.wish == Wish::Gone && !self.mode.remove => {
                    "is not in the desired state; with --yes it is deleted".to_owned()
                }
                Step::Look => "could not be looked at".to_owned(),
                Step::Wait(Wait::Elsewhere) => "still runs in another cluster".to_owned(),
                Step::Wait(_) => "waits".to_owned(),
                Step::Create(..) => "is not there yet".to_owned(),
                Step::Update(_) | Step::Delete => "is not changed yet".to_owned(),
            };
            Some((entry.name.clone(), why))
        }));
        problems
    }
}
