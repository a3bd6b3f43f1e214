//! A market of daily rows, the reads of strategies, and the least number of rows that such reads need.

use std::sync::Arc;

use anyhow::{Result, ensure};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use bytes::Bytes;
use trellis_proto::{
    DatasetSpec, SeriesQuery, Symbols, TimeRange, pb, ticket,
    time::{DAY_NS, parse_time},
};
use trellis_qcu::client::Client;
use trellis_tests::{grid::spec, rng::Rng};

/// Calendar days of the market: ten years.
pub(crate) const DAYS: i64 = 3_652;
const FIRST_DAY: &str = "2008-02-08";
const FIELDS: [&str; 6] = ["open", "high", "low", "close", "volume", "adjusted"];
/// Symbols in one batch of rows.
const BATCH_SYMBOLS: usize = 50;

/// The fields that most strategies read.
pub(crate) const CLOSE: &[&str] = &["close"];
/// Every field.
pub(crate) const ALL: &[&str] = &[];

pub(crate) struct Market {
    pub(crate) spec: DatasetSpec,
    pub(crate) symbols: usize,
    /// Event time of day 0.
    first: i64,
}

/// A window of one symbol, in days since the market's first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) symbol: usize,
    pub(crate) start: i64,
    pub(crate) end: i64,
}

/// Whether the market is open on a day. Day 0 is a Friday.
pub(crate) fn is_session(day: i64) -> bool {
    (day + 4) % 7 < 5
}

/// Rows of one symbol in `[start, end)`.
pub(crate) fn sessions(start: i64, end: i64) -> u64 {
    (start..end).filter(|day| is_session(*day)).count() as u64
}

pub(crate) fn name(symbol: usize) -> String {
    format!("S{symbol:03}")
}

impl Market {
    pub(crate) fn new(dataset: &str, symbols: usize) -> Result<Self> {
        Ok(Self { spec: spec(dataset, &FIELDS), symbols, first: parse_time(FIRST_DAY)? })
    }

    /// Rows of these symbols and days. Each symbol, day and `version` has other values.
    pub(crate) fn rows(
        &self,
        symbols: std::ops::Range<usize>,
        days: std::ops::Range<i64>,
        version: f64,
    ) -> Result<RecordBatch> {
        let days: Vec<i64> = days.filter(|day| is_session(*day)).collect();
        let rows: Vec<(usize, i64)> =
            symbols.flat_map(|symbol| days.iter().map(move |day| (symbol, *day))).collect();
        let times = rows.iter().map(|(_, day)| self.first + day * DAY_NS);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(symbol, _)| name(*symbol)))),
            Arc::new(TimestampNanosecondArray::from_iter_values(times).with_timezone("UTC")),
        ];
        for field in 0..FIELDS.len() {
            let value = |(symbol, day): &(usize, i64)| {
                *day as f64 + *symbol as f64 * 1e-3 + field as f64 * 1e4 + version
            };
            columns.push(Arc::new(Float64Array::from_iter_values(rows.iter().map(value))));
        }
        Ok(RecordBatch::try_new(self.spec.rows_schema(), columns)?)
    }

    /// All rows before day `end`, as one import.
    pub(crate) async fn import_history(&self, client: &Client, end: i64) -> Result<()> {
        let batches = (0..self.symbols)
            .step_by(BATCH_SYMBOLS)
            .map(|first| self.rows(first..(first + BATCH_SYMBOLS).min(self.symbols), 0..end, 0.0))
            .collect::<Result<Vec<_>>>()?;
        let ack = self.import(client, "history", batches).await?;
        ensure!(ack.rows == sessions(0, end) * self.symbols as u64, "{} rows were imported", ack.rows);
        Ok(())
    }

    pub(crate) async fn import(
        &self,
        client: &Client,
        run_id: &str,
        batches: Vec<RecordBatch>,
    ) -> Result<pb::PublishAck> {
        let header = pb::PublishHeader {
            dataset: self.spec.dataset.to_string(),
            kind: pb::PublishKind::Import.into(),
            run_id: run_id.to_owned(),
            spec: Some((&self.spec).into()),
            ..Default::default()
        };
        Ok(client.publish(header, batches).await?)
    }

    /// A read of days `[start, end)`.
    pub(crate) fn query(
        &self,
        symbols: Symbols,
        fields: &[&str],
        start: i64,
        end: i64,
    ) -> Result<SeriesQuery> {
        let mut query = SeriesQuery::new(self.spec.dataset.clone(), symbols);
        query.fields = fields.iter().map(|field| field.parse()).collect::<trellis_proto::Result<_>>()?;
        query.range = TimeRange::new(Some(self.first + start * DAY_NS), Some(self.first + end * DAY_NS))?;
        Ok(query)
    }

    pub(crate) fn query_one(&self, ask: Ask, fields: &[&str]) -> Result<SeriesQuery> {
        self.query(Symbols::new([name(ask.symbol)])?, fields, ask.start, ask.end)
    }

    pub(crate) fn ticket(&self, ask: Ask, fields: &[&str]) -> Result<Bytes> {
        Ok(ticket::encode(&self.query_one(ask, fields)?))
    }

    /// The whole chunk that contains `day`.
    pub(crate) fn query_chunk(&self, symbol: usize, day: i64, fields: &[&str]) -> Result<SeriesQuery> {
        let mut query = self.query_one(Ask { symbol, start: day, end: day + 1 }, fields)?;
        let chunk = self.chunk_of(day);
        query.range = TimeRange::new(Some(self.spec.chunk.start(chunk)), Some(self.spec.chunk.end(chunk)))?;
        Ok(query)
    }

    pub(crate) fn chunk_of(&self, day: i64) -> i64 {
        self.spec.chunk.chunk_of(self.first + day * DAY_NS)
    }

    /// One read of all rows of these symbols.
    pub(crate) fn ticket_of(&self, symbols: std::ops::Range<usize>) -> Result<Bytes> {
        Ok(ticket::encode(&self.query(Symbols::new(symbols.map(name))?, ALL, 0, DAYS)?))
    }

    /// One read of all rows.
    pub(crate) fn ticket_of_all(&self) -> Result<Bytes> {
        Ok(ticket::encode(&self.query(Symbols::All, ALL, 0, DAYS)?))
    }
}

