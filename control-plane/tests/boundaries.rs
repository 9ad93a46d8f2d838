//! What somebody without a certificate can do to a running member: nothing that others notice.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use std::time::{Duration, Instant};

use archipelago_base::open_files;
use archipelago_identity::{
    CredentialDir, LiveCredential, SpiffeId,
    tls::{self, Expect},
};
use archipelago_proto::v1::{
    ApplyRequest, Document, JoinRequest, ProposeRequest, RaftBatch, RenewRequest, StatusRequest,
    fleet_client::FleetClient, identity_client::IdentityClient, members_client::MembersClient,
    raft_transport_client::RaftTransportClient, resources_client::ResourcesClient,
};
use archipelago_rpc::grpc;
use common::ControlPlane;
use tokio::{net::TcpStream, sync::watch, task::JoinSet};
use tonic::{Code, Status, transport::Channel};

/// A client that trusts the federation and has nothing to show.
async fn stranger(control_plane: &ControlPlane, member: u64) -> Channel {
    let address = control_plane.members[usize::try_from(member - 1).unwrap()].client.clone();
    grpc::connect_with(&[address], tls::recovery_config(&control_plane.operator)).await.unwrap()
}

/// Keeps `count` silent sockets open on each port, every one of them renewed after a second, until told to end.
async fn besiege(ports: Vec<String>, count: usize, mut until: watch::Receiver<bool>) {
    let mut sockets = JoinSet::new();
    for port in ports {
        for _ in 0..count {
            let port = port.clone();
            let mut until = until.clone();
            sockets.spawn(async move {
                while !*until.borrow() {
                    let socket = TcpStream::connect(&port).await;
                    let pause = tokio::time::sleep(Duration::from_secs(1));
                    tokio::select! { () = pause => {}, _ = until.changed() => {} }
                    drop(socket);
                }
            });
        }
    }
    let _ = until.changed().await;
    sockets.join_all().await;
}

/// Whoever waits for a silent socket's place waits until its handshake times out, for five seconds; the rest is room for a
/// machine that compiles beside the test.
const DELAY_MAX: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_sockets_delay_nobody() {
    open_files::raise_limit();
    let control_plane = ControlPlane::start(1, &[]).await;
    for count in [70, 1_000] {
        // What silent sockets do they do each time; what another program does to this machine passes.
        let mut sieges = 1;
        while let Err(delay) = answers_under_siege(&control_plane, count).await {
            assert!(sieges < SIEGES_MAX, "{count} silent sockets per port, {sieges} times: {delay}");
            sieges += 1;
        }
    }
}

/// Asks both ports again and again for ten seconds while `count` silent sockets besiege each; the error is how somebody was delayed.
async fn answers_under_siege(control_plane: &ControlPlane, count: usize) -> Result<(), String> {
    let member = CredentialDir::new(control_plane.data_dir(1).join("identity")).load().unwrap().unwrap();
    let member = LiveCredential::new(member).unwrap();
    let ports = vec![control_plane.members[0].client.clone(), control_plane.members[0].peer.clone()];
    let (end, until) = watch::channel(false);
    let siege = tokio::spawn(besiege(ports.clone(), count, until));
    // The first wave is in place.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut answers = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let asked = Instant::now();
        // A thousand connections that come in one moment from the same address may push out one that has not spoken yet;
        // its client tries again, as every client of ours does, and the time of both tries counts.
        while asked.elapsed() < DELAY_MAX {
            if let Ok(channel) = control_plane.channel(1).await
                && FleetClient::new(channel).status(StatusRequest {}).await.is_ok()
            {
                break;
            }
        }
        while asked.elapsed() < DELAY_MAX {
            let expect = Expect::Id(SpiffeId::control_plane(&"mesh.example".parse().unwrap(), 1));
            if grpc::connect(&ports[1..], &member, expect).await.is_ok() {
                break;
            }
        }
        answers.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    end.send(true).unwrap();
    siege.await.unwrap();
    answers.sort();
    let (median, slowest) = (answers[answers.len() / 2], answers[answers.len() - 1]);
    let seen = format!("{} answers, median {median:?}, slowest {slowest:?}", answers.len());
    println!("{count} silent sockets per port: {seen}");
    if median < Duration::from_secs(1) && slowest < DELAY_MAX { Ok(()) } else { Err(seen) }
}

const SIEGES_MAX: u32 = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_strangers_are_refused_unread() {
    let control_plane = ControlPlane::start(1, &[]).await;
    control_plane.get(1, "").await.unwrap();
    let before = control_plane.resident_kib(1);
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let channel = stranger(&control_plane, 1).await;
        for _ in 0..4 {
            let (channel, huge) = (channel.clone(), vec![7_u8; 12 * 1024 * 1024]);
            calls.spawn(async move {
                let mut client = MembersClient::new(channel).max_encoding_message_size(usize::MAX);
                client.propose(ProposeRequest { command: huge }).await.map(drop).unwrap_err()
            });
        }
    }
    let refusals: Vec<Status> = calls.join_all().await;
    let grown = control_plane.resident_kib(1).saturating_sub(before);
    println!("32 bodies of 12 MiB without a certificate: {grown} KiB more resident");
    for status in &refusals {
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    }
    assert!(grown < 24 * 1024, "{grown} KiB more resident after 384 MiB were offered");

    // The one call that is theirs takes 64 KiB.
    let join = JoinRequest { csr_der: vec![0; 200 * 1024], ..JoinRequest::default() };
    IdentityClient::new(stranger(&control_plane, 1).await).join(join).await.unwrap_err();
    control_plane.get(1, "").await.unwrap();
}

/// Every service, called from outside by those who may not: refused by role before a body of any size is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_service_refuses_the_wrong_caller_on_the_wire() {
    use archipelago_proto::v1::JoinRole;
    let control_plane = ControlPlane::start(1, &[]).await;
    let gateway = control_plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let agent = control_plane.join("paris", JoinRole::Agent, "agent").await;
    let nobody = stranger(&control_plane, 1).await;
    let apply = || ApplyRequest {
        documents: vec![Document { file: "huge.yaml".into(), text: "#".repeat(6 * 1024 * 1024) }],
        ..ApplyRequest::default()
    };
    for (channel, expected) in [
        (nobody.clone(), Code::Unauthenticated),
        (control_plane.channel_as(1, &gateway).await.unwrap(), Code::PermissionDenied),
        (control_plane.channel_as(1, &agent).await.unwrap(), Code::PermissionDenied),
    ] {
        let status = ResourcesClient::new(channel.clone()).apply(apply()).await.unwrap_err();
        assert_eq!(status.code(), expected, "{status}");
        let status = FleetClient::new(channel).status(StatusRequest {}).await.unwrap_err();
        assert_eq!(status.code(), expected, "{status}");
    }
    let status = IdentityClient::new(nobody).renew(RenewRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);

    // The peer port is for members, and shows nobody else's certificate a service.
    let expect = Expect::Id(SpiffeId::control_plane(&"mesh.example".parse().unwrap(), 1));
    let peer = control_plane.members[0].peer.clone();
    let channel = grpc::connect(&[peer], &gateway, expect).await.unwrap();
    let batch = RaftBatch { from: 1, ..RaftBatch::default() };
    let status = RaftTransportClient::new(channel).messages(tokio_stream::iter([batch])).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}
