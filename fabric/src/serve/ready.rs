//! The ready line.

use std::net::SocketAddr;

/// The line that a server prints to stdout when it serves. The process that started the server reads the address from it.
pub fn ready_line(role: &str, id: &str, listen: SocketAddr) -> String {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let (role, id, listen) = (text(role), text(id), text(&listen.to_string()));
    format!(r#"{{"ready": true, "role": {role}, "id": {id}, "listen": {listen}}}"#)
}

/// Prints [`ready_line`] to stdout and flushes it. The server goes on if stdout is closed.
pub fn print_ready(role: &str, id: &str, listen: SocketAddr) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{}", ready_line(role, id, listen)).and_then(|()| out.flush()) {
        tracing::warn!(%error, "cannot print the ready line");
    }
}
