//! Members, clusters with their gateways, what is between them, certificates, and how far the current revision got.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use archipelago_model::version::Version;
use archipelago_page::state::{
    About, Certificate, Cluster, Gateway, Lagging, Link, LinkState, Member, Missing, Rejected, Rollout,
};
use archipelago_proto::v1::{self, ClusterStatus, GatewayStatus, MemberStatus, Problem};
use tokio::time::sleep;

use super::{Desk, traffic::Traffic};
use crate::{
    api::Context,
    consensus::unix_ms,
    sessions::{GatewayView, gateway_key, progress::judge},
};

/// Asks all members how they are, again and again.
pub(super) async fn ask_members(context: Arc<Context>, desk: Arc<Desk>) {
    for round in 0_u64.. {
        if round % CERTIFICATES_EVERY == 0 {
            let certificates = context.certificates_of_others(unix_ms());
            desk.lock().certificates = Arc::new(certificates);
        }
        let members = context.member_statuses().await;
        let unreachable = members.iter().filter(|member| member.role == "unreachable").map(|member| Missing {
            about: About::Members,
            who: format!("cp-{}", member.id),
            why: "does not answer".to_owned(),
        });
        let missing = unreachable.collect();
        let is_news = desk.lock().members != members;
        if is_news {
            desk.note(|gathered| {
                gathered.members = members;
                gathered.missing.insert(About::Members, missing);
            });
        }
        sleep(MEMBERS_PACE).await;
    }
}

pub(super) fn members(members: &[MemberStatus]) -> Vec<Member> {
    let member = |member: &MemberStatus| {
        // A term begins with the first election: one without has not answered.
        let answers = member.term > 0;
        Member {
            id: member.id,
            name: format!("cp-{}", member.id),
            role: member.role.clone(),
            address: member.address.clone(),
            term: answers.then_some(member.term),
            applied_index: answers.then_some(member.applied_index),
            problem: some(&member.problem),
        }
    };
    members.iter().map(member).collect()
}

/// What this member sees of clusters at one moment.
pub(super) struct Seen {
    pub(super) version: Version,
    clusters: Vec<ClusterStatus>,
    sessions: BTreeMap<String, GatewayView>,
    pub(super) missing: Vec<Missing>,
}

impl Seen {
    pub(super) fn now(context: &Context) -> Self {
        let (version, clusters) = context.clusters();
        let sessions = context.sessions.gateways();
        let gone = clusters.iter().flat_map(|cluster| &cluster.gateways);
        let gone = gone.filter(|gateway| gateway.state == "disconnected").map(|gateway| Missing {
            about: About::Tunnels,
            who: gateway_key(&gateway.cluster, &gateway.name),
            why: "is not connected".to_owned(),
        });
        Self { version, missing: gone.collect(), clusters, sessions }
    }

    pub(super) fn clusters(self, traffic: Option<&Traffic>) -> Vec<Cluster> {
        let sessions = self.sessions;
        let cluster = |cluster: ClusterStatus| {
            // What was counted before it went away says nothing of now.
            let traffic = traffic.filter(|_| is_heard(&cluster));
            Cluster {
                entering: traffic.and_then(|traffic| traffic.entering(&cluster.name)),
                serving: traffic.and_then(|traffic| traffic.serving(&cluster.name)),
                name: cluster.name,
                region: cluster.region,
                state: cluster.state,
                agent: cluster.agent_state,
                problems: problems(&cluster.problems),
                gateways: cluster.gateways.into_iter().map(|one| gateway(one, &sessions)).collect(),
            }
        };
        self.clusters.into_iter().map(cluster).collect()
    }

    /// One for every two clusters with gateways, of what the gateways of both say.
    pub(super) fn links(&self, traffic: Option<&Traffic>) -> Vec<Link> {
        let with_gateways: Vec<(&str, bool)> = self
            .clusters
            .iter()
            .filter(|one| !one.gateways.is_empty())
            .map(|one| (one.name.as_str(), is_heard(one)))
            .collect();
        let mut between: BTreeMap<(&str, &str), Vec<&v1::TunnelStatus>> = BTreeMap::new();
        for tunnel in self.sessions.values().flat_map(|view| &view.session.tunnels) {
            let (from, to) = (tunnel.from_cluster.as_str(), tunnel.to_cluster.as_str());
            between.entry((from.min(to), from.max(to))).or_default().push(tunnel);
        }
        let mut links = Vec::new();
        for (index, &(a, a_is_heard)) in with_gateways.iter().enumerate() {
            for &(b, b_is_heard) in with_gateways.iter().skip(index + 1) {
                let tunnels = between.get(&(a, b)).map(Vec::as_slice).unwrap_or_default();
                links.push(Link {
                    a_to_b: traffic.filter(|_| a_is_heard).and_then(|traffic| traffic.between(a, b)),
                    b_to_a: traffic.filter(|_| b_is_heard).and_then(|traffic| traffic.between(b, a)),
                    ..link(a, b, tunnels)
                });
            }
        }
        links
    }

