//! What operators ask of this gateway, through the member that serves it. Answered beside everything else on the stream.

use std::sync::Arc;

use archipelago_proto::v1::{Answer, GatewayMessage, Question, answer, gateway_message, question};
use tokio::sync::{Semaphore, mpsc};

use super::stream::send;
use crate::workers::Workers;

/// Who answers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Questions {
    permits: Arc<Semaphore>,
    workers: Workers,
}

impl Questions {
    /// Asks the workers.
    pub fn new(workers: Workers) -> Self {
        Self { permits: Arc::new(Semaphore::new(ANSWERED_AT_ONCE_MAX)), workers }
    }

    /// Answers a question to `out`, in its own time.
    pub(super) fn put(&self, question: Question, out: &mpsc::Sender<GatewayMessage>) {
        let (this, out) = (self.clone(), out.clone());
        tokio::spawn(async move {
            let id = question.id;
            let answer = match this.permits.try_acquire() {
                Ok(_permit) => this.answer(question).await,
                Err(_) => failure(format!("already answers {ANSWERED_AT_ONCE_MAX} questions, ask again")),
            };
            // The session may have ended meanwhile, and whoever asked has been told.
            drop(send(&out, gateway_message::Body::Answer(Answer { id, ..answer })).await);
        });
    }

    async fn answer(&self, question: Question) -> Answer {
        match question.body {
            Some(question::Body::Slow(question)) => {
                let body = answer::Body::Slow(self.workers.slow(&question).await);
                Answer { body: Some(body), ..Answer::default() }
            }
            // Not asked of this build: its hello names no feature for it.
            Some(question::Body::Latency(_)) | None => failure("this gateway does not know the question".to_owned()),
        }
    }
}

fn failure(why: String) -> Answer {
    Answer { failure: why, ..Answer::default() }
}

/// Operators that look at once, each at one member; a question lasts as long as the slowest worker.
const ANSWERED_AT_ONCE_MAX: usize = 16;
