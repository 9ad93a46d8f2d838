//! The two ways to draw one of several weighted choices.
//!
//! *Keyed* (sticky users): weighted rendezvous hashing, `argmax w / -ln(u)` with `u` uniform from `hash(key, choice)`.
//! Raising one weight moves keys only towards that choice, and exactly the share that must move. Every gateway computes
//! the same answer, so the hash is fixed for good (golden test below).
//!
//! *Drawn* (everybody else): a golden-ratio sequence over the unit interval, cut by the weights. It is as unbiased as a
//! random number and converges like `log n / n` instead of `1 / sqrt n`, so a split is visible in few requests.

use archipelago_base::random::{GOLDEN_RATIO, SplitMix64};

/// A position in the unit interval, as a 64-bit fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw(pub u64);

/// What decides among weighted choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The hash of a sticky key: the same choice while the weights allow it.
    Sticky(u64),
    /// A fresh position: any choice, by weight.
    Fresh(Draw),
}

impl Key {
    /// A uniform value in `[0, 1)` tied to this key and to `salt`, independent of the choice itself.
    pub fn uniform(self, salt: u64) -> f64 {
        match self {
            Self::Sticky(key) | Self::Fresh(Draw(key)) => unit(mix(key ^ mix(salt))),
        }
    }
}

/// Additive golden-ratio sequence; the phase is random per owner, so that workers do not march in step.
#[derive(Debug, Clone, Copy)]
pub struct Sequence(u64);

impl Sequence {
    /// A sequence that starts at `phase`.
    pub fn new(phase: u64) -> Self {
        Self(phase)
    }

    /// The next position.
    pub fn next_draw(&mut self) -> Draw {
        self.0 = self.0.wrapping_add(GOLDEN_RATIO);
        Draw(self.0)
    }
}

/// Hash of a sticky key value; `service` keeps the same user independent between services.
pub fn sticky_key(service: &str, value: &[u8]) -> u64 {
    mix(fnv1a(service.as_bytes()).rotate_left(32) ^ fnv1a(value))
}

/// Identity of a choice in the rendezvous: a cluster and, if the split names one, a version.
pub fn choice_id(cluster: &str, version: Option<&str>) -> u64 {
    mix(fnv1a(cluster.as_bytes()) ^ version.map_or(0, |v| mix(fnv1a(v.as_bytes()))))
}

/// Picks among `(choice_id, weight)`; `None` when no weight is positive. Weights are relative, finite and not negative.
pub fn pick(key: Key, choices: impl Iterator<Item = (u64, f64)> + Clone) -> Option<usize> {
    match key {
        Key::Sticky(key) => pick_keyed(key, choices),
        Key::Fresh(draw) => pick_drawn(draw, choices),
    }
}

