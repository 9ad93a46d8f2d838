//! A member that is lost with its disk is replaced while the federation writes; members are added and taken out.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use archipelago_control_plane::seed::{Seed, seed};
use archipelago_identity::tls::Expect;
use archipelago_proto::v1::{
    AddMemberRequest, AddMemberResponse, ApplyRequest, Document, GetRequest, ListEventsRequest, ListMembersRequest,
    MemberStanding, PromoteMemberRequest, PromoteMemberResponse, RemoveMemberRequest, TransferLeadershipRequest,
    events_client::EventsClient, membership_client::MembershipClient, resources_client::ResourcesClient,
};
use archipelago_rpc::grpc;
use common::{ControlPlane, cluster, eventually};
use tonic::{Code, Status, transport::Channel};

/// More than a connection that a busy machine was late for.
const REFUSALS: usize = 5;

async fn membership(control_plane: &ControlPlane, at: u64) -> MembershipClient<Channel> {
    MembershipClient::new(control_plane.channel(at).await.unwrap())
}

/// A change that a change of leader, or the one before, may hold up.
async fn change<T, F: Future<Output = Result<T, Status>>>(what: &str, attempt: impl Fn() -> F) -> T {
    eventually(what, || async {
        match attempt().await {
            Ok(done) => Ok(done),
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Aborted) => Err(status.to_string()),
            Err(status) => panic!("{what}: {status}"),
        }
    })
    .await
}

/// Puts what a member begins with where its process looks: what `meshctl member replace` and `archipelago-control-plane seed` do.
fn fill(control_plane: &ControlPlane, place: u64, added: &AddMemberResponse) {
    let from = control_plane.dir.path().join("bundle");
    fs::create_dir_all(&from).unwrap();
    let id = added.member.as_ref().unwrap().id;
    fs::write(from.join("federation.json"), &added.federation_json).unwrap();
    fs::write(from.join("ca.sealed"), &added.ca_sealed).unwrap();
    fs::write(from.join(format!("seal-{id}.key")), &added.seal_key).unwrap();
    let data_dir = control_plane.data_dir(place);
    fs::create_dir_all(&data_dir).unwrap();
    let seal_key_out = data_dir.join("seal.key");
    seed(&Seed { node_id: place, from: from.clone(), data_dir, marker: None, seal_key_out }).unwrap();
    fs::remove_dir_all(from).unwrap();
}

