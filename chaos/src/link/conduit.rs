//! One direction of a link, without I/O: packets in, packets out when they are due.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    num::NonZeroU64,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt as _};

/// Packets of type `P` on their way in one direction.
#[derive(Debug)]
pub struct Conduit<P> {
    carries: Carries,
    shape: Shape,
    is_cut: bool,
    in_transit: BinaryHeap<Reverse<InTransit<P>>>,
    bytes: usize,
    sequence: u64,
    /// When the last byte accepted so far has left the sender, at the bandwidth.
    sent_until: Option<Instant>,
    /// When the last packet arrives; only for streams, which keep their order.
    arrives_until: Option<Instant>,
}

/// How one direction behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Time from end to end.
    pub delay: Duration,
    /// The delay of each packet varies evenly by up to this, either way. Datagrams may overtake.
    pub jitter: Duration,
    /// Share of packets lost, from 0 to 1, each independently.
    pub loss: f64,
    /// Bits a second; none is without limit.
    pub bandwidth: Option<NonZeroU64>,
    /// Bytes on their way at most. Beyond it datagrams are dropped and streams wait.
    pub queue_bytes: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { delay: Duration::ZERO, jitter: Duration::ZERO, loss: 0.0, bandwidth: None, queue_bytes: QUEUE_BYTES }
    }
}

/// What a conduit carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// Packets that may be lost and overtake each other.
    Datagrams,
    /// Parts of a byte stream: in order and never lost, only late.
    Stream,
}

/// What became of an offered packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// On its way until `due`.
    Carried {
        /// When it arrives.
        due: Instant,
    },
    /// Gone.
    Dropped(DropReason),
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// By the loss of the link.
    Loss,
    /// The link is cut.
    Cut,
    /// Too many bytes are on their way.
    Queue,
}

impl<P> Conduit<P> {
    /// An empty conduit.
    pub fn new(carries: Carries, shape: Shape) -> Self {
        Self {
            carries,
            shape,
            is_cut: false,
            in_transit: BinaryHeap::new(),
            bytes: 0,
            sequence: 0,
            sent_until: None,
            arrives_until: None,
        }
    }

    /// Changes the behaviour for packets offered from now on, and cuts or heals.
    ///
    /// Returns how many datagrams the cut took with it: those on their way are on the wire that was cut.
    pub fn set(&mut self, shape: Shape, is_cut: bool) -> usize {
        self.shape = shape;
        self.is_cut = is_cut;
        if !is_cut || self.carries == Carries::Stream {
            return 0;
        }
        let lost = self.in_transit.len();
        self.in_transit.clear();
        self.bytes = 0;
        self.sent_until = None;
        lost
    }

    /// Takes `packet`, `length` bytes long, at `now`.
    pub fn offer(&mut self, packet: P, length: usize, now: Instant, rng: &mut impl Rng) -> Offered {
        let is_datagram = self.carries == Carries::Datagrams;
        if is_datagram && self.is_cut {
            return Offered::Dropped(DropReason::Cut);
        }
        // Drawn for every packet, so that one seed means one sequence whatever the shape is.
        let (loss_draw, jitter_draw): (f64, f64) = (rng.random(), rng.random());
        let is_lost = loss_draw < self.shape.loss;
        if is_datagram && is_lost {
            return Offered::Dropped(DropReason::Loss);
        }
        // An empty queue takes any packet: a bound smaller than a packet must not be a cut.
        if is_datagram && !self.in_transit.is_empty() && !self.has_room(length) {
            return Offered::Dropped(DropReason::Queue);
        }
        let mut due = self.leaves(length, now) + self.travel_time(jitter_draw);
        if !is_datagram {
            if is_lost {
                due += RETRANSMISSION.max(self.shape.delay * 2);
            }
            due = self.arrives_until.map_or(due, |until| due.max(until));
            self.arrives_until = Some(due);
        }
        self.bytes += length;
        self.sequence += 1;
        self.in_transit.push(Reverse(InTransit { due, sequence: self.sequence, length, packet }));
        Offered::Carried { due }
    }

