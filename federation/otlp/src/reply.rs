//! What a collector's answer to an export means (OTLP 1.8, "OTLP/gRPC Response" and "OTLP/HTTP Response").

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use prost::Message as _;

use crate::Protocol;
use crate::proto::collector::trace::v1::ExportTraceServiceResponse;

/// An answer, whole.
#[derive(Debug, Default)]
pub struct Answer {
    /// Of HTTP.
    pub status: StatusCode,
    /// Before the body.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Behind the body.
    pub trailers: HeaderMap,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The collector has the spans, all but so many.
    Taken {
        /// Those that it did not want.
        rejected: u64,
    },
    /// The same may be sent again later.
    Again {
        /// Not before.
        after: Option<Duration>,
        /// For a log.
        why: String,
    },
    /// It will never take them.
    Refused(
        /// For a log.
        String,
    ),
}

/// Reads an answer.
pub fn judge(protocol: Protocol, answer: &Answer) -> Verdict {
    match protocol {
        Protocol::Http => http(answer),
        Protocol::Grpc => grpc(answer),
    }
}

fn http(answer: &Answer) -> Verdict {
    let why = || format!("it answered {}", answer.status.as_u16());
    match answer.status.as_u16() {
        200..=299 => Verdict::Taken { rejected: rejected(&answer.body) },
        429 | 502 | 503 | 504 => {
            let seconds = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Verdict::Again { after: seconds.map(Duration::from_secs), why: why() }
        }
        _ => Verdict::Refused(why()),
    }
}

fn grpc(answer: &Answer) -> Verdict {
    if answer.status != StatusCode::OK {
        return http(&Answer { status: answer.status, headers: answer.headers.clone(), ..Answer::default() });
    }
    let status = answer.trailers.get("grpc-status").or_else(|| answer.headers.get("grpc-status"));
    let Some(code) = status.and_then(|status| status.to_str().ok()?.parse::<u32>().ok()) else {
        return Verdict::Refused("it answered without a gRPC status; is this its port for gRPC?".to_owned());
    };
    let why = format!("it answered gRPC status {code}");
    match code {
        0 => {
            // A byte says that it is not compressed, four how long it is.
            let mut message = answer.body.clone();
            message.advance(message.len().min(5));
            Verdict::Taken { rejected: rejected(&message) }
        }
        // Cancelled, deadline exceeded, resource exhausted, aborted, out of range, unavailable, data loss.
        1 | 4 | 8 | 10 | 11 | 14 | 15 => Verdict::Again { after: None, why },
        _ => Verdict::Refused(why),
    }
}

fn rejected(message: &[u8]) -> u64 {
    // Taken is taken, whatever the rest of the answer is.
    let response = ExportTraceServiceResponse::decode(message).unwrap_or_default();
    response.partial_success.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::collector::trace::v1::ExportTracePartialSuccess;
    use http::HeaderValue;

    fn partial(rejected_spans: i64) -> Vec<u8> {
        let partial = ExportTracePartialSuccess { rejected_spans, error_message: "no".into() };
        ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
    }

    #[test]
    fn answers_of_http() {
        let answer = |status: u16, body: Vec<u8>| Answer {
            status: StatusCode::from_u16(status).unwrap(),
            body: body.into(),
            ..Answer::default()
        };
        let judged = |answer: &Answer| judge(Protocol::Http, answer);
        assert_eq!(judged(&answer(200, vec![])), Verdict::Taken { rejected: 0 });
        assert_eq!(judged(&answer(202, b"{}".to_vec())), Verdict::Taken { rejected: 0 });
        assert_eq!(judged(&answer(200, partial(3))), Verdict::Taken { rejected: 3 });
        assert_eq!(judged(&answer(200, partial(-3))), Verdict::Taken { rejected: 0 });
        for status in [400, 401, 404, 413, 500, 301] {
            assert!(matches!(judged(&answer(status, vec![])), Verdict::Refused(why) if why.contains("it answered")));
        }
        let mut busy = answer(503, vec![]);
        assert!(matches!(judged(&busy), Verdict::Again { after: None, .. }));
        busy.headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        let Verdict::Again { after, .. } = judged(&busy) else { panic!("it may be asked again") };
        assert_eq!(after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn answers_of_grpc() {
        let mut framed = vec![0, 0, 0, 0, 9];
        framed.extend(partial(2));
        let answer = |code: &'static str| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(code));
            Answer { trailers, body: framed.clone().into(), ..Answer::default() }
        };
        let judged = |answer: &Answer| judge(Protocol::Grpc, answer);
        assert_eq!(judged(&answer("0")), Verdict::Taken { rejected: 2 });
        assert!(matches!(judged(&answer("14")), Verdict::Again { after: None, .. }));
        assert!(matches!(judged(&answer("16")), Verdict::Refused(_)), "unauthenticated");
        let only = answer("8");
        let only = Answer { headers: only.trailers, trailers: HeaderMap::new(), body: Bytes::new(), ..only };
        assert!(matches!(judged(&only), Verdict::Again { .. }), "trailers only");
        assert!(matches!(judged(&Answer::default()), Verdict::Refused(why) if why.contains("port for gRPC")));
        let proxy = Answer { status: StatusCode::BAD_GATEWAY, ..Answer::default() };
        assert!(matches!(judged(&proxy), Verdict::Again { .. }));
    }
}
