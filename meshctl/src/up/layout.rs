//! Which process listens where when a whole federation shares one machine.
//!
//! Everything is `--base-port` plus an offset of this table, on 127.0.0.1:
//!
//! | offset | what |
//! | --- | --- |
//! | 0 + i | control-plane member i+1: operators, agents, gateways |
//! | 10 + i | … Raft |
//! | 20 + i | … metrics and health |
//! | 30 + i | … the page for operators |
//! | 90 | Prometheus, with `--observe`, unless somebody else has it |
//! | 100 + c·B | block of cluster c; inside it: |
//! | +0, +1 | agent: gateways; metrics |
//! | +10 + g·G | gateway g+1: +0 HTTP, +1 DNS, +2 health, +3 metrics, +4… tunnel of worker 0…7, +12… TCP services |
//! | after the gateways | demo backends, one port each |
//!
//! B is the size of the largest cluster, rounded up to a hundred, so that blocks start at round numbers. G is 30, with room
//! for 18 TCP services, as long as the topology has no more; else there is room for its own and 18 to come.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The ports of one federation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    host: IpAddr,
    base: u16,
    members: u16,
    cluster_block: u16,
    gateway_block: u16,
}

/// How large one cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClusterSize {
    /// Gateways.
    pub(crate) gateways: u16,
    /// Demo backend processes.
    pub(crate) backends: u16,
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One port that must be free before anything starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// TCP or UDP.
    pub(crate) transport: Transport,
    /// Of this machine.
    pub(crate) host: IpAddr,
    /// Port number.
    pub(crate) port: u16,
    /// Who wants it, for people.
    pub(crate) purpose: String,
}

/// Addresses of one control-plane member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemberPorts {
    /// Operators, agents, gateways.
    pub(crate) client: SocketAddr,
    /// Other members.
    pub(crate) peer: SocketAddr,
    /// Metrics and health.
    pub(crate) metrics: SocketAddr,
    /// The page for operators.
    pub(crate) dashboard: SocketAddr,
}

/// Addresses of one agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AgentPorts {
    /// Gateways of its cluster.
    pub(crate) listen: SocketAddr,
    /// Metrics and health.
    pub(crate) metrics: SocketAddr,
}

/// Addresses of one gateway.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatewayPorts {
    /// HTTP by host name.
    pub(crate) http: SocketAddr,
    /// DNS, UDP and TCP.
    pub(crate) dns: SocketAddr,
    /// Health.
    pub(crate) health: SocketAddr,
    /// Metrics.
    pub(crate) metrics: SocketAddr,
    /// Tunnel of worker 0; worker i is i higher.
    pub(crate) tunnel: SocketAddr,
    /// First TCP service.
    pub(crate) tcp_base: SocketAddr,
}

impl Layout {
    /// Lays out a federation of `members` control-plane nodes and these clusters above `base`; `tcp_services` are known
    /// from the start.
    ///
    /// # Errors
    /// A sentence when the ports would not fit below 65,536 or a privileged port would be used.
    pub(crate) fn new(base: u16, members: u16, clusters: &[ClusterSize], tcp_services: usize) -> Result<Self, String> {
        if base < PORT_MIN {
            return Err(format!("--base-port {base} is below {PORT_MIN}"));
        }
        let tcp_ports = if tcp_services <= TCP_SPARE { TCP_SPARE } else { tcp_services + TCP_SPARE };
        let block = (usize::from(TCP_SERVICES) + tcp_ports).next_multiple_of(GATEWAY_STEP);
        let gateway_block = u16::try_from(block)
            .map_err(|_| format!("{tcp_services} TCP services need more ports than a machine has"))?;
        let largest = clusters.iter().map(|size| size.ports(gateway_block)).max().unwrap_or(0);
        let cluster_block = largest.div_ceil(BLOCK_STEP) * BLOCK_STEP;
        let count = u32::try_from(clusters.len()).unwrap_or(u32::MAX);
        let end = u32::from(base) + u32::from(CLUSTERS) + count.saturating_mul(cluster_block);
        if end > u32::from(u16::MAX) {
            let most = clusters.iter().map(|size| size.gateways).max().unwrap_or(0);
            return Err(format!(
                "the ports run out: {count} clusters of up to {most} gateways, with {tcp_ports} TCP ports each, above \
                 --base-port {base} need ports up to {end}, beyond 65535; take a lower --base-port, or fewer clusters, \
                 gateways or TCP services"
            ));
        }
        let cluster_block = u16::try_from(cluster_block).map_err(|_| "a cluster is too large".to_owned())?;
        Ok(Self { host: HOST_DEFAULT, base, members, cluster_block, gateway_block })
    }

