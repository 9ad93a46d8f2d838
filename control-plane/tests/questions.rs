//! Questions to all gateways of a federation, over three members: who answers, and who does not for which reason.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::BTreeMap;

use archipelago_model::feature;
use archipelago_proto::v1::{
    Answer, AskRequest, GatewayAddresses, GatewayDirective, GatewayHello, GatewayMessage, JoinRole, LatencyAnswer,
    LatencyQuestion, LatencySeries, NoAnswerReason, Question, TopRequest, answer, gateway_answer::Outcome,
    gateway_control_client::GatewayControlClient, gateway_directive, gateway_message::Body, question,
    telemetry_client::TelemetryClient,
};
use archipelago_telemetry::{self as telemetry, Counts, Key, Reporter, Tally};
use common::{ControlPlane, PATIENCE, cluster, eventually};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

/// A gateway that takes what it is sent and answers nothing by itself.
struct Gateway {
    messages: mpsc::Sender<GatewayMessage>,
    directives: Streaming<GatewayDirective>,
}

impl Gateway {
    async fn connect(control_plane: &ControlPlane, member: u64, cluster: &str, name: &str, features: &[&str]) -> Self {
        let credential = control_plane.join(cluster, JoinRole::Gateway, name).await;
        let hello = GatewayHello {
            cluster: cluster.into(),
            gateway: name.into(),
            addresses: Some(GatewayAddresses { http: "127.0.0.1:15080".into(), ..GatewayAddresses::default() }),
            workers: 1,
            features: features.iter().map(ToString::to_string).collect(),
            ..GatewayHello::default()
        };
        let (messages, outgoing) = mpsc::channel(16);
        messages.send(GatewayMessage { body: Some(Body::Hello(hello)) }).await.unwrap();
        let channel = control_plane.channel_as(member, &credential).await.unwrap();
        let directives =
            GatewayControlClient::new(channel).stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Self { messages, directives }
    }

    async fn question(&mut self) -> Question {
        loop {
            let directive = timeout(PATIENCE, self.directives.message()).await.expect("a directive in time").unwrap();
            if let gateway_directive::Body::Question(question) = directive.expect("the stream goes on").body.unwrap() {
                return question;
            }
        }
    }

    async fn answer(&self, answer: Answer) {
        self.messages.send(GatewayMessage { body: Some(Body::Answer(answer)) }).await.unwrap();
    }
}

