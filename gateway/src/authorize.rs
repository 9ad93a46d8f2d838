//! Who may ask this gateway for what, through a tunnel: one rule for every kind of stream, without I/O.
//!
//! Nothing that came through a tunnel reaches an endpoint without an [`Authorized`], which only [`authorize`] makes, which wants
//! the [`AdmittedPeer`] that only [`admit`] makes. [`admit`] is also asked when a gateway connects, and about every open connection
//! when the configuration changes, so that whoever loses its place loses its connections too.

use std::sync::Arc;
use std::time::SystemTime;

use archipelago_http::{Known, RequestHead};
use archipelago_identity::MeshRole;
use archipelago_identity::tls::PeerCertificate;
use archipelago_tunnel::Gate;
use http::Method;

use crate::config::snapshot::Membership;
use crate::config::{Protocol, Snapshot};

/// Proof that a gateway of a declared cluster is at the other end, by the configuration it was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmittedPeer {
    cluster: Arc<str>,
}

impl AdmittedPeer {
    /// The cluster that it belongs to.
    pub fn cluster(&self) -> &Arc<str> {
        &self.cluster
    }
}

/// Proof that one stream may be forwarded to endpoints of one port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorized {
    service: Arc<str>,
}

impl Authorized {
    /// [`Service::key`](crate::config::Service::key) of the port.
    pub fn service(&self) -> &Arc<str> {
        &self.service
    }
}

/// What a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request with a response.
    Request,
    /// Bytes both ways: CONNECT.
    Connect,
    /// A WebSocket (RFC 9220).
    WebSocket,
    /// Another protocol inside a stream (RFC 9220). Not offered, and nothing fits it.
    ExtendedConnect,
}

/// What a peer asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The stream's kind.
    pub kind: Kind,
    /// Gateways passed so far, as the peer says.
    pub hop: Option<&'a str>,
    /// "namespace/name", as the peer says.
    pub service: Option<&'a str>,
    /// The number of its port, as the peer says; absent: the first.
    pub port: Option<&'a str>,
}

impl<'a> Asked<'a> {
    /// What the head of a request asks for.
    pub fn by(head: &'a RequestHead) -> Self {
        let kind = match head.method {
            Method::CONNECT if head.protocol.is_some() => Kind::ExtendedConnect,
            Method::CONNECT => Kind::Connect,
            _ if head.protocol.is_some() => Kind::WebSocket,
            _ => Kind::Request,
        };
        let value = |name| head.fields.get(name).and_then(|value| std::str::from_utf8(value).ok());
        Self { kind, hop: value(Known::MeshHop), service: value(Known::MeshService), port: value(Known::MeshPort) }
    }

    /// The port that is asked for, by index, if it is known here.
    pub fn find(&self, snapshot: &Snapshot) -> Option<usize> {
        let service = self.service?;
        match self.port {
            // Another port would be another service's business: the number alone says which is meant.
            Some(port) => snapshot.port_of(service, port.parse().ok()?),
            None => snapshot.service_by_key(service),
        }
    }
}

/// Why a peer, or one stream of it, is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// This gateway has no configuration that could say who belongs to the federation.
    #[error("this gateway has no configuration yet")]
    NoConfiguration,
    /// Our own cluster is not (or no longer) part of the federation.
    #[error("this gateway's own cluster is not declared")]
    OwnCluster,
    /// There is a list of revocations that this gateway cannot read.
    #[error("this gateway cannot read who was revoked")]
    UnreadableRevocations,
    /// The certificate is of another trust domain.
    #[error("the peer belongs to another trust domain")]
    TrustDomain,
    /// The certificate is not a gateway's.
    #[error("the peer is not a gateway")]
    NotAGateway,
    /// Its cluster is not (or no longer) part of the federation.
    #[error("the peer's cluster is not declared")]
    UndeclaredCluster,
    /// Its certificate was revoked.
    #[error("the peer's certificate was revoked")]
    Revoked,
    /// Its certificate ran out.
    #[error("the peer's certificate ran out")]
    Expired,
    /// The stream passed another gateway before the peer, or does not say.
    #[error("the request passed too many gateways")]
    Hops,
    /// No service is named.
    #[error("the request names no service")]
    NoService,
    /// The service, or this port of it, is unknown here.
    #[error("this gateway does not know the service, or not this port of it")]
    UnknownService,
    /// This cluster keeps the service to itself, or does not have it.
    #[error("this cluster does not export the service")]
    NotExported,
    /// Residency keeps the service out of this cluster.
    #[error("residency does not allow this service here")]
    Residency,
    /// A request for a TCP service, a byte stream for an HTTP service, or a kind of stream that is not offered.
    #[error("the service is not of this kind")]
    Kind,
}

