//! Names that tell processes and attempts apart.

/// Most characters of a user's or a machine's name: the first ones are enough to recognize it.
const NAME_CHARS_MAX: usize = 64;

/// A name of this process: its user, its machine, its process id and a random part.
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

/// A random id of one attempt: eight hex digits.
#[must_use]
pub fn attempt_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..8].to_owned()
}

/// The start under which a failed publish is recorded. The publish may have happened all the same; its head has then recorded it under
/// `started_ns`, and one record must not replace the other.
#[must_use]
pub fn beside(started_ns: i64) -> i64 {
    started_ns + 1
}
