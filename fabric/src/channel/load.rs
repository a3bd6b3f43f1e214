//! Bytes in flight on each connection to one peer, and the choice of a connection for a call.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Most connections to one peer. A connection is one task at either end, so this is the number of cores that the answers to one
/// client may keep busy at the peer. It also bounds the cost of one client for a peer that serves tens of thousands.
pub const CONNECTIONS_MAX: usize = 4;

/// Bytes in flight on one connection before a call goes to another: two messages of a head, one on its way while the head makes the
/// other. More calls on one connection would only wait for each other.
pub(super) const CONNECTION_BUDGET_BYTES: u64 = 1 << 20;

/// The least that a call counts for, also a call of unknown size: a sixteenth of the budget. A few small calls share a connection, a
/// flood of them does not.
pub(super) const CALL_BYTES_MIN: u64 = 64 << 10;

/// Bytes in flight by connection.
#[derive(Debug, Default)]
pub(super) struct Load(Mutex<[u64; CONNECTIONS_MAX]>);

impl Load {
    pub(super) fn lanes(&self) -> MutexGuard<'_, [u64; CONNECTIONS_MAX]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes that a call counts for on its connection, until this is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    load: Arc<Load>,
    pub(super) lane: usize,
    least: u64,
    arrived: AtomicU64,
}

impl InFlight {
    pub(super) fn on(load: &Arc<Load>, bytes: u64) -> Self {
        let mut lanes = load.lanes();
        let lane = choose(&*lanes, bytes);
        lanes[lane] += bytes;
        Self { load: load.clone(), lane, least: bytes, arrived: AtomicU64::new(0) }
    }

    /// Counts more bytes of the answer.
    pub(super) fn arrived(&self, bytes: u64) {
        let before = self.arrived.fetch_add(bytes, Relaxed);
        let more = (before + bytes).max(self.least) - before.max(self.least);
        if more > 0 {
            self.load.lanes()[self.lane] += more;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.lanes()[self.lane] -= self.least.max(*self.arrived.get_mut());
    }
}

/// The first connection that is idle or has room for `bytes`, else the one with the least in flight.
fn choose(in_flight: &[u64], bytes: u64) -> usize {
    let has_room = |&lane: &u64| lane == 0 || lane.saturating_add(bytes) <= CONNECTION_BUDGET_BYTES;
    let least = || in_flight.iter().enumerate().min_by_key(|(_, lane)| **lane).map_or(0, |(index, _)| index);
    in_flight.iter().position(has_room).unwrap_or_else(least)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: u64 = CONNECTION_BUDGET_BYTES;

    /// Idle, small, just about the budget, far over it.
    fn bytes() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 1..2 * CALL_BYTES_MIN, BUDGET - 2..BUDGET + 2, BUDGET..64 * BUDGET]
    }

    /// Tries every connection. The best one stays within the budget, or was idle; then comes a lower load, then an earlier place.
    fn oracle(in_flight: &[u64], bytes: u64) -> usize {
        let mut best = 0;
        for lane in 1..in_flight.len() {
            let rank = |lane: usize| {
                let over = in_flight[lane] > 0 && in_flight[lane] + bytes > BUDGET;
                (over, if over { in_flight[lane] } else { 0 })
            };
            if rank(lane) < rank(best) {
                best = lane;
            }
        }
        best
    }

    proptest! {
        #[test]
        fn the_choice_is_the_oracles(
            in_flight in prop::collection::vec(bytes(), 1..=2 * CONNECTIONS_MAX),
            bytes in bytes(),
        ) {
            let lane = choose(&in_flight, bytes);
            prop_assert_eq!(lane, oracle(&in_flight, bytes));
            let idle = in_flight.contains(&0);
            prop_assert!(!idle || in_flight[lane] == 0 || in_flight[lane] + bytes <= BUDGET);
            // a further connection is opened only if the earlier ones have no room
            prop_assert!(in_flight[lane] > 0 || in_flight[..lane].iter().all(|other| other + bytes > BUDGET));
        }

        #[test]
        fn what_is_counted_is_given_back(steps in prop::collection::vec((0..4_u8, bytes(), any::<prop::sample::Index>()), 1..200)) {
            let load = Arc::<Load>::default();
            // guard, what it counted for at first, what has arrived
            let mut calls: Vec<(InFlight, u64, u64)> = Vec::new();
            for (step, bytes, index) in steps {
                match step {
                    0 | 1 => {
                        let expected = oracle(&*load.lanes(), bytes);
                        let call = InFlight::on(&load, bytes);
                        prop_assert_eq!(call.lane, expected);
                        calls.push((call, bytes, 0));
                    }
                    2 if !calls.is_empty() => {
                        let call = index.get_mut(&mut calls);
                        call.0.arrived(bytes);
                        call.2 += bytes;
                    }
                    3 if !calls.is_empty() => drop(calls.swap_remove(index.index(calls.len()))),
                    _ => {}
                }
                let mut counted = [0; CONNECTIONS_MAX];
                for (call, least, arrived) in &calls {
                    counted[call.lane] += least.max(arrived);
                }
                prop_assert_eq!(*load.lanes(), counted);
            }
            drop(calls);
            prop_assert_eq!(*load.lanes(), [0; CONNECTIONS_MAX]);
        }

        #[test]
        fn calls_one_after_the_other_stay_on_the_first(sizes in prop::collection::vec(bytes(), 1..50)) {
            let load = Arc::<Load>::default();
            for bytes in sizes {
                let call = InFlight::on(&load, bytes);
                call.arrived(2 * bytes);
                prop_assert_eq!(call.lane, 0);
            }
        }
    }
}
