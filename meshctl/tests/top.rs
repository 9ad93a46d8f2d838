//! `meshctl top` beside what a load generator has seen: every request once, and the same percentiles.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use archipelago_chaos::load::{self, Plan, Protocol, Report};
use harness::command::MESHCTL;
use harness::suite::{self, shared};
use harness::{Federation, PATIENCE, saw};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

fn main() -> ExitCode {
    suite::run(&shared![
        every_request_is_counted_once_and_percentiles_are_those_of_the_clients,
        one_look_names_what_it_looked_at,
        tcp_connections_are_counted_while_they_live,
    ])
}

/// Three clusters ask one in the third: in paris for something quick, in frankfurt for something slower, in tokyo for something slow.
const BANDS: [(&str, u64, u64); 3] = [("paris/gw-1", 0, 600), ("frankfurt/gw-1", 300, 300), ("tokyo/gw-1", 800, 100)];

async fn every_request_is_counted_once_and_percentiles_are_those_of_the_clients(federation: &Federation) {
    federation.ok("split set shop/web tokyo=1").await;
    let mut services = Top::start(federation, "shop/web", "").await;
    let mut sources = Top::start(federation, "shop/web", "--by source").await;
    let mut versions = Top::start(federation, "shop/web", "--by version").await;
    let loads = BANDS
        .map(|(gateway, delay_ms, requests)| tokio::spawn(load::run(plan(federation, gateway, delay_ms, requests))));
    let mut reports = Vec::new();
    for load in loads {
        let report = load.await.unwrap().unwrap();
        assert_eq!(report.failed, 0, "{report}");
        reports.push(report);
    }
    let total: u64 = reports.iter().map(|report| report.ok).sum();

    let rows = services.until(total).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    let all = rows[0];
    assert_eq!((all.failed, all.abandoned, &*all.name()), (0, 0, "shop/web - frankfurt,paris,tokyo>tokyo"));
    // A backend waits at least as long as it was asked to, and a client sees at least what a gateway sees.
    let slow = reports[2].ok;
    assert!(all.at_least(800_000) >= slow && all.at_least(300_000) >= slow + reports[1].ok, "{all:?}");
    assert!(all.at_least(0) == total);
    let latency = |report: &Report| report.latency_micros.unwrap();
    // What none of the quicker ones took, however busy this machine is: then the slowest are those of tokyo, and the 99th of all of them
    // is the 90th of those.
    if latency(&reports[0]).max.max(latency(&reports[1]).max) < 800_000 {
        let (p99, theirs) = (all.quantile(0.99), latency(&reports[2]).p90);
        saw!("p99 over three clusters: {p99} µs at the gateways, {theirs} µs at the clients");
        assert!(p99 >= 800_000 && p99 as f64 <= theirs as f64 * 1.009, "{p99} µs here, {theirs} µs there");
        assert_eq!(all.at_least(800_000), slow);
    }

    let rows = sources.until(total).await;
    let pairs: BTreeMap<String, u64> = rows.iter().map(|row| (row.name(), row.requests())).collect();
    let expected = ["paris", "frankfurt", "tokyo"].iter().zip(&reports);
    let expected = expected.map(|(source, report)| (format!("shop/web - {source}>tokyo"), report.ok));
    assert_eq!(pairs, expected.collect());
    // Beside the endpoints: all of them, by the one version that there is. An attempt that was repeated counts again there.
    let rows = versions.at_least(total).await;
    assert!(rows.iter().all(|row| row.name() == "shop/web v1 frankfurt,paris,tokyo>tokyo"), "{rows:?}");
    federation.ok("split clear shop/web").await;
}

async fn one_look_names_what_it_looked_at(federation: &Federation) {
    let ran = federation.ok("top shop/ledger --once --interval 250ms").await;
    let gateways = federation.gateways().len();
    assert!(ran.stdout.contains(&format!("at {gateways} of {gateways} gateways")), "{ran}");
    assert!(ran.stderr.contains("counting for 250ms"), "{ran}");
    let looks = federation.json("top --interval 250ms").await;
    assert_eq!(looks["gateways"]["reported"], gateways, "{looks}");
    let typo = federation.meshctl(["top", "shop/chekout"]).await.expect(1);
    assert!(typo.stderr.contains("no cluster has a service shop/chekout"), "{typo}");
    let table = federation.meshctl(["top", "--histogram"]).await.expect(1);
    assert!(table.stderr.contains("-o json"), "{table}");
}

