//! What the API server answered instead, for those who decide whether to try again.

use std::time::Duration;

use http::{StatusCode, header, response::Parts};
use kube::core::Status;

/// A request that was not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the API server said; `None`: it was not reached, or broke off.
    pub status: Option<StatusCode>,
    /// Its reason in one word (`Expired`, `Forbidden`), where it said one.
    pub reason: String,
    /// For a person.
    pub message: String,
    /// Not before this has passed, says the API server.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Not an answer of the API server.
    pub fn transport(error: impl Into<tower::BoxError>) -> Self {
        let error = error.into();
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Some layers repeat what is below them.
            if !message.contains(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        Self { status: None, reason: String::new(), message, retry_after: None }
    }

    /// An answer that is not a success.
    pub fn answered(head: &Parts, body: &[u8]) -> Self {
        let said = serde_json::from_slice::<Status>(body).unwrap_or_default();
        let mut failure = Self::said(said, head.status);
        let seconds = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        failure.retry_after = seconds.map(Duration::from_secs).or(failure.retry_after);
        failure
    }

    /// A `Status` object, which is also how a watch ends that cannot go on.
    pub fn said(status: Status, otherwise: StatusCode) -> Self {
        let code = StatusCode::from_u16(status.code).ok().filter(|code| !code.is_success()).unwrap_or(otherwise);
        let after = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        let message = match status.message.as_str() {
            "" => format!("the API server answered {code}"),
            message => format!("the API server answered {code}: {message}"),
        };
        let retry_after = (after > 0).then(|| Duration::from_secs(after.into()));
        Self { status: Some(code), reason: status.reason, message, retry_after }
    }

    /// The resource version is too old: start over with a list.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.status == Some(StatusCode::GONE)
    }

    /// RBAC does not allow it.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self.status, Some(StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED))
    }

    /// Not there: an object, or a whole kind whose CRD is not installed.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status == Some(StatusCode::NOT_FOUND)
    }

    /// What was to be written is not valid, whenever it is repeated.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        self.status == Some(StatusCode::UNPROCESSABLE_ENTITY)
    }

    /// Somebody else was faster.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status == Some(StatusCode::CONFLICT)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::said(*status, StatusCode::INTERNAL_SERVER_ERROR),
            kube::Error::Service(error) => Self::transport(error),
            error => Self::transport(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_and_the_body_say_when_to_come_back() {
        let head = |after: Option<&str>| {
            let builder = http::Response::builder().status(429);
            let builder = after.into_iter().fold(builder, |builder, after| builder.header("retry-after", after));
            builder.body(()).unwrap().into_parts().0
        };
        let body = br#"{"kind":"Status","code":429,"message":"too many requests","reason":"TooManyRequests",
                        "details":{"retryAfterSeconds":3}}"#;
        let after = |header, body: &[u8]| Failure::answered(&head(header), body).retry_after;
        assert_eq!(after(None, body), Some(Duration::from_secs(3)));
        assert_eq!(after(Some("7"), body), Some(Duration::from_secs(7)));
        assert_eq!(after(Some("soon"), b"<html>"), None);
        let failure = Failure::answered(&head(None), body);
        assert_eq!(failure.to_string(), "the API server answered 429 Too Many Requests: too many requests");
    }

    #[test]
    fn the_end_of_a_watch_says_what_it_is() {
        let status = serde_json::from_str(r#"{"code":410,"message":"too old resource version","reason":"Expired"}"#);
        assert!(Failure::said(status.unwrap(), StatusCode::INTERNAL_SERVER_ERROR).is_expired());
        // An error event without a code is no success.
        let silent = Failure::said(Status::default(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(silent.status, Some(StatusCode::INTERNAL_SERVER_ERROR));
    }
}
