//! Durations as people write them: `500ms`, `20s`, `5m`, `1h30m`.

use std::time::Duration;

/// Reads a duration such as `20s` or `1h30m`; units `ms`, `s`, `m`, `h`, `d`, largest first or not.
///
/// # Errors
/// A sentence that shows the right form: a missing unit, an unknown one, or a number out of range.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = |why: &str| format!("{why}; write for example 500ms, 20s, 5m or 1h30m");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong("empty duration"));
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong("a duration is a whole number and a unit"))?;
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let millis_per_unit: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(wrong("the unit is missing")),
            other => return Err(wrong(&format!("unknown unit `{other}`"))),
        };
        let part = number
            .checked_mul(millis_per_unit)
            .filter(|millis| *millis <= MAX_MILLIS)
            .ok_or_else(|| wrong("longer than 1,000 days"))?;
        total += Duration::from_millis(part);
        rest = tail;
    }
    Ok(total)
}

/// The shortest exact form, down to milliseconds: `20s`, `1h30m`, `1500ms` as `1s500ms`.
pub(crate) fn display(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        let count = millis / size;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
            millis %= size;
        }
    }
    text
}

/// A measured time for people: `412 µs`, `3.2 ms`, `1.84 s`.
pub(crate) fn measured(micros: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "for display, three digits")]
    let value = micros as f64;
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", value / 1e3),
        _ => format!("{:.2} s", value / 1e6),
    }
}

/// Far beyond any use, far below overflow.
const MAX_MILLIS: u64 = 1_000 * 86_400_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, millis) in [
            ("500ms", 500),
            ("20s", 20_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            (" 1s ", 1_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest_with_an_example() {
        for text in ["", "20", "s", "5 m", "-1s", "1.5s", "3w", "99999999999999999999s", "900000d", "1µs"] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("20s"), "{text}: {error}");
        }
    }

    #[test]
    fn display_reads_back() {
        for millis in [0, 1, 999, 1_000, 1_500, 60_000, 5_400_000, 86_400_001] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse(&display(duration)), Ok(duration));
        }
    }

    #[test]
    fn measured_times_keep_three_digits() {
        assert_eq!([measured(412), measured(3_210), measured(1_840_000)], ["412 µs", "3.2 ms", "1.84 s"]);
    }
}
