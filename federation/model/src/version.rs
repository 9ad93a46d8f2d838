//! Where a state, or a configuration made from it, stands in the history of the federation.

use std::fmt;

use archipelago_proto::v1::ConfigVersion;

/// Age of a state: of two versions of one federation the greater is the newer.
///
/// All versions come from one replicated log, so with equal restore epochs one is at least as new in both counters, and
/// comparing the fields in their order is comparing ages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// Raised by a restore from a backup, and by nothing else: what was restored counts as newer than what ran before.
    pub restore_epoch: u64,
    /// Policy revision: moves with operators' writes, revocations and the authority alone.
    pub revision: u64,
    /// Fleet version: moves with registrations and reports.
    pub fleet: u64,
}

impl Version {
    /// The first version with this policy: whoever runs it or a later one runs what operators wrote.
    #[must_use]
    pub const fn policy(self) -> Self {
        Self { fleet: 0, ..self }
    }
}

impl From<ConfigVersion> for Version {
    fn from(version: ConfigVersion) -> Self {
        let ConfigVersion { restore_epoch, revision, fleet } = version;
        Self { restore_epoch, revision, fleet }
    }
}

impl From<Version> for ConfigVersion {
    fn from(version: Version) -> Self {
        let Version { restore_epoch, revision, fleet } = version;
        Self { restore_epoch, revision, fleet }
    }
}

/// `42.7`, policy revision and fleet version; `2:42.7` once a backup was restored.
impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { restore_epoch, revision, fleet } = self;
        if *restore_epoch > 0 {
            write!(out, "{restore_epoch}:")?;
        }
        write!(out, "{revision}.{fleet}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(restore_epoch: u64, revision: u64, fleet: u64) -> Version {
        Version { restore_epoch, revision, fleet }
    }

    #[test]
    fn the_restore_epoch_outweighs_the_revision_and_that_the_fleet_version() {
        let ascending = [version(0, 0, 0), version(0, 0, 9), version(0, 1, 0), version(0, 9, 9), version(1, 0, 0)];
        assert!(ascending.is_sorted());
        assert_eq!(Version::from(ConfigVersion::from(version(1, 2, 3))), version(1, 2, 3));
    }

    #[test]
    fn the_epoch_is_shown_once_there_was_a_restore() {
        assert_eq!(version(0, 42, 7).to_string(), "42.7");
        assert_eq!(version(2, 42, 7).to_string(), "2:42.7");
    }
}
