//! Fetches a unit: its file in S3, the bundle that the file names, a folder with the bundle's files.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use trellis_fabric::objects::{ObjectError, ObjectFault, ObjectUrl, Objects};
use trellis_proto::{Code, Error, Result};

use super::archive::{BUNDLE_BYTES_MAX, MANIFEST, sha256, unpack};
use crate::unit::Manifest;

/// Most bytes of a unit's file. It has some hundred.
const UNIT_FILE_BYTES_MAX: usize = 64 << 10;

/// A unit's file in S3, as `fleet apply` writes it. It may have more fields, as the file in the folder of the fleet has.
#[derive(Debug, Deserialize)]
struct UnitFile {
    unit: String,
    /// `sha256:` and the SHA-256 of the bundle.
    digest: String,
    /// Key of the bundle, in the same bucket.
    bundle: String,
    module: String,
    function: String,
    deployed_ns: i64,
}

/// A unit that was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// Its manifest.
    pub(crate) manifest: Manifest,
    /// Name of its deployment: the time of `trellis deploy`.
    pub(crate) deployment: String,
    /// The strategy's sources.
    pub(crate) folder: Folder,
}

/// A new folder below the temporary directory. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("trellis-bundle-{}", uuid::Uuid::new_v4().simple()));
        DirBuilder::new().mode(0o700).create(&folder).map_err(|e| {
            Error::new(Code::Unavailable, format!("the folder {} cannot be made: {e}", folder.display()))
                .hint("a bundle is unpacked below the temporary directory; TMPDIR names another")
        })?;
        Ok(Self(folder))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // what stays goes with the task's disk
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether a unit's file is in S3.
#[must_use]
pub fn is_remote(unit_file: &str) -> bool {
    ObjectUrl::is_meant(unit_file)
}

/// Fetches the unit of the file at `url`. If the URL ends with `/`, the file is `SERVICE.json`, with the name of the task's service. While
/// S3 does not answer, it tries again for `patience`. Blocks; not inside a runtime.
///
/// # Errors
/// Says which object, whose fault it is and what to do.
pub(crate) fn fetch(
    url: &str,
    service: impl FnOnce() -> Result<String, String>,
    patience: Duration,
) -> Result<Fetched> {
    let url = match url.ends_with('/') {
        true => {
            let service = service().map_err(|why| {
                Error::new(
                    Code::InvalidRequest,
                    format!("{url} is a folder, in which a unit has the file SERVICE.json; {why}"),
                )
                .hint(format!("outside of ECS name the file itself: {url}GRID-unit-NAME.json"))
            })?;
            format!("{url}{service}.json")
        }
        false => url.to_owned(),
    };
    let url = ObjectUrl::parse(&url).map_err(|why| Error::new(Code::InvalidRequest, why))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::new(Code::Unavailable, format!("no threads: {e}")))?;
    let (file, bytes) = runtime.block_on(download(&url, patience))?;
    let folder = Folder::new()?;
    unpack(&bytes, folder.path())?;
    let manifest = Manifest::read(&folder.path().join(MANIFEST))?;
    let Manifest { unit, module, function, .. } = &manifest;
    for (name, told, packed) in
        [("unit", &file.unit, unit), ("module", &file.module, module), ("function", &file.function, function)]
    {
        if told != packed {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("{url} names the {name} {told:?}, but the manifest in its bundle {packed:?}"),
            )
            .hint("the unit's file was edited by hand: deploy the strategy again"));
        }
    }
    Ok(Fetched { deployment: file.deployed_ns.to_string(), manifest, folder })
}

async fn download(url: &ObjectUrl, patience: Duration) -> Result<(UnitFile, bytes::Bytes)> {
    let objects = Objects::open(&url.bucket, None, None).map_err(|e| error_of(&e))?;
    let text = objects.get(&url.key, UNIT_FILE_BYTES_MAX, patience).await.map_err(|e| match e.fault {
        ObjectFault::Missing => Error::new(Code::InvalidRequest, format!("{}, the file of this unit", e.message))
            .hint("`fleet apply` writes it: look whether the unit's file is in the folder that it applies, and whether the name is right"),
        _ => error_of(&e),
    })?;
    let file: UnitFile = serde_json::from_slice(&text).map_err(|e| {
        Error::new(Code::InvalidRequest, format!("{url} is no unit's file: {e}"))
            .hint("`fleet apply` writes it: deploy the unit again, and apply")
    })?;
    let bundle = ObjectUrl::parse(&url.beside(&file.bundle).to_string())
        .map_err(|why| Error::new(Code::InvalidRequest, format!("{url}: bundle: {why}")))?;
    let bytes = objects.get(&bundle.key, BUNDLE_BYTES_MAX, patience).await.map_err(|e| match e.fault {
        ObjectFault::Missing => {
            Error::new(Code::InvalidRequest, format!("{}, the bundle that {url} names", e.message))
                .hint("deploy the strategy again: `trellis deploy FILE --env ...` puts it")
        }
        _ => error_of(&e),
    })?;
    let found = format!("sha256:{}", sha256(&bytes));
    if found != file.digest {
        return Err(Error::new(
            Code::DataCorrupt,
            format!("{bundle} has the digest {found}, but {url} names {}", file.digest),
        )
        .hint("the bundle was changed or damaged after the deploy, and nothing of it was run: remove it, and deploy the strategy again"));
    }
    Ok((file, bytes))
}

/// The error of an object as one of the grid.
#[must_use]
pub fn error_of(error: &ObjectError) -> Error {
    let code = match error.fault {
        ObjectFault::Missing | ObjectFault::NoBucket | ObjectFault::Refused => Code::InvalidRequest,
        ObjectFault::Denied | ObjectFault::NoCredentials => Code::PermissionDenied,
        ObjectFault::TooLarge => Code::TooLarge,
        ObjectFault::Unanswered => Code::Unavailable,
    };
    Error::new(code, error.message.clone()).hint(error.hint.clone())
}
