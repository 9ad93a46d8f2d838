//! What a gateway has counted since it began, and its answers.

use std::collections::HashMap;

use archipelago_proto::v1::{FlowSeries, LatencyAnswer, LatencyQuestion, LatencySeries};

use crate::counts::{Counts, Tally};
use crate::flow::{Flow, FlowKey};
use crate::key::Key;

/// All series of a gateway. None is ever forgotten: what was counted stays what others subtract from.
#[derive(Debug)]
pub struct Store {
    incarnation: u64,
    /// Moves with every [`Self::add`].
    now: u64,
    series: Vec<Series>,
    places: HashMap<Key, usize>,
    flow_places: HashMap<FlowKey, usize>,
    /// Not empty, of all series.
    buckets: usize,
    limits: Limits,
}

/// What a store may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Series; what has none is counted in one for all.
    pub series_max: usize,
    /// Buckets that are not empty, eight bytes each, of all series.
    pub buckets_max: usize,
}

#[derive(Debug)]
struct Series {
    of: Of,
    changed: u64,
}

/// Requests, or TCP connections.
#[derive(Debug)]
enum Of {
    Requests(Key, Counts),
    Connections(Box<(FlowKey, Flow)>),
}

impl Store {
    /// An empty one. `incarnation` tells it from those of other processes of this gateway; not 0.
    #[must_use]
    pub fn new(incarnation: u64, limits: Limits) -> Self {
        Self {
            incarnation,
            now: 0,
            series: Vec::new(),
            places: HashMap::new(),
            flow_places: HashMap::new(),
            buckets: 0,
            limits,
        }
    }

    /// Adds what workers counted.
    pub fn add(&mut self, tallies: impl IntoIterator<Item = (Key, Tally)>) {
        self.now += 1;
        for (key, tally) in tallies {
            let counts = tally.counted();
            let full = self.buckets + counts.buckets() > self.limits.buckets_max;
            let key = match self.places.get(&key) {
                // What it has already takes no room.
                _ if full => key.overflowing(),
                None if self.series.len() >= self.limits.series_max => key.overflowing(),
                _ => key,
            };
            let place = *self.places.entry(key).or_insert_with_key(|key| {
                self.series.push(Series { of: Of::Requests(key.clone(), Counts::default()), changed: 0 });
                self.series.len() - 1
            });
            let Some(Series { of: Of::Requests(_, known), changed }) = self.series.get_mut(place) else { continue };
            self.buckets -= known.buckets();
            known.add(&counts);
            self.buckets += known.buckets();
            *changed = self.now;
        }
    }

    /// Adds what workers counted of TCP connections.
    pub fn add_flows(&mut self, flows: impl IntoIterator<Item = (FlowKey, Flow)>) {
        self.now += 1;
        for (key, flow) in flows {
            // Their ends are to find the series of their beginnings: what is known goes on, however full it is.
            let is_known = self.flow_places.contains_key(&key);
            let has_room = self.series.len() < self.limits.series_max
                && self.buckets + flow.connected.buckets() <= self.limits.buckets_max;
            let key = if is_known || has_room { key } else { key.overflowing() };
            let place = *self.flow_places.entry(key).or_insert_with_key(|key| {
                self.series.push(Series { of: Of::Connections(Box::new((key.clone(), Flow::default()))), changed: 0 });
                self.series.len() - 1
            });
            let Some(Series { of: Of::Connections(known), changed }) = self.series.get_mut(place) else { continue };
            let (_, known) = &mut **known;
            self.buckets -= known.connected.buckets();
            known.add(&flow);
            self.buckets += known.connected.buckets();
            *changed = self.now;
        }
    }

