//! Units of times that are numbers.

use serde::{Deserialize, Serialize};

use crate::import::told::ImportError;

/// Unit of integer times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TsUnit {
    /// Seconds since 1970, UTC.
    S,
    /// Milliseconds since 1970, UTC.
    Ms,
    /// Microseconds since 1970, UTC.
    Us,
    /// Nanoseconds since 1970, UTC.
    Ns,
    /// Days of Excel, since the last of 1899; a fraction is a time by the clock of the zone, to the millisecond.
    Excel,
    /// Seconds since midnight by the clock of the zone.
    SOfDay,
    /// Milliseconds since midnight by the clock of the zone.
    MsOfDay,
    /// Microseconds since midnight by the clock of the zone.
    UsOfDay,
    /// Nanoseconds since midnight by the clock of the zone.
    NsOfDay,
}

impl TsUnit {
    /// Every unit, with the name that people write.
    pub const ALL: [(TsUnit, &'static str); 9] = [
        (Self::S, "s"),
        (Self::Ms, "ms"),
        (Self::Us, "us"),
        (Self::Ns, "ns"),
        (Self::Excel, "excel"),
        (Self::SOfDay, "s-of-day"),
        (Self::MsOfDay, "ms-of-day"),
        (Self::UsOfDay, "us-of-day"),
        (Self::NsOfDay, "ns-of-day"),
    ];

    /// Reads the name that people write.
    ///
    /// # Errors
    /// [`ImportError::Options`] naming the units there are.
    pub fn parse(name: &str) -> Result<Self, ImportError> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(unit, _)| *unit).ok_or_else(|| {
            ImportError::options(
                format!("{name:?} is not a unit of time"),
                format!("the units are {}", Self::ALL.map(|(_, name)| name).join(", ")),
            )
        })
    }

    pub(crate) fn ns(self) -> i64 {
        match self {
            Self::Excel => 86_400_000_000_000,
            Self::S | Self::SOfDay => 1_000_000_000,
            Self::Ms | Self::MsOfDay => 1_000_000,
            Self::Us | Self::UsOfDay => 1_000,
            Self::Ns | Self::NsOfDay => 1,
        }
    }

    pub(crate) fn of_day(self) -> bool {
        matches!(self, Self::SOfDay | Self::MsOfDay | Self::UsOfDay | Self::NsOfDay)
    }
}
