//! What a request stamps on its way through this gateway, and the parts of its time that follow from it.
//!
//! Almost no clock is read for it: the moments are those that deadlines, balancing and metrics need in any case. Waits that mostly
//! do not happen are timed when they do.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use archipelago_proto::v1::SlowHops;

use super::{Far, micros};
use crate::worker::view::Target;

/// The moments of one request.
#[derive(Debug, Clone, Default)]
pub struct Trail {
    /// Somebody was chosen for the first time.
    routed: Option<Instant>,
    /// Who was last tried, and since when, until that failed.
    trying: Option<(Instant, Target)>,
    /// Of the attempt that was answered.
    stamps: Option<Stamps>,
    /// When the last of its body came, if it has one.
    uploaded: Option<Instant>,
    /// Nobody could be asked: for a gateway that was away, before anybody was tried, and after that.
    away: [u32; 2],
    /// In attempts without an answer, for connections.
    connect_lost: u32,
    /// The attempt without an answer that took longest.
    lost: Option<(u32, Target)>,
}

/// What one attempt that was answered stamped.
#[derive(Debug, Clone)]
pub struct Stamps {
    /// When it was begun.
    pub began: Instant,
    /// When the head of the response was there.
    pub answered: Instant,
    /// For a stream, in microseconds.
    pub waited: u32,
    /// For a connection, in microseconds.
    pub connected: u32,
    /// What the gateway behind the tunnel says of its part; in a box, since stamps are handed on by value.
    pub far: Option<Box<Far>>,
}

/// What one attempt waits for before it can send anything, in microseconds.
#[derive(Debug, Default)]
pub struct Waits {
    /// For a stream, of which there are only so many.
    pub stream: Cell<u32>,
    /// For a connection.
    pub connection: Cell<u32>,
}

/// The parts from the head of a request to the head of its response at one gateway, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    /// Until somebody was first tried.
    pub queue: u32,
    /// In attempts that failed, and between attempts.
    pub lost: u32,
    /// For a gateway of another cluster, when all were away.
    pub away: u32,
    /// For a stream.
    pub wait: u32,
    /// For connections.
    pub connect: u32,
    /// For the rest of the request to come in.
    pub upload: u32,
    /// What is left: for whoever was asked to answer.
    pub rest: u32,
}

impl Trail {
    /// An attempt at `target` begins.
    pub fn begins(&mut self, target: &Target, now: Instant) {
        self.routed.get_or_insert(now);
        if let Some((began, hung)) = self.trying.replace((now, target.clone())) {
            self.loses(micros(began, now), hung);
        }
    }

    /// Nobody could be asked meanwhile, and then somebody was found.
    pub fn sought(&mut self, from: Instant, found: Instant) {
        let [before, after] = &mut self.away;
        let sum = if self.routed.is_none() { before } else { after };
        *sum = sum.saturating_add(micros(from, found));
    }

    /// It ended without an answer, after so many microseconds for a connection.
    pub fn failed(&mut self, connecting: u32, now: Instant) {
        self.connect_lost = self.connect_lost.saturating_add(connecting);
        let Some((began, target)) = self.trying.take() else { return };
        self.loses(micros(began, now), target);
    }

    fn loses(&mut self, took: u32, target: Target) {
        if self.lost.as_ref().is_none_or(|(most, _)| took >= *most) {
            self.lost = Some((took, target));
        }
    }

    /// The attempt at `target` was answered.
    pub fn answered(&mut self, target: &Target, stamps: Stamps) {
        // Mostly it is the one that is known.
        match &self.trying {
            Some((began, _)) if *began <= stamps.began => {}
            // The one that was taken for hung.
            _ => {
                self.trying = Some((stamps.began, target.clone()));
                self.lost.take_if(|(_, lost)| is_same(lost, target));
            }
        }
        self.stamps = Some(stamps);
    }

    /// The last of the request's body had come by then, or not yet.
    pub fn uploaded(&mut self, last: Option<Instant>) {
        self.uploaded = last;
    }

