//! TCP services: bytes from one end to the other, each direction ending on its own, resets staying resets.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_http::{Fields, Known, RequestHead, ResponseHead};
use archipelago_tunnel::{IncomingRequest, RecvHalf, SendHalf};
use bytes::BytesMut;
use http::{Method, StatusCode};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::authorize::{Asked, INGRESS_HOP, authorize};
use crate::balance::cluster::NoTrace;
use crate::balance::hash::Key;
use crate::balance::outlier::Verdict;
use crate::config::Service;
use crate::exchange::books::Reporter;
use crate::exchange::policy::version_asked;
use crate::exchange::upstream::{Endpoint, UpstreamError};
use crate::exchange::vouched;
use crate::source::{Source, Workload};
use crate::telemetry::Name;
use crate::telemetry::flows::{Between, Carried};
use crate::worker::Worker;
use crate::worker::streams::{End, Stream};
use crate::worker::view::{Decision, RouteQuery, Target, Tried, View};

/// Carries one client's connection to wherever the service is served; other clusters are tried only while connecting.
pub async fn serve_client(worker: Rc<Worker>, service: Arc<str>, source: Source, stream: TcpStream) {
    let _open = worker.metrics.tcp_connection(Reporter::Source);
    let began = Instant::now();
    prepare(&stream);
    let source = source.current(&worker.clients, worker.clients_seen.get()).cloned();
    let from = source.as_ref().map_or("", |workload| workload.as_str());
    tracing::debug!(%service, source = from, "a TCP connection of a client");
    let mut tried = Tried::default();
    let mut key = None;
    for _ in 0..ATTEMPTS_MAX {
        let chosen = worker.seek(|| choose(&worker, &service, &mut key, &tried)).await;
        let Some((view, config, Decision { target, version, cluster })) = chosen else { break };
        let taken = |version| {
            let destination = view.cluster_name(cluster).unwrap_or(&worker.cluster).clone();
            let between = Between { destination: Some(destination), version, ..nobody(&worker, &service) };
            worker.metrics.tcp_connected(between, began.elapsed())
        };
        match &target {
            Target::Local(endpoint) => match connect(&view, &service, endpoint).await {
                Ok(upstream) => {
                    let _in_flight = endpoint.enter();
                    let end = End::Client { served_by: Arc::clone(&worker.identity.cluster) };
                    let open = worker.streams.open(Arc::clone(&service), end);
                    let carried = taken(version_of(&view, &service, endpoint));
                    return splice(&open, &carried, stream, upstream).await;
                }
                Err(error) => {
                    tracing::debug!(%service, error = &error as &dyn std::error::Error, "endpoint refused a TCP connection");
                }
            },
            Target::Remote(remote) => {
                let Some(request) = connect_request(&config, version.as_deref(), source.as_deref()) else { break };
                let connected = async { remote.handle.open().await?.connect(&request, &Fields::new()).await };
                let answered = tokio::select! {
                    biased;
                    answered = tokio::time::timeout(CONNECT_TIMEOUT, connected) => answered.ok(),
                    () = remote.handle.died() => None,
                };
                match answered {
                    Some(Ok((response, send, recv))) if response.status.is_success() => {
                        let end = End::Client { served_by: Arc::clone(&remote.cluster) };
                        let open = worker.streams.open(Arc::clone(&service), end);
                        let carried = taken(None);
                        return through_tunnel(&open, &carried, Way::Up, stream, send, recv).await;
                    }
                    Some(Ok((response, ..))) => {
                        tracing::debug!(%service, peer = %remote.name, status = %response.status, "peer refused a TCP connection")
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%service, peer = %remote.name, %error, "no TCP connection through the tunnel")
                    }
                    None => {
                        tracing::debug!(%service, peer = %remote.name, "no answer to a TCP connection through the tunnel")
                    }
                }
            }
        }
        // A gateway that is away may be back for the next attempt.
        if target.takes_requests() {
            tried.add(&target);
        }
    }
    tracing::debug!(%service, "no cluster can serve a TCP connection");
    worker.metrics.tcp_failed(nobody(&worker, &service));
    reset(&stream);
}

/// A connection of a client, before anybody has taken it.
fn nobody(worker: &Worker, service: &str) -> Between {
    Between {
        service: worker.names.of(service),
        version: None,
        source: worker.cluster.clone(),
        destination: None,
        reporter: Reporter::Source,
    }
}

