//! TLS towards clients: it ends at the gateway, which has certificates and keys on its own disk.
//!
//! | module | what | I/O |
//! | --- | --- | --- |
//! | [`certificates`] | pairs of certificate and key: which are usable, which one is for a name | none |
//! | [`keeper`] | reads the directory of pairs, again and again | files |
//! | [`handshake`] | a client's first words, until there is a session | socket |
//! | [`session`] | bytes of a session, in and out | socket |
//! | [`metrics`] | what all of that counts | none |
//!
//! Keys are where the gateway runs, and nowhere else: neither the control plane nor the cluster's agent ever sees one, and all that
//! names a pair is its file. What clients are shown can change at any time; a connection keeps what it began with.
//!
//! Without `--https` nothing of this exists, and with it a connection in the clear costs one look at an empty option per read.

pub mod certificates;
pub mod handshake;
pub mod keeper;
pub mod metrics;
pub mod session;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use archipelago_base::metrics::Registry;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use self::certificates::Certificates;
use self::keeper::Keeper;
use self::metrics::TlsMetrics;
use crate::handover::Sockets;

/// Where clients speak TLS, and what they are shown.
#[derive(Debug, Clone)]
pub struct Https {
    /// Port 0 picks one.
    pub address: SocketAddr,
    /// Directory of certificates and their keys.
    pub certificates: PathBuf,
}

/// All that a gateway has for TLS: nothing, if clients do not speak it.
#[derive(Debug)]
pub struct Secured {
    /// Of each worker.
    pub listeners: Vec<Vec<TcpListener>>,
    /// Where they listen.
    pub address: Option<SocketAddr>,
    /// For the workers.
    pub terminator: Option<Terminator>,
    /// To be run beside them.
    pub keeper: Option<Keeper>,
}

impl Secured {
    /// Reads certificates and listens.
    ///
    /// # Errors
    /// The directory cannot be read, or the port is taken.
    pub fn open(
        https: Option<&Https>,
        sockets: &Sockets,
        workers: usize,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        let Some(Https { address, certificates }) = https else {
            let listeners = (0..workers).map(|_| vec![]).collect();
            return Ok(Self { listeners, address: None, terminator: None, keeper: None });
        };
        let (live, metrics) = (Arc::<Live>::default(), TlsMetrics::register(registry));
        let keeper = Keeper::start(certificates.clone(), Arc::clone(&live), metrics.clone()).with_context(|| {
            format!("cannot read --tls-certificates {}: make the directory, or mount it", certificates.display())
        })?;
        let terminator = Terminator::new(live, metrics).context("cannot speak TLS")?;
        let listeners = sockets.listen_shared(*address, workers);
        let listeners = listeners.with_context(|| format!("cannot bind HTTPS at {address}"))?;
        let address = listeners.iter().flatten().next().context("no worker")?.local_addr()?;
        Ok(Self { listeners, address: Some(address), terminator: Some(terminator), keeper: Some(keeper) })
    }
}

/// What the handshakes of all workers have in common; cheap to clone.
#[derive(Debug, Clone)]
pub struct Terminator {
    config: Arc<ServerConfig>,
    live: Arc<Live>,
    /// What they count.
    pub metrics: TlsMetrics,
}

impl Terminator {
    /// With certificates that `live` may exchange at any time.
    ///
    /// # Errors
    /// The crypto provider has no randomness for tickets, or none of the versions.
    pub fn new(live: Arc<Live>, metrics: TlsMetrics) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&live) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![H2.to_vec(), HTTP11.to_vec()];
        // One for all workers: a client resumes at whichever it comes to. Its keys change every six hours, and are on no disk.
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(Self { config: Arc::new(config), live, metrics })
    }
}

/// The certificates in use, which are exchanged as one.
#[derive(Debug, Default)]
pub struct Live(ArcSwap<Certificates>);

impl Live {
    /// Replaces all of them, for handshakes from now on.
    pub fn replace(&self, certificates: Certificates) {
        self.0.store(Arc::new(certificates));
    }

    /// What a client is shown that asks for `name`.
    fn choose(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        self.0.load().choose(name)
    }
}

impl ResolvesServerCert for Live {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name())
    }
}

/// What a session was agreed on, as the access log shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// "TLSv1.3" or "TLSv1.2".
    pub version: &'static str,
    /// As IANA names it.
    pub cipher: String,
    /// The name that the client asked for, or empty.
    pub server_name: String,
}

/// ALPN of HTTP/2 (RFC 9113 §3.2).
pub const H2: &[u8] = b"h2";
/// ALPN of HTTP/1.1 (RFC 7301 §6).
pub const HTTP11: &[u8] = b"http/1.1";
