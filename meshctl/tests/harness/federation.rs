//! One federation under `meshctl up`, from its start to the proof that nothing is left of it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use archipelago_chaos::load::Plan;
use serde_json::Value;
use tempfile::TempDir;

use super::command::{MESHCTL, Ran, run};
use super::status::{Gateway, Status};
use super::{PATIENCE, check, eventually, proc, saw};

/// A running federation. Dropping it ends it.
pub(crate) struct Federation {
    dir: TempDir,
    pub(crate) state: PathBuf,
    pub(crate) base_port: u16,
    ports: TcpListener,
    gateways: BTreeMap<String, Gateway>,
    environment: Vec<(&'static str, &'static str)>,
    guardian: Option<Child>,
    /// What `up` printed.
    guide: String,
    is_down: bool,
}

impl Federation {
    /// Starts a topology, or the default one, and waits until it is ready.
    pub(crate) async fn up(topology: Option<&str>) -> Self {
        Self::plan(topology).begin().await
    }

    /// Starts what was planned and waits until it is ready.
    pub(crate) async fn begin(self) -> Self {
        self.begin_with(&[]).await
    }

    /// The same with more arguments to `up`.
    pub(crate) async fn begin_with(self, more: &[&str]) -> Self {
        let mut federation = self;
        for attempt in 1.. {
            let port = federation.base_port.to_string();
            let ran = federation.start(&[&["up", "--detach", "--base-port", &port], more].concat()).await;
            if ran.code == 0 {
                federation.guide = ran.stdout;
                break;
            }
            let taken = ran.stderr.contains("ports are not free") && attempt < PORT_ATTEMPTS_MAX;
            assert!(taken, "{ran}\n{}", federation.logs(40));
            (federation.base_port, federation.ports) = base_port();
        }
        federation.gateways = federation.status().await.gateways();
        federation
    }

    /// A state directory with a topology beside it, and nothing running yet.
    pub(crate) fn plan(topology: Option<&str>) -> Self {
        Self::plan_in(&std::env::temp_dir(), topology)
    }

    /// The same, with the state directory somewhere below `place`.
    pub(crate) fn plan_in(place: &Path, topology: Option<&str>) -> Self {
        let mut builder = tempfile::Builder::new();
        builder.prefix("archipelago-test-").disable_cleanup(std::env::var_os("ARCHIPELAGO_TEST_KEEP").is_some());
        let dir = builder.tempdir_in(place).unwrap();
        let state = dir.path().canonicalize().unwrap().join("state");
        if let Some(text) = topology {
            fs::write(dir.path().join(TOPOLOGY), text).unwrap();
        }
        let guardian = Some(guardian(&state));
        let (base_port, ports) = base_port();
        Self {
            dir,
            state,
            base_port,
            ports,
            gateways: BTreeMap::new(),
            environment: Vec::new(),
            guardian,
            guide: String::new(),
            is_down: false,
        }
    }

    /// Gives every command, and thereby every process, a variable.
    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Runs `up` with these arguments and the topology, if there is one.
    pub(crate) async fn start(&self, args: &[&str]) -> Ran {
        let topology = self.dir.path().join(TOPOLOGY);
        let mut all: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        if topology.exists() {
            all.push(topology.as_os_str());
        }
        self.meshctl(all).await
    }

    /// What `up` printed when everything was ready.
    pub(crate) fn started(&self) -> &str {
        &self.guide
    }

    /// A directory for files of a test.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `meshctl --state …`.
    pub(crate) async fn meshctl(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
        let mut all = vec![OsStr::new("--state").to_owned(), self.state.clone().into_os_string()];
        all.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        let environment: Vec<_> = self.environment.iter().map(|(name, value)| (*name, OsStr::new(value))).collect();
        run(Path::new("/"), all, &environment, None).await
    }

    /// Runs a command line that must succeed.
    pub(crate) async fn ok(&self, line: &str) -> Ran {
        self.meshctl(line.split_whitespace()).await.expect(0)
    }

