//! The gateway's end: what it holds, and whether an update may change that.

use archipelago_proto::v1::{self as proto, ConfigUpdate, update_refusal::Reason};

use super::{Digest, Resources};
use crate::version::Version;

/// What a gateway holds of its configuration. Whether it can *use* each resource is another question.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Held {
    /// The default before the first update.
    pub version: Version,
    /// As received.
    pub resources: Resources,
}

impl Held {
    /// What is held after `update`; a refused one changes nothing. Pure.
    ///
    /// # Errors
    /// [`Refusal::Regression`] comes first: what is older than what runs here is not looked into.
    pub fn take(&self, update: &ConfigUpdate) -> Result<Self, Refusal> {
        let offered = update.version.map_or_else(Version::default, Version::from);
        if offered < self.version {
            return Err(Refusal::Regression { running: self.version, offered });
        }
        if !update.full && Digest::from_bytes(&update.base_digest) != Some(self.resources.digest()) {
            return Err(Refusal::WrongBase { held: self.resources.digest() });
        }
        let mut resources = if update.full { Resources::default() } else { self.resources.clone() };
        for name in &update.removals {
            resources.remove(name);
        }
        for resource in &update.upserts {
            resources.put(resource.clone().into());
        }
        if Digest::from_bytes(&update.digest) != Some(resources.digest()) {
            return Err(Refusal::WrongBase { held: self.resources.digest() });
        }
        Ok(Self { version: offered, resources })
    }
}

/// Why an update changed nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is older than what runs.
    #[error(
        "runs version {running}, was offered {offered}, which is older; if a backup was restored, `meshctl raft restored` makes \
         gateways obey it"
    )]
    Regression {
        /// What the gateway runs.
        running: Version,
        /// What it was offered.
        offered: Version,
    },
    /// It was made against something else than what is held, or does not lead where it says; a full update mends it.
    #[error("the update does not fit what is held")]
    WrongBase {
        /// What is held.
        held: Digest,
    },
    /// It fits, and nothing could be built from it.
    #[error("{0}")]
    Unusable(String),
}

impl From<Refusal> for proto::UpdateRefusal {
    fn from(refusal: Refusal) -> Self {
        let reason = match refusal {
            Refusal::Regression { running, .. } => Reason::RegressionFrom(running.into()),
            Refusal::WrongBase { held } => Reason::WrongBaseHeld(held.to_bytes()),
            Refusal::Unusable(why) => Reason::Unusable(why),
        };
        Self { reason: Some(reason) }
    }
}

impl Refusal {
    /// The refusal of an update of version `offered`, from the wire. Kinds of a later version count as
    /// [`Self::Unusable`]: the same update is not sent again.
    #[must_use]
    pub fn from_wire(refusal: proto::UpdateRefusal, offered: Version) -> Self {
        match refusal.reason {
            Some(Reason::RegressionFrom(running)) => Self::Regression { running: running.into(), offered },
            Some(Reason::WrongBaseHeld(held)) => {
                Self::WrongBase { held: Digest::from_bytes(&held).unwrap_or_default() }
            }
            Some(Reason::Unusable(why)) => Self::Unusable(why),
            None => Self::Unusable("for a reason that this version does not know".to_owned()),
        }
    }
}
