//! What the tunnel itself costs: two `Tunnels`, one core each, no HTTP/1.1 at the ends.
//!
//! usage: tunnel_bench stream CONCURRENCY RESPONSE_BYTES | tunnel_bench bulk MEGABYTES | tunnel_bench verdicts SECONDS
//!     | tunnel_bench connections COUNT | tunnel_bench rejected THOUSANDS
//!
//! `connections` and `rejected` say what an idle connection, and a request that was rejected after a wait, leave in memory (both
//! ends together). `verdicts` sends a request every 10 ms and counts suspicions and deaths of a peer that is alive: run it beside load.
//!
//! Back of the envelope, both sides together, at 64 in flight with a response of 1,000 bytes:
//! bare quinn (a stream per request, the floor) 6.0–7.2 µs; two field sections written and read, 4 × ~0.5 µs; two `http`
//! messages with their maps, ~1 µs; a task per request on the serving side, ~0.3 µs; a queue between, ~0.2 µs: about 10 µs.
//! At one in flight the floor is 88 µs, nearly all of it system calls and wake-ups; we add the same 3 µs.
//! Bulk: the floor is 1.8–2.0 CPU-s per GB; framing adds one small chunk per 64 KiB, so at most a few percent.
//!
//! Compare with `quic -- stream 64 1000` of the floor in the same minute, and quote ratios.

use archipelago_http::{Known, ResponseHead};
use archipelago_identity::{LiveCredential, SpiffeId, testing::TestAuthority};
use archipelago_tunnel::{Incoming, Peer, PeerHandle, PeerName, PeerState, TunnelConfig, Tunnels};
use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use std::{
    cell::Cell,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

const SECONDS: u64 = 4;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<usize>().ok());
    let plan = match (arguments.first().map(String::as_str), number(1), number(2)) {
        (Some("stream"), Some(concurrency), Some(bytes)) => Plan::Stream { concurrency, bytes },
        (Some("verdicts"), Some(seconds), None) => Plan::Verdicts { seconds },
        (Some("bulk"), Some(megabytes), None) => Plan::Bulk { bytes: megabytes << 20 },
        (Some("connections"), Some(count), None) => Plan::Connections { count },
        (Some("rejected"), Some(thousands), None) => Plan::Rejected { thousands },
        _ => anyhow::bail!(
            "usage: tunnel_bench stream CONCURRENCY RESPONSE_BYTES | bulk MEGABYTES | verdicts SECONDS | connections COUNT | rejected THOUSANDS"
        ),
    };
    let authority = TestAuthority::new("bench.test");
    let server_cpu = Arc::new(AtomicU64::new(0));
    let (tell, address) = mpsc::channel();
    let (credential, cpu) = (authority.gateway("tokyo", "gw"), server_cpu.clone());
    std::thread::spawn(move || worker(1, async move { serve(credential, plan, tell, cpu).await }));
    let (address, credential) = (address.recv()?, authority.gateway("paris", "gw"));
    let spiffe_id = SpiffeId::gateway(authority.trust_domain(), "tokyo", "gw");
    worker(0, async move {
        match plan {
            Plan::Connections { count } => connections(&authority, spiffe_id, address, count).await,
            plan => measure(credential, spiffe_id, address, plan, server_cpu).await,
        }
    })
}

async fn connections(
    authority: &TestAuthority,
    spiffe_id: SpiffeId,
    address: SocketAddr,
    count: usize,
) -> anyhow::Result<()> {
    let mut all = Vec::new();
    let mut before = 0;
    for number in 0..=count {
        let credential = authority.gateway("paris", &format!("gw-{number}"));
        let (tunnels, incoming) = Tunnels::bind(config("paris", credential))?;
        let peer = connect(&tunnels, spiffe_id.clone(), address).await?;
        all.push((tunnels, incoming, peer));
        if number == 0 {
            before = rss_kib()?; // what is there once
        }
    }
    let each = (rss_kib()?.saturating_sub(before)) as f64 / count as f64;
    println!("{count} connections: {each:.0} KiB each, both ends");
    std::process::exit(0);
}

