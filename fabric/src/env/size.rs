//! Sizes in bytes as people write them.

/// Units: `KiB` and the like are powers of 1024, `KB` and the like powers of 1000, as IEC and SI define them. A single letter is a
/// power of 1024, as container runtimes read it.
const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Digits after the point: as many as a 64-bit number holds, more than a float is ever written with.
const FRACTION_DIGITS_MAX: usize = 19;

/// Parses `1048576`, `512MiB`, `4G`, `1.5GiB`, `10 GB`. `None` if it is no size, or more than `u64` holds.
///
/// The case of the unit does not matter: `512mib` is accepted, and `b` never means bits.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() && number.is_empty()
        || fraction.is_empty()
        || fraction.len() > FRACTION_DIGITS_MAX
        || fraction.contains('.')
    {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.checked_mul(*factor)? };
    // exact decimal arithmetic
    let scale = 10u128.pow(fraction.len() as u32);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(*factor) / scale;
    whole.checked_add(u64::try_from(part).ok()?)
}

/// A size as [`parse_bytes`] reads it: in the largest binary unit of which it is a whole number.
pub fn format_bytes(bytes: u64) -> String {
    let binary = UNITS.iter().rev().filter(|(name, _)| name.ends_with("iB"));
    let whole = binary
        .filter(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .map(|(name, factor)| (bytes / factor, *name));
    let (number, unit) = whole.min().unwrap_or((bytes, "B"));
    format!("{number}{unit}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_written_in_the_largest_unit_that_is_exact() {
        for (bytes, text) in
            [(0, "0B"), (1023, "1023B"), (512 << 20, "512MiB"), (3 << 29, "1536MiB"), (4 << 30, "4GiB")]
        {
            assert_eq!(format_bytes(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn a_size_that_is_written_is_read_as_the_same(bytes in any::<u64>(), zeros in 0_u32..50) {
            let bytes = bytes >> zeros << zeros;
            prop_assert_eq!(parse_bytes(&format_bytes(bytes)), Some(bytes));
        }
    }

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
            ("4G", 4 << 30),
            ("1.5g", 3 << 29),
            (".5G", 1 << 29),
            ("0.3333333333333333G", 357_913_941),
            ("10", 10),
            ("2GB", 2_000_000_000),
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
            ".",
            "4Q",
            "1e400G",
            "G",
            "-1G",
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
