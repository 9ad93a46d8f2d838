//! What is between two clusters.

use crate::dashboard::{Dashboard, heatmap, lines, query, stat, states};

pub(super) fn dashboard() -> Dashboard {
    Dashboard::new("cluster-pair", "Cluster pair", "What is between two clusters: traffic one way, and the tunnels that carry it.")
        .by_instance()
        .one("source", "From", r#"label_values(mesh_tunnel_state{job=~"$job"}, source_cluster)"#)
        .one("destination", "To", r#"label_values(mesh_tunnel_state{job=~"$job", source_cluster="$source"}, destination_cluster)"#)
        .row("Traffic", [
            stat("Requests", "Requests per second that enter at the one and are served by the other.", "reqps",
                query(r#"sum(rate(mesh_requests_total{@, reporter="source", source_cluster="$source", destination_cluster="$destination"}[$__rate_interval])) or vector(0)"#, "")),
            stat("Failed", "Share of them answered with a 5xx, or with a gRPC status that says that the service failed.", "percentunit",
                query(r#"(sum(rate(mesh_requests_total{@, reporter="source", source_cluster="$source", destination_cluster="$destination", response_code=~"5.."}[$__rate_interval]) or rate(mesh_requests_total{@, reporter="source", source_cluster="$source", destination_cluster="$destination", grpc_response_status=~"2|4|12|13|14|15"}[$__rate_interval])) or vector(0)) / (sum(rate(mesh_requests_total{@, reporter="source", source_cluster="$source", destination_cluster="$destination"}[$__rate_interval])) > 0) or vector(0)"#, ""))
                .share().below(0.01),
            stat("Tunnels up", "Share of the tunnels from the one to the other that are up.", "percentunit",
                query(r#"avg(mesh_tunnel_state{@, source_cluster="$source", destination_cluster="$destination", state="up"})"#, ""))
                .share().at_least(1.0).runbook("MeshClusterUnreachable"),
            stat("Round trip", "Mean smoothed round trip of the tunnels.", "s",
                query(r#"avg(mesh_tunnel_rtt_seconds{@, source_cluster="$source", destination_cluster="$destination"})"#, "")),
            stat("Loss", "Share of packets that were lost on the way there.", "percentunit",
                query(r#"sum(rate(mesh_tunnel_lost_packets_total{@, source_cluster="$source", destination_cluster="$destination"}[$__rate_interval])) / (sum(rate(mesh_tunnel_sent_packets_total{@, source_cluster="$source", destination_cluster="$destination"}[$__rate_interval])) > 0)"#, ""))
                .share().below(0.02).runbook("MeshTunnelLoss"),
            stat("Sent", "Bytes per second on the tunnels, everything included.", "Bps",
                query(r#"sum(rate(mesh_tunnel_sent_bytes_total{@, source_cluster="$source", destination_cluster="$destination"}[$__rate_interval]))"#, "")),
            lines("Requests by code", "What clients at the one got from services at the other.", "reqps",
                [query(r#"sum by (response_code) (rate(mesh_requests_total{@, reporter="source", source_cluster="$source", destination_cluster="$destination"}[$__rate_interval]))"#, "{{response_code}}")]).stacked(),
            lines("Latency", "As clients at the one see it, against what the gateways at the other need.", "s", [
                query(r#"histogram_quantile(0.5, sum by (le) (rate(mesh_request_duration_seconds_bucket{@, reporter="source", source_cluster="$source", destination_cluster="$destination"}[$__rate_interval])))"#, "p50"),
                query(r#"histogram_quantile(0.99, sum by (le) (rate(mesh_request_duration_seconds_bucket{@, reporter="source", source_cluster="$source", destination_cluster="$destination"}[$__rate_interval])))"#, "p99"),
                query(r#"histogram_quantile(0.99, sum by (le) (rate(mesh_request_duration_seconds_bucket{@, reporter="destination", source_cluster="$source", destination_cluster="$destination"}[$__rate_interval])))"#, "p99 without the way"),
            ]),
            heatmap("Durations", "How many requests took how long.", "s",
                query(r#"sum by (le) (increase(mesh_request_duration_seconds_bucket{@, reporter="source", source_cluster="$source", destination_cluster="$destination"}[$__rate_interval]))"#, "{{le}}")),
        ])
        .row("Tunnels", [
            states("Up", "When each gateway's tunnel to each peer was up.",
                query(r#"min by (instance, peer) (mesh_tunnel_state{@, source_cluster="$source", destination_cluster="$destination", state="up"})"#, "{{instance}} → {{peer}}"),
                &super::UP_DOWN).runbook("MeshClusterUnreachable"),
            lines("Round trips", "Smoothed round trip of each tunnel, the largest of its gateway's workers.", "s",
                [query(r#"mesh_tunnel_rtt_seconds{@, source_cluster="$source", destination_cluster="$destination"}"#, "{{instance}} → {{peer}}")]),
            lines("Lost packets", "Packets lost on the way there, and on the way back.", "pps", [
                query(r#"sum(rate(mesh_tunnel_lost_packets_total{@, source_cluster="$source", destination_cluster="$destination"}[$__rate_interval]))"#, "there"),
                query(r#"sum(rate(mesh_tunnel_lost_packets_total{@, source_cluster="$destination", destination_cluster="$source"}[$__rate_interval]))"#, "back"),
            ]).runbook("MeshTunnelLoss"),
            lines("Loss by tunnel", "Share of the packets of the last minute that were lost; a tunnel over which almost nothing goes has none.", "percentunit",
                [query(r#"mesh_tunnel_loss_ratio{@, source_cluster="$source", destination_cluster="$destination"}"#, "{{instance}} → {{peer}}")]).share().runbook("MeshTunnelLoss"),
            lines("Congestion windows", "How much may be on its way unacknowledged, by the connection of each tunnel that may have the least.", "bytes",
                [query(r#"mesh_tunnel_congestion_window_bytes{@, source_cluster="$source", destination_cluster="$destination"}"#, "{{instance}} → {{peer}}")]),
            lines("Bytes", "Everything on the tunnels, both ways, as the gateways of the one count it.", "Bps", [
                query(r#"sum(rate(mesh_tunnel_sent_bytes_total{@, source_cluster="$source", destination_cluster="$destination"}[$__rate_interval]))"#, "sent"),
                query(r#"sum(rate(mesh_tunnel_received_bytes_total{@, source_cluster="$source", destination_cluster="$destination"}[$__rate_interval]))"#, "received"),
            ]),
            lines("States", "How many tunnels are in which state.", "none",
                [query(r#"sum by (state) (mesh_tunnel_state{@, source_cluster="$source", destination_cluster="$destination"})"#, "{{state}}")]).stacked(),
        ])
}
