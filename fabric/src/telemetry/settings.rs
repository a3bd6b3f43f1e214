//! Telemetry settings from the standard variables. Pure.

use std::{path::PathBuf, time::Duration};

/// Longest time of one export, unless the environment says otherwise. The specification's 10 s would use up
/// [`SHUTDOWN_MAX`](super::SHUTDOWN_MAX) if the collector is dead.
const EXPORT_MAX: Duration = Duration::from_secs(2);

/// How telemetry is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with binary protobuf.
    Http,
}

/// Where one signal goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The endpoint as it was given, with a scheme.
    pub endpoint: String,
    /// The signal's path below `endpoint`. Empty for gRPC and for an endpoint that is the signal's own.
    pub path: &'static str,
    /// See [`Protocol`].
    pub protocol: Protocol,
    /// Whether exports are compressed with gzip.
    pub gzip: bool,
    /// Longest time of one export.
    pub timeout: Duration,
    /// A PEM file with the authorities that may sign the collector's certificate. `None`: those that the system trusts.
    pub certificate: Option<PathBuf>,
}

impl Target {
    /// The URL that exports are sent to.
    pub fn url(&self) -> String {
        if self.path.is_empty() {
            return self.endpoint.clone();
        }
        format!("{}{}", self.endpoint.trim_end_matches('/'), self.path)
    }

    /// Whether the connection is encrypted.
    pub(super) fn is_tls(&self) -> bool {
        self.endpoint.starts_with("https:")
    }
}

/// What the environment says about telemetry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where traces go. `None`: they are not exported.
    pub traces: Option<Target>,
    /// The same for metrics.
    pub metrics: Option<Target>,
    /// The same for logs.
    pub logs: Option<Target>,
    /// Whether histograms have the buckets that their instruments name. Otherwise they are exponential.
    pub explicit_buckets: bool,
    /// Whether the environment sets `service.name`.
    pub names_service: bool,
    /// Whether the environment names a sampler.
    pub names_sampler: bool,
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
        let mut target = |signal: &str, path| match disabled {
            true => None,
            false => target(&set, signal, path, &mut complaints),
        };
        let traces = target("TRACES", "/v1/traces");
        let metrics = target("METRICS", "/v1/metrics");
        let logs = target("LOGS", "/v1/logs");
        let explicit_buckets = match set(HISTOGRAMS).as_deref() {
            None | Some("base2_exponential_bucket_histogram") => false,
            Some("explicit_bucket_histogram") => true,
            Some(other) => {
                complaints.push(format!("{HISTOGRAMS}={other}: not known; using exponential buckets"));
                false
            }
        };
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
            explicit_buckets,
            names_service,
            names_sampler: set("OTEL_TRACES_SAMPLER").is_some(),
            log_filter: set(crate::env::LOG.name),
            log_json: set(crate::env::LOG_FORMAT.name).is_some_and(|format| format == "json"),
            ecs_metadata: set(crate::task::METADATA),
            complaints,
        }
    }

    /// Whether any signal is exported.
    pub fn exports(&self) -> bool {
        self.traces.is_some() || self.metrics.is_some() || self.logs.is_some()
    }

    /// Where telemetry goes, for people: one endpoint, one for each signal, or `off`.
    pub fn endpoints(&self) -> String {
        let [traces, metrics, logs] = [&self.traces, &self.metrics, &self.logs]
            .map(|target| target.as_ref().map_or("off", |target| target.endpoint.as_str()));
        if traces == metrics && metrics == logs {
            return traces.to_owned();
        }
        format!("traces {traces} metrics {metrics} logs {logs}")
    }
}

/// The variable that chooses the buckets of histograms.
const HISTOGRAMS: &str = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";

