//! `status`, `services`, `tunnels`, `gateways`.

use super::{Context, nothing_runs};
use crate::exit::{Exit, Outcome};
use crate::output::Text;
use crate::up;
use crate::views::{ServiceView, StatusView, TunnelView, gateway_table, service_text, tunnel_table};

/// `status`: the control plane's view, and under `up` the processes even when no control plane answers.
pub(super) async fn status(context: &Context) -> Outcome {
    let processes = up::processes(context.state()).await;
    let answer = match context.client() {
        Ok(client) => client.status().await,
        Err(failure) => Err(failure),
    };
    match (answer, processes) {
        (Ok(status), processes) => {
            let view = StatusView::new(status, processes);
            context.output.print(&view, || view.text())
        }
        (Err(failure), Some(processes)) if failure.exit() == Exit::NoControlPlane => {
            let view = StatusView::only_processes(processes);
            context.output.print(&view, || view.text())?;
            Err(failure)
        }
        (Err(failure), _) => Err(failure),
    }
}

/// `services`.
pub(super) async fn services(context: &Context) -> Outcome {
    let services = context.client()?.services().await?;
    let views: Vec<ServiceView> = services.into_iter().map(ServiceView::new).collect();
    context.output.print(&views, || {
        or_none(service_text(&views, context.output.is_wide()), views.is_empty(), "no service is known yet")
    })
}

/// `tunnels`.
pub(super) async fn tunnels(context: &Context) -> Outcome {
    let tunnels = context.client()?.tunnels().await?;
    let mut views: Vec<TunnelView> = tunnels.into_iter().map(TunnelView::new).collect();
    views.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    context
        .output
        .print(&views, || or_none(tunnel_table(&views).into(), views.is_empty(), "no gateway reports a tunnel"))
}

/// `gateways`.
pub(super) async fn gateways(context: &Context) -> Outcome {
    let status = context.client()?.status().await?;
    let gateways = StatusView::new(status, None).gateways();
    context
        .output
        .print(&gateways, || or_none(gateway_table(&gateways).into(), gateways.is_empty(), "no gateway has joined yet"))
}

fn or_none(text: Text, empty: bool, otherwise: &str) -> Text {
    if empty { Text::default().line(otherwise) } else { text }
}

/// For commands that need the supervisor of `meshctl up`.
pub(super) fn no_supervisor(context: &Context) -> crate::exit::Failure {
    let state = context.state();
    nothing_runs(state, &format!("no federation of `meshctl up` runs from {}", state.display()))
}