    /// Takes out the next packet that has arrived by `now`.
    pub fn pop_due(&mut self, now: Instant) -> Option<P> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(arrived) = self.in_transit.pop()?;
        self.bytes -= arrived.length;
        Some(arrived.packet)
    }

    /// When the next packet arrives; none while nothing can.
    pub fn next_due(&self) -> Option<Instant> {
        self.in_transit.peek().filter(|_| !self.is_cut).map(|Reverse(next)| next.due)
    }

    /// Whether `length` more bytes stay within the queue's bound.
    pub fn has_room(&self, length: usize) -> bool {
        self.bytes.saturating_add(length) <= self.shape.queue_bytes
    }

    /// When the last bit of a packet has left the sender.
    fn leaves(&mut self, length: usize, now: Instant) -> Instant {
        let Some(bandwidth) = self.shape.bandwidth else {
            return now;
        };
        let bits = (length as u64).saturating_mul(8);
        let nanos = u128::from(bits) * 1_000_000_000 / u128::from(bandwidth.get());
        let sending = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let begins = self.sent_until.map_or(now, |until| until.max(now));
        let leaves = begins.checked_add(sending).unwrap_or(begins);
        self.sent_until = Some(leaves);
        leaves
    }

    /// `draw` is in [0, 1).
    fn travel_time(&self, draw: f64) -> Duration {
        let Shape { delay, jitter, .. } = self.shape;
        (delay + jitter.mul_f64(2.0 * draw)).saturating_sub(jitter)
    }
}

#[derive(Debug)]
struct InTransit<P> {
    due: Instant,
    sequence: u64,
    length: usize,
    packet: P,
}

/// Ordered by arrival, then by sending.
impl<P> Ord for InTransit<P> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

impl<P> PartialOrd for InTransit<P> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> PartialEq for InTransit<P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<P> Eq for InTransit<P> {}

