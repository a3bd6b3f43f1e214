//! The configuration of the process `qcu`: everything from the environment, and one file, which may be in S3 with its bundle.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::NaiveDate;
use trellis_fabric::{
    discovery::Source,
    env::{self, ConfigError, Env, Var},
};
use trellis_proto::Result as Answer;

use crate::{
    bundle::{self, Folder},
    run::{RETRY_MIN, TTL, Unit},
    unit::{Manifest, parse_session},
};

const URL: Var = Var::required(
    "TRELLIS_URL",
    "the grid: grpc://host:port, static://a:1,b:2, dns://name[:port] or cloudmap://namespace/service",
);
const UNIT_FILE: Var = Var::required(
    "TRELLIS_UNIT_FILE",
    "the unit's JSON file, whose folder holds the strategy's source; or s3://BUCKET/KEY.json, which names its bundle; or \
     s3://BUCKET/FOLDER/, where an ECS task has the file SERVICE.json",
);
const PYTHON: Var = Var::or("TRELLIS_PYTHON", "python3", "Python interpreter that has the package trellis");
const SESSIONS: Var = Var::optional(
    "TRELLIS_SESSIONS",
    "run exactly these sessions, 2016-08-10,2016-08-11, instead of what the schedule says",
);
const EXIT_WHEN_DONE: Var = Var::or(
    "TRELLIS_EXIT_WHEN_DONE",
    "false",
    "with TRELLIS_SESSIONS: true ends the process after those sessions; the exit code says how they ended",
);
const DEPLOYMENT: Var = Var::optional(
    "TRELLIS_DEPLOYMENT",
    "name of this deployment, the same after a restart: a new deployment may publish a session again, a restart does not; \
     a unit from S3 has the time of its deploy",
);
const TAKE_OVER: Var = Var::or(
    "TRELLIS_TAKE_OVER",
    "false",
    "true takes the lease even if another process holds it, or the output belongs to another unit",
);
const LEASE_TTL_MS: Var = Var::or(
    "TRELLIS_LEASE_TTL_MS",
    "15000",
    "milliseconds that the lease lasts without renewal, 1000 to 600000",
);
const LEASE_WAIT_MS: Var =
    Var::or("TRELLIS_LEASE_WAIT_MS", "60000", "milliseconds to wait for a lease that another process holds");
const CONNECT_MS: Var = Var::or(
    "TRELLIS_CONNECT_MS",
    "60000",
    "milliseconds to wait at start for S3, and for a head node that answers",
);

/// How long S3 is waited for if `TRELLIS_CONNECT_MS` has a mistake, which is told then.
const CONNECT_UNKNOWN: Duration = Duration::from_secs(1);
/// Longest name of a deployment: it is a part of every run's id.
const DEPLOYMENT_BYTES_MAX: usize = 32;

/// Every variable of `qcu`.
pub const VARS: &[Var] = &[
    URL,
    UNIT_FILE,
    PYTHON,
    SESSIONS,
    EXIT_WHEN_DONE,
    DEPLOYMENT,
    TAKE_OVER,
    LEASE_TTL_MS,
    LEASE_WAIT_MS,
    CONNECT_MS,
    env::DRAIN_MS,
    env::LOG,
    env::LOG_FORMAT,
];

/// A valid configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The grid.
    pub url: String,
    /// The unit that the process runs.
    pub unit: Unit,
    /// The folder of a unit from S3. It is removed with the configuration.
    pub(crate) fetched: Option<Arc<Folder>>,
    /// If not empty: run exactly these.
    pub sessions: Vec<NaiveDate>,
    /// End the process after `sessions`.
    pub exit_when_done: bool,
    /// Take the lease from the process that holds it.
    pub take_over: bool,
    /// How long the lease lasts without renewal.
    pub lease_ttl: Duration,
    /// How long to wait for a held lease.
    pub lease_wait: Duration,
    /// How long to wait for the grid at start.
    pub connect: Duration,
    /// Longest time from the signal to the end of the process.
    pub drain: Duration,
}

