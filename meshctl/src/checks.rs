//! What `meshctl check` judges: a pure function of what the control plane says, so that each finding has its test.
//!
//! The form is that of Linkerd's `check`: categories, one line per check, a hint for what is wrong.

mod tunnels;

use std::collections::BTreeSet;
use std::time::Duration;

use archipelago_proto::v1;
use serde::Serialize;

use crate::duration;

/// Everything that was learned, from one answer each.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) status: v1::StatusResponse,
    pub(crate) tunnels: Vec<v1::TunnelStatus>,
    /// What gateways found when they were asked to send requests through their tunnels.
    pub(crate) probed: Vec<Probed>,
    /// Unix seconds.
    pub(crate) now: i64,
    /// What is left of the operator's own certificate.
    pub(crate) credential_left: Duration,
}

/// One gateway's requests through its tunnels.
#[derive(Debug)]
pub(crate) struct Probed {
    pub(crate) cluster: String,
    pub(crate) gateway: String,
    /// What came back; or why nobody asked, or nobody answered.
    pub(crate) outcome: Result<Vec<v1::TunnelProbe>, String>,
}

/// `-o json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) success: bool,
    pub(crate) categories: Vec<Category>,
}

impl Report {
    /// Whether no cluster is only declared.
    pub(crate) fn has_all_joined(&self) -> bool {
        let mut checks = self.categories.iter().flat_map(|category| &category.checks);
        checks.all(|check| check.description != JOINED || check.result == Verdict::Success)
    }
}

/// Checks of one subject.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Category {
    pub(crate) category_name: &'static str,
    pub(crate) checks: Vec<Check>,
}

/// One line.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) description: String,
    pub(crate) result: Verdict,
    /// Where it says what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    /// What is wrong, one thing per line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Success,
    /// It works, and will not for ever.
    Warning,
    /// It does not work.
    Error,
}

/// Judges what runs: everything, or (`pre`) what must hold before another cluster joins.
pub(crate) fn judge(facts: &Facts, pre: bool) -> Report {
    let mut categories = vec![operator(facts), control_plane(facts)];
    if pre {
        categories.push(joining(facts));
    } else {
        categories.extend([clusters(facts), gateways(facts), tunnels::judge(facts)]);
    }
    categories.push(clocks(facts));
    let failed = categories.iter().flat_map(|category| &category.checks).any(|check| check.result == Verdict::Error);
    Report { success: !failed, categories }
}

fn operator(facts: &Facts) -> Category {
    let left = facts.credential_left;
    let problem = (left < CREDENTIAL_NOTICE)
        .then(|| format!("it runs out in {}; renew it with `meshctl operator renew`", whole(left)));
    Category {
        category_name: "operator",
        checks: vec![check(
            "the operator's credential is good for a month",
            Verdict::Warning,
            "operator-credential",
            problem,
        )],
    }
}

fn control_plane(facts: &Facts) -> Category {
    let members = &facts.status.members;
    let answers = |member: &&v1::MemberStatus| member.role != "unreachable";
    let answering = members.iter().filter(answers).count();
    let lost: Vec<String> = members
        .iter()
        .filter(|member| !answers(member))
        .map(|member| format!("member {} at {} does not answer", member.id, member.address))
        .collect();
    let leaders = members.iter().filter(|member| member.role == "leader").count();
    let formats: BTreeSet<u32> = members.iter().filter(answers).map(|member| member.format_supported).collect();
    let problems: Vec<String> = members
        .iter()
        .filter(|member| !member.problem.is_empty())
        .map(|member| format!("member {}: {}", member.id, member.problem))
        .collect();
    let minority = (answering * 2 <= members.len())
        .then(|| format!("{answering} of {} members answer: nothing can be written", members.len()));
    Category {
        category_name: "control-plane",
        checks: vec![
            check("a majority of the members answers", Verdict::Error, "control-plane-majority", minority),
            check("every member answers", Verdict::Warning, "control-plane-members", lines(lost)),
            check(
                "one member leads",
                Verdict::Error,
                "control-plane-leader",
                (leaders != 1).then(|| format!("{leaders} members say that they lead")),
            ),
            check(
                "members are of one version",
                Verdict::Warning,
                "control-plane-versions",
                (formats.len() > 1).then(|| format!("they know log formats {formats:?}: an upgrade is not finished")),
            ),
            check("no member has a problem", Verdict::Error, "control-plane-problems", lines(problems)),
        ],
    }
}

