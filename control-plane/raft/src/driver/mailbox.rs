//! The one way into the node's thread: three lanes with a bound each, drained together.

use std::{
    collections::VecDeque,
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prost::Message as _;
use raft_proto::eraftpb::Message;

use super::{Notice, Request};

/// Requests, peer messages and notices on their way to the node's thread.
///
/// Separate lanes, so that neither clients nor one chatty peer can displace the news that a write is durable; and a
/// full lane refuses instead of blocking, so no thread ever waits for another in a circle.
pub(super) struct Mailbox {
    lanes: Mutex<Lanes>,
    filled: Condvar,
    requests_max: usize,
    messages_max: usize,
    messages_bytes_max: usize,
}

impl Mailbox {
    pub(super) fn new(requests_max: usize, messages_max: usize, messages_bytes_max: usize) -> Self {
        Self { lanes: Mutex::default(), filled: Condvar::new(), requests_max, messages_max, messages_bytes_max }
    }

    /// Queues a request; gives it back when the lane is full or the node has stopped.
    pub(super) fn request(&self, request: Request) -> Result<(), Refused> {
        let mut lanes = self.lock();
        if lanes.closed {
            return Err(Refused::Closed);
        }
        if lanes.requests.len() >= self.requests_max {
            return Err(Refused::Full);
        }
        lanes.requests.push_back(request);
        drop(lanes);
        self.filled.notify_one();
        Ok(())
    }

    /// Queues a peer's message; a full lane drops it, as a network may.
    pub(super) fn message(&self, message: Message) {
        let bytes = message.encoded_len();
        let mut lanes = self.lock();
        let full = lanes.messages.len() >= self.messages_max
            // A snapshot may be larger than the whole lane; alone it still gets through.
            || (lanes.messages_bytes + bytes > self.messages_bytes_max && !lanes.messages.is_empty());
        if lanes.closed || full {
            lanes.messages_dropped += 1;
            return;
        }
        lanes.messages_bytes += bytes;
        lanes.messages.push_back(message);
        drop(lanes);
        self.filled.notify_one();
    }

    /// Queues a notice. The lane needs no bound of its own: there is at most one per write in flight, checkpoint,
    /// and distinct report of a peer.
    pub(super) fn notice(&self, notice: Notice) {
        let mut lanes = self.lock();
        if lanes.closed || lanes.notices.iter().any(|waiting| waiting.repeats(&notice)) {
            return;
        }
        lanes.notices.push_back(notice);
        drop(lanes);
        self.filled.notify_one();
    }

    /// Takes everything that waits, or waits until `deadline` for something. With `work` false it leaves requests and
    /// messages where they are.
    pub(super) fn drain(&self, deadline: Instant, work: bool) -> Batch {
        let mut lanes = self.lock();
        loop {
            let waiting =
                !lanes.notices.is_empty() || (work && !(lanes.requests.is_empty() && lanes.messages.is_empty()));
            let left = deadline.saturating_duration_since(Instant::now());
            if waiting || left == Duration::ZERO {
                break;
            }
            lanes = self.filled.wait_timeout(lanes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut batch = Batch { notices: mem::take(&mut lanes.notices), ..Batch::default() };
        if work {
            batch.requests = mem::take(&mut lanes.requests);
            batch.messages = mem::take(&mut lanes.messages);
            lanes.messages_bytes = 0;
            batch.messages_dropped = mem::take(&mut lanes.messages_dropped);
        }
        batch
    }

    /// Refuses everything from now on and forgets what waits; dropped requests tell their callers.
    pub(super) fn close(&self) {
        let mut lanes = self.lock();
        let forgotten = mem::replace(&mut *lanes, Lanes { closed: true, ..Lanes::default() });
        drop(lanes);
        drop(forgotten);
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        // A panic while the lock is held cannot leave the lanes half-changed: every change is one push or one take.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a request was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

/// What one drain found.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) notices: VecDeque<Notice>,
    pub(super) messages: VecDeque<Message>,
    pub(super) requests: VecDeque<Request>,
    pub(super) messages_dropped: u64,
}

#[derive(Default)]
struct Lanes {
    requests: VecDeque<Request>,
    messages: VecDeque<Message>,
    messages_bytes: usize,
    messages_dropped: u64,
    notices: VecDeque<Notice>,
    closed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox() -> Mailbox {
        Mailbox::new(2, 3, 1000)
    }

    fn read() -> Request {
        Request::Read { reply: tokio::sync::oneshot::channel().0 }
    }

    #[test]
    fn lanes_have_their_own_bounds() {
        let mailbox = mailbox();
        assert_eq!(mailbox.request(read()), Ok(()));
        assert_eq!(mailbox.request(read()), Ok(()));
        assert_eq!(mailbox.request(read()), Err(Refused::Full));
        for _ in 0..5 {
            mailbox.message(Message::default());
            mailbox.notice(Notice::Unreachable { peer: 2 });
        }
        let batch = mailbox.drain(Instant::now(), true);
        assert_eq!((batch.requests.len(), batch.messages.len(), batch.messages_dropped), (2, 3, 2));
        assert_eq!(batch.notices.len(), 1, "the same report twice says nothing new");
    }

    #[test]
    fn a_message_larger_than_the_lane_passes_alone() {
        let mailbox = mailbox();
        let large = Message { context: vec![0; 5000].into(), ..Message::default() };
        mailbox.message(large.clone());
        mailbox.message(large);
        assert_eq!(mailbox.drain(Instant::now(), true).messages.len(), 1);
    }

    #[test]
    fn without_work_only_notices_leave() {
        let mailbox = mailbox();
        mailbox.request(read()).unwrap();
        mailbox.notice(Notice::Unreachable { peer: 2 });
        let batch = mailbox.drain(Instant::now(), false);
        assert_eq!((batch.requests.len(), batch.notices.len()), (0, 1));
        assert_eq!(mailbox.drain(Instant::now(), true).requests.len(), 1);
    }

    #[test]
    fn closing_tells_waiting_callers() {
        let mailbox = mailbox();
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        mailbox.request(Request::Read { reply }).unwrap();
        mailbox.close();
        assert!(answer.try_recv().is_err());
        assert_eq!(mailbox.request(read()), Err(Refused::Closed));
    }
}
