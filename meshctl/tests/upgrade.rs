//! A control plane of the version before is upgraded, member by member, under traffic and writes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::process::{Child, Command, ExitCode, Stdio};

use archipelago_chaos::load;
use harness::suite::{self, alone};
use harness::{Federation, PATIENCE, check, eventually, proc, saw};

fn main() -> ExitCode {
    suite::run(&alone![an_upgrade_member_by_member_costs_no_request_and_no_write])
}

async fn an_upgrade_member_by_member_costs_no_request_and_no_write() {
    let federation = Federation::plan(None).with("ARCHIPELAGO_COMPATIBILITY", "previous").begin().await;
    let mut writes = Writes { federation: &federation, revisions: Vec::new() };
    writes.commit().await;
    let load = load::start(federation.load("frankfurt/gw-1", "checkout.shop", RATE)).unwrap();

    let mut upgraded = Upgraded(Vec::new());
    for id in upgrade_order(&federation).await {
        // What only the new version knows is refused while anybody holds it back, and says who.
        let refused = federation.meshctl(["raft", "restored", "--yes"]).await.expect(1);
        refused.says(&[&format!("member {id} knows formats up to")]);
        writes.commit().await;
        upgraded.replace(&federation, id).await;
        writes.commit().await;
        in_step(&federation).await;
    }
    eventually("the federation takes what the new version brings", PATIENCE, async || {
        let ran = federation.meshctl(["split", "set", "shop/web", "paris=1", "tokyo=1"]).await;
        check(ran.code == 0, || ran.to_string())
    })
    .await;
    writes.commit().await;
    in_step(&federation).await;

    load.stop();
    let report = load.finish().await.unwrap();
    saw!(
        "three members upgraded: {} requests, {} failed; {} writes",
        report.sent,
        report.failed,
        writes.revisions.len()
    );
    assert_eq!(report.failed, 0, "{report}");
    assert!(writes.revisions.is_sorted_by(|a, b| a < b), "{:?}", writes.revisions);
    let last = federation.json("get FailoverPolicy shop/checkout").await.to_string();
    assert!(last.contains(&writes.mark()), "{last}");
    federation.down_despite(&["the log may hold"]).await;
}

/// Followers first, the leader last: the order that an operator is told to use.
async fn upgrade_order(federation: &Federation) -> Vec<u64> {
    let mut members = federation.status().await.control_plane.members;
    members.sort_by_key(|member| member.role == "leader");
    members.into_iter().map(|member| member.id).collect()
}

/// Waits until every member has applied the same, one leads, and every gateway runs it.
async fn in_step(federation: &Federation) {
    eventually("members and gateways are in step", PATIENCE, async || {
        let status = federation.status().await;
        let members = &status.control_plane.members;
        let applied = members.iter().all(|member| member.applied_index == members[0].applied_index);
        check(members.len() == 3 && applied && status.leader().is_some(), || format!("{members:?}"))?;
        let late = status.gateways().into_iter().find(|(_, gateway)| gateway.state != "synced");
        check(late.is_none(), || format!("{late:?}"))
    })
    .await;
}

/// Writes that change the same policy again and again, each of which must be acknowledged.
struct Writes<'f> {
    federation: &'f Federation,
    revisions: Vec<u64>,
}

impl Writes<'_> {
    async fn commit(&mut self) {
        let text = format!(
            "apiVersion: archipelago.dev/v1alpha1\nkind: FailoverPolicy\nmetadata: {{ name: checkout, namespace: shop }}\n\
             spec:\n  service: checkout\n  order: [{{ clusters: [\"@local\"] }}, {{ clusters: [paris, tokyo] }}]\n  \
             failback: {{ after: {}s, ramp: 1s, mode: auto }}\n",
            self.revisions.len() + 2
        );
        self.federation.apply(&text).await.expect(0);
        self.revisions.push(self.federation.status().await.revision.unwrap());
    }

    /// What the last write left in the policy.
    fn mark(&self) -> String {
        format!("\"after\":\"{}s\"", self.revisions.len() + 1)
    }
}

/// Members of the new version, started in place of those that `up` keeps down.
struct Upgraded(Vec<Child>);

impl Upgraded {
    async fn replace(&mut self, federation: &Federation, id: u64) {
        let name = format!("cp-{id}");
        let old = federation.status().await.process(&name).pid.unwrap();
        let words = fs::read(format!("/proc/{old}/cmdline")).unwrap();
        let words: Vec<String> =
            words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let arguments = words[1..].iter().filter(|word| !word.is_empty());
        let log = fs::File::create(federation.scratch().join(format!("{name}-upgraded.log"))).unwrap();
        let mut command = Command::new(&words[0]);
        command.args(arguments).env("ARCHIPELAGO_COMPATIBILITY", "current").current_dir("/");
        // So that `down` finds and ends it too.
        command.env("ARCHIPELAGO_UP", &federation.state).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        federation.ok(&format!("drill kill {name} --for 10m")).await;
        eventually(&format!("{name} is gone"), PATIENCE, async || {
            check(!proc::marked(&federation.state).contains(&old), || format!("pid {old} still runs"))
        })
        .await;
        self.0.push(command.spawn().unwrap());
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Open loop, so that a stall shows as failed or late requests.
const RATE: f64 = 100.0;
