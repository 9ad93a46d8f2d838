//! `meshctl tap`: the requests that a filter takes, over all clusters, each once, and nothing that is not for operators to read.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::process::{ExitCode, Stdio};

use harness::client::full;
use harness::command::MESHCTL;
use harness::suite::{self, shared};
use harness::{Connection, Federation, PATIENCE, Reply, saw};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

fn main() -> ExitCode {
    suite::run(&shared![
        exactly_what_the_filter_takes_is_shown_of_all_clusters,
        who_asks_for_less_is_told_what_is_left_out,
        what_is_asked_wrongly_is_said_with_its_place,
    ])
}

/// Where requests enter.
const SOURCES: [&str; 3] = ["paris", "frankfurt", "tokyo"];

async fn exactly_what_the_filter_takes_is_shown_of_all_clusters(federation: &Federation) {
    federation.ok("split set shop/checkout tokyo=1").await;
    let mut tap = Tap::begin(federation, &["--service", "shop/checkout", "--where", "status>=500 or flags*=NR"]).await;
    let mut expected = Vec::new();
    for source in SOURCES {
        // One connection: one request has ended before the next one begins.
        let mut client = Connection::http1(&federation.gateway(&format!("{source}/gw-1")).http).await;
        for (host, code, is_taken) in [
            ("checkout.shop", 200, false),
            ("checkout.shop", 500, true),
            ("web.shop", 500, false),
            ("checkout.shop", 404, false),
            ("checkout.shop", 501, true),
            ("checkout.shop", 599, true),
        ] {
            let path = format!("/status/{code}");
            let secret = [("authorization", "Bearer hunter2"), ("cookie", "session=hunter2")];
            let response =
                client.send("POST", host, &format!("{path}?token=hunter2"), &secret, full("x")).await.unwrap();
            assert_eq!(Reply::read(response).await.status, code);
            if is_taken {
                expected.push((source.to_owned(), path));
            }
        }
    }
    let mut shown = Vec::new();
    let mut text = String::new();
    while shown.len() < expected.len() {
        let line = tap.line().await;
        let request: Value = serde_json::from_str(&line).unwrap();
        text.push_str(&line);
        assert_eq!(
            (&request["service"], &request["destination"]),
            (&"shop/checkout".into(), &"tokyo".into()),
            "{line}"
        );
        assert_eq!(request["gateway"], format!("{}/gw-1", request["source"].as_str().unwrap()), "{line}");
        assert_eq!(request["peer"].is_null(), request["source"] == "tokyo", "{line}");
        assert!(request["endpoint"].as_str().is_some_and(|endpoint| endpoint.starts_with("127.0.0.1:")), "{line}");
        let path = request["path"].as_str().unwrap();
        assert_eq!((&request["method"], path), (&"POST".into(), format!("/status/{}", request["status"]).as_str()));
        assert_eq!((&request["host"], &request["receivedBytes"]), (&"checkout.shop".into(), &1.into()), "{line}");
        let hops: u64 = request["hops"].as_object().unwrap().values().map(|hop| hop.as_u64().unwrap()).sum();
        let whole = request["durationMicros"].as_u64().unwrap();
        assert!(whole.abs_diff(hops) <= 2, "the parts are the whole, but for what rounding takes: {line}");
        shown.push((request["source"].as_str().unwrap().to_owned(), path.to_owned()));
    }
    let (more, said) = tap.end().await;
    assert_eq!(more, Vec::<String>::new(), "more than was asked for");
    assert!(said.contains(&format!("{0} of {0} requests shown", expected.len())), "{said}");
    expected.sort();
    shown.sort();
    assert_eq!(shown, expected);
    assert!(!text.contains("hunter2") && !text.contains('?'), "{text}");
    saw!("{} requests of three clusters, and no other", shown.len());
    federation.ok("split clear shop/checkout").await;
}

