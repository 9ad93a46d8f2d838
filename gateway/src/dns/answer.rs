//! One question in, one answer out.
//!
//! | name | types that exist |
//! | --- | --- |
//! | `clusterset.local` | SOA, NS |
//! | `ns.dns.clusterset.local` | A or AAAA |
//! | `dns-version.clusterset.local` | TXT `"1.0.0"` |
//! | `<svc>.<ns>.svc.clusterset.local` | A, AAAA, SRV: one for each port number |
//! | `_<port>._tcp.<svc>.<ns>.svc.clusterset.local` | SRV |
//! | `svc`, `<ns>.svc`, `_tcp.<svc>.<ns>.svc`, `dns` below the zone | none: empty non-terminals |
//!
//! An existing name without the type asked for is NODATA, everything else in the zone NXDOMAIN, other zones are REFUSED
//! (RFC 8020, RFC 2308: both negative answers carry the SOA).
//!
//! Which services have a name, and what it stands for, depends on how clients of the cluster come in:
//!
//! - By **captures**, where an agent ever named any, be it none: a name is one of those, and stands for the addresses and ports
//!   that the cluster gave the service. Whatever else the federation has does not exist here (its namespace may not, and
//!   exports are opt-in by namespace), or not yet. A service without an address of its own (headless) has at most a
//!   name, and nothing else: the addresses of its endpoints are of no use outside of their cluster and do not leave it.
//! - By **host name**, elsewhere: a name is a service that somebody exports, and stands for this gateway: its HTTP port, or the
//!   port of a TCP service. An HTTP service that is closed here has an address too: the gateway there says why.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::config::{Protocol, Service, Snapshot};

/// Where the zone points: this gateway.
#[derive(Debug, Clone, Copy)]
pub struct Zone {
    /// HTTP services.
    pub http: SocketAddr,
    /// TCP services: this port + slot.
    pub tcp_base: SocketAddr,
}

/// The sections of a response.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// NOERROR, NXDOMAIN or REFUSED.
    pub code: ResponseCode,
    /// Records that answer.
    pub answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub authority: Vec<Record>,
    /// Addresses of what the answers name.
    pub additionals: Vec<Record>,
}

/// Answers one question of class IN. `name` may be of any case and is answered under the case that was asked.
pub fn answer(snapshot: &Snapshot, zone: &Zone, name: &Name, kind: RecordType) -> Answer {
    let labels: Vec<String> = name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let [below @ .., "clusterset", "local"] = labels.as_slice() else {
        return Answer::new(ResponseCode::Refused);
    };
    let known = |service: &str, namespace: &str| Known::find(snapshot, zone, service, namespace);
    let found = match below {
        [] => Found::Apex,
        ["dns"] | ["svc"] => Found::NonTerminal,
        ["ns", "dns"] => Found::NameServer,
        ["dns-version"] => Found::Version,
        [namespace, "svc"] if has_namespace(snapshot, namespace) => Found::NonTerminal,
        [service, namespace, "svc"] => known(service, namespace).map_or(Found::Nothing, Found::Service),
        ["_tcp", service, namespace, "svc"] if known(service, namespace).is_some_and(|known| known.names_ports()) => {
            Found::NonTerminal
        }
        [port, "_tcp", service, namespace, "svc"] => known(service, namespace)
            .zip(port.strip_prefix('_'))
            .and_then(|(known, port)| known.with_port(port))
            .map_or(Found::Nothing, Found::Port),
        _ => Found::Nothing,
    };
    let mut out = Answer::new(ResponseCode::NoError);
    match found {
        Found::Nothing => out.code = ResponseCode::NXDomain,
        Found::NonTerminal => {}
        Found::Apex => match kind {
            RecordType::SOA => out.answers.push(soa(snapshot, name.clone())),
            RecordType::NS => {
                if let Some(server) = server_name() {
                    out.additionals = addresses(&server, &[zone.http.ip()], RecordType::ANY);
                    out.answers.push(Record::from_rdata(name.clone(), TTL_SECONDS, RData::NS(NS(server))));
                }
            }
            _ => {}
        },
        Found::NameServer => out.answers = addresses(name, &[zone.http.ip()], kind),
        Found::Version => {
            if kind == RecordType::TXT {
                out.answers.push(Record::from_rdata(
                    name.clone(),
                    TTL_SECONDS,
                    RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()])),
                ));
            }
        }
        Found::Service(known) | Found::Port(known) if kind == RecordType::SRV => known.locate(name, &mut out),
        Found::Service(known) => out.answers = addresses(name, &known.ips, kind),
        Found::Port(_) => {}
    }
    if out.answers.is_empty() {
        out.authority = Name::from_ascii(ZONE).map(|zone| vec![soa(snapshot, zone)]).unwrap_or_default();
    }
    out
}

enum Found {
    Nothing,
    NonTerminal,
    Apex,
    NameServer,
    Version,
    Service(Known),
    Port(Known),
}

/// What a name stands for.
#[derive(Debug)]
struct Known {
    name: String,
    ips: Vec<IpAddr>,
    /// By name, which may be empty, and number.
    ports: Vec<(String, u16)>,
}

