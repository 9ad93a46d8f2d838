//! `kind: BackendPolicy`: how gateways treat the clients and endpoints of a service.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::{
    document::decode::{Cursor, Fields, Mistakes},
    duration,
};

/// How gateways treat the clients and endpoints of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BackendPolicySpec {
    /// Name of the service, in the namespace of this resource.
    pub service: String,
    /// How slow they may be.
    pub limits: StreamLimits,
}

/// How slow clients and endpoints may be with one request. What is absent is as the gateways have it; a time of zero, in YAML `none`,
/// is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct StreamLimits {
    /// How long a client may give nothing of a body that is waited for.
    #[serde(with = "duration::limit", skip_serializing_if = "Option::is_none")]
    pub upload_idle: Option<Duration>,
    /// Bytes in a second that a client must give of a body that is waited for; 0: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_min_rate: Option<u32>,
    /// The stretch of waiting over which that is measured; never zero.
    #[serde(with = "duration::limit", skip_serializing_if = "Option::is_none")]
    pub upload_grace: Option<Duration>,
    /// How long a client may take nothing of a response that is there.
    #[serde(with = "duration::limit", skip_serializing_if = "Option::is_none")]
    pub download_idle: Option<Duration>,
    /// How long an endpoint may take nothing of an upload that is there, or give nothing of a response whose length it has said.
    #[serde(with = "duration::limit", skip_serializing_if = "Option::is_none")]
    pub endpoint_idle: Option<Duration>,
    /// How long nothing may pass either way once a response has begun whose length nobody knows.
    #[serde(with = "duration::limit", skip_serializing_if = "Option::is_none")]
    pub stream_idle: Option<Duration>,
}

impl StreamLimits {
    /// More is a slow network's best day.
    pub const RATE_MAX: u32 = 1_000_000;
    /// Networks that work pause for longer than anything below.
    pub const TIME_MIN: Duration = Duration::from_secs(1);

    /// Whether it says anything at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The times that may be none, by their names.
    pub fn times(&self) -> impl Iterator<Item = (&'static str, Duration)> {
        let times = [
            ("uploadIdle", self.upload_idle),
            ("downloadIdle", self.download_idle),
            ("endpointIdle", self.endpoint_idle),
            ("streamIdle", self.stream_idle),
        ];
        times.into_iter().filter_map(|(name, time)| Some((name, time?)))
    }

    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Self {
        let Some(mut fields) = at.fields(out) else { return Self::default() };
        let mut time = |name| fields.optional(name).map(|cursor| cursor.limit(out));
        let (upload_idle, download_idle) = (time("uploadIdle"), time("downloadIdle"));
        let (endpoint_idle, stream_idle) = (time("endpointIdle"), time("streamIdle"));
        let upload_min_rate = fields.optional("uploadMinRate").map(|cursor| cursor.number(0, Self::RATE_MAX, out));
        let upload_grace = fields.optional("uploadGrace").map(|cursor| cursor.duration(out));
        fields.finish(out);
        Self { upload_idle, upload_min_rate, upload_grace, download_idle, endpoint_idle, stream_idle }
    }
}

impl Spec for BackendPolicySpec {
    fn decode(fields: Option<Fields<'_>>, at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let Some(mut fields) = fields else {
            at.wrong(out, "`spec` is missing");
            return None;
        };
        let service = fields.text("service", out);
        let limits = fields.required("limits").map_or_else(StreamLimits::default, |c| StreamLimits::decode(&c, out));
        fields.finish(out);
        Some(Self { service, limits })
    }
}
