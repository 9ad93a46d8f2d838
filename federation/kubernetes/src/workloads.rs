//! Who runs on which node, by address: a pure function of pods and nodes, taken one changed node at a time.
//!
//! An address names a pod only while exactly one living pod has it. A pod that is being deleted is not living: its address
//! may be given to the next one before the API server hears of its end.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use archipelago_agent::provider::{Nodes, Workloads};

use crate::{
    types::{Key, Node, Pod},
    watch::{Objects, differences},
};

/// Keeps the lists of all nodes in step with a cluster.
///
/// Of a pod it keeps where the index has it: a cluster has tens of thousands.
#[derive(Debug, Default)]
pub struct Roster {
    pods: Objects<Pod>,
    nodes: Objects<Node>,
    fresh: bool,
    /// The first living pod of each address.
    claims: HashMap<IpAddr, Arc<Pod>>,
    /// More living pods of an address: then it is nobody's.
    rivals: HashMap<IpAddr, Vec<Arc<Pod>>>,
    /// Living pods by node, ordered by address.
    by_node: BTreeMap<Arc<str>, Vec<Arc<Pod>>>,
    lists: Nodes,
}

impl Roster {
    /// The lists of `pods` and `nodes`. `fresh`: they are not older than [`FRESH_TIME_MAX`]. Lists that did not change are
    /// shared with those before.
    pub fn update(&mut self, pods: Objects<Pod>, nodes: Objects<Node>, fresh: bool) -> Nodes {
        let before = std::mem::replace(&mut self.pods, pods.clone());
        let mut changed: HashSet<Arc<str>> = HashSet::new();
        for (_, old, new) in differences(&before, &pods) {
            if let Some((pod, node)) = old.and_then(living) {
                self.leave(pod, node, &mut changed);
            }
            if let Some((pod, node)) = new.and_then(living) {
                self.enter(pod, node, &mut changed);
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
                    if self.lists.get(&node).is_none_or(|before| **before != list) {
                        self.lists.insert(node, Arc::new(list));
                    }
                }
                None => {
                    self.lists.remove(&node);
                }
            }
        }
        self.lists.clone()
    }

    fn enter(&mut self, pod: &Arc<Pod>, node: &Arc<str>, changed: &mut HashSet<Arc<str>>) {
        let there = self.by_node.entry(node.clone()).or_default();
        let at = there.partition_point(|other| other.who.ips.as_slice() <= pod.who.ips.as_slice());
        there.insert(at, pod.clone());
        changed.insert(node.clone());
        for ip in pod.who.ips.iter() {
            self.touch(*ip, changed);
            match self.claims.entry(*ip) {
                Entry::Vacant(entry) => {
                    entry.insert(pod.clone());
                }
                Entry::Occupied(_) => self.rivals.entry(*ip).or_default().push(pod.clone()),
            }
        }
    }

    fn leave(&mut self, pod: &Arc<Pod>, node: &Arc<str>, changed: &mut HashSet<Arc<str>>) {
        if let Some(there) = self.by_node.get_mut(node) {
            there.retain(|other| other != pod);
            if there.is_empty() {
                self.by_node.remove(node);
            }
        }
        changed.insert(node.clone());
        for ip in pod.who.ips.iter() {
            let mut rivals = self.rivals.remove(ip).unwrap_or_default();
            rivals.retain(|rival| rival != pod);
            if self.claims.get(ip).is_some_and(|first| first == pod) {
                match rivals.pop() {
                    Some(next) => drop(self.claims.insert(*ip, next)),
                    None => drop(self.claims.remove(ip)),
                }
            }
            if !rivals.is_empty() {
                self.rivals.insert(*ip, rivals);
            }
            self.touch(*ip, changed);
        }
    }

    /// Whoever else has `ip` gains or loses it.
    fn touch(&self, ip: IpAddr, changed: &mut HashSet<Arc<str>>) {
        let rivals = self.rivals.get(&ip).into_iter().flatten();
        changed.extend(self.claims.get(&ip).into_iter().chain(rivals).filter_map(|pod| pod.node.clone()));
    }

    /// `None`: there is no such node, and nobody on it.
    fn list(&self, node: &Arc<str>) -> Option<Workloads> {
        let itself = self.nodes.get(&Key { namespace: Arc::default(), name: node.clone() });
        let pods = self.by_node.get(node);
        if itself.is_none() && pods.is_none() {
            return None;
        }
        let pods = pods.map(Vec::as_slice).unwrap_or_default();
        let ips = pods.iter().flat_map(|pod| pod.who.ips.iter().copied());
        Some(Workloads {
            fresh: self.fresh,
            workloads: pods.iter().map(|pod| pod.who.clone()).collect(),
            disputed: ips.filter(|ip| self.rivals.contains_key(ip)).collect(),
            node_ips: itself.map_or_else(Vec::new, |node| node.addresses.clone()),
            zone: itself.and_then(|node| node.zone.clone()),
        })
    }
}

/// A pod that may be asked who it is, and its node.
fn living(pod: &Arc<Pod>) -> Option<(&Arc<Pod>, &Arc<str>)> {
    let is_living = !pod.is_host_network && !pod.is_over && !pod.is_terminating && !pod.who.ips.as_slice().is_empty();
    is_living.then_some(pod).zip(pod.node.as_ref())
}

/// A bookmark comes every minute; who missed one and a half knows too little to say who is who.
pub const FRESH_TIME_MAX: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use archipelago_agent::provider::Workload;

    use super::*;

    fn pod(node: &str, account: &str, ips: &[&str]) -> Pod {
        Pod {
            who: Arc::new(Workload {
                namespace: "shop".into(),
                service_account: account.into(),
                uid: format!("uid-of-{account}").as_str().into(),
                ips: ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect(),
            }),
            node: Some(node.into()),
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
        let list = nodes.get(node).into_iter().flat_map(|list| list.known());
        list.map(|(ip, workload)| format!("{ip} {}", workload.service_account)).collect()
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
        let said = lists["n1"].to_proto();
        assert_eq!((said.node_ips.as_slice(), &*said.zone), (&["192.0.2.1".to_owned()][..], "z1"));
        assert_eq!(said.workloads[0].pod_uid, "uid-of-web");
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
        let lists = roster.update(pods(&[("b", pod("n2", "b", &["10.0.0.9"]))]), nodes, true);
        assert_eq!(who(&lists, "n2"), ["10.0.0.9 b"]);
        assert!(roster.claims.len() == 1 && roster.rivals.is_empty() && !lists.contains_key("n1"));
    }

    #[test]
    fn a_stale_view_says_so_on_every_node_and_unchanged_lists_are_shared() {
        let mut roster = Roster::default();
        let (one, two) = (pod("n1", "a", &["10.0.0.1"]), pod("n2", "b", &["10.0.0.2"]));
        let all = pods(&[("a", one.clone()), ("b", two)]);
        let first = roster.update(all.clone(), node("192.0.2.1"), true);
        let moved = all.update(Key::new("shop", "c"), Arc::new(pod("n1", "a", &["10.0.0.3"])));
        let second = roster.update(moved.clone(), node("192.0.2.1"), true);
        assert_eq!(who(&second, "n1"), ["10.0.0.1 a", "10.0.0.3 a"]);
        assert!(Arc::ptr_eq(&first["n2"], &second["n2"]));
        let stale = roster.update(moved, node("192.0.2.1"), false);
        assert!(stale.values().all(|list| !list.fresh) && stale.len() == 2);
    }
}