    /// Of gateways that are connected, of operators, and of members.
    pub(super) fn certificates(&self, others: &[(String, i64)]) -> Vec<Certificate> {
        let mut certificates: Vec<Certificate> = self
            .sessions
            .iter()
            .filter_map(|(key, view)| Some((key, view.session.hello.as_ref()?.svid_not_after_unix)))
            .filter(|(_, unix)| *unix > 0)
            .map(|(key, unix)| Certificate { who: key.clone(), expires_unix_ms: unix.saturating_mul(1_000) })
            .collect();
        let other =
            |(who, unix): &(String, i64)| Certificate { who: who.clone(), expires_unix_ms: unix.saturating_mul(1_000) };
        certificates.extend(others.iter().map(other));
        certificates.sort_by_key(|certificate| certificate.expires_unix_ms);
        certificates.truncate(CERTIFICATES_MAX);
        certificates
    }
}

/// Whether any of its gateways is connected.
fn is_heard(cluster: &ClusterStatus) -> bool {
    cluster.gateways.iter().any(|gateway| gateway.state != "disconnected")
}

/// What tunnels say of a link.
fn link(a: &str, b: &str, tunnels: &[&v1::TunnelStatus]) -> Link {
    let up: Vec<_> = tunnels.iter().filter(|tunnel| tunnel.state == "up").collect();
    let state = match (tunnels.len(), up.len()) {
        (0, _) => LinkState::NotReported,
        (_, 0) => LinkState::Down,
        (all, up) if up < all => LinkState::Degraded,
        _ => LinkState::Up,
    };
    let broken = tunnels.iter().filter(|tunnel| tunnel.state != "up");
    let broken = broken.map(|tunnel| format!("{} to {} is {}", tunnel.from, tunnel.to, tunnel.state));
    let transports: BTreeSet<&String> = up.iter().map(|tunnel| &tunnel.transport).collect();
    Link {
        a: a.to_owned(),
        b: b.to_owned(),
        state,
        tunnels: tunnels.len(),
        tunnels_up: up.len(),
        rtt_micros: up.iter().map(|tunnel| tunnel.rtt_micros).filter(|rtt| *rtt > 0).max().map(two_digits),
        loss_percent: up
            .iter()
            .filter_map(|tunnel| tunnel.lost_ppm)
            .max()
            .map(|ppm| two_digits(ppm.into()) as f64 / 1e4),
        transports: transports.into_iter().cloned().collect(),
        a_to_b: None,
        b_to_a: None,
        broken: broken.take(BROKEN_MAX).collect(),
    }
}

fn gateway(gateway: GatewayStatus, sessions: &BTreeMap<String, GatewayView>) -> Gateway {
    let key = gateway_key(&gateway.cluster, &gateway.name);
    let hello = sessions.get(&key).and_then(|view| view.session.hello.as_ref());
    Gateway {
        software_version: hello.and_then(|hello| some(&hello.software_version)),
        key,
        name: gateway.name,
        state: gateway.state,
        revision: (gateway.revision > 0).then_some(gateway.revision),
        last_seen_unix_ms: (gateway.last_seen_unix_ms > 0).then_some(gateway.last_seen_unix_ms),
        workers: (gateway.workers > 0).then_some(gateway.workers),
        error: some(&gateway.error),
        problems: problems(&gateway.problems),
    }
}

/// How far the current revision got.
pub(super) fn rollout(context: &Context) -> Rollout {
    let target = context.consensus.published.version().policy();
    let expected: Vec<String> = context
        .consensus
        .read(|state| state.gateways().keys().map(|(cluster, gateway)| gateway_key(cluster, gateway)).collect());
    let judged = judge(target, &BTreeSet::new(), &expected, &context.sessions.acks(target), 100);
    Rollout {
        revision: target.revision,
        expected: judged.expected,
        acknowledged: judged.acknowledged,
        lagging: lagging(judged.stragglers),
        rejected: rejected(judged.rejections),
    }
}

