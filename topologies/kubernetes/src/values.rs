//! Values of the chart: defaults, what is put over them, and the chart's schema as the judge of both.

use std::fmt;

use serde_json::{Map, Value};

/// The chart's `values.yaml`.
///
/// # Panics
/// Never: a test reads it.
#[must_use]
pub fn defaults() -> Value {
    serde_saphyr::from_str(DEFAULTS).expect("values.yaml is part of this crate and read by its tests")
}

/// `over` on top of `base`, as Helm does: maps are merged, everything else is replaced, null removes.
#[must_use]
pub fn merge(base: &Value, over: &Value) -> Value {
    let (Value::Object(base), Value::Object(over)) = (base, over) else { return over.clone() };
    let mut merged = base.clone();
    for (key, value) in over {
        match (merged.get(key), value) {
            (_, Value::Null) => drop(merged.remove(key)),
            (Some(under), _) => drop(merged.insert(key.clone(), merge(under, value))),
            (None, _) => drop(merged.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(merged)
}

/// Reads a values file.
///
/// # Errors
/// It is not YAML, or no map.
pub fn from_yaml(text: &str) -> Result<Value, String> {
    match serde_saphyr::from_str::<Value>(text).map_err(|error| error.to_string())? {
        Value::Null => Ok(Value::Object(Map::new())),
        map @ Value::Object(_) => Ok(map),
        _ => Err("values are a map".to_owned()),
    }
}

/// Puts `a.b=value` into `values`; the value is read as YAML, so `3` is a number and `"3"` a text.
///
/// # Errors
/// It is not `KEY=VALUE`.
pub fn set(values: &mut Value, assignment: &str) -> Result<(), String> {
    let (path, text) = assignment.split_once('=').ok_or_else(|| format!("{assignment:?} is not KEY=VALUE"))?;
    if path.split('.').any(str::is_empty) {
        return Err(format!("{path:?} is no key such as agent.replicas"));
    }
    let mut value: Value = match text {
        "" => Value::from(""),
        text => serde_saphyr::from_str(text).map_err(|error| format!("{assignment:?}: {error}"))?,
    };
    for name in path.rsplit('.') {
        value = Value::Object(Map::from_iter([(name.to_owned(), value)]));
    }
    // Not `merge`: a null here must reach the merge with the defaults.
    overlay(values, value);
    Ok(())
}

fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                overlay(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

/// What the schema has against `values`; nothing if they are good.
#[must_use]
pub fn check(values: &Value) -> Vec<Problem> {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap_or_default();
    let mut problems = Vec::new();
    judge(&schema, values, "", &mut problems);
    problems
}

/// A value that the schema does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Such as `gateway.workers`.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => out.write_str(&self.what),
            path => write!(out, "{path}: {}", self.what),
        }
    }
}

/// The keywords of JSON Schema that the chart's schema uses; a test holds it to them.
fn judge(schema: &Value, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let mut wrong = |what: String| problems.push(Problem { path: path.to_owned(), what });
    if let Some(expected) = schema.get("type").and_then(Value::as_str)
        && !is_a(value, expected)
    {
        return wrong(format!("{value} is no {expected}"));
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let names: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        return wrong(format!("{value} is none of {}", names.join(", ")));
    }
    if let Some(least) = schema.get("minLength").and_then(Value::as_u64)
        && value.as_str().is_some_and(|text| (text.chars().count() as u64) < least)
    {
        wrong("may not be empty".to_owned());
    }
    if let Some(least) = schema.get("minimum").and_then(Value::as_i64)
        && value.as_i64().is_some_and(|number| number < least)
    {
        wrong(format!("{value} is below {least}"));
    }
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            wrong(format!("`{name}` is missing"));
        }
    }
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let known = schema.get("properties").and_then(Value::as_object);
    let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    for (name, inner) in value.as_object().into_iter().flatten() {
        match known.and_then(|known| known.get(name)) {
            Some(schema) => judge(schema, inner, &below(name), problems),
            None if closed => {
                let names = known.into_iter().flat_map(|known| known.keys());
                problems.push(Problem { path: below(name), what: unknown(name, names.map(String::as_str)) });
            }
            None => {}
        }
    }
    if let Some(schema) = schema.get("items") {
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            judge(schema, item, &format!("{path}[{index}]"), problems);
        }
    }
}

