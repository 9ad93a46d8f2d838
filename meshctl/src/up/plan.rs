//! From a topology to processes: names, arguments, ports, service files. Pure.

use archipelago_control_plane::bootstrap;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use archipelago_model::resource::{Metadata, TopologyCluster, TopologyService, TopologySpec};
use archipelago_model::service::{ActiveCheck, HealthCheck, Probe, ServiceProtocol};
use archipelago_model::service_file::{ServiceEndpoint, ServiceFile, ServiceSpec};
use archipelago_proto::v1::JoinRole;

use super::layout::{Claim, ClusterSize, Layout, Transport};
use super::state::StateDir;

/// Everything that runs, in the order in which it is started.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Ports.
    pub(crate) layout: Layout,
    /// Control-plane members first, then cluster by cluster.
    pub(crate) processes: Vec<Process>,
    /// Files that agents read, by path.
    pub(crate) service_files: Vec<(PathBuf, String)>,
    /// Every port that will be listened on.
    pub(crate) claims: Vec<Claim>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// `cp-1`, `paris/agent`, `paris/gw-1`, `paris/checkout-v1-1`.
    pub(crate) name: String,
    /// What it is.
    pub(crate) role: Role,
    /// Absent for the control plane.
    pub(crate) cluster: Option<String>,
    /// Arguments, after `role ROLE` if the program is this one.
    pub(crate) args: Vec<String>,
    /// What it joins with, for agents and gateways.
    pub(crate) join: Option<Join>,
    /// Admin socket, below the state directory's `run/`, for gateways.
    pub(crate) admin_socket: Option<String>,
    /// Another program than this one.
    pub(crate) program: Option<PathBuf>,
}

/// The role of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Control-plane member.
    ControlPlane,
    /// Agent of a cluster.
    Agent,
    /// Gateway.
    Gateway,
    /// Demo backend.
    Demo,
    /// Scrapes all of them.
    Prometheus,
}

/// How an agent or gateway gets its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Join {
    /// Cluster the token is for.
    pub(crate) cluster: String,
    /// Agent or gateway.
    pub(crate) role: JoinRole,
    /// Name within the cluster.
    pub(crate) name: String,
    /// Its state directory: an identity there makes a token unnecessary.
    pub(crate) state_dir: PathBuf,
    /// Where the token is put.
    pub(crate) token_file: PathBuf,
}

impl Role {
    /// As in `meshctl role …` and in `status`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::Agent => "agent",
            Self::Gateway => "gateway",
            Self::Demo => "demo",
            Self::Prometheus => "prometheus",
        }
    }
}

/// What the command line decides about a start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Knobs {
    /// Where every process listens.
    pub(crate) host: IpAddr,
    /// First port.
    pub(crate) base_port: u16,
    /// Workers per gateway.
    pub(crate) workers: u16,
    /// Whether gateways write access logs.
    pub(crate) access_log: bool,
}

impl Plan {
    /// Plans `topology` under `state`.
    ///
    /// # Errors
    /// The ports do not fit.
    pub(crate) fn new(topology: &TopologySpec, state: &StateDir, knobs: Knobs) -> Result<Self, String> {
        let members = u16::try_from(topology.control_plane.nodes).map_err(|error| error.to_string())?;
        let mut sizes = Vec::new();
        for cluster in &topology.clusters {
            sizes.push((cluster.name.clone(), size(cluster)?));
        }
        let services = topology.clusters.iter().flat_map(|cluster| &cluster.services);
        let tcp: BTreeSet<(&str, &str)> = services
            .filter(|service| service.protocol == ServiceProtocol::Tcp)
            .map(|service| (service.namespace.as_str(), service.name.as_str()))
            .collect();
        let blocks: Vec<ClusterSize> = sizes.iter().map(|(_, size)| *size).collect();
        let layout = Layout::new(knobs.base_port, members, &blocks, tcp.len())?.at_host(knobs.host);
        let control_plane: Vec<String> = (0..members).map(|index| layout.member(index).client.to_string()).collect();
        let mut builder = Builder {
            layout,
            state,
            knobs,
            control_plane: control_plane.join(","),
            processes: Vec::new(),
            service_files: Vec::new(),
        };
        builder.add_control_plane(members);
        for (index, (cluster, (_, size))) in (0_u16..).zip(topology.clusters.iter().zip(&sizes)) {
            builder.add_agent(index, cluster);
            for gateway in 0..size.gateways {
                builder.add_gateway(index, gateway, cluster);
            }
            builder.add_backends(index, size.gateways, cluster);
        }
        let claims = layout.claims(&sizes, knobs.workers);
        apart(topology, &claims)?;
        Ok(Self { layout, processes: builder.processes, service_files: builder.service_files, claims })
    }

