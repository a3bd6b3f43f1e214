//! `txn` actions keep what must outlive the process and the clean-up of the log: checkpoints have them, too. Pure.
//!
//! | application id                     | version               |
//! | ---------------------------------- | --------------------- |
//! | `trellis-publisher`                | the newest epoch      |
//! | `trellis-holder [unit, instance, ttl_ms]` | the epoch that was granted; an empty unit is nobody |
//! | `trellis-released`                 | the newest epoch that was given back |
//! | `trellis-run [id, digest, known_at_ns, rows, session, partition, retracted]` | the table's version; imports have no session |
//! | `trellis-imported`                 | the version of the newest import |
//! | `trellis-altered`                  | the version of the newest change of the dataset by hand |
//! | `trellis-watermark`                | nanoseconds           |

use std::{collections::HashMap, time::Duration};

use super::{
    delta::{Actions, Txn},
    lease::{Grant, Holder, StoredLease, TTL_DEFAULT},
    runs::{CommittedRun, NamedRun, SessionKey},
};
use crate::files::Life;

/// Application id of the epoch.
const PUBLISHER: &str = "trellis-publisher";
/// Application id of the epoch that was given back.
const RELEASED: &str = "trellis-released";
/// Application id of the newest import.
const IMPORTED: &str = "trellis-imported";
/// Application id of the newest change by hand.
const ALTERED: &str = "trellis-altered";
const HOLDER: &str = "trellis-holder ";
const RUN: &str = "trellis-run ";
/// Application id of the watermark.
const WATERMARK: &str = "trellis-watermark";
/// The watermark of a dataset that has none, under the name of a dropped one that had one.
const NO_WATERMARK: i64 = i64::MIN;

impl Actions {
    /// Grants an epoch.
    pub(crate) fn grant(&mut self, grant: &Grant, now_ms: i64) {
        self.txn(PUBLISHER, grant.epoch as i64, now_ms);
        self.txn(&holder_txn(grant), grant.epoch as i64, now_ms);
    }

    /// Gives an epoch back.
    pub(crate) fn release(&mut self, epoch: u64, now_ms: i64) {
        self.txn(RELEASED, epoch as i64, now_ms);
    }

    /// Records that the run `id` was committed, with [`CommittedRun::version`].
    pub(crate) fn run(&mut self, id: &str, run: &CommittedRun, now_ms: i64) {
        self.txn(&run_txn(id, run), run.version as i64, now_ms);
    }

    /// Records that `version` is the newest import.
    pub(crate) fn imported(&mut self, version: u64, now_ms: i64) {
        self.txn(IMPORTED, version as i64, now_ms);
    }

    /// Records that `version` is the newest change by hand.
    pub(crate) fn altered(&mut self, version: u64, now_ms: i64) {
        self.txn(ALTERED, version as i64, now_ms);
    }

    /// Sets the watermark, in nanoseconds; `None`: from now on there is none.
    pub(crate) fn watermark(&mut self, watermark: Option<i64>, now_ms: i64) {
        self.txn(WATERMARK, watermark.unwrap_or(NO_WATERMARK), now_ms);
    }
}

/// The application id that carries a grant's holder.
fn holder_txn(grant: &Grant) -> String {
    let holder = (&grant.holder.unit, &grant.holder.instance, grant.ttl.as_millis() as u64);
    format!("{HOLDER}{}", serde_json::json!(holder))
}

/// The application id that carries a committed run.
fn run_txn(id: &str, run: &CommittedRun) -> String {
    let CommittedRun { digest, known_at, rows, retracted, session, version: _ } = run;
    let (session, partition) = session.as_ref().map(|key| (&key.session, &key.partition)).unzip();
    format!("{RUN}{}", serde_json::json!((id, digest, known_at, rows, session, partition, retracted)))
}

/// A run as the log has it: id, digest, knowledge time, rows, session, partition, retracted rows. What earlier releases wrote
/// ends sooner.
#[derive(serde::Deserialize)]
struct StoredRun(
    String,
    String,
    i64,
    u64,
    #[serde(default)] Option<String>,
    #[serde(default)] Option<String>,
    #[serde(default)] u64,
);

fn parse_run(app: &str, txn: &Txn) -> Option<NamedRun> {
    let StoredRun(id, digest, known_at, rows, session, partition, retracted) =
        serde_json::from_str(app.strip_prefix(RUN)?).ok()?;
    let session = session.zip(partition).map(|(session, partition)| SessionKey { session, partition });
    let version = txn.version.unsigned_abs();
    Some((id, CommittedRun { digest, version, known_at, rows, retracted, session }))
}

/// The runs of the dataset. Those of a dropped dataset that had the name before are left out. Changes by hand are kept: if a
/// client asks again for a drop that was made, the dataset that has the name now must not be dropped.
pub(super) fn runs_of(txns: &HashMap<String, Txn>, life: &Life) -> Vec<NamedRun> {
    let runs = txns.iter().filter_map(|(app, txn)| parse_run(app, txn));
    runs.filter(|(_, run)| run.version >= life.since || run.is_change()).collect()
}