pub(in crate::dashboard) fn lagging(stragglers: Vec<v1::Straggler>) -> Vec<Lagging> {
    let lagging = |straggler: v1::Straggler| Lagging { gateway: straggler.gateway, why: straggler.reason };
    stragglers.into_iter().take(LAGGING_MAX).map(lagging).collect()
}

pub(in crate::dashboard) fn rejected(rejections: Vec<v1::Rejection>) -> Vec<Rejected> {
    let rejected =
        |one: v1::Rejection| Rejected { gateway: one.gateway, resource: some(&one.resource), why: one.error };
    rejections.into_iter().take(LAGGING_MAX).map(rejected).collect()
}

fn problems(problems: &[Problem]) -> Vec<String> {
    problems.iter().take(PROBLEMS_MAX).map(|problem| format!("{}: {}", problem.subject, problem.reason)).collect()
}

pub(super) fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A round trip that moves by a few microseconds is no news.
fn two_digits(micros: u64) -> u64 {
    let mut unit = 1;
    while micros / unit >= 100 {
        unit *= 10;
    }
    (micros + unit / 2) / unit * unit
}

/// As often as a leader may change and people look.
const MEMBERS_PACE: Duration = Duration::from_secs(1);
/// The list of all that were issued is long, and certificates last for days.
const CERTIFICATES_EVERY: u64 = 30;
const CERTIFICATES_MAX: usize = 200;
const BROKEN_MAX: usize = 8;
const LAGGING_MAX: usize = 50;
/// Of one cluster or gateway: what follows from the first ones is not read.
const PROBLEMS_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(from: &str, to: &str, state: &str, rtt_micros: u64) -> v1::TunnelStatus {
        let cluster = |name: &str| name.split('/').next().unwrap().to_owned();
        v1::TunnelStatus {
            from: from.into(),
            to: to.into(),
            from_cluster: cluster(from),
            to_cluster: cluster(to),
            state: state.into(),
            rtt_micros,
            transport: "quic".into(),
            connections: 1,
            ..v1::TunnelStatus::default()
        }
    }

    /// What a link is, by its tunnels.
    #[test]
    fn a_link_is_what_its_tunnels_are_and_nothing_without_any() {
        let (up, far) = (tunnel("paris/gw-1", "tokyo/gw-1", "up", 3_149), tunnel("tokyo/gw-1", "paris/gw-1", "up", 0));
        let dead = tunnel("paris/gw-1", "tokyo/gw-2", "dead", 9_000);
        for (tunnels, state, rtt, broken) in [
            (vec![], LinkState::NotReported, None, 0),
            (vec![&up, &far], LinkState::Up, Some(3_100), 0),
            (vec![&far], LinkState::Up, None, 0),
            (vec![&up, &dead], LinkState::Degraded, Some(3_100), 1),
            (vec![&dead, &dead], LinkState::Down, None, 2),
        ] {
            let link = link("paris", "tokyo", &tunnels);
            assert_eq!((link.state, link.rtt_micros, link.broken.len()), (state, rtt, broken));
            assert_eq!((link.a_to_b, link.loss_percent), (None, None), "not known is not zero");
        }
        let lossy = |ppm| v1::TunnelStatus { lost_ppm: Some(ppm), ..up.clone() };
        let loss = |tunnels: &[&v1::TunnelStatus]| link("paris", "tokyo", tunnels).loss_percent;
        assert_eq!(loss(&[&far, &lossy(0), &lossy(12_345)]), Some(1.2), "of the worst that says it");
        assert_eq!(loss(&[&far, &lossy(0)]), Some(0.0));
        assert_eq!(link("paris", "tokyo", &[&dead]).broken, ["paris/gw-1 to tokyo/gw-2 is dead"]);
    }

    #[test]
    fn round_trips_have_two_digits() {
        let all = [0, 7, 99, 100, 104, 105, 3_149, 3_151, 999_999].map(two_digits);
        assert_eq!(all, [0, 7, 99, 100, 100, 110, 3_100, 3_200, 1_000_000]);
    }
}
