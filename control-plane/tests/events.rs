//! What happened, told once by whichever member is asked.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use archipelago_identity::LiveCredential;
use archipelago_model::{feature, stream::Held};
use archipelago_proto::v1::{
    ConfigAck, Event, EventFilter, EventSource, EventSourceState, EventsFrom, FollowedEvents, GatewayDirective,
    GatewayEvents, GatewayHello, GatewayMessage, GatewayReport, JoinRole, Kept, ListEventsRequest, ListEventsResponse,
    ResourceRejection, RevokeRequest, SessionOrder, events_client::EventsClient,
    gateway_control_client::GatewayControlClient, gateway_directive, gateway_message::Body,
    identity_client::IdentityClient,
};
use common::{ControlPlane, PATIENCE, cluster, eventually};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// A gateway that says what a test wants.
struct Gateway {
    messages: mpsc::Sender<GatewayMessage>,
    directives: Streaming<GatewayDirective>,
    held: Held,
}

impl Gateway {
    async fn connect(plane: &ControlPlane, member: u64, credential: &LiveCredential, hello: GatewayHello) -> Self {
        let (messages, outgoing) = mpsc::channel(16);
        messages.send(GatewayMessage { body: Some(Body::Hello(hello)) }).await.unwrap();
        let channel = plane.channel_as(member, credential).await.unwrap();
        let alive = messages.clone();
        tokio::spawn(async move {
            let report = || GatewayMessage { body: Some(Body::Report(GatewayReport::default())) };
            while alive.send(report()).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        let stream = GatewayControlClient::new(channel).stream(ReceiverStream::new(outgoing)).await;
        Self { messages, directives: stream.unwrap().into_inner(), held: Held::default() }
    }

    async fn send(&self, body: Body) {
        self.messages.send(GatewayMessage { body: Some(body) }).await.unwrap();
    }

    /// Takes what comes until it is asked for events.
    async fn asked_for_events(&mut self) -> EventsFrom {
        loop {
            if let gateway_directive::Body::EventsFrom(from) = self.directive().await {
                return from;
            }
        }
    }

    /// Takes the next update, and rejects these resources of it.
    async fn accept_but(&mut self, rejections: &[ResourceRejection]) {
        loop {
            if let gateway_directive::Body::Update(update) = self.directive().await {
                self.held = self.held.take(&update).unwrap();
                let rejections = rejections.to_vec();
                return self
                    .send(Body::Ack(ConfigAck { version: update.version, rejections, ..ConfigAck::default() }))
                    .await;
            }
        }
    }

    async fn directive(&mut self) -> gateway_directive::Body {
        let directive = timeout(PATIENCE, self.directives.message()).await.expect("a directive in time").unwrap();
        directive.expect("the stream goes on").body.unwrap()
    }
}

fn hello(cluster: &str, session: u64, says_events: bool) -> GatewayHello {
    let features = feature::ALL.iter().chain(says_events.then_some(&feature::SAYS_EVENTS));
    GatewayHello {
        cluster: cluster.into(),
        gateway: "gw-1".into(),
        workers: 1,
        features: features.map(ToString::to_string).collect(),
        order: Some(SessionOrder { boot: 3, session }),
        ..GatewayHello::default()
    }
}

/// What the gateway of paris saw, in words of its own.
fn seen(id: u64) -> Event {
    Event {
        // Whatever it says here: it speaks for itself.
        source: "log".into(),
        actor: "spiffe://mesh.example/operator/admin".into(),
        id,
        sequence: id,
        first_unix_ms: 1_000,
        last_unix_ms: 2_000,
        count: 1,
        kind: "failover".into(),
        reason: "ClusterUnreachable".into(),
        message: format!("no gateway of tokyo \u{1b}]0;{id}\u{7}\u{202e}can be reached"),
        cluster: "tokyo".into(),
        ..Event::default()
    }
}

fn said(ids: &[u64]) -> Body {
    let events = ids.iter().map(|id| seen(*id)).collect();
    Body::Events(GatewayEvents { incarnation: 3, events, first_id: 1, since_unix_ms: 500 })
}

async fn list(plane: &ControlPlane, member: u64, filter: EventFilter) -> Result<ListEventsResponse, String> {
    let channel = plane.channel(member).await.map_err(|status| status.to_string())?;
    let request = ListEventsRequest { filter: Some(filter), limit: 0 };
    Ok(EventsClient::new(channel).list(request).await.map_err(|status| status.to_string())?.into_inner())
}

/// Asks a member until its list has events of all of these reasons.
async fn with_reasons(plane: &ControlPlane, member: u64, reasons: &[&str]) -> ListEventsResponse {
    eventually("all of it is told", || async move {
        let answer = list(plane, member, EventFilter::default()).await?;
        let told: BTreeSet<_> = answer.events.iter().map(|event| event.reason.as_str()).collect();
        let missing: Vec<_> = reasons.iter().filter(|reason| !told.contains(*reason)).collect();
        if missing.is_empty() { Ok(answer) } else { Err(format!("{missing:?} are missing of {told:?}")) }
    })
    .await
}

fn of<'e>(answer: &'e ListEventsResponse, reason: &str) -> Vec<&'e Event> {
    answer.events.iter().filter(|event| event.reason == reason).collect()
}

