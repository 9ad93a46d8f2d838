//! What TLS counts. Declared only where it is spoken.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::handshake::Failed;

/// Shared by all threads.
#[derive(Debug, Clone, Default)]
pub struct TlsMetrics {
    handshakes: Family<[(&'static str, &'static str); 2], Counter>,
    failures: Family<[(&'static str, &'static str); 1], Counter>,
    certificates: Gauge,
    unusable: Gauge,
    expires: Gauge<i64, AtomicI64>,
}

impl TlsMetrics {
    /// Declares all of it in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        for reason in Failed::REASONS {
            drop(this.failures.get_or_create(&[("reason", *reason)]));
        }
        registry.register(
            "mesh_gateway_tls_handshakes",
            "Handshakes of clients that came about, by version and whether a session was resumed",
            this.handshakes.clone(),
        );
        registry.register(
            "mesh_gateway_tls_handshake_failures",
            "Handshakes of clients that did not come about",
            this.failures.clone(),
        );
        registry.register(
            "mesh_gateway_tls_certificates",
            "Certificates that clients are shown",
            this.certificates.clone(),
        );
        registry.register(
            "mesh_gateway_tls_certificates_unusable",
            "Certificates on disk that cannot be used",
            this.unusable.clone(),
        );
        registry.register(
            "mesh_gateway_tls_certificate_expiry_timestamp_seconds",
            "When the first of the certificates that clients are shown runs out; 0: there is none",
            this.expires.clone(),
        );
        this
    }

    /// One that came about.
    pub fn done(&self, version: &'static str, resumed: bool) {
        let kind = if resumed { "resumed" } else { "full" };
        self.handshakes.get_or_create(&[("version", version), ("kind", kind)]).inc();
    }

    /// One that did not.
    pub fn failed(&self, failed: &Failed) {
        self.failures.get_or_create(&[("reason", failed.reason())]).inc();
    }

    /// How many there are, how many are broken, and when the first runs out.
    pub fn certificates(&self, [usable, unusable]: [usize; 2], expires: Option<i64>) {
        self.certificates.set(i64::try_from(usable).unwrap_or(i64::MAX));
        self.unusable.set(i64::try_from(unusable).unwrap_or(i64::MAX));
        self.expires.set(expires.unwrap_or(0));
    }
}
