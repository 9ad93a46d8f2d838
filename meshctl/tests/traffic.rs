//! What traffic does in a running federation: shares, stickiness, switches, bodies, TCP, names.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use data_encoding::HEXLOWER;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use archipelago_chaos::load::{self, Protocol, Report};
use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::stream;
use harness::client::{address, empty, full};
use harness::suite::{self, shared};
use harness::{Connection, Federation, PATIENCE, Reply, check, eventually, is_within_five_sigma, proc, saw};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn main() -> ExitCode {
    suite::run(&shared![
        a_request_is_served_and_says_by_whom,
        a_split_holds_over_http1_and_http2,
        sticky_users_stay_and_only_the_share_that_must_moves,
        routes_single_out_a_preview,
        a_switch_under_load_loses_nothing_and_is_undone,
        explain_names_rule_cluster_gateway_and_endpoint,
        bodies_arrive_intact_through_a_tunnel_in_bounded_memory,
        a_reader_that_stops_stops_the_sender,
        a_client_that_leaves_cancels_the_backends_request,
        tcp_half_close_works_across_clusters,
        http2_carries_trailers_and_echoes_as_it_goes,
        names_resolve_at_every_gateway,
        metrics_speak_the_meshs_language,
        a_backend_that_becomes_slow_is_named,
    ])
}

async fn a_request_is_served_and_says_by_whom(federation: &Federation) {
    for (name, gateway) in federation.gateways() {
        let (cluster, _) = name.split_once('/').unwrap();
        for (service, host) in [
            ("shop/checkout", "checkout.shop"),
            ("shop/checkout", "checkout.shop.svc.clusterset.local"),
            ("shop/web", "web.shop"),
        ] {
            let reply = Connection::http1(&gateway.http).await.get(host, "/", &[]).await;
            assert_eq!(reply.status, 200, "{name}: {reply:?}");
            // Without a policy the local cluster comes first.
            assert_eq!((reply.field("service").as_str(), reply.field("cluster").as_str()), (service, cluster));
            let id = format!("spiffe://mesh.example/cluster/{cluster}/gateway/");
            assert!(reply.field("source").starts_with(&id), "{name}: {reply:?}");
            assert!(reply.headers["mesh-served-by"].to_str().unwrap().starts_with(cluster), "{reply:?}");
        }
        let unknown = Connection::http1(&gateway.http).await.get("nothing.shop", "/", &[]).await;
        assert_eq!(unknown.status, 404);
    }
    // What a client says about itself is not believed.
    let lie = [("mesh-source", "spiffe://mesh.example/cluster/tokyo/gateway/gw-1"), ("mesh-hop", "7")];
    federation.ok("split set shop/checkout tokyo=1").await;
    let reply =
        Connection::http1(&federation.gateway("paris/gw-1").http).await.get("checkout.shop", "/headers", &lie).await;
    let text = reply.json().to_string();
    assert!(text.contains("cluster/paris/gateway/gw-1") && !text.contains("cluster/tokyo/gateway"), "{text}");
}

/// The backend of tokyo answers 400 ms later than before: whoever asks is told which it is, and that it is the backend.
async fn a_backend_that_becomes_slow_is_named(federation: &Federation) {
    let mut client = Connection::http1(&federation.gateway("frankfurt/gw-1").http).await;
    federation.ok("split set shop/web tokyo=1").await;
    let made = client.send("POST", "web.shop", "/slower/400", &[], empty()).await.unwrap();
    assert_eq!(Reply::read(made).await.json()["slowerMs"], 400);
    federation.ok("split set shop/web paris=9 tokyo=1").await;
    let started = Instant::now();
    let mut found = Value::Null;
    eventually("the slow backend is named", PATIENCE, async || {
        for _ in 0..20 {
            assert_eq!(client.get("web.shop", "/", &[]).await.status, 200);
        }
        found = federation.json("slow shop/web --since 1m").await;
        let is_named = found["verdict"]["hop"] == "first-byte" && found["verdict"]["cluster"] == "tokyo";
        if is_named { Ok(()) } else { Err(found["verdict"].to_string()) }
    })
    .await;
    let verdict = &found["verdict"];
    saw!("after {:.1?}: {}", started.elapsed(), verdict["text"]);
    assert!(verdict["timeMs"].as_f64().unwrap() >= 400.0, "{found:#}");
    assert_eq!((&found["gateways"]["answered"], &found["gateways"]["missing"]), (&6.into(), &Value::Array(vec![])));
    let endpoint = verdict["endpoint"].as_str().unwrap();
    let text = federation.ok("slow shop/web").await.stdout;
    assert!(text.contains(&format!("until the endpoint begins to answer, at {endpoint} in tokyo")), "{text}");
    let mut backend = Connection::http1(&format!("http://{endpoint}")).await;
    let made = backend.send("POST", "web.shop", "/slower/0", &[], empty()).await.unwrap();
    assert_eq!(Reply::read(made).await.json()["slowerMs"], 0);
    let asked = backend.get("web.shop", "/", &[]).await;
    assert_eq!((asked.field("service").as_str(), asked.field("cluster").as_str()), ("shop/web", "tokyo"), "{found:#}");
    federation.meshctl(["slow", "shop/nothing"]).await.expect(1);
}