    /// Addresses of member `index`, from 0.
    pub(crate) fn member(&self, index: u16) -> MemberPorts {
        MemberPorts {
            client: self.at(index),
            peer: self.at(MEMBER_PEER + index),
            metrics: self.at(MEMBER_METRICS + index),
            dashboard: self.at(MEMBER_DASHBOARD + index),
        }
    }

    /// Where Prometheus would listen.
    pub(crate) fn observer(&self) -> SocketAddr {
        self.at(OBSERVER)
    }

    /// Addresses of the agent of cluster `cluster`, from 0.
    pub(crate) fn agent(&self, cluster: u16) -> AgentPorts {
        let block = self.block(cluster);
        AgentPorts { listen: self.at(block), metrics: self.at(block + 1) }
    }

    /// The same at another address of this machine.
    pub(crate) fn at_host(self, host: IpAddr) -> Self {
        Self { host, ..self }
    }

    /// Addresses of gateway `gateway` of cluster `cluster`, both from 0.
    pub(crate) fn gateway(&self, cluster: u16, gateway: u16) -> GatewayPorts {
        let start = self.block(cluster) + GATEWAYS + gateway * self.gateway_block;
        GatewayPorts {
            http: self.at(start),
            dns: self.at(start + 1),
            health: self.at(start + 2),
            metrics: self.at(start + 3),
            tunnel: self.at(start + TUNNELS),
            tcp_base: self.at(start + TCP_SERVICES),
        }
    }

    /// How many TCP services a gateway has ports for.
    pub(crate) fn tcp_ports(&self) -> u16 {
        self.gateway_block - TCP_SERVICES
    }

    /// Address of backend `backend` of cluster `cluster`, which has `gateways` gateways.
    pub(crate) fn backend(&self, cluster: u16, gateways: u16, backend: u16) -> SocketAddr {
        self.at(self.block(cluster) + GATEWAYS + gateways * self.gateway_block + backend)
    }

    /// Every port that will be listened on.
    pub(crate) fn claims(&self, clusters: &[(String, ClusterSize)], workers: u16) -> Vec<Claim> {
        let mut claims = Vec::new();
        let mut claim = |transport, address: SocketAddr, purpose: String| {
            claims.push(Claim { transport, host: address.ip(), port: address.port(), purpose });
        };
        for index in 0..self.members {
            let ports = self.member(index);
            let name = format!("cp-{}", index + 1);
            claim(Transport::Tcp, ports.client, name.clone());
            claim(Transport::Tcp, ports.peer, format!("{name} (Raft)"));
            claim(Transport::Tcp, ports.metrics, format!("{name} (metrics)"));
            claim(Transport::Tcp, ports.dashboard, format!("{name} (dashboard)"));
        }
        for (index, (name, size)) in (0_u16..).zip(clusters) {
            let agent = self.agent(index);
            claim(Transport::Tcp, agent.listen, format!("{name}/agent"));
            claim(Transport::Tcp, agent.metrics, format!("{name}/agent (metrics)"));
            for gateway in 0..size.gateways {
                let ports = self.gateway(index, gateway);
                let gateway = format!("{name}/gw-{}", gateway + 1);
                claim(Transport::Tcp, ports.http, format!("{gateway} (HTTP)"));
                claim(Transport::Udp, ports.dns, format!("{gateway} (DNS)"));
                claim(Transport::Tcp, ports.dns, format!("{gateway} (DNS)"));
                claim(Transport::Tcp, ports.health, format!("{gateway} (health)"));
                claim(Transport::Tcp, ports.metrics, format!("{gateway} (metrics)"));
                for worker in 0..workers {
                    let tunnel = above(ports.tunnel, worker);
                    claim(Transport::Udp, tunnel, format!("{gateway} (tunnel of worker {worker})"));
                }
                for slot in 0..self.tcp_ports() {
                    claim(Transport::Tcp, above(ports.tcp_base, slot), format!("{gateway} (TCP service {slot})"));
                }
            }
            for backend in 0..size.backends {
                claim(Transport::Tcp, self.backend(index, size.gateways, backend), format!("{name} (demo backend)"));
            }
        }
        claims
    }

