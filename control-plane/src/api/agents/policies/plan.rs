//! What becomes of the policies that a cluster lists: each judged like a file, alone, so that a bad one is in nobody's way. Pure.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_model::{
    admit::{self, Resources},
    document::{Document, Problem},
    resource::{Kind, Resource, ResourceKey},
};
use archipelago_proto::v1::ClusterPolicy;

/// What is, and what a cluster wants.
pub(super) struct Situation<'a> {
    pub(super) cluster: &'a str,
    /// Complete: what is not in it is not wanted any more.
    pub(super) listed: &'a [ClusterPolicy],
    pub(super) resources: &'a Resources,
    /// Of the resources that were written in a cluster, which; the others are an operator's.
    pub(super) origins: &'a BTreeMap<ResourceKey, String>,
}

/// What to do about it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) upserts: Vec<Resource>,
    pub(super) deletes: Vec<ResourceKey>,
    /// One for each that is listed, in that order.
    pub(super) verdicts: Vec<Verdict>,
}

/// What became of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Absent: it is of no kind that a cluster may write.
    pub(super) key: Option<ResourceKey>,
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) rivals: Vec<String>,
}

/// As in a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Accepted,
    Conflict,
    Invalid,
    NotAllowed,
}

impl Reason {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Conflict => "Conflict",
            Self::Invalid => "Invalid",
            Self::NotAllowed => "NotAllowed",
        }
    }
}

impl Plan {
    pub(super) fn changes_nothing(&self) -> bool {
        self.upserts.is_empty() && self.deletes.is_empty()
    }
}

/// Judges the whole list.
pub(super) fn plan(situation: &Situation<'_>) -> Plan {
    let Situation { cluster, listed, resources, origins } = situation;
    if !may_write(resources, cluster) {
        // What it wrote while it might stays as it is: an operator who takes the right away takes no traffic away.
        let message = format!(
            "cluster {cluster} may not write policies: an operator allows it with `policies: true` in the spec of Cluster {cluster}"
        );
        let refuse = |policy| Verdict::of(key_of(policy).ok(), Reason::NotAllowed, message.clone());
        return Plan { verdicts: listed.iter().map(refuse).collect(), ..Plan::default() };
    }
    let wanted: BTreeSet<ResourceKey> = listed.iter().filter_map(|policy| key_of(policy).ok()).collect();
    let is_own = |key: &ResourceKey| origins.get(key).is_some_and(|origin| origin == cluster);
    let deletes: Vec<ResourceKey> =
        origins.keys().filter(|key| is_own(key) && !wanted.contains(*key)).cloned().collect();
    let mut after = Resources::clone(resources);
    for key in &deletes {
        after.remove(key);
    }
    let mut judge = Judge { cluster, origins, after, upserts: Vec::new(), seen: BTreeSet::new() };
    // What stands as it is goes first: of two that cannot be together the one that was there stays.
    let unchanged = |policy: &&ClusterPolicy| {
        let stands = key_of(policy).ok().filter(|key| is_own(key)).and_then(|key| resources.get(&key));
        stands.is_some_and(|resource| Resource::from_json(&policy.json).is_ok_and(|listed| listed == *resource))
    };
    let mut order: Vec<usize> = (0..listed.len()).collect();
    order.sort_by_cached_key(|index| !listed.get(*index).as_ref().is_some_and(unchanged));
    let mut verdicts: BTreeMap<usize, Verdict> = BTreeMap::new();
    for index in order {
        if let Some(policy) = listed.get(index) {
            verdicts.insert(index, judge.policy(policy));
        }
    }
    Plan { upserts: judge.upserts, deletes, verdicts: verdicts.into_values().collect() }
}

/// Whether an operator lets the users of `cluster` write policies.
pub(in crate::api) fn may_write(resources: &Resources, cluster: &str) -> bool {
    let key = ResourceKey { kind: Kind::Cluster, namespace: String::new(), name: cluster.to_owned() };
    matches!(resources.get(&key), Some(Resource::Cluster(cluster)) if cluster.spec.policies)
}

