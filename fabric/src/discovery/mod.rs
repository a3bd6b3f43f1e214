//! Who the peers are now: a watch of a sorted set without duplicates.
//!
//! | URL | meaning |
//! | --- | --- |
//! | `static://a:1,b:2` | these, for ever |
//! | `grpc://host:port` | this one; whoever connects resolves the name |
//! | `dns://NAME[:port]` | SRV records of NAME; if it has none, its A and AAAA records with `port` (or the default). With a port the addresses also if no server answers about SRV |
//! | `dns://NAME{0..63}REST` | the same of each numbered name, together |
//! | `dns://NAME?server=IP:PORT` | asked of that server instead of the system's |
//! | `cloudmap://NAMESPACE/SERVICE` | the healthy instances of a service of AWS Cloud Map; the README has the parameters |
//!
//! DNS changes rarely and fails often, and most failures say nothing about the peers. So a set that was once known is kept through
//! every failure. NXDOMAIN, which a name server also answers while its zone is being replaced, takes away only one of several names, and
//! only after a time ([`Options::gone_after`]); the last name stays. A failure is logged when it begins and when it ends. A peer that has
//! really gone shows itself at the connection; whoever sees that raises a [`Doubt`], and discovery asks before the TTL is over.
//!
//! | file | subject |
//! | --- | --- |
//! | `peer` | a peer and a set of peers |
//! | `options` | how often discovery asks |
//! | `url` | discovery URLs; pure |
//! | `plan` | how an answer or a failure changes the state, and how long an answer is trusted; pure |
//! | `roster` | which peers there are, after each look-up of each name; pure |
//! | `schedule` | when each name is looked up; pure |
//! | `dns` | asks DNS |
//! | `cloud_map` | asks AWS Cloud Map |
//! | `follow` | asks again and again, and tells what has changed |
//! | `change` | log lines and the counter of changes |
//! | `watch` | [`watch()`] |
//! | `doubt` | how the users of a set tell discovery that a peer did not answer |

mod change;
mod cloud_map;
mod dns;
mod doubt;
mod follow;
mod options;
mod peer;
mod plan;
mod roster;
mod schedule;
mod url;
mod watch;

pub use doubt::Doubt;
pub use follow::Trouble;
pub use options::{DEFAULT_PORT, Options};
pub use peer::{Peer, Peers};
pub use url::{BadUrl, CloudMapQuery, DnsQuery, NAMES_MAX, Source};
pub use watch::{DiscoveryError, Watch, watch};
