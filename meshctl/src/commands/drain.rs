//! `cluster drain`: no new requests, and the count-down of those that are under way; `cluster underway`.

use std::time::{Duration, Instant};

use archipelago_model::edit::cluster::last_to_serve;
use archipelago_proto::v1::{UnderWayQuestion, question};

use super::Context;
use super::cluster::{named, set_drained};
use crate::cli::{DrainArgs, Wait};
use crate::client::Client;
use crate::exit::{Exit, Failure, Outcome};
use crate::output;
use crate::underway::UnderWayView;

/// `cluster drain CLUSTER …`.
pub(super) async fn run(context: &Context, args: DrainArgs) -> Outcome {
    let client = context.client()?;
    let cluster = args.cluster.as_str();
    named(&client, cluster).await?;
    if !args.force {
        let alone = last_to_serve(cluster, &client.services().await?);
        if !alone.is_empty() {
            return Err(alone_with(cluster, &alone));
        }
    }
    set_drained(context, cluster, true, args.wait.wait).await?;
    if args.wait.wait == Wait::None || args.empty_within.is_zero() {
        return Ok(());
    }
    count_down(&client, cluster, args.empty_within).await
}

/// `cluster underway CLUSTER`, once.
pub(super) async fn show(context: &Context, cluster: &str) -> Outcome {
    let client = context.client()?;
    named(&client, cluster).await?;
    let view = left(&client, cluster).await?;
    context.output.print(&view, || view.text())
}

async fn left(client: &Client, cluster: &str) -> Outcome<UnderWayView> {
    let question = UnderWayQuestion { cluster: cluster.to_owned() };
    Ok(UnderWayView::new(cluster, client.ask(question::Body::UnderWay(question)).await?))
}

/// Says what is left whenever that has changed, until nothing is.
async fn count_down(client: &Client, cluster: &str, within: Duration) -> Outcome {
    let began = Instant::now();
    let (mut said, mut empty) = (None, 0);
    loop {
        let view = left(client, cluster).await?;
        // A request is between two gateways for a moment, and on neither's list.
        empty = if view.is_empty() { empty + 1 } else { 0 };
        if empty == EMPTY_LOOKS {
            for missing in &view.missing {
                output::talk(format!("not counted: {missing}"));
            }
            let known = if view.is_complete { "" } else { ", as far as the gateways of other clusters know" };
            output::talk(format!("safe: {cluster} serves nothing any more{known}"));
            return Ok(());
        }
        let line = view.line();
        if empty == 0 && said.as_ref() != Some(&line) {
            output::talk(&line);
            said = Some(line);
        }
        if began.elapsed() >= within {
            let within = crate::duration::display(within);
            let missing = view.missing.iter().map(|missing| format!("not counted: {missing}"));
            return Err(Failure::new(Exit::Unacknowledged, format!("after {within}, {}", view.line()))
                .problems(missing)
                .hint(format!(
                    "{cluster} is drained, what is under way goes on; `meshctl cluster underway {cluster} -w` shows it"
                )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn alone_with(cluster: &str, services: &[String]) -> Failure {
    let shown: Vec<&str> = services.iter().take(SERVICES_NAMED).map(String::as_str).collect();
    let more = services.len() - shown.len();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    Failure::refused(format!(
        "no other cluster can serve {}{more}: their requests would go on to {cluster}; nothing changed",
        shown.join(", ")
    ))
    .hint("let another cluster serve them first, or drain it all the same with --force")
}

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks in a row that find nothing.
const EMPTY_LOOKS: u32 = 2;
const SERVICES_NAMED: usize = 5;
