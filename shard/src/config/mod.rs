//! The configuration of a shard. It is parsed and checked whole before a port is bound.

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::Path, time::Duration};

use serde::Deserialize;
use trellis_fabric::env::{self, ConfigError, Env, Var};
use trellis_proto::{Code, Error, Result, pb, placement::SLOTS};
use url::Url;

use crate::{budget::WORK_BYTES_MAX, files::Lake, ownership::Ownership};

/// Time between two looks at a local lake for commits of others, so that watchers hear of them. A read looks by itself.
pub const POLL_LOCAL: Duration = Duration::from_millis(100);
/// The same for an object store, where a look costs a request.
pub const POLL_REMOTE: Duration = Duration::from_millis(2_500);
/// How many datasets the shard looks at each time: half of them among the datasets that were used lately, the others among all, in
/// turns. In a folder one look takes about 50 microseconds of a core, so all of them take a hundredth of a core.
pub const LOOKS_LOCAL: usize = 24;
/// The same for an object store.
pub const LOOKS_REMOTE: usize = 1;
/// Time between two searches for old files in a folder. Each opens a table, which takes up to ten milliseconds of a core.
pub const SEARCH_LOCAL: Duration = Duration::from_secs(10);
/// The same for an object store, where a search takes some requests.
pub const SEARCH_REMOTE: Duration = Duration::from_secs(60);

/// How long a publish waits for a head to apply it. A head that works does so in milliseconds. A head gives another shard two seconds to
/// say that a publish is applied: this is half of it, so that the shard has disconnected a head that hangs before the asking head gives up.
pub const APPLY_WAIT: Duration = Duration::from_secs(1);

const ID: Var = Var::optional(
    "TRELLIS_ID",
    "name of this shard, one of TRELLIS_SHARD_IDS; by default shard-<index>, in an ECS task without an index that of its service, GRID-NAME",
);
const LAKE: Var =
    Var::required("TRELLIS_LAKE", "the lake: a folder, file:///folder or s3://bucket/prefix (with AWS_*)");
const INDEX: Var = Var::optional(
    "TRELLIS_SHARD_INDEX",
    "which of the shards this is, from 0; by default the place of its name among them, or 0 if it has none",
);
const COUNT: Var = Var::or("TRELLIS_SHARD_COUNT", "1", "how many shards split the symbols evenly");
const IDS: Var = Var::optional(
    "TRELLIS_SHARD_IDS",
    "names of all shards, with commas, the same on each; by default shard-0 to shard-<count - 1>",
);
const OWNS: Var = Var::optional(
    "TRELLIS_OWNS",
    r#"instead of index and count, JSON: [{"dataset": "fx.*", "slots": [0, 32768], "start": "2014-01-01"}], or "symbols": [..] for slots"#,
);

const SCRUB: Var = Var::or(
    "TRELLIS_SCRUB_BYTES",
    "4194304",
    "bytes a second at which files are compared with their checksums, a read every three seconds; 0: never",
);

/// Every variable that the binary reads, besides the telemetry's `OTEL_*`.
pub const VARIABLES: &[Var] =
    &[ID, env::LISTEN, LAKE, INDEX, COUNT, IDS, OWNS, SCRUB, env::DRAIN_MS, env::LOG, env::LOG_FORMAT];

/// Limits of one publish. While rows are checked, sorted and encoded, memory holds them decoded, up to four times. So these bound
/// memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most rows of one session publish.
    pub publish_rows_max: usize,
    /// Most Arrow bytes of one session publish.
    pub publish_bytes_max: usize,
    /// Most rows of one import.
    pub import_rows_max: usize,
    /// Most Arrow bytes of one import.
    pub import_bytes_max: usize,
    /// Most fields of one publish or import.
    pub columns_max: usize,
    /// Most bytes of one symbol's rows in one chunk, all versions included. The bytes are an estimate. A chunk goes to a head in
    /// one message of at most 56 MiB.
    pub chunk_bytes_max: usize,
    /// Most bytes of all publishes that are being received, checked or written. The shard refuses further publishes as
    /// overload.
    pub pending_bytes_max: usize,
    /// Most bytes of rows that are read from files at once: by fetches, compactions and changes of a dataset. The calls of the Delta
    /// kernel count, too. Work that finds no room waits.
    pub work_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            publish_rows_max: 5_000_000,
            publish_bytes_max: 512 << 20,
            import_rows_max: 20_000_000,
            import_bytes_max: 1 << 30,
            columns_max: 512,
            chunk_bytes_max: 48 << 20,
            pending_bytes_max: 2 << 30,
            work_bytes_max: WORK_BYTES_MAX,
        }
    }
}

