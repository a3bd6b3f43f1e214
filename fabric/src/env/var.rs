//! Variables: name, default and meaning. Those here belong to several programs.

use super::log::LOG_FILTER;

/// Name of this node.
pub const ID: Var = Var::required(
    "TRELLIS_ID",
    "name of this process in the grid, [a-z0-9][a-z0-9_.-]{0,62}; an ECS task may take it from its service, GRID-NAME",
);
/// Where to listen.
pub const LISTEN: Var =
    Var::or("TRELLIS_LISTEN", "127.0.0.1:0", "address to listen on, IP:PORT; port 0 takes a free one");
/// How long a drain may take.
pub const DRAIN_MS: Var =
    Var::or("TRELLIS_DRAIN_MS", "10000", "milliseconds that running requests have to finish after SIGTERM");
/// Log filter.
pub const LOG: Var = Var::or(
    "TRELLIS_LOG",
    LOG_FILTER,
    "what is logged to stderr, as a tracing filter: warn,trellis=info,trellis_head=debug",
);
/// Log format.
pub const LOG_FORMAT: Var = Var::or("TRELLIS_LOG_FORMAT", "text", "format of stderr logs: text or json");

/// Whether a variable must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Must be set.
    Required,
    /// May be unset. Then there is no value.
    Optional,
    /// May be unset. Then the value is this default.
    Default(&'static str),
}

/// One environment variable: an entry of a binary's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Var {
    /// `TRELLIS_...`
    pub name: &'static str,
    /// Whether it must be there.
    pub presence: Presence,
    /// What it means, with its unit and form: one line of `--help`.
    pub meaning: &'static str,
}

impl Var {
    /// A variable that must be set.
    pub const fn required(name: &'static str, meaning: &'static str) -> Self {
        Self { name, presence: Presence::Required, meaning }
    }

    /// A variable that may be missing.
    pub const fn optional(name: &'static str, meaning: &'static str) -> Self {
        Self { name, presence: Presence::Optional, meaning }
    }

    /// A variable with a default.
    pub const fn or(name: &'static str, default: &'static str, meaning: &'static str) -> Self {
        Self { name, presence: Presence::Default(default), meaning }
    }
}
