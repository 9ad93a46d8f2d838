//! The last good state on disk: an agent that restarts without its control plane, beside a file that is just broken,
//! still knows what it knew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use archipelago_base::{durable, shutdown::Shutdown};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use archipelago_model::{
    id::ServiceKey,
    service::{ActiveCheck, Probe, ServiceProtocol},
};

use crate::{
    catalog::{Catalog, Check, Endpoint, Service},
    health::{Target, driver::Readiness},
};

/// What survives a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) control_plane: Vec<String>,
    pub(super) services: BTreeMap<ServiceKey, Service>,
    pub(super) ready: BTreeSet<Target>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Stored {
    format: u32,
    control_plane: Vec<String>,
    services: Vec<StoredService>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoredService {
    namespace: String,
    name: String,
    port: u16,
    protocol: ServiceProtocol,
    exported: bool,
    origin: String,
    /// Absent: the provider says what is ready.
    check: Option<StoredCheck>,
    endpoints: Vec<StoredEndpoint>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoredEndpoint {
    address: SocketAddr,
    version: String,
    instance: String,
    /// What the provider said.
    provided_ready: bool,
    /// What the checks found.
    ready: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct StoredCheck {
    /// Path; absent: a connection is enough.
    http: Option<String>,
    host: Option<String>,
    interval_ms: u64,
    timeout_ms: u64,
    healthy_after: u32,
    unhealthy_after: u32,
}

impl State {
    /// What is in `dir`. A file that cannot be used is no reason not to start: everything in it is learnt again.
    pub(super) fn load(dir: &Path) -> Self {
        let file = dir.join(FILE_NAME);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the last state cannot be read, starting without");
                return Self::default();
            }
        };
        match serde_json::from_slice::<Stored>(&bytes) {
            Ok(stored) if stored.format == FORMAT => Self::of(stored),
            Ok(stored) => {
                tracing::warn!(file = %file.display(), format = stored.format, "unknown format, starting without");
                Self::default()
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the last state is damaged, starting without");
                Self::default()
            }
        }
    }

    pub(super) fn store(&self, dir: &Path) -> io::Result<()> {
        let services = self.services.iter().map(|(key, service)| self.stored(key, service)).collect();
        let stored = Stored { format: FORMAT, control_plane: self.control_plane.clone(), services };
        durable::write(&dir.join(FILE_NAME), &serde_json::to_vec(&stored)?, 0o600)
    }

    fn of(stored: Stored) -> Self {
        let mut state = Self { control_plane: stored.control_plane, ..Self::default() };
        for StoredService { namespace, name, port, protocol, exported, origin, check, endpoints } in stored.services {
            let key = ServiceKey::new(namespace, name);
            let ready = endpoints.iter().filter(|endpoint| endpoint.ready);
            state.ready.extend(ready.map(|endpoint| Target { service: key.clone(), address: endpoint.address }));
            let endpoints = endpoints.into_iter().map(|endpoint| Endpoint {
                address: endpoint.address,
                version: endpoint.version,
                instance: endpoint.instance,
                ready: endpoint.provided_ready,
            });
            let check = check.map_or(Check::Provider, |check| {
                Check::Active(ActiveCheck {
                    probe: match check.http {
                        Some(path) => Probe::Http { path, host: check.host },
                        None => Probe::Tcp,
                    },
                    interval: Duration::from_millis(check.interval_ms),
                    timeout: Duration::from_millis(check.timeout_ms),
                    healthy_after: check.healthy_after,
                    unhealthy_after: check.unhealthy_after,
                })
            });
            let endpoints = endpoints.collect();
            state.services.insert(key, Service { port, protocol, exported, endpoints, check, origin });
        }
        state
    }

    fn stored(&self, key: &ServiceKey, service: &Service) -> StoredService {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let check = match &service.check {
            Check::Provider => None,
            Check::Active(check) => {
                let (http, host) = match &check.probe {
                    Probe::Http { path, host } => (Some(path.clone()), host.clone()),
                    Probe::Tcp => (None, None),
                };
                Some(StoredCheck {
                    http,
                    host,
                    interval_ms: millis(check.interval),
                    timeout_ms: millis(check.timeout),
                    healthy_after: check.healthy_after,
                    unhealthy_after: check.unhealthy_after,
                })
            }
        };
        let endpoint = |endpoint: &Endpoint| StoredEndpoint {
            address: endpoint.address,
            version: endpoint.version.clone(),
            instance: endpoint.instance.clone(),
            provided_ready: endpoint.ready,
            ready: self.ready.contains(&Target { service: key.clone(), address: endpoint.address }),
        };
        StoredService {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            port: service.port,
            protocol: service.protocol,
            exported: service.exported,
            origin: service.origin.clone(),
            check,
            endpoints: service.endpoints.iter().map(endpoint).collect(),
        }
    }
}

/// Stores every change, at most one a second, and once more at the end.
pub(super) async fn keep(
    dir: PathBuf,
    control_plane: Vec<String>,
    mut catalogs: watch::Receiver<Arc<Catalog>>,
    mut readinesses: watch::Receiver<Readiness>,
    shutdown: Shutdown,
) {
    let mut stored = State::default();
    let mut failing = false;
    loop {
        let last = shutdown.is_requested();
        let state = State {
            control_plane: control_plane.clone(),
            services: catalogs.borrow_and_update().services.clone(),
            ready: readinesses.borrow_and_update().ready().cloned().collect(),
        };
        if state != stored {
            let (path, copy) = (dir.clone(), state.clone());
            let written = tokio::task::spawn_blocking(move || copy.store(&path)).await;
            match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => {
                    stored = state;
                    failing = false;
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(dir = %dir.display(), %error, "the state cannot be stored; serving goes on");
                }
                Err(_) => {}
            }
        }
        if last {
            return;
        }
        tokio::select! {
            () = shutdown.requested() => continue,
            () = sleep(STORE_INTERVAL) => {}
        }
        let changed = async {
            tokio::select! {
                changed = catalogs.changed() => changed.is_ok(),
                changed = readinesses.changed() => changed.is_ok(),
            }
        };
        // While storing fails there is something to store even without a change.
        let wait = if failing { RETRY_INTERVAL } else { Duration::from_secs(3600) };
        tokio::select! {
            () = shutdown.requested() => {}
            changed = timeout(wait, changed) => if changed == Ok(false) {
                // Nothing changes any more: the agent is stopping.
                shutdown.requested().await;
            },
        }
    }
}

