//! Discovery URLs. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::peer::Peer;

/// A host name is at most this long (RFC 1035), and a label 63.
const NAME_BYTES_MAX: usize = 253;

/// The peers that a discovery URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// These peers, sorted and unique, at least one.
    Fixed(Vec<Peer>),
    /// The peers that DNS names.
    Dns(DnsQuery),
}

/// What to ask DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsQuery {
    /// Always fully qualified: search domains do not apply.
    pub name: String,
    /// Port of A and AAAA answers.
    pub port: u16,
    /// Whether the URL names the port. Then the addresses count also if no server answers about SRV records.
    pub port_named: bool,
    /// The server to ask instead of the system's.
    pub server: Option<SocketAddr>,
}

/// A discovery URL that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no discovery URL: {reason}")]
pub struct BadUrl {
    /// As given.
    pub url: String,
    /// What is wrong with it, or what would be right.
    pub reason: String,
}

impl Source {
    /// Reads a URL; `default_port` is for names without one.
    ///
    /// # Errors
    /// [`BadUrl`] with the reason.
    pub fn parse(url: &str, default_port: u16) -> Result<Self, BadUrl> {
        Self::read(url, default_port).map_err(|reason| BadUrl { url: url.to_owned(), reason })
    }

    fn read(url: &str, default_port: u16) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or("expected static://, grpc:// or dns://")?;
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if query.is_some() && scheme != "dns" {
            return Err(format!("{scheme}:// takes no query"));
        }
        match scheme {
            "static" => {
                let mut peers =
                    rest.split(',').map(|addr| peer(addr, None)).collect::<Result<Vec<_>, _>>()?;
                peers.sort_unstable();
                peers.dedup();
                Ok(Self::Fixed(peers))
            }
            "grpc" => Ok(Self::Fixed(vec![peer(rest, Some(default_port))?])),
            "dns" => {
                let (name, port) = host_port(rest, Some(default_port))?;
                // a name has no colon
                let port_named = rest.contains(':');
                if name.parse::<IpAddr>().is_ok() || name.starts_with('[') {
                    return Err("dns:// takes a name; use static:// for addresses".to_owned());
                }
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                Ok(Self::Dns(DnsQuery { name, port, port_named, server: query.map(server).transpose()? }))
            }
            "cloudmap" => Err("cloudmap:// is not built in; use dns:// or static://".to_owned()),
            _ => Err(format!("unknown scheme {scheme}; expected static, grpc or dns")),
        }
    }
}

fn server(query: &str) -> Result<SocketAddr, String> {
    let value = query.strip_prefix("server=").ok_or("the only parameter is server=IP:PORT")?;
    value.parse().map_err(|_| format!("server={value}: expected IP:PORT"))
}

fn peer(addr: &str, default_port: Option<u16>) -> Result<Peer, String> {
    let (host, port) = host_port(addr, default_port)?;
    Ok(Peer { addr: format!("{host}:{port}") })
}

/// Splits `host:port`, with IPv6 addresses in brackets.
fn host_port(text: &str, default_port: Option<u16>) -> Result<(&str, u16), String> {
    let after_brackets = text.rfind(']').map_or(0, |at| at + 1);
    let (host, port) = match text[after_brackets..].rfind(':') {
        Some(at) => (&text[..after_brackets + at], Some(&text[after_brackets + at + 1..])),
        None => (text, None),
    };
    let port = match (port, default_port) {
        (Some(port), _) => port
            .parse()
            .ok()
            .filter(|n| *n > 0 && port.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| format!("{text:?}: expected a port from 1 to 65535"))?,
        (None, Some(port)) => port,
        (None, None) => return Err(format!("{text:?}: expected host:port")),
    };
    if is_host(host) { Ok((host, port)) } else { Err(format!("{host:?} is no host name or address")) }
}

fn is_host(host: &str) -> bool {
    if let Some(inside) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return inside.parse::<Ipv6Addr>().is_ok();
    }
    // SRV names have underscores (_grpc._tcp.head)
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(url: &str) -> Result<Source, BadUrl> {
        Source::parse(url, 7)
    }

    fn fixed(addrs: &[&str]) -> Source {
        Source::Fixed(addrs.iter().map(|addr| Peer { addr: (*addr).to_owned() }).collect())
    }

    #[test]
    fn urls_say_who_the_peers_are() {
        assert_eq!(parse("static://b:2,a:1"), Ok(fixed(&["a:1", "b:2"])));
        assert_eq!(parse("static://[::1]:5,10.0.0.1:5/"), Ok(fixed(&["10.0.0.1:5", "[::1]:5"])));
        assert_eq!(parse("grpc://head-0.peony.internal:7400"), Ok(fixed(&["head-0.peony.internal:7400"])));
        assert_eq!(parse("grpc://head"), Ok(fixed(&["head:7"])));
        let dns = |name: &str, port, server: Option<&str>| {
            Ok(Source::Dns(DnsQuery {
                name: name.to_owned(),
                port,
                port_named: port != 7,
                server: server.map(|s| s.parse().unwrap()),
            }))
        };
        assert_eq!(parse("dns://Head.Trellis.internal."), dns("head.trellis.internal", 7, None));
        assert_eq!(parse("dns://head:9"), dns("head", 9, None));
        assert_eq!(
            parse("dns://_grpc._tcp.head?server=127.0.0.1:5353"),
            dns("_grpc._tcp.head", 7, Some("127.0.0.1:5353"))
        );
    }

    #[test]
    fn wrong_urls_say_what_would_be_right() {
        for (url, part) in [
            ("", "expected static://"),
            ("head:1", "expected static://"),
            ("http://head:1", "unknown scheme http"),
            ("cloudmap://namespace/service", "not built in"),
            ("static://", "expected host:port"),
            ("static://a", "expected host:port"),
            ("static://a:1,,b:2", "expected host:port"),
            ("static://a:0", "from 1 to 65535"),
            ("static://a:+1", "from 1 to 65535"),
            ("static://a:65536", "from 1 to 65535"),
            ("static://a b:1", "no host name"),
            ("static://::1:5", "no host name"),
            ("grpc://a:1?server=1.1.1.1:1", "takes no query"),
            ("dns://10.0.0.1", "takes a name"),
            ("dns://[::1]", "takes a name"),
            ("dns://a..b", "no host name"),
            ("dns://a?server=localhost:53", "expected IP:PORT"),
            ("dns://a?resolver=1.1.1.1:53", "server=IP:PORT"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.reason.contains(part), "{url}: {}", error.reason);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(url in ".{0,60}") {
            let _ = parse(&url);
        }

        #[test]
        fn a_static_set_is_sorted_unique_and_complete(
            hosts in prop::collection::vec(("[a-z]{1,3}", 1u16..20), 1..20),
        ) {
            let addrs: Vec<String> = hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
            let Ok(Source::Fixed(peers)) = parse(&format!("static://{}", addrs.join(","))) else {
                panic!("refused {addrs:?}");
            };
            prop_assert!(peers.windows(2).all(|pair| pair[0] < pair[1]));
            for addr in &addrs {
                prop_assert!(peers.iter().any(|peer| &peer.addr == addr));
            }
            prop_assert!(peers.iter().all(|peer| addrs.contains(&peer.addr)));
        }
    }
}
