//! Reviews that an agent was asked for and has not answered.

use std::collections::BTreeMap;

use archipelago_proto::v1::{ReviewAsk, ReviewReply};
use tokio::sync::{mpsc, oneshot};

use crate::sessions::Review;

/// The questions of one session.
pub(super) struct Asked {
    questions: Option<mpsc::Receiver<Review>>,
    waiting: BTreeMap<u64, oneshot::Sender<ReviewReply>>,
    next_id: u64,
}

impl Asked {
    pub(super) fn new(questions: Option<mpsc::Receiver<Review>>) -> Self {
        Self { questions, waiting: BTreeMap::new(), next_id: 1 }
    }

    /// The next question to put.
    pub(super) async fn next(&mut self) -> ReviewAsk {
        let question = match &mut self.questions {
            Some(questions) => questions.recv().await,
            None => None,
        };
        let Some(Review { token, audience, reply }) = question else { return std::future::pending().await };
        // Those that nobody waits for any more, and beyond the bound the oldest.
        self.waiting.retain(|_, waiting| !waiting.is_closed());
        while self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_first();
        }
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.insert(id, reply);
        ReviewAsk { id, token, audience }
    }

    /// Hands an answer to whoever waits for it.
    pub(super) fn answered(&mut self, reply: ReviewReply) {
        if let Some(waiting) = self.waiting.remove(&reply.id) {
            // Whoever asked may have given up.
            let _ = waiting.send(reply);
        }
    }
}

const WAITING_MAX: usize = 64;
