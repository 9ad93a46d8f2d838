//! How slow a client or an endpoint may be with what the gateway waits for: numbers and time, without I/O.
//!
//! Whoever is waited for is the one whose time runs. While an endpoint takes nothing, its client cannot send and owes nothing; while a
//! client sends nothing, its endpoint cannot answer and owes nothing. [`Pace`] keeps whose turn it is in one body of a request.
//!
//! A minimum rate is a credit of time: it begins at the grace, waiting spends it, each byte earns what the rate allows it, and it
//! never exceeds the grace. So neither what came fast long ago nor one long pause decides, but any stretch as long as the grace.

use std::time::{Duration, Instant};

/// How slow they may be; a time of zero: as slow as they like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    upload_idle_ms: u32,
    /// Bytes in a second.
    upload_rate_min: u32,
    upload_grace_ms: u32,
    download_idle_ms: u32,
    endpoint_idle_ms: u32,
    stream_idle_ms: u32,
}

/// What a policy says of them; what it does not say stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given {
    /// See [`Limits::upload_idle`].
    pub upload_idle_ms: Option<u32>,
    /// See [`Limits::with_rate`].
    pub upload_rate_min: Option<u32>,
    /// See [`Limits::with_rate`].
    pub upload_grace_ms: Option<u32>,
    /// See [`Limits::download_idle`].
    pub download_idle_ms: Option<u32>,
    /// See [`Limits::endpoint_idle`].
    pub endpoint_idle_ms: Option<u32>,
    /// See [`Limits::stream_idle`].
    pub stream_idle_ms: Option<u32>,
}

impl Default for Limits {
    /// nginx waits 60 s for a client or an endpoint; a response waits 30 s for its endpoint here, and so does an upload for its client.
    /// The rate is Kestrel's (240 bytes/s), over a time that bridges a handover between cells or a tunnel of a train.
    fn default() -> Self {
        Self {
            upload_idle_ms: 30_000,
            upload_rate_min: 240,
            upload_grace_ms: 30_000,
            download_idle_ms: 60_000,
            endpoint_idle_ms: 60_000,
            stream_idle_ms: 0,
        }
    }
}

impl Limits {
    /// None at all.
    pub const NONE: Self = Self {
        upload_idle_ms: 0,
        upload_rate_min: 0,
        upload_grace_ms: 0,
        download_idle_ms: 0,
        endpoint_idle_ms: 0,
        stream_idle_ms: 0,
    };

    /// How long a client may give nothing of a body that is waited for.
    pub fn upload_idle(&self) -> Option<Duration> {
        span(self.upload_idle_ms)
    }

    /// How long a client may take nothing of a response that is there.
    pub fn download_idle(&self) -> Option<Duration> {
        span(self.download_idle_ms)
    }

    /// How long an endpoint may take nothing of an upload that is there, or give nothing of a response that it has begun and whose
    /// length it has said.
    pub fn endpoint_idle(&self) -> Option<Duration> {
        span(self.endpoint_idle_ms)
    }

    /// How long nothing may pass either way, once a response has begun whose length nobody knows: a stream, which may well be silent.
    pub fn stream_idle(&self) -> Option<Duration> {
        span(self.stream_idle_ms)
    }

    /// These, but for what a policy says.
    #[must_use]
    pub fn with(self, given: &Given) -> Self {
        Self {
            upload_idle_ms: given.upload_idle_ms.unwrap_or(self.upload_idle_ms),
            upload_rate_min: given.upload_rate_min.unwrap_or(self.upload_rate_min),
            upload_grace_ms: given.upload_grace_ms.unwrap_or(self.upload_grace_ms),
            download_idle_ms: given.download_idle_ms.unwrap_or(self.download_idle_ms),
            endpoint_idle_ms: given.endpoint_idle_ms.unwrap_or(self.endpoint_idle_ms),
            stream_idle_ms: given.stream_idle_ms.unwrap_or(self.stream_idle_ms),
        }
    }

    /// With another time for clients that take nothing.
    #[must_use]
    pub fn with_download_idle(self, time: Duration) -> Self {
        Self { download_idle_ms: u32::try_from(time.as_millis()).unwrap_or(u32::MAX), ..self }
    }

