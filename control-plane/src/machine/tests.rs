//! Golden outcomes, and properties that hold for any sequence of commands.

use archipelago_proto::v1::{self, JoinRole, Protocol, ServiceReport};
use archipelago_raft::StateMachine;
use proptest::prelude::*;
use prost::Message;

use super::{
    Machine,
    command::{
        Action, Answer, ApplyResources, CaInit, Command, IssuedRecord, Outcome, RecordIssued, RefusalKind,
        RegisterGateway, ReportExports, ResourceText, TokenConsume, TokenCreate,
    },
    dedup::OUTCOMES_MAX,
};
use crate::ca::{hex, sha256};

fn machine() -> Machine {
    Machine::new().0
}

fn command(id: &str, action: Action) -> Command {
    Command {
        request_id: id.to_owned(),
        actor: "spiffe://mesh.example/operator/admin".to_owned(),
        proposed_unix_ms: 1_000_000,
        action: Some(action),
    }
}

fn apply(machine: &mut Machine, command: &Command) -> Outcome {
    let bytes = machine.apply(1, &command.encode_to_vec()).unwrap();
    Outcome::decode(bytes.as_slice()).unwrap()
}

fn cluster(name: &str, region: &str) -> ResourceText {
    let json = format!(
        r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"Cluster","metadata":{{"name":"{name}"}},"spec":{{"region":"{region}"}}}}"#
    );
    ResourceText { json }
}

fn upsert(resources: Vec<ResourceText>) -> Action {
    Action::ApplyResources(ApplyResources { upserts: resources, deletes: Vec::new() })
}

fn delete(kind: &str, namespace: &str, name: &str) -> Action {
    let key = v1::ResourceKey { kind: kind.into(), namespace: namespace.into(), name: name.into() };
    Action::ApplyResources(ApplyResources { upserts: Vec::new(), deletes: vec![key] })
}

fn service(namespace: &str, name: &str, protocol: Protocol, ready: u32) -> ServiceReport {
    ServiceReport {
        namespace: namespace.into(),
        name: name.into(),
        protocol: protocol.into(),
        port: 80,
        exported: true,
        versions: vec!["v2".into(), "v1".into()],
        ready,
        total: 3,
        ..ServiceReport::default()
    }
}

fn report(cluster: &str, services: Vec<ServiceReport>) -> Action {
    Action::ReportExports(ReportExports { cluster: cluster.into(), services })
}

fn gateway(cluster: &str, name: &str, http: &str) -> Action {
    Action::RegisterGateway(RegisterGateway {
        cluster: cluster.into(),
        name: name.into(),
        spiffe_id: format!("spiffe://mesh.example/cluster/{cluster}/gateway/{name}"),
        addresses: Some(v1::GatewayAddresses { http: http.into(), ..Default::default() }),
        workers: 2,
    })
}

fn token(secret: u8) -> Action {
    Action::TokenCreate(TokenCreate {
        secret_sha256: vec![secret; 32],
        cluster: "paris".into(),
        role: JoinRole::Gateway.into(),
        name: "gw-1".into(),
        ttl_ms: 60_000,
    })
}

fn consume(secret: u8, key: u8) -> Action {
    Action::TokenConsume(TokenConsume { secret_sha256: vec![secret; 32], public_key_sha256: vec![key; 32] })
}

fn refusal(outcome: &Outcome) -> (RefusalKind, String) {
    match &outcome.answer {
        Some(Answer::Refused(refused)) => (refused.kind(), refused.reasons.join("; ")),
        other => panic!("not refused: {other:?}"),
    }
}

