//! What `meshctl slow` finds out: a pure function of what gateways have kept, so that each verdict has its test.
//!
//! Gateways keep the slowest requests of each minute and a uniform sample. Together they stand for all requests: the slowest each for
//! itself, the sampled ones for what is left of their minute. The slow requests are held against that: what each spent more than
//! requests usually do, part by part, and where. Is none slower than the others, it is held against nothing: then the question is
//! what all of them wait for.

mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use archipelago_proto::v1::{SlowAnswer, SlowHops, SlowRequest};
pub(crate) use archipelago_telemetry::{Hop, Place};

pub(crate) use self::view::SlowView;

/// What gateways answered.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// By "cluster/name" of the gateway.
    pub(crate) answers: Vec<(String, SlowAnswer)>,
    /// Gateways without an answer, and why.
    pub(crate) missing: Vec<(String, String)>,
}

/// A request and how many it stands for.
#[derive(Debug)]
pub(crate) struct Weighed {
    /// "cluster/name" of the gateway at which it entered.
    pub(crate) from: String,
    pub(crate) request: SlowRequest,
    weight: f64,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Findings {
    /// Requests that ended, of which the others are some.
    pub(crate) seen: u64,
    /// Half of all requests took no longer, in microseconds.
    pub(crate) median: u64,
    /// And all but one of a hundred.
    pub(crate) p99: u64,
    /// The slow ones that were looked at, slowest first.
    pub(crate) slow: Vec<Weighed>,
    /// Each part, in the order in which a request meets them.
    pub(crate) parts: Vec<Part>,
    pub(crate) verdict: Verdict,
    /// Gateways that were asked and answered.
    pub(crate) gateways: usize,
    pub(crate) missing: Vec<(String, String)>,
    /// "cluster/name" of gateways that do not say their part of requests that they served.
    pub(crate) silent: Vec<String>,
    /// Workers that did not answer their gateway.
    pub(crate) silent_workers: u32,
}

/// One part of the time of requests, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) hop: Hop,
    /// Half of the slow ones spent no more on it.
    pub(crate) slow: u64,
    /// Half of all.
    pub(crate) usual: u64,
}

/// Who it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nobody asked for the service.
    NoRequests,
    /// No part and no place has most of the time.
    Nothing,
    /// One has.
    Guilty(Guilty),
}

/// The part and the place that have most of the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guilty {
    pub(crate) hop: Hop,
    pub(crate) place: Place,
    /// Slow requests of which that is so.
    pub(crate) requests: usize,
    /// What half of them spent on it at least, in microseconds.
    pub(crate) time: u64,
    /// What half of all requests spent on it at most.
    pub(crate) usual: u64,
    /// The slow ones are no slower than others: all of them spend their time there.
    pub(crate) is_usual: bool,
}

/// Looks through what gateways have kept. `p99`: the slow ones are the slowest hundredth, and not the hundred slowest.
pub(crate) fn analyse(facts: Facts, p99: bool) -> Findings {
    let Facts { answers, missing } = facts;
    let (gateways, silent_workers) = (answers.len(), answers.iter().map(|(_, answer)| answer.silent_workers).sum());
    let (seen, mut all) = weighed(answers);
    all.sort_by_key(|one| std::cmp::Reverse(one.request.total_us));
    let total = |one: &Weighed| one.request.total_us;
    let (median, tail) = (quantile(&all, 0.5, total), quantile(&all, 0.99, total));
    let usual = Hop::ALL.map(|hop| quantile(&all, 0.5, |one| hop.of(&hops(one))));
    let mut silent: Vec<String> =
        all.iter().filter(|one| one.request.far_silent).map(|one| one.request.gateway.clone()).collect();
    silent.sort();
    silent.dedup();
    let count = match usize::try_from(seen / 10) {
        _ if p99 => all.iter().take_while(|one| total(one) >= tail).count(),
        // Of few requests the slowest hundred would be all of them.
        Ok(tenth) => tenth.min(SLOW_MAX),
        Err(_) => SLOW_MAX,
    };
    all.truncate(count.max(1));
    let slow_median = middle(all.iter().map(total).collect());
    let is_usual = slow_median < median.saturating_mul(2) || slow_median.saturating_sub(median) < APART_MIN;
    let parts = Hop::ALL.iter().zip(usual).map(|(hop, usual)| {
        let slow = middle(all.iter().map(|one| hop.of(&hops(one))).collect());
        Part { hop: *hop, slow, usual }
    });
    let parts = parts.collect();
    let verdict = verdict(&all, &usual, is_usual);
    Findings { seen, median, p99: tail, slow: all, parts, verdict, gateways, missing, silent, silent_workers }
}

