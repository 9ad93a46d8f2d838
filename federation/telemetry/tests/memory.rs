//! What the counts of a large federation cost a gateway, by a counting allocator.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use archipelago_proto::v1::LatencyQuestion;
use archipelago_telemetry::store::{BUCKETS_MAX, Limits};
use archipelago_telemetry::{Key, Outcome, Reporter, Store, Tally};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Around 4 ms, a few below 1 ms, a few beyond 20 ms, as services are: powers of two of something bell-shaped.
fn durations(count: u64) -> Vec<u64> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 24)
    };
    let one = |_| (4_000.0 * f64::powf(2.0, (0..6).map(|_| uniform()).sum::<f64>() - 3.0)) as u64;
    (0..count).map(one).collect()
}

/// Five series each: answered here by two versions, answered elsewhere well, badly and not at all.
fn keys(service: usize) -> Vec<Key> {
    let name: Box<str> = format!("namespace-{}/service-{service}", service % 40).into();
    let key = |version: &str, destination: &str, outcome| Key {
        service: name.clone(),
        version: version.into(),
        source: "paris".into(),
        destination: destination.into(),
        reporter: Reporter::Source,
        outcome,
        overflow: false,
    };
    vec![
        key("v1", "paris", Outcome::Status2xx),
        key("v2", "paris", Outcome::Status2xx),
        key("", "tokyo", Outcome::Status2xx),
        key("", "tokyo", Outcome::Status4xx),
        key("", "tokyo", Outcome::Status5xx),
    ]
}

#[test]
fn two_thousand_services() {
    let tally = |durations: &[u64]| {
        let mut tally = Tally::default();
        durations.iter().for_each(|micros| tally.record(*micros));
        tally
    };
    let durations = durations(12_300);
    let parts: Vec<Tally> = durations.chunks(4_100).map(tally).collect();
    let before = ALLOCATED.current_usage();
    let mut store = Store::new(1, Limits::default());
    for part in &parts {
        for service in 0..2_000 {
            store.add(keys(service).into_iter().map(|key| (key, part.clone())));
        }
    }
    let bytes = ALLOCATED.current_usage() - before;
    let (series, buckets) = store.size();
    let answer = store.answer(&LatencyQuestion::default(), usize::MAX);
    let wire: usize = answer.series.iter().map(|series| series.counts.len()).sum();
    eprintln!(
        "{series} series, {} buckets each: {} KiB, {} KiB of counts on the wire",
        buckets / series,
        bytes / 1024,
        wire / 1024
    );
    assert_eq!(series, 10_000);
    assert!(buckets < BUCKETS_MAX);
    // Stated in docs/top.md: keep both together.
    assert!(bytes < 48 * 1024 * 1024, "{bytes} bytes");
}
