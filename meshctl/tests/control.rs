//! What commands answer, and what the control plane takes, refuses and never forgets.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use archipelago_identity::tls::Expect;
use archipelago_identity::{CredentialDir, LiveCredential};
use archipelago_proto::v1;
use archipelago_rpc::enrol::JoinToken;
use archipelago_rpc::grpc;
use harness::suite::{self, shared};
use harness::{Connection, Federation, PATIENCE, check, command, eventually, meshctl, proc, saw};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn main() -> ExitCode {
    suite::run_despite(
        &shared![
            status_tunnels_and_services_have_the_documented_shape,
            writes_have_the_documented_shape_and_exit_codes,
            any_directory_and_shell_reaches_the_federation,
            limits_go_from_a_file_to_every_gateway_and_back,
            operators_at_once_lose_nothing,
            validate_asks_whom_it_can_reach,
            a_restore_is_declared_with_a_yes,
            a_straggler_is_named_with_exit_code_2,
            tokens_are_refused_each_with_its_reason,
            a_certificate_of_one_cluster_is_nobody_elsewhere,
            malformed_policies_change_nothing,
            acknowledged_writes_survive_the_leader_in_order,
        ],
        &["the restore epoch was raised"],
    )
}

async fn status_tunnels_and_services_have_the_documented_shape(federation: &Federation) {
    // Parsing it into a struct proves the fields; the values are next.
    let status = federation.status().await;
    let members = &status.control_plane.members;
    assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(members.iter().filter(|member| member.role == "leader").count(), 1);
    assert!(members.iter().all(|member| member.applied_index > Some(0) && member.address.contains(':')), "{members:?}");
    let regions: Vec<_> =
        status.clusters.iter().map(|c| (c.name.as_str(), c.region.as_str(), c.state.as_str())).collect();
    let expected = [("frankfurt", "eu-central"), ("paris", "eu-west"), ("tokyo", "ap-northeast")];
    assert_eq!(regions, expected.map(|(name, region)| (name, region, "active")));
    for (name, gateway) in status.gateways() {
        assert_eq!((gateway.state.as_str(), gateway.revision), ("synced", status.revision), "{name}");
        assert!(gateway.http.starts_with("http://") && gateway.metrics.ends_with("/metrics"), "{gateway:?}");
        for address in [&gateway.tunnel, &gateway.dns] {
            assert!(address.parse::<std::net::SocketAddr>().is_ok(), "{gateway:?}");
        }
    }
    assert_eq!(status.processes.len(), 1 + 3 + 3 * (1 + 2 + 5), "{:?}", status.processes);
    for process in &status.processes {
        assert!(Path::new(&format!("/proc/{}", process.pid.unwrap())).exists(), "{process:?}");
    }

    let tunnels = federation.json("tunnels").await;
    for tunnel in tunnels.as_array().unwrap() {
        let texts = ["from", "to", "fromCluster", "toCluster", "state", "transport"];
        assert!(texts.iter().all(|field| tunnel[field].is_string()) && tunnel["rttMicros"].is_u64(), "{tunnel}");
        assert!(tunnel["from"].as_str().unwrap().starts_with(tunnel["fromCluster"].as_str().unwrap()), "{tunnel}");
        assert_eq!(tunnel["state"], "up", "{tunnel}");
    }

    federation.ok("split set shop/checkout paris=3 tokyo=1").await;
    let services = federation.json("services").await;
    let named = |name: &str| services.as_array().unwrap().iter().find(|service| service["name"] == name).unwrap();
    let checkout = named("shop/checkout");
    assert!(checkout["hosts"].as_array().unwrap().contains(&json!("checkout.shop.svc.clusterset.local")), "{checkout}");
    let weights = [("frankfurt", json!(0.0)), ("paris", json!(75.0)), ("tokyo", json!(25.0))];
    for (cluster, (name, weight)) in checkout["clusters"].as_array().unwrap().iter().zip(weights) {
        let wanted = json!({ "name": name, "ready": 2, "total": 2, "weight": weight, "state": "ready", "versions": ["v1", "v2"] });
        assert_eq!(*cluster, wanted);
    }
    assert_eq!(named("shop/web")["clusters"][0]["weight"], Value::Null);
    let tcp = named("shop/ledger")["tcp"].as_array().unwrap();
    assert!(tcp.iter().all(|place| place["address"].as_str().unwrap().contains(':')) && tcp.len() == 6, "{tcp:?}");
    // The other formats say the same.
    let table = federation.ok("services").await.stdout;
    assert!(table.contains("shop/checkout") && table.contains("75%"), "{table}");
    let yaml = federation.ok("gateways -o yaml").await.stdout;
    assert!(yaml.contains(&federation.gateway("tokyo/gw-2").http), "{yaml}");
}

