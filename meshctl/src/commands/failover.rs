//! `failover status|trigger|release`.

use serde::Serialize;
use serde_json::Value;

use super::resources::documents;
use super::write::Subject;
use super::{Context, watch, write};
use crate::cli::FailoverCommand;
use crate::client::Client;
use crate::exit::{Failure, Outcome};
use crate::names::ServiceName;
use crate::output::{Cell, Table, Text};
use crate::views::{ServiceClusterView, ServiceView};
use archipelago_model::edit::{self, Edit, failover};

const KIND: &str = "FailoverPolicy";

/// `failover …`.
pub(super) async fn run(context: &Context, command: FailoverCommand) -> Outcome {
    match command {
        FailoverCommand::Status { service, watch } => {
            watch::run(context, watch, async |context| status(context, service.as_ref()).await).await
        }
        FailoverCommand::Trigger { service, from, wait } => {
            let client = context.client()?;
            exporter(&client, &service, &from).await?;
            let what = format!("failover trigger {service}");
            let change = |current: Option<&Value>| Ok(Edit::Apply(failover::trigger(current, &service, &from)));
            write::edit(context, &client, &what, Subject::About(KIND, &service), change, wait.wait).await
        }
        FailoverCommand::Release { service, from, wait } => {
            let client = context.client()?;
            let change = |current: Option<&Value>| {
                current.and_then(|policy| failover::release(policy, from.as_deref())).ok_or_else(|| {
                    let place = from.as_ref().map_or_else(|| "any cluster".to_owned(), Clone::clone);
                    Failure::refused(format!("{service} was not moved away from {place} by hand"))
                        .hint(format!("`meshctl failover status {service}` shows where it stands"))
                })
            };
            let what = format!("failover release {service}");
            write::edit(context, &client, &what, Subject::About(KIND, &service), change, wait.wait).await
        }
    }
}

/// One service, where its clusters stand, and what an operator or a policy says about it.
#[derive(Serialize)]
struct FailoverView {
    service: String,
    policy: Option<String>,
    avoid: Vec<String>,
    order: Value,
    clusters: Vec<ServiceClusterView>,
}

async fn status(context: &Context, only: Option<&ServiceName>) -> Outcome {
    let client = context.client()?;
    let policies = documents(&client.get(KIND, "", "").await?.resources)?;
    let mut views = Vec::new();
    for service in client.services().await?.into_iter().map(ServiceView::new) {
        let Ok(name) = service.name.parse::<ServiceName>() else { continue };
        if only.is_some_and(|only| *only != name) {
            continue;
        }
        let policy = edit::about(&policies, &name);
        views.push(FailoverView {
            service: service.name,
            policy: policy.map(|policy| edit::name(policy).to_owned()),
            avoid: policy.map(failover::avoided).unwrap_or_default(),
            order: policy.and_then(|policy| policy.get("spec")?.get("order")).cloned().unwrap_or(Value::Null),
            clusters: service.clusters,
        });
    }
    if let (Some(service), true) = (only, views.is_empty()) {
        return Err(
            Failure::refused(format!("no cluster has a service {service}")).hint("`meshctl services` lists them")
        );
    }
    context.output.print(&views, || text(&views))
}

fn text(views: &[FailoverView]) -> Text {
    let mut table = Table::new(&["SERVICE", "POLICY", "CLUSTER", "STATE", "READY", "MOVED AWAY"]);
    for view in views {
        for (index, cluster) in view.clusters.iter().enumerate() {
            let once = |text: &str| Cell::from(if index == 0 { text } else { "" });
            let away = view.avoid.contains(&cluster.name);
            table.row([
                once(&view.service),
                once(view.policy.as_deref().unwrap_or("default order")),
                cluster.name.clone().into(),
                Cell::state(&cluster.state),
                format!("{}/{}", cluster.ready, cluster.total).into(),
                if away { "by an operator".into() } else { "-".into() },
            ]);
        }
    }
    if table.is_empty() { Text::default().line("no service is known yet") } else { table.into() }
}

/// A cluster that does not have the service cannot be left: most likely a typing error.
async fn exporter(client: &Client, service: &ServiceName, cluster: &str) -> Outcome {
    let services = client.services().await?;
    let Some(found) = services.iter().find(|found| found.namespace == service.namespace && found.name == service.name)
    else {
        return Err(
            Failure::refused(format!("no cluster has a service {service}")).hint("`meshctl services` lists them")
        );
    };
    let names: Vec<&str> = found.clusters.iter().map(|cluster| cluster.cluster.as_str()).collect();
    if names.contains(&cluster) {
        return Ok(());
    }
    Err(Failure::refused(format!("{cluster} does not have {service}")).hint(format!("it is in {}", names.join(", "))))
}