fn latency(since: u64) -> Question {
    let body = question::Body::Latency(LatencyQuestion { since, ..LatencyQuestion::default() });
    Question { id: 0, body: Some(body) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_gateway_answers_or_is_named_with_the_reason() {
    let control_plane = ControlPlane::start(3, &[]).await;
    control_plane.apply(1, "", &(cluster("paris", "eu-west") + &cluster("tokyo", "ap-northeast"))).await.unwrap();
    const KNOWS: &[&str] = &[feature::TELEMETRY_LATENCY];
    let mut answers = Gateway::connect(&control_plane, 1, "paris", "answers", KNOWS).await;
    let mut boasts = Gateway::connect(&control_plane, 2, "paris", "boasts", KNOWS).await;
    let mut fails = Gateway::connect(&control_plane, 3, "paris", "fails", KNOWS).await;
    let _silent = Gateway::connect(&control_plane, 3, "tokyo", "silent", KNOWS).await;
    let _old = Gateway::connect(&control_plane, 3, "tokyo", "old", &[]).await;
    let gone = Gateway::connect(&control_plane, 2, "tokyo", "gone", KNOWS).await;
    let states = |wanted: &'static [(&'static str, bool)]| {
        let control_plane = &control_plane;
        eventually("all are seen", move || async move {
            let status = control_plane.status(2).await.map_err(|status| status.to_string())?;
            let connected: BTreeMap<_, _> = status
                .clusters
                .iter()
                .flat_map(|cluster| &cluster.gateways)
                .map(|gateway| (&*gateway.name, gateway.state != "disconnected"))
                .collect();
            let seen = wanted.iter().all(|(name, is)| connected.get(name) == Some(is));
            if seen { Ok(()) } else { Err(format!("{connected:?}")) }
        })
    };
    states(&[("answers", true), ("boasts", true), ("fails", true), ("silent", true), ("old", true), ("gone", true)])
        .await;
    drop(gone);
    states(&[("gone", false)]).await;

    let ask = |member: u64, clusters: &[&str]| {
        let clusters = clusters.iter().map(ToString::to_string).collect();
        let control_plane = &control_plane;
        async move {
            let mut telemetry = TelemetryClient::new(control_plane.channel(member).await.unwrap());
            let request = AskRequest { clusters, question: Some(latency(7)) };
            let mut stream = telemetry.ask(request).await.unwrap().into_inner();
            let mut told = BTreeMap::new();
            while let Some(answer) = stream.message().await.unwrap() {
                let name = format!("{}/{}", answer.cluster, answer.gateway);
                assert!(told.insert(name, answer.outcome.unwrap()).is_none(), "said twice");
            }
            told
        }
    };
    let as_a_gateway_should = tokio::spawn(async move {
        let mut requests = Tally::default();
        loop {
            let asked = answers.question().await;
            let Some(question::Body::Latency(LatencyQuestion { .. })) = asked.body else { panic!("{asked:?}") };
            // Ten more whenever somebody looks.
            (0..10).for_each(|_| requests.record(5_000));
            // Nobody waits for this one; the next counts all the same.
            answers.answer(Answer { id: asked.id + 1_000, ..Answer::default() }).await;
            let key = Key {
                service: "shop/web".into(),
                version: "".into(),
                source: "paris".into(),
                destination: "tokyo".into(),
                reporter: Reporter::Source,
                outcome: telemetry::Outcome::Status2xx,
                overflow: false,
            };
            let series = vec![key.to_wire(&requests.clone().counted())];
            let said = LatencyAnswer { incarnation: 3, as_of: 9, series, ..LatencyAnswer::default() };
            let said = answer::Body::Latency(said);
            answers.answer(Answer { id: asked.id, body: Some(said), ..Answer::default() }).await;
        }
    });
    let too_much = tokio::spawn(async move {
        loop {
            let asked = boasts.question().await;
            let series = vec![LatencySeries { counts: vec![0; 3 * 1024 * 1024], ..LatencySeries::default() }];
            let said = answer::Body::Latency(LatencyAnswer { series, ..LatencyAnswer::default() });
            boasts.answer(Answer { id: asked.id, body: Some(said), ..Answer::default() }).await;
        }
    });
    let not_at_all = tokio::spawn(async move {
        loop {
            let asked = fails.question().await;
            fails.answer(Answer { id: asked.id, failure: "\u{1b}[2Jtea".into(), ..Answer::default() }).await;
        }
    });
    let expected = BTreeMap::from([
        ("paris/boasts", (NoAnswerReason::TooLarge, "the gateway answered with more than 2097152 bytes")),
        ("paris/fails", (NoAnswerReason::Failed, "[2Jtea")),
        ("tokyo/gone", (NoAnswerReason::NotConnected, "is not connected")),
        ("tokyo/old", (NoAnswerReason::NotSupported, "its build does not report this: upgrade it")),
        ("tokyo/silent", (NoAnswerReason::TimedOut, "the gateway did not answer in time")),
    ]);
    // Again if this machine was too busy to answer in time.
    eventually("each says what it says", || async {
        let told = ask(2, &[]).await;
        let missing: BTreeMap<&str, (NoAnswerReason, &str)> = told
            .iter()
            .filter_map(|(name, outcome)| match outcome {
                Outcome::Missing(missing) => Some((&**name, (missing.reason(), &*missing.detail))),
                Outcome::Answer(_) => None,
            })
            .collect();
        match &told["paris/answers"] {
            Outcome::Answer(Answer { body: Some(answer::Body::Latency(said)), .. }) if missing == expected => {
                assert_eq!((said.incarnation, said.as_of), (3, 9));
                Ok(())
            }
            _ => Err(format!("{told:?}").chars().take(2_000).collect()),
        }
    })
    .await;
    // The same, again and again: what is not known is said, and nothing is made up for it.
    let mut telemetry = TelemetryClient::new(control_plane.channel(3).await.unwrap());
    let request = TopRequest { interval_ms: 250, with_counts: true, ..TopRequest::default() };
    let mut looks = telemetry.top(request.clone()).await.unwrap().into_inner();
    let mut next = async || timeout(PATIENCE, looks.message()).await.expect("figures in time").unwrap().unwrap();
    let first = next().await;
    assert!(first.begins && first.rows.is_empty(), "{first:?}");
    // A busy machine may have one answer too late; then the next brings both.
    let (mut counted, mut reported) = (0, 0);
    while reported < 3 {
        let look = next().await;
        assert_eq!(look.gateways_reported as usize + look.missing.len(), 6, "{look:?}");
        let missing = |name: &str| look.missing.iter().find(|missing| missing.gateway == name);
        for name in ["boasts", "fails", "silent", "old", "gone"] {
            let why =
                missing(name).and_then(|missing| missing.why.clone()).unwrap_or_else(|| panic!("{name}: {look:?}"));
            assert!(!why.detail.is_empty());
        }
        if missing("answers").is_none() {
            let row = &look.rows[0];
            assert_eq!((&*row.service, row.failed, look.rows.len()), ("shop/web", 0, 1));
            assert_eq!((&*row.sources, &*row.destinations), (&["paris".to_owned()][..], &["tokyo".to_owned()][..]));
            assert_eq!(row.p99_micros, Some(5_023));
            assert_eq!(Counts::decode(&row.counts).unwrap().total(), row.succeeded);
            assert!(row.succeeded > 0 && row.succeeded % 10 == 0 && row.requests_per_second > 0.0, "{row:?}");
            counted += row.succeeded;
            reported += 1;
        }
    }
    assert!(counted >= 30);
    for (request, why) in [
        (TopRequest { interval_ms: 1, ..TopRequest::default() }, "an interval is between 250ms and 3600s"),
        (
            TopRequest { services: vec!["web".into()], ..TopRequest::default() },
            "\"web\" is not a service: give namespace/name",
        ),
        (TopRequest { by: 99, ..TopRequest::default() }, "this member cannot tell apart by that: upgrade it"),
    ] {
        let status = telemetry.top(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, why));
    }
    // There are so many who look, and whoever goes away makes room.
    let mut others = Vec::new();
    for _ in 0..7 {
        others.push(telemetry.top(request.clone()).await.unwrap());
    }
    assert_eq!(telemetry.top(request.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
    others.clear();
    eventually("there is room", || async {
        let mut telemetry = TelemetryClient::new(control_plane.channel(3).await.map_err(|status| status.to_string())?);
        telemetry.top(request.clone()).await.map(drop).map_err(|status| status.to_string())
    })
    .await;
    for gateway in [as_a_gateway_should, too_much, not_at_all] {
        assert!(!gateway.is_finished(), "a gateway panicked: {gateway:?}");
        gateway.abort();
    }

    // Of one cluster only; and what nobody can ask.
    let told = ask(1, &["tokyo"]).await;
    assert_eq!(told.keys().collect::<Vec<_>>(), ["tokyo/gone", "tokyo/old", "tokyo/silent"]);
    let mut telemetry = TelemetryClient::new(control_plane.channel(1).await.unwrap());
    let status = telemetry.ask(AskRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}
