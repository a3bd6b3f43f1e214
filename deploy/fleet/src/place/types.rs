//! What placement takes and gives.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::quota::Quota;
use crate::{
    class::{Provider, Size},
    desired::Kind,
    model::Role,
};

/// A service that needs a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name.
    pub service: String,
    /// What it is for.
    pub role: Role,
    /// The size of its task.
    pub size: Size,
    /// Services with the same text hold the same series.
    pub apart: Option<String>,
}

/// The place of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Seat {
    /// The account.
    pub account: String,
    /// The cluster.
    pub flower: String,
    /// The zone, if it must be in that one.
    pub zone: Option<String>,
}

/// A cluster that must be created before anything can run in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Opening {
    /// Its name.
    pub flower: String,
    /// Its account.
    pub account: String,
    /// What it runs.
    pub kind: Kind,
    /// Its managed instances.
    pub providers: BTreeSet<Provider>,
}

/// A service that fits nowhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Refusal {
    /// The service.
    pub service: String,
    /// Why, and what to do.
    pub why: String,
}

/// A quota to raise, so that what was refused fits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Ask {
    /// Which.
    pub quota: Quota,
    /// In which account.
    pub account: String,
    /// What `grid.json` says that it is.
    pub have: u64,
    /// What to ask for.
    pub ask: u64,
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// The place of each service that has one.
    pub seats: BTreeMap<String, Seat>,
    /// Clusters to create.
    pub openings: Vec<Opening>,
    /// Services of the ledger that are placed elsewhere, and why.
    pub moved: BTreeMap<String, String>,
    /// Services that fit nowhere.
    pub refused: Vec<Refusal>,
    /// What to ask AWS for.
    pub asks: Vec<Ask>,
}
