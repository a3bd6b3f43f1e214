//! The heads of the grid, as this head finds them. A client starts with the few heads that DNS tells it, and asks one of them for all.

use parking_lot::Mutex;
use tokio::sync::watch;
use trellis_fabric::discovery::Peers;
use trellis_proto::{pb, placement};

/// The heads that discovery finds, and the version of that list.
pub(crate) struct Members {
    /// `None`: nobody has told this head where the heads are.
    found: Option<watch::Receiver<Peers>>,
    named: Mutex<Named>,
}

/// The newest set of which the version is known.
#[derive(Default)]
struct Named {
    peers: Peers,
    version: u64,
}

impl Members {
    pub(crate) fn new(found: Option<watch::Receiver<Peers>>) -> Self {
        Self { found, named: Mutex::default() }
    }

    /// The version of the list; 0 if no head has been found. Cheap, because each answer has it.
    pub(crate) fn version(&self) -> u64 {
        self.now().map_or(0, |(_, version)| version)
    }

    /// The list, or only its version for a client that has it.
    pub(crate) fn reply(&self, known_version: u64) -> pb::HeadsReply {
        match self.now() {
            Some((peers, version)) if version != known_version => {
                pb::HeadsReply { version, heads: addrs(&peers) }
            }
            Some((_, version)) => pb::HeadsReply { version, heads: Vec::new() },
            None => pb::HeadsReply::default(),
        }
    }

    fn now(&self) -> Option<(Peers, u64)> {
        let peers = self.found.as_ref()?.borrow().clone();
        if peers.is_empty() {
            return None;
        }
        let mut named = self.named.lock();
        if !std::sync::Arc::ptr_eq(&named.peers, &peers) {
            *named = Named { version: placement::heads_version(&addrs(&peers)), peers };
        }
        Some((named.peers.clone(), named.version))
    }
}

fn addrs(peers: &Peers) -> Vec<String> {
    peers.iter().map(|peer| peer.addr.clone()).collect()
}

#[cfg(test)]
mod tests {
    use trellis_fabric::discovery::Peer;

    use super::*;

    fn peers(addrs: &[&str]) -> Peers {
        addrs.iter().map(|addr| Peer { addr: (*addr).to_owned() }).collect()
    }

    #[test]
    fn a_head_tells_the_list_once_for_each_version() {
        let (sender, found) = watch::channel(peers(&[]));
        let members = Members::new(Some(found.clone()));
        assert_eq!(members.reply(0), pb::HeadsReply::default(), "nobody is found yet");
        sender.send_replace(peers(&["a:1", "b:2"]));
        let told = members.reply(0);
        assert_eq!(told.heads, ["a:1", "b:2"]);
        assert_eq!(told.version, members.version());
        assert_eq!(members.reply(told.version), pb::HeadsReply { version: told.version, heads: vec![] });
        assert_eq!(Members::new(Some(found)).version(), told.version, "another head that finds the same");
        sender.send_replace(peers(&["b:2"]));
        assert_ne!(members.version(), told.version);
        assert_eq!(members.reply(told.version).heads, ["b:2"]);
    }

    #[test]
    fn a_head_without_the_setting_tells_no_list() {
        let members = Members::new(None);
        assert_eq!((members.version(), members.reply(0)), (0, pb::HeadsReply::default()));
    }
}
