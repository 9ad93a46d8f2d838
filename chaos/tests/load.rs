//! The load generator against real sockets: the demo backends, and servers that misbehave.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use archipelago_chaos::load::{self, Arrivals, Plan, PlanError, Protocol};
use archipelago_demo as demo;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn every_request_is_sent_answered_and_attributed() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let address = backend(protocol).await;
        let mut plan = plan(address, "/", 400.0, 500);
        plan.protocol = protocol;
        plan.connections = 20;
        let report = load::run(plan).await.unwrap();
        assert!(report.is_success(), "{report}");
        assert_eq!((report.sent, report.ok, report.in_flight), (200, 200, 0));
        assert_eq!(report.by_status[&200], 200);
        assert_eq!(report.by_cluster["paris"], 200);
        assert_eq!(report.by_version["paris/v2"], 200);
        assert_eq!(report.latency_micros.unwrap().count, 200);
        assert_eq!(report.timeline.iter().map(|row| row.sent).sum::<u64>(), 200);
        assert_eq!(report.timeline[0].by_cluster["paris"], report.timeline[0].ok);
        // Used again and again, however late they are answered.
        assert!(report.generator.connections_opened <= 20, "{report}");
    }
}

#[tokio::test]
async fn several_threads_share_the_work() {
    for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
        let address = backend(Protocol::Http1).await;
        let mut plan = plan(address, "/", 600.0, 500);
        plan.workers = 3;
        plan.arrivals = arrivals;
        let report = load::run(plan).await.unwrap();
        assert!(report.is_success(), "{report}");
        match arrivals {
            Arrivals::Constant => assert_eq!(report.ok, 300),
            // Within six deviations of the expected 300.
            Arrivals::Poisson => assert!((200..400).contains(&report.ok), "{report}"),
        }
    }
}

#[tokio::test]
async fn the_json_has_the_documented_shape() {
    let address = backend(Protocol::Http1).await;
    let mut plan = plan(address, "/", 100.0, 100);
    plan.host = Some("checkout.shop".to_owned());
    let report = load::run(plan).await.unwrap();
    let json = serde_json::to_value(&report).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(&json),
        [
            "byCluster",
            "byStatus",
            "byVersion",
            "elapsedMillis",
            "failed",
            "failureSamples",
            "failures",
            "generator",
            "inFlight",
            "latencyMicros",
            "ok",
            "plan",
            "sent",
            "startedUnixMillis",
            "target",
            "timeline",
        ]
    );
    assert_eq!(
        keys(&json["timeline"][0]),
        ["byCluster", "failed", "maxMicros", "ok", "p50Micros", "p99Micros", "second", "sent"]
    );
    assert_eq!(keys(&json["latencyMicros"]), ["count", "max", "mean", "p50", "p90", "p99", "p999"]);
    assert_eq!(keys(&json["failures"]), ["connect", "overload", "protocol", "reset", "status", "timeout"]);
    assert_eq!(json["target"]["host"], "checkout.shop");
    assert_eq!(json["target"]["protocol"], "HTTP/1.1");
    assert_eq!(json["plan"]["arrivals"], "constant");
    assert_eq!(json["byStatus"]["200"], 10);
}

#[tokio::test]
async fn a_stall_shows_in_every_request_that_was_due_during_it() {
    let mut plan = plan(backend(Protocol::Http1).await, "/delay/100", 40.0, 500);
    plan.connections = 1;
    let report = load::run(plan).await.unwrap();
    assert!(report.is_success(), "{report}");
    // One at a time, 100 ms each: 20 requests take two seconds, and the last was due after half of one.
    let latency = report.latency_micros.unwrap();
    assert!(latency.max >= 1_500_000, "{report}");
    assert!(latency.p50 >= 700_000, "{report}");
    assert_eq!(report.generator.connections_opened, 1);
}