async fn tcp_connections_are_counted_while_they_live(federation: &Federation) {
    federation.ok("split set shop/ledger tokyo=1").await;
    let services = federation.json("services").await;
    let ledger = services.as_array().unwrap().iter().find(|service| service["name"] == "shop/ledger").unwrap();
    let mut top = Top::start(federation, "shop/ledger", "--by source").await;
    let mut versions = Top::start(federation, "shop/ledger", "--by version").await;
    let mut open = Vec::new();
    for (at, count) in [("paris", 3), ("tokyo", 2)] {
        let place = ledger["tcp"].as_array().unwrap().iter().find(|place| place["cluster"] == at).unwrap();
        for _ in 0..count {
            let address = harness::client::address(place["address"].as_str().unwrap());
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&[b'x'; 100_000]).await.unwrap();
            open.push(stream);
        }
    }
    let mut seen = Connections::default();
    top.connections(&mut seen, |seen| seen.of(|c| (c.connected, c.open)) == [("paris", (3, 3)), ("tokyo", (2, 2))])
        .await;
    assert!(seen.0.values().all(|c| c.failed == 0 && c.sent > 0.0 && c.received == 0.0), "{seen:?}");
    assert!(seen.0.values().all(|c| c.p50.is_some_and(|micros| micros > 0)), "{seen:?}");
    let mut served = Connections::default();
    versions.connections(&mut served, |seen| seen.of(|c| (c.connected, c.open)) == [("v1", (5, 5))]).await;
    // One of paris ends, with an answer.
    open[0].shutdown().await.unwrap();
    let mut answer = String::new();
    open[0].read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("100000"), "{answer}");
    top.connections(&mut seen, |seen| seen.of(|c| c.open) == [("paris", 2), ("tokyo", 2)]).await;
    assert!(seen.0["paris"].received > 0.0, "{seen:?}");
    drop(open);
    top.connections(&mut seen, |seen| seen.0.values().all(|c| c.open == 0)).await;
    assert_eq!(seen.of(|c| c.connected), [("paris", 3), ("tokyo", 2)], "each once");
    let table = federation.ok("top shop/ledger --once --interval 250ms").await.stdout;
    assert!(!table.contains("not report"), "{table}");
    federation.ok("split clear shop/ledger").await;
}

/// TCP connections of all windows together, by where they entered, or by version.
#[derive(Debug, Default)]
struct Connections(BTreeMap<String, Seen>);

#[derive(Debug, Default)]
struct Seen {
    connected: u64,
    failed: u64,
    open: u64,
    sent: f64,
    received: f64,
    p50: Option<u64>,
}

impl Connections {
    fn of<T>(&self, get: impl Fn(&Seen) -> T) -> Vec<(&str, T)> {
        self.0.iter().map(|(from, seen)| (&**from, get(seen))).collect()
    }
}

/// So many requests of a service that answers after a delay.
fn plan(federation: &Federation, gateway: &str, delay_ms: u64, requests: u64) -> Plan {
    let base = federation.load(gateway, "web.shop", RATE);
    let url = format!("{}delay/{delay_ms}", base.url);
    let mut plan = Plan::new(&url, RATE, Duration::from_secs_f64(requests as f64 / RATE)).unwrap();
    plan.host = Some("web.shop".to_owned());
    plan.protocol = Protocol::Http2;
    plan.timeout = PATIENCE;
    plan
}

/// A `meshctl top` that goes on, and what it has said.
struct Top {
    _child: Child,
    out: BufReader<ChildStdout>,
    unread: Vec<u8>,
    by_source: bool,
    rows: BTreeMap<String, Row>,
}

/// Figures of all windows together.
#[derive(Debug, Default)]
struct Row {
    service: String,
    version: String,
    sources: BTreeSet<String>,
    destinations: BTreeSet<String>,
    succeeded: u64,
    failed: u64,
    abandoned: u64,
    /// Upper bounds of buckets, and how many are in them.
    histogram: BTreeMap<u64, u64>,
}

