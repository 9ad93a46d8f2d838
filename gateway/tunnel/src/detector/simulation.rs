//! Two judges on a simulated path: how often they err, how fast they are right. Seeded; a failure names its seed.

use archipelago_base::random::SplitMix64;

use super::*;
use std::{cmp::Reverse, collections::BinaryHeap};

/// What the path and the machines do.
#[derive(Debug, Clone, Copy)]
struct World {
    rtt: Duration,
    /// Share of datagrams lost independently.
    loss: f64,
    /// Outages per second, each of `outage` on average.
    outages: f64,
    outage: Duration,
    /// Stalls of either machine per second, each up to `stall`.
    stalls: f64,
    stall: Duration,
    in_flight: usize,
}

const CALM: World = World {
    rtt: Duration::from_millis(5),
    loss: 0.0,
    outages: 0.0,
    outage: Duration::ZERO,
    stalls: 0.0,
    stall: Duration::ZERO,
    in_flight: 1,
};

struct Side {
    detector: Detector,
    counts: Counts,
    stalled_until: Duration,
    deaths: u32,
    suspicions: u32,
    died_at: Option<Duration>,
}

/// Deliveries come before ticks of the same moment: the socket is drained before anyone is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Deliver { to: usize, beat: usize },
    Stall { who: usize },
    Outage,
    Tick { who: usize },
}

struct Sim {
    world: World,
    random: SplitMix64,
    start: Instant,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, What)>>,
    beats: Vec<Beat>,
    sides: [Side; 2],
    dark_until: Duration,
    is_cut: bool,
}

impl Sim {
    fn new(world: World, seed: u64) -> Self {
        let start = Instant::now();
        let side = || Side {
            detector: Detector::new(DetectorConfig::default(), start, world.rtt),
            counts: Counts { received: 0, sent: 0 },
            stalled_until: Duration::ZERO,
            deaths: 0,
            suspicions: 0,
            died_at: None,
        };
        let sides = [side(), side()];
        let mut sim = Self {
            world,
            random: SplitMix64::new(seed),
            start,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            beats: Vec::new(),
            sides,
            dark_until: Duration::ZERO,
            is_cut: false,
        };
        for who in 0..2 {
            sim.queue.push(Reverse((Duration::from_millis(1), What::Tick { who })));
            if world.stalls > 0.0 {
                sim.plan(world.stalls, What::Stall { who });
            }
        }
        if world.outages > 0.0 {
            sim.plan(world.outages, What::Outage);
        }
        sim
    }

    /// Uniform in [0, 1).
    fn uniform(&mut self) -> f64 {
        self.random.next_f64()
    }

    fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    fn plan(&mut self, per_second: f64, what: What) {
        let wait = Duration::from_secs_f64(self.exponential() / per_second);
        self.queue.push(Reverse((self.now + wait, what)));
    }

    fn run(&mut self, until: Duration) {
        while let Some(Reverse((at, _))) = self.queue.peek().copied() {
            if at > until {
                break;
            }
            let Some(Reverse((at, what))) = self.queue.pop() else { break };
            self.now = at;
            match what {
                What::Outage => {
                    self.dark_until = at + self.world.outage.mul_f64(self.exponential());
                    self.plan(self.world.outages, what);
                }
                What::Stall { who } => {
                    self.sides[who].stalled_until = at + self.world.stall.mul_f64(self.uniform());
                    self.plan(self.world.stalls, what);
                }
                What::Deliver { to: who, .. } | What::Tick { who } if self.sides[who].stalled_until > at => {
                    self.queue.push(Reverse((self.sides[who].stalled_until, what)));
                }
                What::Deliver { to, beat } => {
                    self.sides[to].counts.received += 1;
                    self.handle(to, Event::Beat(self.beats[beat]));
                }
                What::Tick { who } => {
                    let sample = Sample { counts: self.sides[who].counts, in_flight: self.world.in_flight };
                    // A tick planned before an event moved the deadline finds nothing due and plans anew.
                    let due = self.sides[who].detector.due().saturating_duration_since(self.start);
                    if due <= at || at <= Duration::from_millis(1) {
                        self.handle(who, Event::Tick(sample));
                    }
                    let due = self.sides[who].detector.due().saturating_duration_since(self.start);
                    // Timers have a resolution of a millisecond and wake a little late.
                    let late = Duration::from_micros((self.uniform() * 1000.0) as u64);
                    self.queue.push(Reverse((due.max(at + Duration::from_micros(100)) + late, what)));
                }
            }
        }
        self.now = until;
    }

