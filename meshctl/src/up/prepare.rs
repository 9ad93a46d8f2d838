//! Everything before the first process: the topology, the directory, the ports, the credentials.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use archipelago_base::durable::{DirLock, LockError};
use archipelago_control_plane::{Compatibility, bootstrap};
use archipelago_model::admit::{self, Federation};
use archipelago_model::document::Document;
use archipelago_model::resource::{Resource, TopologySpec};

use super::layout::{BASE_PORT_DEFAULT, HOST_DEFAULT, WORKERS_MAX};
use super::observe::Observe;
use super::plan::{Knobs, Plan};
use super::report::Reporter;
use super::state::{Record, Stage, StateDir};
use super::{owner, process};
use crate::cli::UpArgs;
use crate::exit::{Failure, Outcome};

/// What the command line asks for.
pub(crate) struct Wish {
    /// File and text; `None`: what is recorded, else the default.
    topology: Option<(String, String)>,
    host: Option<IpAddr>,
    base_port: Option<u16>,
    workers: Option<u16>,
    access_log: bool,
    observe: bool,
    compatibility: Compatibility,
}

/// Ready to start.
pub(crate) struct Prepared {
    /// Held for as long as the federation runs.
    pub(crate) lock: DirLock,
    /// What is recorded.
    pub(crate) record: Record,
    /// What runs.
    pub(crate) topology: TopologySpec,
    /// What is applied at the first start.
    pub(crate) resources: Vec<Resource>,
    /// How it runs.
    pub(crate) plan: Plan,
    /// What watches it, if that was asked for.
    pub(crate) observe: Option<Observe>,
}

impl Wish {
    /// Reads the topology file, if one is named.
    pub(crate) fn read(args: &UpArgs) -> Outcome<Self> {
        let topology = match &args.topology {
            None => None,
            Some(path) => {
                let text = fs::read(path)
                    .map_err(|error| Failure::refused(format!("cannot read {}: {error}", path.display())))?;
                let document = Document::from_bytes(path.display().to_string(), &text)
                    .map_err(|problem| Failure::refused("").problems([problem.to_string()]))?;
                Some((document.file, document.text))
            }
        };
        if let Some(workers) = args.workers
            && !(1..=WORKERS_MAX).contains(&workers)
        {
            return Err(Failure::refused(format!("--workers {workers}: from 1 to {WORKERS_MAX}")));
        }
        if let Some(address) = args.address
            && !address.is_loopback()
        {
            return Err(Failure::refused(format!(
                "--address {address}: everything that `up` starts is for this machine alone"
            ))
            .hint("name a loopback address: 127.0.0.1, or ::1"));
        }
        Ok(Self {
            topology,
            host: args.address,
            base_port: args.base_port,
            workers: args.workers,
            access_log: args.access_log,
            observe: args.observe,
            compatibility: args.compatibility,
        })
    }

    /// The record of a first start.
    fn record(self) -> Record {
        let (topology_file, topology) =
            self.topology.unwrap_or_else(|| (DEFAULT_TOPOLOGY_FILE.to_owned(), DEFAULT_TOPOLOGY.to_owned()));
        Record {
            topology_file,
            topology,
            host: self.host.unwrap_or(HOST_DEFAULT),
            base_port: self.base_port.unwrap_or(BASE_PORT_DEFAULT),
            workers: self.workers.unwrap_or(1),
            stage: Stage::Recorded,
        }
    }

    /// The record of an earlier start, if this wish does not contradict it.
    fn resume(self, record: Record, state: &StateDir) -> Outcome<Record> {
        let differs = |what: &str, was: &str| {
            Failure::refused(format!("{} was started with {was}", state.root().display())).hint(format!(
                "leave {what} out to resume it, `meshctl --state {dir} down` to start afresh, or use another --state DIR",
                dir = state.root().display()
            ))
        };
        if self.topology.is_some_and(|(_, text)| text != record.topology) {
            return Err(differs("the topology", &format!("another topology ({})", record.topology_file)));
        }
        if self.host.is_some_and(|host| host != record.host) {
            return Err(differs("--address", &format!("--address {}", record.host)));
        }
        if self.base_port.is_some_and(|port| port != record.base_port) {
            return Err(differs("--base-port", &format!("--base-port {}", record.base_port)));
        }
        // Each worker has a tunnel port that peers know; they learn a new number by themselves.
        let workers = self.workers.unwrap_or(record.workers);
        Ok(Record { workers, ..record })
    }
}