    /// Positions of the processes that a drill's target means: a cluster, `control-plane`, or one process.
    ///
    /// # Errors
    /// A sentence that lists what there is.
    pub(crate) fn targets(processes: &[Process], target: &str) -> Result<Vec<usize>, String> {
        let matching = |wanted: &dyn Fn(&Process) -> bool| -> Vec<usize> {
            processes.iter().enumerate().filter(|(_, process)| wanted(process)).map(|(index, _)| index).collect()
        };
        let found = match target {
            "control-plane" => matching(&|process| process.role == Role::ControlPlane),
            _ => matching(&|process| process.name == target || process.cluster.as_deref() == Some(target)),
        };
        if !found.is_empty() {
            return Ok(found);
        }
        let clusters: BTreeSet<&str> = processes.iter().filter_map(|process| process.cluster.as_deref()).collect();
        let clusters: Vec<&str> = clusters.into_iter().collect();
        Err(format!(
            "nothing is called `{target}`; a target is a cluster ({}), control-plane, or a process such as {}",
            clusters.join(", "),
            processes.iter().find(|process| process.role == Role::Gateway).map_or("cp-1", |process| &process.name),
        ))
    }
}

/// Adds process after process.
struct Builder<'a> {
    layout: Layout,
    state: &'a StateDir,
    knobs: Knobs,
    /// host:port of every member, separated by commas.
    control_plane: String,
    processes: Vec<Process>,
    service_files: Vec<(PathBuf, String)>,
}

