//! The hop ledger: where the time of a request went, for the slowest of each service and minute and for some beside them at random.
//!
//! | module | what |
//! | --- | --- |
//! | [`trail`] | what a request stamps on its way through this gateway, and the parts that follow from it |
//! | [`field`] | the part of the gateway behind a tunnel, as one field of its response |
//! | [`minutes`] | which requests of a minute are kept |
//! | [`keeper`] | one service of one worker: the cores above on its requests |
//! | [`report`] | what is kept, for whoever asks |
//! | [`timing`] | the same in the head of a response, for clients that may see it |
//!
//! The times of a request are parts of one span, from its head to the last byte of its response: nothing is counted twice, and what
//! no part claims is the endpoint's, or the tunnel's. A gateway knows its own parts; those behind a tunnel are said by the gateway
//! there, and the tunnel has what is left of the time between. What is not stamped: the end of the response's body at the far
//! gateway, which no head can say, so that the body is one part from end to end; and TLS, which no request waits for: tunnels are
//! there before, and endpoints are spoken to in clear text.

pub mod field;
pub mod keeper;
pub mod minutes;
pub mod report;
pub mod timing;
pub mod trail;

use std::time::Instant;

pub use field::Far;
pub use keeper::Keeper;
pub use trail::{Stamps, Trail, Waits};

/// Microseconds from `from` to `to`, at most an hour and a bit.
fn micros(from: Instant, to: Instant) -> u32 {
    u32::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u32::MAX)
}
