//! What the kinds look like to a machine that has no Rust: the schema of their `spec`.
//!
//! A Kubernetes API server refuses by this schema what `meshctl validate` refuses by decoding. The declaration stands in
//! [`kinds`], with the very constants that the rules use; the tests there write documents *out of the schema* (every
//! field, every bound, one beyond every bound, every rule's counterexample) and ask the decoder, so that the two cannot
//! part. What a schema cannot say (a cluster that does not exist, a chain that leaves its residency) is said by
//! [`crate::admit`] in the object's status.

mod kinds;

use serde_json::{Map, Value, json};

use crate::resource::Kind;

/// Schema of the `spec` of a kind that clusters may write; `None` for the others.
#[must_use]
pub fn spec(kind: Kind) -> Option<Schema> {
    match kind {
        Kind::TrafficSplit | Kind::FailoverPolicy => Some(of(kind)),
        Kind::Cluster | Kind::ServiceExport | Kind::BackendPolicy => None,
    }
}

/// Schema of the `spec` of any kind.
#[must_use]
pub fn of(kind: Kind) -> Schema {
    match kind {
        Kind::Cluster => kinds::cluster(),
        Kind::ServiceExport => kinds::service_export(),
        Kind::TrafficSplit => kinds::traffic_split(),
        Kind::FailoverPolicy => kinds::failover_policy(),
        Kind::BackendPolicy => kinds::backend_policy(),
    }
}

/// What `metadata.name` must be beyond what Kubernetes asks, as a rule on the whole object.
#[must_use]
pub fn name_rule() -> Rule {
    Rule {
        cel: "self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",
        message: "metadata.name is no valid name: 1 to 63 lower-case letters, digits and dashes, not at the ends",
        bad: "",
    }
}

/// A value: what it is for, what it may be, and which of its parts must go together.
#[derive(Debug, Clone)]
pub struct Schema {
    /// For people; `kubectl explain` shows it.
    pub description: &'static str,
    /// What it may be.
    pub shape: Shape,
    /// Beyond its shape.
    pub rules: Vec<Rule>,
}

/// What a value may be.
#[derive(Debug, Clone)]
pub enum Shape {
    /// A text of a pattern.
    Text(Pattern),
    /// Yes or no.
    Boolean,
    /// One of a few words.
    Word(&'static [&'static str]),
    /// A whole number, both ends included.
    Number {
        /// The least.
        min: u32,
        /// The greatest.
        max: u32,
    },
    /// A list.
    List {
        /// What it holds.
        items: Box<Schema>,
        /// At least so many.
        min: usize,
        /// At most so many.
        max: usize,
        /// No item twice; of texts only.
        set: bool,
    },
    /// Any keys, a text each.
    Texts(Pattern),
    /// Named fields and no others.
    Object(Vec<Field>),
}

/// A field of an object.
#[derive(Debug, Clone)]
pub struct Field {
    /// As it is written.
    pub name: &'static str,
    /// Whether it may be absent.
    pub required: bool,
    /// What it holds.
    pub schema: Schema,
    /// The value that its absence means, as JSON, where there is one.
    pub default: Option<&'static str>,
    /// The feature that a gateway needs for it; see [`crate::feature`].
    pub feature: Option<&'static str>,
}

/// Which texts.
#[derive(Debug, Clone, Copy)]
pub struct Pattern {
    /// RE2, anchored; empty: any text.
    pub regex: &'static str,
    /// Characters, at least.
    pub min: usize,
    /// Characters, at most.
    pub max: usize,
    /// Some that are.
    pub good: &'static [&'static str],
    /// Some that are not, within the bounds of length.
    pub bad: &'static [&'static str],
}

/// A rule in the Common Expression Language, on the value as `self`.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// True where the value is right.
    pub cel: &'static str,
    /// What to say where it is not; the same that [`crate::admit`] says.
    pub message: &'static str,
    /// A value that breaks it, as JSON.
    pub bad: &'static str,
}

impl Schema {
    /// As a structural OpenAPI v3 schema of Kubernetes.
    #[must_use]
    pub fn to_openapi(&self) -> Value {
        let mut out = match &self.shape {
            Shape::Text(pattern) => pattern.to_openapi(),
            Shape::Boolean => map(json!({ "type": "boolean" })),
            Shape::Word(words) => map(json!({ "type": "string", "enum": words })),
            Shape::Number { min, max } => {
                map(json!({ "type": "integer", "format": "int64", "minimum": min, "maximum": max }))
            }
            Shape::List { items, min, max, set } => {
                let kind = if *set { "set" } else { "atomic" };
                let mut out = map(json!({
                    "type": "array", "items": items.to_openapi(), "maxItems": max, "x-kubernetes-list-type": kind,
                }));
                if *min > 0 {
                    out.insert("minItems".into(), json!(min));
                }
                out
            }
            Shape::Texts(pattern) => map(json!({ "type": "object", "additionalProperties": pattern.to_openapi() })),
            Shape::Object(fields) => {
                let properties: Map<String, Value> =
                    fields.iter().map(|field| (field.name.to_owned(), field.schema.to_openapi())).collect();
                let required: Vec<&str> =
                    fields.iter().filter(|field| field.required).map(|field| field.name).collect();
                let mut out = map(json!({ "type": "object", "properties": properties }));
                if !required.is_empty() {
                    out.insert("required".into(), json!(required));
                }
                out
            }
        };
        out.insert("description".into(), json!(self.description));
        if !self.rules.is_empty() {
            out.insert(
                "x-kubernetes-validations".into(),
                self.rules.iter().map(Rule::to_openapi).collect::<Vec<_>>().into(),
            );
        }
        Value::Object(out)
    }
}

impl Rule {
    /// An entry of `x-kubernetes-validations`.
    #[must_use]
    pub fn to_openapi(&self) -> Value {
        json!({ "rule": self.cel, "message": self.message })
    }
}

impl Pattern {
    fn to_openapi(self) -> Map<String, Value> {
        let mut out = map(json!({ "type": "string", "maxLength": self.max }));
        if self.min > 0 {
            out.insert("minLength".into(), json!(self.min));
        }
        if !self.regex.is_empty() {
            out.insert("pattern".into(), json!(self.regex));
        }
        out
    }
}

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    }
}