    /// As they hold for this request. Calls of gRPC are streams in both directions from their first byte: only what holds for streams
    /// holds for them. Of a request out of a tunnel, the gateway at which it entered minds the client.
    #[must_use]
    pub fn of(self, is_grpc: bool, is_clients: bool) -> Self {
        let minds_client = is_clients && !is_grpc;
        Self {
            upload_idle_ms: if minds_client { self.upload_idle_ms } else { 0 },
            upload_rate_min: if minds_client { self.upload_rate_min } else { 0 },
            endpoint_idle_ms: if is_grpc { 0 } else { self.endpoint_idle_ms },
            ..self
        }
    }

    fn grace(&self) -> Duration {
        Duration::from_millis(self.upload_grace_ms.into())
    }
}

fn span(ms: u32) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms.into()))
}

/// Who is waited for, in the body of a request, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nobody: it is asked for by nobody now.
    Nobody,
    /// Whoever sends it.
    Sender(Instant),
    /// Whoever is to take it.
    Taker(Instant),
}

/// In which way a sender is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooSlow {
    /// It gave nothing for too long.
    Idle,
    /// It gave too little in its time.
    Rate,
}

/// The body of a request on its way.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    limits: Limits,
    turn: Turn,
    /// For how long the sender may still be waited for.
    credit: Duration,
}

impl Pace {
    /// Of a body that nobody has asked for.
    pub fn new(limits: Limits) -> Self {
        Self { limits, turn: Turn::Nobody, credit: limits.grace() }
    }

    /// Whose turn it is.
    pub fn turn(&self) -> Turn {
        self.turn
    }

    /// There is room for more of it, and no more of it.
    pub fn awaits(&mut self, now: Instant) {
        if !matches!(self.turn, Turn::Sender(_)) {
            self.turn = Turn::Sender(now);
        }
    }

    /// The sender gave so many bytes; until more is asked for, it is the taker's turn.
    pub fn gave(&mut self, bytes: usize, now: Instant) {
        if let Turn::Sender(since) = self.turn {
            self.credit = self.credit.saturating_sub(now.saturating_duration_since(since));
        }
        self.turn = Turn::Taker(now);
        let grace = self.limits.grace();
        if self.credit < grace && self.limits.upload_rate_min > 0 {
            let nanos = (bytes as u64).saturating_mul(1_000_000_000) / u64::from(self.limits.upload_rate_min);
            self.credit = self.credit.saturating_add(Duration::from_nanos(nanos)).min(grace);
        }
    }

    /// The taker took what had come before.
    pub fn took(&mut self, now: Instant) {
        self.turn = Turn::Taker(now);
    }

    /// Nobody asks for it any more, or not yet.
    pub fn rests(&mut self) {
        self.turn = Turn::Nobody;
    }

