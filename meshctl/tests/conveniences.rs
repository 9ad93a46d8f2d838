//! What makes `meshctl` pleasant to work with, against a running federation: listings that go on, names that a shell completes, and a
//! bundle for whoever is asked for help.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use harness::command::{MESHCTL, run};
use harness::suite::{self, alone};
use harness::{Federation, PATIENCE, SMALL, saw};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

fn main() -> ExitCode {
    suite::run(&alone![listings_go_on_names_are_completed_and_a_bundle_has_no_secrets])
}

async fn listings_go_on_names_are_completed_and_a_bundle_has_no_secrets() {
    let federation = Federation::up(Some(SMALL)).await;
    a_listing_goes_on_and_shows_what_has_changed(&federation).await;
    a_shell_completes_names(&federation).await;
    a_bundle_has_what_is_asked_for_and_no_secret(&federation).await;
    federation.down().await;
}

async fn a_listing_goes_on_and_shows_what_has_changed(federation: &Federation) {
    let mut command = Command::new(MESHCTL);
    command.arg("--state").arg(&federation.state).args([
        "get",
        "TrafficSplit",
        "-w",
        "--interval",
        "100ms",
        "-o",
        "json",
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || -> Value {
        let line = timeout(PATIENCE, out.next_line()).await.expect("a line in time").unwrap();
        serde_json::from_str(&line.expect("it goes on")).unwrap()
    };
    assert_eq!(next().await, serde_json::json!([]));
    federation.ok("split set shop/checkout paris=90 tokyo=10").await;
    assert_eq!(next().await[0]["metadata"]["name"], "checkout");
    federation.ok("split clear shop/checkout").await;
    assert_eq!(next().await, serde_json::json!([]), "each state once, whatever time passes");
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let ended = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), &b""[..]));
    let wrong = federation.meshctl(["status", "--interval", "1s"]).await.expect(1);
    assert!(wrong.stderr.contains("--watch"), "{wrong}");
}

async fn a_shell_completes_names(federation: &Federation) {
    let state = federation.state.to_str().unwrap();
    let complete = async |words: &[&str]| {
        let words = [&["--", "meshctl", "--state", state], words].concat();
        // As the script for fish calls it.
        let ran = run(Path::new("/"), words, &[("COMPLETE", OsStr::new("fish"))], None).await.expect(0);
        assert_eq!(ran.stderr, "", "{ran}");
        ran.stdout.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["slow", ""]).await[0], "shop/checkout");
    assert_eq!(complete(&["cluster", "drain", "p"]).await, ["paris"]);
    assert_eq!(complete(&["explain", "--from", "paris/"]).await, ["paris/gw-1"]);
    assert_eq!(complete(&["drill", "cut", "paris,t"]).await, ["paris,tokyo"]);
    assert_eq!(complete(&["get", "ServiceExport", "shop/"]).await, ["shop/checkout"]);
    assert!(
        complete(&["identity", "revoke", "spiffe://"])
            .await
            .iter()
            .any(|id| id.ends_with("/cluster/paris/gateway/gw-1"))
    );
    // Nobody there: nothing, and no word about it.
    let words = ["--", "meshctl", "--state", "/nowhere", "slow", "s"];
    let nobody = run(Path::new("/"), words, &[("COMPLETE", OsStr::new("fish"))], None).await.expect(0);
    assert_eq!((&*nobody.stdout, &*nobody.stderr), ("", ""), "{nobody}");

    let home = federation.scratch().join("home");
    let environment =
        [("HOME", home.as_os_str()), ("SHELL", OsStr::new("/usr/bin/fish")), ("XDG_CONFIG_HOME", OsStr::new(""))];
    run(Path::new("/"), ["completion", "install"], &environment, None).await.expect(0).says(&["meshctl.fish"]);
    let script = fs::read_to_string(home.join(".config/fish/completions/meshctl.fish")).unwrap();
    assert!(script.contains("COMPLETE=fish"), "{script}");
}

async fn a_bundle_has_what_is_asked_for_and_no_secret(federation: &Federation) {
    let token = federation.ok("token create --cluster paris --role gateway --name gw-9").await.stdout.trim().to_owned();
    let planted = "\
{\"level\":\"INFO\",\"authorization\":\"Bearer hunter2\"}
2026-11-30T00:00:00Z  INFO sent GET /pay?card=hunter2 password=hunter2
-----BEGIN PRIVATE KEY-----
aHVudGVyMg-hunter2
-----END PRIVATE KEY-----
";
    fs::write(federation.state.join("logs/planted.log"), format!("{planted}joined with {token}\nthe last line\n"))
        .unwrap();
    fs::write(federation.state.join("logs/paris/gw-1.access.log"), "{\"path\":\"/hunter2\"}\n").unwrap();
    federation.ok("split set shop/checkout tokyo=1 --header x-key=hunter2").await;
    let path = federation.scratch().join("report.tar.gz");
    let ran = federation.meshctl(["bug-report".as_ref(), "--out".as_ref(), path.as_os_str()]).await.expect(0);
    assert_eq!(ran.stdout.trim(), path.to_str().unwrap(), "{ran}");
    let again = federation.meshctl(["bug-report".as_ref(), "--out".as_ref(), path.as_os_str()]).await.expect(1);
    assert!(again.stderr.contains("--out"), "{again}");
    let folder = federation.scratch().join("unpacked");
    fs::create_dir(&folder).unwrap();
    let unpacked = Command::new("tar").arg("xzf").arg(&path).arg("-C").arg(&folder).status().await.unwrap();
    assert!(unpacked.success());
    let root = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let read =
        |name: &str| fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}\n{ran}"));
    for (name, word) in [
        ("README.txt", "meshctl tunnels"),
        ("meshctl.txt", "cores"),
        ("status.json", "\"frankfurt\""),
        ("services.json", "shop/checkout"),
        ("tunnels.json", "paris/gw-1"),
        ("gateways.json", "tokyo/gw-1"),
        ("events.json", "GatewayConnected"),
        ("resources.json", "\"x-key\": \"[removed]\""),
        ("check.json", "clocks agree"),
        ("identities.json", "spiffe://"),
        ("metrics/paris/gw-1.txt", "mesh_gateway_"),
        ("logs/planted.log", "the last line"),
        ("logs/supervisor.log", "leader cp-1"),
    ] {
        let word = word.replace("frankfurt", "tokyo");
        assert!(read(name).contains(&word), "{name} has no {word}: {}", read(name));
    }
    let mut folders = vec![root];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for secret in ["hunter2", "PRIVATE KEY", &token, "aHVudGVyMg"] {
                assert!(!text.contains(secret), "{} has {secret}", path.display());
            }
            count += 1;
        }
    }
    saw!("{count} files, and none of them has a secret");
    federation.ok("split clear shop/checkout").await;
}
