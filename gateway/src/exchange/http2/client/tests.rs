//! Against endpoints that are scripted: `h2` servers where the protocol is kept, raw frames where a test needs to say exactly
//! what is said, and see exactly what comes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Empty, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, watch};

use super::{CONNECTIONS_MAX, Http2Error, Http2Exchange, Http2Pool};
use crate::exchange::door::Door;
use crate::ledger::Waits;

const PATIENCE: Duration = Duration::from_secs(20);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.unwrap().block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("in time") });
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn get(address: SocketAddr) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{address}/")).body(Empty::new()).unwrap()
}

fn post(address: SocketAddr, body: &'static str) -> Request<Full<Bytes>> {
    Request::post(format!("http://{address}/")).body(Full::from(body)).unwrap()
}

async fn fetch(
    pool: &Http2Pool,
    address: SocketAddr,
) -> Result<(Response<()>, Http2Exchange<Empty<Bytes>>), Http2Error> {
    pool.send(|| Some(get(address)), &Waits::default()).await
}

/// Serves every connection with `h2`, every request with `answer`.
async fn serve<F>(
    limit: u32,
    answer: impl Fn(h2::server::SendResponse<Bytes>, Request<h2::RecvStream>) -> F + Clone + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
{
    let (listener, address) = listen().await;
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::task::spawn_local(async move {
                let mut builder = h2::server::Builder::new();
                let Ok(mut connection) = builder.max_concurrent_streams(limit).handshake::<_, Bytes>(stream).await
                else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::task::spawn_local(answer(respond, request));
                }
            });
        }
    });
    address
}

#[test]
fn more_streams_than_a_connection_takes_open_more_connections() {
    run(async {
        let (count, release) = (Rc::new(watch::Sender::new(0)), 40);
        let counted = Rc::clone(&count);
        // Answers nobody before all are there: the eleventh must not wait for one of the first ten.
        let address = serve(10, move |mut respond, _| {
            let count = Rc::clone(&counted);
            async move {
                count.send_modify(|count| *count += 1);
                let _ = count.subscribe().wait_for(|count| *count >= release).await;
                let _ = respond.send_response(Response::new(()), true);
            }
        })
        .await;
        let pool = Http2Pool::new(Door::new(address));
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..release {
            let pool = pool.clone();
            requests.spawn_local(async move { fetch(&pool, address).await.unwrap().0.status() });
        }
        while let Some(status) = requests.join_next().await {
            assert_eq!(status.unwrap(), StatusCode::OK);
        }
        assert_eq!(pool.connections(), 4);
        // All of it is free again, and the fullest connection is used.
        fetch(&pool, address).await.unwrap();
        assert_eq!(pool.connections(), 4);
    });
}

#[test]
fn an_endpoint_that_is_full_fails_the_next_request_in_time() {
    run(async {
        let address = serve(1, |respond, _| async move {
            let _held = respond;
            std::future::pending::<()>().await;
        })
        .await;
        let pool = Http2Pool::new(Door::new(address));
        let mut held = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS_MAX {
            let pool = pool.clone();
            held.spawn_local(async move { fetch(&pool, address).await.map(drop) });
        }
        while pool.connections() < CONNECTIONS_MAX {
            tokio::task::yield_now().await;
        }
        let error = fetch(&pool, address).await.unwrap_err();
        assert!(matches!(error, Http2Error::Saturated { .. }), "{error}");
        assert!(error.never_processed() && !error.blames_endpoint());
        // One that ends makes room for one that waits.
        held.abort_all();
    });
}

