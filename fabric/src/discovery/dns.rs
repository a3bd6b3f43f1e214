//! Asks DNS.
//!
//! Queries carry EDNS0, which tells the server that an answer over UDP may have 1,232 bytes; an answer that the server cuts is asked for
//! again over TCP. hickory's cache is off, because the watch itself is the cache: with two caches a change would show after two TTLs. The
//! resolver of the name also resolves the SRV targets, because the system's resolver may know other names.
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

use super::{
    follow::Ask,
    options::Options,
    plan::{self, Answer, Failure},
    url::DnsQuery,
};

/// Attempts at one server before the resolver asks the next one, or the look-up fails and [`retry`] decides about the next.
const ATTEMPTS: usize = 2;

/// Most targets of one SRV answer: no logical node should have more. Cloud Map answers at most eight.
const TARGETS_MAX: usize = 256;

/// What an answer without addresses says.
const NOBODY: Failure = Failure::NotFound("the name has no addresses");

pub(super) struct Resolver {
    inner: TokioResolver,
    query: DnsQuery,
}

impl Ask for Resolver {
    fn names(&self) -> &[String] {
        &self.query.names
    }

    /// One look-up: the SRV records, or if there are none, the addresses. If the URL names a port, the addresses also if the SRV records
    /// cannot be had: Docker's name server knows the addresses of containers, and passes questions about SRV on to a server that may
    /// not answer.
    async fn ask(&self, name: usize, _doubted: bool) -> Result<Answer, Failure> {
        let (name, port) = (&self.query.names[name], self.query.port);
        match self.services(name).await {
            Ok(answer) => Ok(answer),
            Err(Failure::NotFound(_)) => self.addresses(name, port).await,
            Err(failure) if self.query.port_named => self.addresses(name, port).await.map_err(|_| failure),
            // without an answer there may be SRV records, and the default port could belong to another service
            Err(failure) => Err(failure),
        }
    }
}

impl Resolver {
    /// # Errors
    /// The system's resolver configuration cannot be used.
    pub(super) fn new(query: DnsQuery, options: &Options) -> Result<Self, String> {
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
        // hickory uses it with the system's servers only if resolv.conf says so, and that of a container does not: answers of more than
        // 512 bytes would then all travel over TCP
        resolver_options.edns0 = true;
        Ok(Self { inner: builder.build().map_err(refused)?, query })
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
                Err(Failure::NotFound(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        if found.is_empty() {
            return Err(NOBODY);
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
                if answer.endpoints.is_empty() { Err(NOBODY) } else { Ok(answer) }
            }
        };
        match futures::future::join(family(RecordType::A), family(RecordType::AAAA)).await {
            (Ok(v4), Ok(v6)) => Ok(plan::merge([v4, v6])),
            (Ok(answer), Err(_)) | (Err(_), Ok(answer)) => Ok(answer),
            (Err(Failure::NotFound(_)), Err(failure)) | (Err(failure), Err(_)) => Err(failure),
        }
    }
}

/// A fully qualified name: with search domains, one query would become several, and hosts of other domains could answer.
fn absolute(name: &str) -> String {
    if name.ends_with('.') { name.to_owned() } else { format!("{name}.") }
}

fn failure(error: NetError) -> Failure {
    match &error {
        NetError::Dns(DnsError::NoRecordsFound(_)) => NOBODY,
        _ => Failure::Unanswered(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn queries_carry_edns0_also_if_resolv_conf_does_not_say_so() {
        let query = DnsQuery { names: vec!["head".to_owned()], port: 1, port_named: false, server: None };
        let resolver = Resolver::new(query, &Options::default()).unwrap();
        assert!(resolver.inner.options().edns0);
    }
}
