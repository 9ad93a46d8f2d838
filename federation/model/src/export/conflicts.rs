//! What exports contradict each other about, in words.

use std::collections::BTreeSet;

use archipelago_proto::v1::{ExportFacts, ExportType, Exporter, Protocol};

use super::{
    Conflict, ConflictKind, MergedPort, NO_AFFINITY,
    ports::{self, Dropped, Port},
    type_of,
};
use crate::selector;

/// The lists of ports are not identical. A cluster that gives ports no names is held only against numbers and protocols.
pub(super) fn of_ports(by_age: &[&Exporter], union: &[MergedPort], dropped: &[Dropped<'_>]) -> Option<Conflict> {
    let oldest = by_age.first()?;
    let mut words = Vec::new();
    for exporter in by_age {
        let own: Vec<Port<'_>> = ports::of(exporter).collect();
        for port in union {
            let same = own.iter().find(|own| (own.transport, own.number) == (port.transport, port.port));
            let cluster = &exporter.cluster;
            let shown = format!("{}/{}", port.port, port.transport);
            match same {
                None if port.exporters.contains(cluster) => {
                    words.push(format!("{cluster} has port {shown} under another number"));
                }
                None => words.push(format!("{cluster} has no port {shown}, and gets no traffic for it")),
                Some(own) if own.protocol != port.protocol => words.push(format!(
                    "{cluster} speaks {} on port {shown}, where {} speaks {}, and gets no traffic for it",
                    protocol(own.protocol),
                    oldest_of(by_age, port),
                    protocol(port.protocol),
                )),
                Some(own) if own.has_names && differs(own, port) => words.push(format!(
                    "{cluster} calls port {shown} {:?}, where {} calls it {:?}",
                    own.name,
                    oldest_of(by_age, port),
                    port.name,
                )),
                Some(own) if own.has_names && own.app_protocol != port.app_protocol => words.push(format!(
                    "{cluster} gives port {shown} the appProtocol {:?}, where {} gives it {:?}",
                    own.app_protocol,
                    oldest_of(by_age, port),
                    port.app_protocol,
                )),
                Some(_) => {}
            }
        }
    }
    words.extend(dropped.iter().map(|Dropped { cluster, port, taken_by }| {
        let Port { number, transport, name, .. } = port;
        format!("port {number}/{transport} of {cluster} is not used: its name {name:?} is that of port {taken_by}")
    }));
    if words.is_empty() {
        return None;
    }
    let message = format!("ports differ, the export of {} is the oldest: {}", oldest.cluster, listed(words));
    Some(Conflict { kind: ConflictKind::Port, clusters: all(by_age), message })
}

/// An unnamed port got a name in the union because it stands beside others; nobody contradicts that.
fn differs(own: &Port<'_>, port: &MergedPort) -> bool {
    !own.name.is_empty() && own.name != port.name
}

/// The cluster whose word counts for a port.
fn oldest_of<'a>(by_age: &[&'a Exporter], port: &MergedPort) -> &'a str {
    let has = |exporter: &&&Exporter| {
        ports::of(exporter).any(|own| (own.transport, own.number) == (port.transport, port.port))
    };
    by_age.iter().find(has).map_or("", |exporter| &exporter.cluster)
}

