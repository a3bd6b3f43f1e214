//! A gate that knows who is still inside.
//!
//! A drain lets no new guard in and waits for the old ones, up to a deadline; then it names those that are late. A counter would do
//! for the wait, but a drain that times out without a name cannot be understood from its log. So each guard has a name.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// A gate: guards may enter until it is closed.
///
/// Clones are the same gate. Entering costs one short lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate {
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
    /// Ordered by entry, so that the oldest is named first.
    inside: BTreeMap<u64, Cow<'static, str>>,
}

/// The gate is closed: no guard may enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shutting down")]
pub(crate) struct Closed;

impl Gate {
    /// An open gate with nobody inside.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Enters under a name, by which the guard is told if a drain times out.
    ///
    /// # Errors
    /// [`Closed`] once [`Gate::close`] was called.
    pub(crate) fn enter(&self, name: impl Into<Cow<'static, str>>) -> Result<Guard, Closed> {
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

    /// Lets no further guard in. It does not wait. A second call does nothing.
    pub(crate) fn close(&self) {
        let mut state = self.inner.lock();
        state.closed = true;
        if state.inside.is_empty() {
            drop(state);
            self.inner.empty.notify_waiters();
        }
    }

    /// Number of guards that are held now.
    pub(crate) fn len(&self) -> usize {
        self.inner.lock().inside.len()
    }

    /// Names of the guards held now, oldest first, equal ones folded as `name (x3)`.
    pub(crate) fn names(&self) -> Vec<String> {
        fold(self.inner.lock().inside.values())
    }

    /// Resolves when the gate is closed and the last guard is gone. Cancel safe; any number may wait.
    pub(crate) async fn emptied(&self) {
        loop {
            // registered before the look at the state, so that no wake-up in between is lost
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
}

impl Inner {
    /// Ignores poison: no panic can leave the state half changed.
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

/// Held while work runs. Dropping it leaves the gate.
#[derive(Debug)]
#[must_use = "work is inside the gate only while its guard is held"]
pub(crate) struct Guard {
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
    async fn a_closed_gate_waits_for_the_last_guard() {
        let gate = Gate::new();
        let first = gate.enter("first").unwrap();
        let second = gate.enter("second").unwrap();
        let waits = tokio::spawn({
            let gate = gate.clone();
            async move {
                gate.close();
                gate.emptied().await;
            }
        });
        while gate.enter("third").is_ok() {
            tokio::task::yield_now().await;
        }
        drop(second);
        assert!(!waits.is_finished());
        drop(first);
        waits.await.unwrap();
    }

    #[test]
    fn those_inside_are_named_oldest_first() {
        let gate = Gate::new();
        let _a = gate.enter("fetch").unwrap();
        let _b = gate.enter(format!("publish {}", 7)).unwrap();
        let _c = gate.enter("fetch").unwrap();
        assert_eq!(gate.names(), ["fetch (x2)", "publish 7"]);
        assert_eq!(gate.len(), 3);
    }

    #[tokio::test]
    async fn an_empty_gate_is_emptied_at_once_and_stays_closed() {
        let gate = Gate::new();
        gate.close();
        gate.emptied().await;
        assert_eq!(gate.enter("late").unwrap_err(), Closed);
        assert_eq!(gate.len(), 0);
    }
}
