//! What tests of discovery wait for: peers, and lines of the log about failures, which are part of the interface.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::watch;
use tracing_subscriber::{Layer, layer::SubscriberExt as _, registry::LookupSpan};
use trellis_fabric::discovery::Peers;

/// A test that waits longer has failed.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);

pub(crate) async fn until(peers: &mut watch::Receiver<Peers>, expected: &[&str]) {
    let is = |set: &Peers| set.iter().map(|peer| peer.addr.as_str()).eq(expected.iter().copied());
    if tokio::time::timeout(WAIT_MAX, peers.wait_for(is)).await.is_err() {
        panic!("expected {expected:?}, have {:?}", peers.borrow());
    }
}

/// Messages that discovery logs on this thread.
#[derive(Clone)]
pub(crate) struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    grown: Arc<watch::Sender<usize>>,
}

impl Log {
    pub(crate) fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self { lines: Arc::default(), grown: Arc::new(watch::Sender::new(0)) };
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(log.clone()));
        (log, guard)
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }

    pub(crate) async fn until(&self, part: &str, count: usize) {
        let mut grown = self.grown.subscribe();
        let wait = grown.wait_for(|_| self.count(part) >= count);
        if tokio::time::timeout(WAIT_MAX, wait).await.is_err() {
            panic!("expected {count} x {part:?}, have {:#?}", self.lines.lock().unwrap());
        }
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{}={value:?} ", field.name()));
            }
        }
        if event.metadata().target().starts_with("trellis_fabric::discovery") {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.lines.lock().unwrap().push(text.0);
            self.grown.send_modify(|n| *n += 1);
        }
    }
}
