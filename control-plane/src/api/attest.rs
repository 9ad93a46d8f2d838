//! Joining without a token: a gateway shows a token of its ServiceAccount, and the agent of its cluster says whether that is
//! good, by asking its own API server. This member never sees that API server and needs no right there.
//!
//! Anybody may ask, so what strangers can cost an agent is bounded here, apart from joins by token: at once, and in a second.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use archipelago_identity::SpiffeId;
use archipelago_proto::v1::{JoinRequest, KubernetesProof, ReviewAsk, ReviewLocalRequest, ReviewReply, SvidResponse};
use archipelago_rpc::enrol::{self, SERVICE_ACCOUNT_TOKEN_BYTES_MAX};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::{
    Context, agents,
    identity::{IdentityService, ca_status},
};
use crate::{
    ca::CertificateRequest,
    machine::gateway_problem,
    quota::{Bucket, Rate},
    sessions::ReviewError,
};

impl IdentityService {
    /// A certificate for a gateway that its cluster vouches for.
    pub(super) async fn join_by_kubernetes(
        &self,
        request: JoinRequest,
        proof: KubernetesProof,
    ) -> Result<SvidResponse, Status> {
        let JoinRequest { token_secret, csr_der, client_unix_ms, request_id: _, kubernetes: _ } = request;
        let KubernetesProof { cluster, service_account_token: token } = proof;
        if !token_secret.is_empty() {
            return Err(Status::invalid_argument("a join is by a token or by a ServiceAccount, not by both"));
        }
        check_shape(&token)?;
        // All that can be refused is refused before anybody is asked.
        let csr = CertificateRequest::parse(&csr_der).map_err(ca_status)?;
        self.0.authority.get()?;
        self.refuse_deleted(&cluster)?;
        let Some((member, session)) = self.0.sessions.agent(&cluster) else {
            return Err(not_connected(&cluster));
        };
        if !session.features.iter().any(|feature| feature == agents::REVIEWS) {
            return Err(Status::failed_precondition(format!(
                "the agent of cluster {cluster} does not review ServiceAccounts: join with a token (meshctl token create)"
            )));
        }
        let _pass = self.0.attestations.enter(&cluster, Instant::now())?;
        let audience = enrol::audience(&self.0.trust_domain, &cluster);
        let reply = self.0.review(member, &cluster, token.clone(), audience).await?;
        let gateway = verdict(&cluster, &token, reply)?;

        let id = SpiffeId::gateway(&self.0.trust_domain, &cluster, &gateway);
        csr.expect(&id).map_err(ca_status)?;
        // A member that is cut off may not know of a revocation, and would undo it.
        self.0.consensus.barrier().await?;
        self.refuse_deleted(&cluster)?;
        if self.0.consensus.read(|state| state.revocations().contains_key(&id.to_string())) {
            return Err(Status::permission_denied(format!(
                "{id} was revoked: an operator lets it in again with meshctl token create --cluster {cluster} --role \
                 gateway --name {gateway}"
            )));
        }
        tracing::info!(spiffe_id = %id, "joined, vouched for by its cluster");
        self.issue(&csr, &id, self.0.svid_ttl, client_unix_ms)
    }

    fn refuse_deleted(&self, cluster: &str) -> Result<(), Status> {
        if self.0.consensus.read(|state| state.is_deleted_cluster(cluster)) {
            return Err(Status::permission_denied(format!("cluster {cluster} was deleted: nobody joins it")));
        }
        Ok(())
    }
}

impl Context {
    /// Asks the agent of `cluster`, which is connected to `member`.
    async fn review(&self, member: u64, cluster: &str, token: String, audience: String) -> Result<ReviewReply, Status> {
        if member == self.consensus.node_id {
            return self.review_here(cluster, token, audience).await;
        }
        let mut client = self.consensus.peers.client(member).await?;
        let ask = ReviewAsk { id: 0, token, audience };
        let request = ReviewLocalRequest { cluster: cluster.to_owned(), ask: Some(ask) };
        match timeout(MEMBER_TIME_MAX, client.review_local(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            // A member of the version before.
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                Err(Status::unavailable(format!("cp-{member} cannot ask the agent of cluster {cluster}: upgrade it")))
            }
            Ok(Err(status)) => Err(Status::new(status.code(), status.message())),
            Err(_) => Err(Status::unavailable(format!("cp-{member}, which serves the agent of {cluster}, is silent"))),
        }
    }

    /// Asks the agent of `cluster`, which is connected to this member.
    pub(super) async fn review_here(
        &self,
        cluster: &str,
        token: String,
        audience: String,
    ) -> Result<ReviewReply, Status> {
        self.sessions.review(cluster, token, audience).await.map_err(|error| match error {
            ReviewError::NotConnected => not_connected(cluster),
            ReviewError::Busy | ReviewError::Silent => {
                Status::unavailable(format!("the agent of cluster {cluster} {error}"))
            }
        })
    }
}

fn not_connected(cluster: &str) -> Status {
    let cluster: String = cluster.chars().take(63).collect();
    Status::unavailable(format!("the agent of cluster {cluster} is not connected"))
}

/// Tokens are JSON web tokens; what cannot be one costs nobody a question.
fn check_shape(token: &str) -> Result<(), Status> {
    if token.len() > SERVICE_ACCOUNT_TOKEN_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "a ServiceAccount token has at most {SERVICE_ACCOUNT_TOKEN_BYTES_MAX} bytes"
        )));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=');
    if token.is_empty() || !token.bytes().all(allowed) {
        return Err(Status::invalid_argument("this is no ServiceAccount token"));
    }
    Ok(())
}

