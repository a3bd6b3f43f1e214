//! One answer, from the plan to the trailers: read step by step, framed message by message.

use std::{
    collections::{BTreeSet, VecDeque},
    pin::pin,
    sync::Arc,
    time::Instant,
    vec,
};

use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use trellis_proto::{
    Code, Error, Result, SeriesQuery,
    pb::{self, FetchOrder},
};

use super::{account::Account, request::within};
use crate::{
    answer::{
        Framer, LAST_MESSAGE_BYTES, MESSAGE_BYTES, PROBE_BYTES, Plan, STEP_BYTES, Shape, Step, Window,
        too_many_bytes, too_many_rows,
    },
    engine::{ReadQuery, Reading, SeriesChunks, WaitQueue},
    error,
    head::HeadNode,
    held::{Chunk, Dataset},
    limits::Turn,
    stats::Outcome,
};

/// The next piece for the transport.
pub(super) enum Sent {
    Data(Bytes),
    End(HeaderMap),
}

#[derive(Debug)]
enum Stage {
    /// Some rows are not framed yet. → `Ended`
    Reading,
    /// Everything is framed. The pump hands out the pieces that are left, and then these trailers. → `Over`
    Ended(HeaderMap),
    /// The trailers are handed out.
    Over,
}

/// Makes one answer.
pub(super) struct Pump {
    head: Arc<HeadNode>,
    dataset: Arc<Dataset>,
    /// Shards that did not say what is newest, see [`ReadQuery::behind`].
    behind: Arc<[Arc<str>]>,
    query: SeriesQuery,
    plan: Plan,
    unit: Arc<str>,
    deadline: Option<Instant>,
    steps: vec::IntoIter<Step>,
    /// The chunks that were read have been dropped, to be read again when the answer is framed: the bytes of their rows.
    forgotten: Option<u64>,
    /// Bytes that left as probes before the first message.
    probed: usize,
    /// The turn to frame the first message, kept while the reader has no room for a probe.
    turn: Option<Turn>,
    /// The step being read.
    reading: Option<(Step, Reading)>,
    /// The turn to pin the chunks of that step, if the answer is large.
    admission: Option<Turn>,
    shape: Arc<Shape>,
    framer: Framer<Arc<Chunk>>,
    /// Pieces that are framed and not handed out.
    out: VecDeque<Bytes>,
    /// Position in the plan's symbols of the series taken last.
    key: usize,
    totals: Totals,
    stage: Stage,
}

/// The receipt's figures of all readings of the answer together.
#[derive(Debug, Default)]
struct Totals {
    /// The knowledge time of the first reading, at which all readings are cut.
    cut: Option<i64>,
    versions: Option<(u64, u64)>,
    /// `None` while nothing has been read.
    watermark: Option<Option<i64>>,
    shards: BTreeSet<String>,
}

impl Pump {
    pub(super) fn new(
        head: Arc<HeadNode>,
        (dataset, behind): (Arc<Dataset>, Arc<[Arc<str>]>),
        query: SeriesQuery,
        plan: Plan,
        unit: Arc<str>,
        deadline: Option<Instant>,
    ) -> Self {
        let shape = head.shape(&dataset, &plan.fields, query.known_at);
        let steps = plan.steps(&dataset.spec, shape.row_bytes()).into_iter();
        let framer = Framer::new(shape.clone());
        Self {
            head,
            dataset,
            behind,
            query,
            plan,
            unit,
            deadline,
            steps,
            forgotten: None,
            probed: 0,
            turn: None,
            reading: None,
            admission: None,
            shape,
            framer,
            out: VecDeque::new(),
            key: 0,
            totals: Totals::default(),
            stage: Stage::Reading,
        }
    }

