//! `failover trigger` and `failover release`: moving one service away from a cluster, through
//! `FailoverPolicy.spec.avoid`.

use serde_json::Value;

use super::{Edit, ServiceName, annotate, annotation, document, object, set};

/// Annotation of a policy that exists only because of a trigger; release removes such a policy.
pub const MADE_BY_TRIGGER: &str = "archipelago.dev/made-by";
const TRIGGER: &str = "failover-trigger";

/// The policy with `cluster` avoided; made for the purpose when the service has none.
#[must_use]
pub fn trigger(current: Option<&Value>, service: &ServiceName, cluster: &str) -> Value {
    let mut policy = current.cloned().unwrap_or_else(|| {
        let mut policy = document("FailoverPolicy", service);
        annotate(&mut policy, MADE_BY_TRIGGER, Some(TRIGGER.to_owned()));
        policy
    });
    let mut avoided = avoided(&policy);
    if !avoided.iter().any(|name| name == cluster) {
        avoided.push(cluster.to_owned());
        avoided.sort();
        set(object(&mut policy, "spec"), "avoid", Some(avoided.into()));
    }
    policy
}

/// The policy with `cluster` (or, for `None`, every cluster) no longer avoided; `None` when none of them was.
#[must_use]
pub fn release(current: &Value, cluster: Option<&str>) -> Option<Edit> {
    let before = avoided(current);
    let after: Vec<String> = before.iter().filter(|name| cluster.is_some_and(|only| *name != only)).cloned().collect();
    if after.len() == before.len() {
        return None;
    }
    if after.is_empty() && annotation(current, MADE_BY_TRIGGER) == Some(TRIGGER) {
        return Some(Edit::Delete);
    }
    let mut policy = current.clone();
    set(object(&mut policy, "spec"), "avoid", (!after.is_empty()).then(|| after.into()));
    Some(Edit::Apply(policy))
}

/// `spec.avoid`.
#[must_use]
pub fn avoided(policy: &Value) -> Vec<String> {
    let list = policy.get("spec").and_then(|spec| spec.get("avoid")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checkout() -> ServiceName {
        "shop/checkout".parse().unwrap()
    }

    #[test]
    fn a_policy_made_for_a_trigger_goes_with_the_last_release() {
        let one = trigger(None, &checkout(), "paris");
        assert_eq!(one["spec"], json!({ "service": "checkout", "avoid": ["paris"] }));
        let two = trigger(Some(&one), &checkout(), "frankfurt");
        assert_eq!(avoided(&two), ["frankfurt", "paris"]);
        assert_eq!(release(&two, Some("frankfurt")), Some(Edit::Apply(one.clone())));
        assert_eq!(release(&two, None), Some(Edit::Delete));
        assert_eq!(release(&one, Some("paris")), Some(Edit::Delete));
    }

    #[test]
    fn a_policy_of_the_operator_stays_as_it_was() {
        let policy = json!({
            "apiVersion": "archipelago.dev/v1alpha1", "kind": "FailoverPolicy",
            "metadata": { "name": "eu", "namespace": "shop" },
            "spec": { "service": "checkout", "order": [{ "clusters": ["@local"] }] },
        });
        let triggered = trigger(Some(&policy), &checkout(), "paris");
        assert_eq!(triggered["spec"]["order"], policy["spec"]["order"]);
        assert_eq!(release(&triggered, None), Some(Edit::Apply(policy.clone())));
        assert_eq!(release(&policy, None), None);
        assert_eq!(release(&triggered, Some("tokyo")), None);
    }

    #[test]
    fn triggering_twice_is_triggering_once() {
        let once = trigger(None, &checkout(), "paris");
        assert_eq!(trigger(Some(&once), &checkout(), "paris"), once);
    }
}
