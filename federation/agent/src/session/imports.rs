//! What the federation exports, put together from what the control plane sends. Pure.

use std::{mem, str::FromStr, sync::Arc};

use archipelago_model::id::ServiceKey;
use archipelago_proto::v1;

use crate::provider::Imports;

/// The list on its way: one per session, because the first message of each is complete.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    held: Option<Arc<Imports>>,
    /// Parts of a change whose last part has not arrived.
    parts: Option<v1::Imports>,
}

impl Assembly {
    /// Takes a message; the complete list, once its last part is here.
    ///
    /// # Errors
    /// A change to a list that was never sent, or more parts than any list has: the session is of no use.
    pub(super) fn take(&mut self, message: v1::Imports) -> Result<Option<Arc<Imports>>, Broken> {
        let more = message.more;
        let change = match self.parts.take() {
            None => message,
            Some(mut parts) => {
                parts.upserts.extend(message.upserts);
                parts.removals.extend(message.removals);
                parts
            }
        };
        if change.upserts.len() + change.removals.len() > ROWS_MAX {
            return Err(Broken::TooMany);
        }
        if more {
            self.parts = Some(change);
            return Ok(None);
        }
        let mut imports = match (mem::take(&mut self.held), change.full) {
            (_, true) => Imports::new(),
            (Some(held), false) => Arc::unwrap_or_clone(held),
            (None, false) => return Err(Broken::NoBase),
        };
        for key in change.removals.iter().filter_map(|key| ServiceKey::from_str(key).ok()) {
            imports.remove(&key);
        }
        for import in change.upserts {
            imports.insert(ServiceKey::new(import.namespace.as_str(), import.name.as_str()), import);
        }
        let imports = Arc::new(imports);
        self.held = Some(Arc::clone(&imports));
        Ok(Some(imports))
    }
}

/// Why nothing can be made of what the control plane sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("the control plane sent a change of imports before the imports")]
    NoBase,
    #[error("the control plane sent more than {ROWS_MAX} imports")]
    TooMany,
}

/// Ten times the services that one cluster may report.
const ROWS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn import(name: &str, cluster: &str) -> v1::Import {
        let exporter = v1::Exporter { cluster: cluster.into(), ..v1::Exporter::default() };
        v1::Import { namespace: "shop".into(), name: name.into(), exporters: vec![exporter] }
    }

    fn full(upserts: Vec<v1::Import>) -> v1::Imports {
        v1::Imports { full: true, upserts, ..v1::Imports::default() }
    }

    fn names(imports: &Imports) -> Vec<String> {
        imports.values().map(|import| format!("{}@{}", import.name, import.exporters[0].cluster)).collect()
    }

    #[test]
    fn changes_are_made_to_what_was_sent_before() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.take(v1::Imports::default()), Err(Broken::NoBase));
        assert!(assembly.take(full(Vec::new())).unwrap().unwrap().is_empty(), "nothing is exported, and that is said");
        assembly.take(full(vec![import("a", "paris"), import("b", "paris")])).unwrap();
        let change = v1::Imports {
            upserts: vec![import("b", "tokyo"), import("c", "tokyo")],
            removals: vec!["shop/a".into(), "shop/unknown".into(), "nonsense".into()],
            ..v1::Imports::default()
        };
        assert_eq!(names(&assembly.take(change).unwrap().unwrap()), ["b@tokyo", "c@tokyo"]);
        assert_eq!(names(&assembly.take(full(vec![import("z", "lima")])).unwrap().unwrap()), ["z@lima"]);
    }

    #[test]
    fn nothing_is_used_before_the_last_part() {
        let mut assembly = Assembly::default();
        let part = |imports: v1::Imports| v1::Imports { more: true, ..imports };
        assert_eq!(assembly.take(part(full(vec![import("a", "paris")]))), Ok(None));
        let last = v1::Imports { upserts: vec![import("b", "paris")], ..v1::Imports::default() };
        assert_eq!(names(&assembly.take(last).unwrap().unwrap()), ["a@paris", "b@paris"]);
        // The last part of a change that is not full leaves what it does not name.
        let first = v1::Imports { upserts: vec![import("c", "paris")], more: true, ..v1::Imports::default() };
        assert_eq!(assembly.take(first), Ok(None));
        let last = v1::Imports { removals: vec!["shop/a".into()], ..v1::Imports::default() };
        assert_eq!(names(&assembly.take(last).unwrap().unwrap()), ["b@paris", "c@paris"]);
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let mut assembly = Assembly::default();
        let many = |more| v1::Imports {
            full: true,
            upserts: (0..ROWS_MAX).map(|number| import(&format!("s{number}"), "paris")).collect(),
            more,
            ..v1::Imports::default()
        };
        assert_eq!(assembly.take(many(true)), Ok(None));
        assert_eq!(assembly.take(full(vec![import("a", "paris")])), Err(Broken::TooMany));
    }

    proptest! {
        /// However a list moves and is cut into parts, what comes together is the list.
        #[test]
        fn parts_come_together(
            lists in prop::collection::vec(prop::collection::btree_map("[a-e]", "[x-z]", 0..5), 1..8),
            cut in 1usize..4,
        ) {
            let mut assembly = Assembly::default();
            let mut before = std::collections::BTreeMap::new();
            for (round, list) in lists.iter().enumerate() {
                let upserts: Vec<_> = list
                    .iter()
                    .filter(|(name, cluster)| round == 0 || before.get(*name) != Some(*cluster))
                    .map(|(name, cluster)| import(name, cluster))
                    .collect();
                let removals = before.keys().filter(|name| !list.contains_key(*name)).map(|name| format!("shop/{name}"));
                let mut parts: Vec<v1::Imports> = upserts
                    .chunks(cut)
                    .map(|upserts| v1::Imports { upserts: upserts.to_vec(), more: true, ..v1::Imports::default() })
                    .collect();
                parts.push(v1::Imports { removals: removals.collect(), ..v1::Imports::default() });
                parts[0].full = round == 0;
                let last = parts.pop().unwrap();
                for part in parts {
                    prop_assert_eq!(assembly.take(part), Ok(None));
                }
                let whole = assembly.take(last).unwrap().unwrap();
                let expected: Vec<_> = list.iter().map(|(name, cluster)| format!("{name}@{cluster}")).collect();
                prop_assert_eq!(names(&whole), expected);
                before = list.clone();
            }
        }
    }
}
