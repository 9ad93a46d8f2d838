//! Golden outcomes, and properties that hold for any sequence of commands.

mod origins;
mod ports;

use std::collections::BTreeMap;

use archipelago_raft::StateMachine;
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use prost::Message;

use super::{
    Key, Machine, State,
    command::{
        Action, Answer, ApplyResources, CaInit, Command, Expect, GatewayAddresses, IssuedRecord, Outcome, Precondition,
        Protocol, RaiseFormat, RaiseRestoreEpoch, RecordIssued, RefusalCode, Refused, RegisterGateway, ReportExports,
        ReportedService, ResourceKey, ResourceWrite, RevokeIdentity, Role, TokenConsume, TokenCreate,
    },
    dedup::OUTCOMES_MAX,
    format,
    slots::{GRACE_MS, SLOTS_MAX, SLOTS_PER_CLUSTER_MAX},
};
use crate::digest::sha256;

fn machine() -> Machine {
    Machine::new(format::CURRENT, Box::new(|_| ()))
}

fn command(id: &str, action: Action) -> Command {
    Command {
        format_version: format::required(&action),
        request_id: id.to_owned(),
        actor: "spiffe://mesh.example/operator/admin".to_owned(),
        proposed_unix_ms: 1_000_000,
        action: Some(action),
    }
}

fn at(unix_ms: i64, command: Command) -> Command {
    Command { proposed_unix_ms: unix_ms, ..command }
}

fn apply(machine: &mut Machine, command: &Command) -> Outcome {
    let bytes = machine.apply(1, &command.encode_to_vec()).unwrap();
    Outcome::decode(bytes.as_slice()).unwrap()
}

fn key(kind: &str, namespace: &str, name: &str) -> ResourceKey {
    ResourceKey { kind: kind.into(), namespace: namespace.into(), name: name.into() }
}

fn cluster(name: &str, region: &str) -> ResourceWrite {
    // Nothing here may depend on what these bytes mean.
    ResourceWrite { key: Some(key("Cluster", "", name)), canonical: format!("in {region}").into() }
}

fn export(namespace: &str, name: &str) -> ResourceWrite {
    ResourceWrite { key: Some(key("ServiceExport", namespace, name)), canonical: "exported".into() }
}

fn upsert(upserts: Vec<ResourceWrite>) -> Action {
    Action::ApplyResources(ApplyResources { upserts, ..ApplyResources::default() })
}

fn delete(kind: &str, namespace: &str, name: &str) -> Action {
    Action::ApplyResources(ApplyResources { deletes: vec![key(kind, namespace, name)], ..ApplyResources::default() })
}

fn expecting(action: Action, name: &str, expect: Expect) -> Action {
    let Action::ApplyResources(apply) = action else { panic!("not a write of resources") };
    let precondition = Precondition { key: Some(key("Cluster", "", name)), expect: Some(expect) };
    Action::ApplyResources(ApplyResources { preconditions: vec![precondition], ..apply })
}

fn admitted_at(action: Action, revision: u64) -> Action {
    let Action::ApplyResources(apply) = action else { panic!("not a write of resources") };
    Action::ApplyResources(ApplyResources { admitted_revision: Some(revision), ..apply })
}

fn service(name: &str, protocol: Protocol, exported: bool) -> ReportedService {
    ReportedService {
        namespace: "shop".into(),
        name: name.into(),
        protocol: protocol.into(),
        port: 80,
        exported,
        versions: vec!["v1".into()],
        ..ReportedService::default()
    }
}

fn report(cluster: &str, services: Vec<ReportedService>) -> Action {
    Action::ReportExports(ReportExports { cluster: cluster.into(), services })
}

/// `count` TCP services named `<prefix>00000` and so on.
fn tcp_services(prefix: &str, count: usize, exported: bool) -> Vec<ReportedService> {
    (0..count).map(|n| service(&format!("{prefix}{n:05}"), Protocol::Tcp, exported)).collect()
}