    /// When the head of the response was there.
    pub fn head_at(&self) -> Option<Instant> {
        self.stamps.as_ref().map(|stamps| stamps.answered)
    }

    /// Who answered, or was last tried.
    pub fn target(&self) -> Option<&Target> {
        self.trying.as_ref().map(|(_, target)| target)
    }

    /// Who cost most without an answer.
    pub fn lost_at(&self) -> Option<&Target> {
        self.lost.as_ref().map(|(_, target)| target)
    }

    /// What the gateway behind the tunnel said of its part.
    pub fn far(&self) -> Option<Far> {
        self.stamps.as_ref()?.far.as_deref().copied()
    }

    /// The parts from the head of the request to `until`, when there was an answer or nobody waited any more.
    pub fn parts(&self, started: Instant, until: Instant) -> Parts {
        let Some(routed) = self.routed else { return Parts { queue: micros(started, until), ..Parts::default() } };
        let (began, waited, connected) = match (&self.stamps, &self.trying) {
            (Some(stamps), _) => (stamps.began, stamps.waited, stamps.connected),
            (None, Some((began, _))) => (*began, 0, 0),
            (None, None) => (until, 0, 0),
        };
        let mut left = micros(started, until);
        let mut part = |wanted: u32| {
            let taken = wanted.min(left);
            left -= taken;
            taken
        };
        let [away_before, away_after] = self.away;
        let away_before = part(away_before);
        let queue = part(micros(started, routed).saturating_sub(away_before));
        let between = micros(routed, began);
        // One attempt begins a little after it was chosen.
        let lost = if self.lost.is_some() || between >= LOST_MIN { between } else { 0 };
        let away_after = part(away_after.min(lost));
        let connect_lost = part(self.connect_lost.min(lost - away_after));
        let lost = part(lost - away_after - connect_lost);
        let wait = part(waited);
        let connect = connect_lost + part(connected);
        let upload = part(self.uploaded.map_or(0, |last| micros(began, last).saturating_sub(waited + connected)));
        Parts { queue, lost, away: away_before + away_after, wait, connect, upload, rest: left }
    }

    /// The same as the gateway at the other end of the tunnel is told it.
    pub fn as_far(&self, started: Instant, until: Instant, attempts: u32, status: u16) -> Far {
        // Endpoints here are all that is asked for a peer: nobody is away.
        let Parts { queue, lost, away: _, wait, connect, upload, rest } = self.parts(started, until);
        let address = |target: Option<&Target>| endpoint_of(target, None);
        let (endpoint, lost_at) = (address(self.target().or(self.lost_at())), address(self.lost_at()));
        let status = status.into();
        Far { queue, lost, wait, connect, upload, first_byte: rest, attempts, status, endpoint, lost_at }
    }

    /// All of them, from where the request entered, to `end`.
    pub fn hops(&self, started: Instant, end: Instant) -> SlowHops {
        let head_at = self.head_at().unwrap_or(end).min(end);
        let parts = self.parts(started, head_at);
        let is_remote = matches!(self.target(), Some(Target::Remote(_)));
        let has_answer = self.stamps.is_some();
        assemble(parts, is_remote, self.far().filter(|_| has_answer), micros(head_at, end))
    }
}

fn is_same(one: &Target, other: &Target) -> bool {
    match (one, other) {
        (Target::Local(one), Target::Local(other)) => Rc::ptr_eq(one, other),
        (Target::Remote(one), Target::Remote(other)) => Rc::ptr_eq(one, other),
        _ => false,
    }
}

/// The address of the endpoint that a request was served by, as far as it is known.
pub fn endpoint_of(target: Option<&Target>, far: Option<Far>) -> Option<SocketAddr> {
    match target? {
        Target::Local(endpoint) => Some(endpoint.address()),
        Target::Remote(_) => far?.endpoint,
    }
}

