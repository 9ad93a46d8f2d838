//! The decoder is asked about documents that are written out of the schema.

use serde_json::{Map, Value, json};

use super::*;
use crate::{
    admit,
    document::Document,
    resource::{API_VERSION, Kind},
};

fn document(kind: Kind, spec: &Value) -> Document {
    let mut metadata = json!({ "name": "checkout" });
    if kind.namespaced() {
        metadata["namespace"] = json!("shop");
    }
    let document = json!({ "apiVersion": API_VERSION, "kind": kind.name(), "metadata": metadata, "spec": spec });
    Document { file: "a.yaml".into(), text: document.to_string() }
}

/// What the decoder says of a spec: nothing where it is right.
fn verdict(kind: Kind, spec: &Value) -> Vec<String> {
    match admit::validate(&[document(kind, spec)]) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn kinds() -> [(Kind, Schema, Value); 5] {
    [
        (Kind::Cluster, cluster(), json!({ "region": "eu-west", "drained": true, "policies": true })),
        (Kind::ServiceExport, service_export(), json!({ "clusters": ["paris"] })),
        (
            Kind::BackendPolicy,
            backend_policy(),
            json!({
                "service": "checkout",
                "limits": {
                    "uploadIdle": "45s", "uploadMinRate": 500, "uploadGrace": "20s", "downloadIdle": "2m", "endpointIdle": "none",
                    "streamIdle": "1h",
                },
            }),
        ),
        (
            Kind::TrafficSplit,
            traffic_split(),
            json!({
                "service": "checkout", "sticky": { "header": "x-user" },
                "routes": [{
                    "match": { "headers": { "x-a": "1" }, "cookies": { "b": "2" }, "pathPrefix": "/a", "method": "GET" },
                    "backends": [{ "cluster": "paris", "version": "v1", "weight": 1 }],
                }],
                "backends": [{ "cluster": "tokyo", "version": "v2", "weight": 2 }],
            }),
        ),
        (
            Kind::FailoverPolicy,
            failover_policy(),
            json!({
                "service": "checkout", "order": [{ "clusters": ["@local"] }],
                "residency": { "regions": ["eu-west"], "clusters": ["paris"] },
                "failback": { "after": "10s", "ramp": "5s", "mode": "auto" }, "avoid": ["tokyo"],
            }),
        ),
    ]
}

/// A document with one value put in the place of another.
struct Case {
    at: String,
    spec: Value,
    /// What the decoder must say; `None`: nothing.
    complaint: Option<&'static str>,
}

/// Every value that the schema has something to say about, in `whole`, replaced by those that it lets in and those that
/// it does not.
fn cases(schema: &Schema, whole: &Value, at: &str, out: &mut Vec<Case>) {
    let mut put = |value: Value, complaint| {
        let mut spec = whole.clone();
        *spec.pointer_mut(at).unwrap() = value;
        out.push(Case { at: at.to_owned(), spec, complaint });
    };
    let current = whole.pointer(at).unwrap().clone();
    for rule in &schema.rules {
        put(serde_json::from_str(rule.bad).unwrap(), Some(rule.message));
    }
    match &schema.shape {
        Shape::Text(pattern) => {
            pattern.good.iter().for_each(|good| put(json!(good), None));
            pattern.bad.iter().for_each(|bad| put(json!(bad), Some("")));
            put(json!(1), Some(""));
            put(json!("a".repeat(pattern.max + 1)), Some(""));
            if pattern.min == 1 {
                put(json!(""), Some(""));
            }
        }
        Shape::Boolean => {
            put(json!(true), None);
            put(json!(false), None);
            put(json!("true"), Some(""));
        }
        Shape::Word(words) => {
            words.iter().for_each(|word| put(json!(word), None));
            put(json!("something-else"), Some(""));
        }
        Shape::Number { min, max } => {
            put(json!(max), None);
            put(json!(u64::from(*max) + 1), Some(""));
            put(json!(i64::from(*min) - 1), Some(""));
            put(json!("1"), Some(""));
        }
        Shape::List { items, min, max, set } => {
            let item = current[0].clone();
            let distinct = |index: usize| match &item {
                Value::String(_) => json!(format!("a{index}")),
                // As short as a route can be: a document has a limit of its own.
                Value::Object(fields) if fields.contains_key("match") => {
                    json!({ "match": { "method": "GET" }, "backends": [{ "cluster": "paris" }] })
                }
                Value::Object(fields) => {
                    let mut fields = fields.clone();
                    if let Some(cluster) = fields.get_mut("cluster") {
                        *cluster = json!(format!("a{index}"));
                    }
                    if let Some(list) = fields.get_mut("clusters") {
                        *list = json!([format!("a{index}")]);
                    }
                    Value::Object(fields)
                }
                _ => unreachable!("lists hold texts and objects"),
            };
            // Beside `backends`, four thousand routes reach the limit of all backends together, not that of the list.
            put((0..*max).map(distinct).collect(), None);
            put((0..=*max).map(distinct).collect(), Some(""));
            if *min > 0 {
                put(json!([]), Some(""));
            }
            if *set {
                put(json!([item, item]), Some("already stands"));
            }
            put(json!("no list"), Some(""));
            cases(items, whole, &format!("{at}/0"), out);
        }
        Shape::Texts(values) => {
            values.good.iter().for_each(|good| put(json!({ "x-a": good }), None));
            values.bad.iter().for_each(|bad| put(json!({ "x-a": bad }), Some("")));
            put(json!({ "x-a": "a".repeat(values.max + 1) }), Some(""));
        }
        Shape::Object(fields) => {
            let given = current.as_object().unwrap();
            let with = |change: &dyn Fn(&mut Map<String, Value>)| {
                let mut map = given.clone();
                change(&mut map);
                Value::Object(map)
            };
            put(with(&|map| drop(map.insert("noSuchField".into(), json!(1)))), Some("unknown field"));
            for field in fields.iter().filter(|field| field.required) {
                put(with(&|map| drop(map.remove(field.name))), Some("is missing"));
            }
            for field in fields {
                // `header` and `cookie` exclude each other, as do the two kinds of a tier.
                let mut whole = whole.clone();
                if !given.contains_key(field.name) {
                    let alternative = match field.name {
                        "cookie" => json!({ "cookie": "user" }),
                        "regions" => json!({ "regions": ["@same"] }),
                        other => panic!("{at}: the example lacks {other}"),
                    };
                    *whole.pointer_mut(at).unwrap() = alternative;
                }
                cases(&field.schema, &whole, &format!("{at}/{}", field.name), out);
            }
        }
    }
}

#[test]
fn the_decoder_refuses_what_the_schema_refuses_and_takes_what_it_takes() {
    for (kind, schema, example) in kinds() {
        assert_eq!(verdict(kind, &example), Vec::<String>::new());
        let mut all = Vec::new();
        cases(&schema, &example, "", &mut all);
        assert!(all.len() > 10, "{}", all.len());
        for case in all {
            let said = verdict(kind, &case.spec);
            let what = case.spec.pointer(&case.at).map(ToString::to_string).unwrap_or_default();
            let what: String = what.chars().take(200).collect();
            match case.complaint {
                None => assert!(said.is_empty(), "{kind} {}: {what} was refused: {said:?}", case.at),
                Some(part) => {
                    assert!(said.iter().any(|line| line.contains(part)), "{kind} {}: {what}: {said:?}", case.at);
                }
            }
        }
    }
}

/// What `spec` says, with one field left out or given.
fn read(kind: Kind, spec: &Value) -> Vec<String> {
    let read = admit::validate(&[document(kind, spec)]).unwrap_or_else(|problems| panic!("{kind}: {problems:?}"));
    read.iter().map(crate::resource::Resource::to_json).collect()
}

#[test]
fn what_is_left_out_is_as_the_default_says() {
    fn visit(kind: Kind, schema: &Schema, whole: &Value, at: &str, count: &mut usize) {
        match &schema.shape {
            Shape::Object(fields) => {
                for field in fields {
                    let place = format!("{at}/{}", field.name);
                    if whole.pointer(&place).is_none() {
                        continue;
                    }
                    if let Some(default) = field.default {
                        let (mut given, mut left_out) = (whole.clone(), whole.clone());
                        *given.pointer_mut(&place).unwrap() = serde_json::from_str(default).unwrap();
                        left_out.pointer_mut(at).unwrap().as_object_mut().unwrap().remove(field.name);
                        assert_eq!(read(kind, &given), read(kind, &left_out), "{kind} {place}");
                        *count += 1;
                    }
                    if let Some(feature) = field.feature {
                        assert!(feature::is_supported(feature), "{feature}");
                    }
                    visit(kind, &field.schema, whole, &place, count);
                }
            }
            Shape::List { items, .. } => visit(kind, items, whole, &format!("{at}/0"), count),
            Shape::Text(_) | Shape::Boolean | Shape::Word(_) | Shape::Number { .. } | Shape::Texts(_) => {}
        }
    }
    let mut count = 0;
    for (kind, schema, example) in kinds() {
        visit(kind, &schema, &example, "", &mut count);
    }
    assert!(count > 12, "{count}");
}

#[test]
fn patterns_match_their_examples_within_their_bounds() {
    for pattern in [LABEL, TIER_CLUSTER, TIER_REGION, VERSION, HEADER, COOKIE, HEADER_VALUE, PATH, METHOD, DURATION] {
        let regex = regex::Regex::new(pattern.regex).unwrap();
        for good in pattern.good {
            assert!(regex.is_match(good) && (pattern.min..=pattern.max).contains(&good.len()), "{good}");
        }
        for bad in pattern.bad {
            assert!(!regex.is_match(bad), "{bad} matches {}", pattern.regex);
        }
    }
}

#[test]
fn it_is_written_as_kubernetes_reads_it() {
    let schema = traffic_split().to_openapi();
    assert_eq!(schema["required"], json!(["service"]));
    let backends = &schema["properties"]["backends"];
    assert_eq!(backends["items"]["properties"]["weight"]["maximum"], json!(1_000_000));
    assert_eq!(backends["maxItems"], json!(64));
    assert!(backends["x-kubernetes-validations"][0]["rule"].as_str().unwrap().contains("weight"));
    assert_eq!(failover_policy().to_openapi()["properties"]["avoid"]["x-kubernetes-list-type"], json!("set"));
}