/// When files are merged and old ones removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upkeep {
    /// Small files of one dataset that start a compaction.
    pub compact_files: usize,
    /// A file of at least this many bytes is not small.
    pub compact_bytes: u64,
    /// Commits between two checkpoints; opening a table costs 0.4 ms for every commit after the last one.
    pub checkpoint_commits: u64,
    /// A replaced or orphaned file is removed after this long: far above any read or write in flight.
    pub retention: Duration,
    /// How long log entries are kept: how far back readers may go, and longer than a writer may pause.
    pub log_retention: Duration,
    /// Time between two rounds of the upkeep.
    pub every: Duration,
    /// Time between two searches for old files.
    pub search_every: Duration,
    /// Bytes a second at which files are compared with their checksums, a read every three seconds; 0: never. 4 MiB are less than a
    /// hundredth of a core, and a terabyte in three days.
    pub scrub_bytes: u64,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self {
            compact_files: 64,
            compact_bytes: 16 << 20,
            checkpoint_commits: 50,
            retention: Duration::from_secs(7 * 86_400),
            log_retention: Duration::from_secs(90 * 86_400),
            every: Duration::from_secs(30),
            search_every: SEARCH_LOCAL,
            scrub_bytes: 4 << 20,
        }
    }
}

/// A shard's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The shard's name; one of `shards`.
    pub id: String,
    /// Folder or S3 prefix of the lake, shared by all shards.
    pub lake: Url,
    /// Regions that this shard answers for.
    pub owns: Vec<pb::Ownership>,
    /// Names of all shards, the same on every shard: they decide which one commits to a dataset.
    pub shards: Vec<String>,
    /// Limits of a publish.
    pub limits: Limits,
    /// Compaction, checkpoints, removal.
    pub upkeep: Upkeep,
    /// Time between two looks for commits of others.
    pub poll: Duration,
    /// How many datasets the shard looks at each time.
    pub looks: usize,
    /// See [`APPLY_WAIT`].
    pub apply_wait: Duration,
    /// How long calls in flight may take after the shard is told to stop.
    pub drain: Duration,
}

impl Config {
    /// One shard that owns everything of a lake in a local folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if the folder cannot be made.
    pub fn local(lake: &Path) -> Result<Self> {
        let shards = vec!["shard-0".to_owned()];
        Ok(Self::new("shard-0", lake_url(&lake.to_string_lossy())?, split_ring(0, 1)?, shards))
    }

    /// A configuration with every default.
    #[must_use]
    pub fn new(id: &str, lake: Url, owns: Vec<pb::Ownership>, shards: Vec<String>) -> Self {
        let (poll, looks, search_every) = match lake.scheme() {
            "file" => (POLL_LOCAL, LOOKS_LOCAL, SEARCH_LOCAL),
            _ => (POLL_REMOTE, LOOKS_REMOTE, SEARCH_REMOTE),
        };
        Self {
            id: id.to_owned(),
            lake,
            owns,
            shards,
            limits: Limits::default(),
            upkeep: Upkeep { search_every, ..Upkeep::default() },
            poll,
            looks,
            apply_wait: APPLY_WAIT,
            drain: Duration::from_secs(10),
        }
    }

