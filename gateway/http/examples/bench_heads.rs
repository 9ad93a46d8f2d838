//! What a head costs: `cargo run --profile dist -p archipelago-http --example bench_heads`.
//!
//! Each line: nanoseconds and allocations per head, for a minimal GET and for fifteen fields in 900 bytes as a browser sends them, and
//! for the response to each. `read` parses, `strip` takes hop-by-hop and mesh fields away, `write` appends the head to a buffer with a block of
//! mesh fields. Beside it: httparse alone (no copy, no names, no framing), and hyper parsing heads it is handed by eight at once.

use std::alloc::System;
use std::convert::Infallible;
use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use archipelago_http::h1::{
    Framing, Limits, Persistence, Progress, parse_request, parse_response, write_request, write_response,
};
use archipelago_http::{RequestHead, ResponseHead};
use http::Method;
use hyper::rt::{Read, ReadBufCursor, Write};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    println!("{:<28} {:>10} {:>10} {:>12}", "", "minimal ns", "browser ns", "allocations");
    let limits = Limits::default();
    let mut head = RequestHead::new();
    let mut out = Vec::new();
    line("httparse alone", |text| {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        black_box(request.parse(text).is_ok_and(|status| status.is_complete()));
    });
    line("read", |text| {
        black_box(parse_request(text, &limits, &mut Progress::new(), &mut head).is_ok());
    });
    line("read, strip", |text| {
        black_box(parse_request(text, &limits, &mut Progress::new(), &mut head).is_ok());
        head.fields.strip_mesh();
        black_box(head.fields.strip_hop_by_hop());
    });
    line("read, strip, write", |text| {
        black_box(parse_request(text, &limits, &mut Progress::new(), &mut head).is_ok());
        head.fields.strip_mesh();
        black_box(head.fields.strip_hop_by_hop());
        out.clear();
        write_request(&head, Framing::Empty, MESH, &mut out);
        black_box(out.len());
    });
    let mut response = ResponseHead::new();
    for (name, text) in [("response, 4 fields", SMALL_RESPONSE), ("response, 14 fields", LARGE_RESPONSE)] {
        let (nanoseconds, allocations) = measure(text, &mut |text| {
            let info = parse_response(text, &limits, &mut Progress::new(), &Method::GET, &mut response);
            black_box(response.fields.strip_hop_by_hop());
            out.clear();
            let framing = info.ok().flatten().map_or(Framing::Empty, |info| info.framing);
            write_response(&response, framing, Persistence::Implied, SERVED, &mut out);
            black_box(out.len());
        });
        println!("{name:<28} {nanoseconds:>10.0} {:>10} {allocations:>12.2}", "");
    }
    let (minimal, browser) = (hyper_reads(MINIMAL), hyper_reads(BROWSER));
    println!("{:<28} {:>10.0} {:>10.0} {:>12.2}", "hyper, read and answered", minimal.0, browser.0, browser.1);
}

fn line(name: &str, mut work: impl FnMut(&[u8])) {
    let (minimal, _) = measure(MINIMAL, &mut work);
    let (browser, allocations) = measure(BROWSER, &mut work);
    println!("{name:<28} {minimal:>10.0} {browser:>10.0} {allocations:>12.2}");
}

/// Nanoseconds (the least of several rounds, since others use the machine as well) and allocations for one call.
fn measure(text: &str, work: &mut impl FnMut(&[u8])) -> (f64, f64) {
    work(text.as_bytes());
    let region = Region::new(ALLOCATOR);
    let rounds = (0..20).map(|_| {
        let began = Instant::now();
        (0..calls()).for_each(|_| work(black_box(text.as_bytes())));
        began.elapsed().as_nanos() as f64 / f64::from(calls())
    });
    let least = rounds.fold(f64::INFINITY, f64::min);
    (least, region.change().allocations as f64 / f64::from(20 * calls()))
}

/// The same for a hyper server on a connection that always has the next request and forgets what is written.
fn hyper_reads(text: &str) -> (f64, f64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("no I/O, no timers: nothing to fail");
    let mut least = (f64::INFINITY, 0.0);
    for _ in 0..20 {
        let stream = Endless { text: text.repeat(8).into_bytes(), left: calls() as usize / 8 };
        let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| {
            black_box(&request);
            std::future::ready(Ok::<_, Infallible>(http::Response::new(http_body_util::Empty::<&[u8]>::new())))
        });
        let connection =
            hyper::server::conn::http1::Builder::new().pipeline_flush(true).serve_connection(stream, service);
        let (region, began) = (Region::new(ALLOCATOR), Instant::now());
        black_box(runtime.block_on(connection).is_ok());
        let requests = f64::from(calls() / 8 * 8);
        let nanoseconds = began.elapsed().as_nanos() as f64 / requests;
        if nanoseconds < least.0 {
            least = (nanoseconds, region.change().allocations as f64 / requests);
        }
    }
    least
}

struct Endless {
    text: Vec<u8>,
    left: usize,
}

impl Read for Endless {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let take = self.text.len().min(buf.remaining());
        if self.left > 0 && take == self.text.len() {
            self.left -= 1;
            buf.put_slice(&self.text);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Endless {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The first argument: fewer for a run under callgrind.
fn calls() -> u32 {
    std::env::args().nth(1).and_then(|calls| calls.parse().ok()).unwrap_or(25_600)
}

const MINIMAL: &str = "GET / HTTP/1.1\r\nHost: checkout.shop\r\n\r\n";
const BROWSER: &str = "GET /catalogue/items?category=shoes&page=3 HTTP/1.1\r\nHost: checkout.shop\r\nConnection: keep-alive\r\n\
sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\n\
Upgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8\r\n\
Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nReferer: https://checkout.shop/catalogue/\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n\
Cookie: session=8c1f0d2e5b7a4936; theme=dark; basket=3f9a1c\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n";
const SMALL_RESPONSE: &str = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 30 Nov 2026 12:00:00 GMT\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n";
const LARGE_RESPONSE: &str = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 30 Nov 2026 12:00:00 GMT\r\nContent-Type: text/html; charset=utf-8\r\n\
Content-Length: 20480\r\nConnection: keep-alive\r\nCache-Control: private, max-age=0\r\nExpires: -1\r\nVary: Accept-Encoding\r\n\
Strict-Transport-Security: max-age=31536000; includeSubDomains\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: SAMEORIGIN\r\n\
Set-Cookie: session=8c1f0d2e5b7a4936; Path=/; HttpOnly; SameSite=Lax\r\nETag: \"5f3a-1b2c\"\r\nX-Request-Id: 4bf92f3577b34da6\r\n\r\n";
const MESH: &[u8] = b"mesh-hop: 1\r\nmesh-cluster: paris\r\nmesh-attempt: 1\r\nmesh-service: shop/checkout\r\n";
const SERVED: &[u8] = b"mesh-served-by: paris/gateway-1\r\n";
