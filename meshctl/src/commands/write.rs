//! What every write has in common: commit, wait for the gateways, print, and the exit code.

use std::time::{Duration, Instant};

use archipelago_base::backoff::Backoff;
use archipelago_proto::v1;
use rand::RngExt as _;
use serde_json::Value;

use super::Context;
use super::resources::documents;
use crate::cli::Wait;
use crate::client::Client;
use crate::exit::{Exit, Failure, Outcome};
use crate::names::ServiceName;
use crate::output;
use crate::views::WriteView;
use archipelago_model::edit::{self, Edit};

/// The one resource that a verb edits.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// The resource of this kind that is about a service, whatever its name.
    About(&'static str, &'a ServiceName),
    /// The cluster of this name.
    Cluster(&'a str),
}

impl Subject<'_> {
    fn kind(self) -> &'static str {
        match self {
            Self::About(kind, _) => kind,
            Self::Cluster(_) => "Cluster",
        }
    }

    /// Reads it, with the revision that it is at.
    pub(super) async fn read(self, client: &Client) -> Outcome<Option<Held>> {
        let namespace = match self {
            Self::About(_, service) => service.namespace.as_str(),
            Self::Cluster(_) => "",
        };
        let answer = client.get(self.kind(), namespace, "").await?;
        let found = answer.resources.iter().zip(documents(&answer.resources)?).find(|(_, document)| match self {
            Self::About(_, service) => edit::is_about(document, service),
            Self::Cluster(name) => edit::name(document) == name,
        });
        Ok(found.map(|(resource, document)| Held { document, revision: resource.modified_revision }))
    }
}

/// A resource as it was read.
pub(super) struct Held {
    pub(super) document: Value,
    revision: u64,
}

/// Edits one resource: reads it, lets `change` make the next form of it, and commits that only if nobody wrote the
/// resource in between; otherwise all of it again, so that of two operators neither loses a word.
///
/// # Errors
/// What `change` refuses; [`TRIES_MAX`] conflicts in a row; and everything that [`finish`] says.
pub(super) async fn edit(
    context: &Context,
    client: &Client,
    what: &str,
    subject: Subject<'_>,
    change: impl Fn(Option<&Value>) -> Outcome<Edit>,
    wait: Wait,
) -> Outcome {
    edit_without(context, client, what, subject, change, wait, None).await
}

/// The same, but that nobody waits for the gateways of the cluster `absent`.
pub(super) async fn edit_without(
    context: &Context,
    client: &Client,
    what: &str,
    subject: Subject<'_>,
    change: impl Fn(Option<&Value>) -> Outcome<Edit>,
    wait: Wait,
    absent: Option<&str>,
) -> Outcome {
    let mut pause = Backoff::new(Duration::ZERO, PAUSE_MIN, PAUSE_MAX);
    for _ in 0..TRIES_MAX {
        let held = subject.read(client).await?;
        let before = held.as_ref().map(|held| &held.document);
        let answer = match change(before)? {
            Edit::Apply(document) => {
                let preconditions = vec![precondition(subject.kind(), &document, held.as_ref())];
                let documents = vec![v1::Document { file: what.to_owned(), text: document.to_string() }];
                client.apply(documents, preconditions, false).await?
            }
            Edit::Delete => {
                let Some(Held { document, .. }) = &held else {
                    return Err(Failure::refused("there is nothing to delete"));
                };
                let preconditions = vec![precondition(subject.kind(), document, held.as_ref())];
                client.delete(vec![key(subject.kind(), document)], preconditions).await?
            }
        };
        if answer.conflicts.is_empty() {
            return finish_without(context, client, answer, wait, absent).await;
        }
        tokio::time::sleep(pause.next_delay(rand::rng().random_range(0.0..1.0))).await;
    }
    Err(Failure::refused(format!("{what}: others changed it {TRIES_MAX} times in a row; nothing changed"))
        .hint("something else writes this resource all the time; try again"))
}

/// That the resource is still as it was read.
fn precondition(kind: &str, document: &Value, held: Option<&Held>) -> v1::Precondition {
    let expect = match held {
        Some(held) => v1::precondition::Expect::Revision(held.revision),
        None => v1::precondition::Expect::Absent(true),
    };
    v1::Precondition { key: Some(key(kind, document)), expect: Some(expect) }
}