fn pick_keyed(key: u64, choices: impl Iterator<Item = (u64, f64)>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, (id, weight)) in choices.enumerate() {
        if weight <= 0.0 {
            continue;
        }
        // (0, 1): the half step keeps ln away from zero.
        let u = unit(mix(key ^ id)) + HALF_STEP;
        let score = weight / -u.ln();
        if best.is_none_or(|(_, top)| score > top) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

fn pick_drawn(draw: Draw, choices: impl Iterator<Item = (u64, f64)> + Clone) -> Option<usize> {
    let total: f64 = choices.clone().map(|(_, weight)| weight.max(0.0)).sum();
    if total <= 0.0 {
        return None;
    }
    let mut left = unit(draw.0) * total;
    let mut last = None;
    for (index, (_, weight)) in choices.enumerate() {
        if weight <= 0.0 {
            continue;
        }
        last = Some(index);
        if left < weight {
            break;
        }
        left -= weight;
    }
    last
}

/// FNV-1a, 64 bits.
/// FNV-1a, 64 bits.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// One step of SplitMix64 from `state`: every input bit reaches every output bit, and 0 is no fixed point.
pub fn mix(state: u64) -> u64 {
    SplitMix64::new(state).next_u64()
}

/// The upper 53 bits as a float in `[0, 1)`.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

const HALF_STEP: f64 = 0.5 / 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(weights: &[(&str, f64)]) -> Vec<(u64, f64)> {
        weights.iter().map(|(name, weight)| (choice_id(name, None), *weight)).collect()
    }

    #[test]
    fn every_gateway_computes_the_same_answer() {
        // These values are part of the protocol between gateways: a user must not move because a gateway was upgraded.
        assert_eq!(choice_id("paris", None), choice_id("paris", None));
        assert_ne!(choice_id("paris", None), choice_id("paris", Some("v1")));
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        let split = split(&[("paris", 90.0), ("tokyo", 10.0)]);
        let picks: String = (0..40)
            .map(|user| {
                let key = sticky_key("shop/checkout", format!("user-{user}").as_bytes());
                if pick(Key::Sticky(key), split.iter().copied()) == Some(0) { 'p' } else { 't' }
            })
            .collect();
        assert_eq!(picks, GOLDEN_PICKS);
    }

    const GOLDEN_PICKS: &str = "ppppppptpppppppppppppppppppppppppptptptp";

    #[test]
    fn a_split_is_within_three_sigma_keyed_and_drawn() {
        let (n, p) = (10_000_u32, 0.9);
        let three_sigma = 3.0 * (f64::from(n) * p * (1.0 - p)).sqrt();
        let split = split(&[("paris", 90.0), ("tokyo", 10.0)]);
        let mut sequence = Sequence::new(7);
        let drawn = (0..n).filter(|_| pick(Key::Fresh(sequence.next_draw()), split.iter().copied()) == Some(0)).count();
        assert!((drawn as f64 - 9_000.0).abs() < 10.0, "the sequence gave {drawn}");
        let keyed = (0..n)
            .filter(|user| {
                pick(Key::Sticky(sticky_key("shop/checkout", user.to_string().as_bytes())), split.iter().copied())
                    == Some(0)
            })
            .count();
        assert!((keyed as f64 - 9_000.0).abs() < three_sigma, "rendezvous gave {keyed}");
    }

    #[test]
    fn interleaved_owners_of_a_sequence_stay_unbiased() {
        // Every third request is of another kind; its share must hold on its own.
        let split = split(&[("paris", 80.0), ("tokyo", 20.0)]);
        let mut sequence = Sequence::new(1 << 40);
        let mut of_kind = 0;
        for i in 0..30_000 {
            let pick = pick(Key::Fresh(sequence.next_draw()), split.iter().copied());
            of_kind += usize::from(i % 3 == 0 && pick == Some(1));
        }
        assert!((1_950..=2_050).contains(&of_kind), "{of_kind} of 10000");
    }

    #[test]
    fn nothing_to_pick_from() {
        assert_eq!(pick(Key::Sticky(1), std::iter::empty()), None);
        assert_eq!(pick(Key::Sticky(1), [(1, 0.0)].into_iter()), None);
        assert_eq!(pick(Key::Fresh(Draw(u64::MAX)), [(1, 0.0), (2, 0.0)].into_iter()), None);
        assert_eq!(pick(Key::Fresh(Draw(u64::MAX)), [(1, 1.0), (2, 0.0)].into_iter()), Some(0));
    }

    proptest! {
        #[test]
        fn only_the_share_that_must_move_moves(key: u64, from in 1.0_f64..100.0, more in 0.0_f64..100.0) {
            let before = split(&[("a", 50.0), ("b", from), ("c", 10.0)]);
            let after = split(&[("a", 50.0), ("b", from + more), ("c", 10.0)]);
            let old = pick(Key::Sticky(key), before.iter().copied());
            let new = pick(Key::Sticky(key), after.iter().copied());
            // Growing b takes keys from others and moves none between them.
            prop_assert!(new == old || new == Some(1));
        }

        #[test]
        fn losing_a_choice_moves_only_its_own_keys(key: u64) {
            let before = split(&[("a", 50.0), ("b", 30.0), ("c", 20.0)]);
            let after = split(&[("a", 50.0), ("b", 0.0), ("c", 20.0)]);
            let old = pick(Key::Sticky(key), before.iter().copied());
            let new = pick(Key::Sticky(key), after.iter().copied());
            prop_assert!(old == Some(1) || new == old);
        }

        #[test]
        fn the_weights_own_scale_does_not_matter(key: u64, scale in 0.001_f64..1000.0) {
            let one = split(&[("a", 90.0), ("b", 10.0)]);
            let two = split(&[("a", 90.0 * scale), ("b", 10.0 * scale)]);
            prop_assert_eq!(pick(Key::Sticky(key), one.iter().copied()), pick(Key::Sticky(key), two.iter().copied()));
        }
    }

    #[test]
    fn ninety_ten_to_eighty_twenty_moves_a_tenth() {
        let before = split(&[("paris", 90.0), ("tokyo", 10.0)]);
        let after = split(&[("paris", 80.0), ("tokyo", 20.0)]);
        let n = 20_000;
        let mut moved = 0;
        for user in 0..n {
            let key = Key::Sticky(sticky_key("shop/checkout", format!("user-{user}").as_bytes()));
            let (old, new) = (pick(key, before.iter().copied()), pick(key, after.iter().copied()));
            assert!(old == new || new == Some(1), "user {user} moved towards the shrinking cluster");
            moved += usize::from(old != new);
        }
        assert!((1_850..=2_150).contains(&moved), "{moved} of {n} moved");
    }
}
