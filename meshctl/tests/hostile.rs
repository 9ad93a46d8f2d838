//! Garbage on every port of a federation, while its traffic goes on as if nothing happened.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use archipelago_chaos::load::{self, Running};
use harness::client::address;
use harness::proc::{self, Transport, Watched};
use harness::status::Status;
use harness::suite::{self, shared};
use harness::{Connection, Federation, PATIENCE, saw};
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

fn main() -> ExitCode {
    suite::run(&shared![
        random_bytes_on_every_port,
        half_a_tls_handshake_on_every_port,
        oversized_heads_and_bodies,
        smuggled_requests_are_refused,
        slow_senders_hold_up_nobody,
    ])
}

async fn random_bytes_on_every_port(federation: &Federation) {
    let siege = Siege::begin(federation).await;
    let seed = rand::random::<u64>();
    saw!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut sent = 0_u64;
    for (transport, port) in &siege.ports {
        for round in 0..ROUNDS {
            let mut bytes = vec![0; random.random_range(1..4_000)];
            random.fill_bytes(&mut bytes);
            match transport {
                Transport::Tcp => drop(say(*port, &bytes, Then::Leave).await),
                Transport::Udp => {
                    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                    socket.connect(port).await.unwrap();
                    bytes.truncate(1_400);
                    // Every other one begins like a QUIC packet of version 1: long header with both connection ids,
                    // or a short header (RFC 9000 §17).
                    let head = match round % 4 {
                        1 => b"\xc3\x00\x00\x00\x01\x08abcdefgh\x08ABCDEFGH\x00\x44\xb0".as_slice(),
                        3 => b"\x40",
                        _ => b"",
                    };
                    bytes.splice(..0, head.iter().copied());
                    bytes.resize(bytes.len().max(1_200), 0);
                    // ICMP errors of earlier datagrams are no concern here.
                    let _ = socket.send(&bytes).await;
                }
            }
            sent += bytes.len() as u64;
        }
    }
    siege.end(&format!("{sent} random bytes on {} ports", siege.ports.len())).await;
}

async fn half_a_tls_handshake_on_every_port(federation: &Federation) {
    let siege = Siege::begin(federation).await;
    // A ClientHello that promises 512 bytes and ends after 60 (RFC 8446 §4.1.2, §5.1).
    let mut hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    hello.extend(std::iter::repeat_n(0x5a, 49));
    let mut held = Vec::new();
    for (_, port) in siege.ports.iter().filter(|(transport, _)| *transport == Transport::Tcp) {
        for _ in 0..8 {
            let mut stream = TcpStream::connect(port).await.unwrap();
            stream.write_all(&hello).await.unwrap();
            held.push(stream);
        }
    }
    // They stay open while the load goes on, and while commands and gateways make handshakes that do end.
    siege.more(200).await;
    federation.ok("split set shop/checkout tokyo=1").await;
    siege.end(&format!("{} handshakes held half-way", held.len())).await;
}

async fn oversized_heads_and_bodies(federation: &Federation) {
    let siege = Siege::begin(federation).await;
    let long = "a".repeat(2 << 20);
    let many: String = (0..50_000).map(|n| format!("x-{n}: y\r\n")).collect();
    let heads = [
        format!("GET / HTTP/1.1\r\nhost: checkout.shop\r\nx: {long}\r\n\r\n"),
        format!("GET /{long} HTTP/1.1\r\nhost: checkout.shop\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: checkout.shop\r\n{many}\r\n"),
        format!("{long} / HTTP/1.1\r\nhost: checkout.shop\r\n\r\n"),
    ];
    for (_, port) in siege.ports.iter().filter(|(transport, _)| *transport == Transport::Tcp) {
        for head in &heads {
            let answer = say(*port, head.as_bytes(), Then::EndAndListen).await;
            assert!(!answer.contains(" 200 "), "{port} takes it: {answer}");
        }
    }
    // HTTP/2: a preface, then frames longer than any limit, and a header block without end (RFC 9113 §4.2, §6.10).
    for gateway in federation.gateways().values() {
        for frames in [
            frame(0xff_ff_ff, 0x0, 0x0, 1),
            [frame(0, 0x4, 0, 0), frame(16_384, 0x1, 0x0, 1)].concat(),
            [frame(0, 0x4, 0, 0), frame(64, 0x1, 0x0, 1), frame(16_384, 0x9, 0x0, 1).repeat(64)].concat(),
        ] {
            let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frames].concat();
            say(address(&gateway.http), &bytes, Then::EndAndListen).await;
        }
    }
    siege.end("heads of two megabytes and fifty thousand fields").await;
}

