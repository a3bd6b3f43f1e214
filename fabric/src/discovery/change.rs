//! Tells what has changed, and why: in the log, with a bound on the lines of a minute, and in one counter.

use std::{collections::BTreeSet, time::Duration};

use super::{peer::Peer, plan::Failure, roster::Change};
use crate::telemetry::{
    KeyValue,
    metrics::{Counter, Meter},
};

/// Most lines of one watch within [`WINDOW`], of changes and of doubts each. A deployment that replaces a thousand tasks one after the
/// other needs no line for each.
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// Most peers that one line names.
const NAMED_MAX: usize = 8;

/// Tells what has changed.
pub(super) struct Teller {
    url: String,
    lines: Lines,
    /// Lines about doubts are their own: a peer that is away for hours is doubted every few seconds.
    doubts: Lines,
    changes: Counter<u64>,
}

impl Teller {
    pub(super) fn new(url: String, meter: &Meter) -> Self {
        let changes = meter
            .u64_counter("trellis.discovery.changes")
            .with_unit("{change}")
            .with_description(
                "Changes of a set of peers, by reason: peers found or gone, names whose look-ups began to fail while their peers are \
                 kept, peers that a user reported dead.",
            )
            .build();
        Self { url, lines: Lines::default(), doubts: Lines::default(), changes }
    }

    /// The set has changed; it has `peers` now.
    pub(super) fn changed(&mut self, now: Duration, change: &Change, peers: usize) {
        let Self { url, lines, .. } = self;
        if let Some(unsaid) = lines.take(now) {
            let (found, gone) = (some(&change.found), some(&change.gone));
            tracing::info!(url, peers, found, gone, unsaid, "peers changed");
        }
        self.count("found", change.found.len());
        self.count("gone", change.gone.len());
    }

    /// Look-ups of `name` began to fail; the name keeps its last good set, which has `kept` peers.
    pub(super) fn failed(&mut self, now: Duration, name: &str, failure: &Failure, kept: usize) {
        let Self { url, lines, .. } = self;
        if let Some(unsaid) = lines.take(now) {
            tracing::warn!(url, name, %failure, kept, unsaid, "look-up failed; the last good set is kept");
        }
        self.count("kept", 1);
    }

    /// Look-ups of `name` succeed again, after `failures` of them failed.
    pub(super) fn succeeded(&mut self, now: Duration, name: &str, failures: u32) {
        let Self { url, lines, .. } = self;
        if let Some(unsaid) = lines.take(now) {
            tracing::info!(url, name, failures, unsaid, "look-ups succeed again");
        }
    }

    /// A user of the set says that these peers do not answer.
    pub(super) fn doubted(&mut self, now: Duration, addrs: &BTreeSet<String>) {
        let Self { url, doubts, .. } = self;
        if let Some(unsaid) = doubts.take(now) {
            let named: Vec<Peer> =
                addrs.iter().take(NAMED_MAX + 1).map(|addr| Peer { addr: addr.clone() }).collect();
            tracing::info!(url, peers = some(&named), unsaid, "peers were reported dead; asking again");
        }
        self.count("reported_dead", addrs.len());
    }

    fn count(&self, reason: &'static str, n: usize) {
        if n > 0 {
            self.changes.add(n as u64, &[KeyValue::new("trellis.reason", reason)]);
        }
    }
}

/// The first few of the peers.
fn some(peers: &[Peer]) -> String {
    let mut named: Vec<&str> = peers.iter().take(NAMED_MAX).map(|peer| peer.addr.as_str()).collect();
    let more = format!("and {} more", peers.len().saturating_sub(NAMED_MAX));
    if peers.len() > NAMED_MAX {
        named.push(&more);
    }
    named.join(" ")
}

/// Whether a line may be logged. Pure.
#[derive(Debug, Default)]
struct Lines {
    window: Duration,
    said: u32,
    unsaid: u32,
}

impl Lines {
    /// `Some`: the caller may log one more line. The number says how many lines were not logged since the last one.
    fn take(&mut self, now: Duration) -> Option<u32> {
        if now.saturating_sub(self.window) >= WINDOW {
            (self.window, self.said) = (now, 0);
        }
        if self.said >= LINES_MAX {
            self.unsaid = self.unsaid.saturating_add(1);
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_line_is_lost_without_being_counted_and_no_minute_has_too_many(
            waits in prop::collection::vec(0_u64..20_000, 1..300),
        ) {
            let mut lines = Lines::default();
            let (mut now, mut said, mut counted) = (Duration::ZERO, Vec::new(), 0);
            for (events, wait) in waits.iter().enumerate() {
                now += Duration::from_millis(wait / 10);
                if let Some(unsaid) = lines.take(now) {
                    counted += unsaid as usize + 1;
                    prop_assert_eq!(counted, events + 1);
                    said.push(now);
                }
            }
            // windows are fixed, so any minute has at most the lines of two
            for at in &said {
                let near = said.iter().filter(|other| **other >= *at && **other < *at + WINDOW).count();
                prop_assert!(near <= 2 * LINES_MAX as usize);
            }
        }
    }

    #[test]
    fn a_line_names_few_peers_and_says_how_many_more_there_are() {
        let peers: Vec<Peer> = (0..64).map(|n| Peer { addr: format!("h{n}:1") }).collect();
        assert_eq!(some(&peers[..2]), "h0:1 h1:1");
        assert!(some(&peers).ends_with("h7:1 and 56 more"), "{}", some(&peers));
    }

    #[test]
    fn the_counter_has_a_series_for_each_reason_and_none_for_a_peer() {
        let meters = crate::testing::Meters::new();
        let mut teller = Teller::new("dns://head".to_owned(), &meters.meter("test"));
        for n in 0..100 {
            let peer = |port: u16| vec![Peer { addr: format!("10.0.0.{n}:{port}") }];
            teller.changed(Duration::ZERO, &Change { found: peer(1), gone: peer(2) }, 1);
            teller.failed(Duration::ZERO, &format!("head-{n}"), &Failure::NotFound("nobody"), 1);
            teller.doubted(Duration::ZERO, &BTreeSet::from([format!("10.0.0.{n}:1")]));
        }
        assert_eq!(meters.series()["trellis.discovery.changes"], 4);
    }
}
