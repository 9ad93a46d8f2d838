//! Active health checks: who is asked when ([`schedule`], without I/O), how ([`probe`]), and the task between ([`driver`]).

pub mod driver;
pub mod probe;
pub mod schedule;

use std::net::SocketAddr;

use archipelago_model::id::ServiceKey;
use archipelago_proto::v1::{CheckFailure, CheckFailureReason};

/// One endpoint of one port of a service: what is checked, and what is ready or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Which service.
    pub service: ServiceKey,
    /// Which of its ports: two may lead to one address and be asked in different protocols.
    pub port: u16,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Nobody has asked it yet.
    Unknown,
    /// It may get requests.
    Ready,
    /// It may not, and this is what it last answered.
    Down(Failure),
}

/// What was wrong with an answer, out of a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody accepts connections.
    Connect,
    /// Closed before an answer.
    Closed,
    /// Answered in another protocol than the service's.
    Protocol,
    /// The question cannot be written.
    Request,
    /// Answered with a status that is not 2xx.
    Status(u16),
    /// The gRPC server is there, and says that it does not serve.
    NotServing,
    /// The gRPC server answered the question itself with an error: this code.
    GrpcStatus(u16),
    /// No answer in time.
    Timeout,
    /// The provider says that it is not ready.
    Provider,
}

impl Failure {
    /// Bounded label for metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Closed => "closed",
            Self::Protocol => "protocol",
            Self::Request => "request",
            Self::Status(_) => "status",
            Self::NotServing => "not_serving",
            Self::GrpcStatus(_) => "grpc_status",
            Self::Timeout => "timeout",
            Self::Provider => "provider",
        }
    }

    /// As the control plane hears it.
    #[must_use]
    pub fn to_proto(self) -> CheckFailure {
        let reason = match self {
            Self::Connect => CheckFailureReason::Connect,
            Self::Closed => CheckFailureReason::Closed,
            Self::Protocol => CheckFailureReason::Protocol,
            Self::Request => CheckFailureReason::Request,
            Self::Status(_) => CheckFailureReason::Status,
            Self::NotServing => CheckFailureReason::NotServing,
            Self::GrpcStatus(_) => CheckFailureReason::GrpcStatus,
            Self::Timeout => CheckFailureReason::Timeout,
            Self::Provider => CheckFailureReason::Provider,
        };
        let status = if let Self::Status(status) | Self::GrpcStatus(status) = self { status.into() } else { 0 };
        CheckFailure { reason: reason.into(), status }
    }
}
