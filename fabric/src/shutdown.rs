//! The signal that ends a process.

/// Resolves at the first SIGTERM (orchestrators) or SIGINT (people), and says which in the log.
///
/// The handlers are installed when the future is first polled and stay installed: a second signal does not
/// end the process by itself. Where handlers cannot be installed the future never resolves, which leaves
/// SIGKILL. Cancel safe.
pub async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "cannot install signal handlers; only SIGKILL will end this process");
                return std::future::pending().await;
            }
        };
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "shutdown asked");
}
