//! Processes of the grid's binaries: a test starts one, waits until it serves, kills or pauses it, and starts it again on the
//! same port over the same state.
//!
//! No process is left over: dropping a [`Node`] kills its process, and the kernel kills it when the test process dies
//! without unwinding. `PR_SET_PDEATHSIG` fires when the *thread* that started the child ends, so one thread that lives as
//! long as the test process starts them all. A pool's thread would kill its children when the pool shrinks.
//!
//! Ports are below the range of outgoing connections, so that no connection takes the port of a server while the server
//! is dead.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    net::{SocketAddr, TcpListener},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use trellis_qcu::client::{Client, ClientOptions};

/// The binaries, with the packages that make them.
const BINARIES: [(&str, &str); 3] =
    [("shard", "trellis-shard"), ("head-node", "trellis-head"), ("qcu", "trellis-qcu")];

/// How long a process may take until it serves. A debug build on a loaded machine with two cores takes a second.
const READY_MAX: Duration = Duration::from_secs(30);
/// How long a process may take to end after SIGTERM.
const END_MAX: Duration = Duration::from_secs(20);
/// Ports are chosen from here to below Linux's default range for outgoing connections (32768 to 60999).
const PORTS: std::ops::Range<u32> = 18_000..32_000;
/// Lines of each log that a failing test shows.
const TAIL_LINES: usize = 40;
/// Bytes at the end of a log that are searched for these lines.
const TAIL_BYTES: u64 = 64 << 10;

/// Path of the binary `name`: in a test, freshly built from the checkout; in a program of this package, the one beside it.
/// If the variable `GRID_BIN_DIR` is set, binaries are taken from there as they are.
///
/// # Errors
/// When the binary cannot be built, or is missing.
pub fn binary(name: &str) -> Result<PathBuf> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let dir = DIR.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    let dir = dir.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let path = dir.join(name);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

/// Asks cargo every time, because it knows whether the binaries are fresh: a test of an old binary is worse than none.
fn build() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("GRID_BIN_DIR") {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe()?;
    // target/<profile>/deps/<test>, or target/<profile>/<program>
    let deps = exe.parent().context("the executable has no folder")?;
    if deps.file_name().is_none_or(|name| name != "deps") {
        return Ok(deps.to_owned());
    }
    let dir = deps.parent().context("the test executable has no folder of its own")?;
    let folder =
        dir.file_name().and_then(|name| name.to_str()).context("a profile's folder without a name")?;
    let profile = if folder == "debug" { "dev" } else { folder };
    let target = dir.parent().context("a profile's folder without a parent")?;
    let mut cargo = Command::new(env!("CARGO"));
    // Built with this package, so that the features are those of the test build and nothing is compiled twice.
    cargo.args(["build", "--quiet", "--profile", profile, "-p", env!("CARGO_PKG_NAME")]);
    for (binary, package) in BINARIES {
        cargo.args(["-p", package, "--bin", binary]);
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env("CARGO_TARGET_DIR", target);
    let started = Instant::now();
    let out = cargo.stdin(Stdio::null()).output().context("cargo does not start")?;
    ensure!(out.status.success(), "the binaries do not build:\n{}", String::from_utf8_lossy(&out.stderr));
    if started.elapsed() > Duration::from_secs(3) {
        println!("built the grid's binaries (profile {profile}) in {:.0?}", started.elapsed());
    }
    Ok(dir.to_owned())
}

/// A free loopback address outside of the range of outgoing connections.
///
/// # Errors
/// When every port is taken.
pub fn free_addr() -> Result<SocketAddr> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let span = PORTS.end - PORTS.start;
    for _ in 0..span {
        // Test processes that run at the same time start at different ports.
        let step = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id().wrapping_mul(97);
        let port = u16::try_from(PORTS.start + step % span)?;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    bail!("no free port in {PORTS:?}")
}

/// One server: the arguments to start it again, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    id: String,
    program: &'static str,
    addr: SocketAddr,
    env: Vec<(String, String)>,
    log: PathBuf,
    /// Largest size of a file of the process: in place of a full disk, if none can be mounted.
    file_bytes_max: Option<u64>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Gets the ready line; closed without one if the process ends before it serves.
    first_line: mpsc::Receiver<String>,
}

