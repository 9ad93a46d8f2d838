//! Which kinds there are, and where.

use serde_json::Value;

/// A kind of object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty: core.
    pub group: String,
    /// Versions that are served; all of them show the same objects. The first is what is stored.
    pub versions: Vec<String>,
    /// As in paths.
    pub plural: String,
    /// As in objects.
    pub kind: String,
    /// Whether it is in namespaces.
    pub scope: Scope,
    /// `status` is written apart from the rest.
    pub has_status: bool,
}

/// Where objects are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// In none.
    Cluster,
}

impl Kind {
    /// A namespaced kind with a status.
    #[must_use]
    pub fn namespaced(group: &str, versions: &[&str], plural: &str, kind: &str) -> Self {
        Self {
            group: group.into(),
            versions: versions.iter().map(|version| (*version).into()).collect(),
            plural: plural.into(),
            kind: kind.into(),
            scope: Scope::Namespaced,
            has_status: true,
        }
    }

    /// One without a separate status.
    #[must_use]
    pub fn without_status(self) -> Self {
        Self { has_status: false, ..self }
    }

    /// One that is in no namespace.
    #[must_use]
    pub fn cluster_wide(self) -> Self {
        Self { scope: Scope::Cluster, ..self }
    }

    /// `group/version` of its objects, for a request under `version`.
    pub(crate) fn api_version(&self, version: &str) -> String {
        match self.group.as_str() {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }
}

pub(crate) struct Kinds(Vec<Kind>);

impl Default for Kinds {
    fn default() -> Self {
        let mcs = |plural, kind| Kind::namespaced("multicluster.x-k8s.io", &["v1beta1", "v1alpha1"], plural, kind);
        let ours = |plural, kind| Kind::namespaced("archipelago.dev", &["v1alpha1"], plural, kind);
        let about = Kind::namespaced("about.k8s.io", &["v1beta1", "v1alpha1"], "clusterproperties", "ClusterProperty");
        Self(vec![
            Kind::namespaced("", &["v1"], "services", "Service"),
            Kind::namespaced("", &["v1"], "pods", "Pod"),
            Kind::namespaced("", &["v1"], "nodes", "Node").cluster_wide(),
            Kind::namespaced("", &["v1"], "namespaces", "Namespace").cluster_wide(),
            Kind::namespaced("", &["v1"], "secrets", "Secret").without_status(),
            Kind::namespaced("", &["v1"], "configmaps", "ConfigMap").without_status(),
            Kind::namespaced("", &["v1"], "events", "Event").without_status(),
            Kind::namespaced("discovery.k8s.io", &["v1"], "endpointslices", "EndpointSlice").without_status(),
            Kind::namespaced("coordination.k8s.io", &["v1"], "leases", "Lease").without_status(),
            mcs("serviceexports", "ServiceExport"),
            mcs("serviceimports", "ServiceImport"),
            about.cluster_wide(),
            ours("trafficsplits", "TrafficSplit"),
            ours("failoverpolicies", "FailoverPolicy"),
        ])
    }
}

impl Kinds {
    pub(crate) fn install(&mut self, kind: Kind) {
        self.uninstall(&kind.kind);
        self.0.push(kind);
    }

    pub(crate) fn uninstall(&mut self, kind: &str) {
        self.0.retain(|known| known.kind != kind);
    }

    pub(crate) fn at(&self, group: &str, version: &str, plural: &str) -> Option<Kind> {
        let fits = |kind: &&Kind| {
            kind.group == group && kind.plural == plural && kind.versions.iter().any(|served| served == version)
        };
        self.0.iter().find(fits).cloned()
    }

    pub(crate) fn named(&self, name: &str) -> Kind {
        self.0.iter().find(|kind| kind.kind == name).cloned().unwrap_or_else(|| panic!("no kind {name} is installed"))
    }

    /// The kind of an object of a test.
    pub(crate) fn of(&self, object: &Value) -> Kind {
        self.named(object["kind"].as_str().expect("an object of a test says its kind"))
    }
}
