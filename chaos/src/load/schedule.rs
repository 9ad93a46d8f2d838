//! When requests are due, without I/O.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// How arrivals are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Arrivals {
    /// Evenly, one each `1 / rate`
    #[default]
    Constant,
    /// Independently of each other, exponentially distributed gaps
    Poisson,
}

/// The arrivals of one worker out of several that share a rate.
#[derive(Debug)]
pub(crate) struct Schedule {
    gaps: Gaps,
    next: Arrival,
    workers: u64,
    end: Option<Duration>,
}

/// One request that is due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    /// Number of this arrival, unique over all workers.
    pub(crate) number: u64,
    /// When it is due, from the start of the run.
    pub(crate) due: Duration,
}

impl Schedule {
    /// The arrivals of worker `index` of `workers`, which together make `rate` a second until `end`.
    pub(crate) fn new(
        arrivals: Arrivals,
        rate: f64,
        end: Option<Duration>,
        (index, workers): (u64, u64),
        seed: u64,
    ) -> Self {
        let first = Arrival { number: index, due: Duration::ZERO };
        let gaps = match arrivals {
            Arrivals::Constant => Gaps::Constant { rate },
            // Independent Poisson processes add up to one of their summed rate.
            Arrivals::Poisson => Gaps::Poisson {
                rate: rate / workers as f64,
                rng: Box::new(StdRng::seed_from_u64(seed.wrapping_add(index))),
            },
        };
        let mut schedule = Self { next: first, gaps, workers, end };
        schedule.next.due = schedule.gaps.due(first);
        schedule
    }

    /// The next arrival, or none once the run is over.
    pub(crate) fn peek(&self) -> Option<Arrival> {
        Some(self.next).filter(|next| self.end.is_none_or(|end| next.due < end))
    }

    pub(crate) fn advance(&mut self) {
        self.next.number = self.next.number.saturating_add(self.workers);
        self.next.due = self.gaps.due(self.next);
    }
}

#[derive(Debug)]
enum Gaps {
    Constant { rate: f64 },
    Poisson { rate: f64, rng: Box<StdRng> },
}

impl Gaps {
    /// When `arrival` is due; its own `due` is that of the arrival before.
    fn due(&mut self, arrival: Arrival) -> Duration {
        match self {
            // From the number rather than from the last due time: rounding must not add up.
            Self::Constant { rate } => seconds(arrival.number as f64 / *rate),
            Self::Poisson { rate, rng } => {
                let uniform: f64 = rng.random(); // in [0, 1), so the logarithm is finite
                arrival.due.saturating_add(seconds(-(1.0 - uniform).ln() / *rate))
            }
        }
    }
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(mut schedule: Schedule) -> Vec<Arrival> {
        std::iter::from_fn(|| {
            let next = schedule.peek();
            schedule.advance();
            next
        })
        .collect()
    }

    #[test]
    fn constant_arrivals_are_even_and_complete() {
        let end = Some(Duration::from_secs(3));
        let all = arrivals(Schedule::new(Arrivals::Constant, 500.0, end, (0, 1), 1));
        assert_eq!(all.len(), 1500);
        assert_eq!(all[0].due, Duration::ZERO);
        assert_eq!(all[750].due, Duration::from_millis(1500));
    }

    #[test]
    fn workers_share_the_numbers_without_gap_or_overlap() {
        let end = Some(Duration::from_secs(1));
        let mut numbers: Vec<u64> = (0..3)
            .flat_map(|index| arrivals(Schedule::new(Arrivals::Constant, 100.0, end, (index, 3), 1)))
            .map(|arrival| arrival.number)
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread() {
        let end = Some(Duration::from_secs(100));
        let all = arrivals(Schedule::new(Arrivals::Poisson, 200.0, end, (0, 1), 7));
        // 20,000 expected, standard deviation 141.
        assert!((19_400..20_600).contains(&all.len()), "{}", all.len());
        let gaps: Vec<f64> = all.windows(2).map(|pair| (pair[1].due - pair[0].due).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential distribution's deviation equals its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05);
    }

    #[test]
    fn same_seed_same_schedule() {
        let end = Some(Duration::from_secs(1));
        let one = || arrivals(Schedule::new(Arrivals::Poisson, 99.0, end, (1, 2), 42));
        assert_eq!(one(), one());
    }

    #[test]
    fn without_an_end_it_goes_on() {
        let mut schedule = Schedule::new(Arrivals::Constant, 10.0, None, (0, 1), 1);
        for _ in 0..100_000 {
            schedule.advance();
        }
        assert_eq!(schedule.peek().unwrap().due, Duration::from_secs(10_000));
    }
}
