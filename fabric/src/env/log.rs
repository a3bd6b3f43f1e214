//! The filter of the log on stderr.

use tracing_subscriber::EnvFilter;

/// The filter if `TRELLIS_LOG` is not set: what the grid's own crates say, and the warnings of the others. A target stands for every
/// target that begins with it.
pub(crate) const LOG_FILTER: &str = "warn,trellis=info";

/// Libraries that log several lines for each call. They log only warnings and errors, unless `TRELLIS_LOG` says otherwise.
const TALKATIVE: [&str; 2] = ["buoyant_kernel", "buoyant_kernel_engine"];

/// The spans of requests. The log on stderr would format every attribute of each, and logs them only if `TRELLIS_LOG` says so.
const REQUESTS: [&str; 2] = ["trellis::rpc", "trellis::read"];

/// The filter that `TRELLIS_LOG` asks for.
///
/// # Errors
/// Says why it is none.
pub(crate) fn log_filter(asked: &str) -> Result<EnvFilter, String> {
    // if two directives name one target, the later one holds: the caller's
    let quiet = TALKATIVE.map(|target| format!("{target}=warn,")).concat()
        + &REQUESTS.map(|target| format!("{target}=off,")).concat();
    EnvFilter::try_new(quiet + asked.trim()).map_err(|error| error.to_string())
}
