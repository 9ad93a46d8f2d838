//! Questions to gateways that are connected to this member: what one would do with a request, and what it has measured.

use std::time::Duration;

use archipelago_model::feature;
use archipelago_proto::v1::{Answer, ExplainQuery, ExplainResponse, question};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::Sessions;

/// A question on its way to a connected gateway.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) asked: Asked,
    pub(crate) reply: oneshot::Sender<Result<Told, AskError>>,
}

/// What is asked. On the wire an explanation has messages of its own, which gateways of every build know.
#[derive(Debug)]
pub(crate) enum Asked {
    Explain(ExplainQuery),
    Measured(question::Body),
}

/// What a gateway answered.
#[derive(Debug)]
pub(crate) enum Told {
    Explained(Box<ExplainResponse>),
    Measured(Answer),
}

impl Sessions {
    /// Asks a gateway that is connected to this member what it would do with a request.
    pub(crate) async fn explain(&self, key: &str, query: ExplainQuery) -> Result<ExplainResponse, AskError> {
        match self.ask(key, Asked::Explain(query)).await? {
            Told::Explained(response) => Ok(*response),
            Told::Measured(_) => Err(AskError::Silent),
        }
    }

    /// Asks a gateway that is connected to this member what it has measured.
    pub(crate) async fn question(&self, key: &str, body: question::Body) -> Result<Answer, AskError> {
        let known = self.lock().gateways.get(key).map(|session| {
            let features = session.hello.as_ref().map(|hello| &hello.features);
            features.is_some_and(|features| features.iter().any(|feature| feature == feature::of_question(&body)))
        });
        match known {
            None => Err(AskError::NotConnected),
            Some(false) => Err(AskError::NotSupported),
            Some(true) => match self.ask(key, Asked::Measured(body)).await? {
                Told::Measured(answer) => Ok(answer),
                Told::Explained(_) => Err(AskError::Silent),
            },
        }
    }

    async fn ask(&self, key: &str, asked: Asked) -> Result<Told, AskError> {
        let asks = self.lock().gateway_handles.get(key).map(|handle| handle.asks.clone());
        let asks = asks.ok_or(AskError::NotConnected)?;
        let (reply, answer) = oneshot::channel();
        asks.try_send(Ask { asked, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AskError::Busy,
            mpsc::error::TrySendError::Closed(_) => AskError::NotConnected,
        })?;
        match timeout(ANSWER_TIME_MAX, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(AskError::NotConnected),
            Err(_) => Err(AskError::Silent),
        }
    }
}

/// Why there is no answer of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    #[error("the gateway is not connected to this member")]
    NotConnected,
    #[error("its build does not report this: upgrade it")]
    NotSupported,
    #[error("too many questions wait for the gateway")]
    Busy,
    #[error("the gateway did not answer in time")]
    Silent,
    #[error("the gateway answered with more than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
}

pub(super) const QUEUED_MAX: usize = 16;
/// A gateway answers in a round trip, unless one of its workers hangs.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// What a gateway's answer may take: a member holds those of many.
pub(crate) const ANSWER_BYTES_MAX: usize = 2 * 1024 * 1024;
