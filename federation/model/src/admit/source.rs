//! The files of one request, decoded, and the way back from a path in a resource to a place in a file.

use std::collections::BTreeMap;

use super::{
    PROBLEMS_MAX,
    rules::{Complaint, Site, Subject},
};
use crate::{
    document::{
        self, Document, Problem,
        decode::{Mistake, Mistakes, places},
        frame::Frame,
        tree::{Node, Place},
    },
    resource::{Kind, Object, Resource, ResourceKey, Topology},
};

/// Which kinds may stand in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kinds {
    Resources,
    ResourcesAndTopology,
}

/// Everything read from the files, right or wrong.
pub(super) struct Source {
    files: Vec<String>,
    items: Vec<Item>,
    /// Resource → its first item; the clusters of a topology stand for their topology.
    index: BTreeMap<ResourceKey, usize>,
    /// From documents that could not be read at all, with the index of their file.
    broken: Vec<(usize, Problem)>,
}

/// One document that has at least a kind.
pub(super) struct Item {
    file: usize,
    content: Content,
    places: BTreeMap<String, Place>,
    mistakes: Vec<Mistake>,
}

enum Content {
    Resource(Resource),
    Topology(Topology),
    /// Kind or specification could not be read; its mistakes say why.
    Nothing,
}

#[derive(Clone, Copy)]
enum AnyKind {
    Resource(Kind),
    Topology,
}

impl Source {
    pub(super) fn read(documents: &[Document], kinds: Kinds) -> Self {
        let mut source = Self {
            files: documents.iter().map(|document| document.file.clone()).collect(),
            items: Vec::new(),
            index: BTreeMap::new(),
            broken: Vec::new(),
        };
        for (file, document) in documents.iter().enumerate() {
            let (parts, problems) = document::parse(document);
            source.broken.extend(problems.into_iter().map(|problem| (file, problem)));
            source.items.extend(parts.into_iter().map(|part| Item::read(file, &part.root, kinds)));
        }
        source.index();
        source.refuse_duplicates();
        source
    }

    /// Whether every document could be read as something.
    pub(super) fn is_complete(&self) -> bool {
        self.broken.is_empty() && self.items.iter().all(|item| !matches!(item.content, Content::Nothing))
    }

    pub(super) fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.items.iter().filter_map(|item| match &item.content {
            Content::Resource(resource) => Some(resource),
            Content::Topology(_) | Content::Nothing => None,
        })
    }

    pub(super) fn topology(&self) -> Option<&Topology> {
        self.items.iter().find_map(|item| match &item.content {
            Content::Topology(topology) => Some(topology),
            Content::Resource(_) | Content::Nothing => None,
        })
    }

    /// Whether the complaint is about anything in these files.
    pub(super) fn has_any(&self, complaint: &Complaint) -> bool {
        complaint.sites.iter().any(|site| self.find(&site.subject).is_some())
    }

    /// Mistakes and complaints with their places, in the order of the files.
    pub(super) fn problems(&self, complaints: &[Complaint]) -> Vec<Problem> {
        let mut problems: Vec<(usize, Problem)> = self.broken.clone();
        for item in &self.items {
            let name = self.file(item.file);
            problems.extend(
                item.mistakes
                    .iter()
                    .map(|mistake| (item.file, mistake.place.problem(name, &mistake.path, &mistake.message))),
            );
        }
        problems.extend(complaints.iter().take(COMPLAINTS_MAX).filter_map(|complaint| self.locate(complaint)));
        problems.sort();
        problems.dedup();
        let hidden = problems.len().saturating_sub(PROBLEMS_MAX);
        problems.truncate(PROBLEMS_MAX);
        let mut problems: Vec<Problem> = problems.into_iter().map(|(_, problem)| problem).collect();
        if hidden > 0
            && let Some(last) = problems.last_mut()
        {
            last.message.push_str(&format!(" (and {hidden} more problems)"));
        }
        problems
    }

    /// The place of a complaint; none when a mistake at the same path already says more.
    fn locate(&self, complaint: &Complaint) -> Option<(usize, Problem)> {
        let mut found: Vec<(usize, &Site)> =
            complaint.sites.iter().filter_map(|site| Some((self.find(&site.subject)?, site))).collect();
        let mut message = complaint.message.clone();
        if complaint.duplicate {
            // The later of the two is the one to change, the earlier is named.
            found.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
            let earlier = match found.get(1) {
                Some((index, site)) => format!(": `{}` at {}", site.subject, self.place_text(*index, &site.path)),
                None => {
                    let here = found.first().map(|(_, site)| &site.subject);
                    let other = complaint.sites.iter().find(|site| Some(&site.subject) != here);
                    other.map_or_else(String::new, |site| format!(": `{}`, applied earlier", site.subject))
                }
            };
            message.push_str(&earlier);
        }
        let Some((index, path)) = found.first().map(|(index, site)| (*index, site.path.as_str())) else {
            // Only what exists already is wrong now, because of these files as a whole.
            let file = self.items.first().map_or(0, |item| item.file);
            let place = Place { line: 1, column: 1 };
            return Some((file, place.problem(self.file(file), "", &complaint.to_string())));
        };
        let item = self.items.get(index)?;
        if item.mistakes.iter().any(|mistake| related(&mistake.path, path)) {
            return None;
        }
        Some((item.file, item.place(path).problem(self.file(item.file), path, &message)))
    }

    fn place_text(&self, index: usize, path: &str) -> String {
        self.items.get(index).map_or_else(String::new, |item| {
            let place = item.place(path);
            format!("{}:{}:{}", self.file(item.file), place.line, place.column)
        })
    }

    fn find(&self, subject: &Subject) -> Option<usize> {
        match subject {
            Subject::Resource(key) => self.index.get(key).copied(),
            Subject::Topology => self.items.iter().position(|item| matches!(item.content, Content::Topology(_))),
        }
    }

    fn index(&mut self) {
        for (index, item) in self.items.iter().enumerate() {
            match &item.content {
                Content::Resource(resource) => {
                    self.index.entry(resource.key()).or_insert(index);
                }
                Content::Topology(topology) => {
                    for cluster in &topology.spec.clusters {
                        let name = cluster.name.clone();
                        let key = ResourceKey { kind: Kind::Cluster, namespace: String::new(), name };
                        self.index.entry(key).or_insert(index);
                    }
                }
                Content::Nothing => {}
            }
        }
    }

    fn file(&self, index: usize) -> &str {
        self.files.get(index).map_or("", String::as_str)
    }

    /// The same resource, or a topology, twice in one request.
    fn refuse_duplicates(&mut self) {
        let mut first: BTreeMap<String, String> = BTreeMap::new();
        for index in 0..self.items.len() {
            let what = match self.items.get(index).map(|item| &item.content) {
                Some(Content::Resource(resource)) if !resource.metadata().name.is_empty() => resource.key().to_string(),
                Some(Content::Topology(_)) => "a Topology".to_owned(),
                Some(Content::Resource(_) | Content::Nothing) | None => continue,
            };
            if let Some(earlier) = first.get(&what) {
                let message = format!("{what} is already given at {earlier}");
                if let Some(item) = self.items.get_mut(index) {
                    let place = item.place("metadata.name");
                    item.mistakes.push(Mistake { place, path: "metadata.name".to_owned(), message });
                }
            } else {
                let place = self.place_text(index, "metadata.name");
                first.insert(what, place);
            }
        }
    }
}

