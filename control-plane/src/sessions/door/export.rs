//! Ports beyond the first, and what the Multi-Cluster Services API says of an export: what is bad of it goes, and is named;
//! the service stays.

use std::collections::BTreeSet;

use archipelago_model::export::{WORDS_BYTES_MAX, words_bytes};
use archipelago_proto::v1::{ExportFacts, ExportType, ReportedPort, ServiceReport, UncarriedPort};

use super::{LABEL_BYTES_MAX, Problems, cut, label_problem, number_problem, protocol_problem, shown};

/// Bytes of exported labels and annotations, counted over a whole report.
#[derive(Debug, Default)]
pub(super) struct Words(usize);

pub(super) fn admit(service: &mut ServiceReport, words: &mut Words, problems: &mut Problems) {
    let name = shown(service);
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut place = 0_usize;
    // The first was looked at with the service; it stays in any case.
    service.ports.retain_mut(|port| {
        place += 1;
        let named = port_name(&mut port.name, &mut names).or_else(|| app_protocol(&mut port.app_protocol));
        let refused = match place {
            1 => None,
            _ => port_problem(port, place)
                .or_else(|| numbers.contains(&port.port).then(|| "is named twice; the first counts".to_owned())),
        };
        let good = refused.is_none();
        if good {
            numbers.insert(port.port);
        }
        if let Some(reason) = refused.or(named) {
            problems.add(|| format!("port {} of service {name}", port.port), reason);
        }
        good
    });
    let Some(facts) = &mut service.export else { return };
    let reasons = [admit_facts(facts), admit_words(facts, words)].into_iter().flatten();
    for reason in reasons.chain(admit_uncarried(&mut facts.uncarried_ports)) {
        problems.add(|| format!("export of service {name}"), reason);
    }
}

fn port_problem(port: &ReportedPort, place: usize) -> Option<String> {
    if place > PORTS_MAX {
        return Some(format!("a service has at most {PORTS_MAX} ports"));
    }
    protocol_problem(port.protocol).or_else(|| number_problem(port.port))
}

/// A port can do without its name, and without two of one name nobody could tell which is meant.
fn port_name(name: &mut String, names: &mut BTreeSet<String>) -> Option<String> {
    if name.is_empty() {
        return None;
    }
    let problem = label_problem("port", name)
        .or_else(|| (!names.insert(name.clone())).then(|| format!("name {:?} is that of another port", cut(name))));
    if problem.is_some() {
        name.clear();
    }
    problem
}

/// People and ServiceImports read it; what it means was decided by the agent.
fn app_protocol(text: &mut String) -> Option<String> {
    if text.len() <= APP_PROTOCOL_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let problem = format!("appProtocol {:?} is not a word of at most {APP_PROTOCOL_BYTES_MAX} bytes", cut(text));
    text.clear();
    Some(problem)
}

fn admit_facts(facts: &mut ExportFacts) -> Option<String> {
    let mut bad = Vec::new();
    facts.created_unix_ms = facts.created_unix_ms.max(0);
    if ExportType::try_from(facts.r#type).is_err() {
        bad.push("type");
        facts.r#type = ExportType::Unspecified.into();
    }
    if !matches!(facts.session_affinity.as_str(), "" | "None" | "ClientIP") {
        bad.push("sessionAffinity");
        facts.session_affinity.clear();
    }
    if !matches!(facts.internal_traffic_policy.as_str(), "" | "Cluster" | "Local") {
        bad.push("internalTrafficPolicy");
        facts.internal_traffic_policy.clear();
    }
    let distribution = &mut facts.traffic_distribution;
    if distribution.len() > LABEL_BYTES_MAX || !distribution.bytes().all(|byte| byte.is_ascii_graphic()) {
        bad.push("trafficDistribution");
        distribution.clear();
    }
    let families: BTreeSet<&str> = facts.ip_families.iter().map(String::as_str).collect();
    let known = families.iter().all(|family| matches!(*family, "IPv4" | "IPv6"));
    if !known || families.len() < facts.ip_families.len() {
        bad.push("ipFamilies");
        facts.ip_families.clear();
    }
    (!bad.is_empty()).then(|| format!("{} is not known to this control plane, and is not used", bad.join(", ")))
}

