//! Two gateways on 127.0.0.1 with real certificates, and a small application behind one of them.
#![allow(dead_code, unreachable_pub, reason = "every test file uses a part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests, which clippy does not see as such")]

use archipelago_http::{Fields, Pooled, RequestHead, ResponseHead};
use archipelago_identity::{LiveCredential, SpiffeId, testing::TestAuthority};
use archipelago_tunnel::{
    Exchange, Incoming, IncomingRequest, Peer, PeerHandle, PeerName, PeerState, RecvHalf, Responder, SendHalf,
    TunnelBody, TunnelConfig, TunnelError, Tunnels,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full, channel::Channel, combinators::UnsyncBoxBody};
use std::{collections::hash_map::DefaultHasher, future::Future, hash::Hasher, net::SocketAddr, time::Duration};
use tokio::sync::mpsc;

pub type BoxBody = UnsyncBoxBody<Bytes, TunnelError>;

/// Everything here happens in milliseconds; on a machine that is busy with something else, within this.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

pub fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub fn config(credential: LiveCredential, cluster: &str, gateway: &str) -> TunnelConfig {
    TunnelConfig::new(cluster, gateway, credential, localhost())
}

/// A gateway named `cluster/gw` of that authority.
pub fn gateway(authority: &TestAuthority, cluster: &str) -> (Tunnels, Incoming) {
    Tunnels::bind(config(authority.gateway(cluster, "gw"), cluster, "gw")).unwrap()
}

pub fn peer(authority: &TestAuthority, cluster: &str, address: SocketAddr) -> Peer {
    let spiffe_id = SpiffeId::gateway(authority.trust_domain(), cluster, "gw");
    Peer { cluster: cluster.to_owned(), gateway: "gw".to_owned(), spiffe_id, addresses: vec![address] }
}

pub fn name(cluster: &str) -> PeerName {
    PeerName { cluster: cluster.to_owned(), gateway: "gw".to_owned() }
}

/// paris, which dials tokyo, which serves the application below.
pub struct Pair {
    pub authority: TestAuthority,
    pub paris: Tunnels,
    pub tokyo: Tunnels,
    pub handle: PeerHandle,
    /// What the application saw; see [`serve`].
    pub events: mpsc::Receiver<String>,
}

impl Pair {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(tune: impl Fn(&mut TunnelConfig)) -> Self {
        let authority = TestAuthority::new("archipelago.test");
        let mut here = config(authority.gateway("paris", "gw"), "paris", "gw");
        let mut there = config(authority.gateway("tokyo", "gw"), "tokyo", "gw");
        tune(&mut here);
        tune(&mut there);
        let (paris, _unused) = Tunnels::bind(here).unwrap();
        let (tokyo, incoming) = Tunnels::bind(there).unwrap();
        let (report, events) = mpsc::channel(1000);
        tokio::spawn(serve(incoming, report));
        paris.set_peers(vec![peer(&authority, "tokyo", tokyo.local_addr())]);
        let handle = paris.peer(&name("tokyo")).unwrap();
        until_state(&paris, &handle, PeerState::Up).await;
        Self { authority, paris, tokyo, handle, events }
    }

    pub async fn event(&mut self) -> String {
        within("an event of the application", self.events.recv()).await.unwrap()
    }
}

pub async fn until_state(tunnels: &Tunnels, handle: &PeerHandle, state: PeerState) {
    until(tunnels, &format!("{} is {state}", handle.name()), || handle.state() == state).await;
}

/// Waits for a condition that moves with [`Tunnels::changes`].
pub async fn until(tunnels: &Tunnels, what: &str, condition: impl Fn() -> bool) {
    let mut changes = tunnels.changes();
    within(what, async {
        while !condition() {
            changes.changed().await.unwrap();
        }
    })
    .await;
}

pub fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://app.test{path}")).body(Empty::new()).unwrap()
}

pub fn post<B>(path: &str, body: B) -> Request<B> {
    Request::post(format!("http://app.test{path}")).body(body).unwrap()
}

/// A request in the types of the `http` crate.
pub fn taken(incoming: Box<IncomingRequest>) -> (Request<TunnelBody>, Responder) {
    let IncomingRequest { head, body, responder, .. } = *incoming;
    (Request::from_parts(head.to_http().unwrap(), body), responder)
}

/// Answers with a response in the types of the `http` crate.
pub async fn respond<B>(responder: Responder, response: Response<B>) -> Result<(), TunnelError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = response.into_parts();
    responder.respond(&ResponseHead::from_http(&parts).unwrap(), body).await
}

/// Begins a request in the types of the `http` crate.
pub async fn begin<B>(handle: &PeerHandle, request: Request<B>) -> Result<Exchange<B>, TunnelError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    handle.open().await?.request(&RequestHead::from_http(&parts).unwrap(), &Fields::new(), body)
}

/// A CONNECT to a database.
pub async fn connect(handle: &PeerHandle) -> Result<(Pooled<ResponseHead>, SendHalf, RecvHalf), TunnelError> {
    let mut head = RequestHead::new();
    head.method = Method::CONNECT;
    assert!(head.set_authority(b"db.shop.svc.clusterset.local:5432"));
    handle.open().await?.connect(&head, &Fields::new()).await
}

