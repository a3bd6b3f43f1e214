//! The signal that ends a process.

/// Resolves at the first SIGTERM (orchestrators) or SIGINT (people), and logs which one it was.
///
/// The first poll installs the handlers. They stay installed, so a second signal does not end the process by itself. If handlers
/// cannot be installed, the future never resolves: a signal ends the process without a drain, and process 1 of a container needs
/// SIGKILL. Cancel safe.
pub async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "cannot install signal handlers; a signal will end this process without a drain");
            return std::future::pending().await;
        }
    };
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "shutdown asked");
}