/// All or none: half of them would be something that nobody exported.
fn admit_words(facts: &mut ExportFacts, words: &mut Words) -> Option<String> {
    let size = words_bytes(facts);
    let reason = if size > WORDS_BYTES_MAX {
        format!("exported labels and annotations have {size} bytes, at most {WORDS_BYTES_MAX} are carried")
    } else if words.0 + size > WORDS_OF_ALL_BYTES_MAX {
        format!("exported labels and annotations of a cluster have at most {WORDS_OF_ALL_BYTES_MAX} bytes together")
    } else {
        words.0 += size;
        return None;
    };
    facts.labels.clear();
    facts.annotations.clear();
    Some(format!("{reason}: they are left out"))
}

fn admit_uncarried(ports: &mut Vec<UncarriedPort>) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut place = 0_usize;
    let mut seen = BTreeSet::new();
    ports.retain_mut(|port| {
        place += 1;
        let named = port_name(&mut port.name, &mut BTreeSet::new()).or_else(|| app_protocol(&mut port.app_protocol));
        let refused = if place > PORTS_MAX {
            Some(format!("at most {PORTS_MAX} ports that are not carried are listed"))
        } else if !matches!(port.transport.as_str(), "UDP" | "SCTP") {
            Some(format!("transport {:?} is unknown to this control plane", cut(&port.transport)))
        } else if !seen.insert((port.transport.clone(), port.port)) {
            Some(format!("port {}/{} is named twice; the first counts", port.port, port.transport))
        } else {
            number_problem(port.port)
        };
        let good = refused.is_none();
        reasons.extend(refused.or(named));
        good
    });
    reasons
}

