//! The datasets of one shard whose changes this head is told of, and the requests for more of them that wait for the session of the log.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use trellis_proto::{Code, DatasetName, Error, Result};

/// What a session has to tell the shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    Follow(DatasetName),
    Leave(DatasetName),
}

/// What a head has of a dataset on this shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The shard has been asked, or will be.
    Asked,
    /// The shard has answered: every change since then has been applied, or is on its way in the log.
    Followed,
}

/// The datasets by name.
#[derive(Debug, Default)]
pub(crate) struct Following {
    state: Mutex<State>,
    /// Notified when there is a wish.
    wished: Notify,
}

#[derive(Debug, Default)]
struct State {
    names: HashMap<DatasetName, Name>,
    /// In the order in which the shard must hear them.
    wishes: Vec<Wish>,
}

#[derive(Debug, Default)]
struct Name {
    followed: bool,
    /// Those who wait for the next answer.
    waiting: Vec<oneshot::Sender<Result<()>>>,
}

impl Following {
    /// Asks the shard for a dataset, also if it was asked before: one that was not there may be there now. What comes back is the next
    /// answer. It is dropped if the head loses interest first.
    pub(crate) fn ask(&self, dataset: &DatasetName) -> oneshot::Receiver<Result<()>> {
        let (tell, told) = oneshot::channel();
        let mut state = self.state.lock();
        let name = state.names.entry(dataset.clone()).or_default();
        name.waiting.retain(|tell| !tell.is_closed());
        // The shard answers with what it knows at that moment: who comes before the answer need not ask again.
        let asks = name.waiting.is_empty();
        name.waiting.push(tell);
        if asks {
            state.wishes.push(Wish::Follow(dataset.clone()));
            self.wished.notify_one();
        }
        told
    }

    /// The head is no longer interested in a dataset.
    pub(crate) fn leave(&self, dataset: &DatasetName) {
        let mut state = self.state.lock();
        if state.names.remove(dataset).is_some() {
            state.wishes.push(Wish::Leave(dataset.clone()));
            self.wished.notify_one();
        }
    }

    /// A session begins, and follows what was followed, and what the head has a table of. Returns these names, and whether the shard has
    /// told this head of all of them already: only then can the log go on where it was. What was asked for and not answered is asked
    /// again.
    pub(crate) fn begin(&self, tables: impl Iterator<Item = DatasetName>) -> (Vec<DatasetName>, bool) {
        let mut state = self.state.lock();
        let mut names: Vec<DatasetName> =
            state.names.iter().filter(|(_, of)| of.followed).map(|(name, _)| name.clone()).collect();
        let followed = names.len();
        for name in tables {
            let of = state.names.entry(name.clone()).or_default();
            if !of.followed {
                names.push(name);
            }
        }
        let asked = state.names.iter().filter(|(_, of)| !of.waiting.is_empty());
        state.wishes = asked.map(|(name, _)| Wish::Follow(name.clone())).collect();
        if !state.wishes.is_empty() {
            self.wished.notify_one();
        }
        let all = names.len() == followed;
        (names, all)
    }

    /// What the head has of a dataset; `None`: it has lost interest, or never had any.
    pub(crate) fn stage(&self, dataset: &DatasetName) -> Option<Stage> {
        let state = self.state.lock();
        let name = state.names.get(dataset)?;
        Some(if name.followed { Stage::Followed } else { Stage::Asked })
    }

    /// The shard has answered for a dataset. Only with a description, or if there is no such dataset yet, is the dataset followed.
    pub(crate) fn answered(&self, dataset: &DatasetName, answer: Result<()>) {
        let mut state = self.state.lock();
        let Some(name) = state.names.get_mut(dataset) else { return };
        let follows = answer.as_ref().err().is_none_or(|error| error.code() == Code::UnknownDataset);
        name.followed = follows;
        let waiting = std::mem::take(&mut name.waiting);
        if !follows {
            state.names.remove(dataset);
            // the shard may follow what this head cannot use
            state.wishes.push(Wish::Leave(dataset.clone()));
            self.wished.notify_one();
        }
        for tell in waiting {
            let _left = tell.send(answer.clone());
        }
    }

    /// Waits until there may be a wish. Cancel safe.
    pub(crate) async fn wished(&self) {
        self.wished.notified().await;
    }

    /// The wishes since the last call.
    pub(crate) fn wishes(&self) -> Vec<Wish> {
        std::mem::take(&mut self.state.lock().wishes)
    }
}

/// The error of who waits for an answer in which the head has lost interest.
pub(crate) fn left(dataset: &DatasetName) -> Error {
    Error::new(Code::Unavailable, format!("the head does not follow {dataset} any more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> DatasetName {
        name.parse().unwrap()
    }

    fn unknown() -> Result<()> {
        Err(Error::new(Code::UnknownDataset, "none"))
    }

    #[test]
    fn many_who_ask_before_the_answer_ask_once_and_all_hear_it() {
        let following = Following::default();
        let mut told: Vec<_> = (0..3).map(|_| following.ask(&name("d.a"))).collect();
        assert_eq!(following.wishes(), [Wish::Follow(name("d.a"))]);
        assert_eq!(following.stage(&name("d.a")), Some(Stage::Asked));
        following.answered(&name("d.a"), unknown());
        assert_eq!(following.stage(&name("d.a")), Some(Stage::Followed), "its making will be a change");
        for told in &mut told {
            assert_eq!(told.try_recv().unwrap(), unknown());
        }
        let _again = following.ask(&name("d.a"));
        assert_eq!(following.wishes(), [Wish::Follow(name("d.a"))], "it may be there by now");
        assert_eq!(following.stage(&name("d.a")), Some(Stage::Followed), "and its changes still count");
    }

    #[test]
    fn what_is_left_and_asked_for_again_is_heard_in_that_order_and_not_followed_before_the_answer() {
        let following = Following::default();
        drop(following.ask(&name("d.a")));
        following.answered(&name("d.a"), Ok(()));
        following.wishes();
        following.leave(&name("d.a"));
        assert_eq!(following.stage(&name("d.a")), None);
        let _told = following.ask(&name("d.a"));
        assert_eq!(following.wishes(), [Wish::Leave(name("d.a")), Wish::Follow(name("d.a"))]);
        assert_eq!(following.stage(&name("d.a")), Some(Stage::Asked), "a change of before is none of its");
        following.leave(&name("d.b"));
        assert_eq!(following.wishes(), []);
    }

    #[test]
    fn a_session_goes_on_only_with_what_the_shard_has_told_of() {
        let following = Following::default();
        for dataset in ["d.a", "d.b"] {
            drop(following.ask(&name(dataset)));
            following.answered(&name(dataset), Ok(()));
        }
        let mut unanswered = following.ask(&name("d.c"));
        following.wishes();
        let (mut names, all) = following.begin([name("d.b")].into_iter());
        names.sort();
        assert_eq!((names, all), (vec![name("d.a"), name("d.b")], true));
        assert_eq!(following.wishes(), [Wish::Follow(name("d.c"))], "asked again");
        following.answered(&name("d.c"), Err(Error::new(Code::DataCorrupt, "torn")));
        assert_eq!(unanswered.try_recv().unwrap().unwrap_err().code(), Code::DataCorrupt);
        assert_eq!(following.stage(&name("d.c")), None);

        let (names, all) = following.begin([name("d.b"), name("d.d")].into_iter());
        assert_eq!((names.last(), all), (Some(&name("d.d")), false));
        assert_eq!(following.stage(&name("d.d")), Some(Stage::Asked));
    }
}
