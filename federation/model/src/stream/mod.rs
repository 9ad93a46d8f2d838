//! The configuration stream, both ends, without I/O: what a member sends a gateway, and what the gateway takes.
//!
//! [`Offer`] is the sending end of one session, [`Held`] what a gateway holds and [`Held::take`] its decision about an update.
//! The drivers are the control plane's session and the gateway's control thread; `sim` runs both ends against each other.
//!
//! Promises, whatever connections, members, disks and clocks do:
//! 1. nothing is offered before a majority confirmed, in this session, that the member's state is current
//!    ([`Offer::confirmed`]), and nothing older than what the gateway runs;
//! 2. a gateway takes nothing older than what it runs ([`Refusal::Regression`]), whoever offers it: a restored backup must be
//!    declared (`meshctl raft restored` raises the restore epoch);
//! 3. a delta is applied to the base it was made against or not at all: both ends compare a [`Digest`] of names and versions,
//!    before and after;
//! 4. a resource that a gateway cannot use is its own affair: it is held, reported in the acknowledgement, and stops neither
//!    the others nor later versions.

mod held;
mod offer;
#[cfg(test)]
mod sim;
mod suit;

use std::{fmt, sync::Arc};

use crate::delta::Delta;
use archipelago_proto::v1::ConfigResource;
use aws_lc_rs::digest;
use imbl::OrdMap;

use crate::version::Version;

pub use self::{
    held::{Held, Refusal},
    offer::{Next, Offer},
    suit::{Lack, suit},
};

/// What the gateways of one cluster should run at one version.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// State that it was compiled from.
    pub version: Version,
    /// All of it.
    pub resources: Resources,
}

/// A resource, shared; two are equal when name and version are.
#[derive(Debug, Clone)]
pub struct Resource(Arc<ConfigResource>);

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.version == other.0.version && self.0.name == other.0.name)
    }
}

impl From<ConfigResource> for Resource {
    fn from(resource: ConfigResource) -> Self {
        Self(Arc::new(resource))
    }
}

impl std::ops::Deref for Resource {
    type Target = ConfigResource;

    fn deref(&self) -> &ConfigResource {
        &self.0
    }
}

/// Resources by name, and the digest of all names and versions; a clone is cheap, a change costs its own size.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    rows: OrdMap<String, Resource>,
    digest: Digest,
}

impl Resources {
    /// Adds or replaces a resource.
    pub fn put(&mut self, resource: Resource) {
        self.digest.add(&resource);
        if let Some(old) = self.rows.insert(resource.name.clone(), resource) {
            self.digest.subtract(&old);
        }
    }

    /// Removes a resource, if it is there.
    pub fn remove(&mut self, name: &str) {
        if let Some(old) = self.rows.remove(name) {
            self.digest.subtract(&old);
        }
    }

    /// The resource of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Resource> {
        self.rows.get(name)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.rows.values()
    }

    /// Those whose names begin with `prefix`, by name.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Resource> {
        self.rows.range(prefix.to_owned()..).map(|(_, row)| row).take_while(move |row| row.name.starts_with(prefix))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Over names and versions: equal digests, equal resources.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// What leads from `base` to these.
    #[must_use]
    pub fn since(&self, base: &Self) -> Delta<String, Resource> {
        Delta::between(&base.rows, &self.rows)
    }

    /// All of them, for a reader that holds anything.
    #[must_use]
    pub fn in_full(&self) -> Delta<String, Resource> {
        Delta::full(&self.rows)
    }
}

impl FromIterator<Resource> for Resources {
    fn from_iter<T: IntoIterator<Item = Resource>>(all: T) -> Self {
        let mut resources = Self::default();
        all.into_iter().for_each(|resource| resources.put(resource));
        resources
    }
}

/// Sum, modulo 2^128, of one SHA-256 (its first 16 bytes, little endian) per resource over `length of the name: u32 LE |
/// name | version`. A sum, so that a change costs its own size; it guards against mistakes, not against forgers: both ends
/// are authenticated.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Digest(u128);

impl Digest {
    /// As it stands on the wire.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    /// From the wire; `None` when it has not 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(u128::from_le_bytes(bytes)))
    }

    fn add(&mut self, resource: &ConfigResource) {
        self.0 = self.0.wrapping_add(term(resource));
    }

    fn subtract(&mut self, resource: &ConfigResource) {
        self.0 = self.0.wrapping_sub(term(resource));
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:032x}", self.0)
    }
}

fn term(resource: &ConfigResource) -> u128 {
    let mut context = digest::Context::new(&digest::SHA256);
    let length = u32::try_from(resource.name.len()).unwrap_or(u32::MAX);
    context.update(&length.to_le_bytes());
    context.update(resource.name.as_bytes());
    context.update(&resource.version);
    let hash = context.finish();
    hash.as_ref().first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn resource(name: &str, version: u8) -> Resource {
        ConfigResource { name: name.to_owned(), version: vec![version].into(), ..ConfigResource::default() }.into()
    }

    proptest! {
        /// However a set came about, its digest is that of its content.
        #[test]
        fn the_digest_follows_every_change(steps in prop::collection::vec(("[a-h]", prop::option::of(0u8..3)), 0..60)) {
            let mut resources = Resources::default();
            let mut model: BTreeMap<String, u8> = BTreeMap::new();
            for (name, version) in steps {
                match version {
                    Some(version) => {
                        resources.put(resource(&name, version));
                        model.insert(name, version);
                    }
                    None => {
                        resources.remove(&name);
                        model.remove(&name);
                    }
                }
                let again: Resources = model.iter().rev().map(|(name, version)| resource(name, *version)).collect();
                prop_assert_eq!(&again, &resources);
                prop_assert_eq!(resources.is_empty(), resources.digest() == Digest::default());
            }
        }
    }

    #[test]
    fn digests_tell_names_from_versions_and_survive_the_wire() {
        let one: Resources = [resource("ab", b'c')].into_iter().collect();
        let other: Resources = [resource("a", b'b'), resource("c", b'c')].into_iter().collect();
        assert_ne!(one.digest(), other.digest());
        assert_eq!(Digest::from_bytes(&one.digest().to_bytes()), Some(one.digest()));
        assert_eq!(Digest::from_bytes(b"short"), None);
    }
}
