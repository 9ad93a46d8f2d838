//! The real binary: help, offline validation, exit codes, and what goes to which stream.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn meshctl(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(args).env_remove("ARCHIPELAGO_STATE").env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

fn with_stdin(args: &[&str], text: &[u8]) -> Output {
    let mut child = command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A binary that refuses before it reads closes the pipe; that is its right.
    let _ = child.stdin.take().unwrap().write_all(text);
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const SPLIT: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: TrafficSplit
metadata: { name: checkout, namespace: shop }
spec:
  service: checkout
  backends: [{ cluster: paris, weight: 90 }, { cluster: tokyo, weight: 10 }]
";

#[test]
fn help_goes_to_stdout_and_shows_examples() {
    for args in [&["--help"][..], &["split", "set", "--help"], &["up", "--help"], &["drill", "cut", "--help"]] {
        let output = meshctl(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(stdout(&output).contains("Examples:"), "{args:?}: {}", stdout(&output));
        assert_eq!(stderr(&output), "", "{args:?}");
    }
    assert!(stdout(&meshctl(&["--help"])).contains("4  no control plane answered"));
    assert!(!stdout(&meshctl(&["--help"])).contains("role"), "what `up` starts is not for people");
}

#[test]
fn wrong_usage_exits_with_1() {
    for args in [
        &["frobnicate"][..],
        &[],
        &["status", "--timeout", "5"],
        &["split", "set", "checkout", "paris=1"],
        &["split", "set", "shop/checkout", "paris=heavy"],
        &["switch", "shop/checkout"],
        &["switch", "shop/checkout", "--to", "tokyo", "--undo"],
        &["drill", "cut"],
        &["apply"],
        &["delete", "TrafficSplit"],
    ] {
        let output = meshctl(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
        assert!(!stderr(&output).is_empty(), "{args:?}");
    }
}

#[test]
fn validate_is_offline_and_prints_data_on_stdout() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("split.yaml");
    std::fs::write(&file, SPLIT).unwrap();
    let file = file.to_str().unwrap();
    let output = meshctl(&["validate", "-f", file]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "TrafficSplit shop/checkout is valid\n1 files, 1 resources, no problem\n");

    let json: serde_json::Value =
        serde_json::from_str(&stdout(&meshctl(&["validate", "-f", file, "-o", "json"]))).unwrap();
    assert_eq!(json["valid"], true);
    assert_eq!(json["resources"][0]["name"], "checkout");

    let piped = with_stdin(&["validate", "-f", "-", "-o", "yaml"], SPLIT.as_bytes());
    assert_eq!(piped.status.code(), Some(0), "{}", stderr(&piped));
    assert!(stdout(&piped).contains("valid: true"), "{}", stdout(&piped));
}

#[test]
fn every_topology_is_valid() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies");
    let output = meshctl(&["validate", "-f", dir.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn problems_have_a_place_and_exit_with_1() {
    let broken = SPLIT.replace("backends:", "backend:").replace("kind: TrafficSplit", "kind: TraficSplit");
    let output = with_stdin(&["validate", "-f", "-"], broken.as_bytes());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    let text = stderr(&output);
    assert!(text.starts_with("stdin:2:") && text.contains("did you mean `TrafficSplit`"), "{text}");

    for (name, bytes) in [("empty", &b""[..]), ("binary", &[0xff, 0xfe, 0, 1]), ("list", b"- 1\n")] {
        let output = with_stdin(&["validate", "-f", "-"], bytes);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(stderr(&output).starts_with("stdin:1:1: "), "{name}: {}", stderr(&output));
    }
}

#[test]
fn without_a_federation_every_command_exits_with_4_and_says_what_starts_one() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("none");
    let state = state.to_str().unwrap();
    let file = dir.path().join("split.yaml");
    std::fs::write(&file, SPLIT).unwrap();
    for args in [
        &["status"][..],
        &["services"],
        &["tunnels"],
        &["tap"],
        &["services", "-w"],
        &["gateways", "-o", "json"],
        &["apply", "-f", file.to_str().unwrap()],
        &["get"],
        &["split", "set", "shop/checkout", "paris=1"],
        &["switch", "shop/checkout", "--undo"],
        &["cluster", "drain", "paris"],
        &["failover", "status"],
        &["token", "list"],
        &["explain", "--from", "paris", "--to", "shop/checkout"],
        &["drill", "kill", "paris", "--for", "1s"],
    ] {
        let output = meshctl(&[&["--state", state][..], args].concat());
        assert_eq!(output.status.code(), Some(4), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
        let text = stderr(&output);
        assert!(text.contains("hint: ") && text.contains(&format!("meshctl --state {state} up")), "{args:?}: {text}");
    }
    assert!(!Path::new(state).exists(), "asking leaves nothing behind");
}

#[test]
fn down_without_a_federation_is_done() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine.txt"), "keep").unwrap();
    let output = meshctl(&["--state", dir.path().to_str().unwrap(), "down"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(dir.path().join("mine.txt")).unwrap(), "keep");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_broken_topology_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let topology = dir.path().join("t.yaml");
    std::fs::write(
        &topology,
        "apiVersion: archipelago.dev/v1alpha1\nkind: Topology\nmetadata: { name: t }\nspec:\n  trustDomian: x\n",
    )
    .unwrap();
    let state = dir.path().join("state");
    let output = meshctl(&["--state", state.to_str().unwrap(), "up", "--detach", topology.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("t.yaml:5:3: "), "{}", stderr(&output));
    assert!(!state.exists());
}

#[test]
fn the_credential_of_another_federation_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("operator")).unwrap();
    let state = dir.path().to_str().unwrap();
    for args in [&["up"][..], &["up", "--detach"]] {
        let output = meshctl(&[&["--state", state][..], args].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("credential of another federation"), "{}", stderr(&output));
    }
    assert_eq!(meshctl(&["--state", state, "down"]).status.code(), Some(0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "neither made nor removed anything");
}

#[test]
fn a_taken_port_is_reported_with_its_owner_and_leaves_nothing() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    // The port is anywhere in the ephemeral range: the smallest federation fits above it or is refused for the range.
    let topology = dir.path().join("t.yaml");
    std::fs::write(
        &topology,
        "apiVersion: archipelago.dev/v1alpha1\nkind: Topology\nmetadata: { name: t }\nspec:\n  trustDomain: t.example\n  \
         controlPlane: { nodes: 1 }\n  clusters: [{ name: paris, region: eu-west, gateways: 1 }]\n",
    )
    .unwrap();
    let state = dir.path().join("state");
    let output = meshctl(&[
        "--state",
        state.to_str().unwrap(),
        "up",
        topology.to_str().unwrap(),
        "--base-port",
        &port.to_string(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains(&format!("port {port}/tcp for cp-1: taken by pid {}", std::process::id())), "{text}");
    assert!(text.contains("hint: ") && text.contains("--base-port"), "{text}");
    assert!(!state.exists(), "{:?}", std::fs::read_dir(&state).map(Iterator::count));
}

#[test]
fn completion_knows_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = meshctl(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(stdout(&output).contains("COMPLETE"), "{}", stdout(&output));
    }
    // As the script for fish asks.
    let output = command(&["--", "meshctl", "fail"]).env("COMPLETE", "fish").output().unwrap();
    assert!(stdout(&output).starts_with("failover"), "{}", stdout(&output));
    let no_shell = command(&["completion", "install"]).env_remove("SHELL").output().unwrap();
    assert_eq!(no_shell.status.code(), Some(1));
    assert!(stderr(&no_shell).contains("hint: name it: meshctl completion install fish"), "{}", stderr(&no_shell));
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    assert_eq!(meshctl(&["man", "--dir", folder.to_str().unwrap()]).status.code(), Some(0));
    for page in ["meshctl.1", "meshctl-tap.1", "meshctl-split-set.1", "meshctl-identity-revoke.1"] {
        let text = std::fs::read_to_string(folder.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".SH NAME") && text.contains("Examples:"), "{page}: {text}");
    }
    assert!(!folder.join("meshctl-role.1").exists(), "what `up` starts is not for people");
    assert!(stdout(&meshctl(&["man"])).contains(".TH meshctl 1"));
}

#[test]
fn under_the_name_of_a_plugin_it_calls_itself_so() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("kubectl-mesh");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_meshctl"), &plugin).unwrap();
    let run = |args: &[&str]| Command::new(&plugin).args(args).env_remove("ARCHIPELAGO_STATE").output().unwrap();
    let help = run(&["tap", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(
        stdout(&help).contains("kubectl mesh tap --where") && !stdout(&help).contains("meshctl"),
        "{}",
        stdout(&help)
    );
    let nobody = run(&["--state", dir.path().to_str().unwrap(), "status"]);
    assert_eq!(nobody.status.code(), Some(4));
    assert!(stderr(&nobody).contains("`kubectl mesh --state"), "{}", stderr(&nobody));
}

#[test]
fn whatever_is_refused_comes_with_a_hint() {
    for args in [
        &["validate", "-f", "/no/such/file"][..],
        &["tap", "--where", "colour=red"],
        &["get", "Teapot"],
        &["completion", "install", "elvish"],
    ] {
        let output = meshctl(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains("hint: "), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_mistyped_token_is_refused_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let output = meshctl(&["--state", dir.path().to_str().unwrap(), "join", "amt1.rubbish!"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("hint: "), "{}", stderr(&output));
}
