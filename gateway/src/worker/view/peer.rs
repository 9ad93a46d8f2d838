//! Gateways of other clusters as places that serve a service.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use archipelago_tunnel::{PeerHandle, PeerName, PeerState, ServiceHealth};
use http::HeaderValue;

use super::Tried;
use crate::balance::cluster::{Availability, Trace};
use crate::balance::load::{self, PeakEwma};
use crate::config::Service;

/// What a decision needs to know of a gateway of another cluster: of a tunnel's end, but for tests.
pub trait PeerFacts {
    /// Its name.
    fn name(&self) -> &PeerName;
    /// Where it stands.
    fn state(&self) -> PeerState;
    /// When it came to stand there.
    fn since(&self) -> Instant;
    /// Smoothed round trip; zero when that is not known.
    fn rtt(&self) -> Duration;
    /// Requests on the way to it.
    fn in_flight(&self) -> usize;
    /// What it last said about a service: one entry per version.
    fn health(&self, service: &str) -> Vec<ServiceHealth>;
    /// The names under which it last said anything about services.
    fn services(&self) -> Vec<String>;
    /// True when both are the same peer, since the same moment.
    fn is_same(&self, other: &Self) -> bool;
}

/// A gateway of another cluster, as this worker sees it.
#[derive(Debug)]
pub struct Remote<P = PeerHandle> {
    /// The tunnel.
    pub handle: P,
    /// "cluster/gateway".
    pub name: Arc<str>,
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Value of `mesh-served-by`.
    pub served_by: HeaderValue,
    /// Time to response heads.
    latency: RefCell<PeakEwma>,
}

/// A gateway that serves one service.
#[derive(Debug)]
pub struct PeerView<P = PeerHandle> {
    /// The gateway.
    pub remote: Rc<Remote<P>>,
    /// Ready endpoints by version.
    pub ready: Box<[(String, u32)]>,
}

impl PeerFacts for PeerHandle {
    fn name(&self) -> &PeerName {
        self.name()
    }

    fn state(&self) -> PeerState {
        self.state()
    }

    fn since(&self) -> Instant {
        self.since()
    }

    fn rtt(&self) -> Duration {
        self.rtt()
    }

    fn in_flight(&self) -> usize {
        self.in_flight()
    }

    fn health(&self, service: &str) -> Vec<ServiceHealth> {
        self.health(service)
    }

    fn services(&self) -> Vec<String> {
        self.services()
    }

    fn is_same(&self, other: &Self) -> bool {
        self.is_same(other)
    }
}

impl<P: PeerFacts> Remote<P> {
    /// One of which nothing is known but its name, and what requests to its predecessor took.
    pub(super) fn new(handle: P, predecessor: Option<&Self>, now: Instant) -> Self {
        let latency = predecessor.map_or_else(|| PeakEwma::new(now), |before| *before.latency.borrow());
        let name: Arc<str> = handle.name().to_string().into();
        Self {
            served_by: HeaderValue::from_str(&name).unwrap_or_else(|_| HeaderValue::from_static("unprintable")),
            cluster: handle.name().cluster.as_str().into(),
            latency: RefCell::new(latency),
            name,
            handle,
        }
    }

    /// Requests may go there.
    pub(super) fn is_reachable(&self) -> bool {
        matches!(self.handle.state(), PeerState::Up | PeerState::Suspect)
    }
}

impl<P> Remote<P> {
    /// Takes the time to one response head.
    pub fn observe(&self, latency: Duration, now: Instant) {
        self.latency.borrow_mut().observe(latency, now);
    }
}

impl<P: PeerFacts> PeerView<P> {
    /// What the gateway says of a service; `None`: nothing.
    pub(super) fn of(remote: &Rc<Remote<P>>, config: &Service) -> Option<Self> {
        let mut health = remote.handle.health(&config.key);
        // A gateway that has not heard of the other ports yet says it of the service.
        if health.is_empty() && config.place == 0 && config.key != config.service {
            health = remote.handle.health(&config.service);
        }
        let ready: Box<[_]> = health.into_iter().map(|health| (health.version, health.ready)).collect();
        (!ready.is_empty()).then(|| Self { remote: Rc::clone(remote), ready })
    }

