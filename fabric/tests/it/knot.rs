//! A real authoritative DNS server, Debian's `knot`, on a free port of loopback, with a zone that the test
//! writes.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use tempfile::TempDir;

use crate::skip::skipped;

/// The served zone.
pub(crate) const ZONE: &str = "trellis.test";

/// A start that takes longer has failed.
const START_MAX: Duration = Duration::from_secs(20);

pub(crate) struct Knot {
    dir: TempDir,
    child: Option<Child>,
    addr: SocketAddr,
    serial: u32,
}

impl Knot {
    /// A server of a zone with these records (one a line, relative names). `None`, and a line that counts the test as skipped,
    /// where knot is not installed; under CI that is a failure.
    pub(crate) fn start(records: &str) -> Option<Self> {
        let Some(binary) = find("knotd") else {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "knotd is not installed: .ci/install-test-peers"
            );
            skipped("knotd is not installed (.ci/install-test-peers installs it)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let mut knot = Self { dir, child: None, addr: free_port(), serial: 0 };
        knot.write(records);
        knot.run(&binary);
        Some(knot)
    }

    /// A discovery URL of `name` in the zone, asked of this server.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("dns://{name}.{ZONE}?server={}", self.addr)
    }

    /// Where it listens, over UDP and TCP.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Replaces the zone's records; answers follow as soon as the server has read them.
    pub(crate) fn replace(&mut self, records: &str) {
        self.write(records);
        let pid = self.child.as_ref().unwrap().id();
        assert!(Command::new("kill").args(["-HUP", &pid.to_string()]).status().unwrap().success());
    }

    /// Ends the server; nobody answers on its port until [`Knot::restart`].
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts it again on the same port.
    pub(crate) fn restart(&mut self) {
        self.run(&find("knotd").unwrap());
    }

    /// Writes the zone for the next start.
    pub(crate) fn write(&mut self, records: &str) {
        self.serial += 1;
        let serial = self.serial;
        let zone = format!(
            "$ORIGIN {ZONE}.\n$TTL 1\n@ SOA ns hostmaster {serial} 60 60 3600 1\n@ NS ns\nns A 127.0.0.1\n{records}\n"
        );
        let file = self.dir.path().join("zone");
        // replaced at once, because the server may be reading
        let fresh = self.dir.path().join("zone.new");
        std::fs::write(&fresh, zone).unwrap();
        std::fs::rename(fresh, file).unwrap();
    }

    fn run(&mut self, binary: &Path) {
        let dir = self.dir.path();
        let path = dir.display();
        let config = dir.join("knot.conf");
        // the smallest size that it allows; larger answers are truncated
        let text = format!(
            "server:\n  rundir: \"{path}\"\n  listen: {}@{}\n  udp-max-payload: 1232\n  udp-workers: 1\n  tcp-workers: 1\n  \
             background-workers: 1\n\
             log:\n  - target: stderr\n    any: info\n\
             database:\n  storage: \"{path}\"\n\
             zone:\n  - domain: {ZONE}\n    file: \"{path}/zone\"\n    journal-content: none\n    zonefile-sync: -1\n",
            self.addr.ip(),
            self.addr.port(),
        );
        std::fs::File::create(&config).unwrap().write_all(text.as_bytes()).unwrap();
        let mut child = Command::new(binary)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (started, waits) = mpsc::channel();
        // reads to the end, or the server would block on a full pipe
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            for line in stderr.lines().map_while(Result::ok) {
                let done = line.contains("server started");
                seen.push(line);
                if done {
                    let _ = started.send(Ok(()));
                }
            }
            let _ = started.send(Err(seen));
        });
        self.child = Some(child);
        match waits.recv_timeout(START_MAX) {
            Ok(Ok(())) => {}
            Ok(Err(log)) => panic!("knotd ended: {log:#?}"),
            Err(_) => panic!("knotd did not start in {START_MAX:?}"),
        }
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that is free for both UDP and TCP.
fn free_port() -> SocketAddr {
    for _ in 0..100 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = udp.local_addr().unwrap();
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
    panic!("no free port");
}

/// Debian puts servers where a user's PATH does not look.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join(name)).find(|file| file.is_file())
}