/// Ranges of media ports are the longest that are seen.
const PORTS_MAX: usize = 128;
const APP_PROTOCOL_BYTES_MAX: usize = 255;
/// A quarter of the largest report.
const WORDS_OF_ALL_BYTES_MAX: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use archipelago_proto::v1::{Problem, Protocol};

    use super::{super::admit_report, *};

    fn port(name: &str, port: u32, protocol: i32) -> ReportedPort {
        ReportedPort { name: name.into(), port, protocol, app_protocol: String::new() }
    }

    fn service(ports: Vec<ReportedPort>, export: Option<ExportFacts>) -> ServiceReport {
        let http = Protocol::Http1.into();
        let first = ports.first().cloned().unwrap_or_else(|| port("", 80, http));
        ServiceReport {
            namespace: "shop".into(),
            name: "web".into(),
            protocol: first.protocol,
            port: first.port,
            ports,
            export,
            ..ServiceReport::default()
        }
    }

    fn admit(report: ServiceReport) -> (ServiceReport, Vec<String>) {
        let (mut admitted, problems) = admit_report(vec![report]);
        let (again, nothing) = admit_report(admitted.clone());
        assert_eq!((&again, nothing), (&admitted, vec![]), "what was admitted is admitted again as it is");
        let line = |Problem { subject, reason }: &Problem| format!("{subject}: {reason}");
        (admitted.remove(0), problems.iter().map(line).collect())
    }

    #[test]
    fn a_bad_port_is_left_out_alone_and_named() {
        let http = Protocol::Http1.into();
        let good = || vec![port("http", 80, http), port("admin", 81, Protocol::Tcp.into())];
        let (admitted, problems) = admit(service(good(), None));
        assert_eq!((admitted.ports, problems), (good(), vec![]));
        let with = |bad: ReportedPort| admit(service([good(), vec![bad]].concat(), None));
        for (bad, says) in [
            (port("x", 0, http), "port 0 of service shop/web: port 0 is not between 1 and 65535"),
            (port("x", 82, 0), "port 82 of service shop/web: has no protocol"),
            (port("x", 82, 9), "port 82 of service shop/web: protocol 9 is unknown to this control plane"),
            (port("x", 81, http), "port 81 of service shop/web: is named twice; the first counts"),
        ] {
            let (admitted, problems) = with(bad);
            assert_eq!((admitted.ports, problems), (good(), vec![says.to_owned()]));
        }
        // A name that is none goes alone.
        for name in ["admin", "Not A Label"] {
            let (admitted, problems) = with(port(name, 82, http));
            assert_eq!((admitted.ports[2].clone(), problems.len()), (port("", 82, http), 1), "{problems:?}");
        }
        let (admitted, problems) = with(ReportedPort { app_protocol: "x".repeat(256), ..port("x", 82, http) });
        assert!(admitted.ports[2].app_protocol.is_empty() && problems[0].contains("at most 255 bytes"), "{problems:?}");

        let many = (1..=500).map(|number| port("", number, http)).collect();
        assert_eq!(admit(service(many, None)).0.ports.len(), PORTS_MAX);
        let other_first = ServiceReport { port: 81, ..service(good(), None) };
        let (admitted, problems) = admit_report(vec![other_first]);
        assert!(admitted.is_empty() && problems[0].reason.contains("is not the first of its list"), "{problems:?}");
    }

    #[test]
    fn facts_that_nobody_knows_and_words_without_end_are_left_out() {
        let uncarried = |name: &str, port: u32, transport: &str| UncarriedPort {
            name: name.into(),
            port,
            transport: transport.into(),
            app_protocol: String::new(),
        };
        let good = || ExportFacts {
            created_unix_ms: 7,
            r#type: ExportType::Headless.into(),
            session_affinity: "ClientIP".into(),
            session_affinity_seconds: Some(10),
            internal_traffic_policy: "Local".into(),
            traffic_distribution: "PreferClose".into(),
            ip_families: vec!["IPv6".into(), "IPv4".into()],
            labels: [("team".into(), "shop".into())].into(),
            annotations: BTreeMap::new(),
            uncarried_ports: vec![uncarried("udp", 80, "UDP")],
        };
        let (admitted, problems) = admit(service(Vec::new(), Some(good())));
        assert_eq!((admitted.export, problems), (Some(good()), vec![]));

        let bad = ExportFacts {
            created_unix_ms: -7,
            r#type: 9,
            session_affinity: "Tea".into(),
            internal_traffic_policy: "Tea".into(),
            traffic_distribution: "x".repeat(64),
            ip_families: vec!["IPv4".into(), "IPv4".into()],
            labels: [("team".into(), "x".repeat(5_000))].into(),
            uncarried_ports: vec![
                uncarried("", 80, "TCP"),
                uncarried("", 0, "UDP"),
                uncarried("", 53, "UDP"),
                uncarried("", 53, "UDP"),
            ],
            ..good()
        };
        let (admitted, problems) = admit(service(Vec::new(), Some(bad)));
        let left = ExportFacts {
            session_affinity_seconds: Some(10),
            uncarried_ports: vec![uncarried("", 53, "UDP")],
            ..ExportFacts::default()
        };
        assert_eq!(admitted.export, Some(left));
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(problems[0].ends_with(
            "type, sessionAffinity, internalTrafficPolicy, trafficDistribution, ipFamilies is not known to this control plane, and is not used"
        ));
        assert!(problems[1].contains("at most 4096 are carried"), "{problems:?}");
    }

    /// However many exports a cluster has: their words fit a report, and the services stay.
    #[test]
    fn words_of_all_exports_together_are_bounded() {
        let service = |n: usize| {
            let labels = [("team".into(), "x".repeat(4_000))].into();
            let facts = ExportFacts { labels, ..ExportFacts::default() };
            ServiceReport { name: format!("s{n}"), ..service(Vec::new(), Some(facts)) }
        };
        let (admitted, problems) = admit_report((0..1_000).map(service).collect());
        let bytes: usize = admitted.iter().map(prost::Message::encoded_len).sum();
        assert!(admitted.len() == 1_000 && bytes < 2 * 1024 * 1024, "{bytes}");
        assert!(problems[0].reason.ends_with("bytes together: they are left out"), "{problems:?}");
    }
}