#[tokio::test]
async fn an_unexpected_status_is_a_failure() {
    let mut plan = plan(backend(Protocol::Http1).await, "/status/503", 100.0, 100);
    let report = load::run(plan.clone()).await.unwrap();
    assert_eq!((report.failed, report.failures.status), (10, 10));
    assert_eq!(report.by_status[&503], 10);
    assert!(report.by_cluster.is_empty());
    assert!(report.failure_samples[0].message.contains("503 from paris"), "{report}");
    plan.expect = "503".parse().unwrap();
    assert!(load::run(plan).await.unwrap().is_success());
}

#[tokio::test]
async fn nobody_listening_is_a_connect_failure() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        // Bound and not listening: connections are refused, and nobody else gets the port.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut plan = plan(socket.local_addr().unwrap(), "/", 100.0, 100);
        plan.protocol = protocol;
        let report = load::run(plan).await.unwrap();
        assert_eq!((report.sent, report.failed, report.failures.connect), (10, 10, 10), "{report}");
        assert_eq!(report.latency_micros, None);
        assert!(!report.is_success());
    }
}

#[tokio::test]
async fn a_silent_server_is_a_timeout_as_long_as_the_timeout() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let address = server(|mut stream| async move {
            // Reads for ever, says nothing.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        })
        .await;
        let mut plan = plan(address, "/", 100.0, 100);
        plan.protocol = protocol;
        plan.timeout = Duration::from_millis(150);
        let report = load::run(plan).await.unwrap();
        assert_eq!((report.failed, report.failures.timeout), (10, 10), "{report}");
        assert!(report.latency_micros.unwrap().p50 >= 150_000, "{report}");
    }
}

