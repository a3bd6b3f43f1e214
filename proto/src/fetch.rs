//! A shard's replies to a fetch, checked against the request.
//!
//! A reply has chunks of several ranges, by number. A reply that is valid in itself may still be wrong for the request: if
//! it answers one chunk twice and another never, a reader waits for ever; or it may have rows of another request.
//! [`Awaited`] is made from the request and checks every reply: it accepts only chunks that were asked for and have not
//! been answered.

use std::{collections::HashMap, ops::Range};

use bytes::Bytes;

use crate::{
    error::{Code, Error, Result, Side},
    pb,
};

/// One reply to a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Chunks with their rows.
    Batch(ChunkBatch),
    /// Chunks that could not be read.
    Failures(Vec<ChunkFailure>),
}

/// Chunks of ranges of one dataset with the same fields, in one Arrow record batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkBatch {
    /// The runs, in the order of their rows in the record batch.
    pub runs: Vec<ChunkRun>,
    /// Version of the table that was read.
    pub version: u64,
    /// Every later commit has a greater knowledge time.
    pub known_through: i64,
    /// The event time up to which the series are complete, if the shard says so.
    pub watermark: Option<i64>,
    /// Position in the watch log: the read has at least the changes up to it.
    pub seq: u64,
    /// Arrow IPC RecordBatch message.
    pub header: Bytes,
    /// Its body.
    pub body: Bytes,
    /// One bit for each row, the least significant first: whether the row is a retraction. Empty: no row is a retraction.
    pub retracted: Bytes,
}

impl ChunkBatch {
    /// Number of rows that the record batch must have.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.runs.iter().map(ChunkRun::rows).sum()
    }
}

/// Adjacent whole chunks of one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRun {
    /// Index into the request's ranges.
    pub range: usize,
    /// Number of the first chunk.
    pub first: i64,
    /// Rows of each chunk, ascending by chunk.
    pub chunk_rows: Vec<u32>,
}

impl ChunkRun {
    /// The chunks.
    #[must_use]
    pub fn chunks(&self) -> Range<i64> {
        self.first..self.first.saturating_add_unsigned(self.chunk_rows.len() as u64)
    }

    /// Rows of all chunks.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.chunk_rows.iter().map(|rows| u64::from(*rows)).sum()
    }
}

/// Adjacent chunks of one range that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkFailure {
    /// Index into the request's ranges.
    pub range: usize,
    /// The chunks.
    pub chunks: Range<i64>,
    /// The reason.
    pub error: Error,
}

impl From<Answer> for pb::FetchReply {
    fn from(answer: Answer) -> Self {
        let reply = match answer {
            Answer::Batch(batch) => pb::fetch_reply::Reply::Batch(pb::ChunkBatch {
                runs: batch
                    .runs
                    .into_iter()
                    .map(|run| pb::ChunkRun {
                        range: run.range as u32,
                        first: run.first,
                        rows: run.chunk_rows,
                    })
                    .collect(),
                version: batch.version,
                known_through_ns: batch.known_through,
                watermark_ns: batch.watermark,
                seq: batch.seq,
                data_header: batch.header,
                data_body: batch.body,
                retracted: batch.retracted,
            }),
            Answer::Failures(failures) => pb::fetch_reply::Reply::Failures(pb::ChunkFailures {
                failures: failures
                    .into_iter()
                    .map(|failure| pb::ChunkFailure {
                        range: failure.range as u32,
                        first: failure.chunks.start,
                        end: failure.chunks.end,
                        error: Some(failure.error.into()),
                    })
                    .collect(),
            }),
        };
        Self { reply: Some(reply) }
    }
}

/// The chunks of a fetch that have not been answered yet.
#[derive(Debug)]
pub struct Awaited {
    ranges: Vec<AwaitedRange>,
    chunks: u64,
}

#[derive(Debug)]
struct AwaitedRange {
    /// Ranges with the same dataset and fields have the same number: their rows may be in one batch.
    kind: usize,
    asked: Range<i64>,
    /// Ascending, disjoint, none empty.
    open: Vec<Range<i64>>,
}

impl Awaited {
    /// All chunks of a request.
    #[must_use]
    pub fn of(request: &pb::FetchRequest) -> Self {
        let mut kinds: HashMap<(&str, &[String]), usize> = HashMap::new();
        let mut chunks = 0;
        let ranges = request
            .ranges
            .iter()
            .map(|range| {
                let next = kinds.len();
                let kind = *kinds.entry((range.dataset.as_str(), &range.fields)).or_insert(next);
                let asked = range.first..range.end;
                let open = if asked.is_empty() { Vec::new() } else { vec![asked.clone()] };
                chunks += open.iter().map(len).sum::<u64>();
                AwaitedRange { kind, asked, open }
            })
            .collect();
        Self { ranges, chunks }
    }

