//! A Kubernetes API server in the process of a test: lists in pages, watches with bookmarks, writes with conflicts, server-side
//! apply, status subresources, garbage collection by owner; and on demand everything that goes wrong with them.
//!
//! It stores any JSON under any registered kind and validates nothing: what is valid is for the real API server to say
//! (`topologies/kubernetes`). Only for tests; no binary depends on it.
//!
//! ```no_run
//! # async fn example() {
//! use archipelago_kubernetes_fake::{ApiServer, Fault};
//! let api = ApiServer::start().await;
//! api.put(serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"}}));
//! api.fault(Fault::status(403).on("/pods"));
//! // … point a client at api.url() …
//! api.compact();        // whoever is behind gets 410
//! api.break_watches();  // and every open watch breaks off
//! # }
//! ```
#![allow(
    clippy::indexing_slicing,
    reason = "`value[\"key\"]` of JSON gives null or makes the key; only tests run this, and may panic"
)]

mod fault;
mod kinds;
pub mod large;
mod patch;
mod selector;
mod serve;
mod store;
mod watch;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{net::TcpListener, sync::watch as channel, task::JoinHandle, time::timeout};

pub use self::{
    fault::Fault,
    kinds::{Kind, Scope},
};
use self::{fault::Faults, kinds::Kinds, store::Store};

/// An API server. It ends with this value.
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// One request, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET`.
    pub method: String,
    /// Path and query.
    pub uri: String,
    /// User agent.
    pub agent: String,
}

struct Shared {
    store: Mutex<Store>,
    kinds: Mutex<Kinds>,
    faults: Mutex<Faults>,
    seen: Mutex<Vec<Seen>>,
    tokens: Mutex<Vec<(String, Value)>>,
    /// Moves with every change of the store, and with every [`ApiServer::break_watches`].
    changes: channel::Sender<u64>,
    /// Moves to end what is open: watches, or all connections.
    watches: channel::Sender<u64>,
    connections: channel::Sender<u64>,
    is_paused: channel::Sender<bool>,
    bookmarks: channel::Sender<u64>,
}

impl ApiServer {
    /// One that knows the kinds of Kubernetes that Archipelago uses, and the Multi-Cluster Services API.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            kinds: Mutex::default(),
            faults: Mutex::default(),
            seen: Mutex::default(),
            tokens: Mutex::default(),
            changes: channel::Sender::new(0),
            watches: channel::Sender::new(0),
            connections: channel::Sender::new(0),
            is_paused: channel::Sender::new(false),
            bookmarks: channel::Sender::new(0),
        });
        let task = tokio::spawn(serve::run(listener, shared.clone()));
        Self { address, shared, task: Mutex::new(Some(task)) }
    }

    /// Where it is: `http://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig that leads to it.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: '{}'}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\nusers: [{{name: test, user: {{}}}}]\n",
            self.url()
        )
    }

    /// A kind that it did not know, as a CRD makes one known.
    pub fn install(&self, kind: Kind) {
        lock(&self.shared.kinds).install(kind);
    }

    /// A kind that it no longer knows: lists and watches of it are 404.
    pub fn uninstall(&self, kind: &str) {
        lock(&self.shared.kinds).uninstall(kind);
        self.break_watches();
    }

    /// Creates or replaces an object, status and all, as somebody else would. What was stored.
    pub fn put(&self, object: Value) -> Value {
        let kind = lock(&self.shared.kinds).of(&object);
        let stored = lock(&self.shared.store).put(&kind, object);
        self.changed();
        stored
    }

    /// Changes an object as somebody else would; nothing if there is none.
    pub fn edit(&self, kind: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        if let Some(mut object) = self.get(kind, namespace, name) {
            change(&mut object);
            self.put(object);
        }
    }

    /// Deletes an object, whatever its finalisers, and what it owns. Whether there was one.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let kind = lock(&self.shared.kinds).named(kind);
        let removed = lock(&self.shared.store).remove(&kind, namespace, name).is_some();
        self.changed();
        removed
    }

    /// An object as it is stored; `kind` as in `Service`.
    #[must_use]
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let kind = lock(&self.shared.kinds).named(kind);
        lock(&self.shared.store).get(&kind, namespace, name)
    }

    /// All objects of a kind, by namespace and name.
    #[must_use]
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let kind = lock(&self.shared.kinds).named(kind);
        lock(&self.shared.store).list(&kind, None)
    }

    /// Waits until `found` finds something; the deadline is that of a test on a busy machine.
    ///
    /// # Panics
    /// It does not within a minute.
    pub async fn wait<T>(&self, what: &str, mut found: impl FnMut(&Self) -> Option<T>) -> T {
        let mut changes = self.shared.changes.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = found(self) {
                    return found;
                }
                // Not everything that is waited for is in the store.
                let _ = timeout(Duration::from_millis(50), changes.changed()).await;
            }
        };
        timeout(WAIT_TIME_MAX, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"))
    }

    /// What a TokenReview says of `token`: the `status` of the answer.
    pub fn know_token(&self, token: &str, status: Value) {
        lock(&self.shared.tokens).push((token.to_owned(), status));
    }

    /// Something goes wrong from now on. The latest fault that fits a request counts.
    pub fn fault(&self, fault: Fault) {
        lock(&self.shared.faults).add(fault);
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
        self.resume();
    }

    /// Forgets the history: whoever continues from before now gets 410, and so does the next page of an open list.
    pub fn compact(&self) {
        lock(&self.shared.store).compact();
        self.changed();
    }

    /// Ends every open watch in the middle, without a word.
    pub fn break_watches(&self) {
        self.shared.watches.send_modify(|at| *at += 1);
    }

    /// A bookmark for every open watch that asked for them.
    pub fn bookmark(&self) {
        self.shared.bookmarks.send_modify(|at| *at += 1);
    }

    /// Takes connections and says nothing, as a stopped process does.
    pub fn pause(&self) {
        self.shared.is_paused.send_replace(true);
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&self) {
        self.shared.is_paused.send_replace(false);
    }

    /// Refuses connections and has dropped those that were open, as a machine does that restarts.
    pub fn stop(&self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
        self.shared.connections.send_modify(|at| *at += 1);
    }

    /// Is there again after [`Self::stop`], with everything it had, at the same address.
    pub async fn restart(&self) {
        let listener = self.wait("the old port", |api| std::net::TcpListener::bind(api.address).ok()).await;
        listener.set_nonblocking(true).expect("a fresh socket can be");
        let listener = TcpListener::from_std(listener).expect("it is bound");
        *lock(&self.task) = Some(tokio::spawn(serve::run(listener, self.shared.clone())));
    }

    /// Requests so far, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// Watches that are open.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.shared.watches.receiver_count()
    }

    fn changed(&self) {
        self.shared.changed();
    }
}

impl Shared {
    fn changed(&self) {
        self.changes.send_modify(|at| *at += 1);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const WAIT_TIME_MAX: Duration = Duration::from_secs(60);
