//! Who is at the other end of a client's connection, by its address: what the agent knows of this gateway's node.
//!
//! [`Callers`] is one picture of the node, [`Table`] hands the current one to everybody. It is not kept on disk: an address
//! can be another pod's by the time a gateway starts again.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use archipelago_proto::v1 as proto;
use tokio::sync::watch;

/// Who has which address on this node.
#[derive(Debug, Default)]
pub struct Callers(Option<Node>);

#[derive(Debug)]
struct Node {
    pods: HashMap<IpAddr, Arc<Pod>, foldhash::fast::RandomState>,
    own: HashSet<IpAddr, foldhash::fast::RandomState>,
}

/// Whose address it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// One living pod's, of this node.
    Pod(Arc<Pod>),
    /// The node's own: any process of it, and pods that share its network.
    Node,
    /// Nobody can say: there is no picture of the node, or none that is fresh.
    Unknown,
    /// Nobody's on this node.
    Outsider,
}

/// A pod, as far as its identity goes.
#[derive(Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Box<str>,
    /// The name of its ServiceAccount.
    pub service_account: Box<str>,
    /// Its uid: no other pod ever has it.
    pub uid: Box<str>,
}

impl Callers {
    /// What the agent says. A picture that is not fresh is none; an address that cannot be read is nobody's, as is one that
    /// two pods have.
    pub fn new(workloads: &proto::Workloads) -> Self {
        if !workloads.fresh {
            return Self::default();
        }
        let mut pods = HashMap::with_capacity_and_hasher(workloads.workloads.len(), Default::default());
        let mut twice = HashSet::new();
        for proto::Workload { ip, namespace, service_account, pod_uid } in &workloads.workloads {
            let Some(ip) = parse(ip) else { continue };
            let pod = Pod {
                namespace: namespace.as_str().into(),
                service_account: service_account.as_str().into(),
                uid: pod_uid.as_str().into(),
            };
            if pods.insert(ip, Arc::new(pod)).is_some() {
                twice.insert(ip);
            }
        }
        let own: HashSet<_, _> = workloads.node_ips.iter().filter_map(|ip| parse(ip)).collect();
        // What shares the node's address is the node, whoever claims it.
        pods.retain(|ip, _| !twice.contains(ip) && !own.contains(ip));
        Self(Some(Node { pods, own }))
    }

    /// Whose address this is.
    pub fn of(&self, ip: IpAddr) -> Caller {
        let ip = ip.to_canonical();
        // Only this machine can send it, whether there is a picture of it or not.
        if ip.is_loopback() {
            return Caller::Node;
        }
        let Some(node) = &self.0 else { return Caller::Unknown };
        match node.pods.get(&ip) {
            Some(pod) => Caller::Pod(Arc::clone(pod)),
            None if node.own.contains(&ip) => Caller::Node,
            None => Caller::Outsider,
        }
    }
}

fn parse(ip: &str) -> Option<IpAddr> {
    ip.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// Who may come in where clients of the node are expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum CaptureFrom {
    /// Pods of the gateway's own node, and the node itself.
    #[default]
    #[value(alias = "node")]
    OwnNode,
    /// Whoever can send here.
    Any,
}

/// Whether somebody may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// He may.
    Open,
    /// Not as far as is known now.
    Unknown,
}

impl CaptureFrom {
    /// Whether `caller` may come in. Where nobody can say whose an address is, everybody may, unidentified: an agent that is
    /// away must not take a node's clients along.
    pub fn judge(self, caller: &Caller) -> Entry {
        match (self, caller) {
            (Self::OwnNode, Caller::Outsider) => Entry::Unknown,
            (Self::OwnNode, Caller::Pod(_) | Caller::Node | Caller::Unknown) | (Self::Any, _) => Entry::Open,
        }
    }
}

/// The current picture, shared by all threads.
#[derive(Debug)]
pub struct Table {
    current: ArcSwap<Callers>,
    changed: watch::Sender<u64>,
}

impl Default for Table {
    fn default() -> Self {
        Self { current: ArcSwap::default(), changed: watch::channel(0).0 }
    }
}

impl Table {
    /// Whose address this is now.
    pub fn of(&self, ip: IpAddr) -> Caller {
        self.current.load().of(ip)
    }