    /// Whether every chunk has been answered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    /// Number of chunks that have not been answered.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Checks a reply. It does not read the record batch.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] if the reply is empty, has chunks that were not asked for or have been answered, or combines
    /// ranges of different datasets or fields. The caller must end the fetch: its other replies cannot be trusted.
    pub fn accept(&mut self, reply: pb::FetchReply) -> Result<Answer> {
        match reply.reply {
            Some(pb::fetch_reply::Reply::Batch(batch)) => self.batch(batch).map(Answer::Batch),
            Some(pb::fetch_reply::Reply::Failures(failures)) if !failures.failures.is_empty() => {
                let failures = failures.failures.into_iter().map(|failure| self.failure(failure));
                failures.collect::<Result<_>>().map(Answer::Failures)
            }
            _ => Err(wrong("a reply is empty".to_owned())),
        }
    }

    fn batch(&mut self, batch: pb::ChunkBatch) -> Result<ChunkBatch> {
        if batch.runs.is_empty() {
            return Err(wrong("a batch has no chunks".to_owned()));
        }
        let mut runs: Vec<ChunkRun> = Vec::with_capacity(batch.runs.len());
        for run in batch.runs {
            let run = ChunkRun { range: run.range as usize, first: run.first, chunk_rows: run.rows };
            if run.first.checked_add_unsigned(run.chunk_rows.len() as u64).is_none() {
                return Err(wrong(format!(
                    "the chunks of range {} go beyond the last possible chunk",
                    run.range
                )));
            }
            self.answered(run.range, &run.chunks())?;
            if let Some(other) = runs.first()
                && self.ranges[other.range].kind != self.ranges[run.range].kind
            {
                return Err(wrong(format!(
                    "the ranges {} and {} are in one batch, but of different datasets or fields",
                    other.range, run.range
                )));
            }
            runs.push(run);
        }
        Ok(ChunkBatch {
            runs,
            version: batch.version,
            known_through: batch.known_through_ns,
            watermark: batch.watermark_ns,
            seq: batch.seq,
            header: batch.data_header,
            body: batch.data_body,
            retracted: batch.retracted,
        })
    }

    fn failure(&mut self, failure: pb::ChunkFailure) -> Result<ChunkFailure> {
        let (range, chunks) = (failure.range as usize, failure.first..failure.end);
        self.answered(range, &chunks)?;
        let error = failure.error.map_or_else(
            || Error::new(Code::Unavailable, "the shard failed without a reason").side(Side::Shard),
            Error::from,
        );
        Ok(ChunkFailure { range, chunks, error })
    }

    fn answered(&mut self, range: usize, chunks: &Range<i64>) -> Result<()> {
        let count = self.ranges.len();
        let Some(of) = self.ranges.get_mut(range) else {
            return Err(wrong(format!("it has range {range} of a request for {count}")));
        };
        let is = || format!("the chunks {}..{} of range {range}", chunks.start, chunks.end);
        if chunks.is_empty() {
            return Err(wrong(format!("{} are an empty range", is())));
        }
        if chunks.start < of.asked.start || chunks.end > of.asked.end {
            let Range { start, end } = of.asked;
            return Err(wrong(format!("{} were not asked for, only {start}..{end}", is())));
        }
        let before = of.open.partition_point(|open| open.end <= chunks.start);
        let Some(open) =
            of.open.get(before).cloned().filter(|o| o.start <= chunks.start && chunks.end <= o.end)
        else {
            return Err(wrong(format!("{} have been answered before, at least some of them", is())));
        };
        let rest = [open.start..chunks.start, chunks.end..open.end];
        of.open.splice(before..=before, rest.into_iter().filter(|rest| !rest.is_empty()));
        self.chunks -= len(chunks);
        Ok(())
    }
}

fn len(chunks: &Range<i64>) -> u64 {
    chunks.end.abs_diff(chunks.start)
}

