//! The shape of the HTTP path: a [`Call`] goes down a stack of tower layers, a response or a [`Failure`] comes back.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::uri::{Authority, PathAndQuery};
use http::{Response, StatusCode, request};

use super::body::{Replayable, ResponseBody};
use super::record::Record;
use crate::authorize::{Authorized, Refusal};
use crate::config::Capture;
use crate::source::Workload;
use crate::worker::{Caller, Worker};

/// One request on its way through this gateway. Layers hand it on in a box: otherwise each of their futures would hold and move
/// half a kilobyte.
#[derive(Debug)]
pub struct Call {
    /// The worker it runs on.
    pub worker: Rc<Worker>,
    /// Its head; after [`super::layers::sanitize`] without hop-by-hop and `mesh-*` headers.
    pub parts: request::Parts,
    /// Its body.
    pub body: Replayable,
    /// Where it came from.
    pub origin: Origin,
    /// The workload that it is from, if that is known.
    pub source: Option<Rc<Workload>>,
    /// What is written down about it.
    pub record: Rc<RefCell<Record>>,
    /// What the port it came to is for, whatever host it names.
    pub capture: Option<Arc<Capture>>,
    /// Set by sanitize.
    pub target: Option<(Authority, PathAndQuery)>,
    /// The sender takes trailers.
    pub trailers: bool,
    /// [`Service::key`](crate::config::Service::key), set by routing.
    pub service: Option<Arc<str>>,
    /// When a response must have begun, as far as is known; moves on while the sender sends.
    pub deadline: Option<Instant>,
}

/// Where a request came from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A client of this cluster.
    Client,
    /// Another gateway, whose request has not been judged yet: it goes nowhere.
    Arrived(Arrival),
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
}

/// Why a gateway answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The request is not well-formed.
    Malformed(super::headers::Malformed),
    /// No service has this host name.
    UnknownHost,
    /// The port is for a service that the federation does not have, or not yet, or not with this port.
    UnknownPort,
    /// A TCP service does not speak HTTP here.
    NotHttp,
    /// CONNECT and upgrades are not offered.
    Unsupported,
    /// The worker carries as much as it may.
    Overloaded,
    /// This gateway cannot run the service's configuration.
    Closed,
    /// No cluster, gateway or endpoint can serve.
    NoHealthy,
    /// The same, and an endpoint of this gateway never saw the request.
    NoEndpointHere,
    /// No response in time.
    Timeout,
    /// The exchange broke, and could not be repeated.
    Broken,
    /// The head of the request is more than the way to the service carries.
    RequestHead,
    /// The head of the response is more than gateways carry, or malformed. Asked again it would be the same.
    ResponseHead,
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
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::UnknownHost | Self::NotHttp => StatusCode::NOT_FOUND,
            Self::Unsupported => StatusCode::NOT_IMPLEMENTED,
            Self::UnknownPort | Self::Overloaded | Self::Closed | Self::NoHealthy | Self::NoEndpointHere => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Broken | Self::ResponseHead => StatusCode::BAD_GATEWAY,
            Self::RequestHead => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Refused(Refusal::Hops) => StatusCode::LOOP_DETECTED,
            Self::Refused(_) => StatusCode::FORBIDDEN,
        }
    }

    /// Value of `mesh-failure`: a closed set.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::UnknownHost => "unknown-host",
            Self::UnknownPort => "unknown-port",
            Self::NotHttp => "not-http",
            Self::Unsupported => "unsupported",
            Self::Overloaded => "overloaded",
            Self::Closed => "service-closed",
            Self::NoHealthy | Self::NoEndpointHere => "no-healthy-upstream",
            Self::Timeout => "timeout",
            Self::Broken => "upstream-broken",
            Self::RequestHead => "request-head-too-large",
            Self::ResponseHead => "response-head",
            Self::Refused(Refusal::Hops) => "loop",
            Self::Refused(_) => "forbidden",
        }
    }

    /// Envoy's letters for the access log.
    pub fn flags(self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Unsupported | Self::RequestHead => "DPE",
            Self::UnknownHost | Self::UnknownPort | Self::NotHttp => "NR",
            Self::Closed => "NC",
            Self::Overloaded => "UO",
            Self::NoHealthy | Self::NoEndpointHere => "UH",
            Self::Timeout => "UT",
            Self::Broken => "UF,URX",
            Self::ResponseHead => "UPE",
            Self::Refused(Refusal::Hops) => "LR",
            Self::Refused(_) => "UAEX",
        }
    }

    /// One line for the person who sent the request.
    pub fn line(self) -> String {
        match self {
            Self::Malformed(what) => what.to_string(),
            Self::UnknownHost => "no service of this federation has this host name".to_owned(),
            Self::UnknownPort => {
                "no cluster exports this port of this service, as far as this gateway knows".to_owned()
            }
            Self::NotHttp => "this service is TCP; it has a port of its own".to_owned(),
            Self::Unsupported => "CONNECT and Upgrade are not offered here".to_owned(),
            Self::Overloaded => "this gateway carries as many requests as it may".to_owned(),
            Self::Closed => "this gateway cannot run the configuration of this service".to_owned(),
            Self::NoHealthy | Self::NoEndpointHere => "no cluster can serve this request now".to_owned(),
            Self::Timeout => "the service did not answer in time".to_owned(),
            Self::Broken => "the service broke the exchange before it answered".to_owned(),
            Self::RequestHead => {
                "the headers of this request are larger than gateways carry: 96 KiB, 512 fields".to_owned()
            }
            Self::ResponseHead => {
                "the headers of the service's response are malformed, or larger than gateways carry: 96 KiB, 512 fields"
                    .to_owned()
            }
            Self::Refused(refusal) => refusal.to_string(),
        }
    }
}