#[tokio::test]
async fn a_connection_that_closes_early_is_a_reset() {
    let cases: [&'static [u8]; 3] =
        [b"", b"HTTP/1.1 200 OK\r\ncontent-len", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfive"];
    for answer in cases {
        let report = load::run(plan(answering(answer).await, "/", 100.0, 50)).await.unwrap();
        assert_eq!((report.failed, report.failures.reset), (5, 5), "{answer:?}: {report}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_protocol_failure() {
    let garbage = b"220 smtp.example.org ready\r\n\r\n";
    let report = load::run(plan(answering(garbage).await, "/", 100.0, 50)).await.unwrap();
    assert_eq!((report.failed, report.failures.protocol), (5, 5), "{report}");
    let address = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        // A close that races with the client's own first frames would be a reset.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let mut plan = plan(address, "/", 100.0, 50);
    plan.protocol = Protocol::Http2;
    let report = load::run(plan).await.unwrap();
    // A connection that has heard the garbage before its request was sent is found closed, which is a reset.
    let seen = report.failures.protocol + report.failures.reset;
    assert_eq!((report.failed, seen), (5, 5), "{report}");
    assert!(report.failures.protocol > 0, "none was told what it heard: {report}");
}

#[tokio::test]
async fn the_gateway_names_the_cluster_when_the_body_does_not() {
    let answer = b"HTTP/1.1 200 OK\r\nmesh-served-by: tokyo/tokyo-2\r\ncontent-length: 2\r\n\r\nok";
    let report = load::run(plan(answering(answer).await, "/", 100.0, 50)).await.unwrap();
    assert_eq!(report.by_cluster["tokyo"], 5, "{report}");
}

#[tokio::test]
async fn too_many_requests_under_way_are_said_and_not_skipped() {
    let mut plan = plan(backend(Protocol::Http1).await, "/delay/300", 100.0, 200);
    plan.in_flight_max = 4;
    let report = load::run(plan).await.unwrap();
    assert_eq!(report.sent, 20);
    assert_eq!(report.ok + report.failures.overload, 20, "{report}");
    assert!(report.ok >= 4 && report.failures.overload > 0, "{report}");
}

#[tokio::test]
async fn bodies_and_headers_arrive() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let mut plan = plan(backend(protocol).await, "/digest", 50.0, 100);
        plan.protocol = protocol;
        plan.method = http::Method::POST;
        plan.body_bytes = 300_000;
        plan.headers = vec![("x-user".to_owned(), "u-{n}".to_owned())];
        let report = load::run(plan).await.unwrap();
        assert!(report.is_success(), "{report}");
    }
}

#[tokio::test]
async fn a_run_without_end_can_be_watched_and_stopped() {
    let mut plan = plan(backend(Protocol::Http1).await, "/", 500.0, 1);
    plan.duration = None;
    let running = load::start(plan).unwrap();
    assert!(running.until(|counters| counters.ok >= 50).await);
    assert!(running.report().ok >= 50);
    running.stop();
    assert!(!running.until(|_| false).await);
    let report = running.finish().await.unwrap();
    assert_eq!((report.sent, report.failed, report.in_flight), (report.ok, 0, 0));
    assert_eq!(report.plan.duration_millis, None);
}

#[tokio::test]
async fn a_server_that_restarts_costs_only_what_it_was_serving() {
    let address = backend(Protocol::Http1).await;
    let link =
        archipelago_chaos::link::TcpLink::start(archipelago_chaos::link::LinkConfig::transparent(address)).unwrap();
    let mut plan = plan(link.local_addr(), "/", 200.0, 1);
    plan.duration = None;
    plan.timeout = Duration::from_secs(2);
    let running = load::start(plan).unwrap();
    assert!(running.until(|counters| counters.ok >= 20).await);
    // Resets every connection and listens no more.
    drop(link);
    assert!(running.until(|counters| counters.failed >= 5).await);
    let report = running.report();
    assert!(report.failures.connect > 0, "{report}");
    assert_eq!(report.failed, report.failures.connect + report.failures.reset, "{report}");
}

#[tokio::test]
async fn impossible_plans_are_refused() {
    assert!(matches!(Plan::new("ftp://a/", 1.0, None), Err(PlanError::Url(_))));
    let mut plan = Plan::new("http://127.0.0.1:1/", 1.0, None).unwrap();
    plan.rate = -1.0;
    assert!(load::start(plan.clone()).is_err());
    plan.rate = 1.0;
    plan.host = Some("not a host".to_owned());
    assert!(load::start(plan).is_err());
}

#[test]
fn the_command_answers_with_json_and_an_exit_code() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = runtime.block_on(backend(Protocol::Http1));
    let run = |path: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_chaos"))
            .args(["load", &format!("http://{address}{path}")])
            .args(["--rate", "100", "--duration", "200ms", "-o", "json"])
            .output()
            .unwrap()
    };
    let good = run("/");
    assert_eq!(good.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(report["byCluster"]["paris"], 20);
    let bad = run("/status/500");
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("error: 20 of 20 requests failed"));
    let report: Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!(report["failures"]["status"], 20);
    assert_eq!(run("/ /").status.code(), Some(2));
}

fn plan(address: SocketAddr, path: &str, rate: f64, millis: u64) -> Plan {
    let duration = Duration::from_millis(millis);
    Plan { timeout: Duration::from_secs(20), ..Plan::new(&format!("http://{address}{path}"), rate, duration).unwrap() }
}

async fn backend(protocol: Protocol) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let identity = Arc::new(demo::Identity {
        service: "shop/checkout".into(),
        cluster: "paris".into(),
        version: "v2".into(),
        instance: "checkout-1".into(),
    });
    let protocol = match protocol {
        Protocol::Http1 => demo::Protocol::Http,
        Protocol::Http2 => demo::Protocol::H2c,
    };
    tokio::spawn(demo::serve(listener, identity, protocol, CancellationToken::new()));
    address
}

/// Answers the head of the first request on every connection with `answer`, and closes.
async fn answering(answer: &'static [u8]) -> SocketAddr {
    server(move |mut stream| async move {
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await;
        let _ = stream.write_all(answer).await;
    })
    .await
}

async fn server<F, A>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> A + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}