    /// Everything before the response: reads the rows of the first message, and frames it if few answers wait for their readers, so that
    /// it leaves with the response's headers. For a hit this does not wait anywhere.
    pub(super) async fn begin(&mut self, account: &mut Account) -> Result<()> {
        let more = !self.hit(account)? && self.fill(account).await?;
        let bytes = self.message_bytes();
        if self.head.engine().has_room_ahead(bytes)
            && let Some(turn) = self.head.egress().try_turn(&self.unit, bytes)
        {
            self.message(more, account, turn);
        } else if !more && !self.is_large() {
            self.forget(bytes);
        }
        Ok(())
    }

    /// Sends a probe: a small piece, which finds out whether the reader has room. False: there is nothing left to probe with.
    fn probe(&mut self) -> bool {
        let Some(probe) = self.shape.probe(self.probed) else { return false };
        self.probed += probe.len();
        self.out.push_back(probe);
        true
    }

    /// Drops everything that was read. An answer that waits must not hold memory that it may be waiting for, nor chunks whose eviction
    /// would then free nothing. The rows are read again when the answer is framed, at the same knowledge time. The chunks are still in
    /// the cache then, unless it was short of room.
    fn forget(&mut self, bytes: u64) {
        self.framer.forget();
        self.steps = self.plan.steps(&self.dataset.spec, self.framer.row_bytes()).into_iter();
        self.key = 0;
        self.forgotten = Some(bytes);
    }

    /// Takes all rows if they are in memory and fit one message. Otherwise [`Self::fill`] goes on from here.
    fn hit(&mut self, account: &mut Account) -> Result<bool> {
        if self.steps.len() > 1 || self.is_large() {
            return Ok(false);
        }
        if let Some(step) = self.steps.next() {
            let mut reading = self.read(&step)?;
            let Some(all) = reading.try_all_ready() else {
                self.reading = Some((step, reading));
                return Ok(false);
            };
            self.agree(&reading)?;
            for series in &all {
                self.take(&step, series, account)?;
            }
            self.count(&reading, account);
        }
        Ok(!self.framer.is_full())
    }

