//! Each way of being slow, and the sentence that is said of it.

use archipelago_proto::v1::{SlowAnswer, SlowHops, SlowMinute, SlowRequest};

use super::*;
use crate::names::ServiceName;

/// A request of 800 µs from paris to an endpoint in tokyo.
fn usual() -> SlowRequest {
    let hops = SlowHops { queue: 20, tunnel: 160, far_queue: 20, first_byte: 600, ..SlowHops::default() };
    SlowRequest {
        total_us: 800,
        status: 200,
        method: "GET".to_owned(),
        path: "/cart".to_owned(),
        cluster: "tokyo".to_owned(),
        gateway: "tokyo/gw-1".to_owned(),
        endpoint: "127.0.0.1:9001".to_owned(),
        attempts: 1,
        far_attempts: 1,
        hops: Some(hops),
        ..SlowRequest::default()
    }
}

/// The same, with something that takes longer.
fn with(slower: impl FnOnce(&mut SlowHops, &mut SlowRequest)) -> SlowRequest {
    let mut request = usual();
    let mut hops = request.hops.unwrap();
    slower(&mut hops, &mut request);
    request.hops = Some(hops);
    request.total_us = Hop::ALL.iter().map(|hop| hop.of(&hops)).sum();
    request
}

/// A minute of paris: the slow ones, and `count` requests of which sixteen are known.
fn minute(slow: Vec<SlowRequest>, usual: &SlowRequest, count: u64) -> SlowMinute {
    let seen = count + slow.len() as u64;
    let slow = slow.into_iter().map(|request| SlowRequest { slowest: true, ..request });
    let sample = (0..count.min(16)).map(|_| SlowRequest { sampled: true, ..usual.clone() });
    SlowMinute {
        service: "shop/checkout".to_owned(),
        seen,
        requests: slow.chain(sample).collect(),
        ..Default::default()
    }
}

fn facts(minutes: Vec<SlowMinute>) -> Facts {
    let answer = SlowAnswer { minutes, silent_workers: 0 };
    Facts { answers: vec![("paris/gw-1".to_owned(), answer)], missing: Vec::new() }
}

fn view(facts: Facts) -> (Findings, SlowView) {
    let service: ServiceName = "shop/checkout".parse().unwrap();
    let clone = Facts { answers: facts.answers.clone(), missing: facts.missing.clone() };
    (analyse(facts, false), SlowView::new(&service, KEPT, analyse(clone, false)))
}

fn sentence(facts: Facts) -> String {
    view(facts).1.text().render(false).lines().next().unwrap().to_owned()
}

/// Ten of 910 requests of each of ten minutes are slow in the same way.
fn slow_in(slower: impl Fn(usize, &mut SlowHops, &mut SlowRequest)) -> Facts {
    let slow = |minute: usize| (0..10).map(|n| with(|hops, request| slower(minute * 10 + n, hops, request))).collect();
    facts((0..10).map(|n| minute(slow(n), &usual(), 900)).collect())
}

