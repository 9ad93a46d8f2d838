//! The admin socket: JSON over HTTP/1.1 on a unix socket that only its owner can open.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /state` | identity, addresses, revision, services that are not served here and why, captures, workers, drill |
//! | `GET /tunnels` | one entry per peer gateway |
//! | `GET /endpoints` | one entry per worker: how many ready endpoints it tells other gateways of, and what each of them has told it |
//! | `GET /slow?service=namespace/name&sinceMs=N` | where the time of the slowest requests went, and that of some at random; both may be left out |
//! | `POST /explain` `{"host","method","path","headers"}` | the decision with its reasons |
//! | `POST /drill/cut` `{"clusters":[…],"gateways":["cluster/gateway"],"forMs":N}` | drops the tunnels' packets in silence, N ms long |
//! | `POST /drill/end` | ends that |
//! | `POST /drain` | as SIGTERM |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use archipelago_proto::v1::{ExplainQuery, GatewayAddresses, SlowQuestion, TunnelStatus};
use archipelago_tunnel::{Cut, PeerName, ServiceHealth};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Published;
use crate::control::status::ControlStatus;
use crate::handover::Turn;
use crate::ledger::report;
use crate::telemetry::{NOT_COUNTED, Telemetry};
use crate::worker::Identity;
use crate::worker::captures::CapturePorts;
use crate::worker::command::{Knowledge, state_name};
use crate::worker::ports::TcpPorts;
use crate::workers::Workers;

/// What the socket shows and moves.
#[derive(Debug)]
pub struct Admin {
    /// Who we are.
    pub identity: Arc<Identity>,
    /// Where we can be reached.
    pub addresses: GatewayAddresses,
    /// Configuration.
    pub published: Arc<Published>,
    /// The stream to the control plane.
    pub control: watch::Receiver<ControlStatus>,
    /// Workers.
    pub workers: Workers,
    /// What is written down of requests.
    pub telemetry: Telemetry,
    /// Ports of TCP services.
    pub tcp_ports: Arc<TcpPorts>,
    /// Ports for clients of the node.
    pub capture_ports: Arc<CapturePorts>,
    /// Drains the gateway.
    pub drain: CancellationToken,
    /// Between the processes of this gateway.
    pub turn: Turn,
    /// The drill in progress: what is cut, until when, and its number.
    pub drill: Mutex<Option<Drill>>,
}

