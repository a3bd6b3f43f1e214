//! One answer, from the plan to the trailers: reads step by step, frames message by message.

use std::{
    collections::{BTreeSet, VecDeque},
    pin::pin,
    sync::Arc,
    time::Instant,
    vec,
};

use arrow_buffer::{BooleanBuffer, Buffer};
use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use trellis_proto::{
    Code, Error, Result, SeriesQuery,
    pb::{self, FetchOrder},
};

use super::{Account, within};
use crate::{
    answer::{
        Column, Framer, Known, LAST_MESSAGE_BYTES, MESSAGE_BYTES, PROBE_BYTES, Plan, STEP_BYTES, Shape,
        Source, Step, Values, Window, too_many_bytes, too_many_rows,
    },
    engine::{Ask, Reading, SeriesChunks, WaitQueue},
    error,
    head::HeadNode,
    held::{self, ChunkRef, Dataset, KnownAt},
    limits::Turn,
    stats::Outcome,
};

/// What goes to the transport next.
pub(super) enum Sent {
    Data(Bytes),
    End(HeaderMap),
}

#[derive(Debug)]
enum Stage {
    /// Rows are missing, or not framed. → `Ended`
    Reading,
    /// Nothing more will be framed; some may not have been handed out, and these come after it. → `Over`
    Ended(HeaderMap),
    /// The trailers are out.
    Over,
}

/// An answer in the making.
pub(super) struct Pump {
    head: Arc<HeadNode>,
    dataset: Arc<Dataset>,
    behind: Arc<[Arc<str>]>,
    query: SeriesQuery,
    plan: Plan,
    unit: Arc<str>,
    deadline: Option<Instant>,
    steps: vec::IntoIter<Step>,
    /// What was read has been let go of until it is to be framed. Its bytes, about.
    forgotten: Option<u64>,
    /// Bytes that left as probes, before anything was framed.
    probed: usize,
    /// Permission to frame, waiting for the reader to have room for a probe.
    turn: Option<Turn>,
    /// The step being read.
    reading: Option<(Step, Reading)>,
    /// Permission to pin that step's chunks, if it is a large one.
    admission: Option<Turn>,
    shape: Arc<Shape>,
    framer: Framer<ChunkRef>,
    /// Framed, and not handed out.
    out: VecDeque<Bytes>,
    /// Position in the plan's symbols of the series last taken.
    key: usize,
    found: Found,
    stage: Stage,
}

