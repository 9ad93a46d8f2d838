//! The gRPC services. Any member serves every call; authorisation is by the SPIFFE id of the caller, per call.
//!
//! | service | who |
//! | --- | --- |
//! | `Identity.Join` | anybody with a token, or a ServiceAccount that its cluster's agent vouches for |
//! | `Identity.Challenge`, `Identity.Recover` | a gateway or agent whose certificate ran out, by its key |
//! | `Identity.Renew` | whoever has an identity, for that identity |
//! | the rest of `Identity` | operators |
//! | `Resources`, `Tokens`, `Fleet`, `Membership`, `Telemetry`, `Events`, `Dashboard` | operators |
//! | `GatewayControl` | a gateway, as itself |
//! | `AgentControl` | an agent, for its own cluster |
//! | `Members` | other members |

pub(crate) mod access;
mod agents;
pub(crate) mod attest;
mod dashboard;
pub(crate) mod events;
pub(crate) mod fleet;
mod gateways;
mod identities;
pub(crate) mod identity;
mod members;
mod membership;
mod page;
pub(crate) mod resources;
pub(crate) mod services;
mod stream;
pub(crate) mod telemetry;
mod tokens;

use std::{sync::Arc, time::Duration};

use archipelago_identity::{MeshRole, SpiffeId, TrustDomain};
use archipelago_proto::v1::{
    agent_control_server::AgentControlServer, dashboard_server::DashboardServer, events_server::EventsServer,
    fleet_server::FleetServer, gateway_control_server::GatewayControlServer, identity_server::IdentityServer,
    members_server::MembersServer, membership_server::MembershipServer, resources_server::ResourcesServer,
    telemetry_server::TelemetryServer, tokens_server::TokensServer,
};
use archipelago_rpc::grpc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, service::Routes};

use crate::{
    audit::Audit,
    authority::AuthorityHolder,
    chronicle::Chronicle,
    config::Compiler,
    consensus::{Consensus, MESSAGE_BYTES_MAX},
    dashboard::Dashboard,
    metrics::Metrics,
    roster::Roster,
    sessions::Sessions,
};

/// What every service needs.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) consensus: Arc<Consensus>,
    pub(crate) compiler: Compiler,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) chronicle: Arc<Chronicle>,
    pub(crate) authority: Arc<AuthorityHolder>,
    pub(crate) audit: Audit,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) trust_domain: TrustDomain,
    /// Names the federation on disks and between members.
    pub(crate) federation: String,
    pub(crate) roster: Arc<Roster>,
    pub(crate) svid_ttl: Duration,
    /// Joins under way: the one call that needs no certificate must not crowd out the others.
    pub(crate) joins: Semaphore,
    /// Joins that agents are asked about.
    pub(crate) attestations: attest::Attestations,
    /// How long after its end a certificate may be exchanged.
    pub(crate) recovery_grace: Duration,
    pub(crate) clocks: identity::Clocks,
    /// Questions under way to many gateways.
    pub(crate) inquiries: Arc<Semaphore>,
    /// Operators who look at what gateways measure, again and again.
    pub(crate) looks: Arc<Semaphore>,
    /// The page that this member serves, if it does.
    pub(crate) dashboard: Option<Arc<Dashboard>>,
    /// Cancelled when this member shuts down: streams end so that their clients go elsewhere.
    pub(crate) stopping: CancellationToken,
}

/// All services of the client port.
pub(crate) fn routes(context: &Arc<Context>) -> Routes {
    let mut routes = Routes::builder();
    routes
        .add_service(
            IdentityServer::new(identity::IdentityService(Arc::clone(context)))
                .max_decoding_message_size(JOIN_BYTES_MAX),
        )
        .add_service(TokensServer::new(tokens::TokensService(Arc::clone(context))))
        .add_service(
            ResourcesServer::new(resources::ResourcesService(Arc::clone(context)))
                .max_decoding_message_size(APPLY_BYTES_MAX),
        )
        .add_service(FleetServer::new(fleet::FleetService(Arc::clone(context))))
        .add_service(MembershipServer::new(membership::MembershipService(Arc::clone(context))))
        .add_service(TelemetryServer::new(telemetry::TelemetryService(Arc::clone(context))))
        .add_service(EventsServer::new(events::EventsService(Arc::clone(context))))
        .add_service(DashboardServer::new(dashboard::DashboardService(Arc::clone(context))))
        .add_service(
            GatewayControlServer::new(gateways::GatewayService(Arc::clone(context)))
                .max_decoding_message_size(STREAM_BYTES_MAX),
        )
        .add_service(
            AgentControlServer::new(agents::AgentService(Arc::clone(context)))
                .max_decoding_message_size(STREAM_BYTES_MAX),
        )
        .add_service(
            MembersServer::new(members::MembersService(Arc::clone(context)))
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
        );
    routes.routes()
}

/// Refuses everybody but operators.
fn operator<T>(request: &Request<T>) -> Result<SpiffeId, Status> {
    grpc::require(request, |role| matches!(role, MeshRole::Operator { .. }))
}

/// A request id of our own for a client that sent none: its retries cannot be recognised.
fn or_random(request_id: String) -> String {
    if request_id.is_empty() { format!("{:032x}", rand::random::<u128>()) } else { request_id }
}

/// A CSR, a secret and an id.
const JOIN_BYTES_MAX: usize = 64 * 1024;
/// Above the largest command with the YAML's comments and indentation; the command itself is bounded apart.
const APPLY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A hello with 50,000 resource versions, a report of 10,000 services with all they say of their exports, or 4 MiB of policies.
const STREAM_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Joins handled at once; one costs two majority round trips and a signature.
pub(crate) const JOINS_MAX: usize = 64;
