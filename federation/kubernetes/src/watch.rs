//! All objects of one kind, followed: a list, then a watch from where the list was, for as long as the process runs.
//!
//! [`follow`] starts it and gives a [`Feed`]. [`state`] decides what to ask next and what the index becomes, without I/O;
//! [`wire`] reads what the API server says; the driver here waits.

mod state;
mod wire;

use std::{
    marker::PhantomData,
    sync::Arc,
    time::{Duration, Instant},
};

use archipelago_base::{backoff::Backoff, shutdown::Shutdown};
use http::Request;
use kube::Client;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

pub(crate) use self::state::differences;
pub use self::state::{Index, Objects};
use self::{
    state::{Ask, ListWatch},
    wire::{Event, Page},
};
use crate::{
    client::{self, Failure},
    types::Kind,
};

/// Which objects of a kind are followed.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Label selector; empty: all.
    pub labels: &'static str,
    /// Field selector; empty: all.
    pub fields: &'static str,
    /// Only this namespace; `None`: all.
    pub namespace: Option<String>,
}

/// A kind that is followed.
#[derive(Debug)]
pub struct Feed<K> {
    index: watch::Receiver<Index<K>>,
    heard: watch::Receiver<Heard>,
}

impl<K> Clone for Feed<K> {
    fn clone(&self) -> Self {
        Self { index: self.index.clone(), heard: self.heard.clone() }
    }
}

impl<K: Kind> Feed<K> {
    /// What there is; changes whenever it does. Cheap to clone, and what did not change is shared with what was.
    #[must_use]
    pub fn index(&self) -> watch::Receiver<Index<K>> {
        self.index.clone()
    }

    /// What there is now.
    #[must_use]
    pub fn now(&self) -> Index<K> {
        self.index.borrow().clone()
    }

    /// How long ago the API server last said something about this kind: then the index was up to date. `None`: it never did.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.heard.borrow().at.map(|at| at.elapsed())
    }

    /// Why the kind cannot be followed right now.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<Failure>> {
        self.heard.borrow().failure.clone()
    }

    /// Waits until everything has been read once.
    pub async fn complete(&self) {
        if self.index.clone().wait_for(|index| index.is_complete).await.is_err() {
            // Nobody follows any more: the process ends.
            std::future::pending::<()>().await;
        }
    }

    /// A feed that its owner fills by hand, for what is made of feeds and for tests of it.
    #[must_use]
    pub fn fixed(index: watch::Receiver<Index<K>>) -> Self {
        let (_, heard) = watch::channel(Heard { at: Some(Instant::now()), failure: None });
        Self { index, heard }
    }
}

#[derive(Debug, Clone, Default)]
struct Heard {
    at: Option<Instant>,
    failure: Option<Arc<Failure>>,
}

/// Follows a kind until `shutdown`.
///
/// While the API server is away or refuses, the index stays as it is and [`Feed::failure`] says why. One line in the log
/// says so when it begins, and one when it is over.
pub fn follow<K: Kind>(client: Client, selection: Selection, shutdown: Shutdown) -> Feed<K> {
    let (index, indexes) = watch::channel(Index::default());
    let (heard, hearings) = watch::channel(Heard::default());
    let driver = Driver::<K> {
        client,
        selection,
        index,
        heard,
        backoff: Backoff::new(Duration::from_millis(100), Duration::from_millis(400), BACKOFF_MAX),
        kind: PhantomData,
    };
    tokio::spawn(async move {
        tokio::select! {
            () = driver.run() => {}
            () = shutdown.requested() => {}
        }
    });
    Feed { index: indexes, heard: hearings }
}

struct Driver<K> {
    client: Client,
    selection: Selection,
    index: watch::Sender<Index<K>>,
    heard: watch::Sender<Heard>,
    backoff: Backoff,
    kind: PhantomData<K>,
}

impl<K: Kind> Driver<K> {
    async fn run(mut self) {
        let mut state = ListWatch::<K>::default();
        loop {
            let done = match state.ask() {
                Ask::Page { limit, token } => self.list(&mut state, limit, &token).await,
                Ask::Watch { version } => self.watch(&mut state, &version).await,
            };
            let pause = match done {
                Ok(()) => continue,
                Err(failure) => {
                    state.failed(&failure);
                    self.failed(failure)
                }
            };
            sleep(pause).await;
        }
    }

    async fn list(&mut self, state: &mut ListWatch<K>, limit: Option<u32>, token: &str) -> Result<(), Failure> {
        let mut query = self.query();
        if let Some(limit) = limit {
            query.push(("limit", limit.to_string()));
        }
        if !token.is_empty() {
            query.push(("continue", token.to_owned()));
        }
        let request = self.request(query)?;
        let fetched = timeout(LIST_TIME_MAX, client::fetch(&self.client, request)).await;
        let bytes = fetched.map_err(|_| Failure::transport("a list took too long"))??;
        let page = Page::parse(&bytes).map_err(Failure::transport)?;
        if let Some(index) = state.page(page, &mut report::<K>) {
            tracing::debug!(resource = %K::RESOURCE, objects = index.objects.len(), "listed");
            self.publish(index);
            self.heard();
        }
        Ok(())
    }

