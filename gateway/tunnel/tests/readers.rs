//! Many streams on one connection: readers that stall, more requests than a connection begins with.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as such")]

mod common;

use common::*;
use http_body_util::BodyExt;
use tokio::task::JoinSet;

/// Clients that stop reading keep what their own streams may hold, and nobody else's turn.
async fn stalled_readers(count: usize) {
    const STALLED_BYTES: usize = 3 << 20;
    const BYTES: usize = 1 << 20;
    let pair = Pair::start().await;
    let mut stalled = Vec::new();
    for _ in 0..count {
        let request = pair.handle.request(get(&format!("/bytes/{STALLED_BYTES}")));
        stalled.push(within("the head of a stalled download", request).await.unwrap());
    }
    // Together more than the connection's first window: all of it would be with those who do not read.
    for round in 0..20 {
        let response =
            within("a head beside them", pair.handle.request(get(&format!("/bytes/{BYTES}")))).await.unwrap();
        let body = within(&format!("body {round} beside them"), response.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes().len(), BYTES);
    }
    let expected = digest_of(&pattern(0, STALLED_BYTES));
    for response in stalled {
        let got = within("a stalled download, read at last", digest(response.into_body())).await.unwrap();
        assert_eq!(got, expected);
    }
}

#[tokio::test]
async fn five_stalled_readers_stop_nobody() {
    stalled_readers(5).await;
}

#[tokio::test]
async fn fifty_stalled_readers_stop_nobody() {
    stalled_readers(50).await;
}

/// The same towards the far side: backends that do not read what is uploaded to them.
#[tokio::test]
async fn stalled_uploads_stop_nobody() {
    let mut pair = Pair::start().await;
    let mut stalled = JoinSet::new();
    for _ in 0..10 {
        let handle = pair.handle.clone();
        let body = http_body_util::Full::new(bytes::Bytes::from(vec![0; 3 << 20]));
        stalled.spawn(async move { handle.request(post("/unread", body)).await.map(drop) });
        assert_eq!(pair.event().await, "unread");
    }
    let bytes = pattern(0, 1 << 20);
    let (count, hash) = digest_of(&bytes);
    for round in 0..20 {
        let body = http_body_util::Full::new(bytes::Bytes::from(bytes.clone()));
        let upload = pair.handle.request(post("/digest", body));
        let response = within(&format!("upload {round} beside them"), upload).await.unwrap();
        let answer = within("answer", response.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(answer, format!("{count} {hash:x}"));
    }
    stalled.abort_all();
}

/// A connection begins with credit for 256 streams.
#[tokio::test]
async fn stream_credit_grows_with_use() {
    const REQUESTS: usize = 2000;
    let mut pair = Pair::start().await;
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let handle = pair.handle.clone();
        requests.spawn(async move { handle.request(get("/hang")).await.map(drop) });
    }
    for _ in 0..REQUESTS {
        assert_eq!(pair.event().await, "hanging");
    }
    assert_eq!(pair.handle.in_flight(), REQUESTS);
    requests.abort_all();
    for _ in 0..REQUESTS {
        assert_eq!(pair.event().await, "cancelled: the peer reset the stream: H3_REQUEST_CANCELLED");
    }
}
