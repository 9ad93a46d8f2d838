//! A federation on a machine without IPv4: control plane, agents, tunnels, clients, endpoints, DNS.
//!
//! Needs root, `unshare` and `ip`; says so loudly where it cannot run.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use harness::client::address;
use harness::suite::{self, alone};
use harness::{Connection, Federation, PATIENCE, check, eventually};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn main() -> ExitCode {
    if std::env::var_os(INSIDE).is_none() && !std::env::args().any(|arg| arg == "--list") {
        if let Err(why) = able() {
            println!("\n======== SKIPPED: these tests need root, unshare and ip, and IPv6: {why} ========\n");
            return ExitCode::SUCCESS;
        }
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", ONLY_IPV6]).arg(std::env::current_exe().unwrap());
        command.args(std::env::args_os().skip(1)).env(INSIDE, "1");
        let error = command.exec();
        panic!("cannot run unshare: {error}");
    }
    suite::run(&alone![a_federation_needs_no_ipv4])
}

async fn a_federation_needs_no_ipv4() {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect_err("there is IPv4 here");
    let federation = Federation::plan(Some(TOPOLOGY)).begin_with(&["--address", "::1"]).await;
    let paris = federation.gateway("paris/gw-1").clone();
    assert!(address(&paris.http).is_ipv6() && address(&paris.tunnel).is_ipv6(), "{paris:?}");

    // HTTP and bytes through the tunnel.
    federation.ok("split set shop/checkout tokyo=1").await;
    let reply = Connection::http1(&paris.http).await.get("checkout.shop", "/", &[]).await;
    assert_eq!((reply.status, reply.field("cluster").as_str()), (200, "tokyo"));
    let services = federation.json("services").await;
    let ledger = services.as_array().unwrap().iter().find(|service| service["name"] == "shop/ledger").unwrap();
    let place = ledger["tcp"].as_array().unwrap().iter().find(|place| place["cluster"] == "paris").unwrap();
    let mut stream = TcpStream::connect(address(place["address"].as_str().unwrap())).await.unwrap();
    stream.write_all(b"six").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut receipt = String::new();
    stream.read_to_string(&mut receipt).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&receipt).unwrap()["cluster"], "tokyo");
    federation.ok("check").await;

    // A cluster that goes, and comes back.
    federation.ok("drill kill tokyo --for 5s").await;
    let serves = async |cluster: &str| {
        let reply = Connection::http1(&paris.http).await.get("checkout.shop", "/", &[]).await;
        check(reply.status == 200 && reply.field("cluster") == cluster, || format!("{reply:?}"))
    };
    eventually("paris serves its own", PATIENCE, async || serves("paris").await).await;
    eventually("tokyo is back", PATIENCE, async || serves("tokyo").await).await;
    federation.down().await;
}

/// Whether this process may do it here.
fn able() -> Result<(), String> {
    let tried = Command::new("unshare").args(["--net", "sh", "-c", ONLY_IPV6, "true"]).output();
    let tried = tried.map_err(|error| error.to_string())?;
    if tried.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned()) }
}

/// A loopback without its IPv4 address.
const ONLY_IPV6: &str = "ip link set lo up && ip address delete 127.0.0.1/8 dev lo && exec \"$0\" \"$@\"";
const INSIDE: &str = "ARCHIPELAGO_TEST_WITHOUT_IPV4";
const TOPOLOGY: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: Topology
metadata: { name: six }
spec:
  trustDomain: six.example
  controlPlane: { nodes: 3 }
  clusters:
    - name: paris
      region: eu-west
      gateways: 1
      services: [{ name: checkout, namespace: shop, protocol: http, versions: [v1], instances: 1, port: 80 }]
    - name: tokyo
      region: ap-northeast
      gateways: 2
      services:
        - { name: checkout, namespace: shop, protocol: http, versions: [v1], instances: 1, port: 80 }
        - { name: ledger, namespace: shop, protocol: tcp, versions: [v1], instances: 1, port: 9000 }
---
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: { name: checkout, namespace: shop }
---
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: { name: ledger, namespace: shop }
";
