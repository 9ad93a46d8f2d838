//! The text that lets one process join, once.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::EnrolError;

/// What `meshctl token create` prints and a joining process is given: `amt1.` and base64url of JSON.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// host:port of every control-plane member.
    #[serde(rename = "cp")]
    pub control_plane: Vec<String>,
    /// Trust domain of the federation.
    #[serde(rename = "td")]
    pub trust_domain: String,
    /// Cluster the token is bound to.
    #[serde(rename = "c")]
    pub cluster: String,
    /// `agent` or `gateway`.
    #[serde(rename = "r")]
    pub role: String,
    /// Name within the cluster.
    #[serde(rename = "n")]
    pub name: String,
    /// 256 random bits; the control plane keeps only their hash.
    #[serde(rename = "s", with = "base64_bytes")]
    pub secret: [u8; 32],
    /// SHA-256 of the root certificate's DER.
    #[serde(rename = "ca", with = "base64_bytes")]
    pub ca_sha256: [u8; 32],
    /// Unix seconds after which the control plane refuses it.
    #[serde(rename = "exp")]
    pub expires_unix: i64,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(out, "{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for JoinToken {
    type Err = EnrolError;

    fn from_str(text: &str) -> Result<Self, EnrolError> {
        let malformed = |what: &str| EnrolError::MalformedToken { what: what.to_owned() };
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(malformed("it is too long"));
        }
        let base64 = text.strip_prefix(TOKEN_PREFIX).ok_or_else(|| malformed("it does not begin with `amt1.`"))?;
        let json = BASE64_URL_SAFE_NO_PAD.decode(base64).map_err(|_| malformed("it is cut off or mistyped"))?;
        serde_json::from_slice(&json).map_err(|_| malformed("its content is not that of a token"))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secret.
        write!(out, "JoinToken({} {} of {}, {})", self.role, self.name, self.cluster, self.trust_domain)
    }
}

/// 32 bytes as base64url without padding.
pub(super) mod base64_bytes {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("expected 32 bytes"))
    }
}

const TOKEN_PREFIX: &str = "amt1.";
/// A hundred members' addresses fit; garbage of any size is not decoded.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            control_plane: vec!["127.0.0.1:7400".into()],
            trust_domain: "mesh.example".into(),
            cluster: "paris".into(),
            role: "gateway".into(),
            name: "gw-1".into(),
            secret: [7; 32],
            ca_sha256: [9; 32],
            expires_unix: 1_800_000_000,
        }
    }

    #[test]
    fn a_token_survives_its_text_form_and_hides_its_secret() {
        let text = token().to_string();
        assert!(text.starts_with("amt1."));
        assert_eq!(text.parse::<JoinToken>().unwrap(), token());
        assert!(!format!("{:?}", token()).contains('7'));
    }

    #[test]
    fn damage_to_a_token_is_told_apart() {
        let text = token().to_string();
        for (damaged, says) in [
            ("hello".to_owned(), "does not begin"),
            (text[..text.len() - 3].to_owned(), ""),
            (format!("amt1.{}", "A".repeat(20_000)), "too long"),
            ("amt1.!!!".to_owned(), "cut off or mistyped"),
        ] {
            let error = damaged.parse::<JoinToken>().unwrap_err().to_string();
            assert!(error.contains("not a join token") && error.contains(says), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_the_token_parser(text in "(amt1\\.)?.{0,300}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