    /// When the sender, if it is its turn, is too slow unless it gives something before; the time before `free` does not count.
    pub fn due(&self, free: Option<Instant>) -> Option<(Instant, TooSlow)> {
        let Turn::Sender(since) = self.turn else { return None };
        let since = free.map_or(since, |free| since.max(free));
        let idle = self.limits.upload_idle().map(|idle| (since + idle, TooSlow::Idle));
        let rate = (self.limits.upload_rate_min > 0).then(|| (since + self.credit, TooSlow::Rate));
        match (idle, rate) {
            // Of one moment, the plainer word.
            (Some(idle), Some(rate)) => Some(if idle.0 <= rate.0 { idle } else { rate }),
            (one, other) => one.or(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits =
        Limits { upload_idle_ms: 20_000, upload_rate_min: 100, upload_grace_ms: 10_000, ..Limits::NONE };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Sends pieces, each asked for at once and given after so many milliseconds; says after how many and how it was too slow.
    fn sent(limits: Limits, pieces: impl IntoIterator<Item = (u64, usize)>) -> Option<(usize, TooSlow)> {
        let mut now = Instant::now();
        let mut pace = Pace::new(limits);
        for (n, (wait, bytes)) in pieces.into_iter().enumerate() {
            pace.awaits(now);
            now += ms(wait);
            if let Some((due, how)) = pace.due(None)
                && due <= now
            {
                return Some((n, how));
            }
            pace.gave(bytes, now);
        }
        None
    }

    #[test]
    fn what_is_too_slow() {
        let rate_only = Limits { upload_idle_ms: 0, ..LIMITS };
        let idle_only = Limits { upload_rate_min: 0, ..LIMITS };
        for (limits, what, pieces, expected) in [
            (LIMITS, "a byte now and then", vec![(4_000, 1); 9], Some((2, TooSlow::Rate))),
            (LIMITS, "twice the rate", vec![(1_000, 200); 100], None),
            (LIMITS, "the rate itself, in few pieces", vec![(9_999, 1_000); 100], None),
            (LIMITS, "a little less", vec![(1_000, 99); 2_000], Some((900, TooSlow::Rate))),
            (LIMITS, "nothing for as long as the grace", vec![(10_000, 1_000)], Some((0, TooSlow::Rate))),
            // What came fast does not count for ever.
            (
                LIMITS,
                "fast, then a byte now and then",
                vec![(1, 1 << 20), (6_000, 1), (6_000, 1)],
                Some((2, TooSlow::Rate)),
            ),
            (rate_only, "pauses that the rate makes up for", vec![(9_000, 5_000); 50], None),
            (idle_only, "a byte now and then", vec![(19_999, 1); 50], None),
            (idle_only, "nothing for too long", vec![(1, 1), (20_000, 1)], Some((1, TooSlow::Idle))),
            (Limits::NONE, "no limit", vec![(1_000_000_000, 1); 3], None),
        ] {
            assert_eq!(sent(limits, pieces), expected, "{what}");
        }
    }

    #[test]
    fn whose_turn_it_is() {
        let now = Instant::now();
        let mut pace = Pace::new(LIMITS);
        assert_eq!((pace.turn(), pace.due(None)), (Turn::Nobody, None));
        pace.awaits(now);
        pace.awaits(now + ms(5));
        assert_eq!(pace.turn(), Turn::Sender(now), "asking again is no new wait");
        assert_eq!(pace.due(None), Some((now + ms(10_000), TooSlow::Rate)));
        assert_eq!(pace.due(Some(now + ms(300))), Some((now + ms(10_300), TooSlow::Rate)), "what is not its fault");
        pace.gave(10, now + ms(1_000));
        // However long the other side takes for it, the sender owes nothing.
        assert_eq!((pace.turn(), pace.due(None)), (Turn::Taker(now + ms(1_000)), None));
        pace.awaits(now + ms(500_000));
        assert_eq!(pace.due(None), Some((now + ms(500_000 + 9_100), TooSlow::Rate)), "10 bytes earn 100 ms");
        pace.rests();
        assert_eq!(pace.due(None), None);
        pace.took(now);
        assert_eq!(pace.turn(), Turn::Taker(now));
    }

    #[test]
    fn what_holds_for_whom() {
        let all = Limits { stream_idle_ms: 7, ..Limits::default() };
        assert_eq!(all.of(false, true), all);
        let grpc = all.of(true, true);
        assert_eq!((grpc.upload_idle(), grpc.upload_rate_min, grpc.endpoint_idle()), (None, 0, None));
        assert_eq!((grpc.stream_idle(), grpc.download_idle()), (all.stream_idle(), all.download_idle()));
        let peer = all.of(false, false);
        assert_eq!((peer.upload_idle(), peer.upload_rate_min, peer.endpoint_idle()), (None, 0, all.endpoint_idle()));
        let given = Given { upload_rate_min: Some(0), download_idle_ms: Some(5), ..Given::default() };
        let expected = Limits { upload_rate_min: 0, download_idle_ms: 5, ..all };
        assert_eq!(all.with(&given), expected);
        assert_eq!(all.with(&Given::default()), all);
        assert_eq!(all.with_download_idle(ms(5)).download_idle(), Some(ms(5)));
    }

    proptest! {
        /// Who keeps to the rate over every stretch as long as the grace is never too slow, however it is cut; who stays below half of it
        /// is found out before twice the grace.
        #[test]
        fn the_rate_decides_and_nothing_else(waits in prop::collection::vec(1_u64..9_999, 1..200), more in 0_usize..1_000) {
            let rate = Limits { upload_idle_ms: 0, ..LIMITS };
            let bytes = |wait: u64| usize::try_from(wait.div_ceil(10)).unwrap();
            let honest: Vec<_> = waits.iter().map(|wait| (*wait, bytes(*wait) + more)).collect();
            prop_assert_eq!(sent(rate, honest), None);
            let slow: Vec<_> = waits.iter().map(|wait| (*wait, bytes(*wait) / 2)).collect();
            let found = sent(rate, slow.clone());
            let total = waits.iter().sum::<u64>();
            prop_assert!(total < 20_000 || found.is_some(), "{total} ms");
        }
    }
}
