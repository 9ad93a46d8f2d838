//! Old control planes under running gateways: nothing that was acknowledged is undone.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::process::ExitCode;
use std::time::Duration;

use harness::suite::{self, alone};
use harness::{Connection, Federation, PATIENCE, check, eventually, saw};

fn main() -> ExitCode {
    suite::run(&alone![a_member_that_missed_a_write_undoes_nothing_when_it_is_alone])
}

/// cp-3 misses a switch and comes back when the other two are gone: gateways find it and get nothing from it.
async fn a_member_that_missed_a_write_undoes_nothing_when_it_is_alone() {
    let federation = Federation::up(None).await;
    federation.settle().await;
    federation.ok("split set shop/checkout paris=100").await;
    everybody_reaches(&federation, "paris").await;

    federation.ok("drill kill cp-3 --for 20s").await;
    let switched = federation.json("switch shop/checkout --to tokyo").await;
    assert_eq!(switched["acknowledged"], switched["expected"], "{switched}");
    let revision = federation.status().await.revision;
    federation.ok("drill kill cp-1 --for 10m").await;
    federation.ok("drill kill cp-2 --for 10m").await;
    let noticed = |federation: &Federation| federation.log_lines("the control plane knows no leader").len();
    eventually("cp-3 is back alone, and every gateway has found it", PATIENCE, async || {
        let gateways = federation.gateways().len();
        check(noticed(&federation) >= gateways, || format!("{} of {gateways} noticed", noticed(&federation)))
    })
    .await;
    // It has what it takes to undo the switch, and would have done so within a second of the first hello.
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while std::time::Instant::now() < until {
        everybody_reaches(&federation, "tokyo").await;
    }
    saw!("{} gateways stayed at revision {revision:?} beside a member that had missed it", federation.gateways().len());

    federation.ok("drill end").await;
    federation.settle().await;
    assert_eq!(federation.status().await.revision, revision);
    everybody_reaches(&federation, "tokyo").await;
    federation.ok("switch shop/checkout --to paris").await;
    everybody_reaches(&federation, "paris").await;
    federation.down().await;
}

/// Requests through every gateway are served by `cluster`.
async fn everybody_reaches(federation: &Federation, cluster: &str) {
    for (name, gateway) in federation.gateways() {
        let reply = Connection::http1(&gateway.http).await.get("checkout.shop", "/", &[]).await;
        assert_eq!((reply.status, reply.field("cluster").as_str()), (200, cluster), "through {name}");
    }
}
