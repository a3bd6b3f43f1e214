//! What the ECS task metadata endpoint (version 4) says of this task.
//!
//! A plain HTTP/1.0 GET to a link-local address is enough; an HTTP client would be the largest dependency of this crate. The process
//! asks before it serves.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use serde_json::Value;

/// The variable by which ECS tells a container where the endpoint is.
pub(crate) const METADATA: &str = "ECS_CONTAINER_METADATA_URI_V4";

/// Longest time of the request. The agent answers in milliseconds, or does not exist.
const TIME_MAX: Duration = Duration::from_secs(1);

/// Longest answer. The metadata of a one-task service has a few KiB.
const BYTES_MAX: u64 = 256 << 10;

/// The metadata of the task. Blocks for at most about [`TIME_MAX`].
pub(crate) fn metadata(base: &str) -> Result<Value, String> {
    let deadline = Instant::now() + TIME_MAX;
    let body = get(&format!("{base}/task"), deadline).map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| format!("task metadata: {error}"))
}

/// The name in the grid of the process that is this task: the name of its service without the grid's. `trellis-head-17` is `head-17`; a
/// grid's name has no hyphen.
pub(crate) fn name(base: &str) -> Result<String, String> {
    let service = service(base)?;
    match service.split_once('-') {
        Some((_, name)) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(format!("the service's name {service:?} is not GRID-NAME")),
    }
}

/// The name of the task's service.
pub(crate) fn service(base: &str) -> Result<String, String> {
    let task = metadata(base)?;
    match task.get("ServiceName").and_then(Value::as_str).unwrap_or_default() {
        "" => Err("the task is no service's".to_owned()),
        service => Ok(service.to_owned()),
    }
}

/// The role whose credentials an address of the agent gives. The credentials themselves are dropped.
pub(crate) fn role(credentials: &str) -> Option<String> {
    let body = get(credentials, Instant::now() + TIME_MAX).ok()?;
    let answer: Value = serde_json::from_slice(&body).ok()?;
    answer.get("RoleArn").and_then(Value::as_str).map(str::to_owned)
}

fn get(url: &str, deadline: Instant) -> io::Result<Vec<u8>> {
    let refuse = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{url}: {what}"));
    let url_parsed = url::Url::parse(url).map_err(|error| refuse(&error.to_string()))?;
    let host =
        url_parsed.host_str().filter(|_| url_parsed.scheme() == "http").ok_or_else(|| refuse("not http"))?;
    let port = url_parsed.port().unwrap_or(80);
    let addr = (host, port).to_socket_addrs()?.next().ok_or_else(|| refuse("no address"))?;
    let left = || deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero());
    let timed_out = || io::Error::from(io::ErrorKind::TimedOut);

    let mut stream = TcpStream::connect_timeout(&addr, left().ok_or_else(timed_out)?)?;
    stream.set_write_timeout(Some(left().ok_or_else(timed_out)?))?;
    let request = format!("GET {} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n", url_parsed.path());
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        // set before each read, so that a peer that sends byte by byte cannot stretch the deadline
        stream.set_read_timeout(Some(left().ok_or_else(timed_out)?))?;
        match stream.read(&mut piece)? {
            0 => break,
            n => answer.extend_from_slice(&piece[..n]),
        }
        if answer.len() as u64 > BYTES_MAX {
            return Err(refuse("answer too long"));
        }
    }
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| refuse("no HTTP answer"))?;
    let status = answer.split(|b| *b == b' ').nth(1).unwrap_or_default();
    if status != b"200" {
        return Err(refuse(&format!("status {}", String::from_utf8_lossy(status))));
    }
    Ok(answer.split_off(end + 4))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Shape after the documentation's example for Fargate.
    pub(crate) const TASK: &str = r#"{"Cluster":"arn:aws:ecs:us-west-2:111122223333:cluster/peony",
        "TaskARN":"arn:aws:ecs:us-west-2:111122223333:task/peony/e9028f8d5d8e4f258373e7b93ce9a3c3",
        "Family":"head","Revision":"3","DesiredStatus":"RUNNING","LaunchType":"FARGATE",
        "AvailabilityZone":"us-west-2a","ServiceName":"trellis-head-0","Containers":[]}"#;

    pub(crate) fn answer_once(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/v4/abc", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            assert!(request.starts_with(b"GET /v4/abc/task HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        base
    }

    /// An endpoint that answers one question with a task of the service.
    pub(crate) fn task_of(service: &str) -> String {
        let task = TASK.replace("trellis-head-0", service);
        answer_once(Box::leak(format!("HTTP/1.1 200 OK\r\n\r\n{task}").into_boxed_str()))
    }

    #[test]
    fn a_task_has_the_name_of_its_service_without_the_grids() {
        assert_eq!(name(&task_of("trellis-head-17")).as_deref(), Ok("head-17"));
        assert_eq!(name(&task_of("t2-shard-0")).as_deref(), Ok("shard-0"));
        assert_eq!(service(&task_of("t2-shard-0")).as_deref(), Ok("t2-shard-0"));
        assert!(name(&task_of("")).unwrap_err().contains("no service's"));
        assert!(name(&task_of("trellis")).unwrap_err().contains("GRID-NAME"));
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_not_a_wait() {
        assert!(metadata(&answer_once("HTTP/1.1 404 Not Found\r\n\r\n")).unwrap_err().contains("status 404"));
        assert!(
            metadata(&answer_once("HTTP/1.1 200 OK\r\n\r\n<html>")).unwrap_err().contains("task metadata")
        );
        assert!(metadata(&answer_once("")).unwrap_err().contains("no HTTP answer"));
        assert!(metadata("http://127.0.0.1:1").is_err());
        assert!(metadata("ftp://127.0.0.1").is_err());
    }
}
