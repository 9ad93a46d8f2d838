//! Why a gateway answers itself, and how that is said: to people, to gRPC, to other gateways, to the access log.

use archipelago_http::h1::BadResponse;
use http::StatusCode;

use super::headers::Malformed;
use crate::authorize::Refusal;
use crate::pace::TooSlow;

/// Why a gateway answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The request is not well-formed.
    Malformed(Malformed),
    /// Its body broke off, or is not what its head announced.
    BrokenRequest,
    /// Its body comes too slowly, although there is room for it.
    SlowRequest(TooSlow),
    /// No service has this host name.
    UnknownHost,
    /// The port is for a service that the federation does not have, or not yet, or not with this port.
    UnknownPort,
    /// A TCP service does not speak HTTP here.
    NotHttp,
    /// CONNECT is not offered, nor WebSocket where endpoints speak HTTP/2 without it.
    Unsupported,
    /// The worker carries as much as it may.
    Overloaded,
    /// Its client has as many requests under way as it may.
    ClientLimit,
    /// This gateway cannot run the service's configuration.
    Closed,
    /// No cluster, gateway or endpoint can serve.
    NoHealthy,
    /// The same, and an endpoint of this gateway never saw the request.
    NoEndpointHere,
    /// No response in time.
    Timeout,
    /// An endpoint takes nothing of the body of the request.
    Stalled,
    /// The exchange broke, and could not be repeated.
    Broken,
    /// The same at this gateway, for another: so many endpoints here may have acted on it.
    BrokenAfter(u32),
    /// What the service answered cannot be passed on.
    BadResponse(BadResponse),
    /// The head of the request is more than the way to the service carries.
    RequestHead,
    /// A peer may not ask for this.
    Refused(Refusal),
}

impl Failure {
    /// True when a peer should hear that its request was never processed, so that it may send it elsewhere whatever it is.
    pub fn is_rejection(self) -> bool {
        match self {
            Self::NoEndpointHere | Self::Overloaded => true,
            Self::Refused(refusal) => refusal.is_skew(),
            _ => false,
        }
    }

