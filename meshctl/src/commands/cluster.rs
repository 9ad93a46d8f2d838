//! `cluster list|join|drain|uncordon`.

use serde_json::Value;

use super::resources::documents;
use super::write::Subject;
use super::{Context, kubernetes, watch, write};
use crate::cli::{ClusterCommand, Wait};
use crate::exit::{Failure, Outcome};
use crate::output::{Cell, Table};
use crate::views::StatusView;
use archipelago_model::edit::{self, Edit, cluster};

/// `cluster …`.
pub(super) async fn run(context: &Context, command: ClusterCommand) -> Outcome {
    match command {
        ClusterCommand::List(watch) => watch::run(context, watch, list).await,
        ClusterCommand::Join(args) => kubernetes::join::run(context, &args).await,
        ClusterCommand::Drain { cluster, wait } => drain(context, &cluster, true, wait.wait).await,
        ClusterCommand::Uncordon { cluster, wait } => drain(context, &cluster, false, wait.wait).await,
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

async fn drain(context: &Context, name: &str, drained: bool, wait: Wait) -> Outcome {
    let client = context.client()?;
    let subject = Subject::Cluster(name);
    if subject.read(&client).await?.is_none() {
        let clusters = documents(&client.get("Cluster", "", "").await?.resources)?;
        let names: Vec<&str> = clusters.iter().map(edit::name).collect();
        return Err(Failure::refused(format!("no cluster `{name}`")).hint(format!("there are {}", names.join(", "))));
    }
    let verb = if drained { "drain" } else { "uncordon" };
    let change = |current: Option<&Value>| {
        let current = current.ok_or_else(|| Failure::refused(format!("cluster `{name}` was deleted meanwhile")))?;
        Ok(Edit::Apply(cluster::drained(current, drained)))
    };
    write::edit(context, &client, &format!("cluster {verb} {name}"), subject, change, wait).await
}
