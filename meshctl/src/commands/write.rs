//! What every write has in common: commit, wait for the gateways, print, and the exit code.

use std::time::{Duration, Instant};

use archipelago_proto::v1;
use serde_json::Value;

use super::Context;
use crate::cli::Wait;
use crate::client::Client;
use crate::edit::Edit;
use crate::exit::{Exit, Failure, Outcome};
use crate::output;
use crate::views::WriteView;

/// Commits an edit of one resource.
pub(super) async fn edit(
    context: &Context,
    client: &Client,
    what: &str,
    kind: &str,
    edit: Edit,
    before: Option<&Value>,
    wait: Wait,
) -> Outcome {
    let answer = match edit {
        Edit::Apply(document) => {
            let documents = vec![v1::Document { file: what.to_owned(), text: document.to_string() }];
            client.apply(documents, false).await?
        }
        Edit::Delete(name) => {
            let namespace = before
                .and_then(|document| document.get("metadata")?.get("namespace")?.as_str())
                .unwrap_or_default()
                .to_owned();
            client.delete(vec![v1::ResourceKey { kind: kind.to_owned(), namespace, name }]).await?
        }
    };
    finish(context, client, answer, wait).await
}

/// Waits for the acknowledgement of a commit and prints how it went.
///
/// # Errors
/// Exit code 1 when it was refused, 2 when gateways are missing, 3 when one rejected it.
pub(super) async fn finish(context: &Context, client: &Client, answer: v1::ApplyResponse, wait: Wait) -> Outcome {
    if !answer.problems.is_empty() {
        return Err(refused(answer.problems));
    }
    let Some(percent) = percent(wait) else {
        let view = WriteView::new(answer, None);
        return context.output.print(&view, || view.text());
    };
    let revision = answer.revision;
    let began = Instant::now();
    let mut last = 0;
    let applied = client
        .wait_applied(revision, percent, |progress| {
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
    verdict(&applied, percent)
}

/// Refused input: every problem, and that nothing changed.
pub(super) fn refused(problems: Vec<String>) -> Failure {
    let count = problems.len();
    Failure::refused(format!("refused: {count} problem{}, nothing changed", if count == 1 { "" } else { "s" }))
        .problems(problems)
}

/// The share of gateways to wait for, in percent; `None`: do not wait.
fn percent(wait: Wait) -> Option<u32> {
    match wait {
        Wait::All => Some(100),
        // More than half, whatever the number: 51 % of up to 100 gateways rounds up to a majority.
        Wait::Quorum => Some(51),
        Wait::None => None,
    }
}

/// The exit code of a committed write.
fn verdict(applied: &v1::WaitAppliedProgress, percent: u32) -> Outcome {
    if !applied.rejections.is_empty() {
        let who: Vec<String> =
            applied.rejections.iter().map(|rejection| format!("{}: {}", rejection.gateway, rejection.error)).collect();
        let failure = Failure::new(
            Exit::Rejected,
            format!("revision {} was rejected by {} of {} gateways", applied.revision, who.len(), applied.expected),
        );
        return Err(failure
            .problems(who)
            .hint("they go on with their last good configuration; correct the resource and apply it again"));
    }
    let wanted = u64::from(applied.expected) * u64::from(percent);
    if u64::from(applied.acknowledged) * 100 >= wanted {
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
                .map(|gateway| v1::Rejection { gateway: (*gateway).into(), error: "no such cluster".into() })
                .collect(),
            done: true,
            ..Default::default()
        }
    }

    #[test]
    fn exit_codes_follow_the_gateways() {
        let exit = |progress: &v1::WaitAppliedProgress, wait| {
            verdict(progress, percent(wait).unwrap()).map_or_else(|failure| failure.exit(), |()| Exit::Done)
        };
        assert_eq!(exit(&progress(6, 6, &[]), Wait::All), Exit::Done);
        assert_eq!(exit(&progress(0, 0, &[]), Wait::All), Exit::Done);
        assert_eq!(exit(&progress(5, 6, &[]), Wait::All), Exit::Unacknowledged);
        assert_eq!(exit(&progress(5, 6, &["paris/gw-1"]), Wait::All), Exit::Rejected);
        assert_eq!(exit(&progress(4, 6, &[]), Wait::Quorum), Exit::Done);
        assert_eq!(exit(&progress(3, 6, &[]), Wait::Quorum), Exit::Unacknowledged);
        assert_eq!(percent(Wait::None), None);
    }

    #[test]
    fn stragglers_and_rejections_are_named() {
        let late = verdict(&progress(5, 6, &[]), 100).unwrap_err().render();
        assert!(late.contains("tokyo/gw-2: at revision 6") && late.contains("5 of 6"), "{late}");
        let rejected = verdict(&progress(5, 6, &["paris/gw-1"]), 100).unwrap_err().render();
        assert!(rejected.contains("paris/gw-1: no such cluster"), "{rejected}");
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
