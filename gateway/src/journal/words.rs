//! What moved, in words: which of a gateway's observations are events, and of what reason. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use archipelago_model::event::{Draft, Reason};

use super::desk::{Out, PeerWord, Standing};

/// Something is another than it was.
#[derive(Debug)]
pub(super) struct Moved<K, V> {
    pub(super) key: K,
    pub(super) before: Option<V>,
    pub(super) now: Option<V>,
    /// When it began.
    pub(super) at_ms: i64,
}

/// What is away, as far as it was told: what comes back is worth a word only then.
#[derive(Debug, Default)]
pub(super) struct Told {
    gateways: BTreeSet<(String, String)>,
    clusters_up: BTreeSet<String>,
    clusters_down: BTreeSet<String>,
    /// Services that nobody serves, and of the others the clusters that left them.
    unavailable: BTreeSet<Arc<str>>,
    away: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl Told {
    /// Of a peer.
    pub(super) fn peer(&mut self, moved: &Moved<(String, String), PeerWord>) -> Option<Draft> {
        let gateway = format!("{}/{}", moved.key.0, moved.key.1);
        let (reason, message) = match (moved.before, moved.now) {
            (Some(PeerWord::Reachable), Some(PeerWord::Unreachable)) => {
                self.gateways.insert(moved.key.clone());
                (Reason::GatewayUnreachable, format!("{gateway} cannot be reached: nothing is sent there"))
            }
            (_, Some(PeerWord::Reachable)) if self.gateways.remove(&moved.key) => {
                (Reason::GatewayReachable, format!("{gateway} can be reached again"))
            }
            (_, Some(PeerWord::Draining)) => {
                (Reason::GatewayDraining, format!("{gateway} drains: it takes nothing new"))
            }
            (_, None) => {
                self.gateways.remove(&moved.key);
                return None;
            }
            _ => return None,
        };
        Some(Draft { cluster: moved.key.0.clone(), gateway, ..Draft::new(reason, message) })
    }

    /// Of a cluster whose gateways are these.
    pub(super) fn cluster(&mut self, cluster: &str, gateways: &[PeerWord]) -> Option<Draft> {
        let draft = |reason, message| Some(Draft { cluster: cluster.to_owned(), ..Draft::new(reason, message) });
        if gateways.is_empty() {
            self.clusters_up.remove(cluster);
            self.clusters_down.remove(cluster);
            return None;
        }
        if gateways.iter().any(|word| *word >= PeerWord::Draining) {
            self.clusters_up.insert(cluster.to_owned());
            let is_back = self.clusters_down.remove(cluster);
            return is_back
                .then(|| format!("{cluster} can be reached again"))
                .and_then(|m| draft(Reason::ClusterReachable, m));
        }
        if !self.clusters_up.remove(cluster) {
            return None;
        }
        self.clusters_down.insert(cluster.to_owned());
        draft(Reason::ClusterUnreachable, format!("no gateway of {cluster} can be reached"))
    }

    /// Of a service.
    pub(super) fn service(&mut self, moved: &Moved<Arc<str>, Standing>) -> Option<Draft> {
        let key = &moved.key;
        let (Some(before), Some(now)) = (&moved.before, &moved.now) else {
            if moved.now.is_none() {
                self.unavailable.remove(key);
                self.away.remove(key);
            }
            return None;
        };
        let lost: Vec<&Arc<str>> = before.serving.difference(&now.serving).collect();
        let gained: Vec<&Arc<str>> = now.serving.difference(&before.serving).collect();
        let cause = |cluster: &Arc<str>| now.out.get(cluster);
        let failed: Vec<_> = lost.iter().copied().filter(|c| cause(c).is_some_and(|cause| !cause.is_wanted)).collect();
        let moved_away: Vec<_> =
            lost.iter().copied().filter(|c| cause(c).is_some_and(|cause| cause.is_wanted)).collect();

        let away = self.away.entry(Arc::clone(key)).or_default();
        let returned: Vec<_> = gained.iter().copied().filter(|cluster| away.remove(*cluster)).collect();
        away.extend(failed.iter().chain(&moved_away).map(|cluster| Arc::clone(cluster)));
        if now.serving.is_empty() {
            away.extend(lost.iter().map(|cluster| Arc::clone(cluster)));
        }
        if away.is_empty() {
            self.away.remove(key);
        }

        let (name, serving) = (name_of(key, now), join(&now.serving));
        let why = |clusters: &[&Arc<str>]| {
            let one = |c: &&Arc<str>| cause(c).map_or_else(|| c.to_string(), |cause| format!("{c} ({})", cause.why));
            clusters.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let draft = |reason, cluster: Option<&&Arc<str>>, message: String| {
            let cluster = cluster.map(ToString::to_string).unwrap_or_default();
            let (service, revision) = (now.service.to_string(), now.revision);
            Some(Draft { service, cluster, revision, ..Draft::new(reason, message) })
        };
        if now.serving.is_empty() {
            if before.serving.is_empty() {
                return None;
            }
            self.unavailable.insert(Arc::clone(key));
            let out: Vec<_> = now.out.keys().collect();
            return draft(Reason::ServiceUnavailable, lost.first(), format!("nobody serves {name}: {}", why(&out)));
        }
        if self.unavailable.remove(key) {
            return draft(Reason::ServiceAvailable, gained.first(), format!("{serving} serves {name} again"));
        }
        if before.serving.is_empty() {
            // As a gateway starts: somebody was heard of for the first time.
            return None;
        }
        let is_other_policy = before.policy != now.policy;
        if !failed.is_empty() {
            let message = format!("{serving} serves {name} in the place of {}", why(&failed));
            return draft(Reason::Failover, failed.first(), message);
        }
        if !moved_away.is_empty() {
            let message = format!("{serving} serves {name} in the place of {}", why(&moved_away));
            return draft(Reason::TrafficMoved, moved_away.first(), message);
        }
        if !returned.is_empty() {
            let message = match lost.is_empty() {
                true => format!("{} serves {name} again, beside what stood in for it", why(&returned)),
                false => format!("{} serves {name} again, in the place of {}", why(&returned), why(&lost)),
            };
            return draft(Reason::Failback, returned.first(), message);
        }
        if is_other_policy {
            let message = format!("{serving} serves {name}, as the policy says now");
            return draft(Reason::TrafficMoved, gained.first().or(lost.first()), message);
        }
        if lost.is_empty() {
            // Somebody was heard of for the first time.
            return None;
        }
        draft(
            Reason::FailbackComplete,
            lost.first(),
            format!("{serving} serves {name} in full, and {} stands in no longer", why(&lost)),
        )
    }
}

/// Of endpoints that sit out.
pub(super) fn endpoints(moved: &Moved<Arc<str>, BTreeMap<Arc<str>, Out>>) -> Vec<Draft> {
    let nothing = BTreeMap::new();
    let (before, now) = (moved.before.as_ref().unwrap_or(&nothing), moved.now.as_ref().unwrap_or(&nothing));
    let service = service_of(&moved.key);
    let draft = |reason, instance: &Arc<str>, what: &str| Draft {
        service: service.to_owned(),
        subject: instance.to_string(),
        ..Draft::new(reason, format!("endpoint {instance} of {} {what}", moved.key))
    };
    let worse =
        now.iter().filter(|(instance, out)| before.get(*instance) != Some(out)).map(|(instance, out)| match out {
            Out::Failed => draft(Reason::EndpointEjected, instance, "failed several requests in a row, and sits out"),
            Out::Hung => draft(Reason::EndpointHung, instance, "left requests unanswered, and sits out"),
            Out::Refuses => draft(Reason::EndpointUnreachable, instance, "refuses connections: nothing is sent there"),
            Out::Silent => draft(Reason::EndpointUnreachable, instance, "does not answer: nothing is sent there"),
        });
    let back = before.keys().filter(|instance| !now.contains_key(*instance));
    let back = back.map(|instance| draft(Reason::EndpointReturned, instance, "is given requests again, or is gone"));
    worse.chain(back).take(ENDPOINTS_MAX).collect()
}

/// How far the certificate is from its end.
#[derive(Debug, Default)]
pub(super) struct Certificate {
    said: Option<Reason>,
}

impl Certificate {
    /// Takes the validity, and says what is news of it.
    pub(super) fn look(&mut self, (not_before, not_after): (i64, i64), now_ms: i64) -> Option<Draft> {
        let life = not_after.saturating_sub(not_before).max(1);
        let left = not_after.saturating_sub(now_ms);
        let reason = match (left.saturating_mul(100) / life, self.said) {
            (..EXPIRING_PERCENT, _) => Some(Reason::CertificateExpiring),
            (..OVERDUE_PERCENT, _) => Some(Reason::CertificateRenewalOverdue),
            _ => None,
        };
        if reason == self.said {
            return None;
        }
        self.said = reason;
        let seconds = left.max(0) / 1_000;
        Some(match reason {
            Some(reason @ Reason::CertificateExpiring) => Draft::new(
                reason,
                format!("the certificate ends in {seconds} s, and was not renewed: tunnels end with it"),
            ),
            Some(reason) => {
                Draft::new(reason, format!("the certificate should have been renewed by now; it ends in {seconds} s"))
            }
            None => {
                Draft::new(Reason::CertificateRenewed, format!("the certificate was renewed; it ends in {seconds} s"))
            }
        })
    }
}

/// The service of a key, which may name a port of it.
fn service_of(key: &str) -> &str {
    key.split(':').next().unwrap_or(key)
}

/// As people are told of it: with the port, where there are several.
fn name_of<'a>(key: &'a str, standing: &'a Standing) -> &'a str {
    if key.contains(':') { key } else { &standing.service }
}

fn join(names: &BTreeSet<Arc<str>>) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_SHOWN_MAX).map(|name| &**name).collect();
    match names.len().saturating_sub(NAMES_SHOWN_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Renewal begins at a quarter of the life; by now it has failed for a while.
const OVERDUE_PERCENT: i64 = 60;
const EXPIRING_PERCENT: i64 = 15;
/// Of one service at a time: beyond this the fault is not theirs.
const ENDPOINTS_MAX: usize = 32;
const NAMES_SHOWN_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::desk::Cause;
    use super::*;

    const FAILED: Cause = Cause { why: "no ready endpoint", is_wanted: false };
    const DRAINED: Cause = Cause { why: "an operator drains the cluster", is_wanted: true };

    fn standing(serving: &[&str], out: &[(&str, Cause)], policy: u64) -> Standing {
        Standing {
            service: "shop/web".into(),
            serving: serving.iter().map(|name| Arc::from(*name)).collect(),
            out: out.iter().map(|(name, cause)| (Arc::from(*name), *cause)).collect(),
            policy,
            revision: 7,
            ..Standing::default()
        }
    }

    /// One after the other; what is said from the second on.
    fn walk(all: &[Standing]) -> Vec<String> {
        let mut told = Told::default();
        let key: Arc<str> = "shop/web".into();
        let mut before = None;
        let mut said = Vec::new();
        for now in all {
            let moved =
                Moved { key: Arc::clone(&key), before: before.replace(now.clone()), now: Some(now.clone()), at_ms: 0 };
            said.push(told.service(&moved).map_or_else(String::new, |draft| {
                assert_eq!((&*draft.service, draft.revision), ("shop/web", 7));
                format!("{} [{}] {}", draft.reason, draft.cluster, draft.message)
            }));
        }
        said.split_off(1)
    }

    #[test]
    fn a_service_moves_for_a_reason() {
        let s = standing;
        assert_eq!(
            walk(&[
                s(&["paris"], &[], 1),
                s(&["tokyo"], &[("paris", FAILED)], 1),
                s(&["paris", "tokyo"], &[], 1),
                s(&["paris"], &[], 1),
            ]),
            [
                "Failover [paris] tokyo serves shop/web in the place of paris (no ready endpoint)",
                "Failback [paris] paris serves shop/web again, beside what stood in for it",
                "FailbackComplete [tokyo] paris serves shop/web in full, and tokyo stands in no longer",
            ]
        );
        assert_eq!(
            walk(&[s(&["paris"], &[], 1), s(&["tokyo"], &[("paris", FAILED)], 1), s(&["paris"], &[], 1)])[1],
            "Failback [paris] paris serves shop/web again, in the place of tokyo"
        );
        assert_eq!(
            walk(&[s(&["paris"], &[], 1), s(&["tokyo"], &[("paris", DRAINED)], 1), s(&["paris"], &[], 1)]),
            [
                "TrafficMoved [paris] tokyo serves shop/web in the place of paris (an operator drains the cluster)",
                "Failback [paris] paris serves shop/web again, in the place of tokyo",
            ]
        );
        assert_eq!(
            walk(&[s(&["paris"], &[], 1), s(&["tokyo"], &[], 2)]),
            ["TrafficMoved [tokyo] tokyo serves shop/web, as the policy says now"]
        );
        assert_eq!(
            walk(&[
                s(&["paris"], &[], 1),
                s(&[], &[("paris", FAILED), ("tokyo", FAILED)], 1),
                s(&["tokyo"], &[("paris", FAILED)], 1),
                s(&["paris"], &[], 1)
            ]),
            [
                "ServiceUnavailable [paris] nobody serves shop/web: paris (no ready endpoint), tokyo (no ready endpoint)",
                "ServiceAvailable [tokyo] tokyo serves shop/web again",
                "Failback [paris] paris serves shop/web again, in the place of tokyo",
            ]
        );
    }

    #[test]
    fn what_is_heard_of_for_the_first_time_is_no_event() {
        let s = standing;
        // As a gateway starts: nothing, then a far cluster, then a nearer one.
        let start =
            [s(&[], &[("paris", FAILED)], 1), s(&["tokyo"], &[("paris", FAILED)], 1), s(&["paris", "tokyo"], &[], 1)];
        assert_eq!(walk(&start), ["", ""]);
        assert_eq!(walk(&[s(&[], &[], 1), s(&["paris"], &[], 2)]), [""], "nor is its first policy");
    }

    #[test]
    fn endpoints_have_their_reasons() {
        let out = |all: &[(&str, Out)]| Some(all.iter().map(|(name, out)| (Arc::from(*name), *out)).collect());
        let said = |before, now| {
            let moved = Moved { key: "shop/web:80".into(), before, now, at_ms: 0 };
            endpoints(&moved).iter().map(|d| format!("{} {} {}", d.reason, d.service, d.subject)).collect::<Vec<_>>()
        };
        assert_eq!(
            said(None, out(&[("a", Out::Failed), ("b", Out::Hung), ("c", Out::Silent)])),
            ["EndpointEjected shop/web a", "EndpointHung shop/web b", "EndpointUnreachable shop/web c"]
        );
        assert_eq!(
            said(out(&[("a", Out::Failed), ("b", Out::Hung)]), out(&[("a", Out::Refuses)])),
            ["EndpointUnreachable shop/web a", "EndpointReturned shop/web b"]
        );
        assert_eq!(said(out(&[("a", Out::Failed)]), None), ["EndpointReturned shop/web a"]);
    }

    #[test]
    fn a_certificate_is_missed_in_time() {
        let mut certificate = Certificate::default();
        let mut look = |validity, now| certificate.look(validity, now).map(|draft| draft.reason);
        assert_eq!(look((0, 1_000), 399), None);
        assert_eq!(look((0, 1_000), 401), Some(Reason::CertificateRenewalOverdue));
        assert_eq!(look((0, 1_000), 500), None);
        assert_eq!(look((0, 1_000), 900), Some(Reason::CertificateExpiring));
        assert_eq!(look((0, 1_000), 2_000), None);
        assert_eq!(look((2_000, 3_000), 2_100), Some(Reason::CertificateRenewed));
        assert_eq!(look((2_000, 3_000), 2_200), None);
    }
}