#[test]
fn bodies_and_trailers_go_both_ways_at_once() {
    run(async {
        let address = serve(100, |mut respond, request| async move {
            assert_eq!(request.headers()["te"], "trailers");
            let mut body = request.into_body();
            let mut back = respond.send_response(Response::new(()), false).unwrap();
            while let Some(data) = body.data().await {
                let data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                back.send_data(data, false).unwrap();
            }
            let trailers = body.trailers().await.unwrap().unwrap();
            back.send_trailers(trailers).unwrap();
        })
        .await;
        let pool = Http2Pool::new(Door::new(address));
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(4);
        let mut request =
            Some(Request::post(format!("http://{address}/")).header("te", "trailers").body(body).unwrap());
        let (head, mut exchange) = pool.send(|| request.take(), &Waits::default()).await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
        for round in 0..50u8 {
            sender.send_data(Bytes::from(vec![round; 20_000])).await.unwrap();
            let mut got = 0;
            while got < 20_000 {
                let data = exchange.frame().await.unwrap().unwrap().into_data().unwrap();
                assert!(data.iter().all(|byte| *byte == round));
                got += data.len();
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        sender.send_trailers(trailers.clone()).await.unwrap();
        let last = exchange.frame().await.unwrap().unwrap();
        assert_eq!(last.into_trailers().unwrap(), trailers);
        assert!(exchange.frame().await.is_none());
        assert!(exchange.take_upload().is_none());
    });
}

#[test]
fn a_response_without_a_body_has_ended_with_its_head() {
    run(async {
        let address = serve(100, |mut respond, _| async move {
            let head = Response::builder().header("grpc-status", "12").body(()).unwrap();
            respond.send_response(head, true).unwrap();
        })
        .await;
        let pool = Http2Pool::new(Door::new(address));
        let (head, exchange) = fetch(&pool, address).await.unwrap();
        assert_eq!(head.headers()["grpc-status"], "12");
        assert!(http_body::Body::is_end_stream(&exchange));
    });
}

#[test]
fn informational_heads_come_first() {
    run(async {
        let address = serve(100, |mut respond, _| async move {
            for link in ["one", "two"] {
                let head = Response::builder().status(103).header("link", link).body(()).unwrap();
                respond.send_informational(head).unwrap();
            }
            respond.send_response(Response::new(()), true).unwrap();
        })
        .await;
        let pool = Http2Pool::new(Door::new(address));
        let (first, mut exchange) = fetch(&pool, address).await.unwrap();
        assert_eq!((first.status().as_u16(), &first.headers()["link"]), (103, &HeaderValue::from_static("one")));
        let second = exchange.head().await.unwrap();
        assert_eq!((second.status().as_u16(), &second.headers()["link"]), (103, &HeaderValue::from_static("two")));
        assert_eq!(exchange.head().await.unwrap().status(), StatusCode::OK);
    });
}

#[test]
fn large_heads_pass_and_too_large_ones_are_asked_for_once() {
    run(async {
        let (seen, mut requests) = mpsc::channel(100);
        let address = serve(100, move |mut respond, request| {
            let seen = seen.clone();
            async move {
                let (fields, length) = match request.method().as_str() {
                    "GET" => (120, 100),
                    "PUT" => (1, 60 * 1024),
                    "POST" => (2, 60 * 1024),
                    _ => (8, 60 * 1024),
                };
                let mut head = Response::new(());
                for field in 0..fields {
                    let name = http::HeaderName::try_from(format!("x-{field}")).unwrap();
                    head.headers_mut().insert(name, HeaderValue::try_from("v".repeat(length)).unwrap());
                }
                let _ = respond.send_response(head, true);
                seen.try_send(()).unwrap();
            }
        })
        .await;
        let pool = Http2Pool::new(Door::new(address));
        let ask = async |method: Method| {
            pool.send(
                || {
                    Some(
                        Request::builder()
                            .method(&method)
                            .uri(format!("http://{address}/"))
                            .body(Empty::<Bytes>::new())
                            .unwrap(),
                    )
                },
                &Waits::default(),
            )
            .await
        };
        assert_eq!(ask(Method::GET).await.unwrap().0.headers().len(), 120);
        assert_eq!(ask(Method::PUT).await.unwrap().0.headers().len(), 1);
        let error = ask(Method::POST).await.unwrap_err();
        assert!(matches!(error, Http2Error::HeadTooLarge { .. }), "{error}");
        assert!(error.is_bad_head() && !error.never_processed() && !error.blames_endpoint());
        let error = ask(Method::DELETE).await.unwrap_err();
        assert!(matches!(error, Http2Error::HeadTooLarge { .. }), "{error}");
        for _ in 0..4 {
            requests.recv().await.unwrap();
        }
        assert!(requests.try_recv().is_err(), "each was asked for once");
    });
}

#[test]
fn a_dial_that_hangs_is_shared_and_its_result_too() {
    run(async {
        // Accepts, and says nothing.
        let (listener, address) = listen().await;
        let accepted = Rc::new(std::cell::RefCell::new(Vec::new()));
        let held = Rc::clone(&accepted);
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                held.borrow_mut().push(stream);
            }
        });
        let pool = Http2Pool::new(Door::new(address));
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let pool = pool.clone();
            requests.spawn_local(async move { fetch(&pool, address).await.unwrap_err() });
        }
        while let Some(error) = requests.join_next().await {
            let error = error.unwrap();
            assert!(matches!(error, Http2Error::Dial { .. }) && error.never_processed(), "{error}");
        }
        assert_eq!(accepted.borrow().len(), 1, "one dial, not one after the other");
    });
}

#[test]
fn somebody_who_does_not_speak_http2_is_found_out_before_a_request_is_sent() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            }
        });
        let error = fetch(&Http2Pool::new(Door::new(address)), address).await.unwrap_err();
        assert!(error.never_processed(), "{error}");
    });
}