    fn handle(&mut self, who: usize, event: Event) {
        let now = self.start + self.now;
        let output = self.sides[who].detector.handle(event, now);
        for _ in 0..output.beats {
            let beat = self.sides[who].detector.next_beat(now);
            self.sides[who].counts.sent += 1;
            let is_lost = self.uniform() < self.world.loss || self.now < self.dark_until || self.is_cut;
            let jitter = Duration::from_micros((self.uniform() * 200.0) as u64);
            if !is_lost {
                self.beats.push(beat);
                let deliver = What::Deliver { to: 1 - who, beat: self.beats.len() - 1 };
                self.queue.push(Reverse((self.now + self.world.rtt / 2 + jitter, deliver)));
            }
        }
        match output.changed {
            Some((Verdict::Dead, _)) => {
                self.sides[who].deaths += 1;
                self.sides[who].died_at.get_or_insert(self.now);
            }
            Some((Verdict::Suspect, Cause::Silence)) => self.sides[who].suspicions += 1,
            _ => {}
        }
    }

    fn deaths(&self) -> u32 {
        self.sides[0].deaths + self.sides[1].deaths
    }

    fn suspicions(&self) -> u32 {
        self.sides[0].suspicions + self.sides[1].suspicions
    }
}

const SEEDS: std::ops::Range<u64> = 1..6;
const SPAN: Duration = Duration::from_secs(120);

#[test]
fn one_percent_loss_convicts_nobody() {
    for rtt in [1, 5, 20, 80] {
        for seed in SEEDS {
            let world = World { rtt: Duration::from_millis(rtt), loss: 0.01, ..CALM };
            let mut sim = Sim::new(world, seed);
            sim.run(SPAN);
            println!("R={rtt} ms seed {seed}: {} suspicions, {} deaths", sim.suspicions(), sim.deaths());
            assert_eq!(sim.deaths(), 0, "R={rtt} seed {seed}");
            assert!(sim.suspicions() <= 3, "R={rtt} seed {seed}: {}", sim.suspicions());
        }
    }
}

#[test]
fn short_outages_seldom_convict() {
    let mut total = 0;
    for seed in SEEDS {
        // One percent of the time dark, 5 ms on average.
        let world = World { outages: 2.0, outage: Duration::from_millis(5), ..CALM };
        let mut sim = Sim::new(world, seed);
        sim.run(SPAN);
        total += sim.deaths();
    }
    println!("{total} false deaths in {} minutes of bursty loss", 2 * SPAN.as_secs() / 60 * 5);
    assert!(total <= 4, "{total}");
}

#[test]
fn our_own_stalls_convict_nobody() {
    for seed in SEEDS {
        // Each machine is off the processor for up to 30 ms, once a second.
        let world = World { stalls: 1.0, stall: Duration::from_millis(30), ..CALM };
        let mut sim = Sim::new(world, seed);
        sim.run(SPAN);
        println!("seed {seed}: {} suspicions, {} deaths under stalls", sim.suspicions(), sim.deaths());
        assert_eq!(sim.deaths(), 0, "seed {seed}");
    }
}

#[test]
fn a_cut_is_found_in_time() {
    for (rtt, bound) in [(1u64, 60), (5, 65), (20, 75), (80, 210), (200, 330)] {
        for in_flight in [0, 1] {
            for seed in SEEDS {
                let world = World { rtt: Duration::from_millis(rtt), loss: 0.01, in_flight: 1, ..CALM };
                let mut sim = Sim::new(world, seed);
                sim.run(Duration::from_secs(5));
                if in_flight == 0 {
                    sim.world.in_flight = 0; // let it fall idle, then cut, then ask
                    sim.run(Duration::from_secs(10));
                }
                assert_eq!(sim.deaths(), 0);
                let cut = sim.now;
                sim.is_cut = true;
                if in_flight == 0 {
                    sim.world.in_flight = 1;
                    sim.handle(0, Event::RequestStarted(sim.sides[0].counts));
                    sim.queue.push(Reverse((sim.sides[0].detector.due() - sim.start, What::Tick { who: 0 })));
                }
                sim.run(cut + Duration::from_secs(1));
                let took = sim.sides[0].died_at.expect("found") - cut;
                // After idleness the clock starts with the request, plus the round trip of the first answer.
                let bound = Duration::from_millis(bound) + if in_flight == 0 { world.rtt } else { Duration::ZERO };
                println!("R={rtt} ms, in flight {in_flight}, seed {seed}: dead after {took:?}");
                assert!(took <= bound, "R={rtt} in flight {in_flight} seed {seed}: {took:?} > {bound:?}");
            }
        }
    }
}

#[test]
fn a_healed_path_is_trusted_again() {
    for seed in SEEDS {
        let mut sim = Sim::new(World { loss: 0.01, ..CALM }, seed);
        sim.run(Duration::from_secs(2));
        sim.is_cut = true;
        sim.run(Duration::from_secs(4));
        assert_eq!(sim.sides.each_ref().map(|side| side.detector.verdict()), [Verdict::Dead; 2]);
        sim.is_cut = false;
        sim.run(Duration::from_secs(5));
        assert_eq!(sim.sides.each_ref().map(|side| side.detector.verdict()), [Verdict::Up; 2], "seed {seed}");
    }
}