fn wrong(what: String) -> Error {
    Error::new(Code::DataCorrupt, format!("the shard's reply does not fit the request: {what}"))
        .side(Side::Shard)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn range(fields: &[&str], first: i64, end: i64) -> pb::ChunkRange {
        pb::ChunkRange {
            dataset: "equities.daily".to_owned(),
            symbol: "AMZN".to_owned(),
            fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            first,
            end,
            schema: 0,
        }
    }

    fn request(ranges: Vec<pb::ChunkRange>) -> pb::FetchRequest {
        pb::FetchRequest { ranges, order: 0, epoch: 1 }
    }

    fn batch(runs: &[(usize, i64, usize)]) -> pb::FetchReply {
        let runs = runs.iter().map(|(range, first, chunks)| ChunkRun {
            range: *range,
            first: *first,
            chunk_rows: vec![1; *chunks],
        });
        Answer::Batch(ChunkBatch {
            runs: runs.collect(),
            version: 1,
            known_through: 1,
            watermark: None,
            seq: 1,
            header: Bytes::from_static(b"header"),
            body: Bytes::from_static(b"body"),
            retracted: Bytes::from_static(b"\x02"),
        })
        .into()
    }

    #[test]
    fn what_does_not_fit_the_question_is_refused_and_says_why() {
        let asked = request(vec![range(&["close"], 0, 8), range(&["close"], 4, 8), range(&["open"], 4, 8)]);
        let nothing = pb::FetchReply { reply: None };
        let no_failures = Answer::Failures(Vec::new()).into();
        let twice = batch(&[(0, 2, 3), (0, 4, 1)]);
        for (reply, why) in [
            (nothing, "a reply is empty"),
            (no_failures, "a reply is empty"),
            (batch(&[]), "a batch has no chunks"),
            (batch(&[(3, 0, 1)]), "range 3 of a request for 3"),
            (batch(&[(0, 1, 0)]), "the chunks 1..1 of range 0 are an empty range"),
            (batch(&[(1, 3, 2)]), "the chunks 3..5 of range 1 were not asked for, only 4..8"),
            (batch(&[(1, 4, 5)]), "the chunks 4..9 of range 1 were not asked for, only 4..8"),
            (batch(&[(0, i64::MAX, 2)]), "the chunks of range 0 go beyond the last possible chunk"),
            (twice, "the chunks 4..5 of range 0 have been answered"),
            (
                batch(&[(0, 0, 8), (2, 4, 4)]),
                "the ranges 0 and 2 are in one batch, but of different datasets",
            ),
        ] {
            let error = Awaited::of(&asked).accept(reply).unwrap_err();
            assert_eq!(error.code(), Code::DataCorrupt);
            assert!(error.message().contains(why), "{error}");
        }
    }

    #[test]
    fn ranges_without_chunks_are_not_waited_for() {
        assert!(Awaited::of(&request(vec![range(&[], 3, 3), range(&[], 3, -3)])).is_empty());
        assert_eq!(Awaited::of(&request(vec![range(&[], i64::MIN, i64::MAX)])).chunks(), u64::MAX);
    }

    /// Replies with chunks of three ranges: for each the range, its first chunk, the number, and whether they failed.
    fn replies() -> impl Strategy<Value = Vec<(usize, i64, usize, bool)>> {
        proptest::collection::vec((0..3_usize, 0..12_i64, 1..4_usize, any::<bool>()), 1..40)
    }

    proptest! {
        /// Compared with a plain set of numbers; an accepted reply comes back as it was sent, bit for bit.
        #[test]
        fn each_chunk_is_answered_once_and_unchanged(replies in replies()) {
            let ranges = vec![range(&["close"], 0, 12), range(&["close"], 2, 9), range(&["close"], 5, 6)];
            let mut open: BTreeSet<(usize, i64)> = ranges.iter().enumerate()
                .flat_map(|(i, range)| (range.first..range.end).map(move |chunk| (i, chunk))).collect();
            let mut awaited = Awaited::of(&request(ranges));
            for (range, first, chunks, failed) in replies {
                let sent = match failed {
                    true => Answer::Failures(vec![ChunkFailure {
                        range,
                        chunks: first..first + chunks as i64,
                        error: Error::new(Code::Unavailable, "the disk is away").shard("shard-0"),
                    }]).into(),
                    false => batch(&[(range, first, chunks)]),
                };
                let received = pb::FetchReply::decode(sent.encode_to_vec().as_slice()).unwrap();
                let about: Vec<_> = (first..first + chunks as i64).map(|chunk| (range, chunk)).collect();
                let expected = about.iter().all(|chunk| open.contains(chunk));
                match awaited.accept(received) {
                    Ok(answer) => {
                        prop_assert!(expected);
                        prop_assert_eq!(pb::FetchReply::from(answer), sent);
                        about.iter().for_each(|chunk| { open.remove(chunk); });
                    }
                    Err(_) => prop_assert!(!expected),
                }
                prop_assert_eq!(awaited.chunks(), open.len() as u64);
            }
            prop_assert_eq!(awaited.is_empty(), open.is_empty());
        }
    }
}
