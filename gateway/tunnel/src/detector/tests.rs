//! Every (state, event) pair in one table, and the rules one by one.

use super::*;

const CONFIG: DetectorConfig = DetectorConfig {
    beat_interval_min: Duration::from_millis(5),
    beat_interval_max: Duration::from_millis(25),
    idle_interval: Duration::from_millis(200),
    dead_interval: Duration::from_millis(100),
    suspect_floor: Duration::from_millis(20),
    dead_floor: Duration::from_millis(40),
    active_linger: Duration::from_secs(1),
    learned_silence_max: Duration::from_millis(250),
    probation_beats: 3,
    probation_min: Duration::from_millis(20),
    probation_max: Duration::from_secs(2),
};

/// A detector with a clock and a peer that can speak.
struct Bench {
    detector: Detector,
    now: Instant,
    counts: Counts,
    in_flight: usize,
    peer_sequence: u32,
}

impl Bench {
    fn new(rtt_ms: u64) -> Self {
        let now = Instant::now();
        Self {
            detector: Detector::new(CONFIG, now, Duration::from_millis(rtt_ms)),
            now,
            counts: Counts { received: 0, sent: 0 },
            in_flight: 0,
            peer_sequence: 0,
        }
    }

    fn pass(&mut self, ms: u64) -> &mut Self {
        self.now += Duration::from_millis(ms);
        self
    }

    fn tick(&mut self) -> Output {
        let sample = Sample { counts: self.counts, in_flight: self.in_flight };
        let output = self.detector.handle(Event::Tick(sample), self.now);
        for _ in 0..output.beats {
            self.detector.next_beat(self.now);
        }
        output
    }

    /// Ticks punctually for `ms`; returns the changes of verdict and the beats sent.
    fn run(&mut self, ms: u64) -> (Vec<Verdict>, u32) {
        let end = self.now + Duration::from_millis(ms);
        let (mut verdicts, mut beats) = (Vec::new(), 0);
        while self.detector.due() <= end {
            self.now = self.detector.due().max(self.now);
            let output = self.tick();
            beats += u32::from(output.beats);
            verdicts.extend(output.changed.map(|(verdict, _)| verdict));
        }
        self.now = end;
        (verdicts, beats)
    }

    fn packet(&mut self) -> &mut Self {
        self.counts.received += 1;
        self
    }

    fn beat(&mut self, is_active: bool) -> Output {
        self.peer_sequence += 1;
        let beat = Beat {
            is_active,
            sequence: self.peer_sequence,
            sent_micros: self.detector.clock_micros(self.now),
            echo_sequence: 0,
            echo_micros: 0,
            hold_micros: 0,
        };
        self.detector.handle(Event::Beat(beat), self.now)
    }

    fn state(&self) -> &'static str {
        match self.detector.state {
            State::Alive => "alive",
            State::Suspect => "suspect",
            State::Dead => "dead",
            State::Probation { .. } => "probation",
        }
    }

    fn in_state(name: &str) -> Self {
        let mut bench = Self::new(1);
        bench.in_flight = 1;
        bench.run(1);
        bench.detector.handle(Event::RequestStarted(bench.counts), bench.now);
        match name {
            "alive" => {
                bench.pass(1).beat(false);
            }
            "suspect" => drop(bench.run(30)),
            "dead" => drop(bench.run(60)),
            "probation" => {
                bench.run(60);
                bench.beat(false);
            }
            _ => unreachable!(),
        }
        assert_eq!(bench.state(), name);
        bench
    }
}

#[test]
fn every_state_and_event() {
    let after = |from: &str, event: &str| {
        let mut bench = Bench::in_state(from);
        match event {
            "request" => {
                bench.detector.handle(Event::RequestStarted(bench.counts), bench.now);
            }
            "beat" => {
                bench.pass(1).beat(false);
            }
            "packet" => {
                bench.packet().now = bench.detector.due();
                bench.tick();
            }
            "3 beats" => {
                for _ in 0..3 {
                    bench.run(18);
                    bench.beat(false);
                }
                bench.run(12);
            }
            "silence" => drop(bench.run(80)),
            "closed" => {
                bench.detector.handle(Event::Closed, bench.now);
            }
            _ => unreachable!(),
        }
        bench.state()
    };
    #[rustfmt::skip]
    let table = [
        //            request      beat         packet       3 beats   silence  closed
        ("alive",     ["alive",     "alive",     "alive",     "alive", "dead",  "dead"]),
        ("suspect",   ["suspect",   "alive",     "alive",     "alive", "dead",  "dead"]),
        ("dead",      ["dead",      "probation", "probation", "alive", "dead",  "dead"]),
        ("probation", ["probation", "probation", "probation", "alive", "dead",  "dead"]),
    ];
    for (from, row) in table {
        for (event, to) in ["request", "beat", "packet", "3 beats", "silence", "closed"].into_iter().zip(row) {
            assert_eq!(after(from, event), to, "{from} + {event}");
        }
    }
}

#[test]
fn first_request_after_idleness_is_judged_from_its_own_start() {
    let mut bench = Bench::new(10);
    for _ in 0..20 {
        bench.packet().run(150); // idle, alive, for three seconds
    }
    assert_eq!(bench.state(), "alive");
    bench.pass(0);
    let output = bench.detector.handle(Event::RequestStarted(bench.counts), bench.now);
    assert_eq!(output.beats, 2);
    bench.in_flight = 1;
    assert_eq!(bench.run(30).0, []); // 20 ms + one round trip have not passed
    assert_eq!(bench.run(30).0, [Verdict::Suspect, Verdict::Dead]);
}