fn state(sources: &[EventSource], name: &str) -> Option<EventSourceState> {
    sources.iter().find(|source| source.source == name).map(EventSource::state)
}

/// Takes what a follower hears until all of these reasons were there.
async fn hear(stream: &mut Streaming<FollowedEvents>, heard: &mut Vec<Event>, reasons: &[&str]) {
    let has = |heard: &[Event], reason: &str| heard.iter().any(|event| event.reason == reason);
    while let Some(missing) = reasons.iter().find(|reason| !has(heard, reason)) {
        let next = timeout(PATIENCE, stream.message()).await;
        let said = next.unwrap_or_else(|_| panic!("{missing} is not heard")).unwrap().expect("it goes on");
        assert_eq!(said.lost, 0);
        heard.extend(said.events);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_tells_the_same_and_each_event_once() {
    let mut plane = ControlPlane::start(3, &[]).await;
    let request = ListEventsRequest::default();
    let mut follower = EventsClient::new(plane.channel(1).await.unwrap()).follow(request).await.unwrap().into_inner();
    let mut heard = Vec::new();
    plane.apply(1, "", &(cluster("paris", "eu-west") + &cluster("tokyo", "ap-northeast"))).await.unwrap();
    let paris = plane.join("paris", JoinRole::Gateway, "gw-1").await;
    let tokyo = plane.join("tokyo", JoinRole::Gateway, "gw-1").await;

    // One says what it sees, one is of a build from before that; each at another member.
    let mut first = Gateway::connect(&plane, 2, &paris, hello("paris", 1, true)).await;
    assert_eq!(first.asked_for_events().await, EventsFrom::default());
    first.send(said(&[1, 2])).await;
    let mut old = Gateway::connect(&plane, 3, &tokyo, hello("tokyo", 1, false)).await;
    let rejection = ResourceRejection {
        resource: "service/shop/web".into(),
        reason: "no \u{1b}[31msuch\u{1b}[0m thing".into(),
        kept: Kept::Closed.into(),
        ..ResourceRejection::default()
    };
    old.accept_but(&[rejection]).await;

    let told =
        ["ClusterUnreachable", "ConfigRejected", "GatewayConnected", "TokenUsed", "ResourceCreated", "LeaderElected"];
    for member in [1, 2, 3] {
        let answer = with_reasons(&plane, member, &told).await;
        let names: BTreeSet<_> = answer.events.iter().map(|e| (&e.source, e.incarnation, e.id)).collect();
        assert_eq!(names.len(), answer.events.len(), "each once");
        assert!(answer.events.is_sorted_by_key(|event| event.last_unix_ms), "in order");
        let text: String = answer.events.iter().flat_map(|e| [e.message.as_str(), e.subject.as_str()]).collect();
        assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");

        let seen = of(&answer, "ClusterUnreachable");
        assert_eq!(seen.len(), 2);
        assert_eq!((&*seen[0].source, &*seen[0].actor, seen[0].incarnation), ("paris/gw-1", "", 3));
        let written = of(&answer, "ResourceCreated");
        assert_eq!(written.len(), 2, "{written:?}");
        let by = "spiffe://mesh.example/operator/admin";
        assert!(written.iter().all(|event| (&*event.source, &*event.actor) == ("log", by) && event.revision > 0));
        assert_eq!(of(&answer, "TokenUsed").len(), 2);
        let rejected = of(&answer, "ConfigRejected");
        assert_eq!((rejected.len(), &*rejected[0].gateway, &*rejected[0].service), (1, "tokyo/gw-1", "shop/web"));
        assert_eq!((&*rejected[0].source, &*rejected[0].kind), ("cp-3", "config"));

        assert_eq!(state(&answer.sources, "paris/gw-1"), Some(EventSourceState::Heard));
        assert_eq!(state(&answer.sources, "tokyo/gw-1"), Some(EventSourceState::NotReported));
        assert!((1..=3).all(|id| state(&answer.sources, &format!("cp-{id}")) == Some(EventSourceState::Heard)));
    }
    let filtered =
        list(&plane, 1, EventFilter { kinds: vec!["config".into()], cluster: "tokyo".into(), ..Default::default() });
    let filtered = filtered.await.unwrap();
    assert!(filtered.events.iter().all(|event| event.reason == "ConfigRejected"), "{:?}", filtered.events);
    hear(&mut follower, &mut heard, &told).await;

    // The gateway goes to another member, which has heard nothing of it: it says all of it again, and nobody hears it twice.
    drop(first);
    let mut second = Gateway::connect(&plane, 3, &paris, hello("paris", 2, true)).await;
    assert_eq!(second.asked_for_events().await, EventsFrom::default());
    second.send(said(&[1, 2, 3])).await;
    let id = "spiffe://mesh.example/cluster/tokyo/gateway/gw-1".to_owned();
    let revoke = RevokeRequest { spiffe_id: id.clone(), reason: "stolen".into(), ..Default::default() };
    IdentityClient::new(plane.channel(2).await.unwrap()).revoke(revoke).await.unwrap();
    let answer = with_reasons(&plane, 1, &["IdentityRevoked"]).await;
    let revoked = of(&answer, "IdentityRevoked");
    assert_eq!((revoked.len(), &*revoked[0].subject, &*revoked[0].gateway), (1, &*id, "tokyo/gw-1"));
    hear(&mut follower, &mut heard, &["IdentityRevoked"]).await;
    eventually("the third", || async {
        let answer = list(&plane, 1, EventFilter::default()).await?;
        let all = of(&answer, "ClusterUnreachable").len();
        if all == 3 { Ok(()) } else { Err(format!("{all} of 3")) }
    })
    .await;
    while heard.iter().filter(|event| event.reason == "ClusterUnreachable").count() < 3 {
        let said = timeout(PATIENCE, follower.message()).await.expect("the third in time").unwrap().unwrap();
        heard.extend(said.events);
    }
    let names: Vec<_> = heard.iter().map(|e| (e.source.clone(), e.incarnation, e.id, e.sequence)).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");

    // A member that is gone is named, and what the log says is known without it.
    let gone = (1..=3).find(|id| *id != 1 && *id != 3).unwrap();
    plane.kill(gone);
    let answer = with_reasons(&plane, 1, &["IdentityRevoked", "ResourceCreated", "MemberUnreachable"]).await;
    assert_eq!(state(&answer.sources, "cp-2"), Some(EventSourceState::Unreachable));
    assert_eq!(of(&answer, "ResourceCreated").len(), 2);
    assert_eq!(of(&answer, "MemberUnreachable").len(), 1, "it is said once: {:?}", of(&answer, "MemberUnreachable"));
    plane.start_member(gone);
    let answer = with_reasons(&plane, gone, &["ResourceCreated", "MemberReachable"]).await;
    assert_eq!(of(&answer, "ResourceCreated").len(), 2, "read again from the log, under the same names");
    drop(second);
}