    /// Answers as much as fits `bytes_max`; the rest is asked for by `next_series`.
    #[must_use]
    pub fn answer(&self, question: &LatencyQuestion, bytes_max: usize) -> LatencyAnswer {
        let since = if question.incarnation == self.incarnation { question.since } else { 0 };
        let services = &question.services;
        let is_asked = |of: &Of| match of {
            Of::Requests(key, _) => key.overflow || services.is_empty() || services.iter().any(|name| key.is_of(name)),
            Of::Connections(flow) => {
                flow.0.overflow || services.is_empty() || services.iter().any(|name| flow.0.is_of(name))
            }
        };
        let mut answer = LatencyAnswer {
            incarnation: self.incarnation,
            as_of: self.now,
            tells_flows: true,
            ..LatencyAnswer::default()
        };
        let mut bytes = 0;
        let first = usize::try_from(question.first_series).unwrap_or(usize::MAX);
        for (place, series) in self.series.iter().enumerate().skip(first) {
            if series.changed <= since || !is_asked(&series.of) {
                continue;
            }
            let told = series.of.told();
            bytes += told.bytes();
            // One at least, or nobody gets any further.
            if bytes > bytes_max && !(answer.series.is_empty() && answer.flows.is_empty()) {
                answer.next_series = u32::try_from(place).unwrap_or(u32::MAX);
                break;
            }
            match told {
                Told::Requests(told) => answer.series.push(told),
                Told::Connections(told) => answer.flows.push(told),
            }
        }
        answer
    }

    /// Series, and buckets that are not empty.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.series.len(), self.buckets)
    }
}

/// A series as it is told.
enum Told {
    Requests(LatencySeries),
    Connections(FlowSeries),
}

impl Of {
    fn told(&self) -> Told {
        match self {
            Self::Requests(key, counts) => Told::Requests(key.to_wire(counts)),
            Self::Connections(flow) => Told::Connections(flow.0.to_wire(&flow.1)),
        }
    }
}

impl Told {
    fn bytes(&self) -> usize {
        FRAMING_BYTES
            + match self {
                Self::Requests(told) => told.counts.len() + told.service.len() + told.version.len(),
                Self::Connections(told) => {
                    told.connected.len() + told.service.len() + told.version.len() + NUMBERS_BYTES
                }
            }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { series_max: SERIES_MAX, buckets_max: BUCKETS_MAX }
    }
}