/// A cut in progress.
#[derive(Debug, Clone)]
pub struct Drill {
    cut: Cut,
    until: Instant,
    number: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CutRequest {
    #[serde(default)]
    clusters: Vec<String>,
    #[serde(default)]
    gateways: Vec<String>,
    for_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainRequest {
    host: String,
    #[serde(default)]
    method: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// Opens the socket; a file left by a killed process is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves for ever.
pub async fn serve(listener: UnixListener, admin: Arc<Admin>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let admin = Arc::clone(&admin);
                async move { Ok::<_, Infallible>(admin.answer(request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let _ = connection.await;
            drop(slot);
        });
    }
}

impl Admin {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answer = match (method, path.as_str()) {
            (Method::GET, "/state") => Ok(self.state().await),
            (Method::GET, "/tunnels") => Ok(self.workers.tunnels().await.iter().map(tunnel).collect()),
            (Method::GET, "/endpoints") => Ok(self.workers.knowledge().await.iter().map(knowledge).collect()),
            (Method::GET, "/slow") => self.slow(request.uri().query().unwrap_or_default()).await,
            (Method::POST, "/explain") => self.explain(request).await,
            (Method::POST, "/drill/cut") => self.cut(request).await,
            (Method::POST, "/drill/end") => {
                self.end_drill().await;
                Ok(json!({}))
            }
            (Method::POST, "/drain") => {
                self.drain.cancel();
                Ok(json!({}))
            }
            (
                _,
                "/state" | "/tunnels" | "/endpoints" | "/slow" | "/explain" | "/drill/cut" | "/drill/end" | "/drain",
            ) => Err((StatusCode::METHOD_NOT_ALLOWED, "method not allowed".to_owned())),
            _ => Err((StatusCode::NOT_FOUND, "no such path".to_owned())),
        };
        let (status, body) =
            answer.map_or_else(|(status, error)| (status, json!({ "error": error })), |body| (StatusCode::OK, body));
        let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        response
    }

    async fn state(&self) -> Value {
        let snapshot = self.published.load();
        let control = self.control.borrow().clone();
        let captures = snapshot.captures.as_ref();
        let mut unserved = self.tcp_ports.unserved();
        unserved.extend(self.capture_ports.unserved());
        unserved.extend(captures.into_iter().flat_map(|captures| captures.problems().iter().cloned()));
        let drill = self.drill.lock().unwrap_or_else(PoisonError::into_inner).clone();
        json!({
            "cluster": &*self.identity.cluster,
            "gateway": &*self.identity.gateway,
            "spiffeId": self.identity.spiffe_id.to_string(),
            "revision": snapshot.revision,
            "services": snapshot.services().map(|(_, s)| &*s.key).collect::<Vec<_>>(),
            "controlPlane": {
                "connected": control.connected, "trouble": control.trouble,
                "problems": control.problems.iter().map(|p| format!("{}: {}", p.subject, p.reason)).collect::<Vec<_>>(),
                "rejections": control.rejections.iter().map(|r| format!("{}: {}", r.resource, r.reason)).collect::<Vec<_>>(),
            },
            "draining": self.drain.is_cancelled(),
            "phase": self.turn.phase().name(),
            "addresses": {
                "http": self.addresses.http, "tunnel": self.addresses.tunnel, "dns": self.addresses.dns,
                "metrics": self.addresses.metrics, "health": self.addresses.health, "tcpBase": self.addresses.tcp_base,
            },
            "unserved": unserved,
            "captures": captures.map(|captures| captures.list().iter().map(|capture| json!({
                "listen": capture.listen, "service": &*capture.service, "port": capture.port, "clusterIps": capture.cluster_ips,
            })).collect::<Vec<_>>()),
            "workers": self.workers.reports().await,
            "drill": drill.map(|drill| json!({
                "clusters": drill.cut.clusters,
                "gateways": drill.cut.peers.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "leftMs": u64::try_from(drill.until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX),
            })),
        })
    }

    async fn slow(&self, query: &str) -> Result<Value, (StatusCode, String)> {
        let mut question = SlowQuestion::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("service", name)) => name.clone_into(&mut question.service),
                Some(("sinceMs", text)) if text.parse::<u64>().is_ok() => {
                    question.since_ms = text.parse().unwrap_or_default();
                }
                _ => {
                    let what =
                        format!("{pair:?} is not known here: give service=namespace/name and sinceMs=N, or neither");
                    return Err((StatusCode::BAD_REQUEST, what));
                }
            }
        }
        if !self.telemetry.counts_requests() {
            return Err((StatusCode::NOT_FOUND, format!("this gateway {NOT_COUNTED}")));
        }
        Ok(report::json(&self.workers.slow(&question).await))
    }

    async fn explain(&self, request: Request<Incoming>) -> Result<Value, (StatusCode, String)> {
        let ask: ExplainRequest = read(request).await?;
        let query = ExplainQuery {
            host: ask.host,
            method: ask.method,
            path: ask.path,
            headers: ask.headers,
            probe_tunnels: false,
        };
        let e = self
            .workers
            .explain(query)
            .await
            .ok_or((StatusCode::SERVICE_UNAVAILABLE, "no worker answered".to_owned()))?;
        Ok(json!({
            "gateway": e.gateway, "cluster": e.cluster, "service": e.service, "rule": e.rule, "chosenCluster": e.chosen_cluster,
            "chosenGateway": e.chosen_gateway, "chosenEndpoint": e.chosen_endpoint, "reasons": e.reasons, "failure": e.failure,
        }))
    }

    async fn cut(self: &Arc<Self>, request: Request<Incoming>) -> Result<Value, (StatusCode, String)> {
        let ask: CutRequest = read(request).await?;
        let peers = ask.gateways.iter().map(|name| match name.split_once('/') {
            Some((cluster, gateway)) => Ok(PeerName { cluster: cluster.to_owned(), gateway: gateway.to_owned() }),
            None => Err((StatusCode::BAD_REQUEST, format!("{name:?} is not cluster/gateway"))),
        });
        let cut = Cut { clusters: ask.clusters, peers: peers.collect::<Result<_, _>>()?, ..Cut::default() };
        let ttl = Duration::from_millis(ask.for_ms).min(DRILL_MAX);
        let number = {
            let mut drill = self.drill.lock().unwrap_or_else(PoisonError::into_inner);
            let number = drill.as_ref().map_or(1, |d| d.number + 1);
            *drill = Some(Drill { cut: cut.clone(), until: Instant::now() + ttl, number });
            number
        };
        self.workers.cut(&cut).await;
        tracing::warn!(clusters = ?cut.clusters, gateways = ?ask.gateways, ?ttl, "drill: packets are dropped");
        let admin = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(ttl).await;
            let current = admin.drill.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|d| d.number);
            // A later drill has its own end.
            if current == Some(number) {
                admin.end_drill().await;
            }
        });
        Ok(json!({ "forMs": u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) }))
    }

    async fn end_drill(&self) {
        let ended = self.drill.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.workers.heal().await;
        if ended.is_some() {
            tracing::info!("drill ended");
        }
    }
}

async fn read<T: for<'de> Deserialize<'de>>(request: Request<Incoming>) -> Result<T, (StatusCode, String)> {
    let bad = |error: String| (StatusCode::BAD_REQUEST, error);
    let body = tokio::time::timeout(REQUEST_TIMEOUT, Limited::new(request.into_body(), BODY_BYTES_MAX).collect())
        .await
        .map_err(|_| bad("the body did not arrive in time".to_owned()))?
        .map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(error.to_string()))
}

fn tunnel(t: &TunnelStatus) -> Value {
    json!({
        "from": t.from, "to": t.to, "fromCluster": t.from_cluster, "toCluster": t.to_cluster, "state": t.state,
        "rttMicros": t.rtt_micros, "transport": t.transport, "connections": t.connections, "sentPackets": t.sent_packets,
        "lostPackets": t.lost_packets, "congestionWindowBytes": t.congestion_window_bytes, "blackHoles": t.black_holes,
        "tlsVersion": t.tls_version,
    })
}

fn knowledge(known: &Knowledge) -> Value {
    let services = |services: &mut dyn Iterator<Item = &ServiceHealth>| -> Value {
        services.map(|s| json!({ "service": s.service, "version": s.version, "ready": s.ready })).collect()
    };
    json!({
        "worker": known.worker, "settled": known.is_settled, "tells": services(&mut known.tells.iter()),
        "hears": known.hears.iter().map(|heard| json!({
            "from": heard.from, "state": state_name(heard.state), "services": services(&mut heard.services.values().flatten()),
        })).collect::<Vec<_>>(),
    })
}

const CONNECTIONS_MAX: usize = 32;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 64 * 1024;
/// A forgotten drill ends by itself.
const DRILL_MAX: Duration = Duration::from_secs(3600);