/// Refuses what can be refused without touching anything.
pub(crate) fn check(state: &StateDir, wish: &Wish) -> Outcome {
    if let Some((file, text)) = &wish.topology {
        federation(file, text)?;
    }
    if state.root().exists() && !state.root().is_dir() {
        return Err(Failure::refused(format!("{} is not a directory", state.root().display())));
    }
    let foreign = state.root().join("operator");
    if !state.has_record() && foreign.exists() {
        return Err(Failure::refused(format!("{} is the credential of another federation", foreign.display()))
            .hint("name another directory with --state DIR"));
    }
    Ok(())
}

/// Takes the directory, ends what an earlier supervisor left, checks the ports, and makes the credentials.
pub(crate) async fn prepare(state: &StateDir, wish: Wish, reporter: &Reporter) -> Outcome<Prepared> {
    let lock = lock(state)?;
    let (access_log, observes, compatibility) = (wish.access_log, wish.observe, wish.compatibility);
    let (record, resumed) = match state.record()? {
        Some(record) => (wish.resume(record, state)?, true),
        None => (wish.record(), false),
    };
    let Federation { topology, resources } = federation(&record.topology_file, &record.topology)?;
    let topology = topology.spec;
    let knobs = Knobs { host: record.host, base_port: record.base_port, workers: record.workers, access_log };
    let mut plan = Plan::new(&topology, state, knobs).map_err(Failure::refused)?;
    let orphans = process::marked(state.root()).map_err(anyhow::Error::from)?;
    if !orphans.is_empty() {
        reporter.say(format!("ending {} processes that an earlier supervisor left behind", orphans.len()));
        process::end(&orphans, ORPHAN_GRACE).await.map_err(anyhow::Error::from)?;
    }
    let taken = owner::conflicts(&plan.claims);
    if !taken.is_empty() {
        let count = taken.len();
        let more = count.saturating_sub(CONFLICTS_SHOWN);
        let failure = Failure::refused(format!("{count} of {} ports are not free", plan.claims.len()))
            .problems(taken.into_iter().take(CONFLICTS_SHOWN))
            .problems((more > 0).then(|| format!("… and {more} more")))
            .hint("end those processes, or choose other ports with --base-port");
        if !resumed {
            // Nothing has begun: leave nothing.
            let _ = state.remove();
        }
        return Err(failure);
    }
    let record =
        if record.stage < Stage::Founded { found(state, record, &topology, &plan, compatibility)? } else { record };
    state.write_record(&record)?;
    write_service_files(state, &plan)?;
    let observe = observes.then(|| Observe::prepare(state, &mut plan)).transpose()?;
    if resumed {
        reporter.say(format!("resuming the federation in {}", state.root().display()));
    }
    Ok(Prepared { lock, record, topology, resources, plan, observe })
}

fn lock(state: &StateDir) -> Outcome<DirLock> {
    DirLock::acquire(state.root()).map_err(|error| match error {
        LockError::Held { pid, .. } => {
            let by = pid.map_or_else(String::new, |pid| format!(" (supervisor pid {pid})"));
            Failure::refused(format!("a federation already runs from {}{by}", state.root().display())).hint(format!(
                "`meshctl --state {dir} status` shows it, `meshctl --state {dir} down` ends it; another one needs \
                 another --state DIR and --base-port",
                dir = state.root().display()
            ))
        }
        error => anyhow::Error::from(error).into(),
    })
}

