//! W3C Trace Context: what `traceparent` and `tracestate` say, and how they are written. Pure.
//!
//! Read as strictly as the specification asks: whatever is not a `traceparent` is none, and its `tracestate` is not looked at. A value
//! that was read is numbers from then on, so that what a client wrote there goes into no log and no span.

use archipelago_http::{Fields, Known};

/// What the sender of a request says of its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// Never 0.
    pub trace_id: u128,
    /// The sender's span; never 0.
    pub span_id: u64,
    /// Of those that version 00 knows: [`SAMPLED`], [`RANDOM`].
    pub flags: u8,
}

/// What the sender's `tracestate` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is none, or nothing in it.
    Empty,
    /// Its members, of all lines, without the white space between them.
    Valid(String),
    /// None that may be passed on beside a `traceparent` of ours.
    Invalid,
}

impl Parent {
    /// True when the sender may have recorded its span.
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// The parent that a request names; `None`: none, or several, or not in a form that is to be believed.
#[inline]
pub fn parent(fields: &Fields) -> Option<Parent> {
    let mut values = fields.get_all(Known::Traceparent);
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    parse(value)
}

/// Reads a `traceparent` (§3.2.2 and, for versions to come, §3.2.4).
fn parse(value: &[u8]) -> Option<Parent> {
    let (known, rest) = value.split_at_checked(LENGTH)?;
    let [v0, v1, b'-', known @ ..] = known else { return None };
    let (trace_id, known) = known.split_at_checked(32)?;
    let [b'-', known @ ..] = known else { return None };
    let (span_id, known) = known.split_at_checked(16)?;
    let [b'-', f0, f1] = known else { return None };
    match hex(&[*v0, *v1])? {
        0 if !rest.is_empty() => return None,
        0xff => return None,
        // Whatever is added to it stands behind another dash.
        _ if !matches!(rest.first(), None | Some(b'-')) => return None,
        _ => {}
    }
    let (high, low) = trace_id.split_at_checked(16)?;
    let trace_id = u128::from(hex(high)?) << 64 | u128::from(hex(low)?);
    let span_id = hex(span_id)?;
    let flags = (hex(&[*f0, *f1])? & u64::from(SAMPLED | RANDOM)) as u8;
    (trace_id != 0 && span_id != 0).then_some(Parent { trace_id, span_id, flags })
}

/// Digits of base 16 in lower case, at most sixteen.
#[inline]
fn hex(digits: &[u8]) -> Option<u64> {
    let mut number = 0;
    for digit in digits {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u64::from(value);
    }
    Some(number)
}

/// Writes a `traceparent` of version 00.
pub fn write(trace_id: u128, span_id: u64, flags: u8) -> [u8; LENGTH] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let mut digits = |at: usize, count: usize, number: u128| {
        for (i, place) in text.iter_mut().skip(at).take(count).enumerate() {
            let digit = (number >> (4 * (count - 1 - i)) & 15) as u8;
            *place = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        }
    };
    digits(3, 32, trace_id);
    digits(36, 16, span_id.into());
    digits(53, 2, flags.into());
    text
}

/// Reads `tracestate` (§3.3), of a request that has a parent.
pub fn state(fields: &Fields) -> State {
    let mut text = String::new();
    let members = fields.get_all(Known::Tracestate).flat_map(|line| line.split(|byte| *byte == b','));
    let mut count = 0;
    // Spaces before a value are part of it; those around a member are not.
    for member in members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()) {
        count += 1;
        let Some(member) = std::str::from_utf8(member).ok().filter(|member| is_member(member)) else {
            return State::Invalid;
        };
        if count > MEMBERS_MAX {
            return State::Invalid;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(member);
    }
    if text.is_empty() { State::Empty } else { State::Valid(text) }
}

fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let is_key_byte = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@')
    };
    let is_key = key.bytes().next().is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
        && key.len() <= MEMBER_PART_MAX
        && key.bytes().all(is_key_byte);
    is_key
        && (1..=MEMBER_PART_MAX).contains(&value.len())
        && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=')
}

