//! Whether resources may enter the federation: alone, together, and beside what is already there.
//!
//! Rules judge the *whole* set that would result, as values, and name what is wrong by resource and path
//! ([`rules`], [`cross`]). [`check`] gives that as it is; [`admit`] looks up the paths in the files, so that the very
//! same rules speak in lines and columns to an operator. [`warnings()`] says what is allowed and probably not meant.

mod cross;
mod residency;
mod rules;
mod source;
mod warnings;

/// What the rules allow, for the schema that says the same to others.
pub(crate) mod limits {
    pub(crate) use super::rules::{
        BACKENDS_MAX, PATH_BYTES_MAX, ROUTES_MAX, TIERS_MAX, TOKEN_BYTES_MAX, VALUE_BYTES_MAX,
    };
}

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub use self::warnings::{Reports, warnings};
use self::{
    cross::Known,
    rules::Complaint,
    source::{Kinds, Source},
};
use crate::{
    document::{self, Document, Problem, suggest},
    resource::{Cluster, ClusterSpec, Kind, Metadata, Resource, ResourceKey, Topology},
    service_file::{self, ServiceFile},
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

/// What files of any kind say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validated {
    /// Resources, in the order in which they are written.
    pub resources: Vec<Resource>,
    /// What `meshctl up` would start.
    pub topology: Option<Topology>,
    /// Services of one cluster, out of the files that have any `kind: Service`.
    pub services: Vec<ServiceFile>,
}

/// Judges files of any kind on their own: resources and a [`Topology`] as [`validate`] does, and files with a
/// `kind: Service` as the services of one cluster.
///
/// # Errors
/// Every problem found, resources first; at most [`PROBLEMS_MAX`] of either.
pub fn validate_any(documents: &[Document]) -> Result<Validated, Vec<Problem>> {
    let (files, documents): (Vec<Document>, Vec<Document>) =
        documents.iter().cloned().partition(|document| document::kinds(document).iter().any(|kind| is_service(kind)));
    let mut problems = Vec::new();
    let mut validated = Validated::default();
    if !documents.is_empty() || files.is_empty() {
        let source = Source::read(&documents, Kinds::ResourcesAndTopology);
        match judge(source, Resources::new(), Known::Files) {
            Ok((topology, resources)) => (validated.topology, validated.resources) = (topology, resources),
            Err(found) => problems = found,
        }
    }
    if !files.is_empty() {
        match service_file::parse(&files) {
            Ok(services) => validated.services = services,
            Err(found) => problems.extend(found.into_iter().take(PROBLEMS_MAX)),
        }
    }
    if problems.is_empty() { Ok(validated) } else { Err(problems) }
}

/// Whether a kind is, or is a misspelling of, that of a service file.
fn is_service(kind: &str) -> bool {
    let known = Kind::ALL.iter().map(|kind| kind.name()).chain(["Topology", "Service"]);
    suggest::nearest(kind, known) == Some("Service")
}

/// Whether a document of a file says that it is of this kind, whatever else is wrong in it.
#[must_use]
pub fn names_kind(document: &Document, kind: &str) -> bool {
    document::kinds(document).iter().any(|found| *found == kind)
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

/// Judges a set of resources without files.
///
/// Also refuses the deletion of a cluster that others still name: pass the set without it.
#[must_use]
pub fn check(resources: &Resources) -> Vec<Finding> {
    let mut complaints = Vec::new();
    for resource in resources.values() {
        rules::resource(resource, &mut complaints);
    }
    cross::resources(resources, Known::All, &mut complaints);
    complaints.truncate(PROBLEMS_MAX);
    complaints.iter().filter_map(Complaint::finding).collect()
}

/// Something about a resource, said without a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub key: ResourceKey,
    /// Where in it, for example `spec.backends[1].weight`; empty for the resource as a whole.
    pub path: String,
    /// What is to be said; no control characters.
    pub message: String,
}

impl fmt::Display for Finding {
    /// `TrafficSplit shop/checkout: spec.backends[0].cluster: no cluster …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.key)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
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
                spec: ClusterSpec { region: cluster.region.clone(), drained: false, policies: false },
            });
            (resource.key(), resource)
        })
        .collect()
}