fn is_a(value: &Value, expected: &str) -> bool {
    match expected {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => false,
    }
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = known.map(|one| (strsim::damerau_levenshtein(one, name), one)).min();
    match near {
        Some((distance, one)) if distance <= 3 => format!("there is no such value (did you mean `{one}`?)"),
        _ => "there is no such value".to_owned(),
    }
}

const DEFAULTS: &str = include_str!("../chart/values.yaml");
const SCHEMA: &str = include_str!("../chart/values.schema.json");

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_defaults_are_good() {
        assert_eq!(check(&defaults()), []);
    }

    /// A value that the schema forgets could never be set, one that the file forgets is never found.
    #[test]
    fn schema_and_defaults_name_the_same_values() {
        fn compare(schema: &Value, value: &Value, path: &str) {
            let Some(known) = schema.get("properties").and_then(Value::as_object) else { return };
            assert_eq!(schema.get("additionalProperties"), Some(&Value::Bool(false)), "{path} is not closed");
            for (name, schema) in known.iter().filter(|(name, _)| *name != "global") {
                let value = value.get(name).unwrap_or_else(|| panic!("{path}.{name} is not in values.yaml"));
                compare(schema, value, &format!("{path}.{name}"));
            }
        }
        compare(&serde_json::from_str(SCHEMA).unwrap(), &defaults(), "");
    }

    #[test]
    fn the_schema_keeps_to_what_is_judged_here() {
        fn visit(schema: &Value) {
            for (keyword, inner) in schema.as_object().unwrap() {
                match keyword.as_str() {
                    "$schema" | "title" | "type" | "enum" | "minLength" | "minimum" | "required" => {}
                    "additionalProperties" => assert_eq!(inner, &Value::Bool(false)),
                    "properties" => inner.as_object().unwrap().values().for_each(visit),
                    "items" => visit(inner),
                    other => panic!("{other} is not judged"),
                }
            }
        }
        visit(&serde_json::from_str(SCHEMA).unwrap());
    }

    #[test]
    fn mistakes_are_named_all_at_once_with_a_guess() {
        let values = json!({ "agent": { "replica": 3, "replicas": 0 }, "gateway": { "captureFrom": "all" }, "dns": [],
                             "join": { "controlPlane": ["", "a:1"] }, "zzzzzzzz": 1 });
        let texts: Vec<String> = check(&values).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "agent.replica: there is no such value (did you mean `replicas`?)",
                "agent.replicas: 0 is below 1",
                "dns: [] is no object",
                "gateway.captureFrom: \"all\" is none of \"node\", \"any\"",
                "join.controlPlane[0]: may not be empty",
                "zzzzzzzz: there is no such value",
            ]
        );
    }

    #[test]
    fn values_are_put_over_values() {
        let base = json!({ "a": { "b": 1, "c": [1, 2] }, "d": "x" });
        assert_eq!(merge(&base, &json!({ "a": { "c": [3] }, "d": null })), json!({ "a": { "b": 1, "c": [3] } }));
        let mut values = json!({});
        for assignment in ["a.b=3", "a.c=\"3\"", "e=", "f=[x, {y: z}]", "a.d=true"] {
            set(&mut values, assignment).unwrap();
        }
        assert_eq!(values, json!({ "a": { "b": 3, "c": "3", "d": true }, "e": "", "f": ["x", { "y": "z" }] }));
        for wrong in ["a", ".a=1", "a..b=1", "=1", "a=[1"] {
            assert!(set(&mut values, wrong).is_err(), "{wrong}");
        }
    }
}
