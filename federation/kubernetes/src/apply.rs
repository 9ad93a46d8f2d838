//! Objects that are written: what was decided elsewhere, done at the API server, with patience.
//!
//! [`Desk`] says which of the writes that are wanted may be sent now, without I/O; [`Writer`] sends them. Everything is a
//! server-side apply of a whole object as this agent wants it, or a deletion, so that doing it twice does no harm.

mod desk;

use std::sync::Arc;

use http::{Request, header};
use kube::Client;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

pub use self::desk::Desk;
use crate::{
    client::{self, Failure},
    types::{FIELD_MANAGER, Key, Resource},
};

/// A write that somebody wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// Of which object.
    pub target: Target,
    /// What of it.
    pub what: What,
}

/// An object, whether it exists or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Its kind.
    pub resource: Resource,
    /// Its name.
    pub key: Key,
}

/// What to do to an object.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Make it so.
    Apply(Body),
    /// Make it so, once: what is seen of the object does not tell whether it is.
    ApplyOnce(Body),
    /// Make its status so.
    ApplyStatus(Body),
    /// Delete it, if it is still the one with this uid.
    Delete {
        /// `None`: whichever it is.
        uid: Option<String>,
    },
}

/// An object, or its status, as JSON. A text, because a large cluster wants thousands at once, and a tree of values is five times
/// as large.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Body(Box<str>);

impl Body {
    /// As it is sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As it was made.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl From<Value> for Body {
    fn from(value: Value) -> Self {
        Self(value.to_string().into())
    }
}

/// Sends writes, several at a time, and says what became of them.
///
/// Dropped, it stops: what was not sent yet never is.
pub struct Writer {
    client: Client,
    running: JoinSet<Done>,
    on_the_wire: Arc<Semaphore>,
}

/// A write that was tried.
#[derive(Debug)]
pub struct Done {
    /// Which.
    pub write: Write,
    /// Whether it was done.
    pub result: Result<(), Failure>,
}

impl Writer {
    /// Nothing is under way.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, running: JoinSet::new(), on_the_wire: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }

    /// Begins a write as soon as there is room. How many wait is bounded by who chooses them: [`Desk::choose`].
    pub fn begin(&mut self, write: Write) {
        let client = self.client.clone();
        let on_the_wire = self.on_the_wire.clone();
        self.running.spawn(async move {
            let _permit = on_the_wire.acquire().await;
            let result = send(&client, &write).await;
            Done { write, result }
        });
    }

    /// The next write that ends; waits for ever while there is none.
    pub async fn done(&mut self) -> Done {
        loop {
            match self.running.join_next().await {
                Some(Ok(done)) => return done,
                // A write that panicked is nobody's any more; its object is looked at again like every other.
                Some(Err(error)) => tracing::error!(%error, "a write to the API server broke off"),
                None => std::future::pending().await,
            }
        }
    }
}

async fn send(client: &Client, write: &Write) -> Result<(), Failure> {
    let Target { resource, key } = &write.target;
    let namespace = Some(&*key.namespace).filter(|namespace| !namespace.is_empty());
    let path = format!("{}/{}", resource.path_in(namespace), key.name);
    let (body, of) = match &write.what {
        What::Apply(body) | What::ApplyOnce(body) => (body, ""),
        What::ApplyStatus(body) => (body, "/status"),
        What::Delete { uid } => return delete(client, &path, uid.as_deref()).await,
    };
    let request = Request::patch(format!("{path}{of}?fieldManager={FIELD_MANAGER}&force=true"))
        .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
        .body(body.as_str().as_bytes().to_vec())
        .map_err(Failure::transport)?;
    client::fetch(client, request).await.map(drop)
}

async fn delete(client: &Client, path: &str, uid: Option<&str>) -> Result<(), Failure> {
    let mut options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background" });
    if let (Some(uid), Some(options)) = (uid, options.as_object_mut()) {
        options.insert("preconditions".into(), json!({ "uid": uid }));
    }
    let request = Request::delete(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(options.to_string().into_bytes())
        .map_err(Failure::transport)?;
    match client::fetch(client, request).await {
        // Gone already, or another one by now: either way the one that was meant is gone.
        Err(failure) if failure.is_not_found() || failure.is_conflict() => Ok(()),
        other => other.map(drop),
    }
}

/// Few beside what an API server serves at once, enough for a thousand objects in some seconds.
const REQUESTS_MAX: usize = 16;

/// Says what became of a write; `failures`: how many in a row, of this object.
pub(crate) fn log(done: &Done, failures: u32) {
    let object = &done.write.target;
    match &done.result {
        Ok(()) => tracing::debug!(%object, "written"),
        // One failure is part of life (a namespace that is going, an object that just changed); the third is not.
        Err(error) if failures == 3 => {
            tracing::warn!(%object, %error, "cannot be written; will be tried again for as long as it is wanted");
        }
        Err(error) => tracing::debug!(%object, %error, failures, "was not written"),
    }
}

/// `services shop/checkout`
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.resource, self.key)
    }
}
