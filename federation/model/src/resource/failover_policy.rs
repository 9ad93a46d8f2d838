//! `kind: FailoverPolicy`: the order of clusters, where requests may never go, and how they return.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::{
    document::decode::{Cursor, Fields, Mistakes},
    duration,
};

/// In a tier's `clusters`: the cluster of the gateway that routes.
pub const LOCAL: &str = "@local";
/// In a tier's `regions`: the region of the gateway that routes.
pub const SAME: &str = "@same";

/// Where requests of a service go when the preferred place cannot serve.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FailoverPolicySpec {
    /// Name of the service, in the namespace of this resource.
    pub service: String,
    /// Tiers, tried in order; empty: the local cluster, its region, the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<FailoverTier>,
    /// A hard limit on every chain; none: anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residency: Option<Residency>,
    /// How a cluster that was away gets its share back.
    #[serde(default, skip_serializing_if = "Failback::is_default")]
    pub failback: Failback,
    /// Clusters that an operator moved traffic away from; `meshctl failover trigger`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<String>,
}

/// One tier: clusters by name or by region; in YAML `{ clusters: [a] }` or `{ regions: [r] }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailoverTier {
    /// Names, or [`LOCAL`].
    Clusters(Vec<String>),
    /// Regions, or [`SAME`].
    Regions(Vec<String>),
}

/// Clusters that may ever see a request: those in the regions and those by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Residency {
    /// Regions as they stand in the clusters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
    /// Names of clusters, whatever their region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<String>,
}

impl Residency {
    /// Whether a cluster in `region` may serve.
    #[must_use]
    pub fn allows(&self, cluster: &str, region: &str) -> bool {
        self.clusters.iter().any(|name| name == cluster) || self.regions.iter().any(|name| name == region)
    }
}

/// How a cluster that was away gets its share back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Failback {
    /// It must have been well for this long.
    #[serde(with = "duration")]
    pub after: Duration,
    /// Then its share grows from nothing to full over this time.
    #[serde(with = "duration")]
    pub ramp: Duration,
    /// By itself, or only when an operator says so.
    pub mode: FailbackMode,
}

/// Who decides that a cluster may return.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailbackMode {
    /// The gateways.
    #[default]
    Auto,
    /// An operator: `meshctl failover release`.
    Manual,
}

impl Failback {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Self {
        let mut failback = Self::default();
        let Some(mut fields) = at.fields(out) else { return failback };
        if let Some(cursor) = fields.optional("after") {
            failback.after = cursor.duration(out);
        }
        if let Some(cursor) = fields.optional("ramp") {
            failback.ramp = cursor.duration(out);
        }
        if let Some(cursor) = fields.optional("mode") {
            let modes = [("auto", FailbackMode::Auto), ("manual", FailbackMode::Manual)];
            failback.mode = cursor.one_of(&modes, out).unwrap_or_default();
        }
        fields.finish(out);
        failback
    }
}

impl Default for Failback {
    /// A killed process is back in about a second; two more tell a restart from a crash loop. Five seconds of ramp let
    /// connection pools and caches fill without anyone noticing that a cluster was gone.
    fn default() -> Self {
        Self { after: Duration::from_secs(2), ramp: Duration::from_secs(5), mode: FailbackMode::Auto }
    }
}

impl Spec for FailoverPolicySpec {
    fn decode(fields: Option<Fields<'_>>, at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let Some(mut fields) = fields else {
            at.wrong(out, "`spec` is missing");
            return None;
        };
        let service = fields.text("service", out);
        let order = fields.optional("order").map_or_else(Vec::new, |cursor| cursor.list(out, FailoverTier::decode));
        let residency = fields.optional("residency").map(|cursor| Residency::decode(&cursor, out));
        let failback =
            fields.optional("failback").map_or_else(Failback::default, |cursor| Failback::decode(&cursor, out));
        let avoid = fields.optional("avoid").map_or_else(Vec::new, |cursor| cursor.texts(out));
        fields.finish(out);
        Some(Self { service, order, residency, failback, avoid })
    }
}

impl FailoverTier {
    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let mut fields = at.fields(out)?;
        let clusters = fields.optional("clusters").map(|cursor| cursor.texts(out));
        let regions = fields.optional("regions").map(|cursor| cursor.texts(out));
        fields.finish(out);
        match (clusters, regions) {
            (Some(clusters), None) => Some(Self::Clusters(clusters)),
            (None, Some(regions)) => Some(Self::Regions(regions)),
            (Some(clusters), Some(_)) => {
                at.wrong(out, "a tier has either `clusters` or `regions`, not both");
                Some(Self::Clusters(clusters))
            }
            (None, None) => {
                at.wrong(out, "a tier needs `clusters` or `regions`");
                None
            }
        }
    }
}

impl Residency {
    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Self {
        let Some(mut fields) = at.fields(out) else { return Self::default() };
        let regions = fields.optional("regions").map_or_else(Vec::new, |cursor| cursor.texts(out));
        let clusters = fields.optional("clusters").map_or_else(Vec::new, |cursor| cursor.texts(out));
        fields.finish(out);
        Self { regions, clusters }
    }
}