    /// Until the watch ends: `Ok` as the API server ends every watch after some minutes.
    async fn watch(&mut self, state: &mut ListWatch<K>, version: &str) -> Result<(), Failure> {
        let mut query = self.query();
        query.push(("watch", "true".to_owned()));
        query.push(("allowWatchBookmarks", "true".to_owned()));
        query.push(("timeoutSeconds", WATCH_SECONDS.to_string()));
        query.push(("resourceVersion", version.to_owned()));
        let began = Instant::now();
        let mut lines = client::lines(&self.client, self.request(query)?).await?;
        // Who is too far behind is told so at once; nothing said for a moment means that nothing was missed.
        let mut first = timeout(SETTLE_TIME, lines.next()).await.ok().transpose()?;
        if first.is_none() {
            self.heard();
        }
        loop {
            let next = match first.take() {
                Some(line) => line,
                None => lines.next().await?,
            };
            let Some(line) = next else { break };
            let mut next = Some(line);
            let mut changed = false;
            // What came at once is one change: a rollout is hundreds of events.
            while let Some(line) = next {
                if !line.is_empty() {
                    let event = Event::parse(&line).map_err(Failure::transport)?;
                    changed |= state.event(event, &mut report::<K>)?;
                }
                next = lines.buffered();
            }
            if changed {
                self.publish(state.index());
            }
            self.heard();
        }
        // A watch that ends as soon as it began must not become a busy loop.
        if began.elapsed() < WATCH_TIME_MIN {
            return Err(Failure::transport("the API server ends every watch at once"));
        }
        Ok(())
    }

    fn publish(&self, index: Index<K>) {
        self.index.send_if_modified(|current| {
            let changed = *current != index;
            if changed {
                *current = index;
            }
            changed
        });
    }

    fn heard(&mut self) {
        self.backoff.reset();
        let before = self.heard.send_replace(Heard { at: Some(Instant::now()), failure: None });
        if before.failure.is_some() {
            tracing::info!(resource = %K::RESOURCE, "followed again");
        }
    }

    /// How long to wait.
    fn failed(&mut self, failure: Failure) -> Duration {
        let pause = self.backoff.next_delay(rand::random());
        if failure.is_expired() {
            // Nothing is wrong: it was away for longer than the API server remembers.
            tracing::info!(resource = %K::RESOURCE, "the API server no longer knows where we were; listing everything");
            return pause;
        }
        let asked = failure.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        let mut is_news = false;
        self.heard.send_modify(|heard| {
            is_news = heard.failure.as_ref().is_none_or(|before| before.status != failure.status);
            heard.failure = Some(Arc::new(failure.clone()));
        });
        // A connection that ended is part of life; the second failure in a row is not.
        if is_news && failure.is_forbidden() {
            tracing::warn!(
                resource = %K::RESOURCE, error = %failure,
                "not allowed to follow; what is known stays. Grant the agent's ServiceAccount list and watch",
            );
        } else if is_news && failure.is_not_found() {
            tracing::warn!(resource = %K::RESOURCE, "the API server has no such kind; install its CRD");
        } else if self.backoff.failures() == 2 || is_news && self.backoff.failures() > 1 {
            tracing::warn!(resource = %K::RESOURCE, error = %failure, "cannot be followed right now; what is known stays");
        } else {
            tracing::debug!(resource = %K::RESOURCE, error = %failure, "will try again");
        }
        pause + asked
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let selectors = [("labelSelector", self.selection.labels), ("fieldSelector", self.selection.fields)];
        selectors.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, text.to_owned())).collect()
    }

    fn request(&self, query: Vec<(&'static str, String)>) -> Result<Request<Vec<u8>>, Failure> {
        let path = K::RESOURCE.path_in(self.selection.namespace.as_deref());
        let query: Vec<String> =
            query.into_iter().map(|(name, text)| format!("{name}={}", wire::escape(&text))).collect();
        Request::get(format!("{path}?{}", query.join("&"))).body(Vec::new()).map_err(Failure::transport)
    }
}

/// An object that cannot be read costs its own change, and nothing else.
fn report<K: Kind>(key: &crate::types::Key, error: &serde_json::Error) {
    tracing::warn!(resource = %K::RESOURCE, object = %key, %error, "cannot be read; what was known of it stays");
}

const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// The API server gives up after a minute.
const LIST_TIME_MAX: Duration = Duration::from_secs(70);
/// What client-go asks for at least.
const WATCH_SECONDS: u32 = 290;
const SETTLE_TIME: Duration = Duration::from_secs(1);
const WATCH_TIME_MIN: Duration = Duration::from_secs(1);
/// Somebody who asks for more does not know that clusters change.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
