//! What one change costs the control plane's compiler and the wire, in a large federation.
//!
//! `cargo run --profile dist --example bench_stream`: 2,000 services in 10 clusters; one split set, one report of one service
//! changed, one gateway joining; each by compiling everything for every cluster and by what changed alone, and the bytes of
//! the update that a gateway of each cluster gets.

use std::{sync::Arc, time::Instant};

use archipelago_model::{
    compile::{Changed, FederationState, GatewayRecord, Index, compile, compile_service, compile_shared},
    id::{ClusterId, GatewayId},
    resource::Resource,
    stream::{Compiled, Digest, Next, Offer, Resources},
    version::Version,
};
use archipelago_proto::v1::{GatewayAddresses, Protocol, ServiceReport};
use prost::Message;

fn main() {
    let mut state = federation();
    let clusters: Vec<ClusterId> = (0..CLUSTERS).map(|n| ClusterId::new(format!("c-{n}"))).collect();
    let mut index = Index::of(&state);
    let mut running: Vec<Resources> = clusters.iter().map(|cluster| everything(&state, cluster)).collect();
    let bytes = running.first().map_or(0, |resources| sent(&Resources::default(), resources));
    println!("{SERVICES} services, {CLUSTERS} clusters: a gateway that holds nothing gets {bytes} bytes");
    println!("{:<24} {:>12} {:>12} {:>16}", "change", "whole ms", "changed ms", "bytes a gateway");

    let split = resource(
        "TrafficSplit",
        r#"{"name":"web-7","namespace":"shop"}"#,
        r#"{"service":"web-7","backends":[{"cluster":"c-1","weight":90},{"cluster":"c-2","weight":10}]}"#,
    );
    let (key, changed) = (split.key(), index.set_resource(&split.key(), Some(&split)));
    state.resources.insert(key, split);
    measure("one split set", &state, &index, &changed, &clusters, &mut running);

    let reports = state.reports.get_mut("c-3").expect("reported above");
    reports.iter_mut().take(1).for_each(|report| report.versions = vec!["v2".into()]);
    let changed = index.set_reports(&ClusterId::new("c-3"), reports, |_| 0);
    measure("one report changed", &state, &index, &changed, &clusters, &mut running);

    let record = gateway("c-4", 99);
    let changed = index.set_gateway(&GatewayId::new("c-4", "gw-99"), Some(&record));
    state.gateways.insert(("c-4".into(), "gw-99".into()), record);
    measure("one gateway joins", &state, &index, &changed, &clusters, &mut running);
}

fn measure(
    what: &str,
    state: &FederationState,
    index: &Index,
    changed: &Changed,
    clusters: &[ClusterId],
    running: &mut [Resources],
) {
    let begun = Instant::now();
    let whole: Vec<Resources> = clusters.iter().map(|cluster| everything(state, cluster)).collect();
    let whole_time = begun.elapsed();
    let before: Vec<Resources> = running.to_vec();
    let begun = Instant::now();
    for (cluster, resources) in clusters.iter().zip(running.iter_mut()) {
        if changed.shared {
            for resource in compile_shared(index, cluster).into_values() {
                if resources.get(&resource.name).is_none_or(|old| old.version != resource.version) {
                    resources.put(resource.into());
                }
            }
        }
        for resource in changed.services.iter().filter_map(|key| compile_service(index, cluster, key)) {
            resources.put(resource.into());
        }
    }
    let changed_time = begun.elapsed();
    let bytes: usize = before.iter().zip(running.iter()).map(|(before, after)| sent(before, after)).sum();
    assert!(whole.iter().zip(running.iter()).all(|(whole, kept)| whole == kept), "both ways give the same");
    let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    println!("{what:<24} {:>12.2} {:>12.3} {:>16}", millis(whole_time), millis(changed_time), bytes / clusters.len());
}

fn everything(state: &FederationState, cluster: &ClusterId) -> Resources {
    compile(state, cluster.as_ref()).into_values().map(Into::into).collect()
}

/// Bytes of the update that leads from one to the other.
fn sent(before: &Resources, after: &Resources) -> usize {
    let version = |revision| Version { revision, ..Version::default() };
    let compiled = |revision, resources: &Resources| {
        Arc::new(Compiled { version: version(revision), resources: resources.clone() })
    };
    let mut offer = Offer::new(version(0), Digest::default());
    offer.confirmed(version(0));
    let first = offer.next(&compiled(1, before));
    assert!(matches!(first, Next::Update(_)) && offer.acknowledged(version(1)));
    match offer.next(&compiled(2, after)) {
        Next::Update(update) => update.encoded_len(),
        _ => 0,
    }
}

fn federation() -> FederationState {
    let mut state = FederationState { trust_domain: "mesh.example".into(), ..FederationState::default() };
    let mut put = |resource: Resource| drop(state.resources.insert(resource.key(), resource));
    for n in 0..CLUSTERS {
        put(resource("Cluster", &format!(r#"{{"name":"c-{n}"}}"#), &format!(r#"{{"region":"r-{}"}}"#, n / 3)));
    }
    let report = |n: usize| ServiceReport {
        namespace: "shop".into(),
        name: format!("web-{n}"),
        protocol: Protocol::Http1.into(),
        port: 80,
        exported: true,
        versions: vec!["v1".into()],
        ..ServiceReport::default()
    };
    for n in 0..CLUSTERS {
        let cluster = format!("c-{n}");
        for gateway_number in 0..3 {
            let key = (cluster.clone(), format!("gw-{gateway_number}"));
            state.gateways.insert(key, gateway(&cluster, gateway_number));
        }
        state.reports.insert(cluster, (0..SERVICES).map(report).collect());
    }
    state
}

fn gateway(cluster: &str, number: u16) -> GatewayRecord {
    let tunnel = (0..4).map(|worker| format!("10.0.0.{number}:{}", 4_500 + worker)).collect();
    GatewayRecord {
        spiffe_id: format!("spiffe://mesh.example/cluster/{cluster}/gateway/gw-{number}"),
        addresses: GatewayAddresses { tunnel, ..GatewayAddresses::default() },
    }
}

fn resource(kind: &str, metadata: &str, spec: &str) -> Resource {
    let json =
        format!(r#"{{"apiVersion":"archipelago.dev/v1alpha1","kind":"{kind}","metadata":{metadata},"spec":{spec}}}"#);
    Resource::from_json(&json).expect("a resource as it is written in files")
}

const SERVICES: usize = 2_000;
const CLUSTERS: usize = 10;
