//! What operators ask of this gateway, through the member that serves it. Answered beside everything else on the stream.

use std::sync::Arc;
use std::time::Instant;

use archipelago_proto::v1::{
    Answer, GatewayMessage, LatencyAnswer, LatencyQuestion, Question, answer, gateway_message, question,
};
use tokio::sync::{Semaphore, mpsc};

use super::stream::send;
use crate::tap::Taps;
use crate::telemetry::{Latencies, NOT_COUNTED, Telemetry};
use crate::workers::Workers;

/// Who answers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Questions {
    workers: Workers,
    latencies: Arc<Latencies>,
    taps: Arc<Taps>,
    telemetry: Telemetry,
    permits: Arc<Semaphore>,
}

impl Questions {
    /// Answers out of what these measure.
    pub fn new(workers: Workers, latencies: Arc<Latencies>, taps: Arc<Taps>, telemetry: Telemetry) -> Self {
        Self { workers, latencies, taps, telemetry, permits: Arc::new(Semaphore::new(ANSWERED_AT_ONCE_MAX)) }
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
            Some(question::Body::Slow(_) | question::Body::Latency(_)) if !self.telemetry.counts_requests() => {
                failure(NOT_COUNTED.to_owned())
            }
            Some(question::Body::Slow(question)) => {
                let body = answer::Body::Slow(self.workers.slow(&question).await);
                Answer { body: Some(body), ..Answer::default() }
            }
            Some(question::Body::Latency(asked)) => self.latency(asked).await,
            Some(question::Body::Tap(question)) => {
                match self.taps.answer(&question, ANSWER_BYTES_MAX, Instant::now()) {
                    Ok(told) => Answer { body: Some(answer::Body::Tap(told)), ..Answer::default() },
                    Err(why) => failure(why),
                }
            }
            Some(question::Body::UnderWay(asked)) => {
                let body = answer::Body::UnderWay(self.workers.under_way(&asked).await);
                Answer { body: Some(body), ..Answer::default() }
            }
            // Not asked of this build: its hello names no feature for it.
            None => failure("this gateway does not know the question".to_owned()),
        }
    }

    async fn latency(&self, asked: LatencyQuestion) -> Answer {
        let silent = self.workers.flush_latencies().await;
        let latencies = Arc::clone(&self.latencies);
        // Thousands of series are work for a while.
        let told = tokio::task::spawn_blocking(move || latencies.answer(&asked, ANSWER_BYTES_MAX)).await;
        let Ok(told) = told else { return failure("is stopping".to_owned()) };
        let told = LatencyAnswer { silent_workers: u32::try_from(silent).unwrap_or(u32::MAX), ..told };
        Answer { body: Some(answer::Body::Latency(told)), ..Answer::default() }
    }
}

fn failure(why: String) -> Answer {
    Answer { failure: why, ..Answer::default() }
}

/// Operators that look at once, each at one member; a question lasts as long as the slowest worker.
const ANSWERED_AT_ONCE_MAX: usize = 16;
/// Well below what a member takes of one answer (2 MiB); the rest is asked for.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
