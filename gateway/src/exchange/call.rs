//! One request on its way through this gateway, whatever it came in by and whatever it goes out by.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_http::{Known, Pooled, RequestHead};

use super::body::{Replayable, Upload};
use super::failure::Failure;
use super::interim::Interim;
use crate::authorize::Authorized;
use crate::config::{Rule, Service};
use crate::pace::Limits;
use crate::source::Workload;
use crate::trace::Traced;
use crate::worker::view::{ServiceView, View};
use crate::worker::{Caller, Worker};

/// One request.
#[derive(Debug)]
pub struct Call {
    /// The worker it runs on.
    pub worker: Rc<Worker>,
    /// Its head, without hop-by-hop fields and what only gateways may say.
    pub head: Pooled<RequestHead>,
    /// Its body.
    pub body: Replayable,
    /// Where informational responses go.
    pub interim: Interim,
    /// Where it came from.
    pub origin: Origin,
    /// The workload that it is from, if that is known.
    pub source: Option<Rc<Workload>>,
    /// What its spans are made of, if it is recorded.
    pub trace: Option<Rc<Traced>>,
    /// A gRPC caller, who understands a failure only in his own words.
    pub is_grpc: bool,
    /// The policy that holds for all of it, and what was known when it began.
    pub view: Rc<View>,
    /// Index of its service in the policy.
    pub service: usize,
    /// When a response must have begun.
    pub deadline: Deadline,
    /// How slow one may be with it.
    pub limits: Limits,
}

/// Where a request came from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A client of this cluster.
    Client,
    /// Another gateway, and the proof that it may ask for what it asks for.
    Peer(Arrival, Authorized),
}

/// What a request out of a tunnel brings with it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Who sent it.
    pub caller: Rc<Caller>,
    /// Only endpoints of this version.
    pub version: Option<Arc<str>>,
    /// Attempt number at the ingress.
    pub attempt: u32,
    /// How many endpoints elsewhere may have acted on it already.
    pub sends: u32,
}

impl Call {
    /// Its service, as its policy has it.
    pub fn config(&self) -> Option<&Service> {
        self.view.snapshot.service(self.service).map(|service| &**service)
    }

    /// Its service, as it was when the request began.
    pub fn live(&self) -> Option<&ServiceView> {
        self.view.service(self.service).map(|live| &**live)
    }

    /// The rule that it falls under.
    pub fn rule(&self) -> Option<&Rule> {
        self.config()?.rule(&self.head.method, self.head.path(), &self.head.fields)
    }

    /// When it has taken too long, and what that is then, if nothing moves before. It began at `started`.
    ///
    /// Whoever is waited for is the one whose time runs: the service once the request is all there, whoever sends or takes its body
    /// before. Of a taker behind a tunnel the gateway there knows, and says so earlier; one that does not say it is a service that
    /// does not answer.
    pub fn due(&self, started: Instant, now: Instant) -> Option<(Instant, Failure)> {
        let upload = self.body.upload(now);
        let due = match (self.deadline, upload) {
            (Deadline::After(_), Upload::Sender(due)) => {
                return due.map(|(due, slow)| (due, Failure::SlowRequest(slow)));
            }
            (Deadline::After(timeout), Upload::Taker(since)) => {
                self.limits.endpoint_idle().map(|idle| since + idle + timeout)
            }
            (deadline, Upload::Whole(Some(last)) | Upload::Unasked(last)) => deadline.due(started, Some(last)),
            (deadline, _) => deadline.due(started, None),
        };
        due.map(|due| (due, Failure::Timeout))
    }

    /// True for a client's own request.
    pub fn is_clients(&self) -> bool {
        matches!(self.origin, Origin::Client)
    }
}

/// When a response must have begun.
///
/// A gRPC caller says it himself (`grpc-timeout`), and a stream of his may stay silent until then, or for ever when he says nothing.
/// For everybody else it is a time from the last byte of the request: an upload may take long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// At this moment.
    At(Instant),
    /// So long after the sender's last byte.
    After(Duration),
    /// Never.
    Never,
}

