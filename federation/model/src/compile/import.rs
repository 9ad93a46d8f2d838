//! What a service looks like to those who import it: every cluster that exports it with what that says, unmerged.

use archipelago_proto::v1::{Exporter, Import};

use super::Index;
use crate::id::ServiceKey;

/// Who exports a service, by name of the cluster, also those that contradict each other; `None` while nobody does.
#[must_use]
pub fn import(index: &Index, key: &ServiceKey) -> Option<Import> {
    let facts = index.facts.get(key)?;
    let exporters: Vec<Exporter> = facts
        .reports
        .iter()
        .filter(|(cluster, report)| index.clusters.contains_key(*cluster) && facts.exports(cluster, report))
        .map(|(_, report)| report.says.clone())
        .collect();
    let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
    (!exporters.is_empty()).then_some(Import { namespace, name, exporters })
}
