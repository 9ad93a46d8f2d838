//! `kind: Cluster`.

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::document::decode::{Cursor, Fields, Mistakes};

/// What a federation knows of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterSpec {
    /// Region for locality and residency, an RFC 1123 label such as `eu-west`.
    pub region: String,
    /// Takes no new requests while another cluster can; `meshctl cluster drain`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// Its users may write policies there, which then count in the whole federation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub policies: bool,
}

impl Spec for ClusterSpec {
    fn decode(fields: Option<Fields<'_>>, at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let Some(mut fields) = fields else {
            at.wrong(out, "`spec` is missing");
            return None;
        };
        let region = fields.text("region", out);
        let drained = fields.optional("drained").is_some_and(|cursor| cursor.boolean(out));
        let policies = fields.optional("policies").is_some_and(|cursor| cursor.boolean(out));
        fields.finish(out);
        Some(Self { region, drained, policies })
    }
}
