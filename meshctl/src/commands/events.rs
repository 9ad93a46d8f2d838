//! `events`: what happened, and what happens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use archipelago_model::event::HoldBack;
use archipelago_proto::v1::{EventFilter, ListEventsRequest};

use super::Context;
use crate::cli::EventsArgs;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Text, talk};
use crate::views::{EventView, EventsView, SourceView};

/// `events`.
pub(super) async fn run(context: &Context, args: EventsArgs) -> Outcome {
    let EventsArgs { follow, service, cluster, kinds, since, limit } = args;
    let since_unix_ms = since.map_or(0, |since| unix_ms().saturating_sub(millis(since)).max(1));
    let service = service.map(|service| service.to_string()).unwrap_or_default();
    let filter = EventFilter { service, cluster: cluster.unwrap_or_default(), kinds, since_unix_ms };
    let request = ListEventsRequest { filter: Some(filter), limit };
    if follow {
        return follow_all(context, request).await;
    }
    let view = EventsView::new(context.client()?.events(request).await?);
    context.output.print(&view, || match view.events.is_empty() {
        true => Text::default().line("nothing of that kind is remembered"),
        false => view.text(context.output.is_wide()),
    })?;
    if matches!(context.output.format(), Format::Table | Format::Wide) {
        view.sources.iter().filter_map(SourceView::note).for_each(talk);
        if let Some(since) = forgotten(&view.sources) {
            talk(format!("members of the control plane remember what they saw since {since}"));
        }
    }
    Ok(())
}

/// The latest time since which a member remembers: what it saw before is not here.
fn forgotten(sources: &[SourceView]) -> Option<&str> {
    let members = sources.iter().filter(|source| source.name.starts_with("cp-"));
    members.filter_map(|source| source.since.as_deref()).max()
}

async fn follow_all(context: &Context, mut request: ListEventsRequest) -> Outcome {
    let client = context.client()?;
    let (format, wide) = (context.output.format(), context.output.is_wide());
    // Only to know what was shown: members put it in order.
    let mut shown = HoldBack::new(0);
    let mut newest = 0;
    let mut noted = Vec::new();
    let mut has_headings = false;
    loop {
        let mut stream = client.follow_events(request.clone()).await?;
        let broke = loop {
            let said = match stream.message().await {
                Ok(Some(said)) => said,
                Ok(None) => break "the member ended the stream".to_owned(),
                Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                    return Err(Failure::refused(status.message().to_owned()));
                }
                Err(status) => break status.message().to_owned(),
            };
            for note in said.sources.into_iter().map(SourceView::new).filter_map(|source| source.note()) {
                if !noted.contains(&note) && noted.len() < NOTES_MAX {
                    talk(&note);
                    noted.push(note);
                }
            }
            if said.lost > 0 {
                talk(format!("up to {} events were forgotten before they were read here", said.lost));
            }
            said.events.into_iter().for_each(|event| shown.take(event, 0));
            let mut text = String::new();
            for event in shown.due(0) {
                newest = newest.max(event.last_unix_ms);
                let event = EventView::new(event);
                match format {
                    Format::Json => {
                        let line = serde_json::to_string(&event).map_err(unprintable)?;
                        text.push_str(&line);
                        text.push('\n');
                    }
                    Format::Yaml => {
                        text.push_str("---\n");
                        text.push_str(&output::yaml(&event)?);
                    }
                    Format::Table | Format::Wide => {
                        if !std::mem::replace(&mut has_headings, true) {
                            let headings = EventView::headings(wide).join("   ");
                            text.push_str(&format!("{headings}\n"));
                        }
                        text.push_str(&context.output.render(&event.line(wide)));
                    }
                }
            }
            if !text.is_empty() && !output::write_part(&text)? {
                return Ok(());
            }
        };
        talk(format!("the stream broke and is opened again: {broke}"));
        if newest > 0 {
            // What is said again is recognised.
            let filter = request.filter.get_or_insert_default();
            filter.since_unix_ms = filter.since_unix_ms.max(newest.saturating_sub(OVERLAP_MS));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn unprintable(error: impl std::fmt::Display) -> Failure {
    Failure::refused(format!("cannot print the answer: {error}"))
}

fn unix_ms() -> i64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

const PAUSE: Duration = Duration::from_millis(500);
/// Clocks that differ, and what was on its way.
const OVERLAP_MS: i64 = 60_000;
const NOTES_MAX: usize = 1_000;