#[test]
fn idle_connections_close() {
    run(async {
        let (listener, address) = listen().await;
        let accepted = tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_response(Response::new(()), true).unwrap();
            }
        });
        let pool = Http2Pool::new(Door::new(address));
        fetch(&pool, address).await.unwrap();
        let now = std::time::Instant::now();
        pool.close_idle(now);
        assert_eq!(pool.connections(), 1);
        pool.close_idle(now + Duration::from_secs(31));
        assert_eq!(pool.connections(), 0);
        accepted.await.unwrap();
    });
}

/// One HTTP/2 connection, frame by frame.
struct Raw(TcpStream);

/// Type, flags, stream, payload.
#[derive(Debug)]
struct RawFrame(u8, u8, u32, Vec<u8>);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl Raw {
    async fn accept(listener: &TcpListener) -> Self {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut raw = Self(stream);
        raw.send(SETTINGS, 0, 0, &[]).await;
        raw
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        let _ = self.0.write_all(&frame).await; // the other side may be gone
    }

    /// `:status: 200`, and nothing more.
    async fn answer(&mut self, stream: u32) {
        self.send(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88]).await;
    }

    async fn go_away(&mut self, last: u32) {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), 0u32.to_be_bytes()].concat()).await;
    }

    async fn next(&mut self) -> Option<RawFrame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, d, e, f, g] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        if kind == SETTINGS && flags == 0 {
            self.send(SETTINGS, 1, 0, &[]).await;
        }
        Some(RawFrame(kind, flags, u32::from_be_bytes([d, e, f, g]), payload))
    }

    /// The stream of the next request that is complete.
    async fn request(&mut self) -> Option<u32> {
        loop {
            let RawFrame(kind, flags, stream, _) = self.next().await?;
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                return Some(stream);
            }
        }
    }
}

#[test]
fn posts_that_a_goaway_leaves_unprocessed_are_sent_again() {
    run(async {
        const PER_CONNECTION: usize = 5;
        const REQUESTS: usize = 40;
        let (listener, address) = listen().await;
        let processed = Rc::new(watch::Sender::new(0));
        let counted = Rc::clone(&processed);
        tokio::task::spawn_local(async move {
            loop {
                let mut raw = Raw::accept(&listener).await;
                let counted = Rc::clone(&counted);
                tokio::task::spawn_local(async move {
                    let mut taken = VecDeque::new();
                    while taken.len() < PER_CONNECTION {
                        let Some(stream) = raw.request().await else { return };
                        taken.push_back(stream);
                    }
                    // Says so before it answers what it took: those must come to their end all the same.
                    raw.go_away(taken.iter().copied().max().unwrap()).await;
                    for stream in taken {
                        counted.send_modify(|count| *count += 1);
                        raw.answer(stream).await;
                    }
                    while raw.next().await.is_some() {}
                });
            }
        });
        let pool = Http2Pool::new(Door::new(address));
        let mut requests = tokio::task::JoinSet::new();
        for _ in 0..REQUESTS {
            let pool = pool.clone();
            requests.spawn_local(async move {
                pool.send(|| Some(post(address, "order")), &Waits::default()).await.map(|(head, _)| head.status())
            });
        }
        while let Some(answer) = requests.join_next().await {
            assert_eq!(answer.unwrap().unwrap(), StatusCode::OK);
        }
        assert_eq!(*processed.borrow(), REQUESTS, "each was processed once");
    });
}

#[test]
fn refused_streams_are_sent_again_and_others_are_not() {
    run(async {
        let (listener, address) = listen().await;
        let server = tokio::task::spawn_local(async move {
            let mut raw = Raw::accept(&listener).await;
            let mut seen = 0;
            for reason in [7u32, 7, 2] {
                let stream = raw.request().await.unwrap();
                seen += 1;
                raw.send(RST_STREAM, 0, stream, &reason.to_be_bytes()).await;
            }
            while let Some(frame) = raw.next().await {
                assert_ne!(frame.0, HEADERS, "sent again although it may have been processed");
            }
            seen
        });
        let pool = Http2Pool::new(Door::new(address));
        let error = pool.send(|| Some(post(address, "order")), &Waits::default()).await.unwrap_err();
        assert!(
            matches!(&error, Http2Error::Broken { source, .. } if source.reason() == Some(h2::Reason::INTERNAL_ERROR))
        );
        assert!(!error.never_processed() && error.blames_endpoint());
        drop(pool);
        assert_eq!(server.await.unwrap(), 3);
    });
}

