//! Who runs on which node, by address: a pure function of pods and nodes, taken one changed node at a time.
//!
//! An address names a pod only while exactly one living pod has it. A pod that is being deleted is not living: its address
//! may be given to the next one before the API server hears of its end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    iter,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use archipelago_agent::provider::Nodes;
use archipelago_proto::v1;

use crate::{
    types::{Key, Node, Pod},
    watch::{Objects, differences},
};

/// Keeps the lists of all nodes in step with a cluster.
#[derive(Debug, Default)]
pub struct Roster {
    pods: Objects<Pod>,
    nodes: Objects<Node>,
    fresh: bool,
    /// Living pods by address: one, and others; with others it is nobody's.
    claims: HashMap<IpAddr, (Key, Vec<Key>)>,
    /// Living pods by node.
    by_node: BTreeMap<Arc<str>, BTreeSet<Key>>,
    lists: Nodes,
}

impl Roster {
    /// The lists of `pods` and `nodes`. `fresh`: they are not older than [`FRESH_TIME_MAX`]. Lists that did not change are
    /// shared with those before.
    pub fn update(&mut self, pods: Objects<Pod>, nodes: Objects<Node>, fresh: bool) -> Nodes {
        let before = std::mem::replace(&mut self.pods, pods.clone());
        let mut changed: HashSet<Arc<str>> = HashSet::new();
        for (key, old, new) in differences(&before, &pods) {
            if let Some((pod, node)) = old.and_then(|pod| living(pod)) {
                self.leave(key, pod, node, &mut changed);
            }
            if let Some((pod, node)) = new.and_then(|pod| living(pod)) {
                self.enter(key, pod, node, &mut changed);
            }
        }
        let before = std::mem::replace(&mut self.nodes, nodes.clone());
        changed.extend(differences(&before, &nodes).map(|(key, _, _)| key.name.clone()));
        if fresh != self.fresh {
            self.fresh = fresh;
            changed.extend(self.nodes.keys().map(|key| key.name.clone()));
            changed.extend(self.by_node.keys().cloned());
        }
        for node in changed {
            match self.list(&node) {
                Some(list) => {
                    if self.lists.get(&*node).is_none_or(|before| **before != list) {
                        self.lists.insert(node.to_string(), Arc::new(list));
                    }
                }
                None => {
                    self.lists.remove(&*node);
                }
            }
        }
        self.lists.clone()
    }

    fn enter(&mut self, key: &Key, pod: &Pod, node: &Arc<str>, changed: &mut HashSet<Arc<str>>) {
        self.by_node.entry(node.clone()).or_default().insert(key.clone());
        changed.insert(node.clone());
        for ip in &pod.ips {
            self.rivals(*ip, changed);
            match self.claims.entry(*ip) {
                Entry::Vacant(entry) => {
                    entry.insert((key.clone(), Vec::new()));
                }
                Entry::Occupied(mut entry) => entry.get_mut().1.push(key.clone()),
            }
        }
    }

    fn leave(&mut self, key: &Key, pod: &Pod, node: &Arc<str>, changed: &mut HashSet<Arc<str>>) {
        if let Some(pods) = self.by_node.get_mut(node) {
            pods.remove(key);
            if pods.is_empty() {
                self.by_node.remove(node);
            }
        }
        changed.insert(node.clone());
        for ip in &pod.ips {
            if let Entry::Occupied(mut entry) = self.claims.entry(*ip) {
                let (first, others) = entry.get_mut();
                others.retain(|claim| claim != key);
                if first == key {
                    match others.pop() {
                        Some(other) => *first = other,
                        None => {
                            entry.remove();
                        }
                    }
                }
            }
            self.rivals(*ip, changed);
        }
    }

    /// Whoever else has `ip` gains or loses it.
    fn rivals(&self, ip: IpAddr, changed: &mut HashSet<Arc<str>>) {
        let claims = self.claims.get(&ip).into_iter().flat_map(|(first, others)| iter::once(first).chain(others));
        changed.extend(claims.filter_map(|key| self.pods.get(key)?.node.clone()));
    }

    /// `None`: there is no such node, and nobody on it.
    fn list(&self, node: &Arc<str>) -> Option<v1::Workloads> {
        let itself = self.nodes.get(&Key { namespace: "".into(), name: node.clone() });
        let pods = self.by_node.get(node);
        if itself.is_none() && pods.is_none() {
            return None;
        }
        let mut workloads = Vec::new();
        for key in pods.into_iter().flatten() {
            let Some(pod) = self.pods.get(key) else { continue };
            for ip in pod.ips.iter().filter(|ip| self.claims.get(ip).is_some_and(|(_, others)| others.is_empty())) {
                workloads.push(v1::Workload {
                    ip: ip.to_string(),
                    namespace: key.namespace.to_string(),
                    service_account: pod.service_account.to_string(),
                    pod_uid: pod.uid.to_string(),
                });
            }
        }
        let node_ips = itself.map_or_else(Vec::new, |node| node.addresses.iter().map(IpAddr::to_string).collect());
        let zone = itself.and_then(|node| node.zone.as_deref()).unwrap_or_default().to_owned();
        Some(v1::Workloads { fresh: self.fresh, workloads, node_ips, zone })
    }
}

