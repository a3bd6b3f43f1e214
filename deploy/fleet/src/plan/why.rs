//! Why a service is where it is.

use std::fmt;

use serde::Serialize;

use super::{
    make::{parts, plan, seat},
    types::ChangeKind,
};
use crate::{
    class::Size,
    desired::Desired,
    ledger::Ledger,
    place::{Load, OF_ACCOUNT, Seat, ranked},
};

/// Why a service is where it is, and how full its accounts are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The service.
    pub service: String,
    /// Where it is or will be; none if it fits nowhere.
    pub seat: Option<Seat>,
    /// Why it is there.
    pub why: String,
    /// The size of its task.
    pub size: Size,
    /// Its accounts, the preferred one first.
    pub accounts: Vec<Filling>,
}

/// How full an account is with the whole plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Filling {
    /// The account.
    pub account: String,
    /// Each quota: its field, what is used, what `fleet` uses at most.
    pub quotas: Vec<(&'static str, f64, f64)>,
    /// The quotas that one more such task would not fit into.
    pub binding: Vec<&'static str>,
}

/// Explains a service; `None` if the desired state has none of that name.
#[must_use]
pub fn explain(desired: &Desired, ledger: &Ledger, service: &str) -> Option<Explanation> {
    let plan = plan(desired, ledger);
    let part = parts(desired).remove(service)?;
    let entry = plan.ledger.get(service);
    let size = part.item.size;
    let refusal = plan.refused.iter().find(|refusal| refusal.service == service);
    let change = plan.changes.iter().find(|change| change.service == service);
    let why = match (entry, refusal, change, ledger.get(service)) {
        (None, Some(refusal), ..) => refusal.why.clone(),
        (_, _, Some(change), _) if change.kind != ChangeKind::Change => {
            format!(
                "{}; it goes to the first of its accounts that has room, and there to the first such cluster",
                change.why
            )
        }
        (_, _, _, Some(_)) => "the ledger has it there, and nothing makes it leave".to_owned(),
        _ => "it has no place".to_owned(),
    };
    let accounts = ranked(&desired.grid, part.item.role, service).into_iter().map(|i| {
        let account = &desired.grid.accounts[i];
        let mut used = Load::default();
        let here = plan.ledger.entries().filter(|entry| entry.place == account.place);
        here.for_each(|entry| used.add(&Load::of(&entry.size)));
        let limit = Load::limit(account);
        let quotas = OF_ACCOUNT.into_iter().enumerate().map(|(slot, quota)| {
            let amount = |load: &Load| load.0[slot] as f64 / quota.unit() as f64;
            (quota.field(), amount(&used), amount(&limit))
        });
        let binding = used.over(&Load::of(&size), &limit).map(|quota| quota.field()).collect();
        Filling { account: account.place.account.clone(), quotas: quotas.collect(), binding }
    });
    let seat = entry.map(seat);
    Some(Explanation { service: service.to_owned(), seat, why, size, accounts: accounts.collect() })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.seat {
            Some(seat) => {
                write!(f, "{} is in {} of {}", self.service, seat.flower, seat.account)?;
                seat.zone.as_ref().map_or(Ok(()), |zone| write!(f, ", in {zone} alone"))?;
                writeln!(f, ": {}", self.why)?;
            }
            None => writeln!(f, "{} fits nowhere: {}", self.service, self.why)?,
        }
        let Size { cpu, memory, gpu, arch, provider } = self.size;
        writeln!(
            f,
            "its task: cpu {cpu}, memory {memory} MiB, {gpu} GPUs, {}, {}",
            arch.name(),
            provider.word()
        )?;
        for filling in &self.accounts {
            writeln!(f, "{}", filling.account)?;
            for (field, used, limit) in &filling.quotas {
                let binds = if filling.binding.contains(field) { "  one more does not fit" } else { "" };
                writeln!(f, "  {field}: {used:.1} of {limit:.1}{binds}")?;
            }
        }
        Ok(())
    }
}
