//! One question in, one answer out.
//!
//! | name | types that exist |
//! | --- | --- |
//! | `clusterset.local` | SOA, NS |
//! | `ns.dns.clusterset.local` | A or AAAA |
//! | `dns-version.clusterset.local` | TXT `"1.0.0"` |
//! | `<svc>.<ns>.svc.clusterset.local` | A or AAAA: this gateway; SRV |
//! | `<svc>.<ns>.svc.clusterset.local` of an HTTP service that is closed here | A or AAAA: this gateway, which says so |
//! | `_<port>._tcp.<svc>.<ns>.svc.clusterset.local` | SRV |
//! | `svc`, `<ns>.svc`, `_tcp.<svc>.<ns>.svc`, `dns` below the zone | none: empty non-terminals |
//!
//! An existing name without the type asked for is NODATA, everything else in the zone NXDOMAIN, other zones are REFUSED
//! (RFC 8020, RFC 2308: both negative answers carry the SOA).

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::config::{Protocol, Snapshot};

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
    let found = match below {
        [] => Found::Apex,
        ["dns"] | ["svc"] => Found::NonTerminal,
        ["ns", "dns"] => Found::NameServer,
        ["dns-version"] => Found::Version,
        [namespace, "svc"] if has_namespace(snapshot, namespace) => Found::NonTerminal,
        [service, namespace, "svc"] => match find(snapshot, service, namespace) {
            Some(index) => Found::Service { index, port_name: false },
            None if is_closed(snapshot, service, namespace) => Found::Closed,
            None => Found::Nothing,
        },
        ["_tcp", service, namespace, "svc"] if find(snapshot, service, namespace).is_some() => Found::NonTerminal,
        [port, "_tcp", service, namespace, "svc"] => match find(snapshot, service, namespace) {
            Some(index)
                if snapshot
                    .services
                    .get(index)
                    .is_some_and(|s| port.strip_prefix('_') == Some(port_name(s.protocol))) =>
            {
                Found::Service { index, port_name: true }
            }
            _ => Found::Nothing,
        },
        _ => Found::Nothing,
    };
    let mut out = Answer::new(ResponseCode::NoError);
    match found {
        Found::Nothing => out.code = ResponseCode::NXDomain,
        Found::NonTerminal => {}
        Found::Closed => out.answers = addresses(name, zone.http.ip(), kind),
        Found::Apex => match kind {
            RecordType::SOA => out.answers.push(soa(snapshot, name.clone())),
            RecordType::NS => {
                if let Some(server) = server_name() {
                    out.additionals = addresses(&server, zone.http.ip(), RecordType::ANY);
                    out.answers.push(Record::from_rdata(name.clone(), TTL_SECONDS, RData::NS(NS(server))));
                }
            }
            _ => {}
        },
        Found::NameServer => out.answers = addresses(name, zone.http.ip(), kind),
        Found::Version => {
            if kind == RecordType::TXT {
                out.answers.push(Record::from_rdata(
                    name.clone(),
                    TTL_SECONDS,
                    RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()])),
                ));
            }
        }
        Found::Service { index, port_name } => {
            if let Some(service) = snapshot.services.get(index) {
                let at = match service.tcp_offset() {
                    Some(offset) => SocketAddr::new(zone.tcp_base.ip(), zone.tcp_base.port().saturating_add(offset)),
                    None => zone.http,
                };
                let target =
                    Name::from_ascii(format!("{}.{}.svc.clusterset.local.", service.name, service.namespace)).ok();
                match (kind, target) {
                    (RecordType::SRV, Some(target)) => {
                        out.additionals = addresses(&target, at.ip(), RecordType::ANY);
                        out.answers.push(Record::from_rdata(
                            name.clone(),
                            TTL_SECONDS,
                            RData::SRV(SRV::new(0, 100, at.port(), target)),
                        ));
                    }
                    (RecordType::A | RecordType::AAAA, _) if !port_name => out.answers = addresses(name, at.ip(), kind),
                    _ => {}
                }
            }
        }
    }
    if out.answers.is_empty() {
        out.authority = Name::from_ascii(ZONE).map(|zone| vec![soa(snapshot, zone)]).unwrap_or_default();
    }
    out
}

/// The port name in SRV questions, by protocol: configuration has one port per service, which has no name of its own.
fn port_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "http",
        Protocol::H2c => "http2",
        Protocol::Tcp => "tcp",
    }
}

enum Found {
    Nothing,
    NonTerminal,
    Apex,
    NameServer,
    Version,
    Service {
        index: usize,
        port_name: bool,
    },
    /// Answered on the HTTP port, which says that and why it is closed; a name that does not exist would hide that.
    Closed,
}