/// Ranks by Zipf's law: rank r is drawn with weight 1 / r.
pub(crate) struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    pub(crate) fn new(n: usize) -> Self {
        let mut sum = 0.0;
        let mut cumulative: Vec<f64> = (1..=n)
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        cumulative.iter_mut().for_each(|c| *c /= sum);
        Self { cumulative }
    }

    /// A random rank, from 0.
    pub(crate) fn draw(&self, rng: &mut Rng) -> usize {
        let at = (rng.bits() >> 11) as f64 / (1u64 << 53) as f64;
        self.cumulative.partition_point(|c| *c < at).min(self.cumulative.len() - 1)
    }
}

/// A strategy's read of one symbol when `now` is the day after the last session: 70 % look back from now, one month to
/// ten years; 30 % are walk-forward windows of one to three years anywhere.
pub(crate) fn window(rng: &mut Rng, symbol: usize, now: i64) -> Ask {
    let (start, end) = if rng.below(10) < 7 {
        (now - (30 + rng.below(now as usize - 30) as i64), now)
    } else {
        let length = 365 + rng.below(730) as i64;
        let start = rng.below((now - length) as usize) as i64;
        (start, start + length)
    };
    Ask { symbol, start, end }
}

/// The days of each symbol that any read asked for: the least that has to be fetched.
pub(crate) struct Union {
    days: Vec<Vec<bool>>,
}

impl Union {
    /// Room for days `[0, days)`.
    pub(crate) fn new(symbols: usize, days: i64) -> Self {
        Self { days: vec![vec![false; days as usize]; symbols] }
    }

    pub(crate) fn add(&mut self, ask: Ask) {
        self.days[ask.symbol][ask.start as usize..ask.end as usize].fill(true);
    }

    pub(crate) fn has(&self, symbol: usize, day: i64) -> bool {
        self.days[symbol][day as usize]
    }

    pub(crate) fn rows(&self) -> u64 {
        let rows = |days: &Vec<bool>| {
            days.iter().zip(0..).filter(|(asked, day)| **asked && is_session(*day)).count()
        };
        self.days.iter().map(rows).sum::<usize>() as u64
    }

    /// The union as a few reads: the runs of each symbol.
    pub(crate) fn asks(&self) -> Vec<Ask> {
        let mut asks = Vec::new();
        for (symbol, days) in self.days.iter().enumerate() {
            let mut start = 0;
            for run in days.chunk_by(|a, b| a == b) {
                let end = start + run.len() as i64;
                if run[0] {
                    asks.push(Ask { symbol, start, end });
                }
                start = end;
            }
        }
        asks
    }
}
