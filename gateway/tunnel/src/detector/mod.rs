//! Is the peer alive? Decided from what was heard of it, without I/O.
//!
//! Both sides send beats in QUIC datagrams and each judges what it **receives**, so that neither our own
//! congestion window nor a backed-off probe timer can blind the judge. Any datagram from the peer is life, not
//! only a beat; a beat is sent only when nothing else was for one interval, so a loaded tunnel sends few.
//!
//! | cadence | when | a beat after | suspect after silence of | dead after silence of |
//! | --- | --- | --- | --- | --- |
//! | active | requests in flight, or within the last second | R/4, 5–25 ms | 3 beats, 20 ms | 6 beats, 40 ms, 1.5 × learned silence |
//! | idle | else | 1 s | 3 beats | 6 beats |
//!
//! A gateway may keep hundreds of tunnels that carry nothing, so idle beats are rare: QUIC's own idle timeout (3 s) finds an idle
//! peer dead, while the first request finds it dead as fast as on a busy tunnel.
//!
//! Every threshold gets 4 × jitter and a millisecond or two on top. The first request after idleness sends two
//! beats at once and starts the clock anew, plus one round trip. Three rules keep a verdict honest:
//!
//! - **A stalled judge does not convict.** When our own tick comes late, the lateness is taken off the silence, and
//!   thresholds grow while that keeps happening (Lifeguard's local health multiplier). And no verdict worsens on the
//!   tick that finds the silence: the caller first lets the socket be drained, then ticks once more.
//! - **Learned silence.** A silence that the peer survived is one it may fall into again: for a minute, death needs one
//!   and a half times as long (bounded).
//! - **Dead is soft.** The connection stays; any sign of life leads to probation, and three beats of it to Up.
//!
//! A peer that hears nothing of us says so by not echoing our beats: that is a broken path too ([`Cause::Unheard`]).

pub mod beat;
mod learned;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use self::{beat::Beat, learned::LearnedSilence};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Thresholds. The defaults suit gateways that share two cores with everything else: a process there is
/// off the processor for 10–20 ms at times, so the floors stand above that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectorConfig {
    /// Shortest active beat interval; the floor of R/4.
    pub beat_interval_min: Duration,
    /// Longest active beat interval.
    pub beat_interval_max: Duration,
    /// Beat interval without traffic.
    pub idle_interval: Duration,
    /// Beat interval towards a peer taken for dead.
    pub dead_interval: Duration,
    /// Silence below which nobody is suspected.
    pub suspect_floor: Duration,
    /// Silence below which nobody is dead.
    pub dead_floor: Duration,
    /// How long the active cadence outlasts the last request.
    pub active_linger: Duration,
    /// Upper bound of what learned silence can ask for.
    pub learned_silence_max: Duration,
    /// Beats of a revived peer before it counts as up.
    pub probation_beats: u32,
    /// Shortest probation; doubles with every relapse within a minute.
    pub probation_min: Duration,
    /// Longest probation.
    pub probation_max: Duration,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        Self {
            beat_interval_min: Duration::from_millis(5),
            beat_interval_max: Duration::from_millis(25),
            idle_interval: Duration::from_secs(1),
            dead_interval: Duration::from_millis(100),
            suspect_floor: Duration::from_millis(20),
            dead_floor: Duration::from_millis(40),
            active_linger: Duration::from_secs(1),
            learned_silence_max: Duration::from_millis(250),
            probation_beats: 3,
            probation_min: Duration::from_millis(20),
            probation_max: Duration::from_secs(2),
        }
    }
}

/// Judge of one connection.
#[derive(Debug)]
pub struct Detector {
    config: DetectorConfig,
    state: State,
    /// Zero of our beat clock.
    epoch: Instant,
    /// The last sign of life, moved forward by our own stalls.
    heard_at: Instant,
    /// When the active cadence began: silence before it was agreed.
    armed_at: Instant,
    active_until: Instant,
    /// The peer asked for the active cadence until then.
    peer_active_until: Instant,
    sent_at: Instant,
    beat_sent_at: Instant,
    /// Beats since `counts` were taken.
    beats_sent: u8,
    due: Instant,
    counts: Counts,
    /// A verdict awaits its second look.
    confirming: bool,
    lateness: u32,
    lateness_decays_at: Instant,
    rtt: Duration,
    jitter: Duration,
    learned: LearnedSilence,
    flaps: u32,
    flaps_decay_at: Instant,
    sequence: u32,
    /// The peer's last beat and when it came.
    last_beat: Option<(Beat, Instant)>,
    /// Our beats that the peer has not echoed yet: number and time; bounded.
    unechoed: VecDeque<(u32, Instant)>,
}

