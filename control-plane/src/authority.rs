//! The unsealed authority of this member: follows the replicated state, and keeps this member's own SVID fresh.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use archipelago_base::error::chain;
use archipelago_identity::{Credential, CredentialDir, LiveCredential, SpiffeId};
use archipelago_rpc::enrol::renewal_due;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    ca::{self, Authority, CaError, SealKey},
    consensus::Consensus,
    machine::command::{CaInit, WrappedKey},
};

/// The authority, or why there is none here.
#[derive(Debug)]
pub(crate) struct AuthorityHolder {
    member: u64,
    seal_key: Option<SealKey>,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    ca: Option<CaInit>,
    authority: Result<Arc<Authority>, String>,
}

impl AuthorityHolder {
    /// Without a seal key this member serves everything but certificates.
    pub(crate) fn new(member: u64, seal_key: Result<SealKey, String>, genesis: Option<CaInit>) -> Self {
        let (seal_key, missing) = match seal_key {
            Ok(key) => (Some(key), None),
            Err(reason) => (None, Some(reason)),
        };
        let reason = missing.unwrap_or_else(|| "the federation has no authority yet".to_owned());
        let holder = Self { member, seal_key, current: RwLock::new(Current { ca: None, authority: Err(reason) }) };
        if let Some(ca) = genesis {
            holder.use_ca(ca);
        }
        holder
    }

    /// The open authority.
    pub(crate) fn get(&self) -> Result<Arc<Authority>, Status> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.authority.clone().map_err(|reason| {
            Status::unavailable(format!("member {} cannot issue certificates: {reason}", self.member))
        })
    }

    /// A share of `ca` for a new member: what opens it, and what it opens.
    pub(crate) fn share(&self, ca: &CaInit, new_member: u64) -> Result<(SealKey, WrappedKey), Status> {
        let unavailable = |reason: String| {
            Status::failed_precondition(format!("member {} cannot share the authority: {reason}", self.member))
        };
        let seal_key = self.seal_key.as_ref().ok_or_else(|| {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            unavailable(current.authority.as_ref().err().cloned().unwrap_or_default())
        })?;
        ca::share(ca, self.member, seal_key, new_member).map_err(|error| unavailable(error.to_string()))
    }

    /// Opens another authority, if it differs from the one in use.
    pub(crate) fn use_ca(&self, ca: CaInit) {
        let Some(seal_key) = &self.seal_key else { return };
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.ca.as_ref() == Some(&ca) {
            return;
        }
        match Authority::unseal(&ca, self.member, seal_key) {
            Ok(authority) => current.authority = Ok(Arc::new(authority)),
            Err(error) => {
                tracing::error!(%error, "the authority stays sealed on this member");
                current.authority = Err(error.to_string());
            }
        }
        current.ca = Some(ca);
    }

    /// Follows the replicated state until cancelled.
    pub(crate) async fn follow(self: Arc<Self>, consensus: Arc<Consensus>, stopping: CancellationToken) {
        let mut revisions = consensus.published.subscribe();
        loop {
            if let Some(ca) = consensus.read(|state| state.ca().map(|ca| CaInit::clone(ca))) {
                self.use_ca(ca);
                // An authority never changes within this version; rotation will arrive as another command.
                return;
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = revisions.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// Issues this member an SVID of its own.
///
/// # Errors
/// The authority cannot issue, or the certificate is not usable.
pub(crate) fn issue_own(authority: &Authority, member: u64, life: Duration) -> anyhow::Result<Credential> {
    let spiffe_id = SpiffeId::control_plane(authority.trust_domain(), member);
    issue_with_new_key(authority, &spiffe_id, life, OffsetDateTime::now_utc())
}

/// A new key and its SVID, for a process of this machine.
pub(crate) fn issue_with_new_key(
    authority: &Authority,
    spiffe_id: &SpiffeId,
    life: Duration,
    now: OffsetDateTime,
) -> anyhow::Result<Credential> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::from)?;
    let issued = authority.issue_to(&key, spiffe_id, life, now, None)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Credential::new(issued.chain, key, authority.bundle())?)
}

/// The member's SVID as stored, or a new one of its own making when that is missing, a quarter spent, or
/// longer than certificates should live now.
///
/// # Errors
/// Nothing usable is stored and the authority is sealed.
pub(crate) fn ensure_own(
    holder: &AuthorityHolder,
    dir: &CredentialDir,
    life: Duration,
) -> anyhow::Result<LiveCredential> {
    let now = SystemTime::now();
    let stored = match (dir.load(), holder.get()) {
        (Ok(stored), _) => stored,
        // A member that can issue needs no file to be whole but its share of the authority.
        (Err(error), Ok(_)) => {
            tracing::warn!(error = %chain(&error), "the stored certificate is unusable and is replaced");
            None
        }
        (Err(error), Err(_)) => return Err(error.into()),
    };
    let fresh = |credential: &Credential| {
        renewal_due(credential.not_before, credential.not_after, 0.0) > now
            && credential.not_before <= now
            // An operator who shortens the life of certificates means this one too.
            && credential.not_after <= now + life
    };
    if let Some(credential) = stored.as_ref().filter(|credential| fresh(credential)) {
        return Ok(LiveCredential::new(credential.clone())?);
    }
    match (holder.get(), stored) {
        (Ok(authority), _) => {
            let credential = issue_own(&authority, holder.member, life)?;
            dir.store(&credential)?;
            Ok(LiveCredential::new(credential)?)
        }
        (Err(_), Some(credential)) if credential.not_after > now => Ok(LiveCredential::new(credential)?),
        (Err(status), Some(_)) => anyhow::bail!("the member's certificate has expired and {}", status.message()),
        (Err(status), None) => anyhow::bail!("the member has no certificate and {}", status.message()),
    }
}

/// Renews the member's own SVID until cancelled: a quarter into its life, and at once when the clock jumped past that.
pub(crate) async fn keep_own_renewed(
    holder: Arc<AuthorityHolder>,
    live: LiveCredential,
    dir: CredentialDir,
    life: Duration,
    stopping: CancellationToken,
) {
    loop {
        let current = live.current();
        let due = renewal_due(current.not_before, current.not_after, 0.0);
        let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
        // In steps, so that a clock that jumps, or a machine that slept, is noticed.
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(wait.clamp(RENEW_STEP_MIN, RENEW_STEP_MAX)) => {}
        }
        let now = SystemTime::now();
        // Before its beginning: the clock jumped back, and nobody would accept the certificate.
        if now < due && now >= current.not_before {
            continue;
        }
        let renewed = holder
            .get()
            .map_err(|status| anyhow::anyhow!("{}", status.message()))
            .and_then(|authority| issue_own(&authority, holder.member, life));
        match renewed {
            Ok(credential) => {
                if let Err(error) = dir.store(&credential) {
                    tracing::error!(%error, "the renewed SVID of this member could not be stored");
                }
                match live.replace(credential) {
                    Ok(()) => tracing::info!("SVID of this member renewed"),
                    Err(error) => tracing::error!(%error, "the renewed SVID of this member could not be used"),
                }
            }
            Err(error) => tracing::warn!(%error, "SVID of this member not renewed"),
        }
    }
}

const RENEW_STEP_MIN: Duration = Duration::from_secs(1);
const RENEW_STEP_MAX: Duration = Duration::from_secs(30);
