//! `kind: ServiceExport`, after the Multi-Cluster Services API: same name and namespace as the service.
//!
//! Who exports a service is said in two places. A cluster says it of itself: its agent reports the service as exported.
//! An operator says it for the federation, with this resource, and then it is his word alone that counts: without
//! `clusters` every cluster that reports the service exports it, with `clusters` those do *and no others*, whatever
//! their agents say. So an export can be given, and it can be taken away from a cluster that claims it.

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::document::decode::{Cursor, Fields, Mistakes};

/// Which clusters offer the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceExportSpec {
    /// Clusters that may export it and do; empty: every cluster whose agent reports the service.
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