    /// Puts another picture in the place of the current one.
    pub fn publish(&self, callers: Callers) {
        // The picture first: whoever hears of the change must see it.
        self.current.store(Arc::new(callers));
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Counts the changes of the picture.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Forgets the picture whenever `connected` has been false for as long as `after`; ends with its sender.
    pub async fn forget_when_away(&self, mut connected: watch::Receiver<bool>, after: Duration) {
        loop {
            if connected.wait_for(|connected| !connected).await.is_err() {
                return;
            }
            match tokio::time::timeout(after, connected.wait_for(|connected| *connected)).await {
                Ok(Ok(_)) => continue,
                Ok(Err(_)) => return,
                // Looked at again and again while it is away: it may have come and gone unseen.
                Err(_) => {}
            }
            if self.current.load().0.is_some() {
                tracing::warn!("the agent is away for too long to say whose address is whose; clients go unidentified");
                self.publish(Callers::default());
            }
        }
    }
}

/// As long as the agent itself goes without its cluster's API before it vouches for nobody: an address is not given to
/// another pod while its last owner runs, but sooner or later it is.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(ip: &str, uid: &str) -> proto::Workload {
        proto::Workload { ip: ip.into(), namespace: "shop".into(), service_account: "web".into(), pod_uid: uid.into() }
    }

    fn workloads(fresh: bool) -> proto::Workloads {
        proto::Workloads {
            fresh,
            workloads: vec![
                workload("10.1.0.5", "a"),
                workload("fd00::5", "a"),
                workload("10.1.0.6", "b"),
                workload("10.1.0.6", "c"),
                workload("192.0.2.1", "host-network"),
                workload("nonsense", "d"),
            ],
            node_ips: vec!["192.0.2.1".into(), "2001:db8::1".into(), "".into()],
            zone: String::new(),
        }
    }

    #[test]
    fn whose_address_it_is() {
        let pod = |uid: &str| {
            Caller::Pod(Arc::new(Pod { namespace: "shop".into(), service_account: "web".into(), uid: uid.into() }))
        };
        let (fresh, stale) = (Callers::new(&workloads(true)), Callers::new(&workloads(false)));
        for (ip, known, unknown) in [
            ("10.1.0.5", pod("a"), Caller::Unknown),
            ("::ffff:10.1.0.5", pod("a"), Caller::Unknown),
            ("fd00::5", pod("a"), Caller::Unknown),
            ("10.1.0.6", Caller::Outsider, Caller::Unknown),
            ("10.1.0.7", Caller::Outsider, Caller::Unknown),
            ("192.0.2.1", Caller::Node, Caller::Unknown),
            ("2001:db8::1", Caller::Node, Caller::Unknown),
            ("127.0.0.1", Caller::Node, Caller::Node),
            ("::1", Caller::Node, Caller::Node),
            ("192.0.2.2", Caller::Outsider, Caller::Unknown),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(fresh.of(ip), known, "{ip}");
            assert_eq!(stale.of(ip), unknown, "{ip}, not fresh");
            assert_eq!(Callers::default().of(ip), unknown, "{ip}, before the agent said anything");
            let from_outside = [known, unknown].map(|caller| CaptureFrom::OwnNode.judge(&caller));
            let is_outside = ip == "10.1.0.6".parse::<IpAddr>().unwrap()
                || ip == "10.1.0.7".parse::<IpAddr>().unwrap()
                || ip == "192.0.2.2".parse::<IpAddr>().unwrap();
            let expected = if is_outside { Entry::Unknown } else { Entry::Open };
            assert_eq!(from_outside, [expected, Entry::Open], "{ip}");
            assert_eq!(CaptureFrom::Any.judge(&fresh.of(ip)), Entry::Open, "{ip}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_is_away_for_long_vouches_for_nobody() {
        let table = Arc::new(Table::default());
        table.publish(Callers::new(&workloads(true)));
        let (connected, away) = watch::channel(true);
        let following = Arc::clone(&table);
        let task = tokio::spawn(async move { following.forget_when_away(away, Duration::from_millis(1)).await });
        let ip = "10.1.0.5".parse().unwrap();
        let is_known = || matches!(table.of(ip), Caller::Pod(_));
        assert!(is_known());
        for _ in 0..2 {
            let mut changes = table.changes();
            connected.send_replace(false);
            tokio::time::timeout(Duration::from_secs(20), changes.changed()).await.unwrap().unwrap();
            assert!(!is_known());
            connected.send_replace(true);
            table.publish(Callers::new(&workloads(true)));
            assert!(is_known());
        }
        drop(connected);
        task.await.unwrap();
    }
}
