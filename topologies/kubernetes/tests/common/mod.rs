//! Sets of values that cover the branches of the chart: `tests/values`, which `check` renders with Helm as well.

#![allow(dead_code, reason = "each test uses its part")]

use archipelago_manifests::{CONTROL_PLANE_NAMESPACE, NAMESPACE, Release, render, values};
use serde_json::Value;

/// Name, namespace, values.
pub(crate) fn cases() -> Vec<(&'static str, &'static str, Value)> {
    [
        ("joined", NAMESPACE, include_str!("../values/joined.yaml")),
        ("bare", "mesh", include_str!("../values/bare.yaml")),
        ("everything", NAMESPACE, include_str!("../values/everything.yaml")),
        ("control-plane", CONTROL_PLANE_NAMESPACE, include_str!("../values/control-plane.yaml")),
        ("load-balanced", "mesh", include_str!("../values/load-balanced.yaml")),
    ]
    .map(|(name, namespace, text)| {
        (name, namespace, values::from_yaml(text).unwrap_or_else(|error| panic!("{name}: {error}")))
    })
    .into()
}

/// The objects of a case.
pub(crate) fn rendered(namespace: &str, values: &Value) -> Vec<Value> {
    render(values, &Release { namespace }).unwrap_or_else(|error| panic!("{error}"))
}

/// The objects of all cases, with the case's name.
pub(crate) fn all() -> Vec<(&'static str, Value)> {
    cases()
        .into_iter()
        .flat_map(|(name, namespace, values)| {
            rendered(namespace, &values).into_iter().map(move |object| (name, object))
        })
        .collect()
}