fn key(kind: &str, document: &Value) -> v1::ResourceKey {
    let text = |field: &str| document.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str);
    v1::ResourceKey {
        kind: kind.to_owned(),
        namespace: text("namespace").unwrap_or_default().to_owned(),
        name: text("name").unwrap_or_default().to_owned(),
    }
}

/// Waits for the acknowledgement of a commit and prints how it went.
///
/// # Errors
/// Exit code 1 when it was refused, 2 when gateways are missing, 3 when one rejected it.
pub(super) async fn finish(context: &Context, client: &Client, answer: v1::ApplyResponse, wait: Wait) -> Outcome {
    finish_without(context, client, answer, wait, None).await
}

async fn finish_without(
    context: &Context,
    client: &Client,
    answer: v1::ApplyResponse,
    wait: Wait,
    absent: Option<&str>,
) -> Outcome {
    if !answer.problems.is_empty() {
        return Err(refused(answer.problems));
    }
    warn(&answer.warnings);
    let Some(enough) = Enough::of(wait) else {
        let view = WriteView::new(answer, None);
        return context.output.print(&view, || view.text());
    };
    let revision = answer.revision;
    let began = Instant::now();
    let mut last = 0;
    let wrote: Vec<v1::ResourceKey> = answer.changes.iter().map(changed).collect();
    let applied = client
        .wait_applied(revision, &wrote, enough, |progress| {
            let v1::WaitAppliedProgress { acknowledged, expected, done, .. } = *progress;
            if began.elapsed() >= WORTH_TELLING && acknowledged != last && !done {
                output::talk(format!("revision {revision}: {acknowledged}/{expected} gateways"));
                last = acknowledged;
            }
        })
        .await;
    let applied = match applied {
        Ok(applied) => applied,
        Err(failure) => {
            let view = WriteView::new(answer, None);
            context.output.print(&view, || view.text())?;
            let why = format!("revision {revision} is committed, but who runs it could not be learned: {failure}");
            return Err(Failure::new(Exit::Unacknowledged, why)
                .hint("`meshctl gateways` shows it once the control plane answers"));
        }
    };
    let view = WriteView::new(answer, Some(&applied));
    context.output.print(&view, || view.text())?;
    verdict(&applied, enough, absent)
}

fn changed(change: &v1::Change) -> v1::ResourceKey {
    let v1::Change { kind, namespace, name, what: _ } = change.clone();
    v1::ResourceKey { kind, namespace, name }
}

/// Says what was accepted and may not be what was meant.
pub(super) fn warn(warnings: &[String]) {
    for warning in warnings {
        output::talk(format!("warning: {warning}"));
    }
}

/// Refused input: every problem, and that nothing changed.
pub(super) fn refused(problems: Vec<String>) -> Failure {
    let count = problems.len();
    Failure::refused(format!("refused: {count} problem{}, nothing changed", if count == 1 { "" } else { "s" }))
        .problems(problems)
}

/// Whose acknowledgements a write waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enough {
    All,
    Majority,
}

impl Enough {
    /// `None`: do not wait.
    fn of(wait: Wait) -> Option<Self> {
        match wait {
            Wait::All => Some(Self::All),
            Wait::Quorum => Some(Self::Majority),
            Wait::None => None,
        }
    }

    fn reached(self, applied: &v1::WaitAppliedProgress) -> bool {
        match self {
            Self::All => applied.acknowledged >= applied.expected,
            Self::Majority => applied.expected == 0 || applied.acknowledged > applied.expected / 2,
        }
    }
}

/// The exit code of a committed write; the gateways of the cluster `absent` may be missing.
fn verdict(applied: &v1::WaitAppliedProgress, enough: Enough, absent: Option<&str>) -> Outcome {
    if !applied.rejections.is_empty() {
        let who: Vec<String> = applied.rejections.iter().map(rejection).collect();
        let mut gateways: Vec<&str> = applied.rejections.iter().map(|rejection| rejection.gateway.as_str()).collect();
        gateways.dedup();
        let failure = Failure::new(
            Exit::Rejected,
            format!(
                "revision {} cannot be used as it is by {} of {} gateways",
                applied.revision,
                gateways.len(),
                applied.expected
            ),
        );
        return Err(failure
            .problems(who)
            .hint("they go on with their last good configuration; correct the resource and apply it again"));
    }
    let of_absent = |straggler: &v1::Straggler| {
        absent.is_some_and(|absent| straggler.gateway.split_once('/').is_some_and(|(cluster, _)| cluster == absent))
    };
    if enough.reached(applied) || (!applied.stragglers.is_empty() && applied.stragglers.iter().all(of_absent)) {
        return Ok(());
    }
    let who: Vec<String> =
        applied.stragglers.iter().map(|straggler| format!("{}: {}", straggler.gateway, straggler.reason)).collect();
    Err(Failure::new(
        Exit::Unacknowledged,
        format!(
            "revision {} is committed, but only {} of {} gateways acknowledged it in time",
            applied.revision, applied.acknowledged, applied.expected
        ),
    )
    .problems(who)
    .hint("they apply it as soon as they are reachable; `meshctl gateways` shows when"))
}