struct Judge<'a> {
    cluster: &'a str,
    origins: &'a BTreeMap<ResourceKey, String>,
    /// The federation with what was accepted so far.
    after: Resources,
    upserts: Vec<Resource>,
    seen: BTreeSet<ResourceKey>,
}

impl Judge<'_> {
    fn policy(&mut self, policy: &ClusterPolicy) -> Verdict {
        let key = match key_of(policy) {
            Ok(key) => key,
            Err(problem) => return Verdict::of(None, Reason::Invalid, problem),
        };
        let verdict = |reason, message: String| Verdict::of(Some(key.clone()), reason, message);
        if !self.seen.insert(key.clone()) {
            return verdict(Reason::Invalid, "it is listed twice; the first counts".to_owned());
        }
        if policy.json.len() > POLICY_BYTES_MAX {
            return verdict(Reason::Invalid, format!("it is larger than {POLICY_BYTES_MAX} bytes"));
        }
        if let Some((rival, what)) = self.rival(&key, policy) {
            let message = format!("{what}: change it there, or delete it there first");
            return Verdict { rivals: vec![rival], ..verdict(Reason::Conflict, message) };
        }
        let document = Document { file: String::new(), text: policy.json.clone() };
        match admit::admit(&[document], &self.after) {
            Ok(resources) => match &resources[..] {
                [resource] if resource.key() == key => {
                    if self.after.get(&key) != Some(resource) {
                        self.after.insert(key.clone(), resource.clone());
                        self.upserts.push(resource.clone());
                    }
                    verdict(Reason::Accepted, String::new())
                }
                _ => verdict(Reason::Invalid, format!("metadata: what is in it is not {key} alone")),
            },
            Err(problems) => verdict(Reason::Invalid, sentences(&problems)),
        }
    }

    /// Who else wrote this resource, or another one that says the same of the same service; and a sentence about it.
    fn rival(&self, key: &ResourceKey, policy: &ClusterPolicy) -> Option<(String, String)> {
        let service = serde_json::from_str::<serde_json::Value>(&policy.json).ok();
        let service = service.as_ref().and_then(|json| json.get("spec")?.get("service")?.as_str());
        let about_the_same = |other: &ResourceKey, resource: &Resource| {
            other.kind == key.kind
                && other.namespace == key.namespace
                && service.is_some()
                && about(resource) == service
        };
        let found = self.after.iter().find(|(other, resource)| *other == key || about_the_same(other, resource));
        let (other, _) = found.filter(|(other, _)| self.origins.get(*other).is_none_or(|of| of != self.cluster))?;
        if self.upserts.iter().any(|resource| resource.key() == *other) {
            // Of the same list.
            return None;
        }
        Some(match self.origins.get(other) {
            Some(cluster) => (format!("cluster {cluster}"), format!("{other} was written in cluster {cluster}")),
            None => ("operator".to_owned(), format!("{other} was written by an operator")),
        })
    }
}

impl Verdict {
    fn of(key: Option<ResourceKey>, reason: Reason, message: String) -> Self {
        Self { key, reason, message, rivals: Vec::new() }
    }
}

fn about(resource: &Resource) -> Option<&str> {
    match resource {
        Resource::TrafficSplit(split) => Some(&split.spec.service),
        Resource::FailoverPolicy(policy) => Some(&policy.spec.service),
        Resource::BackendPolicy(policy) => Some(&policy.spec.service),
        Resource::Cluster(_) | Resource::ServiceExport(_) => None,
    }
}

/// What identifies it in the federation.
fn key_of(policy: &ClusterPolicy) -> Result<ResourceKey, String> {
    match policy.kind.parse() {
        Ok(kind @ (Kind::TrafficSplit | Kind::FailoverPolicy)) => {
            Ok(ResourceKey { kind, namespace: policy.namespace.clone(), name: policy.name.clone() })
        }
        Ok(Kind::Cluster | Kind::ServiceExport | Kind::BackendPolicy) | Err(_) => {
            Err("kind: a cluster writes TrafficSplit and FailoverPolicy, and nothing else".to_owned())
        }
    }
}

