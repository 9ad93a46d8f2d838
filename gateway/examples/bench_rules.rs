//! What it costs to find the rule of a request among thousands: `cargo run --release -p archipelago-gateway --example bench_rules`.
//!
//! Each line: kind of rule, number of rules, nanoseconds by asking each rule and by the index, for the last rule before the
//! one that matches everything and for a request that no other rule is about. The request has twelve headers and two cookies.

use std::hint::black_box;
use std::time::Instant;

use archipelago_gateway::internals::{Condition, Matcher, PathPattern, Pattern, RouteInput, RuleIndex};
use archipelago_http::Fields;
use http::{HeaderName, Method};

fn main() {
    println!(
        "{:<8} {:>6} {:>12} {:>12} {:>12} {:>12}",
        "rules", "number", "scan last", "index last", "scan none", "index none"
    );
    for (kind, condition) in KINDS {
        for number in [4, 16, 64, 1_000, 4_000] {
            let mut rules: Vec<Matcher> =
                (0..number).map(|n| Matcher { conditions: vec![condition(&format!("pr-{n}"))] }).collect();
            rules.push(Matcher::default());
            let index = RuleIndex::of(rules.iter());
            let figures: Vec<String> = [format!("pr-{}", number - 1), "nobody".to_owned()]
                .iter()
                .flat_map(|preview| {
                    let (path, headers) = (format!("/{preview}/cart?page=2"), headers(preview));
                    let input = RouteInput { method: &Method::GET, path: path.as_bytes(), headers: &headers };
                    let scan = nanoseconds(|| rules.iter().position(|rule| rule.matches(&input)));
                    let found = nanoseconds(|| {
                        index.first(&input, |at| rules.get(at as usize).is_some_and(|rule| rule.matches(&input)))
                    });
                    [scan, found]
                })
                .map(|figure| format!("{figure:>12.0}"))
                .collect();
            println!("{kind:<8} {number:>6} {}", figures.join(" "));
        }
    }
}

type MakeCondition = fn(&str) -> Condition;

const KINDS: [(&str, MakeCondition); 3] = [
    ("header", |value| Condition::Header(HeaderName::from_static("x-preview"), Pattern::Exact(value.into()))),
    ("cookie", |value| Condition::Cookie("preview".into(), Pattern::Exact(value.into()))),
    ("prefix", |value| Condition::Path(PathPattern::Prefix(format!("/{value}")))),
];

fn headers(preview: &str) -> Fields {
    let mut headers = Fields::new();
    let mut push = |name: &str, value: &str| {
        if let Err(error) = headers.push_named(name.as_bytes(), value.as_bytes()) {
            eprintln!("{name}: {error}");
        }
    };
    (0..10).for_each(|number| push(&format!("x-header-{number}"), "value"));
    push("x-preview", preview);
    push("cookie", &format!("session=0123456789abcdef; preview={preview}"));
    headers
}

/// The best of five runs of 20 ms.
fn nanoseconds<T>(mut work: impl FnMut() -> T) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let (start, mut rounds) = (Instant::now(), 0u32);
        while start.elapsed().as_millis() < 20 {
            for _ in 0..64 {
                black_box(work());
            }
            rounds += 64;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(rounds));
    }
    best
}