fn gateway(cluster: &str, name: &str, http: &str) -> Action {
    Action::RegisterGateway(RegisterGateway {
        cluster: cluster.into(),
        name: name.into(),
        spiffe_id: format!("spiffe://mesh.example/cluster/{cluster}/gateway/{name}"),
        addresses: Some(GatewayAddresses { http: http.into(), ..Default::default() }),
        workers: 2,
    })
}

fn token(secret: u8) -> Action {
    Action::TokenCreate(TokenCreate {
        secret_sha256: vec![secret; 32],
        cluster: "paris".into(),
        role: Role::Gateway.into(),
        name: "gw-1".into(),
        ttl_ms: 60_000,
    })
}

fn consume(secret: u8, key: u8) -> Action {
    Action::TokenConsume(TokenConsume { secret_sha256: vec![secret; 32], public_key_sha256: vec![key; 32] })
}

fn refused(outcome: &Outcome) -> &Refused {
    match &outcome.answer {
        Some(Answer::Refused(refused)) => refused,
        other => panic!("not refused: {other:?}"),
    }
}

fn slots(machine: &Machine) -> BTreeMap<&str, u32> {
    machine.state().tcp_slots().map(|((_, name, _), slot)| (name.as_str(), slot)).collect()
}

/// One line per command: version, and what it answered.
fn line(machine: &Machine, outcome: &Outcome) -> String {
    let answer = match &outcome.answer {
        Some(Answer::Applied(applied)) => applied
            .changes
            .iter()
            .map(|change| format!("{} {:?}", Key::from(change.key.clone().unwrap()), change.kind()))
            .collect::<Vec<_>>()
            .join(", "),
        Some(Answer::Done(_)) => "done".to_owned(),
        Some(Answer::Consumed(consumed)) => format!("{}/{} {:?}", consumed.cluster, consumed.name, consumed.role()),
        Some(Answer::Refused(refused)) => crate::refusal::text(refused),
        None => "nothing".to_owned(),
    };
    format!("@{} {answer}", machine.state().version())
}

#[test]
fn golden_story() {
    let mut machine = machine();
    let ca = CaInit { trust_domain: "mesh.example".into(), root_der: vec![1], ..CaInit::default() };
    let other_ca = CaInit { root_der: vec![2], ..ca.clone() };
    let story = [
        command("", Action::CaInit(ca.clone())),
        command("", Action::CaInit(ca)),
        command("", Action::CaInit(other_ca)),
        command("1", upsert(vec![cluster("paris", "eu-west"), cluster("tokyo", "ap-northeast")])),
        command("2", upsert(vec![cluster("paris", "eu-west")])),
        command("3", upsert(vec![cluster("paris", "eu-north"), cluster("oslo", "eu-north")])),
        command("4", delete("Cluster", "", "atlantis")),
        command("5", expecting(upsert(vec![cluster("paris", "x")]), "paris", Expect::Revision(2))),
        command("", gateway("paris", "gw-1", "127.0.0.1:80")),
        command("", gateway("paris", "gw-1", "127.0.0.1:80")),
        command("", gateway("paris", "gw-1", "127.0.0.1:81")),
        command("", report("paris", vec![service("web", Protocol::Http1, true)])),
        command("", report("paris", vec![service("web", Protocol::Http1, true)])),
        command("6", delete("Cluster", "", "paris")),
        command("", gateway("paris", "gw-1", "127.0.0.1:81")),
        command("", report("paris", vec![])),
        command("8", token(7)),
        command("7", upsert(vec![cluster("paris", "eu-west")])),
        command("", gateway("paris", "gw-1", "127.0.0.1:81")),
        command("9", token(7)),
        command("10", token(7)),
        command("11", consume(7, 1)),
        command("", Action::RaiseFormat(RaiseFormat { format_version: 2 })),
        command("12", Action::RaiseRestoreEpoch(RaiseRestoreEpoch {})),
    ];
    let lines: Vec<String> = story
        .iter()
        .map(|command| {
            let outcome = apply(&mut machine, command);
            line(&machine, &outcome)
        })
        .collect();
    let expected = [
        "@1.0 done",
        "@1.0 done",
        "@1.0 this federation already has another authority",
        "@2.0 Cluster paris Created, Cluster tokyo Created",
        "@2.0 Cluster paris Unchanged",
        "@3.0 Cluster paris Updated, Cluster oslo Created",
        "@3.0 Cluster atlantis does not exist",
        "@3.0 Cluster paris was changed by somebody else, at revision 3",
        "@3.1 done",
        "@3.1 done",
        "@3.2 done",
        "@3.3 done",
        "@3.3 done",
        "@4.3 Cluster paris Deleted",
        "@4.3 cluster paris was deleted at 1970-01-01T00:16:40Z",
        "@4.3 cluster paris was deleted at 1970-01-01T00:16:40Z",
        "@4.3 cluster paris was deleted at 1970-01-01T00:16:40Z",
        "@5.3 Cluster paris Created",
        "@5.4 done",
        "@5.4 done",
        "@5.4 a token with this secret exists",
        "@5.4 paris/gw-1 Gateway",
        "@5.4 done",
        "@1:6.4 done",
    ];
    assert_eq!(lines, expected);
    assert_eq!(machine.state().format_version(), 2);
}

