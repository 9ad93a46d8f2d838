use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::counts::Tally;
use crate::flow::{Flow, FlowKey};
use crate::key::{Outcome, Reporter};
use crate::store::{self, Store};

fn gateway(name: &str) -> Gateway {
    ("paris".to_owned(), name.to_owned())
}

fn key(service: &str) -> Key {
    Key {
        service: service.into(),
        version: "".into(),
        source: "paris".into(),
        destination: "tokyo".into(),
        reporter: Reporter::Source,
        outcome: Outcome::Status2xx,
        overflow: false,
    }
}

fn tally(micros: &[u64]) -> Tally {
    let mut tally = Tally::default();
    micros.iter().for_each(|micros| tally.record(*micros));
    tally
}

fn store(incarnation: u64) -> Store {
    Store::new(incarnation, store::Limits::default())
}

fn window() -> Window {
    Window::new(vec![], Limits::default(), Duration::ZERO)
}

/// Asks to the end.
fn ask(window: &mut Window, name: &str, store: &Store, now: u64) {
    let mut question = window.question(&gateway(name));
    while let Next::Ask(next) =
        window.take(&gateway(name), &store.answer(&question, 200), Duration::from_secs(now)).unwrap()
    {
        question = next;
    }
}

fn totals(snapshot: &Snapshot) -> Vec<(&str, u64, f64)> {
    snapshot.measured.iter().map(|(key, m)| (&*key.service, m.counts.total(), m.per_second)).collect()
}

#[test]
fn a_window_holds_what_came_since_the_one_before() {
    let (mut window, mut paris) = (window(), store(1));
    paris.add([(key("shop/web"), tally(&[1, 1, 1]))]);
    ask(&mut window, "gw-1", &paris, 0);
    let first = window.close(Duration::ZERO);
    assert!(first.measured.is_empty() && first.reported == 0 && first.missing.len() == 1, "{first:?}");
    paris.add([(key("shop/web"), tally(&[5; 6])), (key("shop/api"), tally(&[7; 2]))]);
    ask(&mut window, "gw-1", &paris, 2);
    let second = window.close(Duration::from_secs(2));
    assert_eq!(totals(&second), [("shop/api", 2, 1.0), ("shop/web", 6, 3.0)]);
    assert_eq!((second.reported, second.missing.len(), second.elapsed), (1, 0, Duration::from_secs(2)));
    // One answer is lost: the next brings both, over the time of both.
    paris.add([(key("shop/web"), tally(&[5; 4]))]);
    window.missing(gateway("gw-1"), NoAnswer::default());
    let third = window.close(Duration::from_secs(3));
    assert_eq!((totals(&third), third.reported, third.missing.len()), (vec![], 0, 1));
    ask(&mut window, "gw-1", &paris, 4);
    assert_eq!(totals(&window.close(Duration::from_secs(4))), [("shop/web", 4, 2.0)]);
    ask(&mut window, "gw-1", &paris, 5);
    assert!(window.close(Duration::from_secs(5)).measured.is_empty());
}

#[test]
fn who_begins_again_loses_only_what_it_had_not_told() {
    let (mut window, mut before, mut after) = (window(), store(1), store(2));
    before.add([(key("shop/web"), tally(&[1]))]);
    ask(&mut window, "gw-1", &before, 0);
    window.close(Duration::ZERO);
    after.add([(key("shop/web"), tally(&[1, 1]))]);
    ask(&mut window, "gw-1", &after, 1);
    let restarted = window.close(Duration::from_secs(1));
    assert_eq!(
        (totals(&restarted), &restarted.restarted),
        (vec![("shop/web", 2, 2.0)], &BTreeMap::from([(gateway("gw-1"), 1)]))
    );
    // The one before answers once more, as when a successor hesitates: neither is counted twice.
    before.add([(key("shop/web"), tally(&[1]))]);
    ask(&mut window, "gw-1", &before, 2);
    ask(&mut window, "gw-1", &after, 2);
    let both = window.close(Duration::from_secs(2));
    assert_eq!((both.measured[&key("shop/web")].counts.total(), both.restarted.len()), (1, 0));
}

#[test]
fn a_restart_between_two_parts_of_an_answer_loses_nothing_of_the_new_process() {
    let (mut window, mut before, mut after) = (window(), store(1), store(2));
    let names = ["shop/a", "shop/b", "shop/c"];
    before.add(names.map(|name| (key(name), tally(&[1]))));
    ask(&mut window, "gw-1", &before, 0);
    window.close(Duration::ZERO);
    before.add(names.map(|name| (key(name), tally(&[1]))));
    after.add(names.map(|name| (key(name), tally(&[1, 1]))));
    let question = window.question(&gateway("gw-1"));
    let part = before.answer(&question, 200);
    let Next::Ask(mut next) = window.take(&gateway("gw-1"), &part, Duration::from_secs(1)).unwrap() else { panic!() };
    assert!(next.first_series > 0);
    while let Next::Ask(more) =
        window.take(&gateway("gw-1"), &after.answer(&next, 200), Duration::from_secs(1)).unwrap()
    {
        next = more;
    }
    let snapshot = window.close(Duration::from_secs(1));
    assert_eq!(totals(&snapshot).iter().map(|(_, total, _)| total).sum::<u64>(), 1 + 3 * 2, "{snapshot:?}");
    assert_eq!(snapshot.reported, 1);
}

