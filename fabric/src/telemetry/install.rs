//! Installs a process's telemetry once, and ends it.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use opentelemetry::{KeyValue, global, metrics};
use opentelemetry_otlp::{
    Compression, LogExporter, MetricExporter, Protocol as OtlpProtocol, SpanExporter, WithExportConfig as _,
    WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    logs::SdkLoggerProvider,
    metrics::{Aggregation, Instrument, InstrumentKind, SdkMeterProvider, Stream},
    trace::SdkTracerProvider,
};
use tracing_subscriber::{Registry, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::{
    ecs,
    export::{self, Dropped},
    layers::layers,
    sampling::{set_exporting, set_measuring},
    settings::{Protocol, Settings, Target},
    transport, usage,
};

/// Longest time that the end of a process waits for queued telemetry: well inside the drain of a task.
pub const SHUTDOWN_MAX: Duration = Duration::from_secs(3);

/// Most buckets of an exponential histogram: the specification's default. For durations from 10 us to 1 h a bucket is 19 %
/// wide.
const BUCKETS_MAX: u32 = 160;

/// The finest scale of an exponential histogram, with which it begins: the specification's default. It becomes coarser as values need it.
const SCALE_MAX: i8 = 20;

/// The meter of this crate's instruments.
const METER: &str = "trellis-fabric";

/// The one installation of this process; later calls share it.
static INSTALLED: OnceLock<Arc<Installed>> = OnceLock::new();

/// A meter. Its instruments do nothing while metrics are not exported. Call it after [`Telemetry::init`]: instruments that were made
/// before never do anything.
pub fn meter(name: &'static str) -> metrics::Meter {
    global::meter(name)
}

/// The telemetry that was lost so far.
pub fn dropped() -> Dropped {
    INSTALLED.get().map(|installed| installed.accounts.dropped()).unwrap_or_default()
}

/// This process's telemetry.
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
    /// The first shutdown takes them.
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
    /// Call it inside the Tokio runtime that runs the exports; outside of a runtime it installs only the log on stderr. A second call in
    /// the same process returns the first installation. It leaves a subscriber in place that other code has installed. On ECS it
    /// asks the task metadata endpoint, which takes at most one second.
    pub fn init(service_name: &str, instance: &str) -> Self {
        Self::init_with(service_name, instance, &Settings::from_process())
    }

    /// Like [`Telemetry::init`], with given settings.
    pub fn init_with(service_name: &str, instance: &str, settings: &Settings) -> Self {
        let installed = INSTALLED.get_or_init(|| Arc::new(install(service_name, instance, settings)));
        Self { installed: installed.clone() }
    }

    /// Exports the queued telemetry, for at most [`SHUTDOWN_MAX`], and ends exporting. A second call does nothing.
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
        // on a thread of its own: these calls block, and the end of a runtime would wait for its blocking pool
        let (done, ended) = tokio::sync::oneshot::channel();
        let spawned = std::thread::Builder::new().name("telemetry-shutdown".to_owned()).spawn(move || {
            // traces first: a person looks there for the last failed request
            let _ = providers.traces.map(|provider| provider.shutdown_with_timeout(SHUTDOWN_MAX));
            let _ = providers.logs.map(|provider| provider.shutdown_with_timeout(SHUTDOWN_MAX));
            let _ = providers.metrics.map(|provider| provider.shutdown_with_timeout(SHUTDOWN_MAX));
            let _ = done.send(());
        });
        set_exporting(false, false);
        set_measuring(false);
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
    let layers =
        layers(service_name, settings, providers.traces.as_ref(), providers.logs.as_ref(), &mut complaints);
    let subscribed = Registry::default().with(layers).try_init().is_ok();
    if !subscribed && settings.exports() {
        complaints.push("this process has a tracing subscriber already: exporting metrics only".to_owned());
    }
    if let Some(provider) = &providers.metrics {
        global::set_meter_provider(provider.clone());
        observe_losses(&accounts);
        usage::observe(&meter(METER));
        set_measuring(true);
    }
    set_exporting(providers.traces.is_some() && subscribed, settings.names_sampler);
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
    // the environment's service name wins over the program's
    if settings.names_service {
        builder.build()
    } else {
        builder.with_service_name(service_name.to_owned()).build()
    }
}

/// Builds an exporter of the given type for a target.
macro_rules! exporter {
    ($exporter:ty, $target:expr) => {{
        let target: &Target = $target;
        let built = match target.protocol {
            Protocol::Grpc => transport::channel(target).map(|channel| {
                let builder = <$exporter>::builder().with_tonic().with_channel(channel);
                let builder = builder.with_timeout(target.timeout);
                match target.gzip {
                    true => builder.with_compression(Compression::Gzip).build(),
                    false => builder.build(),
                }
            }),
            Protocol::Http => transport::http_client(target).map(|client| {
                let builder = <$exporter>::builder().with_http().with_http_client(client);
                let builder = builder.with_protocol(OtlpProtocol::HttpBinary).with_endpoint(target.url());
                let builder = builder.with_timeout(target.timeout);
                match target.gzip {
                    true => builder.with_compression(Compression::Gzip).build(),
                    false => builder.build(),
                }
            }),
        };
        built.and_then(|built| built.map_err(|error| error.to_string()))
    }};
}

fn export_to(
    settings: &Settings,
    resource: &Resource,
    accounts: &Accounts,
    complaints: &mut Vec<String>,
) -> Providers {
    let mut providers = Providers::default();
    let mut not = |signal: &str, error: String| complaints.push(format!("not exporting {signal}: {error}"));
    if let Some(target) = &settings.traces {
        match exporter!(SpanExporter, target) {
            Ok(exporter) => {
                let processor = export::spans(exporter, accounts.spans.clone());
                let builder = SdkTracerProvider::builder().with_span_processor(processor);
                providers.traces = Some(builder.with_resource(resource.clone()).build());
            }
            Err(error) => not("traces", error),
        }
    }
    if let Some(target) = &settings.logs {
        match exporter!(LogExporter, target) {
            Ok(exporter) => {
                let processor = export::logs(exporter, accounts.logs.clone());
                let builder = SdkLoggerProvider::builder().with_log_processor(processor);
                providers.logs = Some(builder.with_resource(resource.clone()).build());
            }
            Err(error) => not("logs", error),
        }
    }
    if let Some(target) = &settings.metrics {
        match exporter!(MetricExporter, target) {
            Ok(exporter) => {
                let exporter = export::metrics(exporter, accounts.metrics.clone());
                let mut builder = SdkMeterProvider::builder().with_periodic_exporter(exporter);
                if !settings.explicit_buckets {
                    builder = builder.with_view(exponential);
                }
                providers.metrics = Some(builder.with_resource(resource.clone()).build());
            }
            Err(error) => not("metrics", error),
        }
    }
    providers
}

/// Exponential buckets for every histogram: nobody has to guess the range of its values.
fn exponential(instrument: &Instrument) -> Option<Stream> {
    if instrument.kind() != InstrumentKind::Histogram {
        return None;
    }
    let buckets = Aggregation::Base2ExponentialHistogram {
        max_size: BUCKETS_MAX,
        max_scale: SCALE_MAX,
        record_min_max: true,
    };
    Stream::builder().with_aggregation(buckets).build().ok()
}

fn observe_losses(accounts: &Accounts) {
    let signals = [("spans", &accounts.spans), ("logs", &accounts.logs), ("metrics", &accounts.metrics)];
    let signals = signals.map(|(name, account)| (KeyValue::new("signal", name), account.clone()));
    meter(METER)
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
