//! Which peers there are, after each look-up of each name. Pure: the caller tells the time, as the time since its start.
//!
//! * A name that is found has the peers of its last answer.
//! * A look-up without an answer says nothing about the peers: the last good set of the name is kept.
//! * A name that does not exist any more is gone after [`Limits::after`], if at least two look-ups said so in that time, and none said
//!   anything else. If more than half of the names that have peers are in this state, the zone is more likely at fault: then they are
//!   gone only after [`Limits::many_after`]. To know which of the two it is, discovery must first have asked all other names with peers.
//! * The last name that has peers is never gone. A single name therefore keeps its last good set for ever.

use std::{collections::BTreeSet, time::Duration};

use super::{
    options::Options,
    peer::Peer,
    plan::{self, Answer, Failure, Note, State},
};

/// This many look-ups in a row must say that a name does not exist: one packet must not take a peer away.
const NOT_FOUND_MIN: u32 = 2;

/// For how long a name that has peers must not exist, until it is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// One name among others that are found.
    pub(super) after: Duration,
    /// While more than half are not found.
    pub(super) many_after: Duration,
}

impl From<&Options> for Limits {
    fn from(options: &Options) -> Self {
        Self { after: options.gone_after, many_after: options.gone_many_after }
    }
}

/// Which peers there are.
#[derive(Debug)]
pub(super) struct Roster {
    names: Vec<Name>,
    limits: Limits,
    peers: Vec<Peer>,
}

#[derive(Clone, Debug, Default)]
struct Name {
    state: State,
    /// The peers of its last good answer. Empty: the name was never found, or it is gone.
    peers: Vec<Peer>,
    /// Since when the answers say that the name does not exist, and how many such answers there were.
    not_found: Option<(Duration, u32)>,
    /// When its last look-up ended.
    asked: Duration,
}

/// How a set has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) found: Vec<Peer>,
    pub(super) gone: Vec<Peer>,
}

impl Change {
    /// The change from one sorted set to another.
    pub(super) fn between(before: &[Peer], after: &[Peer]) -> Self {
        let missing = |from: &[Peer], others: &[Peer]| {
            from.iter().filter(|peer| others.binary_search(peer).is_err()).cloned().collect()
        };
        Self { found: missing(after, before), gone: missing(before, after) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty() && self.gone.is_empty()
    }
}

impl Roster {
    pub(super) fn new(names: usize, limits: Limits) -> Self {
        Self { names: vec![Name::default(); names], limits, peers: Vec::new() }
    }

    /// Every peer, sorted and unique.
    pub(super) fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// How many peers `name` has.
    pub(super) fn peers_of(&self, name: usize) -> usize {
        self.names[name].peers.len()
    }

    /// The names that have one of these peers.
    pub(super) fn names_of<'a>(&'a self, addrs: &'a BTreeSet<String>) -> impl Iterator<Item = usize> + 'a {
        let has = |name: &Name| name.peers.iter().any(|peer| addrs.contains(&peer.addr));
        (0..self.names.len()).filter(move |name| has(&self.names[*name]))
    }

    /// A look-up of `name` has ended: what to log about it.
    pub(super) fn step(&mut self, name: usize, now: Duration, result: &Result<Answer, Failure>) -> Note {
        let note = self.note(name, result);
        let it = &mut self.names[name];
        it.asked = now;
        match result {
            Ok(answer) => {
                it.peers = plan::peers(answer);
                it.not_found = None;
            }
            Err(Failure::NotFound(_)) if !it.peers.is_empty() => {
                let (since, times) = it.not_found.unwrap_or((now, 0));
                it.not_found = Some((since, times.saturating_add(1)));
            }
            Err(_) => {}
        }
        self.remove(now);
        let all: BTreeSet<&Peer> = self.names.iter().flat_map(|name| &name.peers).collect();
        self.peers = all.into_iter().cloned().collect();
        note
    }

