//! Heads and directions of an exchange: informational responses, sizes, early answers, what is left of a request, cancellation.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as such")]

mod common;

use archipelago_http::{Known, ResponseHead};
use archipelago_identity::testing::TestAuthority;
use archipelago_tunnel::{Exchange, IncomingRequest, PeerHandle, PeerState, TunnelError, Tunnels};
use bytes::Bytes;
use common::*;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// paris, which sends, and tokyo, which answers every request with `answer`.
async fn pair<F>(answer: impl Fn(Box<IncomingRequest>) -> F + Send + 'static) -> (Tunnels, Tunnels, PeerHandle)
where
    F: Future<Output = ()> + Send + 'static,
{
    let authority = TestAuthority::new("archipelago.test");
    let (paris, _requests) = gateway(&authority, "paris");
    let (tokyo, mut incoming) = gateway(&authority, "tokyo");
    tokio::spawn(async move {
        while let Some(request) = incoming.next().await {
            tokio::spawn(answer(request));
        }
    });
    paris.set_peers(vec![peer(&authority, "tokyo", tokyo.local_addr())]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    until_state(&paris, &handle, PeerState::Up).await;
    (paris, tokyo, handle)
}

fn with_fields<T>(mut message: T, headers: impl Fn(&mut T) -> &mut http::HeaderMap, fields: usize, bytes: usize) -> T {
    for field in 0..fields {
        let name = HeaderName::try_from(format!("x-{field}")).unwrap();
        headers(&mut message).insert(name, HeaderValue::try_from("v".repeat(bytes)).unwrap());
    }
    message
}

fn empty(head: Response<()>) -> Response<Empty<Bytes>> {
    head.map(|()| Empty::new())
}

#[tokio::test]
async fn informational_heads_come_first() {
    let (_paris, _tokyo, handle) = pair(|mut request| async move {
        for link in ["one", "two"] {
            let mut head = ResponseHead::of(StatusCode::EARLY_HINTS);
            head.fields.push(Known::Link, link.as_bytes());
            request.responder.inform(&head).await.unwrap();
        }
        respond(request.responder, Response::new(Full::new(Bytes::from_static(b"body")))).await.unwrap();
    })
    .await;
    let mut exchange = begin(&handle, get("/")).await.unwrap();
    for link in ["one", "two"] {
        let head = within("an informational head", exchange.head()).await.unwrap();
        assert_eq!((head.status.as_u16(), head.fields.get(Known::Link)), (103, Some(link.as_bytes())));
    }
    assert_eq!(within("the head", exchange.head()).await.unwrap().status, StatusCode::OK);
    assert_eq!(within("the body", exchange.collect()).await.unwrap().to_bytes(), "body");
    // Who does not ask for them does not get them.
    let response = within("the response", handle.request(get("/"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_request_is_not_unprocessed_once_an_informational_head_was_sent() {
    let (_paris, _tokyo, handle) = pair(|mut request| async move {
        request.responder.inform(&ResponseHead::of(StatusCode::PROCESSING)).await.unwrap();
        request.responder.reject();
    })
    .await;
    let error = within("an end", handle.request(get("/"))).await.unwrap_err();
    assert!(!error.never_processed(), "{error}");
}

/// What any leg accepts passes: 64 KiB, 256 fields.
#[tokio::test]
async fn large_heads_pass_both_ways() {
    let (_paris, _tokyo, handle) = pair(|request| async move {
        let (fields, bytes) = (request.head.fields.len(), request.head.fields.find("x-0").unwrap().len());
        let response = with_fields(empty(Response::new(())), Response::headers_mut, fields, bytes);
        respond(request.responder, response).await.unwrap();
    })
    .await;
    for (fields, bytes) in [(120, 10), (1, 20 << 10), (1, 64 << 10), (256, 240)] {
        let request = with_fields(get("/"), Request::headers_mut, fields, bytes);
        let response = within("a response", handle.request(request)).await.unwrap();
        assert_eq!(response.headers().len(), fields);
        assert_eq!(response.headers()["x-0"].len(), bytes);
    }
}

#[tokio::test]
async fn heads_that_the_peer_does_not_take_are_told_apart() {
    let (report, mut reports) = mpsc::channel(1);
    let (_paris, _tokyo, handle) = pair(move |request| {
        let report = report.clone();
        async move {
            let response = with_fields(empty(Response::new(())), Response::headers_mut, 2, 60 << 10);
            report.send(respond(request.responder, response).await.unwrap_err()).await.unwrap();
        }
    })
    .await;
    let large = with_fields(get("/"), Request::headers_mut, 2, 60 << 10);
    let error = within("a refusal", handle.request(large)).await.unwrap_err();
    assert!(error.is_head_too_large() && !error.is_peers_head_too_large(), "{error}");
    assert!(reports.try_recv().is_err(), "it was not sent");

    let error = within("a refusal", handle.request(get("/"))).await.unwrap_err();
    assert!(error.is_peers_head_too_large() && !error.is_head_too_large() && !error.never_processed(), "{error}");
    assert!(within("the far side's error", reports.recv()).await.unwrap().is_head_too_large());
}

#[tokio::test]
async fn a_response_of_one_head_has_ended_with_it() {
    let (_paris, _tokyo, handle) = pair(|request| async move {
        assert_eq!(request.head.fields.get(Known::Te), Some(&b"trailers"[..]));
        let response = Response::builder().header("grpc-status", "12").body(()).unwrap();
        respond(request.responder, empty(response)).await.unwrap();
    })
    .await;
    let mut request = get("/");
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    let mut exchange = begin(&handle, request).await.unwrap();
    let head = within("the head", exchange.head()).await.unwrap();
    assert_eq!(head.fields.get(Known::GrpcStatus), Some(&b"12"[..]));
    // The end may come in a packet of its own.
    assert!(within("the end", exchange.frame()).await.is_none());
    assert!(exchange.is_end_stream());
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_has_ended() {
    let (report, mut reports) = mpsc::channel(1);
    let (_paris, _tokyo, handle) = pair(move |request| {
        let report = report.clone();
        async move {
            let (request, responder) = taken(request);
            respond(responder, empty(Response::new(()))).await.unwrap();
            // Goes on reading, as for a log that is uploaded.
            report.send(digest(request.into_body()).await).await.unwrap();
        }
    })
    .await;
    let (mut sender, body) = channel();
    let mut exchange = begin(&handle, post("/", body)).await.unwrap();
    assert!(exchange.take_upload().is_none(), "the response has not ended");
    assert_eq!(within("the head", exchange.head()).await.unwrap().status, StatusCode::OK);
    assert!(within("the end", exchange.frame()).await.is_none());
    let upload = exchange.take_upload().unwrap();
    drop(exchange);
    let bytes = pattern(0, 100_000);
    let rest = tokio::join!(upload, async {
        for chunk in bytes.chunks(10_000) {
            sender.send_data(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        drop(sender);
    });
    rest.0.unwrap();
    let got = within("all of the request", reports.recv()).await.unwrap().unwrap();
    assert_eq!(got, digest_of(&bytes));
}

#[tokio::test]
async fn cancellation_is_cancelled_at_the_far_side() {
    let (report, mut reports) = mpsc::channel(1);
    let (_paris, _tokyo, handle) = pair(move |request| {
        let report = report.clone();
        async move {
            report.send(None).await.unwrap();
            let (request, responder) = taken(request);
            report.send(Some(digest(request.into_body()).await.unwrap_err())).await.unwrap();
            drop(responder);
        }
    })
    .await;
    let (mut sender, body) = channel();
    let mut exchange = begin(&handle, post("/", body)).await.unwrap();
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    tokio::select! {
        _ = exchange.head() => panic!("no answer is given"),
        begun = within("a request", reports.recv()) => assert!(begun.unwrap().is_none()),
    }
    drop(exchange);
    let error = within("the far side's error", reports.recv()).await.unwrap().unwrap();
    assert_eq!(error.to_string(), "the peer reset the stream: H3_REQUEST_CANCELLED");

    // The same when it is the sender of the request who fails.
    let (sender, body) = channel();
    let mut exchange = begin(&handle, post("/", body)).await.unwrap();
    tokio::select! {
        _ = exchange.head() => panic!("no answer is given"),
        begun = within("a request", reports.recv()) => assert!(begun.unwrap().is_none()),
    }
    sender.abort(std::io::Error::other("the client left"));
    let error = within("an end", exchange.head()).await.unwrap_err();
    assert!(matches!(error, TunnelError::Body(_)), "{error}");
    let error = within("the far side's error", reports.recv()).await.unwrap().unwrap();
    assert_eq!(error.to_string(), "the peer reset the stream: H3_REQUEST_CANCELLED");
}

/// A body of a worker's own thread.
struct Local(Rc<str>, bool);

impl Body for Local {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if !std::mem::replace(&mut self.1, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let text = std::mem::replace(&mut self.0, Rc::from(""));
        Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(Bytes::copy_from_slice(text.as_bytes())))))
    }
}

#[tokio::test]
async fn bodies_need_not_be_send() {
    let (_paris, _tokyo, handle) = pair(|request| async move {
        let (request, responder) = taken(request);
        respond(responder, Response::new(request.into_body())).await.unwrap();
    })
    .await;
    let request = handle.request(post("/", Local(Rc::from("local"), false)));
    let response: Response<Exchange<Local>> = within("the response", request).await.unwrap();
    assert_eq!(within("the body", response.into_body().collect()).await.unwrap().to_bytes(), "local");
}
