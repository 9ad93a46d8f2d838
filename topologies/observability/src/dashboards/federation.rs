//! Where traffic goes, and whether all is well.

use super::{UP_DOWN, YES_NO};
use crate::dashboard::{Dashboard, lines, query, stat, states, table};

pub(super) fn dashboard() -> Dashboard {
    Dashboard::new("federation", "Federation", "Where traffic goes between clusters, and whether all is well. Begin here.")
        .by_cluster()
        .row("Now", [
            stat("Requests", "Requests per second that clients send to all gateways.", "reqps",
                query(r#"sum(rate(mesh_requests_total{@, reporter="source"}[$__rate_interval]))"#, "")),
            stat("Success", "Share of requests that were answered with neither a 5xx nor a gRPC status that says that the service failed, as the gateways saw them at which they entered.", "percentunit",
                query(r#"1 - (sum(rate(mesh_requests_total{@, reporter="source", response_code=~"5.."}[$__rate_interval]) or rate(mesh_requests_total{@, reporter="source", grpc_response_status=~"2|4|12|13|14|15"}[$__rate_interval])) or vector(0)) / sum(rate(mesh_requests_total{@, reporter="source"}[$__rate_interval]))"#, ""))
                .share().thresholds(&[(None, "red"), (Some(0.99), "orange"), (Some(0.999), "green")]).runbook("MeshErrorBudgetBurn"),
            stat("p99", "99 of 100 requests were over within this time, from their head to the end of the response.", "s",
                query(r#"histogram_quantile(0.99, sum by (le) (rate(mesh_request_duration_seconds_bucket{@, reporter="source"}[$__rate_interval])))"#, "")),
            stat("Gateways down", "Gateways that Prometheus cannot scrape.", "none",
                query(r#"count(up{@} == 0) or vector(0)"#, "")).below(1.0).runbook("MeshGatewayDown"),
            stat("Clusters unreachable", "Clusters to which no gateway has a tunnel.", "none",
                query(r#"count(max by (destination_cluster) (mesh_tunnel_state{@, state="up"}) == 0) or vector(0)"#, ""))
                .below(1.0).runbook("MeshClusterUnreachable"),
            stat("Services failed over", "Services of which some gateway cannot reach the first choice.", "none",
                query(r#"count(max by (destination_service) (mesh_service_failover_active{@}) == 1) or vector(0)"#, ""))
                .below(1.0).runbook("MeshServiceFailedOver"),
        ])
        .row("Traffic", [
            lines("Requests between clusters", "From the cluster at which a request entered to the one that served it.", "reqps",
                [query(r#"sum by (source_cluster, destination_cluster) (rate(mesh_requests_total{@, reporter="source"}[$__rate_interval]))"#, "{{source_cluster}} → {{destination_cluster}}")]).stacked(),
            lines("Failures between clusters", "Share of requests answered with a 5xx, or with a gRPC status that says that the service failed.", "percentunit",
                [query(r#"(sum by (source_cluster, destination_cluster) (rate(mesh_requests_total{@, reporter="source", response_code=~"5.."}[$__rate_interval]) or rate(mesh_requests_total{@, reporter="source", grpc_response_status=~"2|4|12|13|14|15"}[$__rate_interval])) or 0 * sum by (source_cluster, destination_cluster) (rate(mesh_requests_total{@, reporter="source"}[$__rate_interval]))) / sum by (source_cluster, destination_cluster) (rate(mesh_requests_total{@, reporter="source"}[$__rate_interval]))"#, "{{source_cluster}} → {{destination_cluster}}")]).share(),
            lines("p99 between clusters", "99 of 100 requests were over within this time.", "s",
                [query(r#"histogram_quantile(0.99, sum by (le, source_cluster, destination_cluster) (rate(mesh_request_duration_seconds_bucket{@, reporter="source"}[$__rate_interval])))"#, "{{source_cluster}} → {{destination_cluster}}")]),
            lines("Busiest services", "The ten services with the most requests.", "reqps",
                [query(r#"topk(10, sum by (destination_service) (rate(mesh_requests_total{@, reporter="source"}[$__rate_interval])))"#, "{{destination_service}}")]),
        ])
        .row("What the mesh did about it", [
            lines("Attempts beyond the first", "Requests that were sent again: to another cluster (failover) or within one (retry), and why.", "reqps",
                [query(r#"sum by (purpose, reason) (rate(mesh_gateway_replays_total{@}[$__rate_interval])) or vector(0)"#, "{{purpose}} {{reason}}")]),
            lines("Requests that gateways answered themselves", "Why no service answered.", "reqps",
                [query(r#"sum by (reason) (rate(mesh_gateway_failures_total{@}[$__rate_interval]))"#, "{{reason}}")]),
            states("Failed over", "When the first choice of a service could not serve, somewhere.",
                query(r#"max by (destination_service) (mesh_service_failover_active{@})"#, "{{destination_service}}"), &YES_NO).width(12).runbook("MeshServiceFailedOver"),
            states("Processes", "When Prometheus could scrape which process.", query("min by (job, instance) (up{@})", "{{instance}}"), &UP_DOWN).width(12),
        ])
        .row("Configuration", [
            lines("Revisions in use", "Every gateway takes a change within a second or so; one that stays behind serves by an old policy.", "none",
                [query("mesh_gateway_config_revision{@}", "{{instance}}")]).runbook("MeshConfigLagging"),
            table("Versions", "What runs where.", "none", query("max by (component, version, cluster, instance) (mesh_build_info{@})", "")),
        ])
}
