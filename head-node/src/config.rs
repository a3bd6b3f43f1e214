//! The configuration of a head node. It is read whole, and refused if it is wrong, before any port is bound.

use std::{net::SocketAddr, time::Duration};

use trellis_fabric::{
    discovery::Source,
    env::{self, ConfigError, Env, Invalid, Var},
};

/// Where the shards are.
const SHARDS: Var = Var::required(
    "TRELLIS_SHARDS",
    "where the shards are: static://HOST:PORT,HOST:PORT, dns://NAME:PORT or cloudmap://NAMESPACE/SERVICE",
);
/// Where the heads are.
const HEADS: Var = Var::optional(
    "TRELLIS_HEADS",
    "where all heads are, this one among them: cloudmap://NAMESPACE/SERVICE, dns://NAME{0..63}REST:PORT, static://...; told to \
     clients that start with a few of them. Not a plain dns:// name of Cloud Map, which has eight",
);
/// The memory budget.
const CACHE_BYTES: Var = Var::or(
    "TRELLIS_CACHE_BYTES",
    "512MiB",
    "memory for chunks (kept, on their way in, held by readers), answers on their way out, and requests",
);
/// Most bytes of an answer.
const ANSWER_BYTES: Var =
    Var::or("TRELLIS_ANSWER_BYTES", "4GiB", "longest answer to one read; more is refused");
/// Most rows of an answer.
const ANSWER_ROWS: Var =
    Var::or("TRELLIS_ANSWER_ROWS", "200000000", "most rows of one answer; more are refused");
/// How long an abandoned fetch goes on.
const GRACE_MS: Var = Var::or(
    "TRELLIS_GRACE_MS",
    "250",
    "milliseconds that a fetch goes on after its last reader has left, in case another one comes",
);

/// The folder of the `trellis up` that runs this head.
const STATE: Var = Var::optional(
    "TRELLIS_STATE",
    "state folder of the `trellis up` that runs this head; told to clients, who deploy units there",
);

/// Every variable of the binary `head-node`.
pub const VARS: &[Var] = &[
    env::ID,
    env::LISTEN,
    SHARDS,
    HEADS,
    CACHE_BYTES,
    ANSWER_BYTES,
    ANSWER_ROWS,
    GRACE_MS,
    STATE,
    env::DRAIN_MS,
    env::LOG,
    env::LOG_FORMAT,
];

/// A head node's configuration. Make one with [`Config::new`] and change its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The head's name.
    pub id: String,
    /// Discovery URL of the shards: `static://`, `grpc://`, `dns://` or `cloudmap://`.
    pub shards_url: String,
    /// Discovery URL of all heads. Without it clients know only the heads that they find by themselves.
    pub heads_url: Option<String>,
    /// Bytes for chunks (resident, in flight, pinned by readers), answers on their way out and requests together.
    pub cache_bytes: u64,
    /// Most bytes of one answer.
    pub answer_bytes_max: u64,
    /// Most rows of one answer.
    pub answer_rows_max: u64,
    /// How long a fetch goes on after its last reader has left.
    pub grace: Duration,
    /// Folder of the `trellis up` that runs this head.
    pub state: Option<String>,
    /// How long answers in flight may take once the head was told to stop.
    pub drain: Duration,
}

/// The configuration of the process: its head, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The head's own configuration.
    pub head: Config,
    /// Address to listen on.
    pub listen: SocketAddr,
}

impl Config {
    /// The configuration of a head named `id` with the shards at `shards_url`, and every default.
    #[must_use]
    pub fn new(id: impl Into<String>, shards_url: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            shards_url: shards_url.into(),
            heads_url: None,
            cache_bytes: 512 << 20,
            answer_bytes_max: 4 << 30,
            answer_rows_max: 200_000_000,
            grace: Duration::from_millis(250),
            state: None,
            drain: Duration::from_secs(10),
        }
    }
}

impl Process {
    /// Reads the configuration from the environment.
    ///
    /// # Errors
    /// Names every variable that is missing, wrong or unknown.
    pub fn from_env(mut env: Env) -> Result<Self, ConfigError> {
        let id = env.own_name(&env::ID);
        let listen = env.listen(&env::LISTEN);
        let shards_url = env.with(&SHARDS, Source::check);
        let heads_url = if env.is_set(&HEADS) { env.with(&HEADS, Source::check).map(Some) } else { Ok(None) };
        let cache_bytes = env.bytes_size(&CACHE_BYTES, CACHE_BYTES_MIN);
        let answer_bytes = env.bytes_size(&ANSWER_BYTES, 1);
        let answer_rows = env.parse(&ANSWER_ROWS);
        let grace = env.millis(&GRACE_MS);
        let state = env.optional(&STATE);
        let drain = env.millis(&env::DRAIN_MS);
        env.finish()?;
        let head = || -> Result<Self, Invalid> {
            Ok(Self {
                head: Config {
                    id: id?,
                    shards_url: shards_url?,
                    heads_url: heads_url?,
                    cache_bytes: cache_bytes?,
                    answer_bytes_max: answer_bytes?,
                    answer_rows_max: answer_rows?,
                    grace: grace?,
                    state,
                    drain: drain?,
                },
                listen: listen?,
            })
        };
        head().map_err(|invalid| unreachable!("{invalid:?} was reported by finish"))
    }
}

/// Least memory: a smaller budget does not hold the chunks of one wide answer.
const CACHE_BYTES_MIN: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Process, ConfigError> {
        Process::from_env(Env::from_pairs(VARS, pairs.iter().copied()))
    }

    #[test]
    fn two_variables_make_a_head_with_the_defaults_of_new() {
        let process = parse(&[("TRELLIS_ID", "head-0"), ("TRELLIS_SHARDS", "static://a:1")]).unwrap();
        assert_eq!(process.head, Config::new("head-0", "static://a:1"));
        assert_eq!(process.listen.to_string(), "127.0.0.1:0");
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let wrong =
            [("TRELLIS_ID", "Head 0"), ("TRELLIS_CACHE_BYTES", "1KiB"), ("TRELLIS_HEADS", "head.internal")];
        let told = parse(&wrong).unwrap_err().to_string();
        for name in ["TRELLIS_ID", "TRELLIS_SHARDS", "TRELLIS_HEADS", "TRELLIS_CACHE_BYTES"] {
            assert!(told.contains(name), "{told}");
        }
    }
}
