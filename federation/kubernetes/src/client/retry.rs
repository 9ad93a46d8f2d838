//! Asking again when the API server says that it has too much to do.

use std::time::Duration;

use archipelago_base::backoff::Backoff;
use http::{Request, Response, StatusCode, header};
use kube::client::Body;
use tokio::time::{Sleep, sleep};
use tower::{BoxError, retry::Policy};

/// A few more attempts after 429 and 503, which say that nothing was done, and after as long as the API server asks for.
/// Everything else is for the caller to judge.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    left: u32,
    backoff: Backoff,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            left: ATTEMPTS_MORE,
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(5)),
        }
    }
}

impl<B> Policy<Request<Body>, Response<B>, BoxError> for Patience {
    type Future = Sleep;

    fn retry(&mut self, _: &mut Request<Body>, result: &mut Result<Response<B>, BoxError>) -> Option<Sleep> {
        let response = result.as_ref().ok()?;
        if !matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            return None;
        }
        let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let asked = asked.map(Duration::from_secs).unwrap_or_default();
        // Longer than a caller should be kept without a word: he is told, and when.
        if asked > ASKED_MAX {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        Some(sleep(asked + self.backoff.next_delay(rand::random())))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        let body = request.body().try_clone()?;
        let mut copy = Request::new(body);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Some(copy)
    }
}

const ATTEMPTS_MORE: u32 = 3;
const ASKED_MAX: Duration = Duration::from_secs(10);
