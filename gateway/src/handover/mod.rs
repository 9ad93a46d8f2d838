//! One process of a gateway follows another without a lost connection: the listening sockets are handed over, not closed.
//!
//! | module | what | I/O |
//! | --- | --- | --- |
//! | [`protocol`] | who serves when | none |
//! | [`sockets`] | what is listened on, and what was taken over | binds |
//! | `wire`, `driver` | messages and descriptors between the two | Unix socket |
//!
//! A process that starts asks for its predecessor under a name made of cluster, gateway and HTTP address; who has the same is the
//! same gateway. Nobody there: it binds, as ever. Tunnels are not handed over (QUIC state cannot be): the newcomer has UDP ports of
//! another generation, registers them, and peers move before the one before says that it leaves.

#[cfg(target_os = "linux")]
mod driver;
#[cfg(not(target_os = "linux"))]
#[path = "none.rs"]
mod driver;
pub mod protocol;
pub mod sockets;
#[cfg(target_os = "linux")]
mod wire;

use std::sync::Arc;

use tokio::sync::watch;

pub use driver::inherit;
pub use protocol::{Hello, Offered, Phase};
pub use sockets::Sockets;

/// What a gateway starts with.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Where its listeners come from.
    pub sockets: Arc<Sockets>,
    /// Whose turn it is.
    pub turn: Turn,
    /// What the one before said, if there is one.
    pub before: Option<Offered>,
}

impl Seat {
    /// Of one that nobody was before, and nobody follows.
    pub fn alone() -> Self {
        let (_, phase) = watch::channel(Phase::Serving);
        Self { sockets: Arc::default(), turn: Turn(phase), before: None }
    }
}

/// Whose turn it is, to be waited for.
#[derive(Debug, Clone)]
pub struct Turn(watch::Receiver<Phase>);

impl Turn {
    /// Follows `phase`.
    pub fn of(phase: &watch::Sender<Phase>) -> Self {
        Self(phase.subscribe())
    }

    /// Now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Resolves as soon as `holds` does.
    pub async fn until(&mut self, holds: impl Fn(Phase) -> bool) {
        // Without a sender nothing changes any more.
        if self.0.wait_for(|phase| holds(*phase)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs `serve` while `holds` does, over and over.
    pub async fn whenever<F: Future<Output = ()>>(mut self, holds: fn(Phase) -> bool, mut serve: impl FnMut() -> F) {
        loop {
            self.until(holds).await;
            let mut turn = self.clone();
            tokio::select! {
                () = serve() => return,
                () = turn.until(|phase| !holds(phase)) => {}
            }
        }
    }
}
