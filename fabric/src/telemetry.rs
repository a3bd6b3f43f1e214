//! Logs to stderr, and traces, metrics and logs pushed by OTLP/gRPC to one collector.
//!
//! Without an endpoint nothing of OpenTelemetry is installed: spans of requests are not made, instruments are
//! no-ops, headers are not looked at. With one, a collector that is slow or gone costs telemetry and nothing
//! else: queues are bounded and never waited for, losses are counted ([`dropped`]), and the end waits at most
//! [`SHUTDOWN_MAX`].
//!
//! Honoured:
//! * `OTEL_EXPORTER_OTLP_ENDPOINT`, `.._HEADERS`, `.._TIMEOUT`, and each with `TRACES_`, `METRICS_`, `LOGS_`
//! * `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER`, `OTEL_LOGS_EXPORTER` (`otlp`, `none`); `OTEL_SDK_DISABLED`
//! * `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`
//! * `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`, `OTEL_SPAN_*_COUNT_LIMIT`
//! * `OTEL_BSP_*`, `OTEL_BLRP_*`, `OTEL_METRIC_EXPORT_INTERVAL`,
//!   `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`
//!
//! Not honoured, and told in the log when set: a protocol other than `grpc`, compression, propagators other than
//! `tracecontext`, `https` endpoints. Not honoured at all: certificates, `OTEL_LOG_LEVEL`.
//!
//! Ours, for stderr: `TRELLIS_LOG` (filter) and `TRELLIS_LOG_FORMAT` (`text`, `json`).

mod context;
mod ecs;
mod export;
mod settings;

