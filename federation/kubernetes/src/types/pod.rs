use std::{net::IpAddr, sync::Arc};

use archipelago_agent::provider::Workload;
use serde::Deserialize;

use super::{Kind, Meta, Names, Resource};

/// A pod: whose it is, where it runs, and the addresses it has. Kept only while it has addresses or can still get some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Whose it is, and its `status.podIPs`; empty until the node says. Held by whoever has to know it, and once.
    pub who: Arc<Workload>,
    /// Empty until it is scheduled.
    pub node: Option<Arc<str>>,
    /// It shares the addresses of its node, and so with others.
    pub is_host_network: bool,
    /// It is being deleted; it still has its addresses until it is gone.
    pub is_terminating: bool,
    /// It will never run again, and its addresses may be somebody else's already.
    pub is_over: bool,
    /// Condition `Ready`.
    pub is_ready: bool,
    /// Label `app.kubernetes.io/version`, else `version`.
    pub version: Option<Arc<str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
/// As the API server sends it.
pub struct Raw {
    metadata: Meta,
    spec: RawSpec,
    status: RawStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    host_network: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawStatus {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<RawIp>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Vec<RawCondition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawCondition {
    r#type: String,
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawIp {
    ip: String,
}

impl Kind for Pod {
    type Raw = Raw;
    const RESOURCE: Resource = Resource { group: "", version: "v1", plural: "pods" };

    fn keep(raw: Raw, names: &mut Names) -> Option<Self> {
        let Raw { metadata, spec, status } = raw;
        let version = VERSION_LABELS.iter().find_map(|label| metadata.labels.get(*label));
        let mut ips: Vec<IpAddr> = status.pod_ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect();
        if ips.is_empty() {
            ips.extend(status.pod_ip.and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
        let account = spec.service_account_name.as_deref().unwrap_or("default");
        Some(Self {
            who: Arc::new(Workload {
                namespace: names.intern(&metadata.namespace),
                service_account: names.intern(account),
                uid: metadata.uid.as_str().into(),
                ips: ips.into_iter().collect(),
            }),
            node: names.intern_some(spec.node_name.as_deref()),
            is_host_network: spec.host_network,
            is_terminating: metadata.deletion_timestamp.is_some(),
            is_ready: status.conditions.iter().any(|it| it.r#type == "Ready" && it.status == "True"),
            is_over: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
            version: names.intern_some(version),
        })
    }

    fn share(&mut self, before: &Self) {
        if self.who == before.who {
            self.who = before.who.clone();
        }
    }
}

const VERSION_LABELS: [&str; 2] = ["app.kubernetes.io/version", "version"];