    /// Runs a command line that must succeed with `-o json`.
    pub(crate) async fn json(&self, line: &str) -> Value {
        self.ok(&format!("{line} -o json")).await.json()
    }

    /// Applies a text through stdin.
    pub(crate) async fn apply(&self, text: &str) -> Ran {
        let args = ["--state".as_ref(), self.state.as_os_str(), "apply".as_ref(), "-f".as_ref(), "-".as_ref()];
        run(Path::new("/"), args, &[], Some(text)).await
    }

    /// `status`, whether or not a control plane answers.
    pub(crate) async fn status(&self) -> Status {
        let ran = self.meshctl(["status", "-o", "json", "--timeout", "3s"]).await;
        assert!(matches!(ran.code, 0 | 4), "{ran}");
        serde_json::from_value(ran.json()).unwrap_or_else(|error| panic!("{error} in {ran}"))
    }

    /// The addresses of a gateway, such as `paris/gw-1`.
    #[track_caller]
    pub(crate) fn gateway(&self, name: &str) -> &Gateway {
        self.gateways.get(name).unwrap_or_else(|| panic!("no gateway {name} in {:?}", self.gateways.keys()))
    }

    /// All gateways by name.
    pub(crate) fn gateways(&self) -> &BTreeMap<String, Gateway> {
        &self.gateways
    }

    /// GETs of `/` of a service through a gateway, until stopped.
    pub(crate) fn load(&self, gateway: &str, host: &str, rate: f64) -> Plan {
        let mut plan = Plan::new(&format!("{}/", self.gateway(gateway).http), rate, None).unwrap();
        plan.host = Some(host.to_owned());
        plan
    }

    /// Ends drills, removes what tests applied, and waits until everything is as `up` left it.
    pub(crate) async fn reset(&self) {
        self.ok("drill end").await;
        eventually("a control plane", PATIENCE, async || {
            let ran = self.meshctl(["get", "-o", "json"]).await;
            check(ran.code == 0, || ran.to_string())?;
            self.restore(&ran.json()).await
        })
        .await;
        self.settle().await;
    }

    async fn restore(&self, resources: &Value) -> Result<(), String> {
        let all = resources.as_array().ok_or("get gives no list")?;
        let ours = |document: &&Value| {
            matches!(document["kind"].as_str(), Some("TrafficSplit" | "FailoverPolicy" | "BackendPolicy"))
        };
        let documents: Vec<String> = all.iter().filter(ours).map(ToString::to_string).collect();
        if !documents.is_empty() {
            let file = self.scratch().join("leftovers.yaml");
            fs::write(&file, documents.join("\n---\n")).unwrap();
            let args = ["delete".as_ref(), "--wait".as_ref(), "none".as_ref(), "-f".as_ref(), file.as_os_str()];
            let ran = self.meshctl(args).await;
            check(ran.code == 0, || ran.to_string())?;
        }
        for cluster in all.iter().filter(|document| document["spec"]["drained"] == true) {
            let name = cluster["metadata"]["name"].as_str().unwrap();
            let ran = self.meshctl(["cluster", "uncordon", name, "--wait", "none"]).await;
            check(ran.code == 0, || ran.to_string())?;
        }
        Ok(())
    }

    /// Waits until every process runs, every gateway is synced, every tunnel is up and every endpoint is ready.
    pub(crate) async fn settle(&self) {
        eventually("everything runs and is in step", PATIENCE, async || self.is_settled().await).await;
    }