use std::{
    io::IsTerminal as _,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use opentelemetry::{Context, KeyValue, metrics};
use opentelemetry::{global, trace::TracerProvider as _};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, SpanExporter, WithExportConfig as _,
};
use opentelemetry_sdk::{
    Resource, logs::SdkLoggerProvider, metrics::SdkMeterProvider, trace::SdkTracerProvider,
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::LevelFilter, filter::Targets, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

pub use context::{TRACEPARENT, inject, inject_headers, parent_of, set_parent, trace_id, traceparent};
pub(crate) use context::{adopt, write_context};
pub use export::Dropped;
pub use settings::Settings;

/// The end of a process waits at most this long for what is still queued: well inside the drain of a task.
pub const SHUTDOWN_MAX: Duration = Duration::from_secs(3);

/// One export may take this long unless the environment says otherwise: shorter than the specification's 10
/// s, so that one dead collector does not take up all of [`SHUTDOWN_MAX`] twice.
const EXPORT_MAX: Duration = Duration::from_secs(2);

/// What is logged to stderr when nothing else is said.
const LOG_FILTER: &str = "info";

/// Libraries that log several lines for each of their calls. They log warnings and errors only, unless `TRELLIS_LOG` says more.
const TALKATIVE: [&str; 2] = ["buoyant_kernel", "buoyant_kernel_engine"];

/// Crates that carry the exports themselves: to export what they say would feed itself.
const OWN_TRANSPORT: [&str; 6] = ["h2", "hyper", "hyper_util", "tonic", "tower", "opentelemetry"];

static EXPORTING: AtomicBool = AtomicBool::new(false);

/// The first and only installation; later ones share it.
static INSTALLED: OnceLock<Arc<Installed>> = OnceLock::new();

/// Whether traces are exported: whether a span of a request is worth making.
pub fn exporting() -> bool {
    EXPORTING.load(Ordering::Relaxed)
}

/// A meter; its instruments do nothing while metrics are not exported. Ask after [`Telemetry::init`]:
/// instruments made before are no-ops for ever.
pub fn meter(name: &'static str) -> metrics::Meter {
    global::meter(name)
}

/// What was lost on the way to the collector so far.
pub fn dropped() -> Dropped {
    INSTALLED.get().map(|installed| installed.accounts.dropped()).unwrap_or_default()
}

/// A handle on this process's telemetry.
#[derive(Clone, Debug)]
pub struct Telemetry {
    installed: Arc<Installed>,
}

#[derive(Debug, Default)]
struct Accounts {
    spans: Arc<export::Account>,
    logs: Arc<export::Account>,
    metrics: Arc<export::Account>,
}

impl Accounts {
    fn dropped(&self) -> Dropped {
        Dropped {
            spans: self.spans.dropped.load(Ordering::Relaxed),
            logs: self.logs.dropped.load(Ordering::Relaxed),
            metric_exports: self.metrics.dropped.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug, Default)]
struct Installed {
    accounts: Accounts,
    /// Taken by the first shutdown.
    providers: Mutex<Providers>,
}

#[derive(Debug, Default)]
struct Providers {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

impl Telemetry {
    /// Installs logging and, if the environment asks for it, OTLP, for the service `service_name`
    /// (`trellis-head`) whose instance is `instance` (its id).
    ///
    /// Call inside the Tokio runtime that will run the exports; outside of one only stderr logs are
    /// installed. A second call in the same process returns a handle on the first installation. A subscriber
    /// that somebody else installed is left in place. On ECS it asks the task metadata endpoint, which takes
    /// at most one second.
    pub fn init(service_name: &str, instance: &str) -> Self {
        Self::init_with(service_name, instance, &Settings::from_process())
    }

    /// As [`Telemetry::init`], with settings other than the environment's.
    pub fn init_with(service_name: &str, instance: &str, settings: &Settings) -> Self {
        let installed = INSTALLED.get_or_init(|| Arc::new(install(service_name, instance, settings)));
        Self { installed: installed.clone() }
    }

    /// Exports what is queued, for at most [`SHUTDOWN_MAX`], and ends exporting. Further calls do nothing.
    ///
    /// Cancel safe: the export goes on in its thread.
    pub async fn shutdown(&self) {
        let providers = {
            let mut providers = self.installed.providers.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *providers)
        };
        if providers.traces.is_none() && providers.metrics.is_none() && providers.logs.is_none() {
            return;
        }
        // A thread of its own: these calls block, and a runtime's end would wait for its blocking pool.
        let (done, ended) = tokio::sync::oneshot::channel();
        let spawned = std::thread::Builder::new().name("telemetry-shutdown".to_owned()).spawn(move || {
            // traces first: they are what a last failed request is looked for in
            let _ = providers.traces.map(|provider| provider.shutdown_with_timeout(SHUTDOWN_MAX));
            let _ = providers.logs.map(|provider| provider.shutdown_with_timeout(SHUTDOWN_MAX));
            let _ = providers.metrics.map(|provider| provider.shutdown_with_timeout(SHUTDOWN_MAX));
            let _ = done.send(());
        });
        EXPORTING.store(false, Ordering::Relaxed);
        if spawned.is_ok() && tokio::time::timeout(SHUTDOWN_MAX, ended).await.is_err() {
            tracing::warn!(
                waited_ms = SHUTDOWN_MAX.as_millis() as u64,
                "the collector did not take the last telemetry"
            );
        }
        let lost = self.installed.accounts.dropped();
        if lost != Dropped::default() {
            tracing::warn!(lost.spans, lost.logs, lost.metric_exports, "telemetry was lost");
        }
    }
}

fn install(service_name: &str, instance: &str, settings: &Settings) -> Installed {
    let accounts = Accounts::default();
    let mut complaints = settings.complaints.clone();
    let mut providers = Providers::default();
    if settings.exports() {
        if tokio::runtime::Handle::try_current().is_ok() {
            let resource = resource(service_name, instance, settings, &mut complaints);
            providers = export_to(settings, &resource, &accounts, &mut complaints);
        } else {
            complaints.push("telemetry was initialised outside of a Tokio runtime; not exporting".to_owned());
        }
    }
    let layers = layers(service_name, settings, &providers, &mut complaints);
    let subscribed = Registry::default().with(layers).try_init().is_ok();
    if !subscribed && settings.exports() {
        complaints.push("this process has a tracing subscriber already: exporting metrics only".to_owned());
    }
    if let Some(provider) = &providers.metrics {
        global::set_meter_provider(provider.clone());
        observe_losses(&accounts);
    }
    EXPORTING.store(providers.traces.is_some() && subscribed, Ordering::Relaxed);
    for complaint in complaints {
        tracing::warn!("{complaint}");
    }
    Installed { accounts, providers: Mutex::new(providers) }
}

fn resource(
    service_name: &str,
    instance: &str,
    settings: &Settings,
    complaints: &mut Vec<String>,
) -> Resource {
    let mut attributes = vec![
        KeyValue::new("service.instance.id", instance.to_owned()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.namespace", "trellis"),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ];
    if let Some(base) = &settings.ecs_metadata {
        match ecs::attributes(base) {
            Ok(task) => attributes.extend(task),
            Err(error) => complaints.push(format!("no ECS task metadata: {error}")),
        }
    }
    let builder = Resource::builder().with_attributes(attributes);
    // what the environment says of the service wins over what the program calls itself
    if settings.names_service {
        builder.build()
    } else {
        builder.with_service_name(service_name.to_owned()).build()
    }
}

fn export_to(
    settings: &Settings,
    resource: &Resource,
    accounts: &Accounts,
    complaints: &mut Vec<String>,
) -> Providers {
    let mut built = |signal: &str, result: Result<(), ExporterBuildError>| {
        if let Err(error) = result {
            complaints.push(format!("not exporting {signal}: {error}"));
        }
    };
    let mut providers = Providers::default();
    if let Some(endpoint) = &settings.traces {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
        let exporter = exporter.with_timeout(timeout("TRACES")).build();
        built(
            "traces",
            exporter.map(|exporter| {
                let processor = export::spans(exporter, accounts.spans.clone());
                let builder = SdkTracerProvider::builder().with_span_processor(processor);
                providers.traces = Some(builder.with_resource(resource.clone()).build());
            }),
        );
    }
    if let Some(endpoint) = &settings.logs {
        let exporter = LogExporter::builder().with_tonic().with_endpoint(endpoint);
        let exporter = exporter.with_timeout(timeout("LOGS")).build();
        built(
            "logs",
            exporter.map(|exporter| {
                let processor = export::logs(exporter, accounts.logs.clone());
                let builder = SdkLoggerProvider::builder().with_log_processor(processor);
                providers.logs = Some(builder.with_resource(resource.clone()).build());
            }),
        );
    }
    if let Some(endpoint) = &settings.metrics {
        let exporter = MetricExporter::builder().with_tonic().with_endpoint(endpoint);
        let exporter = exporter.with_timeout(timeout("METRICS")).build();
        built(
            "metrics",
            exporter.map(|exporter| {
                let exporter = export::metrics(exporter, accounts.metrics.clone());
                let builder = SdkMeterProvider::builder().with_periodic_exporter(exporter);
                providers.metrics = Some(builder.with_resource(resource.clone()).build());
            }),
        );
    }
    providers
}

/// The specification's variables, in milliseconds, or our shorter default.
fn timeout(signal: &str) -> Duration {
    let set = |name: &str| std::env::var(name).ok().and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
    set(&format!("OTEL_EXPORTER_OTLP_{signal}_TIMEOUT"))
        .or_else(|| set("OTEL_EXPORTER_OTLP_TIMEOUT"))
        .unwrap_or(EXPORT_MAX)
}

type BoxLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The filter of what is logged to stderr: [`LOG_FILTER`], with a complaint, if what is asked for is none.
fn log_filter(asked: &str, complaints: &mut Vec<String>) -> EnvFilter {
    // of two directives for one library the later one holds: the caller's
    let quiet = TALKATIVE.map(|target| format!("{target}=warn,")).concat();
    EnvFilter::try_new(format!("{quiet}{asked}")).unwrap_or_else(|error| {
        complaints.push(format!("TRELLIS_LOG={asked:?}: {error}; using {LOG_FILTER}"));
        EnvFilter::new(format!("{quiet}{LOG_FILTER}"))
    })
}

fn layers(
    service_name: &str,
    settings: &Settings,
    providers: &Providers,
    complaints: &mut Vec<String>,
) -> Vec<BoxLayer> {
    let asked = settings.log_filter.as_deref().unwrap_or(LOG_FILTER);
    let filter = log_filter(asked, complaints);
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(!settings.log_json && std::io::stderr().is_terminal());
    let stderr: BoxLayer =
        if settings.log_json { stderr.json().with_current_span(true).boxed() } else { stderr.boxed() };
    let mut layers = vec![stderr.with_filter(filter).boxed()];

    let mut exported = Targets::new().with_default(LevelFilter::INFO);
    for target in OWN_TRANSPORT {
        exported = exported.with_target(target, LevelFilter::OFF);
    }
    for target in TALKATIVE {
        exported = exported.with_target(target, LevelFilter::WARN);
    }
    if let Some(provider) = &providers.traces {
        let tracer = provider.tracer(service_name.to_owned());
        // source lines, threads and time per poll: paid for at each span and poll, and of no use in a service
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false);
        layers.push(layer.with_filter(exported.clone()).boxed());
    }
    if let Some(provider) = &providers.logs {
        layers.push(OpenTelemetryTracingBridge::new(provider).with_filter(exported).boxed());
    }
    layers
}

fn observe_losses(accounts: &Accounts) {
    let signals = [("spans", &accounts.spans), ("logs", &accounts.logs), ("metrics", &accounts.metrics)];
    let signals = signals.map(|(name, account)| (KeyValue::new("signal", name), account.clone()));
    meter("trellis-fabric")
        .u64_observable_counter("trellis.telemetry.dropped")
        .with_unit("{item}")
        .with_description("spans, log records and metric exports lost before the collector had them")
        .with_callback(move |observer| {
            for (signal, account) in &signals {
                observer.observe(account.dropped.load(Ordering::Relaxed), std::slice::from_ref(signal));
            }
        })
        .build();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_talkative_library_logs_warnings_unless_it_is_asked_for() {
        let told = |asked: &str| {
            let mut complaints = Vec::new();
            (log_filter(asked, &mut complaints).to_string(), complaints.len())
        };
        let (filter, complaints) = told("info,trellis_head=debug");
        assert!(filter.contains("buoyant_kernel=warn") && filter.contains("trellis_head=debug"), "{filter}");
        assert_eq!(complaints, 0);
        let (filter, _) = told("warn,buoyant_kernel=debug");
        assert!(
            filter.contains("buoyant_kernel=debug") && !filter.contains("buoyant_kernel=warn"),
            "{filter}"
        );
        let (filter, complaints) = told("head=loud");
        assert!(filter.contains("buoyant_kernel=warn") && filter.contains("info"), "{filter}");
        assert_eq!(complaints, 1);
    }
}
