//! The runs that were committed to a dataset: how the shard knows a publish or an import that comes again. Pure.

use std::collections::{BTreeSet, HashMap};

use trellis_proto::time::DAY_NS;

/// How long a run id is known after its commit, by the knowledge times of its dataset. A client asks again within minutes, and a unit
/// that was away for days goes on with the sessions that it finds unpublished. The newest run of each session and partition is known for
/// ever, and so is the newest import of the same rows.
pub(crate) const RUNS_KEPT_NS: i64 = 30 * DAY_NS;

/// With fewer runs than this, the shard does not search them for those that may go.
const RUNS_MIN: usize = 1_024;

/// A session and a partition of it. A publish replaces the last one with the same key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey {
    /// A date, as it was published.
    pub(crate) session: String,
    pub(crate) partition: String,
}

/// A run that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommittedRun {
    pub(crate) digest: String,
    pub(crate) version: u64,
    pub(crate) known_at: i64,
    pub(crate) rows: u64,
    pub(crate) retracted: u64,
    /// `None` for imports and changes by hand.
    pub(crate) session: Option<SessionKey>,
}

impl CommittedRun {
    /// Stands for the knowledge time of a change by hand, which has no rows.
    const OF_CHANGE: i64 = i64::MIN;

    /// A change by hand that was committed as `version` and wrote `rewritten` files anew.
    pub(crate) fn of_change(version: u64, rewritten: u64) -> Self {
        Self {
            digest: String::new(),
            version,
            known_at: Self::OF_CHANGE,
            rows: rewritten,
            retracted: 0,
            session: None,
        }
    }

    /// Whether it is a change of the dataset by hand, and no run.
    pub(super) fn is_change(&self) -> bool {
        self.known_at == Self::OF_CHANGE
    }
}

/// A committed run and its id.
pub(crate) type NamedRun = (String, CommittedRun);

/// The committed runs of a dataset.
#[derive(Debug, Default)]
pub(super) struct CommittedRuns {
    by_id: HashMap<String, CommittedRun>,
    newest: HashMap<SessionKey, String>,
    /// The knowledge times of the publishes of each partition.
    partitions: HashMap<SessionKey, BTreeSet<i64>>,
    /// The knowledge time of the newest publish of any partition, by session.
    partitioned: HashMap<String, i64>,
    /// The newest import by digest.
    imports: HashMap<String, String>,
    /// The newest knowledge time.
    known_through: Option<i64>,
    /// With this many runs, the shard searches them for those that may go.
    full: usize,
}

impl CommittedRuns {
    /// Forgets the runs when the dataset is dropped. Changes by hand are kept.
    pub(super) fn forget_dropped(&mut self) {
        let mut before = std::mem::take(self);
        before.by_id.retain(|_, run| run.is_change());
        self.by_id = before.by_id;
    }

    /// Adds a run. When a table is loaded whole, runs come in any order.
    pub(super) fn add(&mut self, id: String, run: CommittedRun) {
        // An import that was made again after a change by hand has two commits.
        if self.by_id.get(&id).is_some_and(|known| known.version > run.version) {
            return;
        }
        if let Some(key) = &run.session {
            let newest = self.newest.get(key).and_then(|id| self.by_id.get(id));
            if newest.is_none_or(|newest| newest.known_at < run.known_at) {
                self.newest.insert(key.clone(), id.clone());
            }
            if !key.partition.is_empty() {
                self.partitions.entry(key.clone()).or_default().insert(run.known_at);
                let newest = self.partitioned.entry(key.session.clone()).or_insert(run.known_at);
                *newest = run.known_at.max(*newest);
            }
        } else if !run.is_change() {
            let newest = self.imports.get(&run.digest).and_then(|id| self.by_id.get(id));
            if newest.is_none_or(|newest| newest.known_at < run.known_at) {
                self.imports.insert(run.digest.clone(), id.clone());
            }
        }
        if !run.is_change() {
            self.known_through = self.known_through.max(Some(run.known_at));
        }
        self.by_id.insert(id, run);
        if self.by_id.len() > self.full.max(RUNS_MIN) {
            let mut by_id = std::mem::take(&mut self.by_id);
            by_id.retain(|id, run| self.keeps(id, run));
            self.by_id = by_id;
            // Twice as many as are needed: each run is looked at few times.
            self.full = 2 * self.by_id.len();
        }
    }