/// The trace may have been recorded by its sender.
pub const SAMPLED: u8 = 1;
/// The right-most seven bytes of the trace id are random (level 2); passed on as it came.
pub const RANDOM: u8 = 2;
/// Of a `traceparent` of version 00.
pub const LENGTH: usize = 55;
const MEMBERS_MAX: usize = 32;
/// Of a key, and of a value.
const MEMBER_PART_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: u128 = 0x1234_5678_9012_3456_7890_1234_5678_9012;
    const SPAN: u64 = 0x1234_5678_9012_3456;

    fn fields(lines: &[(Known, &[u8])]) -> Fields {
        let mut fields = Fields::new();
        lines.iter().for_each(|(name, value)| fields.push(*name, value));
        fields
    }

    fn read(value: &str) -> Option<Parent> {
        parent(&fields(&[(Known::Traceparent, value.as_bytes())]))
    }

    /// The cases of the W3C's own tests (github.com/w3c/trace-context, test/test.py), by their names there, and some more.
    #[test]
    fn what_is_a_traceparent() {
        let parent = |flags| Some(Parent { trace_id: TRACE, span_id: SPAN, flags });
        for (case, value, expected) in [
            ("included", "00-12345678901234567890123456789012-1234567890123456-01", parent(SAMPLED)),
            ("not sampled", "00-12345678901234567890123456789012-1234567890123456-00", parent(0)),
            ("random", "00-12345678901234567890123456789012-1234567890123456-03", parent(SAMPLED | RANDOM)),
            ("flags to come are not passed on", "00-12345678901234567890123456789012-1234567890123456-fc", parent(0)),
            ("version_0x00", "00-12345678901234567890123456789012-1234567890123456-01.", None),
            ("version_0x00, more", "00-12345678901234567890123456789012-1234567890123456-01-what-the-future", None),
            ("version_0xcc", "cc-12345678901234567890123456789012-1234567890123456-01", parent(SAMPLED)),
            ("version_0xcc, more", "cc-12345678901234567890123456789012-1234567890123456-01-what", parent(SAMPLED)),
            ("version_0xcc, no dash", "cc-12345678901234567890123456789012-1234567890123456-01.what", None),
            ("version_0xff", "ff-12345678901234567890123456789012-1234567890123456-01", None),
            ("version_illegal_characters", ".0-12345678901234567890123456789012-1234567890123456-01", None),
            ("version_illegal_characters", "0.-12345678901234567890123456789012-1234567890123456-01", None),
            ("version in upper case", "CC-12345678901234567890123456789012-1234567890123456-01", None),
            ("version_too_long", "000-12345678901234567890123456789012-1234567890123456-01", None),
            ("version_too_long", "0000-12345678901234567890123456789012-1234567890123456-01", None),
            ("version_too_short", "0-12345678901234567890123456789012-1234567890123456-01", None),
            ("trace_id_all_zero", "00-00000000000000000000000000000000-1234567890123456-01", None),
            ("trace_id_illegal_characters", "00-.2345678901234567890123456789012-1234567890123456-01", None),
            ("trace_id_illegal_characters", "00-1234567890123456789012345678901.-1234567890123456-01", None),
            ("trace_id in upper case", "00-1234567890123456789012345678901A-1234567890123456-01", None),
            ("trace_id_too_long", "00-123456789012345678901234567890123-1234567890123456-01", None),
            ("trace_id_too_short", "00-1234567890123456789012345678901-1234567890123456-01", None),
            ("parent_id_all_zero", "00-12345678901234567890123456789012-0000000000000000-01", None),
            ("parent_id_illegal_characters", "00-12345678901234567890123456789012-.234567890123456-01", None),
            ("parent_id_illegal_characters", "00-12345678901234567890123456789012-123456789012345.-01", None),
            ("parent_id_too_long", "00-12345678901234567890123456789012-12345678901234567-01", None),
            ("parent_id_too_short", "00-12345678901234567890123456789012-123456789012345-01", None),
            ("trace_flags_illegal_characters", "00-12345678901234567890123456789012-1234567890123456-.0", None),
            ("trace_flags_illegal_characters", "00-12345678901234567890123456789012-1234567890123456-0.", None),
            ("trace_flags_too_long", "00-12345678901234567890123456789012-1234567890123456-001", None),
            ("trace_flags_too_short", "00-12345678901234567890123456789012-1234567890123456-1", None),
            ("ows_handling", " \t00-12345678901234567890123456789012-1234567890123456-01 \t", parent(SAMPLED)),
            ("other dashes", "00_12345678901234567890123456789012_1234567890123456_01", None),
            ("empty", "", None),
            ("several in one", "00-12345678901234567890123456789012-1234567890123456-01,00-", None),
        ] {
            assert_eq!(read(value), expected, "{case}: {value}");
        }
        assert_eq!(super::parent(&Fields::new()), None, "both_missing");
        let line: (Known, &[u8]) = (Known::Traceparent, b"00-12345678901234567890123456789012-1234567890123456-01");
        assert_eq!(super::parent(&fields(&[line, line])), None, "duplicated");
    }

    #[test]
    fn what_is_a_tracestate() {
        let valid = |text: &str| State::Valid(text.to_owned());
        let (key, long) = ("z".repeat(256), "z".repeat(257));
        let many = |count: usize| (0..count).map(|n| format!("bar{n:02}={n:02}")).collect::<Vec<_>>().join(",");
        let all = format!("abcdefghijklmnopqrstuvwxyz0123456789_-*/@a-z={}", r##"x!"#$%&'()*+-./0:;<>?@A[\]^_`a{|}~"##);
        for (case, lines, expected) in [
            ("missing", vec![], State::Empty),
            ("empty_header", vec![""], State::Empty),
            ("empty_header", vec!["foo=1", ""], valid("foo=1")),
            ("empty_header", vec!["", "foo=1"], valid("foo=1")),
            (
                "multiple_headers",
                vec!["foo=1,bar=2", "rojo=1,congo=2", "baz=3"],
                valid("foo=1,bar=2,rojo=1,congo=2,baz=3"),
            ),
            ("duplicated_keys are kept", vec!["foo=1,foo=2"], valid("foo=1,foo=2")),
            ("all_allowed_characters", vec![all.as_str()], valid(&all)),
            ("spaces in a value", vec!["foo=  1 2"], valid("foo=  1 2")),
            ("ows_handling", vec!["foo=1 \t , \t bar=2, \t baz=3"], valid("foo=1,bar=2,baz=3")),
            ("key_illegal_characters", vec!["foo =1"], State::Invalid),
            ("key_illegal_characters", vec!["FOO=1"], State::Invalid),
            ("key_illegal_characters", vec!["foo.bar=1"], State::Invalid),
            ("key_illegal_vendor_format", vec!["foo@=1,bar=2"], valid("foo@=1,bar=2")),
            ("key_illegal_vendor_format", vec!["@foo=1,bar=2"], State::Invalid),
            ("key_illegal_vendor_format", vec!["foo@bar@baz=1"], valid("foo@bar@baz=1")),
            ("member_count_limit", vec![&many(20), &many(12)], valid(&format!("{},{}", many(20), many(12)))),
            ("member_count_limit", vec![&many(33)], State::Invalid),
            ("key_length_limit", vec![&format!("{key}=1")], valid(&format!("{key}=1"))),
            ("key_length_limit", vec![&format!("{long}=1")], State::Invalid),
            ("value_length_limit", vec![&format!("a={key}")], valid(&format!("a={key}"))),
            ("value_length_limit", vec![&format!("a={long}")], State::Invalid),
            ("value_illegal_characters", vec!["foo=bar=baz"], State::Invalid),
            ("value_illegal_characters", vec!["foo=,bar=3"], State::Invalid),
            ("no value", vec!["foo"], State::Invalid),
            ("a tab within", vec!["foo=a\tb"], State::Invalid),
            ("not ASCII", vec!["foo=\u{e9}"], State::Invalid),
        ] {
            let lines: Vec<(Known, &[u8])> = lines.iter().map(|line| (Known::Tracestate, line.as_bytes())).collect();
            assert_eq!(state(&fields(&lines)), expected, "{case}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace_id in 1_u128.., span_id in 1_u64.., flags in 0_u8..4) {
            let text = write(trace_id, span_id, flags);
            prop_assert_eq!(parse(&text), Some(Parent { trace_id, span_id, flags }));
            prop_assert!(text.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-'));
        }

        #[test]
        fn what_is_read_in_version_00_is_what_would_be_written(text in "00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]", other: Vec<u8>) {
            if let Some(parent) = parse(text.as_bytes()) {
                prop_assert_eq!(&write(parent.trace_id, parent.span_id, parent.flags)[..], text.as_bytes());
            }
            let _ = (parse(&other), state(&fields(&[(Known::Tracestate, &other)])));
        }
    }
}