impl Node {
    /// Shard `index` of `count` over `lake`, not started yet. Its log goes to `logs`.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn shard(lake: &Path, index: usize, count: usize, logs: &Path) -> Result<Self> {
        let id = format!("shard-{index}");
        let env = [
            ("TRELLIS_LAKE", lake.to_string_lossy().into_owned()),
            ("TRELLIS_SHARD_INDEX", index.to_string()),
            ("TRELLIS_SHARD_COUNT", count.to_string()),
        ];
        Self::new("shard", id, &env, logs)
    }

    /// A head for the shards at `shards`, not started yet. Its log goes to `logs`.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn head(index: usize, shards: &[SocketAddr], logs: &Path) -> Result<Self> {
        let env = [("TRELLIS_SHARDS", static_url(shards))];
        Self::new("head-node", format!("head-{index}"), &env, logs)
    }

    fn new(program: &'static str, id: String, env: &[(&str, String)], logs: &Path) -> Result<Self> {
        let addr = free_addr()?;
        // The port makes the name unique: a test may run two shards of one name.
        let log = logs.join(format!("{id}-{}.log", addr.port()));
        let mut node = Self { id, program, addr, env: Vec::new(), log, file_bytes_max: None, running: None };
        node.set("TRELLIS_ID", &node.id.clone()).set("TRELLIS_LISTEN", &addr.to_string());
        // A short drain: a stopped server must not hold up a test.
        node.set("TRELLIS_DRAIN_MS", "5000");
        for (name, value) in env {
            node.set(name, value);
        }
        Ok(node)
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Limits the size of every file that it writes, from the next start on.
    pub fn limit_file_bytes(&mut self, max: Option<u64>) -> &mut Self {
        self.file_bytes_max = max;
        self
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its address, which stays the same over all starts.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Starts it and returns when it serves. Blocks this thread.
    ///
    /// # Errors
    /// When it ends, or does not serve within 30 s; with the end of its log.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts it and returns at once.
    ///
    /// # Errors
    /// When it already runs, or its binary cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "{} runs already", self.id);
        let mut child = spawn(self.command()?).with_context(|| self.id.clone())?;
        let first_line = first_line(child.stdout.take().context("stdout is piped")?);
        self.running = Some(Running { child, first_line });
        Ok(())
    }

    /// Blocks until it serves, after [`Node::launch`].
    ///
    /// # Errors
    /// When it ends, or does not serve within 30 s; with the end of its log. Its process has then ended.
    pub fn wait_ready(&mut self) -> Result<()> {
        let running = self.running.as_mut().with_context(|| format!("{} does not run", self.id))?;
        let ready = running.first_line.recv_timeout(READY_MAX).unwrap_or_default();
        let serves = serde_json::from_str::<serde_json::Value>(&ready).is_ok_and(|ready| {
            ready["ready"] == true && ready["id"] == self.id && ready["listen"] == self.addr.to_string()
        });
        if serves {
            return Ok(());
        }
        // Its output has ended, so it is about to end, unless it was only too slow.
        let ended = if ready.is_empty() { running.child.try_wait()? } else { None };
        self.kill();
        let how = ended.map_or_else(|| "does not serve".to_owned(), |status| format!("ended: {status}"));
        bail!("{} {how}; its first line was {ready:?}; the end of its log:\n{}", self.id, self.tail())
    }

    fn command(&self) -> Result<Command> {
        let mut command = command(self.program, &self.env, &self.log)?;
        if let Some(bytes) = self.file_bytes_max {
            // SAFETY: between fork and exec only async-signal-safe calls are made.
            unsafe {
                command.pre_exec(move || {
                    // A write beyond the limit must fail, not kill the process. Ignored signals stay ignored over exec.
                    libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
                    cvt(libc::setrlimit(libc::RLIMIT_FSIZE, &limit))
                });
            }
        }
        Ok(command)
    }

    /// Sends SIGKILL if it runs, and waits until it has ended.
    pub fn kill(&mut self) {
        if let Some(Running { mut child, .. }) = self.running.take() {
            // Both fail only if it has already ended.
            let _ = (child.kill(), child.wait());
        }
    }

    /// Sends SIGTERM, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time, or does not run.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let running = self.running.take().with_context(|| format!("{} does not run", self.id))?;
        let mut child = running.child;
        signal(child.id(), libc::SIGTERM)?;
        let deadline = Instant::now() + END_MAX;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let _ = (child.kill(), child.wait());
                bail!("{} did not end within {END_MAX:?} of SIGTERM:\n{}", self.id, self.tail());
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Sends SIGSTOP: the process does nothing, and its connections stay.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        signal(self.pid().with_context(|| format!("{} does not run", self.id))?, libc::SIGSTOP)
    }

    /// Sends SIGCONT: the process goes on as if no time had passed.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        signal(self.pid().with_context(|| format!("{} does not run", self.id))?, libc::SIGCONT)
    }

    /// Whether it has ended without a signal from this test, which no process may.
    pub fn crashed(&mut self) -> Option<ExitStatus> {
        let status = self.running.as_mut()?.child.try_wait().ok()??;
        (status.signal() != Some(libc::SIGKILL)).then_some(status)
    }

    /// Changes the limit on the size of its files while it runs.
    ///
    /// # Errors
    /// When it does not run, or the system refuses.
    pub fn limit_running(&self, bytes: Option<u64>) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.id))?;
        let limit =
            libc::rlimit { rlim_cur: bytes.unwrap_or(libc::RLIM_INFINITY), rlim_max: libc::RLIM_INFINITY };
        // SAFETY: `limit` outlives the call, and the pointer for the old limit is null.
        let done = unsafe {
            libc::prlimit(libc::pid_t::try_from(pid)?, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut())
        };
        Ok(cvt(done)?)
    }

    /// Its log so far, over all its starts.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.log).unwrap_or_else(|error| format!("(its log does not read: {error})"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- the end of the log of {} at {}:\n{}", self.id, self.addr, self.tail());
        }
    }
}

