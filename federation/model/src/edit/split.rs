//! `split set` and `split clear --header …`.

use serde_json::{Map, Value, json};

use super::{Edit, ServiceName, Share, annotate, document, object, set, switch};

/// What `split set` changes; everything not named stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SplitEdit {
    /// New weights: of the route that `route` names, or of everything else.
    pub shares: Vec<Share>,
    /// The route the weights are for; all `None`: the default backends.
    pub route: RouteMatch,
    /// What to do with stickiness.
    pub sticky: Sticky,
}

/// What a request must look like for a route; all that are given must match.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteMatch {
    /// Header name and exact value.
    pub headers: Vec<(String, String)>,
    /// Cookie name and exact value.
    pub cookies: Vec<(String, String)>,
    /// Start of the path.
    pub path_prefix: Option<String>,
    /// Request method.
    pub method: Option<String>,
}

/// What becomes of `spec.sticky`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sticky {
    /// As it was.
    #[default]
    Keep,
    /// By this request header.
    Header(String),
    /// By this cookie.
    Cookie(String),
    /// Every request draws anew.
    Off,
}

impl RouteMatch {
    /// Whether nothing is asked, so that the weights are for everything else.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `spec.routes[].match`.
    fn to_json(&self) -> Value {
        let mut fields = Map::new();
        let map = |pairs: &[(String, String)]| -> Value {
            pairs.iter().map(|(key, value)| (key.clone(), Value::String(value.clone()))).collect::<Map<_, _>>().into()
        };
        if !self.headers.is_empty() {
            // Header names compare without case; lower case is their canonical form.
            let lower: Vec<_> =
                self.headers.iter().map(|(key, value)| (key.to_ascii_lowercase(), value.clone())).collect();
            fields.insert("headers".to_owned(), map(&lower));
        }
        if !self.cookies.is_empty() {
            fields.insert("cookies".to_owned(), map(&self.cookies));
        }
        if let Some(prefix) = &self.path_prefix {
            fields.insert("pathPrefix".to_owned(), prefix.clone().into());
        }
        if let Some(method) = &self.method {
            fields.insert("method".to_owned(), method.to_ascii_uppercase().into());
        }
        fields.into()
    }
}

/// The split after `split set`; `current` is the one before, if there was one.
///
/// It ends what an earlier `switch` could undo: the split that undo would bring back is no longer
/// what this one came from.
#[must_use]
pub fn set_split(current: Option<&Value>, service: &ServiceName, edit: &SplitEdit) -> Value {
    let mut split = current.cloned().unwrap_or_else(|| document("TrafficSplit", service));
    annotate(&mut split, switch::HISTORY, None);
    let spec = object(&mut split, "spec");
    let shares = backends(&edit.shares);
    if edit.route.is_empty() {
        if !edit.shares.is_empty() {
            set(spec, "backends", Some(shares));
        }
    } else {
        let matched = edit.route.to_json();
        let mut routes = routes(spec);
        match routes.iter_mut().find(|route| same_match(route, &matched)) {
            Some(route) => set(route, "backends", Some(shares)),
            // First match wins, so the newest route goes in front: it is the one just asked for.
            None => routes.insert(0, json!({ "match": matched, "backends": shares })),
        }
        set(spec, "routes", Some(routes.into()));
    }
    match &edit.sticky {
        Sticky::Keep => {}
        Sticky::Header(name) => set(spec, "sticky", Some(json!({ "header": name.to_ascii_lowercase() }))),
        Sticky::Cookie(name) => set(spec, "sticky", Some(json!({ "cookie": name }))),
        Sticky::Off => set(spec, "sticky", None),
    }
    split
}

/// The split without the route that matches exactly this; `None` when there is no such route. Without its last route a split that has
/// no other shares says nothing, and goes.
#[must_use]
pub fn clear_route(current: &Value, route: &RouteMatch) -> Option<Edit> {
    let matched = route.to_json();
    let mut split = current.clone();
    let spec = object(&mut split, "spec");
    let before = routes(spec);
    let after: Vec<Value> = before.iter().filter(|route| !same_match(route, &matched)).cloned().collect();
    if after.len() == before.len() {
        return None;
    }
    let has_shares = spec.get("backends").and_then(Value::as_array).is_some_and(|shares| !shares.is_empty());
    if after.is_empty() && !has_shares {
        return Some(Edit::Delete);
    }
    set(spec, "routes", (!after.is_empty()).then(|| after.into()));
    annotate(&mut split, switch::HISTORY, None);
    Some(Edit::Apply(split))
}

/// `backends` as the resource writes them.
pub(super) fn backends(shares: &[Share]) -> Value {
    shares
        .iter()
        .map(|share| {
            let mut backend = json!({ "cluster": share.target.cluster, "weight": share.weight });
            set(&mut backend, "version", share.target.version.clone().map(Value::String));
            backend
        })
        .collect()
}