/// The parts here and those at the far gateway, put together. The far gateway is believed no more than there is time.
fn assemble(near: Parts, is_remote: bool, far: Option<Far>, body: u32) -> SlowHops {
    let wide = u64::from;
    let mut hops = SlowHops { queue: wide(near.queue), lost: wide(near.lost), body: wide(body), ..SlowHops::default() };
    hops.tunnel_wait = wide(near.away);
    let Some(far) = far.filter(|_| is_remote) else {
        (hops.connect, hops.upload) = (wide(near.connect), wide(near.upload));
        if is_remote {
            hops.tunnel_wait += wide(near.wait);
            hops.beyond = wide(near.rest);
        } else {
            (hops.endpoint_wait, hops.first_byte) = (wide(near.wait), wide(near.rest));
        }
        return hops;
    };
    // It had the upload for as long as we had, and what it took longer for it was on the way.
    let mut left = near.upload.saturating_add(near.rest);
    let mut part = |wanted: u32| {
        let taken = wanted.min(left);
        left -= taken;
        wide(taken)
    };
    hops.far_queue = part(far.queue);
    hops.far_lost = part(far.lost);
    hops.endpoint_wait = part(far.wait);
    hops.connect = wide(near.connect) + part(far.connect);
    hops.first_byte = part(far.first_byte);
    hops.upload = part(far.upload.min(near.upload));
    hops.tunnel_wait += wide(near.wait);
    hops.tunnel = wide(left);
    hops
}

impl Waits {
    /// Waits for a connection, and counts how long.
    pub async fn for_connection<F: Future>(&self, connecting: F) -> F::Output {
        timed(&self.connection, connecting).await
    }

    /// Waits for a stream, and counts how long.
    pub async fn for_stream<F: Future>(&self, opening: F) -> F::Output {
        timed(&self.stream, opening).await
    }
}

/// Adds how long `future` takes to `sum`, also when it is given up. What is there at once costs no look at a clock.
async fn timed<F: Future>(sum: &Cell<u32>, future: F) -> F::Output {
    let mut future = pin!(future);
    if let Poll::Ready(output) = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        return output;
    }
    let _running = Running { sum, began: Instant::now() };
    future.await
}

struct Running<'a> {
    sum: &'a Cell<u32>,
    began: Instant,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.sum.set(self.sum.get().saturating_add(micros(self.began, Instant::now())));
    }
}

