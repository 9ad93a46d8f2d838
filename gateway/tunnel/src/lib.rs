//! Gateway-to-gateway tunnels: HTTP/3 on QUIC, beats and failure detection.
//!
//! | module | what | I/O |
//! | --- | --- | --- |
//! | [`codec`] | HTTP/3 and QPACK: bytes to messages and back | none |
//! | [`detector`] | is the peer alive | none |
//! | `choice` | to which peers tunnels are kept | none |
//! | `lifecycle` | where a tunnel stands, and when to dial | none |
//! | `health` | what is ready behind a gateway, as changes | none |
//! | `lobby` | whose handshake waits, and whose makes room | none |
//! | `credit`, `stops` | windows and stream credit that grow with use; who waits for a stop | none |
//! | `traffic` | what went over connections, by cluster | none |
//! | `tunnels`, `peer`, `accept`, `conn` | connections on quinn: dialling, accepting, beats, health, renewal, drain | UDP |
//! | `server`, `request`, `exchange`, `body`, `pump`, `connect` | one stream: requests, bodies, CONNECT tunnels | UDP |
//!
//! One [`Tunnels`] belongs to one worker thread (a `current_thread` tokio runtime) and owns one UDP socket, on which it
//! both dials and accepts. Each side sends its requests on the connection that it dialled itself, so a pair of workers
//! has two connections, and every request stream is client-initiated as RFC 9114 wants it.
//!
//! What is safe to rely on: a broken stream is always an error, never a clean end; [`TunnelError::never_processed`]
//! is true only when the far side provably did nothing with the request; whoever drops a body or a half of a stream
//! cancels it on the other side; no queue here is without a bound.

pub mod codec;
mod config;
pub mod detector;
mod error;
mod exchange;
mod transport;

mod accept;
mod body;
mod choice;
mod conn;
mod connect;
mod credit;
mod health;
mod lifecycle;
mod lobby;
mod news;
mod peer;
mod pump;
mod request;
mod server;
mod socket;
mod stops;
mod stream;
mod ticker;
mod traffic;
mod tunnels;

pub use accept::Gate;
pub use body::TunnelBody;
pub use config::{Peer, PeerName, TunnelConfig, TunnelLimits};
pub use connect::{RecvHalf, SendHalf};
pub use detector::DetectorConfig;
pub use error::{BindError, TunnelError};
pub use exchange::{Exchange, Upload};
pub use health::ServiceHealth;
pub use news::{HealthNews, News, PeerNews};
pub use peer::PeerState;
pub use request::{Opening, PeerHandle};
pub use server::{Incoming, IncomingRequest, Responder};
pub use socket::Cut;
pub use traffic::{Path, Traffic};
pub use tunnels::{TunnelStats, Tunnels};
