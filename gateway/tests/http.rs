//! HTTP as it is spoken on the wire: what a client gets, byte for byte, for what a backend says, byte for byte. Every case on both
//! paths: an endpoint of the client's own cluster, and one behind a tunnel.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use archipelago_proto::v1::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use harness::{Mesh, get, raw, request, send, service, text};

const HOST: &str = "checkout.shop";

/// What a scripted backend does on one connection.
type Script = Arc<dyn Fn(TcpStream, String) -> futures_util::future::BoxFuture<'static, ()> + Send + Sync>;

/// A backend that reads a head, as text, and goes on by the script; and what heads it read.
async fn scripted(script: Script) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
            tokio::spawn(async move {
                let Some(head) = head_of(&mut stream).await else { return };
                seen.lock().unwrap().push(head.clone());
                script(stream, head).await;
            });
        }
    });
    (address, heads)
}

/// Reads a head, not a byte more.
async fn head_of(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// A backend that answers every request with these bytes, and closes.
fn answers(bytes: impl Into<Vec<u8>>) -> Script {
    let bytes = Arc::new(bytes.into());
    Arc::new(move |mut stream, _| {
        let bytes = Arc::clone(&bytes);
        Box::pin(async move {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            // Until the other end has read it.
            let _ = stream.read(&mut [0; 1]).await;
        })
    })
}

/// A mesh of two with one service whose only endpoint, in tokyo, is `address`; the ways in: a gateway of its own cluster, and one of
/// the other.
async fn served_by(address: SocketAddr) -> (Mesh, [SocketAddr; 2]) {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[]);
    mesh.configure(vec![config], &[("checkout", "tokyo", address, "")]).await;
    let entries = [mesh.http("tokyo"), mesh.http("paris")];
    (mesh, entries)
}

/// One request; all of the answer, up to the end of the connection.
async fn raw_once(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.expect("it ends");
    String::from_utf8_lossy(&answer).into_owned()
}

fn get_of(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")
}

/// Status line and body, the latter without its chunks.
fn parts(answer: &str) -> (String, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or("").to_owned();
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut plain, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 {
            return (status, plain);
        }
        plain.push_str(after.get(..size).unwrap_or(after));
        rest = after.get(size + 2..).unwrap_or("");
    }
    (status, format!("{plain}<cut>"))
}

#[tokio::test]
async fn a_message_has_the_length_that_its_sender_meant_or_is_refused() {
    // What the backend says; the status and the body that a client gets, or `None` for a body that it can tell is not whole.
    let cases: &[(&str, u16, Option<&str>)] = &[
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            200,
            Some("hello"),
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            200,
            Some("hello"),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            502,
            Some(""),
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 502, Some("")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 200, Some("hello")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 502, Some("")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more than it said", 200, Some("hello")),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", 200, None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 200, None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", 200, None),
        ("HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, Some("until the end")),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, Some("until the end")),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", 204, Some("")),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n", 304, Some("")),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\nConnection: upgrade\r\n\r\n", 502, Some("")),
        ("nonsense\r\n\r\n", 502, Some("")),
    ];
    for (answer, status, body) in cases {
        let (backend, heads) = scripted(answers(*answer)).await;
        let (_mesh, entries) = served_by(backend).await;
        for entry in entries {
            heads.lock().unwrap().clear();
            let got = raw_once(entry, &get_of("/")).await;
            let (line, plain) = parts(&got);
            // A body that breaks before the head has left the far gateway takes the head with it.
            if body.is_none() && line.starts_with("HTTP/1.1 502 ") {
                continue;
            }
            assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{answer:?} gave {got:?}");
            match body {
                Some(_) if *status == 502 => assert!(!plain.is_empty(), "no reason: {got:?}"),
                Some(body) => assert_eq!(plain, *body, "{answer:?} gave {got:?}"),
                None => {
                    let declared = got
                        .to_ascii_lowercase()
                        .split("content-length: ")
                        .nth(1)
                        .and_then(|rest| rest.split("\r\n").next().and_then(|n| n.parse::<usize>().ok()));
                    let is_short = declared.is_some_and(|n| n > plain.len()) || plain.ends_with("<cut>");
                    assert!(is_short, "{answer:?} looks whole: {got:?}");
                }
            }
            if *status == 502 && !answer.starts_with("nonsense") {
                assert_eq!(heads.lock().unwrap().len(), 1, "{answer:?} was asked for again");
            }
        }
        let head = raw_once(entries[0], &format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
        let (_, rest) = head.split_once("\r\n\r\n").unwrap();
        assert_eq!(rest, "", "HEAD has no body: {head:?}");
    }
}

