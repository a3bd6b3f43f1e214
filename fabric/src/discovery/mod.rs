//! Who the peers are now: a watch of a sorted set without duplicates.
//!
//! | URL | meaning |
//! | --- | --- |
//! | `static://a:1,b:2` | these, for ever |
//! | `grpc://host:port` | this one; whoever connects resolves the name |
//! | `dns://NAME[:port]` | SRV records of NAME; if it has none, its A and AAAA records with `port` (or the default). With a port the addresses also if no server answers about SRV |
//! | `dns://NAME?server=IP:PORT` | the same, asked of that server instead of the system's |
//!
//! DNS changes rarely and fails often, and most failures say nothing about the peers. So a set that was once known is kept through
//! every failure, also through NXDOMAIN, which a name server answers while its zone is being replaced. A failure is
//! logged when it begins and when it ends. A peer that has really gone shows itself at the connection; whoever sees that raises a
//! [`Doubt`], and discovery asks before the TTL is over.
//!
//! | file | subject |
//! | --- | --- |
//! | `peer` | a peer and a set of peers |
//! | `options` | how often discovery asks |
//! | `url` | discovery URLs; pure |
//! | `plan` | how an answer or a failure changes the state, and how long an answer is trusted; pure |
//! | `dns` | asks DNS, again and again |
//! | `watch` | [`watch()`] |
//! | `doubt` | how the users of a set tell discovery that a peer did not answer |

mod dns;
mod doubt;
mod options;
mod peer;
mod plan;
mod url;
mod watch;

pub use doubt::Doubt;
pub use options::{DEFAULT_PORT, Options};
pub use peer::{Peer, Peers};
pub use url::{BadUrl, DnsQuery, Source};
pub use watch::{DiscoveryError, Watch, watch};
