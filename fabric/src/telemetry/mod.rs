//! Logs to stderr, and traces, metrics and logs pushed by OTLP to one collector, by gRPC or by HTTP.
//!
//! Without an endpoint nothing of OpenTelemetry is installed: requests have no spans, instruments do nothing, and headers are not read.
//! With an endpoint, every run is traced, and so is one in a hundred of the requests outside of a run. A collector that is slow or gone
//! costs only telemetry: queues are bounded, nobody waits for them, losses are counted ([`dropped`]), and the end of the process waits
//! at most [`SHUTDOWN_MAX`].
//!
//! Honoured:
//! * `OTEL_EXPORTER_OTLP_ENDPOINT`, `.._PROTOCOL` (`grpc`, `http/protobuf`), `.._HEADERS`, `.._TIMEOUT`, `.._COMPRESSION` (`gzip`),
//!   `.._CERTIFICATE`, `.._INSECURE`, and each with `TRACES_`, `METRICS_`, `LOGS_`
//! * `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER`, `OTEL_LOGS_EXPORTER` (`otlp`, `none`); `OTEL_SDK_DISABLED`
//! * `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`
//! * `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` (without them, see `sampling`), `OTEL_SPAN_*_COUNT_LIMIT`
//! * `OTEL_BSP_*`, `OTEL_BLRP_*`, `OTEL_METRIC_EXPORT_INTERVAL`,
//!   `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`,
//!   `OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION` (the default here is exponential)
//!
//! Not honoured, and logged when set: the protocol `http/json`, other compressions, certificates of clients, propagators other than
//! `tracecontext`. Not honoured at all: `OTEL_LOG_LEVEL`.
//!
//! For stderr: `TRELLIS_LOG` (filter) and `TRELLIS_LOG_FORMAT` (`text`, `json`).
//!
//! | file | subject |
//! | --- | --- |
//! | `settings` | the standard variables; pure |
//! | `install` | [`Telemetry`]: installs everything once, and ends it |
//! | `transport` | the gRPC channel and the HTTP client that exports travel on, with TLS |
//! | `layers` | what is logged to stderr, and what is exported |
//! | `export` | bounded queues before the exporters, every loss counted |
//! | `sampling` | whether traces and metrics are exported, and which requests have spans |
//! | `context` | W3C trace context, in and out; links between spans |
//! | `ecs` | which ECS task this is |
//! | `usage` | the memory and processor time of this process |

mod context;
mod ecs;
mod export;
mod install;
mod layers;
mod sampling;
mod settings;
mod transport;
mod usage;

pub use context::{SpanRef, trace_id};
pub(crate) use context::{adopt, parent_of, rename, write_context};
pub use export::Dropped;
pub use install::{SHUTDOWN_MAX, Telemetry, dropped, meter};
pub use opentelemetry::{KeyValue, metrics};
pub(crate) use sampling::has_span;
pub use sampling::{exporting, measuring, traced};
pub use settings::{Protocol, Settings, Target};
