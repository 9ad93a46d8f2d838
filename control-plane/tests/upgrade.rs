//! Members of two versions in one federation: upgraded one by one, taken back, and stopped where going back is too late.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use archipelago_control_plane::Compatibility;
use archipelago_identity::{LiveCredential, tls::Expect};
use archipelago_proto::v1::{
    ApplyRequest, ApplyResponse, Document, GetRequest, Precondition, RaiseRestoreEpochRequest, Resource, ResourceKey,
    precondition, resources_client::ResourcesClient,
};
use archipelago_rpc::grpc;
use common::{ControlPlane, cluster, eventually};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// Log entries kept, so few that a member which was away gets a snapshot.
const SNAPSHOT_ENTRIES: [&str; 2] = ["--snapshot-entries", "10"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_upgraded_one_by_one_while_writes_go_on() {
    for order in [[1, 2, 3], [3, 2, 1]] {
        let mut federation = ControlPlane::start_as(3, &SNAPSHOT_ENTRIES, Compatibility::Previous).await;
        let writer = Writer::start(&federation);
        for (place, id) in order.into_iter().enumerate() {
            // The last one of the old version gets a snapshot of a new leader, the first of the new one that of an old.
            if place == 2 {
                away_and_back(&mut federation, id).await;
            }
            let refused = create(&federation, order[0], "late").await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert_eq!(refused.metadata().get("archipelago-code").unwrap(), "FORMAT_HELD_BACK");
            let holding = order[2];
            assert!(
                refused
                    .message()
                    .contains(&format!("member {holding} knows formats up to {}", Compatibility::Previous.format())),
                "{refused}"
            );
            federation.previous.remove(&id);
            away_and_back(&mut federation, id).await;
        }
        eventually("the format has risen everywhere", || async { risen(&federation).await }).await;
        let response = create(&federation, 1, "late").await.unwrap();
        assert_eq!(response.changes[0].what, "created");
        let again = create(&federation, 2, "late").await.unwrap();
        assert_eq!(again.conflicts[0].current_revision, response.revision);

        let acknowledged = writer.stop().await;
        assert!(acknowledged.len() > 20, "{} writes in all that time", acknowledged.len());
        let states = states(&federation).await;
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "the members differ");
        for name in &acknowledged {
            assert!(states[0].iter().any(|resource| resource.name == *name), "{name} was acknowledged and is gone");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_may_go_back_until_the_format_rose_and_stops_after() {
    let mut federation = ControlPlane::start_as(3, &[], Compatibility::Previous).await;
    federation.previous.remove(&1);
    restart(&mut federation, 1).await;
    federation.apply(1, "", &cluster("paris", "eu-west")).await.unwrap();
    federation.previous.insert(1);
    restart(&mut federation, 1).await;
    assert_eq!(federation.get(1, "paris").await.unwrap().resources.len(), 1, "it reads what the later version wrote");

    federation.previous.clear();
    for id in 1..=3 {
        restart(&mut federation, id).await;
    }
    eventually("the format has risen everywhere", || async { risen(&federation).await }).await;

    federation.previous.insert(2);
    assert_eq!(federation.terminate(2).await, 0);
    federation.start_member(2);
    assert_ne!(federation.ended(2).await, 0);
    let log = federation.log(2);
    let known = Compatibility::Previous.format();
    assert!(log.contains(&format!("this version knows formats up to {known}: run a newer version")), "{log}");
    federation.apply(1, "", &cluster("oslo", "eu-north")).await.unwrap();

    federation.previous.remove(&2);
    federation.start_member(2);
    federation.ready().await;
    assert_eq!(federation.get(2, "oslo").await.unwrap().resources.len(), 1, "nothing is lost, and nothing was skipped");
    let states = states(&federation).await;
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "the members differ");
}

/// A member that runs an old version meets an entry of a new format in the log, not in its checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_stops_before_an_entry_that_it_does_not_know() {
    let mut federation = ControlPlane::start_as(3, &[], Compatibility::Previous).await;
    // Two of three: the format cannot rise while the third is away.
    federation.kill(3);
    federation.previous.clear();
    for id in 1..=2 {
        restart(&mut federation, id).await;
    }
    let refused = create(&federation, 1, "paris").await.unwrap_err();
    assert!(refused.message().contains("member 3 does not answer"), "{refused}");
    federation.start_member(3);
    federation.ready().await;
    eventually("the format has risen everywhere", || async { risen(&federation).await }).await;
    // Killed: what it applied since the start is in its log alone.
    federation.kill(3);
    create(&federation, 1, "paris").await.unwrap();
    federation.previous.insert(3);
    federation.start_member(3);
    assert_ne!(federation.ended(3).await, 0);
    let log = federation.log(3);
    assert!(log.contains("run a newer version"), "{log}");
    federation.previous.remove(&3);
    federation.start_member(3);
    federation.ready().await;
    assert_eq!(federation.get(3, "paris").await.unwrap().resources.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_restore_epoch_is_raised_once_per_request() {
    let federation = ControlPlane::start(1, &[]).await;
    let mut client = ResourcesClient::new(federation.channel(1).await.unwrap());
    for _retry in 0..2 {
        let request = RaiseRestoreEpochRequest { request_id: "restored".into() };
        let raised = client.raise_restore_epoch(request).await.unwrap().into_inner().version.unwrap();
        assert_eq!(raised.restore_epoch, 1);
    }
    let another = client.raise_restore_epoch(RaiseRestoreEpochRequest::default()).await.unwrap().into_inner();
    assert_eq!(another.version.unwrap().restore_epoch, 2);
}

/// Writes one cluster after the other, at any member that takes it, until stopped.
struct Writer {
    stopping: Arc<AtomicBool>,
    task: JoinHandle<Vec<String>>,
}

impl Writer {
    fn start(federation: &ControlPlane) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let addresses: Vec<String> = federation.members.iter().map(|member| member.client.clone()).collect();
        let (operator, stop) = (federation.operator.clone(), Arc::clone(&stopping));
        let task = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            let mut attempt = 0;
            while !stop.load(Ordering::Relaxed) {
                let name = format!("w{}", acknowledged.len());
                attempt += 1;
                if write(&addresses[attempt % addresses.len()], &operator, &name).await.is_ok() {
                    acknowledged.push(name);
                }
            }
            acknowledged
        });
        Self { stopping, task }
    }

    /// What was acknowledged.
    async fn stop(self) -> Vec<String> {
        self.stopping.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn write(address: &str, operator: &LiveCredential, name: &str) -> Result<(), Status> {
    let channel = grpc::connect(&[address.to_owned()], operator, Expect::control_plane())
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let documents = vec![Document { file: "w.yaml".into(), text: cluster(name, "eu-west") }];
    let request = ApplyRequest { documents, request_id: name.to_owned(), ..ApplyRequest::default() };
    ResourcesClient::new(channel).apply(request).await.map(|_| ())
}

/// Creates a cluster on the condition that it does not exist.
async fn create(federation: &ControlPlane, id: u64, name: &str) -> Result<ApplyResponse, Status> {
    let key = ResourceKey { kind: "Cluster".into(), namespace: String::new(), name: name.into() };
    let expect = Some(precondition::Expect::Absent(true));
    let request = ApplyRequest {
        documents: vec![Document { file: "c.yaml".into(), text: cluster(name, "eu-west") }],
        preconditions: vec![Precondition { key: Some(key), expect }],
        ..ApplyRequest::default()
    };
    Ok(ResourcesClient::new(federation.channel(id).await?).apply(request).await?.into_inner())
}

async fn restart(federation: &mut ControlPlane, id: u64) {
    assert_eq!(federation.terminate(id).await, 0);
    federation.start_member(id);
    federation.ready().await;
}

/// Restarts a member after so many writes that it must be given a snapshot.
async fn away_and_back(federation: &mut ControlPlane, id: u64) {
    let snapshots = |federation: &ControlPlane| federation.log(id).matches("snapshot received").count();
    let before = snapshots(federation);
    assert_eq!(federation.terminate(id).await, 0);
    let here = federation.running()[0];
    for n in 0..40 {
        let text = cluster(&format!("c{n}"), &format!("r{}-{n}", federation.log(id).len()));
        eventually("a write is acknowledged", || async {
            federation.apply(here, "", &text).await.map_err(|status| status.to_string())
        })
        .await;
    }
    federation.start_member(id);
    federation.ready().await;
    assert!(snapshots(federation) > before, "member {id} came back without a snapshot");
}

async fn risen(federation: &ControlPlane) -> Result<(), String> {
    let status = federation.status(1).await.map_err(|status| status.to_string())?;
    let formats: Vec<u32> = status.members.iter().map(|member| member.format_version).collect();
    let current = Compatibility::Current.format();
    if formats.iter().all(|format| *format == current) { Ok(()) } else { Err(format!("{formats:?}")) }
}

/// What each member holds, once all have applied the same.
async fn states(federation: &ControlPlane) -> Vec<Vec<Resource>> {
    let mut states = Vec::new();
    for id in federation.running() {
        // A barrier first: nobody writes any more.
        federation.get(id, "").await.unwrap();
        let request = GetRequest { stale: true, ..GetRequest::default() };
        let mut client = ResourcesClient::new(federation.channel(id).await.unwrap());
        states.push(client.get(request).await.unwrap().into_inner().resources);
    }
    states
}