impl Answer {
    fn new(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authority: Vec::new(), additionals: Vec::new() }
    }
}

fn find(snapshot: &Snapshot, service: &str, namespace: &str) -> Option<usize> {
    let key = format!("{namespace}/{service}");
    // A service that nobody exports has no name, even if it is known (MCS: exports are opt-in).
    snapshot.service_by_key(&key).filter(|index| snapshot.services.get(*index).is_some_and(|s| !s.exporters.is_empty()))
}

fn has_namespace(snapshot: &Snapshot, namespace: &str) -> bool {
    let is_in = |key: &str| key.split_once('/').is_some_and(|(of, _)| of == namespace);
    snapshot.services.iter().any(|s| s.namespace == *namespace)
        || snapshot.closed.iter().any(|closed| closed.http && is_in(&closed.key))
}

fn is_closed(snapshot: &Snapshot, service: &str, namespace: &str) -> bool {
    snapshot.closed_by_key(&format!("{namespace}/{service}")).is_some_and(|closed| closed.http)
}

fn addresses(name: &Name, ip: IpAddr, kind: RecordType) -> Vec<Record> {
    let data = match (ip, kind) {
        (IpAddr::V4(v4), RecordType::A | RecordType::ANY) => RData::A(A(v4)),
        (IpAddr::V6(v6), RecordType::AAAA | RecordType::ANY) => RData::AAAA(AAAA(v6)),
        _ => return Vec::new(),
    };
    vec![Record::from_rdata(name.clone(), TTL_SECONDS, data)]
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
mod tests {
    use super::*;
    use archipelago_model::version::Version;

    use crate::config::ConfigState;
    use archipelago_proto::v1::{self as proto, config_resource::Body, service_port::Listener};

    fn snapshot() -> Snapshot {
        let service = |name: &str, protocol: proto::Protocol, slot: Option<u32>, exporters: &[&str]| {
            Body::Service(proto::ServiceConfig {
                namespace: "shop".into(),
                name: name.into(),
                hosts: vec![format!("{name}.shop")],
                ports: vec![proto::ServicePort {
                    port: 80,
                    protocol: protocol as i32,
                    listener: Some(match slot {
                        Some(port_offset) => Listener::Tcp(proto::TcpListener { port_offset }),
                        None => Listener::Http(proto::HttpListener::default()),
                    }),
                    rules: vec![proto::RouteRule { name: "default".into(), ..Default::default() }],
                    ..Default::default()
                }],
                exporters: exporters.iter().map(|e| (*e).to_owned()).collect(),
                ..Default::default()
            })
        };
        let unsupported = |namespace: &str, name: &str| {
            Body::UnsupportedService(proto::UnsupportedService {
                namespace: namespace.into(),
                name: name.into(),
                ..Default::default()
            })
        };
        let resources = [
            ("cluster/paris", Body::Cluster(proto::ClusterConfig { name: "paris".into(), ..Default::default() })),
            ("service/shop/checkout", service("checkout", proto::Protocol::Http1, None, &["paris"])),
            ("service/shop/catalog", service("catalog", proto::Protocol::H2c, None, &["paris"])),
            ("service/shop/ledger", service("ledger", proto::Protocol::Tcp, Some(3), &["paris"])),
            ("service/shop/secret", service("secret", proto::Protocol::Http1, None, &[])),
            ("service/shop/newer", unsupported("shop", "newer")),
            ("service/lab/newer", unsupported("lab", "newer")),
            // Refused here, both of them: only who comes by HTTP can be told so.
            ("service/shop/broken", service("broken", proto::Protocol::Unspecified, None, &["paris"])),
            ("service/shop/bytes", service("bytes", proto::Protocol::Tcp, None, &["paris"])),
        ];
        let resources = resources.map(|(n, b)| proto::ConfigResource {
            name: n.into(),
            version: Vec::new().into(),
            body: Some(b),
            ..Default::default()
        });
        Snapshot::build(
            &ConfigState::new(Version { revision: 9, ..Version::default() }, resources),
            "paris",
            "mesh.test",
            &Snapshot::empty(),
        )
        .unwrap()
        .snapshot
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
        let reply = answer(&snapshot(), zone, &Name::from_ascii(name).unwrap(), kind);
        let data = reply.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" ");
        match (reply.code, data.is_empty()) {
            (ResponseCode::NoError, true) => "NODATA".into(),
            (ResponseCode::NoError, false) => data,
            (ResponseCode::NXDomain, _) => "NXDOMAIN".into(),
            (code, _) => format!("{code:?}"),
        }
    }

    #[test]
    fn the_table_of_the_specification() {
        let zone = Zone { http: "10.1.2.3:15080".parse().unwrap(), tcp_base: "10.1.2.3:16000".parse().unwrap() };
        use RecordType as T;
        for (name, kind, expected) in [
            ("checkout.shop.svc.clusterset.local.", T::A, "10.1.2.3"),
            ("CheckOut.Shop.SVC.ClusterSet.Local.", T::A, "10.1.2.3"),
            ("checkout.shop.svc.clusterset.local.", T::AAAA, "NODATA"),
            ("checkout.shop.svc.clusterset.local.", T::MX, "NODATA"),
            ("checkout.shop.svc.clusterset.local.", T::SRV, "0 100 15080 checkout.shop.svc.clusterset.local."),
            (
                "_http._tcp.checkout.shop.svc.clusterset.local.",
                T::SRV,
                "0 100 15080 checkout.shop.svc.clusterset.local.",
            ),
            ("_http._tcp.checkout.shop.svc.clusterset.local.", T::A, "NODATA"),
            ("_tcp._tcp.ledger.shop.svc.clusterset.local.", T::SRV, "0 100 16003 ledger.shop.svc.clusterset.local."),
            (
                "_http2._tcp.catalog.shop.svc.clusterset.local.",
                T::SRV,
                "0 100 15080 catalog.shop.svc.clusterset.local.",
            ),
            ("_http._udp.checkout.shop.svc.clusterset.local.", T::SRV, "NXDOMAIN"),
            ("_other._tcp.checkout.shop.svc.clusterset.local.", T::SRV, "NXDOMAIN"),
            ("_tcp.checkout.shop.svc.clusterset.local.", T::SRV, "NODATA"),
            ("shop.svc.clusterset.local.", T::A, "NODATA"),
            ("svc.clusterset.local.", T::A, "NODATA"),
            ("empty.svc.clusterset.local.", T::A, "NXDOMAIN"),
            ("nothing.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
            ("secret.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
            ("newer.shop.svc.clusterset.local.", T::A, "10.1.2.3"),
            ("Newer.lab.svc.clusterset.local.", T::A, "10.1.2.3"),
            ("newer.lab.svc.clusterset.local.", T::AAAA, "NODATA"),
            ("lab.svc.clusterset.local.", T::A, "NODATA"),
            ("broken.shop.svc.clusterset.local.", T::A, "10.1.2.3"),
            ("bytes.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
            ("paris.checkout.shop.svc.clusterset.local.", T::A, "NXDOMAIN"),
            ("dns-version.clusterset.local.", T::TXT, "1.0.0"),
            ("dns-version.clusterset.local.", T::A, "NODATA"),
            ("clusterset.local.", T::NS, "ns.dns.clusterset.local."),
            ("clusterset.local.", T::A, "NODATA"),
            ("ns.dns.clusterset.local.", T::A, "10.1.2.3"),
            ("dns.clusterset.local.", T::A, "NODATA"),
            ("elsewhere.clusterset.local.", T::A, "NXDOMAIN"),
            ("checkout.shop.svc.cluster.local.", T::A, "Refused"),
            ("example.com.", T::A, "Refused"),
            (".", T::NS, "Refused"),
        ] {
            assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
        }
        let zone = Zone { http: "[2001:db8::1]:15080".parse().unwrap(), ..zone };
        assert_eq!(ask(&zone, "checkout.shop.svc.clusterset.local.", T::AAAA), "2001:db8::1");
        assert_eq!(ask(&zone, "checkout.shop.svc.clusterset.local.", T::A), "NODATA");
    }

    #[test]
    fn negative_answers_carry_the_soa_and_answers_keep_the_case_asked() {
        let zone = Zone { http: "10.1.2.3:15080".parse().unwrap(), tcp_base: "10.1.2.3:16000".parse().unwrap() };
        let nothing = answer(&snapshot(), &zone, &Name::from_ascii("x.clusterset.local.").unwrap(), RecordType::A);
        assert_eq!(nothing.authority.len(), 1);
        assert_eq!(nothing.authority[0].record_type(), RecordType::SOA);
        let asked = Name::from_ascii("CheckOut.shop.svc.clusterset.local.").unwrap();
        let found = answer(&snapshot(), &zone, &asked, RecordType::A);
        assert!(found.answers[0].name.eq_case(&asked));
        assert!(found.authority.is_empty());
        let refused = answer(&snapshot(), &zone, &Name::from_ascii("example.com.").unwrap(), RecordType::A);
        assert!(refused.authority.is_empty(), "no SOA of ours for another zone");
    }
}
