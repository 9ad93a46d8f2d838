//! What a response's head says of where its time went so far, to clients that may see it: `Server-Timing` (W3C Server Timing).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Instant;

use archipelago_proto::v1::SlowHops;
use archipelago_telemetry::Hop;

use super::trail::Trail;

/// The services whose clients are told, by "namespace/name".
#[derive(Debug, Clone, Default)]
pub struct Told(BTreeSet<Box<str>>);

impl Told {
    /// Of these.
    pub fn new(services: &[String]) -> Self {
        Self(services.iter().map(|service| service.as_str().into()).collect())
    }

    /// Whether clients of this one are told.
    #[inline]
    pub fn has(&self, service: impl FnOnce() -> Option<Box<str>>) -> bool {
        !self.0.is_empty() && service().is_some_and(|service| self.0.contains(&service))
    }
}

/// The field's value, for a response whose head is sent now.
pub fn value(trail: &Trail, started: Instant) -> String {
    let end = trail.head_at().unwrap_or_else(Instant::now);
    written(&trail.hops(started, end))
}

/// Parts that took no time are left out; times are in milliseconds.
fn written(hops: &SlowHops) -> String {
    let parts = Hop::ALL.map(|hop| (hop.word(), hop.of(hops)));
    let total = parts.iter().map(|(_, micros)| micros).sum();
    let mut value = String::new();
    for (word, micros) in parts.into_iter().filter(|(_, micros)| *micros > 0).chain([("total", total)]) {
        let comma = if value.is_empty() { "" } else { ", " };
        let _ = write!(value, "{comma}{word};dur={}.{:03}", micros / 1_000, micros % 1_000);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_in_milliseconds_and_only_what_took_time() {
        let hops = SlowHops { queue: 12, tunnel: 31_005, first_byte: 400_000, ..SlowHops::default() };
        assert_eq!(written(&hops), "queue;dur=0.012, tunnel;dur=31.005, first-byte;dur=400.000, total;dur=431.017");
        assert_eq!(written(&SlowHops::default()), "total;dur=0.000");
    }

    #[test]
    fn only_clients_of_named_services_are_told() {
        let told = Told::new(&["shop/checkout".to_owned()]);
        assert!(told.has(|| Some("shop/checkout".into())) && !told.has(|| Some("shop/checkouts".into())));
        assert!(!told.has(|| None) && !Told::default().has(|| panic!("nobody asks")));
    }
}