impl Deadline {
    /// Of a client's request.
    pub fn of_client(head: &RequestHead, is_grpc: bool, request_timeout: Duration, now: Instant) -> Self {
        match (is_grpc, head.fields.get(Known::GrpcTimeout).and_then(grpc_timeout)) {
            (true, Some(timeout)) => now.checked_add(timeout).map_or(Self::Never, Self::At),
            (true, None) => Self::Never,
            (false, _) => Self::After(request_timeout),
        }
    }

    /// Of a peer's request: what the peer says is left, which for others than gRPC is no more than we allow.
    pub fn of_peer(left: Option<Duration>, is_grpc: bool, request_timeout: Duration, now: Instant) -> Self {
        match (left, is_grpc) {
            (Some(left), true) => now.checked_add(left).map_or(Self::Never, Self::At),
            (None, true) => Self::Never,
            (left, false) => Self::After(left.unwrap_or(request_timeout).min(request_timeout)),
        }
    }

    /// When it is over for a request that began at `started` and whose sender last gave something at `progress`.
    pub fn due(self, started: Instant, progress: Option<Instant>) -> Option<Instant> {
        match self {
            Self::At(at) => Some(at),
            Self::After(timeout) => Some(progress.map_or(started, |at| at.max(started)) + timeout),
            Self::Never => None,
        }
    }
}

/// gRPC over HTTP/2, "Timeout": at most eight digits and a unit.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0_u64, |n, digit| n * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// What is left, as a caller would say it: the finest unit that eight digits hold.
pub fn write_grpc_timeout(left: Duration, out: &mut Vec<u8>) {
    let units: [(u128, u8); 3] =
        [(left.as_micros(), b'u'), (left.as_millis(), b'm'), (u128::from(left.as_secs()), b'S')];
    let (count, unit) = units.into_iter().find(|(count, _)| *count < 100_000_000).unwrap_or((99_999_999, b'S'));
    out.extend_from_slice(count.to_string().as_bytes());
    out.push(unit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_written() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("60S", Some(Duration::from_secs(60))),
            ("500m", Some(Duration::from_millis(500))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(359_999_996_400))),
            ("", None),
            ("S", None),
            ("10", None),
            ("-1S", None),
            ("123456789S", None),
            ("1s", None),
        ] {
            assert_eq!(grpc_timeout(text.as_bytes()), expected, "{text}");
        }
        for (left, expected) in [
            (Duration::from_millis(1500), "1500000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999S"),
            (Duration::ZERO, "0u"),
        ] {
            let mut out = Vec::new();
            write_grpc_timeout(left, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected);
            assert!(grpc_timeout(&out).is_some_and(|read| read <= left));
        }
    }

    #[test]
    fn who_decides_when_an_answer_is_late() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        let after = Deadline::After(ms(300));
        assert_eq!(after.due(now, None), Some(now + ms(300)));
        assert_eq!(after.due(now, Some(now + ms(50))), Some(now + ms(350)), "an upload moves it");
        assert_eq!(Deadline::At(now).due(now, Some(now + ms(50))), Some(now));
        assert_eq!(Deadline::Never.due(now, None), None);
        let mut head = RequestHead::default();
        assert_eq!(Deadline::of_client(&head, true, ms(300), now), Deadline::Never);
        assert_eq!(Deadline::of_client(&head, false, ms(300), now), after);
        head.fields.push(Known::GrpcTimeout, b"60S");
        assert_eq!(Deadline::of_client(&head, true, ms(300), now), Deadline::At(now + ms(60_000)));
        assert_eq!(Deadline::of_client(&head, false, ms(300), now), after, "only gRPC says so");
        assert_eq!(Deadline::of_peer(Some(ms(900)), false, ms(300), now), after, "no more than we allow");
        assert_eq!(Deadline::of_peer(Some(ms(900)), true, ms(300), now), Deadline::At(now + ms(900)));
    }
}
