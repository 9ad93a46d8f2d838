//! The door: what gateways say of themselves and what agents report is checked before anything is made of it.
//!
//! Pure. A bad entry is left out alone and named; the rest is used. What passes here can be compiled into the configuration of
//! others without hurting them, so the rules are those that a gateway applies to what it is sent.

mod export;

use std::{collections::BTreeSet, net::SocketAddr};

use archipelago_proto::v1::{GatewayHello, Problem, Protocol, ServiceReport};

use crate::machine::label_problem;

/// Admits what can be used of a report; the rest is named.
pub(crate) fn admit_report(services: Vec<ServiceReport>) -> (Vec<ServiceReport>, Vec<Problem>) {
    let mut problems = Problems::default();
    let mut seen = BTreeSet::new();
    let mut words = export::Words::default();
    let mut admitted = Vec::with_capacity(services.len().min(SERVICES_MAX));
    for mut service in services {
        let refused = service_problem(&service).or_else(|| {
            let fresh = seen.insert((service.namespace.clone(), service.name.clone()));
            (!fresh).then(|| "is named twice; the first counts".to_owned())
        });
        let refused = refused.or_else(|| {
            (admitted.len() >= SERVICES_MAX).then(|| format!("a cluster reports at most {SERVICES_MAX} services"))
        });
        match refused {
            Some(reason) => problems.add(|| format!("service {}", shown(&service)), reason),
            None => {
                // Counts are for people to read.
                service.ready = service.ready.min(service.total);
                export::admit(&mut service, &mut words, &mut problems);
                admitted.push(service);
            }
        }
    }
    (admitted, problems.listed())
}

/// What a gateway says it cannot serve: as much of it as people read.
pub(crate) fn admit_unserved(reported: Vec<Problem>) -> Vec<Problem> {
    let reason = |text: &str| text.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
    let admit = |problem: Problem| Problem { subject: cut(&problem.subject), reason: reason(&problem.reason) };
    reported.into_iter().take(PROBLEMS_MAX).map(admit).collect()
}

fn service_problem(service: &ServiceReport) -> Option<String> {
    let label = label_problem("namespace", &service.namespace).or_else(|| label_problem("service", &service.name));
    if let Some(problem) = label {
        return Some(problem);
    }
    let port = protocol_problem(service.protocol).or_else(|| number_problem(service.port));
    if let Some(problem) = port {
        return Some(problem);
    }
    let first = service.ports.first();
    if first.is_some_and(|first| (first.port, first.protocol) != (service.port, service.protocol)) {
        return Some(format!("port {} is not the first of its list of ports", service.port));
    }
    if service.versions.len() > VERSIONS_MAX {
        return Some(format!("has {} versions, at most {VERSIONS_MAX} are kept", service.versions.len()));
    }
    let bad = service.versions.iter().find(|version| !is_version(version));
    bad.map(|version| format!("version {:?} is not of letters, digits, '.', '_' and '-', at most 63", cut(version)))
}

fn protocol_problem(protocol: i32) -> Option<String> {
    match Protocol::try_from(protocol) {
        Ok(Protocol::Unspecified) => Some("has no protocol".to_owned()),
        Err(_) => Some(format!("protocol {protocol} is unknown to this control plane")),
        Ok(Protocol::Http1 | Protocol::H2c | Protocol::Tcp) => None,
    }
}

fn number_problem(port: u32) -> Option<String> {
    (port == 0 || port > u32::from(u16::MAX)).then(|| format!("port {port} is not between 1 and 65535"))
}

