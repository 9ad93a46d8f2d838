//! What is asked for by a page, and what it is answered.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use archipelago_page::{
    action::{End, Me, Refusal, SignIn},
    assets,
    guard::{self, Foreign},
    json,
    sessions::{NoEntry, SESSION_LIFE},
    wish::Ask,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Either, Full, channel::Channel};
use hyper::body::Incoming;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;

use super::{
    Dashboard, Visitor,
    actions::{Acting, Outcome},
    live,
    serve::{Pace, REQUEST_TIME_MAX},
};
use crate::{
    api::{Context, access},
    consensus::unix_ms,
};

/// All at once, or as it comes.
type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// Answers one request.
pub(super) async fn answer(
    context: Arc<Context>,
    dashboard: Arc<Dashboard>,
    pace: Pace,
    remote: SocketAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    pace.allow(REQUEST_TIME_MAX);
    let admitted = dashboard.site.admit(request.method(), request.uri(), request.headers());
    let mut response = match admitted {
        Ok(()) => {
            let asked = Asked { context: &context, dashboard: &dashboard, pace, remote };
            asked.route(request).await.unwrap_or_else(Refused::answer)
        }
        Err(foreign) => Refused::from(foreign).answer(),
    };
    guard::protect(response.headers_mut());
    response
}

/// A request that may be one of the page.
struct Asked<'a> {
    context: &'a Arc<Context>,
    dashboard: &'a Arc<Dashboard>,
    pace: Pace,
    remote: SocketAddr,
}

impl Asked<'_> {
    async fn route(self, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::POST, "/api/sign-in") => self.sign_in(request).await,
            (&Method::POST, "/api/sign-out") => Ok(self.sign_out(&request)),
            (&Method::GET, "/api/me") => {
                let (visitor, left) = self.visitor(&request)?;
                Ok(json_of(StatusCode::OK, &self.me(&visitor, left)))
            }
            (&Method::GET, "/api/live") => self.live(&request),
            (&Method::POST, path) if path.starts_with(ACTIONS) => self.act(request).await,
            (_, path) if path.starts_with("/api/") => Err(Refused::not_found()),
            (_, path) => asset(path).ok_or_else(Refused::not_found),
        }
    }

    async fn sign_in(&self, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let SignIn { secret } = body(request).await?;
        let (session, visitor) = self.dashboard.sign_in(&secret)?;
        // Between link and session, too, an identity may have been revoked.
        let left = self.dashboard.visitor(Some(session.expose())).map(|(_, left)| left)?;
        self.may_look(&visitor)?;
        tracing::info!(actor = %visitor.spiffe_id(), read_only = visitor.read_only, "signed in to the dashboard");
        let mut response = json_of(StatusCode::OK, &self.me(&visitor, left));
        let seconds = left.min(SESSION_LIFE).as_secs();
        self.cookie(&mut response, session.expose(), seconds);
        Ok(response)
    }

    fn sign_out<B>(&self, request: &Request<B>) -> Response<Body> {
        if let Some(secret) = self.dashboard.site.session(request.headers()) {
            self.dashboard.sign_out(secret);
        }
        let mut response = Response::new(Either::Left(Full::default()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        self.cookie(&mut response, "", 0);
        response
    }

    fn cookie(&self, response: &mut Response<Body>, secret: &str, seconds: u64) {
        if let Ok(cookie) = HeaderValue::from_str(&self.dashboard.site.set_cookie(secret, seconds)) {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
    }

    /// Whose session a request shows, if that may look.
    fn visitor<B>(&self, request: &Request<B>) -> Result<(Visitor, Duration), Refused> {
        let found = self.dashboard.visitor(self.dashboard.site.session(request.headers()))?;
        self.may_look(&found.0)?;
        Ok(found)
    }

    /// By the table that judges calls: a page shows what these would tell.
    fn may_look(&self, visitor: &Visitor) -> Result<(), Refused> {
        for call in LOOKS {
            access::CLIENT_PORT.judge(call, Some(visitor.spiffe_id()))?;
        }
        Ok(())
    }

    fn live<B>(self, request: &Request<B>) -> Result<Response<Body>, Refused> {
        let (visitor, left) = self.visitor(request)?;
        if self.dashboard.views.receiver_count() >= STREAMS_MAX {
            return Err(Refused::busy(
                "too many pages are open at this member: close one, or use that of another member",
            ));
        }
        let (out, body) = Channel::new(1);
        let (context, dashboard) = (Arc::clone(self.context), Arc::clone(self.dashboard));
        tokio::spawn(live::run(context, dashboard, visitor, left, self.pace, out));
        let mut response = Response::new(Either::Right(body));
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    async fn act(self, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let (visitor, _) = self.visitor(&request)?;
        let verb = request.uri().path().strip_prefix(ACTIONS).unwrap_or_default().to_owned();
        let ask: Ask = body(request).await?;
        let acting = Acting { context: self.context, visitor: &visitor, remote: self.remote };
        Ok(match acting.act(&verb, ask).await? {
            Outcome::Plan(plan) => json_of(StatusCode::OK, &plan),
            Outcome::Done(done) => json_of(StatusCode::OK, &done),
        })
    }

    fn me(&self, visitor: &Visitor, left: Duration) -> Me {
        let id = visitor.spiffe_id();
        Me {
            identity: id.to_string(),
            name: id.path().rsplit('/').next().unwrap_or_default().to_owned(),
            role: visitor.role(),
            expires_unix_ms: unix_ms().saturating_add(i64::try_from(left.as_millis()).unwrap_or(i64::MAX)),
            member: self.context.consensus.node_id,
            federation: self.context.trust_domain.to_string(),
        }
    }
}

/// What is not done, and what it is answered with.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) error: String,
    pub(super) hint: Option<String>,
    pub(super) problems: Vec<String>,
}

impl Refused {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), hint: None, problems: Vec::new() }
    }

    fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is nothing here: the page is at /")
    }

    pub(super) fn busy(error: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }

    fn answer(self) -> Response<Body> {
        let Self { status, error, hint, problems } = self;
        json_of(status, &Refusal { error, hint, problems })
    }
}