async fn writes_have_the_documented_shape_and_exit_codes(federation: &Federation) {
    let mut revision = federation.status().await.revision.unwrap();
    for line in [
        "split set shop/checkout paris=90 tokyo=10",
        "switch shop/checkout --to tokyo",
        "switch shop/checkout --undo",
        "split clear shop/checkout",
    ] {
        let view = federation.json(line).await;
        assert!(view["revision"].as_u64().unwrap() > revision, "{line}: {view}");
        revision = view["revision"].as_u64().unwrap();
        for field in ["commitMillis", "firstAckMillis", "lastAckMillis"] {
            assert!(view[field].as_f64().is_some_and(|millis| millis > 0.0), "{line}: {field} in {view}");
        }
        assert_eq!((&view["expected"], &view["stragglers"]), (&json!(6), &json!([])), "{line}: {view}");
        saw!(
            "{line}: committed in {} ms, last acknowledgement after {} ms",
            view["commitMillis"],
            view["lastAckMillis"]
        );
    }
    let before = federation.status().await.revision;
    for (line, says) in [
        ("split set shop/chekout paris=1", "checkout"),
        ("split set shop/checkout pairs=1", "paris"),
        ("split set shop/checkout paris=lots", "lots"),
        ("split set checkout paris=1", "shop/checkout"),
        ("split clear shop/checkout", "no split"),
        ("switch shop/checkout --to nowhere", "nowhere"),
        ("switch shop/checkout --undo", "no switch"),
        ("get TraficSplit", "TrafficSplit"),
        ("get TrafficSplit missing -n shop", "missing"),
        ("delete TrafficSplit missing -n shop", "missing"),
        ("apply -f /does/not/exist.yaml", "/does/not/exist.yaml"),
        ("drill kill nobody", "nobody"),
        ("drill cut paris,paris", "itself"),
        ("frobnicate", "frobnicate"),
        ("apply", "--file"),
    ] {
        federation.meshctl(line.split_whitespace()).await.expect(1).says(&[says]);
    }
    assert_eq!(federation.status().await.revision, before, "a refused command changed something");
    // What `get` prints can be applied again, and is then no change.
    federation.ok("split set shop/checkout paris=90 tokyo=10 --sticky-header x-user").await;
    let text = federation.ok("get -o yaml").await.stdout;
    let again = federation.apply(&text).await.expect(0);
    assert!(again.stdout.contains("unchanged"), "{again}");
}

async fn limits_go_from_a_file_to_every_gateway_and_back(federation: &Federation) {
    let policy = "apiVersion: archipelago.dev/v1alpha1\nkind: BackendPolicy\nmetadata: { name: slow, namespace: shop }\nspec:\n  service: checkout\n  limits: { uploadIdle: 1s, uploadMinRate: 0, streamIdle: none }\n";
    let refused = federation.apply(&policy.replace("1s", "1ms")).await.expect(1);
    assert!(refused.stderr.contains(":6:25: spec.limits.uploadIdle: expected `none` or at least 1s"), "{refused}");
    federation.apply(policy).await.expect(0);
    let text = federation.ok("get BackendPolicy slow -n shop -o yaml").await.stdout;
    for said in ["uploadIdle: 1s", "uploadMinRate: 0", "streamIdle: none"] {
        assert!(text.contains(said), "{text}");
    }
    let again = federation.apply(&text).await.expect(0);
    assert!(again.stdout.contains("unchanged"), "{again}");
    // Of the body nothing more comes.
    let half = b"POST /digest HTTP/1.1\r\nHost: checkout.shop\r\nContent-Length: 10\r\n\r\nx";
    let asked = federation.gateways().iter().map(|(name, gateway)| async move {
        let mut stream = TcpStream::connect(gateway.http.strip_prefix("http://").unwrap()).await.unwrap();
        stream.write_all(half).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request-idle"), "{name}: {answer}");
    });
    futures_util::future::join_all(asked).await;
    federation.ok("delete BackendPolicy slow -n shop").await;
}

