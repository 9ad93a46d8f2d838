//! Which of several replicas leads: a Lease that one of them holds and renews.
//!
//! [`election`] decides, without I/O and by our own monotonic clock alone: two replicas need not agree on the time. A leader
//! gives up before anybody can follow it: [`election::RENEW_TIME_MAX`] after it last *began* a renewal that went through, while
//! others wait [`election::EXPIRY`] from when they last *saw* one.

pub mod election;

use std::time::{Duration, Instant};

use archipelago_base::shutdown::Shutdown;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use self::election::{Act, Election, RENEW_INTERVAL, Record};
use crate::client::Failure;

/// Takes part in the election until `shutdown`; `leading` says the number of our term while we lead.
///
/// At the end the Lease is given back, so that another replica need not wait for it to expire.
pub async fn run(
    client: Client,
    namespace: &str,
    identity: String,
    leading: watch::Sender<Option<u64>>,
    shutdown: Shutdown,
) {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let mut election = Election::new(identity);
    let mut failing = false;
    loop {
        let attempt = attempt(&leases, &mut election);
        tokio::select! {
            () = shutdown.requested() => break,
            done = timeout(ATTEMPT_TIME_MAX, attempt) => {
                let failure = match done {
                    Ok(Ok(())) => None,
                    Ok(Err(failure)) => Some(failure.to_string()),
                    Err(_) => Some("the API server does not answer".to_owned()),
                };
                match &failure {
                    Some(error) if !failing => tracing::warn!(%error, "the Lease of the agents cannot be read or written"),
                    None if failing => tracing::info!("the Lease of the agents can be read and written again"),
                    Some(_) | None => {}
                }
                failing = failure.is_some();
            }
        }
        publish(&election, &leading);
        // A leader that cannot renew steps down on time even if the next attempt is far away.
        let deadline = election.leads_until().map(|until| until.saturating_duration_since(Instant::now()));
        let pause = deadline.map_or(RENEW_INTERVAL, |left| left.min(RENEW_INTERVAL));
        tokio::select! {
            () = shutdown.requested() => break,
            () = sleep(pause) => publish(&election, &leading),
        }
    }
    leading.send_replace(None);
    if election.term(Instant::now()).is_some() {
        release(&leases, &mut election).await;
    }
}

fn publish(election: &Election, leading: &watch::Sender<Option<u64>>) {
    let term = election.term(Instant::now());
    leading.send_if_modified(|current| {
        let changed = *current != term;
        if changed {
            match term {
                Some(term) => tracing::info!(term, "this replica leads"),
                None => tracing::info!("this replica no longer leads"),
            }
            *current = term;
        }
        changed
    });
}

async fn attempt(leases: &Api<Lease>, election: &mut Election) -> Result<(), Failure> {
    let began = Instant::now();
    let found = leases.get_opt(NAME).await?;
    let act = election.read(found.as_ref().map(record), began, Timestamp::now().as_microsecond());
    let Act::Write(record) = act else { return Ok(()) };
    match write(leases, found, &record).await {
        Ok(()) => election.written(record, began),
        // Another replica was faster; the next look will say who.
        Err(failure) if failure.is_conflict() => {}
        Err(failure) => return Err(failure),
    }
    Ok(())
}

async fn write(leases: &Api<Lease>, found: Option<Lease>, record: &Record) -> Result<(), Failure> {
    let spec = Some(LeaseSpec {
        holder_identity: Some(record.holder.clone()),
        lease_duration_seconds: Some(i32::try_from(election::EXPIRY.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: i64::try_from(record.acquired_ms)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok())
            .map(MicroTime),
        renew_time: Timestamp::from_microsecond(record.renewed_us).ok().map(MicroTime),
        lease_transitions: Some(record.transitions),
        ..LeaseSpec::default()
    });
    match found {
        // With the version that was read: somebody else's write in between is a conflict.
        Some(found) => {
            let lease = Lease { spec, ..found };
            leases.replace(NAME, &PostParams::default(), &lease).await?;
        }
        None => {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            leases.create(&PostParams::default(), &Lease { metadata, spec }).await?;
        }
    }
    Ok(())
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let acquired = spec.acquire_time.map_or(0, |time| time.0.as_millisecond());
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        acquired_ms: u64::try_from(acquired).unwrap_or_default(),
        renewed_us: spec.renew_time.map_or(0, |time| time.0.as_microsecond()),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

/// Best effort: at worst another replica waits until it expires.
async fn release(leases: &Api<Lease>, election: &mut Election) {
    let Some(record) = election.release(Instant::now()) else { return };
    let give_back = async {
        let found = leases.get_opt(NAME).await?;
        // Not if somebody else has it already.
        match found.filter(|lease| self::record(lease).acquired_ms == record.acquired_ms) {
            Some(found) => write(leases, Some(found), &record).await,
            None => Ok(()),
        }
    };
    if let Ok(Err(error)) = timeout(RELEASE_TIME_MAX, give_back).await {
        tracing::debug!(%error, "the Lease was not given back");
    }
}

/// Of the Lease, in the agent's own namespace.
pub const NAME: &str = "archipelago-agent";
/// Well within what a leader has left after one failed attempt.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(3);
/// The process waits two seconds for its parts to end.
const RELEASE_TIME_MAX: Duration = Duration::from_millis(1_500);
