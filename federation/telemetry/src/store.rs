//! What a gateway has counted since it began, and its answers.

use std::collections::HashMap;

use archipelago_proto::v1::{LatencyAnswer, LatencyQuestion};

use crate::counts::{Counts, Tally};
use crate::key::Key;

/// All series of a gateway. None is ever forgotten: what was counted stays what others subtract from.
#[derive(Debug)]
pub struct Store {
    incarnation: u64,
    /// Moves with every [`Self::add`].
    now: u64,
    series: Vec<Series>,
    places: HashMap<Key, usize>,
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
    key: Key,
    counts: Counts,
    changed: u64,
}

impl Store {
    /// An empty one. `incarnation` tells it from those of other processes of this gateway; not 0.
    #[must_use]
    pub fn new(incarnation: u64, limits: Limits) -> Self {
        Self { incarnation, now: 0, series: Vec::new(), places: HashMap::new(), buckets: 0, limits }
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
                self.series.push(Series { key: key.clone(), counts: Counts::default(), changed: 0 });
                self.series.len() - 1
            });
            let Some(series) = self.series.get_mut(place) else { continue };
            self.buckets -= series.counts.buckets();
            series.counts.add(&counts);
            self.buckets += series.counts.buckets();
            series.changed = self.now;
        }
    }

    /// Answers as much as fits `bytes_max`; the rest is asked for by `next_series`.
    #[must_use]
    pub fn answer(&self, question: &LatencyQuestion, bytes_max: usize) -> LatencyAnswer {
        let since = if question.incarnation == self.incarnation { question.since } else { 0 };
        let is_asked = |key: &Key| {
            key.overflow || question.services.is_empty() || question.services.iter().any(|service| key.is_of(service))
        };
        let mut answer = LatencyAnswer { incarnation: self.incarnation, as_of: self.now, ..LatencyAnswer::default() };
        let mut bytes = 0;
        let first = usize::try_from(question.first_series).unwrap_or(usize::MAX);
        for (place, series) in self.series.iter().enumerate().skip(first) {
            if series.changed <= since || !is_asked(&series.key) {
                continue;
            }
            let told = series.key.to_wire(&series.counts);
            bytes += told.counts.len() + told.service.len() + told.version.len() + FRAMING_BYTES;
            // One at least, or nobody gets any further.
            if bytes > bytes_max && !answer.series.is_empty() {
                answer.next_series = u32::try_from(place).unwrap_or(u32::MAX);
                break;
            }
            answer.series.push(told);
        }
        answer
    }

    /// Series, and buckets that are not empty.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.series.len(), self.buckets)
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
}