async fn a_split_holds_over_http1_and_http2(federation: &Federation) {
    federation.ok("split set shop/checkout paris=90 tokyo=10").await;
    for (gateway, protocol) in [("frankfurt/gw-1", Protocol::Http1), ("tokyo/gw-2", Protocol::Http2)] {
        let mut plan = federation.load(gateway, "checkout.shop", SPLIT_RATE);
        plan.protocol = protocol;
        plan.duration = Some(Duration::from_secs_f64(SPLIT_REQUESTS / SPLIT_RATE));
        let report = load::run(plan).await.unwrap();
        assert_eq!(report.failed, 0, "{report}");
        let tokyo = served(&report, "tokyo");
        assert_eq!(tokyo + served(&report, "paris"), report.ok, "{report}");
        saw!("{protocol:?} at {gateway}: {tokyo} of {} requests at tokyo, p99 {:?} µs", report.ok, p99(&report));
        assert!(is_within_five_sigma(tokyo, report.ok, 0.1), "{report}");
    }
}

async fn sticky_users_stay_and_only_the_share_that_must_moves(federation: &Federation) {
    federation.ok("split set shop/checkout paris=90 tokyo=10 --sticky-header x-user").await;
    let before = places(federation, "frankfurt/gw-1").await;
    assert_eq!(places(federation, "frankfurt/gw-2").await, before, "two gateways of a cluster disagree");
    assert_eq!(places(federation, "tokyo/gw-1").await, before, "gateways of two clusters disagree");
    let at_tokyo = before.values().filter(|cluster| *cluster == "tokyo").count() as u64;
    assert!(is_within_five_sigma(at_tokyo, USERS, 0.1), "{at_tokyo} of {USERS} users at tokyo");

    federation.ok("split set shop/checkout paris=80 tokyo=20").await;
    let after = places(federation, "paris/gw-1").await;
    let moved: Vec<_> = before.iter().filter(|(user, cluster)| after[*user] != **cluster).collect();
    assert!(moved.iter().all(|(_, from)| *from == "paris"), "someone moved to the cluster that lost share: {moved:?}");
    saw!("{at_tokyo} of {USERS} users at tokyo; 90/10 → 80/20 moved {} of them, all from paris to tokyo", moved.len());
    assert!(is_within_five_sigma(moved.len() as u64, USERS, 0.1), "{} moved", moved.len());

    federation.ok("split set shop/checkout paris=90 tokyo=10").await;
    assert_eq!(places(federation, "frankfurt/gw-1").await, before, "the way back is not the way there");
}

