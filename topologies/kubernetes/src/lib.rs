//! The Kubernetes manifests of Archipelago.
//!
//! There is one source of them: the chart beside this crate. Helm renders it, and so does [`render`], which `meshctl install` and
//! `meshctl cluster join` print and from which the kustomize base is made. Values are checked against the chart's own schema.

pub mod template;
pub mod values;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use self::{
    template::{TemplateError, Templates},
    values::Problem,
};

/// What an installation is called and where it goes.
#[derive(Debug, Clone)]
pub struct Release<'a> {
    /// Namespace of everything that has one.
    pub namespace: &'a str,
}

/// Renders the chart with `values` over its defaults: one object per element, in the order to apply them.
///
/// # Errors
/// Values that the schema does not allow, or that are missing.
pub fn render(values: &Value, release: &Release<'_>) -> Result<Vec<Value>, RenderError> {
    let defaults = values::defaults();
    let merged = values::merge(&defaults, values);
    let problems = values::check(&merged);
    if !problems.is_empty() {
        return Err(RenderError::Values(problems));
    }
    let chart = chart();
    let context = json!({
        "Values": merged,
        "Release": { "Namespace": release.namespace, "Name": NAME, "Service": "meshctl" },
        "Chart": { "Name": chart.name, "Version": chart.version, "AppVersion": chart.app_version },
    });
    let mut objects = Vec::new();
    for (file, text) in Templates::parse(TEMPLATES.iter().copied())?.render(&context)? {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
            .map_err(|error| RenderError::Yaml { file: file.clone(), why: error.to_string() })?;
        objects.extend(documents.into_iter().filter(|document| !document.is_null()));
    }
    objects.sort_by_key(|object| {
        let kind = text(object, "/kind");
        let rank = INSTALL_ORDER.iter().position(|known| *known == kind).unwrap_or(INSTALL_ORDER.len());
        (rank, kind, text(object, "/metadata/namespace"), text(object, "/metadata/name"))
    });
    Ok(objects)
}

/// The definitions of the kinds that the agent reads and writes, and the policy that keeps older ones from replacing newer ones; with
/// Helm they are the chart's `crds` folder.
#[must_use]
pub fn crds() -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for (_, text) in CRDS {
        objects.extend(serde_saphyr::from_multiple::<Value>(text).unwrap_or_default());
    }
    objects.retain(|object| !object.is_null());
    objects
}

/// An object as it is addressed: kind, namespace (may be empty), name.
#[must_use]
pub fn identity(object: &Value) -> (String, String, String) {
    (text(object, "/kind"), text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Objects as a stream of YAML documents, for `kubectl apply -f -`.
///
/// # Errors
/// A value that YAML cannot hold; none that [`render`] gives.
pub fn to_yaml(objects: &[Value]) -> Result<String, RenderError> {
    let mut out = String::new();
    for object in objects {
        let text = serde_saphyr::to_string(&tidy(object))
            .map_err(|error| RenderError::Yaml { file: "output".to_owned(), why: error.to_string() })?;
        out.push_str("---\n");
        out.push_str(text.trim_end());
        out.push('\n');
    }
    Ok(out)
}

/// Keys in the order that people expect: apiVersion, kind, metadata, the rest as sorted.
fn tidy(object: &Value) -> BTreeMap<Key<'_>, &Value> {
    object.as_object().into_iter().flatten().map(|(key, value)| (Key(key), value)).collect()
}

#[derive(PartialEq, Eq)]
struct Key<'a>(&'a str);

impl Key<'_> {
    fn rank(&self) -> usize {
        ["apiVersion", "kind", "metadata"].iter().position(|first| *first == self.0).unwrap_or(3)
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank()).then_with(|| self.0.cmp(other.0))
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl serde::Serialize for Key<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

/// Why nothing was rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// Values that the schema does not allow.
    #[error("{}", list(.0))]
    Values(Vec<Problem>),
    /// The chart asks for something.
    #[error("{}", .0.what)]
    Template(#[from] TemplateError),
    /// A value broke the YAML that it was put into.
    #[error("{file}: the values make no valid YAML: {why}")]
    Yaml {
        /// File of the chart.
        file: String,
        /// Cause.
        why: String,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What `Chart.yaml` says.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Chart {
    /// Name of the chart.
    pub name: String,
    /// Version of the chart.
    pub version: String,
    /// Version of what it installs: the tag of the image, unless values say another.
    pub app_version: String,
}

/// The chart's own facts.
///
/// # Panics
/// Never: a test reads them.
#[must_use]
pub fn chart() -> Chart {
    serde_saphyr::from_str(CHART).expect("Chart.yaml is part of this crate and read by its tests")
}

/// Name of a release, unless Helm is told another.
pub const NAME: &str = "archipelago";
/// Namespace of agent and gateways, unless another is given.
pub const NAMESPACE: &str = "archipelago-system";
/// Namespace of a control plane in a cluster, unless another is given: apart, since it needs none of what gateways need.
pub const CONTROL_PLANE_NAMESPACE: &str = "archipelago-control-plane";

/// As Helm installs them.
const INSTALL_ORDER: [&str; 14] = [
    "Namespace",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
    "Deployment",
    "StatefulSet",
];

const CHART: &str = include_str!("../chart/Chart.yaml");
// `TEMPLATES`: every file of `chart/templates`; `CRDS`: every file of `crds`.
include!(concat!(env!("OUT_DIR"), "/files.rs"));
