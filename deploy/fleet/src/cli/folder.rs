//! The folder of the desired state: its files, the ledger and the roll that is under way.

use std::{
    fmt::Display,
    fs::{self, File, TryLockError},
    io,
    path::PathBuf,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use trellis_proto::Code;

use super::output::{Failure, print};
use crate::{
    aws::{Aws, Door},
    desired::Desired,
    ledger::Ledger,
    reconcile::Selection,
};

/// The ledger's file in the folder of the desired state.
pub const LEDGER: &str = "ledger.jsonl";
/// The file of a roll that has not ended.
pub const ROLL: &str = "roll.json";

/// The folder of the desired state, and how to answer.
pub(super) struct Cli {
    pub(super) dir: PathBuf,
    pub(super) json: bool,
}

impl Cli {
    pub(super) fn desired(&self) -> Result<Desired, Failure> {
        Desired::read(&self.dir).map_err(|mistakes| Failure {
            exit: Code::InvalidRequest.exit_code(),
            lines: mistakes.iter().map(ToString::to_string).collect(),
        })
    }

    pub(super) fn ledger(&self) -> Result<Option<Ledger>, Failure> {
        Ledger::read(&self.dir.join(LEDGER)).map_err(Failure::input)
    }

    /// While this is held, no other `fleet` applies these files: two would write one ledger.
    pub(super) fn alone(&self) -> Result<File, Failure> {
        let cannot = |why: io::Error| Failure::input(format!("{}: {why}", self.dir.display()));
        let folder = File::open(&self.dir).map_err(cannot)?;
        match folder.try_lock() {
            Ok(()) => Ok(folder),
            Err(TryLockError::WouldBlock) => Err(Failure::new(
                Code::Conflict.exit_code(),
                format!("another fleet applies the files in {}: wait until it has ended", self.dir.display()),
            )),
            Err(TryLockError::Error(why)) => Err(cannot(why)),
        }
    }

    pub(super) async fn aws(&self, desired: &Desired) -> Result<Aws, Failure> {
        let door = Door::of_process();
        let cannot = |why: String| Failure::new(Code::Unavailable.exit_code(), why);
        door.caller(&desired.grid.region).await.map_err(cannot)?;
        let places = desired.grid.accounts.iter().map(|account| account.place.clone());
        Ok(Aws::connect(&door, &desired.grid.grid, places).await)
    }

    pub(super) fn tell<T: Serialize + Display>(&self, what: &T) {
        match serde_json::to_string(what) {
            Ok(text) if self.json => print(&format!("{text}\n")),
            _ => print(&what.to_string()),
        }
    }

    /// A roll has a beginning, which a `fleet` that is started again finds in its file.
    pub(super) fn begin_roll(&self, selection: &Selection) -> Result<i64, Failure> {
        let path = self.dir.join(ROLL);
        let cannot = |why: String| Failure::input(format!("the roll {}: {why}", path.display()));
        match fs::read_to_string(&path) {
            Ok(text) => {
                let roll: RollFile =
                    serde_json::from_str(&text).map_err(|error| cannot(error.to_string()))?;
                if roll.selection != *selection {
                    return Err(Failure::new(
                        Code::Conflict.exit_code(),
                        format!(
                            "another roll is under way ({}): finish it with the same choice, or delete {}",
                            text.trim(),
                            path.display()
                        ),
                    ));
                }
                Ok(roll.since_ms)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let since_ms = i64::try_from(now.as_millis()).unwrap_or_default();
                let roll = RollFile { selection: selection.clone(), since_ms };
                let text = serde_json::to_string(&roll).map_err(|error| cannot(error.to_string()))?;
                fs::write(&path, text).map_err(|error| cannot(error.to_string()))?;
                Ok(since_ms)
            }
            Err(error) => Err(cannot(error.to_string())),
        }
    }

    pub(super) fn end_roll(&self) -> Result<(), Failure> {
        let path = self.dir.join(ROLL);
        fs::remove_file(&path).map_err(|error| {
            Failure::input(format!("the roll is done, but {} stays: {error}", path.display()))
        })
    }
}

#[derive(Serialize, Deserialize)]
struct RollFile {
    selection: Selection,
    since_ms: i64,
}
