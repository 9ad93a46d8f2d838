//! How a process gets its first SVID, the next ones, and one after its own ran out.
//!
//! A [`JoinToken`] carries everything a machine needs for its first contact: where the control plane is, the hash of the
//! root it must show, and a secret that works once. A gateway on a Kubernetes node needs none: it shows a token of its
//! ServiceAccount ([`ServiceAccount`]), and a [`JoinConfig`] holds the rest, which is no secret. From then on the SVID itself
//! authenticates: [`keep_renewed`] asks for a new one when a quarter of its life has passed, so that three quarters are left
//! to outlive a missing control plane. When even that was not enough, the process goes on without connections and gets back by
//! [`recover`]: it signs a challenge with the old key. What to do when is decided by [`Renewal`], which has no clock and no
//! sockets.

mod candidate;
mod error;
mod join;
mod join_config;
mod keep;
mod renew;
mod schedule;
mod token;

pub use self::{
    candidate::{Candidate, read_csr},
    error::EnrolError,
    join::{Joined, Joining, SERVICE_ACCOUNT_TOKEN_BYTES_MAX, ServiceAccount, ensure, join},
    join_config::{JoinConfig, audience},
    keep::keep_renewed,
    renew::{clock_offset_ms, recover, recovery_message, renew},
    schedule::{How, Renewal, renewal_due},
    token::JoinToken,
};
