//! Who may make which call at which port, in one place. Handlers judge again what depends on more than a role.

use std::time::Duration;

use archipelago_rpc::server::{
    Access, Call,
    Caller::{self, Agent, ControlPlane, Gateway, Operator},
    Rule,
};

use super::{APPLY_BYTES_MAX, JOIN_BYTES_MAX};
use crate::consensus::MESSAGE_BYTES_MAX;

/// The client port.
pub(crate) const CLIENT_PORT: Access = Access(&[
    // Without a certificate: by token, or by the key of one that ran out.
    Rule { path: "/archipelago.v1.Identity/Join", callers: &Caller::ALL, call: ENROL },
    Rule { path: "/archipelago.v1.Identity/Challenge", callers: &Caller::ALL, call: ENROL },
    Rule { path: "/archipelago.v1.Identity/Recover", callers: &Caller::ALL, call: ENROL },
    Rule { path: "/archipelago.v1.Identity/Renew", callers: &[Agent, ControlPlane, Gateway, Operator], call: ENROL },
    Rule { path: "/archipelago.v1.Identity/", callers: &[Operator], call: OPERATE },
    Rule { path: "/archipelago.v1.Tokens/", callers: &[Operator], call: OPERATE },
    Rule { path: "/archipelago.v1.Fleet/", callers: &[Operator], call: OPERATE },
    Rule { path: "/archipelago.v1.Membership/", callers: &[Operator], call: OPERATE },
    Rule { path: "/archipelago.v1.Telemetry/", callers: &[Operator], call: OPERATE },
    Rule { path: "/archipelago.v1.Events/", callers: &[Operator], call: OPERATE },
    Rule { path: "/archipelago.v1.Dashboard/", callers: &[Operator], call: OPERATE },
    Rule {
        path: "/archipelago.v1.Resources/",
        callers: &[Operator],
        call: Call::Unary { request_bytes_max: APPLY_BYTES_MAX + FRAMING_BYTES, time_max: CALL_TIME_MAX },
    },
    Rule { path: "/archipelago.v1.GatewayControl/", callers: &[Gateway], call: Call::Streaming },
    Rule { path: "/archipelago.v1.AgentControl/", callers: &[Agent], call: Call::Streaming },
    Rule {
        path: "/archipelago.v1.Members/",
        callers: &[ControlPlane],
        call: Call::Unary { request_bytes_max: MESSAGE_BYTES_MAX + FRAMING_BYTES, time_max: CALL_TIME_MAX },
    },
]);

/// The peer port.
pub(crate) const PEER_PORT: Access =
    Access(&[Rule { path: "/archipelago.v1.RaftTransport/", callers: &[ControlPlane], call: Call::Streaming }]);

/// Two majority round trips through an election, and a signature.
const ENROL: Call =
    Call::Unary { request_bytes_max: JOIN_BYTES_MAX + FRAMING_BYTES, time_max: Duration::from_secs(25) };
