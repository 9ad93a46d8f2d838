//! `top`: what happens at the gateways, live.

use std::io::IsTerminal as _;
use std::time::Duration;

use archipelago_proto::v1::{self, TopSnapshot};

use super::Context;
use crate::cli::{TopArgs, TopBy};
use crate::client::Client;
use crate::exit::{Failure, Outcome};
use crate::names::ServiceName;
use crate::output::{self, Format};
use crate::views::TopView;

/// `top …`.
pub(super) async fn run(context: &Context, args: TopArgs) -> Outcome {
    let client = context.client()?;
    exist(&client, &args.services).await?;
    let is_table = matches!(context.output.format(), Format::Table | Format::Wide);
    if args.histogram && is_table {
        return Err(Failure::refused("a table has no room for histograms").hint("add -o json"));
    }
    let is_live = is_table && !args.once && args.count.is_none() && std::io::stdout().is_terminal();
    let rows_max = args.rows.unwrap_or(if is_live { ROWS_ON_A_TERMINAL } else { 0 });
    let by = match args.by {
        None => v1::TopBy::Service,
        Some(TopBy::Cluster) => v1::TopBy::Destination,
        Some(TopBy::Source) => v1::TopBy::Source,
        Some(TopBy::Version) => v1::TopBy::Version,
    };
    let request = v1::TopRequest {
        services: args.services.iter().map(ToString::to_string).collect(),
        interval_ms: u64::try_from(args.interval.as_millis()).unwrap_or(u64::MAX),
        by: by.into(),
        rows_max,
        with_counts: args.histogram,
    };
    let left = if is_live { None } else { Some(args.count.unwrap_or(1)) };
    let show = |snapshot: TopSnapshot| {
        if snapshot.begins {
            let counting = crate::duration::display(args.interval);
            if is_live {
                return output::write_stdout(output::CLEAR);
            }
            output::talk(format!("counting for {counting} at {} gateways", snapshot.gateways_reported));
            return Ok(());
        }
        let view = TopView::new(snapshot, by)?;
        if is_live {
            return output::write_stdout(&output::screen(&context.output.render(&view.text())));
        }
        if context.output.format() == Format::Yaml {
            output::write_stdout("---\n")?;
        }
        context.output.print(&view, || view.text())
    };
    follow(&client, request, args.interval, left, show).await
}

/// Shows snapshots, `left` of them or for ever, through whichever member answers.
async fn follow(
    client: &Client,
    request: v1::TopRequest,
    interval: Duration,
    mut left: Option<u32>,
    mut show: impl FnMut(TopSnapshot) -> Outcome,
) -> Outcome {
    loop {
        let mut snapshots = client.top(request.clone()).await?;
        let why = loop {
            match tokio::time::timeout(interval + ANSWER_TIME_MAX, snapshots.message()).await {
                Ok(Ok(Some(snapshot))) => {
                    let is_one = !snapshot.begins;
                    show(snapshot)?;
                    if let Some(left) = &mut left
                        && is_one
                    {
                        *left -= 1;
                        if *left == 0 {
                            return Ok(());
                        }
                    }
                }
                Ok(Ok(None)) => break "the member ended it".to_owned(),
                Ok(Err(status)) => break status.message().to_owned(),
                Err(_) => break "the member does not answer any more".to_owned(),
            }
        };
        // A member that fails at once must not be asked in a loop.
        tokio::time::sleep(PAUSE).await;
        output::talk(format!("{why}; another member counts from here on"));
    }
}

/// A name that nobody has is most likely a typing error.
pub(super) async fn exist(client: &Client, asked: &[ServiceName]) -> Outcome {
    if asked.is_empty() {
        return Ok(());
    }
    let services = client.services().await?;
    let is_known = |name: &ServiceName| services.iter().any(|s| s.namespace == name.namespace && s.name == name.name);
    match asked.iter().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => {
            Err(Failure::refused(format!("no cluster has a service {name}")).hint("`meshctl services` lists them"))
        }
    }
}

const ROWS_ON_A_TERMINAL: u32 = 20;
/// A member gives gateways and other members ten seconds, and a page takes a moment.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(500);