#[test]
fn a_gateway_that_makes_things_up_is_left_out_and_named() {
    let mut known = store(1);
    known.add([(key("shop/web"), tally(&[1, 1]))]);
    let good = known.answer(&LatencyQuestion::default(), usize::MAX);
    let changed = |change: fn(&mut LatencyAnswer)| {
        let mut answer = good.clone();
        change(&mut answer);
        answer
    };
    for (answer, why) in [
        (changed(|a| a.incarnation = 0), "without saying which"),
        (changed(|a| a.series[0].outcome = 99), "of a kind that this build does not know"),
        (changed(|a| a.series[0].source_cluster = "tokyo".into()), "another cluster than its own"),
        (changed(|a| a.series[0].service = "shop/\u{1b}[2J".into()), "a name that no service"),
        (changed(|a| a.series[0].service = "x".repeat(1_000)), "a name that no service"),
        (changed(|a| a.series[0].counts = vec![1, 1]), "counts less than before"),
        (changed(|a| a.series[0].counts = vec![1]), "end within a number"),
    ] {
        let mut window = window();
        ask(&mut window, "gw-1", &known, 0);
        window.close(Duration::ZERO);
        window.take(&gateway("gw-1"), &answer, Duration::from_secs(1)).unwrap_err();
        let snapshot = window.close(Duration::from_secs(1));
        assert!(snapshot.missing[&gateway("gw-1")].detail.contains(why), "{snapshot:?}");
        assert!(snapshot.measured.is_empty());
        // It begins anew.
        ask(&mut window, "gw-1", &known, 2);
        assert!(window.close(Duration::from_secs(2)).measured.is_empty());
        assert_eq!(window.buckets, 1);
    }
}

