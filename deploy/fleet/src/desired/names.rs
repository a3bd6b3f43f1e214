//! What names look like.

pub(super) fn is_word(text: &str, least: usize, most: usize) -> bool {
    (least..=most).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

pub(super) fn is_grid(text: &str) -> bool {
    is_word(text, 2, 12)
}

/// As the template of clusters takes it: `[a-z]{3,14}(-[2-9])?`.
pub(super) fn is_flower(text: &str) -> bool {
    let word = match text.split_once('-') {
        Some((word, number)) if matches!(number.as_bytes(), [b'2'..=b'9']) => word,
        Some(_) => return false,
        None => text,
    };
    (3..=14).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase())
}

pub(super) fn is_label(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

pub(super) fn is_domain(text: &str) -> bool {
    text.contains('.') && text.len() <= 200 && text.split('.').all(is_label)
}

pub(super) fn is_s3(text: &str) -> bool {
    let rest = text.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
    rest.is_some_and(|(bucket, prefix)| bucket.len() > 2 && !prefix.is_empty() && !prefix.ends_with('/'))
}

pub(super) fn is_http(text: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

pub(super) fn is_image(text: &str) -> bool {
    text.split_once('@').is_some_and(|(name, digest)| name.contains('/') && is_sha256(digest))
}

pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

pub(super) fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}
