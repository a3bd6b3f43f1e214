//! Records of a CSV text, with their true line numbers.
//!
//! `arrow-csv` numbers records. The `csv` crate counts a line when it *consumes* the line feed: after CRLF that is one record late,
//! and blank lines before a record count as part of it. A message with a wrong line number is worse than none. So this file uses the
//! state machine below both (`csv-core`), and counts the line ends of the input itself.

use std::io::{self, Read};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

/// Longest record, in bytes: an unclosed quote would otherwise make one cell of the rest of the file.
pub(crate) const RECORD_BYTES_MAX: usize = 1 << 20;

const READ_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(crate) enum RecordError {
    Io(io::Error),
    /// The record that starts on this line is longer than [`RECORD_BYTES_MAX`].
    TooLong(u64),
}

/// Line ends are LF, CRLF or a lone CR.
#[derive(Default)]
struct Lines {
    ended: u64,
    after_cr: bool,
}

impl Lines {
    fn count(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.ended += u64::from(byte == b'\r' || (byte == b'\n' && !self.after_cr));
            self.after_cr = byte == b'\r';
        }
    }
}

pub(crate) struct Records<R> {
    input: R,
    buffer: Vec<u8>,
    at: usize,
    filled: usize,
    ended: bool,
    core: Reader,
    lines: Lines,
    line: u64,
    raw: Vec<u8>,
    text: Vec<u8>,
    ends: Vec<usize>,
    cells: usize,
    delimiter: u8,
    quotes: Option<&'static str>,
}

/// The fault in the quotes of a record. The state machine reports none: it takes such text into a cell, and closes an open quote at
/// the end of the text.
fn check_quotes(raw: &[u8], delimiter: u8) -> Option<&'static str> {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Start,
        Plain,
        Quoted,
        /// After a quote that closes the cell, or is the first of two.
        Quote,
        Closed,
    }
    let mut at = At::Start;
    for &byte in raw {
        at = match (at, byte) {
            (At::Start | At::Quote, b'"') => At::Quoted,
            (At::Quoted, b'"') => At::Quote,
            (At::Quoted, _) => At::Quoted,
            (_, byte) if byte == delimiter => At::Start,
            (At::Start | At::Plain, _) => At::Plain,
            (At::Quote | At::Closed, b' ' | b'\t' | b'\r' | b'\n') => At::Closed,
            (At::Quote | At::Closed, _) => {
                return Some(
                    "text stands after the quote that closes a cell (a quote within one is written twice)",
                );
            }
        };
    }
    (at == At::Quoted).then_some("a quote is opened and never closed")
}

impl<R: Read> Records<R> {
    pub(crate) fn new(input: R, delimiter: u8) -> Self {
        Self {
            input,
            buffer: vec![0; READ_BYTES],
            at: 0,
            filled: 0,
            ended: false,
            core: ReaderBuilder::new().delimiter(delimiter).build(),
            lines: Lines::default(),
            line: 0,
            raw: Vec::new(),
            text: vec![0; 4096],
            ends: vec![0; 64],
            cells: 0,
            delimiter,
            quotes: None,
        }
    }

