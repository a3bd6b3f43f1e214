//! Names that tell processes and attempts apart.

/// Characters of a user's or a machine's name: who reads it knows it by the first ones.
const NAME_CHARS_MAX: usize = 64;

/// A name for this process among those of its unit: who runs it, where, and which process it is.
#[must_use]
pub fn new_instance() -> String {
    let word =
        |text: String| text.chars().filter(|c| c.is_ascii_graphic()).take(NAME_CHARS_MAX).collect::<String>();
    let user =
        ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()).map(word).unwrap_or_default();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").map(word).unwrap_or_default();
    let at = if user.is_empty() || host.is_empty() { "" } else { "@" };
    format!("{user}{at}{host} pid {} {}", std::process::id(), attempt_id())
}

/// Tells one attempt from another; eight hex digits.
#[must_use]
pub fn attempt_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..8].to_owned()
}

/// Under which start an attempt is recorded whose publish failed here. The publish may have been done all the same, and its head
/// has recorded that under the attempt's start: one must not replace the other.
#[must_use]
pub fn beside(started_ns: i64) -> i64 {
    started_ns + 1
}