/// Less than this between the choice of somebody and the beginning of an attempt is what that takes.
const LOST_MIN: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::upstream::Endpoint;
    use proptest::prelude::*;
    use std::time::Duration;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn endpoint(port: u16, now: Instant) -> Target {
        Target::Local(Rc::new(Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port)), now)))
    }

    #[test]
    fn every_moment_belongs_to_one_part() {
        let start = Instant::now();
        let (one, other) = (endpoint(1, start), endpoint(2, start));
        let mut trail = Trail::default();
        assert_eq!(trail.parts(start, at(start, 3)), Parts { queue: 3_000, ..Parts::default() }, "nobody was tried");
        trail.begins(&one, at(start, 2));
        let waiting = Parts { queue: 2_000, rest: 8_000, ..Parts::default() };
        assert_eq!(trail.parts(start, at(start, 10)), waiting, "given up while the first attempt ran");
        trail.failed(1_000_000, at(start, 1_004));
        let failed = Parts { queue: 2_000, lost: 8_000, connect: 1_000_000, ..Parts::default() };
        assert_eq!(trail.parts(start, at(start, 1_010)), failed, "nobody else was tried");
        trail.begins(&other, at(start, 1_020));
        let (began, answered) = (at(start, 1_021), at(start, 1_100));
        trail.answered(&other, Stamps { began, answered, waited: 5_000, connected: 4_000, far: None });
        trail.uploaded(Some(at(start, 1_060)));
        let parts = Parts {
            queue: 2_000,
            lost: 19_000,
            wait: 5_000,
            connect: 1_004_000,
            upload: 30_000,
            rest: 40_000,
            ..Parts::default()
        };
        assert_eq!(trail.parts(start, answered), parts);
        let far = trail.as_far(start, answered, 2, 200);
        let address = |target: &Target| endpoint_of(Some(target), None);
        assert_eq!((far.endpoint, far.lost_at), (address(&other), address(&one)));
        let hops = trail.hops(start, at(start, 1_150));
        assert_eq!((hops.endpoint_wait, hops.first_byte, hops.body), (5_000, 40_000, 50_000));
    }

    #[test]
    fn a_gateway_that_was_away_was_waited_for() {
        let start = Instant::now();
        let mut trail = Trail::default();
        trail.sought(at(start, 1), at(start, 201));
        let back = endpoint(1, start);
        trail.begins(&back, at(start, 201));
        trail.failed(0, at(start, 211));
        trail.sought(at(start, 215), at(start, 315));
        trail.begins(&back, at(start, 315));
        let parts = Parts { queue: 1_000, away: 300_000, lost: 14_000, rest: 5_000, ..Parts::default() };
        assert_eq!(trail.parts(start, at(start, 320)), parts);
        assert_eq!(trail.hops(start, at(start, 320)).tunnel_wait, 300_000);
    }

    #[test]
    fn an_attempt_that_hung_and_answered_after_all_lost_nothing() {
        let start = Instant::now();
        let (hung, second) = (endpoint(1, start), endpoint(2, start));
        let mut trail = Trail::default();
        trail.begins(&hung, start);
        trail.begins(&second, at(start, 1_000));
        trail.answered(&hung, Stamps { began: start, answered: at(start, 1_200), waited: 0, connected: 0, far: None });
        assert_eq!(trail.parts(start, at(start, 1_200)), Parts { rest: 1_200_000, ..Parts::default() });
        assert!(trail.target().is_some_and(|target| is_same(target, &hung)));
        assert!(trail.lost_at().is_none());
        // The second one was the first to answer: the other cost a second.
        let mut trail = Trail::default();
        trail.begins(&hung, start);
        trail.begins(&second, at(start, 1_000));
        let began = at(start, 1_000);
        trail.answered(&second, Stamps { began, answered: at(start, 1_200), waited: 0, connected: 0, far: None });
        assert_eq!(trail.parts(start, at(start, 1_200)), Parts { lost: 1_000_000, rest: 200_000, ..Parts::default() });
        assert!(trail.lost_at().is_some_and(|target| is_same(target, &hung)));
    }

    #[test]
    fn what_the_far_gateway_does_not_claim_is_the_tunnels() {
        let near = Parts { queue: 10, wait: 20, upload: 300, rest: 1_000, ..Parts::default() };
        let far = Far { queue: 30, wait: 40, connect: 50, upload: 310, first_byte: 400, ..Far::default() };
        let hops = SlowHops {
            queue: 10,
            tunnel_wait: 20,
            tunnel: 480,
            far_queue: 30,
            endpoint_wait: 40,
            connect: 50,
            upload: 300,
            first_byte: 400,
            body: 7,
            ..SlowHops::default()
        };
        assert_eq!(assemble(near, true, Some(far), 7), hops);
        let silent =
            SlowHops { queue: 10, tunnel_wait: 20, upload: 300, beyond: 1_000, body: 7, ..SlowHops::default() };
        assert_eq!(assemble(near, true, None, 7), silent, "one that says nothing is not one that took no time");
    }

    proptest! {
        #[test]
        fn a_far_gateway_claims_no_more_than_there_was(near: [u16; 7], numbers: [u32; 6], is_remote: bool, body: u16) {
            let [queue, lost, away, wait, connect, upload, rest] = near.map(u32::from);
            let parts = Parts { queue, lost, away, wait, connect, upload, rest };
            let all: u64 = near.into_iter().map(u64::from).sum::<u64>() + u64::from(body);
            let [queue, lost, wait, connect, upload, first_byte] = numbers;
            let far = Far { queue, lost, wait, connect, upload, first_byte, ..Far::default() };
            let h = assemble(parts, is_remote, Some(far), body.into());
            let sum = h.queue + h.lost + h.tunnel_wait + h.tunnel + h.far_queue + h.far_lost + h.endpoint_wait + h.connect
                + h.upload + h.first_byte + h.body + h.beyond;
            prop_assert_eq!(sum, all);
        }
    }
}