    fn block(&self, cluster: u16) -> u16 {
        CLUSTERS + cluster * self.cluster_block
    }

    fn at(&self, offset: u16) -> SocketAddr {
        SocketAddr::new(self.host, self.base + offset)
    }
}

impl ClusterSize {
    fn ports(self, gateway_block: u16) -> u32 {
        u32::from(GATEWAYS) + u32::from(self.gateways) * u32::from(gateway_block) + u32::from(self.backends)
    }
}

/// The address `offset` ports higher.
fn above(address: SocketAddr, offset: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + offset)
}

/// Default of `--address`.
pub(crate) const HOST_DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Default of `--base-port`.
pub(crate) const BASE_PORT_DEFAULT: u16 = 7400;
/// More than the cores of the machines this is for; each worker has a tunnel port.
pub(crate) const WORKERS_MAX: u16 = TCP_SERVICES - TUNNELS;
const PORT_MIN: u16 = 1024;
const MEMBER_PEER: u16 = 10;
const MEMBER_METRICS: u16 = 20;
const MEMBER_DASHBOARD: u16 = 30;
const OBSERVER: u16 = 90;
const CLUSTERS: u16 = 100;
const GATEWAYS: u16 = 10;
const TUNNELS: u16 = 4;
const TCP_SERVICES: u16 = 12;
/// Ports for TCP services that come while the federation runs.
const TCP_SPARE: usize = 18;
/// Gateways start at round numbers.
const GATEWAY_STEP: usize = 10;
const BLOCK_STEP: u32 = 100;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn sizes(gateways: u16, backends: u16, clusters: usize) -> Vec<(String, ClusterSize)> {
        (0..clusters).map(|index| (format!("c{index}"), ClusterSize { gateways, backends })).collect()
    }

    fn layout(base: u16, clusters: &[(String, ClusterSize)]) -> Layout {
        Layout::new(base, 3, &clusters.iter().map(|(_, size)| *size).collect::<Vec<_>>(), 1).unwrap()
    }

    #[test]
    fn the_documented_numbers() {
        let clusters = sizes(2, 5, 3);
        let layout = layout(7400, &clusters);
        assert_eq!([layout.member(0).client.port(), layout.member(2).peer.port()], [7400, 7412]);
        assert_eq!(layout.agent(1).listen.port(), 7600);
        let gateway = layout.gateway(2, 1);
        assert_eq!(
            [gateway.http, gateway.dns, gateway.tunnel, gateway.tcp_base].map(|address| address.port()),
            [7740, 7741, 7744, 7752]
        );
        assert_eq!(layout.backend(0, 2, 4).port(), 7574);
    }

    #[test]
    fn no_port_is_claimed_twice() {
        for (gateways, backends, clusters) in [(1, 0, 1), (2, 5, 3), (16, 40, 8), (3, 31, 20)] {
            let clusters = sizes(gateways, backends, clusters);
            let claims = layout(7400, &clusters).claims(&clusters, WORKERS_MAX);
            let unique: BTreeSet<_> =
                claims.iter().map(|claim| (claim.transport == Transport::Tcp, claim.port)).collect();
            assert_eq!(unique.len(), claims.len());
        }
    }

    #[test]
    fn blocks_grow_with_the_tcp_services_that_there_are() {
        let clusters = sizes(2, 5, 3);
        let sizes: Vec<_> = clusters.iter().map(|(_, size)| *size).collect();
        for (services, ports) in [(0, 18), (18, 18), (22, 48), (100, 118), (500, 518)] {
            let layout = Layout::new(7400, 3, &sizes, services).unwrap();
            assert_eq!(layout.tcp_ports(), ports, "{services} services");
            let claims = layout.claims(&clusters, WORKERS_MAX);
            let unique: BTreeSet<_> =
                claims.iter().map(|claim| (claim.transport == Transport::Tcp, claim.port)).collect();
            assert_eq!(unique.len(), claims.len(), "{services} services");
        }
        let error = Layout::new(7400, 3, &sizes, 20_000).unwrap_err();
        assert!(error.contains("the ports run out") && error.contains("20018 TCP ports"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let many: Vec<_> = sizes(16, 100, 200).into_iter().map(|(_, size)| size).collect();
        assert!(Layout::new(7400, 3, &many, 1).unwrap_err().contains("65535"));
        assert!(Layout::new(80, 3, &[], 1).unwrap_err().contains("below"));
    }
}
