//! A head node as a process, with its memory and counters as seen from outside.

use std::{
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use trellis_fabric::channel::ChannelOptions;
use trellis_proto::pb::{self, head_client::HeadClient};
use trellis_qcu::client::{Client, ClientOptions};

use crate::load::Pool;

/// The process; dropping it ends it.
pub(crate) struct Head {
    process: Child,
    pub(crate) addr: String,
}

impl Head {
    /// Starts a head for the shards at `shards` (a discovery URL). It knows the datasets but has no rows.
    pub(crate) async fn start(binary: &str, shards: &str, cache: &str) -> Result<Self> {
        // shards tell watchers apart by name
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let mut command = Command::new(binary);
        command
            .env("TRELLIS_ID", format!("head-{}", STARTED.fetch_add(1, Relaxed)))
            .env("TRELLIS_LISTEN", "127.0.0.1:0")
            .env("TRELLIS_SHARDS", shards)
            .env("TRELLIS_CACHE_BYTES", cache)
            .env("TRELLIS_LOG", "error")
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        // SAFETY: prctl is async-signal-safe and touches only the child. The thread that starts the child is the one that
        // blocks on the bench, so the child dies with the bench however that ends.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut process = command.spawn().with_context(|| format!("starting {binary}"))?;
        let stdout = process.stdout.take().context("stdout")?;
        let line =
            BufReader::new(stdout).lines().next_line().await?.context("the head node did not start")?;
        let ready: Value = serde_json::from_str(&line)?;
        let addr = ready["listen"].as_str().context("no address in the ready line")?.to_owned();
        let head = Self { process, addr };
        let client = head.client().await?;
        for described in client.describe(None).await? {
            let spec = described.spec.context("a dataset without a spec")?;
            client.symbols(&spec.dataset.parse()?).await?;
        }
        Ok(head)
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(Client::connect(&format!("grpc://{}", self.addr), ClientOptions::default()).await?)
    }

    /// Connections that are open, of a unit of this name.
    pub(crate) async fn connect(&self, unit: &str, connections: usize) -> Result<Pool> {
        self.connect_with(&ChannelOptions::of_unit(unit), connections).await
    }

    pub(crate) async fn connect_with(&self, options: &ChannelOptions, connections: usize) -> Result<Pool> {
        let pool = Pool::connect(&self.addr, options, connections)?;
        for _ in 0..pool.connections() {
            HeadClient::new(pool.get()).stats(pb::StatsRequest {}).await?;
        }
        Ok(pool)
    }

    /// Counters since it started.
    pub(crate) async fn stats(&self) -> Result<pb::HeadStats> {
        let mut stats = self.client().await?.stats().await?;
        stats.pop().context("no counters")
    }

    /// Resident bytes now.
    pub(crate) fn resident(&self) -> Result<u64> {
        self.status("VmRSS")
    }

    /// Most resident bytes since [`Self::forget_peak`].
    pub(crate) fn peak(&self) -> Result<u64> {
        self.status("VmHWM")
    }

    /// Sets the peak to the present resident bytes.
    pub(crate) fn forget_peak(&self) -> Result<()> {
        // 5: see proc_pid_clear_refs(5)
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.pid()?), "5")?)
    }

    fn status(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
        let mut words = line.split_whitespace().skip(1);
        let number: u64 = words.next().context("no number")?.parse()?;
        ensure!(words.next() == Some("kB"), "{line} is not in kB");
        Ok(number << 10)
    }

    fn pid(&self) -> Result<u32> {
        self.process.id().context("the head node has ended")
    }
}