/// Resident memory of this process.
fn rss_kib() -> anyhow::Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.and_then(|line| line.split_whitespace().next()).unwrap_or_default().parse()?)
}

async fn connect(tunnels: &Tunnels, spiffe_id: SpiffeId, address: SocketAddr) -> anyhow::Result<PeerHandle> {
    let gateway = "gw".to_owned();
    tunnels.set_peers(vec![Peer {
        cluster: "tokyo".into(),
        gateway: gateway.clone(),
        spiffe_id,
        addresses: vec![address],
    }]);
    let peer = tunnels.peer(&PeerName { cluster: "tokyo".into(), gateway }).expect("just set");
    let mut changes = tunnels.changes();
    while peer.state() != PeerState::Up {
        changes.changed().await?;
    }
    Ok(peer)
}

#[derive(Debug, Clone, Copy)]
enum Plan {
    Stream { concurrency: usize, bytes: usize },
    Bulk { bytes: usize },
    Verdicts { seconds: usize },
    Connections { count: usize },
    Rejected { thousands: usize },
}

/// One worker as a gateway has it: a thread with a core and a runtime of its own.
fn worker<T>(core: usize, run: impl Future<Output = T>) -> T {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core);
    let _ = rustix::thread::sched_setaffinity(None, &cores); // best effort: a container may forbid it
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, run)
}

async fn serve(credential: LiveCredential, plan: Plan, tell: mpsc::Sender<SocketAddr>, cpu: Arc<AtomicU64>) {
    let (tunnels, incoming) = Tunnels::bind(config("tokyo", credential)).expect("a port");
    let _ = tell.send(tunnels.local_addr());
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            cpu.store(thread_cpu().as_nanos() as u64, Ordering::Relaxed);
        }
    });
    answer(incoming, plan).await;
}

async fn answer(mut incoming: Incoming, plan: Plan) {
    let small = Bytes::from(vec![7; 64 * 1024]);
    while let Some(request) = incoming.next().await {
        let small = small.clone();
        tokio::spawn(async move {
            match plan {
                Plan::Stream { bytes, .. } => {
                    let body = Full::new(small.slice(..bytes.min(small.len())));
                    let mut head = ResponseHead::new();
                    head.fields.push(Known::ContentType, b"text/plain");
                    head.fields.push_number(Known::ContentLength, bytes as u64);
                    request.responder.respond(&head, body).await
                }
                Plan::Verdicts { .. } => {
                    request.responder.respond(&ResponseHead::new(), Full::new(small.slice(..100))).await
                }
                Plan::Bulk { bytes } => {
                    request.responder.respond(&ResponseHead::new(), Zeroes { chunk: small, left: bytes }).await
                }
                Plan::Connections { .. } => Ok(()),
                Plan::Rejected { .. } => {
                    let mut responder = request.responder;
                    tokio::select! {
                        biased;
                        error = responder.cancelled() => Err(error),
                        () = tokio::task::yield_now() => {
                            responder.reject();
                            Ok(())
                        }
                    }
                }
            }
        });
    }
}

/// A body of that many bytes, 64 KiB at a time.
struct Zeroes {
    chunk: Bytes,
    left: usize,
}

impl Body for Zeroes {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let count = self.left.min(self.chunk.len());
        self.left -= count;
        Poll::Ready((count > 0).then(|| Ok(Frame::data(self.chunk.slice(..count)))))
    }
}

