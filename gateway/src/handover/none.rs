//! Where there are no abstract Unix sockets: every process binds, and none follows another.

use tokio::sync::watch;

use super::{Hello, Offered, Phase, Seat, Turn};

/// A gateway that nobody was before, and nobody follows.
#[derive(Debug)]
pub struct Handover(watch::Sender<Phase>);

/// Asks nobody.
///
/// # Errors
/// None.
pub async fn inherit(_hello: Hello) -> anyhow::Result<Handover> {
    Ok(Handover(watch::Sender::new(Phase::Serving)))
}

impl Handover {
    /// What the gateway starts with.
    pub fn seat(&self) -> Seat {
        Seat::alone()
    }

    /// The phase, which does not change.
    pub fn turn(&self) -> Turn {
        Turn::of(&self.0)
    }

    /// For ever.
    pub async fn run(self, _settled: impl Future<Output = ()>, _offered: Offered) {
        std::future::pending().await
    }
}
