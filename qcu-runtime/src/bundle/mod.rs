//! The bundle of a unit that was submitted to production: one zip with the strategy's sources, its lock file and its manifest, found in S3
//! by its SHA-256.
//!
//! `trellis deploy --env` packs and puts it. `qcu` fetches it, compares it, and unpacks it before it begins to work.
//!
//! | file | subject |
//! | --- | --- |
//! | `archive` | the zip: packed the same on every machine, unpacked within limits |
//! | `fetch` | from the address of a unit's file to a folder with its sources |
//! | `lock` | the packages that the strategy was deployed with, and those of this machine |

mod archive;
mod fetch;
mod lock;

pub use archive::{MANIFEST, pack, sha256};
pub(crate) use fetch::{Folder, fetch};
pub use fetch::{error_of, is_remote};
pub(crate) use lock::tell_differences;
