//! Writes the state directories of two gateways that need no control plane, for benchmarks beside other proxies.
//!
//! `bench_state OUT BACKEND TUNNEL_A TUNNEL_B`: OUT/a routes every request for host 127.0.0.1 into cluster b, OUT/b to the backend at
//! the address BACKEND; OUT/front is a gateway alone, with the backend as its local endpoint, which takes clients at port 17000
//! too, as in an orchestrated cluster. A gateway starts from its disk in production too, so nothing here is a special mode.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

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
    let [out, backend, tunnel_a, tunnel_b] = arguments.as_slice() else {
        anyhow::bail!("usage: bench_state OUT BACKEND TUNNEL_A TUNNEL_B");
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
                upserts: vec![local(backend)],
                captures: (cluster == "front").then(captures),
                ..Default::default()
            });
        }
        let dir = out.join(cluster);
        std::fs::create_dir_all(&dir)?;
        Store::new(&dir, cluster, "gw-1").save(&state)?;
        let id = SpiffeId::gateway(authority.trust_domain(), cluster, "gw-1");
        CredentialDir::new(dir.join("identity")).store(&authority.issue_for(&id, Duration::from_secs(48 * 3600)))?;
    }
    Ok(())
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
    Captures { captures: vec![capture] }
}

fn local(backend: SocketAddr) -> LocalService {
    LocalService {
        namespace: "bench".into(),
        name: "echo".into(),
        protocol: Protocol::Http1.into(),
        port: 80,
        endpoints: vec![Endpoint {
            address: backend.to_string(),
            version: "v1".into(),
            instance: "backend".into(),
            readiness: archipelago_proto::v1::Readiness::Ready.into(),
            locality: 0,
        }],
        ..LocalService::default()
    }
}

fn resource(name: &str, body: Body) -> ConfigResource {
    ConfigResource { name: name.into(), version: vec![1; 16].into(), body: Some(body), ..Default::default() }
}
