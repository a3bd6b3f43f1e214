//! Which heads a client places its requests on: those of a head's map, or those that discovery finds. Pure.
//!
//! DNS answers with at most eight heads of thousands. With only those, clients would place one series on different heads, and each of
//! them would fetch it. So a client of a DNS name takes the map: it asks one of the heads that DNS names for all heads. Each answer of a
//! head names its map's version. The client asks again if that differs from its own, or if a head of the map cannot be reached.
//!
//! A client that was given addresses asks only those: the others may not be reachable from where it is. For the same reason a client takes
//! a map only if it has a head that discovery finds, under the same address. Behind a load balancer it has none: the map has the addresses
//! of another network. The client then asks what discovery finds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Least time between two questions for the map. Heads disagree about it for as long as their discovery differs, up to a minute; then
/// each of 40,000 clients asks at this rate, and each of 2,000 heads answers ten times a second.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(2);

/// What a client knows of the map.
#[derive(Debug)]
pub(super) enum HeadMap {
    /// The client asks only the heads that discovery finds.
    Unused,
    /// The client takes the map.
    Used(Used),
}

/// See [`HeadMap::Used`].
#[derive(Debug, Default)]
pub(super) struct Used {
    /// 0: none yet.
    version: u64,
    /// The newest version that this client could not take; 0: none.
    refused: u64,
    heads: Option<Arc<[String]>>,
    /// Something has happened since the last question that makes the map doubtful.
    doubtful: bool,
    question: Question,
}

/// A head's answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// 0: no head has a map.
    pub(super) version: u64,
    /// Empty: those of the version that the client has.
    pub(super) heads: Vec<String>,
}

#[derive(Debug, Default)]
enum Question {
    #[default]
    None,
    UnderWay,
    Ended {
        /// No next question before this time.
        next: Instant,
    },
}

impl HeadMap {
    /// `used`: whether discovery may find only some of the heads.
    pub(super) fn new(used: bool) -> Self {
        if used { Self::Used(Used { doubtful: true, ..Used::default() }) } else { Self::Unused }
    }

    /// The heads of the map; `None`: use those that discovery finds.
    pub(super) fn heads(&self) -> Option<&Arc<[String]>> {
        match self {
            Self::Unused => None,
            Self::Used(used) => used.heads.as_ref(),
        }
    }

    /// A head has named the version of its map; 0: it has none.
    pub(super) fn told(&mut self, version: u64) {
        if let Self::Used(used) = self {
            used.doubtful |= ![0, used.version, used.refused].contains(&version);
        }
    }

    /// Discovery finds other heads than before, so a map that could not be taken may be of use now.
    pub(super) fn found_others(&mut self) {
        if let Self::Used(used) = self {
            used.doubtful |= used.refused != 0;
            used.refused = 0;
        }
    }

    /// A head could not be reached.
    pub(super) fn missed(&mut self, head: &str) {
        if let Self::Used(used) = self {
            used.doubtful |= used.heads.iter().any(|heads| has(heads, head));
        }
    }

    /// Whether to ask for the map now, and the version that the client has. Then the caller must call [`Self::answered`].
    pub(super) fn ask(&mut self, now: Instant) -> Option<u64> {
        let Self::Used(used) = self else { return None };
        let may = match used.question {
            Question::None => true,
            Question::UnderWay => false,
            Question::Ended { next } => now >= next,
        };
        if !used.doubtful || !may {
            return None;
        }
        (used.question, used.doubtful) = (Question::UnderWay, false);
        Some(used.version)
    }

    /// The question has ended, with or without an answer. `found`: the heads that discovery finds, sorted. `jitter`: at most [`ASK_EVERY`].
    pub(super) fn answered(
        &mut self,
        answer: Option<Answer>,
        found: &[String],
        now: Instant,
        jitter: Duration,
    ) {
        let Self::Used(used) = self else { return };
        used.question = Question::Ended { next: now + ASK_EVERY + jitter };
        // without an answer: the next one, or the next head that is missed, brings a new question
        let Some(Answer { version, mut heads }) = answer else { return };
        heads.sort_unstable();
        heads.dedup();
        if version == 0 {
            (used.version, used.refused, used.heads) = (0, 0, None);
        } else if version == used.version {
            // it has told no heads, because the client has them
        } else if found.iter().any(|head| has(&heads, head)) {
            (used.version, used.refused, used.heads) = (version, 0, Some(heads.into()));
        } else {
            (used.version, used.refused, used.heads) = (0, version, None);
        }
    }
}

