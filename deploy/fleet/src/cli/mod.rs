//! The command line: reads the files, asks or changes AWS, and says what came of it.

mod apply;
mod args;
mod explain;
mod folder;
mod output;
mod show;

use serde_json::json;
use trellis_proto::Code;

use self::{
    apply::inapplicable,
    folder::Cli,
    output::{EXIT_USAGE, print, say},
};
pub use self::{
    args::{Apply, Args, Command, Roll},
    folder::{LEDGER, ROLL},
    output::Failure,
};
use crate::{desired::Desired, model::Role, plan::plan, reconcile::Selection};

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