/// The version of an endpoint here.
fn version_of(view: &View, service: &str, endpoint: &Rc<Endpoint>) -> Option<Name> {
    view.service(view.snapshot.service_by_key(service)?)?.version_of(endpoint).cloned()
}

/// Who takes a connection of a client now; else until when it is worth waiting for somebody.
fn choose(
    worker: &Worker,
    service: &str,
    key: &mut Option<Key>,
    tried: &Tried,
) -> Result<(Rc<View>, Arc<Service>, Decision), Option<Instant>> {
    let view = worker.view();
    let index = view.snapshot.service_by_key(service).ok_or(None)?;
    let (config, live) = view.snapshot.service(index).zip(view.service(index)).ok_or(None)?;
    let rule = config.rule(&Method::CONNECT, b"/", &Fields::new()).ok_or(None)?;
    let key = *key.get_or_insert_with(|| live.draw());
    let query = RouteQuery { service: index, rule, key, tried, random: worker.random(), now: Instant::now() };
    match view.decide(&query, &mut NoTrace) {
        Some(decision) => Ok((Rc::clone(&view), Arc::clone(config), decision)),
        None => {
            worker.demand(&view, index);
            Err(view.hope(&query, worker.limits.away_timeout))
        }
    }
}

/// Takes a CONNECT out of a tunnel to an endpoint of this cluster.
pub async fn serve_peer(worker: Rc<Worker>, incoming: IncomingRequest) {
    let IncomingRequest { peer, head, responder, .. } = incoming;
    let began = Instant::now();
    let caller = worker.caller(&peer);
    let authorized = caller
        .as_ref()
        .map_err(|refusal| *refusal)
        .and_then(|caller| authorize(&worker.view().snapshot, &caller.admitted, Asked::by(&head)));
    let authorized = match authorized {
        Ok(authorized) => authorized,
        Err(refusal) => {
            worker.metrics.refused_stream(refusal);
            tracing::debug!(peer = %peer.spiffe_id, %refusal, "a TCP connection out of a tunnel is refused");
            if refusal.is_skew() {
                return responder.reject();
            }
            let body = http_body_util::Empty::<bytes::Bytes>::new();
            let _ = responder.respond(&ResponseHead::of(StatusCode::FORBIDDEN), body).await;
            return;
        }
    };
    let source = caller.as_ref().ok().and_then(|caller| vouched(caller, &head.fields));
    let from = source.as_ref().map_or("", |workload| workload.as_str());
    tracing::debug!(service = %authorized.service(), peer = %peer.spiffe_id, source = from, "a TCP connection of a peer");
    let _open = worker.metrics.tcp_connection(Reporter::Destination);
    let version = version_asked(&head.fields);
    let between = |version, destination| Between {
        service: worker.names.of(authorized.service()),
        version,
        source: caller.as_ref().map_or(&worker.cluster, |caller| &caller.cluster).clone(),
        destination,
        reporter: Reporter::Destination,
    };
    let mut tried = Tried::default();
    loop {
        let view = worker.view();
        let decision = view.decide_for_peer(&authorized, &version, &tried, worker.random(), Instant::now());
        // Nothing of it reached an endpoint: another gateway may try.
        let Some(Decision { target: Target::Local(endpoint), .. }) = decision else {
            worker.metrics.tcp_failed(between(None, None));
            return responder.reject();
        };
        match connect(&view, authorized.service(), &endpoint).await {
            Ok(upstream) => {
                let _in_flight = endpoint.enter();
                let served_by = version_of(&view, authorized.service(), &endpoint);
                let between = between(served_by, Some(worker.cluster.clone()));
                let carried = worker.metrics.tcp_connected(between, began.elapsed());
                match responder.accept_connect(&ResponseHead::new()).await {
                    Ok((send, recv)) => {
                        let open = worker.streams.open(Arc::clone(authorized.service()), End::Peer);
                        through_tunnel(&open, &carried, Way::Down, upstream, send, recv).await;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the peer gave a TCP connection up");
                        reset(&upstream);
                    }
                }
                return;
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "endpoint refused a TCP connection");
                tried.endpoints.push(endpoint.address());
            }
        }
    }
}

