//! Which clusters should serve a service first: the cluster selectors of KEP-5939, without I/O.
//!
//! The field is not in the Multi-Cluster Services API yet, so a ServiceExport says it in the annotation [`ANNOTATION`], as the JSON
//! of the KEP's `clusterSelectors`:
//!
//! ```json
//! [ { "propertySelector": { "matchProperties": { "region.topology.k8s.io": "@SameAsImporter@" } } } ]
//! ```
//!
//! Each entry selects clusters by their properties, seen from the importing cluster. They are tried in order; clusters that no
//! entry selects come last, so that a selector is a preference and never a limit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An ordered list of preferred sets of clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ClusterSelectors(Vec<ClusterSelector>);

/// One set of clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSelector {
    property_selector: PropertySelector,
}

/// Everything that it asks for must hold, as in a `metav1.LabelSelector`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct PropertySelector {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    match_properties: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    match_expressions: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: Operator,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl ClusterSelectors {
    /// Reads the JSON of a `clusterSelectors`.
    ///
    /// # Errors
    /// What is wrong with it, in words that say what to do.
    pub fn parse(json: &str) -> Result<Self, String> {
        let list: Vec<ClusterSelector> =
            serde_json::from_str(json).map_err(|error| format!("{error}; expected a JSON list such as {EXAMPLE}"))?;
        if list.len() > SELECTORS_MAX {
            return Err(format!("it has {} entries: leave at most {SELECTORS_MAX}", list.len()));
        }
        for (place, selector) in list.iter().enumerate() {
            selector.property_selector.check().map_err(|reason| format!("entry {}: {reason}", place + 1))?;
        }
        let selectors = Self(list);
        let bytes = selectors.to_json().len();
        if bytes > JSON_BYTES_MAX {
            return Err(format!("it has {bytes} bytes: shorten it to {JSON_BYTES_MAX}"));
        }
        Ok(selectors)
    }

    /// Equal for equal selectors, however they were written.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and lists of texts always serialize")
    }

    /// In order.
    #[must_use]
    pub fn as_slice(&self) -> &[ClusterSelector] {
        &self.0
    }
}

impl ClusterSelector {
    /// Whether a cluster is one of these, seen from `importer`. Both are what the clusters' properties are, by key.
    pub fn selects<'p>(
        &self,
        importer: &impl Fn(&str) -> Option<&'p str>,
        cluster: &impl Fn(&str) -> Option<&'p str>,
    ) -> bool {
        let PropertySelector { match_properties, match_expressions } = &self.property_selector;
        // What the importer does not have itself can be the same nowhere, and nowhere different either.
        let lacks = |key: &str, value: &str| value == SAME_AS_IMPORTER && importer(key).is_none();
        let is_among = |key: &str, values: &[String]| {
            let wanted = |value: &String| if value == SAME_AS_IMPORTER { importer(key) } else { None };
            cluster(key).is_some_and(|own| values.iter().any(|value| wanted(value).unwrap_or(value) == own))
        };
        let properties = match_properties
            .iter()
            .all(|(key, value)| !lacks(key, value) && is_among(key, std::slice::from_ref(value)));
        properties
            && match_expressions.iter().all(|Requirement { key, operator, values }| {
                let relative = !values.iter().any(|value| lacks(key, value));
                match operator {
                    Operator::In => relative && is_among(key, values),
                    Operator::NotIn => relative && !is_among(key, values),
                    Operator::Exists => cluster(key).is_some(),
                    Operator::DoesNotExist => cluster(key).is_none(),
                }
            })
    }
}

