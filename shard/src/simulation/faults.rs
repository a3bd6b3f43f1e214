//! The faults: outcomes of store operations, sleep, death, clocks, cut lines.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;

use super::{
    calls::TTL,
    disk::{Op, Reads, Waiting, lost},
    world::{Actor, Call, Stage, State, World, gone},
};

/// A shard sleeps at most this long: four leases.
const PAUSE_MS_MAX: usize = 40_000;
/// Clocks are at most this many seconds fast or slow.
const SKEW_S_MAX: usize = 600;
/// The longest step of time.
const LEAP_MS_MAX: usize = 240_000;

impl World {
    /// Releases a store operation with one of its outcomes.
    pub(super) fn release(&mut self) {
        let ops = self.ready_ops();
        let id = *self.seed.pick(&ops);
        let Some(mut waiting) = self.disk.take(id) else { return };
        if waiting.shown {
            return self.finish(waiting);
        }
        let what = format!("life {}: {}", waiting.life, waiting.op);
        let writes = waiting.op.writes();
        let fate = match self.seed.below(100) {
            0..=2 => {
                waiting.answer(Err(lost()));
                "not done"
            }
            15..=29 if self.disk.show(&waiting.op) => {
                waiting.shown = true;
                self.disk.put_back(waiting);
                self.count("seen before durable");
                "can be seen"
            }
            3..=5 if writes => {
                let _ = self.disk.perform(&waiting.op);
                waiting.answer(Err(lost()));
                "done, and the answer lost"
            }
            6..=8 if writes => {
                // As clients of object stores do: they ask again when the answer was an error of the server's.
                let _ = self.disk.perform(&waiting.op);
                let again = self.disk.perform(&waiting.op);
                waiting.answer(again);
                "done, and asked for again"
            }
            9..=14 if writes => {
                self.late.push((waiting.op.clone(), Instant::now()));
                waiting.answer(Err(lost()));
                "on its way, and given up"
            }
            _ => {
                let answer = self.disk.perform_for(waiting.life, &waiting.op);
                waiting.answer(answer);
                "done"
            }
        };
        if !matches!(fate, "done" | "can be seen") {
            self.count("store failures");
        }
        self.note(format!("{what}: {fate}"));
    }

    /// The second half of creating an object.
    pub(super) fn finish(&mut self, waiting: Waiting) {
        let Op::Put { path, .. } = &waiting.op else { return };
        self.note(format!("life {}: {}: durable", waiting.life, waiting.op));
        let settled = self.disk.perform(&Op::Settle { path: path.clone() });
        waiting.answer(settled);
    }

    /// The power is cut: both shards die, and what was not durable is gone.
    fn cut_power(&mut self) {
        for node in 0..self.nodes.len() {
            self.crash(node);
        }
        self.late.clear();
        let gone = self.disk.cut_power();
        self.note(format!("the power is cut: {gone} objects are gone"));
        if gone > 0 {
            self.count("lost by a cut of the power");
        }
        self.model.begin_again(&self.disk);
    }

    pub(super) fn apply_late(&mut self) {
        let i = self.seed.below(self.late.len());
        let (op, _) = self.late.remove(i);
        let done = self.disk.perform(&op).is_ok();
        self.note(format!("late: {op}: {done}"));
    }

    /// Makes a fault.
    pub(super) fn fail(&mut self) {
        let node = self.seed.below(self.nodes.len());
        match self.seed.below(8) {
            0..=2 => {
                let ms = self.seed.below(PAUSE_MS_MAX) as u64;
                self.nodes[node].awake_at = Instant::now() + Duration::from_millis(ms);
                self.count("pauses");
                self.note(format!("shard {node} sleeps for {ms} ms"));
            }
            3 if self.seed.once_in(3) => self.cut_power(),
            3 => self.crash(node),
            4 => {
                let skew = self.seed.below(2 * SKEW_S_MAX) as i64 - SKEW_S_MAX as i64;
                self.nodes[node].skew_ns.store(skew * 1_000_000_000, Ordering::SeqCst);
                self.count("clocks set");
                self.note(format!("the clock of shard {node} is {skew} s off"));
            }
            5 => {
                let reads = match self.seed.below(4) {
                    0..=1 => Reads::Whole,
                    2 => Reads::Fail,
                    _ => Reads::Flipped(self.seed.below(usize::MAX) as u64),
                };
                if matches!(reads, Reads::Flipped(_)) {
                    self.count("bits flipped");
                }
                self.disk.set_reads(self.nodes[node].life, reads);
                self.note(format!("shard {node} reads: {reads:?}"));
            }
            _ => self.give_up(),
        }
    }

    pub(super) fn crash(&mut self, node: usize) {
        if matches!(self.nodes[node].state, State::Down) {
            return;
        }
        let life = self.nodes[node].life;
        self.count("crashes");
        self.note(format!("shard {node} dies"));
        if let State::Opening(task) = std::mem::replace(&mut self.nodes[node].state, State::Down) {
            task.abort();
        }
        for op in self.disk.end(life).into_iter().filter(Op::writes) {
            let fate = self.seed.below(3);
            self.note(format!("{op}: {}", ["done", "not done", "on its way"][fate]));
            match fate {
                0 => drop(self.disk.perform(&op)),
                1 => {}
                _ => self.late.push((op, Instant::now())),
            }
        }
        let (dead, kept) = std::mem::take(&mut self.calls)
            .into_iter()
            .partition(|call| matches!(call.stage, Stage::Running { life: l, .. } if l == life));
        self.calls = kept;
        let dead: Vec<Call> = dead;
        for call in dead {
            if let Stage::Running { task, .. } = &call.stage {
                task.abort();
            }
            if call.awaited {
                self.hear(call.actor, &call.ask, Err(gone()));
            }
        }
    }

    /// The line between somebody and a shard is cut, at any point: the message may still arrive; the shard may notice.
    pub(super) fn give_up(&mut self) {
        let awaited: Vec<usize> = (0..self.calls.len())
            .filter(|&i| self.calls[i].awaited && self.calls[i].actor != Actor::Upkeep)
            .collect();
        if awaited.is_empty() {
            return;
        }
        let i = *self.seed.pick(&awaited);
        let lost = self.seed.once_in(2);
        self.calls[i].awaited = false;
        self.count("lines cut");
        self.note(format!(
            "call {} is cut off, {}",
            self.calls[i].id,
            if lost { "for good" } else { "behind it" }
        ));
        let (actor, ask) = (self.calls[i].actor, self.calls[i].ask.clone());
        if lost || matches!(self.calls[i].stage, Stage::Answered(_)) {
            let call = self.calls.remove(i);
            if let Stage::Running { task, .. } = call.stage {
                task.abort();
            }
        }
        self.hear(actor, &ask, Err(gone()));
    }

    pub(super) async fn pass_time(&mut self) {
        let ms = match self.seed.below(20) {
            0 => self.seed.below(LEAP_MS_MAX),
            1..=4 => self.seed.below(2 * TTL.as_millis() as usize),
            _ => self.seed.below(1_500),
        };
        self.note(format!("{ms} ms pass"));
        tokio::time::advance(Duration::from_millis(ms as u64)).await;
    }
}