/// One line per command: revision, and what it answered.
fn line(outcome: &Outcome) -> String {
    let answer = match &outcome.answer {
        Some(Answer::Applied(applied)) => applied
            .changes
            .iter()
            .map(|change| format!("{} {}{} {}", change.kind, change.namespace, change.name, change.what))
            .collect::<Vec<_>>()
            .join(", "),
        Some(Answer::Done(_)) => "done".to_owned(),
        Some(Answer::Consumed(consumed)) => format!("{}/{} {}", consumed.cluster, consumed.name, consumed.role),
        Some(Answer::Refused(refused)) => format!("{:?}: {}", refused.kind(), refused.reasons.join("; ")),
        None => "nothing".to_owned(),
    };
    format!("@{} {answer}", outcome.revision)
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
        command("5", upsert(vec![ResourceText { json: "{".into() }])),
        command("", gateway("paris", "gw-1", "127.0.0.1:80")),
        command("", gateway("paris", "gw-1", "127.0.0.1:80")),
        command("", gateway("paris", "gw-1", "127.0.0.1:81")),
        command("", gateway("Paris!", "gw-1", "127.0.0.1:81")),
        command("", report("paris", vec![service("shop", "web", Protocol::Http1, 1)])),
        command("", report("paris", vec![service("shop", "web", Protocol::Http1, 2)])),
        command("6", delete("Cluster", "", "paris")),
        command("", gateway("paris", "gw-1", "127.0.0.1:81")),
        command("7", upsert(vec![cluster("paris", "eu-west")])),
        command("", gateway("paris", "gw-1", "127.0.0.1:81")),
        command("8", token(7)),
        command("9", token(7)),
        command("10", consume(7, 1)),
    ];
    let lines: Vec<String> = story.iter().map(|command| line(&apply(&mut machine, command))).collect();
    let expected = [
        "@1 done",
        "@1 done",
        "@1 Conflict: this federation already has another authority",
        "@2 Cluster paris created, Cluster tokyo created",
        "@2 Cluster paris unchanged",
        "@3 Cluster paris updated, Cluster oslo created",
        "@3 NotFound: Cluster atlantis does not exist",
        "@3 Malformed: not a resource: EOF while parsing an object at line 1 column 1",
        "@4 done",
        "@4 done",
        "@5 done",
        "@5 Malformed: cluster name \"Paris!\" is not a DNS label (1 to 63 of a-z, 0-9 and -, not at either end)",
        "@6 done",
        "@6 done",
        "@7 Cluster paris deleted",
        "@7 NotFound: cluster paris was deleted",
        "@8 Cluster paris created",
        "@9 done",
        "@9 done",
        "@9 Conflict: a token with this secret exists",
        "@9 paris/gw-1 2",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn bytes_that_are_no_command_are_refused() {
    let mut machine = machine();
    for bytes in [&b"\xff\xff\xff"[..], &[], b"\x0a\x00"] {
        let outcome = Outcome::decode(machine.apply(1, bytes).unwrap().as_slice()).unwrap();
        assert_eq!(refusal(&outcome).0, RefusalKind::Malformed);
    }
    assert_eq!(machine.state().revision(), 0);
}

#[test]
fn a_retry_gets_the_first_answer_and_commits_nothing() {
    let mut machine = machine();
    let first = command("a", upsert(vec![cluster("paris", "eu-west")]));
    let outcome = apply(&mut machine, &first);
    apply(&mut machine, &command("b", upsert(vec![cluster("paris", "eu-north")])));
    let later = Command { proposed_unix_ms: 9_999_999, ..first.clone() };
    assert_eq!(apply(&mut machine, &later), outcome, "the answer of then, whatever happened since");
    assert_eq!(machine.state().revision(), 2);

    let other = command("a", upsert(vec![cluster("tokyo", "ap-northeast")]));
    assert_eq!(refusal(&apply(&mut machine, &other)).0, RefusalKind::Conflict);
    let stranger = Command { actor: "spiffe://mesh.example/operator/eve".into(), ..first };
    assert_eq!(line(&apply(&mut machine, &stranger)), "@3 Cluster paris updated", "ids are private to an actor");
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
    assert_eq!(refusal(&apply(&mut machine, &long)).0, RefusalKind::Malformed);
}

#[test]
fn a_token_works_once_in_time_and_for_one_key() {
    let mut machine = machine();
    let unknown = apply(&mut machine, &command("x", consume(1, 1)));
    assert_eq!(refusal(&unknown).0, RefusalKind::TokenUnknown);

    apply(&mut machine, &command("c", token(1)));
    let late = Command { proposed_unix_ms: 1_000_000 + 60_000, ..command("late", consume(1, 1)) };
    let (kind, reason) = refusal(&apply(&mut machine, &late));
    assert_eq!(kind, RefusalKind::TokenExpired);
    assert_eq!(reason, "this join token expired at 1970-01-01T00:17:40Z");

    let first = apply(&mut machine, &command("j", consume(1, 1)));
    assert_eq!(line(&first), "@0 paris/gw-1 2");
    assert_eq!(apply(&mut machine, &command("j", consume(1, 1))), first, "the same request may be repeated");
    assert_eq!(
        refusal(&apply(&mut machine, &command("j", consume(1, 2)))).0,
        RefusalKind::Conflict,
        "for no other key"
    );
    let (kind, reason) = refusal(&apply(&mut machine, &command("k", consume(1, 1))));
    assert_eq!(kind, RefusalKind::TokenUsed);
    assert_eq!(reason, "this join token was already used by /cluster/paris/gateway/gw-1 at 1970-01-01T00:16:40Z");
}

#[test]
fn tcp_slots_are_dense_and_never_reused() {
    let mut machine = machine();
    let tcp = |name: &str| service("shop", name, Protocol::Tcp, 1);
    apply(&mut machine, &command("", report("paris", vec![tcp("ledger"), service("shop", "web", Protocol::Http1, 1)])));
    apply(&mut machine, &command("", report("tokyo", vec![tcp("ledger"), tcp("audit")])));
    apply(&mut machine, &command("", report("paris", vec![])));
    apply(&mut machine, &command("", report("tokyo", vec![tcp("zulu")])));
    let slots: Vec<_> = machine.state().tcp_slots().iter().map(|((_, name), slot)| (name.as_str(), *slot)).collect();
    assert_eq!(slots, [("audit", 1), ("ledger", 0), ("zulu", 2)]);
}

#[test]
fn reports_keep_identity_and_drop_counts() {
    let mut machine = machine();
    apply(&mut machine, &command("", report("paris", vec![service("shop", "web", Protocol::Http1, 2)])));
    let stored = &machine.state().reports()["paris"][0];
    assert_eq!((stored.ready, stored.total), (0, 0));
    assert_eq!(stored.versions, ["v1", "v2"]);
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
    apply(&mut machine, &command("", report("paris", vec![service("shop", "ledger", Protocol::Tcp, 1)])));
    apply(&mut machine, &command("t", token(3)));
    apply(&mut machine, &command("u", consume(3, 4)));
    let record = IssuedRecord { serial: vec![1], spiffe_id: "spiffe://a/b".into(), ..Default::default() };
    apply(&mut machine, &command("r", Action::RecordIssued(RecordIssued { certificates: vec![record] })));
    assert_eq!(hex(&sha256(&machine.snapshot()())), "093ac0d72884cf6e01bb6c15e5db6d4933e9ef21f073e80529e3e9a7173f2b07");
}

fn any_action() -> impl Strategy<Value = Action> {
    let names = prop::sample::select(vec!["paris", "tokyo", "oslo", "Bad_Name"]);
    let regions = prop::sample::select(vec!["eu-west", "ap-northeast"]);
    let services = prop::collection::vec((prop::sample::select(vec!["a", "b", "c"]), any::<bool>(), 0u32..3), 0..4);
    prop_oneof![
        (names.clone(), regions).prop_map(|(name, region)| upsert(vec![cluster(name, region)])),
        names.clone().prop_map(|name| delete("Cluster", "", name)),
        (names.clone(), services).prop_map(|(cluster, services)| {
            let services = services
                .into_iter()
                .map(|(name, tcp, ready)| {
                    service("shop", name, if tcp { Protocol::Tcp } else { Protocol::Http1 }, ready)
                })
                .collect();
            report(cluster, services)
        }),
        (names, 0u8..3).prop_map(|(cluster, port)| gateway(cluster, "gw-1", &format!("127.0.0.1:{port}"))),
        (0u8..4).prop_map(token),
        (0u8..4, 0u8..2).prop_map(|(secret, key)| consume(secret, key)),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    (any_action(), prop::option::of(0u8..20), 0i64..200_000).prop_map(|(action, id, at)| Command {
        proposed_unix_ms: at,
        ..command(&id.map_or_else(String::new, |id| id.to_string()), action)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_members_agree_and_a_restored_one_continues(commands in prop::collection::vec(any_command(), 0..60), cut in 0usize..60) {
        let (mut one, mut two) = (machine(), machine());
        let mut last = 0;
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
            let revision = one.state().revision();
            prop_assert!(revision == last || revision == last + 1, "revisions are dense");
            last = revision;
        }
        prop_assert_eq!(one.snapshot()(), two.snapshot()());
    }

    #[test]
    fn each_token_is_consumed_at_most_once(commands in prop::collection::vec(any_command(), 0..80)) {
        let mut machine = machine();
        let mut answers = std::collections::BTreeMap::new();
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
        let used = machine.state().tokens().values().filter(|token| token.used.is_some()).count();
        prop_assert_eq!(used, answers.len());
    }

    #[test]
    fn the_revision_moves_exactly_with_what_gateways_see(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut machine = machine();
        for command in &commands {
            let before = (machine.state().revision(), machine.state().federation());
            apply(&mut machine, command);
            let after = (machine.state().revision(), machine.state().federation());
            prop_assert_eq!(before.0 != after.0, before.1 != after.1);
        }
    }
}
