//! Merge patches (RFC 7386) and a plain form of server-side apply.

use serde_json::{Map, Value};

/// RFC 7386.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Takes away what the manager applied `before` and no longer does, then sets what it applies `now`. Lists of conditions and
/// owner references are merged by their keys, other lists belong to who wrote them last.
pub(crate) fn apply(target: &mut Value, before: &Value, now: &Value) {
    if let (Value::Object(target), Value::Object(before)) = (&mut *target, before) {
        for (key, value) in before {
            match now.get(key) {
                Some(_) => {}
                None if value.is_object() => {
                    // Others may have set something beside it.
                    if let Some(inner) = target.get_mut(key) {
                        apply(inner, value, &Value::Object(Map::new()));
                        if inner.as_object().is_some_and(Map::is_empty) {
                            target.remove(key);
                        }
                    }
                }
                None => {
                    target.remove(key);
                }
            }
        }
    }
    let Value::Object(now) = now else {
        *target = now.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in now {
        let place = target.entry(key).or_insert(Value::Null);
        let before = before.get(key).unwrap_or(&Value::Null);
        match (list_key(key), value) {
            (Some(by), Value::Array(items)) => apply_list(place, before, items, by),
            _ if value.is_object() => apply(place, before, value),
            _ => *place = value.clone(),
        }
    }
}

fn apply_list(target: &mut Value, before: &Value, now: &[Value], by: &str) {
    let named = |list: &[Value], item: &Value| list.iter().any(|other| other[by] == item[by]);
    let before = before.as_array().map_or(&[][..], Vec::as_slice);
    let mut items = target.as_array().cloned().unwrap_or_default();
    items.retain(|item| named(now, item) || !named(before, item));
    for item in now {
        match items.iter_mut().find(|old| old[by] == item[by]) {
            Some(old) => apply(old, &Value::Null, item),
            None => items.push(item.clone()),
        }
    }
    *target = Value::Array(items);
}

/// `listType: map` and its key.
fn list_key(field: &str) -> Option<&'static str> {
    match field {
        "conditions" => Some("type"),
        "ownerReferences" => Some("uid"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_patches() {
        let mut object = json!({ "a": { "b": 1, "c": 2 }, "d": [1] });
        merge(&mut object, &json!({ "a": { "b": null, "e": 3 }, "d": [2, 3] }));
        assert_eq!(object, json!({ "a": { "c": 2, "e": 3 }, "d": [2, 3] }));
    }

    #[test]
    fn applying_again_takes_away_what_is_no_longer_applied_and_nothing_else() {
        let mut object = json!({ "labels": { "theirs": "1" }, "status": { "conditions": [{ "type": "Theirs", "status": "True" }] } });
        let first = json!({ "labels": { "ours": "1", "old": "1" }, "status": { "conditions": [{ "type": "Ours", "status": "False" }] } });
        apply(&mut object, &json!({}), &first);
        let second =
            json!({ "labels": { "ours": "2" }, "status": { "conditions": [{ "type": "Ours", "status": "True" }] } });
        apply(&mut object, &first, &second);
        assert_eq!(object["labels"], json!({ "theirs": "1", "ours": "2" }));
        let conditions = json!([{ "type": "Theirs", "status": "True" }, { "type": "Ours", "status": "True" }]);
        assert_eq!(object["status"]["conditions"], conditions);
        apply(&mut object, &second, &json!({}));
        assert_eq!(object["labels"], json!({ "theirs": "1" }));
    }
}
