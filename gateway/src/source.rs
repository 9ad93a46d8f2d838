//! Who a request is from: the workload behind a client's connection, by its address, and how that is told onwards.
//!
//! The gateway of the client's node says it (`mesh-source`), the gateway of the backend's cluster believes it for workloads of
//! the cluster that the first one belongs to, and tells the backend as Envoy does (`x-forwarded-client-cert: URI=…`). Whoever
//! is not known is nobody: there is no such header then, and one that a client sends never passes.
//!
//! Costs one look into a table per connection, one comparison of numbers per request, two headers.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use archipelago_identity::{SpiffeId, TrustDomain};
use http::HeaderValue;

use crate::callers::{Caller, Pod, Table};

/// A workload of the federation, as messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// `mesh-source`, between gateways and to backends: its SPIFFE id.
    pub id: HeaderValue,
    /// `x-forwarded-client-cert`, to backends.
    pub xfcc: HeaderValue,
}

impl Workload {
    /// A pod of our own cluster; `None` for names that Kubernetes would not allow either.
    pub fn of_pod(trust_domain: &TrustDomain, cluster: &str, pod: &Pod) -> Option<Self> {
        let id = SpiffeId::workload(trust_domain, cluster, &pod.namespace, &pod.service_account).to_string();
        Self::vouched(&Vouches::new(trust_domain.as_str(), cluster), &id)
    }

    /// What a gateway says of its client, if it may say that.
    pub fn vouched(gateway: &Vouches, id: &str) -> Option<Self> {
        let (namespace, service_account) = id.strip_prefix(&*gateway.prefix)?.split_once("/sa/")?;
        // Nothing that could end the value of a header, or add to it.
        let is_fit = |segment: &str| {
            let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
            !matches!(segment, "" | "." | "..") && segment.len() <= NAME_BYTES_MAX && segment.bytes().all(allowed)
        };
        if !is_fit(namespace) || !is_fit(service_account) {
            return None;
        }
        Some(Self { id: HeaderValue::from_str(id).ok()?, xfcc: HeaderValue::try_from(format!("URI={id}")).ok()? })
    }

    /// Its SPIFFE id.
    pub fn as_str(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }
}

/// Whom a gateway may speak for: workloads of its own cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouches {
    prefix: Box<str>,
}

impl Vouches {
    /// For a gateway of this cluster.
    pub fn new(trust_domain: &str, cluster: &str) -> Self {
        Self { prefix: format!("spiffe://{trust_domain}/cluster/{cluster}/ns/").into() }
    }
}

/// The client at the other end of a connection. What it is was decided when the connection began: who has the address later is
/// somebody else, and until the same pod has it again the connection is nobody's.
#[derive(Debug)]
pub struct Source {
    ip: IpAddr,
    known: Option<(Arc<Pod>, Rc<Workload>)>,
    checked: Cell<u64>,
    holds: Cell<bool>,
}

impl Source {
    /// Whoever has the address now. `seen`: which picture of the node the worker has seen.
    pub fn of(ip: IpAddr, table: &Table, seen: u64, trust_domain: &TrustDomain, cluster: &str) -> Self {
        let known = match table.of(ip) {
            Caller::Pod(pod) => Workload::of_pod(trust_domain, cluster, &pod).map(|workload| (pod, Rc::new(workload))),
            Caller::Node | Caller::Unknown | Caller::Outsider => None,
        };
        Self { ip, holds: Cell::new(known.is_some()), known, checked: Cell::new(seen) }
    }

    /// Who it is, as far as the newest picture that the worker has seen still says so.
    pub fn current(&self, table: &Table, seen: u64) -> Option<&Rc<Workload>> {
        let (pod, workload) = self.known.as_ref()?;
        if self.checked.replace(seen) != seen {
            self.holds.set(matches!(table.of(self.ip), Caller::Pod(owner) if owner.uid == pod.uid && owner == *pod));
        }
        self.holds.get().then_some(workload)
    }
}

