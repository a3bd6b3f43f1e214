//! Asks DNS, again and again.
//!
//! hickory's cache is off, because the watch itself is the cache: with two caches a change would show after two TTLs. The resolver
//! of the name also resolves the SRV targets, because the system's resolver may know other names.
//!
//! Discovery ignores priorities and weights of SRV records: Cloud Map always writes 1, and placement by hashing needs the whole
//! set.

use std::{net::IpAddr, time::Duration};

use futures::future::join_all;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    doubt::Doubt,
    options::Options,
    peer::Peers,
    plan::{self, Answer, Failure, Note, State},
    url::DnsQuery,
};
use crate::retry;

/// Attempts at one server before the resolver asks the next one, or the look-up fails and [`retry`] decides about the next.
const ATTEMPTS: usize = 2;

/// Most targets of one SRV answer: no logical node should have more. Cloud Map answers at most eight.
const TARGETS_MAX: usize = 256;

pub(super) struct Resolver {
    inner: TokioResolver,
}

impl Resolver {
    /// # Errors
    /// The system's resolver configuration cannot be used.
    pub(super) fn new(query: &DnsQuery, options: &Options) -> Result<Self, String> {
        let refused = |error: NetError| error.to_string();
        let mut builder = match query.server {
            None => TokioResolver::builder_tokio().map_err(refused)?,
            Some(server) => {
                // both transports, because a truncated UDP answer is asked for again over TCP
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                    connection.port = server.port();
                    connection
                });
                let server = NameServerConfig::new(server.ip(), true, connections.into());
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        let resolver_options = builder.options_mut();
        resolver_options.timeout = options.query_timeout;
        resolver_options.attempts = ATTEMPTS;
        resolver_options.cache_size = 0;
        resolver_options.try_tcp_on_error = true;
        Ok(Self { inner: builder.build().map_err(refused)? })
    }

    /// One look-up: the SRV records, or if there are none, the addresses. If the URL names a port, the addresses also if the SRV records
    /// cannot be had: Docker's name server knows the addresses of containers, and passes questions about SRV on to a server that may
    /// not answer.
    async fn ask(&self, query: &DnsQuery) -> Result<Answer, Failure> {
        match self.services(&query.name).await {
            Ok(answer) => Ok(answer),
            Err(Failure::NotFound) => self.addresses(&query.name, query.port).await,
            Err(failure) if query.port_named => {
                self.addresses(&query.name, query.port).await.map_err(|_| failure)
            }
            // without an answer there may be SRV records, and the default port could belong to another service
            Err(failure) => Err(failure),
        }
    }

    async fn services(&self, name: &str) -> Result<Answer, Failure> {
        let lookup = self.inner.lookup(absolute(name), RecordType::SRV).await.map_err(failure)?;
        let mut ttl = Duration::MAX;
        let mut targets = Vec::new();
        for record in lookup.answers() {
            // the target "." says that there is no such service (RFC 2782)
            if let RData::SRV(service) = &record.data
                && !service.target.is_root()
            {
                ttl = ttl.min(Duration::from_secs(record.ttl.into()));
                targets.push((service.target.to_string(), service.port));
            }
        }
        if targets.len() > TARGETS_MAX {
            tracing::warn!(
                name,
                targets = targets.len(),
                TARGETS_MAX,
                "too many SRV targets; the rest is left out"
            );
            targets.truncate(TARGETS_MAX);
        }
        let answers = join_all(targets.iter().map(|(target, port)| self.addresses(target, *port))).await;
        let mut found = Vec::new();
        for answer in answers {
            match answer {
                Ok(answer) => found.push(answer),
                // the target was deregistered between the two look-ups
                Err(Failure::NotFound) => {}
                Err(failure) => return Err(failure),
            }
        }
        if found.is_empty() {
            return Err(Failure::NotFound);
        }
        let merged = plan::merge(found);
        Ok(Answer { ttl: merged.ttl.min(ttl), ..merged })
    }

    /// IPv4 and IPv6 addresses. One family is enough, because some name servers fail on AAAA.
    async fn addresses(&self, name: &str, port: u16) -> Result<Answer, Failure> {
        let name = absolute(name);
        let family = |kind: RecordType| {
            let name = name.clone();
            async move {
                let lookup = self.inner.lookup(name, kind).await.map_err(failure)?;
                let mut answer = Answer { endpoints: Vec::new(), ttl: Duration::MAX };
                for record in lookup.answers() {
                    let ip = match &record.data {
                        RData::A(v4) => IpAddr::V4(v4.0),
                        RData::AAAA(v6) => IpAddr::V6(v6.0),
                        // a CNAME on the way has a TTL that counts, but no address
                        _ => {
                            answer.ttl = answer.ttl.min(Duration::from_secs(record.ttl.into()));
                            continue;
                        }
                    };
                    answer.ttl = answer.ttl.min(Duration::from_secs(record.ttl.into()));
                    answer.endpoints.push((ip, port));
                }
                if answer.endpoints.is_empty() { Err(Failure::NotFound) } else { Ok(answer) }
            }
        };
        match futures::future::join(family(RecordType::A), family(RecordType::AAAA)).await {
            (Ok(v4), Ok(v6)) => Ok(plan::merge([v4, v6])),
            (Ok(answer), Err(_)) | (Err(_), Ok(answer)) => Ok(answer),
            (Err(Failure::NotFound), Err(failure)) | (Err(failure), Err(_)) => Err(failure),
        }
    }
}

/// A fully qualified name: with search domains, one query would become several, and hosts of other domains could answer.
fn absolute(name: &str) -> String {
    if name.ends_with('.') { name.to_owned() } else { format!("{name}.") }
}

fn failure(error: NetError) -> Failure {
    match &error {
        NetError::Dns(DnsError::NoRecordsFound(_)) => Failure::NotFound,
        _ => Failure::Unanswered(error.to_string()),
    }
}

/// Looks the name up again and again, until the last receiver is dropped.
pub(super) async fn follow(
    url: String,
    resolver: Resolver,
    query: DnsQuery,
    options: Options,
    sender: watch::Sender<Peers>,
    doubt: Doubt,
) {
    let mut state = State::default();
    let mut retries = retry::Pauses::new(options.retry_min, options.retry_max);
    loop {
        let asked = Instant::now();
        let result = tokio::select! {
            result = resolver.ask(&query) => result,
            () = sender.closed() => return,
        };
        let wait = match &result {
            Ok(answer) => {
                retries.reset();
                let (trusted, more) = plan::trust(answer.ttl, &options);
                trusted + retry::up_to(more)
            }
            Err(_) => retries.next_pause(),
        };
        if let Ok(answer) = &result {
            let found = plan::peers(answer);
            sender.send_if_modified(|peers| {
                let changed = **peers != *found;
                if changed {
                    tracing::info!(url, peers = found.len(), before = peers.len(), "peers changed");
                    *peers = found.into();
                }
                changed
            });
        }
        let (next, note) = state.step(result.map(drop));
        state = next;
        match note {
            Note::Nothing => {}
            Note::Began(failure) => {
                tracing::warn!(url, %failure, kept = sender.borrow().len(), "look-up failed; the last good set is kept");
            }
            Note::Ended { times } => tracing::info!(url, failures = times, "look-ups succeed again"),
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = doubted(&doubt, asked, &options) => {}
            () = sender.closed() => return,
        }
    }
}

/// Returns when a doubt has been raised, and the time for the next look-up has come.
async fn doubted(doubt: &Doubt, asked: Instant, options: &Options) {
    doubt.raised().await;
    sleep_until(asked + options.doubt_min + retry::up_to(options.doubt_min)).await;
}
