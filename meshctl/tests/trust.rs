//! Who belongs to the federation and who no longer does: identities revoked, clusters deleted, certificates that ran out,
//! operators that come and go.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use archipelago_chaos::load::{self, Running};
use archipelago_identity::CredentialDir;
use harness::suite::{self, alone};
use harness::{Connection, Federation, PATIENCE, SMALL, check, eventually, meshctl, proc, saw};

fn main() -> ExitCode {
    suite::run(&alone![
        a_revoked_gateway_is_out_at_once_and_returns_by_a_token_only,
        a_deleted_cluster_is_out_at_once,
        certificates_that_ran_out_while_the_control_plane_was_away_stop_nothing_at_home,
        operators_come_and_go,
    ])
}

async fn a_revoked_gateway_is_out_at_once_and_returns_by_a_token_only() {
    let federation = Federation::up(Some(&pair())).await;
    federation.settle().await;
    let load = load_to_tokyo(&federation).await;
    let id = "spiffe://small.example/cluster/tokyo/gateway/gw-1";
    federation.ok(&format!("identity revoke {id} --reason stolen")).await;
    let took = is_out(&federation, "tokyo/gw-1").await;
    more(&load, 200).await;

    let described = federation.json(&format!("identity describe {id}")).await;
    assert_eq!((&described["state"], &described["reason"]), (&"revoked".into(), &"stolen".into()), "{described}");
    let list = federation.json("identity list").await;
    let revoked: Vec<_> = list.as_array().unwrap().iter().filter(|identity| identity["state"] == "revoked").collect();
    assert_eq!(revoked.len(), 1, "{list}");

    // Its certificate has hours to live, and a start is no way back in.
    proc::kill(federation.status().await.pid("tokyo/gw-1"));
    restarted(&federation, "tokyo/gw-1", 1).await;
    let refused = || federation.log_lines("invalid peer certificate: Revoked").len();
    let before = refused();
    eventually("it has asked again and again, and was refused", PATIENCE, async || {
        check(refused() >= before + 20, || format!("{} times", refused() - before))
    })
    .await;
    let held = connected(&federation, "tokyo/gw-1").await;
    assert_eq!(held, Vec::<String>::new(), "it is back by itself");

    // The supervisor gives a token to whoever has no identity.
    fs::remove_dir_all(federation.state.join("clusters/tokyo/gw-1/identity")).unwrap();
    proc::kill(federation.status().await.pid("tokyo/gw-1"));
    restarted(&federation, "tokyo/gw-1", 2).await;
    federation.settle().await;
    let described = federation.json(&format!("identity describe {id}")).await;
    assert_eq!(described["state"], "valid", "{described}");
    finish(load, &format!("revoked: out after {took:?}, back by a token")).await;
    federation.down().await;
}

async fn a_deleted_cluster_is_out_at_once() {
    let federation = Federation::up(Some(&pair())).await;
    federation.settle().await;
    federation.ok("split set shop/checkout paris=100").await;
    let load = load::start(federation.load("paris/gw-1", "checkout.shop", RATE)).unwrap();
    let token = federation.json("token create --cluster tokyo --role gateway --name gw-9").await;
    federation.ok("delete Cluster tokyo --wait none").await;
    let deleted = Instant::now();
    for gateway in ["tokyo/gw-1", "tokyo/gw-2"] {
        is_out(&federation, gateway).await;
    }
    let took = deleted.elapsed();
    eventually("its agent is out", PATIENCE, async || {
        let services = federation.json("services").await;
        check(!services.to_string().contains("tokyo"), || services.to_string())
    })
    .await;
    let elsewhere = federation.scratch().join("elsewhere");
    let args = ["--state".as_ref(), elsewhere.as_os_str(), "join".as_ref(), token["token"].as_str().unwrap().as_ref()];
    let refused = meshctl(args).await.expect(1);
    assert!(!elsewhere.join("joined/tokyo/gw-9/identity/svid.pem").exists(), "{refused}");
    more(&load, 200).await;
    finish(load, &format!("deleted: both gateways out after {took:?}")).await;
    // A gateway may hear that its cluster is gone before its stream is closed, or only find the stream closed.
    federation.down_despite(&["our cluster is not declared any more"]).await;
}

async fn certificates_that_ran_out_while_the_control_plane_was_away_stop_nothing_at_home() {
    let federation = Federation::plan(Some(SMALL)).with("ARCHIPELAGO_SVID_TTL", "12s").begin().await;
    federation.settle().await;
    federation.ok("drill kill control-plane --for 10m").await;
    let names = ["paris/agent", "paris/gw-1", "tokyo/agent", "tokyo/gw-1"];
    let ends = |name: &str| {
        let dir = CredentialDir::new(federation.state.join("clusters").join(name).join("identity"));
        dir.load().unwrap().unwrap().not_after
    };
    eventually("every certificate has run out", PATIENCE, async || {
        let late = names.iter().find(|name| ends(name) >= SystemTime::now());
        check(late.is_none(), || format!("{late:?}"))
    })
    .await;
    let before = federation.status().await;
    for name in ["paris/gw-1", "tokyo/agent"] {
        proc::kill(before.pid(name));
        restarted(&federation, name, 1).await;
    }
    eventually("the restarted gateway serves its own cluster", PATIENCE, async || {
        let url = federation.gateway("paris/gw-1").http.clone();
        // A refused connection panics in the task: the gateway is not there yet.
        let asked = async move { Connection::http1(&url).await.get("checkout.shop", "/", &[]).await };
        let reply = tokio::spawn(asked).await.map_err(|error| error.to_string())?;
        check((reply.status, reply.field("cluster").as_str()) == (200, "paris"), || format!("{reply:?}"))
    })
    .await;
    assert!(names.iter().all(|name| ends(name) < SystemTime::now()), "somebody had another certificate");

    federation.ok("drill end").await;
    federation.settle().await;
    assert!(names.iter().all(|name| ends(name) > SystemTime::now()), "somebody has no certificate");
    federation.ok("switch shop/checkout --to tokyo").await;
    let reply = Connection::http1(&federation.gateway("paris/gw-1").http).await.get("checkout.shop", "/", &[]).await;
    assert_eq!((reply.status, reply.field("cluster").as_str()), (200, "tokyo"));
    for name in ["paris/gw-1", "tokyo/agent"] {
        assert_eq!(federation.status().await.process(name).restarts, 1, "{name} was started again to get back in");
    }
    federation.down_despite(&["the stored SVID has run out"]).await;
}