#[test]
fn what_this_version_does_not_know_is_never_applied() {
    let known = command("a", upsert(vec![cluster("paris", "eu-west")]));
    let later_format = Command { format_version: format::CURRENT + 1, ..known.clone() };
    let mut unknown_field = known.encode_to_vec();
    unknown_field.extend_from_slice(&[0xa0, 0x06, 0x01]);
    // Field 100 inside the action: Command.apply_resources (10) with one varint.
    let inner = Command { action: None, ..known.clone() }.encode_to_vec();
    let nested = [inner.clone(), vec![0x52, 0x03, 0xa0, 0x06, 0x01]].concat();
    let unknown_action = [inner, vec![0xa2, 0x06, 0x00]].concat();
    // An entry of the format before: its first field was a text.
    let before = b"\x0a\x01a\x12\x05actor".to_vec();
    for (bytes, says) in [
        (later_format.encode_to_vec(), "format 7, this version knows formats up to 6"),
        (unknown_field, "a field that this version does not know"),
        (nested, "a field that this version does not know"),
        (unknown_action, "an action that this version does not know"),
        (before, "from before log formats"),
        (b"\xff\xff\xff".to_vec(), "none of this log"),
        (Vec::new(), "none of this log"),
    ] {
        let mut machine = machine();
        let error = machine.apply(1, &bytes).unwrap_err();
        assert!(error.reason.contains(says), "{}", error.reason);
        assert_eq!(*machine.state(), State::default(), "{says}");
    }
}

#[test]
fn a_member_of_the_previous_version_stops_at_what_is_new_and_follows_all_else() {
    let mut current = machine();
    let mut previous = Machine::new(format::PREVIOUS, Box::new(|_| ()));
    let old = command("a", upsert(vec![cluster("paris", "eu-west")]));
    assert_eq!(apply(&mut current, &old), apply(&mut previous, &old));
    assert_eq!(current.snapshot()(), previous.snapshot()());

    let new = command("b", expecting(upsert(vec![cluster("oslo", "eu-north")]), "oslo", Expect::Absent(true)));
    assert!(!format::permits(current.state().format_version(), new.action.as_ref().unwrap()));
    let raise = command("", Action::RaiseFormat(RaiseFormat { format_version: 2 }));
    for command in [&raise, &new] {
        apply(&mut current, command);
        let before = previous.snapshot()();
        previous.apply(1, &command.encode_to_vec()).unwrap_err();
        assert_eq!(previous.snapshot()(), before);
    }
    let error = previous.restore(&current.snapshot()()).unwrap_err();
    assert!(error.contains("of format 2, this version knows formats up to 1"), "{error}");
}

#[test]
fn a_new_federation_begins_at_the_format_of_its_founders() {
    let mut machine = machine();
    let ca = CaInit { founded_format: format::CURRENT, ..CaInit::default() };
    let found = command("", Action::CaInit(ca));
    apply(&mut machine, &found);
    assert_eq!(machine.state().format_version(), format::CURRENT);
    assert!(Machine::new(format::PREVIOUS, Box::new(|_| ())).apply(1, &found.encode_to_vec()).is_err());
}

