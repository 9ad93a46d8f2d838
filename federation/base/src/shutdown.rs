//! Orderly end: the first SIGTERM or SIGINT asks, the second one insists.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Tells every part of a process that it should drain and end.
#[derive(Debug, Clone)]
pub struct Shutdown {
    requested: watch::Receiver<bool>,
}

impl Shutdown {
    /// Installs the handlers on the current tokio runtime.
    ///
    /// # Errors
    /// The operating system refused a signal handler.
    pub fn install() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (trigger, shutdown) = Self::manual();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
            tracing::info!("shutdown requested");
            trigger.request();
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
            tracing::warn!("second signal: ending at once");
            std::process::exit(EXIT_INTERRUPTED);
        });
        Ok(shutdown)
    }

    /// A shutdown without signals, for parts that end for other reasons and for tests.
    #[must_use]
    pub fn manual() -> (ShutdownTrigger, Self) {
        let (sender, requested) = watch::channel(false);
        (ShutdownTrigger { sender }, Self { requested })
    }

    /// Resolves once shutdown is requested; at once if it already was.
    pub async fn requested(&self) {
        let mut receiver = self.requested.clone();
        // A dropped trigger can never ask any more: then this waits for ever, as it should.
        if receiver.wait_for(|requested| *requested).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether shutdown was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }
}

/// The other end of [`Shutdown::manual`].
#[derive(Debug, Clone)]
pub struct ShutdownTrigger {
    sender: watch::Sender<bool>,
}

impl ShutdownTrigger {
    /// Requests shutdown; again is harmless.
    pub fn request(&self) {
        self.sender.send_replace(true);
    }
}

/// 128 + SIGINT, what a shell reports for an interrupted command.
const EXIT_INTERRUPTED: i32 = 130;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_listener_still_hears_the_request() {
        let (trigger, shutdown) = Shutdown::manual();
        assert!(!shutdown.is_requested());
        trigger.request();
        shutdown.clone().requested().await;
        assert!(shutdown.is_requested());
    }
}
