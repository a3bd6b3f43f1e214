//! A publish that has been accepted: its rows and its retractions, as the files and the later publishes of its group see them.

use std::ops::Range;

use arrow_array::RecordBatch;
use trellis_proto::{DatasetSpec, Result};

use crate::{
    scan::{Key, Newest},
    table::{CommittedRun, Grant},
    write::{
        request::{Effect, Publish, Reply},
        rows::retractions,
    },
};

/// A publish that goes into the next commit.
pub(super) struct Accepted {
    pub(super) publish: Box<Publish>,
    pub(super) known_at: i64,
    /// The epoch that its commit grants and gives back.
    pub(super) once: Option<Grant>,
    /// The rows that it retracts because it replaces a session.
    pub(super) retracted: Vec<Key>,
    /// Least and greatest event time of its rows.
    pub(super) span: Option<(i64, i64)>,
    /// Its publisher, and every publisher that sent the same run id meanwhile.
    pub(super) replies: Vec<Reply>,
}

impl Accepted {
    /// Its rows and its retractions as they are stored.
    pub(super) fn exact(&self, spec: &DatasetSpec) -> Result<Vec<RecordBatch>> {
        if self.publish.effect == Effect::Retracts {
            return Ok(vec![retractions(spec, &self.publish.rows.keys()?, self.known_at)?]);
        }
        let mut parts = vec![self.publish.rows.exact(spec, self.known_at)?];
        if !self.retracted.is_empty() {
            parts.push(retractions(spec, &self.retracted, self.known_at)?);
        }
        Ok(parts)
    }

    /// The run, once it is committed as `version`.
    pub(super) fn committed(&self, version: u64) -> CommittedRun {
        CommittedRun {
            digest: self.publish.digest.clone(),
            version,
            known_at: self.known_at,
            rows: self.publish.rows.len() as u64,
            retracted: self.retracts() as u64,
            session: self.publish.session.clone(),
        }
    }

    /// How many rows it retracts.
    pub(super) fn retracts(&self) -> usize {
        if self.publish.effect == Effect::Retracts { self.publish.rows.len() } else { self.retracted.len() }
    }

    /// Whether it writes or retracts rows with event times in `range`.
    pub(super) fn touches(&self, range: &Range<i64>) -> bool {
        self.span.is_some_and(|(first, last)| first < range.end && range.start <= last)
            || self.retracted.iter().any(|key| range.contains(&key.1))
    }

    /// How many rows and retractions of `symbol` in `range` it writes.
    pub(super) fn count(&self, symbol: &str, range: &Range<i64>) -> usize {
        let retracted = self.retracted.iter();
        self.publish.rows.count(symbol, range)
            + retracted.filter(|key| key.0.as_str() == symbol && range.contains(&key.1)).count()
    }

    /// Adds its rows and retractions to `newest`.
    pub(super) fn tell(&self, range: &Range<i64>, newest: &mut Newest) -> Result<()> {
        for key in self.publish.rows.keys()?.into_iter().filter(|key| range.contains(&key.1)) {
            newest.learn(key, self.known_at, false);
        }
        for key in self.retracted.iter().filter(|key| range.contains(&key.1)) {
            newest.learn(key.clone(), self.known_at, true);
        }
        Ok(())
    }
}
