//! `--probe` and `--probe-ready`: ask the server of this container whether it lives, and whether it is ready. A container's health check
//! runs one of them, so an image needs no shell and no other tool.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    channel::{ChannelOptions, connect_now},
    env::Question,
    serve::READY,
};

/// Longest time of a probe. A health check in ECS has 5 s unless its definition says otherwise, and our images say 5 s: so the container's
/// log has the reason, and not only that the check was killed.
const TIME_MAX: Duration = Duration::from_secs(2);

/// What a container's health check takes for "unhealthy".
const EXIT_UNHEALTHY: u8 = 1;
/// The probe cannot know where the server listens.
const EXIT_USAGE: u8 = 2;

/// Asks the server that listens on `listen`, which is the value of `TRELLIS_LISTEN`. Exit code 0: yes; 1: no, or no answer in time; 2: the
/// address is none, or has no fixed port. The reason goes to stderr.
pub(crate) fn run(name: &str, listen: &str, question: Question) -> ExitCode {
    let address = match reach(listen) {
        Ok(address) => address,
        Err(why) => {
            eprintln!("{name}: {why}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: cannot start its threads: {error}");
            return ExitCode::from(EXIT_UNHEALTHY);
        }
    };
    let asked = runtime.block_on(async {
        tokio::time::timeout(TIME_MAX, ask(address, question))
            .await
            .unwrap_or_else(|_| Err(format!("{address} did not answer in {} s", TIME_MAX.as_secs())))
    });
    match asked {
        Ok(()) => {
            let is = if question == Question::Lives { "serves" } else { "is ready" };
            println!("{name}: {address} {is}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{name}: {why}");
            ExitCode::from(EXIT_UNHEALTHY)
        }
    }
}

/// The address at which a process of the same host reaches a server that listens on `listen`.
fn reach(listen: &str) -> Result<SocketAddr, String> {
    let mut address: SocketAddr =
        listen.trim().parse().map_err(|_| format!("TRELLIS_LISTEN is {listen:?}: it is not IP:PORT"))?;
    if address.port() == 0 {
        return Err(format!("TRELLIS_LISTEN is {listen:?}: a probe needs a fixed port"));
    }
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(address)
}

async fn ask(address: SocketAddr, question: Question) -> Result<(), String> {
    let service = match question {
        Question::Lives => "",
        Question::Ready => READY,
    };
    let channel = connect_now(&address.to_string(), &ChannelOptions::default())
        .await
        .map_err(|error| error.to_string())?;
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest { service: service.to_owned() })
        .await
        .map_err(|status| format!("{address} answers {:?}: {}", status.code(), status.message()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        other if question == Question::Ready => {
            Err(format!("{address} is not ready: it answers {}", other.as_str_name()))
        }
        other => Err(format!("{address} answers {}", other.as_str_name())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_goes_to_the_loopback_address_of_a_server_that_listens_everywhere() {
        let reached = |listen: &str| reach(listen).map(|address| address.to_string());
        assert_eq!(reached("0.0.0.0:7400").unwrap(), "127.0.0.1:7400");
        assert_eq!(reached("[::]:7400").unwrap(), "[::1]:7400");
        assert_eq!(reached("10.0.0.7:7400").unwrap(), "10.0.0.7:7400");
        for (listen, why) in [("127.0.0.1:0", "a fixed port"), ("head", "not IP:PORT"), ("", "not IP:PORT")] {
            assert!(reached(listen).unwrap_err().contains(why), "{listen}");
        }
    }
}