/// `static://` URL of servers.
#[must_use]
pub fn static_url(addrs: &[SocketAddr]) -> String {
    let addrs: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
    format!("static://{}", addrs.join(","))
}

/// A client of `heads` that gives up a call after `deadline`.
///
/// # Errors
/// When none of them answers.
pub async fn client(heads: &[SocketAddr], unit: &str, deadline: Duration) -> Result<Client> {
    let options = ClientOptions {
        unit: Some(unit.to_owned()),
        connect_timeout: READY_MAX,
        deadline,
        ..ClientOptions::default()
    };
    Ok(Client::connect(&static_url(heads), options).await?)
}

/// Shards and heads as processes over a lake in a temporary folder, which is kept when a test fails.
#[derive(Debug)]
pub struct Cluster {
    /// Shards `shard-0`, `shard-1`, ...
    pub shards: Vec<Node>,
    /// Heads `head-0`, ...
    pub heads: Vec<Node>,
    lake: PathBuf,
    // Declared after the nodes, so that it is dropped when they have ended.
    folder: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("logs and lake are kept in {}", self.folder.path().display());
        }
    }
}

impl Cluster {
    /// Starts `heads` heads over `shards` shards. The shards get `env` besides their own variables.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(heads: usize, shards: usize, env: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let lake = folder.path().join("lake");
        fs::create_dir(&lake)?;
        Self::start_in(folder, lake, heads, shards, env)
    }

    /// Like [`Cluster::start`], over an existing lake that outlives the cluster.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_over(lake: &Path, heads: usize, shards: usize) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, lake.to_owned(), heads, shards, &[])
    }

    fn start_in(
        folder: tempfile::TempDir,
        lake: PathBuf,
        heads: usize,
        shards: usize,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let logs = folder.path().to_owned();
        let mut cluster = Self { shards: Vec::new(), heads: Vec::new(), lake, folder };
        for index in 0..shards {
            let mut node = Node::shard(&cluster.lake, index, shards, &logs)?;
            for (name, value) in env {
                node.set(name, value);
            }
            node.start()?;
            cluster.shards.push(node);
        }
        let addrs: Vec<SocketAddr> = cluster.shards.iter().map(Node::addr).collect();
        for index in 0..heads {
            let mut node = Node::head(index, &addrs, &logs)?;
            node.start()?;
            cluster.heads.push(node);
        }
        Ok(cluster)
    }

    /// Starts one more head.
    ///
    /// # Errors
    /// When it does not start.
    pub fn add_head(&mut self) -> Result<()> {
        let addrs: Vec<SocketAddr> = self.shards.iter().map(Node::addr).collect();
        let mut node = Node::head(self.heads.len(), &addrs, self.folder.path())?;
        node.start()?;
        self.heads.push(node);
        Ok(())
    }

    /// A folder that lasts as long as the cluster; the logs are in it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the lake.
    #[must_use]
    pub fn lake(&self) -> &Path {
        &self.lake
    }

    /// The folder of a dataset's table.
    #[must_use]
    pub fn table(&self, dataset: &str) -> PathBuf {
        self.lake.join(dataset)
    }

    /// Addresses of the heads.
    #[must_use]
    pub fn head_addrs(&self) -> Vec<SocketAddr> {
        self.heads.iter().map(Node::addr).collect()
    }

    /// Index of the shard that commits to `dataset`.
    ///
    /// # Panics
    /// When there are no shards.
    #[must_use]
    pub fn home(&self, dataset: &str) -> usize {
        let ids: Vec<String> = self.shards.iter().map(|node| node.id.clone()).collect();
        let home = trellis_proto::placement::home(&ids, dataset);
        match ids.iter().position(|id| Some(id.as_str()) == home) {
            Some(index) => index,
            None => panic!("no shard is home to {dataset}"),
        }
    }

    /// Starts every node that does not run.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_all(&mut self) -> Result<()> {
        for node in self.shards.iter_mut().chain(&mut self.heads).filter(|node| node.running.is_none()) {
            node.start()?;
        }
        Ok(())
    }
}

