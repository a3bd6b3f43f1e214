//! Two shards that both take themselves for the home of one dataset, in a hostile and deterministic world: one seed, one run.
//!
//! Nothing happens by itself. Every operation on the object store waits until a seeded scheduler picks it, and so does every message
//! between a shard and a publisher or reader. Between two picks all tasks run until all wait again. So the scheduler can make a
//! shard sleep for longer than any lease, kill it with operations done or not done, withhold an answer, and drop a message or
//! deliver it when nobody listens any more. Time is the runtime's paused time: leases run out when the scheduler lets time pass.
//! Each shard has a wall clock of its own that is minutes off and jumps. The store is a disk: an entry of the log can be seen before
//! it is durable, and a cut of the power takes it away then. No shard may have told anybody of it. For a while, a bit may be
//! wrong in a third of a shard's reads: the shard may then fail, and must answer nothing that is wrong.
//!
//! A plain list ([`model`]) has all publishes that were sent and accepted. After every step the log is compared with it: epochs are
//! accepted in order, no run id occurs twice, knowledge times only grow, nothing becomes known in a time that a reader was told is
//! complete, and no file that the table needs is gone. Every answer is compared with the list as well. In the end everything is
//! read back, on both shards, after a restart, and after compaction and removal.
//!
//! Not simulated are the steps within one read or write of the Delta kernel, and within the decoding of a data file. They run on
//! other threads, and each read or write is one instant here (see [`disk`]). Nor are the transport and the heads: the workspace's
//! tests do the same with whole processes.
//!
//! | file | subject |
//! | --- | --- |
//! | `world` | shards, publishers, a reader, and the scheduler |
//! | `faults` | the faults |
//! | `ending` | the end of a run |
//! | `calls` | the calls of a shard |
//! | `disk` | the object store |
//! | `model` | the list, and the rules |
//! | `seed` | random choices |
//!
//! `TRELLIS_SEED` runs one seed, `TRELLIS_STEPS` sets the length of a run.

mod calls;
mod disk;
mod ending;
mod faults;
mod model;
mod seed;
mod world;

use std::{collections::BTreeMap, panic};

use world::{Outcome, simulate};

/// Seeds of an ordinary run.
const SEEDS: u64 = 30;
/// Steps of one simulation.
const STEPS: usize = 500;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn steps() -> usize {
    variable("TRELLIS_STEPS").map_or(STEPS, |steps| steps as usize)
}

/// Runs a seed; a failure says which one it was, and what happened last.
fn run(seed: u64) -> Outcome {
    panic::catch_unwind(|| simulate(seed, steps())).unwrap_or_else(|cause| {
        eprintln!("to repeat it: TRELLIS_SEED={seed} TRELLIS_STEPS={}", steps());
        panic::resume_unwind(cause)
    })
}

#[test]
fn two_homes_accept_epochs_in_order_and_lose_double_and_rewrite_nothing() {
    let seeds = match variable("TRELLIS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..SEEDS,
    };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in seeds {
        for (what, count) in run(seed).counts {
            *counts.entry(what).or_default() += count;
        }
    }
    println!("{counts:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..4 {
        let (first, second) = (run(seed), run(seed));
        for (i, (a, b)) in first.trace.iter().zip(&second.trace).enumerate() {
            assert_eq!(a, b, "seed {seed}, line {i} of the trace");
        }
        assert_eq!(first, second);
    }
}
