//! Any body through any pair of protocols, here and through a tunnel: it arrives byte for byte, or its receiver can tell; and
//! afterwards nothing of it is left in any gateway.
//!
//! Clients and backends are written by hand ([`http1`]) or on `h2` ([`http2`]), so that they frame, cut and reset as they like.
//! `BODIES_SEED=7 BODIES_CASES=500 cargo test -p archipelago-gateway --test peers bodies` draws other and more cases.

mod http1;
mod http2;
mod plan;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use archipelago_proto::v1::Protocol;

use crate::harness::{Mesh, eventually, service};
use plan::{Case, Framing, Received, Rng, Speaks};

pub(crate) const HOST1: &str = "one.shop";
pub(crate) const HOST2: &str = "two.shop";

/// What was to happen, and what did.
#[derive(Default)]
pub(crate) struct Book {
    cases: Mutex<Vec<Case>>,
    /// Those that reached a backend.
    arrived: Mutex<Vec<usize>>,
    /// Those whose client is done.
    returned: Mutex<Vec<usize>>,
    /// Those that nobody could serve at the time: a machine that stands still for a second makes a peer suspect.
    unserved: Mutex<Vec<Case>>,
    faults: Mutex<Vec<String>>,
}

impl Book {
    pub(crate) fn case(&self, number: usize) -> Case {
        self.cases.lock().unwrap()[number].clone()
    }

    pub(crate) fn fault(&self, what: String) {
        self.faults.lock().unwrap().push(what);
    }

    /// What a backend got of a request.
    pub(crate) fn backend(&self, case: &Case, received: Received) {
        // A length that comes with trailers, as HTTP/2 may have it, leaves no room for them in HTTP/1.1.
        let trailers_pass = case.request.framing == Framing::Unknown;
        if let Err(why) = received.check(&case.request, case.must_arrive(), trailers_pass) {
            self.fault(format!("request: {why}: {case:?}"));
        }
        self.arrived.lock().unwrap().push(case.number);
    }

    /// What the client got of the response.
    pub(crate) fn client(&self, case: &Case, received: Received) {
        self.returned.lock().unwrap().push(case.number);
        if received.status != 200 && received.is_whole {
            // An answer of the gateway's own.
            if case.must_return() && received.status == 503 {
                self.unserved.lock().unwrap().push(case.clone());
            } else if case.must_return() {
                let text = String::from_utf8_lossy(&received.bytes);
                self.fault(format!("response: {} {text:?}: {case:?}", received.status));
            }
            return;
        }
        let trailers_pass = case.response.framing == Framing::Unknown && case.client != Speaks::Http10;
        if let Err(why) = received.check(&case.response, case.must_return(), trailers_pass) {
            self.fault(format!("response: {why}: {case:?}"));
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

#[tokio::test]
async fn any_body_arrives_byte_for_byte_or_its_receiver_can_tell() {
    let (seed, count) = (number("BODIES_SEED", 1), usize::try_from(number("BODIES_CASES", 120)).unwrap());
    eprintln!("BODIES_SEED={seed} BODIES_CASES={count}");
    let book = Arc::new(Book::default());
    let mut mesh = Mesh::start(&["paris", "tokyo"]).await;
    let (one, two) = (http1::backend(Arc::clone(&book)).await, http2::backend(Arc::clone(&book)).await);
    let services =
        vec![service("one", Protocol::Http1, &["tokyo"], &[]), service("two", Protocol::H2c, &["tokyo"], &[])];
    mesh.configure(services, &[("one", "tokyo", one, ""), ("two", "tokyo", two, "")]).await;
    mesh.serves(HOST1, "tokyo").await;
    mesh.serves(HOST2, "tokyo").await;
    let mut rng = Rng(seed);
    for entry in ["tokyo", "paris"] {
        for client in [Speaks::Http11, Speaks::Http2] {
            for backend in [Speaks::Http11, Speaks::Http2] {
                let mut cases: Vec<Case> = {
                    let mut all = book.cases.lock().unwrap();
                    let first = all.len();
                    all.extend((first..first + count).map(|number| Case::draw(&mut rng, number, client, backend)));
                    all[first..].to_vec()
                };
                for _ in 0..ROUNDS_MAX {
                    round(mesh.http(entry), &cases, (client, backend), &book).await;
                    cases = std::mem::take(&mut *book.unserved.lock().unwrap());
                    if cases.is_empty() {
                        break;
                    }
                }
                assert!(cases.is_empty(), "BODIES_SEED={seed}: nobody serves {cases:#?}");
            }
        }
    }
    let faults = std::mem::take(&mut *book.faults.lock().unwrap());
    assert!(faults.is_empty(), "BODIES_SEED={seed} BODIES_CASES={count}: {} faults: {faults:#?}", faults.len());
    nothing_is_left(&mesh).await;
    let mut arrived = book.arrived.lock().unwrap().clone();
    arrived.sort_unstable();
    assert!(arrived.windows(2).all(|pair| pair[0] != pair[1]), "a POST was sent twice: {arrived:?}");
}

/// Sends these cases, several connections at once.
async fn round(entry: SocketAddr, cases: &[Case], (client, backend): (Speaks, Speaks), book: &Arc<Book>) {
    let mut clients = tokio::task::JoinSet::new();
    for cases in cases.chunks(CASES_PER_CONNECTION) {
        let (cases, book) = (cases.to_vec(), Arc::clone(book));
        clients.spawn(async move {
            match client {
                Speaks::Http2 => http2::client(entry, backend, cases, book).await,
                _ => http1::client(entry, backend, cases, book).await,
            }
        });
    }
    let all = async { while clients.join_next().await.transpose().unwrap().is_some() {} };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        let (returned, arrived) = (book.returned.lock().unwrap(), book.arrived.lock().unwrap());
        let open: Vec<_> = cases.iter().filter(|case| !returned.contains(&case.number)).collect();
        panic!("{client:?} to {backend:?} at {entry} hangs: {open:#?}; arrived: {arrived:?}");
    }
}

/// Requests, connections of clients and exchanges in flight are zero, in all workers of all gateways.
async fn nothing_is_left(mesh: &Mesh) {
    for (cluster, gateway) in &mesh.gateways {
        eventually(&format!("{cluster} carries nothing any more"), async || {
            gateway.workers().reports().await.iter().all(|report| report.requests == 0 && report.connections == 0)
        })
        .await;
    }
}

const CASES_PER_CONNECTION: usize = 6;
/// Of what nobody could serve.
const ROUNDS_MAX: usize = 100;
/// For one pair of protocols: a request that never ends is found out, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
