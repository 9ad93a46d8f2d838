//! Writes the state directories of two gateways that need no control plane, for benchmarks beside other proxies.
//!
//! `bench_state OUT BACKEND TUNNEL_A TUNNEL_B [SERVICES]`: OUT/a routes every request for host 127.0.0.1 into cluster b, OUT/b to the backend at
//! the address BACKEND; OUT/front is a gateway alone, with the backend as its local endpoint, which takes clients at port 17000
//! too, as in an orchestrated cluster, and at port 17001 for a service that speaks HTTP/2, at the port behind BACKEND's; with SERVICES, OUT/many is a gateway of cluster front with so many services, which four clusters
//! export and of which each has two endpoints there: what it needs to know all that can be seen of its memory. A gateway starts from its disk in production too, so nothing here is a special mode.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use archipelago_gateway::internals::{ConfigState, Store};
use archipelago_identity::{CredentialDir, SpiffeId, testing::TestAuthority};
use archipelago_model::version::Version;
use archipelago_proto::v1::{
    Backend, Capture, Captures, ClusterConfig, ConfigResource, Endpoint, FailoverChain, HttpListener, LocalService,
    LocalUpdate, MeshConfig, PeerConfig, Protocol, RouteRule, ServiceConfig, ServicePort, Tier, config_resource::Body,
    service_port::Listener,
};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, backend, tunnel_a, tunnel_b, services @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: bench_state OUT BACKEND TUNNEL_A TUNNEL_B [SERVICES]");
    };
    let out = PathBuf::from(out);
    let backend: SocketAddr = backend.parse().context("BACKEND is ip:port")?;
    let authority = TestAuthority::new("bench.test");
    let tunnels = [("a", tunnel_a), ("b", tunnel_b)];
    for (cluster, serves) in [("a", "b"), ("b", "b"), ("front", "front")] {
        let mut resources = vec![
            resource("mesh", Body::Mesh(MeshConfig { trust_domain: "bench.test".into(), bundle_der: vec![] })),
            resource("service/bench/echo", Body::Service(service(serves))),
        ];
        if cluster == "front" {
            resources.push(resource("service/bench/calls", Body::Service(calls())));
        }
        let clusters: &[&str] = if cluster == "front" { &["front"] } else { &["a", "b"] };
        for name in clusters {
            let config = ClusterConfig { name: (*name).into(), region: "bench".into(), drained: false };
            resources.push(resource(&format!("cluster/{name}"), Body::Cluster(config)));
        }
        for (other, address) in tunnels.iter().filter(|(other, _)| *other != cluster && cluster != "front") {
            let peer = PeerConfig {
                cluster: (*other).into(),
                gateway: "gw-1".into(),
                spiffe_id: SpiffeId::gateway(authority.trust_domain(), other, "gw-1").to_string(),
                tunnel_addresses: vec![(*address).clone()],
            };
            resources.push(resource(&format!("peer/{other}/gw-1"), Body::Peer(peer)));
        }
        let mut state = ConfigState::new(Version { revision: 1, ..Version::default() }, resources);
        if cluster == serves {
            state = state.with_local(LocalUpdate {
                full: true,
                upserts: if cluster == "front" {
                    vec![local(backend), local_calls(backend)]
                } else {
                    vec![local(backend)]
                },
                captures: (cluster == "front").then(captures),
                ..Default::default()
            });
        }
        save(&out.join(cluster), cluster, &state, &authority)?;
    }
    if let [services] = services {
        save(&out.join("many"), "front", &many(services.parse().context("SERVICES is a number")?), &authority)?;
    }
    Ok(())
}

fn save(dir: &Path, cluster: &str, state: &ConfigState, authority: &TestAuthority) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    Store::new(dir, cluster, "gw-1").save(state)?;
    let id = SpiffeId::gateway(authority.trust_domain(), cluster, "gw-1");
    CredentialDir::new(dir.join("identity")).store(&authority.issue_for(&id, Duration::from_secs(48 * 3600)))?;
    Ok(())
}