async fn routes_single_out_a_preview(federation: &Federation) {
    let split = "\
apiVersion: archipelago.dev/v1alpha1
kind: TrafficSplit
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  routes:
    - match: { headers: { x-preview: pr-42 } }
      backends: [{ cluster: tokyo, version: v2, weight: 1 }]
    - match: { cookies: { beta: yes-please }, pathPrefix: /headers }
      backends: [{ cluster: frankfurt, version: v1, weight: 1 }]
    - match: { method: POST }
      backends: [{ cluster: frankfurt, version: v2, weight: 1 }]
  backends: [{ cluster: paris, version: v1, weight: 1 }]
";
    federation.apply(split).await.expect(0);
    for gateway in ["paris/gw-1", "frankfurt/gw-2", "tokyo/gw-1"] {
        let mut connection = Connection::http1(&federation.gateway(gateway).http).await;
        for (headers, expected) in [
            (&[("x-preview", "pr-42")][..], "tokyo/v2"),
            (&[("X-Preview", "pr-42"), ("cookie", "a=b; beta=yes-please")], "tokyo/v2"),
            (&[("x-preview", "pr-41")], "paris/v1"),
            (&[("cookie", "beta=yes-please")], "paris/v1"),
            (&[], "paris/v1"),
        ] {
            for _ in 0..5 {
                let reply = connection.get("checkout.shop", "/", headers).await;
                assert_eq!(place(&reply), expected, "{gateway}, {headers:?}");
            }
        }
        let beta = connection.get("checkout.shop", "/headers", &[("cookie", "x=y; beta=yes-please")]).await;
        assert!(beta.headers["mesh-served-by"].to_str().unwrap().starts_with("frankfurt"), "{beta:?}");
        let posted = connection.send("POST", "checkout.shop", "/", &[], full("hello")).await.unwrap();
        assert_eq!(place(&Reply::read(posted).await), "frankfurt/v2", "{gateway}");
    }
}

async fn a_switch_under_load_loses_nothing_and_is_undone(federation: &Federation) {
    federation.ok("split set shop/checkout paris=90 frankfurt=10").await;
    let mut plan = federation.load("frankfurt/gw-1", "checkout.shop", LOAD_RATE);
    plan.arrivals = load::Arrivals::Poisson;
    let running = load::start(plan).unwrap();
    assert!(running.until(|counters| counters.ok >= 300).await);

    let switched = federation.json("switch shop/checkout --to tokyo").await;
    saw!("switch: {}", switched);
    assert_eq!((&switched["stragglers"], &switched["expected"]), (&serde_json::json!([]), &serde_json::json!(6)));
    assert!(switched["lastAckMillis"].as_f64().unwrap() >= switched["firstAckMillis"].as_f64().unwrap());
    // Every gateway has acknowledged: from here on not one request goes anywhere else.
    for gateway in federation.gateways().values() {
        let mut connection = Connection::http1(&gateway.http).await;
        for _ in 0..20 {
            assert_eq!(connection.get("checkout.shop", "/", &[]).await.field("cluster"), "tokyo");
        }
    }
    let so_far = running.counters().ok;
    assert!(running.until(|counters| counters.ok >= so_far + 300).await);

    federation.ok("switch shop/checkout --undo").await;
    let so_far = running.counters().ok;
    assert!(running.until(|counters| counters.ok >= so_far + 300).await);
    running.stop();
    let report = running.finish().await.unwrap();
    saw!("{} requests at {LOAD_RATE}/s, {} failed, p99 {:?} µs", report.sent, report.failed, p99(&report));
    assert_eq!(report.failed, 0, "{report}");
    let back = federation.json("split get shop/checkout").await;
    let weights: Vec<_> = back["spec"]["backends"].as_array().unwrap().iter().map(|b| b["weight"].clone()).collect();
    assert_eq!(weights, [90, 10], "{back}");
    federation.meshctl(["switch", "shop/checkout", "--undo"]).await.expect(1).says(&["no switch", "hint:"]);
}

async fn explain_names_rule_cluster_gateway_and_endpoint(federation: &Federation) {
    federation.ok("split set shop/checkout tokyo:v2=1 --header x-preview=pr-42").await;
    let remote = federation.json("explain --from paris/gw-1 --to shop/checkout --header x-preview=pr-42").await;
    saw!("explain: {remote}");
    assert_eq!((&remote["from"], &remote["service"]), (&"paris/gw-1".into(), &"shop/checkout".into()), "{remote}");
    assert_eq!(remote["chosenCluster"], "tokyo");
    assert!(remote["chosenGateway"].as_str().unwrap().contains("gw-"), "{remote}");
    assert!(
        !remote["rule"].as_str().unwrap().is_empty() && remote["reasons"].as_array().unwrap().len() > 2,
        "{remote}"
    );
    assert_eq!(remote["failure"], serde_json::Value::Null);

    let local = federation.json("explain --from paris --to shop/checkout").await;
    assert_eq!(local["chosenCluster"], "paris", "{local}");
    assert_ne!(local["rule"], remote["rule"]);
    let endpoint: std::net::SocketAddr = local["chosenEndpoint"].as_str().unwrap().parse().unwrap();
    let status = federation.status().await;
    let backends = status.running(|process| process.name.starts_with("paris/checkout-"));
    assert!(backends.iter().any(|(_, pid)| proc::flag(*pid, "--listen") == endpoint.to_string()), "{endpoint}");

    let ran = federation.meshctl(["explain", "--from", "paris", "--to", "shop/nothing"]).await;
    ran.expect(1).says(&["shop"]);
    let ran = federation.meshctl(["explain", "--from", "lyon", "--to", "shop/checkout"]).await;
    ran.expect(1).says(&["lyon"]);
}