    /// The status that the client gets.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::BrokenRequest => StatusCode::BAD_REQUEST,
            Self::UnknownHost | Self::NotHttp => StatusCode::NOT_FOUND,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::ClientLimit => StatusCode::TOO_MANY_REQUESTS,
            Self::UnknownPort | Self::Overloaded | Self::Closed | Self::NoHealthy | Self::NoEndpointHere => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Timeout | Self::Stalled => StatusCode::GATEWAY_TIMEOUT,
            Self::SlowRequest(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Broken | Self::BrokenAfter(_) | Self::BadResponse(_) => StatusCode::BAD_GATEWAY,
            Self::RequestHead => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Refused(Refusal::Hops) => StatusCode::LOOP_DETECTED,
            Self::Refused(_) => StatusCode::FORBIDDEN,
        }
    }

    /// Value of `mesh-failure`: a closed set.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::BrokenRequest => "request-broken",
            Self::SlowRequest(TooSlow::Idle) => "request-idle",
            Self::SlowRequest(TooSlow::Rate) => "request-slow",
            Self::UnknownHost => "unknown-host",
            Self::UnknownPort => "unknown-port",
            Self::NotHttp => "not-http",
            Self::Unsupported => "unsupported",
            Self::Overloaded => "overloaded",
            Self::ClientLimit => "client-limit",
            Self::Closed => "service-closed",
            Self::NoHealthy | Self::NoEndpointHere => "no-healthy-upstream",
            Self::Timeout => "timeout",
            Self::Stalled => "upstream-stalled",
            Self::Broken | Self::BrokenAfter(_) => "upstream-broken",
            Self::BadResponse(_) => "bad-response",
            Self::RequestHead => "request-head-too-large",
            Self::Refused(Refusal::Hops) => "loop",
            Self::Refused(_) => "forbidden",
        }
    }

    /// One for each reason.
    pub const EACH: [Self; 19] = [
        Self::Malformed(Malformed::Host),
        Self::BrokenRequest,
        Self::SlowRequest(TooSlow::Idle),
        Self::SlowRequest(TooSlow::Rate),
        Self::UnknownHost,
        Self::UnknownPort,
        Self::NotHttp,
        Self::Unsupported,
        Self::Overloaded,
        Self::ClientLimit,
        Self::Closed,
        Self::NoHealthy,
        Self::Timeout,
        Self::Stalled,
        Self::Broken,
        Self::BadResponse(BadResponse::Elsewhere),
        Self::RequestHead,
        Self::Refused(Refusal::Hops),
        Self::Refused(Refusal::Kind),
    ];

    /// The failure that another gateway gives this reason for, as far as one can be told from it.
    pub fn by_reason(reason: &[u8]) -> Option<Self> {
        Some(match reason {
            b"upstream-broken" => Self::Broken,
            b"no-healthy-upstream" => Self::NoHealthy,
            b"timeout" => Self::Timeout,
            b"upstream-stalled" => Self::Stalled,
            b"overloaded" => Self::Overloaded,
            b"request-broken" => Self::BrokenRequest,
            b"bad-response" => Self::BadResponse(BadResponse::Elsewhere),
            b"service-closed" => Self::Closed,
            _ => return None,
        })
    }

    /// Who was too slow with what, if that is it; an endpoint is counted where it is.
    pub fn cut(self) -> Option<Cut> {
        if let Self::SlowRequest(slow) = self { Some(slow.into()) } else { None }
    }

    /// True where the same request may well be answered a moment later.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Overloaded | Self::ClientLimit | Self::NoHealthy | Self::UnknownPort)
    }

    /// Envoy's letters for the access log.
    pub fn flags(self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Unsupported | Self::BrokenRequest | Self::RequestHead => "DPE",
            Self::UnknownHost | Self::UnknownPort | Self::NotHttp => "NR",
            Self::Closed => "NC",
            Self::Overloaded => "UO",
            Self::ClientLimit => "RL",
            Self::NoHealthy | Self::NoEndpointHere => "UH",
            Self::SlowRequest(TooSlow::Idle) => "SI",
            Self::SlowRequest(TooSlow::Rate) => "DT",
            Self::Timeout | Self::Stalled => "UT",
            Self::Broken | Self::BrokenAfter(_) => "UF,URX",
            Self::BadResponse(_) => "UPE",
            Self::Refused(Refusal::Hops) => "LR",
            Self::Refused(_) => "UAEX",
        }
    }

    /// The status that a gRPC caller gets for it (gRPC over HTTP/2, "Responses"; the codes are gRPC's own list).
    pub fn grpc_status(self) -> u8 {
        match self {
            Self::Malformed(_) | Self::BrokenRequest | Self::RequestHead | Self::BadResponse(_) => GRPC_INTERNAL,
            Self::UnknownHost | Self::UnknownPort | Self::NotHttp | Self::Unsupported => GRPC_UNIMPLEMENTED,
            Self::Overloaded
            | Self::Closed
            | Self::NoHealthy
            | Self::NoEndpointHere
            | Self::Stalled
            | Self::Broken
            | Self::BrokenAfter(_) => GRPC_UNAVAILABLE,
            Self::Timeout | Self::SlowRequest(_) => GRPC_DEADLINE_EXCEEDED,
            Self::ClientLimit => GRPC_RESOURCE_EXHAUSTED,
            Self::Refused(_) => GRPC_PERMISSION_DENIED,
        }
    }

    /// One line for the person who sent the request.
    pub fn line(self) -> String {
        match self {
            Self::Malformed(what) => what.to_string(),
            Self::BrokenRequest => "the body of the request broke off, or is not what its head announced".to_owned(),
            Self::SlowRequest(slow) => Cut::from(slow).line().to_owned(),
            Self::UnknownHost => "no service of this federation has this host name".to_owned(),
            Self::UnknownPort => {
                "no cluster exports this port of this service, as far as this gateway knows".to_owned()
            }
            Self::NotHttp => "this service is TCP; it has a port of its own".to_owned(),
            Self::Unsupported => {
                "CONNECT is offered for WebSocket only, and that only where endpoints speak HTTP/1.1 or announce it in HTTP/2 (RFC 8441)".to_owned()
            },
            Self::Overloaded => "this gateway carries as many requests as it may".to_owned(),
            Self::ClientLimit => "this client address has as many requests under way as it may".to_owned(),
            Self::Closed => "this gateway cannot run the configuration of this service".to_owned(),
            Self::NoHealthy | Self::NoEndpointHere => "no cluster can serve this request now".to_owned(),
            Self::Timeout => "the service did not answer in time".to_owned(),
            Self::Stalled => Cut::EndpointUpload.line().to_owned(),
            Self::Broken | Self::BrokenAfter(_) => "the service broke the exchange before it answered".to_owned(),
            Self::BadResponse(why) => format!("the service's answer cannot be passed on: {why}"),
            Self::RequestHead => {
                "the head of this request is larger than gateways carry: 96 KiB, 512 fields".to_owned()
            }
            Self::Refused(refusal) => refusal.to_string(),
        }
    }
}

