//! Durations as operators write them: `500ms`, `2s`, `10m`, `1h`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};

/// Longest duration that means something in a policy: a week.
pub const MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Reads one number with one unit.
///
/// # Errors
/// A message that says what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a duration such as `500ms`, `2s`, `10m` or `1h`, found {:?}", short(text));
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let duration = number.checked_mul(millis).map(Duration::from_millis).unwrap_or(Duration::MAX);
    if duration > MAX {
        return Err(format!("{} is longer than the 7 days that are allowed", short(text)));
    }
    Ok(duration)
}

/// Writes `duration`, whole milliseconds, in the largest unit that is exact.
#[must_use]
pub fn format(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis >= size && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") }
}

fn short(text: &str) -> &str {
    text.char_indices().nth(24).map_or(text, |(end, _)| text.get(..end).unwrap_or(text))
}

pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_as_written() {
        for (text, millis, canonical) in [
            ("0s", 0, "0s"),
            ("500ms", 500, "500ms"),
            ("2000ms", 2_000, "2s"),
            ("90s", 90_000, "90s"),
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
    fn anything_else_is_refused() {
        for text in ["", "s", "2", "2 s", "-2s", "1.5s", "2d", "99999999999999999999s", "8d", "169h", "é"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
