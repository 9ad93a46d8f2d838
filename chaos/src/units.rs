//! Quantities as people write them: `20ms`, `1%`, `10mbit`.

use std::{num::NonZeroU64, time::Duration};

/// Reads a duration: a number and one of `us`, `ms`, `s`, `m`, `h`, such as `20ms` or `1.5s`.
///
/// # Errors
/// What was expected, when the text is something else.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let seconds = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("expected a duration such as 20ms, 1.5s, 2m or 1h".to_owned()),
    };
    positive(number)
        .and_then(|number| Duration::try_from_secs_f64(number * seconds).ok())
        .ok_or_else(|| "expected a duration such as 20ms, 1.5s, 2m or 1h".to_owned())
}

/// Reads a share of 1: `1%` or `0.01`.
///
/// # Errors
/// What was expected, when the text is something else or beyond 100 %.
pub fn share(text: &str) -> Result<f64, String> {
    let (number, unit) = split(text);
    let scale = match unit {
        "%" => 0.01,
        "" => 1.0,
        _ => return Err("expected a share such as 1% or 0.01".to_owned()),
    };
    positive(number)
        .map(|number| number * scale)
        .filter(|share| *share <= 1.0)
        .ok_or_else(|| "expected a share between 0% and 100%, such as 1% or 0.01".to_owned())
}

/// Reads a bandwidth in bits per second: `800kbit`, `10mbit`, `1gbit`, or a plain number.
///
/// # Errors
/// What was expected, when the text is something else or zero.
pub fn bandwidth(text: &str) -> Result<NonZeroU64, String> {
    let (number, unit) = split(text);
    let scale = match unit {
        "" | "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err("expected a bandwidth such as 800kbit, 10mbit or 1gbit".to_owned()),
    };
    positive(number)
        .map(|number| number * scale)
        .filter(|bits| (1.0..1e15).contains(bits))
        // The range above makes the conversion exact enough and in bounds.
        .and_then(|bits| NonZeroU64::new(bits as u64))
        .ok_or_else(|| "expected a bandwidth of at least 1 bit/s, such as 10mbit".to_owned())
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn positive(number: &str) -> Option<f64> {
    number.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("250us"), Ok(Duration::from_micros(250)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "20", "ms", "-1s", "1 day", "1.2.3s", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(share("1%"), Ok(0.01));
        assert_eq!(share("0.25"), Ok(0.25));
        assert_eq!(share("100%"), Ok(1.0));
        for wrong in ["101%", "2", "-1%", "x", "", "1‰"] {
            assert!(share(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn bandwidths() {
        assert_eq!(bandwidth("10mbit").unwrap().get(), 10_000_000);
        assert_eq!(bandwidth("1.5kbit").unwrap().get(), 1_500);
        assert_eq!(bandwidth("9600").unwrap().get(), 9_600);
        for wrong in ["0", "0.1bit", "10mbps", "", "1e9"] {
            assert!(bandwidth(wrong).is_err(), "{wrong:?}");
        }
    }
}
