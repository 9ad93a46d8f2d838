//! Of each two clusters with gateways, both directions: every gateway dials for itself.
//!
//! "up" is a measurement and no memory: gateways send each other datagrams through every tunnel, at least once a second, and say
//! so only while those come back. Beyond that, every gateway is asked to send a request through each of its tunnels now, which the gateway
//! at the other end answers itself.

use archipelago_proto::v1;

use super::{Category, Check, Facts, Verdict, check, lines};
use crate::duration;

/// Judges what is between the clusters.
pub(super) fn judge(facts: &Facts) -> Category {
    let living: Vec<&str> = facts
        .status
        .clusters
        .iter()
        .filter(|cluster| cluster.gateways.iter().any(|gateway| gateway.state != "disconnected"))
        .map(|cluster| cluster.name.as_str())
        .collect();
    let mut checks = Vec::new();
    for from in &living {
        for to in living.iter().filter(|to| *to != from) {
            checks.push(beats(facts, from, to));
            checks.extend(requests(facts, from, to));
        }
    }
    if living.len() < 2 {
        let problem = Some(format!("{} with a connected gateway", living.len()));
        checks.push(check("there are two clusters to connect", Verdict::Warning, "tunnels", problem));
    } else {
        let unasked = facts.probed.iter().filter_map(|probed| {
            let why = probed.outcome.as_ref().err()?;
            Some(format!("{}/{}: {why}", probed.cluster, probed.gateway))
        });
        let said = "every gateway sends requests of its own through its tunnels";
        checks.push(check(said, Verdict::Warning, "tunnels-unasked", lines(unasked)));
    }
    Category { category_name: "tunnels", checks }
}

fn beats(facts: &Facts, from: &str, to: &str) -> Check {
    let between = |tunnel: &&v1::TunnelStatus| tunnel.from_cluster == from && tunnel.to_cluster == to;
    let up: Vec<&v1::TunnelStatus> =
        facts.tunnels.iter().filter(between).filter(|tunnel| tunnel.state == "up").collect();
    let slowest = up.iter().map(|tunnel| tunnel.rtt_micros).max().unwrap_or_default();
    let said = match up.is_empty() {
        true => format!("beats of {from} come back from {to}"),
        false => format!("beats of {from} come back from {to}, within {}", duration::measured(slowest)),
    };
    let states = facts
        .tunnels
        .iter()
        .filter(between)
        .filter(|tunnel| tunnel.state != "up")
        .map(|tunnel| format!("{} to {} is {}", tunnel.from, tunnel.to, tunnel.state));
    let verdict = if up.is_empty() { Verdict::Error } else { Verdict::Warning };
    let problem = lines(states).or_else(|| {
        up.is_empty().then(|| format!("no gateway of {from} has a tunnel to {to}: is its tunnel port (UDP) open?"))
    });
    check(said, verdict, "tunnels", problem)
}

/// Nothing when no gateway there could be asked, or none has a tunnel, which [`beats`] says.
fn requests(facts: &Facts, from: &str, to: &str) -> Option<Check> {
    let sent: Vec<(&str, &v1::TunnelProbe)> = facts
        .probed
        .iter()
        .filter(|probed| probed.cluster == from)
        .flat_map(|probed| probed.outcome.iter().flatten().map(|probe| (probed.gateway.as_str(), probe)))
        .filter(|(_, probe)| probe.to_cluster == to)
        .collect();
    if sent.is_empty() {
        return None;
    }
    let slowest =
        sent.iter().filter(|(_, probe)| probe.failure.is_empty()).map(|(_, probe)| probe.round_trip_micros).max();
    let said = match slowest {
        None => format!("requests of {from} are answered by {to}"),
        Some(slowest) => format!("requests of {from} are answered by {to}, within {}", duration::measured(slowest)),
    };
    let failed = sent
        .iter()
        .filter(|(_, probe)| !probe.failure.is_empty())
        .map(|(gateway, probe)| format!("{from}/{gateway} to {}: {}", probe.to, probe.failure));
    let verdict = if slowest.is_none() { Verdict::Error } else { Verdict::Warning };
    Some(check(said, verdict, "tunnels-requests", lines(failed)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{healthy, wrong};
    use super::*;

    fn spoiled(spoil: impl Fn(&mut Facts)) -> Vec<(&'static str, Verdict, String)> {
        let mut facts = healthy();
        spoil(&mut facts);
        wrong(&facts, false)
    }

    #[test]
    fn both_directions_are_told_with_their_round_trips() {
        let said: Vec<String> = judge(&healthy()).checks.into_iter().map(|check| check.description).collect();
        assert_eq!(
            said,
            [
                "beats of paris come back from tokyo, within 3.2 ms",
                "requests of paris are answered by tokyo, within 4.6 ms",
                "beats of tokyo come back from paris, within 3.2 ms",
                "requests of tokyo are answered by paris, within 4.6 ms",
                "every gateway sends requests of its own through its tunnels",
            ]
        );
    }

    #[test]
    fn a_tunnel_that_is_dead_or_missing_does_not_work() {
        let found = spoiled(|facts| facts.tunnels[0].state = "dead".into());
        let text = "paris/node-1 to tokyo/node-1 is dead".to_owned();
        assert_eq!(found, [("tunnels", Verdict::Error, text)]);
        let found = spoiled(|facts| drop(facts.tunnels.remove(1)));
        assert!(found[0].1 == Verdict::Error && found[0].2.contains("no gateway of tokyo has a tunnel to paris"));
    }

    #[test]
    fn a_tunnel_whose_beats_come_back_and_requests_do_not_does_not_work() {
        let fail = |facts: &mut Facts| {
            let probes = facts.probed[0].outcome.as_mut().unwrap();
            probes[0].failure = "no answer within 1200 ms".into();
        };
        let text = "paris/node-1 to tokyo/node-1: no answer within 1200 ms".to_owned();
        assert_eq!(spoiled(fail), [("tunnels", Verdict::Error, text)]);
        // Another gateway's is answered: some of paris works.
        let found = spoiled(|facts| {
            let mut other = facts.probed[0].outcome.clone().unwrap();
            other[0].to = "tokyo/node-2".into();
            fail(facts);
            facts.probed[0].outcome.as_mut().unwrap().append(&mut other);
        });
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, Verdict::Warning);
    }

    #[test]
    fn who_cannot_be_asked_is_named_and_judged_by_beats() {
        let found = spoiled(|facts| facts.probed[0].outcome = Err("of a version that knows beats only".into()));
        let text = "paris/node-1: of a version that knows beats only".to_owned();
        assert_eq!(found, [("tunnels", Verdict::Warning, text)]);
    }
}