/// Whether a sorted list has the head.
pub(super) fn has(heads: &[String], head: &str) -> bool {
    heads.binary_search_by(|one| one.as_str().cmp(head)).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(heads: &[&str]) -> Vec<String> {
        heads.iter().map(|head| (*head).to_owned()).collect()
    }

    fn answer(version: u64, heads: &[&str]) -> Option<Answer> {
        Some(Answer { version, heads: list(heads) })
    }

    /// An answer while discovery finds `a:1`.
    fn answered(map: &mut HeadMap, answer: Option<Answer>, now: Instant) {
        map.answered(answer, &list(&["a:1"]), now, Duration::ZERO);
    }

    #[test]
    fn a_client_of_addresses_never_asks_for_the_map() {
        let mut map = HeadMap::new(false);
        map.told(7);
        map.missed("a:1");
        assert_eq!((map.ask(Instant::now()), map.heads()), (None, None));
    }

    #[test]
    fn a_client_asks_at_first_and_when_a_version_differs_or_a_head_is_missed() {
        let (mut map, start) = (HeadMap::new(true), Instant::now());
        assert_eq!(map.ask(start), Some(0));
        assert_eq!(map.ask(start), None, "one question at a time");
        answered(&mut map, answer(5, &["b:1", "a:1"]), start);
        assert_eq!(map.heads().unwrap()[..], ["a:1", "b:1"]);
        let later = start + ASK_EVERY;
        for same in [0, 5] {
            map.told(same);
            assert_eq!(map.ask(later), None);
        }
        map.told(6);
        assert_eq!(map.ask(later - Duration::from_nanos(1)), None, "not so soon");
        assert_eq!(map.ask(later), Some(5));
        answered(&mut map, answer(5, &[]), later);
        assert_eq!(map.heads().unwrap().len(), 2, "the head has the same map");
        map.missed("c:1");
        assert_eq!(map.ask(later + ASK_EVERY), None, "no head of the map");
        map.missed("b:1");
        assert_eq!(map.ask(later + ASK_EVERY), Some(5));
    }

    #[test]
    fn a_head_without_a_map_leaves_the_client_with_what_discovery_finds() {
        let (mut map, start) = (HeadMap::new(true), Instant::now());
        map.ask(start);
        answered(&mut map, answer(5, &["a:1"]), start);
        map.missed("a:1");
        map.ask(start + ASK_EVERY).unwrap();
        answered(&mut map, answer(0, &[]), start + ASK_EVERY);
        assert_eq!(map.heads(), None);
    }

    #[test]
    fn a_map_without_a_head_that_discovery_finds_is_of_another_network_and_is_asked_for_once() {
        let (mut map, start) = (HeadMap::new(true), Instant::now());
        map.ask(start);
        answered(&mut map, answer(4, &["a:1"]), start);
        map.told(5);
        map.ask(start + ASK_EVERY).unwrap();
        answered(&mut map, answer(5, &["10.0.0.1:7400", "10.0.0.2:7400"]), start);
        assert_eq!(map.heads(), None, "nor does the one before count any more");
        map.told(5);
        assert_eq!(map.ask(start + ASK_EVERY), None);
        map.found_others();
        assert_eq!(map.ask(start + ASK_EVERY), Some(0));
        // whichever head has told it: one that drains is in no list
        map.answered(
            answer(5, &["10.0.0.1:7400", "10.0.0.2:7400"]),
            &list(&["10.0.0.2:7400", "a:1"]),
            start,
            Duration::ZERO,
        );
        assert_eq!(map.heads().unwrap().len(), 2);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Told(u64),
        Missed,
        Asks,
        /// A version, and whether the map has a head that discovery finds.
        Answered(Option<(u64, bool)>),
        FoundOthers,
        Passes(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0_u64..4).prop_map(Event::Told),
            Just(Event::Missed),
            Just(Event::Asks),
            Just(Event::FoundOthers),
            proptest::option::of((0_u64..4, any::<bool>())).prop_map(Event::Answered),
            (0_u64..5_000).prop_map(Event::Passes),
        ]
    }

    proptest! {
        /// The oracle keeps every event: the list is that of the last answer that could be taken, at most one question is under way, two
        /// are never closer than the limit, and none is asked without a reason since the last one.
        #[test]
        fn the_map_is_the_newest_answer_and_questions_are_rare(events in proptest::collection::vec(event(), 1..200)) {
            let (mut map, mut now) = (HeadMap::new(true), Instant::now());
            let (mut version, mut refused, mut under_way, mut ended, mut reason) = (0, 0, false, None, true);
            let mut list: Option<Vec<String>> = None;
            for event in events {
                match event {
                    Event::Told(told) => {
                        map.told(told);
                        reason |= told != 0 && told != version && told != refused;
                    }
                    Event::Missed => {
                        map.missed("a:1");
                        reason |= version != 0;
                    }
                    Event::FoundOthers => {
                        map.found_others();
                        reason |= std::mem::take(&mut refused) != 0;
                    }
                    Event::Passes(ms) => now += Duration::from_millis(ms),
                    Event::Asks => {
                        let may = !under_way && ended.is_none_or(|ended| now >= ended + ASK_EVERY) && reason;
                        let asked = map.ask(now);
                        prop_assert_eq!(asked, may.then_some(version));
                        if may {
                            (under_way, reason) = (true, false);
                        }
                    }
                    Event::Answered(told) if under_way => {
                        let (own, other) = (format!("v:{told:?}"), "a:1");
                        let answer = told.and_then(|(now, has)| match (now, has) {
                            (0, _) => answer(0, &[]),
                            _ if now == version => answer(now, &[]),
                            (_, true) => answer(now, &[&own, other]),
                            (_, false) => answer(now, &[&own]),
                        });
                        answered(&mut map, answer, now);
                        (under_way, ended) = (false, Some(now));
                        match told {
                            Some((0, _)) => (version, refused, list) = (0, 0, None),
                            Some((now, _)) if now == version => {}
                            Some((now, true)) => (version, refused, list) = (now, 0, Some(vec![other.to_owned(), own])),
                            Some((now, false)) => (version, refused, list) = (0, now, None),
                            None => {}
                        }
                    }
                    Event::Answered(_) => {}
                }
                prop_assert_eq!(map.heads().map(|heads| heads.to_vec()), list.clone());
            }
        }
    }
}
