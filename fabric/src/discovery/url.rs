//! Discovery URLs. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use url::{Url, form_urlencoded};

use super::{options::DEFAULT_PORT, peer::Peer};

/// A host name is at most this long (RFC 1035), and a label 63.
const NAME_BYTES_MAX: usize = 253;

/// Most names of one pattern. A look-up of a name is three packets at least, a VPC's resolver takes 1,024 a second from a network
/// interface, and names with a TTL of 0 are looked up each second.
pub const NAMES_MAX: usize = 256;

/// Most filters by attribute: Cloud Map lets an instance have this many attributes of its own.
const ATTRIBUTES_MAX: usize = 30;

/// Cloud Map's longest name of a namespace or service.
const CLOUD_MAP_NAME_MAX: usize = 1024;

/// The peers that a discovery URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// These peers, sorted and unique, at least one.
    Fixed(Vec<Peer>),
    /// The peers that DNS names.
    Dns(DnsQuery),
    /// The instances of a service of AWS Cloud Map.
    CloudMap(CloudMapQuery),
}

/// What to ask DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsQuery {
    /// The names to look up: at least one, at most [`NAMES_MAX`]. Always fully qualified: search domains do not apply.
    pub names: Vec<String>,
    /// Port of A and AAAA answers.
    pub port: u16,
    /// Whether the URL names the port. Then the addresses count also if no server answers about SRV records.
    pub port_named: bool,
    /// The server to ask instead of the system's.
    pub server: Option<SocketAddr>,
}

/// What to ask AWS Cloud Map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudMapQuery {
    /// The namespace's `HttpName`.
    pub namespace: String,
    /// The service's name.
    pub service: String,
    /// Whether unhealthy instances are peers, too.
    pub unhealthy_too: bool,
    /// Attributes that an instance must have.
    pub attributes: BTreeMap<String, String>,
    /// The account that owns the namespace, if it is another one's.
    pub owner: Option<String>,
    /// Port of instances that have no `AWS_INSTANCE_PORT`.
    pub port: u16,
    /// The region, if not the process's own.
    pub region: Option<String>,
    /// `http://HOST:PORT` or `https://HOST[:PORT]` of a server to ask instead of AWS.
    pub endpoint: Option<String>,
}

/// A discovery URL that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no discovery URL: {reason}")]
pub struct BadUrl {
    /// The URL as it was given.
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

    /// The URL itself, for [`Env::with`](crate::env::Env::with): a variable with another value is wrong before the process starts.
    ///
    /// # Errors
    /// The reason.
    pub fn check(url: &str) -> Result<String, String> {
        Self::read(url, DEFAULT_PORT).map(|_| url.to_owned())
    }

    fn read(url: &str, default_port: u16) -> Result<Self, String> {
        let (scheme, rest) =
            url.split_once("://").ok_or("expected static://, grpc://, dns:// or cloudmap://")?;
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if query.is_some() && !matches!(scheme, "dns" | "cloudmap") {
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
                let spelt = pattern(rest)?;
                let mut names = Vec::with_capacity(spelt.len());
                let mut port = default_port;
                for text in &spelt {
                    let name;
                    (name, port) = host_port(text, Some(default_port))?;
                    if name.parse::<IpAddr>().is_ok() || name.starts_with('[') {
                        return Err("dns:// takes a name; use static:// for addresses".to_owned());
                    }
                    names.push(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
                }
                // a name has no colon
                let port_named = rest.contains(':');
                Ok(Self::Dns(DnsQuery { names, port, port_named, server: query.map(server).transpose()? }))
            }
            "cloudmap" => cloud_map(rest, query.unwrap_or_default(), default_port).map(Self::CloudMap),
            _ => Err(format!("unknown scheme {scheme}; expected static, grpc, dns or cloudmap")),
        }
    }
}