async fn who_asks_for_less_is_told_what_is_left_out(federation: &Federation) {
    const REQUESTS: usize = 40;
    let flags = ["--cluster", "paris", "--where", "path=/ host=web.shop", "--rate", "1"];
    let mut tap = Tap::begin(federation, &flags).await;
    let mut client = Connection::http1(&federation.gateway("paris/gw-1").http).await;
    for _ in 0..REQUESTS {
        assert_eq!(client.get("web.shop", "/", &[]).await.status, 200);
    }
    // Another one that shows what it may, and ends by itself.
    let mut one = Tap::begin(federation, &["--where", "path=/ host=web.shop", "--limit", "1"]).await;
    client.get("web.shop", "/", &[]).await;
    let last = one.line().await;
    assert!(last.contains("\"service\":\"shop/web\""), "{last}");
    assert!(one.ended().await.1.contains("1 of "));
    tap.hears("left out").await;
    let (_, said) = tap.end().await;
    let sum = said.lines().last().unwrap();
    let numbers: Vec<usize> = sum.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    // "3 of 41 requests shown; 38 left out, of gateways with more than 1 a second: …"
    assert!(numbers[1] > 1 && numbers[1] <= REQUESTS + 1, "{said}");
    assert!(numbers[2] > 0 && numbers[0] + numbers[2] == numbers[1], "{said}");
    let table = federation.ok("tap --for 100ms").await;
    assert!(table.stdout.starts_with("TIME  ") && table.stderr.contains("0 of 0 requests shown"), "{table}");
}

async fn what_is_asked_wrongly_is_said_with_its_place(federation: &Federation) {
    for (args, words) in [
        (&["--where", "status>=500 colour=red"][..], "--where:1:13: `colour` is no field; there are service, source"),
        (&["--where", "status>=many"], "--where:1:9: `status` is a number"),
        (&["--service", "shop/chekout"], "no cluster has a service shop/chekout"),
        (&["--cluster", "atlantis"], "hint: there are frankfurt, paris, tokyo"),
    ] {
        let ran = federation.meshctl([&["tap"], args].concat()).await.expect(1);
        assert!(ran.stderr.contains(words), "{ran}");
    }
}

/// A `meshctl tap` that goes on.
struct Tap {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    said: Lines<BufReader<ChildStderr>>,
}

impl Tap {
    /// Returns once all gateways look.
    async fn begin(federation: &Federation, flags: &[&str]) -> Self {
        let mut command = Command::new(MESHCTL);
        command.arg("--state").arg(&federation.state).args(["tap", "-o", "json"]).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = timeout(PATIENCE, said.next_line()).await.expect("it begins in time").unwrap();
        let expected = format!("looking at the requests of {} gateways", federation.gateways().len());
        assert_eq!(line, Some(expected));
        Self { child, out, said }
    }

    async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.out.next_line()).await.expect("a request in time").unwrap();
        line.expect("it goes on")
    }

    /// Reads on until something is said on standard error.
    async fn hears(&mut self, words: &str) {
        let heard = async {
            while let Some(line) = self.said.next_line().await.unwrap() {
                if line.contains(words) {
                    return;
                }
            }
            panic!("it ended without {words:?}");
        };
        timeout(PATIENCE, heard).await.expect("it is said in time");
    }

    /// What else it says until it ends by itself: lines, and talk.
    async fn ended(mut self) -> (Vec<String>, String) {
        let rest = async {
            let (mut lines, mut said) = (Vec::new(), String::new());
            while let Some(line) = self.out.next_line().await.unwrap() {
                lines.push(line);
            }
            while let Some(line) = self.said.next_line().await.unwrap() {
                said.push_str(&line);
                said.push('\n');
            }
            assert_eq!(self.child.wait().await.unwrap().code(), Some(0), "{said}");
            (lines, said)
        };
        timeout(PATIENCE, rest).await.expect("it ends in time")
    }

    /// The same after Ctrl-C.
    async fn end(self) -> (Vec<String>, String) {
        self.interrupt().await;
        self.ended().await
    }

    async fn interrupt(&self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    }
}
