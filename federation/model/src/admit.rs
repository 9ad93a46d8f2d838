//! Whether resources may enter the federation: alone, together, and beside what is already there.
//!
//! Rules judge the *whole* set that would result, as values, and name what is wrong by resource and path
//! ([`rules`], [`cross`]). [`check`] prints that as it is; [`admit`] looks up the paths in the files, so that the very
//! same rules speak in lines and columns to an operator.

mod cross;
mod residency;
mod rules;
mod source;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use self::rules::{is_label, is_version};
use self::{
    cross::Known,
    rules::Complaint,
    source::{Kinds, Source},
};
use crate::{
    document::{Document, Problem, tree::printable},
    resource::{Cluster, ClusterSpec, Metadata, Resource, ResourceKey, Topology},
};

/// A set of resources.
pub type Resources = BTreeMap<ResourceKey, Resource>;

/// Parses `documents` and judges them beside the resources that exist.
///
/// Returns the resources in the order in which they are written. A reference to a service that no cluster has reported
/// yet is allowed: policies may come before deployments.
///
/// # Errors
/// Every problem found, in the order of the files, at most [`PROBLEMS_MAX`]; nothing may be applied.
pub fn admit(documents: &[Document], current: &Resources) -> Result<Vec<Resource>, Vec<Problem>> {
    let source = Source::read(documents, Kinds::Resources);
    judge(source, current.clone(), Known::All).map(|(_, resources)| resources)
}

/// Judges files on their own, without a federation: what `meshctl validate` can say offline.
///
/// A [`Topology`] in the files brings its clusters. Files that define no cluster at all are not asked whether the
/// clusters they name exist.
///
/// # Errors
/// Every problem found, in the order of the files, at most [`PROBLEMS_MAX`].
pub fn validate(documents: &[Document]) -> Result<Vec<Resource>, Vec<Problem>> {
    let source = Source::read(documents, Kinds::ResourcesAndTopology);
    judge(source, Resources::new(), Known::Files).map(|(_, resources)| resources)
}

/// A file that `meshctl up` can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Federation {
    /// The processes to start.
    pub topology: Topology,
    /// What to apply to them: a [`Cluster`] for each cluster of the topology, then every resource of the file.
    pub resources: Vec<Resource>,
}

/// Reads a file with exactly one [`Topology`] and any resources after it.
///
/// # Errors
/// Every problem found, at most [`PROBLEMS_MAX`].
pub fn topology(document: &Document) -> Result<Federation, Vec<Problem>> {
    let source = Source::read(std::slice::from_ref(document), Kinds::ResourcesAndTopology);
    let (topology, resources) = judge(source, Resources::new(), Known::All)?;
    let Some(topology) = topology else {
        let message = "no document of kind Topology: `meshctl up` needs one".to_owned();
        return Err(vec![Problem { file: document.file.clone(), line: 1, column: 1, path: String::new(), message }]);
    };
    let mut all: Vec<Resource> = clusters_of(&topology).into_values().collect();
    all.extend(resources);
    Ok(Federation { topology, resources: all })
}

/// Judges a set of resources without files; deterministic, for use inside the replicated state machine.
///
/// Also refuses the deletion of a cluster that others still name: pass the set without it.
#[must_use]
pub fn check(resources: &Resources) -> Vec<String> {
    let mut complaints = Vec::new();
    for resource in resources.values() {
        rules::resource(resource, &mut complaints);
    }
    cross::resources(resources, Known::All, &mut complaints);
    complaints.truncate(PROBLEMS_MAX);
    complaints.iter().map(|complaint| printable(&complaint.to_string())).collect()
}

/// A file full of mistakes is fixed in rounds; nobody reads more than this at once.
pub const PROBLEMS_MAX: usize = 100;

fn judge(source: Source, current: Resources, known: Known) -> Result<(Option<Topology>, Vec<Resource>), Vec<Problem>> {
    let mut complaints = Vec::new();
    let mut after = current.clone();
    if let Some(topology) = source.topology() {
        rules::topology(&topology.spec, &mut complaints);
        after.extend(clusters_of(topology));
    }
    let resources: Vec<&Resource> = source.resources().collect();
    for resource in &resources {
        rules::resource(resource, &mut complaints);
        if !resource.metadata().name.is_empty() {
            after.insert(resource.key(), (*resource).clone());
        }
    }
    // With a document missing, "no cluster `tokyo`" would send the reader the wrong way.
    if source.is_complete() {
        let mut found = Vec::new();
        cross::resources(&after, known, &mut found);
        let mut before = Vec::new();
        cross::resources(&current, known, &mut before);
        let before: BTreeSet<String> = before.iter().map(Complaint::to_string).collect();
        // What was wrong before and is not touched here must not block an unrelated change.
        found.retain(|complaint| source.has_any(complaint) || !before.contains(&complaint.to_string()));
        complaints.extend(found);
    }
    let problems = source.problems(&complaints);
    if !problems.is_empty() {
        return Err(problems);
    }
    let resources = resources.into_iter().cloned().collect();
    Ok((source.topology().cloned(), resources))
}

/// The [`Cluster`] resources that a topology implies.
fn clusters_of(topology: &Topology) -> Resources {
    topology
        .spec
        .clusters
        .iter()
        .map(|cluster| {
            let resource = Resource::Cluster(Cluster {
                metadata: Metadata { name: cluster.name.clone(), ..Metadata::default() },
                spec: ClusterSpec { region: cluster.region.clone(), drained: false },
            });
            (resource.key(), resource)
        })
        .collect()
}
