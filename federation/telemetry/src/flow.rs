//! TCP connections of one series: how many, how long until they were connected, and what they carried. All of it counted upwards, so that
//! whoever asks can subtract; what is open is what was connected without what has ended.

use archipelago_proto::v1::{self as proto, FlowSeries};

use crate::counts::Counts;
use crate::key::{NAME_BYTES_MAX, Refused, Reporter};

/// What connections of one series have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// "namespace/name", with ":port" for a port beyond the first.
    pub service: Box<str>,
    /// Of the endpoints that took them; empty: none, or not known at this gateway.
    pub version: Box<str>,
    /// Cluster at which they entered.
    pub source: Box<str>,
    /// Cluster that took them; empty: none did.
    pub destination: Box<str>,
    /// Who reports.
    pub reporter: Reporter,
    /// Connections of series beyond those that are kept; the names are empty.
    pub overflow: bool,
}

/// What has happened to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flow {
    /// From a connection's beginning until somebody had taken it, of those that were taken.
    pub connected: Counts,
    /// Those that nobody took.
    pub failed: u64,
    /// Of those that were taken, how many are over.
    pub ended: u64,
    /// Bytes towards the service.
    pub sent_bytes: u64,
    /// Bytes towards the client.
    pub received_bytes: u64,
}

impl FlowKey {
    /// The series of those that have none of their own.
    #[must_use]
    pub fn overflowing(&self) -> Self {
        let none = || Box::from("");
        Self {
            service: none(),
            version: none(),
            source: none(),
            destination: none(),
            reporter: self.reporter,
            overflow: true,
        }
    }

    /// Whether it is of this service, or of a port of it.
    #[must_use]
    pub fn is_of(&self, service: &str) -> bool {
        let rest = self.service.strip_prefix(service);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }

    /// As it is told.
    #[must_use]
    pub fn to_wire(&self, flow: &Flow) -> FlowSeries {
        FlowSeries {
            service: self.service.to_string(),
            version: self.version.to_string(),
            source_cluster: self.source.to_string(),
            destination_cluster: self.destination.to_string(),
            reporter: self.reporter.to_wire().into(),
            overflow: self.overflow,
            connected: flow.connected.encode(),
            failed: flow.failed,
            ended: flow.ended,
            sent_bytes: flow.sent_bytes,
            received_bytes: flow.received_bytes,
        }
    }

    /// Out of what a gateway of `cluster` told.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn of_wire(cluster: &str, told: &FlowSeries) -> Result<(Self, Flow), Refused> {
        let reporter = Reporter::of_wire(told.reporter())?;
        let (source, destination) = (&*told.source_cluster, &*told.destination_cluster);
        let names = [&*told.service, &*told.version, source, destination];
        if names.iter().any(|name| name.len() > NAME_BYTES_MAX || name.chars().any(|c| c.is_control() || c == ' ')) {
            return Err(Refused::Name);
        }
        let speaks_for_itself = match (told.overflow, reporter) {
            (true, _) => names.iter().all(|name| name.is_empty()),
            (false, Reporter::Source) => source == cluster,
            (false, Reporter::Destination) => destination == cluster || destination.is_empty(),
        };
        if !speaks_for_itself {
            return Err(Refused::Foreign);
        }
        let connected = Counts::decode(&told.connected)?;
        let key = Self {
            service: told.service.as_str().into(),
            version: told.version.as_str().into(),
            source: source.into(),
            destination: destination.into(),
            reporter,
            overflow: told.overflow,
        };
        let proto::FlowSeries { failed, ended, sent_bytes, received_bytes, .. } = *told;
        Ok((key, Flow { connected, failed, ended, sent_bytes, received_bytes }))
    }
}

impl Flow {
    /// Adds what was counted elsewhere, or later.
    pub fn add(&mut self, other: &Self) {
        self.connected.add(&other.connected);
        self.failed = self.failed.saturating_add(other.failed);
        self.ended = self.ended.saturating_add(other.ended);
        self.sent_bytes = self.sent_bytes.saturating_add(other.sent_bytes);
        self.received_bytes = self.received_bytes.saturating_add(other.received_bytes);
    }

    /// What came since `before`; `None` when that is not what these were once.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            connected: self.connected.since(&before.connected)?,
            failed: self.failed.checked_sub(before.failed)?,
            ended: self.ended.checked_sub(before.ended)?,
            sent_bytes: self.sent_bytes.checked_sub(before.sent_bytes)?,
            received_bytes: self.received_bytes.checked_sub(before.received_bytes)?,
        })
    }

    /// Nothing has happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { connected, failed, ended, sent_bytes, received_bytes } = self;
        connected.is_empty() && [failed, ended, sent_bytes, received_bytes].into_iter().all(|number| *number == 0)
    }

    /// Open now. Of series that share what there is no room for, the ends of some are counted where others began.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.connected.total().saturating_sub(self.ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::Tally;

    fn flow(micros: &[u64], ended: u64) -> Flow {
        let mut tally = Tally::default();
        micros.iter().for_each(|micros| tally.record(*micros));
        Flow { connected: tally.counted(), failed: 1, ended, sent_bytes: 10, received_bytes: 20 }
    }

    fn key(reporter: Reporter, source: &str, destination: &str) -> FlowKey {
        let service = "shop/ledger:9000".into();
        let (source, destination) = (source.into(), destination.into());
        FlowKey { service, version: "v1".into(), source, destination, reporter, overflow: false }
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let (before, mut after) = (flow(&[100], 0), flow(&[100], 0));
        after.add(&flow(&[100, 2_000], 2));
        let since = after.since(&before).unwrap();
        assert_eq!(since, flow(&[100, 2_000], 2));
        assert_eq!((after.open(), since.open()), (1, 0));
        assert_eq!(before.since(&after), None, "counts do not go back");
        assert!(before.since(&before).unwrap().is_empty());
    }

    #[test]
    fn a_series_is_read_as_it_was_told_and_of_the_gateway_itself() {
        use Reporter::{Destination, Source};
        for (key, cluster) in [
            (key(Source, "paris", "tokyo"), "paris"),
            (key(Source, "paris", ""), "paris"),
            (key(Destination, "paris", "tokyo"), "tokyo"),
            (key(Source, "paris", "tokyo").overflowing(), "paris"),
        ] {
            let told = key.to_wire(&flow(&[5], 1));
            assert_eq!(FlowKey::of_wire(cluster, &told), Ok((key, flow(&[5], 1))));
        }
        let told = key(Source, "paris", "tokyo").to_wire(&flow(&[5], 0));
        assert_eq!(FlowKey::of_wire("tokyo", &told), Err(Refused::Foreign));
        let refused = |change: fn(&mut FlowSeries)| {
            let mut told = told.clone();
            change(&mut told);
            FlowKey::of_wire("paris", &told).unwrap_err()
        };
        assert_eq!(refused(|told| told.service = "shop/\u{1b}[2J".into()), Refused::Name);
        assert_eq!(refused(|told| told.reporter = 9), Refused::Unknown);
        assert!(matches!(refused(|told| told.connected = vec![1]), Refused::Counts(_)));
        assert!(told.service.starts_with("shop/") && key(Source, "a", "b").is_of("shop/ledger"));
    }
}