    /// Whether the run is known: it was committed not long ago, or it is the newest of its session and partition.
    fn keeps(&self, id: &str, run: &CommittedRun) -> bool {
        let newest = match &run.session {
            Some(key) => self.newest.get(key),
            None => self.imports.get(&run.digest),
        };
        run.is_change()
            || newest.is_some_and(|newest| newest == id)
            || self.known_through.is_none_or(|newest| newest.saturating_sub(run.known_at) <= RUNS_KEPT_NS)
    }

    /// The newest publish of a session and partition, if nobody has published any other part of the session since.
    pub(super) fn newest(&self, key: &SessionKey) -> Option<CommittedRun> {
        let of = |key: &SessionKey| self.by_id.get(self.newest.get(key)?);
        let newest = of(key)?;
        let whole = of(&SessionKey { session: key.session.clone(), partition: String::new() });
        let since = whole.map(|run| run.known_at).max(self.partitioned.get(&key.session).copied());
        since.is_none_or(|since| since <= newest.known_at).then(|| newest.clone())
    }

    /// The commit of a run id, if there was one.
    pub(super) fn get(&self, id: &str) -> Option<CommittedRun> {
        self.by_id.get(id).filter(|run| self.keeps(id, run)).cloned()
    }

    /// The newest import of the content with this digest.
    pub(super) fn newest_import(&self, digest: &str) -> Option<CommittedRun> {
        self.imports.get(digest).and_then(|id| self.by_id.get(id)).cloned()
    }

    /// The knowledge times of the publishes of a session and partition.
    pub(super) fn published(&self, key: &SessionKey) -> BTreeSet<i64> {
        self.partitions.get(key).cloned().unwrap_or_default()
    }

    /// How many runs are known.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Every committed run, in no order.
    pub(super) fn all(&self) -> Vec<NamedRun> {
        let known = self.by_id.iter().filter(|(id, run)| self.keeps(id, run));
        known.map(|(id, run)| (id.clone(), run.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(day: i64, session: Option<&str>) -> CommittedRun {
        let key = |session: &str| SessionKey { session: session.to_owned(), partition: String::new() };
        CommittedRun {
            digest: format!("digest-{day}"),
            version: day as u64,
            known_at: day * DAY_NS,
            rows: 1,
            retracted: 0,
            session: session.map(key),
        }
    }

    #[test]
    fn of_ten_thousand_runs_of_a_session_those_of_thirty_days_are_known_and_of_another_session_its_newest() {
        let ids: Vec<i64> = (0..10_000).collect();
        // A table that is loaded whole has its runs in any order.
        for order in [ids.clone(), ids.iter().rev().copied().collect()] {
            let mut runs = CommittedRuns::default();
            runs.add("other".to_owned(), run(-1, Some("2016-08-09")));
            runs.add("changed".to_owned(), CommittedRun::of_change(3, 0));
            for &day in &order {
                runs.add(format!("r{day}"), run(day, Some("2016-08-10")));
            }
            let known = ids.iter().filter(|day| runs.get(&format!("r{day}")).is_some());
            assert_eq!(known.copied().collect::<Vec<_>>(), (9_969..10_000).collect::<Vec<_>>());
            assert!(runs.get("other").is_some() && runs.get("changed").is_some());
            assert_eq!(runs.all().len(), 33);
            assert!(runs.by_id.len() <= RUNS_MIN + 1, "{}", runs.by_id.len());
            let key = SessionKey { session: "2016-08-10".to_owned(), partition: String::new() };
            assert_eq!(runs.newest(&key).unwrap().known_at, 9_999 * DAY_NS);
        }
    }
}
