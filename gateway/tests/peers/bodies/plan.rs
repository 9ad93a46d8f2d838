//! What is sent, drawn from a seed, and what may arrive of it.

use http::HeaderMap;

/// SplitMix64: the same numbers for a seed on every machine and with every version of every crate.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http10,
    Http11,
    Http2,
}

/// When the backend answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Once it has read the request.
    After,
    /// The head and all but the last piece of the response while it reads the request, that one after it.
    Meanwhile,
    /// All of it before it reads anything of the request's body.
    Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `content-length`.
    Length,
    /// `chunked`, or HTTP/2 without a length.
    Unknown,
    /// The end of the connection: responses of HTTP/1.1 only.
    Eof,
}

/// How a message ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Whole,
    /// Before its end, HTTP/1.1 closes in order; HTTP/2 ends the stream with fewer bytes than it said, or resets it as `Reset(CANCEL)`.
    Cut,
    /// HTTP/1.1 resets the connection; HTTP/2 the stream, with this code.
    Reset(u32),
}

/// One message.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) framing: Framing,
    pub(crate) seed: u64,
    /// Bytes of each piece that is written on its own.
    pub(crate) pieces: Vec<usize>,
    pub(crate) trailers: bool,
    pub(crate) end: End,
    /// Of 1,000 parts of the message, so many are sent before it is cut.
    pub(crate) cut_at: usize,
}

impl Shape {
    fn draw(rng: &mut Rng, from: Speaks, is_request: bool, allow_cut: bool) -> Self {
        let framing = match (from, is_request) {
            (Speaks::Http10, true) => Framing::Length,
            (Speaks::Http2, _) | (_, true) => rng.pick(&[Framing::Length, Framing::Unknown]),
            _ => rng.pick(&[Framing::Length, Framing::Unknown, Framing::Unknown, Framing::Eof]),
        };
        let (count, most) = match rng.below(12) {
            0 => (0, 1),
            1 => (1 + rng.below(300), 12),
            2 => (1 + rng.below(12), 60_000),
            3..=5 => (1 + rng.below(3), 20_000),
            _ => (1 + rng.below(8), 1_500),
        };
        let end = match rng.below(if allow_cut { 5 } else { 1 }) {
            0..=2 => End::Whole,
            // There is nothing to cut.
            _ if count == 0 && framing == Framing::Length => End::Whole,
            3 => End::Cut,
            // NO_ERROR, INTERNAL_ERROR, CANCEL, PROTOCOL_ERROR, ENHANCE_YOUR_CALM, one that nobody knows
            _ => End::Reset(rng.pick(&[0, 0, 2, 8, 8, 1, 11, 999])),
        };
        Self {
            framing,
            seed: rng.next(),
            pieces: (0..count).map(|_| 1 + rng.below(most)).collect(),
            trailers: framing == Framing::Unknown && rng.one_in(3),
            end,
            cut_at: rng.below(1_000),
        }
    }

    pub(crate) fn length(&self) -> usize {
        self.pieces.iter().sum()
    }

    /// All of its body.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut rng = Rng(self.seed);
        let mut bytes = Vec::with_capacity(self.length() + 8);
        while bytes.len() < self.length() {
            bytes.extend_from_slice(&rng.next().to_le_bytes());
        }
        bytes.truncate(self.length());
        bytes
    }

    pub(crate) fn checksum(&self) -> String {
        format!("{:016x}", self.seed)
    }

    /// True when its receiver must take it for whole: also one that was cut, if its end is the end of the connection.
    pub(crate) fn is_whole(&self) -> bool {
        self.end == End::Whole || (self.framing == Framing::Eof && self.end == End::Cut)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) number: usize,
    pub(crate) client: Speaks,
    pub(crate) order: Order,
    pub(crate) request: Shape,
    pub(crate) response: Shape,
}

impl Case {
    pub(crate) fn draw(rng: &mut Rng, number: usize, client: Speaks, backend: Speaks) -> Self {
        let client = if client == Speaks::Http11 && rng.one_in(6) { Speaks::Http10 } else { client };
        // One end at a time is broken, mostly.
        let breaks = rng.below(5);
        Self {
            number,
            client,
            order: rng.pick(&[Order::After, Order::After, Order::Meanwhile, Order::Before]),
            request: Shape::draw(rng, client, true, breaks <= 1 || breaks == 4),
            response: Shape::draw(rng, backend, false, breaks >= 2),
        }
    }

    /// The backend must get all of the request.
    pub(crate) fn must_arrive(&self) -> bool {
        let holds =
            self.order == Order::Meanwhile && self.response.end == End::Whole && !self.response.pieces.is_empty();
        self.request.is_whole() && (self.order == Order::After || holds)
    }

    /// The client must get all of the response.
    pub(crate) fn must_return(&self) -> bool {
        self.request.is_whole() && self.response.is_whole()
    }
}

/// What came of a message.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) status: u16,
    pub(crate) bytes: Vec<u8>,
    pub(crate) trailers: HeaderMap,
    /// Its receiver takes it for whole.
    pub(crate) is_whole: bool,
    /// How he knows that it is not.
    pub(crate) why: String,
}

impl Received {
    pub(crate) fn broke(mut self, why: impl ToString) -> Self {
        (self.is_whole, self.why) = (false, why.to_string());
        self
    }

    /// Byte for byte, or the receiver can tell.
    pub(crate) fn check(&self, sent: &Shape, must: bool, trailers_pass: bool) -> Result<(), String> {
        let bytes = sent.bytes();
        let (got, all) = (self.bytes.len(), bytes.len());
        if !bytes.starts_with(&self.bytes) {
            let at = self.bytes.iter().zip(&bytes).position(|(a, b)| a != b).unwrap_or(all);
            return Err(format!("{got} bytes of {all} came, other ones from {at} on"));
        }
        if self.is_whole && (!sent.is_whole() || (got < all && sent.end == End::Whole)) {
            return Err(format!("{got} bytes of {all} look whole"));
        }
        if !self.is_whole {
            return if must { Err(format!("broken after {got} bytes of {all}: {}", self.why)) } else { Ok(()) };
        }
        let checksum = self.trailers.get("x-checksum").map(|value| value.to_str().unwrap_or("?"));
        let right = if sent.trailers { Some(sent.checksum()) } else { None };
        if trailers_pass && checksum != right.as_deref() {
            return Err(format!("trailers are {:?}", self.trailers));
        }
        Ok(())
    }
}