/// A pod that may be asked who it is, and its node.
fn living(pod: &Arc<Pod>) -> Option<(&Pod, &Arc<str>)> {
    let is_living = !pod.is_host_network && !pod.is_over && !pod.is_terminating && !pod.ips.is_empty();
    is_living.then_some(&**pod).zip(pod.node.as_ref())
}

/// A bookmark comes every minute; who missed one and a half knows too little to say who is who.
pub const FRESH_TIME_MAX: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: &str, account: &str, ips: &[&str]) -> Pod {
        Pod {
            uid: format!("uid-of-{account}").into(),
            node: Some(node.into()),
            service_account: account.into(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            is_ready: true,
            is_host_network: false,
            is_terminating: false,
            is_over: false,
            version: None,
        }
    }

    fn pods(list: &[(&str, Pod)]) -> Objects<Pod> {
        list.iter().map(|(name, pod)| (Key::new("shop", *name), Arc::new(pod.clone()))).collect()
    }

    fn node(address: &str) -> Objects<Node> {
        let node = Node { addresses: vec![address.parse().unwrap()], zone: Some("z1".into()) };
        Objects::unit(Key::new("", "n1"), Arc::new(node))
    }

    /// `ip account` of a node.
    fn who(nodes: &Nodes, node: &str) -> Vec<String> {
        let list = nodes.get(node).map(|list| &list.workloads).into_iter().flatten();
        list.map(|workload| format!("{} {}", workload.ip, workload.service_account)).collect()
    }

    #[test]
    fn living_pods_have_names_and_the_others_have_none() {
        let mut roster = Roster::default();
        let base = pod("n1", "web", &["10.0.0.1", "fd00::1"]);
        let host = Pod { is_host_network: true, ..pod("n1", "host", &["192.0.2.1"]) };
        let over = Pod { is_over: true, ..pod("n1", "job", &["10.0.0.2"]) };
        let going = Pod { is_terminating: true, ..pod("n1", "old", &["10.0.0.3"]) };
        let unscheduled = Pod { node: None, ..pod("", "new", &[]) };
        let all = pods(&[("a", base), ("b", host), ("c", over), ("d", going), ("e", unscheduled)]);
        let lists = roster.update(all, node("192.0.2.1"), true);
        assert_eq!(who(&lists, "n1"), ["10.0.0.1 web", "fd00::1 web"]);
        assert_eq!((lists["n1"].node_ips.as_slice(), &*lists["n1"].zone), (&["192.0.2.1".to_owned()][..], "z1"));
        assert_eq!(lists["n1"].workloads[0].pod_uid, "uid-of-web");
        assert_eq!(lists.len(), 1);
    }

    #[test]
    fn an_address_of_two_is_nobodys_until_one_is_gone() {
        let mut roster = Roster::default();
        let (a, b) = (pod("n1", "a", &["10.0.0.1"]), pod("n2", "b", &["10.0.0.1"]));
        let nodes = Objects::default();
        let lists = roster.update(pods(&[("a", a.clone())]), nodes.clone(), true);
        assert_eq!(who(&lists, "n1"), ["10.0.0.1 a"]);
        let lists = roster.update(pods(&[("a", a), ("b", b.clone())]), nodes.clone(), true);
        assert_eq!((who(&lists, "n1"), who(&lists, "n2")), (vec![], vec![]));
        let lists = roster.update(pods(&[("b", b.clone())]), nodes.clone(), true);
        assert_eq!((who(&lists, "n1"), who(&lists, "n2")), (vec![], vec!["10.0.0.1 b".to_owned()]));
        // One that moves to another address leaves the old one behind.
        let lists = roster.update(pods(&[("b", Pod { ips: vec!["10.0.0.9".parse().unwrap()], ..b })]), nodes, true);
        assert_eq!(who(&lists, "n2"), ["10.0.0.9 b"]);
        assert!(roster.claims.len() == 1 && !lists.contains_key("n1"));
    }

    #[test]
    fn a_stale_view_says_so_on_every_node_and_unchanged_lists_are_shared() {
        let mut roster = Roster::default();
        let (one, two) = (pod("n1", "a", &["10.0.0.1"]), pod("n2", "b", &["10.0.0.2"]));
        let all = pods(&[("a", one.clone()), ("b", two)]);
        let first = roster.update(all.clone(), node("192.0.2.1"), true);
        let moved = all.update(Key::new("shop", "c"), Arc::new(Pod { ips: vec!["10.0.0.3".parse().unwrap()], ..one }));
        let second = roster.update(moved.clone(), node("192.0.2.1"), true);
        assert_eq!(who(&second, "n1"), ["10.0.0.1 a", "10.0.0.3 a"]);
        assert!(Arc::ptr_eq(&first["n2"], &second["n2"]));
        let stale = roster.update(moved, node("192.0.2.1"), false);
        assert!(stale.values().all(|list| !list.fresh) && stale.len() == 2);
    }
}
