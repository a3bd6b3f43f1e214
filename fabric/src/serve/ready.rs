//! The line by which a server says that it serves.

use std::net::SocketAddr;

/// The line by which a server says on stdout that it serves; whoever started it reads the address from there.
pub fn ready_line(role: &str, id: &str, listen: SocketAddr) -> String {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let (role, id, listen) = (text(role), text(id), text(&listen.to_string()));
    format!(r#"{{"ready": true, "role": {role}, "id": {id}, "listen": {listen}}}"#)
}

/// Prints [`ready_line`] to stdout and flushes it. A closed stdout is no reason not to serve.
pub fn print_ready(role: &str, id: &str, listen: SocketAddr) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{}", ready_line(role, id, listen)).and_then(|()| out.flush()) {
        tracing::warn!(%error, "cannot print the ready line");
    }
}
