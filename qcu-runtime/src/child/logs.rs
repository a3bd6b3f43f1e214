//! The output of the child: each line becomes a log record of the current run, and the last lines are kept for its error.

use std::{collections::VecDeque, os::fd::OwnedFd, sync::Arc};

use parking_lot::Mutex;
use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver, task::JoinHandle};
use tracing::Span;

/// Longest line of one record; a longer line becomes several records.
const LINE_BYTES_MAX: usize = 8 << 10;
/// Most lines of one run that become records, so that a strategy that prints in a loop does not fill the collector. The rest is only
/// counted.
const LINES_MAX: u64 = 10_000;
/// Lines kept for the error of a run that crashed.
const TAIL_LINES: usize = 20;

/// Takes the lines of a child. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Logs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    span: Span,
    lines: u64,
    tail: VecDeque<String>,
}

impl Default for State {
    fn default() -> Self {
        Self { span: Span::none(), lines: 0, tail: VecDeque::new() }
    }
}

impl Logs {
    /// Begins a run: from now on, lines belong to `span`.
    pub(super) fn begin(&self, span: Span) {
        *self.state.lock() = State { span, ..State::default() };
    }

    /// The run is over: lines that still come belong to no span. A span that is held here would end with the next run, perhaps a day
    /// later.
    pub(super) fn leave(&self) {
        self.state.lock().span = Span::none();
    }

    /// Lines of the run that did not become records.
    pub(super) fn dropped(&self) -> u64 {
        self.state.lock().lines.saturating_sub(LINES_MAX)
    }

    /// The last lines of the run.
    pub(super) fn tail(&self) -> Vec<String> {
        self.state.lock().tail.iter().cloned().collect()
    }

    /// Reads a pipe of the child until it is closed.
    pub(super) fn follow(&self, stream: &'static str, pipe: OwnedFd) -> std::io::Result<JoinHandle<()>> {
        let (logs, mut pipe) = (self.clone(), Receiver::from_owned_fd(pipe)?);
        Ok(tokio::spawn(async move {
            let mut pending: Vec<u8> = Vec::new();
            while let Ok(1..) = pipe.read_buf(&mut pending).await {
                let mut from = 0;
                while let Some(end) = pending[from..].iter().position(|byte| *byte == b'\n') {
                    logs.line(stream, &pending[from..from + end]);
                    from += end + 1;
                }
                pending.drain(..from);
                if pending.len() >= LINE_BYTES_MAX {
                    logs.line(stream, &pending);
                    pending.clear();
                }
            }
            if !pending.is_empty() {
                logs.line(stream, &pending);
            }
        }))
    }

    fn line(&self, stream: &'static str, line: &[u8]) {
        for line in line.chunks(LINE_BYTES_MAX) {
            let text = String::from_utf8_lossy(line);
            let text = text.trim_end();
            let mut state = self.state.lock();
            state.lines += 1;
            if state.lines <= LINES_MAX {
                state.span.in_scope(|| tracing::info!(target: "trellis_qcu::strategy", stream, "{text}"));
            }
            if state.tail.len() == TAIL_LINES {
                state.tail.pop_front();
            }
            state.tail.push_back(text.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_kept_and_endless_ones_are_cut() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let logs = Logs::default();
        logs.begin(Span::none());
        let task = logs.follow("stdout", reader.into()).unwrap();
        tokio::task::spawn_blocking(move || {
            for i in 0..LINES_MAX + 5 {
                writeln!(writer, "line {i}").unwrap();
            }
            writer.write_all(&vec![b'x'; LINE_BYTES_MAX * 2 + 1]).unwrap();
        })
        .await
        .unwrap();
        task.await.unwrap();
        let tail = logs.tail();
        assert_eq!(tail.len(), TAIL_LINES);
        assert!(tail.iter().all(|line| line.len() <= LINE_BYTES_MAX));
        assert!(tail.iter().any(|line| line == &format!("line {}", LINES_MAX + 4)));
        assert!(logs.dropped() >= 5 + 2);
    }
}