async fn smuggled_requests_are_refused(federation: &Federation) {
    let siege = Siege::begin(federation).await;
    let inner = "GET /status/418 HTTP/1.1\r\nhost: checkout.shop\r\n\r\n";
    let length = inner.len();
    let post = "POST /digest HTTP/1.1\r\nhost: checkout.shop\r\n";
    let forms = [
        format!("{post}content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}content-length: 0\r\ncontent-length: {length}\r\n\r\n{inner}"),
        format!("{post}content-length: 0, {length}\r\n\r\n{inner}"),
        format!("{post}content-length: +{length}\r\n\r\n{inner}"),
        format!("{post}content-length : {length}\r\n\r\n{inner}"),
        format!("{post}content-length: 0x10\r\n\r\n{inner}"),
        format!("{post}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post} transfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{post}transfer-encoding: chunked\r\n\r\n0\n\n{inner}"),
        format!("{post}transfer-encoding: chunked\r\n\r\n-1\r\n\r\n{inner}"),
        format!("{post}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n{inner}"),
        format!("POST /digest HTTP/1.1\nhost: checkout.shop\ncontent-length: {length}\n\n{inner}"),
        // Not ambiguous in where they end, but in what they ask for (RFC 9112 §3.2).
        "GET / HTTP/1.1\r\nhost: checkout.shop\r\nhost: web.shop\r\nconnection: close\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nhost: checkout.shop\rx: y\r\n\r\n{inner}"),
        format!("GET / HTTP/9.9\r\nhost: checkout.shop\r\n\r\n{inner}"),
    ];
    for url in [&federation.gateway("paris/gw-1").http, &federation.gateway("frankfurt/gw-2").http] {
        for form in &forms {
            let answer = say(address(url), form.as_bytes(), Then::Listen).await;
            assert!(!answer.contains("418") && !answer.contains(" 200 "), "smuggled by {form:?}: {answer}");
            let refused = answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 5") || answer.is_empty();
            assert!(refused, "{form:?}: {answer}");
        }
        // The same bytes in order are two requests.
        let last = inner.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
        let fine = format!("{post}content-length: {length}\r\n\r\n{inner}{last}");
        let answer = say(address(url), fine.as_bytes(), Then::Listen).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 418"), "{answer}");
        // A length behind many blanks: whoever reads only its first digit takes the body for a request with a long body
        // of its own, and no longer looks at what follows.
        let blind = "xxxxPOST / HTTP/1.1\r\ncontent-length: 9999\r\n\r\n";
        let blanks = " ".repeat(112);
        let form = format!("{post}content-length:{blanks}{}\r\n\r\n{blind}{}", blind.len(), forms[0]);
        let answer = say(address(url), form.as_bytes(), Then::Listen).await;
        assert!(answer.contains("HTTP/1.1 400") && !answer.contains("418"), "smuggled behind blanks: {answer}");
    }
    siege.end(&format!("{} forms of request smuggling", forms.len())).await;
}

async fn slow_senders_hold_up_nobody(federation: &Federation) {
    let siege = Siege::begin(federation).await;
    let mut senders = Vec::new();
    for gateway in federation.gateways().values() {
        for number in 0..40 {
            let at = address(&gateway.http);
            senders.push(tokio::spawn(async move {
                let begin = match number % 3 {
                    0 => "GET / HTTP/1.1\r\nhost: checkout.shop\r\nx: ",
                    1 => "POST /digest HTTP/1.1\r\nhost: checkout.shop\r\ncontent-length: 1000000\r\n\r\n",
                    _ => "POST /digest HTTP/1.1\r\nhost: checkout.shop\r\ntransfer-encoding: chunked\r\n\r\nfffff\r\n",
                };
                let mut stream = TcpStream::connect(at).await.unwrap();
                stream.write_all(begin.as_bytes()).await.unwrap();
                // Until the gateway has enough of it, or the test ends.
                while stream.write_all(b"z").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }));
        }
    }
    siege.more(500).await;
    // New connections are served beside them, everywhere.
    for gateway in federation.gateways().values() {
        let reply = Connection::http1(&gateway.http).await.get("checkout.shop", "/", &[]).await;
        assert_eq!(reply.status, 200);
    }
    siege.end(&format!("{} senders of five bytes a second", senders.len())).await;
    for sender in senders {
        sender.abort();
    }
}

