//! CONNECT tunnels: two byte streams that end independently.

use crate::{
    body::MessageReader,
    codec::{Code, MessageEvent},
    conn::InFlight,
    error::TunnelError,
    stream::Outbox,
};
use bytes::Bytes;
use std::{fmt, future::poll_fn, sync::Arc};

/// The sending half of a CONNECT tunnel. Dropped before [`SendHalf::finish`], it resets the stream.
pub struct SendHalf {
    outbox: Outbox,
    _in_flight: Option<Arc<InFlight>>,
}

impl SendHalf {
    pub(crate) fn new(outbox: Outbox, in_flight: Option<Arc<InFlight>>) -> Self {
        Self { outbox, _in_flight: in_flight }
    }

    /// Sends `data`, which is not copied; resolves when QUIC has taken all of it.
    ///
    /// # Errors
    /// The far side stopped reading, or the tunnel is lost.
    pub async fn send(&mut self, data: Bytes) -> Result<(), TunnelError> {
        self.outbox.push_data(data);
        poll_fn(|cx| self.outbox.poll_flush(cx)).await
    }

    /// Ends this direction cleanly: the far side reads end of stream, the other direction goes on.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn finish(&mut self) -> Result<(), TunnelError> {
        poll_fn(|cx| self.outbox.poll_flush(cx)).await?;
        self.outbox.finish();
        Ok(())
    }

    /// Ends this direction as a TCP reset does (`H3_CONNECT_ERROR`).
    pub fn abort(&mut self) {
        self.outbox.reset(Code::CONNECT_ERROR);
    }

    /// Resolves when the far side stops reading or the tunnel is lost; never after [`finish`](Self::finish).
    pub async fn stopped(&mut self) -> TunnelError {
        poll_fn(|cx| self.outbox.poll_stopped(cx)).await
    }
}

impl fmt::Debug for SendHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendHalf").finish_non_exhaustive()
    }
}

/// The receiving half of a CONNECT tunnel. Dropped before its end, it tells the far side to stop.
pub struct RecvHalf {
    reader: MessageReader,
    is_ended: bool,
    _in_flight: Option<Arc<InFlight>>,
}

impl RecvHalf {
    pub(crate) fn new(reader: MessageReader, in_flight: Option<Arc<InFlight>>) -> Self {
        Self { reader, is_ended: false, _in_flight: in_flight }
    }

    /// The next bytes; `None` once the far side has ended its direction cleanly.
    ///
    /// # Errors
    /// The stream was reset ([`TunnelError::Reset`] with `H3_CONNECT_ERROR` is a TCP reset), or the tunnel is lost.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, TunnelError> {
        while !self.is_ended {
            match poll_fn(|cx| self.reader.poll_event(cx)).await? {
                MessageEvent::Data(data) => return Ok(Some(data)),
                MessageEvent::End => {
                    self.is_ended = true;
                    self.reader.complete();
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Tells the far side to stop sending, as a TCP reset does.
    pub fn abort(&mut self) {
        self.reader.inbox().stop(Code::CONNECT_ERROR);
    }
}

impl fmt::Debug for RecvHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvHalf").field("is_ended", &self.is_ended).finish_non_exhaustive()
    }
}