#[test]
fn a_retry_gets_the_first_answer_and_commits_nothing() {
    let mut machine = machine();
    let first = command("a", upsert(vec![cluster("paris", "eu-west")]));
    let outcome = apply(&mut machine, &first);
    apply(&mut machine, &command("b", upsert(vec![cluster("paris", "eu-north")])));
    let later = at(9_999_999, first.clone());
    assert_eq!(apply(&mut machine, &later), outcome, "the answer of then, whatever happened since");
    assert_eq!(machine.state().revision(), 2);
    let admitted_again = command("a", admitted_at(first.action.clone().unwrap(), 2));
    assert_eq!(apply(&mut machine, &admitted_again), outcome, "what admission had read does not make another request");

    let other = command("a", upsert(vec![cluster("tokyo", "ap-northeast")]));
    assert_eq!(refused(&apply(&mut machine, &other)).code(), RefusalCode::RequestIdReused);
    let stranger = Command { actor: "spiffe://mesh.example/operator/eve".into(), ..first };
    let outcome = apply(&mut machine, &stranger);
    assert_eq!(line(&machine, &outcome), "@3.0 Cluster paris Updated", "ids are private to an actor");
}

#[test]
fn a_write_judged_on_older_resources_is_judged_again_under_the_same_id() {
    let mut machine = machine();
    apply(&mut machine, &command("a", upsert(vec![cluster("paris", "eu-west")])));
    apply(&mut machine, &command("b", upsert(vec![cluster("tokyo", "ap-northeast")])));
    let stale = command("c", admitted_at(upsert(vec![cluster("oslo", "eu-north")]), 1));
    assert_eq!(refused(&apply(&mut machine, &stale)).code(), RefusalCode::AdmissionStale);
    // Registrations and reports are nothing that admission reads.
    apply(&mut machine, &command("", gateway("paris", "gw-1", "127.0.0.1:80")));
    let again = command("c", admitted_at(upsert(vec![cluster("oslo", "eu-north")]), machine.state().policy_revision()));
    let outcome = apply(&mut machine, &again);
    assert!(line(&machine, &outcome).ends_with("Cluster oslo Created"));
}

#[test]
fn preconditions_hold_or_nothing_changes() {
    let mut machine = machine();
    apply(&mut machine, &command("a", upsert(vec![cluster("paris", "eu-west")])));
    let write = |region: &str, expect: Expect| expecting(upsert(vec![cluster("paris", region)]), "paris", expect);
    for (id, action, current) in [
        ("b", write("x", Expect::Absent(true)), 1),
        ("c", write("x", Expect::Revision(7)), 1),
        ("d", expecting(upsert(vec![cluster("paris", "x")]), "oslo", Expect::Revision(1)), 0),
    ] {
        let before = machine.state().resources().clone();
        let outcome = apply(&mut machine, &command(id, action));
        let refused = refused(&outcome);
        assert_eq!(refused.code(), RefusalCode::Precondition);
        assert_eq!(refused.conflicts[0].current_revision, current);
        assert_eq!(*machine.state().resources(), before);
    }
    apply(&mut machine, &command("e", write("y", Expect::Revision(1))));
    assert_eq!(machine.state().revision(), 2);
}

#[test]
fn the_window_of_remembered_requests_is_bounded() {
    let mut machine = machine();
    for n in 0..=OUTCOMES_MAX {
        apply(&mut machine, &command(&n.to_string(), delete("Cluster", "", "nowhere")));
    }
    let actor = "spiffe://mesh.example/operator/admin";
    assert!(machine.state().remembered(actor, "0").is_none());
    assert!(machine.state().remembered(actor, "1").is_some());
    let long = command(&"x".repeat(129), delete("Cluster", "", "nowhere"));
    assert_eq!(refused(&apply(&mut machine, &long)).code(), RefusalCode::Malformed);
}

