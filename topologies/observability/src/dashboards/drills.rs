//! What to watch while something is broken on purpose.

use super::{UP_DOWN, YES_NO};
use crate::dashboard::{Dashboard, lines, query, stat, states};

pub(super) fn dashboard() -> Dashboard {
    Dashboard::new("drills", "Drills", "What to watch while meshctl drill breaks something on purpose: what died, who noticed, what clients felt.")
        .by_cluster()
        .row("What clients feel", [
            stat("Failed", "Requests answered with a 5xx, or with a gRPC status that says that the service failed, in the last minutes, of all.", "none",
                query(r#"sum(increase(mesh_requests_total{@, reporter="source", response_code=~"5.."}[$__rate_interval]) or increase(mesh_requests_total{@, reporter="source", grpc_response_status=~"2|4|12|13|14|15"}[$__rate_interval])) or vector(0)"#, "")).below(1.0).width(6),
            stat("Saved", "Attempts beyond the first in the last minutes.", "none",
                query("sum(increase(mesh_gateway_replays_total{@}[$__rate_interval])) or vector(0)", "")).width(6),
            stat("Failed over", "Services of which some gateway cannot reach the first choice.", "none",
                query("count(max by (destination_service) (mesh_service_failover_active{@}) == 1) or vector(0)", "")).width(6).runbook("MeshServiceFailedOver"),
            stat("Tunnels not up", "Of all tunnels.", "none",
                query(r#"count(mesh_tunnel_state{@, state="up"} == 0) or vector(0)"#, "")).width(6).runbook("MeshClusterUnreachable"),
            lines("Codes", "What clients got.", "reqps",
                [query(r#"sum by (response_code) (rate(mesh_requests_total{@, reporter="source"}[$__rate_interval]))"#, "{{response_code}}")]).stacked(),
            lines("Latency", "How long requests took.", "s", [
                query(r#"histogram_quantile(0.5, sum by (le) (rate(mesh_request_duration_seconds_bucket{@, reporter="source"}[$__rate_interval])))"#, "p50"),
                query(r#"histogram_quantile(0.99, sum by (le) (rate(mesh_request_duration_seconds_bucket{@, reporter="source"}[$__rate_interval])))"#, "p99"),
                query(r#"histogram_quantile(0.999, sum by (le) (rate(mesh_request_duration_seconds_bucket{@, reporter="source"}[$__rate_interval])))"#, "p99.9"),
            ]),
        ])
        .row("What died, and who noticed", [
            states("Processes", "When Prometheus could scrape which process.", query("min by (instance) (up{@})", "{{instance}}"), &UP_DOWN),
            states("Tunnels", "When no tunnel between two clusters was up, as seen from the first.",
                query(r#"max by (source_cluster, destination_cluster) (mesh_tunnel_state{@, state="up"})"#, "{{source_cluster}} → {{destination_cluster}}"), &UP_DOWN).width(12),
            states("Failed over", "When the first choice of a service could not serve, by the cluster at which requests enter.",
                query("max by (cluster, destination_service) (mesh_service_failover_active{@})", "{{cluster}} {{destination_service}}"), &YES_NO).width(12),
            lines("Verdicts", "Changes of peers' states.", "ops",
                [query("sum by (state) (rate(mesh_gateway_detector_verdicts_total{@}[$__rate_interval]))", "{{state}}")]),
            lines("Ready endpoints", "By cluster, of all services, as the gateways see it that see the fewest.", "none",
                [query("min by (destination_cluster) (sum by (instance, destination_cluster) (mesh_service_endpoints_ready{@}))", "{{destination_cluster}}")]),
        ])
        .row("What the mesh did about it", [
            lines("Where traffic goes", "From the cluster at which a request entered to the one that served it.", "reqps",
                [query(r#"sum by (source_cluster, destination_cluster) (rate(mesh_requests_total{@, reporter="source"}[$__rate_interval]))"#, "{{source_cluster}} → {{destination_cluster}}")]).stacked(),
            lines("Attempts beyond the first", "Requests that were sent again, and why.", "reqps",
                [query("sum by (purpose, reason) (rate(mesh_gateway_replays_total{@}[$__rate_interval])) or vector(0)", "{{purpose}} {{reason}}")]),
        ])
}
