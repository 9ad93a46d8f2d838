//! Names and counters as types of their own, so that a cluster cannot be passed where a gateway is meant.
//!
//! `parse` checks a name as admission does (RFC 1123 labels; subdomains for gateways, which may be named after nodes) and is for everything that comes from outside; `new` takes
//! a name that was checked before: out of the replicated state, out of a certificate that our own authority issued.

use std::{borrow::Borrow, fmt, num::NonZeroU64, str::FromStr, sync::Arc};

use crate::name::{is_label, is_subdomain};

/// Name of a cluster. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(Arc<str>);

impl ClusterId {
    /// A name that is known to be good.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClusterId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        label(text).map(Self::new)
    }
}

impl AsRef<str> for ClusterId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Maps by cluster are looked up with a plain text.
impl Borrow<str> for ClusterId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for ClusterId {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

/// A gateway: its cluster, and its name there. Shown as `cluster/name`; ordered by cluster first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its name, unique within the cluster.
    pub name: Arc<str>,
}

impl GatewayId {
    /// Names that are known to be good.
    #[must_use]
    pub fn new(cluster: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { cluster: ClusterId::new(cluster), name: name.into() }
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.name)
    }
}

impl FromStr for GatewayId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (cluster, name) = text.split_once('/').ok_or_else(|| IdError::Pair(shown(text)))?;
        if !is_subdomain(name) {
            return Err(IdError::Subdomain(name.chars().take(SUBDOMAIN_CHARS_MAX).collect()));
        }
        Ok(Self::new(label(cluster)?, name))
    }
}

/// A service: its namespace, and its name there. Shown as `namespace/name`; ordered by namespace first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name, unique within the namespace.
    pub name: Arc<str>,
}

impl ServiceKey {
    /// Names that are known to be good.
    #[must_use]
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (namespace, name) = pair(text)?;
        Ok(Self::new(namespace, name))
    }
}

/// Policy revision: how many times operators changed what the federation agrees on. 0: never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A member of the control plane. Raft reserves 0 for "nobody".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub NonZeroU64);

impl NodeId {
    /// `None` for 0.
    #[must_use]
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(Self)
    }

    /// As Raft counts.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// Not an RFC 1123 label.
    #[error("{0:?} is no valid name: 1 to 63 lower-case letters, digits and dashes, not at the ends")]
    Label(String),
    /// Not an RFC 1123 subdomain.
    #[error(
        "{0:?} is no valid name: at most 253 lower-case letters, digits, dashes and dots, beginning and ending with a letter or digit"
    )]
    Subdomain(String),
    /// Not two names with a slash between them.
    #[error("{0:?} is not of the form `a/b`")]
    Pair(String),
}

fn label(text: &str) -> Result<&str, IdError> {
    if is_label(text) { Ok(text) } else { Err(IdError::Label(shown(text))) }
}

fn pair(text: &str) -> Result<(&str, &str), IdError> {
    let (first, second) = text.split_once('/').ok_or_else(|| IdError::Pair(shown(text)))?;
    Ok((label(first)?, label(second)?))
}

/// Errors are printed and logged: a megabyte of name is not.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

/// One more than a subdomain may have.
const SUBDOMAIN_CHARS_MAX: usize = 254;
/// One more than a label may have, so that "too long" shows.
const SHOWN_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_shown_reads_back_and_what_is_no_name_does_not() {
        let gateway = GatewayId::new("paris", "gw-1");
        assert_eq!(gateway.to_string().parse(), Ok(gateway));
        let node = GatewayId::new("paris", "ip-10-0-0-1.eu-west-3.compute.internal");
        assert_eq!(node.to_string().parse(), Ok(node));
        for wrong in ["paris/", "paris/a..b", "paris/.a", "paris/a.", "paris/A", "a.b/gw-1", "paris"] {
            assert!(wrong.parse::<GatewayId>().is_err(), "{wrong}");
        }
        assert!(format!("paris/{}", "a.".repeat(127)).parse::<GatewayId>().is_err());
        let service = ServiceKey::new("shop", "checkout");
        assert_eq!(service.to_string().parse(), Ok(service));
        assert_eq!("paris".parse(), Ok(ClusterId::new("paris")));
        for text in ["", "Paris", "-a", "a-", "a.b", "a/b", "é"] {
            assert!(text.parse::<ClusterId>().is_err(), "{text}");
        }
        for text in ["", "shop", "shop/", "/a", "shop/a/b", "Shop/a"] {
            assert!(text.parse::<ServiceKey>().is_err(), "{text}");
            assert!(text.parse::<GatewayId>().is_err(), "{text}");
        }
        assert!("a".repeat(1 << 20).parse::<ClusterId>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn ids_order_by_their_first_part_and_are_found_by_text() {
        assert!(GatewayId::new("a", "z") < GatewayId::new("a-b", "a"));
        let clusters = BTreeMap::from([(ClusterId::new("paris"), 1)]);
        assert_eq!(clusters.get("paris"), Some(&1));
        assert_eq!(NodeId::new(0), None);
    }
}
