//! Queues before the exporters. They are bounded, nobody waits for them, and every loss is counted.
//!
//! The SDK's batch processors drop items when their queue is full, but tell the number only at shutdown, and do not count batches
//! that an exporter could not deliver. So each processor and each exporter has a wrapper. The processor's wrapper admits items up to
//! the size of the queue, so the processor never drops. The exporter's wrapper frees the places and counts the items that
//! it could not deliver.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{
        BatchConfigBuilder as LogBatchConfig, BatchLogProcessor, LogBatch, LogExporter, LogProcessor,
        SdkLogRecord,
    },
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{
        BatchConfigBuilder as SpanBatchConfig, BatchSpanProcessor, Span, SpanData, SpanExporter,
        SpanProcessor,
    },
};

/// Most spans that wait for export: the SDK's own default, about 2 MB. Full batches are exported at once, so the queue overflows only if
/// the collector takes fewer spans each second than the process makes.
const SPANS_QUEUED_MAX: usize = 2048;

/// Most log records that wait for export.
const LOGS_QUEUED_MAX: usize = 2048;

/// The telemetry that was lost on the way to the collector since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Spans.
    pub spans: u64,
    /// Log records.
    pub logs: u64,
    /// Metric exports. Each is a whole collection; the next one makes up for it, because metrics are cumulative.
    pub metric_exports: u64,
}

/// Counts of one signal: queued and lost items.
#[derive(Debug, Default)]
pub(super) struct Account {
    queued: AtomicUsize,
    pub(super) dropped: AtomicU64,
}

impl Account {
    fn admit(&self, max: usize) -> bool {
        let admitted = self
            .queued
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1))
            .is_ok();
        if !admitted {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    fn settle(&self, taken: usize, result: &OTelSdkResult) {
        let _ =
            self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(taken)));
        if result.is_err() {
            self.dropped.fetch_add(taken as u64, Ordering::Relaxed);
        }
    }
}

/// A batch processor of spans for `exporter`.
pub(super) fn spans(exporter: impl SpanExporter + 'static, account: Arc<Account>) -> impl SpanProcessor {
    let max = queue_max("OTEL_BSP_MAX_QUEUE_SIZE", SPANS_QUEUED_MAX);
    let config = SpanBatchConfig::default().with_max_queue_size(max).build();
    let exporter = CountedSpans { exporter, account: account.clone() };
    AdmitSpans { next: BatchSpanProcessor::builder(exporter).with_batch_config(config).build(), max, account }
}

/// A batch processor of log records for `exporter`.
pub(super) fn logs(exporter: impl LogExporter + 'static, account: Arc<Account>) -> impl LogProcessor {
    let max = queue_max("OTEL_BLRP_MAX_QUEUE_SIZE", LOGS_QUEUED_MAX);
    let config = LogBatchConfig::default().with_max_queue_size(max).build();
    let exporter = CountedLogs { exporter, account: account.clone() };
    AdmitLogs { next: BatchLogProcessor::builder(exporter).with_batch_config(config).build(), max, account }
}

/// Counts failed exports of metrics.
pub(super) fn metrics<E: PushMetricExporter>(exporter: E, account: Arc<Account>) -> impl PushMetricExporter {
    CountedMetrics { exporter, account }
}

fn queue_max(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|v| v.parse().ok()).filter(|n| *n > 0).unwrap_or(default)
}

#[derive(Debug)]
struct AdmitSpans {
    next: BatchSpanProcessor,
    max: usize,
    account: Arc<Account>,
}

impl SpanProcessor for AdmitSpans {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.next.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.account.admit(self.max) {
            self.next.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

#[derive(Debug)]
struct CountedSpans<E> {
    exporter: E,
    account: Arc<Account>,
}

impl<E: SpanExporter> SpanExporter for CountedSpans<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let taken = batch.len();
        let result = self.exporter.export(batch).await;
        self.account.settle(taken, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[derive(Debug)]
struct AdmitLogs {
    next: BatchLogProcessor,
    max: usize,
    account: Arc<Account>,
}

impl LogProcessor for AdmitLogs {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.account.admit(self.max) {
            self.next.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

#[derive(Debug)]
struct CountedLogs<E> {
    exporter: E,
    account: Arc<Account>,
}

impl<E: LogExporter> LogExporter for CountedLogs<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let taken = batch.iter().count();
        let result = self.exporter.export(batch).await;
        self.account.settle(taken, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

struct CountedMetrics<E> {
    exporter: E,
    account: Arc<Account>,
}

impl<E> fmt::Debug for CountedMetrics<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CountedMetrics").field("account", &self.account).finish_non_exhaustive()
    }
}

impl<E: PushMetricExporter> PushMetricExporter for CountedMetrics<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.exporter.export(metrics).await;
        self.account.settle(1, &result);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
