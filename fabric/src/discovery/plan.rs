//! How answers and failures change the state, and how long an answer is trusted. Pure.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use super::{options::Options, peer::Peer};

/// An answer is trusted longer than its TTL by up to this share, so that processes that started together do not ask together.
const JITTER_SHARE: f64 = 0.1;

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) endpoints: Vec<(IpAddr, u16)>,
    /// The smallest TTL of its records.
    pub(super) ttl: Duration,
}

/// A failed look-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The answer is that there is nobody, in these words.
    NotFound(&'static str),
    /// No server gave a useful answer: refused, SERVFAIL, timeout.
    Unanswered(String),
    /// Asking again does not help before somebody changes a configuration or a right.
    Refused {
        /// What is wrong, in one of few words.
        code: &'static str,
        /// What is wrong, and what to do.
        text: String,
    },
}

/// How the last look-ups of the name went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// There was no look-up yet.
    #[default]
    Unknown,
    /// The last look-up succeeded.
    Good,
    /// The last look-ups failed, `times` in a row. The last good set is kept.
    Failing { failure: Failure, times: u32 },
}

/// What to log about a look-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// Nothing new.
    Nothing,
    /// Unknown | Good | Failing (another failure) -> Failing.
    Began(Failure),
    /// Failing -> Good.
    Ended {
        /// Failures before it.
        times: u32,
    },
}

impl State {
    /// Whether the last answer was that there is nobody.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Failing { failure, .. } if failure.is_not_found())
    }

    /// The state after a look-up, and what to log.
    pub(super) fn step(&self, result: Result<(), Failure>) -> (Self, Note) {
        match (self, result) {
            (Self::Failing { times, .. }, Ok(())) => (Self::Good, Note::Ended { times: *times }),
            (Self::Unknown | Self::Good, Ok(())) => (Self::Good, Note::Nothing),
            (Self::Failing { failure: same, times }, Err(failure)) if same.kind() == failure.kind() => {
                (Self::Failing { failure, times: times.saturating_add(1) }, Note::Nothing)
            }
            (Self::Failing { times, .. }, Err(failure)) => (
                Self::Failing { failure: failure.clone(), times: times.saturating_add(1) },
                Note::Began(failure),
            ),
            (Self::Unknown | Self::Good, Err(failure)) => {
                (Self::Failing { failure: failure.clone(), times: 1 }, Note::Began(failure))
            }
        }
    }
}

/// How long an answer with `ttl` is trusted, and by how much longer it may be, so that a fleet does not ask at once.
pub(super) fn trust(ttl: Duration, options: &Options) -> (Duration, Duration) {
    let trusted = ttl.min(options.ttl_max).max(options.ttl_min);
    (trusted, trusted.mul_f64(JITTER_SHARE))
}

impl Failure {
    /// Whether the answer is that there is nobody.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    /// The kind of the failure, which decides whether it is a new one. Its text may differ each time (ports, ids).
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Unanswered(_) => "unanswered",
            Self::Refused { code, .. } => code,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound(what) => f.write_str(what),
            Self::Unanswered(why) => write!(f, "no answer: {why}"),
            Self::Refused { text, .. } => f.write_str(text),
        }
    }
}

/// The set of peers of an answer: sorted, unique.
pub(super) fn peers(answer: &Answer) -> Vec<Peer> {
    // sorted as text, because all processes compare and hash the text
    let unique: BTreeSet<String> =
        answer.endpoints.iter().map(|(ip, port)| std::net::SocketAddr::new(*ip, *port).to_string()).collect();
    unique.into_iter().map(|addr| Peer { addr }).collect()
}

/// Merges the answers of several SRV targets or address families.
pub(super) fn merge(parts: impl IntoIterator<Item = Answer>) -> Answer {
    let mut merged = Answer { endpoints: Vec::new(), ttl: Duration::MAX };
    for part in parts {
        merged.ttl = merged.ttl.min(part.ttl);
        merged.endpoints.extend(part.endpoints);
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failure() -> impl Strategy<Value = Failure> {
        prop_oneof![
            Just(Failure::NotFound("nobody")),
            "[a-z]{1,3}".prop_map(Failure::Unanswered),
            Just(Failure::Refused { code: "denied", text: "no right".to_owned() }),
        ]
    }

    #[test]
    fn a_zero_ttl_does_not_spin_and_a_huge_one_does_not_sleep() {
        let options = Options::default();
        assert_eq!(trust(Duration::ZERO, &options).0, options.ttl_min);
        assert_eq!(trust(Duration::MAX, &options).0, options.ttl_max);
        assert_eq!(
            trust(Duration::from_secs(10), &options),
            (Duration::from_secs(10), Duration::from_secs(1))
        );
    }

    proptest! {
        #[test]
        fn an_answer_is_trusted_within_its_bounds(ttl_ms in 0u64..10_000_000) {
            let options = Options::default();
            let (trusted, more) = trust(Duration::from_millis(ttl_ms), &options);
            prop_assert!(trusted >= options.ttl_min && trusted + more <= options.ttl_max.mul_f64(1.1));
            prop_assert!(trusted >= Duration::from_millis(ttl_ms).min(options.ttl_max), "asked before the TTL was over");
        }

        #[test]
        fn a_failure_is_told_once_per_change_of_state(
            results in prop::collection::vec(prop::result::maybe_ok(Just(()), failure()), 0..40),
        ) {
            // the oracle: a line exactly where kind of result changes, except from nothing to good
            let kind = |result: &Result<(), Failure>| result.as_ref().err().map(Failure::kind);
            let mut state = State::Unknown;
            let mut before = None;
            for result in results {
                let now = kind(&result);
                let (next, note) = state.step(result);
                prop_assert_eq!(note != Note::Nothing, before != now, "{:?} -> {:?}", before, now);
                (state, before) = (next, now);
            }
        }

        #[test]
        fn peers_are_sorted_unique_and_complete(
            endpoints in prop::collection::vec((any::<IpAddr>(), 1u16..5), 0..30),
        ) {
            let answer = Answer { endpoints: endpoints.clone(), ttl: Duration::ZERO };
            let peers = peers(&answer);
            prop_assert!(peers.windows(2).all(|pair| pair[0] < pair[1]));
            for (ip, port) in &endpoints {
                let addr = std::net::SocketAddr::new(*ip, *port).to_string();
                prop_assert!(peers.iter().any(|peer| peer.addr == addr));
            }
            let mut unique = endpoints;
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(peers.len(), unique.len());
        }
    }
}