/// Longer than any name in Kubernetes.
const NAME_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use archipelago_proto::v1 as proto;

    use super::*;
    use crate::callers::Callers;

    fn domain() -> TrustDomain {
        "mesh.test".parse().unwrap()
    }

    /// `10.1.0.5` is this pod's; or nobody's.
    fn picture(pod: Option<(&str, &str, &str)>, fresh: bool) -> Callers {
        let workload = |(namespace, account, uid): (&str, &str, &str)| proto::Workload {
            ip: "10.1.0.5".into(),
            namespace: namespace.into(),
            service_account: account.into(),
            pod_uid: uid.into(),
        };
        let workloads = pod.into_iter().map(workload).collect();
        Callers::new(&proto::Workloads { fresh, workloads, node_ips: vec!["192.0.2.1".into()], zone: String::new() })
    }

    #[test]
    fn a_gateway_vouches_for_workloads_of_its_cluster_and_for_nobody_else() {
        let paris = Vouches::new("mesh.test", "paris");
        let good = "spiffe://mesh.test/cluster/paris/ns/shop/sa/web";
        let workload = Workload::vouched(&paris, good).unwrap();
        assert_eq!(
            (workload.as_str(), &workload.xfcc),
            (good, &HeaderValue::from_static("URI=spiffe://mesh.test/cluster/paris/ns/shop/sa/web"))
        );
        assert!(Workload::vouched(&paris, "spiffe://mesh.test/cluster/paris/ns/shop/sa/web.v2").is_some());
        for bad in [
            "",
            "spiffe://mesh.test/cluster/tokyo/ns/shop/sa/web",
            "spiffe://other.test/cluster/paris/ns/shop/sa/web",
            "spiffe://mesh.test/cluster/paris/gateway/gw-1",
            "spiffe://mesh.test/cluster/paris/agent/agent",
            "spiffe://mesh.test/control-plane/1",
            "spiffe://mesh.test/ns/shop/sa/web",
            "spiffe://mesh.test/cluster/paris/ns/shop/sa/",
            "spiffe://mesh.test/cluster/paris/ns//sa/web",
            "spiffe://mesh.test/cluster/paris/ns/shop/sa/web/x",
            "spiffe://mesh.test/cluster/paris/ns/a/b/sa/web",
            "spiffe://mesh.test/cluster/paris/ns/../sa/web",
            "spiffe://mesh.test/cluster/paris/ns/shop/sa/a/sa/b",
            "spiffe://mesh.test/cluster/paris/ns/shop/sa/web;By=spiffe://x",
            "spiffe://mesh.test/cluster/paris/ns/shop/sa/web,URI=spiffe://x",
            "spiffe://mesh.test/cluster/paris/ns/shop/sa/\"web\"",
            "spiffe://mesh.test/cluster/paris/ns/shop/sa/w eb",
            "spiffe://mesh.test/cluster/paris-2/ns/shop/sa/web",
            " spiffe://mesh.test/cluster/paris/ns/shop/sa/web",
        ] {
            assert_eq!(Workload::vouched(&paris, bad), None, "{bad}");
        }
        let long = format!("spiffe://mesh.test/cluster/paris/ns/shop/sa/{}", "a".repeat(254));
        assert_eq!(Workload::vouched(&paris, &long), None);
    }

    /// Who has the address when the connection begins, who has it at the next picture and the one after; who the client is then.
    #[test]
    fn an_address_that_changes_hands_takes_nobodys_name_along() {
        let (web, other, again) = (("shop", "web", "a"), ("shop", "admin", "b"), ("shop", "web", "c"));
        for (at_first, later, last, expected) in [
            (Some(web), Some(web), Some(web), [true, true, true]),
            (Some(web), None, None, [true, false, false]),
            (Some(web), Some(other), Some(other), [true, false, false]),
            // The same ServiceAccount, but another pod.
            (Some(web), Some(again), Some(again), [true, false, false]),
            // It was gone from the picture for a while.
            (Some(web), None, Some(web), [true, false, true]),
            // Whose connection it was is not known later either.
            (None, Some(web), Some(web), [false, false, false]),
        ] {
            let table = Table::default();
            table.publish(picture(at_first, true));
            let ip = IpAddr::from([10, 1, 0, 5]);
            let source = Source::of(ip, &table, 1, &domain(), "paris");
            let mut known = vec![source.current(&table, 1).is_some()];
            for (seen, pod) in [(2, later), (3, last)] {
                table.publish(picture(pod, true));
                known.push(source.current(&table, seen).is_some());
            }
            assert_eq!(known, expected, "{at_first:?} {later:?} {last:?}");
        }
    }

    #[test]
    fn nobody_is_known_by_a_picture_that_is_not_fresh_nor_on_the_nodes_own_addresses() {
        let table = Table::default();
        let of = |ip: &str, table: &Table, seen| {
            Source::of(ip.parse().unwrap(), table, seen, &domain(), "paris").current(table, seen).cloned()
        };
        assert_eq!(of("10.1.0.5", &table, 0), None);
        table.publish(picture(Some(("shop", "web", "a")), true));
        assert_eq!(of("10.1.0.5", &table, 1).unwrap().as_str(), "spiffe://mesh.test/cluster/paris/ns/shop/sa/web");
        assert_eq!(
            of("::ffff:10.1.0.5", &table, 1).unwrap().as_str(),
            "spiffe://mesh.test/cluster/paris/ns/shop/sa/web"
        );
        for stranger in ["192.0.2.1", "127.0.0.1", "10.1.0.6"] {
            assert_eq!(of(stranger, &table, 1), None, "{stranger}");
        }
        let open = Source::of("10.1.0.5".parse().unwrap(), &table, 1, &domain(), "paris");
        table.publish(picture(Some(("shop", "web", "a")), false));
        assert_eq!(open.current(&table, 2), None, "an open connection neither");
        table.publish(picture(Some(("shop", "web", "a")), true));
        assert!(open.current(&table, 3).is_some(), "until its own pod is seen there again");
    }
}
