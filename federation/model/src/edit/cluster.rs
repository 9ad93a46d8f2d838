//! `cluster drain` and `cluster uncordon`.

use serde_json::Value;

use super::{object, set};

/// The cluster with `spec.drained` set or gone.
#[must_use]
pub fn drained(current: &Value, drained: bool) -> Value {
    let mut cluster = current.clone();
    set(object(&mut cluster, "spec"), "drained", drained.then_some(Value::Bool(true)));
    cluster
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn draining_and_back_is_where_it_was() {
        let paris = json!({ "kind": "Cluster", "metadata": { "name": "paris" }, "spec": { "region": "eu-west" } });
        let out = drained(&paris, true);
        assert_eq!(out["spec"], json!({ "region": "eu-west", "drained": true }));
        assert_eq!(drained(&out, false), paris);
    }
}
