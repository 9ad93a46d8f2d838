//! The page that this member serves to operators: who is signed in, and what they are shown.
//!
//! What does not need the control plane (links and sessions, what browsers are told, the files) is `archipelago-page`. Here are its
//! sockets (`serve`), its requests (`routes`), what they change (`actions`), the stream of states (`live`) and where a state comes from (`gather`).
//!
//! A session stands for the certificate with which its link was asked for: it may what that may, is refused with it, and ends with it.

mod actions;
mod gather;
mod live;
mod routes;
mod serve;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use archipelago_identity::{
    SpiffeId,
    revocation::RevocationList,
    tls::{PeerCertificate, provider},
};
use archipelago_page::{
    action::{End, Role},
    assets,
    guard::Site,
    sessions::{NoEntry, Secret, Sessions},
};
use bytes::Bytes;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::TLS13,
};
use tokio::sync::{Notify, watch};

pub(crate) use self::{
    gather::gather,
    serve::{listen, serve},
};

/// Where the page is served, and how.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DashboardArgs {
    /// Address of the page for operators' browsers; none: no page. In the clear only on a loopback address.
    #[arg(long, value_name = "ADDR")]
    pub dashboard: Option<SocketAddr>,
    /// Certificate of the page, PEM, with those between it and its root; read at start.
    #[arg(long, value_name = "FILE", requires_all = ["dashboard", "dashboard_key"])]
    pub dashboard_cert: Option<PathBuf>,
    /// Key of that certificate, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["dashboard", "dashboard_cert"])]
    pub dashboard_key: Option<PathBuf>,
    /// How browsers reach the page, where that is not its address: https://HOST:PORT.
    #[arg(long, value_name = "URL", requires = "dashboard")]
    pub dashboard_url: Option<String>,
}

/// The page of a member.
#[derive(Debug)]
pub(crate) struct Dashboard {
    site: Site,
    tls: Option<Arc<ServerConfig>>,
    began: Instant,
    sessions: Mutex<Sessions<Visitor>>,
    revocations: RevocationList,
    /// What all pages are shown; `None`: nobody looks, or it has not been gathered yet.
    views: watch::Sender<Option<Arc<View>>>,
    /// Somebody began to look.
    looked: Notify,
}

/// A state as it is sent.
#[derive(Debug)]
struct View {
    /// A whole server-sent event.
    event: Bytes,
}

/// Whoever signed in.
#[derive(Debug, Clone)]
struct Visitor {
    certificate: Arc<PeerCertificate>,
    read_only: bool,
    /// Set once, by whoever ends the session before its time.
    ended: Arc<watch::Sender<Option<End>>>,
}

impl Dashboard {
    /// Reads certificate and key; `None`: no page is wanted.
    ///
    /// # Errors
    /// It cannot be served as it is asked for; the message says what to change.
    pub(crate) fn new(args: &DashboardArgs, revocations: RevocationList) -> anyhow::Result<Option<Self>> {
        let Some(listen) = args.dashboard else { return Ok(None) };
        let tls = match (&args.dashboard_cert, &args.dashboard_key) {
            (Some(cert), Some(key)) => Some(Arc::new(tls_config(cert, key)?)),
            _ => None,
        };
        let site = Site::new(listen, tls.is_some(), args.dashboard_url.as_deref()).map_err(anyhow::Error::msg)?;
        Ok(Some(Self {
            site,
            tls,
            began: Instant::now(),
            sessions: Mutex::new(Sessions::default()),
            revocations,
            views: watch::Sender::new(None),
            looked: Notify::new(),
        }))
    }

    /// A link by which one browser signs in as whoever has the certificate, which lasts for `left`.
    pub(crate) fn invite(&self, certificate: Arc<PeerCertificate>, read_only: bool, left: Duration) -> String {
        let name = certificate.spiffe_id.to_string();
        let visitor = Visitor { certificate, read_only, ended: Arc::new(watch::Sender::new(None)) };
        let secret = self.lock().invite(&name, visitor, left, rand::random(), self.now());
        format!("{}{}#{}", self.site.origin(), assets::SIGN_IN, secret.expose())
    }

    /// Turns a link into a session.
    fn sign_in(&self, link: &str) -> Result<(Secret, Visitor), NoEntry> {
        let mut sessions = self.lock();
        let (secret, displaced) = sessions.sign_in(link, rand::random(), self.now())?;
        let visitor = sessions.who(secret.expose(), self.now()).map(|(visitor, _)| visitor.clone());
        drop(sessions);
        if let Some(displaced) = displaced {
            displaced.end(End::SignedOut);
        }
        visitor.map(|visitor| (secret, visitor)).ok_or(NoEntry::Unknown)
    }

    /// Whose session it is, judged anew: by time, and by what is revoked.
    fn visitor(&self, secret: Option<&str>) -> Result<(Visitor, Duration), End> {
        let secret = secret.ok_or(End::Expired)?;
        let now = self.now();
        let found = self.lock().who(secret, now).map(|(visitor, ends)| (visitor.clone(), ends));
        let (visitor, ends) = found.ok_or(End::Expired)?;
        visitor.judge(&self.revocations, SystemTime::now())?;
        Ok((visitor, ends.saturating_sub(now)))
    }

    fn sign_out(&self, secret: &str) {
        if let Some(visitor) = self.lock().sign_out(secret) {
            visitor.end(End::SignedOut);
        }
    }

    /// Forgets sessions whose time is over, and ends those whose identity is refused.
    fn sweep(&self) {
        let wall = SystemTime::now();
        self.lock().sweep(self.now(), |visitor| match visitor.judge(&self.revocations, wall) {
            Ok(()) => false,
            Err(end) => {
                visitor.end(end);
                true
            }
        });
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Sessions<Visitor>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visitor {
    fn spiffe_id(&self) -> &SpiffeId {
        &self.certificate.spiffe_id
    }

    const fn role(&self) -> Role {
        if self.read_only { Role::Reader } else { Role::Operator }
    }

    /// Whether its identity is still good.
    fn judge(&self, revocations: &RevocationList, now: SystemTime) -> Result<(), End> {
        if let Some(end) = *self.ended.borrow() {
            return Err(end);
        }
        if revocations.check(&self.certificate.spiffe_id, self.certificate.not_before).is_some() {
            return Err(End::Revoked);
        }
        if now >= self.certificate.not_after { Err(End::Expired) } else { Ok(()) }
    }

    fn end(&self, why: End) {
        self.ended.send_if_modified(|ended| ended.is_none() && ended.replace(why).is_none());
    }
}

fn tls_config(cert: &Path, key: &Path) -> anyhow::Result<ServerConfig> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read {} (--dashboard-cert) as PEM", cert.display()))?;
    let key_der = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("cannot read {} (--dashboard-key) as PEM", key.display()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .context("TLS 1.3 is not supported")?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .with_context(|| format!("{} and {} do not belong together", cert.display(), key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