    /// Takes the peers of names that are gone.
    fn remove(&mut self, now: Duration) {
        loop {
            let present = || self.names.iter().filter(|name| !name.peers.is_empty());
            let (count, not_found) =
                (present().count(), present().filter(|name| name.not_found.is_some()).count());
            let limit = if 2 * not_found > count { self.limits.many_after } else { self.limits.after };
            // every name that is gone was itself asked at its own `since`
            let all_asked = present().map(|name| name.asked).min().unwrap_or_default();
            let is_gone = |name: &Name| {
                name.not_found.is_some_and(|(since, times)| {
                    times >= NOT_FOUND_MIN && now.saturating_sub(since) >= limit && all_asked >= since
                })
            };
            let gone = self.names.iter().position(is_gone);
            let Some(gone) = gone.filter(|_| count > 1) else { return };
            (self.names[gone].peers, self.names[gone].not_found) = (Vec::new(), None);
        }
    }

    /// Discovery does not report that one of several names does not exist: a pattern may name more than there are. It reports that none
    /// exists.
    fn note(&mut self, name: usize, result: &Result<Answer, Failure>) -> Note {
        let it = &mut self.names[name];
        let never_was = it.peers.is_empty() && matches!(result, Err(Failure::NotFound(_)));
        let is_new = it.peers.is_empty() && it.state.is_not_found() && result.is_ok();
        let (state, note) = it.state.step(result.as_ref().map(drop).map_err(Clone::clone));
        it.state = state;
        let nobody = self.names.iter().all(|name| name.peers.is_empty() && name.state.is_not_found());
        if self.names.len() > 1 && (is_new || never_was && !nobody) { Note::Nothing } else { note }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { after: Duration::from_secs(20), many_after: Duration::from_secs(300) };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn answer(hosts: &[u8]) -> Result<Answer, Failure> {
        let ip = |host: &u8| (IpAddr::V4(Ipv4Addr::new(10, 0, 0, *host)), 1);
        Ok(Answer { endpoints: hosts.iter().map(ip).collect(), ttl: Duration::ZERO })
    }

    fn not_found() -> Result<Answer, Failure> {
        Err(Failure::NotFound("the name has no addresses"))
    }

    fn unanswered() -> Result<Answer, Failure> {
        Err(Failure::Unanswered("SERVFAIL".to_owned()))
    }

    fn roster(names: u8) -> Roster {
        let mut roster = Roster::new(names.into(), LIMITS);
        for name in 0..names {
            roster.step(name.into(), at(0), &answer(&[name]));
        }
        roster
    }

    #[test]
    fn a_name_that_does_not_exist_for_the_limit_is_gone_and_comes_back() {
        let mut roster = roster(3);
        for (second, peers) in [(10, 3), (29, 3), (30, 2), (40, 2)] {
            roster.step(0, at(second), &answer(&[0]));
            roster.step(2, at(second), &unanswered());
            roster.step(1, at(second), &not_found());
            assert_eq!(roster.peers().len(), peers, "at {second} s");
        }
        roster.step(1, at(50), &answer(&[1]));
        assert_eq!(roster.peers().len(), 3);
    }

    #[test]
    fn one_answer_takes_no_peer_away_however_late_the_next_event() {
        let mut roster = roster(2);
        roster.step(1, at(10), &not_found());
        roster.step(0, at(1000), &answer(&[0]));
        assert_eq!(roster.peers().len(), 2);
        roster.step(1, at(1001), &not_found());
        assert_eq!(roster.peers().len(), 1);
    }

    #[test]
    fn a_name_is_not_gone_before_the_others_were_asked_because_the_zone_may_be() {
        let mut roster = roster(3);
        for second in [10, 40, 70] {
            roster.step(1, at(second), &not_found());
        }
        roster.step(0, at(71), &answer(&[0]));
        assert_eq!(roster.peers().len(), 3, "nobody has asked for the third one");
        roster.step(2, at(72), &answer(&[2]));
        assert_eq!(roster.peers().len(), 2);
    }

    #[test]
    fn while_most_names_do_not_exist_the_zone_is_at_fault_for_the_longer_limit() {
        let mut roster = roster(4);
        for second in [10, 40, 309] {
            for name in 0..3 {
                roster.step(name, at(second), &not_found());
            }
            roster.step(3, at(second), &answer(&[3]));
            assert_eq!(roster.peers().len(), 4, "at {second} s");
        }
        for name in 0..3 {
            roster.step(name, at(310), &not_found());
        }
        assert_eq!(roster.peers().len(), 1);
    }

    #[test]
    fn the_last_name_is_never_gone() {
        let mut roster = roster(2);
        for second in [10, 1_000, 100_000] {
            roster.step(0, at(second), &not_found());
            roster.step(1, at(second), &not_found());
        }
        assert_eq!(roster.peers().len(), 1);
    }

    #[test]
    fn names_that_never_were_are_news_only_if_none_exists() {
        let mut roster = Roster::new(3, LIMITS);
        assert_eq!(roster.step(0, at(0), &not_found()), Note::Nothing);
        assert_eq!(roster.step(1, at(0), &not_found()), Note::Nothing);
        assert!(matches!(roster.step(2, at(0), &not_found()), Note::Began(_)));
        assert_eq!(roster.step(2, at(1), &not_found()), Note::Nothing, "told once");

        let mut roster = Roster::new(2, LIMITS);
        roster.step(0, at(0), &answer(&[0]));
        assert_eq!(roster.step(1, at(0), &not_found()), Note::Nothing);
    }

    proptest! {
        /// Compared with an oracle that keeps every result and reads the rules from the history.
        #[test]
        fn the_set_is_what_the_rules_say(
            names in 1_usize..6,
            steps in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..4, 0_u64..40), 1..200),
        ) {
            let mut roster = Roster::new(names, LIMITS);
            let mut set: BTreeSet<Peer> = BTreeSet::new();
            let mut last_good: Vec<Option<u8>> = vec![None; names];
            let mut absences: Vec<Vec<Duration>> = vec![Vec::new(); names];
            let mut asked = vec![Duration::ZERO; names];
            let mut now = Duration::ZERO;
            for (index, what, seconds) in steps {
                now += at(seconds);
                let name = index.index(names);
                // two names may have a peer in common
                let host = (name / 2) as u8;
                let result = match what {
                    0 => answer(&[host]),
                    1 | 2 => not_found(),
                    _ => unanswered(),
                };
                match &result {
                    Ok(_) => {
                        last_good[name] = Some(host);
                        absences[name].clear();
                    }
                    Err(Failure::NotFound(_)) => absences[name].push(now),
                    Err(_) => {}
                }
                asked[name] = now;
                let before = set.clone();
                roster.step(name, now, &result);
                let before_it: Vec<Peer> = before.iter().cloned().collect();
                let change = Change::between(&before_it, roster.peers());
                prop_assert!(change.found.iter().all(|peer| set.insert(peer.clone())), "found twice");
                prop_assert!(change.gone.iter().all(|peer| set.remove(peer)), "gone twice");
                prop_assert!(roster.peers().iter().eq(&set), "the changes do not lead to the set");
                prop_assert!(before.is_empty() || !set.is_empty(), "the last peers were taken away");
                for n in 0..names {
                    let Some(host) = last_good[n] else { continue };
                    let peer = &plan::peers(&answer(&[host]).unwrap())[0];
                    let long = |limit| absences[n].len() >= 2 && now - absences[n][0] >= limit;
                    if !set.contains(peer) {
                        prop_assert!(long(LIMITS.after), "{n} was taken away too early");
                    }
                    let all_asked = || (0..names).all(|m| last_good[m].is_none() || asked[m] >= absences[n][0]);
                    // in the set only because of this name
                    let shared = (0..names).any(|m| m != n && last_good[m] == Some(host));
                    if set.contains(peer) && !shared && set.len() > 1 && long(LIMITS.many_after) {
                        prop_assert!(!all_asked(), "{n} was kept too long");
                    }
                }
            }
        }
    }
}
