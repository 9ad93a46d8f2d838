//! A drain says when it is done, whatever is under way and whoever can be reached, and leaves no service to nobody.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::process::{ExitCode, Stdio};

use archipelago_chaos::load::Protocol;
use harness::client::{address, empty};
use harness::command::MESHCTL;
use harness::suite::{self, shared};
use harness::{Connection, Federation, PATIENCE, check, eventually};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};

fn main() -> ExitCode {
    suite::run(&shared![
        a_drain_counts_down_what_is_under_way,
        a_cluster_that_cannot_be_reached_can_be_drained,
        the_last_one_that_serves_something_is_not_drained_unawares,
    ])
}

async fn a_drain_counts_down_what_is_under_way(federation: &Federation) {
    federation.ok("split set shop/web paris=1").await;
    federation.ok("split set shop/ledger paris=1").await;
    // Through a tunnel, from paris itself, and bytes.
    let mut held = Vec::new();
    for (gateway, protocol) in [("frankfurt/gw-1", Protocol::Http2), ("paris/gw-2", Protocol::Http1)] {
        let mut connection = Connection::open(&federation.gateway(gateway).http, protocol).await;
        let mut response = connection.send("GET", "web.shop", "/stream/1000000/20", &[], empty()).await.unwrap();
        response.body_mut().frame().await.unwrap().unwrap();
        held.push((connection, response));
    }
    let mut bytes = TcpStream::connect(ledger(federation, "tokyo").await).await.unwrap();
    bytes.write_all(b"a").await.unwrap();
    eventually("all of it is counted at paris, and there only", PATIENCE, async || {
        let paris = federation.json("cluster underway paris").await;
        let services = json!([
            { "service": "shop/web", "requests": 2, "connections": 0 },
            { "service": "shop/ledger", "requests": 0, "connections": 1 },
        ]);
        let tokyo = federation.json("cluster underway tokyo").await;
        let is_so = paris["services"] == services && paris["isComplete"] == true && tokyo["services"] == json!([]);
        check(is_so, || format!("{paris} {tokyo}"))
    })
    .await;

    let mut drain = Drain::begin(federation, &["paris"]).await;
    drain.says("paris: 2 requests and 1 TCP connection left (shop/web 2, shop/ledger 1 TCP)").await;
    // What is new goes elsewhere, what is under way goes on.
    let reply = Connection::http1(&federation.gateway("paris/gw-1").http).await.get("web.shop", "/", &[]).await;
    assert_ne!(reply.field("cluster"), "paris");
    for (_, response) in &mut held {
        response.body_mut().frame().await.unwrap().unwrap();
    }
    let late = federation.meshctl(["cluster", "drain", "paris", "--empty-within", "1s"]).await.expect(2);
    late.says(&["after 1s", "2 requests and 1 TCP connection left", "cluster underway paris"]);
    held.pop();
    drain.says("paris: 1 request and 1 TCP connection left").await;
    held.clear();
    drain.says("paris: 0 requests and 1 TCP connection left (shop/ledger 1 TCP)").await;
    bytes.shutdown().await.unwrap();
    let mut receipt = String::new();
    bytes.read_to_string(&mut receipt).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&receipt).unwrap()["cluster"], "paris");
    drain.says("safe: paris serves nothing any more").await;
    drain.ends(0).await;
    federation.ok("cluster uncordon paris").await;
}

async fn a_cluster_that_cannot_be_reached_can_be_drained(federation: &Federation) {
    federation.ok("drill kill paris --for 10m").await;
    eventually("its gateways are missed", PATIENCE, async || {
        let paris = federation.json("cluster underway paris").await;
        check(paris["isComplete"] == false, || paris.to_string())
    })
    .await;
    let drained = federation.meshctl(["cluster", "drain", "paris"]).await;
    let drained = drained.expect(0);
    drained.says(&["safe: paris serves nothing any more, as far as the gateways of other clusters know", "paris/gw-1"]);
    federation.ok("drill end").await;
    federation.ok("cluster uncordon paris").await;
}

async fn the_last_one_that_serves_something_is_not_drained_unawares(federation: &Federation) {
    federation.ok("cluster drain paris").await;
    federation.ok("cluster drain tokyo").await;
    let revision = federation.status().await.revision;
    let refused = federation.meshctl(["cluster", "drain", "frankfurt"]).await.expect(1);
    refused.says(&["no other cluster can serve", "shop/checkout", "--force", "nothing changed"]);
    assert_eq!(federation.status().await.revision, revision);
    federation.ok("cluster drain frankfurt --force --empty-within 0s").await;
    // Whoever is the last one goes on.
    let reply = Connection::http1(&federation.gateway("frankfurt/gw-1").http).await.get("web.shop", "/", &[]).await;
    assert_eq!(reply.status, 200);
    for cluster in ["paris", "tokyo", "frankfurt"] {
        federation.ok(&format!("cluster uncordon {cluster}")).await;
    }
}

/// Where clients of a cluster find the TCP service.
async fn ledger(federation: &Federation, cluster: &str) -> std::net::SocketAddr {
    let services = federation.json("services").await;
    let ledger = services.as_array().unwrap().iter().find(|service| service["name"] == "shop/ledger").unwrap();
    let place = ledger["tcp"].as_array().unwrap().iter().find(|place| place["cluster"] == cluster).unwrap();
    address(place["address"].as_str().unwrap())
}

/// `cluster drain`, under way.
struct Drain {
    child: Child,
    lines: tokio::io::Lines<BufReader<ChildStderr>>,
    heard: Vec<String>,
}

impl Drain {
    async fn begin(federation: &Federation, args: &[&str]) -> Self {
        let mut command = Command::new(MESHCTL);
        command.arg("--state").arg(&federation.state).args(["cluster", "drain"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.current_dir("/").spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, heard: Vec::new() }
    }

    /// Waits for a line that begins so.
    async fn says(&mut self, words: &str) {
        while !self.heard.iter().any(|line| line.starts_with(words)) {
            let next = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
            let line = next.unwrap_or_else(|_| panic!("not {words:?} but {:#?}", self.heard)).unwrap();
            self.heard.push(line.unwrap_or_else(|| panic!("it ended without {words:?}: {:#?}", self.heard)));
        }
    }

    async fn ends(mut self, code: i32) {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        assert_eq!(ended.code(), Some(code), "{:#?}", self.heard);
    }
}
