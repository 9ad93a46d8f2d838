//! What the gateway behind a tunnel says of its part of a request: `mesh-ledger`, a field of its response.
//!
//! `1`, eight numbers, a digit that says which addresses follow, and those. A number is digits of base 64 (RFC 4648 §5), five bits
//! each, lowest first; the sixth bit says that another follows. An address is its bytes and its port's, as plain base 64. There is
//! one way to write each ledger, and only that one is read. Whoever does not know the version has heard nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The part of the far gateway, from the head of the request to the head of the response. Times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Far {
    /// Until an endpoint was first tried: in the gateway's own queues.
    pub queue: u32,
    /// In attempts that failed, and between attempts.
    pub lost: u32,
    /// For a stream to the endpoint, which allows only so many.
    pub wait: u32,
    /// For connections to endpoints, those that did not come about as well.
    pub connect: u32,
    /// For the rest of the request to come in.
    pub upload: u32,
    /// For the endpoint to answer.
    pub first_byte: u32,
    /// Attempts made.
    pub attempts: u32,
    /// Status of the response.
    pub status: u32,
    /// The endpoint that answered, or was last tried.
    pub endpoint: Option<SocketAddr>,
    /// The one that cost most without an answer.
    pub lost_at: Option<SocketAddr>,
}

/// The text of a field.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    bytes: [u8; TEXT_BYTES_MAX],
    len: usize,
}

impl Far {
    /// As the field says it.
    pub fn encode(&self) -> Text {
        let mut text = Text { bytes: [0; TEXT_BYTES_MAX], len: 0 };
        text.push(VERSION);
        for number in self.numbers() {
            text.number(number);
        }
        text.digit(kind(self.endpoint) | kind(self.lost_at) << 2);
        text.address(self.endpoint);
        text.address(self.lost_at);
        text
    }

    /// What a field says; `None` for anything that [`encode`](Self::encode) does not write.
    pub fn decode(text: &[u8]) -> Option<Self> {
        let mut rest = Reader(text.strip_prefix(&[VERSION])?);
        let mut numbers = [0; NUMBERS];
        for number in &mut numbers {
            *number = rest.number()?;
        }
        let kinds = rest.digit()?;
        let (endpoint, lost_at) = (rest.address(kinds & 3)?, rest.address(kinds >> 2)?);
        let [queue, lost, wait, connect, upload, first_byte, attempts, status] = numbers;
        let far = Self { queue, lost, wait, connect, upload, first_byte, attempts, status, endpoint, lost_at };
        rest.0.is_empty().then_some(far)
    }

    fn numbers(&self) -> [u32; NUMBERS] {
        [self.queue, self.lost, self.wait, self.connect, self.upload, self.first_byte, self.attempts, self.status]
    }
}

impl Text {
    /// The value of the field.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    fn digit(&mut self, value: u8) {
        self.push(DIGITS.get(usize::from(value & 63)).copied().unwrap_or_default());
    }

    fn number(&mut self, mut number: u32) {
        while number > 31 {
            self.digit((number & 31) as u8 | 32);
            number >>= 5;
        }
        self.digit(number as u8);
    }

    fn address(&mut self, address: Option<SocketAddr>) {
        let Some(address) = address else { return };
        match address.ip() {
            IpAddr::V4(ip) => ip.octets().as_chunks().0.iter().for_each(|bytes: &[u8; 2]| self.bytes_of(*bytes)),
            IpAddr::V6(ip) => ip.octets().as_chunks().0.iter().for_each(|bytes: &[u8; 2]| self.bytes_of(*bytes)),
        }
        self.bytes_of(address.port().to_be_bytes());
    }

    /// 16 bits are three digits here, the first of four bits: no remainder is carried from one pair to the next.
    fn bytes_of(&mut self, bytes: [u8; 2]) {
        let bits = u16::from_be_bytes(bytes);
        self.digit((bits >> 12) as u8);
        self.digit((bits >> 6 & 63) as u8);
        self.digit((bits & 63) as u8);
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn digit(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        VALUES.get(usize::from(*first)).copied().filter(|value| *value < 64)
    }

    fn number(&mut self) -> Option<u32> {
        let (mut number, mut shift) = (0_u64, 0);
        loop {
            let digit = self.digit()?;
            number |= u64::from(digit & 31) << shift;
            if digit < 32 {
                // Nothing is written with a digit more than it needs.
                return (digit > 0 || shift == 0).then(|| u32::try_from(number).ok()).flatten();
            }
            shift += 5;
            if shift > 30 {
                return None;
            }
        }
    }

    fn address(&mut self, kind: u8) -> Option<Option<SocketAddr>> {
        let mut pair = || {
            let (high, middle, low) = (self.digit()?, self.digit()?, self.digit()?);
            (high < 16).then(|| u16::from(high) << 12 | u16::from(middle) << 6 | u16::from(low))
        };
        let ip = match kind {
            0 => return Some(None),
            1 => IpAddr::V4(Ipv4Addr::from_bits(u32::from(pair()?) << 16 | u32::from(pair()?))),
            2 => {
                let mut pairs = [0; 8];
                for place in &mut pairs {
                    *place = pair()?;
                }
                IpAddr::V6(Ipv6Addr::from(pairs))
            }
            _ => return None,
        };
        Some(Some(SocketAddr::new(ip, pair()?)))
    }
}

