//! Whether traces are exported: one flag that every call looks at.

use std::sync::atomic::{AtomicBool, Ordering};

static EXPORTING: AtomicBool = AtomicBool::new(false);

/// Whether traces are exported, and so whether a request needs a span.
pub fn exporting() -> bool {
    EXPORTING.load(Ordering::Relaxed)
}

/// Switches the flag.
pub(super) fn set_exporting(on: bool) {
    EXPORTING.store(on, Ordering::Relaxed);
}