/// Where `signal` goes. Each variable of one signal wins over the variable of all signals.
fn target(
    set: &impl Fn(&str) -> Option<String>,
    signal: &str,
    path: &'static str,
    complaints: &mut Vec<String>,
) -> Option<Target> {
    let own = |what: &str| set(&format!("OTEL_EXPORTER_OTLP_{signal}_{what}"));
    let value = |what: &str| own(what).or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{what}")));
    let endpoint = value("ENDPOINT")?;
    let exporter = set(&format!("OTEL_{signal}_EXPORTER"));
    match exporter.as_deref() {
        None | Some("otlp") => {}
        Some("none") => return None,
        Some(other) => {
            complaints
                .push(format!("OTEL_{signal}_EXPORTER={other}: only otlp and none are known; not exporting"));
            return None;
        }
    }
    let mut complain = |what: String| complaints.push(format!("OTLP {what} for {signal}"));
    let protocol = match value("PROTOCOL").as_deref() {
        None | Some("grpc") => Protocol::Grpc,
        Some("http/protobuf") => Protocol::Http,
        Some("http/json") => {
            complain("protocol http/json is not spoken, using http/protobuf,".to_owned());
            Protocol::Http
        }
        Some(other) => {
            complain(format!("protocol {other} is not known, using grpc,"));
            Protocol::Grpc
        }
    };
    let gzip = match value("COMPRESSION").as_deref() {
        None | Some("none") => false,
        Some("gzip") => true,
        Some(other) => {
            complain(format!("compression {other} is not spoken, sending without,"));
            false
        }
    };
    let timeout = value("TIMEOUT").and_then(|text| match text.parse() {
        Ok(ms) => Some(Duration::from_millis(ms)),
        Err(_) => {
            complain(format!("timeout {text} is no number of milliseconds, using {EXPORT_MAX:?},"));
            None
        }
    });
    if value("CLIENT_CERTIFICATE").or_else(|| value("CLIENT_KEY")).is_some() {
        complain("certificates of clients are not spoken, exporting without,".to_owned());
    }
    // only gRPC may leave out the scheme; it is encrypted, unless the environment says otherwise
    let scheme = match value("INSECURE").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
        true => "http",
        false => "https",
    };
    let path = if protocol == Protocol::Http && own("ENDPOINT").is_none() { path } else { "" };
    Some(Target {
        endpoint: if endpoint.contains("://") { endpoint } else { format!("{scheme}://{endpoint}") },
        path,
        protocol,
        gzip,
        timeout: timeout.unwrap_or(EXPORT_MAX),
        certificate: value("CERTIFICATE").map(PathBuf::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");

    fn read(pairs: &[(&str, &str)]) -> Settings {
        Settings::read(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    fn urls(settings: &Settings) -> [Option<String>; 3] {
        [&settings.traces, &settings.metrics, &settings.logs].map(|target| target.as_ref().map(Target::url))
    }

    #[test]
    fn nothing_is_exported_without_an_endpoint() {
        assert_eq!(read(&[]), Settings::default());
        assert!(!read(&[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_SERVICE_NAME", "x")]).exports());
        assert!(!read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).exports());
    }

    #[test]
    fn one_endpoint_serves_all_signals_and_a_signal_may_have_its_own() {
        let settings = read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://l:1")]);
        let all = Some("http://c:4317".to_owned());
        assert_eq!(urls(&settings), [all.clone(), all, Some("http://l:1".to_owned())]);
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_encrypted_unless_the_environment_says_otherwise() {
        let bare = ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317");
        assert_eq!(read(&[bare]).endpoints(), "https://c:4317");
        assert_eq!(read(&[bare, ("OTEL_EXPORTER_OTLP_INSECURE", "true")]).endpoints(), "http://c:4317");
    }

    #[test]
    fn http_has_a_path_for_each_signal_below_the_common_endpoint() {
        let http = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4318/otlp/"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://l:9/insert/v1/logs"),
        ];
        let settings = read(&http);
        let expected =
            ["https://c:4318/otlp/v1/traces", "https://c:4318/otlp/v1/metrics", "http://l:9/insert/v1/logs"];
        assert_eq!(urls(&settings), expected.map(|url| Some(url.to_owned())));
        assert!(settings.complaints.is_empty(), "{:?}", settings.complaints);
    }

    #[test]
    fn each_signal_may_have_its_own_protocol_compression_timeout_and_certificate() {
        let settings = read(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "700"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "90"),
            ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "/own.pem"),
        ]);
        let (traces, metrics) = (settings.traces.unwrap(), settings.metrics.unwrap());
        assert_eq!((traces.protocol, metrics.protocol), (Protocol::Grpc, Protocol::Http));
        assert_eq!((traces.gzip, metrics.gzip), (true, false));
        assert_eq!((traces.timeout.as_millis(), metrics.timeout.as_millis()), (700, 90));
        let certificates = [traces.certificate, metrics.certificate].map(|file| file.unwrap());
        assert_eq!(certificates, ["/ca.pem", "/own.pem"].map(PathBuf::from));
    }

    #[test]
    fn the_endpoints_are_one_or_one_for_each_signal_or_off() {
        assert_eq!(read(&[]).endpoints(), "off");
        assert_eq!(read(&[ENDPOINT]).endpoints(), "http://c:4317");
        let http = [ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
        assert_eq!(read(&http).endpoints(), "http://c:4317");
        let without_logs = read(&[ENDPOINT, ("OTEL_LOGS_EXPORTER", "none")]);
        assert_eq!(without_logs.endpoints(), "traces http://c:4317 metrics http://c:4317 logs off");
    }

    #[test]
    fn a_signal_or_all_can_be_switched_off() {
        let settings = read(&[ENDPOINT, ("OTEL_METRICS_EXPORTER", "none")]);
        assert!(settings.metrics.is_none() && settings.traces.is_some() && settings.complaints.is_empty());
        assert!(!read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]).exports());
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        let complaints = |pair| read(&[ENDPOINT, pair]).complaints;
        for pair in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2s"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
        ] {
            assert_eq!(complaints(pair).len(), 3, "one for each signal: {:?}", complaints(pair));
        }
        for pair in
            [("OTEL_LOGS_EXPORTER", "console"), (HISTOGRAMS, "linear"), ("OTEL_PROPAGATORS", "baggage")]
        {
            assert_eq!(complaints(pair).len(), 1, "{:?}", complaints(pair));
        }
    }

    #[test]
    fn histograms_are_exponential_unless_the_environment_says_otherwise() {
        assert!(!read(&[(HISTOGRAMS, "base2_exponential_bucket_histogram")]).explicit_buckets);
        assert!(read(&[(HISTOGRAMS, "explicit_bucket_histogram")]).explicit_buckets);
    }

    #[test]
    fn the_environment_may_name_the_service_in_two_ways() {
        assert!(read(&[("OTEL_SERVICE_NAME", "x")]).names_service);
        assert!(read(&[("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name=x")]).names_service);
        assert!(!read(&[("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=x")]).names_service);
    }
}
