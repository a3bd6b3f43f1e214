//! The order of accounts for a service.

use twox_hash::XxHash3_64;

use crate::{
    desired::{Account, Grid, Kind},
    model::Role,
};

/// The accounts that may run a service, the preferred one first: weighted rendezvous hashing. Numbers are places in `grid.accounts`.
#[must_use]
pub fn ranked(grid: &Grid, role: Role, service: &str) -> Vec<usize> {
    let fit = |account: &&Account| account.kind == Kind::of(role) && !account.drain;
    let fitting = grid.accounts.iter().enumerate().filter(|(_, account)| fit(account));
    let mut scored: Vec<_> = fitting.map(|(i, account)| (score(account, service), i)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.into_iter().map(|(_, i)| i).collect()
}

/// `-weight / ln(u)`, with `u` in (0, 1) from a hash of account and service: the account of the largest score gets its weight's share.
fn score(account: &Account, service: &str) -> f64 {
    let key = format!("{}\0{}\0{service}", account.place.account, account.place.region);
    let bits = XxHash3_64::oneshot(key.as_bytes()) >> 11;
    let u = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
    -(account.weight as f64) / u.ln()
}