/// `spec.backends[0].weight: …`, one line each. Where in the text is nobody's to see: it is not what its author wrote.
fn sentences(problems: &[Problem]) -> String {
    let sentence = |problem: &Problem| match problem.path.as_str() {
        "" => problem.message.clone(),
        path => format!("{path}: {}", problem.message),
    };
    let shown: Vec<String> = problems.iter().take(PROBLEMS_SHOWN_MAX).map(sentence).collect();
    let more = problems.len().saturating_sub(PROBLEMS_SHOWN_MAX);
    let rest = (more > 0).then(|| format!("and {more} more"));
    shown.into_iter().chain(rest).collect::<Vec<_>>().join("\n")
}

/// A route for each of a few hundred matches.
const POLICY_BYTES_MAX: usize = 64 * 1024;
/// A status is read on a screen.
const PROBLEMS_SHOWN_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(kind: &str, name: &str, spec: &str) -> ClusterPolicy {
        let json = format!(
            r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"{kind}","metadata":{{"name":"{name}","namespace":"shop"}},"spec":{spec}}}"#
        );
        ClusterPolicy { kind: kind.into(), namespace: "shop".into(), name: name.into(), generation: 1, json }
    }

    fn split(name: &str, service: &str, weight: i64) -> ClusterPolicy {
        let spec = format!(r#"{{"service":"{service}","backends":[{{"cluster":"paris","weight":{weight}}}]}}"#);
        policy("TrafficSplit", name, &spec)
    }

    /// Two clusters, of which paris may write, and whatever was applied.
    struct World {
        resources: Resources,
        origins: BTreeMap<ResourceKey, String>,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self { resources: Resources::new(), origins: BTreeMap::new() };
            for (cluster, policies) in [("paris", true), ("tokyo", false)] {
                let json = format!(
                    r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"Cluster","metadata":{{"name":"{cluster}"}},"spec":{{"region":"r","policies":{policies}}}}}"#
                );
                let resource = Resource::from_json(&json).unwrap();
                world.resources.insert(resource.key(), resource);
            }
            world
        }

        fn holds(mut self, policy: &ClusterPolicy, origin: &str) -> Self {
            let resource = Resource::from_json(&policy.json).unwrap();
            if !origin.is_empty() {
                self.origins.insert(resource.key(), origin.to_owned());
            }
            self.resources.insert(resource.key(), resource);
            self
        }

        fn plan(&self, cluster: &str, listed: &[ClusterPolicy]) -> Plan {
            plan(&Situation { cluster, listed, resources: &self.resources, origins: &self.origins })
        }
    }

    fn reasons(plan: &Plan) -> Vec<&'static str> {
        plan.verdicts.iter().map(|verdict| verdict.reason.word()).collect()
    }

    fn names(keys: impl IntoIterator<Item = ResourceKey>) -> Vec<String> {
        keys.into_iter().map(|key| key.to_string()).collect()
    }

    #[test]
    fn a_bad_one_is_named_like_in_a_file_and_blocks_nobody() {
        let listed = [
            split("a", "web", 10),
            split("b", "cart", -1),
            policy("TrafficSplit", "c", r#"{"service":"x","backend":[]}"#),
            policy("Cluster", "d", r#"{"region":"r"}"#),
            policy("FailoverPolicy", "e", r#"{"service":"web","order":[{"clusters":["oslo"]}]}"#),
            policy("FailoverPolicy", "f", r#"{"service":"web"}"#),
        ];
        let plan = World::new().plan("paris", &listed);
        assert_eq!(reasons(&plan), ["Accepted", "Invalid", "Invalid", "Invalid", "Invalid", "Accepted"]);
        let message = |index: usize| plan.verdicts[index].message.as_str();
        assert!(message(1).starts_with("spec.backends[0].weight: "), "{}", message(1));
        assert!(message(2).starts_with("spec.backend: ") && message(2).contains("backends"), "{}", message(2));
        assert!(message(3).starts_with("kind: a cluster writes TrafficSplit and FailoverPolicy"), "{}", message(3));
        assert!(message(4).contains("spec.order[0].clusters[0]: ") && message(4).contains("oslo"), "{}", message(4));
        let upserts = plan.upserts.iter().map(Resource::key);
        assert_eq!(names(upserts), ["TrafficSplit shop/a", "FailoverPolicy shop/f"]);
    }

    #[test]
    fn a_cluster_that_may_not_writes_nothing_and_what_it_wrote_stays() {
        let world = World::new().holds(&split("old", "web", 1), "tokyo");
        let plan = world.plan("tokyo", &[split("a", "cart", 10)]);
        assert_eq!((reasons(&plan), plan.changes_nothing()), (vec!["NotAllowed"], true));
        assert!(plan.verdicts[0].message.contains("`policies: true` in the spec of Cluster tokyo"));
        assert_eq!(reasons(&world.plan("nowhere", &[split("a", "cart", 10)])), ["NotAllowed"]);
    }

    #[test]
    fn what_is_not_listed_any_more_goes_and_what_is_others_stays() {
        let world = World::new()
            .holds(&split("a", "web", 1), "paris")
            .holds(&split("b", "cart", 1), "paris")
            .holds(&split("c", "ledger", 1), "tokyo")
            .holds(&split("d", "api", 1), "");
        let plan = world.plan("paris", &[split("a", "web", 1)]);
        assert_eq!(
            (reasons(&plan), names(plan.deletes), plan.upserts.len()),
            (vec!["Accepted"], vec!["TrafficSplit shop/b".to_owned()], 0)
        );
        // Renamed: one goes, the other comes, at once.
        let plan = world.plan("paris", &[split("a2", "web", 1), split("b", "cart", 1)]);
        assert_eq!(reasons(&plan), ["Accepted", "Accepted"]);
        assert_eq!(names(plan.deletes), ["TrafficSplit shop/a"]);
        assert_eq!(names(plan.upserts.iter().map(Resource::key)), ["TrafficSplit shop/a2"]);
        assert_eq!(names(world.plan("paris", &[]).deletes).len(), 2);
    }

    #[test]
    fn what_others_wrote_is_a_conflict_by_name_and_by_service() {
        let world = World::new().holds(&split("a", "web", 1), "").holds(&split("b", "cart", 1), "tokyo");
        let listed = [split("a", "other", 5), split("b", "cart", 5), split("mine", "web", 5), split("new", "api", 5)];
        let plan = world.plan("paris", &listed);
        assert_eq!(reasons(&plan), ["Conflict", "Conflict", "Conflict", "Accepted"]);
        let rivals: Vec<&str> = plan.verdicts.iter().flat_map(|verdict| &verdict.rivals).map(String::as_str).collect();
        assert_eq!(rivals, ["operator", "cluster tokyo", "operator"]);
        assert_eq!(
            plan.verdicts[2].message,
            "TrafficSplit shop/a was written by an operator: change it there, or delete it there first"
        );
        assert_eq!(names(plan.upserts.iter().map(Resource::key)), ["TrafficSplit shop/new"]);
    }

    #[test]
    fn of_two_of_one_list_the_one_that_stands_stays() {
        let world = World::new().holds(&split("z", "web", 1), "paris");
        let plan = world.plan("paris", &[split("a", "web", 5), split("z", "web", 1), split("z", "web", 9)]);
        assert_eq!(reasons(&plan), ["Invalid", "Accepted", "Invalid"]);
        assert!(plan.verdicts[0].message.contains("TrafficSplit shop/z"), "{}", plan.verdicts[0].message);
        assert!(plan.changes_nothing());
        // A change that is wrong leaves its last good form.
        let plan = world.plan("paris", &[split("z", "web", -1)]);
        assert_eq!((reasons(&plan), plan.changes_nothing()), (vec!["Invalid"], true));
    }
}