#[test]
fn each_slowness_is_called_by_its_name() {
    let cases: [(&str, Facts); 13] = [
        (
            "100 of the 100 slowest requests (p99 400.2 ms): 400.0 ms until the endpoint begins to answer, \
             at 127.0.0.1:9001 in tokyo behind tokyo/gw-1 (usually 600 µs)",
            slow_in(|_, hops, _| hops.first_byte = 400_000),
        ),
        (
            "95 of the 100 slowest requests (p99 400.2 ms): 400.0 ms until the endpoint begins to answer, \
             at 127.0.0.1:9001 in tokyo behind tokyo/gw-1 (usually 600 µs)",
            slow_in(|n, hops, _| if n % 20 == 0 { hops.body = 5_000 } else { hops.first_byte = 400_000 }),
        ),
        (
            "100 of the 100 slowest requests (p99 400.2 ms): 400.0 ms until the endpoint begins to answer, \
             at tokyo/gw-1 (usually 600 µs)",
            slow_in(|n, hops, request| (hops.first_byte, request.endpoint) = (400_000, format!("127.0.0.1:{}", n % 4))),
        ),
        (
            "100 of the 100 slowest requests (p99 300.6 ms): 300.0 ms on the way between the gateways, there and back, \
             from paris/gw-1 to tokyo/gw-1 (usually 160 µs)",
            slow_in(|_, hops, _| hops.tunnel = 300_000),
        ),
        (
            "100 of the 100 slowest requests (p99 300.6 ms): 300.0 ms on the way between the gateways, there and back, \
             from paris to tokyo (usually 160 µs)",
            slow_in(|n, hops, request| (hops.tunnel, request.gateway) = (300_000, format!("tokyo/gw-{}", n % 4))),
        ),
        (
            "100 of the 100 slowest requests (p99 200.8 ms): 200.0 ms in the far gateway, before an endpoint is asked, \
             at tokyo/gw-1 (usually 20 µs)",
            slow_in(|_, hops, _| hops.far_queue = 200_000),
        ),
        (
            "100 of the 100 slowest requests (p99 200.8 ms): 200.0 ms in the gateway's queue for a stream to the endpoint, which \
             allows only so many, at 127.0.0.1:9001 in tokyo behind tokyo/gw-1 (usually 0 µs)",
            slow_in(|_, hops, _| hops.endpoint_wait = 200_000),
        ),
        (
            "100 of the 100 slowest requests (p99 1.00 s): 1.00 s connecting to an endpoint, \
             at 127.0.0.1:9002 in tokyo behind tokyo/gw-1 (usually 0 µs)",
            slow_in(|_, hops, request| (hops.connect, request.lost_at) = (1_000_000, "127.0.0.1:9002".to_owned())),
        ),
        (
            "100 of the 100 slowest requests (p99 900.8 ms): 900.0 ms in attempts that failed, and between attempts, \
             at frankfurt/gw-2 (usually 0 µs)",
            slow_in(|_, hops, request| (hops.lost, request.lost_at) = (900_000, "frankfurt/gw-2".to_owned())),
        ),
        (
            "100 of the 100 slowest requests (p99 50.8 ms): 50.0 ms in the gateway where they enter, before anybody is asked, \
             at paris/gw-1 (usually 20 µs)",
            slow_in(|_, hops, _| hops.queue = 50_000),
        ),
        (
            "100 of the 100 slowest requests (p99 2.00 s): 2.00 s until the client has sent the request, \
             at paris/gw-1 (usually 0 µs)",
            slow_in(|_, hops, _| hops.upload = 2_000_000),
        ),
        (
            "100 of the 100 slowest requests (p99 40.00 s): 40.00 s in the body of the response, sent by the endpoint and taken \
             by the client, at 127.0.0.1:9001 in tokyo behind tokyo/gw-1 (usually 0 µs)",
            slow_in(|_, hops, _| hops.body = 40_000_000),
        ),
        (
            "100 of the 100 slowest requests (p99 400.0 ms): 400.0 ms beyond the tunnel, of which the far gateway says nothing, \
             from paris/gw-1 to tokyo/gw-1 (usually 0 µs)",
            slow_in(|_, hops, request| {
                (*hops, request.far_silent) = (SlowHops { beyond: 400_000, ..SlowHops::default() }, true);
            }),
        ),
    ];
    for (expected, facts) in cases {
        assert_eq!(sentence(facts), expected);
    }
}

#[test]
fn what_has_no_pattern_is_not_blamed_on_anybody() {
    let mixed = slow_in(|n, hops, _| match n % 4 {
        0 => hops.queue = 9_000,
        1 => hops.tunnel = 9_000,
        2 => hops.first_byte = 9_000,
        _ => hops.body = 9_000,
    });
    let nothing = "nothing stands out: of 9100 requests (p99 9.2 ms, median 800 µs) the 100 slowest spend their time on different things";
    assert_eq!(sentence(mixed), nothing);
    // All alike, and all fast.
    assert_eq!(analyse(facts(vec![minute(vec![usual(); 10], &usual(), 500)]), false).verdict, Verdict::Nothing);
    assert_eq!(analyse(Facts::default(), false).verdict, Verdict::NoRequests);
    let (_, none) = view(Facts::default());
    assert_eq!(
        serde_json::to_value(&none).unwrap()["medianMs"],
        serde_json::Value::Null,
        "nothing is known, which is not zero"
    );
}

#[test]
fn what_is_slow_for_everybody_is_named_too() {
    let slow = with(|hops, _| hops.first_byte = 400_000);
    let said = sentence(facts(vec![minute(vec![slow.clone(); 10], &slow, 200)]));
    assert_eq!(
        said,
        "21 of the 21 slowest requests (p99 400.2 ms): 400.0 ms until the endpoint begins to answer, at 127.0.0.1:9001 in tokyo \
         behind tokyo/gw-1 (requests that are not among the slowest spend as much there)"
    );
}

