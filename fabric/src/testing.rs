//! For tests: an OTLP collector, a real server on loopback that keeps all telemetry that it gets, by gRPC or by HTTP; and [`Meters`], which
//! count the series that instruments have.
//!
//! The collector has its own thread and runtime, so telemetry arrives even if a test blocks its runtime or has none. Nothing sleeps:
//! [`OtlpReceiver::until`] wakes at each arrival.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::Read as _,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    metrics::v1::{Metric, metric::Data, number_data_point},
    resource::v1::Resource,
    trace::v1::Span,
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{
        SdkMeterProvider, Temporality,
        data::{AggregatedMetrics, MetricData, ResourceMetrics},
        exporter::PushMetricExporter,
    },
};
use prost::Message as _;
use tokio::sync::{oneshot, watch};
use tonic::{Request, Response, Status, body::Body, codec::CompressionEncoding, transport::Server};
use tower::{Layer, Service};

pub use opentelemetry_proto;

/// Attributes as text, for comparisons.
pub type Attributes = BTreeMap<String, String>;

/// A span that arrived.
#[derive(Clone, Debug)]
pub struct ReceivedSpan {
    /// Attributes of the process that sent it.
    pub resource: Attributes,
    /// Its name: `service/method` for an RPC.
    pub name: String,
    /// Hexadecimal.
    pub trace_id: String,
    /// Hexadecimal.
    pub span_id: String,
    /// Hexadecimal; empty for a root.
    pub parent_span_id: String,
    /// Its attributes.
    pub attributes: Attributes,
    /// The message as it was sent.
    pub raw: Span,
}

/// A log record that arrived.
#[derive(Clone, Debug)]
pub struct ReceivedLog {
    /// Attributes of the process that sent it.
    pub resource: Attributes,
    /// The message.
    pub body: String,
    /// `INFO`, ...
    pub severity: String,
    /// Hexadecimal; empty outside of a span.
    pub trace_id: String,
    /// Its attributes.
    pub attributes: Attributes,
}

/// A metric of one export.
#[derive(Clone, Debug)]
pub struct ReceivedMetric {
    /// Attributes of the process that sent it.
    pub resource: Attributes,
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// The message as it was sent.
    pub raw: Metric,
}

impl ReceivedMetric {
    /// The sum of the points of a counter or gauge that have all of `attributes`. `None` if there is no such point, or for a histogram.
    pub fn total(&self, attributes: &[(&str, &str)]) -> Option<f64> {
        let points = match &self.raw.data {
            Some(Data::Sum(sum)) => &sum.data_points,
            Some(Data::Gauge(gauge)) => &gauge.data_points,
            _ => return None,
        };
        let wanted = points.iter().filter(|point| has(&point.attributes, attributes));
        let values: Vec<f64> = wanted
            .filter_map(|point| match point.value {
                Some(number_data_point::Value::AsDouble(value)) => Some(value),
                Some(number_data_point::Value::AsInt(value)) => Some(value as f64),
                None => None,
            })
            .collect();
        if values.is_empty() { None } else { Some(values.iter().sum()) }
    }

    /// How many values a histogram has in the points that have all of `attributes`. 0 for other metrics.
    pub fn count(&self, attributes: &[(&str, &str)]) -> u64 {
        let points: Vec<(&[KeyValue], u64)> = match &self.raw.data {
            Some(Data::Histogram(all)) => {
                all.data_points.iter().map(|point| (point.attributes.as_slice(), point.count)).collect()
            }
            Some(Data::ExponentialHistogram(all)) => {
                all.data_points.iter().map(|point| (point.attributes.as_slice(), point.count)).collect()
            }
            _ => Vec::new(),
        };
        let wanted = points.iter().filter(|(of_point, _)| has(of_point, attributes));
        wanted.map(|(_, count)| count).sum()
    }
}

/// Whether a point has all of `attributes`.
fn has(point: &[KeyValue], attributes: &[(&str, &str)]) -> bool {
    let of_point = flatten(point);
    attributes.iter().all(|(key, value)| of_point.get(*key).is_some_and(|v| v == value))
}

/// Everything that has arrived, in the order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Spans.
    pub spans: Vec<ReceivedSpan>,
    /// Log records.
    pub logs: Vec<ReceivedLog>,
    /// Metrics; one entry per metric and export.
    pub metrics: Vec<ReceivedMetric>,
    /// The requests that brought all this: path, and encoding (`gzip`) or nothing.
    pub requests: Vec<(String, String)>,
}