impl PropertySelector {
    fn check(&self) -> Result<(), String> {
        if self.match_properties.is_empty() && self.match_expressions.is_empty() {
            return Err("an empty propertySelector selects nothing: give it matchProperties or matchExpressions".into());
        }
        let keys = self.match_properties.keys().chain(self.match_expressions.iter().map(|each| &each.key));
        if let Some(key) = keys.into_iter().find(|key| !is_property(key)) {
            return Err(format!("{key:?} is not the name of a ClusterProperty: expected one such as {REGION:?}"));
        }
        for Requirement { key, operator, values } in &self.match_expressions {
            match operator {
                Operator::In | Operator::NotIn if values.is_empty() => {
                    return Err(format!("{operator:?} of {key:?} needs values"));
                }
                Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                    return Err(format!("{operator:?} of {key:?} takes no values: leave them out"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Names of objects are DNS subdomains (RFC 1123).
fn is_property(name: &str) -> bool {
    let is_label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inside)
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Of a ServiceExport; of a ServiceImport what counts.
pub const ANNOTATION: &str = "archipelago.dev/cluster-selectors";
/// Property with the name of a cluster (KEP-2149).
pub const CLUSTER_ID: &str = "cluster.clusterset.k8s.io";
/// Property with the name of the clusterset that a cluster is in (KEP-2149).
pub const CLUSTERSET: &str = "clusterset.k8s.io";
/// Property with the region of a cluster.
pub const REGION: &str = "region.topology.k8s.io";
const SAME_AS_IMPORTER: &str = "@SameAsImporter@";
/// Of the KEP.
const SELECTORS_MAX: usize = 16;
/// Half of what is carried of an export's words.
const JSON_BYTES_MAX: usize = crate::export::WORDS_BYTES_MAX / 2;
const EXAMPLE: &str = r#"[{"propertySelector":{"matchProperties":{"region.topology.k8s.io":"@SameAsImporter@"}}}]"#;

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTERS: [(&str, &[(&str, &str)]); 4] = [
        ("lyon", &[(REGION, "eu-west"), ("gpu.example.com", "high")]),
        ("nowhere", &[]),
        ("paris", &[(REGION, "eu-west")]),
        ("tokyo", &[(REGION, "ap-northeast"), ("gpu.example.com", "low")]),
    ];

    fn property<'p>(cluster: &'p str) -> impl Fn(&str) -> Option<&'p str> {
        move |key| match key {
            CLUSTER_ID => Some(cluster),
            _ => {
                let (_, properties) = CLUSTERS.into_iter().find(|(name, _)| *name == cluster)?;
                properties.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
            }
        }
    }

    /// What each entry selects, seen from a cluster.
    fn selected(json: &str, importer: &str) -> Vec<String> {
        let selectors = ClusterSelectors::parse(json).unwrap_or_else(|error| panic!("{json}: {error}"));
        let names = |selector: &ClusterSelector| {
            let all = CLUSTERS.iter().map(|(name, _)| *name);
            all.filter(|name| selector.selects(&property(importer), &property(name))).collect::<Vec<_>>().join(" ")
        };
        selectors.as_slice().iter().map(names).collect()
    }

    fn expression(key: &str, operator: &str, values: &str) -> String {
        let values = if values.is_empty() { String::new() } else { format!(r#", "values": {values}"#) };
        format!(
            r#"[{{"propertySelector": {{"matchExpressions": [{{"key": "{key}", "operator": "{operator}"{values}}}]}}}}]"#
        )
    }

    #[test]
    fn kep_5939_golden_table() {
        let same_region = EXAMPLE.to_owned();
        let both = r#"[{"propertySelector": {"matchProperties": {"region.topology.k8s.io": "@SameAsImporter@"},
            "matchExpressions": [{"key": "gpu.example.com", "operator": "Exists"}]}}]"#;
        let own = expression(CLUSTER_ID, "In", r#"["@SameAsImporter@"]"#);
        let own_or_tokyo = expression(CLUSTER_ID, "In", r#"["@SameAsImporter@", "tokyo"]"#);
        let other_region = expression(REGION, "NotIn", r#"["@SameAsImporter@"]"#);
        for (what, json, importer, expected) in [
            ("the own cluster", &*own, "paris", "paris"),
            ("the own cluster or another", &own_or_tokyo, "paris", "paris tokyo"),
            ("the own region", &same_region, "paris", "lyon paris"),
            ("the own region elsewhere", &same_region, "tokyo", "tokyo"),
            ("the region of one that has none", &same_region, "nowhere", ""),
            ("another region, or none", &other_region, "paris", "nowhere tokyo"),
            ("another than none", &other_region, "nowhere", ""),
            ("both must hold", both, "paris", "lyon"),
            ("a value", &expression("gpu.example.com", "In", r#"["high", "highest"]"#), "tokyo", "lyon"),
            ("not a value", &expression("gpu.example.com", "NotIn", r#"["high"]"#), "tokyo", "nowhere paris tokyo"),
            ("a property", &expression("gpu.example.com", "Exists", ""), "paris", "lyon tokyo"),
            ("no property", &expression("gpu.example.com", "DoesNotExist", ""), "paris", "nowhere paris"),
            ("what nobody has", &expression("continent.topology.k8s.io", "Exists", ""), "paris", ""),
        ] {
            assert_eq!(selected(json, importer), [expected], "{what}");
        }
        assert_eq!(selected("[]", "paris"), [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_said_and_what_is_right_has_one_form() {
        let many = format!("[{}]", [EXAMPLE.trim_matches(['[', ']']); 17].join(","));
        let long = expression(REGION, "In", &format!(r#"["{}"]"#, "x".repeat(3_000)));
        for (json, says) in [
            ("", "expected a JSON list such as [{"),
            ("local", "expected a JSON list such as [{"),
            (r#"{"propertySelector": {}}"#, "expected a JSON list"),
            (r"[{}]", "missing field `propertySelector`"),
            (r#"[{"propertySelector": {}}]"#, "entry 1: an empty propertySelector selects nothing: give it matchProp"),
            (r#"[{"cel": "true"}]"#, "unknown field `cel`, expected `propertySelector`"),
            (r#"[{"propertySelector": {"matchLabels": {}}}]"#, "unknown field `matchLabels`"),
            (&expression(REGION, "Near", ""), "unknown variant `Near`"),
            (&expression(REGION, "In", ""), "entry 1: In of \"region.topology.k8s.io\" needs values"),
            (&expression(REGION, "Exists", r#"["x"]"#), "takes no values: leave them out"),
            (&expression("Region!", "Exists", ""), "\"Region!\" is not the name of a ClusterProperty"),
            (&many, "17 entries: leave at most 16"),
            (&long, "shorten it to 2048"),
        ] {
            let error = ClusterSelectors::parse(json).unwrap_err();
            assert!(error.contains(says), "{json}: {error}");
        }
        let spaced = EXAMPLE.replace(':', " : ").replace('{', "{ \n");
        assert_eq!(ClusterSelectors::parse(&spaced).unwrap().to_json(), EXAMPLE);
    }
}
