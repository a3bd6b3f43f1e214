//! The lease of a dataset as it stands in the table. [`crate::write`] decides who may be granted it.

use std::time::Duration;

use trellis_proto::{Code, Error, Result, time::format_time};

/// Time to live of a lease whose request or grant does not say one.
pub(crate) const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// A process that publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The unit of the process. Empty: nobody holds the lease, and `instance` says who ended the ownership.
    pub(crate) unit: String,
    pub(crate) instance: String,
}

impl Holder {
    pub(crate) fn is_nobody(&self) -> bool {
        self.unit.is_empty()
    }
}

/// A granted epoch, as the table stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) epoch: u64,
    pub(crate) holder: Holder,
    /// Wall clock of the granting shard, nanoseconds; for people.
    pub(crate) since_ns: i64,
    pub(crate) ttl: Duration,
}

impl Grant {
    /// `since 2016-08-10T20:00:00Z`
    pub(crate) fn since(&self) -> String {
        format!("since {}", format_time(self.since_ns))
    }
}

/// The lease as it stands in the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum StoredLease {
    /// No epoch was ever granted.
    #[default]
    Never,
    /// The newest epoch was granted, and not given back.
    Held(Grant),
    /// The newest epoch was given back. Granted to nobody, it is given back at once.
    Released(Grant),
}

impl StoredLease {
    /// The newest epoch; 0 before the first.
    pub(crate) fn epoch(&self) -> u64 {
        match self {
            Self::Never => 0,
            Self::Held(grant) | Self::Released(grant) => grant.epoch,
        }
    }

    /// The unit whose output the dataset is, running or not; `None`: nobody's.
    pub(crate) fn owner(&self) -> Option<&str> {
        match self {
            Self::Never => None,
            Self::Held(grant) | Self::Released(grant) => {
                Some(grant.holder.unit.as_str()).filter(|unit| !unit.is_empty())
            }
        }
    }

    /// Refuses what needs the consent of the unit that owns the dataset: an import into it, or a change of it.
    ///
    /// # Errors
    /// [`Code::PermissionDenied`] naming the unit, and how to end its ownership.
    pub(crate) fn check_unowned(&self, dataset: &str) -> Result<()> {
        match self {
            Self::Held(grant) | Self::Released(grant) if !grant.holder.is_nobody() => Err(Error::new(
                Code::PermissionDenied,
                format!("{dataset} is the output of unit {} (epoch {}, {})", grant.holder.unit, grant.epoch, grant.since()),
            )
            .dataset(dataset)
            .hint(format!(
                "use another dataset; if it is to be the unit's output no more: `trellis dataset release {dataset}`"
            ))),
            Self::Never | Self::Held(_) | Self::Released(_) => Ok(()),
        }
    }
}
