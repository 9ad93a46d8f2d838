//! `kind: ServiceExport`, after the Multi-Cluster Services API: same name and namespace as the service.

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::document::decode::{Cursor, Fields, Mistakes};

/// Which clusters offer the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceExportSpec {
    /// Clusters that export it; empty: every cluster whose agent reports the service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<String>,
}

impl Spec for ServiceExportSpec {
    fn decode(fields: Option<Fields<'_>>, _at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let Some(mut fields) = fields else { return Some(Self::default()) };
        let clusters = fields.optional("clusters").map_or_else(Vec::new, |cursor| cursor.texts(out));
        fields.finish(out);
        Some(Self { clusters })
    }
}