fn routes(spec: &Value) -> Vec<Value> {
    spec.get("routes").and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Whether a route matches on exactly this; empty maps and absent fields are the same.
fn same_match(route: &Value, matched: &Value) -> bool {
    let essence = |value: &Value| -> Map<String, Value> {
        let empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
        value
            .as_object()
            .map(|map| map.iter().filter(|(_, value)| !empty(value)).map(|(k, v)| (k.clone(), v.clone())).collect())
            .unwrap_or_default()
    };
    route.get("match").is_some_and(|found| essence(found) == essence(matched))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout() -> ServiceName {
        "shop/checkout".parse().unwrap()
    }

    fn shares(text: &[&str]) -> Vec<Share> {
        text.iter().map(|share| share.parse().unwrap()).collect()
    }

    fn weights(shares_text: &[&str]) -> SplitEdit {
        SplitEdit { shares: shares(shares_text), ..SplitEdit::default() }
    }

    #[test]
    fn the_first_split_is_a_complete_document() {
        assert_eq!(
            set_split(None, &checkout(), &weights(&["paris=90", "tokyo:v2=10"])),
            json!({
                "apiVersion": "archipelago.dev/v1alpha1", "kind": "TrafficSplit",
                "metadata": { "name": "checkout", "namespace": "shop" },
                "spec": { "service": "checkout", "backends": [
                    { "cluster": "paris", "weight": 90 },
                    { "cluster": "tokyo", "version": "v2", "weight": 10 },
                ]},
            })
        );
    }

    #[test]
    fn new_weights_keep_name_routes_labels_and_stickiness() {
        let current = json!({
            "apiVersion": "archipelago.dev/v1alpha1", "kind": "TrafficSplit",
            "metadata": { "name": "weekend", "namespace": "shop", "labels": { "team": "pay" } },
            "spec": {
                "service": "checkout", "sticky": { "header": "x-user" },
                "routes": [{ "match": { "headers": { "x-preview": "1" } }, "backends": [{ "cluster": "tokyo", "weight": 1 }] }],
                "backends": [{ "cluster": "paris", "weight": 1 }],
            },
        });
        let mut expected = current.clone();
        expected["spec"]["backends"] = json!([{ "cluster": "frankfurt", "weight": 5 }]);
        assert_eq!(set_split(Some(&current), &checkout(), &weights(&["frankfurt=5"])), expected);
    }

    #[test]
    fn a_header_adds_a_route_in_front_and_then_replaces_it() {
        let first = set_split(None, &checkout(), &weights(&["paris=1"]));
        let route = |value: &str, share: &str| SplitEdit {
            shares: shares(&[share]),
            route: RouteMatch { headers: vec![("X-Preview".into(), value.into())], ..RouteMatch::default() },
            sticky: Sticky::Keep,
        };
        let split = set_split(Some(&first), &checkout(), &route("pr-42", "tokyo:v2=1"));
        let split = set_split(Some(&split), &checkout(), &route("pr-43", "frankfurt=1"));
        let split = set_split(Some(&split), &checkout(), &route("pr-42", "paris:v2=1"));
        assert_eq!(
            split["spec"]["routes"],
            json!([
                { "match": { "headers": { "x-preview": "pr-43" } }, "backends": [{ "cluster": "frankfurt", "weight": 1 }] },
                { "match": { "headers": { "x-preview": "pr-42" } },
                  "backends": [{ "cluster": "paris", "version": "v2", "weight": 1 }] },
            ])
        );
        assert_eq!(split["spec"]["backends"], first["spec"]["backends"]);

        let only =
            |value: &str| RouteMatch { headers: vec![("x-preview".into(), value.into())], ..RouteMatch::default() };
        let Some(Edit::Apply(one_left)) = clear_route(&split, &only("pr-43")) else { panic!("one is left") };
        assert_eq!(clear_route(&one_left, &only("pr-43")), None);
        assert_eq!(clear_route(&one_left, &only("pr-42")), Some(Edit::Apply(first)));

        // A split of nothing but a route is one that admission takes, without it one that it does not.
        let alone = set_split(None, &checkout(), &route("pr-42", "tokyo=1"));
        assert_eq!(clear_route(&alone, &only("pr-42")), Some(Edit::Delete));
    }

    #[test]
    fn stickiness_comes_and_goes_without_touching_weights() {
        let first = set_split(None, &checkout(), &weights(&["paris=1"]));
        let sticky = |sticky| SplitEdit { sticky, ..SplitEdit::default() };
        let by_user = set_split(Some(&first), &checkout(), &sticky(Sticky::Header("X-User".into())));
        assert_eq!(by_user["spec"]["sticky"], json!({ "header": "x-user" }));
        let by_cookie = set_split(Some(&by_user), &checkout(), &sticky(Sticky::Cookie("Session".into())));
        assert_eq!(by_cookie["spec"]["sticky"], json!({ "cookie": "Session" }));
        assert_eq!(set_split(Some(&by_cookie), &checkout(), &sticky(Sticky::Off)), first);
    }
}