async fn bodies_arrive_intact_through_a_tunnel_in_bounded_memory(federation: &Federation) {
    federation.ok("split set shop/checkout tokyo:v1=1").await;
    let status = federation.status().await;
    let memory = proc::watch_memory(status.running(|process| process.role == "gateway"));
    let url = &federation.gateway("frankfurt/gw-1").http;

    let mut connection = Connection::http1(url).await;
    let path = format!("/bytes/{BODY_BYTES}");
    let response = connection.send("GET", "checkout.shop", &path, &[], empty()).await.unwrap();
    assert_eq!(response.status(), 200);
    let (hash, bytes) = digest_of(response.into_body()).await;
    assert_eq!((bytes, hash.as_str()), (BODY_BYTES, pattern_digest(BODY_BYTES).as_str()), "download");

    for protocol in [Protocol::Http1, Protocol::Http2] {
        let mut connection = Connection::open(url, protocol).await;
        let chunks = pattern(BODY_BYTES).map(|chunk| Ok(Frame::data(chunk)));
        let body = StreamBody::new(stream::iter(chunks)).boxed_unsync();
        let response = connection.send("POST", "checkout.shop", "/digest", &[], body).await.unwrap();
        let reply = Reply::read(response).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.headers["mesh-served-by"].to_str().unwrap().starts_with("tokyo"), "{reply:?}");
        let expected = serde_json::json!({ "bytes": BODY_BYTES, "sha256": pattern_digest(BODY_BYTES) });
        assert_eq!(reply.json(), expected, "upload over {protocol:?}");
    }
    let (name, growth) = memory.growth();
    saw!("3 × {BODY_BYTES} bytes intact; {name} grew most, by {} KiB", growth / 1024);
    assert!(growth <= MEMORY_GROWTH_MAX, "{name} grew by {growth} bytes");
}

async fn a_reader_that_stops_stops_the_sender(federation: &Federation) {
    federation.ok("split set shop/checkout tokyo:v1=1").await;
    let status = federation.status().await;
    let backend = address(&proc::flag(status.pid("tokyo/checkout-v1-1"), "--listen"));
    let memory = proc::watch_memory(status.running(|process| matches!(process.role.as_str(), "gateway" | "demo")));
    let url = &federation.gateway("frankfurt/gw-1").http;
    let before = cancelled(url).await;

    let mut client = TcpStream::connect(address(url)).await.unwrap();
    let request = format!("GET /bytes/{} HTTP/1.1\r\nhost: checkout.shop\r\n\r\n", 1_u64 << 32);
    client.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 64];
    client.read_exact(&mut head).await.unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&head));

    // From here on the client does not read. The backend has stopped when bytes that it wrote stay in its own
    // kernel's buffer and their number does not change any more.
    let mut last = Vec::new();
    let mut unchanged = 0;
    eventually("the backend's connection fills up and stands still", PATIENCE, async || {
        let now: Vec<(u64, u64)> = proc::connections_of(backend)
            .into_iter()
            .map(|socket| (u64::from(socket.remote.port()), socket.unsent))
            .filter(|(_, unsent)| *unsent > 0)
            .collect();
        unchanged = if now == last && !now.is_empty() { unchanged + 1 } else { 0 };
        last = now;
        check(unchanged >= STILL, || format!("{last:?}, unchanged {unchanged} times"))
    })
    .await;
    let (name, growth) = memory.growth();
    saw!("the backend stands still with {last:?} unsent; {name} grew most, by {} KiB", growth / 1024);
    assert!(growth <= MEMORY_GROWTH_MAX, "{name} grew by {growth} bytes");

    // Reading on sets it in motion again, and leaving ends it.
    let mut more = vec![0; 32 << 20];
    client.read_exact(&mut more).await.unwrap();
    drop(client);
    eventually("the backend sees that the client left", PATIENCE, async || {
        let now = cancelled(url).await;
        check(now > before, || format!("{now} cancelled"))
    })
    .await;
}