impl From<Foreign> for Refused {
    fn from(foreign: Foreign) -> Self {
        Self::new(foreign.status(), foreign.to_string())
    }
}

impl From<End> for Refused {
    fn from(end: End) -> Self {
        let hint = Some("run `meshctl dashboard`, and open the link that it prints".to_owned());
        Self { hint, ..Self::new(StatusCode::UNAUTHORIZED, live::words(end)) }
    }
}

impl From<NoEntry> for Refused {
    fn from(why: NoEntry) -> Self {
        match why {
            NoEntry::Unknown => {
                let hint = Some("run `meshctl dashboard` again".to_owned());
                Self { hint, ..Self::new(StatusCode::UNAUTHORIZED, why.to_string()) }
            }
            NoEntry::Full => Self::busy(&format!("{why}: sign out somewhere, or use the page of another member")),
        }
    }
}

fn asset(path: &str) -> Option<Response<Body>> {
    let asset = assets::find(path)?;
    let mut response = Response::new(Either::Left(Full::new(Bytes::from_static(asset.bytes))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    Some(response)
}

pub(super) fn json_of(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(json::text(value)))));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The body of a request.
pub(super) async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refused> {
    let Ok(bytes) = timeout(BODY_TIME_MAX, collect(request.into_body())).await else {
        return Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "the request did not come in time"));
    };
    let bytes = bytes?;
    // What it says of the place is kept, of the content nothing: it may be a secret.
    serde_json::from_slice(&bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Refused::new(StatusCode::BAD_REQUEST, format!("the request is not what is expected here, at {line}:{column}"))
    })
}

const ACTIONS: &str = "/api/actions/";
/// A little more than is taken is read and thrown away: who still sends would miss the answer.
async fn collect(mut body: Incoming) -> Result<Vec<u8>, Refused> {
    let (mut bytes, mut all) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refused::new(StatusCode::BAD_REQUEST, "the request broke off"))?;
        let Some(data) = frame.data_ref() else { continue };
        all = all.saturating_add(data.len());
        if all <= BODY_BYTES_MAX {
            bytes.extend_from_slice(data);
        } else if all > DISCARDED_BYTES_MAX {
            break;
        }
    }
    if all > BODY_BYTES_MAX {
        let error = format!("a request has at most {BODY_BYTES_MAX} bytes");
        return Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, error));
    }
    Ok(bytes)
}

/// What a page shows is what these tell.
const LOOKS: [&str; 4] = [
    "/archipelago.v1.Fleet/Status",
    "/archipelago.v1.Events/Follow",
    "/archipelago.v1.Telemetry/Ask",
    "/archipelago.v1.Resources/Get",
];
/// Pages that are open at one member, at up to a state of some hundred kilobytes each.
const STREAMS_MAX: usize = 64;
const BODY_BYTES_MAX: usize = 64 * 1024;
const DISCARDED_BYTES_MAX: usize = 256 * 1024;
const BODY_TIME_MAX: Duration = Duration::from_secs(10);