/// A request body fed by hand.
pub fn channel() -> (http_body_util::channel::Sender<Bytes, std::io::Error>, Channel<Bytes, std::io::Error>) {
    Channel::new(4)
}

pub async fn next_data(body: &mut (impl Body<Data = Bytes, Error = TunnelError> + Unpin)) -> Bytes {
    within("data", body.frame()).await.expect("more body").expect("no error").into_data().expect("data")
}

/// The application:
/// `/bytes/N`, `/echo`, `/digest` as the demo backends; `/trailers`; `/hang` reports when it is cancelled; `/broken` fails after
/// 1000 bytes; `/endless` streams until stopped; `/unread` never reads its body; `/reject`. CONNECT reads to the end, then answers with the count.
pub async fn serve(mut incoming: Incoming, report: mpsc::Sender<String>) {
    while let Some(request) = incoming.next().await {
        tokio::spawn(answer(request, report.clone()));
    }
}

async fn answer(incoming: Box<IncomingRequest>, report: mpsc::Sender<String>) {
    let peer = incoming.peer.clone();
    let (request, mut responder) = taken(incoming);
    let path = request.uri().path().to_owned();
    let body = |bytes: Vec<u8>| Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync();
    let result = match path.as_str() {
        _ if request.method() == Method::CONNECT => {
            let (mut send, mut recv) = responder.accept_connect(&ResponseHead::new()).await.unwrap();
            let mut count = 0;
            loop {
                match recv.recv().await {
                    Ok(Some(data)) => count += data.len(),
                    Ok(None) => break,
                    Err(error) => {
                        send.abort();
                        return report.send(format!("connect: {error}")).await.unwrap();
                    }
                }
            }
            send.send(Bytes::from(format!("{count} bytes"))).await.unwrap();
            send.finish().await
        }
        "/echo" => respond(responder, Response::new(request.into_body())).await,
        "/digest" => {
            let (count, hash) = match digest(request.into_body()).await {
                Ok(digest) => digest,
                Err(error) => return report.send(format!("digest: {error}")).await.unwrap(),
            };
            respond(responder, Response::new(body(format!("{count} {hash:x}").into_bytes()))).await
        }
        "/trailers" => {
            let (mut sender, channel) = Channel::<Bytes, TunnelError>::new(4);
            tokio::spawn(async move {
                let _ = sender.send_data(Bytes::from_static(b"body")).await;
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                let _ = sender.send_trailers(trailers).await;
            });
            respond(responder, Response::new(channel)).await
        }
        "/hang" => {
            report.send("hanging".to_owned()).await.unwrap();
            let error = responder.cancelled().await;
            return report.send(format!("cancelled: {error}")).await.unwrap();
        }
        "/broken" => {
            let (mut sender, channel) = Channel::<Bytes, std::io::Error>::new(4);
            tokio::spawn(async move {
                let _ = sender.send_data(Bytes::from(vec![1; 1000])).await;
                sender.abort(std::io::Error::other("backend died"));
            });
            respond(responder, Response::new(channel)).await
        }
        "/endless" => {
            let pulled = Endless { report: report.clone(), pulled: 0 };
            let result = respond(responder, Response::new(pulled)).await;
            return report.send(format!("endless: {}", result.unwrap_err())).await.unwrap();
        }
        "/unread" => {
            report.send("unread".to_owned()).await.unwrap();
            responder.cancelled().await;
            drop(request);
            Ok(())
        }
        "/reject" => {
            responder.reject();
            Ok(())
        }
        "/peer" => respond(responder, Response::new(body(peer.spiffe_id.to_string().into_bytes()))).await,
        path => {
            let count = path.strip_prefix("/bytes/").and_then(|count| count.parse().ok()).unwrap_or(0usize);
            let response = Response::builder().header("content-length", count).body(body(pattern(0, count)));
            respond(responder, response.unwrap()).await
        }
    };
    if let Err(error) = result {
        let _ = report.send(format!("{path}: {error}")).await;
    }
}

/// Reports `pulled N` with every chunk that is asked for.
struct Endless {
    report: mpsc::Sender<String>,
    pulled: usize,
}

impl Body for Endless {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        self.pulled += CHUNK;
        let _ = self.report.try_send(format!("pulled {}", self.pulled));
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(&[0; CHUNK])))))
    }
}

pub const CHUNK: usize = 64 * 1024;

/// Bytes that differ everywhere, so that nothing can be swapped or lost unnoticed: a block, stamped with its place.
pub fn pattern(offset: usize, count: usize) -> Vec<u8> {
    static BLOCK: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let block =
        BLOCK.get_or_init(|| (0..1 << 16).map(|at: usize| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect());
    let mut bytes = Vec::with_capacity(count + block.len());
    while bytes.len() < count {
        let stamp = (offset + bytes.len()).to_le_bytes();
        bytes.extend_from_slice(&stamp);
        bytes.extend_from_slice(block);
    }
    bytes.truncate(count);
    bytes
}

pub async fn digest<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Result<(usize, u64), B::Error> {
    let (mut count, mut hasher) = (0, DefaultHasher::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            count += data.len();
            hasher.write(&data); // SipHash over a stream: where it is cut does not matter
        }
    }
    Ok((count, hasher.finish()))
}

pub fn digest_of(bytes: &[u8]) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    (bytes.len(), hasher.finish())
}