async fn any_directory_and_shell_reaches_the_federation(federation: &Federation) {
    let elsewhere = tempfile::tempdir().unwrap();
    let with_variable = [("ARCHIPELAGO_STATE", federation.state.as_os_str())];
    let ran = command::run(elsewhere.path(), ["status", "-o", "json"], &with_variable, None).await.expect(0);
    assert_eq!(ran.json()["clusters"].as_array().unwrap().len(), 3);
    // The default is a directory below the current one.
    let parent = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&federation.state, parent.path().join(".archipelago")).unwrap();
    command::run(parent.path(), ["gateways"], &[], None).await.expect(0);
    // Only the operator's credential is needed.
    let copied = tempfile::tempdir().unwrap();
    copy(&federation.state.join("operator"), &copied.path().join("operator"));
    let state = copied.path().as_os_str();
    meshctl([OsStr::new("--state"), state, OsStr::new("services")]).await.expect(0);
    let drill = meshctl([OsStr::new("--state"), state, OsStr::new("drill"), OsStr::new("end")]).await;
    drill.expect(4).says(&["no federation", "hint:"]);

    let nothing = elsewhere.path().as_os_str();
    for line in ["status", "services", "split get shop/checkout", "apply -f -", "drill end", "token list"] {
        let args = [OsStr::new("--state"), nothing].into_iter().chain(line.split_whitespace().map(OsStr::new));
        let ran = command::run(Path::new("/"), args, &[], Some("")).await;
        ran.expect(4).says(&["hint:", "up"]);
    }
    // An empty state has nothing to end, which is no error.
    meshctl([OsStr::new("--state"), nothing, OsStr::new("down")]).await.expect(0);
}

async fn a_straggler_is_named_with_exit_code_2(federation: &Federation) {
    federation.ok("drill kill tokyo/gw-2 --for 10m").await;
    let args = ["split", "set", "shop/checkout", "paris=1", "tokyo=1", "--timeout", "2s", "-o", "json"];
    let late = federation.meshctl(args).await.expect(2);
    let view = late.json();
    saw!("{view}");
    assert_eq!((&view["stragglers"], &view["expected"]), (&json!(["tokyo/gw-2"]), &json!(6)), "{late}");
    late.says(&["committed", "5 of 6", "tokyo/gw-2"]);
    federation.ok("split set shop/checkout paris=2 tokyo=1 --wait quorum --timeout 5s").await;
    let unwaited = federation.json("split set shop/checkout paris=3 tokyo=1 --wait none").await;
    assert_eq!(unwaited["expected"], Value::Null, "{unwaited}");
    federation.ok("drill end").await;
    federation.settle().await;
}

/// Each verb reads, edits and commits what it read from; whoever comes second does it again.
async fn operators_at_once_lose_nothing(federation: &Federation) {
    let at_once = async |lines: Vec<String>| {
        let lines: Vec<String> = lines.iter().map(|line| format!("{line} --wait none --timeout 60s")).collect();
        futures_util::future::join_all(lines.iter().map(|line| federation.ok(line))).await;
    };
    let rounds = 6;
    for round in 0..rounds {
        at_once(["paris", "tokyo"].map(|from| format!("failover trigger shop/checkout --from {from}")).to_vec()).await;
        let avoided = federation.json("failover status shop/checkout").await[0]["avoid"].clone();
        assert_eq!(avoided, json!(["paris", "tokyo"]), "round {round}");
        at_once(["paris", "tokyo"].map(|from| format!("failover release shop/checkout --from {from}")).to_vec()).await;
        let avoided = federation.json("failover status shop/checkout").await[0]["avoid"].clone();
        assert_eq!(avoided, json!([]), "round {round}");
    }
    federation.ok("split set shop/checkout paris=90 tokyo=10").await;
    let before = federation.json("split get shop/checkout").await["spec"].clone();
    let route = |number| format!("split set shop/checkout tokyo=1 --header x-operator=op-{number}");
    at_once((0..8).map(route).collect()).await;
    let split = federation.json("split get shop/checkout").await;
    assert_eq!(split["spec"]["routes"].as_array().unwrap().len(), 8, "{split}");
    let clear = |number| format!("split clear shop/checkout --header x-operator=op-{number}");
    at_once((0..8).map(clear).collect()).await;
    assert_eq!(federation.json("split get shop/checkout").await["spec"], before);

    // Two switches, and two operators who each take one of them back: the split is what it was.
    federation.ok("switch shop/checkout --to tokyo --wait none").await;
    federation.ok("switch shop/checkout --to paris --wait none").await;
    at_once(vec!["switch shop/checkout --undo".to_owned(); 2]).await;
    assert_eq!(federation.json("split get shop/checkout").await["spec"], before);
    at_once(
        ["paris", "tokyo", "frankfurt"].map(|name| format!("cluster drain {name} --force --empty-within 0s")).to_vec(),
    )
    .await;
    at_once(["paris", "tokyo", "frankfurt"].map(|name| format!("cluster uncordon {name}")).to_vec()).await;
    saw!("{rounds} rounds of two, two of eight operators at once: nothing lost");
}