/// Questions of operators; the largest names services and clusters.
const OPERATE: Call = Call::Unary { request_bytes_max: 1024 * 1024, time_max: CALL_TIME_MAX };
/// Beyond every wait inside a handler (a commit: 10 s), so that the handler's own words arrive.
const CALL_TIME_MAX: Duration = Duration::from_secs(60);
/// The prefix of a gRPC message is five bytes.
const FRAMING_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use archipelago_identity::{SpiffeId, TrustDomain};
    use archipelago_proto::v1::{
        agent_control_server, dashboard_server, events_server, fleet_server, gateway_control_server, identity_server,
        members_server, membership_server, raft_transport_server, resources_server, telemetry_server, tokens_server,
    };
    use tonic::Code;

    use super::*;

    /// Every service of both ports with every role, by name: a service that is added must be added here.
    #[test]
    fn every_service_with_every_role() {
        let domain: TrustDomain = "mesh.example".parse().unwrap();
        let callers: [Option<SpiffeId>; 6] = [
            None,
            Some(SpiffeId::gateway(&domain, "paris", "gw-1")),
            Some(SpiffeId::agent(&domain, "paris", "agent")),
            Some(SpiffeId::operator(&domain, "admin")),
            Some(SpiffeId::control_plane(&domain, 2)),
            Some("spiffe://mesh.example/ns/shop/sa/web".parse().unwrap()),
        ];
        const OK: Code = Code::Ok;
        const NO: Code = Code::Unauthenticated;
        const DENIED: Code = Code::PermissionDenied;
        const NONE: Code = Code::Unimplemented;
        let operators = [NO, DENIED, DENIED, OK, DENIED, DENIED];
        let members = [NO, DENIED, DENIED, DENIED, OK, DENIED];
        let nobody = [NO, NONE, NONE, NONE, NONE, NONE];
        let table = [
            (identity_server::SERVICE_NAME, "Join", [OK, OK, OK, OK, OK, DENIED], nobody),
            (identity_server::SERVICE_NAME, "Challenge", [OK, OK, OK, OK, OK, DENIED], nobody),
            (identity_server::SERVICE_NAME, "Recover", [OK, OK, OK, OK, OK, DENIED], nobody),
            (identity_server::SERVICE_NAME, "Renew", [NO, OK, OK, OK, OK, DENIED], nobody),
            (identity_server::SERVICE_NAME, "Revoke", operators, nobody),
            (tokens_server::SERVICE_NAME, "Create", operators, nobody),
            (resources_server::SERVICE_NAME, "Apply", operators, nobody),
            (fleet_server::SERVICE_NAME, "Status", operators, nobody),
            (fleet_server::SERVICE_NAME, "WaitApplied", operators, nobody),
            (membership_server::SERVICE_NAME, "List", operators, nobody),
            (membership_server::SERVICE_NAME, "Add", operators, nobody),
            (membership_server::SERVICE_NAME, "Promote", operators, nobody),
            (membership_server::SERVICE_NAME, "Remove", operators, nobody),
            (membership_server::SERVICE_NAME, "Transfer", operators, nobody),
            (telemetry_server::SERVICE_NAME, "Ask", operators, nobody),
            (events_server::SERVICE_NAME, "List", operators, nobody),
            (events_server::SERVICE_NAME, "Follow", operators, nobody),
            (dashboard_server::SERVICE_NAME, "SignIn", operators, nobody),
            (gateway_control_server::SERVICE_NAME, "Stream", [NO, OK, DENIED, DENIED, DENIED, DENIED], nobody),
            (agent_control_server::SERVICE_NAME, "Stream", [NO, DENIED, OK, DENIED, DENIED, DENIED], nobody),
            (members_server::SERVICE_NAME, "Propose", members, nobody),
            (members_server::SERVICE_NAME, "AskLocal", members, nobody),
            (members_server::SERVICE_NAME, "ChangeGroup", members, nobody),
            (raft_transport_server::SERVICE_NAME, "Messages", nobody, members),
            (raft_transport_server::SERVICE_NAME, "Snapshot", nobody, members),
            ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", nobody, nobody),
        ];
        for (service, method, client, peer) in table {
            let path = format!("/{service}/{method}");
            for (port, access, expected) in [("client", CLIENT_PORT, client), ("peer", PEER_PORT, peer)] {
                let codes = callers
                    .each_ref()
                    .map(|id| access.judge(&path, id.as_ref()).map_or_else(|status| status.code(), |_| Code::Ok));
                assert_eq!(codes, expected, "{path} at the {port} port");
            }
        }
    }

    /// What a caller without a certificate can make a member read.
    #[test]
    fn strangers_send_little_and_not_for_long() {
        for rule in CLIENT_PORT.0.iter().chain(PEER_PORT.0).filter(|rule| rule.callers.contains(&Caller::Stranger)) {
            let Call::Unary { request_bytes_max, time_max } = rule.call else { panic!("{} is not bounded", rule.path) };
            assert!(request_bytes_max <= 65 * 1024 && time_max <= Duration::from_secs(30), "{}", rule.path);
        }
    }
}
