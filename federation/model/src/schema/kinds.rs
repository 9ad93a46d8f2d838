//! The declarations, field by field.

use super::{Field, Pattern, Rule, Schema, Shape};
use crate::{
    admit::limits::{BACKENDS_MAX, PATH_BYTES_MAX, ROUTES_MAX, TIERS_MAX, TOKEN_BYTES_MAX, VALUE_BYTES_MAX},
    document::decode::LIST_ITEMS_MAX,
    duration, feature,
    resource::{Backend, StreamLimits},
};

pub(super) fn cluster() -> Schema {
    object(
        "A cluster of the federation.",
        vec![
            required("region", text("Region for locality and residency, such as `eu-west`.", LABEL)),
            optional("drained", boolean("Takes no new requests while another cluster can; `meshctl cluster drain`."))
                .or("false"),
            optional(
                "policies",
                boolean("Its users may write policies there, which then count in the whole federation."),
            )
            .or("false"),
        ],
    )
}

pub(super) fn service_export() -> Schema {
    object(
        "Offers the service of the same name and namespace to the other clusters.",
        vec![
            optional(
                "clusters",
                names(
                    "Clusters that may export it and do, whatever their agents say; empty: every cluster whose agent reports the service.",
                    LABEL,
                    0,
                ),
            )
            .or("[]"),
        ],
    )
}

pub(super) fn traffic_split() -> Schema {
    object(
        "Which share of which requests of a service goes where.",
        vec![
            required("service", text("Name of the service, in the namespace of this object.", LABEL)),
            optional("sticky", sticky()),
            optional(
                "routes",
                list("Requests that are singled out; the first that matches wins.", route(), 0, ROUTES_MAX),
            )
            .or("[]"),
            optional("backends", backends("Requests that no route matched; empty: by failover order alone.", 0))
                .or("[]"),
        ],
    )
    .with(Rule {
        cel: "(has(self.backends) && self.backends.size() > 0) || (has(self.routes) && self.routes.size() > 0)",
        message: "a TrafficSplit needs `backends` or `routes`",
        bad: r#"{"service":"checkout","routes":[]}"#,
    })
}

pub(super) fn failover_policy() -> Schema {
    object(
        "Where requests of a service go when the preferred place cannot serve, and where they never may.",
        vec![
            required("service", text("Name of the service, in the namespace of this object.", LABEL)),
            optional(
                "order",
                list("Tiers, tried in order; empty: the local cluster, its region, the rest.", tier(), 0, TIERS_MAX),
            )
            .or("[]"),
            optional("residency", residency()),
            optional("failback", failback()),
            optional("avoid", names("Clusters that an operator moved traffic away from.", LABEL, 0)).or("[]"),
        ],
    )
}

pub(super) fn backend_policy() -> Schema {
    let rate = Schema {
        description: "Bytes in a second that a client must give of a body that is waited for; 0: any.",
        shape: Shape::Number { min: 0, max: StreamLimits::RATE_MAX },
        rules: Vec::new(),
    };
    let limits = object(
        "How slow clients and endpoints may be with one request. What is absent is as the gateways have it; `none` is no limit.",
        vec![
            optional("uploadIdle", text("How long a client may give nothing of a body that is waited for.", LIMIT)),
            optional("uploadMinRate", rate),
            optional("uploadGrace", text("The stretch of waiting over which that is measured.", GRACE)),
            optional("downloadIdle", text("How long a client may take nothing of a response that is there.", LIMIT)),
            optional(
                "endpointIdle",
                text(
                    "How long an endpoint may take nothing of an upload that is there, or give nothing of a response whose length it has said.",
                    LIMIT,
                ),
            ),
            optional(
                "streamIdle",
                text(
                    "How long nothing may pass either way once a response has begun whose length nobody knows.",
                    LIMIT,
                ),
            ),
        ],
    )
    .with(Rule {
        cel: "self.size() > 0",
        message: "needs at least one limit: without any, nothing would be other than without this policy",
        bad: "{}",
    });
    object(
        "How gateways treat the clients and endpoints of a service.",
        vec![
            required("service", text("Name of the service, in the namespace of this object.", LABEL)),
            required("limits", limits).since(feature::STREAM_LIMITS),
        ],
    )
}