    /// The first line, if it is not longer than the buffer.
    pub(crate) fn peek_line(&mut self) -> Result<String, RecordError> {
        self.begin()?;
        let rest = &self.buffer[self.at..self.filled];
        let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(rest.len());
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    /// Skips a line, whatever is in it; `false` at the end.
    pub(crate) fn skip_line(&mut self) -> Result<bool, RecordError> {
        self.begin()?;
        let mut any = false;
        loop {
            if self.at == self.filled {
                self.fill()?;
                if self.ended {
                    return Ok(any);
                }
            }
            any = true;
            let byte = self.buffer[self.at];
            self.lines.count(&[byte]);
            self.at += 1;
            match byte {
                b'\n' => return Ok(true),
                b'\r' => break,
                _ => {}
            }
        }
        if self.at == self.filled {
            self.fill()?;
        }
        if self.at < self.filled && self.buffer[self.at] == b'\n' {
            self.lines.count(b"\n");
            self.at += 1;
        }
        Ok(true)
    }

    pub(crate) fn set_delimiter(&mut self, delimiter: u8) {
        self.core = ReaderBuilder::new().delimiter(delimiter).build();
        self.delimiter = delimiter;
    }

    /// Reads the next record; false at the end. Blank lines are skipped, a byte order mark at the start too.
    pub(crate) fn next(&mut self) -> Result<bool, RecordError> {
        if !self.skip_blank()? {
            return Ok(false);
        }
        self.line = self.lines.ended + 1;
        self.raw.clear();
        let (mut text, mut cells) = (0, 0);
        loop {
            if self.at == self.filled {
                self.fill()?;
            }
            let input = &self.buffer[self.at..self.filled];
            let (result, read, written, ended) =
                self.core.read_record(input, &mut self.text[text..], &mut self.ends[cells..]);
            self.lines.count(&input[..read]);
            self.raw.extend_from_slice(&input[..read]);
            self.at += read;
            text += written;
            cells += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => self.text.resize(self.text.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => break,
                ReadRecordResult::End => return Ok(false),
            }
            if self.raw.len() > RECORD_BYTES_MAX {
                return Err(RecordError::TooLong(self.line));
            }
        }
        self.cells = cells;
        let quoted = self.raw.contains(&b'"');
        self.quotes = quoted.then(|| check_quotes(&self.raw, self.delimiter)).flatten();
        Ok(true)
    }

    /// Line on which the record starts, from 1.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// Number of cells.
    pub(crate) fn cells(&self) -> usize {
        self.cells
    }

    /// A cell without its quotes.
    pub(crate) fn cell(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.text[start..self.ends[index]]
    }

    /// The record as it stands in the file, without its line end.
    pub(crate) fn raw(&self) -> &[u8] {
        let end = self.raw.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |last| last + 1);
        &self.raw[..end]
    }

    /// The fault in its quotes, if there is one.
    pub(crate) fn wrong_quotes(&self) -> Option<&'static str> {
        self.quotes
    }

    /// Its lines after the first, which are part of it by quotes. Each as the cells that it would have by itself.
    pub(crate) fn lines_within(&self) -> impl Iterator<Item = Vec<&[u8]>> {
        let lines = self.raw().split(|b| matches!(b, b'\r' | b'\n')).skip(1);
        lines.map(|line| line.split(|b| *b == self.delimiter).collect())
    }

    fn begin(&mut self) -> Result<(), RecordError> {
        const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
        if self.filled == 0 && !self.ended {
            self.fill()?;
            if self.buffer[..self.filled].starts_with(BYTE_ORDER_MARK) {
                self.at = BYTE_ORDER_MARK.len();
            }
        }
        Ok(())
    }

    fn skip_blank(&mut self) -> Result<bool, RecordError> {
        self.begin()?;
        loop {
            if self.at == self.filled {
                self.fill()?;
                if self.ended {
                    return Ok(false);
                }
            }
            if !matches!(self.buffer[self.at], b'\r' | b'\n') {
                return Ok(true);
            }
            self.lines.count(&self.buffer[self.at..=self.at]);
            self.at += 1;
        }
    }

    /// Fills the whole buffer, or reads to the end, so that a byte order mark is never cut.
    fn fill(&mut self) -> Result<(), RecordError> {
        (self.at, self.filled) = (0, 0);
        while self.filled < self.buffer.len() {
            match self.input.read(&mut self.buffer[self.filled..]) {
                Ok(0) => break,
                Ok(n) => self.filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(RecordError::Io(e)),
            }
        }
        self.ended = self.filled == 0;
        Ok(())
    }
}