async fn promoted(control_plane: &ControlPlane, at: u64, id: u64, replaces: u64) {
    eventually("the new member has caught up and has its vote", || async move {
        let request = PromoteMemberRequest { id, replaces, reason: "disk lost".to_owned() };
        let answer = membership(control_plane, at).await.promote(request).await;
        match answer.map(tonic::Response::into_inner) {
            Ok(PromoteMemberResponse { promoted: true, .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Ids with a vote, as the member at `at` knows them.
async fn voters(control_plane: &ControlPlane, at: u64) -> Result<Vec<u64>, String> {
    let mut client = MembershipClient::new(control_plane.channel(at).await.map_err(|status| status.to_string())?);
    let list = client.list(ListMembersRequest {}).await.map_err(|status| status.to_string())?.into_inner();
    let votes = list.members.iter().filter(|member| member.standing() == MemberStanding::Voter);
    Ok(votes.map(|member| member.id).collect())
}

/// Writes through whoever answers until told to end; what was acknowledged.
fn writer(control_plane: &ControlPlane, ends: &Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<String>> {
    let addresses: Vec<String> = control_plane.members.iter().map(|member| member.client.clone()).collect();
    let (credential, ends) = (control_plane.operator.clone(), Arc::clone(ends));
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        while !ends.load(Ordering::Relaxed) {
            let name = format!("w{}", acknowledged.len());
            let request = ApplyRequest {
                documents: vec![Document { file: "w.yaml".to_owned(), text: cluster(&name, "eu-west") }],
                request_id: name.clone(),
                ..ApplyRequest::default()
            };
            eventually("the write is acknowledged", || async {
                let channel = grpc::connect(&addresses, &credential, Expect::control_plane()).await;
                let channel = channel.map_err(|error| error.to_string())?;
                let answer = ResourcesClient::new(channel).apply(request.clone()).await;
                answer.map_err(|status| status.to_string())
            })
            .await;
            acknowledged.push(name);
        }
        acknowledged
    })
}

async fn holds_all(control_plane: &ControlPlane, at: u64, names: &[String]) {
    let everything = control_plane.get(at, "").await.unwrap().resources;
    let missing: Vec<_> = names.iter().filter(|name| !everything.iter().any(|there| there.name == **name)).collect();
    assert!(missing.is_empty(), "acknowledged, and not at the member in place {at}: {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_member_is_replaced_under_writes_and_none_is_lost() {
    let mut control_plane = ControlPlane::start(3, &["--snapshot-entries", "10"]).await;
    let lost = control_plane.follower().await;
    let here = control_plane.running().into_iter().find(|id| *id != lost).unwrap();
    let ends = Arc::new(AtomicBool::new(false));
    let writing = writer(&control_plane, &ends);
    let replace = AddMemberRequest { replaces: lost, ..AddMemberRequest::default() };

    let works = membership(&control_plane, here).await.add(replace.clone()).await.unwrap_err();
    assert_eq!(works.code(), Code::FailedPrecondition);
    assert!(works.message().contains("works") && works.message().contains("hint:"), "{works}");

    control_plane.kill(lost);
    fs::remove_dir_all(control_plane.data_dir(lost)).unwrap();
    control_plane.start_member(lost);
    assert_ne!(control_plane.ended(lost).await, 0);
    let words = control_plane.log(lost);
    assert!(words.contains("meshctl member replace"), "{words}");

    let added = change("the replacement is added", || async {
        membership(&control_plane, here).await.add(replace.clone()).await
    })
    .await
    .into_inner();
    let member = added.member.clone().unwrap();
    assert_eq!((member.id, member.place, &member.client), (4, lost, &control_plane.members[lost as usize - 1].client));
    // Nobody who begins with this file on an empty disk takes itself for a founder.
    let file: serde_json::Value = serde_json::from_slice(&added.federation_json).unwrap();
    let named = file["members"].as_array().unwrap();
    assert!(named.len() == 3 && named.iter().all(|member| member["place"].is_u64()), "{file}");
    // One change at a time.
    let second = membership(&control_plane, here).await.add(replace).await.unwrap_err();
    assert!(
        second.message().contains("cp-4 is being added") && second.message().contains("member remove 4"),
        "{second}"
    );

    fill(&control_plane, lost, &added);
    control_plane.start_member(lost);
    promoted(&control_plane, here, 4, lost).await;
    control_plane.ready().await;
    ends.store(true, Ordering::Relaxed);
    let acknowledged = writing.await.unwrap();
    assert!(acknowledged.len() > 5, "{}", acknowledged.len());

    let mut expected: Vec<u64> = (1..=4).filter(|id| *id != lost).collect();
    expected.sort_unstable();
    for at in control_plane.running() {
        eventually("each of the three knows the three", || async {
            let found = voters(&control_plane, at).await?;
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        holds_all(&control_plane, at, &acknowledged).await;
    }
    // Their states are the same, by what they say of themselves after the same entry.
    eventually("all three took a checkpoint of the same state", || async {
        control_plane.apply(here, "", &cluster("one-more", "eu-west")).await.map_err(|status| status.to_string())?;
        let status = control_plane.status(here).await.map_err(|status| status.to_string())?;
        let checkpoints: Vec<_> =
            status.members.iter().map(|member| (member.checkpoint_index, member.checkpoint_sha256.clone())).collect();
        let first = checkpoints[0].clone();
        match first.0 > 0 && checkpoints.len() == 3 && checkpoints.iter().all(|of| *of == first) {
            true => Ok(()),
            false => Err(format!("{checkpoints:?}")),
        }
    })
    .await;

    let events = EventsClient::new(control_plane.channel(here).await.unwrap());
    let events = events.clone().list(ListEventsRequest::default()).await.unwrap().into_inner().events;
    let of = |reason: &str| {
        events.iter().find(|event| event.reason == reason).unwrap_or_else(|| panic!("{reason}: {events:#?}"))
    };
    let (added, removed) = (of("MemberAdded"), of("MemberRemoved"));
    assert_eq!((added.subject.as_str(), removed.subject.clone()), ("cp-4", format!("cp-{lost}")));
    assert!(removed.message.contains("disk lost") && removed.actor.ends_with("/operator/admin"), "{removed:?}");

    // It is a member like the others: it issues, leads, and outlives another one.
    let moved = change("the new member leads", || async {
        membership(&control_plane, here).await.transfer(TransferLeadershipRequest { to: 4 }).await
    })
    .await;
    assert_eq!(moved.into_inner().leader, 4);
    let leads =
        membership(&control_plane, here).await.remove(RemoveMemberRequest { id: 4, reason: String::new() }).await;
    assert!(leads.unwrap_err().message().contains("leadership has to go to another member first"));
    control_plane.kill(here);
    control_plane.apply(lost, "", &cluster("after", "eu-west")).await.unwrap();
    control_plane.start_member(here);
    control_plane.ready().await;
    // With all of it stopped and started again, nobody remembers the lost one.
    for id in control_plane.running() {
        control_plane.kill(id);
    }
    for id in 1..=3 {
        control_plane.start_member(id);
    }
    control_plane.ready().await;
    holds_all(&control_plane, lost, &acknowledged).await;
}

/// Of a removed member nothing is accepted, though its certificate is good for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_added_and_another_taken_out_and_heard_no_more() {
    let mut control_plane = ControlPlane::start(3, &[]).await;
    let leader = control_plane.leader().await;
    let request = |port: u16| AddMemberRequest {
        client: format!("127.0.0.1:{port}"),
        peer: format!("127.0.0.1:{}", port + 1),
        replaces: 0,
    };
    let nowhere = AddMemberRequest { client: "nowhere".to_owned(), ..AddMemberRequest::default() };
    let refused = membership(&control_plane, leader).await.add(nowhere).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");

    // Begun and undone: the number is not given again.
    let port = common::free_port();
    let first =
        change("a member is added", || async { membership(&control_plane, 1).await.add(request(port)).await }).await;
    assert_eq!(first.into_inner().member.unwrap().id, 4);
    let undo = RemoveMemberRequest { id: 4, reason: "never came".to_owned() };
    change("it is taken out again", || async { membership(&control_plane, 2).await.remove(undo.clone()).await }).await;
    let again =
        change("a member is added", || async { membership(&control_plane, 3).await.add(request(port)).await }).await;
    assert_eq!(again.into_inner().member.unwrap().id, 5);
    let undo = RemoveMemberRequest { id: 5, ..undo };
    change("it is taken out again", || async { membership(&control_plane, 1).await.remove(undo.clone()).await }).await;

    // With one of three gone, none of the two that are left can go.
    let follower = control_plane.follower().await;
    control_plane.kill(follower);
    let other = control_plane.running().into_iter().find(|id| *id != leader).unwrap();
    let needed = eventually("the leader knows that one is silent", || async {
        let request = RemoveMemberRequest { id: other, reason: String::new() };
        match membership(&control_plane, leader).await.remove(request).await {
            Err(status) if status.code() == Code::FailedPrecondition => Ok(status),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(needed.message().contains("nothing could be written any more"), "{needed}");
    let gone = RemoveMemberRequest { id: follower, reason: String::new() };
    change("the silent one is taken out", || async {
        membership(&control_plane, leader).await.remove(gone.clone()).await
    })
    .await;
    assert_eq!(voters(&control_plane, other).await.unwrap().len(), 2);
    let unknown = membership(&control_plane, leader).await.remove(gone).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown}");

    // It comes back with its disk and its certificate, and is nobody.
    control_plane.start_member(follower);
    control_plane.apply(leader, "", &cluster("paris", "eu-west")).await.unwrap();
    eventually("the removed one runs, and is refused by the others", || async {
        let log = control_plane.log(follower);
        // What it said before it was killed is about others.
        let [_, _, log] = log.split("member started").collect::<Vec<_>>()[..] else {
            return Err("it has not started again".to_owned());
        };
        // The leader lives and listens, and ends its connections before anything is said on them.
        let refusals = log.matches(&format!("the peer cannot be reached peer={leader} ")).count();
        if refusals >= REFUSALS { Ok(()) } else { Err(format!("it was refused {refusals} times")) }
    })
    .await;
    let stale = GetRequest { stale: true, name: "paris".to_owned(), ..GetRequest::default() };
    let mut at_removed = ResourcesClient::new(control_plane.channel(follower).await.unwrap());
    assert!(at_removed.get(stale).await.unwrap().into_inner().resources.is_empty());
    let status = control_plane.status(leader).await.unwrap();
    let mut ids: Vec<u64> = status.members.iter().map(|member| member.id).collect();
    ids.sort_unstable();
    let mut expected = vec![leader, other];
    expected.sort_unstable();
    assert_eq!(ids, expected);
}
