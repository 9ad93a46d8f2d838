//! The order of a start, each step waiting for what it needs and saying how far it is.

use std::time::{Duration, Instant};

use archipelago_model::resource::{Kind, Resource, ServiceExport, TopologySpec};
use archipelago_proto::v1;

use super::guide;
use super::observe::Observe;
use super::plan::{Plan, Role};
use super::report::{self, Reporter};
use super::state::{Record, Stage, StateDir};
use super::supervisor::Handle;
use crate::client::Client;
use crate::exit::{Failure, Outcome};
use crate::output;

/// Brings a federation up on a running supervisor.
pub(crate) struct BringUp {
    /// Its directory.
    pub(crate) state: StateDir,
    /// What is recorded there.
    pub(crate) record: Record,
    /// What it should be.
    pub(crate) topology: TopologySpec,
    /// What is applied at the first start.
    pub(crate) resources: Vec<Resource>,
    /// Its processes.
    pub(crate) plan: std::sync::Arc<Plan>,
    /// What watches it.
    pub(crate) observe: Option<Observe>,
    /// Who is told.
    pub(crate) reporter: Reporter,
    /// The supervisor.
    pub(crate) handle: Handle,
    /// How long everything may take.
    pub(crate) ready_timeout: Duration,
}

impl BringUp {
    /// Starts everything in order and returns when all of it works.
    ///
    /// # Errors
    /// A process that keeps dying, a refused resource, or a condition that is not met in time.
    pub(crate) async fn run(mut self) -> Outcome {
        let began = Instant::now();
        let deadline = began + self.ready_timeout;
        self.start("control-plane members", |role| role == Role::ControlPlane).await;
        let client = Client::open(self.state.root(), CALL_TIMEOUT)?;
        self.wait(deadline, "the control plane", async || Ok(members(&client.status().await?, &self.topology))).await?;
        if self.record.stage < Stage::Applied {
            self.apply(&client).await?;
            self.record.stage = Stage::Applied;
            self.state.write_record(&self.record)?;
        }
        let is_meshs = |role| !matches!(role, Role::ControlPlane | Role::Prometheus);
        self.start("agents, gateways and demo backends", is_meshs).await;
        let gateways = async || Ok(gateways(&client.status().await?, &self.topology));
        self.wait(deadline, "the gateways", gateways).await?;
        let exported = self.exported(&client).await?;
        let endpoints = async || Ok(endpoints(&client.services().await?, &exported));
        self.wait(deadline, "the endpoints", endpoints).await?;
        self.wait(deadline, "the tunnels", async || Ok(tunnels(&client.tunnels().await?, &self.topology))).await?;
        self.start(PROMETHEUS, |role| role == Role::Prometheus).await;
        let observe = self.observe.as_ref().map(Observe::guide).unwrap_or_default();
        let services = client.services().await?;
        let text = guide::text(&self.state, &self.topology, &self.plan, &services, began.elapsed(), &observe);
        if let Some(text) = self.reporter.ready(text) {
            output::write_stdout(&text)?;
        }
        Ok(())
    }

    async fn start(&self, what: &str, wanted: impl Fn(Role) -> bool) {
        let indexes: Vec<usize> = self
            .plan
            .processes
            .iter()
            .enumerate()
            .filter(|(_, process)| wanted(process.role))
            .map(|(index, _)| index)
            .collect();
        match indexes.len() {
            0 => return,
            1 if what == PROMETHEUS => self.reporter.say(format!("starting {what}")),
            count => self.reporter.say(format!("starting {count} {what}")),
        }
        self.handle.start(indexes).await;
    }

    async fn apply(&self, client: &Client) -> Outcome {
        let documents = self
            .resources
            .iter()
            .map(|resource| v1::Document { file: self.record.topology_file.clone(), text: resource.to_json() })
            .collect();
        let answer = client.apply(documents, Vec::new(), false).await?;
        if !answer.problems.is_empty() {
            return Err(
                Failure::refused("the control plane refused the topology's resources").problems(answer.problems)
            );
        }
        self.reporter.say(format!("applied {} resources, revision {}", self.resources.len(), answer.revision));
        Ok(())
    }

    /// The demo services that clusters offer to each other, with the endpoints each should have: only these are
    /// known outside their cluster.
    async fn exported(&self, client: &Client) -> Outcome<Vec<Expected>> {
        let answer = client.get(Kind::ServiceExport.name(), "", "").await?;
        let exports: Vec<ServiceExport> = answer
            .resources
            .iter()
            .filter_map(|resource| match Resource::from_json(&resource.json) {
                Ok(Resource::ServiceExport(export)) => Some(export),
                _ => None,
            })
            .collect();
        Ok(expected(&self.topology, &exports))
    }