#[test]
fn idle_silence_is_judged_by_the_idle_cadence() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.run(550).0, []);
    assert_eq!(bench.run(1000).0, [Verdict::Suspect, Verdict::Dead]);
}

#[test]
fn traffic_replaces_beats() {
    let mut bench = Bench::new(1);
    bench.in_flight = 1;
    let mut beats = 0;
    for _ in 0..250 {
        bench.counts.sent += 3;
        beats += bench.packet().run(4).1;
    }
    assert!((3..=6).contains(&beats), "{beats}: only the wish for the active cadence, four times a second");
    let (_, quiet) = bench.packet().run(15);
    assert!(quiet >= 2, "{quiet}");
}

#[test]
fn an_active_peer_is_answered_at_once_and_at_its_cadence() {
    let mut bench = Bench::new(1);
    bench.pass(50);
    assert_eq!(bench.beat(true).beats, 1);
    bench.pass(5);
    assert_eq!(bench.beat(true).beats, 0);
    let (_, beats) = bench.run(100);
    assert!((17..=21).contains(&beats), "{beats}");
}

#[test]
fn a_stalled_judge_does_not_convict() {
    let mut bench = Bench::in_state("alive");
    bench.pass(500); // our own process slept
    assert_eq!(bench.tick().changed, None);
    assert_eq!(bench.run(35).0, [], "and it is slower to judge for a while");
    assert!(bench.run(400).0.contains(&Verdict::Dead), "but not for ever");
}

#[test]
fn no_verdict_without_a_second_look() {
    let mut bench = Bench::in_state("alive");
    let mut ticks = 0;
    while !bench.detector.confirming {
        bench.now = bench.detector.due();
        bench.tick();
        ticks += 1;
        assert!(ticks < 100);
    }
    bench.packet().pass(1);
    assert_eq!(bench.tick().changed, None);
    assert_eq!(bench.state(), "alive");
}

#[test]
fn survived_silence_is_learned() {
    let mut bench = Bench::in_state("alive");
    bench.run(38); // nearly dead
    bench.beat(false);
    assert_eq!(bench.state(), "alive");
    assert!(!bench.run(52).0.contains(&Verdict::Dead), "one and a half times as long now");
    assert!(bench.run(30).0.contains(&Verdict::Dead));
}

#[test]
fn relapses_lengthen_probation() {
    let mut bench = Bench::in_state("dead");
    let mut lengths = Vec::new();
    for _ in 0..4 {
        bench.beat(false);
        let began = bench.now;
        while bench.state() != "alive" {
            bench.run(5);
            bench.beat(false);
        }
        lengths.push(bench.now - began);
        bench.run(400);
        assert_eq!(bench.state(), "dead");
    }
    assert!(lengths.is_sorted() && lengths[3] >= lengths[0] * 4, "{lengths:?}");
}

#[test]
fn a_peer_that_hears_nothing_of_us_is_unreachable() {
    let mut bench = Bench::in_state("alive");
    let mut verdicts = Vec::new();
    for _ in 0..60 {
        verdicts.extend(bench.run(5).0);
        verdicts.extend(bench.beat(false).changed.map(|(verdict, cause)| {
            assert_eq!(cause, if verdict == Verdict::Dead { Cause::Unheard } else { Cause::Heard });
            verdict
        }));
        if verdicts.contains(&Verdict::Dead) {
            return;
        }
    }
    panic!("beats that echo nothing for 300 ms: {verdicts:?}");
}

#[test]
fn round_trip_from_beats() {
    let mut bench = Bench::new(50);
    for sequence in 1..=60 {
        let ours = bench.detector.next_beat(bench.now);
        bench.pass(9); // 4 ms on the path, 5 ms with the peer
        let echo = Beat {
            is_active: true,
            sequence,
            sent_micros: u64::from(sequence) * 9000,
            echo_sequence: ours.sequence,
            echo_micros: ours.sent_micros,
            hold_micros: 5000,
        };
        bench.detector.handle(Event::Beat(echo), bench.now);
    }
    assert!(bench.detector.rtt().abs_diff(Duration::from_millis(4)) < Duration::from_millis(1));
    assert!(bench.detector.unechoed.is_empty());
    assert!(bench.detector.jitter < Duration::from_millis(1));
}

proptest::proptest! {
    // Whatever a peer sends, the judge neither panics nor asks for more than two beats at a time.
    #[test]
    fn arbitrary_events(events: Vec<(u8, u16, u32, u64, u32, u64, u32)>) {
        let mut bench = Bench::new(5);
        for (kind, wait, sequence, sent_micros, echo_sequence, echo_micros, hold_micros) in events {
            bench.now += Duration::from_micros(u64::from(wait) * 10);
            let beat = Beat { is_active: kind & 8 != 0, sequence, sent_micros, echo_sequence, echo_micros, hold_micros };
            let event = match kind % 4 {
                0 => Event::Beat(beat),
                1 => Event::RequestStarted(bench.counts),
                2 => Event::Tick(Sample { counts: Counts { received: sent_micros, sent: echo_micros }, in_flight: usize::from(kind & 4) }),
                _ => Event::Tick(Sample { counts: bench.counts, in_flight: 0 }),
            };
            let output = bench.detector.handle(event, bench.now);
            proptest::prop_assert!(output.beats <= 2);
            for _ in 0..output.beats {
                bench.detector.next_beat(bench.now);
            }
            proptest::prop_assert!(bench.detector.due() > bench.now);
            proptest::prop_assert!(bench.detector.due() <= bench.now + Duration::from_secs(10));
            proptest::prop_assert!(bench.detector.unechoed.len() <= UNECHOED_MAX);
        }
    }
}
