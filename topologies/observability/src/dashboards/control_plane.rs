//! The control plane and the agents.

use super::YES_NO;
use crate::dashboard::{Dashboard, lines, query, stat, states};

pub(super) fn dashboard() -> Dashboard {
    Dashboard::new("control-plane", "Control plane", "The control plane and the agents. Nothing here is needed for traffic that already flows.")
        .by_instance()
        .row("Now", [
            stat("Leader", "Whether a member leads: without one, nothing can be changed.", "none",
                query("sum(mesh_control_plane_raft_is_leader{@})", "")).at_least(1.0).runbook("MeshControlPlaneNoLeader"),
            stat("Term", "Each election has a number of its own.", "none", query("max(mesh_control_plane_raft_term{@})", "")),
            stat("Revision", "Of the policy.", "none", query("max(mesh_control_plane_revision{@})", "")),
            stat("Gateways", "Gateways that follow the control plane.", "none", query("sum(mesh_control_plane_gateway_sessions{@})", "")),
            stat("Agents", "Agents that report to it.", "none", query("sum(mesh_control_plane_agent_sessions{@})", "")),
            stat("Cannot issue", "Members that cannot issue certificates because their seal key is missing.", "none",
                query("count(mesh_control_plane_authority_unsealed{@} == 0) or vector(0)", "")).below(1.0),
        ])
        .row("Raft", [
            states("Leads", "Which member led when.", query("mesh_control_plane_raft_is_leader{@}", "{{instance}}"), &YES_NO).width(12).runbook("MeshControlPlaneNoLeader"),
            lines("Behind", "Entries that a member knows to be committed and has not applied, and by which its log is behind the longest.", "none", [
                query("mesh_control_plane_raft_commit_index{@} - mesh_control_plane_raft_applied_index{@}", "{{instance}} to apply"),
                query("scalar(max(mesh_control_plane_raft_last_index{@})) - mesh_control_plane_raft_last_index{@}", "{{instance}} to receive"),
            ]),
            lines("Disk", "Time to make a group of entries durable, with one fsync.", "s", [
                query("histogram_quantile(0.5, sum by (le, instance) (rate(mesh_control_plane_raft_log_write_seconds_bucket{@}[$__rate_interval])))", "{{instance}} p50"),
                query("histogram_quantile(0.99, sum by (le, instance) (rate(mesh_control_plane_raft_log_write_seconds_bucket{@}[$__rate_interval])))", "{{instance}} p99"),
            ]).runbook("MeshLogWritesSlow"),
            lines("Full or different", "1 while a member takes no writes because its disk is full, and while members' states are known to differ.", "none", [
                query("mesh_control_plane_raft_disk_full{@}", "{{instance}} disk full"),
                query("mesh_control_plane_raft_state_diverged{@}", "{{instance}} diverged"),
            ]).runbook("MeshRaftDiverged"),
            lines("Messages and snapshots", "Messages between members that were not sent, and snapshots that were.", "ops", [
                query("sum by (reason) (rate(mesh_control_plane_raft_messages_dropped_total{@}[$__rate_interval]))", "dropped {{reason}}"),
                query("sum by (result) (rate(mesh_control_plane_raft_snapshots_sent_total{@}[$__rate_interval]))", "snapshot {{result}}"),
            ]),
            lines("Terms", "Steps are elections.", "none", [query("mesh_control_plane_raft_term{@}", "{{instance}}")]),
        ])
        .row("Changes", [
            lines("Commits", "Commands that members carried to the leader, by result.", "ops",
                [query("sum by (result) (rate(mesh_control_plane_commits_total{@}[$__rate_interval]))", "{{result}}")]),
            lines("Time to commit", "From the receipt of a command to its outcome.", "s",
                [query("histogram_quantile(0.99, sum by (le) (rate(mesh_control_plane_commit_seconds_bucket{@}[$__rate_interval])))", "p99")]),
            lines("To gateways", "Configuration updates, and resources in them.", "ops", [
                query("sum(rate(mesh_control_plane_config_updates_total{@}[$__rate_interval]))", "updates"),
                query("sum(rate(mesh_control_plane_config_update_resources_total{@}[$__rate_interval]))", "resources"),
            ]),
            lines("From gateways", "What they say to updates.", "ops",
                [query("sum by (result) (rate(mesh_control_plane_config_acks_total{@}[$__rate_interval]))", "{{result}}")]).runbook("MeshConfigRejected"),
            lines("Joins", "Uses of join tokens, by result.", "ops",
                [query("sum by (result) (rate(mesh_control_plane_joins_total{@}[$__rate_interval]))", "{{result}}")]),
            lines("Fleet", "Grows whenever a gateway or a service's offer changes.", "none", [query("max(mesh_control_plane_fleet_version{@})", "fleet version")]),
        ])
        .row("Agents", [
            lines("Services", "Services that each agent sees in its cluster.", "none", [query("mesh_agent_services{@}", "{{instance}}")]),
            lines("Endpoints", "By what health checks say.", "none", [query("sum by (instance, state) (mesh_agent_endpoints{@})", "{{instance}} {{state}}")]),
            lines("Health checks", "By result.", "ops", [query("sum by (result) (rate(mesh_agent_health_checks_total{@}[$__rate_interval]))", "{{result}}")]),
            lines("Connected", "1 while an agent has a stream to the control plane; gateways that watch its endpoints.", "none", [
                query("mesh_agent_control_plane_connected{@}", "{{instance}}"),
                query("mesh_agent_watchers{@}", "{{instance}} gateways"),
            ]).runbook("MeshAgentDown"),
        ])
        .row("Process", [
            lines("CPU", "Cores in use.", "none", [query("rate(process_cpu_seconds_total{@}[$__rate_interval])", "{{instance}}")]),
            lines("Memory", "Resident memory.", "bytes", [query("process_resident_memory_bytes{@}", "{{instance}}")]),
        ])
}
