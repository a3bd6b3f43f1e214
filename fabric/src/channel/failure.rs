//! Why a peer could not be reached.

use std::{error::Error, fmt, io};

/// A peer that could not be reached. Another try may help, at another peer or later, except for [`Reason::Address`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// The peer's address as it was given.
    pub addr: String,
    /// Why.
    pub reason: Reason,
}

/// Why a peer could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The address is not `host:port`.
    Address,
    /// The name has no address.
    Name,
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    TimedOut,
    /// The connection was there and broke.
    Lost,
    /// Anything else: no route, no permission, not HTTP/2.
    Other,
}

impl Unreachable {
    pub(crate) fn new(addr: &str, reason: Reason) -> Self {
        Self { addr: addr.to_owned(), reason }
    }
}

impl Reason {
    /// Looks for the operating system's error along the chain of sources.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        let mut reason = Self::Other;
        while let Some(error) = next {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                reason = match io.kind() {
                    io::ErrorKind::ConnectionRefused => Self::Refused,
                    io::ErrorKind::TimedOut => Self::TimedOut,
                    io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::NotConnected => Self::Lost,
                    _ => reason,
                };
            } else if error.is::<tonic::TimeoutExpired>() {
                reason = Self::TimedOut;
            } else if reason == Self::Other && is_name_error(error) {
                reason = Self::Name;
            }
            next = error.source();
        }
        reason
    }
}

/// hyper-util's connector says "dns error" only as text, because its error type is private.
fn is_name_error(error: &(dyn Error + 'static)) -> bool {
    error.to_string().starts_with("dns error")
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "not an address (expected host:port)",
            Self::Name => "the name has no address",
            Self::Refused => "connection refused",
            Self::TimedOut => "no answer in time",
            Self::Lost => "connection lost",
            Self::Other => "transport error",
        })
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.addr, self.reason)
    }
}

impl Error for Unreachable {}

#[cfg(test)]
mod tests {
    use super::super::{connect::connect_now, options::ChannelOptions};
    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_refused_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = connect_now(&addr, &ChannelOptions::default()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Refused);
        assert_eq!(error.to_string(), format!("{addr}: connection refused"));
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_told() {
        let error = connect_now("no-such-host.invalid:1", &ChannelOptions::default()).await.unwrap_err();
        assert_eq!(error.reason, Reason::Name, "{error}");
    }
}
