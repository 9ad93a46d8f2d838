//! A member that lost what it had promised does not come back from nothing.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::{fs, path::Path, process::Command};

use archipelago_control_plane::bootstrap::{self, Plan};
use common::ControlPlane;

/// The words of a member that must not start with this data directory.
fn refused(data_dir: &Path, marker: Option<&Path>) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_archipelago-control-plane"));
    command.args(["run", "--node-id", "1", "--data-dir"]).arg(data_dir);
    for listener in ["--listen-client", "--listen-peer", "--listen-metrics"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    if let Some(marker) = marker {
        command.arg("--marker").arg(marker);
    }
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn a_member_without_its_directory_never_founds_itself_again() {
    let mut control_plane = ControlPlane::start(1, &[]).await;
    let data_dir = control_plane.data_dir(1);
    let marker = data_dir.with_file_name("member-1.started");
    assert!(marker.exists());
    let federation = fs::read_to_string(data_dir.join("federation.json")).unwrap();
    let federation: serde_json::Value = serde_json::from_str(&federation).unwrap();
    let federation = federation["federation"].as_str().unwrap().to_owned();
    assert_eq!(control_plane.terminate(1).await, 0);
    let says = |words: &str| {
        for part in ["node 1", &*federation, "member-1.started", "hint: restore", "`meshctl member replace`"] {
            assert!(words.contains(part), "{part}: {words}");
        }
    };

    let kept = control_plane.dir.path().join("kept");
    fs::rename(data_dir.join("raft"), &kept).unwrap();
    says(&refused(&data_dir, None));
    fs::create_dir_all(data_dir.join("raft")).unwrap();
    says(&refused(&data_dir, None));
    // Not even a second time, when the first left its lock there.
    says(&refused(&data_dir, None));
    fs::remove_dir_all(data_dir.join("raft")).unwrap();

    // Its own directory is welcome.
    fs::rename(&kept, data_dir.join("raft")).unwrap();
    control_plane.start_member(1);
    control_plane.ready().await;
    control_plane.kill(1);

    // All of it gone; and founded anew in its place, or elsewhere and moved here.
    fs::remove_dir_all(&data_dir).unwrap();
    says(&refused(&data_dir, None));
    let trust_domain = || "mesh.example".parse().unwrap();
    let members = control_plane.members.clone();
    fs::remove_dir_all(control_plane.dir.path().join("operator")).unwrap();
    let plan = Plan::new(trust_domain(), members.clone(), control_plane.dir.path().to_owned());
    says(&bootstrap::bootstrap(&plan).unwrap_err().to_string());
    let elsewhere = control_plane.dir.path().join("elsewhere");
    bootstrap::bootstrap(&Plan::new(trust_domain(), members, elsewhere.clone())).unwrap();
    fs::rename(elsewhere.join("member-1"), &data_dir).unwrap();
    says(&refused(&data_dir, None));

    // The marker may be anywhere; the operator's last word is to remove it.
    let other = control_plane.dir.path().join("other-disk");
    fs::rename(&marker, &other).unwrap();
    let words = refused(&data_dir, Some(&other));
    assert!(words.contains("other-disk") && words.contains(&federation), "{words}");
    fs::remove_file(&other).unwrap();
    control_plane.start_member(1);
}