impl Item {
    fn read(file: usize, root: &Node, kinds: Kinds) -> Self {
        let mut out = Mistakes::default();
        let known: Vec<(&str, AnyKind)> = Kind::ALL
            .into_iter()
            .map(|kind| (kind.name(), AnyKind::Resource(kind)))
            .chain([("Topology", AnyKind::Topology)])
            .collect();
        let content = Frame::read(root, &known, &mut out)
            .and_then(|(frame, kind)| Content::read(&frame, kind, kinds, &mut out))
            .unwrap_or(Content::Nothing);
        Self { file, content, places: places(root), mistakes: out.into_vec() }
    }

    /// The place of `path`, or of the nearest part around it that is in the file.
    fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return *place;
            }
            match path.rfind(['.', '[']) {
                Some(cut) => path = path.get(..cut).unwrap_or_default(),
                None if path.is_empty() => return Place { line: 1, column: 1 },
                None => path = "",
            }
        }
    }
}

impl Content {
    fn read(frame: &Frame<'_>, kind: AnyKind, kinds: Kinds, out: &mut Mistakes) -> Option<Self> {
        let kind = match kind {
            AnyKind::Resource(kind) => kind,
            AnyKind::Topology if kinds == Kinds::ResourcesAndTopology => {
                let metadata = frame.metadata(false, out);
                return Some(Self::Topology(Object { metadata, spec: frame.spec(out)? }));
            }
            AnyKind::Topology => {
                out.push(frame.kind, "kind", "a Topology is what `meshctl up` starts: it cannot be applied");
                return None;
            }
        };
        let metadata = frame.metadata(kind.namespaced(), out);
        Some(Self::Resource(match kind {
            Kind::Cluster => Resource::Cluster(Object { metadata, spec: frame.spec(out)? }),
            Kind::ServiceExport => Resource::ServiceExport(Object { metadata, spec: frame.spec(out)? }),
            Kind::TrafficSplit => Resource::TrafficSplit(Object { metadata, spec: frame.spec(out)? }),
            Kind::FailoverPolicy => Resource::FailoverPolicy(Object { metadata, spec: frame.spec(out)? }),
            Kind::BackendPolicy => Resource::BackendPolicy(Object { metadata, spec: frame.spec(out)? }),
        }))
    }
}

/// Whether one path contains the other.
fn related(one: &str, other: &str) -> bool {
    let inside = |outer: &str, inner: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || outer.is_empty() || rest.starts_with(['.', '[']))
    };
    inside(one, other) || inside(other, one)
}

/// Ten times what is shown: enough to choose from, and an absurd file costs no more than a large one.
const COMPLAINTS_MAX: usize = 10 * PROBLEMS_MAX;

#[cfg(test)]
mod tests {
    use super::related;

    #[test]
    fn a_path_is_related_to_what_contains_it() {
        assert!(related("spec.backends", "spec.backends[0].weight"));
        assert!(related("spec.backends[0].weight", "spec.backends"));
        assert!(!related("spec.backends[1]", "spec.backends[10]"));
        assert!(!related("spec.service", "spec.services"));
    }
}
