//! The end of a process: a signal, and a gate that knows who is still inside.
//!
//! Shutdown is "no new guards, wait for the old ones, under a deadline, then say who was late". A counter
//! would do for the waiting, but not for the last part: a drain that times out without naming what it waited
//! for cannot be debugged from its log. So a guard carries a name.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

/// Resolves at the first SIGTERM (orchestrators) or SIGINT (people), and says which in the log.
///
/// The handlers are installed when the future is first polled and stay installed: a second signal does not
/// end the process by itself. Where handlers cannot be installed the future never resolves, which leaves
/// SIGKILL. Cancel safe.
pub async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "cannot install signal handlers; only SIGKILL will end this process");
                return std::future::pending().await;
            }
        };
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "shutdown asked");
}

/// A gate: guards may enter until it is closed; whoever closes it waits for those inside.
///
/// Clones are the same gate. Entering costs one short lock.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Woken when a closed gate becomes empty.
    empty: Notify,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    next_id: u64,
    /// By order of entry, so that the oldest is named first.
    inside: BTreeMap<u64, Cow<'static, str>>,
}

/// The gate is closed; nothing may enter any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shutting down")]
pub struct Closed;

/// Work that was still inside when the deadline passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("still running after {waited:?}: {}", .names.join(", "))]
pub struct Late {
    /// How long was waited.
    pub waited: Duration,
    /// Names of the guards still held, oldest first, equal ones folded as `name (x3)`.
    pub names: Vec<String>,
}

impl Gate {
    /// An open gate with nobody inside.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters, under a name that will be told if the guard is still held when a drain times out.
    ///
    /// # Errors
    /// [`Closed`] once [`Gate::close`] was called.
    pub fn enter(&self, name: impl Into<Cow<'static, str>>) -> Result<Guard, Closed> {
        let mut state = self.inner.lock();
        if state.closed {
            return Err(Closed);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.inside.insert(id, name.into());
        drop(state);
        Ok(Guard { inner: self.inner.clone(), id })
    }

    /// Lets nobody in any more. Idempotent; does not wait.
    pub fn close(&self) {
        let mut state = self.inner.lock();
        state.closed = true;
        if state.inside.is_empty() {
            drop(state);
            self.inner.empty.notify_waiters();
        }
    }

    /// Whether the gate was closed.
    pub fn is_closed(&self) -> bool {
        self.inner.lock().closed
    }

    /// How many guards are held now.
    pub fn len(&self) -> usize {
        self.inner.lock().inside.len()
    }

    /// Whether no guard is held now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of the guards held now, oldest first, equal ones folded as `name (x3)`.
    pub fn names(&self) -> Vec<String> {
        fold(self.inner.lock().inside.values())
    }

    /// Resolves when the gate is closed and the last guard is gone. Cancel safe; any number may wait.
    pub async fn emptied(&self) {
        loop {
            // Registered before the state is looked at, so that a wake-up in between is not lost.
            let mut woken = std::pin::pin!(self.inner.empty.notified());
            woken.as_mut().enable();
            {
                let state = self.inner.lock();
                if state.closed && state.inside.is_empty() {
                    return;
                }
            }
            woken.await;
        }
    }

    /// Closes the gate and waits at most `deadline` for those inside. Cancel safe: a cancelled drain leaves
    /// the gate closed.
    ///
    /// # Errors
    /// [`Late`] with the names of the guards still held.
    pub async fn drain(&self, deadline: Duration) -> Result<(), Late> {
        self.close();
        match tokio::time::timeout(deadline, self.emptied()).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let names = self.names();
                // the last one may have left between the timeout and the look
                if names.is_empty() { Ok(()) } else { Err(Late { waited: deadline, names }) }
            }
        }
    }
}

impl Inner {
    /// The state is only ever changed whole, so a panic elsewhere cannot leave it torn: poison is ignored.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fold<'a>(names: impl Iterator<Item = &'a Cow<'static, str>>) -> Vec<String> {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match counted.iter_mut().find(|(seen, _)| seen == name) {
            Some((_, count)) => *count += 1,
            None => counted.push((name, 1)),
        }
    }
    counted
        .into_iter()
        .map(|(name, n)| if n == 1 { name.to_owned() } else { format!("{name} (x{n})") })
        .collect()
}

/// Held while work runs; leaving is dropping it.
#[derive(Debug)]
#[must_use = "work is inside the gate only while its guard is held"]
pub struct Guard {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        state.inside.remove(&self.id);
        if state.closed && state.inside.is_empty() {
            drop(state);
            self.inner.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_the_last_guard() {
        let gate = Gate::new();
        let first = gate.enter("first").unwrap();
        let second = gate.enter("second").unwrap();
        let drain = tokio::spawn({
            let gate = gate.clone();
            async move { gate.drain(Duration::from_secs(10)).await }
        });
        // the drain has closed the gate once it waits
        while !gate.is_closed() {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.enter("third").unwrap_err(), Closed);
        drop(second);
        assert!(!drain.is_finished());
        drop(first);
        assert_eq!(drain.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_drain_names_who_was_late_oldest_first() {
        let gate = Gate::new();
        let _a = gate.enter("fetch").unwrap();
        let _b = gate.enter(format!("publish {}", 7)).unwrap();
        let _c = gate.enter("fetch").unwrap();
        let late = gate.drain(Duration::from_millis(2)).await.unwrap_err();
        assert_eq!(late.names, ["fetch (x2)", "publish 7"]);
        assert_eq!(late.to_string(), "still running after 2ms: fetch (x2), publish 7");
    }

    #[tokio::test]
    async fn an_empty_gate_drains_at_once_and_stays_drained() {
        let gate = Gate::new();
        assert_eq!(gate.drain(Duration::ZERO).await, Ok(()));
        gate.emptied().await;
        assert!(gate.is_closed() && gate.is_empty());
    }
}