    /// The next piece, then the trailers, then `None`.
    pub(super) async fn next(&mut self, account: &mut Account) -> Option<Sent> {
        loop {
            if let Some(bytes) = self.out.pop_front() {
                return Some(Sent::Data(bytes));
            }
            match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Reading => {
                    self.stage = Stage::Reading;
                    let deadline = self.deadline;
                    let framed = within(deadline, pin!(self.frame(account))).await;
                    if let Err(error) = framed {
                        self.stage = Stage::Ended(error::trailers(&error));
                        self.reading = None;
                        self.framer.begin(&self.plan.symbols, self.probed);
                        self.framer.abandon();
                        self.out.extend(self.framer.pop());
                        account.outcome = Outcome::Failed(error.code());
                        account.close();
                    }
                }
                Stage::Ended(trailers) => return Some(Sent::End(trailers)),
                Stage::Over => return None,
            }
        }
    }

    /// Frames one message in a turn of the unit.
    async fn frame(&mut self, account: &mut Account) -> Result<()> {
        if self.framer.framed().batches > 0 {
            // framing copies bytes without a wait: other tasks run between two messages
            tokio::task::yield_now().await;
        }
        let (mut more, bytes) = match self.forgotten {
            Some(bytes) => (false, bytes),
            None => (self.fill(account).await?, self.message_bytes()),
        };
        let Some(turn) = self.turn(bytes, account).await? else { return Ok(()) };
        if self.forgotten.is_some() {
            more = !self.hit(account)? && self.fill(account).await?;
            self.forgotten = None;
        }
        self.message(more, account, turn);
        Ok(())
    }

    /// Bytes of the next message, without padding.
    fn message_bytes(&self) -> u64 {
        let bytes = self.framer.bytes_left();
        if self.framer.is_full() { MESSAGE_BYTES as u64 } else { bytes }
    }

    /// Frames a message, which is the last one unless there is `more`.
    fn message(&mut self, more: bool, account: &mut Account, turn: Turn) {
        self.framer.begin(&self.plan.symbols, self.probed);
        if more {
            self.framer.frame();
            account.answer.bytes = self.framer.framed().bytes;
            self.collect(turn);
        } else {
            self.finish(account, turn);
        }
    }

    /// Waits until there is room for `bytes`, and until the unit has a turn to frame them. `None`: a probe is sent before the first
    /// message. The turn is kept for the next call, but its lease may have run out by then.
    async fn turn(&mut self, bytes: u64, account: &mut Account) -> Result<Option<Turn>> {
        if let Some(turn) = self.turn.take().filter(Turn::is_out) {
            return Ok(Some(turn));
        }
        account.queue(WaitQueue::Memory, pin!(self.head.engine().room(bytes))).await?;
        let turn = account.queue(WaitQueue::Egress, pin!(self.head.egress().turn(&self.unit, bytes))).await;
        if self.framer.framed().batches > 0 || !self.probe() {
            return Ok(Some(turn));
        }
        self.turn = Some(turn);
        Ok(None)
    }

    /// Reads until there are rows for a full message (`true`) or no more rows (`false`).
    async fn fill(&mut self, account: &mut Account) -> Result<bool> {
        while !self.framer.is_full() {
            if let Some((step, mut reading)) = self.reading.take() {
                let series = reading.next().await;
                self.agree(&reading)?;
                match series {
                    Some(series) => {
                        self.take(&step, &series?, account)?;
                        self.reading = Some((step, reading));
                    }
                    None => {
                        self.count(&reading, account);
                        self.admission = None;
                    }
                }
            } else if let Some(step) = self.steps.next() {
                if self.is_large() {
                    let bytes = self.plan.rows * self.framer.row_bytes() as f64;
                    let bytes = (bytes as u64).min(STEP_BYTES);
                    let turn = pin!(self.head.admission().turn(&self.unit, bytes));
                    self.admission = Some(account.queue(WaitQueue::Admission, turn).await);
                }
                let reading = self.read(&step)?;
                self.reading = Some((step, reading));
            } else {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the answer is expected to need more than one message.
    fn is_large(&self) -> bool {
        self.plan.rows * self.framer.row_bytes() as f64 > LAST_MESSAGE_BYTES as f64
    }

    fn read(&self, step: &Step) -> Result<Reading> {
        self.head.engine().read(ReadQuery {
            dataset: self.dataset.clone(),
            symbols: self.plan.symbols[step.symbols.clone()].to_vec(),
            fields: self.plan.fields.clone(),
            start: step.start,
            end: step.end,
            as_of: self.totals.cut.or(self.query.as_of),
            behind: self.behind.clone(),
            allow_stale: self.query.allow_stale,
            unit: self.unit.clone(),
            deadline: self.deadline,
            // the first messages need the oldest rows
            order: if self.is_large() { FetchOrder::OldestFirst } else { FetchOrder::NewestFirst },
        })
    }

    fn take(&mut self, step: &Step, series: &SeriesChunks, account: &mut Account) -> Result<()> {
        let SeriesChunks { symbol, chunks } = series;
        let ahead = self.plan.symbols[self.key..].iter().position(|planned| planned == symbol);
        self.key += ahead.ok_or_else(|| {
            Error::new(Code::Internal, format!("rows of {symbol} came out of order"))
                .dataset(&self.query.dataset)
        })?;
        let window = Window { start: step.start, end: step.end, as_of: self.totals.cut };
        self.framer.reserve(chunks.len());
        for chunk in chunks {
            self.framer.push(self.key, chunk, &window);
        }
        account.answer.rows = self.framer.rows();
        let (rows, bytes) = (self.framer.rows(), self.framer.bytes());
        if rows > self.plan.rows_max {
            return Err(too_many_rows(&self.query, self.plan.rows_max, "more"));
        }
        if bytes > self.head.limits().bytes {
            return Err(too_many_bytes(&self.query, self.head.limits().bytes, "more"));
        }
        Ok(())
    }

    /// Takes the knowledge time of the first reading as the answer's. The other readings are asked as of the same time.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if a later reading knows less.
    fn agree(&mut self, reading: &Reading) -> Result<()> {
        match (self.totals.cut, reading.cut()) {
            (None, cut) => self.totals.cut = cut,
            (Some(ours), Some(theirs)) if theirs < ours => {
                let message = "a shard knows less now than when the answer began";
                return Err(Error::new(Code::Unavailable, message).dataset(&self.query.dataset));
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds the figures of a reading that is over.
    fn count(&mut self, reading: &Reading, account: &mut Account) {
        let (counts, answer, totals) = (reading.counts(), &mut account.answer, &mut self.totals);
        answer.chunks_hit += if self.forgotten.is_none() { counts.hit } else { 0 };
        answer.chunks_joined += counts.joined;
        answer.chunks_fetched += counts.fetched;
        answer.rows_fetched += counts.rows_fetched;
        answer.stale |= counts.stale;
        totals.shards.extend(counts.shards.iter().cloned());
        totals.watermark = Some(totals.watermark.map_or(counts.watermark, |ours| ours.min(counts.watermark)));
        if let Some((least, most)) = counts.versions {
            let (ours_least, ours_most) = totals.versions.unwrap_or((least, most));
            totals.versions = Some((least.min(ours_least), most.max(ours_most)));
        }
    }

    /// Frames the last message, with the receipt.
    fn finish(&mut self, account: &mut Account, turn: Turn) {
        let (totals, answer, started) = (&self.totals, &mut account.answer, account.started);
        let (version_min, version_max) =
            totals.versions.unwrap_or((self.dataset.version, self.dataset.version));
        let (query, head, dataset) = (&self.query, &self.head, &self.dataset);
        self.framer.finish(|framed| {
            let receipt = pb::Receipt {
                dataset: query.dataset.to_string(),
                as_of_ns: query.as_of,
                known_through_ns: totals.cut.unwrap_or_else(|| {
                    query.as_of.map_or(dataset.known_through, |as_of| as_of.min(dataset.known_through))
                }),
                version_min,
                version_max,
                watermark_ns: totals.watermark.unwrap_or(dataset.watermark),
                rows: framed.rows,
                bytes: framed.bytes,
                chunks_hit: answer.chunks_hit,
                chunks_joined: answer.chunks_joined,
                chunks_fetched: answer.chunks_fetched,
                rows_fetched: answer.rows_fetched,
                shards: totals.shards.iter().cloned().collect(),
                stale: answer.stale,
                elapsed_us: started.elapsed().as_micros() as u64,
                queued_us: answer.queued.as_micros() as u64,
                head: head.id().to_owned(),
                calendar: dataset.spec.settings.calendar.clone().unwrap_or_default(),
                spread: dataset.spread(),
                copies: dataset.copies(),
                heads_version: head.members().version(),
            };
            receipt.encode_to_vec()
        });
        answer.bytes = self.framer.framed().bytes;
        account.outcome = Outcome::Served;
        account.close();
        self.stage = Stage::Ended(error::trailers_ok());
        self.collect(turn);
    }

    /// Takes the framed pieces, which count as pinned from here on. The turn lasts until the transport has let go of all of them.
    fn collect(&mut self, turn: Turn) {
        let turn = Arc::new(turn);
        while let Some(piece) = self.framer.pop() {
            self.out.push_back(self.head.engine().hold(piece, turn.clone()));
        }
        let next = self.message_bytes();
        if matches!(self.stage, Stage::Reading) && !self.head.engine().has_room_ahead(next) {
            self.hold_back();
        }
    }

    /// Splits off the end of a message as a piece of its own. hyper asks for the piece after it when the reader has room for it, and so
    /// not before nearly all of the message is sent.
    fn hold_back(&mut self) {
        let Some(mut last) = self.out.pop_back() else { return };
        let end = last.split_off(last.len().saturating_sub(PROBE_BYTES));
        self.out.extend([last, end]);
    }
}
