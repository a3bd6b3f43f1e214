//! The command line: reads the files, asks or changes AWS, and says what came of it.

mod apply;
mod explain;
mod show;

use std::{
    fs::{File, TryLockError},
    io::{ErrorKind, Write as _},
    path::PathBuf,
    time::SystemTime,
};

use clap::{Parser, Subcommand};
use serde_json::json;
use trellis_proto::Code;

use crate::{
    aws::{Aws, Door},
    desired::Desired,
    ledger::Ledger,
    model::Role,
    plan::{Plan, plan},
    reconcile::Selection,
};

/// The ledger's file in the folder of the desired state.
pub const LEDGER: &str = "ledger.jsonl";
/// The file of a roll that has not ended.
pub const ROLL: &str = "roll.json";

/// The grid on AWS: what should run, and making it so.
///
/// Exit codes: 0 done, 2 the command line is wrong or --yes is missing, 3 a file or a service is wrong, 4 AWS does not answer, 5 AWS
/// is not as the files say, or another roll is under way.
#[derive(Debug, Parser)]
#[command(name = "fleet", version)]
pub struct Args {
    /// The folder of the desired state; the ledger is kept there, too.
    #[arg(long, default_value = ".", global = true)]
    pub dir: PathBuf,
    /// Tell the result as one JSON document.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what would change, what it costs, and what does not fit. Calls nothing.
    Plan,
    /// Make AWS as the files say. May be stopped at any time, and started again.
    Apply(Apply),
    /// Compare AWS with the files. Changes nothing.
    Status,
    /// Start services anew without another change, in waves.
    Roll(Roll),
    /// Move everything out of a cluster or an account.
    Drain {
        /// The name of a cluster, or the number of an account.
        what: String,
        /// How.
        #[command(flatten)]
        apply: Apply,
    },
    /// Say why a service is where it is, and how it does.
    Explain {
        /// Its name: trellis-unit-momentum.
        service: String,
    },
    /// Set what CloudFormation cannot: step 9 of the runbook. May be repeated.
    Bootstrap {
        /// The VPC whose network address units are counted; its account is the network's.
        #[arg(long)]
        vpc: Option<String>,
    },
}

/// How to apply.
#[derive(Clone, Debug, Default, Parser)]
pub struct Apply {
    /// Delete and move services, too. Without it nothing is done if something would go.
    #[arg(long)]
    pub yes: bool,
    /// Go on for ever: hear events, sweep slowly, and repair what others change.
    #[arg(long)]
    pub keep: bool,
    /// Start deployments again that ECS broke off, once each.
    #[arg(long)]
    pub retry_failed: bool,
    /// Let no failure stop the waves.
    #[arg(long)]
    pub ignore_failed: bool,
    /// Shards that may be away at the same time. Their series cannot be read meanwhile.
    #[arg(long, default_value_t = 1)]
    pub shards_at_once: usize,
}

/// What to roll. Without a choice, everything.
#[derive(Clone, Debug, Parser)]
pub struct Roll {
    /// Only this role: shard, head or unit.
    #[arg(long)]
    pub role: Option<String>,
    /// Only this cluster.
    #[arg(long)]
    pub cluster: Option<String>,
    /// Only this account.
    #[arg(long)]
    pub account: Option<String>,
    /// Only this service.
    #[arg(long)]
    pub service: Option<String>,
    /// How.
    #[command(flatten)]
    pub apply: Apply,
}

/// A failure of the program.
#[derive(Debug)]
pub struct Failure {
    /// Its exit code.
    pub exit: u8,
    /// What is wrong, and what to do; a line each.
    pub lines: Vec<String>,
}

impl Failure {
    fn new(exit: u8, line: impl Into<String>) -> Self {
        Self { exit, lines: vec![line.into()] }
    }

    fn input(line: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest.exit_code(), line)
    }
}

/// What clap ends with, too.
const EXIT_USAGE: u8 = 2;

/// Writes an answer to stdout. A reader that has left, as `head` does, wants no more of it.
fn print(answer: &str) {
    match std::io::stdout().write_all(answer.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            say(&format!("cannot write the answer: {error}"));
        }
        _ => {}
    }
}

/// Writes a line about what goes on to stderr. Nobody need read it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "fleet: {line}");
}

/// Runs a command and says how it ended. The answer is the exit code.
pub async fn main(args: Args) -> u8 {
    let json = args.json;
    match run(args).await {
        Ok(exit) => exit,
        Err(failure) => {
            failure.lines.iter().for_each(|line| say(line));
            if json {
                print(&format!("{}\n", json!({"errors": failure.lines, "exit": failure.exit})));
            }
            failure.exit
        }
    }
}

