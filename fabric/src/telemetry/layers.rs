//! What a process logs to stderr, and what it hands to the exporters.

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::{logs::SdkLoggerProvider, trace::SdkTracerProvider};
use tracing_subscriber::{EnvFilter, Layer, Registry, filter::LevelFilter, filter::Targets};

use super::settings::Settings;

/// The filter of the log on stderr, if `TRELLIS_LOG` is not set.
const LOG_FILTER: &str = "info";

/// Libraries that log several lines for each call. They log only warnings and errors, unless `TRELLIS_LOG` says otherwise.
const TALKATIVE: [&str; 2] = ["buoyant_kernel", "buoyant_kernel_engine"];

/// The spans of requests. The log on stderr would format every attribute of each, and logs them only if `TRELLIS_LOG` says so.
const REQUESTS: [&str; 2] = ["trellis::rpc", "trellis::read"];

/// Crates that carry the exports. Exporting their logs would make further exports, without end.
const OWN_TRANSPORT: [&str; 6] = ["h2", "hyper", "hyper_util", "tonic", "tower", "opentelemetry"];

pub(super) type BoxLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The filter of the log on stderr. If `asked` is no filter, it is [`LOG_FILTER`], and there is a complaint.
fn log_filter(asked: &str, complaints: &mut Vec<String>) -> EnvFilter {
    // if two directives name one library, the later one holds: the caller's
    let quiet = TALKATIVE.map(|target| format!("{target}=warn,")).concat()
        + &REQUESTS.map(|target| format!("{target}=off,")).concat();
    EnvFilter::try_new(format!("{quiet}{asked}")).unwrap_or_else(|error| {
        complaints.push(format!("TRELLIS_LOG={asked:?}: {error}; using {LOG_FILTER}"));
        EnvFilter::new(format!("{quiet}{LOG_FILTER}"))
    })
}

pub(super) fn layers(
    service_name: &str,
    settings: &Settings,
    traces: Option<&SdkTracerProvider>,
    logs: Option<&SdkLoggerProvider>,
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
    if let Some(provider) = traces {
        let tracer = provider.tracer(service_name.to_owned());
        // source lines, threads and the time of each poll cost something at each span and poll, and a service does not need them
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false);
        layers.push(layer.with_filter(exported.clone()).boxed());
    }
    if let Some(provider) = logs {
        layers.push(OpenTelemetryTracingBridge::new(provider).with_filter(exported).boxed());
    }
    layers
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
