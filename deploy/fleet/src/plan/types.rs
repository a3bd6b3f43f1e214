//! What a plan says.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::price::Month;
use crate::{
    ledger::Ledger,
    model::{Role, Service},
    place::{Ask, Opening, Refusal, Seat},
};

/// Share of a rate of AWS that `fleet` uses, in percent. The rest is for repairs and for people.
pub(super) const RATE_PERCENT: f64 = 80.0;

/// What should be, and the way there.
///
/// Nothing of a plan with refusals or openings may be applied: a service that was refused is not in `services`, so whoever applies the
/// plan would delete it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Every service, in order of names.
    pub services: Vec<Service>,
    /// By the hash: the body of RegisterTaskDefinition, AWS's own names. Each is of one account, which its services name.
    pub definitions: BTreeMap<String, Value>,
    /// What differs from the ledger, in order of names.
    pub changes: Vec<Change>,
    /// Clusters that must be created first (`deploy/aws/cfn/cluster.yaml`), and then be named in `grid.json`.
    pub openings: Vec<Opening>,
    /// Services that fit nowhere, and rules that the whole breaks.
    pub refused: Vec<Refusal>,
    /// What to ask AWS for, so that they fit.
    pub asks: Vec<Ask>,
    /// What it costs.
    pub price: Price,
    /// What it takes in each account.
    pub calls: BTreeMap<String, Calls>,
    /// The ledger when the plan is applied. Write it before the first call: a `fleet` that is started again then decides the same.
    #[serde(skip)]
    pub ledger: Ledger,
}

/// What happens to a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Its name.
    pub service: String,
    /// What it is for.
    pub role: Role,
    /// What happens.
    pub kind: ChangeKind,
    /// Where it is now; none if it is new.
    pub from: Option<Seat>,
    /// Where it will be; none if it is removed.
    pub to: Option<Seat>,
    /// Why.
    pub why: String,
}

/// What happens to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is created.
    Add,
    /// It is updated where it is; its task starts again.
    Change,
    /// It is created elsewhere, and deleted here.
    Move,
    /// It is deleted.
    Remove,
}

/// What the plan costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Price {
    /// `USD`.
    pub currency: String,
    /// Which list.
    pub list: String,
    /// A month of the plan.
    pub after: Month,
    /// A month of what the ledger has. Its units count as running always or by their files, like those of the plan; one that has no
    /// file any more counts as running always.
    pub before: Month,
    /// The difference.
    pub change: f64,
}

/// What a plan takes in one account.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Calls {
    /// Task definitions that the account has not registered as far as the ledger knows.
    pub definitions: u64,
    /// Services to create, update or delete.
    pub services: u64,
    /// Minutes at [`RATE_PERCENT`] of AWS's rates, the slower of the two.
    pub minutes: f64,
}
