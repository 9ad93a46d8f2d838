//! Steering a link while it carries traffic, and counting what it did.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::sync::watch;

use super::conduit::{DropReason, Shape};

/// Steers one link; clones steer the same one. Changes hold for packets that come after the call.
#[derive(Debug, Clone)]
pub struct LinkControl {
    ways: Arc<watch::Sender<Ways>>,
    counts: Arc<Counts>,
}

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the address that the link leads to.
    Forward,
    /// From there back to clients.
    Back,
}

impl LinkControl {
    pub(super) fn new(shape: Shape) -> Self {
        let way = Way { shape, is_cut: false };
        let ways = Ways { forward: way, back: way };
        Self { ways: Arc::new(watch::Sender::new(ways)), counts: Arc::default() }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::new(Shape::default())
    }

    /// Drops everything in silence, both ways, including what is on its way.
    pub fn cut(&self) {
        self.change(|way| way.is_cut = true);
    }

    /// Drops everything in one direction.
    pub fn cut_one_way(&self, direction: Direction) {
        self.ways.send_modify(|ways| ways.of(direction).is_cut = true);
    }

    /// Carries again, both ways.
    pub fn heal(&self) {
        self.change(|way| way.is_cut = false);
    }

    /// Sets the delay of each direction; a round trip takes twice as long.
    pub fn set_delay(&self, delay: Duration) {
        self.change(|way| way.shape.delay = delay);
    }

    /// Sets the share of packets lost in each direction, from 0 to 1.
    pub fn set_loss(&self, loss: f64) {
        self.change(|way| way.shape.loss = loss);
    }

    /// What one direction is set to.
    pub fn shape(&self, direction: Direction) -> Shape {
        self.ways.borrow().get(direction).shape
    }

    /// What the link did so far.
    pub fn stats(&self) -> LinkStats {
        LinkStats { forward: self.counts.forward.stats(), back: self.counts.back.stats() }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Ways> {
        self.ways.subscribe()
    }

    pub(super) fn way(&self, direction: Direction) -> Way {
        self.ways.borrow().get(direction)
    }

    pub(super) fn counts(&self, direction: Direction) -> &WayCounts {
        match direction {
            Direction::Forward => &self.counts.forward,
            Direction::Back => &self.counts.back,
        }
    }

    fn change(&self, change: impl Fn(&mut Way)) {
        self.ways.send_modify(|ways| {
            change(&mut ways.forward);
            change(&mut ways.back);
        });
    }
}

/// What a link did, since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LinkStats {
    /// Towards the address the link leads to.
    pub forward: WayStats,
    /// Back to clients.
    pub back: WayStats,
}

/// What one direction of a link did. Packets are datagrams, or reads of a TCP stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WayStats {
    /// Packets handed on.
    pub packets: u64,
    /// Bytes handed on.
    pub bytes: u64,
    /// Packets dropped by loss.
    pub dropped_loss: u64,
    /// Packets dropped by a cut.
    pub dropped_cut: u64,
    /// Packets dropped because too much was on its way, or there were too many clients.
    pub dropped_queue: u64,
}

/// Settings of both directions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ways {
    forward: Way,
    back: Way,
}

/// Settings of one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) shape: Shape,
    pub(super) is_cut: bool,
}

impl Ways {
    fn of(&mut self, direction: Direction) -> &mut Way {
        match direction {
            Direction::Forward => &mut self.forward,
            Direction::Back => &mut self.back,
        }
    }

    fn get(&self, direction: Direction) -> Way {
        match direction {
            Direction::Forward => self.forward,
            Direction::Back => self.back,
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    forward: WayCounts,
    back: WayCounts,
}

#[derive(Debug, Default)]
pub(super) struct WayCounts {
    packets: AtomicU64,
    bytes: AtomicU64,
    loss: AtomicU64,
    cut: AtomicU64,
    queue: AtomicU64,
}

impl WayCounts {
    pub(super) fn carried(&self, bytes: usize) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self, why: DropReason, packets: usize) {
        let counter = match why {
            DropReason::Loss => &self.loss,
            DropReason::Cut => &self.cut,
            DropReason::Queue => &self.queue,
        };
        counter.fetch_add(packets as u64, Ordering::Relaxed);
    }

    fn stats(&self) -> WayStats {
        WayStats {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped_loss: self.loss.load(Ordering::Relaxed),
            dropped_cut: self.cut.load(Ordering::Relaxed),
            dropped_queue: self.queue.load(Ordering::Relaxed),
        }
    }
}