async fn a_client_that_leaves_cancels_the_backends_request(federation: &Federation) {
    federation.ok("split set shop/checkout tokyo:v1=1").await;
    let url = &federation.gateway("frankfurt/gw-2").http;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        // In the middle of a response.
        let before = cancelled(url).await;
        let mut connection = Connection::open(url, protocol).await;
        let mut response = connection.send("GET", "checkout.shop", "/stream/100000/50", &[], empty()).await.unwrap();
        response.body_mut().frame().await.unwrap().unwrap();
        drop((response, connection));
        eventually("the response is cancelled", PATIENCE, async || {
            let now = cancelled(url).await;
            check(now > before, || format!("{protocol:?}: {now} cancelled"))
        })
        .await;

        // Before it has begun. Nothing says that it is at the backend: one that was not is not counted, and sent again with more time.
        let before = cancelled(url).await;
        let mut begin = Duration::from_millis(250);
        eventually("the request is cancelled", PATIENCE, async || {
            begin *= 2;
            let mut connection = Connection::open(url, protocol).await;
            let waiting = connection.send("GET", "checkout.shop", "/delay/600000", &[], empty());
            let begun = tokio::time::timeout(begin, waiting).await;
            assert!(begun.is_err(), "{begun:?}");
            drop(connection);
            tokio::time::sleep(begin).await;
            let now = cancelled(url).await;
            check(now > before, || format!("{protocol:?}: {now} cancelled"))
        })
        .await;
    }
}

async fn tcp_half_close_works_across_clusters(federation: &Federation) {
    federation.ok("split set shop/ledger tokyo=1").await;
    let services = federation.json("services").await;
    let ledger = services.as_array().unwrap().iter().find(|service| service["name"] == "shop/ledger").unwrap();
    let reached = ledger["tcp"].as_array().unwrap();
    assert_eq!(reached.len(), 6, "{ledger}");
    for (bytes, at) in [(0, "frankfurt"), (3, "paris"), (4 << 20, "frankfurt"), (1 << 20, "tokyo")] {
        let place = reached.iter().find(|place| place["cluster"] == at).unwrap();
        let stream = TcpStream::connect(address(place["address"].as_str().unwrap())).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        for chunk in pattern(bytes) {
            write.write_all(&chunk).await.unwrap();
        }
        write.shutdown().await.unwrap();
        let mut answer = String::new();
        read.read_to_string(&mut answer).await.unwrap();
        let receipt: serde_json::Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
        let expected = serde_json::json!({
            "service": "shop/ledger", "cluster": "tokyo", "bytes": bytes, "sha256": pattern_digest(bytes),
        });
        assert_eq!(receipt, expected, "entering at {at}");
    }
}

async fn http2_carries_trailers_and_echoes_as_it_goes(federation: &Federation) {
    federation.ok("split set shop/catalog tokyo=1").await;
    let url = &federation.gateway("paris/gw-1").http;
    let mut connection = Connection::open(url, Protocol::Http2).await;
    let reply = connection.get("catalog.shop", "/", &[]).await;
    assert_eq!((reply.field("protocol").as_str(), reply.field("cluster").as_str()), ("HTTP/2", "tokyo"));
    let reply = connection.get("catalog.shop", "/trailers", &[("te", "trailers")]).await;
    let trailers = reply.trailers.as_ref().unwrap_or_else(|| panic!("no trailers: {reply:?}"));
    assert_eq!(trailers["x-demo-bytes"].to_str().unwrap(), reply.body.len().to_string());
    assert_eq!(
        trailers["x-demo-sha256"].to_str().unwrap(),
        HEXLOWER.encode(digest::digest(&digest::SHA256, &reply.body).as_ref())
    );

    // Each chunk comes back before the next one is sent: nothing waits for the end of the request.
    let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::convert::Infallible>::new(1);
    sender.send_data(Bytes::from_static(b"first")).await.unwrap();
    let mut response = connection.send("POST", "catalog.shop", "/echo", &[], body.boxed_unsync()).await.unwrap();
    for (expected, next) in [("first", Some("second")), ("second", Some("third")), ("third", None)] {
        let mut got = Vec::new();
        while got.len() < expected.len() {
            let frame = tokio::time::timeout(PATIENCE, response.body_mut().frame()).await;
            got.extend_from_slice(&frame.expect("the echo hangs").unwrap().unwrap().into_data().unwrap());
        }
        assert_eq!(String::from_utf8(got).unwrap(), expected);
        if let Some(next) = next {
            sender.send_data(Bytes::from_static(next.as_bytes())).await.unwrap();
        }
    }
    drop(sender);
    let rest = Reply::read(response).await;
    assert!(rest.body.is_empty(), "{rest:?}");
}