#[tokio::test]
async fn interim_responses_come_when_they_come_and_never_to_http_1_0() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n";
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (backend, _) = scripted(answers(format!("{early}{last}"))).await;
    let (_mesh, [here, there]) = served_by(backend).await;
    let got = raw_once(here, &get_of("/")).await;
    assert_eq!(got.matches("HTTP/1.1 103 ").count(), 2, "{got:?}");
    assert!(got.contains("a.css") && got.contains("b.css") && got.ends_with("\r\n\r\nok"), "{got:?}");
    let got = raw_once(there, &get_of("/")).await;
    assert!(got.ends_with("\r\n\r\nok"), "{got:?}");
    let got = raw_once(here, &format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n")).await;
    assert!(got.starts_with("HTTP/1.1 200 ") && !got.contains("103"), "{got:?}");
}

#[tokio::test]
async fn whoever_serves_answers_the_expectation() {
    // Refuses at once; or takes the body, and says so before.
    let script: Script = Arc::new(|mut stream, head| {
        Box::pin(async move {
            if head.starts_with("POST /no") {
                let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").await;
            } else if head.starts_with("POST") {
                assert!(head.to_ascii_lowercase().contains("expect: 100-continue"), "{head}");
                let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await;
                let mut body = [0; 5];
                let _ = stream.read_exact(&mut body).await;
                let text = String::from_utf8_lossy(&body).into_owned();
                let _ =
                    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{text}").as_bytes()).await;
            } else {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
            let _ = stream.shutdown().await;
            let _ = stream.read(&mut [0; 64]).await;
        })
    });
    let (backend, _) = scripted(script).await;
    let (_mesh, [here, _]) = served_by(backend).await;
    let ask = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    };
    let answer = raw(here, ask("/no").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "the backend's own answer, before a byte of the body: {answer:?}");
    let mut stream = TcpStream::connect(here).await.unwrap();
    stream.write_all(ask("/yes").as_bytes()).await.unwrap();
    let interim = head_of(&mut stream).await.unwrap();
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim:?}");
    stream.write_all(b"hello").await.unwrap();
    let head = head_of(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head:?}");
    let mut body = [0; 5];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"hello");
}

/// Through a tunnel there is no way back for 100 yet: the gateway says it when the body is wanted.
#[tokio::test]
async fn an_expectation_is_never_left_hanging() {
    let (backend, _) = harness::backend("tokyo").await;
    let (_mesh, entries) = served_by(backend).await;
    for entry in entries {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        let ask = format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let interim =
            tokio::time::timeout(Duration::from_secs(60), head_of(&mut stream)).await.expect("it comes").unwrap();
        assert!(interim.starts_with("HTTP/1.1 100 "), "{interim:?}");
        stream.write_all(b"hello").await.unwrap();
        let head = head_of(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head:?}");
    }
}

#[tokio::test]
async fn upgrades_that_nobody_needs_are_ignored() {
    let (backend, _) = harness::backend("tokyo").await;
    let (_mesh, entries) = served_by(backend).await;
    for entry in entries {
        for upgrade in ["TLS/1.2", "H2C", "h2,h2c", "h2c", "foo/2", "IRC/6.9, RTA/x11"] {
            let got = get(entry, HOST, "/headers", &[("upgrade", upgrade), ("connection", "upgrade")]).await.unwrap();
            assert_eq!(got.status(), 200, "{upgrade}");
            assert!(!text(got).await.contains("upgrade"), "{upgrade} concerns one connection only");
        }
    }
}

