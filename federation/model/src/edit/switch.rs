//! `switch SERVICE --to CLUSTER` and its `--undo`.
//!
//! The split as it was goes into an annotation of the new one, so whoever can read the resource can
//! undo the switch, from any machine. Undo is exact: also when there was no split before.

use serde_json::{Value, json};

use super::split::backends;
use super::{Edit, ServiceName, Share, Target, annotate, annotation, document, object, set};

/// Annotation: JSON array of the `spec`s that switches replaced, oldest first; `null`: there was no split.
pub const HISTORY: &str = "archipelago.dev/switched-from";

/// Everything to one target. Routes (previews, canaries) and stickiness stay.
///
/// A switch that is already in force changes nothing, so that repeating it does not bury the way back.
#[must_use]
pub fn switch(current: Option<&Value>, service: &ServiceName, target: &Target) -> Value {
    let everything = backends(&[Share { target: target.clone(), weight: 1 }]);
    let mut split = current.cloned().unwrap_or_else(|| document("TrafficSplit", service));
    let before = current.and_then(|split| split.get("spec")).cloned().unwrap_or(Value::Null);
    if before.get("backends").is_some_and(|now| same_backends(now, &everything)) {
        return split;
    }
    let mut history = current.map(history).unwrap_or_default();
    history.push(before);
    if history.len() > HISTORY_MAX {
        history.remove(0);
    }
    set(object(&mut split, "spec"), "backends", Some(everything));
    annotate(&mut split, HISTORY, Some(Value::from(history).to_string()));
    split
}

/// What brings back the split that the latest switch replaced; `None` when there is nothing to undo.
#[must_use]
pub fn undo(current: &Value) -> Option<Edit> {
    let mut history = history(current);
    let before = history.pop()?;
    if before.is_null() {
        return Some(Edit::Delete);
    }
    let mut split = current.clone();
    set(&mut split, "spec", Some(before));
    annotate(&mut split, HISTORY, (!history.is_empty()).then(|| Value::from(history).to_string()));
    Some(Edit::Apply(split))
}

fn history(split: &Value) -> Vec<Value> {
    annotation(split, HISTORY).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// One backend with any weight above zero is everything, whatever the weight.
fn same_backends(now: &Value, everything: &Value) -> bool {
    let single = |value: &Value| -> Option<Value> {
        let [backend] = value.as_array()?.as_slice() else { return None };
        (backend.get("weight")?.as_u64()? > 0)
            .then(|| json!([backend.get("cluster"), backend.get("version").filter(|version| !version.is_null())]))
    };
    single(now).is_some_and(|now| single(everything) == Some(now))
}

/// More steps back than anyone takes one by one; keeps the resource small.
const HISTORY_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout() -> ServiceName {
        "shop/checkout".parse().unwrap()
    }

    fn to(target: &str) -> Target {
        target.parse().unwrap()
    }

    fn split() -> Value {
        json!({
            "apiVersion": "archipelago.dev/v1alpha1", "kind": "TrafficSplit",
            "metadata": { "name": "checkout", "namespace": "shop", "annotations": { "owner": "pay" } },
            "spec": {
                "service": "checkout", "sticky": { "header": "x-user" },
                "routes": [{ "match": { "pathPrefix": "/beta" }, "backends": [{ "cluster": "tokyo", "weight": 1 }] }],
                "backends": [{ "cluster": "paris", "weight": 90 }, { "cluster": "tokyo", "weight": 10 }],
            },
        })
    }

    #[test]
    fn a_switch_moves_everything_else_and_undo_restores_exactly() {
        let before = split();
        let after = switch(Some(&before), &checkout(), &to("tokyo:v2"));
        assert_eq!(after["spec"]["backends"], json!([{ "cluster": "tokyo", "version": "v2", "weight": 1 }]));
        assert_eq!(
            (&after["spec"]["routes"], &after["spec"]["sticky"]),
            (&before["spec"]["routes"], &before["spec"]["sticky"])
        );
        assert_eq!(undo(&after), Some(Edit::Apply(before)));
    }

    #[test]
    fn undo_of_a_first_split_removes_it() {
        let after = switch(None, &checkout(), &to("tokyo"));
        assert_eq!(after["spec"], json!({ "service": "checkout", "backends": [{ "cluster": "tokyo", "weight": 1 }] }));
        assert_eq!(undo(&after), Some(Edit::Delete));
    }

    #[test]
    fn switches_are_undone_one_by_one() {
        let first = split();
        let second = switch(Some(&first), &checkout(), &to("tokyo"));
        let third = switch(Some(&second), &checkout(), &to("frankfurt"));
        assert_eq!(undo(&third), Some(Edit::Apply(second.clone())));
        assert_eq!(undo(&second), Some(Edit::Apply(first.clone())));
        assert_eq!(undo(&first), None);
    }

    #[test]
    fn repeating_a_switch_changes_nothing() {
        let once = switch(Some(&split()), &checkout(), &to("tokyo"));
        assert_eq!(switch(Some(&once), &checkout(), &to("tokyo")), once);
        assert_ne!(switch(Some(&once), &checkout(), &to("tokyo:v2")), once);
    }

    #[test]
    fn the_way_back_is_bounded() {
        let mut current = split();
        for turn in 0..40 {
            current = switch(Some(&current), &checkout(), &to(if turn % 2 == 0 { "tokyo" } else { "paris" }));
        }
        assert_eq!(history(&current).len(), HISTORY_MAX);
    }

    #[test]
    fn a_mangled_history_is_nothing_to_undo() {
        let mut current = split();
        annotate(&mut current, HISTORY, Some("not json".to_owned()));
        assert_eq!(undo(&current), None);
    }
}
