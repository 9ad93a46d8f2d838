//! Questions of the control plane whether the holder of a token is a gateway of this cluster.

use std::{sync::Arc, time::Duration};

use archipelago_proto::v1::{AgentMessage, ReviewAsk, ReviewReply, agent_message::Body};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use crate::provider::Review;

/// The reviews of one session; what is under way ends with it.
#[derive(Debug)]
pub(super) struct Reviews {
    provider: mpsc::Sender<Review>,
    slots: Arc<Semaphore>,
    /// For one answer.
    time_max: Duration,
    tasks: JoinSet<()>,
}

impl Reviews {
    pub(super) fn new(provider: mpsc::Sender<Review>) -> Self {
        let slots = Arc::new(Semaphore::new(REVIEWS_MAX));
        Self { provider, slots, time_max: REVIEW_TIME_MAX, tasks: JoinSet::new() }
    }

    /// Asks the provider, and sends its answer whenever it comes.
    pub(super) fn ask(&mut self, ask: ReviewAsk, replies: mpsc::Sender<AgentMessage>) {
        while self.tasks.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            let refusal = "too many reviews are under way, try again".to_owned();
            // A queue that is full as well is worth no more: who asked gives up by itself.
            let _ = replies.try_send(message(ask.id, Err(refusal)));
            return;
        };
        let (provider, time_max) = (self.provider.clone(), self.time_max);
        self.tasks.spawn(async move {
            let _slot = slot;
            let id = ask.id;
            let verdict = review(&provider, ask, time_max).await;
            // The session may have ended meanwhile.
            let _ = replies.send(message(id, verdict)).await;
        });
    }
}

fn message(id: u64, verdict: Result<String, String>) -> AgentMessage {
    let reply = match verdict {
        Ok(gateway) => ReviewReply { id, gateway, refusal: String::new() },
        Err(refusal) => ReviewReply { id, gateway: String::new(), refusal },
    };
    AgentMessage { body: Some(Body::Review(reply)) }
}

/// The node that the gateway runs on, or why it is none.
async fn review(provider: &mpsc::Sender<Review>, ask: ReviewAsk, time_max: Duration) -> Result<String, String> {
    let ReviewAsk { id: _, token, audience } = ask;
    let (answer, answered) = oneshot::channel();
    provider.try_send(Review { token, audience, answer }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => "too many reviews are waiting, try again".to_owned(),
        mpsc::error::TrySendError::Closed(_) => {
            "this cluster has no API server that could review a ServiceAccount token: join with `meshctl token create`"
                .to_owned()
        }
    })?;
    match timeout(time_max, answered).await {
        Ok(Ok(Ok(node))) if node.is_empty() => Err("the review named no node".to_owned()),
        Ok(Ok(verdict)) => verdict,
        Ok(Err(_)) => Err("the token was not reviewed".to_owned()),
        Err(_) => Err(format!("the API server did not review the token in time ({time_max:?})")),
    }
}

/// Reviews under way at once: a TokenReview takes milliseconds, and a cluster that starts asks for all its nodes.
const REVIEWS_MAX: usize = 16;
/// Below what the control plane waits.
const REVIEW_TIME_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(id: u64) -> ReviewAsk {
        ReviewAsk { id, token: "secret".into(), audience: "archipelago/mesh.example/paris".into() }
    }

    async fn reply(replies: &mut mpsc::Receiver<AgentMessage>) -> (u64, String, String) {
        let Some(Body::Review(reply)) = replies.recv().await.unwrap().body else { panic!("no reply") };
        (reply.id, reply.gateway, reply.refusal)
    }

    #[tokio::test]
    async fn answers_refusals_and_silence_all_reach_the_control_plane() {
        let (provider, mut asked) = mpsc::channel(1);
        let (sender, mut replies) = mpsc::channel(4);
        let mut reviews = Reviews::new(provider);

        reviews.ask(ask(1), sender.clone());
        let review: Review = asked.recv().await.unwrap();
        assert_eq!((&*review.token, &*review.audience), ("secret", "archipelago/mesh.example/paris"));
        assert!(!format!("{review:?}").contains("secret"));
        review.answer.send(Ok("node-1".to_owned())).unwrap();
        assert_eq!(reply(&mut replies).await, (1, "node-1".into(), String::new()));

        reviews.ask(ask(2), sender.clone());
        asked.recv().await.unwrap().answer.send(Err("expired".to_owned())).unwrap();
        assert_eq!(reply(&mut replies).await, (2, String::new(), "expired".into()));

        reviews.ask(ask(3), sender.clone());
        drop(asked.recv().await.unwrap());
        assert_eq!(reply(&mut replies).await.2, "the token was not reviewed");

        reviews.time_max = Duration::from_millis(50);
        reviews.ask(ask(4), sender.clone());
        let _held = asked.recv().await.unwrap();
        assert_eq!(reply(&mut replies).await.2, "the API server did not review the token in time (50ms)");
        reviews.time_max = REVIEW_TIME_MAX;

        reviews.ask(ask(5), sender.clone());
        asked.recv().await.unwrap().answer.send(Ok(String::new())).unwrap();
        assert_eq!(reply(&mut replies).await.2, "the review named no node");

        drop(asked);
        reviews.ask(ask(6), sender);
        assert!(reply(&mut replies).await.2.starts_with("this cluster has no API server"));
    }

    #[tokio::test]
    async fn more_at_once_than_there_are_slots_for_are_told_to_come_again() {
        let (provider, mut asked) = mpsc::channel(REVIEWS_MAX);
        let (sender, mut replies) = mpsc::channel(2 * REVIEWS_MAX);
        let mut reviews = Reviews::new(provider);
        for id in 0..2 * REVIEWS_MAX as u64 {
            reviews.ask(ask(id), sender.clone());
        }
        drop(sender);
        for _ in 0..REVIEWS_MAX {
            let review: Review = asked.recv().await.unwrap();
            review.answer.send(Ok("node-1".to_owned())).unwrap();
        }
        let (mut answered, mut refused) = (0, 0);
        while let Some(message) = replies.recv().await {
            let Some(Body::Review(reply)) = message.body else { panic!("no reply") };
            match reply.gateway.as_str() {
                "node-1" => answered += 1,
                _ => refused += usize::from(reply.refusal == "too many reviews are under way, try again"),
            }
        }
        assert_eq!((answered, refused), (REVIEWS_MAX, REVIEWS_MAX));
    }
}