    /// The configuration of the binary, and the address that it listens on.
    ///
    /// # Errors
    /// Every variable that is missing or makes no sense, at once.
    pub fn from_env(mut env: Env) -> Result<(Self, SocketAddr), ConfigError> {
        let listen = env.listen(&env::LISTEN);
        let lake = env.with(&LAKE, |text| {
            let usable = lake_url(text).and_then(|lake| Lake::open(&lake).map(|_| lake));
            usable.map_err(|e| e.message().to_owned())
        });
        let told_index = env.is_set(&INDEX).then(|| env.parse::<u32>(&INDEX));
        let count = env.with(&COUNT, |text| {
            let count = text.parse().ok().filter(|count| (1..=SLOTS).contains(count));
            count.ok_or_else(|| format!("expected a number of shards from 1 to {SLOTS}"))
        });
        let drain = env.millis(&env::DRAIN_MS);
        let scrub = env.parse::<u64>(&SCRUB);
        let ids = if env.is_set(&IDS) { Some(env.names(&IDS)) } else { None };
        let named = env.is_set(&ID) || told_index.is_none() && env.has_own_name(&ID);
        let own_id = if named { Some(env.own_name(&ID)) } else { None };
        let own_regions = env.optional(&OWNS);
        if own_regions.is_none()
            && let (Some(Ok(ids)), Ok(count)) = (&ids, &count)
            && ids.len() != *count as usize
        {
            let why = format!("names {} shards, and TRELLIS_SHARD_COUNT is {count}", ids.len());
            _ = env.refuse(&IDS, why);
        }
        let shards = match ids {
            Some(ids) => ids,
            None => match &count {
                Ok(count) => Ok((0..*count).map(|i| format!("shard-{i}")).collect()),
                Err(invalid) => Err(*invalid),
            },
        };
        let index = match (told_index, &own_id, &shards) {
            (Some(index), _, _) => index,
            // a name that is none of them is told below
            (None, Some(Ok(id)), Ok(shards)) => {
                Ok(shards.iter().position(|shard| shard == id).unwrap_or(0) as u32)
            }
            (None, Some(Err(invalid)), _) => Err(*invalid),
            (None, _, _) => Ok(0),
        };
        let owns = match own_regions {
            Some(json) => parse_owns(&json).map_err(|e| env.refuse(&OWNS, e.message())),
            None => match (&index, &count) {
                (Ok(index), Ok(count)) => {
                    split_ring(*index, *count).map_err(|e| env.refuse(&INDEX, e.message()))
                }
                (Err(invalid), _) | (_, Err(invalid)) => Err(*invalid),
            },
        };
        let id = match (own_id, &shards, &index) {
            (Some(id), _, _) => id,
            (None, Ok(shards), Ok(index)) => shards.get(*index as usize).cloned().ok_or_else(|| {
                let why = format!("the index must be below the number of shards, {}", shards.len());
                env.refuse(&INDEX, why)
            }),
            (None, Err(invalid), _) | (None, _, Err(invalid)) => Err(*invalid),
        };
        if let (Ok(id), Ok(shards)) = (&id, &shards)
            && !shards.contains(id)
        {
            _ = env
                .refuse(&ID, format!("{id} is none of the {} shards: {}", shards.len(), first_names(shards)));
        }
        if let (Ok(id), Ok(owns)) = (&id, &owns)
            && let Err(error) = Ownership::new(id, owns.clone())
        {
            _ = env.refuse(&OWNS, error.message());
        }
        env.finish()?;
        let (id, shards) = (id?, shards?);
        let mut config = Self { drain: drain?, ..Self::new(&id, lake?, owns?, shards) };
        config.upkeep.scrub_bytes = scrub?;
        Ok((config, listen?))
    }

    /// Shard `index` of `count` shards `shard-0..count` that share a lake and split every dataset's symbols evenly.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if `index` is not below `count`.
    pub fn one_of(lake: Url, index: u32, count: u32) -> Result<Self> {
        let owns = split_ring(index, count)?;
        let shards = (0..count).map(|i| format!("shard-{i}")).collect();
        Ok(Self::new(&format!("shard-{index}"), lake, owns, shards))
    }
}

/// The first names of shards, for a message: there may be thousands.
fn first_names(shards: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = if shards.len() > SHOWN { ", .." } else { "" };
    shards[..shards.len().min(SHOWN)].join(", ") + more
}

/// The even split: shard `index` of `count` owns `[65536 * index / count, 65536 * (index + 1) / count)` of every dataset.
///
/// # Errors
/// [`Code::InvalidRequest`] if `index` is not below `count`, or there are more shards than slots.
pub fn split_ring(index: u32, count: u32) -> Result<Vec<pb::Ownership>> {
    if index >= count || count > SLOTS {
        return Err(Error::new(
            Code::InvalidRequest,
            format!("shard index {index} of {count} shards: the index must be below the count"),
        ));
    }
    let bound = |i: u32| (u64::from(SLOTS) * u64::from(i) / u64::from(count)) as u32;
    Ok(vec![pb::Ownership {
        dataset_pattern: "*".to_owned(),
        symbols: Some(pb::ownership::Symbols::HashRange(pb::HashRange {
            start: bound(index),
            end: bound(index + 1),
        })),
        start_ns: None,
        end_ns: None,
    }])
}

