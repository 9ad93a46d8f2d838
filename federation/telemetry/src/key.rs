//! What is counted apart: by service, version, both clusters, who reports and how it ended.

use archipelago_proto::v1::{self as proto, LatencySeries};

use crate::counts::{self, Counts};

/// What requests of one series have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// As in metrics: "namespace/name", with ":port" for a port beyond the first. Empty: no service was found.
    pub service: Box<str>,
    /// Of the endpoints that answered; empty: none, or not known at this gateway.
    pub version: Box<str>,
    /// Cluster at which the requests entered.
    pub source: Box<str>,
    /// Cluster to which they were sent last; empty: to none.
    pub destination: Box<str>,
    /// Who reports.
    pub reporter: Reporter,
    /// How they ended.
    pub outcome: Outcome,
    /// Requests of series beyond those that are kept; the names are empty.
    pub overflow: bool,
}

/// Which side of a tunnel reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The gateway at which the request entered: each request once.
    Source,
    /// The gateway that took it out of a tunnel: each attempt.
    Destination,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// With a status of 200 to 299.
    Status2xx,
    /// 300 to 399.
    Status3xx,
    /// 400 to 499.
    Status4xx,
    /// 500 and above, or one that no standard has (RFC 9110 §15 takes those for 5xx).
    Status5xx,
    /// The response broke off.
    Broken,
    /// The client went away before the end.
    Abandoned,
}

/// Why a series of another gateway is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It counts something that this build does not know.
    #[error("a series of a kind that this build does not know")]
    Unknown,
    /// A name that no cluster, service or version can have.
    #[error("a name that no service, version or cluster has")]
    Name,
    /// It speaks for another cluster than its own.
    #[error("a series of another cluster than its own")]
    Foreign,
    /// Its counts cannot be read.
    #[error(transparent)]
    Counts(#[from] counts::Malformed),
}

impl Key {
    /// The series of those that have none of their own.
    #[must_use]
    pub fn overflowing(&self) -> Self {
        Self {
            service: "".into(),
            version: "".into(),
            source: "".into(),
            destination: "".into(),
            reporter: self.reporter,
            outcome: self.outcome,
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
    pub fn to_wire(&self, counts: &Counts) -> LatencySeries {
        let outcome = match self.outcome {
            Outcome::Status2xx => proto::Outcome::Outcome2xx,
            Outcome::Status3xx => proto::Outcome::Outcome3xx,
            Outcome::Status4xx => proto::Outcome::Outcome4xx,
            Outcome::Status5xx => proto::Outcome::Outcome5xx,
            Outcome::Broken => proto::Outcome::Broken,
            Outcome::Abandoned => proto::Outcome::Abandoned,
        };
        LatencySeries {
            service: self.service.to_string(),
            version: self.version.to_string(),
            source_cluster: self.source.to_string(),
            destination_cluster: self.destination.to_string(),
            reporter: self.reporter.to_wire().into(),
            outcome: outcome.into(),
            overflow: self.overflow,
            counts: counts.encode(),
        }
    }

    /// Out of what a gateway of `cluster` told.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn of_wire(cluster: &str, series: &LatencySeries) -> Result<(Self, Counts), Refused> {
        let reporter = Reporter::of_wire(series.reporter())?;
        let outcome = match series.outcome() {
            proto::Outcome::Outcome2xx => Outcome::Status2xx,
            proto::Outcome::Outcome3xx => Outcome::Status3xx,
            proto::Outcome::Outcome4xx => Outcome::Status4xx,
            proto::Outcome::Outcome5xx => Outcome::Status5xx,
            proto::Outcome::Broken => Outcome::Broken,
            proto::Outcome::Abandoned => Outcome::Abandoned,
            proto::Outcome::Unspecified => return Err(Refused::Unknown),
        };
        let (source, destination) = (&*series.source_cluster, &*series.destination_cluster);
        let names = [&*series.service, &*series.version, source, destination];
        if names.iter().any(|name| name.len() > NAME_BYTES_MAX || name.chars().any(|c| c.is_control() || c == ' ')) {
            return Err(Refused::Name);
        }
        let speaks_for_itself = match (series.overflow, reporter) {
            (true, _) => names.iter().all(|name| name.is_empty()),
            (false, Reporter::Source) => source == cluster,
            (false, Reporter::Destination) => destination == cluster || destination.is_empty(),
        };
        if !speaks_for_itself {
            return Err(Refused::Foreign);
        }
        let key = Self {
            service: series.service.as_str().into(),
            version: series.version.as_str().into(),
            source: source.into(),
            destination: destination.into(),
            reporter,
            outcome,
            overflow: series.overflow,
        };
        Ok((key, Counts::decode(&series.counts)?))
    }
}

impl Reporter {
    /// As it is told.
    #[must_use]
    pub const fn to_wire(self) -> proto::Reporter {
        match self {
            Self::Source => proto::Reporter::Source,
            Self::Destination => proto::Reporter::Destination,
        }
    }

    /// Out of what was told.
    ///
    /// # Errors
    /// This build does not know it.
    pub const fn of_wire(told: proto::Reporter) -> Result<Self, Refused> {
        match told {
            proto::Reporter::Source => Ok(Self::Source),
            proto::Reporter::Destination => Ok(Self::Destination),
            proto::Reporter::Unspecified => Err(Refused::Unknown),
        }
    }
}

impl Outcome {
    /// Of a status that was sent to the end.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            200..=299 => Self::Status2xx,
            300..=399 => Self::Status3xx,
            400..=499 => Self::Status4xx,
            _ => Self::Status5xx,
        }
    }

    /// Whether the service did what it should; `None` where that cannot be told, because its client did not wait for it.
    #[must_use]
    pub const fn is_success(self) -> Option<bool> {
        match self {
            Self::Status2xx | Self::Status3xx | Self::Status4xx => Some(true),
            Self::Status5xx | Self::Broken => Some(false),
            Self::Abandoned => None,
        }
    }
}

/// A service: two labels, a slash, a colon and a port.
pub const NAME_BYTES_MAX: usize = 63 + 1 + 63 + 1 + 5;
