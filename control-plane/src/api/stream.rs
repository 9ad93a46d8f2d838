//! What the streams of gateways and agents have in common: how a session is kept, and why it ends.
//!
//! A session stays open while this member has no majority: the peer is told, and decides itself whether to look for another
//! member. Nothing is offered before a majority confirmed, in this session, that this member is current.

use std::{fmt::Display, future::Future, sync::Arc, time::Duration};

use archipelago_model::version::Version;
use archipelago_proto::v1::{HasLeader, NoLeader, Notice, notice};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::Context;

/// The other end of a session and what is said to it.
pub(super) trait Peer: Send {
    /// What it sends.
    type In: Send + 'static;
    /// What it is sent.
    type Out: Send + 'static;
    /// It sends something at least this often; a few times missed is a peer that hangs behind a living kernel.
    const SILENCE_MAX: Duration;

    /// Resolves when a newer session of the same peer began here.
    fn replaced(&self) -> CancellationToken;

    /// Wraps a notice.
    fn notice(notice: Notice) -> Self::Out;

    /// A majority confirmed that this member has applied everything committed so far; its state is `applied`.
    fn confirmed(&mut self, applied: Version);

    /// Does what is due, after every event.
    fn advance(&mut self, out: &Outbox<Self::Out>) -> impl Future<Output = Result<(), End>> + Send;

    /// Resolves when something happened that [`Self::advance`] looks at; must not lose anything when dropped.
    fn event(&mut self) -> impl Future<Output = Result<(), End>> + Send;

    /// Takes a message.
    fn take(&mut self, message: Self::In) -> Result<(), End>;

    /// Its session is over.
    fn ended(&self, end: &End);
}

/// Messages to the peer.
pub(super) struct Outbox<T>(mpsc::Sender<Result<T, Status>>);

impl<T> Outbox<T> {
    /// Sends, or finds that the peer does not take messages any more.
    pub(super) async fn send(&self, message: T) -> Result<(), End> {
        match timeout(SEND_TIMEOUT, self.0.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Unreachable),
        }
    }

    /// Sends if there is room; for what is worth nothing later. False: there was none.
    pub(super) fn try_send(&self, message: T) -> bool {
        self.0.try_send(Ok(message)).is_ok()
    }
}

/// A new channel to a peer: what the session keeps, and what tonic streams.
pub(super) fn outbox<T>() -> (Outbox<T>, mpsc::Receiver<Result<T, Status>>) {
    let (sender, receiver) = mpsc::channel(DIRECTIVES_MAX);
    (Outbox(sender), receiver)
}

/// Serves a peer to the end of its session, and says goodbye.
pub(super) async fn run<P: Peer>(
    context: Arc<Context>,
    name: impl Display,
    mut peer: P,
    mut messages: Streaming<P::In>,
    out: Outbox<P::Out>,
) {
    let end = match serve(&context, &mut peer, &mut messages, &out).await {
        Ok(never) => match never {},
        Err(end) => end,
    };
    tracing::info!(peer = %name, reason = %end, "session ended");
    peer.ended(&end);
    if let Some(status) = end.goodbye() {
        let _ = timeout(GOODBYE_TIMEOUT, out.0.send(Err(status))).await;
    }
}

async fn serve<P: Peer>(
    context: &Arc<Context>,
    peer: &mut P,
    messages: &mut Streaming<P::In>,
    out: &Outbox<P::Out>,
) -> Result<std::convert::Infallible, End> {
    let stopping = context.stopping.clone();
    let replaced = peer.replaced();
    let confirmation = context.compiler.confirmation();
    tokio::pin!(confirmation);
    let mut leadership = Leadership::new(context);
    let mut is_confirmed = false;
    let mut silent_at = Instant::now() + P::SILENCE_MAX;
    loop {
        peer.advance(out).await?;
        tokio::select! {
            () = stopping.cancelled() => return Err(End::Stopping),
            () = replaced.cancelled() => return Err(End::Replaced),
            () = sleep_until(silent_at) => return Err(End::Silent(P::SILENCE_MAX)),
            () = out.0.closed() => return Err(End::Unreachable),
            message = messages.message() => {
                silent_at = Instant::now() + P::SILENCE_MAX;
                match message {
                    Ok(Some(message)) => peer.take(message)?,
                    Ok(None) => return Err(End::Goodbye),
                    Err(status) => return Err(End::Lost(status.message().to_owned())),
                }
            }
            event = peer.event() => event?,
            applied = &mut confirmation, if !is_confirmed => {
                is_confirmed = true;
                peer.confirmed(applied);
            }
            notice = leadership.changed() => out.send(P::notice(Notice { notice: Some(notice) })).await?,
        }
    }
}

/// Whether this member knows a leader, as the peer was told.
struct Leadership {
    member: u64,
    leaderless: tokio::sync::watch::Receiver<Option<Instant>>,
    told_missing: bool,
}

impl Leadership {
    fn new(context: &Context) -> Self {
        let consensus = &context.consensus;
        Self { member: consensus.node_id, leaderless: consensus.leaderless(), told_missing: false }
    }

    /// The next thing to tell. An election that ends well is not worth telling.
    async fn changed(&mut self) -> notice::Notice {
        loop {
            let since = *self.leaderless.borrow_and_update();
            let told = self.told_missing;
            let worth_telling = async {
                match since {
                    Some(since) if !told => sleep_until(since + LEADERLESS_MIN).await,
                    _ => std::future::pending().await,
                }
            };
            if since.is_none() && self.told_missing {
                self.told_missing = false;
                return notice::Notice::HasLeader(HasLeader { member: self.member });
            }
            tokio::select! {
                () = worth_telling => {
                    self.told_missing = true;
                    return notice::Notice::NoLeader(NoLeader { member: self.member });
                }
                changed = self.leaderless.changed() => if changed.is_err() { std::future::pending::<()>().await },
            }
        }
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("it closed the stream")]
    Goodbye,
    #[error("it does not take messages any more")]
    Unreachable,
    #[error("the connection broke: {0}")]
    Lost(String),
    #[error("a newer session began")]
    Replaced,
    #[error("this member is stopping")]
    Stopping,
    #[error("it was silent for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
}

impl End {
    /// Whether the peer is gone, as far as this member knows: not when it is here still, or this member goes.
    pub(super) fn is_departure(&self) -> bool {
        !matches!(self, Self::Replaced | Self::Stopping)
    }

    /// What the peer is told, if it may still listen.
    fn goodbye(&self) -> Option<Status> {
        match self {
            Self::Goodbye | Self::Unreachable | Self::Lost(_) => None,
            Self::Replaced => Some(Status::aborted("a newer session of yours began")),
            Self::Stopping => Some(Status::unavailable("this member is shutting down, connect to another")),
            Self::Silent(limit) => Some(Status::deadline_exceeded(format!("no message within {} s", limit.as_secs()))),
            Self::Protocol(reason) => Some(Status::invalid_argument(*reason)),
        }
    }
}

/// Resolves at a time, or never.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A first message comes at once or never.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Until a registration or a report that was not committed is proposed again.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// Many failed elections: from here on it is not an election any more.
const LEADERLESS_MIN: Duration = Duration::from_secs(2);
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// One update is on its way at most; the rest are questions and notices.
const DIRECTIVES_MAX: usize = 16;
