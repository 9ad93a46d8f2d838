//! `drill cut`: which gateway must drop the packets of which clusters. Pure.

use std::time::Instant;

use serde_json::{Value, json};

/// A cut that is in force until its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    clusters: Vec<String>,
    until: Instant,
}

impl Cut {
    /// One cluster cut off from all others, or two from each other.
    ///
    /// # Errors
    /// A sentence: another number of clusters, twice the same, or one that does not exist.
    pub(crate) fn new(clusters: &[String], known: &[String], until: Instant) -> Result<Self, String> {
        if let [a, b] = clusters
            && a == b
        {
            return Err(format!("{a} cannot be cut off from itself"));
        }
        if clusters.is_empty() || clusters.len() > 2 {
            return Err("a cut takes one cluster, or two as A,B".to_owned());
        }
        for cluster in clusters {
            if !known.contains(cluster) {
                return Err(format!("no cluster `{cluster}`; there are {}", known.join(", ")));
            }
        }
        Ok(Self { clusters: clusters.to_vec(), until })
    }

    /// What the gateways of `cluster` are told; `None` when the cut does not concern them, or is over.
    pub(crate) fn body(&self, cluster: &str, known: &[String], now: Instant) -> Option<Value> {
        let left = u64::try_from(self.until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX);
        let dropped: Vec<&String> = match self.clusters.as_slice() {
            [one] if one == cluster => known.iter().filter(|other| *other != one).collect(),
            [one] => vec![one],
            [a, b] if a == cluster => vec![b],
            [a, b] if b == cluster => vec![a],
            _ => Vec::new(),
        };
        (left > 0 && !dropped.is_empty()).then(|| json!({ "clusters": dropped, "forMs": left }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn both_sides_of_a_cut_drop_the_other() {
        let known = names(&["paris", "frankfurt", "tokyo"]);
        let now = Instant::now();
        let until = now + Duration::from_secs(20);
        let dropped = |cut: &Cut, cluster: &str| cut.body(cluster, &known, now).map(|body| body["clusters"].clone());

        let off = Cut::new(&names(&["paris"]), &known, until).unwrap();
        assert_eq!(dropped(&off, "paris"), Some(json!(["frankfurt", "tokyo"])));
        assert_eq!(dropped(&off, "tokyo"), Some(json!(["paris"])));
        assert_eq!(off.body("tokyo", &known, now).unwrap()["forMs"], 20_000);
        assert_eq!(off.body("tokyo", &known, until), None);

        let pair = Cut::new(&names(&["paris", "tokyo"]), &known, until).unwrap();
        assert_eq!(dropped(&pair, "paris"), Some(json!(["tokyo"])));
        assert_eq!(dropped(&pair, "tokyo"), Some(json!(["paris"])));
        assert_eq!(dropped(&pair, "frankfurt"), None);
    }

    #[test]
    fn impossible_cuts_are_refused() {
        let known = names(&["paris", "tokyo"]);
        for wrong in [&["lyon"][..], &["paris", "paris"], &["paris", "tokyo", "paris"], &[]] {
            assert!(Cut::new(&names(wrong), &known, Instant::now()).is_err(), "{wrong:?}");
        }
    }
}
