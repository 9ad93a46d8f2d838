//! Durations as operators write them: `500ms`, `2s`, `10m`, `1h`.

use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serializer, de};

/// Longest duration that means something in a policy: a week.
pub const MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Reads a duration in the friendly format of `jiff`, such as `500ms`, `2s` or `1h 30m`, in whole milliseconds.
///
/// # Errors
/// A message that says what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a duration such as `500ms`, `2s`, `10m` or `1h`, found {:?}", short(text));
    if text.len() > TEXT_BYTES_MAX {
        return Err(wrong());
    }
    let parsed: SignedDuration = text.parse().map_err(|_| wrong())?;
    let duration = Duration::try_from(parsed).map_err(|_| wrong())?;
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Err(format!("{:?} is finer than a millisecond", short(text)));
    }
    if duration > MAX {
        return Err(format!("{} is longer than the 7 days that are allowed", short(text)));
    }
    Ok(duration)
}

/// Writes `duration` so that [`parse`] reads it back.
#[must_use]
pub fn format(duration: Duration) -> String {
    SignedDuration::try_from(duration).map_or_else(|_| "0s".to_owned(), |duration| format!("{duration:#}"))
}

/// Of what may also be without a limit: zero is that, and is written `none`.
pub(crate) mod limit {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::{format, parse};

    /// In the place of a duration.
    pub(crate) const NONE: &str = "none";

    pub(crate) fn read(text: &str) -> Result<Duration, String> {
        if text == NONE { Ok(Duration::ZERO) } else { parse(text) }
    }

    pub(crate) fn serialize<S: Serializer>(limit: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match limit {
            None => serializer.serialize_none(),
            Some(Duration::ZERO) => serializer.serialize_str(NONE),
            Some(limit) => serializer.serialize_str(&format(*limit)),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| read(&text).map_err(de::Error::custom)).transpose()
    }
}

fn short(text: &str) -> &str {
    text.char_indices().nth(24).map_or(text, |(end, _)| text.get(..end).unwrap_or(text))
}

/// Longer than any duration in all its units.
pub(crate) const TEXT_BYTES_MAX: usize = 128;

pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[test]
    fn durations_read_back_as_written() {
        for (text, millis, canonical) in [
            ("0s", 0, "0s"),
            ("500ms", 500, "500ms"),
            ("2000ms", 2_000, "2s"),
            ("90s", 90_000, "1m 30s"),
            ("1h30m", 5_400_000, "1h 30m"),
            ("1.5s", 1_500, "1s 500ms"),
            ("10m", 600_000, "10m"),
            ("24h", 86_400_000, "24h"),
        ] {
            let duration = parse(text).unwrap();
            assert_eq!(duration.as_millis(), millis);
            assert_eq!(format(duration), canonical);
            assert_eq!(parse(canonical), Ok(duration));
        }
    }

    #[test]
    fn no_limit_is_a_word() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Limit(#[serde(with = "limit")] Option<Duration>);
        for (text, time, canonical) in [
            ("\"none\"", Some(0), "\"none\""),
            ("\"0s\"", Some(0), "\"none\""),
            ("\"90s\"", Some(90), "\"1m 30s\""),
            ("null", None, "null"),
        ] {
            let limit: Limit = serde_json::from_str(text).unwrap();
            assert_eq!(limit, Limit(time.map(Duration::from_secs)));
            assert_eq!(serde_json::to_string(&limit).unwrap(), canonical);
        }
        assert!(serde_json::from_str::<Limit>("\"never\"").is_err());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "s", "2", "-2s", "1.5ms", "2d", "99999999999999999999s", "8d", "169h", "é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
