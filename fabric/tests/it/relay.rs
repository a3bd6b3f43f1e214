//! A name server that passes questions on to knot, over UDP alone, and sees what travels.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{net::UdpSocket, sync::watch};

use crate::{knot::Knot, witness::WAIT_MAX};

/// What it does with a question.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    /// Passes it on.
    Open,
    /// Does not answer about SRV, passes on the others.
    SilentAboutServices,
    /// Answers SERVFAIL about names that begin so, passes on the others.
    FailsOn(&'static str),
}

pub(crate) struct Relay {
    addr: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    seen: watch::Receiver<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Name, type, and how long an answer may be, if the question says it.
    questions: Vec<(String, u16, Option<u16>)>,
    answers: Vec<Vec<u8>>,
}

const SRV: u16 = 33;
const A: u16 = 1;
const BYTES_MAX: usize = 4096;

impl Relay {
    pub(crate) async fn of(knot: &Knot, mode: Mode) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let addr = front.local_addr().unwrap();
        let mode = Arc::new(Mutex::new(mode));
        let (sees, seen) = watch::channel(Seen::default());
        let (sees, asked, now) = (Arc::new(sees), knot.addr(), mode.clone());
        tokio::spawn(async move {
            let mut bytes = [0; BYTES_MAX];
            loop {
                let (length, client) = front.recv_from(&mut bytes).await.unwrap();
                let question = bytes[..length].to_vec();
                let (name, kind, end) = read(&question);
                let size = edns_size(&question[end..]);
                sees.send_modify(|seen| seen.questions.push((name.clone(), kind, size)));
                match *now.lock().unwrap() {
                    Mode::SilentAboutServices if kind == SRV => continue,
                    Mode::FailsOn(prefix) if name.starts_with(prefix) => {
                        let failed = servfail(&question[..end]);
                        front.try_send_to(&failed, client).unwrap();
                        continue;
                    }
                    _ => {}
                }
                let (front, sees) = (front.clone(), sees.clone());
                tokio::spawn(async move {
                    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                    back.connect(asked).await.unwrap();
                    let mut answer = vec![0; BYTES_MAX];
                    // a dead server refuses; the client then waits in vain, as in a network that loses packets
                    if back.send(&question).await.is_ok()
                        && let Ok(length) = back.recv(&mut answer).await
                    {
                        answer.truncate(length);
                        front.send_to(&answer, client).await.unwrap();
                        sees.send_modify(|seen| seen.answers.push(answer));
                    }
                });
            }
        });
        Self { addr, mode, seen }
    }

    /// A discovery URL of this name, with a port if it has one, asked of this server.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("dns://{name}?server={}", self.addr)
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// How often the IPv4 addresses of a name were asked for.
    pub(crate) fn asked(&self, name: &str) -> usize {
        count(&self.seen.borrow(), name)
    }

    pub(crate) async fn until_asked(&self, name: &str, times: usize) {
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(WAIT_MAX, seen.wait_for(|seen| count(seen, name) >= times)).await;
        assert!(waited.is_ok(), "{name} was not asked for {times} times");
    }

    /// The different sizes of answers that questions allowed.
    pub(crate) fn edns_sizes(&self) -> Vec<Option<u16>> {
        let mut sizes: Vec<_> = self.seen.borrow().questions.iter().map(|(_, _, size)| *size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    pub(crate) fn longest_answer(&self) -> usize {
        self.seen.borrow().answers.iter().map(Vec::len).max().unwrap_or_default()
    }

    /// Whether an answer had the bit that says that it is cut.
    pub(crate) fn was_cut(&self) -> bool {
        self.seen.borrow().answers.iter().any(|answer| answer[2] & 0b10 != 0)
    }
}

fn count(seen: &Seen, name: &str) -> usize {
    seen.questions.iter().filter(|(asked, kind, _)| asked == name && *kind == A).count()
}

/// The name and type of a message's only question, and where it ends.
fn read(message: &[u8]) -> (String, u16, usize) {
    let mut labels = Vec::new();
    let mut at = 12;
    while message[at] > 0 {
        let end = at + 1 + usize::from(message[at]);
        labels.push(String::from_utf8(message[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    (labels.join("."), u16::from_be_bytes([message[at + 1], message[at + 2]]), at + 5)
}

/// The size in the OPT record (RFC 6891): a root name, type 41, and the size where other records have their class.
fn edns_size(after_question: &[u8]) -> Option<u16> {
    match after_question {
        [0, 0, 41, high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

/// The answer SERVFAIL to a question.
fn servfail(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80 | 2;
    // no records, the question alone
    answer[6..12].fill(0);
    answer
}