#[test]
fn what_one_look_holds_has_an_end() {
    let limits = Limits { series_max: 2, buckets_max: 4 };
    let mut window = Window::new(vec![], limits, Duration::ZERO);
    let take = |window: &mut Window, name: &str, store: &Store| {
        let question = window.question(&gateway(name));
        window.take(&gateway(name), &store.answer(&question, usize::MAX), Duration::ZERO)
    };
    let mut many = store(1);
    many.add(["a", "b", "c"].map(|name| (key(name), tally(&[1]))));
    assert_eq!(take(&mut window, "many", &many), Err(Unusable::Series { series_max: 2 }));
    let mut wide = store(2);
    wide.add([(key("a"), tally(&[1, 2, 3, 4, 5]))]);
    assert_eq!(take(&mut window, "wide", &wide), Err(Unusable::Buckets));
    assert_eq!(window.buckets, 0, "what was refused is not kept");
    let mut small = store(3);
    small.add([(key("a"), tally(&[1, 2]))]);
    assert_eq!(take(&mut window, "small", &small), Ok(Next::Done));
    // Neither asked nor missing any more: it is gone, and what was kept of it.
    window.close(Duration::ZERO);
    window.close(Duration::ZERO);
    assert_eq!((window.buckets, window.gateways.len()), (0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Record {
        gateway: usize,
        service: usize,
        micros: u64,
    },
    /// Asked, and so many parts of the answer arrive.
    Ask {
        gateway: usize,
        parts: usize,
    },
    Restart {
        gateway: usize,
    },
    Close,
}

const GATEWAYS: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..GATEWAYS, 0..4_usize, 0..100_000_u64)
            .prop_map(|(gateway, service, micros)| Step::Record { gateway, service, micros }),
        2 => (0..GATEWAYS, 0..6_usize).prop_map(|(gateway, parts)| Step::Ask { gateway, parts }),
        1 => (0..GATEWAYS).prop_map(|gateway| Step::Restart { gateway }),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is lost and whoever begins again: all windows together are what gateways told, each duration once.
    #[test]
    fn all_windows_together_are_everything_that_was_told(steps in steps()) {
        let mut window = window();
        let mut incarnation = 1;
        let mut stores: Vec<Store> = (0..GATEWAYS).map(|_| { incarnation += 1; store(incarnation) }).collect();
        // Not told yet, of the process that runs.
        let mut untold: Vec<Vec<(Key, u64)>> = vec![vec![]; GATEWAYS];
        let (mut expected, mut found) = (BTreeMap::<Key, Counts>::new(), BTreeMap::<Key, Counts>::new());
        let name = |gateway: usize| format!("gw-{gateway}");
        for (gateway, store) in stores.iter().enumerate() {
            ask(&mut window, &name(gateway), store, 0);
        }
        let mut collect = |window: &mut Window| {
            // Each is named in every window, as the one who asks does.
            for gateway in 0..GATEWAYS {
                let (cluster, name) = super::tests::gateway(&name(gateway));
                window.missing.entry((cluster, name)).or_default();
            }
            for (key, measured) in window.close(Duration::ZERO).measured {
                found.entry(key).or_default().add(&measured.counts);
            }
        };
        let end = (0..GATEWAYS).map(|gateway| Step::Ask { gateway, parts: usize::MAX });
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Record { gateway, service, micros } => {
                    let key = key(&format!("shop/{service}"));
                    stores[gateway].add([(key.clone(), tally(&[micros]))]);
                    untold[gateway].push((key, micros));
                }
                Step::Ask { gateway, parts } => {
                    let mut question = window.question(&super::tests::gateway(&name(gateway)));
                    for _ in 0..parts {
                        let part = stores[gateway].answer(&question, 200);
                        let told: Vec<Key> =
                            part.series.iter().map(|series| Key::of_wire("paris", series).unwrap().0).collect();
                        untold[gateway].retain(|(key, micros)| {
                            let is_told = told.contains(key);
                            if is_told {
                                expected.entry(key.clone()).or_default().add(&tally(&[*micros]).counted());
                            }
                            !is_told
                        });
                        let id = super::tests::gateway(&name(gateway));
                        match window.take(&id, &part, Duration::ZERO).unwrap() {
                            Next::Ask(next) => question = next,
                            Next::Done => break,
                        }
                    }
                }
                Step::Restart { gateway } => {
                    incarnation += 1;
                    stores[gateway] = store(incarnation);
                    untold[gateway].clear();
                }
                Step::Close => collect(&mut window),
            }
        }
        collect(&mut window);
        prop_assert!(untold.iter().all(Vec::is_empty));
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn connections_are_told_as_rates_and_as_what_is_open() {
    let flow_key = |service: &str| FlowKey {
        service: service.into(),
        version: "".into(),
        source: "paris".into(),
        destination: "tokyo".into(),
        reporter: Reporter::Source,
        overflow: false,
    };
    let flow = |micros: &[u64], failed, ended, sent_bytes| {
        (
            flow_key("shop/ledger"),
            Flow { connected: tally(micros).counted(), failed, ended, sent_bytes, received_bytes: 0 },
        )
    };
    let (mut window, mut paris) = (window(), store(1));
    paris.add_flows([flow(&[5, 5, 5], 1, 1, 100)]);
    ask(&mut window, "gw-1", &paris, 0);
    assert_eq!(window.close(Duration::ZERO).flows, BTreeMap::new(), "where figures begin is no figure");
    paris.add_flows([flow(&[700, 900], 2, 0, 4_000)]);
    // An old build has requests only.
    let mut old = store(2);
    old.add([(key("shop/web"), tally(&[1]))]);
    let ask_old = |window: &mut Window, now| {
        let question = window.question(&gateway("gw-2"));
        let told = LatencyAnswer { tells_flows: false, ..old.answer(&question, usize::MAX) };
        assert_eq!(window.take(&gateway("gw-2"), &told, Duration::from_secs(now)), Ok(Next::Done));
    };
    ask_old(&mut window, 0);
    ask(&mut window, "gw-1", &paris, 2);
    let second = window.close(Duration::from_secs(2));
    let seen = &second.flows[&flow_key("shop/ledger")];
    assert_eq!((seen.per_second, seen.sent_per_second, seen.received_per_second), (2.0, 2_000.0, 0.0));
    assert_eq!((seen.flow.connected.total(), seen.flow.failed, seen.open), (2, 2, 4));
    assert!(second.without_flows.is_empty(), "what is not in it at all is missing, not without them");
    // Nothing happened, and four are still open.
    ask(&mut window, "gw-1", &paris, 3);
    ask_old(&mut window, 3);
    let third = window.close(Duration::from_secs(3));
    let seen = &third.flows[&flow_key("shop/ledger")];
    assert_eq!((seen.per_second, seen.flow.is_empty(), seen.open), (0.0, true, 4));
    assert_eq!(third.without_flows, [gateway("gw-2")].into());
    // Who is not heard has nothing open that is known.
    window.missing(gateway("gw-1"), NoAnswer::default());
    ask_old(&mut window, 4);
    assert!(window.close(Duration::from_secs(4)).flows.is_empty());
}
