//! `up` and `down`: side by side, twice, in the way of others, from damaged state, and with everything killed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use archipelago_chaos::load::{self, Protocol};
use harness::suite::{self, alone};
use harness::{Connection, Federation, PATIENCE, Ran, SMALL, check, eventually, meshctl, proc, saw};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};

fn main() -> ExitCode {
    suite::run(&alone![
        two_federations_run_side_by_side,
        a_second_up_on_one_state_is_refused,
        a_taken_port_is_named_with_its_owner,
        a_state_directory_that_cannot_be_written_is_refused,
        a_topology_serves_servers_of_ones_own,
        a_kept_state_is_resumed,
        a_foreground_up_ends_on_ctrl_c_and_keeps_its_state,
        certificates_are_renewed_and_nothing_is_dropped,
        a_killed_supervisor_leaves_nothing_that_down_or_up_would_not_find,
        a_member_whose_data_is_damaged_says_so_and_loses_nothing,
        a_member_whose_disk_is_lost_is_replaced_by_one_command,
        a_gateway_whose_state_is_damaged_serves_or_says_why,
        foreign_files_are_neither_believed_nor_removed,
    ])
}

async fn two_federations_run_side_by_side() {
    let first = Federation::up(Some(SMALL)).await;
    let second = Federation::up(Some(SMALL)).await;
    assert_ne!(first.base_port, second.base_port);
    first.ok("switch shop/checkout --to tokyo").await;
    // The same names, and nothing in common.
    assert_eq!(served_by(&first, "paris/gw-1").await, "tokyo");
    assert_eq!(served_by(&second, "paris/gw-1").await, "paris");
    let pids = |status: harness::status::Status| status.running(|_| true);
    let survivors = pids(second.status().await);
    first.down().await;
    assert_eq!(pids(second.status().await), survivors, "`down` of one reached into the other");
    assert_eq!(served_by(&second, "paris/gw-1").await, "paris");
    // A credential of one federation opens nothing in another.
    let third = Federation::up(Some(SMALL)).await;
    let mixed = tempfile::tempdir().unwrap();
    let operator = mixed.path().join("operator");
    fs::create_dir(&operator).unwrap();
    for entry in fs::read_dir(second.state.join("operator")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, operator.join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(third.state.join("operator/control-plane.json"), operator.join("control-plane.json")).unwrap();
    let args = ["--state".as_ref(), mixed.path().as_os_str(), "status".as_ref(), "--timeout".as_ref(), "2s".as_ref()];
    let refused = meshctl(args).await;
    assert!(matches!(refused.code, 1 | 4) && refused.stderr.contains("certificate"), "{refused}");
    third.down().await;
    second.down().await;
}

async fn a_second_up_on_one_state_is_refused() {
    let federation = Federation::up(Some(SMALL)).await;
    let before = federation.status().await.running(|_| true);
    let supervisor = federation.status().await.pid("supervisor").to_string();
    for args in [&["up", "--detach"][..], &["up"]] {
        federation.start(args).await.expect(1).says(&["already runs", &supervisor, "hint:"]);
    }
    assert_eq!(federation.status().await.running(|_| true), before);
    assert_eq!(served_by(&federation, "tokyo/gw-1").await, "tokyo");
    federation.down().await;
}

async fn a_taken_port_is_named_with_its_owner() {
    let federation = Federation::plan(Some(SMALL));
    // Any port of the block; member 1's Raft port is as good as another.
    let taken = TcpListener::bind(("127.0.0.1", federation.base_port + 10)).unwrap();
    let base = federation.base_port.to_string();
    let port = format!("{}/tcp", taken.local_addr().unwrap().port());
    let owner = format!("pid {}", std::process::id());
    for flags in [&["up", "--detach", "--base-port", &base][..], &["up", "--base-port", &base]] {
        federation.start(flags).await.expect(1).says(&[&port, &owner, "cp-1", "--base-port"]);
        assert!(!federation.state.exists(), "something was left behind");
    }
    assert_eq!(proc::marked(&federation.state), Vec::<u32>::new());
    // A mistake in the topology leaves no trace either.
    let wrong = SMALL.replace("gateways: 1", "gatways: 1");
    let file = federation.scratch().join("wrong.yaml");
    fs::write(&file, wrong).unwrap();
    let ran = federation.meshctl(["up".as_ref(), "--detach".as_ref(), file.as_os_str()]).await;
    ran.expect(1).says(&["wrong.yaml:10:", "did you mean `gateways`?"]);
    assert!(!federation.state.exists());
}

/// A server outside that answers to its name only, the way many do.
async fn a_topology_serves_servers_of_ones_own() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let topology = format!(
        "\
apiVersion: archipelago.dev/v1alpha1
kind: Topology
metadata: {{ name: own }}
spec:
  trustDomain: own.example
  controlPlane: {{ nodes: 1 }}
  clusters:
    - name: paris
      region: eu-west
      gateways: 1
      services:
        - name: mine
          namespace: shop
          port: 80
          endpoints: [\"{address}\"]
          healthCheck: {{ http: /, host: mine.example, interval: 100ms }}
    - name: tokyo
      region: ap-northeast
      gateways: 1
      services: [{{ name: web, namespace: shop, port: 80 }}]
---
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: {{ name: mine, namespace: shop }}
"
    );
    let (status, statuses) = tokio::sync::watch::channel("404 Not Found");
    let serve = tokio::spawn(async move {
        loop {
            let (stream, _) = server.accept().await.unwrap();
            let statuses = statuses.clone();
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut lines = BufReader::new(read).lines();
                let mut host = String::new();
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("host:") {
                        host = value.trim().to_owned();
                    }
                    if line.is_empty() {
                        // The mesh asks by the name of the service, the check by the one it was given.
                        let known = host == "mine.example" || host == "mine.shop";
                        let status = if known { *statuses.borrow() } else { "421 Misdirected Request" };
                        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nmine");
                        if tokio::io::AsyncWriteExt::write_all(&mut write, answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });

    // It does not answer well yet, which keeps nothing from starting; what it says is shown.
    let federation = Federation::up(Some(&topology)).await;
    let paris = async || federation.json("services").await[0]["clusters"][0].clone();
    eventually("the check says what it heard", PATIENCE, async || {
        let paris = paris().await;
        check(paris["failure"] == "answered 404", || paris.to_string())
    })
    .await;
    let wide = federation.ok("services -o wide").await;
    assert!(wide.stdout.contains("answered 404"), "{wide}");

    status.send_replace("200 OK");
    for gateway in ["paris/gw-1", "tokyo/gw-1"] {
        eventually("it serves", PATIENCE, async || {
            let mut connection = Connection::http1(&federation.gateway(gateway).http).await;
            let reply = connection.get("mine.shop", "/", &[]).await;
            check(reply.status == 200 && reply.body == "mine", || format!("{gateway}: {reply:?}"))
        })
        .await;
    }
    let demos = federation.status().await.running(|process| process.role == "demo");
    assert_eq!(demos.len(), 1, "{demos:?}");
    federation.down().await;
    serve.abort();
}

async fn a_state_directory_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    // Root may write anywhere but where the kernel itself says no.
    for state in [file.as_path(), &file.join("below"), Path::new("/proc/archipelago"), Path::new("/proc/1")] {
        for detach in [&["--detach"][..], &[]] {
            let mut args = vec!["--state".as_ref(), state.as_os_str(), "up".as_ref()];
            args.extend(detach.iter().map(AsRef::<std::ffi::OsStr>::as_ref));
            let ran = meshctl(args).await.expect(1);
            assert!(ran.stderr.contains(state.to_str().unwrap()), "{ran}");
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

async fn a_kept_state_is_resumed() {
    let federation = Federation::up(Some(SMALL)).await;
    federation.ok("split set shop/checkout tokyo=1").await;
    let before = federation.json("get").await;
    let gateways: Vec<String> = federation.gateways().values().map(|gateway| gateway.http.clone()).collect();
    federation.ok("down --keep-state").await;
    assert_eq!(proc::marked(&federation.state), Vec::<u32>::new());
    federation.meshctl(["status", "--timeout", "1s"]).await.expect(4);
    // Other wishes than the recorded ones are refused, not mixed in.
    let ran = federation.meshctl(["up", "--detach", "--base-port", "9000"]).await;
    ran.expect(1).says(&["--base-port", &federation.base_port.to_string()]);

    federation.ok("up --detach").await;
    assert_eq!(federation.json("get").await, before);
    let again: Vec<String> =
        federation.status().await.gateways().values().map(|gateway| gateway.http.clone()).collect();
    assert_eq!(again, gateways);
    assert_eq!(served_by(&federation, "paris/gw-1").await, "tokyo");
    federation.down().await;
}

async fn a_foreground_up_ends_on_ctrl_c_and_keeps_its_state() {
    let federation = Federation::up(Some(SMALL)).await;
    federation.ok("down --keep-state").await;
    let mut command = tokio::process::Command::new(harness::command::MESHCTL);
    command.arg("--state").arg(&federation.state).arg("up").current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut up = command.spawn().unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
    let mut guide = String::new();
    while !guide.contains("Three things to try:") {
        guide.push_str(&tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().expect(&guide));
    }
    assert!(guide.contains(&federation.gateway("paris/gw-1").http), "{guide}");
    assert_eq!(served_by(&federation, "paris/gw-1").await, "paris");
    assert_eq!(federation.status().await.pid("supervisor"), up.id().unwrap());
    proc::signal(up.id().unwrap(), Signal::INT);
    let ended = tokio::time::timeout(PATIENCE, up.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.contains("the state is kept"), "{said}");
    assert_eq!(proc::marked(&federation.state), Vec::<u32>::new());
    federation.ok("up --detach").await;
    federation.down().await;
}

async fn certificates_are_renewed_and_nothing_is_dropped() {
    // They are renewed after a quarter of their life.
    let federation = Federation::plan(Some(SMALL)).with("ARCHIPELAGO_SVID_TTL", "16s").begin().await;
    federation.ok("split set shop/checkout tokyo=1").await;
    let url = federation.gateway("paris/gw-1").http.clone();
    let mut plan = federation.load("paris/gw-1", "checkout.shop", 50.0);
    plan.protocol = Protocol::Http2;
    let running = load::start(plan).unwrap();
    // One response that takes longer than the certificates live with which it began.
    let long =
        tokio::spawn(async move { Connection::http1(&url).await.get("checkout.shop", "/stream/120/200", &[]).await });
    let processes = ["paris/agent", "paris/gw-1", "tokyo/agent", "tokyo/gw-1"];
    let mut seen: BTreeMap<&str, BTreeSet<Vec<u8>>> = BTreeMap::new();
    eventually("every certificate is renewed five times", PATIENCE, async || {
        for name in processes {
            let file = federation.state.join("clusters").join(name).join("identity/svid.pem");
            seen.entry(name).or_default().insert(fs::read(file).unwrap_or_default());
        }
        check(seen.values().all(|all| all.len() > 5), || format!("{:?}", seen.values().map(BTreeSet::len)))
    })
    .await;
    let long = long.await.unwrap();
    let lines = long.body.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!((long.status, lines), (200, 120));
    running.stop();
    let report = running.finish().await.unwrap();
    assert_eq!(report.failed, 0, "{report}");
    saw!("{} requests and a response of 24 s while certificates of 16 s were renewed five times", report.ok);
    // What starts now meets only renewed certificates.
    let gateway = federation.status().await;
    proc::kill(gateway.pid("tokyo/gw-1"));
    eventually("it is restarted", PATIENCE, async || {
        let now = federation.status().await;
        check(now.process("tokyo/gw-1").restarts > 0, || format!("{:?}", now.processes))
    })
    .await;
    eventually("paris reaches tokyo again", PATIENCE, async || {
        let cluster = served_by(&federation, "paris/gw-1").await;
        check(cluster == "tokyo", || cluster)
    })
    .await;
    federation.settle().await;
    federation.down().await;
}

async fn a_killed_supervisor_leaves_nothing_that_down_or_up_would_not_find() {
    let federation = Federation::up(Some(SMALL)).await;
    let first = federation.status().await;
    proc::kill(first.pid("supervisor"));
    // Traffic does not care; `status` loses only the processes.
    assert_eq!(served_by(&federation, "paris/gw-1").await, "paris");
    eventually("the supervisor is gone", PATIENCE, async || {
        let processes = federation.status().await.processes;
        check(processes.is_empty(), || format!("{processes:?}"))
    })
    .await;
    federation.ok("up --detach").await;
    let second = federation.status().await;
    for (name, pid) in first.running(|process| process.role != "supervisor") {
        assert_ne!(second.process(&name).pid, Some(pid), "{name} was not taken over");
    }
    proc::kill(second.pid("supervisor"));
    federation.down().await;
}

async fn a_member_whose_data_is_damaged_says_so_and_loses_nothing() {
    let federation = Federation::up(Some(SMALL)).await;
    federation.ok("split set shop/checkout tokyo=1").await;
    federation.ok("down --keep-state").await;
    let member = federation.state.join("member-1");
    let files: Vec<PathBuf> = files_below(&member).into_iter().filter(|path| size(path) > 4096).collect();
    assert!(!files.is_empty(), "{member:?} has no data files");
    for path in files {
        let whole = fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        for (how, damaged) in
            [("truncated", &whole[..whole.len() / 3]), ("emptied", &[]), ("foreign", b"\x7fELF not ours")]
        {
            fs::write(&path, damaged).unwrap();
            let ran = federation.start(&["up", "--detach", "--ready-timeout", "30s"]).await.expect(1);
            saw!("{name} {how}: {}", ran.stderr.lines().find(|line| line.contains(&name)).unwrap_or("?"));
            assert!(ran.stderr.contains(&name), "{name} {how}: the file is not named\n{ran}");
            assert_eq!(proc::marked(&federation.state), Vec::<u32>::new());
        }
        fs::remove_file(&path).unwrap();
        let ran = federation.start(&["up", "--detach", "--ready-timeout", "30s"]).await.expect(1);
        assert!(ran.stderr.contains(&name), "{name} missing: the file is not named\n{ran}");
        fs::write(&path, whole).unwrap();
    }
    // With its files back it has lost nothing.
    federation.start(&["up", "--detach"]).await.expect(0);
    let split = federation.json("split get shop/checkout").await;
    assert_eq!(split["spec"]["backends"], json!([{ "cluster": "tokyo", "weight": 1 }]));
    federation.down().await;
}

async fn a_member_whose_disk_is_lost_is_replaced_by_one_command() {
    let federation = Federation::up(Some(&SMALL.replace("nodes: 1", "nodes: 3"))).await;
    federation.ok("split set shop/checkout tokyo=1").await;
    let members = federation.status().await.control_plane.members;
    let lost = members.iter().find(|member| member.role == "follower").unwrap().id;
    let works = federation.meshctl(["member", "replace", &lost.to_string()]).await.expect(1);
    works.says(&["works", "hint:"]);
    federation.ok(&format!("drill kill cp-{lost} --for 3s")).await;
    fs::remove_dir_all(federation.state.join(format!("member-{lost}"))).unwrap();
    let replaced = federation.json(&format!("member replace {lost} --reason disk --wait 60s")).await;
    assert_eq!(
        (replaced["name"].clone(), replaced["replaces"].clone(), replaced["standing"].clone()),
        (json!("cp-4"), json!(format!("cp-{lost}")), json!("voter"))
    );
    let list = federation.json("member list").await;
    let of = |field: &str| list.as_array().unwrap().iter().map(|member| member[field].clone()).collect::<Vec<_>>();
    let ids: Vec<u64> = (1..=4).filter(|id| *id != lost).collect();
    assert_eq!(of("id"), ids.iter().map(|id| json!(id)).collect::<Vec<_>>());
    assert!(of("standing").iter().all(|standing| standing == "voter"), "{list}");
    assert_eq!(list[2]["place"], json!(lost));
    // No secret of it is left where it was handed over.
    assert!(fs::read_dir(federation.state.join("members")).unwrap().next().is_none());
    federation.ok("member transfer --to cp-4").await;
    federation.ok("split set shop/checkout paris=1").await;
    assert_eq!(served_by(&federation, "tokyo/gw-1").await, "paris");
    let refused = federation.meshctl(["member", "remove", "4"]).await.expect(1);
    refused.says(&["leadership has to go to another member first", "meshctl member transfer"]);
    let events = federation.ok("events --kind membership").await;
    assert!(events.stdout.contains(&format!("cp-{lost} is no member any more: disk")), "{events}");
    // It all holds over a restart, which starts the processes as they were started before.
    federation.ok("down --keep-state").await;
    federation.start(&["up", "--detach"]).await.expect(0);
    assert_eq!(federation.json("member list").await.as_array().unwrap().len(), 3);
    federation.down().await;
}

async fn a_gateway_whose_state_is_damaged_serves_or_says_why() {
    let federation = Federation::up(Some(SMALL)).await;
    federation.ok("split set shop/checkout tokyo=1").await;
    federation.ok("down --keep-state").await;
    // What a gateway keeps besides its identity is a copy of what the control plane has: it fetches it again.
    let dir = federation.state.join("clusters/paris/gw-1");
    let kept: Vec<PathBuf> = files_below(&dir)
        .into_iter()
        .filter(|path| !path.starts_with(dir.join("identity")) && size(path) > 0)
        .collect();
    let kept: Vec<PathBuf> = kept.into_iter().filter(|path| path.file_name().unwrap() != "LOCK").collect();
    assert!(!kept.is_empty(), "{:?}", files_below(&dir));
    for path in &kept {
        fs::OpenOptions::new().write(true).truncate(true).open(path).unwrap().write_all(b"\0garbage\xff").unwrap();
    }
    federation.start(&["up", "--detach"]).await.expect(0);
    assert_eq!(served_by(&federation, "paris/gw-1").await, "tokyo");
    federation.ok("down --keep-state").await;
    // Its identity is not: a key that is damaged is named.
    let key = dir.join("identity/key.pem");
    fs::write(&key, "-----BEGIN PRIVATE KEY-----\ngarbage\n-----END PRIVATE KEY-----\n").unwrap();
    federation.start(&["up", "--detach", "--ready-timeout", "20s"]).await.expect(1).says(&["paris/gw-1"]);
    federation.down_despite(&["cannot be used; starting empty"]).await;
}

async fn foreign_files_are_neither_believed_nor_removed() {
    let federation = Federation::plan(Some(SMALL));
    fs::create_dir(&federation.state).unwrap();
    let base = federation.base_port.to_string();
    let up = ["up", "--detach", "--base-port", &base];
    // A record that is not ours is named, and nothing is started over it.
    for record in ["", "{\"topology\":", "[1, 2]", "{\"unknown\": true}"] {
        fs::write(federation.state.join("up.json"), record).unwrap();
        federation.start(&up).await.expect(1).says(&["up.json", "hint:"]);
        assert_eq!(proc::marked(&federation.state), Vec::<u32>::new());
    }
    fs::remove_file(federation.state.join("up.json")).unwrap();
    // A credential of another federation is not overwritten.
    fs::create_dir(federation.state.join("operator")).unwrap();
    fs::write(federation.state.join("operator/key.pem"), "theirs").unwrap();
    federation.start(&up).await.expect(1).says(&["operator", "another federation"]);
    assert_eq!(fs::read_to_string(federation.state.join("operator/key.pem")).unwrap(), "theirs");
    fs::remove_dir_all(federation.state.join("operator")).unwrap();
    // Someone's own file in the directory survives it all.
    fs::write(federation.state.join("thesis.txt"), "years of work").unwrap();
    let started: Ran = federation.start(&up).await;
    if started.code == 0 {
        federation.ok("down").await;
    } else {
        assert!(started.stderr.contains("ports are not free"), "{started}");
    }
    assert_eq!(fs::read_to_string(federation.state.join("thesis.txt")).unwrap(), "years of work");
    let left: Vec<_> = fs::read_dir(&federation.state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["thesis.txt"]);
}

/// The cluster that serves a request entering at a gateway.
async fn served_by(federation: &Federation, gateway: &str) -> String {
    let url = federation.gateway(gateway).http.clone();
    Connection::http1(&url).await.get("checkout.shop", "/", &[]).await.field("cluster")
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}
