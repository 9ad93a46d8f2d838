//! `Dashboard`: from a terminal into the page that this member serves.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use archipelago_page::sessions::{LINK_LIFE, SESSION_LIFE};
use archipelago_proto::v1::{SignInRequest, SignInResponse, dashboard_server::Dashboard};
use archipelago_rpc::grpc;
use tonic::{Request, Response, Status};

use super::{Context, operator};

pub(super) struct DashboardService(pub(super) Arc<Context>);

#[tonic::async_trait]
impl Dashboard for DashboardService {
    async fn sign_in(&self, request: Request<SignInRequest>) -> Result<Response<SignInResponse>, Status> {
        let actor = operator(&request)?;
        let certificate = grpc::certificate(&request)
            .ok_or_else(|| Status::unauthenticated("this call needs a client certificate"))?;
        let Some(dashboard) = &self.0.dashboard else {
            return Err(Status::failed_precondition(
                "this member serves no dashboard: start it with --dashboard 127.0.0.1:PORT",
            ));
        };
        let SignInRequest { read_only } = request.into_inner();
        let left = certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let url = dashboard.invite(certificate, read_only, left);
        tracing::info!(%actor, read_only, "a link to the dashboard was made");
        Ok(Response::new(SignInResponse {
            url,
            link_ms: millis(left.min(LINK_LIFE)),
            session_ms: millis(left.min(SESSION_LIFE)),
            member: self.0.consensus.node_id,
        }))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
