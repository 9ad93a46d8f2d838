//! A control plane of real processes on loopback, in a temporary directory; killed when dropped.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    future::Future,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use archipelago_control_plane::{
    Compatibility,
    bootstrap::{self, Member, Plan, member_dir},
};
use archipelago_identity::{Credential, CredentialDir, LiveCredential, tls::Expect};
use archipelago_proto::v1::{
    ApplyRequest, ApplyResponse, CreateTokenRequest, DeleteRequest, Document, GetRequest, GetResponse, JoinRole,
    MemberStatus, ResourceKey, StatusRequest, StatusResponse, fleet_client::FleetClient,
    resources_client::ResourcesClient, tokens_client::TokensClient,
};
use archipelago_rpc::{enrol, grpc};
use tempfile::TempDir;
use tonic::{Status, transport::Channel};

/// Everything here takes well under a second on an idle machine; a loaded one gets this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A federation's control plane.
pub(crate) struct ControlPlane {
    pub(crate) dir: TempDir,
    pub(crate) members: Vec<Member>,
    pub(crate) operator: LiveCredential,
    /// Members that behave as the previous version, when they start next.
    pub(crate) previous: BTreeSet<u64>,
    flags: Vec<String>,
    metrics: Vec<String>,
    processes: Vec<Option<Child>>,
}

impl ControlPlane {
    /// Founds a federation and starts its members; returns once one leads and each answers.
    pub(crate) async fn start(count: u64, flags: &[&str]) -> Self {
        Self::start_as(count, flags, Compatibility::Current).await
    }

    /// As [`Self::start`], by the given version.
    pub(crate) async fn start_as(count: u64, flags: &[&str], compatibility: Compatibility) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let members: Vec<Member> = (1..=count)
            .map(|id| Member {
                id,
                client: format!("127.0.0.1:{}", free_port()),
                peer: format!("127.0.0.1:{}", free_port()),
                place: None,
            })
            .collect();
        let plan = Plan::new("mesh.example".parse().unwrap(), members.clone(), dir.path().to_owned());
        bootstrap::bootstrap_at(&plan, compatibility.format()).unwrap();
        let operator = CredentialDir::new(dir.path().join("operator")).load().unwrap().unwrap();
        let mut control_plane = Self {
            dir,
            operator: LiveCredential::new(operator).unwrap(),
            previous: (1..=count).filter(|_| compatibility == Compatibility::Previous).collect(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            metrics: members.iter().map(|_| format!("127.0.0.1:{}", free_port())).collect(),
            processes: members.iter().map(|_| None).collect(),
            members,
        };
        for id in 1..=count {
            control_plane.start_member(id);
        }
        control_plane.ready().await;
        control_plane
    }

