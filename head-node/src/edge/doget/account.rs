//! The account of one request: its place in the head's memory, and the figures of its answer.

use std::{pin::Pin, sync::Arc, time::Instant};

use tracing::{Span, field::Empty};
use trellis_fabric::telemetry;

use crate::{
    engine::WaitQueue,
    head::HeadNode,
    limits::OpenRequest,
    stats::{Answer, DatasetStats, Outcome},
};

/// The account of one request: its place in the head's memory, and the figures of its answer. They are added to the head's counters,
/// metrics and the request's span when the account is closed or dropped, however the answer ended.
pub(super) struct Account {
    head: Arc<HeadNode>,
    pub(super) request: Option<OpenRequest>,
    closed: bool,
    pub(super) dataset: Option<Arc<DatasetStats>>,
    pub(super) started: Instant,
    pub(super) answer: Answer,
    pub(super) outcome: Outcome,
    pub(super) span: Span,
}

impl Account {
    pub(super) fn open(head: Arc<HeadNode>) -> Self {
        let span = if telemetry::traced() {
            tracing::info_span!(
                target: "trellis::read",
                "read",
                trellis.dataset = Empty,
                trellis.rows = Empty,
                trellis.bytes = Empty,
                trellis.chunks.hit = Empty,
                trellis.chunks.joined = Empty,
                trellis.chunks.fetched = Empty,
                trellis.queue.duration = Empty,
                trellis.outcome = Empty,
            )
        } else {
            Span::none()
        };
        let (answer, started) = (Answer::default(), Instant::now());
        Self {
            head,
            request: None,
            closed: false,
            dataset: None,
            started,
            answer,
            outcome: Outcome::Left,
            span,
        }
    }

    /// Waits for a turn in one of the head's queues.
    pub(super) async fn queue<F: Future>(&mut self, queue: WaitQueue, turn: Pin<&mut F>) -> F::Output {
        let (turn, waited) = self.head.engine().waits().of(queue, turn).await;
        self.answer.queued += waited;
        turn
    }

    /// Adds the figures to the head's counters, once: before the last byte leaves, so that a client that has read an answer finds it
    /// counted.
    pub(super) fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let took = self.started.elapsed();
        let Self { answer, span, .. } = self;
        self.head.stats().add(self.dataset.as_deref(), answer, self.outcome, took);
        self.head.metrics().answered(answer.source(), self.outcome, took);
        if !span.is_disabled() {
            if let Some(dataset) = &self.dataset {
                span.record("trellis.dataset", &*dataset.attributes[0].value.as_str());
            }
            span.record("trellis.rows", answer.rows);
            span.record("trellis.bytes", answer.bytes);
            span.record("trellis.chunks.hit", answer.chunks_hit);
            span.record("trellis.chunks.joined", answer.chunks_joined);
            span.record("trellis.chunks.fetched", answer.chunks_fetched);
            span.record("trellis.queue.duration", answer.queued.as_secs_f64());
            span.record("trellis.outcome", self.outcome.name());
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.close();
    }
}
