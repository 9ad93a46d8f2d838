//! One service, over all clusters.

use super::YES_NO;
use crate::dashboard::{Dashboard, heatmap, lines, query, stat, states};

pub(super) fn dashboard() -> Dashboard {
    Dashboard::new("service", "Service", "One service over all clusters: its traffic, where it goes, and where it could go.")
        .by_cluster()
        .one("service", "Service", r#"label_values(mesh_service_endpoints_ready{job=~"$job"}, destination_service)"#)
        .row("Now", [
            stat("Requests", "Requests per second that clients send to it.", "reqps",
                query(r#"sum(rate(mesh_requests_total{@, reporter="source", destination_service="$service"}[$__rate_interval]))"#, "")),
            stat("Success", "Share of requests that were answered with neither a 5xx nor a gRPC status that says that the service failed.", "percentunit",
                query(r#"1 - (sum(rate(mesh_requests_total{@, reporter="source", destination_service="$service", response_code=~"5.."}[$__rate_interval]) or rate(mesh_requests_total{@, reporter="source", destination_service="$service", grpc_response_status=~"2|4|12|13|14|15"}[$__rate_interval])) or vector(0)) / sum(rate(mesh_requests_total{@, reporter="source", destination_service="$service"}[$__rate_interval]))"#, ""))
                .share().thresholds(&[(None, "red"), (Some(0.99), "orange"), (Some(0.999), "green")]).runbook("MeshErrorBudgetBurn"),
            stat("p50", "Half of the requests were over within this time.", "s",
                query(r#"histogram_quantile(0.5, sum by (le) (rate(mesh_request_duration_seconds_bucket{@, reporter="source", destination_service="$service"}[$__rate_interval])))"#, "")),
            stat("p99", "99 of 100 requests were over within this time.", "s",
                query(r#"histogram_quantile(0.99, sum by (le) (rate(mesh_request_duration_seconds_bucket{@, reporter="source", destination_service="$service"}[$__rate_interval])))"#, "")),
            stat("Ready endpoints", "Endpoints of all clusters that could serve, as the gateway sees it that sees the fewest.", "none",
                query(r#"min(sum by (instance) (mesh_service_endpoints_ready{@, destination_service="$service"}))"#, "")).at_least(1.0).runbook("MeshServiceUnserved"),
            stat("Failed over at", "Gateways at which its first choice cannot serve.", "none",
                query(r#"count(mesh_service_failover_active{@, destination_service="$service"} == 1) or vector(0)"#, "")).below(1.0).runbook("MeshServiceFailedOver"),
        ])
        .row("Traffic", [
            lines("Where it goes", "From the cluster at which a request entered to the one that served it.", "reqps",
                [query(r#"sum by (source_cluster, destination_cluster) (rate(mesh_requests_total{@, reporter="source", destination_service="$service"}[$__rate_interval]))"#, "{{source_cluster}} → {{destination_cluster}}")]).stacked(),
            lines("Codes", "What clients got. A code without a name is shown by its class.", "reqps",
                [query(r#"sum by (response_code) (rate(mesh_requests_total{@, reporter="source", destination_service="$service"}[$__rate_interval]))"#, "{{response_code}}")]).stacked(),
            lines("Flags", "What gateways say of requests, in Envoy's letters: UH no healthy endpoint, UF broken, UT timeout, NR no route, DC the client left.", "reqps",
                [query(r#"sum by (response_flags) (rate(mesh_requests_total{@, reporter="source", destination_service="$service"}[$__rate_interval]))"#, "{{response_flags}}")]),
            lines("p99 by serving cluster", "99 of 100 requests were over within this time.", "s",
                [query(r#"histogram_quantile(0.99, sum by (le, destination_cluster) (rate(mesh_request_duration_seconds_bucket{@, reporter="source", destination_service="$service"}[$__rate_interval])))"#, "{{destination_cluster}}")]),
            heatmap("Durations", "How many requests took how long.", "s",
                query(r#"sum by (le) (increase(mesh_request_duration_seconds_bucket{@, reporter="source", destination_service="$service"}[$__rate_interval]))"#, "{{le}}")),
        ])
        .row("Where it could go", [
            lines("Ready endpoints by cluster", "As the gateways see it that see the fewest; at most two seconds old.", "none",
                [query(r#"min by (destination_cluster) (mesh_service_endpoints_ready{@, destination_service="$service"})"#, "{{destination_cluster}}")]),
            states("Failed over", "When its first choice could not serve, by the cluster at which requests enter.",
                query(r#"max by (cluster) (mesh_service_failover_active{@, destination_service="$service"})"#, "{{cluster}}"), &YES_NO).width(12).runbook("MeshServiceFailedOver"),
        ])
}
