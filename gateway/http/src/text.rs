//! Classes of bytes (RFC 9110 §5.6, §5.5), many at a time where messages are long.

/// True for a token (RFC 9110 §5.6.2).
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_token_byte(*byte))
}

#[inline]
fn is_token_byte(byte: u8) -> bool {
    TOKEN.get(usize::from(byte)).copied().unwrap_or(false)
}

/// True for a byte of a registered name (RFC 3986 §3.2.2) that is not percent-encoded.
#[inline]
pub(crate) fn is_host_byte(byte: u8) -> bool {
    HOST.get(usize::from(byte)).copied().unwrap_or(false)
}

/// True for a byte of a path or query (RFC 3986 §3.3, §3.4), percent signs included.
#[inline]
pub(crate) fn is_uri_byte(byte: u8) -> bool {
    URI.get(usize::from(byte)).copied().unwrap_or(false)
}

/// Where the first colon is.
#[inline(never)]
pub(crate) fn colon(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut at = 0;
    for word in words {
        let zeros = zeros(u64::from_le_bytes(*word) ^ COLONS);
        if zeros != 0 {
            // The lowest is exact, only those above one can be of its borrow.
            return Some(at + zeros.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    rest.iter().position(|byte| *byte == b':').map(|inner| at + inner)
}

/// Where the first control is that is no tab.
// Inlined into the parser the loops lose their registers to it: twice the instructions.
#[inline(never)]
pub(crate) fn control(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    loop {
        while let Some((block, after)) = rest.split_first_chunk::<32>()
            && block.as_chunks::<8>().0.iter().fold(0, |found, word| found | controls(u64::from_le_bytes(*word))) == 0
        {
            rest = after;
        }
        let found = loop {
            let Some((word, after)) = rest.split_first_chunk::<8>() else {
                let inner = rest.iter().position(|byte| !is_value_byte(*byte))?;
                return Some(bytes.len() - rest.len() + inner);
            };
            let found = controls(u64::from_le_bytes(*word));
            if found != 0 {
                break found.trailing_zeros() as usize / 8;
            }
            rest = after;
        };
        rest = rest.get(found..)?;
        match rest {
            [b'\t', after @ ..] => rest = after,
            _ => return Some(bytes.len() - rest.len()),
        }
    }
}

/// True for bytes that may be in a field value: no control but tab (RFC 9110 §5.5); bytes above 127 are obs-text.
#[inline]
pub(crate) fn is_value(bytes: &[u8]) -> bool {
    control(bytes).is_none()
}

#[inline]
pub(crate) fn is_value_byte(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || byte == b'\t'
}

/// True for bytes that may be in a request target as proxies pass it on: no control and no space.
#[inline]
pub(crate) fn is_target(bytes: &[u8]) -> bool {
    // The last word overlaps the one before rather than being looked at by bytes.
    let Some(last) = bytes.last_chunk::<8>() else { return bytes.iter().all(|byte| *byte > b' ' && *byte != 0x7f) };
    let bad = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        controls(word) | zeros(word ^ SPACES) != 0
    };
    !bytes.as_chunks::<8>().0.iter().any(bad) && !bad(last)
}

/// The high bit of each byte that is below 0x20 or 0x7f, and maybe of some above one that is; the lowest is exact.
#[inline]
fn controls(word: u64) -> u64 {
    // A byte below 0x20 borrows into its high bit; one that had it (above 0x7f) does not count.
    word.wrapping_sub(SPACES) & !word & HIGH | zeros(word ^ DELETES)
}

/// The high bit of each byte that is zero, and maybe of some above one that is.
#[inline]
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGH
}

/// A value without the white space around it (OWS, RFC 9110 §5.6.3).
#[inline]
pub(crate) fn trim(bytes: &[u8]) -> &[u8] {
    trim_start(trim_end(bytes))
}

#[inline]
pub(crate) fn trim_start(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

#[inline]
pub(crate) fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The members of a comma-separated list (RFC 9110 §5.6.1), empty ones left out.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim).filter(|member| !member.is_empty())
}

/// A plain decimal number of 1 to 18 digits, which no 64-bit parser reads differently.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Appends a number in decimal.
pub(crate) fn push_decimal(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(digits_of(number, &mut [0; DECIMAL_MAX]));
}

/// A number as digits at the end of `digits`.
pub(crate) fn digits_of(mut number: u64, digits: &mut [u8; DECIMAL_MAX]) -> &[u8] {
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    digits.get(DECIMAL_MAX - used..).unwrap_or_default()
}

/// 2^64 has 20 digits.
pub(crate) const DECIMAL_MAX: usize = 20;

const ONES: u64 = u64::MAX / 255;
const HIGH: u64 = ONES * 0x80;
const COLONS: u64 = ONES * b':' as u64;
const SPACES: u64 = ONES * b' ' as u64;
const DELETES: u64 = ONES * 0x7f;

static TOKEN: [bool; 256] = class(b"!#$%&'*+-.^_`|~");
/// unreserved / sub-delims (RFC 3986 §2).
static HOST: [bool; 256] = class(b"-._~!$&'()*+,;=");

/// pchar, `/`, `?` and `%` (RFC 3986 §3.3, §3.4).
static URI: [bool; 256] = class(b"-._~!$&'()*+,;=:@/?%");

/// Letters, digits and `signs`.
#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, bounded by the loops")]
const fn class(signs: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut at = 0;
    while at < 128 {
        table[at] = (at as u8).is_ascii_alphanumeric();
        at += 1;
    }
    at = 0;
    while at < signs.len() {
        table[signs[at] as usize] = true;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_at_every_place_of_a_word() {
        for byte in 0..=u8::MAX {
            for length in 1..=20 {
                for at in 0..length {
                    for fill in [b'a', 0xff, 0x80, b'!'] {
                        let mut bytes = vec![fill; length];
                        bytes[at] = byte;
                        let control = byte < 0x20 || byte == 0x7f;
                        assert_eq!(is_value(&bytes), !control || byte == b'\t', "{byte:#x} at {at} of {length}");
                        assert_eq!(is_target(&bytes), !control && byte != b' ', "{byte:#x} at {at} of {length}");
                    }
                }
            }
            assert_eq!(is_token(&[byte]), byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte));
        }
        assert!(!is_token(b""));
    }

    #[test]
    fn the_first_colon_is_found() {
        for length in 0..30 {
            for fill in [b'a', b';', 0xba, 0] {
                let mut bytes = vec![fill; length];
                assert_eq!(colon(&bytes), None);
                for at in (0..length).rev() {
                    bytes[at] = b':';
                    assert_eq!(colon(&bytes), Some(at));
                }
            }
        }
    }

    #[test]
    fn numbers() {
        for (text, number) in [("0", Some(0)), ("007", Some(7)), ("999999999999999999", Some(999_999_999_999_999_999))]
        {
            assert_eq!(decimal(text.as_bytes()), number);
        }
        for text in ["", "+1", "-1", "1 ", "0x1", "1.0", "1000000000000000000", "१"] {
            assert_eq!(decimal(text.as_bytes()), None, "{text}");
        }
        for number in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            push_decimal(number, &mut out);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }

    #[test]
    fn lists_and_white_space() {
        assert_eq!(trim(b" \t a b\t "), b"a b");
        assert_eq!(trim(b" \t "), b"");
        assert_eq!(list(b"a, ,b ,\tc,").collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    }
}
