//! The union of ports.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_proto::v1::{Exporter, Protocol};

use super::{MergedPort, Transport};

/// A port as one cluster has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port<'a> {
    pub(super) transport: Transport,
    pub(super) number: u32,
    pub(super) name: &'a str,
    pub(super) protocol: Protocol,
    pub(super) app_protocol: &'a str,
    /// Its cluster gives ports names, so that an empty one is a name too.
    pub(super) has_names: bool,
}

/// A port that is not in the union.
#[derive(Debug)]
pub(super) struct Dropped<'a> {
    pub(super) cluster: &'a str,
    pub(super) port: Port<'a>,
    /// Number of the port that has its name.
    pub(super) taken_by: u32,
}

/// All ports of a cluster that mean something here: those that are carried first.
pub(super) fn of(exporter: &Exporter) -> impl Iterator<Item = Port<'_>> {
    let has_names = exporter.facts.is_some();
    let carried = exporter.ports.iter().map(move |port| Port {
        transport: Transport::Tcp,
        number: port.port,
        name: &port.name,
        protocol: port.protocol(),
        app_protocol: &port.app_protocol,
        has_names: has_names || !port.name.is_empty(),
    });
    let uncarried = exporter.facts.iter().flat_map(|facts| &facts.uncarried_ports).filter_map(|port| {
        Some(Port {
            transport: Transport::parse(&port.transport).filter(|transport| *transport != Transport::Tcp)?,
            number: port.port,
            name: &port.name,
            protocol: Protocol::Unspecified,
            app_protocol: &port.app_protocol,
            has_names: true,
        })
    });
    // What no gateway could be told counts for nothing.
    let known = |port: &Port<'_>| port.transport != Transport::Tcp || port.protocol != Protocol::Unspecified;
    carried.filter(known).chain(uncarried)
}

pub(super) fn unite<'a>(by_age: &[&'a Exporter]) -> (Vec<MergedPort>, Vec<Dropped<'a>>) {
    let mut union: Vec<Port<'_>> = Vec::new();
    let mut numbers: BTreeSet<(Transport, u32)> = BTreeSet::new();
    let mut names: BTreeMap<&str, u32> = BTreeMap::new();
    let mut dropped = Vec::new();
    let mut nameless = false;
    for exporter in by_age {
        for port in of(exporter) {
            if numbers.contains(&(port.transport, port.number)) || (nameless && !port.has_names) {
                continue;
            }
            match names.get(port.name).filter(|_| port.has_names) {
                Some(taken_by) => dropped.push(Dropped { cluster: &exporter.cluster, port, taken_by: *taken_by }),
                None => {
                    if port.has_names {
                        names.insert(port.name, port.number);
                    } else {
                        nameless = true;
                    }
                    numbers.insert((port.transport, port.number));
                    union.push(port);
                }
            }
        }
    }
    let single = union.len() == 1;
    let merged = union.iter().map(|port| {
        // Who gives ports no names has one, and it is that one, whatever its number.
        let same = |own: &Port<'_>| {
            let nameless = !own.has_names && !port.has_names && !numbers.contains(&(own.transport, own.number));
            (own.transport, own.protocol) == (port.transport, port.protocol) && (own.number == port.number || nameless)
        };
        let has = |exporter: &&&Exporter| of(exporter).any(|own| same(&own));
        let mut exporters: Vec<String> = by_age.iter().filter(has).map(|exporter| exporter.cluster.clone()).collect();
        exporters.sort();
        MergedPort {
            name: if single || !port.name.is_empty() { port.name.to_owned() } else { made_up(port, &names) },
            port: port.number,
            transport: port.transport,
            protocol: port.protocol,
            app_protocol: port.app_protocol.to_owned(),
            exporters,
        }
    });
    (merged.collect(), dropped)
}

/// Beside others a port must have a name.
fn made_up(port: &Port<'_>, names: &BTreeMap<&str, u32>) -> String {
    let mut name = match port.transport {
        Transport::Tcp => format!("port-{}", port.number),
        other => format!("{}-{}", other.as_str().to_ascii_lowercase(), port.number),
    };
    while names.contains_key(name.as_str()) {
        name.push('x');
    }
    name
}