/// Default bound on the bytes on their way in one direction: a gigabit for 100 ms, with room.
pub const QUEUE_BYTES: usize = 16 << 20;
/// Linux's smallest retransmission timeout (TCP_RTO_MIN).
const RETRANSMISSION: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng as _, rngs::StdRng};

    const MS: Duration = Duration::from_millis(1);

    fn datagrams(shape: Shape) -> (Conduit<u32>, StdRng, Instant) {
        let conduit = Conduit::new(Carries::Datagrams, shape);
        (conduit, StdRng::seed_from_u64(7), Instant::now())
    }

    #[test]
    fn a_packet_arrives_after_the_delay_and_not_before() {
        let (mut conduit, mut rng, now) = datagrams(Shape { delay: 20 * MS, ..Shape::default() });
        let due = now + 20 * MS;
        assert_eq!(conduit.offer(1, 100, now, &mut rng), Offered::Carried { due });
        assert_eq!(conduit.next_due(), Some(due));
        assert_eq!(conduit.pop_due(due - MS), None);
        assert_eq!(conduit.pop_due(due), Some(1));
        assert_eq!(conduit.next_due(), None);
    }

    #[test]
    fn packets_of_equal_delay_keep_their_order() {
        let (mut conduit, mut rng, now) = datagrams(Shape::default());
        for packet in 0..100 {
            conduit.offer(packet, 1, now, &mut rng);
        }
        let arrived: Vec<u32> = std::iter::from_fn(|| conduit.pop_due(now)).collect();
        assert_eq!(arrived, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn loss_is_the_share_asked_for_and_repeats_with_its_seed() {
        let losses = |loss: f64, seed: u64| -> Vec<bool> {
            let mut conduit =
                Conduit::new(Carries::Datagrams, Shape { loss, queue_bytes: usize::MAX, ..Shape::default() });
            let (mut rng, now) = (StdRng::seed_from_u64(seed), Instant::now());
            (0..100_000)
                .map(|packet| conduit.offer(packet, 1, now, &mut rng) == Offered::Dropped(DropReason::Loss))
                .collect()
        };
        for (loss, seed) in [(0.01, 1), (0.1, 2), (0.5, 3)] {
            let lost = losses(loss, seed);
            let count = lost.iter().filter(|lost| **lost).count() as f64;
            let deviation = (100_000.0 * loss * (1.0 - loss)).sqrt();
            assert!((count - 100_000.0 * loss).abs() < 4.0 * deviation, "{loss}: {count}");
            // Independent: a loss follows a loss as often as anything else does.
            let pairs = lost.windows(2).filter(|pair| pair[0] && pair[1]).count() as f64;
            let expected = 100_000.0 * loss * loss;
            assert!((pairs - expected).abs() < 5.0 * expected.sqrt() + 5.0, "{loss}: {pairs}");
            assert_eq!(lost, losses(loss, seed));
        }
        assert!(losses(0.0, 1).iter().all(|lost| !lost));
        assert!(losses(1.0, 1).iter().all(|lost| *lost));
    }

    #[test]
    fn jitter_spreads_evenly_around_the_delay() {
        let (mut conduit, mut rng, now) = datagrams(Shape { delay: 20 * MS, jitter: 5 * MS, ..Shape::default() });
        let delays: Vec<f64> = (0..20_000)
            .filter_map(|packet| match conduit.offer(packet, 1, now, &mut rng) {
                Offered::Carried { due } => Some((due - now).as_secs_f64() * 1e3),
                Offered::Dropped(_) => None,
            })
            .collect();
        assert!(delays.iter().all(|delay| (15.0..=25.0).contains(delay)));
        let mean = delays.iter().sum::<f64>() / delays.len() as f64;
        assert!((mean - 20.0).abs() < 0.1, "{mean}");
        let early = delays.iter().filter(|delay| **delay < 17.5).count();
        assert!((4_600..5_400).contains(&early), "{early}");
    }

    #[test]
    fn jitter_beyond_the_delay_does_not_go_back_in_time() {
        let (mut conduit, mut rng, now) = datagrams(Shape { delay: MS, jitter: 5 * MS, ..Shape::default() });
        for packet in 0..1000 {
            let offered = conduit.offer(packet, 1, now, &mut rng);
            assert!(matches!(offered, Offered::Carried { due } if due >= now));
        }
    }

    #[test]
    fn bandwidth_spaces_packets_and_idle_time_is_not_saved_up() {
        let (mut conduit, mut rng, now) =
            datagrams(Shape { delay: 10 * MS, bandwidth: NonZeroU64::new(1_000_000), ..Shape::default() });
        // 125 bytes are 1000 bits, one millisecond at 1 Mbit/s.
        for number in 1..=3 {
            let due = now + 10 * MS + MS * number;
            assert_eq!(conduit.offer(number, 125, now, &mut rng), Offered::Carried { due });
        }
        let later = now + 1000 * MS;
        let due = later + 11 * MS;
        assert_eq!(conduit.offer(4, 125, later, &mut rng), Offered::Carried { due });
    }

    #[test]
    fn the_queue_is_bounded_but_never_a_cut() {
        let (mut conduit, mut rng, now) = datagrams(Shape { delay: MS, queue_bytes: 250, ..Shape::default() });
        let outcomes: Vec<bool> = (0..4)
            .map(|packet| conduit.offer(packet, 100, now, &mut rng) == Offered::Dropped(DropReason::Queue))
            .collect();
        assert_eq!(outcomes, [false, false, true, true]);
        while conduit.pop_due(now + MS).is_some() {}
        let huge = conduit.offer(9, 1000, now, &mut rng);
        assert!(matches!(huge, Offered::Carried { .. }));
    }

    #[test]
    fn a_cut_takes_datagrams_on_their_way_and_heals() {
        let (mut conduit, mut rng, now) = datagrams(Shape { delay: MS, ..Shape::default() });
        conduit.offer(1, 1, now, &mut rng);
        assert_eq!(conduit.set(Shape::default(), true), 1);
        assert_eq!(conduit.offer(2, 1, now, &mut rng), Offered::Dropped(DropReason::Cut));
        assert_eq!(conduit.pop_due(now + 10 * MS), None);
        assert_eq!(conduit.set(Shape::default(), false), 0);
        conduit.offer(3, 1, now, &mut rng);
        assert_eq!(conduit.pop_due(now + 10 * MS), Some(3));
    }

    #[test]
    fn a_stream_keeps_every_part_in_order_under_loss_jitter_and_cuts() {
        let shape = Shape { delay: 20 * MS, jitter: 20 * MS, loss: 0.3, ..Shape::default() };
        let mut conduit = Conduit::new(Carries::Stream, shape);
        let (mut rng, now) = (StdRng::seed_from_u64(3), Instant::now());
        for part in 0..500 {
            conduit.offer(part, 10, now + MS * part, &mut rng);
        }
        assert_eq!(conduit.set(shape, true), 0);
        let end = now + Duration::from_secs(60);
        assert_eq!((conduit.pop_due(end), conduit.next_due()), (None, None));
        conduit.set(shape, false);
        let arrived: Vec<u32> = std::iter::from_fn(|| conduit.pop_due(end)).collect();
        assert_eq!(arrived, (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn a_lost_part_of_a_stream_comes_late() {
        let lossy = Shape { delay: MS, loss: 1.0, ..Shape::default() };
        let mut conduit = Conduit::new(Carries::Stream, lossy);
        let (mut rng, now) = (StdRng::seed_from_u64(3), Instant::now());
        let due = now + 201 * MS;
        assert_eq!(conduit.offer(1, 10, now, &mut rng), Offered::Carried { due });
        conduit.set(Shape { loss: 0.0, ..lossy }, false);
        // What follows was not lost, and waits all the same.
        assert_eq!(conduit.offer(2, 10, now, &mut rng), Offered::Carried { due });
    }
}
