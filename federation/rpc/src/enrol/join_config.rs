//! What a process must know of a federation to join it, and everybody may: a join token without its secret.

use std::{fmt, str::FromStr};

use archipelago_identity::TrustDomain;
use serde::{Deserialize, Serialize};

use super::{EnrolError, JoinToken, token::base64_bytes};

/// Where a federation is and by which root it is known. As text: one JSON object, in Kubernetes the `join.json` of the
/// ConfigMap `archipelago`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinConfig {
    /// host:port of every control-plane member.
    pub control_plane: Vec<String>,
    /// Trust domain of the federation.
    pub trust_domain: TrustDomain,
    /// Cluster to join.
    pub cluster: String,
    /// SHA-256 of the root certificate's DER.
    pub ca_sha256: [u8; 32],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    control_plane: Vec<String>,
    trust_domain: String,
    cluster: String,
    #[serde(with = "base64_bytes")]
    ca_sha256: [u8; 32],
}

impl JoinConfig {
    /// The public parts of a token.
    ///
    /// # Errors
    /// Its trust domain is none.
    pub fn of(token: &JoinToken) -> Result<Self, EnrolError> {
        Self::try_from(Raw {
            control_plane: token.control_plane.clone(),
            trust_domain: token.trust_domain.clone(),
            cluster: token.cluster.clone(),
            ca_sha256: token.ca_sha256,
        })
    }

    /// For whom a ServiceAccount token must have been issued that joins this cluster to this federation, and nothing else.
    #[must_use]
    pub fn audience(&self) -> String {
        audience(&self.trust_domain, &self.cluster)
    }
}

/// Audience of the ServiceAccount tokens with which the gateways of `cluster` join.
#[must_use]
pub fn audience(trust_domain: &TrustDomain, cluster: &str) -> String {
    format!("archipelago/{trust_domain}/{cluster}")
}

impl TryFrom<Raw> for JoinConfig {
    type Error = EnrolError;

    fn try_from(raw: Raw) -> Result<Self, EnrolError> {
        let malformed = |what: String| EnrolError::MalformedConfig { what };
        let Raw { control_plane, trust_domain, cluster, ca_sha256 } = raw;
        let trust_domain = trust_domain.parse().map_err(|error| malformed(format!("trustDomain: {error}")))?;
        if control_plane.is_empty() {
            return Err(malformed("controlPlane names no member, expected host:port of each".to_owned()));
        }
        if cluster.is_empty() {
            return Err(malformed("cluster is empty".to_owned()));
        }
        Ok(Self { control_plane, trust_domain, cluster, ca_sha256 })
    }
}

impl FromStr for JoinConfig {
    type Err = EnrolError;

    fn from_str(text: &str) -> Result<Self, EnrolError> {
        if text.len() > CONFIG_BYTES_MAX {
            return Err(EnrolError::MalformedConfig { what: "it is too long".to_owned() });
        }
        let raw: Raw =
            serde_json::from_str(text).map_err(|error| EnrolError::MalformedConfig { what: error.to_string() })?;
        Self::try_from(raw)
    }
}

impl fmt::Display for JoinConfig {
    /// JSON, as it is read.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let raw = Raw {
            control_plane: self.control_plane.clone(),
            trust_domain: self.trust_domain.to_string(),
            cluster: self.cluster.clone(),
            ca_sha256: self.ca_sha256,
        };
        out.write_str(&serde_json::to_string(&raw).map_err(|_| fmt::Error)?)
    }
}

/// As for a token: a hundred members' addresses fit.
const CONFIG_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            control_plane: vec!["cp.example:7400".into()],
            trust_domain: "mesh.example".into(),
            cluster: "paris".into(),
            role: "agent".into(),
            name: "agent".into(),
            secret: [7; 32],
            ca_sha256: [9; 32],
            expires_unix: 1_800_000_000,
        }
    }

    #[test]
    fn it_survives_its_text_form_and_holds_no_secret() {
        let config = JoinConfig::of(&token()).unwrap();
        let text = config.to_string();
        assert_eq!(
            text,
            r#"{"controlPlane":["cp.example:7400"],"trustDomain":"mesh.example","cluster":"paris","caSha256":"CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk"}"#
        );
        assert_eq!(text.parse::<JoinConfig>().unwrap(), config);
        assert_eq!(config.audience(), "archipelago/mesh.example/paris");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = JoinConfig::of(&token()).unwrap().to_string();
        for (text, says) in [
            (good.replace("mesh.example\"", "Mesh Example\""), "trustDomain"),
            (good.replace("\"cp.example:7400\"", ""), "controlPlane"),
            (good.replace("paris", ""), "cluster is empty"),
            (good.replace("CQkJ", ""), "expected 32 bytes"),
            (good.replace("\"cluster\"", "\"clutser\""), "clutser"),
            ("amt1.abc".to_owned(), "this is not a join configuration"),
            (" ".repeat(20_000), "too long"),
        ] {
            let error = text.parse::<JoinConfig>().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