/// The names that `head-{0..63}.example` stands for: one for each number, as a shell writes them, with zeros in front if one of the two
/// numbers has them. A text without braces stands for itself.
fn pattern(text: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = text.split_once('{') else {
        return if text.contains('}') {
            Err("`}` without `{`".to_owned())
        } else {
            Ok(vec![text.to_owned()])
        };
    };
    let (inside, after) = rest.split_once('}').ok_or("`{` without `}`")?;
    if after.contains(['{', '}']) {
        return Err("more than one pattern".to_owned());
    }
    let number =
        |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u32>().ok());
    let numbers = inside.split_once("..").and_then(|(first, last)| {
        let padded = [first, last].iter().any(|digits| digits.len() > 1 && digits.starts_with('0'));
        let width = if padded { first.len().max(last.len()) } else { 0 };
        Some((number(first)??, number(last)??, width))
    });
    let (first, last, width) =
        numbers.ok_or_else(|| format!("{{{inside}}}: expected {{FIRST..LAST}}, as in head-{{0..63}}"))?;
    if first > last {
        return Err(format!("{{{inside}}}: the first number is greater than the last"));
    }
    if last - first >= NAMES_MAX as u32 {
        return Err(format!(
            "{{{inside}}} names more than {NAMES_MAX}: the resolver of a VPC would drop packets"
        ));
    }
    Ok((first..=last).map(|n| format!("{before}{n:0width$}{after}")).collect())
}

fn cloud_map(path: &str, query: &str, default_port: u16) -> Result<CloudMapQuery, String> {
    let is_name = |name: &str| {
        (1..=CLOUD_MAP_NAME_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
    };
    let (namespace, service) = path
        .split_once('/')
        .filter(|(namespace, service)| is_name(namespace) && is_name(service))
        .ok_or("expected cloudmap://NAMESPACE/SERVICE")?;
    let mut found = CloudMapQuery {
        namespace: namespace.to_owned(),
        service: service.to_owned(),
        unhealthy_too: false,
        attributes: BTreeMap::new(),
        owner: None,
        port: default_port,
        region: None,
        endpoint: None,
    };
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let value = value.into_owned();
        match &*key {
            "health" => {
                found.unhealthy_too = match value.as_str() {
                    "healthy" => false,
                    "all" => true,
                    _ => return Err(format!("health={value}: expected healthy or all")),
                }
            }
            "owner" if value.len() == 12 && value.bytes().all(|b| b.is_ascii_digit()) => {
                found.owner = Some(value);
            }
            "owner" => return Err(format!("owner={value}: expected an AWS account of twelve digits")),
            "port" => (_, found.port) = host_port(&format!("port:{value}"), None)?,
            "region" if is_label(&value) => found.region = Some(value),
            "region" => return Err(format!("region={value}: expected a region, as eu-west-1")),
            "endpoint" => found.endpoint = Some(endpoint(&value)?),
            key => match key.strip_prefix("attr.") {
                Some(attribute) if !attribute.is_empty() => {
                    found.attributes.insert(attribute.to_owned(), value);
                }
                _ => {
                    return Err(format!(
                        "{key}: the parameters are health, attr.KEY, owner, port, region and endpoint"
                    ));
                }
            },
        }
    }
    if found.attributes.len() > ATTRIBUTES_MAX {
        return Err(format!("more than {ATTRIBUTES_MAX} attributes, which no instance has"));
    }
    Ok(found)
}

/// A server without a path: the calls all go to `/`.
fn endpoint(value: &str) -> Result<String, String> {
    let wrong = || format!("endpoint={value}: expected http://HOST:PORT or https://HOST");
    let url = Url::parse(value).map_err(|_| wrong())?;
    let is_server = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty();
    if is_server { Ok(url.as_str().trim_end_matches('/').to_owned()) } else { Err(wrong()) }
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
    let name = host.strip_suffix('.').unwrap_or(host);
    name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)
}