fn sticky() -> Schema {
    object(
        "The part of a request that identifies its user, who then stays in place while shares stay.",
        vec![
            optional("header", text("Name of a request header.", HEADER).with(RESERVED_HEADER))
                .since(feature::STICKY_HEADER),
            optional("cookie", text("Name of a cookie.", COOKIE)).since(feature::STICKY_COOKIE),
        ],
    )
    .with(Rule {
        cel: "has(self.header) != has(self.cookie)",
        message: "expected exactly one of `header` and `cookie`",
        bad: r#"{"header":"x-user","cookie":"user"}"#,
    })
}

fn route() -> Schema {
    let matches = object(
        "What a request must look like; all that are given must match.",
        vec![
            optional("headers", texts("Name of a header and its exact value.", HEADER_VALUE)).since("match.header.exact"),
            optional("cookies", texts("Name of a cookie and its exact value.", HEADER_VALUE)).since("match.cookie.exact"),
            optional("pathPrefix", text("Whole segments of the path, from its beginning.", PATH)).since("match.path.prefix"),
            optional("method", text("In upper case.", METHOD)).since("match.method"),
        ],
    )
    .with(Rule {
        cel: "has(self.method) || has(self.pathPrefix) || (has(self.headers) && self.headers.size() > 0) || (has(self.cookies) && self.cookies.size() > 0)",
        message: "an empty match takes every request: put these backends into `spec.backends`",
        bad: r#"{"headers":{}}"#,
    });
    object(
        "Requests that match go to these backends.",
        vec![required("match", matches), required("backends", backends("Where they go.", 1))],
    )
}

fn backends(description: &'static str, min: usize) -> Schema {
    let backend = object(
        "A cluster, optionally one version of the service there, and its share.",
        vec![
            required("cluster", text("Name of the cluster.", LABEL)),
            optional("version", text("Version of the service there; absent: any.", VERSION)),
            optional(
                "weight",
                Schema {
                    description: "Relative to the other backends of the list; absent: 1.",
                    shape: Shape::Number { min: 0, max: Backend::WEIGHT_MAX },
                    rules: Vec::new(),
                },
            )
            .or("1"),
        ],
    );
    list(description, backend, min, BACKENDS_MAX).with(Rule {
        cel: "self.size() == 0 || self.exists(b, !has(b.weight) || b.weight > 0)",
        message: "every weight is 0: no backend would get a request",
        bad: r#"[{"cluster":"paris","weight":0},{"cluster":"tokyo","weight":0}]"#,
    })
}

fn tier() -> Schema {
    object(
        "Clusters by name, or by region.",
        vec![
            optional(
                "clusters",
                names("Names of clusters, or `@local`: the one where the request is.", TIER_CLUSTER, 1),
            ),
            optional("regions", names("Regions, or `@same`: the one where the request is.", TIER_REGION, 1)),
        ],
    )
    .with(Rule {
        cel: "has(self.clusters) != has(self.regions)",
        message: "a tier has either `clusters` or `regions`",
        bad: r#"{"clusters":["paris"],"regions":["eu-west"]}"#,
    })
}

fn residency() -> Schema {
    object(
        "A hard limit: only clusters in these regions and those by name may ever see a request.",
        vec![
            optional("regions", names("Regions as they stand in the clusters.", LABEL, 0)).or("[]"),
            optional("clusters", names("Names of clusters, whatever their region.", LABEL, 0)).or("[]"),
        ],
    )
    .with(Rule {
        cel: "(has(self.regions) && self.regions.size() > 0) || (has(self.clusters) && self.clusters.size() > 0)",
        message: "needs `regions` or `clusters`: nobody could serve otherwise",
        bad: r#"{"regions":[]}"#,
    })
}

fn failback() -> Schema {
    object(
        "How a cluster that was away gets its share back.",
        vec![
            optional("after", text("It must have been well for this long, such as `10s`.", DURATION)).or("\"2s\""),
            optional("ramp", text("Then its share grows from nothing to full over this time.", DURATION)).or("\"5s\""),
            optional(
                "mode",
                Schema {
                    description: "By itself, or only when an operator says so.",
                    shape: Shape::Word(&["auto", "manual"]),
                    rules: Vec::new(),
                },
            )
            .or("\"auto\""),
        ],
    )
}