impl Top {
    /// Returns once it counts.
    async fn start(federation: &Federation, service: &str, flags: &str) -> Self {
        let mut command = Command::new(MESHCTL);
        command.arg("--state").arg(&federation.state).args(["top", service, "-n", "100000", "-o", "json"]);
        command.args(["--interval", "500ms", "--histogram"]).args(flags.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        timeout(PATIENCE, said.read_line(&mut line)).await.expect("it counts in time").unwrap();
        assert!(line.starts_with("counting for 500ms at 6 gateways"), "{line}");
        let out = BufReader::new(child.stdout.take().unwrap());
        // Whatever else it says must not fill the pipe.
        tokio::spawn(async move { said.read_to_string(&mut String::new()).await });
        Self { _child: child, out, unread: Vec::new(), by_source: flags == "--by source", rows: BTreeMap::new() }
    }

    /// Adds windows up until there are so many requests.
    async fn until(&mut self, requests: u64) -> Vec<&Row> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found: u64 = self.rows.values().map(Row::requests).sum();
            if found >= requests {
                assert_eq!(found, requests, "{:?}", self.rows);
                return self.rows.values().collect();
            }
            let look = tokio::time::timeout_at(deadline, self.look()).await;
            let look = look.unwrap_or_else(|_| panic!("{found} of {requests}: {:?}", self.rows));
            for row in look["rows"].as_array().unwrap() {
                self.add(row);
            }
        }
    }

    /// The same, if there may be more.
    async fn at_least(&mut self, requests: u64) -> Vec<&Row> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.rows.values().map(Row::requests).sum::<u64>() < requests {
            let look = tokio::time::timeout_at(deadline, self.look()).await.expect("figures in time");
            for row in look["rows"].as_array().unwrap() {
                self.add(row);
            }
        }
        self.rows.values().collect()
    }

    /// Adds TCP connections of windows up until there is what is waited for.
    async fn connections(&mut self, seen: &mut Connections, is_there: impl Fn(&Connections) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !is_there(seen) {
            let look = tokio::time::timeout_at(deadline, self.look()).await;
            let look = look.unwrap_or_else(|_| panic!("{seen:?}"));
            let tcp = &look["tcp"];
            assert_eq!(tcp["notReported"], serde_json::json!([]), "{look}");
            // What is open is of now, and a gateway that was not heard has none that is known.
            if look["gateways"]["missing"].as_array().unwrap().is_empty() {
                seen.0.values_mut().for_each(|seen| seen.open = 0);
            }
            for row in tcp["rows"].as_array().unwrap() {
                let from: Vec<&str> = row["sources"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
                let name = row["version"].as_str().map_or_else(|| from.join(","), str::to_owned);
                let seen = seen.0.entry(name).or_default();
                let number = |name: &str| row[name].as_f64().unwrap();
                seen.connected += row["connected"].as_u64().unwrap();
                seen.failed += row["failed"].as_u64().unwrap();
                seen.open = row["open"].as_u64().unwrap();
                seen.sent += number("sentBytesPerSecond");
                seen.received += number("receivedBytesPerSecond");
                seen.p50 = row["connectMicros"]["p50"].as_u64().or(seen.p50);
            }
        }
    }

    async fn look(&mut self) -> Value {
        loop {
            let mut values = serde_json::Deserializer::from_slice(&self.unread).into_iter::<Value>();
            if let Some(Ok(value)) = values.next() {
                let read = values.byte_offset();
                self.unread.drain(..read);
                return value;
            }
            let read = self.out.read_buf(&mut self.unread).await.unwrap();
            assert!(read > 0, "it ended");
        }
    }

    fn add(&mut self, told: &Value) {
        let list = |name: &str| told[name].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
        let text = |name: &str| told[name].as_str().unwrap_or("-").to_owned();
        let number = |name: &str| told[name].as_u64().unwrap();
        let mut key = format!("{} {}", text("service"), text("version"));
        if self.by_source {
            // In one window there may be requests of one cluster only: then that is what a row of another kind says, too.
            key.extend(list("sources"));
        }
        let row = self.rows.entry(key).or_default();
        (row.service, row.version) = (text("service"), text("version"));
        row.sources.extend(list("sources"));
        row.destinations.extend(list("destinations"));
        row.succeeded += number("succeeded");
        row.failed += number("failed");
        row.abandoned += number("abandoned");
        for bucket in told["histogram"].as_array().unwrap() {
            let upper = bucket["toMicros"].as_u64().unwrap();
            *row.histogram.entry(upper).or_default() += bucket["requests"].as_u64().unwrap();
        }
    }
}

impl Row {
    fn name(&self) -> String {
        let list = |names: &BTreeSet<String>| names.iter().map(|name| &**name).collect::<Vec<_>>().join(",");
        format!("{} {} {}>{}", self.service, self.version, list(&self.sources), list(&self.destinations))
    }

    fn requests(&self) -> u64 {
        self.succeeded + self.failed + self.abandoned
    }

    fn at_least(&self, micros: u64) -> u64 {
        self.histogram.range(micros..).map(|(_, requests)| requests).sum()
    }

    fn quantile(&self, quantile: f64) -> u64 {
        let wanted = (quantile * self.requests() as f64).ceil() as u64;
        let mut seen = 0;
        *self
            .histogram
            .iter()
            .find(|(_, requests)| {
                seen += *requests;
                seen >= wanted
            })
            .unwrap()
            .0
    }
}

const RATE: f64 = 150.0;