    /// Asks `condition` again and again until it holds, saying every change of what is missing.
    async fn wait(&self, deadline: Instant, what: &str, condition: impl AsyncFn() -> Outcome<Progress>) -> Outcome {
        let mut said = String::new();
        loop {
            let line = match condition().await {
                Ok(Progress { line, met: true }) => {
                    self.reporter.say(line);
                    return Ok(());
                }
                Ok(Progress { line, met: false }) => line,
                Err(failure) => format!("waiting for {what}: {failure}"),
            };
            if line != said {
                self.reporter.say(&line);
                said = line;
            }
            if self.reporter.abandoned() {
                return Err(Failure::refused("whoever started this went away before it was ready"));
            }
            self.check_processes().await?;
            if Instant::now() >= deadline {
                return Err(Failure::refused(format!("{what} did not get ready in time; {said}"))
                    .hint(format!("look into {}, or allow more with --ready-timeout", self.logs())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A process that keeps dying will not get ready: its last words say why.
    async fn check_processes(&self) -> Outcome {
        let rows = self.handle.rows().await;
        let Some(failing) = rows.iter().find(|row| row.restarts >= RESTARTS_MAX) else { return Ok(()) };
        Err(Failure::refused(format!("{} keeps dying", failing.name))
            .problems(report::tail(&self.state, &failing.name))
            .hint(format!("its log is {}", self.state.log(&failing.name).display())))
    }

    fn logs(&self) -> String {
        self.state.root().join("logs").display().to_string()
    }
}

/// How far a condition is.
#[derive(Debug, PartialEq, Eq)]
struct Progress {
    line: String,
    met: bool,
}

impl Progress {
    fn of(have: usize, want: usize, what: &str) -> Self {
        Self { line: format!("{have}/{want} {what}"), met: have >= want }
    }
}

fn members(status: &v1::StatusResponse, topology: &TopologySpec) -> Progress {
    let want = topology.control_plane.nodes as usize;
    let following = status.members.iter().filter(|member| member.role == "follower").count();
    let leader = status.members.iter().find(|member| member.role == "leader");
    let have = following + usize::from(leader.is_some());
    let leader_name = leader.map_or_else(|| "no leader yet".to_owned(), |leader| format!("leader cp-{}", leader.id));
    Progress {
        line: format!("{have}/{want} control-plane members, {leader_name}"),
        met: have >= want && leader.is_some(),
    }
}

fn gateways(status: &v1::StatusResponse, topology: &TopologySpec) -> Progress {
    let want = topology.clusters.iter().map(|cluster| cluster.gateways as usize).sum();
    let all = status.clusters.iter().flat_map(|cluster| &cluster.gateways);
    Progress::of(all.filter(|gateway| gateway.state == "synced").count(), want, "gateways synced")
}

/// Endpoints that a service should have in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    cluster: String,
    namespace: String,
    name: String,
    endpoints: usize,
}

fn expected(topology: &TopologySpec, exports: &[ServiceExport]) -> Vec<Expected> {
    let mut expected = Vec::new();
    for cluster in &topology.clusters {
        // Whether servers of the user's own run already is theirs to say.
        for service in cluster.services.iter().filter(|service| service.own.is_none()) {
            let exported = exports.iter().any(|export| {
                let same = export.metadata.name == service.name && export.metadata.namespace == service.namespace;
                same && (export.spec.clusters.is_empty() || export.spec.clusters.contains(&cluster.name))
            });
            if exported {
                expected.push(Expected {
                    cluster: cluster.name.clone(),
                    namespace: service.namespace.clone(),
                    name: service.name.clone(),
                    endpoints: service.versions.len() * service.instances as usize,
                });
            }
        }
    }
    expected
}

fn endpoints(services: &[v1::ServiceStatus], expected: &[Expected]) -> Progress {
    let ready = |wanted: &Expected| -> usize {
        services
            .iter()
            .filter(|service| service.namespace == wanted.namespace && service.name == wanted.name)
            .flat_map(|service| &service.clusters)
            .filter(|cluster| cluster.cluster == wanted.cluster)
            .map(|cluster| (cluster.ready as usize).min(wanted.endpoints))
            .sum()
    };
    Progress::of(
        expected.iter().map(ready).sum(),
        expected.iter().map(|wanted| wanted.endpoints).sum(),
        "endpoints ready",
    )
}

/// Every two gateways of different clusters need a tunnel; one or both of them report it.
fn tunnels(tunnels: &[v1::TunnelStatus], topology: &TopologySpec) -> Progress {
    let counts: Vec<usize> = topology.clusters.iter().map(|cluster| cluster.gateways as usize).collect();
    let all: usize = counts.iter().sum();
    let inside: usize = counts.iter().map(|count| count * count).sum();
    let want = (all * all - inside) / 2;
    let mut up = std::collections::BTreeMap::new();
    for tunnel in tunnels {
        let end = |cluster: &str, gateway: &str| {
            (cluster.to_owned(), gateway.rsplit('/').next().unwrap_or_default().to_owned())
        };
        let mut ends = [end(&tunnel.from_cluster, &tunnel.from), end(&tunnel.to_cluster, &tunnel.to)];
        ends.sort();
        *up.entry(ends).or_insert(true) &= tunnel.state == "up";
    }
    Progress::of(up.values().filter(|up| **up).count(), want, "tunnels up")
}

/// A condition is asked this often: a tenth of a second is not felt, and costs the control plane nothing.
const POLL: Duration = Duration::from_millis(100);
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const PROMETHEUS: &str = "Prometheus";
/// One death can be bad luck (a port in use for a moment); three are a reason.
const RESTARTS_MAX: u64 = 3;

#[cfg(test)]
mod tests {
    use archipelago_model::resource::{
        Metadata, ServiceExportSpec, TopologyCluster, TopologyControlPlane, TopologyService,
    };
    use archipelago_model::service::ServiceProtocol;

    use super::*;

    fn topology(gateways: &[u32]) -> TopologySpec {
        let cluster = |(index, gateways): (usize, &u32)| TopologyCluster {
            name: format!("c{index}"),
            region: "r".into(),
            gateways: *gateways,
            services: Vec::new(),
        };
        TopologySpec {
            trust_domain: "archipelago.local".into(),
            control_plane: TopologyControlPlane { nodes: 3 },
            clusters: gateways.iter().enumerate().map(cluster).collect(),
        }
    }

    fn tunnel(from: (&str, &str), to: (&str, &str), state: &str) -> v1::TunnelStatus {
        v1::TunnelStatus {
            from_cluster: from.0.into(),
            from: from.1.into(),
            to_cluster: to.0.into(),
            to: to.1.into(),
            state: state.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_tunnel_counts_once_and_only_when_both_ends_agree() {
        let topology = topology(&[1, 2]);
        let (a, b, c) = (("c0", "gw-1"), ("c1", "gw-1"), ("c1", "c1/gw-2"));
        assert_eq!(tunnels(&[], &topology).line, "0/2 tunnels up");
        let both = [tunnel(a, b, "up"), tunnel(b, a, "up"), tunnel(a, c, "up")];
        assert!(tunnels(&both, &topology).met);
        let disputed = [tunnel(a, b, "up"), tunnel(b, a, "dialing"), tunnel(a, c, "up")];
        assert_eq!(tunnels(&disputed, &topology), Progress { line: "1/2 tunnels up".into(), met: false });
    }

    #[test]
    fn only_exported_services_are_waited_for() {
        let mut topology = topology(&[1, 1]);
        let service = |name: &str| TopologyService {
            name: name.into(),
            namespace: "shop".into(),
            protocol: ServiceProtocol::Http,
            versions: vec!["v1".into(), "v2".into()],
            instances: 1,
            port: 80,
            own: None,
        };
        for cluster in &mut topology.clusters {
            cluster.services = vec![service("checkout"), service("private")];
        }
        let export = |clusters: &[&str]| ServiceExport {
            metadata: Metadata { name: "checkout".into(), namespace: "shop".into(), ..Metadata::default() },
            spec: ServiceExportSpec { clusters: clusters.iter().map(|name| (*name).to_owned()).collect() },
        };
        assert_eq!(expected(&topology, &[export(&[])]).len(), 2);
        let only = expected(&topology, &[export(&["c1"])]);
        let status = |cluster: &str, ready| v1::ServiceStatus {
            namespace: "shop".into(),
            name: "checkout".into(),
            clusters: vec![v1::ServiceClusterStatus { cluster: cluster.into(), ready, ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(endpoints(&[status("c0", 2), status("c1", 1)], &only).line, "1/2 endpoints ready");
        assert!(endpoints(&[status("c1", 3)], &only).met);
        assert!(endpoints(&[], &[]).met, "nothing to wait for");
    }

    #[test]
    fn members_need_a_leader() {
        let member = |id, role: &str| v1::MemberStatus { id, role: role.into(), ..Default::default() };
        let status = |roles: [&str; 3]| v1::StatusResponse {
            members: (1_u64..).zip(roles).map(|(id, role)| member(id, role)).collect(),
            ..Default::default()
        };
        let topology = topology(&[]);
        assert!(!members(&status(["follower", "candidate", "follower"]), &topology).met);
        assert!(!members(&status(["follower", "leader", "unreachable"]), &topology).met);
        let ready = members(&status(["follower", "leader", "follower"]), &topology);
        assert_eq!(ready, Progress { line: "3/3 control-plane members, leader cp-2".into(), met: true });
    }
}
