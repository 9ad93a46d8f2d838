//! `kind: Topology`: the processes that `meshctl up` starts on one machine.

use std::net::SocketAddr;

use super::{Object, Spec};
use crate::document::decode::{Cursor, Fields, Mistakes};
use crate::service::{HealthCheck, ServiceProtocol};

/// A runnable federation.
pub type Topology = Object<TopologySpec>;

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologySpec {
    /// SPIFFE trust domain of everything in it.
    pub trust_domain: String,
    /// The control plane.
    pub control_plane: TopologyControlPlane,
    /// Its clusters, by unique name.
    pub clusters: Vec<TopologyCluster>,
}

/// The control plane of a topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologyControlPlane {
    /// 1, 3 or 5.
    pub nodes: u32,
}

/// One cluster of a topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologyCluster {
    /// RFC 1123 label.
    pub name: String,
    /// Region, an RFC 1123 label.
    pub region: String,
    /// Number of gateways, 1 to 16.
    pub gateways: u32,
    /// Services behind them.
    pub services: Vec<TopologyService>,
}

/// One service of a cluster: demo processes that `up` starts, or a user's own servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologyService {
    /// RFC 1123 label.
    pub name: String,
    /// RFC 1123 label.
    pub namespace: String,
    /// What it speaks.
    pub protocol: ServiceProtocol,
    /// Versions that run side by side, never empty.
    pub versions: Vec<String>,
    /// Demo processes per version, 1 to 16.
    pub instances: u32,
    /// Port under which the service is known.
    pub port: u16,
    /// Where the user's own servers listen. `None`: `up` starts demo processes.
    pub own: Option<OwnServers>,
}

/// Servers that run already, outside of the federation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnServers {
    /// Never empty, all of the one version of the service.
    pub endpoints: Vec<SocketAddr>,
    /// How to tell that they are ready.
    pub health_check: HealthCheck,
}

impl Spec for TopologySpec {
    fn decode(fields: Option<Fields<'_>>, at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let Some(mut fields) = fields else {
            at.wrong(out, "`spec` is missing");
            return None;
        };
        let trust_domain = fields.text("trustDomain", out);
        let mut nodes = NODES_DEFAULT;
        if let Some(cursor) = fields.optional("controlPlane")
            && let Some(mut fields) = cursor.fields(out)
        {
            if let Some(cursor) = fields.optional("nodes") {
                nodes = cursor.number(1, 5, out);
                if nodes.is_multiple_of(2) {
                    cursor.wrong(out, "expected 1, 3 or 5: an even number tolerates no more failures than one less");
                }
            }
            fields.finish(out);
        }
        let clusters =
            fields.required("clusters").map_or_else(Vec::new, |cursor| cursor.list(out, TopologyCluster::decode));
        fields.finish(out);
        Some(Self { trust_domain, control_plane: TopologyControlPlane { nodes }, clusters })
    }
}

impl TopologyCluster {
    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let mut fields = at.fields(out)?;
        let name = fields.text("name", out);
        let region = fields.text("region", out);
        let gateways = fields.optional("gateways").map_or(GATEWAYS_DEFAULT, |cursor| cursor.number(1, 16, out));
        let services =
            fields.optional("services").map_or_else(Vec::new, |cursor| cursor.list(out, TopologyService::decode));
        fields.finish(out);
        Some(Self { name, region, gateways, services })
    }
}

impl TopologyService {
    fn decode(at: &Cursor<'_>, out: &mut Mistakes) -> Option<Self> {
        let mut fields = at.fields(out)?;
        let name = fields.text("name", out);
        let namespace = fields.text("namespace", out);
        let protocol = fields
            .optional("protocol")
            .and_then(|cursor| cursor.one_of(&ServiceProtocol::WORDS, out))
            .unwrap_or(ServiceProtocol::Http);
        let versions = fields.optional("versions").map_or_else(|| vec!["v1".to_owned()], |cursor| cursor.texts(out));
        let instances = fields.optional("instances").map(|cursor| (cursor.number(1, 16, out), cursor));
        let port = fields.required("port").map_or(1, |cursor| cursor.port(out));
        let health_check = fields.optional("healthCheck").map(|cursor| {
            let check = HealthCheck::decode(&cursor, protocol, out);
            (check, cursor)
        });
        let own = fields.optional("endpoints").map(|cursor| {
            let endpoints = cursor.list(out, |item, out| item.socket_address(out));
            if endpoints.is_empty() {
                cursor.wrong(out, "needs at least one ip:port; without `endpoints`, demo servers are started");
            }
            if versions.len() > 1 {
                cursor.wrong(out, "are of one version: leave `versions` out or name one");
            }
            if let Some((_, instances)) = &instances {
                instances.wrong(out, "counts demo servers, and there are none beside `endpoints`");
            }
            let health_check = health_check.as_ref().map_or_else(HealthCheck::default, |(check, _)| check.clone());
            OwnServers { endpoints, health_check }
        });
        if let (None, Some((_, cursor))) = (&own, &health_check) {
            cursor.wrong(out, "is for servers of your own; demo servers know how they are checked");
        }
        fields.finish(out);
        let instances = instances.map_or(1, |(instances, _)| instances);
        Some(Self { name, namespace, protocol, versions, instances, port, own })
    }
}

/// Survives the loss of one.
const NODES_DEFAULT: u32 = 3;
/// One can be killed or upgraded while the other serves.
const GATEWAYS_DEFAULT: u32 = 2;
