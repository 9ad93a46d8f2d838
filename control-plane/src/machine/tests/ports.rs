//! Services with several ports, and the way of a federation into the format that knows them.

use super::*;
use crate::machine::{
    command::{ExportFacts, ReportedPort},
    same_report,
};

fn port(number: u32, protocol: Protocol) -> ReportedPort {
    ReportedPort { name: format!("p{number}"), port: number, protocol: protocol.into(), ..ReportedPort::default() }
}

/// On these ports; the first is the service's own.
fn many(name: &str, ports: &[(u32, Protocol)]) -> ReportedService {
    let (number, protocol) = ports[0];
    let more_ports = ports[1..].iter().map(|(number, protocol)| port(*number, *protocol)).collect();
    ReportedService { port: number, more_ports, ..service(name, protocol, true) }
}

fn raise(to: u32) -> Command {
    command("", Action::RaiseFormat(RaiseFormat { format_version: to }))
}

/// Slots by name and port.
fn ports(machine: &Machine) -> BTreeMap<(&str, u32), u32> {
    machine.state().tcp_slots().map(|((_, name, port), slot)| ((name.as_str(), *port), slot)).collect()
}

fn since(machine: &Machine) -> u64 {
    machine.state().reports()["paris"][0].since
}

const TCP: Protocol = Protocol::Tcp;
const HTTP: Protocol = Protocol::Http1;

#[test]
fn what_older_members_would_lose_needs_format_4() {
    let plain = || service("web", HTTP, true);
    let required = |service: ReportedService| format::required(&report("paris", vec![plain(), service]));
    assert_eq!(required(plain()), format::BASE);
    for service in [
        ReportedService { port_name: "http".into(), ..plain() },
        ReportedService { app_protocol: "http".into(), ..plain() },
        ReportedService { more_ports: vec![port(81, HTTP)], ..plain() },
        ReportedService { export: Some(ExportFacts::default()), ..plain() },
    ] {
        assert!(!same_report(&[plain()], std::slice::from_ref(&service)), "{service:?}");
        let one = std::slice::from_ref(&service);
        assert_eq!(*format::fitting(format::REVOCATIONS, one), [plain()]);
        assert_eq!(*format::fitting(format::PORTS, one), *one);
        assert_eq!(required(service), format::PORTS);
    }
}

/// As one history on a member of this version and on one of the version before: the same bytes until the format rises, and from
/// then on the older one stops before anything that it does not know.
#[test]
fn members_of_two_versions_hold_the_same_state_until_the_format_rises() {
    let mut current = machine();
    let mut previous = Machine::new(format::REVOCATIONS, Box::new(|_| ()));
    let ledger = |port: u32| ReportedService { port, ..service("ledger", TCP, true) };
    let history = [
        raise(format::REVOCATIONS),
        command("a", upsert(vec![cluster("paris", "eu-west"), export("shop", "cache")])),
        command("", report("paris", vec![service("cache", TCP, false), ledger(5_432), service("web", HTTP, true)])),
        command("", report("tokyo", vec![ledger(5_433), service("queue", TCP, true)])),
        command("", report("tokyo", vec![ledger(5_433)])),
    ];
    for command in &history {
        assert_eq!(apply(&mut current, command), apply(&mut previous, command));
        assert_eq!(current.snapshot()(), previous.snapshot()());
    }
    assert_eq!(ports(&current), BTreeMap::from([(("cache", 0), 0), (("ledger", 0), 1)]), "by service alone");

    let before = previous.snapshot()();
    apply(&mut current, &raise(format::PORTS));
    let error = previous.apply(1, &raise(format::PORTS).encode_to_vec()).unwrap_err();
    assert!(error.reason.contains("of format 4, this version knows formats up to 3"), "{}", error.reason);
    assert!(previous.restore(&current.snapshot()()).unwrap_err().contains("of format 4"));
    assert_eq!(previous.snapshot()(), before);

    // Each slot is now for the port that it was for; whoever names another number gets one of its own.
    let numbered = BTreeMap::from([(("cache", 80), 0), (("ledger", 5_432), 1), (("ledger", 5_433), 3)]);
    assert_eq!(ports(&current), numbered);
    let mut restored = machine();
    restored.restore(&current.snapshot()()).unwrap();
    assert_eq!(restored.state(), current.state());
    let more = command("", report("paris", vec![many("cache", &[(80, TCP), (81, TCP)])]));
    assert_eq!(apply(&mut restored, &more), apply(&mut current, &more));
    assert_eq!(restored.snapshot()(), current.snapshot()());
}

#[test]
fn every_tcp_port_of_an_exported_service_has_a_slot_and_keeps_it_for_a_while() {
    let mut machine = machine();
    apply(&mut machine, &raise(format::PORTS));
    let mixed = [(80, HTTP), (5_432, TCP), (5_433, TCP)];
    apply(&mut machine, &command("", report("paris", vec![many("db", &mixed)])));
    assert_eq!(ports(&machine), BTreeMap::from([(("db", 5_432), 0), (("db", 5_433), 1)]));
    // Another order, and another first port, move nothing.
    apply(&mut machine, &command("", report("paris", vec![many("db", &[(5_433, TCP), (80, HTTP), (5_432, TCP)])])));
    assert_eq!(ports(&machine), BTreeMap::from([(("db", 5_432), 0), (("db", 5_433), 1)]));
    // A port that is gone, and comes back within the grace.
    apply(&mut machine, &command("", report("paris", vec![many("db", &[(5_433, TCP)])])));
    assert_eq!(ports(&machine), BTreeMap::from([(("db", 5_433), 1)]));
    apply(&mut machine, &command("", report("paris", vec![many("db", &[(5_433, TCP), (5_434, TCP), (5_432, TCP)])])));
    assert_eq!(ports(&machine), BTreeMap::from([(("db", 5_432), 0), (("db", 5_433), 1), (("db", 5_434), 2)]));

    // An operator's export is for all ports of the service, those to come included.
    let silent = |ports: &[(u32, Protocol)]| ReportedService { exported: false, ..many("cache", ports) };
    apply(&mut machine, &command("", report("tokyo", vec![silent(&[(1, TCP), (2, TCP)])])));
    assert!(ports(&machine).keys().all(|(name, _)| *name == "db"));
    apply(&mut machine, &command("a", upsert(vec![export("shop", "cache")])));
    apply(&mut machine, &command("", report("tokyo", vec![silent(&[(1, TCP), (2, TCP), (3, TCP)])])));
    let cache = |machine: &Machine| ports(machine).into_iter().filter(|((name, _), _)| *name == "cache").count();
    assert_eq!(cache(&machine), 3);
    apply(&mut machine, &command("b", delete("ServiceExport", "shop", "cache")));
    assert_eq!(cache(&machine), 0);
}

#[test]
fn a_port_that_comes_or_goes_makes_nobody_younger_and_another_protocol_does() {
    let mut machine = machine();
    apply(&mut machine, &raise(format::PORTS));
    let mut say = |ports: &[(u32, Protocol)]| {
        apply(&mut machine, &command("", report("paris", vec![many("db", ports)])));
        since(&machine)
    };
    assert_eq!(say(&[(80, HTTP)]), 1);
    assert_eq!(say(&[(80, HTTP), (81, HTTP)]), 1);
    assert_eq!(say(&[(80, HTTP), (82, HTTP)]), 1);
    assert_eq!(say(&[(80, HTTP), (82, TCP)]), 4);
    assert_eq!(say(&[(80, TCP), (82, TCP)]), 5);
    assert_eq!(say(&[(82, TCP), (80, TCP)]), 6, "the first is what everybody knows it by");
}
