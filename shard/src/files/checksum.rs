//! Checksums of bytes at rest. What a file gives is compared with what was written before anybody believes it. Pure.
//!
//! Each checksum is checked by one above it. The entry of the log has a checksum of its own and names the data files. The name of a
//! data file has the checksum of the file's tail, which is its page index and its footer. The footer has the checksum of each page.
//! So a read of one page checks that page and no other byte. The checksum of a checkpoint is the name of a file beside it.
//!
//! Other tools need none of this: to them the checksums are a file's name and a key of its footer. Rejected: the checksums of
//! Parquet's own page headers, because the library reads and never writes them, and because they do not cover the footer.

use std::ops::Range;

use parquet::file::metadata::ParquetMetaData;
use twox_hash::XxHash3_64;

/// Key of the pages' checksums in a file's footer.
pub(super) const PAGES_KEY: &str = "trellis.checksums";
/// Characters of a checksum as text.
pub(crate) const CHECKSUM_LEN: usize = 16;

/// The checksum of some bytes: XXH3-64, seed 0.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The checksum as text.
pub(crate) fn checksum_text(bytes: &[u8]) -> String {
    format!("{:0CHECKSUM_LEN$x}", checksum(bytes))
}

/// The tail of a data file, as the file's name has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// Its bytes.
    pub(super) len: u64,
    checksum: u64,
}

impl Tail {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { len: bytes.len() as u64, checksum: checksum(bytes) }
    }

    /// A new name for a file with this tail.
    pub(super) fn file_name(&self) -> String {
        let (id, Self { len, checksum }) = (uuid::Uuid::new_v4().simple(), self);
        format!("part-{id}.{len:x}.{checksum:0CHECKSUM_LEN$x}.parquet")
    }

    /// The tail by the file's name; `None`: another tool or an earlier release wrote the file.
    pub(super) fn by_name(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next()?.strip_prefix("part-")?.strip_suffix(".parquet")?;
        let mut parts = name.split('.');
        let (id, len, checksum) = (parts.next()?, parts.next()?, parts.next()?);
        if id.len() != 32 || checksum.len() != CHECKSUM_LEN || parts.next().is_some() {
            return None;
        }
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(Self { len: hex(len)?, checksum: hex(checksum)? })
    }

    /// Whether `bytes` are this tail.
    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        *self == Self::of(bytes)
    }
}

/// The pages of a file, with a checksum each. They follow each other from the file's first byte to its tail.
#[derive(Debug)]
pub(super) struct Pages {
    /// Position after each page, with the page's checksum.
    ends: Vec<(u64, u64)>,
}

impl Pages {
    /// The pages of a file that has just been written; `data`: its bytes without the tail.
    ///
    /// # Errors
    /// A clause for a message.
    pub(super) fn of(metadata: &ParquetMetaData, data: &[u8]) -> Result<Self, String> {
        let ends = page_ends(metadata, data.len() as u64)?;
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let sums = starts.zip(&ends).map(|(start, end)| checksum(&data[start as usize..*end as usize]));
        Ok(Self { ends: ends.iter().copied().zip(sums).collect() })
    }

    /// The checksums as the footer has them.
    pub(super) fn text(&self) -> String {
        self.ends.iter().map(|(_, sum)| format!("{sum:0CHECKSUM_LEN$x}")).collect()
    }

    /// Reads the checksums back; `len`: the bytes before the tail.
    ///
    /// # Errors
    /// A clause for a message.
    pub(super) fn parse(metadata: &ParquetMetaData, text: Option<&str>, len: u64) -> Result<Self, String> {
        let ends = page_ends(metadata, len)?;
        let text = text.ok_or("its footer has no checksums of the pages")?;
        if !text.is_ascii() || text.len() != ends.len() * CHECKSUM_LEN {
            return Err(format!("its footer does not have {} checksums of pages", ends.len()));
        }
        let sum = |i: usize| u64::from_str_radix(&text[i * CHECKSUM_LEN..(i + 1) * CHECKSUM_LEN], 16);
        let ends = ends.into_iter().enumerate().map(|(i, end)| Ok((end, sum(i)?)));
        let ends = ends.collect::<Result<_, std::num::ParseIntError>>().map_err(|e| e.to_string())?;
        Ok(Self { ends })
    }

    /// The whole pages that `range` lies in.
    ///
    /// # Errors
    /// The range is not before the tail: a clause for a message.
    pub(super) fn around(&self, range: &Range<u64>) -> Result<Range<u64>, String> {
        let first = self.ends.partition_point(|(end, _)| *end <= range.start);
        let last = self.ends.partition_point(|(end, _)| *end < range.end);
        match self.ends.get(last) {
            Some((end, _)) if !range.is_empty() => Ok(self.start(first)..*end),
            _ => Err(format!("bytes {} to {} are not those of pages", range.start, range.end)),
        }
    }