/// A connection to an endpoint, and what that shows of it.
async fn connect(view: &View, service: &str, endpoint: &Endpoint) -> Result<TcpStream, UpstreamError> {
    let connected = endpoint.connect().await;
    let live = view.snapshot.service_by_key(service).and_then(|index| view.service(index));
    let verdict = connected.as_ref().map_or_else(UpstreamError::verdict, |_| Some(Verdict::Answered));
    if let (Some(live), Some(verdict)) = (live, verdict) {
        live.judge(endpoint, verdict, Instant::now());
    }
    let upstream = connected?;
    prepare(&upstream);
    Ok(upstream)
}

fn connect_request(service: &Service, version: Option<&str>, source: Option<&Workload>) -> Option<RequestHead> {
    let host = service.hosts.first().map_or("service", String::as_str);
    let mut head = RequestHead::new();
    head.method = Method::CONNECT;
    if !head.set_authority(format!("{host}:{}", service.port).as_bytes()) {
        return None;
    }
    head.fields.push(Known::MeshService, service.service.as_bytes());
    head.fields.push_number(Known::MeshPort, service.port.into());
    head.fields.push(Known::MeshHop, INGRESS_HOP.as_bytes());
    if let Some(workload) = source {
        head.fields.push(Known::MeshSource, workload.id.as_bytes());
    }
    if let Some(version) = version {
        head.fields.push(Known::MeshVersion, version.as_bytes());
    }
    Some(head)
}

/// Socket to socket.
async fn splice(open: &Stream, carried: &Carried, mut client: TcpStream, mut upstream: TcpStream) {
    let copied = {
        let (mut client, mut upstream) = (carried.downstream(&mut client), carried.upstream(&mut upstream));
        tokio::select! {
            copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, READ_BYTES, READ_BYTES) => copied,
            () = open.reset() => Err(not_allowed()),
        }
    };
    if let Err(error) = copied {
        tracing::debug!(%error, "TCP connection reset");
        reset(&client);
        reset(&upstream);
    }
}

fn not_allowed() -> io::Error {
    io::Error::other("the configuration does not allow this connection any more")
}

/// Where what a socket gives to a tunnel goes.
#[derive(Clone, Copy)]
enum Way {
    /// Towards the service: the socket is a client's.
    Up,
    /// Towards the client: the socket is an endpoint's.
    Down,
}

/// Socket to tunnel. Each direction ends on its own; an error in either resets both.
async fn through_tunnel(
    open: &Stream,
    carried: &Carried,
    way: Way,
    mut stream: TcpStream,
    mut send: SendHalf,
    mut recv: RecvHalf,
) {
    let count = |bytes, is_given| match (way, is_given) {
        (Way::Up, true) | (Way::Down, false) => carried.sent(bytes),
        (Way::Up, false) | (Way::Down, true) => carried.received(bytes),
    };
    let result = {
        let (mut reader, mut writer) = stream.split();
        let up = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(READ_BYTES);
                let n = tokio::select! {
                    biased;
                    error = send.stopped() => return Err(io::Error::other(error)),
                    n = reader.read_buf(&mut buffer) => n?,
                };
                if n == 0 {
                    return send.finish().await.map_err(io::Error::other);
                }
                send.send(buffer.split().freeze()).await.map_err(io::Error::other)?;
                count(n, true);
            }
        };
        let down = async {
            while let Some(bytes) = recv.recv().await.map_err(io::Error::other)? {
                writer.write_all(&bytes).await?;
                count(bytes.len(), false);
            }
            writer.shutdown().await
        };
        let both = async { tokio::try_join!(up, down) };
        tokio::select! {
            both = both => both,
            () = open.reset() => Err(not_allowed()),
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "tunnelled TCP connection reset");
        send.abort();
        recv.abort();
        reset(&stream);
    }
}

/// Closing now sends RST: the other end must not take a break for an end.
pub fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_nodelay(true);
    keep_alive(&socket);
}

/// A peer that vanished is noticed after about two minutes of silence.
pub fn keep_alive(socket: &SockRef<'_>) {
    let _ = socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15))
            .with_retries(4),
    );
}

/// A listening socket that shares its port with those of the other workers; [`listen_alone`] first, or with strangers.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    bind(address, true)
}

/// A listening socket on a port that nobody else has.
pub fn listen_alone(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    bind(address, false)
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections that linger after a restart are no reason to wait; a listener there still is.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

const ATTEMPTS_MAX: u32 = 5;
/// A tunnel's round trip and a connect inside the far cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_BYTES: usize = 64 * 1024;
/// The kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