impl Config {
    /// Reads and checks the environment and the unit's file.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn from_env(mut env: Env) -> Result<Self, ConfigError> {
        let flag = [("true", true), ("false", false)];
        let url = env.with(&URL, Source::check);
        let connect = env.millis(&CONNECT_MS);
        let patience = connect.unwrap_or(CONNECT_UNKNOWN);
        let service = env.optional(&UNIT_FILE).filter(|text| text.ends_with('/')).map(|_| env.service());
        let unit = env.with(&UNIT_FILE, |text| read(text, service, patience).map_err(|e| e.to_string()));
        let python: Result<PathBuf, _> = env.parse(&PYTHON);
        let sessions = if env.is_set(&SESSIONS) {
            env.with(&SESSIONS, |list| {
                list.split(',')
                    .map(|s| parse_session(s.trim()))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e| e.to_string())
            })
        } else {
            Ok(Vec::new())
        };
        let deployment = if env.is_set(&DEPLOYMENT) {
            env.with(&DEPLOYMENT, |text| {
                let plain =
                    text.len() <= DEPLOYMENT_BYTES_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric());
                plain
                    .then(|| text.to_owned())
                    .ok_or_else(|| format!("expected at most {DEPLOYMENT_BYTES_MAX} letters and digits"))
            })
        } else {
            Ok(String::new())
        };
        let exit_when_done = env.one_of(&EXIT_WHEN_DONE, &flag);
        let take_over = env.one_of(&TAKE_OVER, &flag);
        let lease_ttl = env.with(&LEASE_TTL_MS, |text| {
            let ms = text.parse().ok().filter(|ms| (1_000..=600_000).contains(ms));
            ms.map(Duration::from_millis)
                .ok_or_else(|| "expected milliseconds from 1000 to 600000".to_owned())
        });
        let lease_wait = env.millis(&LEASE_WAIT_MS);
        let drain = env.millis(&env::DRAIN_MS);
        if let (Ok(sessions), Ok(unit)) = (&sessions, &unit)
            && let Ok(calendar) = unit.manifest.calendar()
            && let Some(wrong) = sessions.iter().find(|session| !calendar.is_session(**session))
        {
            let near =
                calendar.previous(*wrong).map(|s| format!("; the one before it is {s}")).unwrap_or_default();
            _ = env.refuse(&SESSIONS, format!("{wrong} is no session of {}{near}", calendar.name()));
        }
        env.finish()?;
        let Read { manifest, folder, fetched, deployed } = unit?;
        let deployment = Some(deployment?).filter(|name| !name.is_empty()).unwrap_or(deployed);
        Ok(Self {
            url: url?,
            unit: Unit {
                manifest: Arc::new(manifest),
                // the child starts in this folder, so a relative path would mean another place
                bundle: std::path::absolute(&folder).unwrap_or(folder),
                python: python?,
                arguments: Unit::child_arguments(),
                retry_min: RETRY_MIN,
                deployment,
            },
            fetched,
            sessions: sessions?,
            exit_when_done: exit_when_done?,
            take_over: take_over?,
            lease_ttl: lease_ttl?,
            lease_wait: lease_wait?,
            connect: connect?,
            drain: drain?,
        })
    }
}

/// A unit as its file says.
struct Read {
    manifest: Manifest,
    folder: PathBuf,
    fetched: Option<Arc<Folder>>,
    /// Name of its deployment, if the file has one.
    deployed: String,
}

/// Reads the file of a unit and, if it is in S3, its bundle.
fn read(file: &str, service: Option<Result<String, String>>, patience: Duration) -> Answer<Read> {
    if bundle::is_remote(file) {
        let fetched = bundle::fetch(file, || service.unwrap_or_else(|| Err(String::new())), patience)?;
        return Ok(Read {
            folder: fetched.folder.path().to_path_buf(),
            manifest: fetched.manifest,
            fetched: Some(Arc::new(fetched.folder)),
            deployed: fetched.deployment,
        });
    }
    let path = Path::new(file);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (manifest, folder) = (Manifest::read(path)?, folder.to_path_buf());
    Ok(Read { manifest, folder, fetched: None, deployed: String::new() })
}

const _: () = assert!(TTL.as_millis() == 15_000, "the default of TRELLIS_LEASE_TTL_MS says so");

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/unit.json");
        let mut all = vec![("TRELLIS_URL", "grpc://localhost:7400"), ("TRELLIS_UNIT_FILE", file)];
        all.extend_from_slice(pairs);
        Config::from_env(Env::from_pairs(VARS, all))
    }

    #[test]
    fn a_url_and_a_unit_are_enough() {
        let config = with(&[]).unwrap();
        assert_eq!(config.unit.manifest.unit, "mom_12_1");
        assert!(config.unit.bundle.ends_with("tests/golden") && config.unit.bundle.is_absolute());
        assert_eq!((config.lease_ttl, config.exit_when_done), (TTL, false));
        assert!(config.sessions.is_empty());
    }

    #[test]
    fn sessions_are_a_list_of_dates_of_the_units_calendar() {
        let config = with(&[("TRELLIS_SESSIONS", "2016-08-10, 2016-08-11")]).unwrap();
        assert_eq!(config.sessions.len(), 2);
        for (list, why) in [("2016-08-13", "no session of XNYS"), ("tomorrow", "not a session")] {
            let error = with(&[("TRELLIS_SESSIONS", list)]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn every_problem_is_told() {
        let wrong = [
            ("TRELLIS_UNIT_FILE", "/no/such/unit.json"),
            ("TRELLIS_EXIT_WHEN_DONE", "yes"),
            ("TRELLIS_LEASE_TTL_MS", "1"),
        ];
        assert_eq!(with(&wrong).unwrap_err().problems().len(), wrong.len());
    }
}
