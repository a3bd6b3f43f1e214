//! The words of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

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
