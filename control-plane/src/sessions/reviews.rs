//! Questions to the agent of a cluster whether somebody is one of its gateways, for sessions that this member serves.

use std::time::Duration;

use archipelago_proto::v1::ReviewReply;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::Sessions;

/// A question on its way to a connected agent.
pub(crate) struct Review {
    /// Never to be logged.
    pub(crate) token: String,
    pub(crate) audience: String,
    pub(crate) reply: oneshot::Sender<ReviewReply>,
}

impl std::fmt::Debug for Review {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Review").field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Asks the agent of `cluster`, which must be connected to this member.
    pub(crate) async fn review(
        &self,
        cluster: &str,
        token: String,
        audience: String,
    ) -> Result<ReviewReply, ReviewError> {
        let reviews = self.lock().agent_handles.get(cluster).map(|handle| handle.reviews.clone());
        let reviews = reviews.ok_or(ReviewError::NotConnected)?;
        let (reply, answer) = oneshot::channel();
        reviews.try_send(Review { token, audience, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ReviewError::Busy,
            mpsc::error::TrySendError::Closed(_) => ReviewError::NotConnected,
        })?;
        match timeout(ANSWER_TIME_MAX, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(ReviewError::NotConnected),
            Err(_) => Err(ReviewError::Silent),
        }
    }
}

/// Why a connected agent did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReviewError {
    #[error("is not connected")]
    NotConnected,
    #[error("has too many gateways to review, try again")]
    Busy,
    #[error("did not answer within {} s", ANSWER_TIME_MAX.as_secs())]
    Silent,
}

/// As many as an agent reviews at once.
pub(super) const QUEUED_MAX: usize = 16;
/// More than the agent gives its API server (5 s).
const ANSWER_TIME_MAX: Duration = Duration::from_secs(8);
