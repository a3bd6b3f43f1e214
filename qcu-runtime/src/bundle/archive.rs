//! The zip of a bundle.
//!
//! Packing gives the same bytes everywhere: names in order, one time, no compression (whose result differs between versions of the
//! library). Unpacking believes nothing: not the names, not the kinds, not the sizes.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{Cursor, Read as _, Write as _},
    path::{Component, Path},
};

use sha2::{Digest as _, Sha256};
use trellis_proto::{Code, Error, Result};
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// Name of the manifest in a bundle.
pub const MANIFEST: &str = "unit.json";
/// Most bytes of a bundle. Sources have some KiB; whoever needs data reads a dataset.
pub(super) const BUNDLE_BYTES_MAX: usize = 32 << 20;
/// Most files of a bundle.
const FILES_MAX: usize = 2_000;
/// Most bytes of one unpacked file.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Most bytes of all unpacked files. The volume of a task has little more.
const UNPACKED_BYTES_MAX: u64 = 64 << 20;
/// Longest name of a file, with its folders.
const NAME_BYTES_MAX: usize = 512;
/// Rights of every file.
const MODE: u32 = 0o644;

/// The SHA-256 of a bundle, in hex: its name.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Packs files into a bundle.
///
/// # Errors
/// A name or a size that [`unpack`] would refuse.
pub fn pack(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>> {
    let failed =
        |error: &dyn std::fmt::Display| Error::new(Code::Internal, format!("packing a bundle: {error}"));
    let mut limits = Limits::default();
    limits.files(files.len())?;
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(MODE);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        check_name(name)?;
        limits.file(name, content.len() as u64)?;
        zip.start_file(name.as_str(), options).map_err(|e| failed(&e))?;
        zip.write_all(content).map_err(|e| failed(&e))?;
    }
    let bytes = zip.finish().map_err(|e| failed(&e))?.into_inner();
    if bytes.len() > BUNDLE_BYTES_MAX {
        return Err(too_large(format!("the bundle has {} bytes, more than {BUNDLE_BYTES_MAX}", bytes.len())));
    }
    Ok(bytes)
}

/// Unpacks a bundle into an empty folder.
///
/// # Errors
/// A member that is no plain file inside the folder; a limit that is exceeded; a folder that cannot be written.
pub(super) fn unpack(bytes: &[u8], folder: &Path) -> Result<()> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|e| refuse(format!("it is no zip: {e}")))?;
    let mut limits = Limits::default();
    limits.files(zip.len())?;
    for i in 0..zip.len() {
        let member = zip.by_index(i).map_err(|e| refuse(format!("its member {i} cannot be read: {e}")))?;
        let name = member.name().to_owned();
        if member.is_dir() {
            // the folders of files are made with them
            check_name(name.trim_end_matches('/'))?;
            continue;
        }
        check_name(&name)?;
        const KIND: u32 = 0o170_000;
        const REGULAR: u32 = 0o100_000;
        if member.unix_mode().is_some_and(|mode| ![0, REGULAR].contains(&(mode & KIND))) {
            return Err(refuse(format!("{name:?} is a link or another thing that is no file")));
        }
        let mut content = Vec::new();
        // the size in the zip may be wrong
        member
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut content)
            .map_err(|e| refuse(format!("{name:?} cannot be unpacked: {e}")))?;
        limits.file(&name, content.len() as u64)?;
        write(&folder.join(&name), &content).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory | std::io::ErrorKind::IsADirectory => {
                refuse(format!("{name:?} is there twice, or is a file and a folder"))
            }
            _ => Error::new(Code::Unavailable, format!("{} cannot be written: {e}", folder.join(&name).display()))
                .hint("the temporary directory needs room, and this process the right to write there; TMPDIR names another"),
        })?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(content)
}

/// What has been counted of a bundle.
#[derive(Default)]
struct Limits {
    unpacked: u64,
}

impl Limits {
    fn files(&self, files: usize) -> Result<()> {
        match files {
            0..=FILES_MAX => Ok(()),
            _ => Err(too_large(format!("the bundle has {files} files, more than {FILES_MAX}"))),
        }
    }

    fn file(&mut self, name: &str, bytes: u64) -> Result<()> {
        if bytes > FILE_BYTES_MAX {
            return Err(too_large(format!("{name:?} has more than {FILE_BYTES_MAX} bytes")));
        }
        self.unpacked += bytes;
        if self.unpacked > UNPACKED_BYTES_MAX {
            return Err(too_large(format!("the bundle's files have more than {UNPACKED_BYTES_MAX} bytes")));
        }
        Ok(())
    }
}