impl Builder<'_> {
    fn add_control_plane(&mut self, members: u16) {
        let flags: Vec<String> = (0..members)
            .flat_map(|index| {
                let ports = self.layout.member(index);
                ["--member".to_owned(), format!("{}={}/{}", index + 1, ports.client, ports.peer)]
            })
            .collect();
        for index in 0..members {
            let (id, ports) = (u64::from(index) + 1, self.layout.member(index));
            let mut args = Args::default()
                .flag("--node-id", id)
                .flag("--data-dir", self.state.member(id).display())
                .flag("--seal-key-file", bootstrap::seal_key_file(&self.state.seal_keys(), id).display())
                .flag("--listen-client", ports.client)
                .flag("--listen-peer", ports.peer)
                .flag("--listen-metrics", ports.metrics)
                .flag("--dashboard", ports.dashboard)
                .0;
            args.extend(flags.iter().cloned());
            self.processes.push(Process {
                name: format!("cp-{id}"),
                role: Role::ControlPlane,
                cluster: None,
                args,
                join: None,
                admin_socket: None,
                program: None,
            });
        }
    }

    fn add_agent(&mut self, index: u16, cluster: &TopologyCluster) {
        let ports = self.layout.agent(index);
        let join = join(&cluster.name, JoinRole::Agent, "agent", self.state);
        let args = Args::default()
            .flag("--cluster", &cluster.name)
            .flag("--state-dir", join.state_dir.display())
            .flag("--control-plane", &self.control_plane)
            .flag("--token-file", join.token_file.display())
            .flag("--services", self.state.services(&cluster.name).display())
            .flag("--listen", ports.listen)
            .flag("--metrics", ports.metrics)
            .0;
        self.push(cluster, "agent", Role::Agent, args, Some(join));
    }

    fn add_gateway(&mut self, index: u16, gateway: u16, cluster: &TopologyCluster) {
        let ports = self.layout.gateway(index, gateway);
        let name = format!("gw-{}", gateway + 1);
        let join = join(&cluster.name, JoinRole::Gateway, &name, self.state);
        // Relative to the state directory, in which every process is started: an absolute path may be
        // longer than the 108 bytes that a socket address has.
        let socket = format!("run/{}.{name}.sock", cluster.name);
        let access_log = if self.knobs.access_log {
            self.state.log(&format!("{}/{name}.access", cluster.name)).display().to_string()
        } else {
            "off".to_owned()
        };
        let args = Args::default()
            .flag("--cluster", &cluster.name)
            .flag("--name", &name)
            .flag("--state-dir", join.state_dir.display())
            .flag("--control-plane", &self.control_plane)
            .flag("--token-file", join.token_file.display())
            .flag("--agent", self.layout.agent(index).listen)
            .flag("--http", ports.http)
            .flag("--tunnel", ports.tunnel)
            .flag("--dns", ports.dns)
            .flag("--health", ports.health)
            .flag("--metrics", ports.metrics)
            .flag("--tcp-base", ports.tcp_base)
            .flag("--tcp-ports", self.layout.tcp_ports())
            .flag("--admin-socket", &socket)
            .flag("--workers", self.knobs.workers)
            .flag("--drain-timeout-ms", GATEWAY_DRAIN.as_millis())
            .flag("--access-log", access_log)
            .0;
        self.push(cluster, &name, Role::Gateway, args, Some(join));
        if let Some(process) = self.processes.last_mut() {
            process.admin_socket = Some(socket);
        }
    }

    fn add_backends(&mut self, index: u16, gateways: u16, cluster: &TopologyCluster) {
        let mut next = 0;
        for service in &cluster.services {
            let mut endpoints = Vec::new();
            let full = format!("{}/{}", service.namespace, service.name);
            let (health_check, versions) = match &service.own {
                None => (demo_check(service.protocol), service.versions.as_slice()),
                Some(own) => {
                    endpoints.extend(own.endpoints.iter().map(|address| ServiceEndpoint {
                        address: *address,
                        version: service.versions.first().cloned().unwrap_or_default(),
                        instance: address.to_string(),
                        zone: None,
                    }));
                    (own.health_check.clone(), [].as_slice())
                }
            };
            for version in versions {
                for instance in 1..=service.instances {
                    let address = self.layout.backend(index, gateways, next);
                    next += 1;
                    let mut name = format!("{}-{version}-{instance}", service.name);
                    if self.processes.iter().any(|process| process.name == format!("{}/{name}", cluster.name)) {
                        // The same service name in two namespaces of one cluster.
                        name = format!("{}-{name}", service.namespace);
                    }
                    let args = Args::default()
                        .flag("--service", &full)
                        .flag("--cluster", &cluster.name)
                        .flag("--version", version)
                        .flag("--instance", format!("{}/{name}", cluster.name))
                        .flag("--protocol", service.protocol)
                        .flag("--listen", address)
                        .0;
                    endpoints.push(ServiceEndpoint {
                        address,
                        version: version.clone(),
                        instance: format!("{}/{name}", cluster.name),
                        zone: None,
                    });
                    self.push(cluster, &name, Role::Demo, args, None);
                }
            }
            let file = service_file(service, endpoints, health_check);
            let path = self.state.services(&cluster.name).join(format!("{}.{}.yaml", service.namespace, service.name));
            self.service_files.push((path, file.to_yaml()));
        }
    }

    fn push(&mut self, cluster: &TopologyCluster, name: &str, role: Role, args: Vec<String>, join: Option<Join>) {
        self.processes.push(Process {
            name: format!("{}/{name}", cluster.name),
            role,
            cluster: Some(cluster.name.clone()),
            args,
            join,
            admin_socket: None,
            program: None,
        });
    }
}

/// Every address a person may want to reach, for the guide printed at the end.
pub(crate) fn gateway_http(layout: &Layout, cluster: usize) -> Option<SocketAddr> {
    Some(layout.gateway(u16::try_from(cluster).ok()?, 0).http)
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.0.extend([name.to_owned(), value.to_string()]);
        self
    }
}

fn size(cluster: &TopologyCluster) -> Result<ClusterSize, String> {
    let count = |count: usize| u16::try_from(count).map_err(|_| format!("cluster {} is too large", cluster.name));
    let per_service = |service: &TopologyService| {
        if service.own.is_some() {
            return 0;
        }
        service.versions.len() * usize::try_from(service.instances).unwrap_or(usize::MAX)
    };
    Ok(ClusterSize {
        gateways: u16::try_from(cluster.gateways).map_err(|_| format!("cluster {} is too large", cluster.name))?,
        backends: count(cluster.services.iter().map(per_service).sum())?,
    })
}

fn join(cluster: &str, role: JoinRole, name: &str, state: &StateDir) -> Join {
    let dir = state.cluster(cluster);
    Join {
        cluster: cluster.to_owned(),
        role,
        name: name.to_owned(),
        state_dir: dir.join(name),
        token_file: dir.join(format!("{name}.token")),
    }
}

