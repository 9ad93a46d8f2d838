//! Certificates that are refused before they run out.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{MeshRole, SpiffeId};

/// Which certificates are refused: those of a subject that were issued before a certain moment.
///
/// A subject is one identity, or everything of a cluster. A certificate that the same subject is given later is good again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    identities: BTreeMap<SpiffeId, SystemTime>,
    clusters: BTreeMap<String, SystemTime>,
}

impl Revocations {
    /// Refuses certificates of `subject` whose notBefore is before `issued_before`; of two such moments the later one counts.
    pub fn refuse(&mut self, subject: Subject, issued_before: SystemTime) {
        let entry = match subject {
            Subject::Identity(id) => self.identities.entry(id).or_insert(issued_before),
            Subject::Cluster(cluster) => self.clusters.entry(cluster).or_insert(issued_before),
        };
        *entry = issued_before.max(*entry);
    }

    /// Refuses what `others` refuse, too.
    pub fn merge(&mut self, others: &Self) {
        for (id, at) in &others.identities {
            self.refuse(Subject::Identity(id.clone()), *at);
        }
        for (cluster, at) in &others.clusters {
            self.refuse(Subject::Cluster(cluster.clone()), *at);
        }
    }

    /// Why a certificate of `id` whose validity began at `not_before` is refused, if it is.
    #[must_use]
    pub fn check(&self, id: &SpiffeId, not_before: SystemTime) -> Option<Revoked> {
        let (subject, issued_before) = self.latest(id)?;
        (not_before < issued_before).then_some(Revoked { subject, issued_before })
    }

    /// The earliest notBefore with which a certificate of `id` is accepted; `None` when nothing of it was ever revoked.
    #[must_use]
    pub fn accepted_from(&self, id: &SpiffeId) -> Option<SystemTime> {
        self.latest(id).map(|(_, at)| at)
    }

    /// Nothing is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.identities.is_empty() && self.clusters.is_empty()
    }

    fn latest(&self, id: &SpiffeId) -> Option<(Subject, SystemTime)> {
        let own = self.identities.get(id).map(|at| (Subject::Identity(id.clone()), *at));
        // Most federations never revoked a cluster: then nothing is parsed.
        let cluster = if self.clusters.is_empty() { None } else { cluster_of(id) };
        let whole = cluster.and_then(|cluster| {
            let at = *self.clusters.get(&cluster)?;
            Some((Subject::Cluster(cluster), at))
        });
        match (own, whole) {
            (Some(own), Some(whole)) => Some(if own.1 >= whole.1 { own } else { whole }),
            (own, whole) => own.or(whole),
        }
    }
}

/// Whose certificates are refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Every gateway and agent of this cluster.
    Cluster(String),
    /// This one.
    Identity(SpiffeId),
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(cluster) => write!(out, "cluster {cluster}"),
            Self::Identity(id) => write!(out, "{id}"),
        }
    }
}

/// Why a certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{subject} was revoked: certificates issued before {} are refused", unix(*issued_before))]
pub struct Revoked {
    /// Whose certificates are refused.
    pub subject: Subject,
    /// Those that began before this.
    pub issued_before: SystemTime,
}

/// The revocations in force; replaced as they change, and whoever holds it follows.
#[derive(Clone)]
pub struct RevocationList {
    current: Arc<ArcSwap<Revocations>>,
    changes: Arc<watch::Sender<u64>>,
}

impl RevocationList {
    /// Why a certificate is refused now, if it is.
    #[must_use]
    pub fn check(&self, id: &SpiffeId, not_before: SystemTime) -> Option<Revoked> {
        self.current.load().check(id, not_before)
    }

    /// The revocations in force.
    #[must_use]
    pub fn current(&self) -> Arc<Revocations> {
        self.current.load_full()
    }

    /// Puts others in force. Subscribers are told only when something changed.
    pub fn replace(&self, revocations: Revocations) {
        if **self.current.load() != revocations {
            self.current.store(Arc::new(revocations));
            self.changes.send_modify(|generation| *generation += 1);
        }
    }

    /// A counter that moves with each change: look at what is open, and end what is refused.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Default for RevocationList {
    fn default() -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Revocations::default())),
            changes: Arc::new(watch::channel(0).0),
        }
    }
}

impl fmt::Debug for RevocationList {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.current.load(), out)
    }
}

fn cluster_of(id: &SpiffeId) -> Option<String> {
    match id.role() {
        Some(MeshRole::Gateway { cluster, .. } | MeshRole::Agent { cluster, .. }) => Some(cluster),
        _ => None,
    }
}

fn unix(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("{} (Unix)", since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Every subject against every moment: what is refused, and by what.
    #[test]
    fn what_was_issued_before_is_refused_and_what_comes_after_is_not() {
        let domain = "mesh.example".parse().unwrap();
        let gateway = SpiffeId::gateway(&domain, "paris", "gw-1");
        let sibling = SpiffeId::gateway(&domain, "paris", "gw-2");
        let agent = SpiffeId::agent(&domain, "paris", "agent");
        let elsewhere = SpiffeId::gateway(&domain, "tokyo", "gw-1");
        let operator = SpiffeId::operator(&domain, "paris");
        let mut list = Revocations::default();
        assert!(list.is_empty() && list.check(&gateway, at(0)).is_none());

        list.refuse(Subject::Identity(gateway.clone()), at(100));
        let of = |list: &Revocations, id: &SpiffeId, time: u64| list.check(id, at(time)).map(|r| r.subject.to_string());
        let own = Some(gateway.to_string());
        for (id, time, expected) in [
            (&gateway, 99, own.clone()),
            (&gateway, 100, None),
            (&sibling, 0, None),
            (&agent, 0, None),
            (&elsewhere, 0, None),
            (&operator, 0, None),
        ] {
            assert_eq!(of(&list, id, time), expected, "{id} at {time}");
        }
        list.refuse(Subject::Cluster("paris".into()), at(200));
        let cluster = Some("cluster paris".to_owned());
        for (id, time, expected) in [
            (&gateway, 99, cluster.clone()),
            (&gateway, 199, cluster.clone()),
            (&gateway, 200, None),
            (&sibling, 199, cluster.clone()),
            (&agent, 199, cluster),
            (&elsewhere, 0, None),
            (&operator, 0, None),
        ] {
            assert_eq!(of(&list, id, time), expected, "{id} at {time}");
        }
        assert_eq!(list.accepted_from(&gateway), Some(at(200)));
        list.refuse(Subject::Identity(gateway.clone()), at(50));
        assert_eq!(list.accepted_from(&gateway), Some(at(200)), "a revocation is never taken back by an older one");
    }

    #[test]
    fn followers_hear_of_changes_and_of_nothing_else() {
        let list = RevocationList::default();
        let mut changes = list.subscribe();
        list.replace(Revocations::default());
        assert!(!changes.has_changed().unwrap());
        let mut next = Revocations::default();
        next.refuse(Subject::Cluster("paris".into()), at(1));
        list.replace(next.clone());
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        list.replace(next);
        assert!(!changes.has_changed().unwrap());
    }
}
