//! How a run ended: for the process that started `qcu`, as one line of JSON.

use std::time::Duration;

use chrono::NaiveDate;
use trellis_proto::{Error, pb, runs, time::format_time};

use super::status::{first_line, utc_seconds};

/// How a run ended, after all its attempts.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// Name of the unit.
    pub unit: String,
    /// Session of the run.
    pub session: NaiveDate,
    /// Identity of the run; empty if the inputs could not be read.
    pub run_id: String,
    /// Outcome of the last attempt.
    pub outcome: pb::RunOutcome,
    /// What went wrong, unless it succeeded.
    pub error: Option<Error>,
    /// Acknowledgement of the publish.
    pub ack: Option<pb::PublishAck>,
    /// Attempts made.
    pub attempts: u32,
    /// Time since the first attempt's start.
    pub elapsed: Duration,
    /// When it ended, nanoseconds UTC.
    pub finished_ns: i64,
}

impl Report {
    /// As JSON, for the process that reads this one's stdout.
    #[must_use]
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "run": self.run_id,
            "unit": self.unit,
            "session": self.session.to_string(),
            "outcome": runs::outcome_name(self.outcome),
            "error": self.error.as_ref().map(ToString::to_string),
            "error_line": self.error.as_ref().map(|error| first_line(error.message())),
            "exit_code": self.exit_code(),
            "rows": self.ack.as_ref().map(|ack| ack.rows),
            "dataset": self.ack.as_ref().map(|ack| ack.dataset.as_str()),
            "version": self.ack.as_ref().map(|ack| ack.version),
            "known_at": self.ack.as_ref().map(|ack| format_time(ack.known_at_ns)),
            "duplicate": self.ack.as_ref().map(|ack| ack.duplicate),
            "attempts": self.attempts,
            "elapsed_ms": self.elapsed.as_millis() as u64,
            "finished_at": utc_seconds(self.finished_ns),
        })
    }

    /// 0 for a success, otherwise the exit code of the error.
    #[must_use]
    pub(crate) fn exit_code(&self) -> u8 {
        self.error.as_ref().map_or(0, |error| error.code().exit_code())
    }
}
