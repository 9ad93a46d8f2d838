//! Real agents in this process, of a cluster that the test plays.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use archipelago_agent::{
    Args,
    provider::{IdentityStore, Link, Provider, Review},
};
use archipelago_base::shutdown::{Shutdown, ShutdownTrigger};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use crate::common::{ControlPlane, PATIENCE, free_port};

/// An agent at work. Its link, but for the reviews, is the test's.
pub(crate) struct Agent {
    pub(crate) link: Link,
    trigger: ShutdownTrigger,
    running: JoinHandle<anyhow::Result<()>>,
    _dir: TempDir,
}

/// Where the replicas of an agent keep their identity.
#[derive(Default)]
pub(crate) struct Memory(Mutex<Option<Vec<u8>>>);

struct Played {
    store: Option<Arc<Memory>>,
    link: oneshot::Sender<Link>,
}

impl Provider for Played {
    fn name(&self) -> &'static str {
        "test"
    }

    fn is_replicated(&self) -> bool {
        true
    }

    fn identity_store(&self) -> Option<Arc<dyn IdentityStore>> {
        self.store.clone().map(|store| store as Arc<dyn IdentityStore>)
    }

    async fn follow(self, link: Link, shutdown: Shutdown) {
        let _ = self.link.send(link);
        shutdown.requested().await;
    }
}

#[tonic::async_trait]
impl IdentityStore for Memory {
    async fn load(&self) -> anyhow::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().clone())
    }

    async fn store(&self, identity: &[u8]) -> anyhow::Result<()> {
        *self.0.lock().unwrap() = Some(identity.to_vec());
        Ok(())
    }
}

impl Agent {
    /// Starts one with the token in `token_file`, which leads in `term`. It says yes to tokens that are `node-` and the name of a
    /// node, and no to all others.
    pub(crate) async fn start(cluster: &str, token_file: &Path, store: Option<Arc<Memory>>, term: u64) -> Self {
        let mut agent = Self::start_idle(cluster, token_file, store).await;
        let (_, none) = mpsc::channel(1);
        let reviews = std::mem::replace(&mut agent.link.reviews, none);
        let expected = format!("archipelago/mesh.example/{cluster}");
        tokio::spawn(answer(reviews, expected));
        agent.link.leading.send_replace(Some(term));
        agent
    }

    /// Starts one that does not lead.
    pub(crate) async fn start_idle(cluster: &str, token_file: &Path, store: Option<Arc<Memory>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let args = Args {
            cluster: cluster.to_owned(),
            name: "agent".to_owned(),
            state_dir: dir.path().to_owned(),
            control_plane: Vec::new(),
            token_file: Some(token_file.to_owned()),
            join_config: None,
            listen: port(),
            metrics: port(),
        };
        let (trigger, shutdown) = Shutdown::manual();
        let (hand, handed) = oneshot::channel();
        let running = tokio::spawn(archipelago_agent::run_until(args, Played { store, link: hand }, shutdown));
        let link = timeout(PATIENCE, handed).await.expect("the agent does not start").expect("the agent ended");
        Self { link, trigger, running, _dir: dir }
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        self.trigger.request();
        timeout(PATIENCE, self.running).await.expect("the agent does not stop").unwrap().unwrap();
    }
}

async fn answer(mut reviews: mpsc::Receiver<Review>, expected: String) {
    while let Some(Review { token, audience, answer }) = reviews.recv().await {
        let verdict = match token.strip_prefix("node-") {
            _ if audience != expected => Err(format!("it was asked for the audience {audience}")),
            Some(node) => Ok(node.to_owned()),
            None => Err("the token has expired".to_owned()),
        };
        let _ = answer.send(verdict);
    }
}

/// Writes a token for the agent of `cluster` into a file of `dir`.
pub(crate) async fn token_file(control_plane: &ControlPlane, dir: &Path, cluster: &str) -> std::path::PathBuf {
    let role = archipelago_proto::v1::JoinRole::Agent;
    let token = control_plane.token(control_plane.running()[0], cluster, role, "agent").await;
    let file = dir.join(format!("{cluster}.token"));
    std::fs::write(&file, token.to_string()).unwrap();
    file
}
