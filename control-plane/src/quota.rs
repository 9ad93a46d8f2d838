//! How often, and how much, an agent or a gateway may have written into the log on its behalf.
//!
//! Reports and registrations come by themselves and for as long as their sender likes, so each sender has two buckets at
//! each member that it writes through. A sender over its rate is not refused for good: what it said last is committed once
//! the buckets have filled again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use prost::Message;

use crate::machine::command::Action;

/// The buckets of everybody who wrote lately.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    senders: BTreeMap<String, Buckets>,
}

#[derive(Debug, Clone, Copy)]
struct Buckets {
    writes: Bucket,
    policies: Bucket,
    bytes: Bucket,
}

impl Quotas {
    /// Takes what `action` costs from the buckets of `sender`.
    ///
    /// # Errors
    /// How long to wait until there is enough in them. Nothing was taken.
    pub(crate) fn take(&mut self, sender: &str, action: &Action, now: Instant) -> Result<(), Duration> {
        let (rate, is_policy, bytes) = match action {
            Action::ReportExports(report) => (REPORTS, false, report.encoded_len()),
            Action::RegisterGateway(register) => (REGISTRATIONS, false, register.encoded_len()),
            // Written in a cluster and sent by its agent; operators are people.
            Action::ApplyResources(apply) if !apply.origin.is_empty() => (REPORTS, true, apply.encoded_len()),
            _ => return Ok(()),
        };
        if self.senders.len() >= SENDERS_MAX {
            self.senders.retain(|_, buckets| !buckets.is_full(now));
        }
        let buckets = self.senders.entry(sender.to_owned()).or_insert_with(|| Buckets {
            writes: Bucket::full(rate, now),
            policies: Bucket::full(POLICIES, now),
            bytes: Bucket::full(BYTES, now),
        });
        // An agent that writes policies all the time may still say what its cluster offers.
        let writes = if is_policy { &mut buckets.policies } else { &mut buckets.writes };
        // As floats: a report is far below 2^53 bytes.
        let costs = (1.0, bytes as f64);
        let wait = writes.wait(costs.0, now).max(buckets.bytes.wait(costs.1, now));
        if wait > Duration::ZERO {
            return Err(wait);
        }
        writes.take(costs.0, now);
        buckets.bytes.take(costs.1, now);
        Ok(())
    }
}

impl Buckets {
    fn is_full(&self, now: Instant) -> bool {
        [self.writes, self.policies, self.bytes].iter().all(|bucket| bucket.is_full(now))
    }
}

/// What a bucket holds, and how fast it fills.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) burst: f64,
    pub(crate) per_second: f64,
}

/// Fills with time; what is taken must be in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    rate: Rate,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, level: rate.burst, at: now }
    }

    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.level(now) >= self.rate.burst
    }

    fn level(&self, now: Instant) -> f64 {
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * self.rate.per_second;
        (self.level + filled).min(self.rate.burst)
    }

    /// How long until `cost` is in it.
    pub(crate) fn wait(&self, cost: f64, now: Instant) -> Duration {
        // What is larger than the bucket goes when it is full, and leaves it below nothing.
        let missing = cost.min(self.rate.burst) - self.level(now);
        if missing <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(missing / self.rate.per_second) }
    }

    pub(crate) fn take(&mut self, cost: f64, now: Instant) {
        self.level = self.level(now) - cost;
        self.at = now;
    }
}

/// A rolling update changes what is reported a few dozen times in a minute; twice that, for ever, is a fault.
const REPORTS: Rate = Rate { burst: 30.0, per_second: 1.0 };
/// A gateway registers when its addresses change: at a start.
const REGISTRATIONS: Rate = Rate { burst: 10.0, per_second: 0.2 };
/// A rollout step by step writes one every few seconds; GitOps brings many at once, and in one write.
const POLICIES: Rate = Rate { burst: 60.0, per_second: 2.0 };
/// The largest report twice, and then a tenth of a slow disk.
const BYTES: Rate = Rate { burst: 8.0 * 1024.0 * 1024.0, per_second: 256.0 * 1024.0 };
/// Above the gateways of a large federation; full buckets are forgotten beyond it.
const SENDERS_MAX: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::command::{ApplyResources, RegisterGateway, ReportExports, ReportedService, TokenConsume};

    fn report(bytes: usize) -> Action {
        let service = ReportedService { name: "x".repeat(bytes), ..ReportedService::default() };
        Action::ReportExports(ReportExports { cluster: "paris".into(), services: vec![service] })
    }

    #[test]
    fn a_burst_goes_and_then_one_a_second() {
        let (mut quotas, begun) = (Quotas::default(), Instant::now());
        for _ in 0..30 {
            quotas.take("paris", &report(10), begun).unwrap();
        }
        let wait = quotas.take("paris", &report(10), begun).unwrap_err();
        assert_eq!(wait, Duration::from_secs(1));
        quotas.take("tokyo", &report(10), begun).expect("another's quota is its own");
        quotas.take("paris", &report(10), begun + wait).unwrap();
        assert!(quotas.take("paris", &report(10), begun + wait).is_err());
        let policies = |origin: &str| {
            Action::ApplyResources(ApplyResources { origin: origin.into(), ..ApplyResources::default() })
        };
        for _ in 0..60 {
            quotas.take("paris", &policies("paris"), begun + wait).expect("policies have a bucket of their own");
        }
        assert_eq!(quotas.take("paris", &policies("paris"), begun + wait), Err(Duration::from_millis(500)));
        quotas.take("paris", &policies(""), begun + wait).expect("what an operator writes is not counted");
        let token = Action::TokenConsume(TokenConsume::default());
        quotas.take("paris", &token, begun + wait).expect("only what comes by itself is counted");
    }

    #[test]
    fn bytes_are_counted_and_a_gateway_registers_rarely() {
        let (mut quotas, begun) = (Quotas::default(), Instant::now());
        for _ in 0..2 {
            quotas.take("paris", &report(4_000_000), begun).unwrap();
        }
        let wait = quotas.take("paris", &report(4_000_000), begun).unwrap_err();
        assert!(wait > Duration::from_secs(10) && wait < Duration::from_secs(20), "{wait:?}");
        let register = Action::RegisterGateway(RegisterGateway::default());
        for _ in 0..10 {
            quotas.take("gw-1", &register, begun).unwrap();
        }
        assert_eq!(quotas.take("gw-1", &register, begun).unwrap_err(), Duration::from_secs(5));
    }

    #[test]
    fn those_who_are_quiet_are_forgotten() {
        let (mut quotas, begun) = (Quotas::default(), Instant::now());
        for sender in 0..SENDERS_MAX {
            quotas.take(&sender.to_string(), &report(10), begun).unwrap();
        }
        quotas.take("paris", &report(10), begun + Duration::from_secs(60)).unwrap();
        assert_eq!(quotas.senders.len(), 1);
    }
}
