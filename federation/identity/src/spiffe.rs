//! SPIFFE ids as the specification writes them, and the roles Archipelago gives them.

use std::{fmt, str::FromStr};

/// A trust domain: the authority of a SPIFFE id, and the scope of a trust bundle (SPIFFE-ID §2.1).
///
/// Lower-case letters, digits, `.`, `-` and `_`, at most 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name, without `spiffe://`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > TRUST_DOMAIN_BYTES_MAX || !text.bytes().all(allowed) {
            return Err(SpiffeIdError::TrustDomain(abbreviate(text)));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A SPIFFE id: `spiffe://<trust-domain>/<path>` (SPIFFE-ID §2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// With its leading slash; empty for the id of a trust domain itself.
    path: String,
}

impl SpiffeId {
    /// The id of a trust domain itself, as its CA certificates carry it.
    #[must_use]
    pub fn trust_domain_id(trust_domain: &TrustDomain) -> Self {
        Self { trust_domain: trust_domain.clone(), path: String::new() }
    }

    /// A gateway of a cluster. The names must be valid path segments, which cluster and gateway names are.
    #[must_use]
    pub fn gateway(trust_domain: &TrustDomain, cluster: &str, name: &str) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("/cluster/{cluster}/gateway/{name}") }
    }

    /// An agent of a cluster.
    #[must_use]
    pub fn agent(trust_domain: &TrustDomain, cluster: &str, name: &str) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("/cluster/{cluster}/agent/{name}") }
    }

    /// A member of the control plane.
    #[must_use]
    pub fn control_plane(trust_domain: &TrustDomain, id: u64) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("/control-plane/{id}") }
    }

    /// A person or robot that operates the federation.
    #[must_use]
    pub fn operator(trust_domain: &TrustDomain, name: &str) -> Self {
        Self { trust_domain: trust_domain.clone(), path: format!("/operator/{name}") }
    }

    /// A workload of a cluster: whatever runs there under a Kubernetes ServiceAccount.
    #[must_use]
    pub fn workload(trust_domain: &TrustDomain, cluster: &str, namespace: &str, service_account: &str) -> Self {
        let path = format!("/cluster/{cluster}/ns/{namespace}/sa/{service_account}");
        Self { trust_domain: trust_domain.clone(), path }
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading slash, or nothing.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What this id stands for in a federation; `None` for an id that Archipelago gives no meaning.
    #[must_use]
    pub fn role(&self) -> Option<MeshRole> {
        let segments: Vec<&str> = self.path.split('/').skip(1).collect();
        match segments[..] {
            ["cluster", cluster, "gateway", name] => {
                Some(MeshRole::Gateway { cluster: cluster.to_owned(), name: name.to_owned() })
            }
            ["cluster", cluster, "agent", name] => {
                Some(MeshRole::Agent { cluster: cluster.to_owned(), name: name.to_owned() })
            }
            // Ids are written one way only: `01` is not 1.
            ["control-plane", id] => {
                id.parse().ok().filter(|parsed: &u64| parsed.to_string() == id).map(|id| MeshRole::ControlPlane { id })
            }
            ["operator", name] => Some(MeshRole::Operator { name: name.to_owned() }),
            ["cluster", cluster, "ns", namespace, "sa", service_account] => Some(MeshRole::Workload {
                cluster: cluster.to_owned(),
                namespace: namespace.to_owned(),
                service_account: service_account.to_owned(),
            }),
            _ => None,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > ID_BYTES_MAX {
            return Err(SpiffeIdError::TooLong { bytes: text.len() });
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| SpiffeIdError::Scheme(abbreviate(text)))?;
        let (trust_domain, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let trust_domain = trust_domain.parse()?;
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        let segment_is_valid = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed);
        if !path.is_empty() && !path.split('/').skip(1).all(segment_is_valid) {
            return Err(SpiffeIdError::Path(abbreviate(path)));
        }
        Ok(Self { trust_domain, path: path.to_owned() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// What a SPIFFE id stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeshRole {
    /// `/cluster/<cluster>/agent/<name>`
    Agent {
        /// Cluster it speaks for.
        cluster: String,
        /// Name within the cluster.
        name: String,
    },
    /// `/control-plane/<id>`
    ControlPlane {
        /// Raft node id.
        id: u64,
    },
    /// `/cluster/<cluster>/gateway/<name>`
    Gateway {
        /// Cluster it serves.
        cluster: String,
        /// Name within the cluster.
        name: String,
    },
    /// `/operator/<name>`
    Operator {
        /// Who.
        name: String,
    },
    /// `/cluster/<cluster>/ns/<namespace>/sa/<service account>`
    Workload {
        /// Cluster it runs in: namespaces of two clusters need not be the same people's.
        cluster: String,
        /// Kubernetes namespace.
        namespace: String,
        /// Kubernetes service account.
        service_account: String,
    },
}

/// Why a text is no SPIFFE id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// A path segment is empty, a dot segment, or holds a character outside `[a-zA-Z0-9.-_]`.
    #[error("`{0}` is no SPIFFE path: segments are letters, digits, `.`, `-` and `_`, and never empty")]
    Path(String),
    /// It does not begin with `spiffe://`.
    #[error("`{0}` is no SPIFFE id: it must begin with spiffe://")]
    Scheme(String),
    /// Longer than 2,048 bytes.
    #[error("a SPIFFE id of {bytes} bytes: {ID_BYTES_MAX} is the most")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The trust domain has a character outside `[a-z0-9.-_]`, or none at all.
    #[error("`{0}` is no trust domain: lower-case letters, digits, `.`, `-` and `_`, at most {TRUST_DOMAIN_BYTES_MAX}")]
    TrustDomain(String),
}

/// Keeps error messages readable whatever was sent.
fn abbreviate(text: &str) -> String {
    let mut short: String = text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// SPIFFE-ID §2.3: implementations must accept ids up to this length.
const ID_BYTES_MAX: usize = 2048;
/// SPIFFE-ID §2.1.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_specification_decides_what_an_id_is() {
        for good in ["spiffe://mesh.example", "spiffe://a/b", "spiffe://mesh.example/ns/shop/sa/Web_1.x-y"] {
            assert_eq!(good.parse::<SpiffeId>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "http://mesh.example/x",
            "spiffe://",
            "spiffe:///path",
            "spiffe://UPPER/x",
            "spiffe://mesh.example/",
            "spiffe://mesh.example/a//b",
            "spiffe://mesh.example/a/",
            "spiffe://mesh.example/a/../b",
            "spiffe://mesh.example/%41",
            "spiffe://mesh.example:80/x",
            "spiffe://user@mesh.example/x",
            "spiffe://mesh.example/x?q",
            "spiffe://mesh.example/x#f",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
        assert!(format!("spiffe://mesh.example/{}", "x".repeat(2048)).parse::<SpiffeId>().is_err());
    }

    #[test]
    fn roles_are_read_from_the_whole_path() {
        let domain: TrustDomain = "mesh.example".parse().unwrap();
        let gateway = SpiffeId::gateway(&domain, "paris", "gw-1");
        assert_eq!(gateway.role(), Some(MeshRole::Gateway { cluster: "paris".into(), name: "gw-1".into() }));
        assert_eq!(SpiffeId::control_plane(&domain, 3).role(), Some(MeshRole::ControlPlane { id: 3 }));
        let web = SpiffeId::workload(&domain, "paris", "shop", "web");
        assert_eq!(web.to_string(), "spiffe://mesh.example/cluster/paris/ns/shop/sa/web");
        assert_eq!(
            web.role(),
            Some(MeshRole::Workload {
                cluster: "paris".into(),
                namespace: "shop".into(),
                service_account: "web".into()
            })
        );
        for meaningless in [
            "/ns/shop/sa/web",
            "/control-plane/03",
            "/control-plane/x",
            "/cluster/paris",
            "/cluster/paris/gateway/a/b",
            "",
        ] {
            assert_eq!(format!("spiffe://mesh.example{meaningless}").parse::<SpiffeId>().unwrap().role(), None);
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,200}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
                let _ = id.role();
            }
        }
    }
}