impl Detector {
    /// Starts with a peer just proven alive (a handshake is proof) and `rtt` as QUIC measured it.
    pub fn new(config: DetectorConfig, now: Instant, rtt: Duration) -> Self {
        Self {
            config,
            state: State::Alive,
            epoch: now,
            heard_at: now,
            armed_at: now,
            active_until: now,
            peer_active_until: now,
            sent_at: now,
            beat_sent_at: now,
            beats_sent: 0,
            due: now + config.idle_interval,
            counts: Counts { received: 0, sent: 0 },
            confirming: false,
            lateness: 0,
            lateness_decays_at: now,
            rtt: rtt.min(RTT_MAX),
            jitter: Duration::ZERO,
            learned: LearnedSilence::default(),
            flaps: 0,
            flaps_decay_at: now,
            sequence: 0,
            last_beat: None,
            unechoed: VecDeque::new(),
        }
    }

    /// Takes one event; says which beats to send now and how the verdict changed.
    pub fn handle(&mut self, event: Event, now: Instant) -> Output {
        let before = self.verdict();
        let mut output = Output::default();
        let mut cause = Cause::Heard;
        match event {
            Event::RequestStarted(counts) => {
                self.observe(counts, now);
                output.beats = self.arm(now);
            }
            Event::Beat(beat) => {
                (output.beats, cause) = self.on_beat(beat, now);
            }
            Event::Tick(sample) => (output.beats, cause) = self.on_tick(sample, now),
            Event::Closed => {
                self.state = State::Dead;
                cause = Cause::Closed;
            }
        }
        if output.beats > 0 {
            self.sent_at = now;
            self.beat_sent_at = now;
            self.beats_sent = self.beats_sent.saturating_add(output.beats);
        }
        self.schedule(now);
        let after = self.verdict();
        output.changed = (before != after).then_some((after, cause));
        output
    }

    /// The next beat to send; call once for each that [`Output::beats`] asks for.
    pub fn next_beat(&mut self, now: Instant) -> Beat {
        self.sequence = self.sequence.wrapping_add(1);
        if self.unechoed.len() == UNECHOED_MAX {
            // Keep the oldest: its age is what counts.
            self.unechoed.pop_back();
        }
        self.unechoed.push_back((self.sequence, now));
        let (echo_sequence, echo_micros, hold) = match self.last_beat {
            Some((beat, at)) => (beat.sequence, beat.sent_micros, now.saturating_duration_since(at)),
            None => (0, 0, Duration::ZERO),
        };
        Beat {
            is_active: self.is_active(now),
            sequence: self.sequence,
            sent_micros: self.clock_micros(now),
            echo_sequence,
            echo_micros,
            hold_micros: u32::try_from(hold.as_micros()).unwrap_or(u32::MAX),
        }
    }

    /// When the next [`Event::Tick`] is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The verdict as it stands.
    pub fn verdict(&self) -> Verdict {
        match self.state {
            State::Alive => Verdict::Up,
            State::Suspect | State::Probation { .. } => Verdict::Suspect,
            State::Dead => Verdict::Dead,
        }
    }

    /// Smoothed round trip of beats.
    pub fn rtt(&self) -> Duration {
        self.rtt
    }

    /// True while the active cadence holds; a request then needs no [`Event::RequestStarted`].
    pub fn is_active(&self, now: Instant) -> bool {
        now < self.active_until || matches!(self.state, State::Probation { .. })
    }

    /// Starts the active cadence; returns the beats that ask the peer for it.
    fn arm(&mut self, now: Instant) -> u8 {
        let was_active = self.is_active(now);
        self.active_until = now + self.config.active_linger;
        if was_active || matches!(self.state, State::Dead) {
            return 0;
        }
        self.armed_at = now;
        self.confirming = false;
        2 // one may be lost, and the verdict must not wait for it
    }

    fn on_beat(&mut self, beat: Beat, now: Instant) -> (u8, Cause) {
        if let Some((before, at)) = self.last_beat {
            if beat.sequence.wrapping_sub(before.sequence) as i32 <= 0 {
                return (0, Cause::Heard); // duplicated or overtaken
            }
            let sent_apart = Duration::from_micros(beat.sent_micros.saturating_sub(before.sent_micros));
            let deviation = now.saturating_duration_since(at).abs_diff(sent_apart);
            self.jitter = ewma(self.jitter, deviation, 16).min(JITTER_MAX);
        }
        if beat.echo_sequence != 0 {
            let there_and_back =
                self.clock_micros(now).saturating_sub(beat.echo_micros).saturating_sub(u64::from(beat.hold_micros));
            // An old echo measures the peer's idleness, not the path.
            if beat.hold_micros < HOLD_MICROS_MAX {
                self.rtt = ewma(self.rtt, Duration::from_micros(there_and_back).min(RTT_MAX), 8);
            }
            while self
                .unechoed
                .front()
                .is_some_and(|(sequence, _)| beat.echo_sequence.wrapping_sub(*sequence) as i32 >= 0)
            {
                self.unechoed.pop_front();
            }
        }
        self.last_beat = Some((beat, now));
        self.heard(now);
        let is_peer_new_to_it = now >= self.peer_active_until;
        if beat.is_active {
            self.peer_active_until = now + self.config.active_linger;
        }
        if let State::Probation { beats, .. } = &mut self.state {
            *beats += 1;
        }
        let mut cause = Cause::Heard;
        if self.is_unheard(now) {
            self.convict(now);
            cause = Cause::Unheard;
        }
        // Answer at once a peer that just became active: it waits for a first sign of life.
        (u8::from(beat.is_active && is_peer_new_to_it), cause)
    }