async fn names_resolve_at_every_gateway(federation: &Federation) {
    use hickory_proto::op::ResponseCode::{NXDomain, NoError, Refused};
    use hickory_proto::rr::{RData, RecordType};

    for (name, gateway) in federation.gateways() {
        let http = address(&gateway.http);
        for transport in [proc::Transport::Udp, proc::Transport::Tcp] {
            let ask = async |host, kind| ask(address(&gateway.dns), transport, host, kind).await;
            let found = ask("checkout.shop.svc.clusterset.local.", RecordType::A).await;
            assert_eq!((found.metadata.response_code, found.answers.len()), (NoError, 1), "{name}: {found}");
            assert!(matches!(&found.answers[0].data, RData::A(a) if a.0 == http.ip()), "{name}: {found}");
            let found = ask("checkout.shop.svc.clusterset.local.", RecordType::SRV).await;
            assert!(
                matches!(&found.answers[..], [record] if matches!(&record.data,
                RData::SRV(srv) if srv.port == http.port())),
                "{name}: {found}"
            );
            let none = ask("checkout.shop.svc.clusterset.local.", RecordType::AAAA).await;
            assert_eq!((none.metadata.response_code, none.answers.len()), (NoError, 0), "NODATA: {none}");
            assert!(matches!(none.authorities[..], [ref soa] if soa.record_type() == RecordType::SOA), "{none}");
            let none = ask("nothing.shop.svc.clusterset.local.", RecordType::A).await;
            assert_eq!((none.metadata.response_code, none.authorities.len()), (NXDomain, 1), "{none}");
            let foreign = ask("example.com.", RecordType::A).await;
            assert_eq!(foreign.metadata.response_code, Refused, "{foreign}");
        }
    }
    // The SRV of a TCP service is where it can be connected to.
    let ledger = ask(
        address(&federation.gateway("paris/gw-2").dns),
        proc::Transport::Udp,
        "_tcp._tcp.ledger.shop.svc.clusterset.local.",
        RecordType::SRV,
    )
    .await;
    let RData::SRV(srv) = &ledger.answers[0].data else { panic!("{ledger}") };
    let mut stream = TcpStream::connect(("127.0.0.1", srv.port)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\"service\":\"shop/ledger\""), "{answer:?}");
}

async fn metrics_speak_the_meshs_language(federation: &Federation) {
    federation.ok("split set shop/checkout tokyo=1").await;
    let gateway = federation.gateway("paris/gw-1");
    let mut connection = Connection::http1(&gateway.http).await;
    for _ in 0..10 {
        assert_eq!(connection.get("checkout.shop", "/", &[]).await.status, 200);
    }
    let wanted = [
        "mesh_requests_total{",
        "mesh_request_duration_seconds_bucket{",
        "mesh_tunnel_state{",
        "mesh_tunnel_rtt_seconds{",
        "mesh_gateway_config_revision ",
        "source_cluster=\"paris\"",
        "destination_cluster=\"tokyo\"",
        "destination_service=\"shop/checkout\"",
    ];
    let text = eventually("the metrics of the requests", PATIENCE, async || {
        let reply = Connection::http1(&gateway.metrics).await.get("localhost", "/metrics", &[]).await;
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        let missing: Vec<_> = wanted.iter().filter(|word| !text.contains(**word)).collect();
        check(reply.status == 200 && missing.is_empty(), || format!("{missing:?} missing in\n{text}"))?;
        Ok(text)
    })
    .await;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(is_ours(line), "{line}");
        // Closed sets only: addresses and paths would grow without bound.
        assert!(!line.contains("127.0.0.1"), "{line}");
    }
    // Every other process that has metrics speaks the same language.
    let status = federation.status().await;
    for (name, flag) in [("cp-1", "--listen-metrics"), ("paris/agent", "--metrics")] {
        let reply =
            Connection::http1(&proc::flag(status.pid(name), flag)).await.get("localhost", "/metrics", &[]).await;
        let text = String::from_utf8(reply.body.to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() > 3 && lines.iter().all(|line| is_ours(line)), "{name}: {text}");
    }
}