#[tokio::test]
async fn large_heads_pass_whole_and_larger_ones_are_refused_with_a_reason() {
    let many: String = (0..120).map(|n| format!("x-field-{n}: value-{n}\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(20 * 1024));
    for fields in [many, long] {
        let (backend, heads) =
            scripted(answers(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok"))).await;
        let (_mesh, entries) = served_by(backend).await;
        for entry in entries {
            heads.lock().unwrap().clear();
            let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n");
            let got = raw_once(entry, &ask).await;
            assert!(got.starts_with("HTTP/1.1 200 ") && got.ends_with("ok"), "{}", &got[..got.len().min(300)]);
            assert!(got.contains(fields.split(": ").next().unwrap()), "the response's fields pass");
            let heads = heads.lock().unwrap();
            assert_eq!(heads.len(), 1, "asked once");
            assert!(heads[0].contains(fields.lines().last().unwrap()), "the request's fields pass");
        }
    }
    let huge = format!("x-huge: {}\r\n", "a".repeat(70 * 1024));
    let (backend, heads) = scripted(answers(format!("HTTP/1.1 200 OK\r\n{huge}Content-Length: 2\r\n\r\nok"))).await;
    let (_mesh, entries) = served_by(backend).await;
    for entry in entries {
        heads.lock().unwrap().clear();
        let got = raw_once(entry, &get_of("/")).await;
        assert!(
            got.starts_with("HTTP/1.1 502 ") && got.contains("64 KiB") || got.contains("could not read it"),
            "{got:?}"
        );
        assert!(got.contains("mesh-failure: bad-response"), "{got:?}");
        assert_eq!(heads.lock().unwrap().len(), 1, "asked once, not five times");
        let again = raw_once(entry, &get_of("/")).await;
        assert!(again.contains("bad-response"), "the endpoint stays in: {again:?}");
        let got = raw_once(entry, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{huge}\r\n")).await;
        assert!(got.starts_with("HTTP/1.1 431 ") && got.contains("64 KiB"), "{got:?}");
    }
}

#[tokio::test]
async fn a_client_that_closes_its_half_is_answered() {
    let (backend, seen) = harness::backend("tokyo").await;
    let (_mesh, entries) = served_by(backend).await;
    for entry in entries {
        for version in ["1.1", "1.0"] {
            let mut stream = TcpStream::connect(entry).await.unwrap();
            let ask = format!("GET /delay/600 HTTP/{version}\r\nHost: {HOST}\r\n\r\n");
            stream.write_all(ask.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            // What is said meanwhile, to find out whether anybody is there, is for those who must understand it.
            let last =
                if version == "1.1" { answer.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n") } else { &answer };
            assert!(last.starts_with("HTTP/1.1 200 ") && last.ends_with("tokyo"), "{version}: {answer:?}");
        }
    }
    assert_eq!(seen.cancelled.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn targets_pass_byte_for_byte() {
    let (backend, heads) = scripted(answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
    let (_mesh, [here, _]) = served_by(backend).await;
    for target in ["/a^b", "/a`b", "/<x>", "/\"q\"", "/{id}|x", "/a%2Fb?q=%00", "/\u{fc}ml\u{e4}ut", "/?x=[1]\\"] {
        heads.lock().unwrap().clear();
        let got = raw_once(here, &get_of(target)).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{target}: {got:?}");
        let head = heads.lock().unwrap()[0].clone();
        assert!(head.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{target}: {head:?}");
    }
    for bad in ["/a\tb", "/a\u{1}", "a", "http:", "/a#b"] {
        let got = raw_once(here, &get_of(bad)).await;
        let (line, why) = parts(&got);
        assert!(line.starts_with("HTTP/1.1 400 ") && why.len() > 20, "{bad:?}: {got:?}");
    }
}

/// Percent-encoded, as it would have to go through a tunnel, it is longer than a URI may be: its sender hears that, and of no cluster that is down.
#[tokio::test]
async fn a_target_that_no_tunnel_can_carry_is_refused_at_once() {
    let (backend, heads) = scripted(answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
    let (_mesh, [here, there]) = served_by(backend).await;
    let request = get_of(&format!("/{}", "<".repeat(32_000)));
    assert!(raw_once(here, &request).await.starts_with("HTTP/1.1 200 "));
    heads.lock().unwrap().clear();
    let got = raw_once(there, &request).await;
    let (line, why) = parts(&got);
    assert!(line.starts_with("HTTP/1.1 400 ") && why.contains("request target"), "{got:?}");
    assert!(heads.lock().unwrap().is_empty());
}

/// A request that kills its handler is sent to two endpoints at most, wherever they are.
#[tokio::test]
async fn a_request_that_kills_its_handler_kills_two_at_most() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let deaths = Arc::new(AtomicUsize::new(0));
    let mut endpoints = Vec::new();
    for cluster in ["paris", "paris", "paris", "tokyo", "tokyo", "tokyo"] {
        let deaths = Arc::clone(&deaths);
        let script: Script = Arc::new(move |mut stream, head| {
            let deaths = Arc::clone(&deaths);
            Box::pin(async move {
                if head.starts_with("GET /poison") {
                    deaths.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
                let _ = stream.shutdown().await;
            })
        });
        endpoints.push(("checkout", cluster, scripted(script).await.0, ""));
    }
    let config = service("checkout", Protocol::Http1, &["paris", "tokyo"], &[("paris", 1), ("tokyo", 1)]);
    mesh.configure(vec![config], &endpoints).await;
    for cluster in ["paris", "tokyo"] {
        mesh.serves(HOST, cluster).await;
    }
    for (entry, only) in [("paris", "paris"), ("paris", "tokyo"), ("tokyo", "paris")] {
        deaths.store(0, Ordering::SeqCst);
        let response = get(mesh.http(entry), HOST, "/poison", &[("x-only", only)]).await.unwrap();
        assert_eq!(response.status(), 502, "{entry} {only}");
        assert_eq!(deaths.load(Ordering::SeqCst), 2, "{entry} {only}: the first, and one more");
        assert_eq!(get(mesh.http(entry), HOST, "/", &[("x-only", only)]).await.unwrap().status(), 200);
    }
    deaths.store(0, Ordering::SeqCst);
    let once = send(mesh.http("paris"), request("POST", HOST, "/poison", &[], harness::empty())).await.unwrap();
    assert_eq!(once.status().as_u16() / 100, 2, "the scripts are deadly for GET only");
}

#[tokio::test]
async fn a_grpc_caller_hears_failures_in_its_own_words() {
    let (backend, _) = harness::backend("tokyo").await;
    let (_mesh, entries) = served_by(backend).await;
    for entry in entries {
        let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "300m")];
        let late = send(entry, request("POST", HOST, "/delay/60000", &headers, harness::empty())).await.unwrap();
        assert_eq!(late.status(), 200);
        assert_eq!(late.headers()["grpc-status"], "4", "{late:?}");
        assert!(late.headers()["grpc-message"].to_str().unwrap().contains("in time"));
        let nobody = send(entry, request("POST", "nobody.shop", "/", &headers, harness::empty())).await.unwrap();
        assert_eq!((nobody.status().as_u16(), &nobody.headers()["grpc-status"]), (200, &"12".parse().unwrap()));
    }
}

/// One of two endpoints is stopped without being closed: it takes connections and requests and never says a word.
#[tokio::test]
async fn a_hung_endpoint_costs_a_moment_and_then_nothing() {
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let hangs = Arc::new(AtomicUsize::new(0));
    let given = Arc::new(AtomicUsize::new(0));
    let script: Script = {
        let (hangs, given) = (Arc::clone(&hangs), Arc::clone(&given));
        Arc::new(move |mut stream, mut head| {
            let (hangs, given) = (Arc::clone(&hangs), Arc::clone(&given));
            Box::pin(async move {
                loop {
                    if hangs.load(Ordering::SeqCst) == 1 && !head.starts_with("OPTIONS") {
                        given.fetch_add(1, Ordering::SeqCst);
                        return std::future::pending().await;
                    }
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                        return;
                    }
                    let Some(next) = head_of(&mut stream).await else { return };
                    head = next;
                }
            })
        })
    };
    let (stopped, _) = scripted(script).await;
    let (alive, _) = harness::backend("tokyo").await;
    let config = service("checkout", Protocol::Http1, &["tokyo"], &[]);
    mesh.configure(vec![config], &[("checkout", "tokyo", stopped, ""), ("checkout", "tokyo", alive, "")]).await;
    mesh.serves(HOST, "tokyo").await;
    for cluster in ["tokyo", "paris"] {
        hangs.store(0, Ordering::SeqCst);
        let entry = mesh.http(cluster);
        // Each worker learns what is usual.
        for _ in 0..200 {
            assert_eq!(get(entry, HOST, "/", &[]).await.unwrap().status(), 200);
        }
        given.store(0, Ordering::SeqCst);
        hangs.store(1, Ordering::SeqCst);
        // Several at a time, so that both are wanted.
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..8 {
            clients.spawn(async move {
                for _ in 0..50 {
                    let response = get(entry, HOST, "/delay/20", &[]).await.unwrap();
                    assert_eq!(response.status(), 200, "the other one answers");
                }
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        // What each worker had in flight when it found out, and one at a time when holds are over.
        let given = given.load(Ordering::SeqCst);
        assert!(given <= 40, "{given} of 400 were given to it");
        assert!(given > 0 || cluster == "paris", "the gateway in tokyo has not found out yet");
    }
}
