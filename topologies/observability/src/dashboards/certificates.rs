//! Certificates, and who was refused for his.

use crate::dashboard::{Dashboard, lines, query, stat, table};

pub(super) fn dashboard() -> Dashboard {
    Dashboard::new("certificates", "Certificates", "When certificates run out, whether they are renewed, and who was refused for his.")
        .by_instance()
        .row("Now", [
            stat("Own", "Time that is left to the certificate that runs out first, of all processes. They renew at a quarter of its life.", "s",
                query(r#"min(mesh_certificate_not_after_timestamp_seconds{@, kind="svid"}) - time()"#, "")).at_least(43_200.0).width(6).runbook("MeshCertificateExpiring"),
            stat("Issuer", "Time that is left to the issuer's certificate.", "s",
                query(r#"min(mesh_certificate_not_after_timestamp_seconds{@, kind="issuer"}) - time()"#, "")).at_least(2_592_000.0).width(6).runbook("MeshAuthorityExpiring"),
            stat("Root", "Time that is left to the root certificate.", "s",
                query(r#"min(mesh_certificate_not_after_timestamp_seconds{@, kind="root"}) - time()"#, "")).at_least(2_592_000.0).width(6).runbook("MeshAuthorityExpiring"),
            stat("Cannot issue", "Members that cannot issue certificates because their seal key is missing.", "none",
                query("count(mesh_control_plane_authority_unsealed{@} == 0) or vector(0)", "")).below(1.0).width(6),
        ])
        .row("Over time", [
            lines("Time left", "Of each process's own certificate; each renewal is a step up.", "s",
                [query(r#"mesh_certificate_not_after_timestamp_seconds{@, kind="svid"} - time()"#, "{{instance}}")]).runbook("MeshCertificateExpiring"),
            lines("Issued", "Certificates issued by the members.", "ops", [query("sum by (instance) (rate(mesh_control_plane_svids_issued_total{@}[$__rate_interval]))", "{{instance}}")]),
            lines("Joins", "Uses of join tokens, by result.", "ops", [query("sum by (result) (rate(mesh_control_plane_joins_total{@}[$__rate_interval]))", "{{result}}")]),
            lines("Handshakes refused", "Gateways that were refused by others, and tunnels closed for what certificates say, by reason.", "ops",
                [query("sum by (reason) (rate(mesh_gateway_tunnel_refused_total{@}[$__rate_interval])) or vector(0)", "{{reason}}")]).runbook("MeshTunnelHandshakesRefused"),
            table("All of them", "Time left, by process and certificate.", "s",
                query("sort(min by (instance, kind) (mesh_certificate_not_after_timestamp_seconds{@}) - time())", "")),
            lines("Audit", "Issued certificates that could not be noted in the audit list.", "ops", [query("sum(rate(mesh_control_plane_audit_records_dropped_total{@}[$__rate_interval]))", "dropped")]),
        ])
}
