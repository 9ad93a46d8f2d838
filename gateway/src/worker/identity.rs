//! Who is at either end: this gateway, and the gateways that send it requests.

use std::sync::Arc;
use std::time::SystemTime;

use archipelago_identity::SpiffeId;
use archipelago_identity::tls::PeerCertificate;
use http::HeaderValue;

use crate::authorize::{self, AdmittedPeer, Refusal};
use crate::config::snapshot::Membership;
use crate::source::Vouches;
use crate::telemetry::{Name, Names};

/// Who this gateway is, with the header values made once.
#[derive(Debug)]
pub struct Identity {
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Its name.
    pub gateway: Arc<str>,
    /// Its SPIFFE id.
    pub spiffe_id: SpiffeId,
    /// `mesh-source`.
    pub spiffe_id_value: HeaderValue,
    /// `mesh-cluster`.
    pub cluster_value: HeaderValue,
    /// `mesh-served-by`.
    pub served_by: HeaderValue,
}

impl Identity {
    /// From the credential's id and the names on the command line.
    ///
    /// # Errors
    /// A name that cannot stand in a header.
    pub fn new(cluster: &str, gateway: &str, spiffe_id: SpiffeId) -> Result<Self, http::header::InvalidHeaderValue> {
        Ok(Self {
            cluster: cluster.into(),
            gateway: gateway.into(),
            spiffe_id_value: HeaderValue::from_str(&spiffe_id.to_string())?,
            cluster_value: HeaderValue::from_str(cluster)?,
            served_by: HeaderValue::from_str(&format!("{cluster}/{gateway}"))?,
            spiffe_id,
        })
    }
}

/// Another gateway as the sender of requests, with the header values that all of them share.
#[derive(Debug)]
pub struct Caller {
    /// Its cluster, as this worker counts it.
    pub cluster: Name,
    /// Proof that it may tunnel to us, by the current configuration.
    pub admitted: AdmittedPeer,
    /// `mesh-source` of a client of whom it says nothing.
    pub source: HeaderValue,
    /// Of whom it may say something.
    pub vouches: Vouches,
    /// `mesh-cluster`.
    pub cluster_value: HeaderValue,
    /// One value per connection.
    pub(super) certificate: Arc<PeerCertificate>,
}

impl Caller {
    pub(super) fn new(peer: &Arc<PeerCertificate>, membership: &Membership, names: &Names) -> Result<Self, Refusal> {
        let admitted = authorize::admit(membership, peer, SystemTime::now())?;
        // An SPIFFE id and a cluster's name are always fit for a header.
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| Refusal::NotAGateway);
        Ok(Self {
            source: value(&peer.spiffe_id.to_string())?,
            vouches: Vouches::new(peer.spiffe_id.trust_domain().as_str(), admitted.cluster()),
            cluster_value: value(admitted.cluster())?,
            cluster: names.of(admitted.cluster()),
            admitted,
            certificate: Arc::clone(peer),
        })
    }
}
