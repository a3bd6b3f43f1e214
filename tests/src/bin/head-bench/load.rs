//! Reads answers to their end without decoding them, and times that. The head is measured, so this client does as little as
//! possible.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use arrow_flight::{FlightData, Ticket, flight_service_client::FlightServiceClient};
use bytes::Bytes;
use prost::Message;
use tokio::{
    task::JoinSet,
    time::{Instant as Moment, MissedTickBehavior, interval_at, sleep_until},
};
use tonic::Streaming;
use trellis_fabric::{
    channel::{ChannelOptions, PeerChannel, Unreachable, connect_traced},
    limited,
};
use trellis_proto::{Error, pb};

/// The bytes of the bodies and the receipt, or the error.
pub(crate) type Outcome = Result<(u64, pb::Receipt), tonic::Status>;

/// Connections to one head, used in turn. Their number is part of the measurement.
pub(crate) struct Pool {
    channels: Vec<PeerChannel>,
    next: AtomicUsize,
}

impl Pool {
    pub(crate) fn connect(
        addr: &str,
        options: &ChannelOptions,
        connections: usize,
    ) -> Result<Self, Unreachable> {
        let channels = (0..connections).map(|_| connect_traced(addr, options)).collect::<Result<_, _>>()?;
        Ok(Self { channels, next: AtomicUsize::new(0) })
    }

    pub(crate) fn get(&self) -> PeerChannel {
        let turn = self.next.fetch_add(1, Relaxed);
        self.channels[turn % self.channels.len()].clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.channels.len()
    }
}

/// Begins a read.
pub(crate) async fn open(
    channel: PeerChannel,
    ticket: Bytes,
) -> Result<Streaming<FlightData>, tonic::Status> {
    let answer = limited!(FlightServiceClient::new(channel)).do_get(Ticket { ticket }).await?;
    Ok(answer.into_inner())
}

/// Reads to the end.
pub(crate) async fn read(channel: PeerChannel, ticket: Bytes) -> Outcome {
    let mut answer = open(channel, ticket).await?;
    let (mut bytes, mut receipt) = (0, None);
    while let Some(message) = answer.message().await? {
        bytes += message.data_body.len() as u64;
        if !message.app_metadata.is_empty() {
            receipt = Some(message.app_metadata);
        }
    }
    let receipt = receipt.and_then(|receipt| pb::Receipt::decode(receipt).ok());
    Ok((bytes, receipt.ok_or_else(|| tonic::Status::data_loss("an answer without a receipt"))?))
}

/// The results of many reads together.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Milliseconds of each read, ascending.
    taken: Vec<f64>,
    /// From the first release to the last end, milliseconds.
    pub(crate) span_ms: f64,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) chunks_hit: u64,
    /// Hit, joined and fetched.
    pub(crate) chunks: u64,
    /// Reads that the head refused because it had no room; a client would retry them.
    pub(crate) shed: u64,
}

impl Load {
    /// Milliseconds within which this part of the reads ended.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        quantile(&self.taken, part)
    }

    pub(crate) fn reads(&self) -> usize {
        self.taken.len()
    }

    pub(crate) fn hit_rate(&self) -> f64 {
        self.chunks_hit as f64 / self.chunks as f64
    }

    fn add(&mut self, ms: f64, read: Outcome) -> Result<()> {
        match read {
            Ok((bytes, receipt)) => {
                self.taken.push(ms);
                self.bytes += bytes;
                self.rows += receipt.rows;
                self.chunks_hit += receipt.chunks_hit;
                self.chunks += receipt.chunks_hit + receipt.chunks_joined + receipt.chunks_fetched;
            }
            Err(status) => {
                let error = Error::from_status(&status);
                if !error.retryable() {
                    return Err(error).context("a read failed");
                }
                self.shed += 1;
            }
        }
        Ok(())
    }

    async fn of(began: Instant, mut reads: JoinSet<(f64, Outcome)>) -> Result<Self> {
        let mut load = Self::default();
        while let Some(read) = reads.join_next().await {
            let (ms, read) = read?;
            load.add(ms, read)?;
        }
        load.span_ms = milliseconds(began);
        load.taken.sort_by(f64::total_cmp);
        Ok(load)
    }

    /// Fails if the head shed any read.
    pub(crate) fn whole(self) -> Result<Self> {
        if self.shed > 0 {
            bail!("{} of {} reads were shed", self.shed, self.shed as usize + self.reads());
        }
        Ok(self)
    }
}

/// A quantile of ascending values.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let last = values.len().saturating_sub(1) as f64;
    values.get((last * part).round() as usize).copied().unwrap_or(f64::NAN)
}

pub(crate) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Sends `tickets` evenly over `within`, without waiting for answers. A read is timed from the moment at which it should
/// begin.
pub(crate) async fn burst(pool: &Pool, tickets: &[Bytes], within: Duration) -> Result<Load> {
    let began = Instant::now();
    let mut reads = JoinSet::new();
    for (i, ticket) in tickets.iter().enumerate() {
        let (channel, ticket) = (pool.get(), ticket.clone());
        let at = began + within.mul_f64(i as f64 / tickets.len() as f64);
        reads.spawn(async move {
            sleep_until(at.into()).await;
            let read = read(channel, ticket).await;
            (milliseconds(at), read)
        });
    }
    Load::of(began, reads).await
}

/// `rate` reads a second for `span`, without waiting for answers. A read is timed from the moment that it is sent:
/// the timer's grain is larger than a hit.
pub(crate) async fn paced(
    pool: &Pool,
    rate: f64,
    span: Duration,
    mut ticket: impl FnMut(usize) -> Result<Bytes>,
) -> Result<Load> {
    let began = Instant::now();
    let mut ticks = interval_at(Moment::now(), Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut reads = JoinSet::new();
    for i in 0..(rate * span.as_secs_f64()) as usize {
        ticks.tick().await;
        let (channel, ticket) = (pool.get(), ticket(i)?);
        reads.spawn(async move {
            let at = Instant::now();
            let read = read(channel, ticket).await;
            (milliseconds(at), read)
        });
    }
    Load::of(began, reads).await
}

/// Reads on `lanes` tasks at the same time; each task sends one read after the other.
pub(crate) async fn closed(pool: &Pool, tickets: &[Bytes], lanes: usize) -> Result<Load> {
    let began = Instant::now();
    let mut load = Load::default();
    let mut reads = JoinSet::new();
    for ticket in tickets {
        if reads.len() >= lanes {
            let (ms, read) = reads.join_next().await.context("a lane")??;
            load.add(ms, read)?;
        }
        let (channel, ticket) = (pool.get(), ticket.clone());
        reads.spawn(async move {
            let at = Instant::now();
            let read = read(channel, ticket).await;
            (milliseconds(at), read)
        });
    }
    while let Some(read) = reads.join_next().await {
        let (ms, read) = read?;
        load.add(ms, read)?;
    }
    load.span_ms = milliseconds(began);
    load.taken.sort_by(f64::total_cmp);
    Ok(load)
}

/// Several loads combined.
pub(crate) fn together(loads: Vec<Load>) -> Load {
    let mut all = Load::default();
    for load in loads {
        all.taken.extend(load.taken);
        all.span_ms = all.span_ms.max(load.span_ms);
        all.bytes += load.bytes;
        all.rows += load.rows;
        all.chunks_hit += load.chunks_hit;
        all.chunks += load.chunks;
        all.shed += load.shed;
    }
    all.taken.sort_by(f64::total_cmp);
    all
}