#[test]
fn a_token_works_once_in_time_and_for_one_key() {
    let mut machine = machine();
    let unknown = apply(&mut machine, &command("x", consume(1, 1)));
    assert_eq!(refused(&unknown).code(), RefusalCode::TokenUnknown);

    apply(&mut machine, &command("c", token(1)));
    let late = apply(&mut machine, &at(1_000_000 + 60_000, command("late", consume(1, 1))));
    assert_eq!(line(&machine, &late), "@0.0 this join token expired at 1970-01-01T00:17:40Z");

    let first = apply(&mut machine, &command("j", consume(1, 1)));
    assert_eq!(line(&machine, &first), "@0.0 paris/gw-1 Gateway");
    assert_eq!(apply(&mut machine, &command("j", consume(1, 1))), first, "the same request may be repeated");
    let other_key = apply(&mut machine, &command("j", consume(1, 2)));
    assert_eq!(refused(&other_key).code(), RefusalCode::RequestIdReused, "for no other key");
    let used = apply(&mut machine, &command("k", consume(1, 1)));
    let says = "@0.0 this join token was already used by /cluster/paris/gateway/gw-1 at 1970-01-01T00:16:40Z";
    assert_eq!(line(&machine, &used), says);
}

/// H7: a spent join that was repeated after the token's end, or after the cluster's deletion, got a fresh certificate.
#[test]
fn a_spent_join_ends_with_its_token_and_its_cluster() {
    let mut machine = machine();
    apply(&mut machine, &command("p", upsert(vec![cluster("paris", "eu-west")])));
    apply(&mut machine, &command("c", token(1)));
    apply(&mut machine, &command("d", token(2)));
    let join = command("j", consume(1, 1));
    apply(&mut machine, &join);
    let late = apply(&mut machine, &at(1_000_000 + 60_000, join.clone()));
    assert_eq!(refused(&late).code(), RefusalCode::TokenExpired);

    apply(&mut machine, &command("q", delete("Cluster", "", "paris")));
    assert_eq!(refused(&apply(&mut machine, &join)).code(), RefusalCode::ClusterDeleted);
    let unspent = apply(&mut machine, &command("k", consume(2, 1)));
    assert_eq!(refused(&unspent).code(), RefusalCode::TokenUnknown, "unspent tokens go with their cluster");
    assert_eq!(machine.state().deleted_clusters().get("paris").unwrap().deleted_unix_ms, 1_000_000);
}

#[test]
fn ports_go_to_exported_services_and_come_back_after_the_grace() {
    let mut machine = machine();
    let tcp = |name: &str| service(name, Protocol::Tcp, true);
    let web = service("web", Protocol::Http1, true);
    let hidden = service("hidden", Protocol::Tcp, false);
    apply(&mut machine, &command("", report("paris", vec![hidden.clone(), tcp("ledger"), web])));
    apply(&mut machine, &command("", report("tokyo", vec![tcp("audit"), tcp("ledger")])));
    assert_eq!(slots(&machine), BTreeMap::from([("ledger", 0), ("audit", 1)]));
    apply(&mut machine, &command("e", upsert(vec![export("shop", "hidden")])));
    assert_eq!(slots(&machine)["hidden"], 2, "an operator's ServiceExport counts");
    apply(&mut machine, &command("f", delete("ServiceExport", "shop", "hidden")));
    assert!(!slots(&machine).contains_key("hidden"));

    apply(&mut machine, &command("", report("paris", vec![hidden])));
    assert_eq!(slots(&machine)["ledger"], 0, "tokyo exports it still");
    apply(&mut machine, &command("", report("tokyo", vec![])));
    assert!(slots(&machine).is_empty());
    apply(&mut machine, &command("", report("tokyo", vec![tcp("audit"), tcp("new")])));
    assert_eq!(slots(&machine), BTreeMap::from([("audit", 1), ("new", 3)]), "its own again; the new one's is new");
}

