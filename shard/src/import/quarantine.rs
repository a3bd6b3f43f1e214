//! The bad rows as a CSV file: `file,line,column,reason,row`, the last as it stands in its file.
//!
//! The rows are read again, by their places. To remember the rows themselves would take as much memory as the files in the worst
//! case, because a double is known only when everything is sorted.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use super::{
    choice::{Checked, ImportSpec},
    columnar,
    source::{Source, quoted},
    text,
    told::{BadRows, ImportError},
};

const HEADER: &str = "file,line,column,reason,row";

/// Refuses to overwrite a file that is no earlier quarantine.
pub(crate) fn check(path: &Path, files: &[PathBuf]) -> Result<(), ImportError> {
    let Ok(mut there) = File::open(path) else { return Ok(()) };
    let mut start = Vec::new();
    let header = format!("{HEADER}\n");
    let read = Read::by_ref(&mut there).take(header.len() as u64).read_to_end(&mut start);
    let same =
        |file: &PathBuf| path.canonicalize().is_ok_and(|path| file.canonicalize().is_ok_and(|f| f == path));
    let why = if files.iter().any(same) {
        "it is a file to import"
    } else if read.is_ok() && (start.is_empty() || start == header.as_bytes()) {
        return Ok(());
    } else {
        "a file is there that is no quarantine"
    };
    Err(ImportError::options(
        format!("--quarantine {}: {why}, and would be written over", path.display()),
        "name a new file",
    ))
}

/// Writes the file whole or not at all; without bad rows it has only its header, so that one of an earlier import does
/// not stay behind.
pub(crate) fn write(
    path: &Path,
    sources: &[Source],
    spec: &ImportSpec,
    checked: &Checked,
    bad: &BadRows,
) -> Result<(), ImportError> {
    let failed = |source: io::Error| ImportError::Quarantine { path: path.to_owned(), source };
    let beside = temporary(path);
    let result = (|| {
        let mut out = BufWriter::new(File::create(&beside).map_err(failed)?);
        writeln!(out, "{HEADER}").map_err(failed)?;
        for (number, source) in (0..).zip(sources) {
            write_source(&mut out, source, number, (spec, checked), bad, &failed)?;
        }
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)
    })();
    if result.is_err() {
        // The rest of the file is of no use, and the first error is the one that matters.
        let _ = fs::remove_file(&beside);
    }
    result
}

fn write_source(
    out: &mut impl Write,
    source: &Source,
    number: u32,
    (spec, checked): (&ImportSpec, &Checked),
    bad: &BadRows,
    failed: &impl Fn(io::Error) -> ImportError,
) -> Result<(), ImportError> {
    let mut left = bad.of_source(number).peekable();
    if left.peek().is_none() {
        return Ok(());
    }
    let each = |line: u64, raw: &str| {
        while let Some((at, wrong)) = left.next_if(|(at, _)| *at <= line) {
            let raw = if at == line { raw } else { "" };
            writeln!(
                out,
                "{},{at},{},{},{}",
                quoted(&source.name),
                quoted(wrong.column.as_deref().unwrap_or_default()),
                quoted(&wrong.reason),
                quoted(raw)
            )
            .map_err(failed)?;
        }
        Ok(())
    };
    if source.is_parquet() {
        columnar::raw_rows(source, each)
    } else {
        text::raw_rows(source, spec, checked, each)
    }
}

/// A name in the same folder, so that the rename stays on one file system.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.part", std::process::id()))
}