fn many(services: usize) -> ConfigState {
    let clusters = ["front", "lyon", "oslo", "tokyo"];
    let mesh = MeshConfig { trust_domain: "bench.test".into(), bundle_der: vec![] };
    let mut resources = vec![resource("mesh", Body::Mesh(mesh))];
    resources.extend(clusters.iter().map(|name| {
        let config = ClusterConfig { name: (*name).into(), region: "bench".into(), drained: false };
        resource(&format!("cluster/{name}"), Body::Cluster(config))
    }));
    let mut upserts = Vec::new();
    for n in 0..services {
        let name = format!("service-{n:05}");
        let hosts = vec![format!("{name}.bench.svc.clusterset.local"), format!("{name}.bench")];
        let exporters = clusters.map(str::to_owned).to_vec();
        let config = ServiceConfig { name: name.clone(), hosts, exporters, ..service("front") };
        resources.push(resource(&format!("service/bench/{name}"), Body::Service(config)));
        let endpoint = |k: u8| {
            let address = SocketAddr::from(([10, 64 + k, (n / 250) as u8, (n % 250) as u8 + 1], 8080));
            Endpoint { instance: format!("{name}-7c9f6d8b5-x{k}"), ..endpoint(address) }
        };
        upserts.push(LocalService { name: name.clone(), endpoints: vec![endpoint(0), endpoint(1)], ..local(UNUSED) });
    }
    let state = ConfigState::new(Version { revision: 1, ..Version::default() }, resources);
    state.with_local(LocalUpdate { full: true, upserts, ..Default::default() })
}

fn service(cluster: &str) -> ServiceConfig {
    let backend = Backend { cluster: cluster.into(), weight: 1, ..Default::default() };
    ServiceConfig {
        namespace: "bench".into(),
        name: "echo".into(),
        hosts: vec!["127.0.0.1".into(), "localhost".into()],
        ports: vec![ServicePort {
            port: 80,
            protocol: Protocol::Http1.into(),
            listener: Some(Listener::Http(HttpListener::default())),
            rules: vec![RouteRule { name: "default".into(), chain: Some(0), ..Default::default() }],
            chains: vec![FailoverChain { tiers: vec![Tier { backends: vec![backend] }] }],
            ..Default::default()
        }],
        exporters: vec![cluster.into()],
        ..Default::default()
    }
}

fn captures() -> Captures {
    let capture = Capture {
        namespace: "bench".into(),
        name: "echo".into(),
        port: 80,
        port_name: "http".into(),
        protocol: Protocol::Http1.into(),
        listen: 17_000,
        cluster_ips: vec!["10.96.0.17".into()],
    };
    let calls = Capture {
        name: "calls".into(),
        port_name: "grpc".into(),
        protocol: Protocol::H2c.into(),
        listen: 17_001,
        cluster_ips: vec!["10.96.0.18".into()],
        ..capture.clone()
    };
    Captures { captures: vec![capture, calls] }
}

/// What gRPC calls go to.
fn calls() -> ServiceConfig {
    let echo = service("front");
    let ports = echo.ports.iter().map(|port| ServicePort { protocol: Protocol::H2c.into(), ..port.clone() }).collect();
    ServiceConfig { name: "calls".into(), hosts: vec!["calls.bench".into()], ports, ..echo }
}

fn local_calls(backend: SocketAddr) -> LocalService {
    let backend = SocketAddr::new(backend.ip(), backend.port() + 1);
    LocalService {
        name: "calls".into(),
        protocol: Protocol::H2c.into(),
        endpoints: vec![endpoint(backend)],
        ..local(UNUSED)
    }
}

fn local(backend: SocketAddr) -> LocalService {
    LocalService {
        namespace: "bench".into(),
        name: "echo".into(),
        protocol: Protocol::Http1.into(),
        port: 80,
        endpoints: vec![endpoint(backend)],
        ..LocalService::default()
    }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint {
        address: address.to_string(),
        version: "v1".into(),
        instance: "backend".into(),
        readiness: archipelago_proto::v1::Readiness::Ready.into(),
        locality: 0,
    }
}

fn resource(name: &str, body: Body) -> ConfigResource {
    ConfigResource { name: name.into(), version: vec![1; 16].into(), body: Some(body), ..Default::default() }
}

const UNUSED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9);
