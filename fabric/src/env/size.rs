//! Sizes in bytes as people write them.

/// Units: binary ones by powers of 1024, decimal ones by powers of 1000, as IEC and SI define them.
const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Parses `1048576`, `512MiB`, `1.5GiB`, `10 GB`. `None` if it is no size, or more than `u64` holds.
///
/// The unit's case matters only in that `b` never means bits; `512mib` is accepted.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = whole.parse::<u64>().ok()?.checked_mul(*factor)?;
    // Exact decimal arithmetic on the fraction: nine digits are finer than a byte of a GiB.
    if fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(*factor) / scale;
    whole.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            (" 4 GiB ", 4 << 30),
            ("1.5GiB", 3 << 29),
            ("10GB", 10_000_000_000),
            ("64kib", 64 << 10),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "MiB",
            "-1",
            "1e3",
            "1..5MiB",
            "1.MiB",
            "12 parsecs",
            "18446744073709551616",
            "20000000TiB",
            "١",
        ] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
