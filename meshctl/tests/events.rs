//! What happened is told: by whom, why, once, and while it happens.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeMap;
use std::process::{ExitCode, Stdio};

use harness::command::MESHCTL;
use harness::suite::{self, shared};
use harness::{Federation, PATIENCE, check, eventually, saw};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

fn main() -> ExitCode {
    suite::run(&shared![
        a_killed_cluster_is_told_with_who_took_over_and_how_it_came_back,
        an_operator_who_drains_and_writes_is_named,
        a_peer_that_comes_and_goes_is_one_line_of_each,
    ])
}

async fn a_killed_cluster_is_told_with_who_took_over_and_how_it_came_back(federation: &Federation) {
    // Of shop/checkout: everything from tokyo while it is there.
    federation.ok("split set shop/checkout tokyo=1").await;
    let mut follower = Follower::begin(federation).await;
    federation.ok("drill kill tokyo --for 8s").await;
    let lost = [
        ("ClusterUnreachable", "cluster", "tokyo"),
        ("GatewayUnreachable", "gateway", "tokyo/gw-1"),
        ("Failover", "service", "shop/checkout"),
        ("GatewayDisconnected", "gateway", "tokyo/gw-1"),
        ("AgentDisconnected", "cluster", "tokyo"),
        ("ClusterDisconnected", "cluster", "tokyo"),
    ];
    let back = [
        ("ClusterReachable", "cluster", "tokyo"),
        ("GatewayReachable", "gateway", "tokyo/gw-1"),
        ("Failback", "service", "shop/checkout"),
        ("GatewayConnected", "gateway", "tokyo/gw-1"),
        ("AgentConnected", "cluster", "tokyo"),
        ("ClusterConnected", "cluster", "tokyo"),
    ];
    for (reason, what, name) in lost.into_iter().chain(back) {
        follower.hears(reason, what, name).await;
    }
    let failover = follower.of("Failover", "service", "shop/checkout");
    assert!(failover.iter().all(|event| event["cluster"] == "tokyo" && event["kind"] == "failover"), "{failover:?}");
    assert!(failover.iter().all(|event| event["message"].as_str().unwrap().contains("in the place of tokyo (")));
    saw!("{}", failover[0]["message"]);

    // The list says the same as the stream did, each once, and in order.
    let list = federation.json("events --since 10m").await;
    let events = list["events"].as_array().unwrap();
    assert!(events.is_sorted_by_key(|event| event["unixMs"].as_i64().unwrap()));
    let names: BTreeMap<_, _> = events.iter().map(|event| (name(event), event)).collect();
    assert_eq!(names.len(), events.len());
    for event in &follower.heard {
        assert!(names.contains_key(&name(event)), "heard and not listed: {event}");
    }
    // What one gateway says of one service is in the order in which it saw it.
    let of_paris = events.iter().filter(|event| event["source"] == "paris/gw-1" && event["service"] == "shop/checkout");
    let story: Vec<_> = of_paris.map(|event| event["reason"].as_str().unwrap()).collect();
    let place = |reason: &str| story.iter().position(|told| *told == reason);
    assert!(place("Failover").is_some() && place("Failover") < place("Failback"), "{story:?}");
    eventually("the log, members and gateways are heard", PATIENCE, async || {
        let list = federation.json("events --limit 1").await;
        let sources = list["sources"].as_array().unwrap();
        let silent: Vec<_> = sources.iter().filter(|source| source["state"] != "heard").collect();
        let all = silent.is_empty() && sources.len() == 1 + 3 + federation.gateways().len();
        check(all, || format!("{sources:?}"))
    })
    .await;

    // A filter is a filter.
    let only = federation.json("events --service shop/checkout --kind failover --cluster tokyo").await;
    let only = only["events"].as_array().unwrap();
    assert!(!only.is_empty() && only.iter().all(|event| event["service"] == "shop/checkout"), "{only:?}");
    let table = federation.ok("events --service shop/checkout").await;
    assert!(table.stdout.contains("Failover") && table.stdout.contains("paris/gw-1"), "{table}");
    follower.end().await;
}

