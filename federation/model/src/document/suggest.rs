//! "Did you mean …": the nearest known name, when one is near enough to be a slip of the finger.

/// The candidate that `name` most likely stands for.
///
/// Differences of letter case always match; otherwise at most a third of the characters may differ (insertions,
/// deletions, swaps of neighbours), so that `wset` finds `west` and `x` finds nothing. Ties go to the first in order.
pub(crate) fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return None;
    }
    let lower = name.to_lowercase();
    let allowed = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// ` (did you mean `x`?)`, or nothing.
pub(crate) fn hint<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    nearest(name, candidates).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

/// The distance costs the product of both lengths; longer names are no slips.
const NAME_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["west", "east", "backends", "pathPrefix"];
        for (name, expected) in [
            ("wset", Some("west")),
            ("West", Some("west")),
            ("backend", Some("backends")),
            ("pathprefix", Some("pathPrefix")),
            ("x", None),
            ("paris", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}