#[test]
fn ports_never_run_out_for_ever() {
    let mut machine = machine();
    // M3: two reports of 10,000 from one agent ended them.
    for prefix in ["a", "b"] {
        apply(&mut machine, &command("", report("paris", tcp_services(prefix, 10_000, false))));
    }
    assert!(slots(&machine).is_empty());

    // What one cluster exports takes a quarter, and what all clusters have given up comes back in an hour.
    let clusters = ["c1", "c2", "c3", "c4", "c5"];
    for cluster in clusters {
        apply(&mut machine, &command("", report(cluster, tcp_services(cluster, 5_000, true))));
    }
    assert_eq!(slots(&machine).len(), SLOTS_MAX);
    assert_eq!(slots(&machine).keys().filter(|name| name.starts_with("c1")).count(), SLOTS_PER_CLUSTER_MAX);
    for cluster in clusters {
        apply(&mut machine, &command("", report(cluster, vec![])));
    }
    let honest = |at_ms| at(at_ms, command("", report("oslo", vec![service("ledger", Protocol::Tcp, true)])));
    apply(&mut machine, &honest(1_000_000 + GRACE_MS - 1));
    assert!(slots(&machine).is_empty(), "within the grace a port is its service's");
    let again = vec![service("ledger", Protocol::Tcp, true), service("web", Protocol::Http1, true)];
    apply(&mut machine, &at(1_000_000 + GRACE_MS, command("", report("oslo", again))));
    assert_eq!(slots(&machine), BTreeMap::from([("ledger", 0)]), "the one given up longest ago");
}

#[test]
fn a_refused_report_is_known_before_it_is_proposed() {
    let mut machine = machine();
    apply(&mut machine, &command("a", upsert(vec![cluster("paris", "eu-west")])));
    apply(&mut machine, &command("b", delete("Cluster", "", "paris")));
    let many = tcp_services("a", 10_001, false);
    let mut large = service("web", Protocol::Http1, true);
    large.versions = vec!["v".repeat(5_000_000)];
    for (action, code) in [
        (report("tokyo", many), RefusalCode::ServicesFull),
        (report("tokyo", vec![large]), RefusalCode::ReportTooLarge),
        (report("paris", vec![]), RefusalCode::ClusterDeleted),
        (gateway("tokyo", "gw-1", &"x".repeat(70_000)), RefusalCode::RegistrationTooLarge),
        (gateway("paris", "gw-1", ""), RefusalCode::ClusterDeleted),
    ] {
        let early = machine.state().check(&action).unwrap_err();
        assert_eq!(refused(&early).code(), code);
        assert_eq!(apply(&mut machine, &command("", action)), *early, "should it be proposed all the same");
    }
}

