//! Which ECS task this is, from the task metadata endpoint (version 4).
//!
//! A plain HTTP/1.0 GET to a link-local address is enough; an HTTP client would be the largest dependency of this crate. The process
//! asks once, before it serves. A failure is logged, and telemetry then lacks a few attributes.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use opentelemetry::KeyValue;
use serde_json::Value;

/// Longest time of the request. The agent answers in milliseconds, or does not exist.
const TIME_MAX: Duration = Duration::from_secs(1);

/// Longest answer. The metadata of a one-task service has a few KiB.
const BYTES_MAX: u64 = 256 << 10;

/// Resource attributes of the task, after OpenTelemetry's conventions for AWS ECS. Blocks for at most about
/// [`TIME_MAX`].
pub(super) fn attributes(base: &str) -> Result<Vec<KeyValue>, String> {
    let deadline = Instant::now() + TIME_MAX;
    let body = get(&format!("{base}/task"), deadline).map_err(|error| error.to_string())?;
    let task: Value = serde_json::from_slice(&body).map_err(|error| format!("task metadata: {error}"))?;
    Ok(describe(&task))
}

/// Attributes from task metadata. Leaves out missing ones. Pure.
fn describe(task: &Value) -> Vec<KeyValue> {
    let mut attributes =
        vec![KeyValue::new("cloud.provider", "aws"), KeyValue::new("cloud.platform", "aws_ecs")];
    let known = [
        ("AvailabilityZone", "cloud.availability_zone"),
        ("Cluster", "aws.ecs.cluster.arn"),
        ("TaskARN", "aws.ecs.task.arn"),
        ("Family", "aws.ecs.task.family"),
        ("Revision", "aws.ecs.task.revision"),
        ("ServiceName", "aws.ecs.service.name"),
    ];
    for (field, attribute) in known {
        if let Some(value) = task.get(field).and_then(Value::as_str).filter(|value| !value.is_empty()) {
            attributes.push(KeyValue::new(attribute, value.to_owned()));
        }
    }
    if let Some(launch_type) = task.get("LaunchType").and_then(Value::as_str) {
        attributes.push(KeyValue::new("aws.ecs.launchtype", launch_type.to_ascii_lowercase()));
    }
    // arn:aws:ecs:REGION:ACCOUNT:task/CLUSTER/ID
    let arn: Vec<&str> = task.get("TaskARN").and_then(Value::as_str).unwrap_or_default().split(':').collect();
    if let [_, _, _, region, account, ..] = arn[..] {
        attributes.push(KeyValue::new("cloud.region", region.to_owned()));
        attributes.push(KeyValue::new("cloud.account.id", account.to_owned()));
    }
    attributes
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
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Shape after the documentation's example for Fargate.
    const TASK: &str = r#"{"Cluster":"arn:aws:ecs:us-west-2:111122223333:cluster/peony",
        "TaskARN":"arn:aws:ecs:us-west-2:111122223333:task/peony/e9028f8d5d8e4f258373e7b93ce9a3c3",
        "Family":"head","Revision":"3","DesiredStatus":"RUNNING","LaunchType":"FARGATE",
        "AvailabilityZone":"us-west-2a","ServiceName":"head-0","Containers":[]}"#;

    fn answer_once(answer: &'static str) -> String {
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

    #[test]
    fn a_task_tells_who_it_is() {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{TASK}");
        let attributes = attributes(&answer_once(Box::leak(answer.into_boxed_str()))).unwrap();
        let find = |key: &str| {
            attributes.iter().find(|kv| kv.key.as_str() == key).map(|kv| kv.value.as_str().into_owned())
        };
        assert_eq!(find("aws.ecs.task.family").as_deref(), Some("head"));
        assert_eq!(find("aws.ecs.service.name").as_deref(), Some("head-0"));
        assert_eq!(find("aws.ecs.launchtype").as_deref(), Some("fargate"));
        assert_eq!(find("cloud.region").as_deref(), Some("us-west-2"));
        assert_eq!(find("cloud.account.id").as_deref(), Some("111122223333"));
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_not_a_wait() {
        assert!(
            attributes(&answer_once("HTTP/1.1 404 Not Found\r\n\r\n")).unwrap_err().contains("status 404")
        );
        assert!(
            attributes(&answer_once("HTTP/1.1 200 OK\r\n\r\n<html>")).unwrap_err().contains("task metadata")
        );
        assert!(attributes(&answer_once("")).unwrap_err().contains("no HTTP answer"));
        assert!(attributes("http://127.0.0.1:1").is_err());
        assert!(attributes("ftp://127.0.0.1").is_err());
    }
}