    async fn is_settled(&self) -> Result<(), String> {
        let status = self.status().await;
        let waiting = status.processes.iter().find(|process| process.state != "running");
        check(waiting.is_none(), || format!("{waiting:?}"))?;
        let members = &status.control_plane.members;
        let in_step = members.iter().all(|member| matches!(member.role.as_str(), "leader" | "follower"));
        check(in_step && status.leader().is_some(), || format!("{members:?}"))?;
        let late = status.gateways().into_iter().find(|(_, gateway)| gateway.state != "synced");
        check(late.is_none(), || format!("revision {:?}, but {late:?}", status.revision))?;
        let services = self.json("services").await;
        let clusters = services.as_array().unwrap().iter().flat_map(|service| service["clusters"].as_array().unwrap());
        let unready = clusters.clone().find(|cluster| cluster["ready"] != cluster["total"] || cluster["total"] == 0);
        check(unready.is_none() && clusters.count() > 0, || format!("not ready: {unready:?}"))?;
        let tunnels = self.json("tunnels").await;
        let tunnels = tunnels.as_array().unwrap();
        let broken = tunnels.iter().find(|tunnel| tunnel["state"] != "up");
        check(broken.is_none(), || format!("{broken:?}"))?;
        let counts: Vec<usize> = status.clusters.iter().map(|cluster| cluster.gateways.len()).collect();
        let all: usize = counts.iter().sum();
        // From both ends: one that has just started is still "up" for a peer that has not noticed.
        let wanted = all * all - counts.iter().map(|count| count * count).sum::<usize>();
        check(tunnels.len() >= wanted, || format!("{} of {wanted} ends of tunnels", tunnels.len()))
    }

    /// The last lines of every log but the demo backends'.
    pub(crate) fn logs(&self, lines: usize) -> String {
        let mut text = String::new();
        let mut folders = VecDeque::from([self.state.join("logs")]);
        while let Some(folder) = folders.pop_front() {
            let mut entries: Vec<PathBuf> =
                fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            entries.sort();
            for path in entries {
                if path.is_dir() {
                    folders.push_back(path);
                    continue;
                }
                let log = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                let name = path.strip_prefix(self.state.join("logs")).unwrap().display().to_string();
                let quiet = name.contains("-v") || name.contains("access");
                if quiet || log.is_empty() {
                    continue;
                }
                let all: Vec<&str> = log.lines().collect();
                text.push_str(&format!("---- {name}\n{}\n", all[all.len().saturating_sub(lines)..].join("\n")));
            }
        }
        text
    }

    /// Lines of all logs that contain `word`.
    pub(crate) fn log_lines(&self, word: &str) -> Vec<String> {
        self.logs(usize::MAX).lines().filter(|line| line.contains(word)).map(ToOwned::to_owned).collect()
    }

    /// Ends it by `down` and checks that nothing is left: no process, no file, no socket; and that nothing went wrong
    /// on the way that nobody expected.
    pub(crate) async fn down(self) {
        self.down_despite(&[]).await;
    }

    /// The same when errors and warnings with these words are what the test was about.
    pub(crate) async fn down_despite(mut self, expected: &[&str]) {
        let alarms = self.alarms(expected);
        let held: Vec<_> = proc::marked(&self.state).into_iter().flat_map(proc::listeners).collect();
        if let Ok(folder) = std::env::var("ARCHIPELAGO_TEST_LOGS") {
            let name = self.dir.path().file_name().unwrap().display();
            fs::write(format!("{folder}/{name}.log"), self.logs(usize::MAX)).unwrap();
        }
        self.ok("down").await;
        self.is_down = true;
        assert_eq!(proc::marked(&self.state), Vec::<u32>::new(), "processes are left");
        assert!(!self.state.exists(), "files are left: {:?}", fs::read_dir(&self.state).unwrap().collect::<Vec<_>>());
        for (transport, address) in &held {
            let free = match transport {
                proc::Transport::Tcp => TcpListener::bind(address).map(drop),
                proc::Transport::Udp => std::net::UdpSocket::bind(address).map(drop),
            };
            assert!(free.is_ok(), "{transport:?} {address} is still taken");
        }
        saw!("down left no process, no file and none of {} sockets", held.len());
        assert_eq!(alarms, Vec::<String>::new(), "panics, errors and warnings that no test expects");
    }

