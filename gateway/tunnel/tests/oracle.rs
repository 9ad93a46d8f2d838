//! Our HTTP/3 against the `h3` crate's, as client and as server.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not see as such")]

mod common;

use archipelago_identity::{LiveCredential, testing::TestAuthority, tls};
use archipelago_tunnel::{PeerState, Tunnels};
use bytes::{Buf, Bytes};
use common::*;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use std::{future::poll_fn, net::SocketAddr, sync::Arc};
use tokio::sync::mpsc;

/// An `h3` server in the place of tokyo: `/echo` echoes body and trailers, everything else describes the request.
fn h3_server(credential: &LiveCredential) -> SocketAddr {
    let tls = tls::server_config(credential, tls::ClientAuth::Required, &[b"h3"]);
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::server(config, localhost()).unwrap();
    let address = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let connection = h3_quinn::Connection::new(incoming.await.unwrap());
                let mut connection =
                    h3::server::builder().send_grease(true).build::<_, Bytes>(connection).await.unwrap();
                while let Ok(Some(resolver)) = connection.accept().await {
                    tokio::spawn(async move {
                        let (request, mut stream) = resolver.resolve_request().await.unwrap();
                        let describe =
                            format!("{} {} {:?}", request.method(), request.uri(), request.headers().get("x-a"));
                        if request.uri().path() == "/hints" {
                            let hints = Response::builder().status(StatusCode::EARLY_HINTS).header("link", "</a>");
                            stream.send_response(hints.body(()).unwrap()).await.unwrap();
                        }
                        let response = Response::builder().header("content-type", "text/plain").header("x-h3", "yes");
                        stream.send_response(response.body(()).unwrap()).await.unwrap();
                        if request.uri().path() == "/echo" {
                            while let Some(mut data) = stream.recv_data().await.unwrap() {
                                stream.send_data(data.copy_to_bytes(data.remaining())).await.unwrap();
                            }
                            if let Some(trailers) = stream.recv_trailers().await.unwrap() {
                                stream.send_trailers(trailers).await.unwrap();
                            }
                        } else {
                            stream.send_data(Bytes::from(describe)).await.unwrap();
                        }
                        stream.finish().await.unwrap();
                    });
                }
            });
        }
    });
    address
}

async fn our_client() -> (Tunnels, archipelago_tunnel::PeerHandle) {
    let authority = TestAuthority::new("archipelago.test");
    let address = h3_server(&authority.gateway("tokyo", "gw"));
    let (paris, _requests) = gateway(&authority, "paris");
    paris.set_peers(vec![peer(&authority, "tokyo", address)]);
    let handle = paris.peer(&name("tokyo")).unwrap();
    until_state(&paris, &handle, PeerState::Up).await;
    (paris, handle)
}

#[tokio::test]
async fn our_client_gets() {
    let (_paris, handle) = our_client().await;
    let request = Request::get("http://app.test/a/b?c=d").header("x-a", "1").body(Full::<Bytes>::default()).unwrap();
    let response = within("response", handle.request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/plain");
    assert_eq!(response.headers()["x-h3"], "yes");
    let body = within("body", response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body, "GET http://app.test/a/b?c=d Some(\"1\")");
}

#[tokio::test]
async fn our_client_passes_over_informational_responses() {
    let (_paris, handle) = our_client().await;
    let response = within("response", handle.request(get("/hints"))).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("link"));
}

#[tokio::test]
async fn our_client_streams_with_trailers() {
    let (_paris, handle) = our_client().await;
    let (mut sender, body) = channel();
    let bytes = pattern(0, 200_000);
    let sent = bytes.clone();
    let feed = tokio::spawn(async move {
        for chunk in sent.chunks(7_000) {
            sender.send_data(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("200000"));
        sender.send_trailers(trailers).await.unwrap();
    });
    let response = within("response", handle.request(post("/echo", body))).await.unwrap();
    let collected = within("body", response.into_body().collect()).await.unwrap();
    feed.await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "200000");
    assert_eq!(collected.to_bytes(), bytes);
}

/// An `h3` client towards our server, which serves the application of `common`.
struct H3Client {
    send: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    _tokyo: Tunnels,
    _events: mpsc::Receiver<String>,
    _endpoint: quinn::Endpoint,
}

impl H3Client {
    async fn connect() -> Self {
        let authority = TestAuthority::new("archipelago.test");
        let (tokyo, incoming) = gateway(&authority, "tokyo");
        let (report, events) = mpsc::channel(1000);
        tokio::spawn(serve(incoming, report));
        let expect = tls::Expect::Id(peer(&authority, "tokyo", localhost()).spiffe_id);
        let tls = tls::client_config(&authority.gateway("paris", "gw"), expect, &[b"h3"]);
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let endpoint = quinn::Endpoint::client(localhost()).unwrap();
        let connection = endpoint.connect_with(config, tokyo.local_addr(), "tokyo.test").unwrap();
        let connection = h3_quinn::Connection::new(within("handshake", connection).await.unwrap());
        let (mut driver, send) = h3::client::builder().send_grease(true).build(connection).await.unwrap();
        tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
        Self { send, _tokyo: tokyo, _events: events, _endpoint: endpoint }
    }
}

#[tokio::test]
async fn our_server_answers() {
    let mut client = H3Client::connect().await;
    for (path, length) in [("/bytes/0", 0), ("/bytes/100000", 100_000)] {
        let request = Request::get(format!("https://app.test{path}")).header("accept", "*/*").body(()).unwrap();
        let mut stream = client.send.send_request(request).await.unwrap();
        stream.finish().await.unwrap();
        let response = within("response", stream.recv_response()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-length"], length.to_string());
        let mut body = Vec::new();
        while let Some(mut data) = within("data", stream.recv_data()).await.unwrap() {
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        assert_eq!(body, pattern(0, length));
    }
}

#[tokio::test]
async fn our_server_echoes_with_trailers() {
    let mut client = H3Client::connect().await;
    let request = Request::builder().method(Method::POST).uri("https://app.test/echo").body(()).unwrap();
    let mut stream = client.send.send_request(request).await.unwrap();
    let response = within("head before the body", stream.recv_response()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    for round in 0..20 {
        let chunk = Bytes::from(pattern(round, 3000));
        stream.send_data(chunk.clone()).await.unwrap();
        let mut got = Vec::new();
        while got.len() < chunk.len() {
            let mut data = within("echo", stream.recv_data()).await.unwrap().unwrap();
            got.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        assert_eq!(got, chunk);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("60000"));
    stream.send_trailers(trailers.clone()).await.unwrap();
    stream.finish().await.unwrap();
    assert!(within("end of data", stream.recv_data()).await.unwrap().is_none());
    assert_eq!(within("trailers", stream.recv_trailers()).await.unwrap(), Some(trailers));
}

#[tokio::test]
async fn our_server_resets_what_breaks() {
    let mut client = H3Client::connect().await;
    let request = Request::get("https://app.test/broken").body(()).unwrap();
    let mut stream = client.send.send_request(request).await.unwrap();
    stream.finish().await.unwrap();
    let error = within("a reset", async {
        if let Err(error) = stream.recv_response().await {
            return error;
        }
        loop {
            match stream.recv_data().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a broken body ended cleanly"),
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(format!("{error:?}").contains("INTERNAL_ERROR"), "{error:?}");
}
