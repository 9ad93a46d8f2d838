//! Which backend of a rule takes a request: explicit weights, else the tiers in order, over what can serve now.
//!
//! A backend is a cluster and, if the split names one, a version. Its [`Availability`] says whether it may serve. What is held
//! in [`Availability::Reserve`] (drained, avoided, waiting to fail back, suspect) serves only when nothing else can: a drained
//! cluster beats a failed request.

use super::hash::{self, Key};
use crate::config::{Backend, Rule};

/// Whether a backend may take requests now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Availability {
    /// Yes, with this part of its weight: below 1 while it ramps up after a failure.
    Serving {
        /// In `(0, 1]`.
        factor: f64,
    },
    /// Only when nothing else can.
    Reserve(&'static str),
    /// It cannot.
    Out(&'static str),
}

/// Where a choice came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The explicit weights of the rule.
    Weights,
    /// Tier `n` of the rule, counted from 0.
    Tier(usize),
}

/// A backend that was chosen.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'a> {
    /// The backend.
    pub backend: &'a Backend,
    /// Where it stood in the rule.
    pub group: Group,
}

/// Takes the reasons of decisions; [`NoTrace`] costs nothing on the request path.
pub trait Trace {
    /// Notes one line.
    fn note(&mut self, line: impl FnOnce() -> String);
}

/// Drops every reason unmade.
#[derive(Debug, Clone, Copy)]
pub struct NoTrace;

impl Trace for NoTrace {
    fn note(&mut self, _: impl FnOnce() -> String) {}
}

impl Trace for Vec<String> {
    fn note(&mut self, line: impl FnOnce() -> String) {
        self.push(line());
    }
}

/// Chooses for one request; `None` when no backend of the rule can serve, not even from reserve.
///
/// `names` turns a cluster index into its name for the reasons.
pub fn choose<'a>(
    rule: &'a Rule,
    key: Key,
    availability: impl Fn(&Backend) -> Availability,
    names: impl Fn(usize) -> String,
    why: &mut impl Trace,
) -> Option<Chosen<'a>> {
    let groups = || {
        let weights = (!rule.backends.is_empty()).then_some((Group::Weights, rule.backends.as_slice()));
        weights.into_iter().chain(rule.tiers.iter().enumerate().map(|(n, tier)| (Group::Tier(n), tier.as_slice())))
    };

    let mut spilled = None;
    for (group, backends) in groups() {
        for backend in backends {
            match availability(backend) {
                Availability::Serving { factor } if factor < 1.0 => why.note(|| {
                    format!(
                        "{}: {} is coming back, at {:.0} % of its weight",
                        name(group),
                        label(backend, &names),
                        factor * 100.0
                    )
                }),
                Availability::Serving { .. } => {}
                Availability::Reserve(reason) => {
                    why.note(|| format!("{}: {} is kept in reserve: {reason}", name(group), label(backend, &names)))
                }
                Availability::Out(reason) => {
                    why.note(|| format!("{}: {} cannot serve: {reason}", name(group), label(backend, &names)))
                }
            }
        }
        let weight = |backend: &Backend| match availability(backend) {
            Availability::Serving { factor } => f64::from(backend.weight) * factor,
            _ => 0.0,
        };
        let Some(index) = hash::pick(key, backends.iter().map(|b| (b.id, weight(b)))) else { continue };
        let Some(backend) = backends.get(index) else { continue };
        let chosen = Chosen { backend, group };
        // Weights rescale among themselves; a tier that is only ramping up leaves the rest to the next one.
        if let Group::Tier(n) = group {
            let factor = backends
                .iter()
                .map(|b| if let Availability::Serving { factor } = availability(b) { factor } else { 0.0 })
                .fold(0.0, f64::max);
            if factor < 1.0 && key.uniform(n as u64 + 1) >= factor {
                why.note(|| format!("{}: this request is not in the returning share, next tier", name(group)));
                spilled = spilled.or(Some(chosen));
                continue;
            }
        }
        why.note(|| {
            format!("{}: {} chosen out of {}", name(group), label(backend, &names), share(backends, backend, weight))
        });
        return Some(chosen);
    }
    if let Some(chosen) = spilled {
        why.note(|| {
            format!("{}: {} chosen, no later tier can serve", name(chosen.group), label(chosen.backend, &names))
        });
        return Some(chosen);
    }
    for (group, backends) in groups() {
        let weight = |backend: &Backend| {
            if matches!(availability(backend), Availability::Reserve(_)) { f64::from(backend.weight) } else { 0.0 }
        };
        if let Some(backend) =
            hash::pick(key, backends.iter().map(|b| (b.id, weight(b)))).and_then(|index| backends.get(index))
        {
            why.note(|| {
                format!("{}: {} chosen from reserve, nothing else can serve", name(group), label(backend, &names))
            });
            return Some(Chosen { backend, group });
        }
    }
    None
}

