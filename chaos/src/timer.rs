//! A timer finer than the runtime's own, whose millisecond ticks would show in every latency.

use std::{io, time::Instant};

/// Waits for instants, one at a time; each wait replaces the one before.
///
/// On Linux a timerfd, good to some ten microseconds; elsewhere the runtime's timer.
pub(crate) struct Timer {
    #[cfg(target_os = "linux")]
    descriptor: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
}

#[cfg(target_os = "linux")]
impl Timer {
    /// Must be called within a runtime.
    pub(crate) fn new() -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[allow(
            deprecated,
            reason = "its successor is `unsafe` on behalf of types that may change their descriptor; an OwnedFd does not"
        )]
        let descriptor = tokio::io::unix::AsyncFd::with_interest(descriptor, tokio::io::Interest::READABLE)?;
        Ok(Self { descriptor })
    }

    /// Returns at `due` or soon after. Dropping the future forgets the wait.
    pub(crate) async fn until(&self, due: Instant) -> io::Result<()> {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.arm(left)?;
            let mut ready = self.descriptor.readable().await?;
            // Readiness may be left over from an earlier wait: then the read finds nothing, clears
            // it, and the loop looks at the clock again.
            let read = ready.try_io(|descriptor| {
                let mut expirations = [0_u8; 8];
                Ok(rustix::io::read(descriptor.get_ref(), &mut expirations)?)
            });
            if let Ok(Err(error)) = read {
                return Err(error);
            }
        }
    }

    fn arm(&self, after: std::time::Duration) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec {
            it_interval: never,
            it_value: Timespec {
                tv_sec: after.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: after.subsec_nanos().into(),
            },
        };
        timerfd_settime(self.descriptor.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
impl Timer {
    /// Must be called within a runtime.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Returns at `due` or soon after. Dropping the future forgets the wait.
    pub(crate) async fn until(&self, due: Instant) -> io::Result<()> {
        tokio::time::sleep_until(due.into()).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn never_early_and_reusable_after_an_abandoned_wait() {
        let timer = Timer::new().unwrap();
        let far = Instant::now() + Duration::from_secs(3600);
        let abandoned = tokio::time::timeout(Duration::from_millis(5), timer.until(far)).await;
        assert!(abandoned.is_err());
        for micros in [0, 1, 300, 2_000] {
            let due = Instant::now() + Duration::from_micros(micros);
            timer.until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
    }
}
