//! Runs the checks that [`Scheduler`] asks for, a bounded number at once, and publishes who is ready.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant as TokioInstant, sleep_until},
};

use archipelago_model::id::ServiceKey;

use super::{
    Failure, Health, Target,
    probe::{ProbeError, probe},
    schedule::{Plan, Scheduler, Start, Ticket},
};
use crate::catalog::{Catalog, Check, Endpoint, Port, Service};

/// Who is ready, as far as is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// What is known of every endpoint that is asked; one that is not named is unknown.
    pub endpoints: BTreeMap<Target, Health>,
    /// The source has been read, and every endpoint that is asked has been asked at least once.
    pub settled: bool,
}

impl Readiness {
    /// What is known of one endpoint.
    #[must_use]
    pub fn of(&self, target: &Target) -> Health {
        self.endpoints.get(target).copied().unwrap_or(Health::Unknown)
    }

    /// What is known of an endpoint of the catalog, by its service's check.
    #[must_use]
    pub fn of_endpoint(&self, key: &ServiceKey, service: &Service, port: &Port, endpoint: &Endpoint) -> Health {
        match service.check {
            Check::Provider if endpoint.ready => Health::Ready,
            Check::Provider => Health::Down(Failure::Provider),
            Check::Active(_) => self.of(&Target { service: key.clone(), port: port.port, address: endpoint.address }),
        }
    }

    /// Endpoints that answered and may get requests.
    pub fn ready(&self) -> impl Iterator<Item = &Target> {
        self.endpoints.iter().filter(|(_, health)| **health == Health::Ready).map(|(target, _)| target)
    }
}

/// Told of every answer, for metrics.
pub type Observer = Arc<dyn Fn(Result<(), &'static str>) + Send + Sync>;

/// Checks the endpoints of `catalog` until their sender is gone.
///
/// `readiness` starts with what was ready before a restart, and always holds the latest.
pub async fn run(
    mut catalog: watch::Receiver<Arc<Catalog>>,
    readiness: watch::Sender<Readiness>,
    seed: u64,
    observer: Observer,
) {
    let mut scheduler = Scheduler::new(seed);
    let mut running: JoinSet<(Target, Ticket, Result<(), ProbeError>)> = JoinSet::new();
    let presumed_ready = readiness.borrow().ready().cloned().collect();
    let (first, mut read) = plans(&catalog.borrow_and_update());
    scheduler.set_targets(Instant::now(), first, &presumed_ready);
    publish(&scheduler, read, &readiness);
    loop {
        let free = CHECKS_MAX.saturating_sub(running.len());
        for start in scheduler.start_due(Instant::now(), free) {
            running.spawn(ask(start));
        }
        let next = scheduler.next_due().filter(|_| running.len() < CHECKS_MAX);
        let wake = next.map(TokioInstant::from_std);
        tokio::select! {
            changed = catalog.changed() => {
                if changed.is_err() {
                    return;
                }
                let (plans, now_read) = plans(&catalog.borrow_and_update());
                read = now_read;
                scheduler.set_targets(Instant::now(), plans, &presumed_ready);
                publish(&scheduler, read, &readiness);
            }
            Some(finished) = running.join_next() => {
                let Ok((target, ticket, answer)) = finished else { continue };
                let told = answer.as_ref().copied().map_err(ProbeError::failure);
                observer(told.map_err(Failure::reason));
                let settled = scheduler.is_settled();
                let changed = scheduler.finish(Instant::now(), &target, ticket, told);
                if let Some(health) = changed {
                    let error = answer.err().map(tracing::field::display);
                    let Target { service, port, address } = &target;
                    let ready = health == Health::Ready;
                    tracing::info!(%service, port, %address, ready, error, "endpoint changed");
                }
                if changed.is_some() || settled != scheduler.is_settled() {
                    publish(&scheduler, read, &readiness);
                }
            }
            () = sleep_until(wake.unwrap_or_else(TokioInstant::now)), if wake.is_some() => {}
        }
    }
}

async fn ask(start: Start) -> (Target, Ticket, Result<(), ProbeError>) {
    let answer = probe(start.target.address, start.protocol, &start.check.probe, start.check.timeout).await;
    (start.target, start.ticket, answer)
}

/// Whom to ask, and whether that is what the provider says.
fn plans(catalog: &Catalog) -> (BTreeMap<Target, Plan>, bool) {
    let mut plans = BTreeMap::new();
    for (key, service) in &catalog.services {
        let Check::Active(check) = &service.check else { continue };
        for port in &service.ports {
            plans.extend(port.endpoints.iter().map(|endpoint| {
                let target = Target { service: key.clone(), port: port.port, address: endpoint.address };
                (target, Plan { check: check.clone(), protocol: port.protocol })
            }));
        }
    }
    (plans, catalog.read)
}

fn publish(scheduler: &Scheduler, read: bool, readiness: &watch::Sender<Readiness>) {
    let now = Readiness { endpoints: scheduler.health(), settled: read && scheduler.is_settled() };
    readiness.send_if_modified(|current| {
        let changed = *current != now;
        *current = now;
        changed
    });
}

/// Sockets at once: far below the usual limit of 1,024 descriptors, and enough for 25,000 checks a second at 10 ms each.
const CHECKS_MAX: usize = 256;