const FILE_NAME: &str = "agent.json";
/// 1 held the texts of service files.
const FORMAT: u32 = 2;
/// An fsync a second is nothing to a disk, and a flapping endpoint must not become more.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_and_damage_does_not_hurt() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(State::load(temp.path()), State::default());
        let endpoint = |address: &str, ready| Endpoint {
            address: address.parse().unwrap(),
            version: "v1".into(),
            instance: address.into(),
            ready,
        };
        let service = |check: Check| Service {
            port: 80,
            protocol: ServiceProtocol::H2c,
            exported: true,
            endpoints: vec![endpoint("127.0.0.1:1", true), endpoint("[::1]:1", false)],
            check,
            origin: "a.yaml".into(),
        };
        let named = Probe::Http { path: "/".into(), host: Some("shop.example".into()) };
        let check = ActiveCheck { probe: named, ..ActiveCheck::default() };
        let key = ServiceKey::new("shop", "web");
        let state = State {
            control_plane: vec!["127.0.0.1:7400".into()],
            services: [
                (key.clone(), service(Check::Active(check))),
                (ServiceKey::new("shop", "cart"), service(Check::Provider)),
                (ServiceKey::new("shop", "tcp"), service(Check::Active(ActiveCheck::default()))),
            ]
            .into(),
            ready: [Target { service: key, address: "127.0.0.1:1".parse().unwrap() }].into(),
        };
        state.store(temp.path()).unwrap();
        assert_eq!(State::load(temp.path()), state);
        let file = temp.path().join(FILE_NAME);
        let text = fs::read_to_string(&file).unwrap();
        for damaged in [&text[..text.len() / 2], "", "{}", "[1]", &text.replace("\"format\":2", "\"format\":9")] {
            fs::write(&file, damaged).unwrap();
            assert_eq!(State::load(temp.path()), State::default());
        }
    }
}
