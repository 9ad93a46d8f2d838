//! Label and field selectors, as far as clients here use them.

use serde_json::Value;

/// What a list or a watch is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    pub(crate) namespace: Option<String>,
    labels: Vec<Term>,
    fields: Vec<Term>,
}

#[derive(Debug, Clone)]
enum Term {
    Equals(String, String),
    Differs(String, String),
    Exists(String),
    Absent(String),
}

impl Selector {
    pub(crate) fn new(namespace: Option<String>, labels: &str, fields: &str) -> Self {
        Self { namespace, labels: terms(labels), fields: terms(fields) }
    }

    pub(crate) fn fits(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.namespace.as_ref().is_none_or(|namespace| metadata["namespace"] == **namespace)
            && self.labels.iter().all(|term| term.fits(|key| metadata["labels"].get(key)))
            && self.fields.iter().all(|term| term.fits(|path| object.pointer(&format!("/{}", path.replace('.', "/")))))
    }
}

impl Term {
    fn fits<'a>(&self, value: impl Fn(&str) -> Option<&'a Value>) -> bool {
        let text = |key: &str| value(key).and_then(Value::as_str);
        match self {
            Self::Equals(key, wanted) => text(key).unwrap_or_default() == wanted,
            Self::Differs(key, unwanted) => text(key) != Some(unwanted),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

fn terms(text: &str) -> Vec<Term> {
    let term = |part: &str| {
        if let Some((key, value)) = part.split_once("!=") {
            Term::Differs(key.trim().into(), value.trim().into())
        } else if let Some((key, value)) = part.split_once('=') {
            Term::Equals(key.trim().into(), value.trim_start_matches('=').trim().into())
        } else if let Some(key) = part.strip_prefix('!') {
            Term::Absent(key.trim().into())
        } else {
            Term::Exists(part.trim().into())
        }
    };
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(term).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors() {
        let object =
            json!({ "metadata": { "namespace": "a", "labels": { "x": "1" } }, "status": { "phase": "Running" } });
        let fits = |labels: &str, fields: &str| Selector::new(None, labels, fields).fits(&object);
        assert!(fits("", "") && fits("x=1", "") && fits("x==1,y!=1", "") && fits("x,!y", ""));
        assert!(!fits("x=2", "") && !fits("x!=1", "") && !fits("y", "") && !fits("!x", ""));
        assert!(fits("", "status.phase=Running") && !fits("", "status.phase!=Running"));
        assert!(!Selector::new(Some("b".into()), "", "").fits(&object));
    }
}