#[test]
fn damaged_and_foreign_snapshots_are_refused() {
    let mut machine = machine();
    apply(&mut machine, &command("a", upsert(vec![cluster("paris", "eu-west")])));
    let good = machine.snapshot()();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (bytes, says) in [
        (flipped, "damaged"),
        (good[..good.len() - 1].to_vec(), "damaged"),
        (b"hello".to_vec(), "not a snapshot"),
        (Vec::new(), "not a snapshot"),
        (b"archipelago-state-1\nwhatever".to_vec(), "from before log formats"),
    ] {
        let error = machine.restore(&bytes).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(machine.snapshot()(), good, "a refused snapshot changes nothing");
}

/// The encoding of commands and state is a contract with every disk in use: this hash may change only with a new format.
#[test]
fn golden_snapshot_hash() {
    let mut machine = machine();
    apply(
        &mut machine,
        &command("", Action::CaInit(CaInit { trust_domain: "mesh.example".into(), ..Default::default() })),
    );
    apply(&mut machine, &command("", gateway("paris", "gw-1", "127.0.0.1:80")));
    apply(&mut machine, &command("", report("paris", vec![service("ledger", Protocol::Tcp, true)])));
    apply(&mut machine, &command("t", token(3)));
    apply(&mut machine, &command("u", consume(3, 4)));
    apply(&mut machine, &command("v", upsert(vec![cluster("tokyo", "ap-northeast"), export("shop", "ledger")])));
    apply(&mut machine, &command("w", delete("Cluster", "", "tokyo")));
    let record = IssuedRecord { serial: vec![1], spiffe_id: "spiffe://a/b".into(), ..Default::default() };
    apply(&mut machine, &command("r", Action::RecordIssued(RecordIssued { certificates: vec![record] })));
    assert_eq!(
        HEXLOWER.encode(&sha256(&machine.snapshot()())),
        "2ad8897791462703484aa8abd0c418a320ae625d4f11777d02c8de56a80cfa27"
    );
}

fn any_action() -> impl Strategy<Value = Action> {
    let names = prop::sample::select(vec!["paris", "tokyo", "oslo"]);
    let regions = prop::sample::select(vec!["eu-west", "ap-northeast"]);
    let services =
        prop::collection::vec((prop::sample::select(vec!["a", "b", "c"]), any::<bool>(), any::<bool>()), 0..4);
    let exports = prop::sample::select(vec!["a", "b", "c"]);
    prop_oneof![
        (names.clone(), regions.clone()).prop_map(|(name, region)| upsert(vec![cluster(name, region)])),
        (names.clone(), regions, 0u64..9).prop_map(|(name, region, revision)| {
            expecting(upsert(vec![cluster(name, region)]), name, Expect::Revision(revision))
        }),
        names.clone().prop_map(|name| delete("Cluster", "", name)),
        exports.clone().prop_map(|name| upsert(vec![export("shop", name)])),
        exports.prop_map(|name| delete("ServiceExport", "shop", name)),
        (names.clone(), services).prop_map(|(cluster, services)| {
            let services: BTreeMap<_, _> = services
                .into_iter()
                .map(|(name, tcp, exported)| {
                    (name, service(name, if tcp { Protocol::Tcp } else { Protocol::Http1 }, exported))
                })
                .collect();
            report(cluster, services.into_values().collect())
        }),
        (names, 0u8..3).prop_map(|(cluster, port)| gateway(cluster, "gw-1", &format!("127.0.0.1:{port}"))),
        (0u8..4).prop_map(token),
        (0u8..4, 0u8..2).prop_map(|(secret, key)| consume(secret, key)),
        Just(Action::RaiseFormat(RaiseFormat { format_version: 2 })),
        Just(Action::RaiseRestoreEpoch(RaiseRestoreEpoch {})),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    (any_action(), prop::option::of(0u8..20), 0i64..3 * GRACE_MS)
        .prop_map(|(action, id, ms)| at(ms, command(&id.map_or_else(String::new, |id| id.to_string()), action)))
}

/// What configuration is made of.
fn visible(state: &State) -> impl PartialEq + use<> {
    let canonical: Vec<_> =
        state.resources().iter().map(|(key, stored)| (key.clone(), stored.canonical.clone())).collect();
    let slots: Vec<_> = state.tcp_slots().map(|(name, slot)| (name.clone(), slot)).collect();
    (canonical, state.reports().clone(), state.gateways().clone(), slots, state.ca().cloned(), state.restore_epoch)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_members_agree_and_a_restored_one_continues(commands in prop::collection::vec(any_command(), 0..60), cut in 0usize..60) {
        let (mut one, mut two) = (machine(), machine());
        let mut last = one.state().version();
        for (index, command) in commands.iter().enumerate() {
            if index == cut {
                // From here on the second member is one that got a snapshot.
                let snapshot = one.snapshot()();
                two = machine();
                two.restore(&snapshot).unwrap();
                prop_assert_eq!(two.state(), one.state());
                prop_assert_eq!(two.snapshot()(), snapshot);
            }
            let (first, second) = (apply(&mut one, command), apply(&mut two, command));
            prop_assert_eq!(&first, &second);
            let version = one.state().version();
            prop_assert!(version.revision <= last.revision + 1 && version.fleet <= last.fleet + 1, "dense");
            prop_assert!(version.revision >= last.revision && version.fleet >= last.fleet, "and never back");
            last = version;
        }
        prop_assert_eq!(one.snapshot()(), two.snapshot()());
        prop_assert_eq!(one.state(), two.state());
    }

    #[test]
    fn no_two_services_have_one_port(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut machine = machine();
        for command in &commands {
            apply(&mut machine, command);
            let slots: Vec<u32> = machine.state().tcp_slots().map(|(_, slot)| slot).collect();
            let unique: std::collections::BTreeSet<u32> = slots.iter().copied().collect();
            prop_assert_eq!(unique.len(), slots.len());
        }
    }

    #[test]
    fn each_token_is_consumed_at_most_once(commands in prop::collection::vec(any_command(), 0..80)) {
        let mut machine = machine();
        let mut answers = BTreeMap::new();
        for command in &commands {
            let outcome = apply(&mut machine, command);
            let (Some(Action::TokenConsume(consume)), Some(Answer::Consumed(_))) = (&command.action, &outcome.answer) else {
                continue;
            };
            // Another success may only be a retry: the same request id for the same key.
            let request = (command.request_id.clone(), consume.public_key_sha256.clone());
            match answers.insert(consume.secret_sha256.clone(), request.clone()) {
                None => {}
                Some(first) => prop_assert!(first == request && !request.0.is_empty()),
            }
        }
    }

    #[test]
    fn the_version_moves_exactly_with_what_gateways_see(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut machine = machine();
        for command in &commands {
            let before = (machine.state().version(), visible(machine.state()));
            apply(&mut machine, command);
            let after = (machine.state().version(), visible(machine.state()));
            prop_assert_eq!(before.0 != after.0, before.1 != after.1);
        }
    }
}

#[test]
fn a_service_is_as_old_as_its_first_report_with_this_protocol_and_port() {
    let mut machine = machine();
    let since = |machine: &Machine, cluster: &str| machine.state().reports()[cluster][0].since;
    let mut tell = |cluster: &str, service: ReportedService| {
        apply(&mut machine, &command("", report(cluster, vec![service])));
        since(&machine, cluster)
    };
    let first = tell("paris", service("checkout", Protocol::Http1, true));
    let second = tell("tokyo", service("checkout", Protocol::Tcp, true));
    assert!(0 < first && first < second);
    // Whatever else changes, and whatever a command claims, its age stays; another meaning begins anew.
    let claim = ReportedService { since: 77, ..service("checkout", Protocol::Http1, true) };
    assert_eq!(tell("paris", claim), first);
    assert_eq!(tell("paris", service("checkout", Protocol::Http1, false)), first);
    assert!(tell("paris", service("checkout", Protocol::H2c, true)) > second);
}

#[test]
fn revocations_and_operators_are_kept_and_survive_a_checkpoint() {
    let mut machine = machine();
    let operator = "spiffe://mesh.example/operator/ada";
    let issued = |spiffe_id: &str, not_after_unix| IssuedRecord {
        spiffe_id: spiffe_id.to_owned(),
        not_after_unix,
        ..IssuedRecord::default()
    };
    let record = |spiffe_id: &str, at| {
        command("", Action::RecordIssued(RecordIssued { certificates: vec![issued(spiffe_id, at)] }))
    };
    // Before the format rises nothing is kept apart; when it rises, what is known is.
    apply(&mut machine, &record(operator, 1));
    assert!(machine.state().operators().is_empty());
    apply(&mut machine, &command("", Action::RaiseFormat(RaiseFormat { format_version: format::REVOCATIONS })));
    assert_eq!(machine.state().operators().len(), 1);
    apply(&mut machine, &record(operator, 2));
    apply(&mut machine, &record("spiffe://mesh.example/cluster/paris/gateway/operator", 3));
    assert_eq!(machine.state().operators().get(operator).unwrap().not_after_unix, 2);
    assert_eq!(machine.state().operators().len(), 1);

    let revision = machine.state().revision();
    let revoke = RevokeIdentity { spiffe_id: operator.into(), reason: "gone".into(), by: "x".into() };
    let at = |unix_ms| Command { proposed_unix_ms: unix_ms, ..command("", Action::RevokeIdentity(revoke.clone())) };
    for (unix_ms, before, moved) in [(5_000, 6, 1), (5_999, 6, 1), (4_000, 6, 1), (6_000, 7, 2)] {
        apply(&mut machine, &at(unix_ms));
        let revocation = machine.state().revocations().get(operator).unwrap();
        assert_eq!((revocation.issued_before_unix, &*revocation.reason), (before, "gone"), "at {unix_ms}");
        assert_eq!(machine.state().revision(), revision + moved, "only a later moment changes anything");
    }
    let mut restored = self::machine();
    restored.restore(&machine.snapshot()()).unwrap();
    assert_eq!(restored.state(), machine.state());
}
