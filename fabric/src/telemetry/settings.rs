//! Telemetry settings from the standard variables. Pure.

/// What the environment says about telemetry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// OTLP/gRPC endpoint of traces. `None`: traces are not exported.
    pub traces: Option<String>,
    /// The same for metrics.
    pub metrics: Option<String>,
    /// The same for logs.
    pub logs: Option<String>,
    /// Whether the environment sets `service.name`.
    pub names_service: bool,
    /// Filter of the log on stderr.
    pub log_filter: Option<String>,
    /// Whether the log on stderr is JSON.
    pub log_json: bool,
    /// Base of the ECS task metadata endpoint.
    pub ecs_metadata: Option<String>,
    /// Settings that cannot be honoured. They are logged once the log is installed.
    pub complaints: Vec<String>,
}

impl Settings {
    /// This process's settings.
    pub fn from_process() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Settings from any source of variables.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let mut complaints = Vec::new();
        let disabled = set("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let mut endpoint = |signal: &str| {
            let own = set(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"));
            let url = own.or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT"))?;
            if disabled {
                return None;
            }
            match set(&format!("OTEL_{signal}_EXPORTER")).as_deref() {
                None | Some("otlp") => {}
                Some("none") => return None,
                Some(other) => {
                    complaints.push(format!(
                        "OTEL_{signal}_EXPORTER={other}: only otlp and none are known; not exporting"
                    ));
                    return None;
                }
            }
            let protocol = set(&format!("OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"))
                .or_else(|| set("OTEL_EXPORTER_OTLP_PROTOCOL"));
            if let Some(protocol) = protocol.filter(|protocol| protocol != "grpc") {
                complaints
                    .push(format!("OTLP protocol {protocol} for {signal}: only grpc is spoken; using grpc"));
            }
            if url.starts_with("https:") {
                complaints
                    .push(format!("{url}: TLS to the collector is not built in; not exporting {signal}"));
                return None;
            }
            Some(if url.contains("://") { url } else { format!("http://{url}") })
        };
        let (traces, metrics, logs) = (endpoint("TRACES"), endpoint("METRICS"), endpoint("LOGS"));
        let names_service = set("OTEL_SERVICE_NAME").is_some()
            || set("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|attributes| {
                attributes.split(',').any(|pair| pair.trim_start().starts_with("service.name="))
            });
        if set("OTEL_PROPAGATORS").is_some_and(|propagators| propagators != "tracecontext") {
            complaints.push("OTEL_PROPAGATORS: only tracecontext is spoken".to_owned());
        }
        Self {
            traces,
            metrics,
            logs,
            names_service,
            log_filter: set(crate::env::LOG.name),
            log_json: set(crate::env::LOG_FORMAT.name).is_some_and(|format| format == "json"),
            ecs_metadata: set("ECS_CONTAINER_METADATA_URI_V4"),
            complaints,
        }
    }

    /// Whether any signal is exported.
    pub fn exports(&self) -> bool {
        self.traces.is_some() || self.metrics.is_some() || self.logs.is_some()
    }

    /// Where telemetry goes, for people: one endpoint, one for each signal, or `off`.
    pub fn endpoints(&self) -> String {
        let [traces, metrics, logs] =
            [&self.traces, &self.metrics, &self.logs].map(|endpoint| endpoint.as_deref().unwrap_or("off"));
        if traces == metrics && metrics == logs {
            return traces.to_owned();
        }
        format!("traces {traces} metrics {metrics} logs {logs}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Settings {
        Settings::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn nothing_is_exported_without_an_endpoint() {
        assert_eq!(read(&[]), Settings::default());
        assert!(!read(&[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_SERVICE_NAME", "x")]).exports());
        assert!(!read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).exports());
    }

    #[test]
    fn one_endpoint_serves_all_signals_and_a_signal_may_have_its_own() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "l:1"),
        ]);
        assert_eq!(settings.traces.as_deref(), Some("http://c:4317"));
        assert_eq!(settings.metrics.as_deref(), Some("http://c:4317"));
        assert_eq!(settings.logs.as_deref(), Some("http://l:1"));
    }

    #[test]
    fn the_endpoints_are_one_or_one_for_each_signal_or_off() {
        assert_eq!(read(&[]).endpoints(), "off");
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert_eq!(read(&[endpoint]).endpoints(), "http://c:4317");
        let without_logs = read(&[endpoint, ("OTEL_LOGS_EXPORTER", "none")]);
        assert_eq!(without_logs.endpoints(), "traces http://c:4317 metrics http://c:4317 logs off");
    }

    #[test]
    fn a_signal_or_all_can_be_switched_off() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        let settings = read(&[endpoint, ("OTEL_METRICS_EXPORTER", "none")]);
        assert!(settings.metrics.is_none() && settings.traces.is_some() && settings.complaints.is_empty());
        assert!(!read(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]).exports());
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert_eq!(read(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]).complaints.len(), 3);
        assert_eq!(read(&[endpoint, ("OTEL_LOGS_EXPORTER", "console")]).complaints.len(), 1);
        let tls = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4317")]);
        assert!(!tls.exports() && tls.complaints.len() == 3);
    }

    #[test]
    fn the_environment_may_name_the_service_in_two_ways() {
        assert!(read(&[("OTEL_SERVICE_NAME", "x")]).names_service);
        assert!(read(&[("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name=x")]).names_service);
        assert!(!read(&[("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=x")]).names_service);
    }
}
