//! What a process logs to stderr, and what it hands to the exporters.

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::{logs::SdkLoggerProvider, trace::SdkTracerProvider};
use tracing_subscriber::{EnvFilter, Layer, Registry, filter::LevelFilter, filter::Targets};

use super::settings::Settings;
use crate::env::{self, LOG_FILTER};

/// Crates that carry the exports. Exporting their logs would make further exports, without end.
const OWN_TRANSPORT: [&str; 6] = ["h2", "hyper", "hyper_util", "tonic", "tower", "opentelemetry"];

pub(super) type BoxLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The filter of the log on stderr. If `asked` is no filter, it is the default, and there is a complaint.
fn filter(asked: &str, complaints: &mut Vec<String>) -> EnvFilter {
    env::log_filter(asked).unwrap_or_else(|error| {
        complaints.push(format!("TRELLIS_LOG={asked:?}: {error}; using {LOG_FILTER}"));
        env::log_filter(LOG_FILTER).unwrap_or_else(|_| EnvFilter::new("info"))
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
    let filter = filter(asked, complaints);
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(!settings.log_json && std::io::stderr().is_terminal());
    let stderr: BoxLayer =
        if settings.log_json { stderr.json().with_current_span(true).boxed() } else { stderr.boxed() };
    let mut layers = vec![stderr.with_filter(filter).boxed()];

    let mut exported =
        Targets::new().with_default(LevelFilter::WARN).with_target("trellis", LevelFilter::INFO);
    for target in OWN_TRANSPORT {
        exported = exported.with_target(target, LevelFilter::OFF);
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
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_talkative_library_logs_warnings_unless_it_is_asked_for() {
        let told = |asked: &str| {
            let mut complaints = Vec::new();
            (filter(asked, &mut complaints).to_string(), complaints.len())
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

    #[test]
    fn by_default_the_grid_says_what_it_does_and_other_crates_only_what_is_wrong() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let writer = std::sync::Arc::new(log.reopen().unwrap());
        let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
        let filter = filter(LOG_FILTER, &mut Vec::new());
        tracing::subscriber::with_default(Registry::default().with(layer.with_filter(filter)), || {
            tracing::info!(target: "trellis_shard::upkeep", "kept");
            tracing::info!(target: "trellis_qcu::strategy", "kept");
            tracing::info!(target: "deltalake_core::kernel", "not of the grid");
            tracing::warn!(target: "deltalake_core::kernel", "kept");
            tracing::debug!(target: "trellis_shard::upkeep", "too much");
        });
        let told = std::fs::read_to_string(log.path()).unwrap();
        assert_eq!((told.lines().count(), told.matches("kept").count()), (3, 3), "{told}");
    }
}