async fn measure(
    credential: LiveCredential,
    spiffe_id: SpiffeId,
    address: SocketAddr,
    plan: Plan,
    server_cpu: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let (tunnels, _incoming) = Tunnels::bind(config("paris", credential))?;
    let peer = connect(&tunnels, spiffe_id, address).await?;
    tokio::time::sleep(Duration::from_millis(500)).await; // MTU discovery
    let (here, there, began) = (thread_cpu(), server_cpu.load(Ordering::Relaxed), Instant::now());
    let (count, bytes) = match plan {
        Plan::Stream { concurrency, .. } => (closed_loop(&peer, concurrency).await?, 0),
        Plan::Verdicts { seconds } => {
            let mut failed = 0;
            let mut longest = Duration::ZERO;
            for _ in 0..seconds * 100 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let sent = Instant::now();
                failed += u64::from(get(&peer).await.is_err());
                longest = longest.max(sent.elapsed());
            }
            println!(
                "{seconds} s: {failed} of {} requests failed, longest {longest:?}; {:?}",
                seconds * 100,
                tunnels.stats()
            );
            std::process::exit(0);
        }
        Plan::Rejected { thousands } => {
            let mut before = 0;
            for round in 0..=thousands {
                let mut requests = tokio::task::JoinSet::new();
                for _ in 0..1000 {
                    let peer = peer.clone();
                    requests.spawn_local(async move { get(&peer).await.is_err() });
                }
                while requests.join_next().await.is_some() {}
                if round == 0 {
                    before = rss_kib()?;
                }
            }
            let each = rss_kib()?.saturating_sub(before) as f64 * 1.024 / thousands as f64;
            println!("{thousands}000 rejected requests: {each:.0} bytes left of each, both ends");
            std::process::exit(0);
        }
        Plan::Connections { .. } => anyhow::bail!("measured elsewhere"),
        Plan::Bulk { bytes } => (1, get(&peer).await.map(|got| assert_eq!(got, bytes)).map(|()| bytes)?),
    };
    let elapsed = began.elapsed().as_secs_f64();
    let here = (thread_cpu() - here).as_secs_f64();
    tokio::time::sleep(Duration::from_millis(120)).await; // the other side's clock is read every 50 ms
    let there = (server_cpu.load(Ordering::Relaxed) - there) as f64 * 1e-9;
    if bytes > 0 {
        let gb = bytes as f64 * 1e-9;
        println!(
            "bulk {gb:.2} GB in {elapsed:.2} s: {:.2} GB/s; CPU-s per GB: receiver {:.2}, sender {:.2}, both {:.2}",
            gb / elapsed,
            here / gb,
            there / gb,
            (here + there) / gb
        );
    } else {
        let micros = 1e6 / count as f64;
        println!(
            "{plan:?}: {:.0}/s; CPU us per request: client {:.1}, server {:.1}, both {:.1}",
            count as f64 / elapsed,
            here * micros,
            there * micros,
            (here + there) * micros
        );
    }
    std::process::exit(0);
}

async fn closed_loop(peer: &PeerHandle, concurrency: usize) -> anyhow::Result<u64> {
    let (count, end) = (Rc::new(Cell::new(0)), Instant::now() + Duration::from_secs(SECONDS));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (peer, count) = (peer.clone(), count.clone());
        clients.spawn_local(async move {
            while Instant::now() < end {
                get(&peer).await?;
                count.set(count.get() + 1);
            }
            anyhow::Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(count.get())
}

/// One request as a gateway makes it, with the headers it adds.
async fn get(peer: &PeerHandle) -> anyhow::Result<usize> {
    let request = Request::get("http://checkout.shop.svc.clusterset.local/cart/items?page=2")
        .header("accept", "*/*")
        .header("user-agent", "bench/1.0")
        .header("mesh-source", "spiffe://bench.test/cluster/paris/gateway/gw")
        .header("mesh-cluster", "paris")
        .header("mesh-deadline-ms", "15000")
        .header("mesh-attempt", "1")
        .body(Empty::<Bytes>::new())?;
    let mut body = peer.request(request).await?.into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes)
}

fn config(cluster: &str, credential: LiveCredential) -> TunnelConfig {
    TunnelConfig::new(cluster, "gw", credential, SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
