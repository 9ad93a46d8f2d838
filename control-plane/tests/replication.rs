//! Acknowledged writes survive: kill -9 of the leader, of everything, and a member that was away too long.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use std::time::Instant;

use archipelago_proto::v1::{
    ApplyRequest, DeleteRequest, Document, GetRequest, ResourceKey, resources_client::ResourcesClient,
};
use common::{ControlPlane, cluster, eventually};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_writes_and_reads_what_any_other_acknowledged() {
    let control_plane = ControlPlane::start(3, &[]).await;
    let leader = control_plane.leader().await;
    for (id, name) in [(1, "paris"), (2, "frankfurt"), (3, "tokyo")] {
        let response = control_plane.apply(id, "", &cluster(name, "eu-west")).await.unwrap();
        assert_eq!(response.problems, Vec::<String>::new());
        assert_eq!(response.changes[0].what, "created");
        for other in 1..=3 {
            let seen = control_plane.get(other, name).await.unwrap();
            assert_eq!(seen.resources.len(), 1, "member {other} must see what member {id} acknowledged");
            assert_eq!(seen.resources[0].created_revision, response.revision);
        }
    }

    // The same request, sent again to another member, commits once and gets the same answer.
    let text = cluster("oslo", "eu-north");
    let first = control_plane.apply(1, "retry-1", &text).await.unwrap();
    let again = control_plane.apply(2, "retry-1", &text).await.unwrap();
    assert_eq!((again.revision, &again.changes), (first.revision, &first.changes));
    let text = cluster("rome", "eu-south");
    let both = tokio::join!(control_plane.apply(1, "retry-2", &text), control_plane.apply(3, "retry-2", &text));
    let (one, two) = (both.0.unwrap(), both.1.unwrap());
    assert_eq!((one.revision, one.changes), (two.revision, two.changes));

    let mut client = ResourcesClient::new(control_plane.channel(leader).await.unwrap());
    let document = |text: &str| vec![Document { file: "f.yaml".into(), text: text.into() }];
    let dry =
        ApplyRequest { documents: document(&cluster("lima", "sa-west")), dry_run: true, ..ApplyRequest::default() };
    assert_eq!(client.apply(dry).await.unwrap().into_inner().changes[0].what, "created");
    assert!(control_plane.get(1, "lima").await.unwrap().resources.is_empty(), "a dry run changes nothing");

    let wrong = "apiVersion: archipelago.dev/v1alpha1\nkind: Cluster\nmetadata: { name: x }\nspec: { reggion: a }\n";
    let refused = control_plane.apply(2, "", wrong).await.unwrap();
    assert!(refused.problems.iter().any(|problem| problem.starts_with("test.yaml:4:")), "{:?}", refused.problems);

    let key = |name: &str| ResourceKey { kind: "Cluster".into(), namespace: String::new(), name: name.into() };
    let missing = DeleteRequest { keys: vec![key("atlantis")], ..DeleteRequest::default() };
    assert_eq!(client.delete(missing).await.unwrap().into_inner().problems, ["Cluster atlantis does not exist"]);
    let delete = DeleteRequest { keys: vec![key("rome")], ..DeleteRequest::default() };
    assert_eq!(client.delete(delete).await.unwrap().into_inner().changes[0].what, "deleted");
    let unknown = GetRequest { kind: "Clutser".into(), ..GetRequest::default() };
    let status = client.get(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("did you mean `Cluster`"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_leaders_are_killed_and_everything_restarts() {
    let mut control_plane = ControlPlane::start(3, &[]).await;
    let mut acknowledged: Vec<(String, u64)> = Vec::new();
    let mut write = 0;
    for _round in 0..2 {
        let leader = control_plane.leader().await;
        for n in 0..20 {
            if n == 7 {
                control_plane.kill(leader);
            }
            let name = format!("c{write}");
            write += 1;
            let text = cluster(&name, "eu-west");
            // A client with a request id tries other members until one answers.
            let begun = Instant::now();
            let response = eventually("the write is acknowledged", || async {
                let running = control_plane.running();
                let member = running[write % running.len()];
                control_plane.apply(member, &name, &text).await.map_err(|status| status.to_string())
            })
            .await;
            if n == 7 {
                println!("leader killed: the next write was acknowledged after {:?}", begun.elapsed());
            }
            assert_eq!(response.problems, Vec::<String>::new());
            acknowledged.push((name, response.revision));
        }
        control_plane.start_member(leader);
        control_plane.ready().await;
    }
    let revisions: Vec<u64> = acknowledged.iter().map(|(_, revision)| *revision).collect();
    assert!(revisions.windows(2).all(|pair| pair[0] < pair[1]), "in order, each its own revision: {revisions:?}");

    for id in control_plane.running() {
        control_plane.kill(id);
    }
    for id in 1..=3 {
        control_plane.start_member(id);
    }
    control_plane.ready().await;
    for id in 1..=3 {
        let everything = control_plane.get(id, "").await.unwrap();
        for (name, revision) in &acknowledged {
            let found = everything.resources.iter().find(|resource| resource.name == *name);
            assert_eq!(found.map(|resource| resource.created_revision), Some(*revision), "{name} at member {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_too_long_gets_a_snapshot() {
    let mut control_plane = ControlPlane::start(3, &["--snapshot-entries", "10"]).await;
    let away = control_plane.follower().await;
    control_plane.kill(away);
    let here = control_plane.running()[0];
    let mut last = 0;
    for n in 0..80 {
        last = control_plane.apply(here, "", &cluster(&format!("c{n}"), "eu-west")).await.unwrap().revision;
    }
    control_plane.start_member(away);
    let seen = eventually("the member has caught up", || async {
        let request = GetRequest { stale: true, ..GetRequest::default() };
        let channel = control_plane.channel(away).await.map_err(|status| status.to_string())?;
        let seen = ResourcesClient::new(channel).get(request).await.map_err(|status| status.to_string())?.into_inner();
        if seen.revision >= last { Ok(seen) } else { Err(format!("at revision {} of {last}", seen.revision)) }
    })
    .await;
    assert_eq!(seen.resources.len(), 80);
    assert!(control_plane.log(away).contains("snapshot received"), "it came by snapshot, not entry by entry");

    let mut client = ResourcesClient::new(control_plane.channel(here).await.unwrap());
    let mut request = GetRequest { kind: "Cluster".into(), page_size: 30, ..GetRequest::default() };
    let (mut sizes, mut all) = (Vec::new(), Vec::new());
    loop {
        let page = client.get(request.clone()).await.unwrap().into_inner();
        sizes.push(page.resources.len());
        all.extend(page.resources);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(sizes, [30, 30, 20]);
    assert_eq!(all, seen.resources);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_asked_to_end_hands_over_first() {
    let mut control_plane = ControlPlane::start(3, &[]).await;
    let leader = control_plane.leader().await;
    assert_eq!(control_plane.terminate(leader).await, 0);
    let other = control_plane.running()[0];
    control_plane.apply(other, "", &cluster("paris", "eu-west")).await.unwrap();
    assert!(control_plane.log(leader).contains("stopped"));
    let status = control_plane.status(other).await.unwrap();
    let gone = status.members.iter().find(|member| member.id == leader).unwrap();
    assert_eq!(gone.role, "unreachable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_alone_is_a_control_plane_and_two_of_three_are_needed() {
    let mut control_plane = ControlPlane::start(1, &[]).await;
    control_plane.apply(1, "", &cluster("paris", "eu-west")).await.unwrap();
    control_plane.kill(1);
    control_plane.start_member(1);
    control_plane.ready().await;
    assert_eq!(control_plane.get(1, "paris").await.unwrap().resources.len(), 1);

    let mut three = ControlPlane::start(3, &[]).await;
    three.kill(1);
    three.kill(2);
    let status = three.apply(3, "", &cluster("paris", "eu-west")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("no leader"), "{status}");
}