    /// Checks `bytes`, which were read from `range`, which are whole pages.
    ///
    /// # Errors
    /// A clause for a message that names the first page that differs.
    pub(super) fn check(&self, range: &Range<u64>, bytes: &[u8]) -> Result<(), String> {
        let mut at = self.ends.partition_point(|(end, _)| *end <= range.start);
        let mut rest = bytes;
        while !rest.is_empty() || self.start(at) < range.end {
            let start = self.start(at);
            let (end, sum) = *self.ends.get(at).ok_or("it has more bytes than pages")?;
            let page = rest.split_at_checked((end - start) as usize);
            let (page, after) = page.ok_or_else(|| format!("it ends before byte {end}"))?;
            if checksum(page) != sum {
                return Err(differ(start, end));
            }
            (rest, at) = (after, at + 1);
        }
        Ok(())
    }

    /// Pieces of whole pages, one after the other: each of at most `bytes_max`, or one page that has more.
    pub(super) fn pieces(&self, bytes_max: u64) -> Vec<Range<u64>> {
        let mut pieces: Vec<Range<u64>> = Vec::new();
        for (i, (end, _)) in self.ends.iter().enumerate() {
            match pieces.last_mut() {
                Some(piece) if *end - piece.start <= bytes_max => piece.end = *end,
                _ => pieces.push(self.start(i)..*end),
            }
        }
        pieces
    }

    fn start(&self, page: usize) -> u64 {
        page.checked_sub(1).map_or(0, |before| self.ends.get(before).map_or(u64::MAX, |(end, _)| *end))
    }
}

/// A clause for a message.
pub(super) fn differ(start: u64, end: u64) -> String {
    format!("bytes {start} to {end} are not those that were written: their checksum differs")
}

/// The position after each page, dictionaries included. The first "page" is the mark that a file begins with.
fn page_ends(metadata: &ParquetMetaData, len: u64) -> Result<Vec<u64>, String> {
    let offsets = metadata.offset_index().ok_or("it has no page index")?;
    let mut starts = vec![0];
    for (group, columns) in metadata.row_groups().iter().zip(offsets) {
        for (column, pages) in group.columns().iter().zip(columns) {
            starts.push(column.byte_range().0);
            starts.extend(pages.page_locations().iter().map(|page| page.offset.unsigned_abs()));
        }
    }
    starts.sort_unstable();
    starts.dedup();
    if starts.last().is_some_and(|last| *last >= len) {
        return Err("its footer names pages beyond its end".to_owned());
    }
    Ok(starts.into_iter().skip(1).chain([len]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three pages: bytes 0 to 4, 4 to 9, 9 to 10.
    fn pages() -> (Pages, Vec<u8>) {
        let data: Vec<u8> = (0..10).collect();
        let sums = [0..4, 4..9, 9..10].map(|range: Range<usize>| (range.end as u64, checksum(&data[range])));
        (Pages { ends: sums.to_vec() }, data)
    }

    #[test]
    fn a_range_is_widened_to_whole_pages_and_these_are_checked() {
        let (pages, data) = pages();
        for (asked, read) in [(0..1, 0..4), (4..9, 4..9), (3..5, 0..9), (8..10, 4..10), (9..10, 9..10)] {
            let range = pages.around(&asked).unwrap();
            assert_eq!(range, read, "{asked:?}");
            let mut bytes = data[range.start as usize..range.end as usize].to_vec();
            pages.check(&range, &bytes).unwrap();
            assert!(pages.check(&range, &bytes[1..]).is_err(), "a byte is missing");
            for i in 0..bytes.len() {
                bytes[i] ^= 1;
                assert!(pages.check(&range, &bytes).is_err(), "byte {i} of {range:?}");
                bytes[i] ^= 1;
            }
        }
        assert!(pages.around(&(9..11)).is_err() && pages.around(&(10..11)).is_err());
        assert!(pages.check(&(9..10), &[9, 0]).is_err(), "a byte too many");
    }

    #[test]
    fn the_pieces_of_a_check_are_the_whole_file_within_the_bound() {
        let (pages, _) = pages();
        assert_eq!(pages.pieces(1), [0..4, 4..9, 9..10]);
        assert_eq!(pages.pieces(6), [0..4, 4..10]);
        assert_eq!(pages.pieces(100), std::slice::from_ref(&(0..10)));
    }

    #[test]
    fn a_files_name_has_the_checksum_of_its_tail() {
        let tail = Tail::of(b"page index and footer");
        assert_eq!(Tail::by_name(&tail.file_name()), Some(tail));
        assert!(tail.is(b"page index and footer") && !tail.is(b"page index and looter"));
        for other in [
            "part-0123456789abcdef0123456789abcdef.parquet",
            "part-00000-1b1b1b1b-1b1b-1b1b-1b1b-1b1b1b1b1b1b-c000.snappy.parquet",
            "0123456789abcdef0123456789abcdef.1f.0123456789abcdef.parquet",
        ] {
            assert_eq!(Tail::by_name(other), None, "{other}");
        }
    }

    /// Every file at rest has them, so they may never change.
    #[test]
    fn checksums_are_those_of_every_other_build() {
        assert_eq!(checksum_text(b""), "2d06800538d394c2");
        assert_eq!(checksum_text(b"trellis"), format!("{:016x}", XxHash3_64::oneshot(b"trellis")));
    }
}