    fn on_tick(&mut self, sample: Sample, now: Instant) -> (u8, Cause) {
        self.account_stall(now);
        self.observe(sample.counts, now);
        if sample.in_flight > 0 {
            if !self.is_active(now) {
                self.armed_at = now;
            }
            self.active_until = now + self.config.active_linger;
        }
        self.relax(now);
        self.judge(now);
        let interval = self.beat_interval(now);
        let is_quiet = now.saturating_duration_since(self.sent_at) + TICK_SLACK >= interval;
        // Under load other packets prove our life, but only beats carry the wish for the active cadence.
        let is_wish_stale =
            self.is_active(now) && now.saturating_duration_since(self.beat_sent_at) >= self.config.active_linger / 4;
        let beats = u8::from(is_quiet || is_wish_stale);
        (beats, if matches!(self.state, State::Alive) { Cause::Heard } else { Cause::Silence })
    }

    fn observe(&mut self, counts: Counts, now: Instant) {
        if counts.received != self.counts.received {
            self.heard(now);
        }
        // Beats count as datagrams too, and so do the acknowledgements of the peer's: neither may stand in for the next beat.
        let others = counts.sent.saturating_sub(self.counts.sent).saturating_sub(u64::from(self.beats_sent));
        if others >= 2 {
            self.sent_at = self.sent_at.max(now);
        }
        self.beats_sent = 0;
        self.counts = counts;
    }

