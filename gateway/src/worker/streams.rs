//! TCP connections and WebSockets in progress, and which of them the configuration still allows.
//!
//! A request is over soon; a connection may live for days, through any number of configurations. What the current one would
//! refuse is given a while to end by itself, and is then reset.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::config::{Protocol, Service, Snapshot};

/// The connections of one worker.
#[derive(Debug, Default)]
pub struct Streams {
    /// By "namespace/name", whatever port.
    by_service: RefCell<HashMap<Box<str>, Vec<Weak<Stream>>>>,
    /// Services with streams that were not judged since they began.
    new: RefCell<BTreeSet<Box<str>>>,
}

/// One connection, for as long as it is held.
#[derive(Debug)]
pub struct Stream {
    service: Arc<str>,
    end: End,
    /// Of a TCP service, or a WebSocket of an HTTP service.
    is_tcp: bool,
    /// When it is to be reset, while it is not allowed.
    doomed: Cell<Option<Instant>>,
    reset: CancellationToken,
    /// Whoever polls for that.
    waker: RefCell<Option<Waker>>,
}

/// What the other end of a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// A client here, served by a cluster.
    Client {
        /// The cluster.
        served_by: Arc<str>,
    },
    /// Another gateway, served by an endpoint here.
    Peer,
}

impl Streams {
    /// Counts a connection in until the result is dropped.
    pub fn open(&self, service: Arc<str>, end: End) -> Rc<Stream> {
        self.add(service, end, true)
    }

    /// The same of a WebSocket.
    pub fn open_websocket(&self, service: Arc<str>, end: End) -> Rc<Stream> {
        self.add(service, end, false)
    }

    fn add(&self, service: Arc<str>, end: End, is_tcp: bool) -> Rc<Stream> {
        let (doomed, waker) = (Cell::new(None), RefCell::default());
        let stream = Rc::new(Stream { service, end, is_tcp, doomed, reset: CancellationToken::new(), waker });
        let name: Box<str> = stream.service.split(':').next().unwrap_or_default().into();
        // The configuration may have changed while it was made.
        self.new.borrow_mut().insert(name.clone());
        let mut all = self.by_service.borrow_mut();
        let list = all.entry(name).or_default();
        if list.len() == list.capacity() {
            list.retain(|stream| stream.strong_count() > 0);
        }
        list.push(Rc::downgrade(&stream));
        stream
    }

    /// Dooms what of these services `snapshot` does not allow, and pardons what it allows again.
    pub fn judge<'a>(
        &self,
        services: impl IntoIterator<Item = &'a str>,
        snapshot: &Snapshot,
        grace: Duration,
        now: Instant,
    ) {
        let mut all = self.by_service.borrow_mut();
        for service in services {
            let Some(list) = all.get_mut(service) else { continue };
            list.retain(|stream| stream.strong_count() > 0);
            for stream in list.iter().filter_map(Weak::upgrade) {
                let doomed =
                    if is_allowed(snapshot, &stream) { None } else { Some(stream.doomed.get().unwrap_or(now + grace)) };
                stream.doomed.set(doomed);
            }
            if list.is_empty() {
                all.remove(service);
            }
        }
    }

    /// The same of those that began since.
    pub fn judge_new(&self, snapshot: &Snapshot, grace: Duration, now: Instant) {
        let new = self.new.take();
        self.judge(new.iter().map(|service| &**service), snapshot, grace, now);
    }

    /// How many TCP connections there are, by service and by who serves them; `own` does those of peers.
    pub fn counts(&self, own: &Arc<str>) -> BTreeMap<(Arc<str>, Arc<str>), u64> {
        let mut counts = BTreeMap::new();
        let all = self.by_service.borrow();
        // A WebSocket is a request that is under way, and counted as one.
        for stream in all.values().flatten().filter_map(Weak::upgrade).filter(|stream| stream.is_tcp) {
            let served_by = match &stream.end {
                End::Client { served_by } => served_by,
                End::Peer => own,
            };
            *counts.entry((Arc::clone(&stream.service), Arc::clone(served_by))).or_default() += 1;
        }
        counts
    }

    /// Resets what was doomed long enough.
    pub fn reset_due(&self, now: Instant) {
        for stream in self.by_service.borrow().values().flatten().filter_map(Weak::upgrade) {
            if stream.doomed.get().is_some_and(|at| at <= now) && !stream.reset.is_cancelled() {
                tracing::info!(service = %stream.service, "a connection that is not allowed any more is reset");
                stream.reset.cancel();
                if let Some(waker) = stream.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

impl Stream {
    /// Resolves when the connection must be reset.
    pub async fn reset(&self) {
        self.reset.cancelled().await;
    }

    /// Ready when the connection must be reset; whoever asked last is woken then.
    pub fn poll_reset(&self, cx: &Context<'_>) -> Poll<()> {
        if self.reset.is_cancelled() {
            return Poll::Ready(());
        }
        self.waker.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

/// Whether such a connection would be made now, but for health and weights.
fn is_allowed(snapshot: &Snapshot, stream: &Stream) -> bool {
    let Stream { service, end, is_tcp, .. } = stream;
    let service = snapshot.service_by_key(service).and_then(|index| snapshot.service(index));
    let is_kind = |service: &&Arc<Service>| (service.protocol == Protocol::Tcp) == *is_tcp;
    let Some(service) = service.filter(is_kind) else { return false };
    let cluster = match end {
        End::Peer => snapshot.own_cluster,
        End::Client { served_by } => snapshot.clusters.iter().position(|cluster| cluster.name == *served_by),
    };
    // An endpoint here serves its own cluster's clients whether it is exported or not.
    let is_own = matches!(end, End::Client { .. }) && cluster == snapshot.own_cluster;
    let is_offered = is_own || cluster.is_some_and(|cluster| service.exporters.contains(&cluster));
    cluster.is_some() && is_offered && service.may_reside_in(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_where_they_are_served_and_websockets_are_requests() {
        let (streams, paris, tokyo) = (Streams::default(), Arc::<str>::from("paris"), Arc::<str>::from("tokyo"));
        let (ledger, web) = (Arc::<str>::from("shop/ledger"), Arc::<str>::from("shop/web"));
        let held = [
            streams.open(Arc::clone(&ledger), End::Peer),
            streams.open(Arc::clone(&ledger), End::Client { served_by: Arc::clone(&tokyo) }),
            streams.open_websocket(Arc::clone(&web), End::Peer),
        ];
        drop(streams.open(Arc::clone(&ledger), End::Peer));
        let expected = [((Arc::clone(&ledger), Arc::clone(&paris)), 1), ((ledger, tokyo), 1)];
        assert_eq!(streams.counts(&paris), BTreeMap::from(expected));
        drop(held);
        assert!(streams.counts(&paris).is_empty());
    }
}
