//! What the kernel can do to a federation, in namespaces of its own: packets that vanish, a disk that is full.
//!
//! Needs root, `unshare`, `ip`, `nft` and `mount`; says so loudly where it cannot run.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use archipelago_chaos::load;
use harness::client::address;
use harness::suite::{self, alone, shared};
use harness::{Federation, PATIENCE, SMALL, check, eventually, proc, saw};
use serde_json::Value;

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_none() && !std::env::args().any(|arg| arg == "--list") {
        if let Err(why) = able() {
            println!("\n======== SKIPPED: these tests need root, unshare, ip, nft and mount: {why} ========\n");
            return ExitCode::SUCCESS;
        }
        // The whole test moves into namespaces with no interface but a loopback, and with mounts that nobody else sees.
        let program = std::env::current_exe().unwrap();
        let script = "ip link set lo up && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--mount", "sh", "-c", script])
            .arg(program)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1");
        let error = command.exec();
        panic!("cannot run unshare: {error}");
    }
    let mut tests = Vec::from(shared![silent_packet_loss_costs_no_request_and_heals]);
    tests.extend(alone![a_full_disk_is_an_error_and_never_a_loss]);
    suite::run(&tests)
}

async fn silent_packet_loss_costs_no_request_and_heals(federation: &Federation) {
    federation.ok("split set shop/checkout paris=50 tokyo=50").await;
    let running = load::start(federation.load("frankfurt/gw-1", "checkout.shop", RATE)).unwrap();
    let share_of_paris = async |what: &str, holds: fn(u64, u64) -> bool| {
        let from = running.elapsed().as_secs() + 1;
        eventually(what, PATIENCE, async || {
            let second = running.last_second().filter(|second| second.second >= from).ok_or("no whole second yet")?;
            let paris = second.by_cluster.get("paris").copied().unwrap_or(0);
            let all = second.by_cluster.values().sum();
            check(all > 0 && holds(paris, all), || format!("{second:?}"))
        })
        .await;
    };
    share_of_paris("paris has its share", |paris, all| paris * 3 >= all).await;

    let paris = federation.gateways().iter().filter(|(name, _)| name.starts_with("paris/"));
    let ports: Vec<String> = paris.map(|(_, gateway)| address(&gateway.tunnel).port().to_string()).collect();
    let ports = ports.join(", ");
    // Dropped where they arrive: a packet dropped where it leaves would be an error that the sender sees.
    nft(&format!(
        "table inet cut {{ chain input {{ type filter hook input priority 0; \
         udp sport {{ {ports} }} drop; udp dport {{ {ports} }} drop; }}; }}"
    ));
    share_of_paris("paris is left", |paris, _| paris == 0).await;
    // Tunnels that carry nothing beat once a second, and are known to be lost after three silent ones.
    eventually("no tunnel with paris is up", PATIENCE, async || {
        let tunnels = federation.json("tunnels").await;
        let of_paris =
            |tunnel: &&Value| [&tunnel["fromCluster"], &tunnel["toCluster"]].iter().any(|cluster| **cluster == "paris");
        let mut cut = tunnels.as_array().unwrap().iter().filter(of_paris).peekable();
        check(cut.peek().is_some() && cut.all(|tunnel| tunnel["state"] != "up"), || tunnels.to_string())
    })
    .await;

    nft("delete table inet cut");
    share_of_paris("paris takes its share again", |paris, all| paris * 3 >= all).await;
    running.stop();
    let report = running.finish().await.unwrap();
    let worst = report.worst_second().unwrap();
    let p99 = Duration::from_micros(worst.p99_micros.unwrap_or(0));
    saw!("{} requests, {} failed; worst second p99 {p99:?}", report.sent, report.failed);
    assert_eq!(report.failed, 0, "{report}");
}