/// Before a cluster joins: it will be told these addresses.
fn joining(facts: &Facts) -> Category {
    let local = |address: &str| {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        host == "localhost"
            || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    let unreachable: Vec<String> = facts
        .status
        .members
        .iter()
        .filter(|member| local(&member.address))
        .map(|member| {
            format!("member {} is known as {}, which every machine takes for itself", member.id, member.address)
        })
        .collect();
    Category {
        category_name: "joining",
        checks: vec![check(
            "members have addresses that other clusters can reach",
            Verdict::Error,
            "joining-addresses",
            lines(unreachable),
        )],
    }
}

fn clusters(facts: &Facts) -> Category {
    let clusters = &facts.status.clusters;
    let where_state = |state: &str, says: &str| {
        lines(
            clusters.iter().filter(|cluster| cluster.state == state).map(|cluster| format!("{} {says}", cluster.name)),
        )
    };
    let agents = clusters
        .iter()
        .filter(|cluster| cluster.state != "pending" && cluster.agent_state != "connected")
        .map(|cluster| {
            format!("the agent of {} is {}: its services are known as they were", cluster.name, cluster.agent_state)
        });
    let unused = clusters
        .iter()
        .flat_map(|cluster| cluster.problems.iter().map(|problem| format!("{}: {}", cluster.name, said(problem))));
    Category {
        category_name: "clusters",
        checks: vec![
            check(
                "there is a cluster",
                Verdict::Error,
                "clusters-none",
                clusters.is_empty().then(|| "none has joined: meshctl cluster join NAME --region REGION".to_owned()),
            ),
            check(
                JOINED,
                Verdict::Warning,
                "clusters-pending",
                where_state("pending", "was made and nothing of it has joined yet"),
            ),
            check(
                "every cluster can be heard",
                Verdict::Error,
                "clusters-unreachable",
                where_state("unreachable", "has no gateway and no agent connected"),
            ),
            check("agents are connected", Verdict::Error, "clusters-agents", lines(agents)),
            check(
                "no cluster is drained",
                Verdict::Warning,
                "clusters-drained",
                where_state("drained", "is drained: meshctl cluster uncordon brings it back"),
            ),
            check("all that agents report is used", Verdict::Warning, "clusters-reports", lines(unused)),
        ],
    }
}

fn gateways(facts: &Facts) -> Category {
    let all: Vec<&v1::GatewayStatus> = facts.status.clusters.iter().flat_map(|cluster| &cluster.gateways).collect();
    let name = |gateway: &v1::GatewayStatus| match gateway.name.contains('/') {
        true => gateway.name.clone(),
        false => format!("{}/{}", gateway.cluster, gateway.name),
    };
    let without = facts
        .status
        .clusters
        .iter()
        .filter(|cluster| cluster.state != "pending" && cluster.gateways.is_empty())
        .map(|cluster| format!("{} has none: nobody there reaches another cluster", cluster.name));
    let behind = all.iter().filter(|gateway| gateway.state != "synced").map(|gateway| {
        let why = if gateway.error.is_empty() { String::new() } else { format!(": {}", gateway.error) };
        format!("{} is {}{why}", name(gateway), gateway.state)
    });
    let ending = all.iter().filter(|gateway| gateway.svid_not_after_unix > 0).filter_map(|gateway| {
        let left = u64::try_from(gateway.svid_not_after_unix.saturating_sub(facts.now)).unwrap_or(0);
        let left = Duration::from_secs(left);
        (left < CERTIFICATE_NOTICE)
            .then(|| format!("{}: {} left, and it renews long before", name(gateway), whole(left)))
    });
    let unused = all
        .iter()
        .flat_map(|gateway| gateway.problems.iter().map(|problem| format!("{}: {}", name(gateway), said(problem))));
    Category {
        category_name: "gateways",
        checks: vec![
            check("every cluster has gateways", Verdict::Error, "gateways-none", lines(without)),
            check("gateways run the current revision", Verdict::Error, "gateways-synced", lines(behind)),
            check("certificates are renewed in time", Verdict::Warning, "gateways-certificates", lines(ending)),
            check("gateways can use all of their configuration", Verdict::Warning, "gateways-problems", lines(unused)),
        ],
    }
}

fn clocks(facts: &Facts) -> Category {
    let off = facts.status.clocks.iter().map(|clock| {
        let by = duration::display(Duration::from_millis(clock.offset_ms.unsigned_abs()));
        let how = if clock.offset_ms > 0 { "ahead of" } else { "behind" };
        format!("{} was {by} {how} the control plane when it last asked for a certificate", clock.spiffe_id)
    });
    Category {
        category_name: "clocks",
        checks: vec![check("clocks agree within 5 s", Verdict::Warning, "clocks", lines(off))],
    }
}

fn said(problem: &v1::Problem) -> String {
    match problem.subject.as_str() {
        "" => problem.reason.clone(),
        subject => format!("{subject}: {}", problem.reason),
    }
}

/// One line each; nothing if there is none.
fn lines(problems: impl IntoIterator<Item = String>) -> Option<String> {
    let all: Vec<String> = problems.into_iter().collect();
    let more = all.len().saturating_sub(LINES_MAX);
    let mut text = all.into_iter().take(LINES_MAX).collect::<Vec<_>>().join("\n");
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    (!text.is_empty()).then_some(text)
}

/// Good without a problem; otherwise `worse`, with the place that says what to do.
fn check(description: impl Into<String>, worse: Verdict, anchor: &str, problem: Option<String>) -> Check {
    Check {
        description: description.into(),
        result: if problem.is_some() { worse } else { Verdict::Success },
        hint: problem.is_some().then(|| format!("{HINTS}#{anchor}")),
        error: problem,
    }
}

fn whole(left: Duration) -> String {
    duration::display(Duration::from_secs(left.as_secs()))
}

/// Every anchor is a heading there.
const HINTS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/check.md");
const CREDENTIAL_NOTICE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Of a life of 48 hours three quarters are left when a gateway renews; below this two days of tries have failed.
const CERTIFICATE_NOTICE: Duration = Duration::from_secs(6 * 3_600);
/// A hundred gateways with the same trouble are one trouble.
const LINES_MAX: usize = 10;

const JOINED: &str = "every cluster has joined";

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, role: &str) -> v1::MemberStatus {
        let address = format!("203.0.113.{id}:7400");
        v1::MemberStatus {
            id,
            role: role.into(),
            address,
            format_supported: 4,
            format_version: 4,
            ..Default::default()
        }
    }

    fn cluster(name: &str) -> v1::ClusterStatus {
        let gateway = v1::GatewayStatus {
            name: "node-1".into(),
            cluster: name.into(),
            state: "synced".into(),
            svid_not_after_unix: NOW + 40 * 3_600,
            ..Default::default()
        };
        v1::ClusterStatus {
            name: name.into(),
            state: "active".into(),
            agent_state: "connected".into(),
            gateways: vec![gateway],
            ..Default::default()
        }
    }

    fn tunnel(from: &str, to: &str, state: &str) -> v1::TunnelStatus {
        v1::TunnelStatus {
            from: format!("{from}/node-1"),
            to: format!("{to}/node-1"),
            from_cluster: from.into(),
            to_cluster: to.into(),
            state: state.into(),
            rtt_micros: 3_210,
            ..Default::default()
        }
    }

    fn probed(from: &str, to: &str) -> Probed {
        let probe = v1::TunnelProbe {
            to: format!("{to}/node-1"),
            to_cluster: to.into(),
            round_trip_micros: 4_560,
            ..Default::default()
        };
        Probed { cluster: from.into(), gateway: "node-1".into(), outcome: Ok(vec![probe]) }
    }

    pub(super) fn healthy() -> Facts {
        Facts {
            status: v1::StatusResponse {
                members: vec![member(1, "leader"), member(2, "follower"), member(3, "follower")],
                clusters: vec![cluster("paris"), cluster("tokyo")],
                ..Default::default()
            },
            tunnels: vec![tunnel("paris", "tokyo", "up"), tunnel("tokyo", "paris", "up")],
            probed: vec![probed("paris", "tokyo"), probed("tokyo", "paris")],
            now: NOW,
            credential_left: Duration::from_secs(300 * 24 * 3_600),
        }
    }

    /// What is found wrong: category, verdict, and the words.
    pub(super) fn wrong(facts: &Facts, pre: bool) -> Vec<(&'static str, Verdict, String)> {
        let found = judge(facts, pre).categories.into_iter().flat_map(|category| {
            let name = category.category_name;
            category
                .checks
                .into_iter()
                .filter(|check| check.result != Verdict::Success)
                .map(move |check| (name, check.result, check.error.unwrap_or_default()))
        });
        found.collect()
    }

    #[test]
    fn a_healthy_federation_has_nothing_wrong() {
        assert_eq!(wrong(&healthy(), false), []);
        assert_eq!(wrong(&healthy(), true), []);
        let report = judge(&healthy(), false);
        assert!(report.success);
        let lines: Vec<&str> =
            report.categories.iter().flat_map(|one| &one.checks).map(|check| check.description.as_str()).collect();
        assert!(lines.contains(&"beats of paris come back from tokyo, within 3.2 ms"), "{lines:?}");
    }

    #[test]
    fn each_trouble_is_found_and_weighed() {
        type Case = (fn(&mut Facts), &'static str, Verdict, &'static str);
        let cases: [Case; 12] = [
            (|facts| facts.credential_left = Duration::from_secs(3_600), "operator", Verdict::Warning, "in 1h"),
            (
                |facts| facts.status.members[2].role = "unreachable".into(),
                "control-plane",
                Verdict::Warning,
                "member 3 at",
            ),
            (
                |facts| facts.status.members[0].role = "follower".into(),
                "control-plane",
                Verdict::Error,
                "0 members say",
            ),
            (|facts| facts.status.members[1].format_supported = 3, "control-plane", Verdict::Warning, "upgrade"),
            (
                |facts| facts.status.members[1].problem = "the disk is full".into(),
                "control-plane",
                Verdict::Error,
                "full",
            ),
            (
                |facts| facts.status.clusters[0].agent_state = "disconnected".into(),
                "clusters",
                Verdict::Error,
                "of paris",
            ),
            (
                |facts| facts.status.clusters[0].state = "drained".into(),
                "clusters",
                Verdict::Warning,
                "paris is drained",
            ),
            (|facts| facts.status.clusters[0].state = "unreachable".into(), "clusters", Verdict::Error, "paris has no"),
            (
                |facts| {
                    facts.status.clusters.push(v1::ClusterStatus {
                        name: "lyon".into(),
                        state: "pending".into(),
                        ..Default::default()
                    })
                },
                "clusters",
                Verdict::Warning,
                "lyon was made",
            ),
            (
                |facts| facts.status.clusters[1].gateways[0].state = "rejected".into(),
                "gateways",
                Verdict::Error,
                "tokyo/node-1 is rejected",
            ),
            (
                |facts| facts.status.clusters[1].gateways[0].svid_not_after_unix = NOW + 60,
                "gateways",
                Verdict::Warning,
                "1m left",
            ),
            (
                |facts| {
                    facts.status.clocks.push(v1::ClockOffset {
                        spiffe_id: "x".into(),
                        offset_ms: -7_000,
                        ..Default::default()
                    })
                },
                "clocks",
                Verdict::Warning,
                "7s behind",
            ),
        ];
        for (spoil, category, verdict, says) in cases {
            let mut facts = healthy();
            spoil(&mut facts);
            let found = wrong(&facts, false);
            assert_eq!(found.len(), 1, "{says}: {found:?}");
            assert!(found[0].0 == category && found[0].1 == verdict && found[0].2.contains(says), "{says}: {found:?}");
            assert_eq!(judge(&facts, false).success, verdict == Verdict::Warning, "{says}");
        }
    }

    #[test]
    fn a_minority_and_nobody_are_told_apart_from_trouble() {
        let mut facts = healthy();
        facts.status.members[1].role = "unreachable".into();
        facts.status.members[2].role = "unreachable".into();
        assert!(wrong(&facts, false).iter().any(|(.., text)| text.contains("1 of 3 members answer")));
        facts = healthy();
        facts.status.clusters.clear();
        facts.tunnels.clear();
        assert!(wrong(&facts, false).iter().any(|(.., text)| text.contains("meshctl cluster join")));
    }

    #[test]
    fn before_a_cluster_joins_the_addresses_count() {
        let mut facts = healthy();
        facts.status.members[0].address = "127.0.0.1:7400".into();
        facts.status.members[1].address = "[::1]:7400".into();
        let found = wrong(&facts, true);
        assert_eq!(found.len(), 1);
        assert!(found[0].2.contains("member 1") && found[0].2.contains("member 2"), "{found:?}");
    }

    #[test]
    fn many_of_one_kind_are_counted() {
        let text = lines((0..25).map(|number| number.to_string())).unwrap();
        assert!(text.ends_with("9\nand 15 more"), "{text}");
    }

    #[test]
    fn every_hint_has_its_heading() {
        let page = include_str!("../../docs/check.md");
        let mut facts = healthy();
        facts.credential_left = Duration::ZERO;
        facts.status.members.iter_mut().for_each(|member| {
            member.role = "unreachable".into();
            member.problem = "x".into();
            member.address = "localhost:1".into();
        });
        facts.status.clusters.clear();
        facts.status.clocks.push(v1::ClockOffset::default());
        let mut anchors: BTreeSet<String> = BTreeSet::new();
        for pre in [false, true] {
            let report = judge(&facts, pre);
            let hints = report.categories.iter().flat_map(|one| &one.checks).filter_map(|check| check.hint.as_ref());
            anchors.extend(hints.filter_map(|hint| hint.rsplit_once('#')).map(|(_, anchor)| anchor.to_owned()));
        }
        // Those that this state of things cannot show.
        let others = [
            "control-plane-versions",
            "clusters-pending",
            "clusters-unreachable",
            "clusters-agents",
            "clusters-drained",
            "clusters-reports",
            "gateways-none",
            "gateways-synced",
            "gateways-certificates",
            "gateways-problems",
            "tunnels-requests",
            "tunnels-unasked",
        ];
        anchors.extend(others.map(str::to_owned));
        for anchor in anchors {
            assert!(page.contains(&format!("## {anchor}\n")), "docs/check.md has no heading {anchor}");
        }
    }

    #[test]
    fn a_cluster_that_was_only_declared_fails_nothing_and_is_waited_for() {
        let mut facts = Facts { status: v1::StatusResponse::default(), ..Facts::default() };
        let mut joined = |state: &str| {
            facts.status.clusters =
                vec![v1::ClusterStatus { name: "lyon".into(), state: state.into(), ..Default::default() }];
            judge(&facts, false).has_all_joined()
        };
        assert_eq!((joined("pending"), joined("active"), joined("unreachable")), (false, true, true));
        assert!(judge(&Facts::default(), true).has_all_joined());
    }

    const NOW: i64 = 1_800_000_000;
}