#[test]
fn a_malformed_head_is_asked_for_once_and_costs_its_stream_only() {
    run(async {
        let (listener, address) = listen().await;
        tokio::task::spawn_local(async move {
            let mut raw = Raw::accept(&listener).await;
            let stream = raw.request().await.unwrap();
            // :status 200, and `connection: close`, which HTTP/2 does not have.
            let head = [&[0x88, 0x40, 10][..], b"connection", &[5], b"close"].concat();
            raw.send(HEADERS, END_STREAM | END_HEADERS, stream, &head).await;
            let next = raw.request().await.unwrap();
            assert!(next > stream);
            raw.answer(next).await;
            while raw.next().await.is_some() {}
        });
        let pool = Http2Pool::new(Door::new(address));
        let error = fetch(&pool, address).await.unwrap_err();
        assert!(matches!(error, Http2Error::BadHead { .. }) && error.is_bad_head(), "{error}");
        assert!(!error.never_processed() && !error.blames_endpoint());
        assert_eq!(fetch(&pool, address).await.unwrap().0.status(), StatusCode::OK);
    });
}

#[test]
fn a_connection_lost_with_a_request_on_it_is_not_silently_repeated() {
    run(async {
        let (listener, address) = listen().await;
        let server = tokio::task::spawn_local(async move {
            let mut raw = Raw::accept(&listener).await;
            raw.request().await.unwrap();
            drop(raw);
            assert!(tokio::time::timeout(Duration::from_millis(200), listener.accept()).await.is_err());
        });
        let error = fetch(&Http2Pool::new(Door::new(address)), address).await.unwrap_err();
        assert!(matches!(error, Http2Error::Broken { .. }) && !error.never_processed(), "{error}");
        server.await.unwrap();
    });
}

/// What the endpoint hears of a request that is given up: before its response, within it, and when its sender fails.
#[test]
fn cancellation_is_cancel() {
    run(async {
        let (listener, address) = listen().await;
        let (reasons, mut heard) = mpsc::channel(10);
        tokio::task::spawn_local(async move {
            let mut raw = Raw::accept(&listener).await;
            while let Some(RawFrame(kind, _, stream, payload)) = raw.next().await {
                match kind {
                    // The response to the second request begins and does not end.
                    HEADERS if stream == 3 => raw.send(HEADERS, END_HEADERS, stream, &[0x88]).await,
                    HEADERS if stream == 1 => reasons.send((stream, b"head".to_vec())).await.unwrap(),
                    RST_STREAM => reasons.send((stream, payload)).await.unwrap(),
                    _ => {}
                }
            }
        });
        let cancel = 8u32.to_be_bytes().to_vec();
        let pool = Http2Pool::new(Door::new(address));

        let waiting = {
            let pool = pool.clone();
            tokio::task::spawn_local(async move { fetch(&pool, address).await.map(drop) })
        };
        assert_eq!(heard.recv().await.unwrap(), (1, b"head".to_vec()));
        waiting.abort();
        assert_eq!(heard.recv().await.unwrap(), (1, cancel.clone()));

        let (head, exchange) = fetch(&pool, address).await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
        drop(exchange);
        assert_eq!(heard.recv().await.unwrap(), (3, cancel.clone()));

        let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(4);
        sender.send(Frame::data(Bytes::from_static(b"half"))).await.unwrap();
        sender.abort(std::io::Error::other("the client left"));
        let mut request = Some(Request::post(format!("http://{address}/")).body(body).unwrap());
        let error = pool.send(|| request.take(), &Waits::default()).await.unwrap_err();
        assert!(matches!(error, Http2Error::Sender(_)) && !error.blames_endpoint(), "{error}");
        assert_eq!(heard.recv().await.unwrap(), (5, cancel));
    });
}

#[test]
fn small_pieces_that_come_together_go_out_together() {
    run(async {
        let (listener, address) = listen().await;
        let pool = Http2Pool::new(Door::new(address));
        let pieces = (0..1_000_u32).map(|n| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![n as u8]))));
        let mut body = Some(http_body_util::StreamBody::new(futures_util::stream::iter(pieces)));
        let request = || Some(Request::post(format!("http://{address}/")).body(body.take()?).unwrap());
        let waits = Waits::default();
        let sending = pool.send(request, &waits);
        let answering = async {
            let mut raw = Raw::accept(&listener).await;
            let (mut bytes, mut frames) = (Vec::new(), 0);
            loop {
                let RawFrame(kind, flags, stream, payload) = raw.next().await.unwrap();
                if kind == DATA {
                    frames += usize::from(!payload.is_empty());
                    bytes.extend_from_slice(&payload);
                    if flags & END_STREAM != 0 {
                        raw.answer(stream).await;
                        break;
                    }
                }
            }
            (bytes, frames)
        };
        let (sent, (bytes, frames)) = tokio::join!(sending, answering);
        sent.unwrap();
        assert_eq!(bytes, (0..1_000_u32).map(|n| n as u8).collect::<Vec<_>>());
        assert!(frames <= 2, "{frames} frames");
    });
}
