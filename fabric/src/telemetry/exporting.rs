//! Whether traces and metrics are exported: two flags that every call looks at.

use std::sync::atomic::{AtomicBool, Ordering};

static EXPORTING: AtomicBool = AtomicBool::new(false);
static MEASURING: AtomicBool = AtomicBool::new(false);

/// Whether traces are exported, and so whether a request needs a span.
pub fn exporting() -> bool {
    EXPORTING.load(Ordering::Relaxed)
}

/// Whether metrics are exported, and so whether a figure needs attributes.
pub fn measuring() -> bool {
    MEASURING.load(Ordering::Relaxed)
}

/// Switches the flag of traces.
pub(super) fn set_exporting(on: bool) {
    EXPORTING.store(on, Ordering::Relaxed);
}

/// Switches the flag of metrics.
pub(super) fn set_measuring(on: bool) {
    MEASURING.store(on, Ordering::Relaxed);
}
