//! Holds `assets/js/contract.d.ts` against what is sent: every object has exactly the fields that its interface names, each of a type
//! that it allows.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{action, examples, json, state};

const CONTRACT: &str = include_str!("../assets/js/contract.d.ts");

/// What an interface or a named type says.
enum Named {
    /// Fields and their types.
    Interface(BTreeMap<String, String>),
    /// Another type.
    Alias(String),
}

/// The part of TypeScript that the contract is written in: one field a line.
fn parse(text: &str) -> BTreeMap<String, Named> {
    let mut types = BTreeMap::new();
    let mut open: Option<(String, BTreeMap<String, String>)> = None;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with("//") || line.starts_with("/**") || line.starts_with('*') {
            continue;
        }
        if line == "}" {
            let (name, fields) = open.take().expect("an interface is open");
            types.insert(name, Named::Interface(fields));
        } else if let Some((_, fields)) = &mut open {
            let (name, kind) = line.strip_suffix(';').and_then(|line| line.split_once(": ")).expect(line);
            assert!(fields.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
        } else if let Some(head) = line.strip_prefix("export interface ") {
            let name = head.split([' ', '{']).next().unwrap().to_owned();
            open = Some((name, BTreeMap::new()));
        } else {
            let alias = line.strip_prefix("export type ").and_then(|line| line.strip_suffix(';')).expect(line);
            let (name, kind) = alias.split_once(" = ").expect(line);
            types.insert(name.to_owned(), Named::Alias(kind.to_owned()));
        }
    }
    assert!(open.is_none());
    types
}

/// What is wrong with a value of a type; empty: nothing.
fn check(types: &BTreeMap<String, Named>, kind: &str, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let alternatives: Vec<&str> = kind.split(" | ").collect();
    if alternatives.len() > 1 {
        let fits = |kind: &&str| {
            let mut wrong = Vec::new();
            check(types, kind, value, at, &mut wrong);
            wrong
        };
        let found: Vec<Vec<String>> = alternatives.iter().map(fits).collect();
        if !found.iter().any(Vec::is_empty) {
            // Of a value that is there, what is wrong with it as the type that is not null.
            wrong.extend(found.into_iter().next().unwrap_or_default());
        }
        return;
    }
    if let Some(element) = kind.strip_suffix("[]") {
        match value.as_array() {
            Some(values) => values.iter().enumerate().for_each(|(index, value)| {
                check(types, element, value, &format!("{at}[{index}]"), wrong);
            }),
            None => wrong.push(format!("{at}: {value} is no list")),
        }
        return;
    }
    let fits = match kind {
        "string" => value.is_string(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "unknown" => true,
        literal if literal.starts_with('"') => *value == serde_json::from_str::<Value>(literal).unwrap(),
        name => match types.get(name) {
            Some(Named::Alias(kind)) => return check(types, kind, value, at, wrong),
            Some(Named::Interface(fields)) => {
                let Some(object) = value.as_object() else {
                    wrong.push(format!("{at}: {value} is no {name}"));
                    return;
                };
                for (field, kind) in fields {
                    match object.get(field.trim_end_matches('?')) {
                        Some(value) => check(types, kind, value, &format!("{at}.{field}"), wrong),
                        None if field.ends_with('?') => {}
                        None => wrong.push(format!("{at}.{field} is missing")),
                    }
                }
                let known = |field: &&String| !fields.keys().any(|known| known.trim_end_matches('?') == *field);
                wrong.extend(object.keys().filter(known).map(|field| format!("{at}.{field} is not in the contract")));
                return;
            }
            None => panic!("{name} is no type of the contract"),
        },
    };
    if !fits {
        wrong.push(format!("{at}: {value} is not {kind}"));
    }
}

fn held(kind: &str, value: &impl Serialize) {
    let value: Value = serde_json::from_str(&json::text(value)).unwrap();
    let mut wrong = Vec::new();
    check(&parse(CONTRACT), kind, &value, kind, &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_sent_is_what_the_contract_says() {
    held("State", &examples::full());
    held("State", &examples::unknown());
    held("State", &state::State::default());
    use state::{About, LinkState, ServiceState, Severity};
    for state in [LinkState::Up, LinkState::Degraded, LinkState::Down, LinkState::NotReported] {
        let link = state::Link { state, ..examples::full().links.remove(0) };
        held("Link", &link);
    }
    for state in [ServiceState::Ready, ServiceState::Degraded, ServiceState::Down, ServiceState::Unknown] {
        let service = state::Service { state, ..examples::full().services.remove(0) };
        held("Service", &service);
    }
    for severity in [Severity::Info, Severity::Warning, Severity::Error] {
        let event = state::Event { severity, ..examples::full().events.remove(0) };
        held("Event", &event);
    }
    for about in [About::Traffic, About::Slowest, About::Events, About::Members, About::Tunnels] {
        held("Missing", &state::Missing { about, who: "paris/gw-1".into(), why: "is not connected".into() });
    }
    use action::{Applied, Bye, Change, Done, End, Me, Plan, Refusal, Role};
    for role in [Role::Operator, Role::Reader] {
        let me = Me {
            identity: "spiffe://mesh.example/operator/ann".into(),
            name: "ann".into(),
            role,
            expires_unix_ms: 1,
            member: 1,
            federation: "mesh.example".into(),
        };
        held("Me", &me);
    }
    for reason in [End::SignedOut, End::Expired, End::Revoked, End::Stopping] {
        held("Bye", &Bye { reason, message: "over".into() });
    }
    held("Refusal", &Refusal { error: "no".into(), hint: None, problems: vec!["a".into()] });
    let changes: Vec<Change> = ["created", "updated", "unchanged", "deleted"]
        .map(|what| Change {
            kind: "TrafficSplit".into(),
            namespace: "shop".into(),
            name: "checkout".into(),
            what: what.into(),
        })
        .into();
    held(
        "Plan",
        &Plan {
            command: "meshctl switch shop/checkout --to tokyo".into(),
            changes: changes.clone(),
            before: Value::Null,
            after: json!({ "service": "checkout" }),
            warnings: vec!["w".into()],
            revision: 7,
            basis: "7".into(),
        },
    );
    let rollout = examples::full().rollout;
    let applied = Applied {
        expected: 4,
        acknowledged: 2,
        first_ack_micros: Some(900),
        last_ack_micros: None,
        lagging: rollout.lagging,
        rejected: rollout.rejected,
    };
    held("Done", &Done { revision: 8, changes, warnings: vec![], commit_micros: 2_000, applied });
}

/// The check itself finds what it is for.
#[test]
fn a_difference_is_found() {
    let types = parse(CONTRACT);
    let wrong = |value: Value| {
        let mut wrong = Vec::new();
        check(&types, "Hop", &value, "hop", &mut wrong);
        wrong
    };
    assert!(wrong(json!({ "hop": "queue", "at": null, "micros": 3 })).is_empty());
    assert_eq!(wrong(json!({ "hop": "queue", "micros": 3 })), ["hop.at is missing"]);
    assert_eq!(wrong(json!({ "hop": 1, "at": "x", "micros": 3 })), ["hop.hop: 1 is not string"]);
    assert_eq!(wrong(json!({ "hop": "q", "at": 1, "micros": 3 })), ["hop.at: 1 is not string"]);
    assert_eq!(wrong(json!({ "hop": "q", "at": null, "micros": 3, "x": 1 })), ["hop.x is not in the contract"]);
}