fn kind(address: Option<SocketAddr>) -> u8 {
    match address {
        None => 0,
        Some(SocketAddr::V4(_)) => 1,
        Some(SocketAddr::V6(_)) => 2,
    }
}

const VERSION: u8 = b'1';
const NUMBERS: usize = 8;
/// Eight numbers of seven digits, two addresses of 27, the version and the digit between.
const TEXT_BYTES_MAX: usize = 2 + NUMBERS * 7 + 2 * 27;
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const VALUES: [u8; 256] = {
    let mut values = [u8::MAX; 256];
    let mut at = 0;
    while at < 64 {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, bounded by the loop")]
        {
            values[DIGITS[at] as usize] = at as u8;
        }
        at += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(far: &Far) -> String {
        String::from_utf8(far.encode().as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_ledger_is_short_and_written_in_one_way() {
        let far = Far { queue: 21, first_byte: 412_345, attempts: 1, status: 200, ..Far::default() };
        assert_eq!(text(&far), "1VAAAA51yMBoGA");
        let served = Far { endpoint: Some("127.0.0.1:9001".parse().unwrap()), ..far };
        assert_eq!(text(&served), "1VAAAA51yMBoGBH8AAABCMp");
        assert_eq!(Far::decode(text(&served).as_bytes()), Some(served));
        let longest = Far {
            queue: u32::MAX,
            lost: u32::MAX,
            wait: u32::MAX,
            connect: u32::MAX,
            upload: u32::MAX,
            first_byte: u32::MAX,
            attempts: u32::MAX,
            status: u32::MAX,
            endpoint: Some("[2001:db8::1]:65535".parse().unwrap()),
            lost_at: Some("[ffff::ffff]:1".parse().unwrap()),
        };
        assert_eq!(text(&longest).len(), TEXT_BYTES_MAX);
        assert_eq!(Far::decode(text(&longest).as_bytes()), Some(longest));
    }

    #[test]
    fn anything_else_is_refused() {
        let whole = "1VAAAA51yMBoGBH8AAABCMp";
        for length in 0..whole.len() {
            assert_eq!(Far::decode(&whole.as_bytes()[..length]), None, "{length} bytes of it");
        }
        for (what, text) in [
            ("more than it", "1VAAAA51yMBoGBH8AAABCMpA"),
            ("another version", "2VAAAA51yMBoGA"),
            ("a digit that is none", "1V AAA51yMBoGA"),
            ("a number with a digit too many", "1gAAAAA51yMBoGA"),
            ("a number that is too large", "1____HAAAAAAAAA"),
            ("a number without an end", "1__________________"),
            ("an address of no kind", "1AAAAAAAAD"),
            ("a lost address of no kind", "1AAAAAAAAQ"),
            ("an address with too many bits", "1AAAAAAAABQAAAAAAAA"),
        ] {
            assert_eq!(Far::decode(text.as_bytes()), None, "{what}");
        }
    }

    fn address() -> impl Strategy<Value = Option<SocketAddr>> {
        let v4 = any::<(u32, u16)>().prop_map(|(ip, port)| SocketAddr::new(Ipv4Addr::from_bits(ip).into(), port));
        let v6 = any::<(u128, u16)>().prop_map(|(ip, port)| SocketAddr::new(Ipv6Addr::from_bits(ip).into(), port));
        prop_oneof![Just(None), v4.prop_map(Some), v6.prop_map(Some)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(numbers: [u32; NUMBERS], endpoint in address(), lost_at in address()) {
            let [queue, lost, wait, connect, upload, first_byte, attempts, status] = numbers;
            let far = Far { queue, lost, wait, connect, upload, first_byte, attempts, status, endpoint, lost_at };
            prop_assert_eq!(Far::decode(far.encode().as_bytes()), Some(far));
        }

        #[test]
        fn what_is_read_is_what_would_be_written(text in "[A-Za-z0-9_-]{0,80}", bytes: Vec<u8>) {
            for text in [text.as_bytes(), format!("1{text}").as_bytes(), &bytes] {
                if let Some(far) = Far::decode(text) {
                    let again = far.encode();
                    prop_assert_eq!(again.as_bytes(), text);
                }
            }
        }
    }
}