/// What a stack gives back.
pub type Outcome = Result<Response<ResponseBody>, Failure>;
/// A future on one worker's thread.
pub type Local<T> = Pin<Box<dyn Future<Output = T>>>;

/// A composed stack, boxed once.
#[derive(Clone)]
pub struct Stack(Rc<dyn Fn(Box<Call>) -> Local<Outcome>>);

impl Stack {
    /// Boxes a service.
    pub fn new<S>(service: S) -> Self
    where
        S: tower::Service<Box<Call>, Response = Response<ResponseBody>, Error = Failure, Future = Local<Outcome>>
            + Clone
            + 'static,
    {
        Self(Rc::new(move |call| service.clone().call(call)))
    }

    /// Sends a call down.
    pub fn run(&self, call: Box<Call>) -> Local<Outcome> {
        (self.0)(call)
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stack")
    }
}

/// A layer that is one async function of the call and the rest of the stack.
#[derive(Debug, Clone, Copy)]
pub struct FnLayer<F>(F);

/// Makes a layer of `f`.
pub fn layer<F, Fut>(f: F) -> FnLayer<F>
where
    F: Fn(Box<Call>, Stack) -> Fut + Clone + 'static,
    Fut: Future<Output = Outcome> + 'static,
{
    FnLayer(f)
}

impl<F, S> tower::Layer<S> for FnLayer<F>
where
    F: Clone,
    S: tower::Service<Box<Call>, Response = Response<ResponseBody>, Error = Failure, Future = Local<Outcome>>
        + Clone
        + 'static,
{
    type Service = FnService<F>;

    fn layer(&self, inner: S) -> FnService<F> {
        FnService { f: self.0.clone(), inner: Stack::new(inner) }
    }
}

/// The service of a [`FnLayer`].
#[derive(Debug, Clone)]
pub struct FnService<F> {
    f: F,
    inner: Stack,
}

impl<F, Fut> tower::Service<Box<Call>> for FnService<F>
where
    F: Fn(Box<Call>, Stack) -> Fut,
    Fut: Future<Output = Outcome> + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Failure;
    type Future = Local<Outcome>;

    /// Always ready: what must wait or be refused (admission) decides in `call`, where it can answer.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Box<Call>) -> Local<Outcome> {
        Box::pin((self.f)(call, self.inner.clone()))
    }
}

/// The innermost service: one async function.
#[derive(Debug, Clone, Copy)]
pub struct Last<F>(pub F);

impl<F, Fut> tower::Service<Box<Call>> for Last<F>
where
    F: Fn(Box<Call>) -> Fut,
    Fut: Future<Output = Outcome> + 'static,
{
    type Response = Response<ResponseBody>;
    type Error = Failure;
    type Future = Local<Outcome>;

    /// Always ready, see [`FnService`].
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Box<Call>) -> Local<Outcome> {
        Box::pin((self.0)(call))
    }
}