/// Everything but ports: what the oldest says counts as a whole.
pub(super) fn of_facts(by_age: &[&Exporter]) -> Vec<Conflict> {
    let kinds = by_age.iter().map(|exporter| (exporter.cluster.as_str(), shown_type(type_of(exporter)).to_owned()));
    let said: Vec<(&str, &ExportFacts)> =
        by_age.iter().filter_map(|exporter| Some((exporter.cluster.as_str(), exporter.facts.as_ref()?))).collect();
    let values = |value: fn(&ExportFacts) -> String| -> Vec<(&str, String)> {
        said.iter().map(|(cluster, facts)| (*cluster, value(facts))).collect()
    };
    let found = [
        disagreement(ConflictKind::Type, "the type", &kinds.collect::<Vec<_>>()),
        disagreement(ConflictKind::SessionAffinity, "sessionAffinity", &values(affinity)),
        disagreement(
            ConflictKind::SessionAffinityConfig,
            "the time-out of sessionAffinityConfig",
            &values(|facts| {
                facts.session_affinity_seconds.map_or_else(|| NOT_SAID.to_owned(), |seconds| format!("{seconds} s"))
            }),
        ),
        disagreement(ConflictKind::Labels, "exportedLabels", &values(|facts| map(&facts.labels))),
        disagreement(
            ConflictKind::Annotations,
            "exportedAnnotations",
            &values(|facts| {
                let others = facts.annotations.iter().filter(|(key, _)| *key != selector::ANNOTATION);
                map(&others.map(|(key, value)| (key.clone(), value.clone())).collect())
            }),
        ),
        disagreement(
            ConflictKind::InternalTrafficPolicy,
            "internalTrafficPolicy",
            &values(|facts| word(&facts.internal_traffic_policy)),
        ),
        disagreement(
            ConflictKind::TrafficDistribution,
            "trafficDistribution",
            &values(|facts| word(&facts.traffic_distribution)),
        ),
        disagreement(
            ConflictKind::ClusterSelectors,
            selector::ANNOTATION,
            &values(|facts| word(facts.annotations.get(selector::ANNOTATION).map_or("", String::as_str))),
        ),
    ];
    found.into_iter().flatten().collect()
}

/// Something that is the same everywhere, or a conflict. The first is the oldest.
fn disagreement(kind: ConflictKind, what: &str, says: &[(&str, String)]) -> Option<Conflict> {
    let (oldest, counts) = says.first()?;
    let others = says.iter().filter(|(_, value)| value != counts);
    let others: Vec<String> = others.map(|(cluster, value)| format!("{cluster} says {}", shown(value))).collect();
    if others.is_empty() {
        return None;
    }
    let clusters: BTreeSet<String> = says.iter().map(|(cluster, _)| (*cluster).to_owned()).collect();
    let message =
        format!("{what} is {} as {oldest} says, whose export is the oldest; {}", shown(counts), listed(others));
    Some(Conflict { kind, clusters: clusters.into_iter().collect(), message })
}

fn all(exporters: &[&Exporter]) -> Vec<String> {
    let clusters: BTreeSet<&str> = exporters.iter().map(|exporter| exporter.cluster.as_str()).collect();
    clusters.into_iter().map(str::to_owned).collect()
}

fn affinity(facts: &ExportFacts) -> String {
    if facts.session_affinity.is_empty() { NO_AFFINITY.to_owned() } else { facts.session_affinity.clone() }
}

fn word(text: &str) -> String {
    if text.is_empty() { NOT_SAID.to_owned() } else { text.to_owned() }
}

fn map(map: &std::collections::BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{{{}}}", pairs.join(","))
}

fn shown(value: &str) -> String {
    if value.chars().count() <= SHOWN_CHARS_MAX {
        return value.to_owned();
    }
    format!("{}…", value.chars().take(SHOWN_CHARS_MAX).collect::<String>())
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "http",
        Protocol::H2c => "h2c",
        Protocol::Tcp => "tcp",
        Protocol::Unspecified => "nothing",
    }
}

fn shown_type(kind: ExportType) -> &'static str {
    if kind == ExportType::Headless { "Headless" } else { "ClusterSetIP" }
}

/// A message is a field of a status that people read.
fn listed(mut words: Vec<String>) -> String {
    let more = words.len().saturating_sub(LISTED_MAX);
    words.truncate(LISTED_MAX);
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    words.join("; ")
}

const NOT_SAID: &str = "not said";
const LISTED_MAX: usize = 8;
const SHOWN_CHARS_MAX: usize = 80;