impl Received {
    /// Spans of one trace.
    pub fn trace(&self, trace_id: &str) -> Vec<&ReceivedSpan> {
        self.spans.iter().filter(|span| span.trace_id == trace_id).collect()
    }

    /// The last export of a metric.
    pub fn metric(&self, name: &str) -> Option<&ReceivedMetric> {
        self.metrics.iter().rev().find(|metric| metric.name == name)
    }
}

/// Meters of their own, whose metrics are exported nowhere: a test counts their series.
#[derive(Debug)]
pub struct Meters {
    provider: SdkMeterProvider,
    series: Series,
}

/// How many series each instrument had in the last export.
#[derive(Clone, Debug, Default)]
struct Series(Arc<Mutex<BTreeMap<String, usize>>>);

impl Meters {
    /// New ones, with the SDK's defaults.
    #[allow(clippy::new_without_default)] // it starts a thread
    pub fn new() -> Self {
        let series = Series::default();
        Self { provider: SdkMeterProvider::builder().with_periodic_exporter(series.clone()).build(), series }
    }

    /// A meter.
    pub fn meter(&self, name: &'static str) -> Meter {
        self.provider.meter(name)
    }

    /// How many series each instrument has now.
    ///
    /// # Panics
    /// If the SDK cannot collect them.
    #[allow(clippy::expect_used)] // for tests
    pub fn series(&self) -> BTreeMap<String, usize> {
        self.provider.force_flush().expect("the instruments are collected");
        self.series.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl PushMetricExporter for Series {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        fn points<T>(data: &MetricData<T>) -> usize {
            match data {
                MetricData::Gauge(gauge) => gauge.data_points().count(),
                MetricData::Sum(sum) => sum.data_points().count(),
                MetricData::Histogram(histogram) => histogram.data_points().count(),
                MetricData::ExponentialHistogram(histogram) => histogram.data_points().count(),
            }
        }
        let metrics = metrics.scope_metrics().flat_map(|scope| scope.metrics());
        let counted = metrics.map(|metric| {
            let n = match metric.data() {
                AggregatedMetrics::F64(data) => points(data),
                AggregatedMetrics::U64(data) => points(data),
                AggregatedMetrics::I64(data) => points(data),
            };
            (metric.name().to_owned(), n)
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counted.collect();
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

/// The collector; it ends when dropped.
#[derive(Debug)]
pub struct OtlpReceiver {
    addr: SocketAddr,
    shared: Shared,
    arrivals: watch::Receiver<u64>,
    _stop: oneshot::Sender<()>,
}

#[derive(Clone, Debug)]
struct Shared {
    received: Arc<Mutex<Received>>,
    arrivals: Arc<watch::Sender<u64>>,
}

impl OtlpReceiver {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// If no port or thread can be had.
    pub fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let (sender, arrivals) = watch::channel(0);
        let shared = Shared { received: Arc::default(), arrivals: Arc::new(sender) };
        let (stop, stopped) = oneshot::channel::<()>();
        let gzip = CompressionEncoding::Gzip;
        let server = Server::builder()
            .accept_http1(true)
            .layer(shared.clone())
            .add_service(TraceServiceServer::new(shared.clone()).accept_compressed(gzip))
            .add_service(MetricsServiceServer::new(shared.clone()).accept_compressed(gzip))
            .add_service(LogsServiceServer::new(shared.clone()).accept_compressed(gzip));
        std::thread::Builder::new().name("otlp-receiver".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                let incoming = tonic::transport::server::TcpIncoming::from(listener);
                // not graceful: exporters keep their connections open for ever
                tokio::select! {
                    _ = server.serve_with_incoming(incoming) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { addr, shared, arrivals, _stop: stop })
    }

    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`, with either protocol.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// A copy of everything that has arrived.
    pub fn received(&self) -> Received {
        self.shared.lock().clone()
    }

    /// Waits until `condition` returns a value, for at most `timeout`. It looks at each arrival. Cancel safe.
    ///
    /// # Errors
    /// Everything that has arrived, for the test's message.
    pub async fn until<T>(
        &self,
        timeout: Duration,
        mut condition: impl FnMut(&Received) -> Option<T>,
    ) -> Result<T, Box<Received>> {
        let mut arrivals = self.arrivals.clone();
        let wait = async {
            loop {
                arrivals.borrow_and_update();
                if let Some(found) = condition(&self.shared.lock()) {
                    return Some(found);
                }
                if arrivals.changed().await.is_err() {
                    return None;
                }
            }
        };
        match tokio::time::timeout(timeout, wait).await {
            Ok(Some(found)) => Ok(found),
            _ => Err(Box::new(self.received())),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self) {
        self.arrivals.send_modify(|n| *n += 1);
    }
}

impl Shared {
    fn traces(&self, request: ExportTraceServiceRequest) {
        let mut received = self.lock();
        for resource_spans in request.resource_spans {
            let resource = resource(resource_spans.resource);
            for raw in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                received.spans.push(ReceivedSpan {
                    resource: resource.clone(),
                    name: raw.name.clone(),
                    trace_id: hex(&raw.trace_id),
                    span_id: hex(&raw.span_id),
                    parent_span_id: hex(&raw.parent_span_id),
                    attributes: flatten(&raw.attributes),
                    raw,
                });
            }
        }
        drop(received);
        self.arrived();
    }

    fn metrics(&self, request: ExportMetricsServiceRequest) {
        let mut received = self.lock();
        for resource_metrics in request.resource_metrics {
            let resource = resource(resource_metrics.resource);
            for raw in resource_metrics.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                let (name, unit) = (raw.name.clone(), raw.unit.clone());
                received.metrics.push(ReceivedMetric { resource: resource.clone(), name, unit, raw });
            }
        }
        drop(received);
        self.arrived();
    }

    fn logs(&self, request: ExportLogsServiceRequest) {
        let mut received = self.lock();
        for resource_logs in request.resource_logs {
            let resource = resource(resource_logs.resource);
            for record in resource_logs.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                received.logs.push(log(&resource, &record));
            }
        }
        drop(received);
        self.arrived();
    }

    /// Takes an export over HTTP. The answer to one that cannot be read is 400.
    async fn take_http(self, request: http::Request<Body>) -> http::Response<Body> {
        let (parts, body) = request.into_parts();
        let taken = async {
            let mut bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            if parts.headers.get(http::header::CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip") {
                let mut plain = Vec::new();
                let unpacked = flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain);
                unpacked.map_err(|error| error.to_string())?;
                bytes = Bytes::from(plain);
            }
            let unreadable = |error: prost::DecodeError| error.to_string();
            match parts.uri.path() {
                "/v1/traces" => self.traces(ExportTraceServiceRequest::decode(bytes).map_err(unreadable)?),
                "/v1/metrics" => {
                    self.metrics(ExportMetricsServiceRequest::decode(bytes).map_err(unreadable)?)
                }
                "/v1/logs" => self.logs(ExportLogsServiceRequest::decode(bytes).map_err(unreadable)?),
                other => return Err(format!("no such path: {other}")),
            }
            Ok::<_, String>(())
        };
        let mut answer = http::Response::new(Body::empty());
        if let Err(error) = taken.await {
            *answer.status_mut() = http::StatusCode::BAD_REQUEST;
            *answer.body_mut() = Body::new(http_body_util::Full::new(Bytes::from(error)));
        }
        answer
    }
}

#[tonic::async_trait]
impl TraceService for Shared {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.traces(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Shared {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.metrics(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Shared {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.logs(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

impl<S> Layer<S> for Shared {
    type Service = Either<S>;

    fn layer(&self, grpc: S) -> Either<S> {
        Either { grpc, shared: self.clone() }
    }
}

/// OTLP/HTTP, and gRPC for all other paths.
#[derive(Clone, Debug)]
struct Either<S> {
    grpc: S,
    shared: Shared,
}

impl<S> Service<http::Request<Body>> for Either<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.grpc.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let encoding = header("content-encoding").or_else(|| header("grpc-encoding")).unwrap_or_default();
        let seen = (request.uri().path().to_owned(), encoding.to_owned());
        let http = seen.0.starts_with("/v1/");
        self.shared.lock().requests.push(seen);
        if http {
            let shared = self.shared.clone();
            return Box::pin(async move { Ok(shared.take_http(request).await) });
        }
        Box::pin(self.grpc.call(request))
    }
}

fn log(resource: &Attributes, record: &LogRecord) -> ReceivedLog {
    ReceivedLog {
        resource: resource.clone(),
        body: record.body.as_ref().map(text).unwrap_or_default(),
        severity: record.severity_text.clone(),
        trace_id: hex(&record.trace_id),
        attributes: flatten(&record.attributes),
    }
}

fn resource(resource: Option<Resource>) -> Attributes {
    resource.map(|resource| flatten(&resource.attributes)).unwrap_or_default()
}

fn flatten(attributes: &[KeyValue]) -> Attributes {
    attributes.iter().map(|kv| (kv.key.clone(), kv.value.as_ref().map(text).unwrap_or_default())).collect()
}

fn text(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
