//! How a gRPC call ended: by its own status, which is in the trailers of the response or, where there is nothing else, in its head.
//!
//! HTTP says 200 of a call that failed, so that whoever counts statuses of HTTP only sees none of it. The statuses are a closed list, and
//! what is not on it is what callers take it for (gRPC, "Status codes and their use"): UNKNOWN.

use archipelago_http::Known;
use http::{HeaderMap, StatusCode};

/// What is known of a request as a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grpc {
    /// It is none.
    #[default]
    No,
    /// It is one, and has no status yet.
    Call,
    /// It has this one.
    Status(Status),
}

/// A status of gRPC's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Status(u8);

impl Grpc {
    /// The status, if there is one.
    pub fn status(self) -> Option<Status> {
        if let Self::Status(status) = self { Some(status) } else { None }
    }

    /// Takes the status out of a head; one of trailers comes later, and counts instead.
    pub fn head(&mut self, value: Option<&[u8]>) {
        if let (Self::Call | Self::Status(_), Some(value)) = (*self, value) {
            *self = Self::Status(Status::read(value));
        }
    }

    /// Takes the status out of trailers.
    #[cold]
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        self.head(trailers.get(Known::GrpcStatus.as_str()).map(http::HeaderValue::as_bytes));
    }

    /// The response is whole: a call without a status has the one that its caller makes of HTTP's.
    pub fn ends(&mut self, code: u16) {
        if *self == Self::Call {
            *self = Self::Status(Status::of_http(code));
        }
    }
}

impl Status {
    /// What has no other name.
    pub const UNKNOWN: Self = Self(2);

    /// Of a number; one that is not on the list is unknown.
    pub const fn new(number: u8) -> Self {
        if number <= LAST { Self(number) } else { Self::UNKNOWN }
    }

    /// As a field says it: a decimal number.
    pub fn read(value: &[u8]) -> Self {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        number.map_or(Self::UNKNOWN, Self::new)
    }

    /// What callers make of a response that is none of gRPC's ("HTTP to gRPC status code mapping").
    pub fn of_http(code: u16) -> Self {
        Self(match StatusCode::from_u16(code) {
            Ok(StatusCode::BAD_REQUEST) => 13,
            Ok(StatusCode::UNAUTHORIZED) => 16,
            Ok(StatusCode::FORBIDDEN) => 7,
            Ok(StatusCode::NOT_FOUND) => 12,
            Ok(
                StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT,
            ) => 14,
            _ => 2,
        })
    }

    /// From 0 to 16.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// As metrics say it.
    pub fn label(self) -> &'static str {
        NUMBERS.get(usize::from(self.0)).copied().unwrap_or("2")
    }

    /// Whether the service failed, as OpenTelemetry has it for servers: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE,
    /// DATA_LOSS. All others that are not OK are the caller's to mind.
    pub const fn is_failure(self) -> bool {
        matches!(self.0, 2 | 4 | 12..=15)
    }

    /// The status of HTTP that is counted alike.
    pub const fn class(self) -> u16 {
        match self.0 {
            0 => 200,
            _ if self.is_failure() => 500,
            _ => 400,
        }
    }
}

const LAST: u8 = 16;
const NUMBERS: [&str; LAST as usize + 1] =
    ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_ends_by_its_last_word() {
        let said = |head: Option<&str>, trailers: Option<&str>, code| {
            let mut grpc = Grpc::Call;
            grpc.head(head.map(str::as_bytes));
            if let Some(trailers) = trailers {
                let mut fields = HeaderMap::new();
                fields.insert("grpc-status", trailers.parse().unwrap());
                grpc.trailers(&fields);
            }
            grpc.ends(code);
            grpc.status().unwrap().label()
        };
        assert_eq!(said(None, Some("0"), 200), "0");
        assert_eq!(said(Some("12"), None, 200), "12", "nothing but a head");
        assert_eq!(said(Some("0"), Some("14"), 200), "14");
        assert_eq!(said(None, Some("17"), 200), "2", "not on the list");
        assert_eq!(said(None, Some("-1"), 200), "2");
        for (code, status) in [(200, "2"), (400, "13"), (401, "16"), (403, "7"), (404, "12"), (429, "14"), (503, "14")]
        {
            assert_eq!(said(None, None, code), status, "{code} without a status");
        }
        let mut none = Grpc::No;
        none.head(Some(b"14"));
        none.ends(200);
        assert_eq!(none, Grpc::No, "whoever did not call is not told so");
    }

    #[test]
    fn who_has_failed() {
        let failures: Vec<u8> = (0..=u8::MAX).map(Status::new).filter(|s| s.is_failure()).map(Status::number).collect();
        assert_eq!(failures.iter().filter(|number| **number != 2).collect::<Vec<_>>(), [&4, &12, &13, &14, &15]);
        assert_eq!([0, 5, 14].map(Status::new).map(Status::class), [200, 400, 500]);
    }

    proptest! {
        #[test]
        fn whatever_a_service_says_is_on_the_list(value: Vec<u8>, number: u32) {
            for value in [&value[..], number.to_string().as_bytes()] {
                prop_assert!(NUMBERS.contains(&Status::read(value).label()));
            }
        }
    }
}
