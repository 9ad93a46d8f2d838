//! The peer port: only members, only in their own name, only of this federation. And the port for machines.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use archipelago_identity::{CredentialDir, LiveCredential, SpiffeId, tls::Expect};
use archipelago_proto::v1::{JoinRole, RaftBatch, SnapshotChunk, raft_transport_client::RaftTransportClient};
use archipelago_rpc::grpc;
use common::{ControlPlane, cluster, eventually};
use prost::Message as _;
use raft_proto::eraftpb::{Message, MessageType};
use tonic::{Code, Status, transport::Channel};

async fn peer_port(
    control_plane: &ControlPlane,
    credential: &LiveCredential,
) -> Result<RaftTransportClient<Channel>, Status> {
    let domain = "mesh.example".parse().unwrap();
    let expect = Expect::Id(SpiffeId::control_plane(&domain, 1));
    let address = control_plane.members[0].peer.clone();
    let channel =
        grpc::connect(&[address], credential, expect).await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(RaftTransportClient::new(channel))
}

fn message(kind: MessageType, from: u64, to: u64) -> Vec<u8> {
    Message { msg_type: kind.into(), from, to, term: 1, ..Message::default() }.encode_to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consensus_listens_to_members_alone() {
    let control_plane = ControlPlane::start(3, &[]).await;
    let federation = std::fs::read_to_string(control_plane.data_dir(1).join("federation.json")).unwrap();
    let federation: serde_json::Value = serde_json::from_str(&federation).unwrap();
    let federation = federation["federation"].as_str().unwrap().to_owned();
    let member = CredentialDir::new(control_plane.data_dir(2).join("identity")).load().unwrap().unwrap();
    let member = LiveCredential::new(member).unwrap();
    let batch = |from: u64, federation: &str, message: Vec<u8>| RaftBatch {
        from,
        federation: federation.to_owned(),
        messages: vec![message],
        ..RaftBatch::default()
    };
    let send = async |credential: &LiveCredential, batch: RaftBatch| {
        let mut client = peer_port(&control_plane, credential).await?;
        client.messages(tokio_stream::iter([batch])).await.map(drop)
    };

    let heartbeat = message(MessageType::MsgHeartbeatResponse, 2, 1);
    send(&member, batch(2, &federation, heartbeat.clone())).await.unwrap();
    for (batch, says) in [
        (batch(2, "another", heartbeat.clone()), "member 2 belongs to federation another"),
        (batch(3, &federation, heartbeat.clone()), "member 2 sends in the name of"),
        (batch(2, &federation, message(MessageType::MsgAppend, 3, 1)), "member 2 sends in the name of 3"),
        (batch(2, &federation, message(MessageType::MsgAppend, 2, 3)), "a message for member 3 came to 1"),
        (batch(2, &federation, message(MessageType::MsgReadIndex, 2, 1)), "must not cross the network"),
        (batch(2, &federation, message(MessageType::MsgHup, 2, 1)), "must not cross the network"),
        (batch(2, &federation, b"\xff\xff".to_vec()), "not a Raft message"),
    ] {
        let status = send(&member, batch).await.unwrap_err();
        assert!(status.message().contains(says), "{says}: {status}");
    }
    let gateway = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    for stranger in [&gateway, &control_plane.operator] {
        let status = send(stranger, batch(2, &federation, heartbeat.clone())).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }

    // A snapshot whose bytes are not what its sender hashed goes nowhere.
    let chunk = |offset: u64, sha256: Vec<u8>| SnapshotChunk {
        from: 2,
        federation: federation.clone(),
        message: message(MessageType::MsgSnapshot, 2, 1),
        offset,
        data: b"state".to_vec(),
        last: true,
        total: 5,
        sha256,
    };
    for (chunk, says) in [(chunk(0, vec![0; 32]), "size or hash"), (chunk(7, vec![0; 32]), "out of order")] {
        let mut client = peer_port(&control_plane, &member).await.unwrap();
        let status = client.snapshot(tokio_stream::iter([chunk])).await.unwrap_err();
        assert!(status.message().contains(says), "{says}: {status}");
    }
    let mut client = peer_port(&control_plane, &member).await.unwrap();
    let status = client.snapshot(tokio_stream::empty()).await.unwrap_err();
    assert!(status.message().contains("ended before its last chunk"), "{status}");

    // None of this hurt.
    control_plane.apply(1, "", &cluster("paris", "eu-west")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_see_whether_a_member_is_ready_and_what_it_does() {
    let mut control_plane = ControlPlane::start(3, &[]).await;
    let leader = control_plane.leader().await;
    control_plane.apply(leader, "", &cluster("paris", "eu-west")).await.unwrap();
    let ready = control_plane.http(leader, "/readyz").unwrap();
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let metrics = control_plane.http(leader, "/metrics").unwrap();
    for line in [
        "mesh_control_plane_raft_is_leader 1",
        "mesh_control_plane_authority_unsealed 1",
        "mesh_control_plane_commits_total{result=\"committed\"}",
        "mesh_control_plane_revision 2",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }

    // Two of three gone: alive, but not ready, and it says why.
    let others: Vec<u64> = control_plane.running().into_iter().filter(|id| *id != leader).collect();
    for id in others {
        control_plane.kill(id);
    }
    eventually("the member says that it has no leader", || async {
        let ready = control_plane.http(leader, "/readyz").map_err(|error| error.to_string())?;
        if ready.starts_with("HTTP/1.1 503") && ready.contains("no leader is known") { Ok(()) } else { Err(ready) }
    })
    .await;
    assert!(control_plane.http(leader, "/healthz").unwrap().starts_with("HTTP/1.1 200"));
}