/// Two things cannot listen on one port, and with SO_REUSEPORT they would even both believe that they do.
fn apart(topology: &TopologySpec, claims: &[Claim]) -> Result<(), String> {
    for cluster in &topology.clusters {
        for service in &cluster.services {
            let Some(own) = &service.own else { continue };
            for address in own.endpoints.iter().filter(|address| here(address.ip())) {
                let taken =
                    claims.iter().find(|claim| claim.transport == Transport::Tcp && claim.port == address.port());
                if let Some(claim) = taken {
                    return Err(format!(
                        "{address}, an endpoint of {}/{} in {}, is the port of {}: choose other ports with --base-port",
                        service.namespace, service.name, cluster.name, claim.purpose
                    ));
                }
            }
        }
    }
    Ok(())
}

fn here(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

fn demo_check(protocol: ServiceProtocol) -> HealthCheck {
    let probe = match protocol {
        // A backend that hangs still accepts connections; only an answer proves that it lives.
        ServiceProtocol::Http | ServiceProtocol::H2c => Probe::Http { path: "/".to_owned(), host: None },
        ServiceProtocol::Tcp => Probe::Tcp,
    };
    HealthCheck::Active(ActiveCheck { probe, ..ActiveCheck::default() })
}

fn service_file(service: &TopologyService, endpoints: Vec<ServiceEndpoint>, health_check: HealthCheck) -> ServiceFile {
    ServiceFile {
        metadata: Metadata { name: service.name.clone(), namespace: service.namespace.clone(), ..Metadata::default() },
        spec: ServiceSpec {
            port: service.port,
            protocol: service.protocol,
            endpoints,
            prefers_same_zone: false,
            health_check,
        },
        // What is offered to other clusters is said by the topology's ServiceExports, which an operator can delete.
        exported: false,
    }
}

/// Below the time that `down` gives a gateway.
const GATEWAY_DRAIN: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use archipelago_model::resource::{OwnServers, TopologyControlPlane};

    use super::*;
    use crate::up::layout::HOST_DEFAULT;

    fn service(name: &str, protocol: ServiceProtocol, versions: &[&str]) -> TopologyService {
        TopologyService {
            name: name.into(),
            namespace: "shop".into(),
            protocol,
            versions: versions.iter().map(|version| (*version).to_owned()).collect(),
            instances: 1,
            port: 80,
            own: None,
        }
    }

    fn topology(services: Vec<TopologyService>) -> TopologySpec {
        let cluster = TopologyCluster { name: "paris".into(), region: "eu-west".into(), gateways: 2, services };
        TopologySpec {
            trust_domain: "archipelago.local".into(),
            control_plane: TopologyControlPlane { nodes: 1 },
            clusters: vec![cluster],
        }
    }

    fn planned(services: Vec<TopologyService>) -> Result<Plan, String> {
        let state = StateDir::new(std::path::Path::new("/state-of-a-test")).unwrap();
        Plan::new(
            &topology(services),
            &state,
            Knobs { host: HOST_DEFAULT, base_port: 7400, workers: 1, access_log: false },
        )
    }

    fn own(address: &str) -> TopologyService {
        let endpoints = vec![address.parse().unwrap()];
        let own = Some(OwnServers { endpoints, health_check: HealthCheck::default() });
        TopologyService { own, ..service("shop", ServiceProtocol::Http, &["v7"]) }
    }

    #[test]
    fn servers_of_ones_own_are_in_the_file_and_no_process() {
        let plan = planned(vec![own("127.0.0.1:8080"), service("web", ServiceProtocol::Http, &["v1"])]).unwrap();
        let demos: Vec<_> = plan.processes.iter().filter(|process| process.role == Role::Demo).collect();
        assert_eq!(demos.len(), 1);
        let (_, text) = plan.service_files.iter().find(|(path, _)| path.ends_with("shop.shop.yaml")).unwrap();
        let documents = [archipelago_model::document::Document { file: "f".into(), text: text.clone() }];
        let files = archipelago_model::service_file::parse(&documents).unwrap();
        let endpoint = &files[0].spec.endpoints[0];
        assert_eq!((endpoint.address.to_string().as_str(), endpoint.version.as_str()), ("127.0.0.1:8080", "v7"));
    }

    #[test]
    fn servers_of_ones_own_and_the_federation_share_no_port() {
        let error = planned(vec![own("127.0.0.1:7510")]).unwrap_err();
        assert!(error.contains("127.0.0.1:7510") && error.contains("paris/gw-1 (HTTP)"), "{error}");
        assert!(planned(vec![own("192.0.2.7:7510")]).is_ok(), "another machine has its own ports");
    }

    #[test]
    fn with_many_tcp_services_no_port_is_anybody_elses() {
        for count in [22, 100] {
            let tcp = |number: usize| service(&format!("tcp-{number}"), ServiceProtocol::Tcp, &["v1"]);
            let plan = planned((0..count).map(tcp).collect()).unwrap();
            assert!(usize::from(plan.layout.tcp_ports()) >= count);
            let (one, two) = (plan.layout.gateway(0, 0), plan.layout.gateway(0, 1));
            assert!(one.tcp_base.port() + plan.layout.tcp_ports() <= two.http.port());
        }
    }

    fn plan() -> Plan {
        let cluster = |name: &str| TopologyCluster {
            name: name.into(),
            region: "eu-west".into(),
            gateways: 2,
            services: vec![
                service("checkout", ServiceProtocol::Http, &["v1", "v2"]),
                service("ledger", ServiceProtocol::Tcp, &["v1"]),
            ],
        };
        let topology = TopologySpec {
            trust_domain: "archipelago.local".into(),
            control_plane: TopologyControlPlane { nodes: 3 },
            clusters: vec![cluster("paris"), cluster("tokyo")],
        };
        let state = StateDir::new(std::path::Path::new("/state-of-a-test")).unwrap();
        Plan::new(&topology, &state, Knobs { host: HOST_DEFAULT, base_port: 7400, workers: 1, access_log: false })
            .unwrap()
    }

    #[test]
    fn processes_are_named_and_ordered() {
        let names: Vec<_> = plan().processes.into_iter().map(|process| process.name).collect();
        assert_eq!(
            names,
            [
                "cp-1",
                "cp-2",
                "cp-3",
                "paris/agent",
                "paris/gw-1",
                "paris/gw-2",
                "paris/checkout-v1-1",
                "paris/checkout-v2-1",
                "paris/ledger-v1-1",
                "tokyo/agent",
                "tokyo/gw-1",
                "tokyo/gw-2",
                "tokyo/checkout-v1-1",
                "tokyo/checkout-v2-1",
                "tokyo/ledger-v1-1",
            ]
        );
    }

    #[test]
    fn a_gateway_knows_its_agent_and_its_ports() {
        let plan = plan();
        let gateway = plan.processes.iter().find(|process| process.name == "tokyo/gw-2").unwrap();
        let value = |flag: &str| {
            let at = gateway.args.iter().position(|arg| arg == flag).unwrap();
            gateway.args[at + 1].as_str()
        };
        assert_eq!(value("--agent"), "127.0.0.1:7600");
        assert_eq!((value("--http"), value("--tunnel")), ("127.0.0.1:7640", "127.0.0.1:7644"));
        assert_eq!(value("--control-plane"), "127.0.0.1:7400,127.0.0.1:7401,127.0.0.1:7402");
        assert_eq!(value("--admin-socket"), gateway.admin_socket.as_deref().unwrap());
    }

    #[test]
    fn service_files_name_the_backends() {
        let plan = plan();
        let (path, text) = &plan.service_files[0];
        assert!(path.ends_with("clusters/paris/services/shop.checkout.yaml"));
        let documents = [archipelago_model::document::Document { file: "f".into(), text: text.clone() }];
        let files = archipelago_model::service_file::parse(&documents).unwrap();
        assert!(!files[0].exported);
        let addresses: Vec<_> = files[0].spec.endpoints.iter().map(|endpoint| endpoint.address.port()).collect();
        assert_eq!(addresses, [7570, 7571]);
    }

    #[test]
    fn targets_are_clusters_the_control_plane_or_processes() {
        let plan = plan();
        let names = |target: &str| -> Vec<&str> {
            let found = Plan::targets(&plan.processes, target).unwrap();
            found.into_iter().map(|index| plan.processes[index].name.as_str()).collect()
        };
        assert_eq!(names("control-plane"), ["cp-1", "cp-2", "cp-3"]);
        assert_eq!(names("cp-2"), ["cp-2"]);
        assert_eq!(names("paris/gw-1"), ["paris/gw-1"]);
        assert_eq!(names("tokyo").len(), 6);
        let error = Plan::targets(&plan.processes, "pairs").unwrap_err();
        assert!(error.contains("paris, tokyo"), "{error}");
    }
}
