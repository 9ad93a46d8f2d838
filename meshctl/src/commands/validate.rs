//! `validate`: what the control plane would say of policies, and an agent of service files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_model::document::Document;
use archipelago_model::resource::{Kind, Metadata};
use archipelago_model::{admit, service_file};
use archipelago_proto::v1;
use serde::Serialize;

use super::{Context, files, write};
use crate::cli::FileArgs;
use crate::client::Client;
use crate::exit::{Exit, Outcome};
use crate::output::{self, Text};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Validated {
    valid: bool,
    resources: Vec<Found>,
    /// Of service files, `namespace/name`.
    services: Vec<String>,
    /// As `apply` would print them.
    warnings: Vec<String>,
    /// What only a control plane could have told.
    not_checked: Vec<String>,
}

#[derive(Serialize)]
struct Found {
    kind: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
}

/// `validate`.
///
/// # Errors
/// Exit code 1 with every problem. That no control plane answers is none.
pub(super) async fn validate(context: &Context, args: &FileArgs) -> Outcome {
    let documents = files::read(&args.files)?;
    let count = documents.len();
    let (service_files, policies): (Vec<_>, Vec<_>) =
        documents.into_iter().partition(|document| admit::names_kind(document, "Service"));
    let (services, mut problems) = services(service_files);
    let (topologies, policies): (Vec<_>, Vec<_>) =
        policies.into_iter().partition(|document| admit::names_kind(document, "Topology"));
    // One topology brings the clusters that policies name; several are federations of their own.
    let sets: Vec<Vec<Document>> = match topologies.as_slice() {
        [] | [_] => vec![topologies.iter().chain(&policies).cloned().collect()],
        several => several.iter().map(|topology| vec![topology.clone()]).chain([policies.clone()]).collect(),
    };
    let mut resources = Vec::new();
    for set in sets.iter().filter(|set| !set.is_empty()) {
        match admit::validate(set) {
            Ok(found) => resources.extend(found),
            Err(wrong) => problems.extend(wrong.iter().map(ToString::to_string)),
        }
    }
    if !problems.is_empty() {
        return Err(write::refused(problems));
    }
    let mut view = Validated {
        valid: true,
        resources: resources.iter().map(|resource| Found::new(resource.kind(), resource.metadata())).collect(),
        services,
        warnings: Vec::new(),
        not_checked: Vec::new(),
    };
    if !policies.is_empty() {
        match ask(context, policies).await? {
            Asked::Answered(warnings) => view.warnings = warnings,
            Asked::Nobody(why) => view.not_checked.push(format!(
                "no control plane answered ({why}): whether the clusters and services exist, and what other resources \
                 say of them"
            )),
        }
    }
    if !topologies.is_empty() {
        view.not_checked.push("whether the ports of a topology are free: `meshctl up` looks".to_owned());
    }
    write::warn(&view.warnings);
    for unknown in &view.not_checked {
        output::talk(format!("not checked: {unknown}"));
    }
    context.output.print(&view, || {
        let text = view.resources.iter().fold(Text::default(), |text, found| text.line(format!("{found} is valid")));
        let text = view.services.iter().fold(text, |text, name| text.line(format!("Service {name} is valid")));
        let services = match view.services.len() {
            0 => String::new(),
            services => format!(", {services} services"),
        };
        text.line(format!("{count} files, {} resources{services}, no problem", view.resources.len()))
    })
}

/// Names of services, and problems. Files of one directory are those of one cluster.
fn services(documents: Vec<Document>) -> (Vec<String>, Vec<String>) {
    let mut clusters: BTreeMap<PathBuf, Vec<Document>> = BTreeMap::new();
    for document in documents {
        let parent = Path::new(&document.file).parent().map(Path::to_owned).unwrap_or_default();
        clusters.entry(parent).or_default().push(document);
    }
    let (mut names, mut problems) = (Vec::new(), Vec::new());
    for files in clusters.values() {
        match service_file::parse(files) {
            Ok(services) => names.extend(services.iter().map(service_file::ServiceFile::key)),
            Err(wrong) => problems.extend(wrong.iter().map(ToString::to_string)),
        }
    }
    (names, problems)
}

enum Asked {
    /// With these warnings.
    Answered(Vec<String>),
    Nobody(String),
}

/// Lets a control plane judge, if one answers soon; it changes nothing.
async fn ask(context: &Context, documents: Vec<Document>) -> Outcome<Asked> {
    let client = match Client::open(context.state(), context.timeout().min(PATIENCE)) {
        Ok(client) => client,
        Err(failure) => return Ok(Asked::Nobody(failure.to_string())),
    };
    let documents =
        documents.into_iter().map(|document| v1::Document { file: document.file, text: document.text }).collect();
    match client.apply(documents, Vec::new(), true).await {
        Ok(answer) if answer.problems.is_empty() => Ok(Asked::Answered(answer.warnings)),
        Ok(answer) => Err(write::refused(answer.problems)),
        Err(failure) if failure.exit() == Exit::NoControlPlane => Ok(Asked::Nobody(failure.to_string())),
        Err(failure) => Err(failure),
    }
}

impl Found {
    fn new(kind: Kind, metadata: &Metadata) -> Self {
        Self { kind: kind.name(), namespace: metadata.namespace.clone(), name: metadata.name.clone() }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// A control plane that is there answers in milliseconds; a check in an editor or a pipeline should not wait for one
/// that is not.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: archipelago.dev/v1alpha1\nkind: Service\nmetadata: { name: web, namespace: shop }\nspec: { port: 80 }\n";

    #[test]
    fn files_of_one_directory_are_one_cluster() {
        let file = |file: &str, text: &str| Document { file: file.into(), text: text.into() };
        let (names, problems) = services(vec![file("paris/a.yaml", SERVICE), file("tokyo/a.yaml", SERVICE)]);
        assert_eq!((names.len(), problems.len()), (2, 0), "{problems:?}");
        let (_, problems) = services(vec![file("paris/a.yaml", SERVICE), file("paris/b.yaml", SERVICE)]);
        assert!(problems[0].starts_with("paris/b.yaml:1:1:"), "{problems:?}");
    }
}