/// The name of the gateway, if the agent vouches for it.
fn verdict(cluster: &str, token: &str, reply: ReviewReply) -> Result<String, Status> {
    let ReviewReply { id: _, gateway, refusal } = reply;
    if gateway.is_empty() {
        // Whatever an agent says back is no place for the token.
        let why: String =
            refusal.replace(token, "…").chars().filter(|c| !c.is_control()).take(REFUSAL_CHARS_MAX).collect();
        let why = if why.is_empty() { "it gave no reason".to_owned() } else { why };
        return Err(Status::permission_denied(format!("the agent of cluster {cluster} does not vouch for it: {why}")));
    }
    match gateway_problem(&gateway) {
        Some(problem) => {
            Err(Status::permission_denied(format!("the agent of cluster {cluster} named it wrongly: {problem}")))
        }
        None => Ok(gateway),
    }
}

/// How many strangers may have an agent asked, at once and in a second.
#[derive(Debug, Default)]
pub(crate) struct Attestations(Mutex<BTreeMap<String, Door>>);

#[derive(Debug)]
struct Door {
    under_way: usize,
    bucket: Bucket,
}

impl Attestations {
    /// Lets one in; a cluster is one that has an agent, so there are as many doors as clusters.
    fn enter<'a>(&'a self, cluster: &str, now: Instant) -> Result<Pass<'a>, Status> {
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if doors.len() >= DOORS_MAX {
            doors.retain(|_, door| door.under_way > 0 || !door.bucket.is_full(now));
        }
        let door = doors
            .entry(cluster.to_owned())
            .or_insert_with(|| Door { under_way: 0, bucket: Bucket::full(REVIEWS, now) });
        if door.under_way >= UNDER_WAY_MAX {
            return Err(Status::resource_exhausted(format!(
                "{UNDER_WAY_MAX} gateways of cluster {cluster} join at this moment, try again"
            )));
        }
        let wait = door.bucket.wait(1.0, now);
        if wait > Duration::ZERO {
            return Err(Status::resource_exhausted(format!(
                "too many gateways of cluster {cluster} join, the next one may in {} ms",
                wait.as_millis().max(1)
            )));
        }
        door.bucket.take(1.0, now);
        door.under_way += 1;
        Ok(Pass { doors: &self.0, cluster: cluster.to_owned() })
    }
}

/// Somebody who is being asked about.
#[derive(Debug)]
struct Pass<'a> {
    doors: &'a Mutex<BTreeMap<String, Door>>,
    cluster: String,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(door) = doors.get_mut(&self.cluster) {
            door.under_way = door.under_way.saturating_sub(1);
        }
    }
}

/// As many as an agent reviews at once.
const UNDER_WAY_MAX: usize = 16;
/// A cluster of 500 nodes that starts at once is in after 15 s; a TokenReview costs an API server a few milliseconds.
const REVIEWS: Rate = Rate { burst: 200.0, per_second: 20.0 };
/// Beyond the clusters of a large federation those that are quiet are forgotten.
const DOORS_MAX: usize = 1_000;
/// A sentence or two.
const REFUSAL_CHARS_MAX: usize = 300;
/// More than the other member gives the agent (8 s).
const MEMBER_TIME_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cost_an_agent_so_much_and_no_more_and_other_clusters_nothing() {
        let (doors, now) = (Attestations::default(), Instant::now());
        let inside: Vec<Pass<'_>> = (0..UNDER_WAY_MAX).map(|_| doors.enter("paris", now).unwrap()).collect();
        let full = doors.enter("paris", now).unwrap_err();
        assert_eq!((full.code(), full.message().contains("at this moment")), (Code::ResourceExhausted, true));
        doors.enter("tokyo", now).unwrap();
        drop(inside);
        for _ in UNDER_WAY_MAX..200 {
            doors.enter("paris", now).unwrap();
        }
        let fast = doors.enter("paris", now).unwrap_err();
        assert_eq!(
            (fast.code(), fast.message()),
            (Code::ResourceExhausted, "too many gateways of cluster paris join, the next one may in 50 ms")
        );
        doors.enter("paris", now + Duration::from_millis(51)).unwrap();
    }

    #[test]
    fn what_an_agent_says_is_believed_within_bounds() {
        let reply = |gateway: &str, refusal: &str| {
            let reply = ReviewReply { id: 1, gateway: gateway.into(), refusal: refusal.into() };
            verdict("paris", "s3cret", reply).map_err(|status| (status.code(), status.message().to_owned()))
        };
        assert_eq!(reply("node-1.example", ""), Ok("node-1.example".to_owned()));
        let (code, why) = reply("", "token s3cret\n is expired").unwrap_err();
        assert_eq!(
            (code, &*why),
            (Code::PermissionDenied, "the agent of cluster paris does not vouch for it: token … is expired")
        );
        assert!(reply("", "").unwrap_err().1.ends_with("it gave no reason"));
        assert!(reply("", &"x".repeat(9_000)).unwrap_err().1.len() < 400);
        for wrong in ["../agent/agent", "Node", "a..b", "-a", &"a".repeat(254)] {
            assert_eq!(reply(wrong, "").unwrap_err().0, Code::PermissionDenied, "{wrong}");
        }
        for (token, good) in [("a.b-c_d.e=", true), ("", false), ("a b", false), ("a\nb", false), ("é", false)] {
            assert_eq!(check_shape(token).is_ok(), good, "{token:?}");
        }
        assert!(check_shape(&"x".repeat(SERVICE_ACCOUNT_TOKEN_BYTES_MAX + 1)).is_err());
    }
}