/// All requests of all answers, each with how many it stands for.
fn weighed(answers: Vec<(String, SlowAnswer)>) -> (u64, Vec<Weighed>) {
    let (mut seen, mut all) = (0_u64, Vec::new());
    for (from, answer) in answers {
        for minute in answer.minutes {
            seen = seen.saturating_add(minute.seen);
            let slowest = minute.requests.iter().filter(|request| request.slowest).count();
            let sampled = minute.requests.iter().filter(|request| request.sampled && !request.slowest).count();
            let left = minute.seen.saturating_sub(slowest as u64);
            #[expect(clippy::cast_precision_loss, reason = "counts of requests within a minute")]
            let each = if sampled == 0 { 0.0 } else { left as f64 / sampled as f64 };
            let kept = minute.requests.into_iter().filter(|request| request.slowest || request.sampled);
            all.extend(kept.map(|request| {
                let weight = if request.slowest { 1.0 } else { each };
                Weighed { from: from.clone(), weight, request }
            }));
        }
    }
    (seen, all)
}

fn verdict(slow: &[Weighed], usual: &[u64; Hop::ALL.len()], is_usual: bool) -> Verdict {
    if slow.is_empty() {
        return Verdict::NoRequests;
    }
    // What each spent more than requests usually do, and on what most.
    let mut blamed: BTreeMap<Hop, Vec<&Weighed>> = BTreeMap::new();
    for one in slow {
        let hops = hops(one);
        let excess = |(hop, usual): (&Hop, &u64)| {
            let spent = hop.of(&hops);
            (if is_usual { spent } else { spent.saturating_sub(*usual) }, *hop)
        };
        let excesses: Vec<(u64, Hop)> = Hop::ALL.iter().zip(usual).map(excess).collect();
        let all: u64 = excesses.iter().map(|(excess, _)| excess).sum();
        if let Some((most, hop)) = excesses.into_iter().max_by_key(|(excess, _)| *excess)
            && most.saturating_mul(2) > all
        {
            blamed.entry(hop).or_default().push(one);
        }
    }
    let Some((hop, blamed)) = blamed.into_iter().max_by_key(|(_, blamed)| blamed.len()) else {
        return Verdict::Nothing;
    };
    let time = middle(blamed.iter().map(|one| hop.of(&hops(one))).collect());
    let least = if is_usual { USUAL_MIN } else { APART_MIN };
    if blamed.len() * 2 <= slow.len() || time < least {
        return Verdict::Nothing;
    }
    let place = narrowest(hop, &blamed);
    let usual = Hop::ALL.iter().zip(usual).find(|(other, _)| **other == hop).map_or(0, |(_, usual)| *usual);
    Verdict::Guilty(Guilty { hop, place, requests: blamed.len(), time, usual, is_usual })
}

/// The closest place at which most of them were.
fn narrowest(hop: Hop, blamed: &[&Weighed]) -> Place {
    let depth = blamed.iter().map(|one| hop.places(&one.from, &one.request).len()).max().unwrap_or(0);
    for level in 0..depth {
        let mut counts: BTreeMap<Place, usize> = BTreeMap::new();
        for one in blamed {
            if let Some(place) = hop.places(&one.from, &one.request).into_iter().nth(level) {
                *counts.entry(place).or_default() += 1;
            }
        }
        if let Some((place, count)) = counts.into_iter().max_by_key(|(_, count)| *count)
            && count * 5 >= blamed.len() * 4
        {
            return place;
        }
    }
    Place::default()
}

fn hops(one: &Weighed) -> SlowHops {
    one.request.hops.unwrap_or_default()
}

/// The value below which `share` of all requests are.
fn quantile(all: &[Weighed], share: f64, of: impl Fn(&Weighed) -> u64) -> u64 {
    let mut values: Vec<(u64, f64)> = all.iter().map(|one| (of(one), one.weight)).collect();
    values.sort_unstable_by_key(|(value, _)| *value);
    let wanted = values.iter().map(|(_, weight)| weight).sum::<f64>() * share;
    let mut sum = 0.0;
    let reached = values.iter().find(|(_, weight)| {
        sum += weight;
        sum >= wanted
    });
    reached.or(values.last()).map_or(0, |(value, _)| *value)
}

fn middle(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// So many of the slowest are looked at.
const SLOW_MAX: usize = 100;
/// In microseconds: less than this above the others is not slow.
const APART_MIN: u64 = 1_000;
/// And where all are alike, a part of less than this is not worth a word.
const USUAL_MIN: u64 = 5_000;
/// As far back as gateways keep anything.
pub(crate) const KEPT: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests;
