//! `apply`, `get`, `delete`.

use archipelago_model::admit;
use archipelago_model::resource::Kind;
use archipelago_proto::v1;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Context, files, watch, write};
use crate::cli::{ApplyArgs, DeleteArgs, GetArgs};
use crate::exit::{Failure, Outcome};
use crate::ordered::Ordered;
use crate::output::{self, Format, Table, Text};
use crate::views::ChangeView;

/// `apply`.
pub(super) async fn apply(context: &Context, args: ApplyArgs) -> Outcome {
    let documents: Vec<v1::Document> = files::read(&args.files.files)?
        .into_iter()
        .map(|document| v1::Document { file: document.file, text: document.text })
        .collect();
    let client = context.client()?;
    let answer = client.apply(documents, Vec::new(), args.dry_run).await?;
    if args.dry_run && answer.problems.is_empty() {
        write::warn(&answer.warnings);
        let changes: Vec<ChangeView> = crate::views::WriteView::new(answer, None).changes;
        return context.output.print(&changes, || {
            changes.iter().fold(Text::default(), |text, change| {
                text.line(format!("{} {}/{} would be {}", change.kind, change.namespace, change.name, change.what))
            })
        });
    }
    write::finish(context, &client, answer, args.wait.wait).await
}

/// `get`.
pub(super) async fn get(context: &Context, args: GetArgs) -> Outcome {
    watch::run(context, args.watch, async |context| get_once(context, &args).await).await
}

async fn get_once(context: &Context, args: &GetArgs) -> Outcome {
    let kind = args.kind.as_deref().map(kind).transpose()?;
    let (namespace, name) = qualified(args.namespace.clone(), args.name.clone());
    let client = context.client()?;
    let kind_name = kind.map_or("", Kind::name);
    let answer =
        client.get(kind_name, namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default()).await?;
    if answer.resources.is_empty() && name.is_some() {
        return Err(absent(kind_name, namespace.as_deref(), name.as_deref().unwrap_or_default()));
    }
    let documents: Vec<Ordered> = parsed(&answer.resources)?;
    match context.output.format() {
        Format::Yaml => {
            // A comment where a file without a document would look like a failure.
            let mut text = if documents.is_empty() { "# nothing is there\n".to_owned() } else { String::new() };
            for (index, document) in documents.iter().enumerate() {
                if index > 0 {
                    text.push_str("---\n");
                }
                text.push_str(&output::yaml(document)?);
            }
            context.output.write(&text)
        }
        _ => match documents.as_slice() {
            // One that was asked for by name is itself; a list is a list, whatever its length.
            [document] if name.is_some() => context.output.print(document, || table(&answer.resources)),
            _ => context.output.print(&documents, || table(&answer.resources)),
        },
    }
}

/// `delete`.
pub(super) async fn delete(context: &Context, args: DeleteArgs) -> Outcome {
    let keys = if let Some(kind_text) = &args.kind {
        let kind = kind(kind_text)?;
        let (namespace, name) = qualified(args.namespace, args.name);
        let namespace = if kind.namespaced() {
            namespace.unwrap_or_else(|| archipelago_model::resource::DEFAULT_NAMESPACE.to_owned())
        } else {
            String::new()
        };
        vec![v1::ResourceKey { kind: kind.name().to_owned(), namespace, name: name.unwrap_or_default() }]
    } else {
        let documents = files::read(&args.files)?;
        let resources = admit::validate(&documents)
            .map_err(|problems| write::refused(problems.iter().map(ToString::to_string).collect()))?;
        resources
            .iter()
            .map(|resource| {
                let key = resource.key();
                v1::ResourceKey { kind: key.kind.name().to_owned(), namespace: key.namespace, name: key.name }
            })
            .collect()
    };
    let client = context.client()?;
    let answer = client.delete(keys, Vec::new()).await?;
    write::finish(context, &client, answer, args.wait.wait).await
}

/// The canonical documents of resources.
pub(super) fn documents(resources: &[v1::Resource]) -> Outcome<Vec<Value>> {
    parsed(resources)
}