/// A load that must not notice anything, and everything that could notice too much.
struct Siege<'a> {
    federation: &'a Federation,
    load: Running,
    before: Status,
    memory: Watched,
    /// Where the federation's processes listen.
    ports: BTreeSet<(Transport, SocketAddr)>,
}

impl<'a> Siege<'a> {
    async fn begin(federation: &'a Federation) -> Self {
        federation.ok("split set shop/checkout paris=50 tokyo=50").await;
        let before = federation.status().await;
        let processes = before.running(|process| process.role != "supervisor");
        let ports: BTreeSet<_> = processes.iter().flat_map(|(_, pid)| proc::listeners(*pid)).collect();
        // HTTP, DNS twice, health, metrics, tunnel, TCP of each gateway; three of each member; two of each agent; the
        // backends.
        assert!(ports.len() >= 6 * 7 + 3 * 3 + 3 * 2 + 15, "{ports:?}");
        let load = load::start(federation.load("frankfurt/gw-1", "checkout.shop", RATE)).unwrap();
        let siege = Self { federation, load, memory: proc::watch_memory(processes), before, ports };
        siege.more(100).await;
        siege
    }

    async fn more(&self, count: u64) {
        let goal = self.load.counters().ok + count;
        let reached = tokio::time::timeout(PATIENCE, self.load.until(|counters| counters.ok >= goal)).await;
        assert!(reached == Ok(true), "the load stands still: {}", self.load.report());
    }

    /// Nothing failed, died or grew.
    async fn end(&self, what: &str) {
        self.more(100).await;
        self.load.stop();
        assert!(tokio::time::timeout(PATIENCE, self.load.until(|counters| counters.in_flight == 0)).await.is_ok());
        let report = self.load.report();
        assert_eq!(report.failed, 0, "{what}: {report}");
        let after = self.federation.status().await;
        for process in &after.processes {
            let known = self.before.process(&process.name);
            assert_eq!((process.pid, process.restarts), (known.pid, known.restarts), "{what}: {} died", process.name);
        }
        let (name, growth) = self.memory.growth();
        saw!(
            "{what}: {} requests, none failed, max {:?}; {name} grew most, by {} KiB",
            report.ok,
            report.latency_micros.map(|latency| Duration::from_micros(latency.max)),
            growth / 1024
        );
        assert!(growth <= MEMORY_GROWTH_MAX, "{what}: {name} grew by {growth} bytes");
        self.federation.settle().await;
    }
}

/// What a hostile client does after its last byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Goes away.
    Leave,
    /// Ends its sending side and waits until the other side ends too.
    EndAndListen,
    /// Waits until the other side ends the connection.
    Listen,
}

/// Sends bytes and returns the beginning of what comes back.
async fn say(port: SocketAddr, bytes: &[u8], then: Then) -> String {
    let Ok(stream) = TcpStream::connect(port).await else { return String::new() };
    let (mut read, mut write) = stream.into_split();
    let mut answer = Vec::new();
    // A peer that refuses early resets the rest of the sending; what it answered first still counts.
    let exchange = async {
        let send = async {
            let _ = write.write_all(bytes).await;
            if then == Then::EndAndListen {
                let _ = write.shutdown().await;
            }
        };
        let receive = async {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(length @ 1..) = read.read(&mut buffer).await {
                answer.extend_from_slice(&buffer[..length]);
                if answer.len() > ANSWER_BYTES_MAX {
                    break;
                }
            }
        };
        tokio::join!(send, receive)
    };
    let limit = if then == Then::Leave { Duration::from_millis(1) } else { PATIENCE };
    let ended = tokio::time::timeout(limit, exchange).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let beginning = String::from_utf8_lossy(bytes.get(..200).unwrap_or(bytes));
    assert!(ended.is_ok() || then == Then::Leave, "{port} keeps the connection after {beginning:?}: {answer}");
    answer
}

/// An HTTP/2 frame of zeros (RFC 9113 §4.1); the length field may promise more than is there.
fn frame(length: u32, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.resize(bytes.len() + length.min(20_000) as usize, 0);
    bytes
}

const RATE: f64 = 100.0;
const ROUNDS: u32 = 12;
const ANSWER_BYTES_MAX: usize = 64 << 10;
const MEMORY_GROWTH_MAX: u64 = 64 << 20;
