//! The queues of SQS, and the events in them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::task::Task;

/// As the cluster's template sets it.
pub(crate) const RETENTION: Duration = Duration::from_secs(86_400);

/// An event, until somebody reads it. Forty thousand tasks leave half a million of them, so it becomes JSON when it is received.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    Task(Box<Task>),
    Deployment { service: Arc<str>, deployment: u64, name: &'static str, reason: String },
    Action { service: Arc<str>, kind: &'static str, name: &'static str, reason: Option<String> },
}

/// The queues of an account in a Region.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) by_name: BTreeMap<String, Queue>,
}

impl Queues {
    pub(crate) fn make(&mut self, name: String) {
        self.by_name.entry(name).or_default();
    }
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) messages: BTreeMap<u64, Message>,
    /// `(when it can be received, message)`.
    pub(crate) visible: BTreeSet<(Duration, u64)>,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) sent: Duration,
    pub(crate) event: u64,
    pub(crate) cluster: Arc<str>,
    pub(crate) note: Note,
    pub(crate) visible: Duration,
    pub(crate) received: u32,
}

impl Queue {
    pub(crate) fn send(
        &mut self,
        at: Duration,
        now: Duration,
        serial: u64,
        event: u64,
        cluster: Arc<str>,
        note: Note,
    ) {
        let message = Message { sent: now, event, cluster, note, visible: at, received: 0 };
        self.visible.insert((at, serial));
        self.messages.insert(serial, message);
        // the oldest are too old
        while let Some(entry) = self.messages.first_entry() {
            if entry.get().sent + RETENTION > now {
                break;
            }
            let (serial, old) = entry.remove_entry();
            self.visible.remove(&(old.visible, serial));
        }
    }

    /// Messages that are there, received or not.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }
}
