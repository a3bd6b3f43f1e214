//! How a simulation ends: nothing fails any more, and everything must be there.

use tokio::time::Instant;
use trellis_proto::Result;

use super::{
    calls::{Ask, Reply, perform},
    disk::Reads,
    model::entry_path,
    world::{Door, PUBLISHERS, RETENTION, State, World},
};

/// Most rounds until whatever is under way must have ended.
const ROUNDS_MAX: usize = 20_000;

impl World {
    /// Nothing fails any more: every open run is published, and everything reads as the list says, on both shards, after a
    /// restart, and after compaction and removal.
    pub(super) async fn end(&mut self) {
        self.note("the end".to_owned());
        for node in 0..self.nodes.len() {
            self.nodes[node].awake_at = Instant::now();
            self.disk.set_reads(self.nodes[node].life, Reads::Whole);
        }
        self.drain().await;
        for (op, _) in std::mem::take(&mut self.late) {
            let _ = self.disk.perform(&op);
        }
        for node in 0..self.nodes.len() {
            if matches!(self.nodes[node].state, State::Down) {
                self.start(node);
            }
        }
        self.drain().await;
        for (i, (unit, instance)) in PUBLISHERS.iter().enumerate() {
            let (unit, instance) = ((*unit).to_owned(), (*instance).to_owned());
            let node = self.seed.below(self.nodes.len());
            let acquire = Ask::Acquire { unit: unit.clone(), instance, take_over: true };
            let Ok(Reply::Granted(lease)) = self.call(node, acquire).await else {
                panic!("the lease is not granted")
            };
            let run = match self.publishers[i].open.clone() {
                Some(run) => run,
                None => self.new_run(Door::Session),
            };
            let sent = self.model.sent(&run);
            let publish = Ask::Publish { unit, epoch: lease.epoch, run, sent };
            let published = self.call(node, publish).await;
            assert!(matches!(published, Ok(Reply::Published(_))), "{published:?}");
        }
        self.look_everywhere().await;
        self.crash(0);
        self.start(0);
        self.drain().await;
        self.look_everywhere().await;
        for _ in 0..2 {
            for node in 0..self.nodes.len() {
                for ask in [Ask::Refresh, Ask::Compact, Ask::Checkpoint, Ask::Sweep] {
                    self.call(node, ask).await.unwrap();
                }
            }
            self.look_everywhere().await;
            tokio::time::advance(2 * RETENTION).await;
            self.settle().await;
        }
        for version in 0.. {
            let Some(entry) = self.disk.read(&entry_path(version)) else { break };
            let text = String::from_utf8(entry.to_vec()).unwrap();
            // Without its checksum: the entry has names that are made at random.
            self.note(text.split_once(',').unwrap().1.to_owned());
        }
    }

    async fn look_everywhere(&mut self) {
        for node in 0..self.nodes.len() {
            let looked = self.call(node, Ask::Look).await;
            let Ok(Reply::Looked { look: Some(look), .. }) = looked else { panic!("{looked:?}") };
            assert_eq!(Some(look.version), self.model.newest());
            self.model.all_acknowledged_in(&look);
        }
    }

    /// Asks a shard while nothing fails.
    async fn call(&mut self, node: usize, ask: Ask) -> Result<Reply> {
        let State::Up { shard, .. } = &self.nodes[node].state else { panic!("shard {node} is down") };
        let floor = self.model.newest();
        let task = tokio::spawn(perform(shard.clone(), ask.clone()));
        self.drain().await;
        assert!(task.is_finished(), "{ask:?} does not end");
        let reply = task.await.unwrap();
        self.note(format!("shard {node}: {ask:?}: {}", reply.is_ok()));
        self.check(&ask, &reply, floor);
        reply
    }

    /// Until nobody waits for anything, everything is done in the order in which it was asked for.
    async fn drain(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.settle().await;
            if let Some(&id) = self.ready_ops().first() {
                if let Some(waiting) = self.disk.take(id) {
                    if waiting.shown {
                        self.finish(waiting);
                        continue;
                    }
                    let answer = self.disk.perform(&waiting.op);
                    waiting.answer(answer);
                }
            } else if !self.ready_messages().is_empty() {
                self.deliver();
            } else {
                return;
            }
        }
        panic!("it does not come to an end");
    }
}