impl Schema {
    fn with(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

impl Field {
    fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    fn since(self, feature: &'static str) -> Self {
        Self { feature: Some(feature), ..self }
    }
}

fn object(description: &'static str, fields: Vec<Field>) -> Schema {
    Schema { description, shape: Shape::Object(fields), rules: Vec::new() }
}

fn text(description: &'static str, pattern: Pattern) -> Schema {
    Schema { description, shape: Shape::Text(pattern), rules: Vec::new() }
}

fn boolean(description: &'static str) -> Schema {
    Schema { description, shape: Shape::Boolean, rules: Vec::new() }
}

fn texts(description: &'static str, values: Pattern) -> Schema {
    Schema { description, shape: Shape::Texts(values), rules: Vec::new() }
}

fn list(description: &'static str, items: Schema, min: usize, max: usize) -> Schema {
    Schema { description, shape: Shape::List { items: Box::new(items), min, max, set: false }, rules: Vec::new() }
}

fn names(description: &'static str, pattern: Pattern, min: usize) -> Schema {
    let items = Box::new(text("A name.", pattern));
    Schema { description, shape: Shape::List { items, min, max: LIST_ITEMS_MAX, set: true }, rules: Vec::new() }
}

fn required(name: &'static str, schema: Schema) -> Field {
    Field { name, required: true, schema, default: None, feature: None }
}

fn optional(name: &'static str, schema: Schema) -> Field {
    Field { name, required: false, schema, default: None, feature: None }
}

const RESERVED_HEADER: Rule = Rule {
    cel: "!self.lowerAscii().startsWith('mesh-')",
    message: "headers that begin with `mesh-` belong to the gateways",
    bad: r#""Mesh-Source""#,
};

const LABEL: Pattern = Pattern {
    regex: "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    min: 1,
    max: 63,
    good: &["a", "checkout", "a-1", "0"],
    bad: &["A", "-a", "a-", "a.b", "@local", "a b"],
};
const TIER_CLUSTER: Pattern = Pattern {
    regex: "^(@local|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$",
    good: &["@local", "paris"],
    bad: &["@same", "@", "Paris"],
    ..LABEL
};
const TIER_REGION: Pattern = Pattern {
    regex: "^(@same|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$",
    good: &["@same", "eu-west"],
    bad: &["@local", "@", "EU"],
    ..LABEL
};
const VERSION: Pattern = Pattern {
    regex: "^[-._a-zA-Z0-9]+$",
    min: 1,
    max: 63,
    good: &["v1", "1.2.3", "2026-11-30_a"],
    bad: &["v 1", "v/1", "ü"],
};
const HEADER: Pattern = Pattern {
    regex: "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$",
    min: 1,
    max: TOKEN_BYTES_MAX,
    good: &["x-user", "X-User", "a!b"],
    bad: &["x user", "x:y", "ü", "(a)"],
};
const COOKIE: Pattern = HEADER;
const HEADER_VALUE: Pattern = Pattern {
    regex: "^([!-~]([ -~]*[!-~])?)?$",
    min: 0,
    max: VALUE_BYTES_MAX,
    good: &["", "pr-42", "a b", "~"],
    bad: &[" a", "a ", "ü", "a\tb"],
};
const PATH: Pattern = Pattern {
    regex: r#"^/[!-"$->@-~]*$"#,
    min: 1,
    max: PATH_BYTES_MAX,
    good: &["/", "/api/v1", "/~a"],
    bad: &["api", "/a?b", "/a#b", "/a b", "/ü"],
};
const METHOD: Pattern =
    Pattern { regex: "^[A-Z]+$", min: 1, max: 32, good: &["GET", "M"], bad: &["get", "G T", "M-SEARCH"] };
/// Its grammar has many forms; only admission knows them all.
const DURATION: Pattern =
    Pattern { regex: "", min: 1, max: duration::TEXT_BYTES_MAX, good: &["500ms", "2s", "1h 30m"], bad: &[] };
/// A duration of at least [`StreamLimits::TIME_MIN`].
const GRACE: Pattern = Pattern { good: &["1s", "1h 30m"], bad: &["500ms", "never", "none"], ..DURATION };
/// The same, or none.
const LIMIT: Pattern = Pattern { good: &["1s", "1h 30m", "none"], bad: &["500ms", "never"], ..DURATION };

#[cfg(test)]
mod tests;