/// What the readings of the answer say together.
#[derive(Debug, Default)]
struct Found {
    /// The knowledge time of the first reading, for which all of them must be true.
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
            found: Found::default(),
            stage: Stage::Reading,
        }
    }

    /// Everything before the response: reads what the first message needs, and frames it if few wait for their readers, so that it
    /// leaves with the response's headers. A hit is not waited for anywhere in here.
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

    /// Sends nearly nothing, and finds out with it whether the reader has room.
    fn probe(&mut self) -> bool {
        let Some(probe) = self.shape.probe(self.probed) else { return false };
        self.probed += probe.len();
        self.out.push_back(probe);
        true
    }

    /// Lets go of what was read, all of it: an answer that waits must not hold the memory that it may be waiting for, nor chunks
    /// that the cache then drops in vain. It is read again when it is to be framed, with the same knowledge time and so the same
    /// rows, and is in the cache unless that was short of room.
    fn forget(&mut self, bytes: u64) {
        self.framer.forget();
        self.steps = self.plan.steps(&self.dataset.spec, self.framer.row_bytes()).into_iter();
        self.key = 0;
        self.forgotten = Some(bytes);
    }

    /// Takes all rows if that takes no waiting and they fit one message. Otherwise what it did is the beginning of the long way.
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
        Ok(self.framer.is_small())
    }

    /// The next piece, the trailers after the last, `None` after them.
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

    /// Frames one message when it is the unit's turn.
    async fn frame(&mut self, account: &mut Account) -> Result<()> {
        if self.framer.framed().batches > 0 {
            // what is framed is copied: others may have their turn between two messages
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

    /// Bytes of the next message, about.
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

    /// Waits for room and for the unit's turn to frame so many bytes. `None`: before the first message the reader is asked, with a
    /// probe, whether it has room. Its turn may be over when it has.
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

    /// Reads until there is a message's worth of rows (`true`) or no more (`false`).
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
        self.head.engine().read(Ask {
            dataset: self.dataset.clone(),
            symbols: self.plan.symbols[step.symbols.clone()].to_vec(),
            fields: self.plan.fields.clone(),
            start: step.start,
            end: step.end,
            as_of: self.found.cut.or(self.query.as_of),
            behind: self.behind.clone(),
            allow_stale: self.query.allow_stale,
            unit: self.unit.clone(),
            deadline: self.deadline,
            // what is sent first has to come first
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
        let window = Window { start: step.start, end: step.end, as_of: self.found.cut };
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

    /// Takes the knowledge time of the first reading as the answer's; the others were asked for the same.
    fn agree(&mut self, reading: &Reading) -> Result<()> {
        match (self.found.cut, reading.cut()) {
            (None, cut) => self.found.cut = cut,
            (Some(ours), Some(theirs)) if theirs < ours => {
                let message = "a shard knows less now than when the answer began";
                return Err(Error::new(Code::Unavailable, message).dataset(&self.query.dataset));
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds up what a reading says when it is over.
    fn count(&mut self, reading: &Reading, account: &mut Account) {
        let (counts, answer, found) = (reading.counts(), &mut account.answer, &mut self.found);
        answer.chunks_hit += if self.forgotten.is_none() { counts.hit } else { 0 };
        answer.chunks_joined += counts.joined;
        answer.chunks_fetched += counts.fetched;
        answer.rows_fetched += counts.rows_fetched;
        answer.stale |= counts.stale;
        found.shards.extend(counts.shards.iter().cloned());
        found.watermark = Some(found.watermark.map_or(counts.watermark, |ours| ours.min(counts.watermark)));
        if let Some((least, most)) = counts.versions {
            let (ours_least, ours_most) = found.versions.unwrap_or((least, most));
            found.versions = Some((least.min(ours_least), most.max(ours_most)));
        }
    }

    /// Frames the last message, with the receipt.
    fn finish(&mut self, account: &mut Account, turn: Turn) {
        let (found, answer, started) = (&self.found, &mut account.answer, account.started);
        let (version_min, version_max) =
            found.versions.unwrap_or((self.dataset.version, self.dataset.version));
        let (query, head, dataset) = (&self.query, &self.head, &self.dataset);
        self.framer.finish(|framed| {
            let receipt = pb::Receipt {
                dataset: query.dataset.to_string(),
                as_of_ns: query.as_of,
                known_through_ns: found.cut.unwrap_or_else(|| {
                    query.as_of.map_or(dataset.known_through, |as_of| as_of.min(dataset.known_through))
                }),
                version_min,
                version_max,
                watermark_ns: found.watermark.unwrap_or(dataset.watermark),
                rows: framed.rows,
                bytes: framed.bytes,
                chunks_hit: answer.chunks_hit,
                chunks_joined: answer.chunks_joined,
                chunks_fetched: answer.chunks_fetched,
                rows_fetched: answer.rows_fetched,
                shards: found.shards.iter().cloned().collect(),
                stale: answer.stale,
                elapsed_us: started.elapsed().as_micros() as u64,
                queued_us: answer.queued.as_micros() as u64,
                head: head.id().to_owned(),
                calendar: dataset.spec.settings.calendar.clone().unwrap_or_default(),
            };
            receipt.encode_to_vec()
        });
        answer.bytes = self.framer.framed().bytes;
        account.outcome = Outcome::Served;
        account.close();
        self.stage = Stage::Ended(error::trailers_ok());
        self.collect(turn);
    }

    /// Takes what was framed, counted from here on. The turn lasts until the transport has let go of all of it.
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

    /// Keeps the end of a message for the next piece: hyper asks for the one after that when the reader has room for this one, and
    /// so not before nearly all of the message is sent.
    fn hold_back(&mut self) {
        let Some(mut last) = self.out.pop_back() else { return };
        let end = last.split_off(last.len().saturating_sub(PROBE_BYTES));
        self.out.extend([last, end]);
    }
}

impl Source for ChunkRef {
    fn ts(&self) -> &Buffer {
        ChunkRef::ts(self).inner()
    }
    fn known(&self) -> Known<'_> {
        match self.known_at() {
            KnownAt::Constant(at) => Known::Constant(*at),
            KnownAt::PerRow(at) => Known::PerRow(at),
        }
    }
    fn corrected(&self) -> bool {
        ChunkRef::corrected(self)
    }
    fn retracted(&self) -> Option<&BooleanBuffer> {
        ChunkRef::retracted(self)
    }
    fn column(&self, field: usize) -> Column<'_> {
        let Some(column) = self.field(field) else {
            // a bug of the engine's; serving wrong values would be a worse one
            panic!("a chunk came without field {field}, which was asked for");
        };
        let values = match column.values() {
            held::Values::Fixed(values) => Values::Fixed(values),
            held::Values::Bits(values) => Values::Bits(values),
            held::Values::Text(offsets, data) => Values::Text(offsets, data),
        };
        Column { nulls: column.nulls(), values }
    }
}