async fn validate_asks_whom_it_can_reach(federation: &Federation) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let policy = file("split.yaml", &split("checkout", "pairs"));
    let nobody = dir.path().join("nobody");
    let validate = async |state: &Path, file: &Path| {
        meshctl(["--state".as_ref(), state.as_os_str(), "validate".as_ref(), "-f".as_ref(), file.as_os_str()]).await
    };
    // Alone it cannot know the clusters, and says so; with a control plane it can.
    let alone = validate(&nobody, &policy).await.expect(0);
    alone.says(&["not checked: no control plane answered"]);
    validate(&federation.state, &policy).await.expect(1).says(&["split.yaml:6:", "`pairs`"]);
    let revision = federation.status().await.revision;
    validate(&federation.state, &file("good.yaml", &split("checkout", "paris"))).await.expect(0);
    assert_eq!(federation.status().await.revision, revision, "validate wrote something");

    let services = "\
apiVersion: archipelago.dev/v1alpha1
kind: Service
metadata: { name: web, namespace: shop }
spec: { port: 80, endpoints: [{ address: \"127.0.0.1:1\" }] }
";
    let ran = validate(&nobody, &file("services.yaml", services)).await.expect(0);
    assert!(ran.stdout.contains("Service shop/web is valid"), "{ran}");
    let wrong = file("services.yaml", &services.replace("127.0.0.1:1", "localhost"));
    validate(&nobody, &wrong).await.expect(1).says(&["services.yaml:4:", "expected ip:port"]);
    validate(&nobody, &file("topology.yaml", harness::SMALL)).await.expect(0);
}

async fn a_restore_is_declared_with_a_yes(federation: &Federation) {
    federation.meshctl(["raft", "restored"]).await.expect(1).says(&["older backup", "--yes"]);
    let first = federation.json("raft restored --yes").await;
    let second = federation.json("raft restored --yes").await;
    assert_eq!(second["restoreEpoch"].as_u64().unwrap(), first["restoreEpoch"].as_u64().unwrap() + 1);
    federation.ok("split set shop/checkout paris=1").await;
}

async fn tokens_are_refused_each_with_its_reason(federation: &Federation) {
    let create = async |more: &str| {
        let created = federation.json(&format!("token create --cluster lyon {more}")).await;
        created["token"].as_str().unwrap().parse::<JoinToken>().unwrap()
    };
    let join = async |token: &str| {
        let dir = tempfile::tempdir().unwrap();
        let ran = meshctl(["--state".as_ref(), dir.path().as_os_str(), "join".as_ref(), token.as_ref()]).await;
        let joined = dir.path().join("joined/lyon/agent/identity/svid.pem");
        assert_eq!(joined.exists(), ran.code == 0, "{ran}");
        ran
    };
    let good = create("").await;
    let used = join(&good.to_string()).await.expect(0);
    assert!(used.stdout.contains("archipelago-agent --cluster lyon"), "{used}");
    used.says(&["spiffe://mesh.example/cluster/lyon/agent/agent"]);
    join(&good.to_string()).await.expect(1).says(&["already used"]);

    let fresh = create("").await;
    join(&JoinToken { secret: [7; 32], ..fresh.clone() }.to_string()).await.expect(1).says(&["unknown"]);
    join(&JoinToken { ca_sha256: [7; 32], ..fresh.clone() }.to_string()).await.expect(1).says(&["wrong CA"]);
    let foreign = JoinToken { trust_domain: "other.example".into(), ..fresh.clone() };
    join(&foreign.to_string()).await.expect(1).says(&["trust domain", "other.example"]);
    let unreachable = JoinToken { control_plane: vec!["127.0.0.1:1".into()], ..fresh.clone() };
    join(&unreachable.to_string()).await.expect(4).says(&["127.0.0.1:1"]);
    let text = fresh.to_string();
    for damaged in ["", "hello", "amt1.", "amt1.????", &text[..text.len() / 2], &text.replace("amt1", "amt2")] {
        join(damaged).await.expect(1);
    }
    // None of this has spent it.
    join(&text).await.expect(0);

    let brief = create("--ttl 1s").await;
    let expired = SystemTime::UNIX_EPOCH + Duration::from_secs(brief.expires_unix.unsigned_abs() + 1);
    eventually("the token expires", PATIENCE, async || {
        check(SystemTime::now() > expired, || format!("not before {expired:?}"))
    })
    .await;
    join(&brief.to_string()).await.expect(1).says(&["expired"]);

    let list = federation.json("token list").await;
    let states: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .filter(|token| token["cluster"] == "lyon")
        .map(|token| token["state"].as_str().unwrap())
        .collect();
    assert_eq!((states.len(), states.iter().filter(|state| **state == "used").count()), (3, 2), "{list}");
    assert!(states.contains(&"expired") && !list.to_string().contains("amt1."), "{list}");
    federation.meshctl(["token", "create", "--cluster", "Ly/on"]).await.expect(1);
    federation.meshctl(["token", "create", "--cluster", "lyon", "--role", "gateway"]).await.expect(1).says(&["name"]);
}

async fn a_certificate_of_one_cluster_is_nobody_elsewhere(federation: &Federation) {
    let paris = federation.state.join("clusters/paris/gw-1/identity");
    let stolen = tempfile::tempdir().unwrap();
    copy(&paris, &stolen.path().join("gw-9/identity"));
    let status = federation.status().await;
    let members: Vec<String> = status.control_plane.members.iter().map(|member| member.address.clone()).collect();

    // As a process: a gateway of tokyo with the credential of paris refuses to start.
    let state_dir = stolen.path().join("gw-9");
    let args = [
        "role",
        "gateway",
        "--cluster",
        "tokyo",
        "--name",
        "gw-1",
        "--control-plane",
        &members.join(","),
        "--agent",
        "127.0.0.1:1",
        "--http",
        "127.0.0.1:0",
        "--tunnel",
        "127.0.0.1:0",
        "--dns",
        "127.0.0.1:0",
        "--health",
        "127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
        "--tcp-base",
        "127.0.0.1:0",
        "--admin-socket",
        "gw.sock",
        "--state-dir",
    ];
    let args = args.iter().map(OsStr::new).chain([state_dir.as_os_str()]);
    let ran = command::run(stolen.path(), args, &[], None).await.expect(1);
    ran.says(&["cluster/paris/gateway/gw-1", "tokyo"]);

    // As a client: the control plane and tokyo's agent see through it.
    let credential = LiveCredential::new(CredentialDir::new(&paris).load().unwrap().unwrap()).unwrap();
    let channel = grpc::connect(&members, &credential, Expect::control_plane()).await.unwrap();
    let mut gateways = v1::gateway_control_client::GatewayControlClient::new(channel.clone());
    let hello = v1::GatewayHello { cluster: "tokyo".into(), gateway: "gw-1".into(), ..Default::default() };
    let message = v1::GatewayMessage { body: Some(v1::gateway_message::Body::Hello(hello)) };
    let answer = gateways.stream(futures_util::stream::iter([message])).await;
    let status_of = match answer {
        Ok(stream) => stream.into_inner().message().await.expect_err("it was let in as tokyo"),
        Err(status) => status,
    };
    saw!("{status_of}");
    assert_eq!(status_of.code(), tonic::Code::PermissionDenied, "{status_of}");
    assert!(status_of.message().contains("paris"), "{status_of}");
    let mut resources = v1::resources_client::ResourcesClient::new(channel);
    let denied = resources.get(v1::GetRequest::default()).await.expect_err("a gateway reads resources");
    assert_eq!(denied.code(), tonic::Code::PermissionDenied, "{denied}");

    let agent = proc::flag(status.pid("tokyo/agent"), "--listen");
    let anyone = Expect::Role(std::sync::Arc::new(|_| Ok(())));
    let channel = grpc::connect(&[agent], &credential, anyone).await.unwrap();
    let mut discovery = v1::local_discovery_client::LocalDiscoveryClient::new(channel);
    let answer = discovery.watch(v1::WatchLocalRequest::default()).await;
    let denied = match answer {
        Ok(stream) => stream.into_inner().message().await.expect_err("paris reads tokyo's endpoints"),
        Err(status) => status,
    };
    assert_eq!(denied.code(), tonic::Code::PermissionDenied, "{denied}");
    assert!(denied.message().contains("paris"), "{denied}");
}

async fn malformed_policies_change_nothing(federation: &Federation) {
    federation.ok("split set shop/checkout paris=90 tokyo=10").await;
    let revision = federation.status().await.revision;
    let dir = tempfile::tempdir().unwrap();
    let mut tried = 0;
    for (name, text) in malformed() {
        let file = dir.path().join(format!("{name}.yaml"));
        fs::write(&file, text).unwrap();
        let ran = federation.meshctl(["apply".as_ref(), "-f".as_ref(), file.as_os_str()]).await.expect(1);
        let place = ran.stderr.lines().find_map(|line| {
            let mut parts = line.strip_prefix(&format!("{}:", file.display()))?.split(':');
            let line = parts.next()?.parse::<u32>().ok()?;
            let column = parts.next()?.parse::<u32>().ok()?;
            (line >= 1 && column >= 1 && parts.next().is_some_and(|rest| rest.starts_with(' '))).then_some(())
        });
        assert!(place.is_some(), "no file:line:column\n{ran}");
        tried += 1;
    }
    // All at once, beside a good one: still nothing.
    fs::write(dir.path().join("good.yaml"), split("web", "paris")).unwrap();
    federation.meshctl(["apply".as_ref(), "-f".as_ref(), dir.path().as_os_str()]).await.expect(1);
    assert_eq!(federation.status().await.revision, revision, "something was committed");
    federation.meshctl(["get", "TrafficSplit", "web", "-n", "shop"]).await.expect(1);
    // The one place of the first split is named when there is a second.
    let second = split("checkout", "paris").replace("name: checkout,", "name: another,");
    federation.apply(&second).await.expect(1).says(&["checkout"]);
    assert_eq!(federation.status().await.revision, revision);
    saw!("{tried} files refused with their places, revision {revision:?} unchanged");
}

async fn acknowledged_writes_survive_the_leader_in_order(federation: &Federation) {
    let mut acknowledged: Vec<(String, u64)> = Vec::new();
    let mut leaders = Vec::new();
    for number in 0..WRITES {
        if number % (WRITES / 3) == WRITES / 6 {
            let status = eventually("a leader", PATIENCE, async || {
                let status = federation.status().await;
                check(status.leader().is_some(), || format!("{:?}", status.control_plane))?;
                Ok(status)
            })
            .await;
            let leader = status.leader().unwrap();
            proc::kill(status.pid(&format!("cp-{leader}")));
            leaders.push(leader);
        }
        let name = format!("write-{number}");
        let text = split(&name, ["paris", "tokyo"][number % 2]);
        let args = ["--state".as_ref(), federation.state.as_os_str(), "apply".as_ref(), "-f".as_ref(), "-".as_ref()];
        let flags = ["--wait", "none", "--timeout", "30s", "-o", "json"].map(OsStr::new);
        let ran = command::run(Path::new("/"), args.into_iter().chain(flags), &[], Some(&text)).await.expect(0);
        acknowledged.push((name, ran.json()["revision"].as_u64().unwrap()));
    }
    assert!(acknowledged.windows(2).all(|pair| pair[0].1 < pair[1].1), "out of order: {acknowledged:?}");

    federation.settle().await;
    // KIND NAMESPACE NAME CREATED MODIFIED WRITTEN-BY
    let table = federation.ok("get TrafficSplit -n shop").await.stdout;
    for (name, revision) in &acknowledged {
        let row: Vec<&str> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|row| row.get(2) == Some(&name.as_str()))
            .unwrap_or_else(|| panic!("{name} is lost\n{table}"));
        assert_eq!(row[3..5], [revision.to_string().as_str(); 2], "{name} was committed twice or elsewhere\n{table}");
    }
    saw!("{WRITES} writes acknowledged while cp-{leaders:?} were killed: all there, in order, once");
    // The gateways have them all.
    let reply = Connection::http1(&federation.gateway("paris/gw-1").http).await.get("checkout.shop", "/", &[]).await;
    assert_eq!(reply.status, 200);
}

fn split(name: &str, cluster: &str) -> String {
    format!(
        "apiVersion: archipelago.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec:\n  service: {name}\n  backends: [{{ cluster: {cluster}, weight: 1 }}]\n"
    )
}

/// Files that are wrong, each in its own way, by name.
fn malformed() -> Vec<(String, Vec<u8>)> {
    let base = "\
apiVersion: archipelago.dev/v1alpha1
kind: TrafficSplit
metadata: { name: web, namespace: shop }
spec:
  service: web
  sticky: { header: x-user }
  routes:
    - match: { headers: { x-preview: pr-42 }, method: GET }
      backends: [{ cluster: tokyo, version: v1, weight: 1 }]
  backends: [{ cluster: paris, weight: 90 }, { cluster: tokyo, weight: 10 }]
";
    let policy = "\
apiVersion: archipelago.dev/v1alpha1
kind: FailoverPolicy
metadata: { name: web, namespace: shop }
spec:
  service: web
  order: [{ clusters: [\"@local\"] }, { clusters: [frankfurt] }]
  residency: { regions: [eu-west, eu-central] }
";
    let mut files = Vec::new();
    let mut mutate = |base: &str, from: &str, to: &str| {
        assert!(base.contains(from), "{from:?}");
        files.push((format!("mutation-{}", files.len()), base.replacen(from, to, 1).into_bytes()));
    };
    for (from, to) in [
        ("v1alpha1", "v9"),
        ("kind: TrafficSplit", "kind: TraficSplit"),
        ("kind: TrafficSplit", "kind: [TrafficSplit]"),
        ("kind: TrafficSplit", "kind: TrafficSplit\nkind: TrafficSplit"),
        ("metadata: { name: web, namespace: shop }", "metadata: web"),
        ("name: web", "name: We/b"),
        ("  service: web\n", "\n"),
        ("service: web", "service: 7"),
        ("service: web", "service: *web"),
        ("service: web", "service: web\n  servise: web"),
        ("header: x-user", "header: \"x user\""),
        ("header: x-user", "header: mesh-source"),
        ("header: x-user", "header: x-user, cookie: user"),
        ("x-preview: pr-42", "x-preview: 42"),
        ("method: GET", "method: get"),
        ("match:", "matches:"),
        ("version: v1", "version: [v1]"),
        ("weight: 90", "weight: -1"),
        ("weight: 90", "weight: 1e99"),
        ("weight: 90", "weight: many"),
        ("weight: 90", "weight: 90, weight: 91"),
        ("cluster: paris", "cluster: pairs"),
        ("cluster: paris", "cluster: tokyo"),
        ("weight: 90 }", "weight: 90"),
        ("spec:\n", "spec: [\n"),
        ("kind: TrafficSplit", "\tkind: TrafficSplit"),
    ] {
        mutate(base, from, to);
    }
    for (from, to) in [
        ("[frankfurt]", "[frankfurt, tokyo]"),
        ("[frankfurt]", "[]"),
        ("\"@local\"", "\"@locl\""),
        ("eu-central]", "eu-centrl]"),
        ("order:", "odrer:"),
        ("residency:", "failback: { after: 10 }\n  residency:"),
    ] {
        mutate(policy, from, to);
    }
    let bomb: String = std::iter::once("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned())
        .chain((1..12).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "))))
        .collect();
    let deep = format!("{}x: {}{}\n", base, "[".repeat(5_000), "]".repeat(5_000));
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("comment", b"# nothing\n---\n".to_vec()),
        ("binary", (0..=255_u8).cycle().take(4096).collect()),
        ("latin1", b"kind: caf\xe9\n".to_vec()),
        ("nul", b"kind: \0\n".to_vec()),
        ("bomb", format!("{base}{bomb}").into_bytes()),
        ("deep", deep.into_bytes()),
        ("two-splits", format!("{base}---\n{}", base.replace("name: web,", "name: web-again,")).into_bytes()),
        ("topology", harness::SMALL.as_bytes().to_vec()),
    ] {
        files.push((name.to_owned(), bytes));
    }
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// The loop has 200; each is a process that connects, commits and ends.
const WRITES: usize = 60;
