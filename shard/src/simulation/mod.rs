//! Two shards that both believe to be home to one dataset, in a world that is hostile and deterministic: one seed, one run.
//!
//! Nothing happens by itself. Every operation on the object store, and every message between a publisher or reader and a
//! shard, waits until a seeded scheduler picks it; between two picks everybody runs until all wait again. So a shard that
//! is not picked sleeps, for longer than any lease; a shard that dies leaves operations that have happened or not; an
//! answer that is lost is one that the scheduler withholds; a line that is cut is a message that it drops, or delivers when
//! nobody listens any more. Time is the runtime's paused time, so leases run out when the scheduler says that time
//! passes, and each shard has a wall clock of its own that is minutes off and jumps.
//!
//! Beside it stands a plain list of what was sent and accepted ([`model`]). After every step the log itself is compared with
//! it: epochs are accepted in order, no run id twice, knowledge times only grow and never into what a reader was told
//! is complete, no file that the table needs is gone; every answer is compared with the list when it is given. In the end
//! everything is read back, on both shards, after a restart, and after compaction and removal.
//!
//! What is not simulated: operations within one read or write of the Delta kernel, and within the decoding of data
//! files, which run on threads of their own; each is one instant here (see [`disk`]). The transport and the heads are not
//! part of it; whole processes are put through the same in the workspace's tests.
//!
//! | file | subject |
//! | --- | --- |
//! | `world` | who there is, and what happens next |
//! | `faults`, `ending` | what goes wrong; how it ends |
//! | `calls` | what is asked of a shard |
//! | `disk` | the object store |
//! | `model` | what must be true |
//! | `seed` | choices |
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