impl Refusal {
    /// Every one.
    pub const ALL: [Self; 14] = [
        Self::NoConfiguration,
        Self::OwnCluster,
        Self::UnreadableRevocations,
        Self::TrustDomain,
        Self::NotAGateway,
        Self::UndeclaredCluster,
        Self::Revoked,
        Self::Expired,
        Self::Hops,
        Self::NoService,
        Self::UnknownService,
        Self::NotExported,
        Self::Residency,
        Self::Kind,
    ];

    /// Label of metrics: a closed set.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoConfiguration => "no_configuration",
            Self::OwnCluster => "own_cluster",
            Self::UnreadableRevocations => "unreadable_revocations",
            Self::TrustDomain => "trust_domain",
            Self::NotAGateway => "not_a_gateway",
            Self::UndeclaredCluster => "undeclared_cluster",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Hops => "hops",
            Self::NoService => "no_service",
            Self::UnknownService => "unknown_service",
            Self::NotExported => "not_exported",
            Self::Residency => "residency",
            Self::Kind => "kind",
        }
    }

    /// True where an honest peer whose configuration is a moment older or newer asks the same: it is told that nothing was processed,
    /// and tries elsewhere. Whoever is told anything else has no business here.
    pub fn is_skew(self) -> bool {
        match self {
            Self::NoConfiguration
            | Self::OwnCluster
            | Self::UnreadableRevocations
            | Self::UnknownService
            | Self::NotExported
            | Self::Residency
            | Self::Kind => true,
            Self::TrustDomain
            | Self::NotAGateway
            | Self::UndeclaredCluster
            | Self::Revoked
            | Self::Expired
            | Self::Hops
            | Self::NoService => false,
        }
    }
}

/// May the holder of this certificate, proven in a handshake, keep a tunnel with us? Asked of both who dials us and whom we dial.
///
/// # Errors
/// Why not.
pub fn admit(membership: &Membership, peer: &PeerCertificate, now: SystemTime) -> Result<AdmittedPeer, Refusal> {
    if membership.trust_domain.is_empty() {
        return Err(Refusal::NoConfiguration);
    }
    if peer.spiffe_id.trust_domain().as_str() != membership.trust_domain {
        return Err(Refusal::TrustDomain);
    }
    // Deleted, or never declared: we are no part of the federation, whatever else is in the configuration.
    membership.own_cluster.ok_or(Refusal::OwnCluster)?;
    let Some(MeshRole::Gateway { cluster, .. }) = peer.spiffe_id.role() else { return Err(Refusal::NotAGateway) };
    let clusters = &membership.clusters;
    let declared = clusters.binary_search_by(|known| (*known.name).cmp(cluster.as_str()));
    let declared = declared.ok().and_then(|index| clusters.get(index)).ok_or(Refusal::UndeclaredCluster)?;
    let revocations = membership.revocations.as_ref().ok_or(Refusal::UnreadableRevocations)?;
    if revocations.check(&peer.spiffe_id, peer.not_before).is_some() {
        return Err(Refusal::Revoked);
    }
    if now >= peer.not_after {
        return Err(Refusal::Expired);
    }
    Ok(AdmittedPeer { cluster: Arc::clone(&declared.name) })
}

/// May a stream of an admitted peer be forwarded to endpoints here?
///
/// # Errors
/// Why not.
pub fn authorize(snapshot: &Snapshot, _peer: &AdmittedPeer, asked: Asked<'_>) -> Result<Authorized, Refusal> {
    if asked.hop != Some(INGRESS_HOP) {
        return Err(Refusal::Hops);
    }
    asked.service.ok_or(Refusal::NoService)?;
    let index = asked.find(snapshot).ok_or(Refusal::UnknownService)?;
    let service = snapshot.service(index).ok_or(Refusal::UnknownService)?;
    if !snapshot.own_cluster.is_some_and(|own| service.exporters.contains(&own)) {
        return Err(Refusal::NotExported);
    }
    if !service.may_reside_in(snapshot.own_cluster) {
        return Err(Refusal::Residency);
    }
    match (asked.kind, service.protocol) {
        (Kind::Request | Kind::WebSocket, Protocol::Http1 | Protocol::H2c) | (Kind::Connect, Protocol::Tcp) => {}
        (Kind::Request | Kind::WebSocket, Protocol::Tcp)
        | (Kind::Connect, Protocol::Http1 | Protocol::H2c)
        | (Kind::ExtendedConnect, _) => return Err(Refusal::Kind),
    }
    Ok(Authorized { service: Arc::clone(&service.key) })
}

/// The rule by which a worker's tunnels let gateways in and throw them out.
pub fn gate(membership: Arc<Membership>) -> Gate {
    Arc::new(move |peer| admit(&membership, peer, SystemTime::now()).map(drop).map_err(Refusal::reason))
}

/// Value of `mesh-hop` on a tunnel: the ingress gateway counts 1, and nobody forwards further.
pub const INGRESS_HOP: &str = "1";

#[cfg(test)]
#[path = "authorize_tests.rs"]
mod tests;
