//! Two processes of one gateway on one machine, one after the other, under load: nobody notices.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod harness;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use archipelago_gateway::internals::{ConfigState, Store};
use archipelago_identity::CredentialDir;
use archipelago_model::version::Version;
use archipelago_proto::v1::{self as proto, Protocol};
use harness::{Mesh, admin, backend, empty, eventually, free_port, get, on_port, request, service, tcp_backend, text};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use http_body_util::BodyExt as _;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

const CHECKOUT: &str = "checkout.shop";

/// paris as processes of its own, all under the same addresses; tokyo inside this process.
struct Federation {
    mesh: Mesh,
    services: Vec<proto::ServiceConfig>,
    endpoints: Vec<(&'static str, &'static str, SocketAddr, &'static str)>,
    dir: tempfile::TempDir,
    /// HTTP; DNS, health, metrics and TCP services follow.
    port: u16,
    tunnel: u16,
    started: usize,
}

impl Federation {
    async fn new() -> Self {
        let (paris, _) = backend("paris").await;
        let (tokyo, _) = backend("tokyo").await;
        let ledger = tcp_backend().await;
        Self {
            mesh: Mesh::start(&["tokyo"]).await,
            services: vec![
                service("checkout", Protocol::Http1, &["paris", "tokyo"], &[("paris", 1)]),
                on_port(service("ledger", Protocol::Tcp, &["paris"], &[]), 1),
            ],
            endpoints: vec![
                ("checkout", "paris", paris, "v1"),
                ("checkout", "tokyo", tokyo, "v1"),
                ("ledger", "paris", ledger, ""),
            ],
            dir: tempfile::tempdir().unwrap(),
            port: free_port(),
            tunnel: free_port(),
            started: 0,
        }
    }

