//! What `up` prints when everything is ready: where to send traffic, and what to try.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use archipelago_model::resource::TopologySpec;
use archipelago_model::service::ServiceProtocol;
use archipelago_proto::v1;

use super::plan::{Plan, Role, gateway_http};
use super::state::StateDir;

/// The guide for this federation; `observe` is what is said of what watches it.
pub(crate) fn text(
    state: &StateDir,
    topology: &TopologySpec,
    plan: &Plan,
    services: &[v1::ServiceStatus],
    took: Duration,
    observe: &str,
) -> String {
    let count = |role: Role| plan.processes.iter().filter(|process| process.role == role).count();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "\nThe federation is up after {:.1} s: {} control-plane members, {} clusters, {} gateways, {} demo backends.",
        took.as_secs_f64(),
        count(Role::ControlPlane),
        topology.clusters.len(),
        count(Role::Gateway),
        count(Role::Demo),
    );
    let all = topology.clusters.iter().flat_map(|cluster| &cluster.services);
    let http = all.clone().find(|service| service.protocol == ServiceProtocol::Http);
    if let Some(service) = http {
        let _ = writeln!(text, "\nSend traffic to any cluster; the Host header names the service:");
        for (index, cluster) in topology.clusters.iter().enumerate() {
            let Some(address) = gateway_http(&plan.layout, index) else { continue };
            let host = format!("{}.{}", service.name, service.namespace);
            let _ = writeln!(text, "  curl -H 'Host: {host}' http://{address}/   # enters at {}", cluster.name);
        }
    }
    for cluster in &topology.clusters {
        for service in &cluster.services {
            let Some(own) = &service.own else { continue };
            let (namespace, name) = (&service.namespace, &service.name);
            let known = services.iter().find(|known| known.namespace == *namespace && known.name == *name);
            let here = known.and_then(|known| known.clusters.iter().find(|here| here.cluster == cluster.name));
            let state = match here {
                Some(here) if here.ready > 0 => "ready",
                Some(_) => "not ready yet: start it when you like",
                None => "only used here: no ServiceExport offers it",
            };
            let endpoints: Vec<String> = own.endpoints.iter().map(ToString::to_string).collect();
            let _ = writeln!(
                text,
                "{namespace}/{name} in {} is your own, at {} ({state}).",
                cluster.name,
                endpoints.join(", ")
            );
        }
    }
    for service in services {
        // Where the first cluster of the topology is entered, like the first curl above.
        let place = |cluster: &str| topology.clusters.iter().position(|known| known.name == cluster);
        if let Some(tcp) = service.tcp_addresses.iter().min_by_key(|tcp| (place(&tcp.cluster), &tcp.gateway)) {
            let (namespace, name) = (&service.namespace, &service.name);
            let _ =
                writeln!(text, "{namespace}/{name} speaks TCP: connect to {} (enters at {})", tcp.address, tcp.cluster);
        }
    }
    text.push_str(observe);
    let meshctl = command(state.root());
    let _ = writeln!(text, "\nThree things to try:");
    let mut tries = vec![format!("{meshctl} status")];
    if let (Some(service), [first, .., last]) = (http, topology.clusters.as_slice()) {
        let service = format!("{}/{}", service.namespace, service.name);
        tries = vec![
            format!("{meshctl} split set {service} {}=90 {}=10", first.name, last.name),
            format!("{meshctl} switch {service} --to {}", last.name),
            format!("{meshctl} drill kill {} --for 20s", first.name),
        ];
    }
    for line in tries {
        let _ = writeln!(text, "  {line}");
    }
    let _ = writeln!(
        text,
        "\n`{meshctl} dashboard` shows everything in a browser, `{meshctl} status` here; `{meshctl} down` ends it."
    );
    text
}

/// How to call this program for this federation, fit to paste into the shell it was started from.
pub(crate) fn command(state: &Path) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "meshctl".to_owned());
    // Started through PATH: the bare name works again.
    let program = if program.contains('/') { program } else { "meshctl".to_owned() };
    let is_default = std::path::absolute(crate::cli::STATE_DEFAULT)
        .ok()
        .and_then(|path| path.canonicalize().ok())
        .is_some_and(|default| default == state);
    if is_default { program } else { format!("{program} --state {}", state.display()) }
}
