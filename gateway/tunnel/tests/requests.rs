//! One request at a time: bodies, trailers, resets, cancellation, backpressure, CONNECT.

mod common;

use archipelago_tunnel::{PeerState, TunnelError};
use bytes::Bytes;
use common::*;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use std::time::Duration;

#[tokio::test]
async fn get_with_and_without_body() {
    let pair = Pair::start().await;
    let response = within("response", pair.handle.request(get("/bytes/0"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    assert!(within("end", body.frame()).await.is_none());
    let response = within("response", pair.handle.request(get("/bytes/100000"))).await.unwrap();
    assert_eq!(response.headers()["content-length"], "100000");
    assert_eq!(response.body().size_hint().exact(), Some(100_000));
    let body = within("body", response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body, pattern(0, 100_000));
    assert_eq!(pair.handle.in_flight(), 0);
}

#[tokio::test]
async fn the_server_learns_who_asks() {
    let pair = Pair::start().await;
    let response = within("response", pair.handle.request(get("/peer"))).await.unwrap();
    let body = within("body", response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body, "spiffe://archipelago.test/cluster/paris/gateway/gw");
}

#[tokio::test]
async fn post_at_once_and_streamed() {
    let pair = Pair::start().await;
    let bytes = pattern(0, 300_000);
    let (count, hash) = digest_of(&bytes);
    let whole = post("/digest", Full::new(Bytes::from(bytes.clone())));
    let response = within("response", pair.handle.request(whole)).await.unwrap();
    let answer = within("body", response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(answer, format!("{count} {hash:x}"));

    let (mut sender, body) = channel();
    let feed = tokio::spawn(async move {
        for chunk in bytes.chunks(10_000) {
            sender.send_data(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
    });
    let response = within("response", pair.handle.request(post("/digest", body))).await.unwrap();
    feed.await.unwrap();
    let answer = within("body", response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(answer, format!("{count} {hash:x}"));
}

#[tokio::test]
async fn echo_is_full_duplex() {
    let pair = Pair::start().await;
    let (mut sender, body) = channel();
    let mut echo = within("head before the body", pair.handle.request(post("/echo", body))).await.unwrap().into_body();
    for round in 0..50 {
        let chunk = Bytes::from(pattern(round, 1000));
        sender.send_data(chunk.clone()).await.unwrap();
        let mut got = Vec::new();
        while got.len() < chunk.len() {
            got.extend_from_slice(&next_data(&mut echo).await);
        }
        assert_eq!(got, chunk);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("50"));
    sender.send_trailers(trailers.clone()).await.unwrap();
    drop(sender);
    let last = within("trailers", echo.frame()).await.unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap(), trailers);
    assert!(within("end", echo.frame()).await.is_none());
}

#[tokio::test]
async fn response_trailers() {
    let pair = Pair::start().await;
    let response = within("response", pair.handle.request(get("/trailers"))).await.unwrap();
    let collected = within("body", response.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "body");
}

#[tokio::test]
async fn a_broken_response_is_never_a_clean_end() {
    let mut pair = Pair::start().await;
    // The reset may overtake head and data (RFC 9000 §3.2): then there is no response at all.
    let error = match within("response", pair.handle.request(get("/broken"))).await {
        Ok(response) => within("body", response.into_body().collect()).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.to_string(), "the peer reset the stream: H3_INTERNAL_ERROR");
    assert!(!error.never_processed());
    assert_eq!(pair.event().await, "/broken: the body to send failed");
}

#[tokio::test]
async fn a_broken_request_is_never_a_clean_end() {
    let mut pair = Pair::start().await;
    let (mut sender, body) = channel();
    let mut echo = within("echo", pair.handle.request(post("/echo", body))).await.unwrap().into_body();
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    assert_eq!(next_data(&mut echo).await, "half");
    sender.abort(std::io::Error::other("client died"));
    let error = within("the echo breaks", echo.frame()).await.unwrap().unwrap_err();
    assert!(matches!(error, TunnelError::Body(_) | TunnelError::Reset { .. }), "{error}");
    assert_eq!(pair.event().await, "/echo: the body to send failed");
}

#[tokio::test]
async fn a_request_that_breaks_before_its_response_fails() {
    let pair = Pair::start().await;
    let (mut sender, body) = channel();
    let handle = pair.handle.clone();
    let request = tokio::spawn(async move { handle.request(post("/digest", body)).await });
    sender.send_data(Bytes::from_static(b"half")).await.unwrap();
    sender.abort(std::io::Error::other("client died"));
    assert!(matches!(within("request", request).await.unwrap(), Err(TunnelError::Body(_))));
}

#[tokio::test]
async fn a_rejected_request_was_never_processed() {
    let pair = Pair::start().await;
    let error = within("response", pair.handle.request(get("/reject"))).await.unwrap_err();
    assert!(matches!(error, TunnelError::Rejected));
    assert!(error.never_processed());
}

#[tokio::test]
async fn too_many_waiting_requests_are_rejected_unprocessed() {
    let authority = archipelago_identity::testing::TestAuthority::new("archipelago.test");
    let (paris, _requests) = gateway(&authority, "paris");
    let mut config = config(authority.gateway("tokyo", "gw"), "tokyo", "gw");
    config.limits.incoming_queue = 2;
    let (tokyo, _nobody_reads) = archipelago_tunnel::Tunnels::bind(config).unwrap();
    paris.set_peers(vec![peer(&authority, "tokyo", tokyo.local_addr())]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    until_state(&paris, &handle, PeerState::Up).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let handle = handle.clone();
        requests.spawn(async move { handle.request(get("/")).await.map(drop) });
    }
    let error = within("the third", requests.join_next()).await.unwrap().unwrap().unwrap_err();
    assert!(error.never_processed(), "{error}");
    assert_eq!(tokyo.stats().rejected_requests, 1);
}

#[tokio::test]
async fn a_cancelled_request_is_cancelled_there() {
    let mut pair = Pair::start().await;
    let handle = pair.handle.clone();
    let request = tokio::spawn(async move { handle.request(get("/hang")).await.map(drop) });
    assert_eq!(pair.event().await, "hanging");
    request.abort();
    assert_eq!(pair.event().await, "cancelled: the peer reset the stream: H3_REQUEST_CANCELLED");
    assert_eq!(pair.handle.in_flight(), 0);
}

#[tokio::test]
async fn a_slow_reader_stops_the_sender() {
    let mut pair = Pair::start().await;
    let response = within("response", pair.handle.request(get("/endless"))).await.unwrap();
    let mut body = response.into_body();
    next_data(&mut body).await;
    let mut pulled = 0;
    // No progress for half a second: the sender has stopped.
    while let Ok(event) = tokio::time::timeout(Duration::from_millis(500), pair.events.recv()).await {
        pulled = event.unwrap().strip_prefix("pulled ").unwrap().parse().unwrap();
    }
    assert!(pulled > CHUNK && pulled <= (2 << 20) + 4 * CHUNK, "{pulled} bytes for a reader that does not read");
    drop(body);
    let mut last = pair.event().await;
    while last.starts_with("pulled") {
        last = pair.event().await;
    }
    assert_eq!(last, "endless: the peer reset the stream: H3_REQUEST_CANCELLED");
}

#[tokio::test]
async fn an_unread_upload_stops_the_sender() {
    let mut pair = Pair::start().await;
    let (mut sender, body) = channel();
    let handle = pair.handle.clone();
    let request = tokio::spawn(async move { handle.request(post("/unread", body)).await.map(drop) });
    assert_eq!(pair.event().await, "unread");
    let mut sent = 0;
    let chunk = Bytes::from(vec![0; CHUNK]);
    while tokio::time::timeout(Duration::from_millis(500), sender.send_data(chunk.clone())).await.is_ok() {
        sent += CHUNK;
        assert!(sent <= (2 << 20) + 16 * CHUNK, "{sent} bytes to a server that does not read");
    }
    request.abort();
}

#[tokio::test]
async fn large_transfers_arrive_intact() {
    let pair = Pair::start().await;
    const BYTES: usize = 64 << 20;
    let bytes = pattern(0, BYTES);
    let expected = digest_of(&bytes);
    let response = within("response", pair.handle.request(get(&format!("/bytes/{BYTES}")))).await.unwrap();
    let got = tokio::time::timeout(PATIENCE * 3, digest(response.into_body())).await.expect("64 MiB down").unwrap();
    assert_eq!(got, expected);
    let upload = pair.handle.request(post("/digest", Full::new(Bytes::from(bytes))));
    let response = tokio::time::timeout(PATIENCE * 3, upload).await.expect("64 MiB up").unwrap();
    let answer = within("body", response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(answer, format!("{} {:x}", expected.0, expected.1));
}

#[tokio::test]
async fn connect_with_half_close() {
    let pair = Pair::start().await;
    let (response, mut send, mut recv) = within("connect", connect(&pair.handle)).await.unwrap();
    assert_eq!(response.status, StatusCode::OK);
    for _ in 0..10 {
        send.send(Bytes::from(vec![0; 1000])).await.unwrap();
    }
    send.finish().await.unwrap();
    let answer = within("answer after half-close", recv.recv()).await.unwrap().unwrap();
    assert_eq!(answer, "10000 bytes");
    assert!(within("end", recv.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn connect_reset_travels() {
    let mut pair = Pair::start().await;
    let (_, mut send, mut recv) = within("connect", connect(&pair.handle)).await.unwrap();
    send.send(Bytes::from_static(b"half a request")).await.unwrap();
    send.abort();
    assert_eq!(pair.event().await, "connect: the peer reset the stream: H3_CONNECT_ERROR");
    let error = within("reset back", recv.recv()).await.unwrap_err();
    assert_eq!(error.to_string(), "the peer reset the stream: H3_CONNECT_ERROR");
    // A half that is forgotten is not a clean end either.
    let (_, send, _recv) = within("connect", connect(&pair.handle)).await.unwrap();
    drop(send);
    assert_eq!(pair.event().await, "connect: the peer reset the stream: H3_REQUEST_CANCELLED");
}