    fn at(&self, offset: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port + offset))
    }

    /// One more process of paris/gw-1, with a state directory of its own, as a pod has. `knows`: it has a configuration.
    fn start(&mut self, workers: usize, knows: bool) -> Process {
        self.started += 1;
        let state = self.dir.path().join(self.started.to_string());
        std::fs::create_dir_all(&state).unwrap();
        let credential = self.mesh.authority.gateway("paris", "gw-1").current();
        CredentialDir::new(state.join("identity")).store(&credential).unwrap();
        if knows {
            let resources = self.mesh.resources("paris", &self.services);
            let version = Version { revision: 1, ..Version::default() };
            let known = ConfigState::new(version, resources).with_local(Mesh::local("paris", &self.endpoints));
            Store::new(&state, "paris", "gw-1").save(&known).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_archipelago-gateway"));
        command.args(["--cluster", "paris", "--name", "gw-1", "--drain-timeout-ms", "8000"]);
        command.arg("--state-dir").arg(&state).arg("--workers").arg(workers.to_string());
        for (flag, offset) in [("--http", 0), ("--dns", 1), ("--health", 2), ("--metrics", 3), ("--tcp-base", 4)] {
            command.arg(flag).arg(self.at(offset).to_string());
        }
        command.arg("--tunnel").arg(format!("127.0.0.1:{}", self.tunnel));
        let log = std::fs::File::create(state.join("log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Process { child, state }
    }

    /// What the control plane does when a gateway says where it is: its peers are told.
    async fn register(&mut self, process: &Process) {
        let tunnels = process.state().await["addresses"]["tunnel"].clone();
        let tunnels = tunnels.as_array().unwrap().iter().map(|tunnel| tunnel.as_str().unwrap().to_owned());
        self.mesh.set_elsewhere("paris", tunnels.collect());
        self.mesh.configure(self.services.clone(), &self.endpoints).await;
    }

    /// Waits until every worker of both gateways would serve from both clusters.
    async fn serves(&self, process: &Process) {
        for cluster in ["paris", "tokyo"] {
            self.mesh.serves(CHECKOUT, cluster).await;
            let question = format!(r#"{{"host":"{CHECKOUT}","headers":{{"x-only":"{cluster}"}}}}"#);
            eventually("paris serves from both", async || {
                // It answers for all of its workers.
                let answer = admin(&process.state, "POST", "/explain", &question).await;
                answer.is_some_and(|answer| answer.contains(&format!(r#""chosenCluster":"{cluster}""#)))
            })
            .await;
        }
        eventually("TCP is served", async || ledger(self.at(5)).await.is_ok()).await;
    }
}

struct Process {
    child: Child,
    state: PathBuf,
}

impl Process {
    async fn state(&self) -> serde_json::Value {
        let answered = Mutex::new(None);
        eventually("the gateway answers", async || {
            let Some(answer) = admin(&self.state, "GET", "/state", "").await else { return false };
            *answered.lock().unwrap() = Some(answer);
            true
        })
        .await;
        serde_json::from_str(&answered.into_inner().unwrap().unwrap()).unwrap()
    }

    async fn reaches(&self, phase: &str) {
        eventually(phase, async || self.state().await["phase"] == phase).await;
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    async fn ends(mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(status.success(), "{status}: {}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.state.join("log")).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.state.display(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that a client may do, over and over, and every failure of it.
struct Load {
    done: Arc<Vec<AtomicUsize>>,
    failures: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(federation: &Federation) -> Self {
        let (paris, dns, tcp) = (federation.at(0), federation.at(1), federation.at(5));
        let (tokyo, metrics) = (federation.mesh.http("tokyo"), federation.mesh.metrics("tokyo"));
        let mut load = Self {
            done: Arc::new((0..KINDS).map(|_| AtomicUsize::new(0)).collect()),
            failures: Arc::default(),
            stop: Arc::default(),
            tasks: Vec::new(),
        };
        load.repeat(0, move || async move { expect_ok(get(paris, CHECKOUT, "/", &[("x-only", "paris")]).await).await });
        let through_tunnels = [
            (1, paris, federation.at(3), "tokyo", "/"),
            (2, tokyo, metrics, "paris", "/"),
            (3, tokyo, metrics, "paris", "/delay/700"),
        ];
        for (kind, entry, metrics, cluster, path) in through_tunnels {
            let convictions = Convictions::watch(metrics);
            load.repeat(kind, move || {
                let convictions = convictions.clone();
                async move {
                    let began = Instant::now();
                    match expect_ok(get(entry, CHECKOUT, path, &[("x-only", cluster)]).await).await {
                        Err(error) if !convictions.around(began).await => Err(error),
                        _ => Ok(()),
                    }
                }
            });
        }
        load.repeat(4, move || kept_alive(paris));
        load.repeat(5, move || multiplexed(paris));
        load.repeat(6, move || async move { ledger(tcp).await.map(drop).map_err(|error| error.to_string()) });
        load.repeat(7, move || asked(dns));
        load
    }

    fn repeat<F>(&mut self, kind: usize, once: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), String>> + Send,
    {
        let (done, failures, stop) = (Arc::clone(&self.done), Arc::clone(&self.failures), Arc::clone(&self.stop));
        self.tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match once().await {
                    Ok(()) => drop(done[kind].fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failures.lock().unwrap().push(format!("{kind}: {error}")),
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }));
    }

    /// Waits until each kind was done ten times more.
    async fn goes_on(&self) {
        let before: Vec<usize> = self.done.iter().map(|done| done.load(Ordering::Relaxed)).collect();
        eventually("load of every kind", async || {
            let more = if self.failures.lock().unwrap().is_empty() { 10 } else { 0 };
            let slow = [3, 4, 5];
            let wanted = |kind: usize| if slow.contains(&kind) { more.min(1) } else { more };
            self.done
                .iter()
                .zip(&before)
                .enumerate()
                .all(|(kind, (done, before))| done.load(Ordering::Relaxed) >= before + wanted(kind))
        })
        .await;
        assert_eq!(*self.failures.lock().unwrap(), Vec::<String>::new());
    }

    async fn ends(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        assert_eq!(*self.failures.lock().unwrap(), Vec::<String>::new());
    }
}

const KINDS: usize = 8;
const DEATHS: &str = "mesh_gateway_detector_verdicts_total{state=\"dead\"}";

/// When the failure detector behind a metrics port last found a peer dead: a machine that gives a process nothing to run on for 40 ms
/// has it convicted, whoever is replaced by whom, and there is only one gateway to turn to here.
#[derive(Clone, Default)]
struct Convictions(Arc<Mutex<(usize, Option<Instant>)>>);

impl Convictions {
    fn watch(metrics: SocketAddr) -> Self {
        let convictions = Self::default();
        let last = Arc::downgrade(&convictions.0);
        tokio::spawn(async move {
            while let Some(last) = last.upgrade() {
                let request = request("GET", "metrics", "/metrics", &[], empty());
                if let Ok(stream) = TcpStream::connect(metrics).await
                    && let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await
                {
                    tokio::spawn(connection);
                    if let Ok(response) = sender.send_request(request).await
                        && let Ok(body) = response.into_body().collect().await
                    {
                        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
                        let line = text.lines().find(|line| line.starts_with(DEATHS));
                        let now = line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok()).unwrap_or(0);
                        let mut last = last.lock().unwrap();
                        if now != last.0 {
                            *last = (now, Some(Instant::now()));
                        }
                    }
                }
                drop(last);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        convictions
    }

    /// Whether there was one shortly before `began` or since.
    async fn around(&self, began: Instant) -> bool {
        for _ in 0..100 {
            let at = self.0.lock().unwrap().1;
            if at.is_some_and(|at| at + Duration::from_secs(1) > began) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

async fn expect_ok(response: Result<hyper::Response<hyper::body::Incoming>, hyper::Error>) -> Result<(), String> {
    let response = response.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
    if status == 200 { Ok(()) } else { Err(format!("{status} {body:?}")) }
}

/// One connection, until the server says that it is the last response.
async fn kept_alive(address: SocketAddr) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    for _ in 0..20 {
        let response = sender.send_request(request("GET", CHECKOUT, "/", &[("x-only", "paris")], empty())).await;
        let is_last = response.as_ref().is_ok_and(|r| r.headers().get("connection").is_some_and(|c| c == "close"));
        expect_ok(response).await?;
        if is_last {
            return Ok(());
        }
        sender.ready().await.map_err(|error| format!("closed without a word: {error}"))?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// One HTTP/2 connection, until the server says GOAWAY.
async fn multiplexed(address: SocketAddr) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    for _ in 0..20 {
        if sender.ready().await.is_err() {
            return Ok(());
        }
        let uri = format!("http://{CHECKOUT}/delay/20");
        let request = hyper::Request::get(uri).header("x-only", "paris").body(empty()).unwrap();
        match sender.send_request(request).await {
            // It left between the question and the request, and took nothing of it.
            Err(error) if error.is_canceled() => return Ok(()),
            response => expect_ok(response).await?,
        }
    }
    Ok(())
}

async fn ledger(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"hello").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    if answer == "read 5 bytes" { Ok(answer) } else { Err(std::io::Error::other(format!("answered {answer:?}"))) }
}

async fn asked(dns: SocketAddr) -> Result<(), String> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(dns).await.unwrap();
    let mut message = Message::query();
    message.add_query(Query::query("checkout.shop.svc.clusterset.local.".parse::<Name>().unwrap(), RecordType::A));
    socket.send(&message.to_vec().unwrap()).await.map_err(|error| error.to_string())?;
    let mut answer = [0; 1232];
    let received = tokio::time::timeout(Duration::from_secs(3), socket.recv(&mut answer)).await;
    let count = received.map_err(|_| "no answer to a question".to_owned())?.map_err(|error| error.to_string())?;
    let answer = Message::from_vec(&answer[..count]).map_err(|error| error.to_string())?;
    if answer.answers.is_empty() { Err(format!("answered {answer:?}")) } else { Ok(()) }
}

async fn is_ready(health: SocketAddr) -> bool {
    get(health, "health", "/readyz", &[]).await.is_ok_and(|response| response.status() == 200)
}

fn warnings(log: &str) -> Vec<&str> {
    let expected = ["SVID renewal failed"];
    let is_bad = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    log.lines().filter(is_bad).filter(|line| !expected.iter().any(|known| line.contains(known))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_successor_takes_over_without_a_failed_request() {
    let mut federation = Federation::new().await;
    let mut running = federation.start(2, true);
    federation.register(&running).await;
    federation.serves(&running).await;
    let load = Load::start(&federation);
    load.goes_on().await;
    // One worker fewer, then more again; the third comes while the first two are history.
    for workers in [1, 3] {
        // Open across the change: a byte now, the rest after.
        let mut open = TcpStream::connect(federation.at(5)).await.unwrap();
        open.write_all(b"begun").await.unwrap();
        let before = running.state().await;
        let successor = federation.start(workers, true);
        successor.reaches("serving").await;
        running.reaches("yielded").await;
        assert!(is_ready(federation.at(2)).await, "whoever is asked, the successor answers");
        let after = successor.state().await;
        assert_ne!(before["addresses"]["tunnel"], after["addresses"]["tunnel"]);
        assert_eq!(before["addresses"]["http"], after["addresses"]["http"]);
        load.goes_on().await;
        federation.register(&successor).await;
        load.goes_on().await;
        running.signal(rustix::process::Signal::TERM);
        load.goes_on().await;
        open.write_all(b" and ended").await.unwrap();
        open.shutdown().await.unwrap();
        let mut answer = String::new();
        open.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "read 15 bytes", "what was open stays open until its end");
        let log = running.state.join("log");
        running.ends().await;
        assert_eq!(warnings(&std::fs::read_to_string(log).unwrap()), Vec::<&str>::new());
        load.goes_on().await;
        running = successor;
    }
    load.ends().await;
    eventually("the tunnel is up", async || {
        let tunnels = admin(&federation.mesh.state_dir("tokyo"), "GET", "/tunnels", "").await.unwrap();
        tunnels.contains("\"up\"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_successor_that_dies_before_it_is_ready_changes_nothing() {
    let mut federation = Federation::new().await;
    let running = federation.start(2, true);
    federation.register(&running).await;
    federation.serves(&running).await;
    let load = Load::start(&federation);
    load.goes_on().await;
    for _ in 0..2 {
        // Without a configuration it never gets ready.
        let mut doomed = federation.start(2, false);
        running.reaches("offered").await;
        eventually("not ready is what a supervisor hears", async || !is_ready(federation.at(2)).await).await;
        load.goes_on().await;
        doomed.child.kill().unwrap();
        doomed.child.wait().unwrap();
        running.reaches("serving").await;
        load.goes_on().await;
        assert!(is_ready(federation.at(2)).await);
    }
    // One that dies when it serves already: the one before serves again.
    let mut doomed = federation.start(2, true);
    running.reaches("yielded").await;
    load.goes_on().await;
    load.ends().await;
    doomed.child.kill().unwrap();
    doomed.child.wait().unwrap();
    running.reaches("serving").await;
    federation.serves(&running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_gateway_that_is_ended_while_its_successor_prepares_leaves_it_everything() {
    let mut federation = Federation::new().await;
    let running = federation.start(2, true);
    federation.register(&running).await;
    federation.serves(&running).await;
    let unready = federation.start(1, false);
    running.reaches("offered").await;
    running.signal(rustix::process::Signal::KILL);
    unready.reaches("serving").await;
    // It has nothing to serve with, and says so instead of letting clients wait.
    let response = get(federation.at(0), CHECKOUT, "/", &[]).await.unwrap();
    assert_eq!(response.status(), 404, "{}", text(response).await);
}