    /// Starts one member, again or for the first time.
    pub(crate) fn start_member(&mut self, id: u64) {
        let member = &self.members[index(id)];
        let log = File::options().create(true).append(true).open(self.log_path(id)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_archipelago-control-plane"))
            .arg("run")
            .args(["--node-id", &id.to_string()])
            .args(["--data-dir".as_ref(), self.data_dir(id).as_os_str()])
            .args(["--listen-client", &member.client])
            .args(["--listen-peer", &member.peer])
            .args(["--listen-metrics", &self.metrics[index(id)]])
            .args(&self.flags)
            .env("ARCHIPELAGO_COMPATIBILITY", if self.previous.contains(&id) { "previous" } else { "current" })
            .env("ARCHIPELAGO_LOG", "info,archipelago_control_plane=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.processes[index(id)] = Some(child);
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, id: u64) {
        let mut child = self.processes[index(id)].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; returns the exit code.
    pub(crate) async fn terminate(&mut self, id: u64) -> i32 {
        let pid = rustix::process::Pid::from_child(self.processes[index(id)].as_ref().unwrap());
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.ended(id).await
    }

    /// Waits until a member ends by itself.
    pub(crate) async fn ended(&mut self, id: u64) -> i32 {
        let mut child = self.processes[index(id)].take().unwrap();
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(begun.elapsed() < PATIENCE, "member {id} does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until one of the running members leads and all of them serve.
    pub(crate) async fn ready(&self) {
        for id in self.running() {
            eventually("every running member answers a linearizable read", || async move {
                self.get(id, "").await.map_err(|status| status.to_string())
            })
            .await;
        }
    }

    pub(crate) fn running(&self) -> Vec<u64> {
        self.members.iter().map(|member| member.id).filter(|id| self.processes[index(*id)].is_some()).collect()
    }

    pub(crate) async fn leader(&self) -> u64 {
        eventually("one member leads", || async {
            let first = self.running()[0];
            let status = self.status(first).await.map_err(|status| status.to_string())?;
            let leads = |member: &&MemberStatus| member.role == "leader";
            status.members.iter().find(leads).map(|member| member.id).ok_or_else(|| format!("{:?}", status.members))
        })
        .await
    }

    pub(crate) async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        self.running().into_iter().find(|id| *id != leader).unwrap()
    }

    /// A channel to one member, as `credential`.
    pub(crate) async fn channel_as(&self, id: u64, credential: &LiveCredential) -> Result<Channel, Status> {
        let address = self.members[index(id)].client.clone();
        grpc::connect(&[address], credential, Expect::control_plane())
            .await
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    /// A channel to one member, as the operator.
    pub(crate) async fn channel(&self, id: u64) -> Result<Channel, Status> {
        self.channel_as(id, &self.operator).await
    }

    pub(crate) async fn status(&self, id: u64) -> Result<StatusResponse, Status> {
        Ok(FleetClient::new(self.channel(id).await?).status(StatusRequest {}).await?.into_inner())
    }

    pub(crate) async fn get(&self, id: u64, name: &str) -> Result<GetResponse, Status> {
        let request = GetRequest { name: name.to_owned(), ..GetRequest::default() };
        Ok(ResourcesClient::new(self.channel(id).await?).get(request).await?.into_inner())
    }

    pub(crate) async fn apply(&self, id: u64, request_id: &str, text: &str) -> Result<ApplyResponse, Status> {
        let request = ApplyRequest {
            documents: vec![Document { file: "test.yaml".to_owned(), text: text.to_owned() }],
            dry_run: false,
            request_id: request_id.to_owned(),
            ..ApplyRequest::default()
        };
        Ok(ResourcesClient::new(self.channel(id).await?).apply(request).await?.into_inner())
    }

    /// Deletes a Cluster resource.
    pub(crate) async fn delete_cluster(&self, id: u64, name: &str) {
        let key = ResourceKey { kind: "Cluster".to_owned(), namespace: String::new(), name: name.to_owned() };
        let request = DeleteRequest { keys: vec![key], ..DeleteRequest::default() };
        ResourcesClient::new(self.channel(id).await.unwrap()).delete(request).await.unwrap();
    }

    /// A token for a gateway or an agent.
    pub(crate) async fn token(&self, id: u64, cluster: &str, role: JoinRole, name: &str) -> enrol::JoinToken {
        let request = CreateTokenRequest {
            cluster: cluster.to_owned(),
            role: role.into(),
            name: name.to_owned(),
            ttl_ms: 0,
            request_id: String::new(),
        };
        let response = TokensClient::new(self.channel(id).await.unwrap()).create(request).await.unwrap();
        response.into_inner().token.parse().unwrap()
    }

    /// Joins by token, as a gateway or agent does.
    pub(crate) async fn join(&self, cluster: &str, role: JoinRole, name: &str) -> LiveCredential {
        let token = self.token(self.running()[0], cluster, role, name).await;
        let joined: Credential = enrol::join(&token).await.unwrap().credential;
        LiveCredential::new(joined).unwrap()
    }

    /// Status line and body of a GET on a member's metrics port.
    pub(crate) fn http(&self, id: u64, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.metrics[index(id)])?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: member\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Resident memory of a member, in KiB.
    pub(crate) fn resident_kib(&self, id: u64) -> u64 {
        let pid = self.processes[index(id)].as_ref().unwrap().id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn data_dir(&self, id: u64) -> PathBuf {
        member_dir(self.dir.path(), id)
    }

    pub(crate) fn log_path(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("member-{id}.log"))
    }

    pub(crate) fn log(&self, id: u64) -> String {
        fs::read_to_string(self.log_path(id)).unwrap_or_default()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for member in &self.members {
                let log = self.log(member.id);
                let tail: Vec<&str> = log.lines().rev().take(60).collect();
                eprintln!("--- log of member {} ---", member.id);
                tail.into_iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

/// Tries until it works, or fails the test with the last reason.
pub(crate) async fn eventually<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        let reason = match attempt().await {
            Ok(value) => return value,
            Err(reason) => reason,
        };
        assert!(begun.elapsed() < PATIENCE, "not so within {PATIENCE:?}: {what}: {reason}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs the binary and returns its exit code and standard error.
pub(crate) fn run_to_end(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_archipelago-control-plane")).args(arguments).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A cluster resource.
pub(crate) fn cluster(name: &str, region: &str) -> String {
    format!(
        "apiVersion: archipelago.dev/v1alpha1\nkind: Cluster\nmetadata: {{ name: {name} }}\nspec: {{ region: {region} }}\n---\n"
    )
}

/// A port that nobody listens on, below the range from which the kernel takes ports for outgoing connections. It is this process's as
/// long as it lives, whatever it opens and closes: whoever holds the first of twenty has all of them.
pub(crate) fn free_port() -> u16 {
    static HELD: Mutex<(Vec<TcpListener>, Vec<u16>)> = Mutex::new((Vec::new(), Vec::new()));
    let mut held = HELD.lock().unwrap();
    let (blocks, free) = &mut *held;
    let (count, first) = (PORTS.len() / 20, std::process::id() as usize * 7);
    for block in (0..count).map(|n| (first + n) % count) {
        if let Some(port) = free.pop() {
            return port;
        }
        let base = PORTS.start + u16::try_from(block).unwrap() * 20;
        let listen = |port| TcpListener::bind(("127.0.0.1", port));
        if let Ok(holder) = listen(base) {
            blocks.push(holder);
            free.extend((base + 1..base + 20).filter(|port| listen(*port).is_ok()));
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// Tests of other crates take theirs below.
const PORTS: std::ops::Range<u16> = 26_000..32_000;

pub(crate) fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn index(id: u64) -> usize {
    usize::try_from(id - 1).unwrap()
}