/// A CSV cell; quoted only where it must be.
pub(crate) fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(u64, Vec<String>)> {
        let mut records = Records::new(text.as_bytes(), b',');
        let mut found = Vec::new();
        while records.next().unwrap() {
            let cells =
                (0..records.cells()).map(|i| String::from_utf8_lossy(records.cell(i)).into_owned()).collect();
            found.push((records.line(), cells));
        }
        found
    }

    fn lines(text: &str) -> Vec<u64> {
        read(text).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn lines_are_those_of_an_editor_whatever_ends_them() {
        assert_eq!(lines("a,b\n1,2\n3,4\n"), [1, 2, 3]);
        assert_eq!(lines("a,b\r\n1,2\r\n3,4"), [1, 2, 3]);
        assert_eq!(lines("a,b\r1,2\r3,4"), [1, 2, 3]);
        assert_eq!(lines("\n\na,b\n\n\n1,2\r\n\r\n3,4"), [3, 6, 8]);
        assert_eq!(lines("a,b\n\"1\n1\",2\n3,4\n"), [1, 2, 4]);
        assert_eq!(lines("a,b\r\n\"1\r\n\r\n1\",2\r\n3,4\r\n"), [1, 2, 5]);
    }

    #[test]
    fn lines_that_are_passed_over_count() {
        for text in ["\u{feff}one \"quote\r\n\r\na,b\r\n", "one\n\na,b", "one\r\ra,b\r"] {
            let mut records = Records::new(text.as_bytes(), b',');
            assert!(records.peek_line().unwrap().starts_with("one"));
            assert!(records.skip_line().unwrap() && records.skip_line().unwrap());
            assert!(records.next().unwrap() && records.line() == 3 && records.cell(1) == b"b", "{text:?}");
        }
        let mut records = Records::new("one".as_bytes(), b',');
        assert!(records.skip_line().unwrap() && !records.skip_line().unwrap() && !records.next().unwrap());
    }

    #[test]
    fn a_byte_order_mark_and_quotes_are_no_part_of_a_cell() {
        assert_eq!(read("\u{feff}a,b\n")[0].1, ["a", "b"]);
        assert_eq!(read("\"a\",\"b\"\"c\"\n")[0].1, ["a", "b\"c"]);
        assert_eq!(read("a,\n")[0].1, ["a", ""]);
        assert!(read("").is_empty());
        assert!(read("\u{feff}").is_empty());
    }

    #[test]
    fn records_across_the_edge_of_the_buffer_are_whole() {
        let row = format!("{},{}\n", "x".repeat(6_000), "\"y\ny\"");
        let found = read(&row.repeat(50));
        assert_eq!(found.len(), 50);
        assert!(found.iter().enumerate().all(|(i, (line, cells))| *line == 2 * i as u64 + 1
            && cells[0].len() == 6_000
            && cells[1] == "y\ny"));
    }

    #[test]
    fn text_after_a_closing_quote_is_noticed() {
        let wrong = |text: &str| {
            let mut records = Records::new(text.as_bytes(), b',');
            records.next().unwrap() && records.wrong_quotes().is_some()
        };
        for text in [
            "A,\"1\"5\n",
            "\"Foo\"bar,1",
            "\"say \\\"hi\\\"\",1",
            "A,\"Foo,1\nB,\"Bar,2\n",
            "A,\"Foo,1\n\"B\",\"Bar\",2\n",
            "\"a\" \"b\",1",
        ] {
            assert!(wrong(text), "{text}");
        }
        for text in [
            "\"a\"\"b\",\"\"\n",
            "\"\"\"\"\r\n",
            "6\" pipe,5\"",
            "\"a\" ,\"b\"\t\n",
            "\"a\nb\",\"c\r\n\"",
            "a, \"b\"",
        ] {
            assert!(!wrong(text), "{text}");
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_is_noticed() {
        let mut records = Records::new("a,b\n1,\"2\n3,4".as_bytes(), b',');
        assert!(records.next().unwrap() && records.wrong_quotes().is_none());
        assert!(
            records.next().unwrap() && records.wrong_quotes().is_some_and(|why| why.contains("never closed"))
        );
        let long = format!("a,b\n1,\"{}", "3,4\n".repeat(RECORD_BYTES_MAX / 4 + 1));
        let mut records = Records::new(long.as_bytes(), b',');
        assert!(records.next().unwrap());
        assert!(matches!(records.next(), Err(RecordError::TooLong(2))));
    }
}