    /// Panics, errors and warnings in the logs, but for those that killing, cutting and restarting explain.
    fn alarms(&self, expected: &[&str]) -> Vec<String> {
        let logs = self.logs(usize::MAX);
        let is_alarm = |line: &&str| [" ERROR ", " WARN ", "panicked at"].iter().any(|word| line.contains(word));
        let explained = |line: &str| EXPLAINED.iter().chain(expected).any(|words| line.contains(words));
        logs.lines().filter(is_alarm).filter(|line| !explained(line)).map(ToOwned::to_owned).collect()
    }
}

impl Drop for Federation {
    fn drop(&mut self) {
        if !self.is_down {
            let mut down = Command::new(MESHCTL);
            down.arg("--state").arg(&self.state).arg("down").current_dir("/");
            if std::env::var_os("ARCHIPELAGO_TEST_KEEP").is_some() {
                down.arg("--keep-state");
            }
            let _ = down.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        for pid in proc::marked(&self.state) {
            proc::kill(pid);
        }
        if let Some(mut guardian) = self.guardian.take() {
            // Its work is done: closing its stdin would make it run `down` once more.
            let _ = guardian.kill();
            let _ = guardian.wait();
        }
    }
}

/// Ends the federation when this process dies without its destructors: a signal, an abort, a debugger.
fn guardian(state: &Path) -> Child {
    use std::os::unix::process::CommandExt as _;
    let script = "cat >/dev/null; exec \"$0\" --state \"$1\" down >/dev/null 2>&1";
    let mut command = Command::new("sh");
    command.args(["-c", script, MESHCTL]).arg(state).current_dir("/").stdin(Stdio::piped());
    // A group of its own, so that Ctrl-C at the terminal does not reach it.
    command.process_group(0).spawn().unwrap()
}

/// The first of five hundred ports below those that the kernel gives to clients, so that no connection of a test takes one of ours. They
/// are ours while the listener lives: whoever holds the last, which no federation of a test gets to, has all of them.
fn base_port() -> (u16, TcpListener) {
    let first = rand::random_range(0..PORT_BLOCKS);
    for base in (0..PORT_BLOCKS).map(|n| 10_000 + 500 * ((first + n) % PORT_BLOCKS)) {
        // Where there is no IPv4, the same of IPv6.
        let last =
            [SocketAddr::from((Ipv4Addr::LOCALHOST, base + 499)), SocketAddr::from((Ipv6Addr::LOCALHOST, base + 499))];
        if let Ok(last) = TcpListener::bind(&last[..]) {
            return (base, last);
        }
    }
    panic!("all {PORT_BLOCKS} blocks of ports from 10000 on are in use");
}

/// One control-plane node and two clusters with a gateway and a service each: what needs no more starts faster.
pub(crate) const SMALL: &str = "\
apiVersion: archipelago.dev/v1alpha1
kind: Topology
metadata: { name: small }
spec:
  trustDomain: small.example
  controlPlane: { nodes: 1 }
  clusters:
    - name: paris
      region: eu-west
      gateways: 1
      services: [{ name: checkout, namespace: shop, protocol: http, versions: [v1], instances: 1, port: 80 }]
    - name: tokyo
      region: ap-northeast
      gateways: 1
      services: [{ name: checkout, namespace: shop, protocol: http, versions: [v1], instances: 1, port: 80 }]
---
apiVersion: archipelago.dev/v1alpha1
kind: ServiceExport
metadata: { name: checkout, namespace: shop }
";

/// What a person should hear of when members are killed, links are cut and certificates cannot be renewed meanwhile.
const EXPLAINED: [&str; 4] = [
    "stream to the control plane ended, reconnecting",
    "drill: packets are dropped",
    "cannot join yet",
    "SVID renewal failed",
];
const TOPOLOGY: &str = "topology.yaml";
const PORT_ATTEMPTS_MAX: u32 = 6;
/// Up to 20000, where tests of other crates have theirs.
const PORT_BLOCKS: u16 = 20;