/// Who cannot use what, and why.
fn rejection(rejection: &v1::Rejection) -> String {
    let v1::Rejection { gateway, error, resource } = rejection;
    if resource.is_empty() { format!("{gateway}: {error}") } else { format!("{gateway}: {resource}: {error}") }
}

/// Eight operators who write one resource at the same moment need at most eight rounds; more is not people.
const TRIES_MAX: usize = 32;
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Below this nobody has begun to wonder.
const WORTH_TELLING: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(acknowledged: u32, expected: u32, rejected: &[&str]) -> v1::WaitAppliedProgress {
        v1::WaitAppliedProgress {
            revision: 7,
            expected,
            acknowledged,
            stragglers: vec![v1::Straggler { gateway: "tokyo/gw-2".into(), reason: "at revision 6".into() }],
            rejections: rejected
                .iter()
                .map(|gateway| v1::Rejection {
                    gateway: (*gateway).into(),
                    error: "no such cluster".into(),
                    resource: "service/shop/web".into(),
                })
                .collect(),
            done: true,
            ..Default::default()
        }
    }

    #[test]
    fn exit_codes_follow_the_gateways() {
        let exit = |progress: &v1::WaitAppliedProgress, wait| {
            verdict(progress, Enough::of(wait).unwrap(), None).map_or_else(|failure| failure.exit(), |()| Exit::Done)
        };
        assert_eq!(exit(&progress(6, 6, &[]), Wait::All), Exit::Done);
        assert_eq!(exit(&progress(0, 0, &[]), Wait::All), Exit::Done);
        assert_eq!(exit(&progress(5, 6, &[]), Wait::All), Exit::Unacknowledged);
        assert_eq!(exit(&progress(5, 6, &["paris/gw-1"]), Wait::All), Exit::Rejected);
        assert_eq!(exit(&progress(4, 6, &[]), Wait::Quorum), Exit::Done);
        assert_eq!(exit(&progress(3, 6, &[]), Wait::Quorum), Exit::Unacknowledged);
        assert_eq!(exit(&progress(26, 51, &[]), Wait::Quorum), Exit::Done);
        assert_eq!(exit(&progress(25, 51, &[]), Wait::Quorum), Exit::Unacknowledged);
        assert_eq!(Enough::of(Wait::None), None);
    }

    #[test]
    fn stragglers_and_rejections_are_named() {
        let late = verdict(&progress(5, 6, &[]), Enough::All, None).unwrap_err().render();
        assert!(late.contains("tokyo/gw-2: at revision 6") && late.contains("5 of 6"), "{late}");
        let rejected = verdict(&progress(5, 6, &["paris/gw-1"]), Enough::All, None).unwrap_err().render();
        assert!(rejected.contains("paris/gw-1: service/shop/web: no such cluster"), "{rejected}");
        // The one that is late is of tokyo.
        assert_eq!(
            verdict(&progress(5, 6, &[]), Enough::All, Some("tokyo")).map_err(|failure| failure.render()),
            Ok(())
        );
        verdict(&progress(5, 6, &[]), Enough::All, Some("paris")).unwrap_err();
        verdict(&progress(5, 6, &["paris/gw-1"]), Enough::All, Some("tokyo")).unwrap_err();
    }

    #[test]
    fn refusals_count_their_problems() {
        let one = refused(vec!["a.yaml:1:1: bad".into()]);
        assert_eq!(
            (one.exit(), one.render().as_str()),
            (Exit::Refused, "a.yaml:1:1: bad\nerror: refused: 1 problem, nothing changed\n")
        );
    }
}