type Job = (Command, mpsc::Sender<std::io::Result<Child>>);

/// The command that starts the binary `program` with `env`. The other variables of the grid that this process has are
/// removed, because a server refuses variables that it does not know. Stdout is a pipe, and stderr is appended to `log`. A
/// process that [`spawn`] starts ends with this process.
///
/// # Errors
/// When there is no such binary, or its log cannot be opened.
pub(crate) fn command(program: &str, env: &[(String, String)], log: &Path) -> Result<Command> {
    let mut command = Command::new(binary(program)?);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("TRELLIS_") || name.starts_with("OTEL_")) {
            command.env_remove(name);
        }
    }
    command.envs(env.iter().map(|(name, value)| (name, value)));
    let log = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    // SAFETY: between fork and exec only async-signal-safe calls are made.
    unsafe {
        command.pre_exec(|| cvt(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)));
    }
    Ok(command)
}

/// Seconds of processor time that a process has used.
///
/// # Errors
/// When there is no such process.
pub fn processor_time(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may contain anything; the fields from the third on follow it.
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/.../stat")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    // SAFETY: the call touches no memory.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / per_second as f64)
}

/// Starts a process from the one thread that lives as long as this process.
pub(crate) fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, reply) in jobs {
                // The caller waits for the answer.
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, child) = mpsc::channel();
    let gone = || std::io::Error::other("the thread that starts processes is gone");
    spawner.send((command, reply)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

/// Sends the first line. Reads and drops all later lines, so that the writer never waits.
fn first_line(out: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, line) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(out).lines();
        if let Some(Ok(line)) = lines.next() {
            // The receiver may have given up.
            let _ = sender.send(line);
        }
        drop(sender);
        lines.for_each(drop);
    });
    line
}

/// Sends `signal` to the child process `pid`.
///
/// # Errors
/// Any error of the system.
pub fn signal(pid: u32, signal: i32) -> Result<()> {
    // SAFETY: a plain system call.
    Ok(cvt(unsafe { libc::kill(libc::pid_t::try_from(pid)?, signal) })?)
}

fn cvt(result: libc::c_int) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}