impl Known {
    fn find(snapshot: &Snapshot, zone: &Zone, service: &str, namespace: &str) -> Option<Self> {
        let key = format!("{namespace}/{service}");
        let name = format!("{service}.{namespace}.svc.{ZONE}");
        if let Some(captures) = &snapshot.captures {
            let captures = captures.of(&key);
            let mut ips: Vec<IpAddr> = Vec::new();
            for ip in captures.iter().flat_map(|capture| &capture.cluster_ips) {
                if !ips.contains(ip) {
                    ips.push(*ip);
                }
            }
            let ports = captures.iter().map(|capture| (capture.port_name.clone(), capture.port)).collect();
            return (!captures.is_empty()).then_some(Self { name, ips, ports });
        }
        let units: Vec<&Arc<Service>> = snapshot.ports_of(&key).iter().map(|(_, unit)| unit).collect();
        let at = |unit: &Service| match unit.tcp_offset() {
            Some(offset) => SocketAddr::new(zone.tcp_base.ip(), zone.tcp_base.port().saturating_add(offset)),
            None => zone.http,
        };
        // A service that nobody exports has no name, even if it is known (MCS: exports are opt-in).
        if let Some(first) = units.first().filter(|first| !first.exporters.is_empty()) {
            let speaks_http = units.iter().find(|unit| unit.tcp_offset().is_none());
            let ips = vec![at(speaks_http.unwrap_or(first)).ip()];
            let port = |unit: &&Arc<Service>| {
                let name = if unit.port_name.is_empty() { port_name(unit.protocol) } else { &unit.port_name };
                (name.to_owned(), at(unit).port())
            };
            return Some(Self { name, ips, ports: units.iter().map(port).collect() });
        }
        // Answered on the HTTP port, which says that and why it is closed; a name that does not exist would hide that.
        let is_closed = snapshot.closed_by_key(&key).is_some_and(|closed| closed.http);
        is_closed.then(|| Self { name, ips: vec![zone.http.ip()], ports: Vec::new() })
    }

    fn names_ports(&self) -> bool {
        self.ports.iter().any(|(name, _)| !name.is_empty())
    }

    /// The same with this port alone, if there is one of this name.
    fn with_port(mut self, port: &str) -> Option<Self> {
        self.ports.retain(|(name, _)| !name.is_empty() && name.eq_ignore_ascii_case(port));
        (!self.ports.is_empty()).then_some(self)
    }

    /// Where its ports are; nowhere without an address.
    fn locate(&self, asked: &Name, out: &mut Answer) {
        let Ok(target) = Name::from_ascii(&self.name) else { return };
        let mut seen = Vec::new();
        for (_, port) in self.ports.iter().filter(|_| !self.ips.is_empty()) {
            if !seen.contains(port) {
                seen.push(*port);
                let data = RData::SRV(SRV::new(0, 100, *port, target.clone()));
                out.answers.push(Record::from_rdata(asked.clone(), TTL_SECONDS, data));
            }
        }
        if !out.answers.is_empty() {
            out.additionals = addresses(&target, &self.ips, RecordType::ANY);
        }
    }
}

/// The port name in SRV questions of a port that has none of its own.
fn port_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "http",
        Protocol::H2c => "http2",
        Protocol::Tcp => "tcp",
    }
}

impl Answer {
    fn new(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authority: Vec::new(), additionals: Vec::new() }
    }
}

fn has_namespace(snapshot: &Snapshot, namespace: &str) -> bool {
    if let Some(captures) = &snapshot.captures {
        return captures.has_namespace(namespace);
    }
    snapshot.has_namespace(namespace)
}

fn addresses(name: &Name, ips: &[IpAddr], kind: RecordType) -> Vec<Record> {
    let data = ips.iter().filter_map(|ip| match (ip, kind) {
        (IpAddr::V4(v4), RecordType::A | RecordType::ANY) => Some(RData::A(A(*v4))),
        (IpAddr::V6(v6), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(*v6))),
        _ => None,
    });
    data.map(|data| Record::from_rdata(name.clone(), TTL_SECONDS, data)).collect()
}

fn soa(snapshot: &Snapshot, owner: Name) -> Record {
    let server = server_name().unwrap_or_else(Name::root);
    let mailbox = Name::from_ascii(MAILBOX).unwrap_or_else(|_| Name::root());
    // Serial arithmetic is modulo 2^32 anyway (RFC 1982).
    let serial = snapshot.revision as u32;
    let soa = SOA::new(server, mailbox, serial, 60, 10, 600, TTL_SECONDS);
    Record::from_rdata(owner, TTL_SECONDS, RData::SOA(soa))
}

fn server_name() -> Option<Name> {
    Name::from_ascii(SERVER).ok()
}

const ZONE: &str = "clusterset.local.";
const SERVER: &str = "ns.dns.clusterset.local.";
const MAILBOX: &str = "hostmaster.clusterset.local.";
const SPECIFICATION: &str = "1.0.0";
/// The specification's examples use 4 to 5 s; a gateway's own address changes rarely, its set of services more often.
const TTL_SECONDS: u32 = 5;

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
