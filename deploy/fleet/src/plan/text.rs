//! A plan for people.

use std::{collections::BTreeMap, fmt};

use super::types::{ChangeKind, Plan};

/// Changes of one kind that are shown by name. `--json` has all.
const SHOWN: usize = 10;

impl Plan {
    /// Whether it can be applied.
    #[must_use]
    pub fn is_applicable(&self) -> bool {
        self.refused.is_empty() && self.openings.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut by_kind: BTreeMap<ChangeKind, Vec<_>> = BTreeMap::new();
        for change in &self.changes {
            by_kind.entry(change.kind).or_default().push(change);
        }
        writeln!(f, "{} services, {} task definitions", self.services.len(), self.definitions.len())?;
        if self.changes.is_empty() {
            writeln!(f, "nothing changes")?;
        }
        for (kind, changes) in by_kind {
            let (sign, word) = match kind {
                ChangeKind::Add => ("+", "to create"),
                ChangeKind::Change => ("~", "to update; their tasks start again"),
                ChangeKind::Move => (">", "to move"),
                ChangeKind::Remove => ("-", "to delete"),
            };
            writeln!(f, "\n{} {word}", changes.len())?;
            for change in changes.iter().take(SHOWN) {
                let seat = change.to.as_ref().or(change.from.as_ref());
                let at = seat.map(|seat| format!("{} of {}", seat.flower, seat.account)).unwrap_or_default();
                writeln!(f, "  {sign} {}  {at}  ({})", change.service, change.why)?;
            }
            if changes.len() > SHOWN {
                writeln!(f, "  {sign} and {} more", changes.len() - SHOWN)?;
            }
        }
        for (account, calls) in &self.calls {
            writeln!(
                f,
                "\n{account}: {} task definitions to register, {} calls for services, at least {:.1} minutes",
                calls.definitions, calls.services, calls.minutes
            )?;
        }
        self.write_price(f)?;
        for opening in &self.openings {
            writeln!(
                f,
                "\nopen the cluster {} in {}: deploy the stack `cluster` with Flower={}, then name it in grid.json",
                opening.flower, opening.account, opening.flower
            )?;
        }
        if !self.refused.is_empty() {
            writeln!(f, "\n{} refused", self.refused.len())?;
            for refusal in self.refused.iter().take(SHOWN) {
                writeln!(f, "  ! {}: {}", refusal.service, refusal.why)?;
            }
        }
        for ask in &self.asks {
            let (title, account) = (ask.quota.title(), &ask.account);
            writeln!(
                f,
                "  ask for: {title} of {account}: {} -> {}, then change {}",
                ask.have,
                ask.ask,
                ask.quota.field()
            )?;
        }
        if !self.is_applicable() {
            writeln!(f, "\nthis plan cannot be applied")?;
        }
        Ok(())
    }
}

impl Plan {
    fn write_price(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let price = &self.price;
        let currency = &price.currency;
        writeln!(f, "\n{currency} a month: {:.2} ({:+.2}); {}", price.after.total, price.change, price.list)?;
        for (account, amount) in &price.after.by_account {
            writeln!(f, "  {account}: {amount:.2}")?;
        }
        for (provider, amount) in &price.after.by_provider {
            writeln!(f, "  {provider}: {amount:.2}")?;
        }
        if price.after.unpriced > 0 {
            let missing: Vec<_> = price.after.missing.iter().map(String::as_str).collect();
            let (count, missing) = (price.after.unpriced, missing.join(", "));
            writeln!(f, "  {count} services are not in these sums: prices.json has no {missing}")?;
        }
        Ok(())
    }
}
