//! What goes up, and what a person reads of what came down.

use imbl::OrdMap;
use serde_json::Value;

use super::*;
use crate::types::Names;

fn split(name: &str, body: &str) -> (Key, Arc<TrafficSplit>) {
    let raw = serde_json::from_str(body).unwrap();
    (Key::new("shop", name), Arc::new(TrafficSplit::keep(raw, &mut Names::default()).unwrap()))
}

fn one() -> BTreeMap<PolicyKey, Policy> {
    let split = split(
        "checkout",
        r#"{"metadata":{"name":"checkout","namespace":"shop","generation":3,"labels":{"a":"b"},"managedFields":[{"x":1}]},
            "spec":{"service":"checkout","backends":[{"cluster":"paris","weight":90}]}}"#,
    );
    policies(&OrdMap::from_iter([split]), &OrdMap::new())
}

fn said() -> v1::PolicyStatus {
    v1::PolicyStatus {
        kind: "TrafficSplit".into(),
        namespace: "shop".into(),
        name: "checkout".into(),
        generation: 3,
        reason: "Accepted".into(),
        revision: 12,
        gateways_programmed: 6,
        gateways_expected: 6,
        ..v1::PolicyStatus::default()
    }
}

#[test]
fn an_object_goes_up_as_an_operator_would_write_it_and_one_that_goes_does_not() {
    let listed = list(&one());
    let policy = &listed.policies[0];
    assert_eq!((policy.kind.as_str(), policy.name.as_str(), policy.generation), ("TrafficSplit", "checkout", 3));
    let resource = archipelago_model::resource::Resource::from_json(&policy.json).unwrap();
    assert_eq!(resource.key().to_string(), "TrafficSplit shop/checkout");
    let going = split("checkout", r#"{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"},"spec":{}}"#);
    assert!(policies(&OrdMap::from_iter([going]), &OrdMap::new()).is_empty());
}

#[test]
fn what_is_said_becomes_conditions() {
    type Case = (fn(&mut v1::PolicyStatus), [&'static str; 3], [&'static str; 3]);
    let cases: [Case; 10] = [
        (|_| (), ["True", "True", "False"], ["Accepted", "Programmed", "NoConflicts"]),
        (|said| said.gateways_programmed = 2, ["True", "False", "False"], ["Accepted", "Pending", "NoConflicts"]),
        (
            |said| said.rejections = vec!["gw".into()],
            ["True", "False", "False"],
            ["Accepted", "Rejected", "NoConflicts"],
        ),
        (
            |said| (said.gateways_programmed, said.gateways_expected) = (0, 0),
            ["True", "Unknown", "False"],
            ["Accepted", "NoGateways", "NoConflicts"],
        ),
        (|said| said.reason = "Invalid".into(), ["False", "False", "False"], ["Invalid", "NotAccepted", "NoConflicts"]),
        (|said| said.revision = 0, ["True", "Unknown", "False"], ["Accepted", "Pending", "NoConflicts"]),
        (
            |said| (said.reason, said.revision) = ("Invalid".into(), 0),
            ["False", "False", "False"],
            ["Invalid", "NotAccepted", "NoConflicts"],
        ),
        (
            |said| (said.reason, said.revision, said.rivals) = ("Conflict".into(), 0, vec!["operator".into()]),
            ["False", "False", "True"],
            ["Conflict", "NotAccepted", "Rivals"],
        ),
        (
            |said| said.rivals = vec!["cluster tokyo".into()],
            ["True", "True", "True"],
            ["Accepted", "Programmed", "Rivals"],
        ),
        (
            |said| (said.reason, said.revision) = ("42 is no word!".into(), 0),
            ["False", "False", "False"],
            ["Pending", "NotAccepted", "NoConflicts"],
        ),
    ];
    for (change, statuses, reasons) in cases {
        let mut said = said();
        change(&mut said);
        let status = status(&said, &[], "2026-01-01T00:00:00Z");
        let found: Vec<(Value, &str)> = status
            .conditions
            .iter()
            .map(|condition| (serde_json::to_value(condition.status).unwrap(), condition.reason.as_str()))
            .collect();
        let wanted: Vec<(Value, &str)> = statuses.into_iter().map(Value::from).zip(reasons).collect();
        assert_eq!(found, wanted);
        assert!(status.conditions.iter().all(|condition| condition.observed_generation == 3));
    }
}

#[test]
fn only_what_is_news_is_written_and_only_to_objects_that_are_there() {
    let mut policies = one();
    let mut elsewhere = said();
    elsewhere.name = "gone".into();
    let all = [said(), elsewhere];
    let writes = statuses(&policies, &all, "2026-01-01T00:00:00Z");
    let [Write { target, what: What::ApplyStatus(body) }] = writes.as_slice() else { panic!("{writes:?}") };
    let body = body.value();
    assert_eq!(target.to_string(), "trafficsplits.archipelago.dev shop/checkout");
    assert_eq!((&body["status"]["gateways"], &body["status"]["revision"]), (&json!("6/6"), &json!(12)));
    policies.values_mut().next().unwrap().status = serde_json::from_value(body["status"].clone()).unwrap();
    assert!(statuses(&policies, &all, "2026-01-02T00:00:00Z").is_empty(), "the time alone is no news");
}
