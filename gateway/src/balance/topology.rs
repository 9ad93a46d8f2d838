//! Which endpoints of a port a gateway prefers by where they stand: the rules of kube-proxy (`pkg/proxy/topology.go`).
//!
//! Whoever knows the cluster says for which zones and nodes an endpoint is meant (`hints` of an EndpointSlice, which follow
//! `trafficDistribution` of the Service). A preference counts only while every ready endpoint has such a hint and one of
//! them is for this place: a client never ends up without an endpoint, and half-written hints concentrate no load.

use std::sync::Arc;

/// Where a gateway is; an empty name is not known, and nothing is meant for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Place {
    /// Its node.
    pub node: Arc<str>,
    /// Its zone.
    pub zone: Arc<str>,
}

/// For whom an endpoint is meant; empty: nobody has said.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hints<'a> {
    /// Zones.
    pub zones: &'a [String],
    /// Nodes.
    pub nodes: &'a [String],
}

/// What a gateway prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preference {
    /// Endpoints meant for its node.
    SameNode,
    /// Endpoints meant for its zone.
    SameZone,
}

impl Preference {
    /// What counts at `place`, given the hints of every ready endpoint; `None`: all are the same.
    pub fn of<'a>(ready: impl Iterator<Item = Hints<'a>>, place: &Place) -> Option<Self> {
        let (mut all_nodes, mut all_zones) = (true, true);
        let (mut own_node, mut own_zone) = (false, false);
        for hints in ready {
            all_nodes &= !hints.nodes.is_empty();
            all_zones &= !hints.zones.is_empty();
            own_node |= Self::SameNode.is_met(hints, place);
            own_zone |= Self::SameZone.is_met(hints, place);
        }
        match ((all_nodes, own_node), (all_zones, own_zone)) {
            ((true, true), _) => Some(Self::SameNode),
            (_, (true, true)) => Some(Self::SameZone),
            _ => None,
        }
    }

    /// Whether an endpoint is one of the preferred ones.
    pub fn is_met(self, hints: Hints<'_>, place: &Place) -> bool {
        let (list, own) = match self {
            Self::SameNode => (hints.nodes, &place.node),
            Self::SameZone => (hints.zones, &place.zone),
        };
        !own.is_empty() && list.iter().any(|name| **name == **own)
    }

    /// What is preferred, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::SameNode => "of this node",
            Self::SameZone => "of this zone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a,b|n1`: zones, then nodes.
    fn hints(text: &str) -> (Vec<String>, Vec<String>) {
        let (zones, nodes) = text.split_once('|').unwrap_or((text, ""));
        let list = |text: &str| text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        (list(zones), list(nodes))
    }

    /// What is preferred by a gateway at `node`, `zone`, and which of the endpoints are that; all must be ready.
    fn preferred(endpoints: &[&str], node: &str, zone: &str) -> (Option<Preference>, Vec<usize>) {
        let place = Place { node: node.into(), zone: zone.into() };
        let endpoints: Vec<_> = endpoints.iter().map(|text| hints(text)).collect();
        let all = || endpoints.iter().map(|(zones, nodes)| Hints { zones, nodes });
        let preference = Preference::of(all(), &place);
        let is_met = |hints| preference.is_none_or(|preference| preference.is_met(hints, &place));
        (preference, all().enumerate().filter(|(_, hints)| is_met(*hints)).map(|(place, _)| place).collect())
    }

    /// The cases of kube-proxy's own tests of `topologyModeFromHints`, and a few of ours.
    #[test]
    fn golden_table() {
        let (node, zone) = (Some(Preference::SameNode), Some(Preference::SameZone));
        // Name, endpoints, where the gateway is, what it prefers, which endpoints those are.
        type Case<'a> = (&'a str, &'a [&'a str], (&'a str, &'a str), Option<Preference>, &'a [usize]);
        let cases: &[Case<'_>] = &[
            ("no endpoint", &[], ("n1", "a"), None, &[]),
            ("no hints", &["", "", ""], ("n1", "a"), None, &[0, 1, 2]),
            ("own zone", &["a", "b", "a"], ("n1", "a"), zone, &[0, 2]),
            ("several zones", &["a,b", "b", "c"], ("n1", "a"), zone, &[0]),
            ("one without a hint", &["a", "b", ""], ("n1", "a"), None, &[0, 1, 2]),
            ("none for this zone", &["b", "c"], ("n1", "a"), None, &[0, 1]),
            ("no zone of our own", &["a", "b"], ("n1", ""), None, &[0, 1]),
            ("own node", &["a|n1", "a|n2", "b|n3"], ("n1", "a"), node, &[0]),
            ("none on this node: the zone", &["a|n2", "a|n3", "b|n4"], ("n1", "a"), zone, &[0, 1]),
            ("nothing near", &["b|n2", "c|n3"], ("n1", "a"), None, &[0, 1]),
            ("one without a node: the zone", &["a|n1", "a", "b|n3"], ("n1", "a"), zone, &[0, 1]),
            ("nodes without zones", &["|n1", "|n2"], ("n1", "a"), node, &[0]),
            ("nodes elsewhere, without zones", &["|n2", "|n3"], ("n1", "a"), None, &[0, 1]),
            ("another zone's node hint counts", &["b|n1", "a|n2"], ("n1", "a"), node, &[0]),
        ];
        for (name, endpoints, (at_node, at_zone), expected, left) in cases {
            assert_eq!(preferred(endpoints, at_node, at_zone), (*expected, left.to_vec()), "{name}");
        }
    }
}