async fn an_operator_who_drains_and_writes_is_named(federation: &Federation) {
    federation.ok("split set shop/checkout frankfurt=1").await;
    let mut follower = Follower::begin(federation).await;
    federation.ok("cluster drain frankfurt").await;
    follower.hears("ClusterDrained", "cluster", "frankfurt").await;
    follower.hears("TrafficMoved", "service", "shop/checkout").await;
    federation.ok("cluster uncordon frankfurt").await;
    follower.hears("ClusterUncordoned", "cluster", "frankfurt").await;
    follower.hears("Failback", "service", "shop/checkout").await;
    federation.ok("split set shop/checkout tokyo=1").await;
    follower.hears("ResourceUpdated", "service", "shop/checkout").await;
    for written in follower.of("ClusterDrained", "cluster", "frankfurt") {
        assert_eq!(written["source"], "log");
        assert!(written["actor"].as_str().unwrap().contains("/operator/"), "{written}");
        assert!(written["revision"].as_u64().unwrap() > 0, "{written}");
    }
    let moved = follower.of("TrafficMoved", "service", "shop/checkout");
    let says = |event: &&Value| event["message"].as_str().unwrap().contains("an operator drains the cluster");
    assert!(moved.iter().any(says), "{moved:?}");
    follower.end().await;
}

async fn a_peer_that_comes_and_goes_is_one_line_of_each(federation: &Federation) {
    let count = async |reason: &str| {
        let list = federation.json("events --cluster frankfurt --kind failover --since 5m").await;
        let of = |event: &&Value| {
            event["source"] == "frankfurt/gw-1" && event["reason"] == reason && event["cluster"] == "paris"
        };
        let events: Vec<Value> = list["events"].as_array().unwrap().iter().filter(of).cloned().collect();
        (events.len(), events.iter().map(|event| event["count"].as_u64().unwrap()).sum::<u64>())
    };
    let (_, before) = count("ClusterUnreachable").await;
    for flap in 1..=3 {
        federation.ok("drill cut frankfurt,paris --for 60s").await;
        eventually("it is told", PATIENCE, async || {
            let told = count("ClusterUnreachable").await;
            check(told.1 == before + flap, || format!("{told:?} of {}", before + flap))
        })
        .await;
        federation.ok("drill end").await;
        federation.settle().await;
    }
    let (lines, times) = count("ClusterUnreachable").await;
    assert_eq!((lines, times), (1, before + 3));
    saw!("{times} times in {lines} line");
}

/// `events --follow`, from now on.
struct Follower {
    child: Child,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
    heard: Vec<Value>,
}

impl Follower {
    async fn begin(federation: &Federation) -> Self {
        let mut command = Command::new(MESHCTL);
        command.arg("--state").arg(&federation.state).args(["events", "--follow", "-o", "json", "--since", "1ms"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.current_dir("/").spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut follower = Self { child, lines, heard: Vec::new() };
        // It is there once it hears what is written now.
        federation.ok("split set shop/web paris=1").await;
        follower.hears_any(&["ResourceCreated", "ResourceUpdated"], "service", "shop/web").await;
        federation.ok("split clear shop/web").await;
        follower
    }

    async fn hears(&mut self, reason: &str, what: &str, name: &str) {
        self.hears_any(&[reason], what, name).await;
    }

    async fn hears_any(&mut self, reasons: &[&str], what: &str, name: &str) {
        let is = |event: &Value| reasons.iter().any(|reason| event["reason"] == *reason) && event[what] == name;
        while !self.heard.iter().any(is) {
            let next = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
            let line = next.unwrap_or_else(|_| panic!("no {reasons:?} of {name} in {:#?}", self.heard));
            self.heard.push(serde_json::from_str(&line.unwrap().expect("it goes on")).unwrap());
        }
    }

    fn of(&self, reason: &str, what: &str, name: &str) -> Vec<&Value> {
        self.heard.iter().filter(|event| event["reason"] == reason && event[what] == name).collect()
    }

    async fn end(mut self) {
        self.child.kill().await.unwrap();
    }
}

fn name(event: &Value) -> (String, u64, u64) {
    let number = |field: &str| event[field].as_u64().unwrap();
    (event["source"].as_str().unwrap().to_owned(), number("incarnation"), number("id"))
}