/// The mesh's own, or what any process says of itself (Prometheus' client libraries agree on those names).
fn is_ours(line: &str) -> bool {
    line.starts_with("mesh_") || line.starts_with("process_")
}

fn served(report: &Report, cluster: &str) -> u64 {
    report.by_cluster.get(cluster).copied().unwrap_or(0)
}

fn p99(report: &Report) -> Option<u64> {
    report.latency_micros.map(|latency| latency.p99)
}

/// `cluster/version` that answered.
fn place(reply: &Reply) -> String {
    format!("{}/{}", reply.field("cluster"), reply.field("version"))
}

/// The cluster that serves each of [`USERS`] users, asked at one gateway.
async fn places(federation: &Federation, gateway: &str) -> BTreeMap<String, String> {
    let url = &federation.gateway(gateway).http;
    let connections = (0..CONNECTIONS).map(async |part| {
        let mut connection = Connection::http1(url).await;
        let mut places = Vec::new();
        for number in (part..USERS).step_by(CONNECTIONS as usize) {
            let user = format!("user-{number}");
            let reply = connection.get("checkout.shop", "/", &[("x-user", &user)]).await;
            places.push((user, reply.field("cluster")));
        }
        places
    });
    futures_util::future::join_all(connections).await.into_iter().flatten().collect()
}

/// How many requests the backend at the end of this gateway's route saw cancelled.
async fn cancelled(url: &str) -> u64 {
    let reply = Connection::http1(url).await.get("checkout.shop", "/cancelled", &[]).await;
    reply.json()["cancelled"].as_u64().unwrap_or_else(|| panic!("{reply:?}"))
}

/// The bytes of `GET /bytes/N`, in chunks: byte `i` is `i % 251`.
fn pattern(length: u64) -> impl Iterator<Item = Bytes> + Send + 'static {
    // A whole number of periods, so that every chunk begins alike.
    let chunk: Bytes = (0..251 * 256).map(|offset: u32| (offset % 251) as u8).collect();
    let size = chunk.len() as u64;
    (0..length.div_ceil(size)).map(move |index| chunk.slice(..(length - index * size).min(size) as usize))
}

fn pattern_digest(length: u64) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    for chunk in pattern(length) {
        hash.update(&chunk);
    }
    HEXLOWER.encode(hash.finish().as_ref())
}

async fn digest_of(mut body: hyper::body::Incoming) -> (String, u64) {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let chunk = frame.unwrap().into_data().unwrap();
        bytes += chunk.len() as u64;
        hash.update(&chunk);
    }
    (HEXLOWER.encode(hash.finish().as_ref()), bytes)
}

/// One DNS question.
async fn ask(
    server: std::net::SocketAddr,
    transport: proc::Transport,
    host: &str,
    kind: hickory_proto::rr::RecordType,
) -> hickory_proto::op::Message {
    use hickory_proto::op::{Message, Query};

    let mut question = Message::query();
    question.add_query(Query::query(hickory_proto::rr::Name::from_ascii(host).unwrap(), kind));
    let bytes = question.to_vec().unwrap();
    let answer = match transport {
        proc::Transport::Udp => {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(server).await.unwrap();
            socket.send(&bytes).await.unwrap();
            let mut buffer = vec![0; 4096];
            let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("no answer").unwrap();
            buffer.truncate(length);
            buffer
        }
        proc::Transport::Tcp => {
            let mut stream = TcpStream::connect(server).await.unwrap();
            stream.write_all(&(bytes.len() as u16).to_be_bytes()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            let mut buffer = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut buffer).await.unwrap();
            buffer
        }
    };
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    answer
}

/// What unoptimised gateways, their clients and their backends do together on two cores with room to spare.
const LOAD_RATE: f64 = 150.0;
const SPLIT_RATE: f64 = 300.0;
const SPLIT_REQUESTS: f64 = 5_000.0;
const USERS: u64 = 600;
const CONNECTIONS: u64 = 6;
const BODY_BYTES: u64 = 64 << 20;
/// The bound.
const MEMORY_GROWTH_MAX: u64 = 64 << 20;
/// Looks at a connection without a change: a second.
const STILL: u32 = 20;