fn share(backends: &[Backend], chosen: &Backend, weight: impl Fn(&Backend) -> f64) -> String {
    let total: f64 = backends.iter().map(&weight).sum();
    format!("{} ({:.0} % of the weight that can serve)", backends.len(), 100.0 * weight(chosen) / total)
}

fn label(backend: &Backend, names: &impl Fn(usize) -> String) -> String {
    match &backend.version {
        Some(version) => format!("{}/{version}", names(backend.cluster)),
        None => names(backend.cluster),
    }
}

fn name(group: Group) -> String {
    match group {
        Group::Weights => "weights".to_owned(),
        Group::Tier(n) => format!("tier {}", n + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash::{Draw, Sequence};
    use super::*;
    use crate::route::Matcher;

    const UP: Availability = Availability::Serving { factor: 1.0 };

    fn backend(cluster: usize, weight: u32) -> Backend {
        Backend { cluster, version: None, weight, id: hash::choice_id(&cluster.to_string(), None) }
    }

    fn rule(backends: &[(usize, u32)], tiers: &[&[(usize, u32)]]) -> Rule {
        let make = |list: &[(usize, u32)]| list.iter().map(|(c, w)| backend(*c, *w)).collect::<Vec<_>>();
        Rule {
            name: "backends".into(),
            matcher: Matcher::default(),
            backends: make(backends),
            tiers: tiers.iter().map(|t| make(t)).collect(),
        }
    }

    fn run(rule: &Rule, availabilities: &[Availability], n: u32) -> Vec<u32> {
        let mut counts = vec![0; availabilities.len()];
        let mut sequence = Sequence::new(99);
        for _ in 0..n {
            let chosen = choose(
                rule,
                Key::Fresh(sequence.next_draw()),
                |b| availabilities[b.cluster],
                |i| i.to_string(),
                &mut NoTrace,
            );
            if let Some(chosen) = chosen {
                counts[chosen.backend.cluster] += 1;
            }
        }
        counts
    }

    #[test]
    fn golden_table() {
        let out = Availability::Out("no ready endpoint");
        let held = Availability::Reserve("drained");
        let split = rule(&[(0, 90), (1, 10)], &[&[(0, 1)], &[(1, 1)], &[(2, 1)]]);
        let tiers = rule(&[], &[&[(0, 1)], &[(1, 1), (2, 1)]]);
        let cases: &[(&str, &Rule, [Availability; 3], [u32; 3])] = &[
            ("weights as written", &split, [UP, UP, UP], [900, 100, 0]),
            ("weights rescale among what is left", &split, [UP, out, UP], [1000, 0, 0]),
            ("no weighted backend: tiers", &split, [out, out, UP], [0, 0, 1000]),
            ("a drained cluster gives way", &split, [held, UP, UP], [0, 1000, 0]),
            ("a drained cluster beats a failure", &split, [held, out, out], [1000, 0, 0]),
            ("nothing at all", &split, [out, out, out], [0, 0, 0]),
            ("first tier takes all", &tiers, [UP, UP, UP], [1000, 0, 0]),
            ("second tier shares", &tiers, [out, UP, UP], [0, 500, 500]),
            ("reserve comes after every tier", &tiers, [held, out, UP], [0, 0, 1000]),
        ];
        for (name, rule, availabilities, expected) in cases {
            let counts = run(rule, availabilities, 1000);
            for (got, want) in counts.iter().zip(expected) {
                assert!(got.abs_diff(*want) <= 3, "{name}: {counts:?}, expected {expected:?}");
            }
        }
    }

    #[test]
    fn a_returning_tier_takes_its_share_and_leaves_the_rest_below() {
        let tiers = rule(&[], &[&[(0, 1)], &[(1, 1)]]);
        let counts = run(&tiers, &[Availability::Serving { factor: 0.25 }, UP], 10_000);
        assert!((2_300..=2_700).contains(&counts[0]), "{counts:?}");
        assert_eq!(counts[0] + counts[1], 10_000);
        // With nothing below, the returning tier takes everything.
        let counts = run(&tiers, &[Availability::Serving { factor: 0.25 }, Availability::Out("down")], 100);
        assert_eq!(counts, [100, 0]);
    }

    #[test]
    fn a_returning_weight_rescales() {
        let split = rule(&[(0, 50), (1, 50)], &[]);
        let counts = run(&split, &[Availability::Serving { factor: 0.5 }, UP], 9_000);
        assert!(counts[0].abs_diff(3_000) < 20, "{counts:?}");
    }

    #[test]
    fn reasons_name_every_step() {
        let split = rule(&[(0, 90), (1, 10)], &[]);
        let mut why = Vec::new();
        let availabilities = [Availability::Out("no ready endpoint"), UP];
        let names = ["paris", "tokyo"];
        choose(&split, Key::Fresh(Draw(1)), |b| availabilities[b.cluster], |i| names[i].to_owned(), &mut why).unwrap();
        assert_eq!(
            why,
            [
                "weights: paris cannot serve: no ready endpoint",
                "weights: tokyo chosen out of 2 (100 % of the weight that can serve)"
            ]
        );
    }
}