async fn a_full_disk_is_an_error_and_never_a_loss() {
    let disk = tempfile::tempdir().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=64m", "none", disk.path().to_str().unwrap()]);
    let federation = Federation::plan_in(disk.path(), Some(SMALL)).begin().await;
    federation.ok("split set shop/checkout paris=1").await;
    let mut acknowledged = federation.json("split get shop/checkout").await;

    let before = proc::marked(&federation.state);
    let ballast = disk.path().join("ballast");
    let filled = fill(&ballast);
    let running = load::start(federation.load("paris/gw-1", "checkout.shop", RATE)).unwrap();
    // Writes until one does not fit. Whatever is acknowledged must be there; what is not says so.
    let mut refused = None;
    for weight in 2..FILLING_WRITES_MAX {
        fill(&ballast);
        let share = format!("paris={weight}");
        let args = ["split", "set", "shop/checkout", &share, "--wait", "none", "--timeout", "3s"];
        let ran = federation.meshctl(args).await;
        if ran.code != 0 {
            refused = Some(ran);
            break;
        }
        acknowledged["spec"]["backends"][0]["weight"] = weight.into();
    }
    let refused = refused.expect("every write was acknowledged on a full disk");
    assert_ne!(refused.code, 0, "{refused}");
    for part in ["member cp-1: no space left on device", "/raft/", "it continues by itself"] {
        assert!(refused.stderr.contains(part), "{refused}");
    }
    let words = refused.stderr.lines().next().unwrap_or_default();
    saw!("{filled} bytes left no room: the write is answered by {}: {words}", refused.code);
    let goal = running.counters().ok + 200;
    assert!(running.until(|counters| counters.ok >= goal).await, "traffic needs the disk: {}", running.report());

    // It reads and says what is wrong, and no process has exited.
    let status = federation.json("status").await;
    let problem = status["controlPlane"]["members"][0]["problem"].as_str().unwrap_or_default();
    assert!(problem.contains("no space left on device"), "{status}");
    let held = federation.json("split get shop/checkout").await;
    assert_eq!(held["spec"]["backends"], acknowledged["spec"]["backends"], "what was refused is not there");
    assert_eq!(proc::marked(&federation.state), before);

    std::fs::remove_file(&ballast).unwrap();
    let split = eventually("the control plane is back once there is room", PATIENCE, async || {
        let ran = federation.meshctl(["split", "get", "shop/checkout", "-o", "json"]).await;
        check(ran.code == 0, || ran.to_string())?;
        Ok(ran.json())
    })
    .await;
    // The refused write may or may not have been committed; an acknowledged one is never lost.
    let weight = |split: &serde_json::Value| split["spec"]["backends"][0]["weight"].as_u64().unwrap();
    assert!(weight(&split) == weight(&acknowledged) || weight(&split) == weight(&acknowledged) + 1, "{split}");
    federation.ok("split set shop/checkout paris=1000000").await;
    federation.settle().await;
    assert_eq!(proc::marked(&federation.state), before, "it continued by itself");
    running.stop();
    let report = running.finish().await.unwrap();
    assert_eq!(report.failed, 0, "{report}");
    federation.down_despite(&["No space left", "no space left"]).await;
    run("umount", &[disk.path().to_str().unwrap()]);
}

/// Writes until the disk is full; returns the size of the file.
fn fill(path: &Path) -> u64 {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
    file.metadata().unwrap().len()
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn nft(rules: &str) {
    run("nft", &[rules]);
}

/// Whether a namespace with a packet filter can be made here.
fn able() -> Result<(), String> {
    let script = "ip link set lo up && nft 'table inet probe { }' && mount -t tmpfs none /mnt";
    let output = Command::new("unshare").args(["--net", "--mount", "sh", "-c", script]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("unshare: {error}"))?;
    check(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())
}

const INSIDE: &str = "ARCHIPELAGO_TEST_NAMESPACE";
const RATE: f64 = 100.0;
/// A log grows by less than a page with each; preallocated space is used up long before this.
const FILLING_WRITES_MAX: u32 = 2_000;
