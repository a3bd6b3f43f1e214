//! Every instrument of a unit, in one place: its runs, in a deployed process and in a notebook. The unit's name is an attribute of the
//! process, not of a figure.

use std::{sync::OnceLock, time::Duration};

use trellis_fabric::{
    clock,
    telemetry::{
        self, KeyValue,
        metrics::{Counter, Gauge, Histogram},
    },
};
use trellis_proto::{pb, runs};

/// A step of a run.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// The inputs are read; in a deployed process the child starts meanwhile.
    Read,
    /// The strategy computes.
    Compute,
    /// The result is published.
    Publish,
}

struct Runs {
    duration: Histogram<f64>,
    last_success: Gauge<f64>,
    steps: Histogram<f64>,
    cpu: Counter<f64>,
    memory: Histogram<u64>,
}

/// `None` while no metrics are exported.
fn instruments() -> Option<&'static Runs> {
    static RUNS: OnceLock<Runs> = OnceLock::new();
    let made = || {
        let meter = telemetry::meter("trellis-qcu");
        Runs {
            duration: meter
                .f64_histogram("trellis.run.duration")
                .with_unit("s")
                .with_description("Time of one attempt at a run, by outcome.")
                .build(),
            last_success: meter
                .f64_gauge("trellis.run.last_success")
                .with_unit("s")
                .with_description(
                    "Time of the end of the last attempt that succeeded, in seconds since 1970.",
                )
                .build(),
            steps: meter
                .f64_histogram("trellis.run.step.duration")
                .with_unit("s")
                .with_description("Time of one step of an attempt: read, compute, publish.")
                .build(),
            cpu: meter
                .f64_counter("trellis.run.cpu.time")
                .with_unit("s")
                .with_description("Processor time of the strategy's process, by mode.")
                .build(),
            memory: meter
                .u64_histogram("trellis.run.memory.peak")
                .with_unit("By")
                .with_description("Largest resident memory of the strategy's process in one attempt.")
                .build(),
        }
    };
    telemetry::measuring().then(|| RUNS.get_or_init(made))
}

/// An attempt at a run has ended.
pub fn attempt_ended(outcome: pb::RunOutcome, took: Duration) {
    if let Some(runs) = instruments() {
        let name = KeyValue::new("trellis.outcome", runs::outcome_name(outcome));
        runs.duration.record(took.as_secs_f64(), &[name]);
        if outcome == pb::RunOutcome::Succeeded {
            runs.last_success.record(clock::now_ns() as f64 * 1e-9, &[]);
        }
    }
}

/// A step has ended, well or not.
pub fn step_ended(step: Step, took: Duration) {
    if let Some(runs) = instruments() {
        let step = match step {
            Step::Read => "read",
            Step::Compute => "compute",
            Step::Publish => "publish",
        };
        runs.steps.record(took.as_secs_f64(), &[KeyValue::new("trellis.step", step)]);
    }
}

/// What the strategy's process used for one attempt.
pub(crate) fn used(user_us: u64, system_us: u64, rss_max_bytes: u64) {
    if let Some(runs) = instruments() {
        for (us, mode) in [(user_us, "user"), (system_us, "system")] {
            runs.cpu.add(us as f64 * 1e-6, &[KeyValue::new("cpu.mode", mode)]);
        }
        runs.memory.record(rss_max_bytes, &[]);
    }
}