fn federation(file: &str, text: &str) -> Outcome<Federation> {
    let document = Document { file: file.to_owned(), text: text.to_owned() };
    admit::topology(&document).map_err(|problems| {
        let count = problems.len();
        Failure::refused(format!("{file}: {count} problem{}", if count == 1 { "" } else { "s" }))
            .problems(problems.iter().map(ToString::to_string))
    })
}

/// Makes root, members' and operator's credentials. What a start that broke off here left is made anew.
fn found(
    state: &StateDir,
    record: Record,
    topology: &TopologySpec,
    plan: &Plan,
    compatibility: Compatibility,
) -> Outcome<Record> {
    state.write_record(&record)?;
    let count = u16::try_from(topology.control_plane.nodes).map_err(anyhow::Error::from)?;
    let mut stale: Vec<PathBuf> = (1..=u64::from(count)).map(|id| state.member(id)).collect();
    stale.push(state.root().join("operator"));
    stale.push(state.seal_keys());
    for dir in stale {
        if dir.exists() {
            fs::remove_dir_all(&dir)
                .map_err(|error| Failure::refused(format!("cannot remove {}: {error}", dir.display())))?;
        }
    }
    let members = (0..count)
        .map(|index| {
            let ports = plan.layout.member(index);
            bootstrap::Member {
                id: u64::from(index) + 1,
                client: ports.client.to_string(),
                peer: ports.peer.to_string(),
                place: None,
            }
        })
        .collect();
    let trust_domain = topology.trust_domain.parse().map_err(anyhow::Error::from)?;
    let plan = bootstrap::Plan::new(trust_domain, members, state.root().to_owned());
    bootstrap::bootstrap_at(&bootstrap::Plan { seal_key_dir: Some(state.seal_keys()), ..plan }, compatibility.format())
        .map_err(anyhow::Error::from)?;
    Ok(Record { stage: Stage::Founded, ..record })
}

/// Writes only what differs: agents reload on change. A cluster without services has an empty directory of them.
fn write_service_files(state: &StateDir, plan: &Plan) -> Outcome {
    for cluster in plan.processes.iter().filter_map(|process| process.cluster.as_deref()) {
        let services = state.services(cluster);
        fs::create_dir_all(&services)
            .map_err(|error| Failure::refused(format!("cannot create {}: {error}", services.display())))?;
    }
    for (path, text) in &plan.service_files {
        if fs::read_to_string(path).is_ok_and(|old| old == *text) {
            continue;
        }
        state.write(path, text.as_bytes(), 0o600)?;
    }
    Ok(())
}

/// Embedded, so that `meshctl up` works from any directory.
const DEFAULT_TOPOLOGY: &str = include_str!("../../../topologies/three-clusters.yaml");
const DEFAULT_TOPOLOGY_FILE: &str = "topologies/three-clusters.yaml";
/// Enough to see whose they are.
const CONFLICTS_SHOWN: usize = 10;
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use archipelago_model::resource::{TopologyCluster, TopologyControlPlane};

    use super::*;

    #[test]
    fn a_cluster_without_services_has_a_place_for_them_and_for_its_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path()).unwrap();
        let cluster =
            |name: &str| TopologyCluster { name: name.into(), region: "eu-west".into(), gateways: 1, services: vec![] };
        let topology = TopologySpec {
            trust_domain: "archipelago.local".into(),
            control_plane: TopologyControlPlane { nodes: 1 },
            clusters: vec![cluster("paris"), cluster("tokyo")],
        };
        let knobs = Knobs { host: HOST_DEFAULT, base_port: BASE_PORT_DEFAULT, workers: 1, access_log: false };
        let plan = Plan::new(&topology, &state, knobs).unwrap();
        write_service_files(&state, &plan).unwrap();
        for join in plan.processes.iter().filter_map(|process| process.join.as_ref()) {
            assert!(join.token_file.parent().unwrap().is_dir(), "{}", join.token_file.display());
        }
        assert!(state.services("tokyo").is_dir());
    }
}
