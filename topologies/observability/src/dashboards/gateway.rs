//! Gateways themselves.

use super::UP_DOWN;
use crate::dashboard::{Dashboard, lines, query, stat, states};

pub(super) fn dashboard() -> Dashboard {
    Dashboard::new("gateway", "Gateway", "Gateways themselves: what they carry, how much they may, whom they refuse, what they take of the machine.")
        .by_cluster()
        .row("Load", [
            stat("Requests under way", "Share of the requests that may be under way, of the fullest gateway.", "percentunit",
                query("max(mesh_gateway_requests_in_flight{@} / mesh_gateway_requests_limit{@})", "")).share().below(0.8).runbook("MeshGatewaySaturated"),
            stat("Connections", "Share of the connections that may be open, of the fullest gateway.", "percentunit",
                query("max(mesh_gateway_connections{@} / mesh_gateway_connections_limit{@})", "")).share().below(0.8).runbook("MeshGatewaySaturated"),
            stat("Unusable resources", "Resources of the configuration that some gateway cannot use.", "none",
                query("max(mesh_gateway_resources_unusable{@})", "")).below(1.0).runbook("MeshConfigRejected"),
            stat("Away from the control plane", "Gateways without a stream to the control plane. They go on with what they have.", "none",
                query("count(mesh_gateway_control_plane_connected{@} == 0) or vector(0)", "")).below(1.0).runbook("MeshGatewayDisconnected"),
            stat("Unreachable endpoints", "Endpoints to which no connection comes about, as each worker sees them.", "none",
                query("sum(mesh_gateway_endpoints_unreachable{@})", "")).below(1.0),
            stat("Ports not had", "Ports of TCP services and for clients of the node that something else holds.", "none",
                query("sum(mesh_gateway_tcp_services_unserved{@} + mesh_gateway_captures_unserved{@})", "")).below(1.0),
            lines("Requests", "Requests that enter here, and that come through tunnels.", "reqps",
                [query("sum by (instance, reporter) (rate(mesh_requests_total{@}[$__rate_interval]))", "{{instance}} {{reporter}}")]),
            lines("Requests under way", "At this moment, once a second.", "none", [query("mesh_gateway_requests_in_flight{@}", "{{instance}}")]),
            lines("Connections open", "Of clients, by protocol.", "none", [query("sum by (instance, protocol) (mesh_gateway_connections{@})", "{{instance}} {{protocol}}")]),
            lines("TCP", "Bytes of proxied TCP connections; sent is towards the service.", "Bps",
                [query("sum by (instance, direction) (rate(mesh_tcp_bytes_total{@}[$__rate_interval]))", "{{instance}} {{direction}}")]),
        ])
        .row("Refused", [
            lines("Requests answered here", "Why no service answered.", "reqps",
                [query("sum by (reason) (rate(mesh_gateway_failures_total{@}[$__rate_interval]))", "{{reason}}")]),
            lines("Heads refused", "Requests that are none, or that could be read in two ways.", "reqps",
                [query("sum by (reason) (rate(mesh_gateway_refused_heads_total{@}[$__rate_interval])) or vector(0)", "{{reason}}")]),
            lines("Clients refused and cut", "Clients with as many connections or requests as they may have, those that take nothing of their response, and connections when there are too many.", "ops", [
                query("sum by (what) (rate(mesh_gateway_clients_refused_total{@}[$__rate_interval]))", "too many of one client: {{what}}"),
                query("sum(rate(mesh_gateway_clients_stalled_total{@}[$__rate_interval]))", "stalled"),
                query("sum(rate(mesh_gateway_connections_refused_total{@}[$__rate_interval]))", "too many of all clients"),
                query("sum(rate(mesh_gateway_captures_refused_total{@}[$__rate_interval]))", "not of this node"),
            ]),
            lines("Peers refused", "What gateways of other clusters asked for and may not have, and handshakes that were refused.", "ops", [
                query("sum by (reason) (rate(mesh_gateway_refused_streams_total{@}[$__rate_interval])) or vector(0)", "stream {{reason}}"),
                query("sum by (reason) (rate(mesh_gateway_tunnel_refused_total{@}[$__rate_interval])) or vector(0)", "handshake {{reason}}"),
                query("sum(rate(mesh_gateway_tunnel_requests_rejected_total{@}[$__rate_interval]))", "queue full"),
            ]).runbook("MeshTunnelHandshakesRefused"),
        ])
        .row("Attempts and tunnels", [
            lines("Attempts beyond the first", "Requests that were sent again, and why.", "reqps",
                [query("sum by (purpose, reason) (rate(mesh_gateway_replays_total{@}[$__rate_interval])) or vector(0)", "{{purpose}} {{reason}}")]),
            lines("Hedges", "Requests asked of a second endpoint beside one that hung, by whose answer counted.", "reqps",
                [query("sum by (answered) (rate(mesh_gateway_hedges_total{@}[$__rate_interval]))", "{{answered}}")]),
            lines("Tunnels", "Tunnels that peers opened, dials that failed.", "ops", [
                query("sum(rate(mesh_gateway_tunnel_accepted_total{@}[$__rate_interval]))", "accepted"),
                query("sum(rate(mesh_gateway_tunnel_dial_failures_total{@}[$__rate_interval]))", "dials failed"),
            ]),
            lines("Beats", "Of the failure detectors: one per second on an idle tunnel, two hundred while requests wait.", "ops",
                [query("sum by (instance, direction) (rate(mesh_gateway_tunnel_beats_total{@}[$__rate_interval]))", "{{instance}} {{direction}}")]),
        ])
        .row("Process", [
            lines("CPU", "Cores in use.", "none", [query("rate(process_cpu_seconds_total{@}[$__rate_interval])", "{{instance}}")]),
            lines("Memory", "Resident memory.", "bytes", [query("process_resident_memory_bytes{@}", "{{instance}}")]),
            lines("Descriptors", "Share of the file descriptors that may be open.", "percentunit", [query("process_open_fds{@} / process_max_fds{@}", "{{instance}}")]).share(),
            lines("Cost of scraping", "How long a scrape takes, and how many label sets requests have.", "none", [
                query("scrape_duration_seconds{@}", "{{instance}} seconds"),
                query("mesh_gateway_request_series{@}", "{{instance}} label sets"),
            ]),
            lines("Access log", "Lines that a slow access log lost.", "ops", [query("sum by (instance) (rate(mesh_gateway_access_log_dropped_total{@}[$__rate_interval]))", "{{instance}}")]),
            states("Control plane", "When each gateway had a stream to the control plane.", query("mesh_gateway_control_plane_connected{@}", "{{instance}}"), &UP_DOWN).width(12).runbook("MeshGatewayDisconnected"),
        ])
}