#[test]
fn the_sample_stands_for_all_and_the_slowest_for_themselves() {
    let slow = |n: u64| with(|hops, _| hops.first_byte = 100_000 + n);
    let one = minute((0..10).map(slow).collect(), &usual(), 990);
    let findings = analyse(facts(vec![one]), true);
    assert_eq!((findings.seen, findings.median), (1_000, 800));
    // The 990th of 1,000 is the slowest of those that are not.
    assert_eq!(findings.p99, 800);
    let one = minute((0..10).map(slow).collect(), &usual(), 890);
    let findings = analyse(facts(vec![one]), true);
    assert_eq!(findings.p99, 100_200, "of 900 the ten slowest are more than a hundredth");
    assert_eq!(findings.slow.len(), 10, "and no others");
}

#[test]
fn who_did_not_report_is_named_and_nobody_draws_on_a_terminal() {
    let mut said = slow_in(|_, hops, request| {
        hops.first_byte = 400_000;
        (request.path, request.method) = ("/\x1b[2J\u{202e}evil\nx".to_owned(), "GE\rT".to_owned());
        (request.endpoint, request.far_silent) = ("\x1b]0;x\x07".to_owned(), true);
    });
    said.missing.push(("tokyo/gw-\x1b[1m2".to_owned(), "its version\nkeeps none".to_owned()));
    let (_, view) = view(said);
    let text = view.text().render(false);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n') && !text.contains('\u{202e}'), "{text:?}");
    assert!(text.contains("GE\\u{d}T /\\u{1b}[2J\\u{202e}evil\\nx"), "{text}");
    assert!(text.contains("tokyo/gw-\\u{1b}[1m2 did not report: its version keeps none"), "{text}");
    assert!(text.contains("tokyo/gw-1 does not report how long it takes for other clusters: update it"), "{text}");
}

#[test]
fn names_of_json_are_an_interface() {
    let mut said = slow_in(|_, hops, _| hops.first_byte = 400_000);
    said.missing.push(("tokyo/gw-2".to_owned(), "silent".to_owned()));
    let (_, view) = view(said);
    let json = serde_json::to_value(&view).unwrap();
    let slowest = json["slowest"].as_array().unwrap();
    assert_eq!(slowest.len(), 10);
    assert_eq!(
        slowest[0],
        serde_json::json!({
            "totalMs": 400.2, "ageMs": 0, "status": 200, "flags": "", "from": "paris/gw-1", "cluster": "tokyo",
            "gateway": "tokyo/gw-1", "endpoint": "127.0.0.1:9001", "hop": "first-byte", "hopMs": 400.0, "method": "GET",
            "path": "/cart", "traceId": null, "attempts": 1, "farAttempts": 1,
        })
    );
    let mut rest = json;
    rest.as_object_mut().unwrap().remove("slowest");
    assert_eq!(
        rest,
        serde_json::json!({
            "service": "shop/checkout", "since": "15m", "requests": 9_100, "medianMs": 0.8, "p99Ms": 400.2,
            "verdict": {
                "kind": "hop", "hop": "first-byte", "from": null, "cluster": "tokyo", "gateway": "tokyo/gw-1",
                "endpoint": "127.0.0.1:9001", "requests": 100, "of": 100, "timeMs": 400.0, "usualMs": 0.6, "isUsual": false,
                "text": "100 of the 100 slowest requests (p99 400.2 ms): 400.0 ms until the endpoint begins to answer, \
                         at 127.0.0.1:9001 in tokyo behind tokyo/gw-1 (usually 600 µs)",
            },
            "hops": [
                { "hop": "queue", "slowMs": 0.02, "usualMs": 0.02 },
                { "hop": "tunnel", "slowMs": 0.16, "usualMs": 0.16 },
                { "hop": "far-queue", "slowMs": 0.02, "usualMs": 0.02 },
                { "hop": "first-byte", "slowMs": 400.0, "usualMs": 0.6 },
            ],
            "gateways": {
                "answered": 1, "silentWorkers": 0, "missing": [{ "gateway": "tokyo/gw-2", "reason": "silent" }],
                "withoutLedger": [],
            },
        })
    );
}