async fn run(args: Args) -> Result<u8, Failure> {
    let cli = Cli { dir: args.dir, json: args.json };
    let desired = cli.desired()?;
    match args.command {
        Command::Plan => {
            let ledger = cli.ledger()?.unwrap_or_default();
            let plan = plan(&desired, &ledger);
            cli.tell(&plan);
            if plan.is_applicable() { Ok(0) } else { Err(inapplicable(&plan)) }
        }
        Command::Apply(how) if how.keep => {
            let mut desired = desired;
            let mut applied: Option<Desired> = None;
            loop {
                match (cli.apply(&desired, how.clone(), None).await, &applied) {
                    (Ok(exit), _) if exit == Code::Unavailable.exit_code() => return Ok(exit),
                    (Ok(_), _) => applied = Some(desired.clone()),
                    // what was applied last stays in force
                    (Err(failure), Some(good)) if *good != desired => {
                        failure.lines.iter().for_each(|line| say(line));
                        desired = good.clone();
                        continue;
                    }
                    (Err(failure), _) => return Err(failure),
                }
                // so it does if the files have a mistake
                match cli.desired() {
                    Ok(read) => desired = read,
                    Err(failure) => failure.lines.iter().for_each(|line| say(line)),
                }
            }
        }
        Command::Apply(how) => cli.apply(&desired, how, None).await,
        Command::Status => cli.status(&desired).await,
        Command::Roll(roll) => {
            let role = match &roll.role {
                None => None,
                Some(word) => Some(Role::of(word).ok_or_else(|| {
                    Failure::new(
                        EXIT_USAGE,
                        format!("--role {word} is none of collector, shard, head and unit"),
                    )
                })?),
            };
            let Roll { cluster, account, service: name, apply, .. } = roll;
            let selection = Selection { role, cluster, account, name };
            let since = cli.begin_roll(&selection)?;
            let exit = cli.apply(&desired, apply, Some((selection, since))).await?;
            // a roll that is not done is gone on with
            if exit == 0 {
                cli.end_roll()?;
            }
            Ok(exit)
        }
        Command::Drain { what, apply } => {
            let desired = drained(desired, &what)?;
            say(&format!("so that nothing new comes, set \"drain\": true for {what} in grid.json"));
            cli.apply(&desired, apply, None).await
        }
        Command::Explain { service } => cli.explain(&desired, &service).await,
        Command::Bootstrap { vpc } => cli.bootstrap(&desired, vpc.as_deref()).await,
    }
}

struct Cli {
    dir: PathBuf,
    json: bool,
}

impl Cli {
    fn desired(&self) -> Result<Desired, Failure> {
        Desired::read(&self.dir).map_err(|mistakes| Failure {
            exit: Code::InvalidRequest.exit_code(),
            lines: mistakes.iter().map(ToString::to_string).collect(),
        })
    }

    fn ledger(&self) -> Result<Option<Ledger>, Failure> {
        Ledger::read(&self.dir.join(LEDGER)).map_err(Failure::input)
    }

    /// While this is held, no other `fleet` applies these files: two would write one ledger.
    fn alone(&self) -> Result<File, Failure> {
        let cannot = |why: std::io::Error| Failure::input(format!("{}: {why}", self.dir.display()));
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

    async fn aws(&self, desired: &Desired) -> Result<Aws, Failure> {
        let door = Door::of_process();
        let cannot = |why: String| Failure::new(Code::Unavailable.exit_code(), why);
        door.caller(&desired.grid.region).await.map_err(cannot)?;
        let places = desired.grid.accounts.iter().map(|account| account.place.clone());
        Ok(Aws::connect(&door, &desired.grid.grid, places).await)
    }

    fn tell<T: serde::Serialize + std::fmt::Display>(&self, what: &T) {
        match serde_json::to_string(what) {
            Ok(text) if self.json => print(&format!("{text}\n")),
            _ => print(&what.to_string()),
        }
    }

    /// A roll has a beginning, which a `fleet` that is started again finds in its file.
    fn begin_roll(&self, selection: &Selection) -> Result<i64, Failure> {
        let path = self.dir.join(ROLL);
        let cannot = |why: String| Failure::input(format!("the roll {}: {why}", path.display()));
        match std::fs::read_to_string(&path) {
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
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let since_ms = i64::try_from(now.as_millis()).unwrap_or_default();
                let roll = RollFile { selection: selection.clone(), since_ms };
                let text = serde_json::to_string(&roll).map_err(|error| cannot(error.to_string()))?;
                std::fs::write(&path, text).map_err(|error| cannot(error.to_string()))?;
                Ok(since_ms)
            }
            Err(error) => Err(cannot(error.to_string())),
        }
    }

    fn end_roll(&self) -> Result<(), Failure> {
        let path = self.dir.join(ROLL);
        std::fs::remove_file(&path).map_err(|error| {
            Failure::input(format!("the roll is done, but {} stays: {error}", path.display()))
        })
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct RollFile {
    selection: Selection,
    since_ms: i64,
}

/// The desired state with a cluster or an account that everything leaves.
fn drained(mut desired: Desired, what: &str) -> Result<Desired, Failure> {
    let mut found = false;
    for flower in desired.grid.flowers.iter_mut().filter(|flower| flower.flower == what) {
        (flower.drain, found) = (true, true);
    }
    for account in desired.grid.accounts.iter_mut().filter(|account| account.place.account == what) {
        (account.drain, found) = (true, true);
    }
    match found {
        true => Ok(desired),
        false => Err(Failure::input(format!("grid.json has no cluster and no account {what}"))),
    }
}

fn inapplicable(plan: &Plan) -> Failure {
    let mut lines: Vec<String> =
        plan.refused.iter().map(|refusal| format!("{}: {}", refusal.service, refusal.why)).collect();
    if !plan.openings.is_empty() {
        lines.push(format!(
            "{} clusters must be created first with cfn/cluster.yaml, and be named in grid.json; the plan lists them",
            plan.openings.len()
        ));
    }
    lines.push("nothing of this plan can be applied".to_owned());
    Failure { exit: Code::InvalidRequest.exit_code(), lines }
}