async fn operators_come_and_go() {
    let federation = Federation::up(Some(SMALL)).await;
    let ci = federation.scratch().join("ci");
    let create = async |name: &str, ttl: &str, dir: &std::path::Path| {
        let args = ["operator", "create", name, "--ttl", ttl, "--out", dir.to_str().unwrap()];
        federation.meshctl(args).await.expect(0);
    };
    create("ci", "1h", &ci).await;
    let as_ci = async |line: &str| {
        let words = ["--state", ci.to_str().unwrap()].into_iter().chain(line.split_whitespace());
        meshctl(words).await
    };
    let quiet = as_ci("split set shop/checkout tokyo=1").await.expect(0);
    assert!(!quiet.stderr.contains("runs out"), "{quiet}");
    let listed = federation.ok("operator list").await;
    assert!(listed.stdout.contains("/operator/ci"), "{listed}");
    let certificate = || fs::read(ci.join("operator/svid.pem")).unwrap();
    let first = certificate();
    as_ci("operator renew").await.expect(0);
    assert_ne!(certificate(), first, "renewed and the same");
    as_ci("status").await.expect(0);

    // One that lives shortly is warned before its end, on standard error alone.
    let brief = federation.scratch().join("brief");
    create("brief", "20s", &brief).await;
    let warned = eventually("a warning", PATIENCE, async || {
        let ran = meshctl(["--state", brief.to_str().unwrap(), "split", "get", "shop/checkout", "-o", "json"]).await;
        check(ran.stderr.contains("runs out in"), || ran.to_string())?;
        Ok(ran)
    })
    .await;
    warned.expect(0).says(&["/operator/brief", "hint: meshctl operator renew"]).json();

    federation.ok("operator revoke ci --reason left").await;
    let refused = as_ci("split set shop/checkout paris=1 --timeout 3s").await;
    assert!(matches!(refused.code, 1 | 4), "{refused}");
    let renewed = as_ci("operator renew --timeout 3s").await;
    assert!(matches!(renewed.code, 1 | 4), "{renewed}");
    let split = federation.json("split get shop/checkout").await;
    assert_eq!(split["spec"]["backends"][0]["cluster"], "tokyo", "{split}");
    federation.down().await;
}

/// [`SMALL`] with two gateways in each cluster.
fn pair() -> String {
    SMALL.replace("gateways: 1", "gateways: 2")
}

async fn load_to_tokyo(federation: &Federation) -> Running {
    federation.ok("split set shop/checkout tokyo=100").await;
    let load = load::start(federation.load("paris/gw-1", "checkout.shop", RATE)).unwrap();
    more(&load, 200).await;
    load
}

/// Waits for so many more good answers.
async fn more(load: &Running, count: u64) {
    let goal = load.counters().ok + count;
    let reached = tokio::time::timeout(PATIENCE, load.until(|counters| counters.ok >= goal)).await;
    assert!(reached == Ok(true), "the load stands still: {}", load.report());
}

async fn finish(load: Running, what: &str) {
    load.stop();
    let report = load.finish().await.unwrap();
    saw!("{what}: {} requests, {} failed", report.sent, report.failed);
    assert_eq!(report.failed, 0, "{what}: {report}");
}

/// What still connects a gateway to the federation: its session, and tunnels that others have to or from it.
async fn connected(federation: &Federation, gateway: &str) -> Vec<String> {
    let mut held = Vec::new();
    if federation.status().await.gateways().get(gateway).is_some_and(|gateway| gateway.state == "synced") {
        held.push("its session".to_owned());
    }
    let tunnels = federation.json("tunnels").await;
    let own = |tunnel: &&serde_json::Value| tunnel["to"] == gateway && tunnel["state"] == "up";
    held.extend(tunnels.as_array().unwrap().iter().filter(own).map(ToString::to_string));
    held
}

/// Waits until nothing connects a gateway to the federation, and says how long that took.
async fn is_out(federation: &Federation, gateway: &str) -> Duration {
    let started = Instant::now();
    eventually(&format!("{gateway} is out"), PATIENCE, async || {
        let held = connected(federation, gateway).await;
        check(held.is_empty(), || format!("{held:?}"))
    })
    .await;
    started.elapsed()
}

/// Waits until a process runs again, after so many restarts.
async fn restarted(federation: &Federation, name: &str, restarts: u64) {
    eventually("the process is restarted", PATIENCE, async || {
        let status = federation.status().await;
        let process = status.process(name);
        check(process.restarts >= restarts && process.pid.is_some(), || format!("{process:?}"))
    })
    .await;
}

const RATE: f64 = 50.0;