/// A name is a relative path of plain parts.
fn check_name(name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.contains(['\\', '\0', ':'])
        && name.split('/').all(|part| !part.is_empty() && part != ".")
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if plain { Ok(()) } else { Err(refuse(format!("{name:?} is no path inside it"))) }
}

fn refuse(why: String) -> Error {
    Error::new(Code::InvalidRequest, format!("the bundle is refused: {why}"))
        .hint("`trellis deploy` makes no such bundle: look who put it, and deploy the strategy again")
}

fn too_large(why: String) -> Error {
    Error::new(Code::TooLarge, why)
        .hint("a bundle has sources alone: read data as an input, and keep other files out of the folder")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn files(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
    }

    fn zip_of(write: impl FnOnce(&mut ZipWriter<Cursor<Vec<u8>>>)) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        write(&mut zip);
        zip.finish().unwrap().into_inner()
    }

    fn refused(bytes: &[u8]) -> Error {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("bundle");
        std::fs::create_dir(&folder).unwrap();
        let error = unpack(bytes, &folder).unwrap_err();
        assert_eq!(
            std::fs::read_dir(outside.path()).unwrap().count(),
            1,
            "nothing is written beside the folder"
        );
        error
    }

    #[test]
    fn a_bundle_has_the_same_bytes_wherever_it_is_packed() {
        let bundle = pack(&files(&[("b/c.py", "2"), ("a.py", "1"), ("unit.json", "{}")])).unwrap();
        // recomputed only when the form of bundles changes: every bundle in S3 then gets another name
        assert_eq!(sha256(&bundle), "2621f388bf08c534eda6c5542c01e979b46527c7557a6e9dd09d5ed390213d7c");
    }

    #[test]
    fn a_member_outside_of_the_folder_is_refused() {
        for name in ["../x", "/etc/x", "a/../../x", "a\\..\\x", "C:x", "./x", "a//x"] {
            let bytes = zip_of(|zip| {
                zip.start_file(name, SimpleFileOptions::default()).unwrap();
                zip.write_all(b"1").unwrap();
            });
            let error = refused(&bytes);
            assert!(error.message().contains("no path inside"), "{name}: {error}");
            assert!(pack(&files(&[(name, "1")])).is_err(), "{name} is not packed either");
        }
    }

    #[test]
    fn a_link_is_refused() {
        let bytes =
            zip_of(|zip| zip.add_symlink("a.py", "/etc/passwd", SimpleFileOptions::default()).unwrap());
        assert!(refused(&bytes).message().contains("is a link"));
    }

    #[test]
    fn a_file_that_is_also_a_folder_is_refused() {
        let bytes = zip_of(|zip| {
            for name in ["a", "a/b.py"] {
                zip.start_file(name, SimpleFileOptions::default()).unwrap();
            }
        });
        assert!(refused(&bytes).message().contains("is a file and a folder"));
    }

    #[test]
    fn too_many_and_too_large_members_are_refused() {
        let deflated = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        let many = zip_of(|zip| {
            for i in 0..=FILES_MAX {
                zip.start_file(format!("{i}.py"), deflated).unwrap();
            }
        });
        assert_eq!(refused(&many).code(), Code::TooLarge);
        let zeros = vec![0; FILE_BYTES_MAX as usize + 1];
        let bomb = zip_of(|zip| {
            zip.start_file("a.py", deflated).unwrap();
            zip.write_all(&zeros).unwrap();
        });
        assert!(bomb.len() < 100_000, "it is small before it is unpacked");
        assert_eq!(refused(&bomb).code(), Code::TooLarge);
        let together = zip_of(|zip| {
            for i in 0..=UNPACKED_BYTES_MAX / FILE_BYTES_MAX {
                zip.start_file(format!("{i}.py"), deflated).unwrap();
                zip.write_all(&zeros[1..]).unwrap();
            }
        });
        assert_eq!(refused(&together).code(), Code::TooLarge);
    }

    #[test]
    fn what_is_no_zip_is_refused() {
        assert!(refused(b"#!/bin/sh").message().contains("no zip"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_is_packed_is_unpacked(
            given in proptest::collection::btree_map(
                "[a-z_]{1,8}(/[a-z_]{1,8})?\\.py",
                proptest::collection::vec(any::<u8>(), 0..2_000),
                0..8,
            )
        ) {
            let bundle = pack(&given).unwrap();
            prop_assert_eq!(&bundle, &pack(&given).unwrap());
            let folder = tempfile::tempdir().unwrap();
            unpack(&bundle, folder.path()).unwrap();
            for (name, content) in &given {
                prop_assert_eq!(&std::fs::read(folder.path().join(name)).unwrap(), content);
            }
        }
    }
}