fn parsed<T: DeserializeOwned>(resources: &[v1::Resource]) -> Outcome<Vec<T>> {
    resources
        .iter()
        .map(|resource| {
            serde_json::from_str(&resource.json)
                .map_err(|error| Failure::refused(format!("{} {}: {error}", resource.kind, resource.name)))
        })
        .collect()
}

/// Exit code 1: there is no such resource.
fn absent(kind: &str, namespace: Option<&str>, name: &str) -> Failure {
    let place = namespace.map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
    Failure::refused(format!("no {kind} {name}{place}")).hint(format!("`meshctl get {kind}` lists them"))
}

/// A kind in any case, with or without a plural s: what `kubectl` has taught people.
fn kind(text: &str) -> Outcome<Kind> {
    let wanted = text.to_ascii_lowercase();
    let found = Kind::ALL.into_iter().find(|kind| {
        let name = kind.name().to_ascii_lowercase();
        let plural = name.strip_suffix('y').map_or_else(|| format!("{name}s"), |stem| format!("{stem}ies"));
        wanted == name || wanted == plural
    });
    found.map_or_else(
        || {
            // The parser's error suggests the nearest; kinds are written in capitals there.
            let reason = text.parse::<Kind>().err().map_or_else(String::new, |error| error.to_string());
            let names: Vec<&str> = Kind::ALL.into_iter().map(Kind::name).collect();
            Err(Failure::refused(reason).hint(format!("kinds are {}", names.join(", "))))
        },
        Ok,
    )
}

/// `-n ns name` and `ns/name` mean the same.
fn qualified(namespace: Option<String>, name: Option<String>) -> (Option<String>, Option<String>) {
    match (&namespace, name.as_deref().and_then(|name| name.split_once('/'))) {
        (None, Some((namespace, name))) => (Some(namespace.to_owned()), Some(name.to_owned())),
        _ => (namespace, name),
    }
}

fn table(resources: &[v1::Resource]) -> Text {
    let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "CREATED AT", "MODIFIED AT", "WRITTEN BY"]);
    for resource in resources {
        let namespace = if resource.namespace.is_empty() { "-" } else { &resource.namespace };
        table.row([
            resource.kind.clone().into(),
            namespace.into(),
            resource.name.clone().into(),
            resource.created_revision.into(),
            resource.modified_revision.into(),
            written_by(resource).into(),
        ]);
    }
    table.into()
}

/// Whose resource it is, and who else wants to write it.
fn written_by(resource: &v1::Resource) -> String {
    let owner = match resource.origin.as_str() {
        "" => "operator".to_owned(),
        cluster => format!("cluster {cluster}"),
    };
    if resource.rivals.is_empty() { owner } else { format!("{owner} (conflict: {})", resource.rivals.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_as_people_write_them() {
        for text in ["TrafficSplit", "trafficsplit", "trafficsplits"] {
            assert_eq!(kind(text).unwrap(), Kind::TrafficSplit);
        }
        assert_eq!(kind("failoverpolicies").unwrap(), Kind::FailoverPolicy);
        assert!(kind("TraficSplit").unwrap_err().render().contains("did you mean `TrafficSplit`"));
    }

    #[test]
    fn owners_and_rivals_are_named() {
        let resource = |origin: &str, rivals: &[&str]| {
            let rivals = rivals.iter().map(|rival| (*rival).to_owned()).collect();
            written_by(&v1::Resource { origin: origin.into(), rivals, ..v1::Resource::default() })
        };
        assert_eq!(resource("", &[]), "operator");
        assert_eq!(
            resource("paris", &["cluster tokyo", "cluster lima"]),
            "cluster paris (conflict: cluster tokyo, cluster lima)"
        );
    }

    #[test]
    fn a_namespace_stands_in_front_or_behind_a_flag() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(qualified(None, some("shop/checkout")), (some("shop"), some("checkout")));
        assert_eq!(qualified(some("shop"), some("checkout")), (some("shop"), some("checkout")));
        assert_eq!(qualified(None, some("paris")), (None, some("paris")));
    }
}
