//! What a reader makes of the bytes of a connection that ends after them, in words that can be compared.
//!
//! Requests: `METHOD path length`, one after the other with ` + ` between; then nothing, `waits` (an unfinished head), or `refuses STATUS`. A
//! body that cannot be read or is cut has `bad` for its length. Responses: `STATUS length`; an interim one has no length.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use archipelago_http::h1::{BodyDecoder, Limits, Piece, Progress, parse_request, parse_response};
use archipelago_http::{RequestHead, ResponseHead};
use bytes::{Buf as _, BytesMut};
use http::Method;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Ours, of requests.
pub fn ours_of_requests(bytes: &[u8]) -> Vec<String> {
    let (mut buf, mut head, mut events) = (BytesMut::from(bytes), RequestHead::new(), Vec::new());
    loop {
        // Between requests, empty lines are nothing.
        match parse_request(&buf, &Limits::default(), &mut Progress::new(), &mut head) {
            Ok(None) => {
                if buf.iter().any(|byte| !b"\r\n".contains(byte)) {
                    events.push("waits".to_owned());
                }
                return events;
            }
            Err(refusal) => {
                events.push(format!("refuses {} {}", refusal.status().as_u16(), refusal.reason()));
                return events;
            }
            Ok(Some(info)) => {
                buf.advance(info.used);
                let path =
                    if head.method == Method::CONNECT { head.authority().unwrap_or_default() } else { head.path() };
                let line = format!("{} {}", head.method, path.escape_ascii());
                match body(BodyDecoder::new(info.framing), &mut buf) {
                    Ok(length) => events.push(format!("{line} {length}")),
                    Err(reason) => {
                        events.push(format!("{line} bad {reason}"));
                        return events;
                    }
                }
                if !info.persistent {
                    return events;
                }
            }
        }
    }
}

/// Ours, of responses.
pub fn ours_of_responses(bytes: &[u8], to: &Method) -> Vec<String> {
    let (mut buf, mut head, mut events) = (BytesMut::from(bytes), ResponseHead::new(), Vec::new());
    loop {
        match parse_response(&buf, &Limits::default(), &mut Progress::new(), to, &mut head) {
            Ok(None) => events.push("waits".to_owned()),
            Err(bad) => events.push(format!("refuses {}", bad.reason())),
            Ok(Some(info)) => {
                buf.advance(info.used);
                if head.status.is_informational() && head.status.as_u16() != 101 {
                    events.push(head.status.as_u16().to_string());
                    continue;
                }
                match body(BodyDecoder::new(info.framing), &mut buf) {
                    Ok(length) => events.push(format!("{} {length}", head.status.as_u16())),
                    Err(reason) => events.push(format!("{} bad {reason}", head.status.as_u16())),
                }
            }
        }
        return events;
    }
}

fn body(mut decoder: BodyDecoder, buf: &mut BytesMut) -> Result<usize, &'static str> {
    let mut length = 0;
    loop {
        match decoder.decode(buf) {
            Ok(Piece::Data(data)) => length += data.len(),
            Ok(Piece::Trailers(_)) => {}
            Ok(Piece::End) => return Ok(length),
            Ok(Piece::More) => return decoder.end_of_input().map(|()| length).map_err(|_| "cut"),
            Err(bad) => return Err(bad.reason()),
        }
    }
}

/// hyper's, of requests.
pub fn hyper_of_requests(bytes: &[u8]) -> Vec<String> {
    let events = Rc::new(RefCell::new(Vec::new()));
    let answers = runtime().block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let seen = Rc::clone(&events);
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let seen = Rc::clone(&seen);
            async move {
                let path = match (request.method(), request.uri()) {
                    (&Method::CONNECT, uri) => uri.to_string(),
                    (_, uri) => uri.path_and_query().map(|path| path.as_str().to_owned()).unwrap_or_default(),
                };
                let line = format!("{} {}", request.method(), path.as_bytes().escape_ascii());
                match request.into_body().collect().await {
                    Ok(body) => seen.borrow_mut().push(format!("{line} {}", body.to_bytes().len())),
                    Err(_) => seen.borrow_mut().push(format!("{line} bad")),
                }
                Ok::<_, Infallible>(http::Response::new(Empty::<&[u8]>::new()))
            }
        });
        client.write_all(bytes).await.expect("it fits");
        client.shutdown().await.expect("a pipe");
        let connection =
            hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(TokioIo::new(server), service);
        // Whatever ends it, the events and answers say.
        let _ = connection.await;
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.expect("a pipe");
        String::from_utf8_lossy(&answers).into_owned()
    });
    let mut events = events.take();
    let last = answers.rmatch_indices("HTTP/1.1 ").next().and_then(|(at, _)| answers.get(at + 9..at + 12));
    if let Some(status) = last.filter(|status| *status != "200") {
        events.push(format!("refuses {status}"));
    }
    events
}

/// hyper's, of a response.
pub fn hyper_of_responses(bytes: &[u8], to: &Method) -> Vec<String> {
    runtime().block_on(async {
        let (client, mut server) = tokio::io::duplex(1 << 20);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(client)).await.expect("no bytes are needed");
        let request = http::Request::builder().method(to).uri(if *to == Method::CONNECT { "a:80" } else { "/" });
        let answer = sender.send_request(request.header("host", "a").body(Empty::<&[u8]>::new()).expect("a request"));
        let served = async {
            server.read_u8().await.expect("a request comes");
            server.write_all(bytes).await.expect("it fits");
            server.shutdown().await.expect("a pipe");
            let mut rest = Vec::new();
            // hyper may have closed its end on what it thinks of the answer.
            let _ = server.read_to_end(&mut rest).await;
        };
        let taken = async {
            let event = match answer.await {
                Err(_) => "refuses".to_owned(),
                Ok(response) => {
                    let status = response.status().as_u16();
                    if status == 101 || *to == Method::CONNECT && response.status().is_success() {
                        format!("{status} 0")
                    } else {
                        match response.into_body().collect().await {
                            Ok(body) => format!("{status} {}", body.to_bytes().len()),
                            Err(_) => format!("{status} bad"),
                        }
                    }
                }
            };
            drop(sender);
            vec![event]
        };
        let (events, _, _) = tokio::join!(taken, connection, served);
        events
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("no I/O, no timers: nothing to fail")
}