/// The watermark, in nanoseconds.
pub(super) fn watermark_of(txns: &HashMap<String, Txn>) -> Option<i64> {
    txns.get(WATERMARK).map(|txn| txn.version).filter(|watermark| *watermark != NO_WATERMARK)
}

/// The version of the newest import.
pub(super) fn imported_of(txns: &HashMap<String, Txn>) -> Option<u64> {
    txns.get(IMPORTED).map(|txn| txn.version.unsigned_abs())
}

/// The version of the newest change by hand.
pub(super) fn altered_of(txns: &HashMap<String, Txn>) -> Option<u64> {
    txns.get(ALTERED).map(|txn| txn.version.unsigned_abs())
}

/// The lease after these transactions; `before` is the lease before them.
pub(super) fn lease_of(txns: &HashMap<String, Txn>, before: &StoredLease) -> StoredLease {
    let released = txns.get(RELEASED).map(|txn| txn.version.unsigned_abs());
    let grant = match (grant_of(txns), before) {
        (Some(grant), _) => grant,
        (None, StoredLease::Held(grant)) => grant.clone(),
        (None, StoredLease::Never | StoredLease::Released(_)) => return before.clone(),
    };
    if grant.holder.unit.is_empty() || released == Some(grant.epoch) {
        StoredLease::Released(grant)
    } else {
        StoredLease::Held(grant)
    }
}

fn grant_of(txns: &HashMap<String, Txn>) -> Option<Grant> {
    let newest = txns.get(PUBLISHER)?;
    let holder = txns.iter().filter(|(_, txn)| txn.version == newest.version).find_map(|(app, txn)| {
        let (unit, instance, ttl_ms): (String, String, u64) =
            serde_json::from_str(app.strip_prefix(HOLDER)?).ok()?;
        Some((Holder { unit, instance }, Duration::from_millis(ttl_ms), txn.updated_ms))
    });
    // Another tool committed an epoch without a holder. It fences all the same.
    let (holder, ttl, since_ms) = holder.unwrap_or_else(|| {
        (
            Holder { unit: "unknown".to_owned(), instance: "unknown".to_owned() },
            TTL_DEFAULT,
            newest.updated_ms,
        )
    });
    Some(Grant {
        epoch: newest.version.unsigned_abs(),
        holder,
        since_ns: since_ms.saturating_mul(1_000_000),
        ttl,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_and_a_run_read_back_from_their_transactions() {
        let grant = Grant {
            epoch: 4,
            holder: Holder { unit: "mom".to_owned(), instance: "host:1 \"x\"".to_owned() },
            since_ns: 5_000_000,
            ttl: Duration::from_millis(700),
        };
        let old = Grant { epoch: 3, ..grant.clone() };
        let txn = |version| Txn { version, updated_ms: 5 };
        let txns = HashMap::from([
            (PUBLISHER.to_owned(), txn(4)),
            (
                holder_txn(&Grant { holder: Holder { unit: "old".to_owned(), ..old.holder.clone() }, ..old }),
                txn(3),
            ),
            (holder_txn(&grant), txn(4)),
        ]);
        assert_eq!(lease_of(&txns, &StoredLease::Never), StoredLease::Held(grant.clone()));
        let given_back = HashMap::from([(RELEASED.to_owned(), txn(4))]);
        assert_eq!(
            lease_of(&given_back, &StoredLease::Held(grant.clone())),
            StoredLease::Released(grant.clone())
        );
        let an_older_one = HashMap::from([(RELEASED.to_owned(), txn(3))]);
        assert_eq!(
            lease_of(&an_older_one, &StoredLease::Held(grant.clone())),
            StoredLease::Held(grant.clone())
        );
        let mut all = txns;
        all.extend(given_back);
        assert_eq!(lease_of(&all, &StoredLease::Never), StoredLease::Released(grant));

        let of_run = |retracted, session| CommittedRun {
            digest: "ab".to_owned(),
            version: 12,
            known_at: -3,
            rows: 9,
            retracted,
            session,
        };
        let id = "r \"1\"".to_owned();
        let key = SessionKey { session: "2016-08-10".to_owned(), partition: "\"p".to_owned() };
        for session in [None, Some(key.clone())] {
            let run = of_run(2, session);
            assert_eq!(parse_run(&run_txn(&id, &run), &txn(12)), Some((id.clone(), run)));
        }
        let before = format!("{RUN}{}", serde_json::json!((&id, "ab", -3, 9)));
        assert_eq!(parse_run(&before, &txn(12)), Some((id.clone(), of_run(0, None))), "as it was once");
        let before = format!("{RUN}{}", serde_json::json!((&id, "ab", -3, 9, &key.session, &key.partition)));
        assert_eq!(parse_run(&before, &txn(12)), Some((id, of_run(0, Some(key)))), "as it was once");
    }
}
