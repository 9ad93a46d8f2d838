//! A gateway's own requests through its tunnels, which the gateway at the other end answers itself.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use archipelago_tunnel::Cut;

use harness::{Mesh, eventually, get, text};

#[tokio::test]
async fn every_tunnel_is_answered_at_its_other_end_or_says_why_not() {
    let mut mesh = Mesh::start(&["frankfurt", "paris", "tokyo"]).await;
    mesh.configure(vec![], &[]).await;
    let workers = mesh.gateways["paris"].workers();
    let probed = async || -> Vec<(String, bool)> {
        let probes = workers.probe().await.into_iter();
        probes
            .map(|probe| {
                assert_eq!(probe.to, format!("{}/gw-1", probe.to_cluster));
                assert!(!probe.failure.is_empty() || probe.round_trip_micros > 0, "{probe:?}");
                (probe.to, probe.failure.is_empty())
            })
            .collect()
    };
    let outcome = |frankfurt, tokyo| vec![("frankfurt/gw-1".to_owned(), frankfurt), ("tokyo/gw-1".to_owned(), tokyo)];
    eventually("both are answered", async || probed().await == outcome(true, true)).await;
    workers.cut(&Cut { clusters: vec!["tokyo".into()], ..Cut::default() }).await;
    eventually("the one that is cut says so, alone", async || probed().await == outcome(true, false)).await;
    workers.heal().await;
    eventually("both are answered again", async || probed().await == outcome(true, true)).await;

    // Neither end counts it as a request of a client, or as one that was refused.
    for cluster in ["paris", "tokyo"] {
        let metrics = text(get(mesh.metrics(cluster), "a", "/metrics", &[]).await.unwrap()).await;
        let counted = |name: &str| metrics.lines().any(|line| line.starts_with(name) && !line.ends_with(" 0"));
        assert!(!counted("mesh_gateway_refused_streams_total"), "{metrics}");
        assert!(!counted("mesh_requests_total"), "{metrics}");
    }
    // And nobody gets one into a tunnel from outside.
    let answer = get(mesh.http("paris"), "probe.archipelago.invalid", "/", &[]).await.unwrap();
    assert_eq!(answer.status(), 404);
}
