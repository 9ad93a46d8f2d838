//! `cluster drain` and `cluster uncordon`.

use archipelago_proto::v1::{ServiceClusterStatus, ServiceStatus};
use serde_json::Value;

use super::{object, set};

/// The cluster with `spec.drained` set or gone.
#[must_use]
pub fn drained(current: &Value, drained: bool) -> Value {
    let mut cluster = current.clone();
    set(object(&mut cluster, "spec"), "drained", drained.then_some(Value::Bool(true)));
    cluster
}

/// The services, "namespace/name", that `cluster` serves and no other can: drained, it goes on with them. One of which nothing is known
/// at another cluster counts.
#[must_use]
pub fn last_to_serve(cluster: &str, services: &[ServiceStatus]) -> Vec<String> {
    let serves = |status: &ServiceClusterStatus| status.cluster == cluster && status.ready > 0;
    let could = |status: &ServiceClusterStatus| {
        status.cluster != cluster && status.ready > 0 && !matches!(status.state.as_str(), "drained" | "unknown")
    };
    let alone =
        services.iter().filter(|service| service.clusters.iter().any(serves) && !service.clusters.iter().any(could));
    alone.map(|service| format!("{}/{}", service.namespace, service.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whoever_serves_alone_is_found() {
        let service = |name: &str, clusters: &[(&str, u32, &str)]| ServiceStatus {
            namespace: "shop".into(),
            name: name.into(),
            clusters: clusters
                .iter()
                .map(|&(cluster, ready, state)| ServiceClusterStatus {
                    cluster: cluster.into(),
                    ready,
                    state: state.into(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let services = [
            service("both", &[("paris", 1, "ready"), ("tokyo", 1, "degraded")]),
            service("spare", &[("paris", 1, "ready"), ("tokyo", 1, "avoided")]),
            service("alone", &[("paris", 1, "ready")]),
            service("down", &[("paris", 1, "ready"), ("tokyo", 0, "down")]),
            service("drained", &[("paris", 1, "ready"), ("tokyo", 2, "drained")]),
            service("unknown", &[("paris", 1, "ready"), ("tokyo", 2, "unknown")]),
            service("elsewhere", &[("paris", 0, "down"), ("tokyo", 1, "ready")]),
        ];
        assert_eq!(last_to_serve("paris", &services), ["shop/alone", "shop/down", "shop/drained", "shop/unknown"]);
        assert_eq!(last_to_serve("tokyo", &services), ["shop/elsewhere"]);
    }

    #[test]
    fn draining_and_back_is_where_it_was() {
        let paris = json!({ "kind": "Cluster", "metadata": { "name": "paris" }, "spec": { "region": "eu-west" } });
        let out = drained(&paris, true);
        assert_eq!(out["spec"], json!({ "region": "eu-west", "drained": true }));
        assert_eq!(drained(&out, false), paris);
    }
}