/// A lake's address: a plain path (made if missing, resolved to an absolute one), `file:///path` or `s3://bucket/prefix`.
///
/// # Errors
/// [`Code::InvalidRequest`] saying what is wrong with it.
pub fn lake_url(text: &str) -> Result<Url> {
    let refuse = |why: String| {
        Error::new(Code::InvalidRequest, format!("the lake {text:?} cannot be used: {why}"))
            .hint("give a folder, file:///folder or s3://bucket/prefix")
    };
    if text.is_empty() {
        return Err(refuse("it is empty".to_owned()));
    }
    let path = match text.split_once("://") {
        Some(("s3", rest)) if !rest.trim_matches('/').is_empty() => {
            return Url::parse(text.trim_end_matches('/')).map_err(|e| refuse(e.to_string()));
        }
        Some(("file", _)) => Url::parse(text)
            .map_err(|e| refuse(e.to_string()))?
            .to_file_path()
            .map_err(|()| refuse("it is not a local path".to_owned()))?,
        Some((scheme, _)) => return Err(refuse(format!("{scheme}:// is not supported"))),
        None => text.into(),
    };
    std::fs::create_dir_all(&path).map_err(|e| refuse(e.to_string()))?;
    let path = path.canonicalize().map_err(|e| refuse(e.to_string()))?;
    Url::from_directory_path(&path).map_err(|()| refuse("it is not an absolute path".to_owned()))
}

/// One region of `TRELLIS_OWNS`, as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnedRegion {
    #[serde(default = "every_dataset")]
    dataset: String,
    #[serde(default)]
    slots: Option<(u32, u32)>,
    #[serde(default)]
    symbols: Option<Vec<String>>,
    #[serde(default)]
    start: Option<String>,
    #[serde(default)]
    end: Option<String>,
}

fn every_dataset() -> String {
    "*".to_owned()
}

/// Reads `TRELLIS_OWNS`:
/// `[{"dataset": "equities.*", "slots": [0, 32768]}, {"dataset": "fx.minute", "symbols": ["EURUSD"], "start": "2014-01-01"}]`.
///
/// The most specific pattern that matches a dataset decides alone. A shard knows its own regions only: beside another shard that owns
/// all of `equities.*`, the owner of `*` says `{"dataset": "equities.*", "symbols": []}` as well.
///
/// # Errors
/// [`Code::InvalidRequest`] saying which part is wrong.
pub fn parse_owns(json: &str) -> Result<Vec<pb::Ownership>> {
    let refuse = |why: String| Error::new(Code::InvalidRequest, format!("ownership: {why}"));
    let regions: Vec<OwnedRegion> = serde_json::from_str(json).map_err(|e| refuse(e.to_string()))?;
    if regions.is_empty() {
        return Err(refuse("the list is empty".to_owned()));
    }
    regions
        .into_iter()
        .map(|region| {
            let symbols = match (region.slots, region.symbols) {
                (Some(_), Some(_)) => {
                    return Err(refuse("give slots or symbols, not both".to_owned()));
                }
                (Some((start, end)), None) if start < end && end <= SLOTS => {
                    pb::ownership::Symbols::HashRange(pb::HashRange { start, end })
                }
                (Some((start, end)), None) => {
                    return Err(refuse(format!("slots [{start}, {end}] are not within [0, {SLOTS}]")));
                }
                (None, Some(symbols)) => pb::ownership::Symbols::List(pb::SymbolList { symbols }),
                (None, None) => pb::ownership::Symbols::HashRange(pb::HashRange { start: 0, end: SLOTS }),
            };
            let time = |text: Option<String>| text.map(|t| trellis_proto::time::parse_time(&t)).transpose();
            Ok(pb::Ownership {
                dataset_pattern: region.dataset,
                symbols: Some(symbols),
                start_ns: time(region.start)?,
                end_ns: time(region.end)?,
            })
        })
        .collect()
}