/// SRV names have underscores (`_grpc._tcp.head`).
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
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
                names: vec![name.to_owned()],
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
    fn a_pattern_stands_for_one_name_for_each_number() {
        let names = |url: &str| match parse(url) {
            Ok(Source::Dns(query)) => query.names,
            other => panic!("{other:?}"),
        };
        let sixty_four = names("dns://head-{0..63}.peony.internal:7400");
        assert_eq!(sixty_four.len(), 64);
        assert_eq!(sixty_four[0], "head-0.peony.internal");
        assert_eq!(sixty_four[63], "head-63.peony.internal");
        assert_eq!(names("dns://{08..10}.Head")[..], ["08.head", "09.head", "10.head"]);
        assert_eq!(names("dns://h{7..7}"), ["h7"]);
        assert_eq!(names("dns://h{0..255}").len(), NAMES_MAX);
    }

    #[test]
    fn a_service_of_cloud_map_has_filters_an_owner_and_a_place() {
        let plain = CloudMapQuery {
            namespace: "peony.internal".to_owned(),
            service: "head".to_owned(),
            unhealthy_too: false,
            attributes: BTreeMap::new(),
            owner: None,
            port: 7,
            region: None,
            endpoint: None,
        };
        assert_eq!(parse("cloudmap://peony.internal/head"), Ok(Source::CloudMap(plain.clone())));
        assert_eq!(
            parse("cloudmap://peony.internal/head?health=healthy"),
            Ok(Source::CloudMap(plain.clone()))
        );
        let url = "cloudmap://peony.internal/head?health=all&attr.AVAILABILITY_ZONE=eu-west-1a&attr.team=a%26b\
                   &owner=111122223333&port=9&region=eu-west-1&endpoint=http://127.0.0.1:5000/";
        let text = |text: &str| Some(text.to_owned());
        let full = CloudMapQuery {
            unhealthy_too: true,
            attributes: [("AVAILABILITY_ZONE", "eu-west-1a"), ("team", "a&b")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            owner: text("111122223333"),
            port: 9,
            region: text("eu-west-1"),
            endpoint: text("http://127.0.0.1:5000"),
            ..plain
        };
        assert_eq!(parse(url), Ok(Source::CloudMap(full)));
    }

    #[test]
    fn wrong_urls_say_what_would_be_right() {
        for (url, part) in [
            ("", "expected static://"),
            ("head:1", "expected static://"),
            ("http://head:1", "unknown scheme http"),
            ("cloudmap://namespace", "expected cloudmap://NAMESPACE/SERVICE"),
            ("cloudmap://namespace/", "expected cloudmap://NAMESPACE/SERVICE"),
            ("cloudmap://namespace/a/b", "expected cloudmap://NAMESPACE/SERVICE"),
            ("cloudmap://n/s?health=sick", "expected healthy or all"),
            ("cloudmap://n/s?owner=1", "twelve digits"),
            ("cloudmap://n/s?port=0", "from 1 to 65535"),
            ("cloudmap://n/s?region=eu west", "expected a region"),
            ("cloudmap://n/s?endpoint=127.0.0.1:5000", "expected http://HOST:PORT"),
            ("cloudmap://n/s?endpoint=http://a/path", "expected http://HOST:PORT"),
            ("cloudmap://n/s?attribute.a=b", "the parameters are"),
            ("cloudmap://n/s?attr.=b", "the parameters are"),
            ("dns://head-{0..256}", "more than 256"),
            ("dns://head-{0..63", "`{` without `}`"),
            ("dns://head-0..63}", "`}` without `{`"),
            ("dns://head-{0..1}.{0..1}", "more than one pattern"),
            ("dns://head-{0-63}", "expected {FIRST..LAST}"),
            ("dns://head-{..63}", "expected {FIRST..LAST}"),
            ("dns://head-{a..c}", "expected {FIRST..LAST}"),
            ("dns://head-{9..1}", "greater than the last"),
            ("static://head-{0..1}:1", "no host name"),
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
