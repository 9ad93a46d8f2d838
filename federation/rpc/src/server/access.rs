//! Who may make which call, and what a call may take: judged by path and certificate before a byte of its body is read.

use std::time::Duration;

use archipelago_identity::{MeshRole, SpiffeId};
use tonic::Status;

/// What a port serves: its rules, of which the longest matching one counts. What has no rule is nobody's.
#[derive(Debug, Clone, Copy)]
pub struct Access(pub &'static [Rule]);

/// One service, or one method of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// `/package.Service/` for every method, `/package.Service/Method` for one.
    pub path: &'static str,
    /// Who may call it.
    pub callers: &'static [Caller],
    /// What a call may take.
    pub call: Call,
}

/// Whose certificate the connection showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// An agent.
    Agent,
    /// Another member of the control plane.
    ControlPlane,
    /// A gateway.
    Gateway,
    /// An operator.
    Operator,
    /// Nobody: the connection has no certificate.
    Stranger,
}

/// What a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The caller sends one message; the answer, or the first of many, comes within the time.
    Unary {
        /// All that is read of the request.
        request_bytes_max: usize,
        /// From the request's headers to the head of the answer.
        time_max: Duration,
    },
    /// The caller sends for as long as it likes; single messages are bounded by the service.
    Streaming,
}

impl Caller {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Agent, Self::ControlPlane, Self::Gateway, Self::Operator, Self::Stranger];

    /// `None` for an identity that calls nothing.
    #[must_use]
    pub fn of(peer: Option<&SpiffeId>) -> Option<Self> {
        let Some(id) = peer else { return Some(Self::Stranger) };
        match id.role()? {
            MeshRole::Agent { .. } => Some(Self::Agent),
            MeshRole::ControlPlane { .. } => Some(Self::ControlPlane),
            MeshRole::Gateway { .. } => Some(Self::Gateway),
            MeshRole::Operator { .. } => Some(Self::Operator),
            MeshRole::Workload { .. } => None,
        }
    }
}

impl Access {
    /// The rule for `path`, if `peer` may call it.
    ///
    /// # Errors
    /// `Unauthenticated` without a certificate, `PermissionDenied` with the wrong one, `Unimplemented` for what is not served.
    pub fn judge(&self, path: &str, peer: Option<&SpiffeId>) -> Result<&'static Rule, Status> {
        let matches = |rule: &&Rule| {
            if rule.path.ends_with('/') { path.starts_with(rule.path) } else { path == rule.path }
        };
        let rule = self.0.iter().filter(matches).max_by_key(|rule| rule.path.len());
        let caller = Caller::of(peer);
        match (rule, peer) {
            (Some(rule), _) if caller.is_some_and(|caller| rule.callers.contains(&caller)) => Ok(rule),
            (_, None) => Err(Status::unauthenticated("this call needs a client certificate of the federation")),
            (Some(_), Some(id)) => Err(Status::permission_denied(format!("{id} may not make this call"))),
            (None, Some(_)) => Err(Status::unimplemented("there is no such call here")),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    const CALL: Call = Call::Unary { request_bytes_max: 1, time_max: Duration::from_secs(1) };
    const ACCESS: Access = Access(&[
        Rule { path: "/a.S/", callers: &[Caller::Operator], call: CALL },
        Rule { path: "/a.S/Open", callers: &Caller::ALL, call: CALL },
        Rule { path: "/a.T/", callers: &[Caller::Gateway, Caller::Agent], call: Call::Streaming },
    ]);

    #[test]
    fn every_path_with_every_caller() {
        let id = |path: &str| Some(format!("spiffe://mesh.example{path}").parse::<SpiffeId>().unwrap());
        let callers = [
            None,
            id("/operator/admin"),
            id("/cluster/paris/gateway/gw-1"),
            id("/cluster/paris/agent/agent"),
            id("/control-plane/1"),
            id("/ns/shop/sa/web"),
            id("/something"),
        ];
        let (no, denied, none) = (Code::Unauthenticated, Code::PermissionDenied, Code::Unimplemented);
        let ok = Code::Ok;
        for (path, expected) in [
            ("/a.S/Method", [no, ok, denied, denied, denied, denied, denied]),
            ("/a.S/Open", [ok, ok, ok, ok, ok, denied, denied]),
            ("/a.S/Opener", [no, ok, denied, denied, denied, denied, denied]),
            ("/a.T/Stream", [no, denied, ok, ok, denied, denied, denied]),
            ("/a.T", [no, none, none, none, none, none, none]),
            ("/", [no, none, none, none, none, none, none]),
            ("", [no, none, none, none, none, none, none]),
        ] {
            let codes = callers
                .each_ref()
                .map(|caller| ACCESS.judge(path, caller.as_ref()).map_or_else(|status| status.code(), |_| Code::Ok));
            assert_eq!(codes, expected, "{path}");
        }
    }
}
