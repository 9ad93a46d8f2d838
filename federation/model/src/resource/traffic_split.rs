//! `kind: TrafficSplit`: explicit shares by cluster and version, and routes that single requests out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::document::decode::{Cursor, Fields, Mistakes};

/// Which share of which requests of a service goes where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TrafficSplitSpec {
    /// Name of the service, in the namespace of this resource.
    pub service: String,
    /// What keeps a user in place while shares stay; none: every request draws anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// First match wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Requests that no route matched; empty: by failover order alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
}

/// The part of a request that identifies its user; in YAML `sticky: { header: x-user }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Sticky {
    /// Value of this request header, its name in lower case.
    Header(String),
    /// Value of this cookie.
    Cookie(String),
}

/// Requests that match go to these backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Route {
    /// All that are given must match.
    #[serde(rename = "match")]
    pub matches: RouteMatch,
    /// Never empty.
    pub backends: Vec<Backend>,
}

/// What a request must look like; at least one condition is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteMatch {
    /// Header name in lower case → exact value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Cookie name → exact value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cookies: BTreeMap<String, String>,
    /// Begins with `/`; matches whole path segments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// Upper case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// A cluster, optionally one version of the service there, and its share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Backend {
    /// Name of the cluster.
    pub cluster: String,
    /// None: any version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Relative to the other backends of the same list; 0 to [`Backend::WEIGHT_MAX`].
    pub weight: u32,
}

impl Backend {
    /// Fine enough for a share of one in a million.
    pub const WEIGHT_MAX: u32 = 1_000_000;

    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let mut fields = at.fields(out)?;
        let cluster = fields.text("cluster", out);
        let version = fields.optional("version").map(|cursor| cursor.text(out));
        // Absent means an equal share, as in the Gateway API.
        let weight = fields.optional("weight").map_or(1, |cursor| cursor.number(0, Self::WEIGHT_MAX, out));
        fields.finish(out);
        Some(Self { cluster, version, weight })
    }
}

impl Spec for TrafficSplitSpec {
    fn decode(fields: Option<Fields<'_>>, at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let Some(mut fields) = fields else {
            at.wrong(out, "`spec` is missing");
            return None;
        };
        let service = fields.text("service", out);
        let sticky = fields.optional("sticky").and_then(|cursor| Sticky::decode(&cursor, out));
        let routes = fields.optional("routes").map_or_else(Vec::new, |cursor| cursor.list(out, Route::decode));
        let backends = fields.optional("backends").map_or_else(Vec::new, |cursor| cursor.list(out, Backend::decode));
        fields.finish(out);
        Some(Self { service, sticky, routes, backends })
    }
}

impl Sticky {
    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let mut fields = at.fields(out)?;
        let header = fields.optional("header").map(|cursor| cursor.text(out));
        let cookie = fields.optional("cookie").map(|cursor| cursor.text(out));
        fields.finish(out);
        match (header, cookie) {
            (Some(header), None) => Some(Self::Header(header.to_ascii_lowercase())),
            (None, Some(cookie)) => Some(Self::Cookie(cookie)),
            (Some(_), Some(_)) | (None, None) => {
                at.wrong(out, "expected exactly one of `header` and `cookie`");
                None
            }
        }
    }
}

impl Route {
    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let mut fields = at.fields(out)?;
        let matches =
            fields.required("match").map_or_else(RouteMatch::default, |cursor| RouteMatch::decode(&cursor, out));
        let backends = fields.required("backends").map_or_else(Vec::new, |cursor| cursor.list(out, Backend::decode));
        fields.finish(out);
        Some(Self { matches, backends })
    }
}

impl RouteMatch {
    /// Whether it says anything at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty() && self.cookies.is_empty() && self.path_prefix.is_none() && self.method.is_none()
    }

    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Self {
        let Some(mut fields) = at.fields(out) else { return Self::default() };
        let mut headers = BTreeMap::new();
        if let Some(cursor) = fields.optional("headers") {
            for (name, value) in cursor.text_map(out) {
                // Header names are case-insensitive (RFC 9110 §5.1); two spellings of one are one key given twice.
                if headers.insert(name.to_ascii_lowercase(), value).is_some() {
                    cursor.wrong(out, format!("header `{}` is given twice", name.to_ascii_lowercase()));
                }
            }
        }
        let cookies = fields.optional("cookies").map_or_else(BTreeMap::new, |cursor| cursor.text_map(out));
        let path_prefix = fields.optional("pathPrefix").map(|cursor| cursor.text(out));
        let method = fields.optional("method").map(|cursor| cursor.text(out));
        fields.finish(out);
        Self { headers, cookies, path_prefix, method }
    }
}
