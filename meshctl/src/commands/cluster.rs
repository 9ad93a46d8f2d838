//! `cluster list|join|drain|underway|uncordon`.

use serde_json::Value;

use super::resources::documents;
use super::write::Subject;
use super::{Context, drain, kubernetes, watch, write};
use crate::cli::{ClusterCommand, Wait};
use crate::client::Client;
use crate::exit::{Failure, Outcome};
use crate::output::{Cell, Table};
use crate::views::StatusView;
use archipelago_model::edit::{self, Edit, cluster};

/// `cluster …`.
pub(super) async fn run(context: &Context, command: ClusterCommand) -> Outcome {
    match command {
        ClusterCommand::List(watch) => watch::run(context, watch, list).await,
        ClusterCommand::Join(args) => kubernetes::join::run(context, &args).await,
        ClusterCommand::Drain(args) => drain::run(context, args).await,
        ClusterCommand::Underway { cluster, watch } => {
            watch::run(context, watch, async |context: &Context| drain::show(context, &cluster).await).await
        }
        ClusterCommand::Uncordon { cluster, wait } => {
            named(&context.client()?, &cluster).await?;
            set_drained(context, &cluster, false, wait.wait).await
        }
    }
}

async fn list(context: &Context) -> Outcome {
    let clusters = StatusView::new(context.client()?.status().await?, None).clusters;
    context.output.print(&clusters, || {
        let mut table = Table::new(&["CLUSTER", "REGION", "STATE", "AGENT", "GATEWAYS"]);
        for cluster in &clusters {
            table.row([
                cluster.name.clone().into(),
                cluster.region.clone().into(),
                Cell::state(&cluster.state),
                Cell::state(&cluster.agent),
                u64::try_from(cluster.gateways.len()).unwrap_or(u64::MAX).into(),
            ]);
        }
        table.into()
    })
}

/// That there is a cluster of this name.
pub(super) async fn named(client: &Client, name: &str) -> Outcome {
    if Subject::Cluster(name).read(client).await?.is_some() {
        return Ok(());
    }
    let clusters = documents(&client.get("Cluster", "", "").await?.resources)?;
    let names: Vec<&str> = clusters.iter().map(edit::name).collect();
    Err(Failure::refused(format!("no cluster `{name}`")).hint(format!("there are {}", names.join(", "))))
}

/// Writes whether a cluster takes new requests.
pub(super) async fn set_drained(context: &Context, name: &str, drained: bool, wait: Wait) -> Outcome {
    let client = context.client()?;
    let verb = if drained { "drain" } else { "uncordon" };
    let change = |current: Option<&Value>| {
        let current = current.ok_or_else(|| Failure::refused(format!("cluster `{name}` was deleted meanwhile")))?;
        Ok(Edit::Apply(cluster::drained(current, drained)))
    };
    // A cluster that is drained may be one that cannot be reached.
    let (what, absent) = (format!("cluster {verb} {name}"), drained.then_some(name));
    write::edit_without(context, &client, &what, Subject::Cluster(name), change, wait, absent).await
}
