//! The slowest requests of the last minutes, of the services that are slow now.

use std::{sync::Arc, time::Duration};

use archipelago_page::state::{About, Hop as Part, Missing, SlowRequest};
use archipelago_proto::v1::{
    self, NoAnswerReason, SlowMinute, SlowQuestion, answer, gateway_answer::Outcome, question,
};
use archipelago_telemetry::Hop;
use tokio::{sync::mpsc, time::sleep};
use tonic::Status;

use super::{Desk, federation::some};
use crate::{api::Context, consensus::unix_ms, sessions::gateway_key};

/// Asks all gateways, again and again, for what they keep of the slowest services.
pub(super) async fn ask(context: Arc<Context>, desk: Arc<Desk>) {
    loop {
        let services = desk.lock().traffic.as_ref().map(|traffic| traffic.slowest(SERVICES_MAX));
        let Some(services) = services else {
            // Not known yet, or not any more.
            sleep(UNKNOWN_PACE).await;
            continue;
        };
        let (mut kept, mut missing) = (Vec::new(), Vec::new());
        for service in services {
            if let Err(status) = about(&context, &service, &mut kept, &mut missing).await {
                let who = format!("cp-{}", context.consensus.node_id);
                missing.push(Missing { about: About::Slowest, who, why: status.message().to_owned() });
                break;
            }
        }
        // Each service asks the same gateways.
        missing.sort();
        missing.dedup();
        let slowest = kept.into_iter().map(|(_, request)| request).collect();
        desk.note(|gathered| {
            gathered.slowest = Some(slowest);
            gathered.missing.insert(About::Slowest, missing);
        });
        sleep(PACE).await;
    }
}

/// Asks about one service; of everything that is told no more is held than is shown.
async fn about(
    context: &Arc<Context>,
    service: &str,
    kept: &mut Vec<(u64, SlowRequest)>,
    missing: &mut Vec<Missing>,
) -> Result<(), Status> {
    let since_ms = u64::try_from(SINCE.as_millis()).unwrap_or(u64::MAX);
    let question = SlowQuestion { service: service.to_owned(), since_ms };
    let inquiry = context.inquire(|_, _| Some(question::Body::Slow(question.clone())))?;
    let (sender, mut answers) = mpsc::channel(1);
    tokio::spawn(inquiry.run(move |answer| {
        let sender = sender.clone();
        async move { sender.send(answer).await }
    }));
    while let Some(said) = answers.recv().await {
        let gateway = gateway_key(&said.cluster, &said.gateway);
        let why = match said.outcome {
            Some(Outcome::Answer(told)) => match told.body {
                Some(answer::Body::Slow(told)) => {
                    let now = unix_ms();
                    told.minutes.into_iter().for_each(|minute| take(minute, &gateway, now, kept));
                    continue;
                }
                _ => "answered something else than was asked".to_owned(),
            },
            Some(Outcome::Missing(why)) if why.reason() == NoAnswerReason::NotSupported => {
                "is not reported: it runs a version that keeps no slow requests".to_owned()
            }
            Some(Outcome::Missing(why)) => why.detail,
            None => "said nothing".to_owned(),
        };
        missing.push(Missing { about: About::Slowest, who: gateway, why });
    }
    Ok(())
}

/// The slowest first, and no more than are shown.
fn take(minute: SlowMinute, from: &str, now_unix_ms: i64, kept: &mut Vec<(u64, SlowRequest)>) {
    let service = minute.service;
    for request in minute.requests.into_iter().filter(|request| request.slowest) {
        let place = kept.partition_point(|(total, _)| *total >= request.total_us);
        if place < SHOWN_MAX {
            kept.truncate(SHOWN_MAX - 1);
            kept.insert(place, (request.total_us, shown(&service, from, request, now_unix_ms)));
        }
    }
}

fn shown(service: &str, from: &str, request: v1::SlowRequest, now_unix_ms: i64) -> SlowRequest {
    let hops = request.hops.as_ref().map(|hops| {
        let spent = Hop::ALL.into_iter().map(|hop| (hop, hop.of(hops))).filter(|(_, micros)| *micros > 0);
        let part = |(hop, micros): (Hop, u64)| {
            let place = hop.places(from, &request).into_iter().next();
            let at = place.and_then(|place| place.endpoint.or(place.gateway).or(place.cluster));
            Part { hop: hop.word().to_owned(), at, micros }
        };
        spent.map(part).collect()
    });
    let age_ms = i64::try_from(request.age_ms).unwrap_or(i64::MAX);
    SlowRequest {
        service: service.to_owned(),
        total_micros: request.total_us,
        ended_unix_ms: now_unix_ms.saturating_sub(age_ms),
        status: (request.status > 0).then_some(request.status),
        flags: cut(&request.flags),
        from: from.to_owned(),
        cluster: some(&request.cluster),
        endpoint: some(&request.endpoint),
        method: cut(&request.method),
        path: cut(&request.path),
        trace_id: some(&request.trace_id),
        hops,
    }
}

/// What a client chose, as far as people read it.
fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

const PACE: Duration = Duration::from_secs(10);
/// Until gateways have counted for the first time.
const UNKNOWN_PACE: Duration = Duration::from_secs(1);
const SINCE: Duration = Duration::from_secs(300);
/// A question to every gateway each.
const SERVICES_MAX: usize = 5;
const SHOWN_MAX: usize = 50;
const TEXT_CHARS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use archipelago_proto::v1::SlowHops;

    use super::*;

    fn request(total_us: u64, slowest: bool) -> v1::SlowRequest {
        let hops = SlowHops { tunnel: total_us / 4, first_byte: total_us / 2, ..SlowHops::default() };
        v1::SlowRequest {
            slowest,
            total_us,
            age_ms: 1_000,
            path: "/<b>".repeat(200),
            cluster: "tokyo".into(),
            gateway: "tokyo/gw-1".into(),
            endpoint: "127.0.0.1:9000".into(),
            hops: Some(hops),
            ..v1::SlowRequest::default()
        }
    }

    #[test]
    fn the_slowest_of_all_gateways_are_kept_in_order_and_no_more() {
        let mut kept = Vec::new();
        for round in 0..10_u64 {
            let requests = (0..20).map(|number| request(1_000 + number * 10 + round, true)).collect();
            let minute = SlowMinute { service: "shop/web".into(), requests, ..SlowMinute::default() };
            take(minute, "paris/gw-1", 100_000, &mut kept);
        }
        let sample = SlowMinute { requests: vec![request(9_999_999, false)], ..SlowMinute::default() };
        take(sample, "paris/gw-1", 100_000, &mut kept);
        assert_eq!(kept.len(), SHOWN_MAX);
        assert!(kept.is_sorted_by(|a, b| a.0 >= b.0));
        assert_eq!((kept[0].0, kept[SHOWN_MAX - 1].0), (1_199, 1_150), "one of the sample is none of the slowest");
        let one = &kept[0].1;
        assert_eq!((one.ended_unix_ms, one.status, one.path.chars().count()), (99_000, None, TEXT_CHARS_MAX));
        let hops: Vec<_> =
            one.hops.as_ref().unwrap().iter().map(|part| (&*part.hop, part.at.as_deref(), part.micros)).collect();
        assert_eq!(hops, [("tunnel", Some("tokyo/gw-1"), 299), ("first-byte", Some("127.0.0.1:9000"), 599)]);
    }
}