/// A version may be empty: endpoints that name none.
fn is_version(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Takes out of a hello what cannot be used, and names it.
pub(crate) fn admit_hello(hello: &mut GatewayHello) -> Vec<Problem> {
    let mut problems = Problems::default();
    if let Some(addresses) = &mut hello.addresses {
        let mut place = 0_usize;
        addresses.tunnel.retain(|address| {
            place += 1;
            let reason = match (place > TUNNEL_ADDRESSES_MAX, tunnel_problem(address)) {
                (true, _) => Some(format!("a gateway has at most {TUNNEL_ADDRESSES_MAX} tunnel addresses")),
                (false, reason) => reason,
            };
            let good = reason.is_none();
            if let Some(reason) = reason {
                problems.add(|| format!("tunnel address {place}"), reason);
            }
            good
        });
        let ports = [
            ("HTTP address", &mut addresses.http),
            ("DNS address", &mut addresses.dns),
            ("metrics address", &mut addresses.metrics),
            ("health address", &mut addresses.health),
            ("TCP base address", &mut addresses.tcp_base),
        ];
        for (what, address) in ports {
            if !address.is_empty()
                && let Some(reason) = address_problem(address)
            {
                problems.add(|| what.to_owned(), reason);
                address.clear();
            }
        }
    }
    if hello.workers > WORKERS_MAX {
        problems.add(|| "workers".to_owned(), format!("{} is more than {WORKERS_MAX}", hello.workers));
        hello.workers = 0;
    }
    let is_word =
        |text: &String| (1..=LABEL_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !hello.software_version.is_empty() && !is_word(&hello.software_version) {
        problems.add(|| "software version".to_owned(), "is not a word of at most 63 characters".to_owned());
        hello.software_version.clear();
    }
    let named = hello.features.len();
    hello.features.retain(is_word);
    hello.features.truncate(FEATURES_MAX);
    if hello.features.len() < named {
        let reason = format!("{} of {named} are not words, or beyond {FEATURES_MAX}", named - hello.features.len());
        problems.add(|| "features".to_owned(), reason);
    }
    problems.listed()
}

/// What an agent says it can do, as far as it is words.
pub(crate) fn admit_features(features: &[String]) -> Vec<String> {
    let is_word =
        |text: &&String| (1..=LABEL_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    features.iter().filter(is_word).take(FEATURES_MAX).cloned().collect()
}

/// Peers dial these, as they are.
fn tunnel_problem(address: &str) -> Option<String> {
    match address.parse::<SocketAddr>() {
        Err(_) => Some(format!("{:?} is not ip:port", cut(address))),
        Ok(parsed) if parsed.port() == 0 => Some(format!("{parsed} has no port")),
        Ok(parsed) if parsed.ip().is_unspecified() || parsed.ip().is_multicast() => {
            Some(format!("{parsed} cannot be reached from elsewhere"))
        }
        Ok(_) => None,
    }
}

/// People and tools read these: ip:port or host:port.
fn address_problem(address: &str) -> Option<String> {
    if address.parse::<SocketAddr>().is_ok_and(|parsed| parsed.port() != 0) {
        return None;
    }
    let is_host = |host: &str| {
        (1..=HOST_BYTES_MAX).contains(&host.len())
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
    };
    let good = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok_and(|port| port != 0));
    (!good).then(|| format!("{:?} is not host:port", cut(address)))
}

/// A list that a hostile sender cannot make long.
#[derive(Default)]
struct Problems {
    listed: Vec<Problem>,
    unlisted: usize,
}

impl Problems {
    fn add(&mut self, subject: impl FnOnce() -> String, reason: String) {
        if self.listed.len() < PROBLEMS_MAX {
            self.listed.push(Problem { subject: subject(), reason });
        } else {
            self.unlisted += 1;
        }
    }

    fn listed(mut self) -> Vec<Problem> {
        if self.unlisted > 0 {
            let subject = format!("{} more", self.unlisted);
            self.listed.push(Problem { subject, reason: "not listed".to_owned() });
        }
        self.listed
    }
}

fn shown(service: &ServiceReport) -> String {
    format!("{}/{}", cut(&service.namespace), cut(&service.name))
}

/// As much of a hostile text as a line has room for.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect()
}

/// As many as the state machine keeps per cluster.
const SERVICES_MAX: usize = 10_000;
/// A rollout has two, a test matrix a few; each is a line in every screen that shows the service.
const VERSIONS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 63;
/// DNS names have at most 253.
const HOST_BYTES_MAX: usize = 253;
const WORKERS_MAX: u32 = 1_024;
/// One per worker.
const TUNNEL_ADDRESSES_MAX: usize = 1_024;
/// A version adds a handful.
const FEATURES_MAX: usize = 1_024;
/// Beyond this nobody reads on.
const PROBLEMS_MAX: usize = 100;
const SHOWN_CHARS_MAX: usize = 64;
/// Two names of 63 and a sentence around them.
const REASON_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::GatewayAddresses;
    use proptest::prelude::*;

    use super::*;

    fn service(name: &str) -> ServiceReport {
        ServiceReport {
            namespace: "shop".into(),
            name: name.into(),
            protocol: Protocol::Http1.into(),
            port: 80,
            versions: vec!["v1".into(), String::new()],
            ready: 1,
            total: 1,
            ..ServiceReport::default()
        }
    }

    #[test]
    fn a_bad_entry_is_left_out_alone_and_named() {
        let good = service("web");
        let refused = |change: fn(&mut ServiceReport)| {
            let mut bad = service("bad");
            change(&mut bad);
            let (admitted, problems) = admit_report(vec![bad, good.clone()]);
            assert_eq!(admitted, std::slice::from_ref(&good));
            format!("{}: {}", problems[0].subject, problems[0].reason)
        };
        assert_eq!(refused(|bad| bad.port = 70_000), "service shop/bad: port 70000 is not between 1 and 65535");
        assert_eq!(refused(|bad| bad.port = 0), "service shop/bad: port 0 is not between 1 and 65535");
        assert_eq!(refused(|bad| bad.protocol = 99), "service shop/bad: protocol 99 is unknown to this control plane");
        assert_eq!(refused(|bad| bad.protocol = 0), "service shop/bad: has no protocol");
        assert!(refused(|bad| bad.name = "Not A Label".into()).starts_with("service shop/Not A Label: "));
        assert!(refused(|bad| bad.versions = vec!["v 1".into()]).contains("version \"v 1\""));
        assert!(refused(|bad| bad.versions = vec!["v".repeat(64)]).contains("at most 63"));
        assert!(refused(|bad| bad.versions = vec![String::new(); 65]).contains("at most 64"));
        assert!(refused(|bad| bad.name = "web2\u{7}".repeat(9_000)).len() < 400);
        let (admitted, problems) = admit_report(vec![good.clone(), ServiceReport { port: 81, ..good.clone() }]);
        assert_eq!((admitted, &*problems[0].reason), (vec![good.clone()], "is named twice; the first counts"));
        let many: Vec<_> = (0..SERVICES_MAX + 500).map(|n| service(&format!("s-{n}"))).collect();
        let (admitted, problems) = admit_report(many);
        assert_eq!((admitted.len(), problems.len()), (SERVICES_MAX, PROBLEMS_MAX + 1));
        assert_eq!(problems.last().unwrap().subject, "400 more");
    }

    #[test]
    fn what_a_gateway_cannot_serve_is_cut_to_what_people_read() {
        let problem =
            Problem { subject: "TCP\u{1b}[2J service".into(), reason: format!("port\n{}", "x".repeat(9_000)) };
        let admitted = admit_unserved(vec![problem; 500]);
        assert_eq!(admitted.len(), PROBLEMS_MAX);
        assert_eq!(admitted[0].subject, "TCP[2J service");
        assert_eq!(admitted[0].reason.len(), REASON_CHARS_MAX);
        assert!(admitted[0].reason.starts_with("portxx"));
    }

    #[test]
    fn a_hello_keeps_what_can_be_used() {
        let mut hello = GatewayHello {
            addresses: Some(GatewayAddresses {
                http: "127.0.0.1:80".into(),
                tunnel: vec!["nonsense".into(), "127.0.0.1:4500".into(), "0.0.0.0:4501".into(), "[::1]:0".into()],
                dns: "gw.example:53".into(),
                metrics: "gw.example:0".into(),
                health: "x".repeat(400),
                tcp_base: "[::1]:16000".into(),
            }),
            workers: 5_000,
            software_version: "0.1.0".into(),
            features: vec!["tea".into(), "a b".into()],
            ..GatewayHello::default()
        };
        let problems = admit_hello(&mut hello);
        let named: Vec<_> = problems.iter().map(|problem| problem.subject.as_str()).collect();
        let expected =
            ["tunnel address 1", "tunnel address 3", "tunnel address 4", "metrics address", "health address"];
        assert_eq!(named, [&expected[..], &["workers", "features"]].concat());
        assert_eq!(problems[0].reason, "\"nonsense\" is not ip:port");
        let addresses = hello.addresses.clone().unwrap();
        assert_eq!(addresses.tunnel, ["127.0.0.1:4500"]);
        assert_eq!((&*addresses.metrics, &*addresses.health, hello.workers), ("", "", 0));
        assert_eq!(
            (&*addresses.dns, &*addresses.tcp_base, &*addresses.http),
            ("gw.example:53", "[::1]:16000", "127.0.0.1:80")
        );
        assert_eq!(hello.features, ["tea"]);
        assert_eq!(admit_hello(&mut hello), [], "what was admitted is admitted again as it is");
    }

    proptest! {
        /// Whatever is said, nothing panics, and what was admitted is admitted again as it is.
        #[test]
        fn admission_settles(
            entries in prop::collection::vec((".{0,70}", ".{0,70}", any::<i32>(), any::<u32>(), prop::collection::vec(".{0,66}", 0..3)), 0..20),
            texts in prop::collection::vec("[0-9a-z:.\\[\\]]{0,20}", 7),
        ) {
            let report = entries.into_iter().map(|(namespace, name, protocol, port, versions)| {
                ServiceReport { namespace, name, protocol: protocol % 4, port: port % 70_000, versions, ..ServiceReport::default() }
            });
            let (admitted, _) = admit_report(report.collect());
            prop_assert_eq!(admit_report(admitted.clone()), (admitted, vec![]));
            let mut hello = GatewayHello {
                addresses: Some(GatewayAddresses {
                    http: texts[0].clone(), tunnel: vec![texts[1].clone(), texts[2].clone()], dns: texts[3].clone(),
                    metrics: texts[4].clone(), health: texts[5].clone(), tcp_base: texts[6].clone(),
                }),
                ..GatewayHello::default()
            };
            admit_hello(&mut hello);
            prop_assert_eq!(admit_hello(&mut hello), vec![]);
        }
    }
}