/// Who was too slow with what, so that an exchange was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// A client gave nothing of its request.
    ClientUploadIdle,
    /// A client gave too little of its request in its time.
    ClientUploadRate,
    /// A client took nothing of a response.
    ClientDownload,
    /// An endpoint took nothing of a request.
    EndpointUpload,
    /// An endpoint gave nothing of a response whose length it had said.
    EndpointResponse,
    /// Nothing passed either way of a stream.
    StreamIdle,
}

impl Cut {
    /// Label of metrics: a closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientUploadIdle => "client_upload_idle",
            Self::ClientUploadRate => "client_upload_rate",
            Self::ClientDownload => "client_download_idle",
            Self::EndpointUpload => "endpoint_upload_idle",
            Self::EndpointResponse => "endpoint_response_idle",
            Self::StreamIdle => "stream_idle",
        }
    }

    /// Envoy's letters for the access log.
    pub fn flags(self) -> &'static str {
        match self {
            Self::ClientUploadIdle | Self::StreamIdle => "SI",
            Self::ClientUploadRate => "DT",
            Self::ClientDownload => "DC",
            Self::EndpointUpload | Self::EndpointResponse => "UT",
        }
    }

    /// One line for people.
    pub fn line(self) -> &'static str {
        match self {
            Self::ClientUploadIdle => {
                "nothing came of the body of the request for too long, although there was room for it"
            }
            Self::ClientUploadRate => "the body of the request came too slowly, although there was room for it",
            Self::ClientDownload => "the client took nothing of the response for too long",
            Self::EndpointUpload => "the service took nothing of the body of the request for too long",
            Self::EndpointResponse => "the service gave nothing of a response that it had begun for too long",
            Self::StreamIdle => "nothing passed either way of this stream for too long",
        }
    }
}

impl From<TooSlow> for Cut {
    fn from(slow: TooSlow) -> Self {
        match slow {
            TooSlow::Idle => Self::ClientUploadIdle,
            TooSlow::Rate => Self::ClientUploadRate,
        }
    }
}

const GRPC_DEADLINE_EXCEEDED: u8 = 4;
const GRPC_PERMISSION_DENIED: u8 = 7;
const GRPC_RESOURCE_EXHAUSTED: u8 = 8;
const GRPC_UNIMPLEMENTED: u8 = 12;
const GRPC_INTERNAL: u8 = 13;
const GRPC_UNAVAILABLE: u8 = 14;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_reason_is_listed_once() {
        let listed: BTreeSet<_> = Failure::EACH.map(Failure::reason).into();
        assert_eq!(listed.len(), Failure::EACH.len());
        for reason in &listed {
            let read = Failure::by_reason(reason.as_bytes());
            assert!(read.is_none_or(|read| read.reason() == *reason), "{reason}");
        }
        assert!(Refusal::ALL.into_iter().all(|refusal| listed.contains(Failure::Refused(refusal).reason())));
        assert!(listed.contains(Failure::NoEndpointHere.reason()) && listed.contains(Failure::BrokenAfter(1).reason()));
    }
}