    pub(super) fn ready_of(&self, version: Option<&str>) -> u32 {
        self.ready.iter().filter(|(v, _)| version.is_none_or(|wanted| wanted == v)).map(|(_, ready)| ready).sum()
    }

    fn cost(&self, version: Option<&str>) -> f64 {
        let handle = &self.remote.handle;
        let latency = self.remote.latency.borrow().latency(handle.rtt());
        load::cost(handle.in_flight(), latency, f64::from(self.ready_of(version)))
    }
}

impl<P> PartialEq for PeerView<P> {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.remote, &other.remote) && self.ready == other.ready
    }
}

/// Why nothing is sent to gateways that are silent for longer than usual, until they are heard again or given up.
pub(super) const SUSPECT: &str = "its gateways are suspect";

/// Whether a cluster with these gateways can serve the service.
pub(super) fn availability<P: PeerFacts>(peers: &[PeerView<P>], version: Option<&str>, tried: &Tried) -> Availability {
    if peers.is_empty() {
        return Availability::Out("no gateway of it reports an endpoint");
    }
    let mut best = Availability::Out("no ready endpoint");
    for view in peers.iter().filter(|p| p.ready_of(version) > 0) {
        if tried.peers.contains(&view.remote.name) {
            best = Availability::Out("its gateways were tried");
            continue;
        }
        match view.remote.handle.state() {
            PeerState::Up => return Availability::Serving { factor: 1.0 },
            PeerState::Suspect => best = Availability::Reserve(SUSPECT),
            PeerState::Draining | PeerState::Dead | PeerState::Dialing => {
                if matches!(best, Availability::Out(_)) {
                    best = Availability::Out("its gateways cannot be reached");
                }
            }
        }
    }
    best
}

/// Until when it is worth waiting for one of these gateways, none of which takes requests now: one that was lost a moment ago is often
/// back a moment later, because it was not dead but slow, or because it is started again. `None`: it is not.
pub(super) fn hope<P: PeerFacts>(
    peers: &[PeerView<P>],
    version: Option<&str>,
    tried: &Tried,
    patience: Duration,
    now: Instant,
) -> Option<Instant> {
    let eligible = peers.iter().filter(|p| p.ready_of(version) > 0 && !tried.peers.contains(&p.remote.name));
    let hopes = eligible.filter_map(|p| match p.remote.handle.state() {
        PeerState::Dead | PeerState::Dialing | PeerState::Draining => Some(p.remote.handle.since() + patience),
        PeerState::Up | PeerState::Suspect => None,
    });
    hopes.max().filter(|until| *until > now)
}

/// One of a cluster's gateways: of two at random the cheaper one, suspects only when there is nobody else.
pub(super) fn pick<P: PeerFacts>(
    peers: &[PeerView<P>],
    version: Option<&str>,
    tried: &Tried,
    random: u64,
    why: &mut impl Trace,
) -> Option<Rc<Remote<P>>> {
    for state in [PeerState::Up, PeerState::Suspect] {
        let eligible = || {
            peers.iter().filter(|p| {
                p.remote.handle.state() == state && p.ready_of(version) > 0 && !tried.peers.contains(&p.remote.name)
            })
        };
        let count = eligible().count();
        let index = load::pick_of_two(count, random, |i| eligible().nth(i).map_or(f64::MAX, |p| p.cost(version)));
        if let Some(view) = index.and_then(|i| eligible().nth(i)) {
            why.note(|| {
                let rtt = view.remote.handle.rtt();
                format!(
                    "gateway: {} chosen out of {count} {state:?}, rtt {rtt:.1?}, {} endpoints ready",
                    view.remote.name,
                    view.ready_of(version)
                )
            });
            return Some(Rc::clone(&view.remote));
        }
    }
    None
}

/// True while one of these gateways could serve the service.
pub(super) fn is_reachable<P: PeerFacts>(peers: &[PeerView<P>]) -> bool {
    peers.iter().any(|p| p.ready_of(None) > 0 && p.remote.is_reachable())
}