    /// Our own lateness is not the peer's silence.
    fn account_stall(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.due);
        if late > self.config.beat_interval_min {
            self.heard_at = (self.heard_at + late).min(now);
            self.armed_at = (self.armed_at + late).min(now);
            if let Some((_, oldest)) = self.unechoed.front_mut() {
                *oldest = (*oldest + late).min(now);
            }
            self.confirming = false;
            self.lateness = (self.lateness + 1).min(LATENESS_MAX);
            self.lateness_decays_at = now + Duration::from_secs(1);
        } else if self.lateness > 0 && now >= self.lateness_decays_at {
            self.lateness -= 1;
            self.lateness_decays_at = now + Duration::from_secs(1);
        }
    }

    fn heard(&mut self, now: Instant) {
        // Only a silence during which beats were due teaches anything.
        if self.armed_at < self.heard_at && self.is_active(now) {
            self.learned.record(now.saturating_duration_since(self.heard_at), now, self.epoch);
        }
        self.heard_at = now;
        self.confirming = false;
        self.state = match self.state {
            State::Alive | State::Suspect => State::Alive,
            State::Probation { beats, until } => State::Probation { beats, until },
            State::Dead => {
                let hold = self.config.probation_min * 2u32.saturating_pow(self.flaps.min(10));
                State::Probation { beats: 0, until: now + hold.min(self.config.probation_max) }
            }
        };
    }

    /// What gets better by time alone.
    fn relax(&mut self, now: Instant) {
        if let State::Probation { beats, until } = self.state
            && beats >= self.config.probation_beats
            && now >= until
        {
            self.state = State::Alive;
        }
        if self.flaps > 0 && now >= self.flaps_decay_at {
            self.flaps -= 1;
            self.flaps_decay_at = now + FLAP_MEMORY;
        }
    }

    fn judge(&mut self, now: Instant) {
        let silence = now.saturating_duration_since(self.heard_at.max(self.armed_at));
        let (suspect_after, dead_after) = self.thresholds(now);
        let next = match self.state {
            State::Dead => return,
            _ if silence >= dead_after => State::Dead,
            State::Alive if silence >= suspect_after => State::Suspect,
            _ => {
                self.confirming = false;
                return;
            }
        };
        if !self.confirming {
            self.confirming = true; // the socket may hold the proof of the contrary: look once more
            return;
        }
        self.confirming = false;
        match next {
            State::Dead => self.convict(now),
            other => self.state = other,
        }
    }

    fn convict(&mut self, now: Instant) {
        if !matches!(self.state, State::Dead) {
            self.flaps = (self.flaps + 1).min(16);
            self.flaps_decay_at = now + FLAP_MEMORY;
            self.state = State::Dead;
            self.unechoed.clear();
        }
    }

    /// Silence after which the peer is suspect, and dead.
    fn thresholds(&self, now: Instant) -> (Duration, Duration) {
        let config = &self.config;
        let is_active = self.is_active(now);
        let interval = if is_active { self.active_interval() } else { config.idle_interval };
        let learned = (self.learned.longest(now, self.epoch) * 3 / 2).min(config.learned_silence_max);
        let slack = self.jitter * 4 + Duration::from_millis(1);
        let suspect = (interval * 3).max(config.suspect_floor) + slack;
        let dead = (interval * 6).max(config.dead_floor).max(learned) + slack + Duration::from_millis(1);
        // Since the active cadence began, the peer has not even had the time to answer.
        let first_answer = if self.heard_at <= self.armed_at { self.rtt } else { Duration::ZERO };
        let factor = 1 + self.lateness;
        (suspect * factor + first_answer, dead.max(suspect) * factor + first_answer)
    }

    /// A fresh beat that still does not echo what we sent long ago: the peer lives, but our way to it is broken.
    fn is_unheard(&self, now: Instant) -> bool {
        let Some((_, oldest)) = self.unechoed.front() else { return false };
        let (_, dead_after) = self.thresholds(now);
        let age = now.saturating_duration_since((*oldest).max(self.armed_at));
        self.is_active(now) && self.unechoed.len() >= 6 && age >= dead_after * 2 + self.rtt * 2
    }

    fn active_interval(&self) -> Duration {
        (self.rtt / 4).clamp(self.config.beat_interval_min, self.config.beat_interval_max)
    }

    /// How often the peer should hear of us: as often as either side asks for.
    fn beat_interval(&self, now: Instant) -> Duration {
        match self.state {
            State::Dead => self.config.dead_interval, // enough to find a healed path before a new handshake does
            _ if self.is_active(now) || now < self.peer_active_until => self.active_interval(),
            _ => self.config.idle_interval,
        }
    }

    fn schedule(&mut self, now: Instant) {
        let beat = self.sent_at + self.beat_interval(now);
        let next = if self.confirming {
            now + CONFIRM_AFTER
        } else if matches!(self.state, State::Dead) {
            beat
        } else {
            let (suspect_after, dead_after) = self.thresholds(now);
            let threshold = if matches!(self.state, State::Alive) { suspect_after } else { dead_after };
            beat.min(self.heard_at.max(self.armed_at) + threshold)
        };
        self.due = next.max(now + TICK_MIN);
    }

    fn clock_micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// A request begins; needed only while the cadence is idle, harmless otherwise. What came before it is old news.
    RequestStarted(Counts),
    /// The time of [`Detector::due`] has come; the caller has let the socket be drained.
    Tick(Sample),
    /// A beat arrived.
    Beat(Beat),
    /// The peer closed the connection, or proved by a stateless reset that it does not know it.
    Closed,
}

/// What the connection did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Datagrams since the connection began.
    pub counts: Counts,
    /// Requests without a complete answer.
    pub in_flight: usize,
}

/// UDP datagrams of a connection, counted from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// From the peer.
    pub received: u64,
    /// To the peer.
    pub sent: u64,
}

/// What to do about an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Output {
    /// Beats to send now.
    pub beats: u8,
    /// The new verdict and why, if it changed.
    pub changed: Option<(Verdict, Cause)>,
}

/// Whether to route to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Alive.
    Up,
    /// Silent for longer than usual, or just back: better elsewhere.
    Suspect,
    /// Unreachable: elsewhere only.
    Dead,
}

/// Why a verdict changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The peer was heard.
    Heard,
    /// The peer was silent.
    Silence,
    /// The peer is heard, but hears nothing of us.
    Unheard,
    /// The peer closed the connection.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Alive,
    Suspect,
    Dead,
    Probation { beats: u32, until: Instant },
}

fn ewma(average: Duration, sample: Duration, weight: u32) -> Duration {
    average - average / weight + sample / weight
}

/// A round trip above this is a broken clock or a lie.
const RTT_MAX: Duration = Duration::from_secs(2);
/// Bound on the jitter term: 4 × this is added to thresholds, and a lying peer must not stretch them further.
const JITTER_MAX: Duration = Duration::from_millis(10);
const HOLD_MICROS_MAX: u32 = 1_000_000;
/// Multiplier bound: thresholds at most four times as long on a machine that keeps stalling us.
const LATENESS_MAX: u32 = 3;
const FLAP_MEMORY: Duration = Duration::from_secs(60);
const UNECHOED_MAX: usize = 64;
/// Time for the runtime to poll the socket between the finding and the verdict.
const CONFIRM_AFTER: Duration = Duration::from_millis(1);
/// Resolution of the timers that drive us.
const TICK_MIN: Duration = Duration::from_millis(1);
const TICK_SLACK: Duration = Duration::from_micros(500);