/// Of 2,000 services ten each: versions, clusters, outcomes.
pub const SERIES_MAX: usize = 20_000;
/// 64 MiB.
pub const BUCKETS_MAX: usize = 8 * 1024 * 1024;
/// Two names of clusters, and what stands before each field.
const FRAMING_BYTES: usize = 2 * 63 + 40;
/// Four numbers of connections.
const NUMBERS_BYTES: usize = 4 * 11;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Outcome, Reporter};

    fn key(service: &str) -> Key {
        Key {
            service: service.into(),
            version: "v1".into(),
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

    fn told(answer: &LatencyAnswer) -> Vec<(String, u64)> {
        let read = |series| Key::of_wire("paris", series).unwrap();
        answer.series.iter().map(read).map(|(key, counts)| (key.service.to_string(), counts.total())).collect()
    }

    #[test]
    fn it_tells_what_changed_since_and_everything_to_who_knows_another_process() {
        let mut store = Store::new(7, Limits::default());
        store.add([(key("shop/web"), tally(&[1, 2])), (key("shop/api"), tally(&[3]))]);
        let first = store.answer(&LatencyQuestion::default(), usize::MAX);
        assert_eq!((first.incarnation, first.next_series), (7, 0));
        assert_eq!(told(&first), [("shop/web".into(), 2), ("shop/api".into(), 1)]);
        store.add([(key("shop/api"), tally(&[4]))]);
        let since = |incarnation| LatencyQuestion { incarnation, since: first.as_of, ..LatencyQuestion::default() };
        let second = store.answer(&since(7), usize::MAX);
        assert_eq!(told(&second), [("shop/api".into(), 2)], "what it comes to, not what came");
        assert_eq!(told(&store.answer(&since(8), usize::MAX)).len(), 2);
        let nothing = LatencyQuestion { since: second.as_of, ..since(7) };
        assert!(store.answer(&nothing, usize::MAX).series.is_empty());
    }

    #[test]
    fn it_answers_in_parts_and_of_what_was_asked() {
        let mut store = Store::new(7, Limits::default());
        let services = ["shop/web", "shop/web:8081", "shop/website", "shop/api"];
        store.add(services.map(|service| (key(service), tally(&[1]))));
        let of = |services: &[&str], first_series| LatencyQuestion {
            services: services.iter().map(ToString::to_string).collect(),
            first_series,
            ..LatencyQuestion::default()
        };
        let web = store.answer(&of(&["shop/web"], 0), usize::MAX);
        assert_eq!(told(&web), [("shop/web".into(), 1), ("shop/web:8081".into(), 1)]);
        let (mut parts, mut first) = (Vec::new(), 0);
        loop {
            let part = store.answer(&of(&[], first), 1);
            assert_eq!(part.series.len(), 1);
            parts.extend(told(&part));
            first = part.next_series;
            if first == 0 {
                break;
            }
        }
        assert_eq!(parts, services.map(|service| (service.to_owned(), 1)));
    }

    #[test]
    fn what_finds_no_room_is_counted_all_the_same() {
        let mut store = Store::new(7, Limits { series_max: 2, buckets_max: 5 });
        let names: Vec<String> = (0..100).map(|n| format!("shop/{n}")).collect();
        store.add(names.iter().map(|name| (key(name), tally(&[1]))));
        let all = store.answer(&LatencyQuestion::default(), usize::MAX);
        assert_eq!(told(&all), [("shop/0".into(), 1), ("shop/1".into(), 1), (String::new(), 98)]);
        assert!(all.series[2].overflow);
        // Nor do buckets: those of a known series, too.
        store.add([(key("shop/0"), tally(&[10, 20, 30])), (key("shop/0"), tally(&[1]))]);
        let all = store.answer(&LatencyQuestion::default(), usize::MAX);
        assert_eq!(all.series.iter().map(|s| Key::of_wire("paris", s).unwrap().1.total()).sum::<u64>(), 104);
        assert_eq!(store.size().0, 3);
    }

    #[test]
    fn connections_are_told_among_the_same_parts() {
        let mut store = Store::new(7, Limits { series_max: 3, buckets_max: 100 });
        let flow_key = |service: &str| FlowKey {
            service: service.into(),
            version: "".into(),
            source: "paris".into(),
            destination: "tokyo".into(),
            reporter: Reporter::Source,
            overflow: false,
        };
        let opened = || Flow { connected: tally(&[7]).counted(), sent_bytes: 5, ..Flow::default() };
        store.add([(key("shop/web"), tally(&[1]))]);
        store.add_flows(["shop/ledger", "shop/orders", "shop/third"].map(|service| (flow_key(service), opened())));
        let mut parts = Vec::new();
        let mut first_series = 0;
        loop {
            let part = store.answer(&LatencyQuestion { first_series, ..LatencyQuestion::default() }, 1);
            assert!(part.tells_flows && part.series.len() + part.flows.len() == 1);
            parts.extend(part.series.iter().map(|series| series.service.clone()));
            parts.extend(part.flows.iter().map(|flow| flow.service.clone()));
            first_series = part.next_series;
            if first_series == 0 {
                break;
            }
        }
        assert_eq!(parts, ["shop/web", "shop/ledger", "shop/orders", ""], "there is room for three, and one for all");
        let asked = LatencyQuestion { services: vec!["shop/ledger".into()], ..LatencyQuestion::default() };
        let all = store.answer(&asked, usize::MAX);
        assert_eq!(all.flows.iter().map(|flow| &*flow.service).collect::<Vec<_>>(), ["shop/ledger", ""]);
        // What ends later is found where it began.
        store.add_flows([(flow_key("shop/ledger"), Flow { ended: 1, received_bytes: 9, ..Flow::default() })]);
        let since = LatencyQuestion { incarnation: 7, since: all.as_of, ..LatencyQuestion::default() };
        let changed = store.answer(&since, usize::MAX);
        let [flow] = &changed.flows[..] else { panic!("{changed:?}") };
        assert_eq!((flow.ended, flow.sent_bytes, flow.received_bytes), (1, 5, 9), "what it comes to");
    }
}
