//! Leases as commits: an epoch is granted or given back in an entry of the log. A renewal is not stored.

use std::time::Duration;

use serde_json::{Map, json};
use trellis_proto::{Code, Error, Result};

use super::{
    lease::{Acquire, Lease},
    request::Acquisition,
    writer::{CONFLICTS_MAX, Writer, create},
};
use crate::{
    error::internal,
    table::{Actions, Grant, Holder, not_dropped},
};

impl Writer {
    pub(super) async fn acquire(&mut self, asked: Acquisition) -> Result<Grant> {
        for _ in 0..CONFLICTS_MAX {
            let snapshot = self.look().await?;
            if let Some(snapshot) = &snapshot {
                snapshot.check_stays()?;
            }
            let mut evolved = None;
            let spec = match (not_dropped(&snapshot), &asked.spec) {
                (Some(snapshot), Some(spec)) => {
                    evolved = self.declared(&snapshot.spec, spec)?;
                    snapshot.spec.clone()
                }
                (Some(snapshot), None) => snapshot.spec.clone(),
                (None, Some(spec)) => spec.clone(),
                (None, None) => {
                    return Err(Error::new(
                        Code::UnknownDataset,
                        format!("there is no dataset {}", self.table.name),
                    )
                    .dataset(&self.table.name)
                    .hint("give its spec with the request for the lease, to make it"));
                }
            };
            let now_ns = self.table.context.clock.now_ms() * 1_000_000;
            let name = self.table.name.as_str();
            let now = self.table.now();
            let step = self.lease.acquire(name, now, now_ns, &asked.holder, asked.ttl, asked.take_over);
            let grant = match step.map_err(|e| e.dataset(name))? {
                Acquire::Already(lease) if evolved.is_none() => {
                    self.lease = lease;
                    return self.granted();
                }
                // The holder has the lease, but declares more fields now: grant it once more with them.
                Acquire::Already(_) => Grant {
                    epoch: self.lease.epoch() + 1,
                    holder: asked.holder.clone(),
                    since_ns: now_ns,
                    ttl: asked.ttl,
                },
                Acquire::Commit(grant) => grant,
            };
            let evolution = match (not_dropped(&snapshot), evolved) {
                (Some(before), Some(evolved)) => Some((before, self.evolution(before, evolved).await?)),
                _ => None,
            };
            let version = snapshot.as_ref().map_or(0, |s| s.version + 1);
            let now_ms = now_ns / 1_000_000;
            let info = Map::from_iter([(
                "trellis".to_owned(),
                json!({"lease": {"unit": grant.holder.unit, "instance": grant.holder.instance, "epoch": grant.epoch,
                    "ttl_ms": grant.ttl.as_millis() as u64}}),
            )]);
            let mut actions = Actions::new("GRANT", info, now_ms);
            if let Some((before, evolution)) = &evolution {
                evolution.describe(&mut actions, before, now_ms);
            }
            if not_dropped(&snapshot).is_none() {
                create(&mut actions, snapshot.as_deref(), &spec, now_ms);
            }
            actions.grant(&grant, now_ms);
            let written = evolution.as_ref().map_or(&[][..], |(_, evolution)| evolution.adds.as_slice());
            if self.commit(version, &actions, written).await?.is_some() {
                self.look().await?;
                // A still larger epoch was committed meanwhile: this grant is void.
                if self.lease.epoch() <= grant.epoch {
                    self.lease = Lease::granted(self.table.now(), grant);
                    return self.granted();
                }
            }
        }
        Err(Error::new(Code::Unavailable, "others are asking for this lease too; try again")
            .dataset(&self.table.name))
    }

    pub(super) async fn renew(&mut self, holder: &Holder, epoch: u64, ttl: Duration) -> Result<Grant> {
        self.look().await?;
        let renewed = self.lease.renew(self.table.now(), holder, epoch, ttl);
        self.lease = renewed.map_err(|e| e.dataset(&self.table.name))?;
        self.granted()
    }

    /// The answer to whoever asked. A lease that was granted to nobody is given back at once.
    fn granted(&self) -> Result<Grant> {
        match &self.lease {
            Lease::Held { grant, expires, .. } => {
                Ok(Grant { ttl: expires.saturating_sub(self.table.now()), ..grant.clone() })
            }
            Lease::Released { grant } => Ok(Grant { ttl: Duration::ZERO, ..grant.clone() }),
            Lease::Never => Err(internal("granting a lease", "it is not held")),
        }
    }

    /// Gives the lease back, durably: a shard that starts later does not wait for a holder that has ended.
    pub(super) async fn release(&mut self, holder: &Holder, epoch: u64) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            let snapshot = self.look().await?;
            let (Some(snapshot), Some(released)) = (snapshot, self.lease.release(holder, epoch)) else {
                return Ok(());
            };
            let now_ms = self.table.context.clock.now_ms();
            let info = json!({"release": {"unit": holder.unit, "instance": holder.instance, "epoch": epoch}});
            let mut actions = Actions::new("RELEASE", Map::from_iter([("trellis".to_owned(), info)]), now_ms);
            actions.release(epoch, now_ms);
            let committed = self.commit(snapshot.version + 1, &actions, &[]).await;
            if matches!(committed, Ok(None)) {
                continue;
            }
            // The holder has given the lease up, whether or not the commit succeeded.
            self.lease = released;
            committed?;
            self.look().await?;
            return Ok(());
        }
        Err(Error::new(
            Code::Unavailable,
            "the lease is not given back: others write to the table; try again",
        )
        .dataset(&self.table.name))
    }
}
