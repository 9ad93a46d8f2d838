//! What can go wrong, split by what the caller does next.

use crate::{
    codec::{Code, ProtocolError, fields::EncodeError},
    config::PeerName,
};
use std::{io, net::SocketAddr, sync::Arc};

/// Why a request, a response or a body failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// No usable connection to the peer right now.
    #[error("no tunnel to {peer}")]
    NotConnected {
        /// The peer.
        peer: PeerName,
    },
    /// The connection has as many requests in flight as the peer allows.
    #[error("the tunnel carries as many requests as it may")]
    NoStreamCredit,
    /// The peer is of a version that carries no other protocol than HTTP.
    #[error("the peer takes no extended CONNECT; upgrade it")]
    NoExtendedConnect,
    /// HTTP/3 has no form for this message, or its head is more than the peer takes.
    #[error("message cannot be sent")]
    Unsendable(#[from] EncodeError),
    /// The far side refused to look at the request (`H3_REQUEST_REJECTED`).
    #[error("the peer rejected the request unprocessed")]
    Rejected,
    /// The far side reset the stream, or stopped reading it.
    #[error("the peer reset the stream: {code}")]
    Reset {
        /// Its reason.
        code: Code,
    },
    /// The connection is gone.
    #[error("tunnel lost: {cause}")]
    ConnectionLost {
        /// Why.
        cause: quinn::ConnectionError,
        /// The peer said (GOAWAY) that it would not process this stream.
        never_processed: bool,
    },
    /// The far side violated HTTP/3.
    #[error("the peer violated the protocol")]
    Protocol(#[from] ProtocolError),
    /// The body that we were sending failed.
    #[error("the body to send failed")]
    Body(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The far side did not read what we sent for too long.
    #[error("the far side does not read")]
    Unread,
    /// The stream was closed on our side.
    #[error("the stream is closed")]
    Closed,
}

impl TunnelError {
    /// True only when the far side provably did nothing with the request, so that it may be sent again whatever it was.
    pub fn never_processed(&self) -> bool {
        match self {
            Self::NotConnected { .. }
            | Self::NoStreamCredit
            | Self::NoExtendedConnect
            | Self::Unsendable(_)
            | Self::Rejected => true,
            Self::ConnectionLost { never_processed, .. } => *never_processed,
            Self::Reset { .. } | Self::Protocol(_) | Self::Body(_) | Self::Unread | Self::Closed => false,
        }
    }

    /// True when the message that we have has a larger head than the peer takes. No other gateway of these versions would take it: a
    /// request is answered with 431, a response with 502.
    pub fn is_head_too_large(&self) -> bool {
        matches!(self, Self::Unsendable(EncodeError::TooLarge { .. }))
    }

    /// True when HTTP/3 has no form for the message that we have: nobody else would find one either.
    pub fn has_no_form(&self) -> bool {
        matches!(self, Self::Unsendable(EncodeError::NoAuthority | EncodeError::Path))
    }

    /// True when the peer's message has a larger head than we take, or ours one that the peer did not take although it is within
    /// what it said: asking again would end the same way.
    pub fn is_peers_head_too_large(&self) -> bool {
        match self {
            Self::Protocol(error) => error.code == Code::EXCESSIVE_LOAD,
            Self::Reset { code } => *code == Code::EXCESSIVE_LOAD,
            _ => false,
        }
    }

    /// Bounded label for metrics, never the message.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotConnected { .. } => "not_connected",
            Self::NoStreamCredit => "no_stream_credit",
            Self::NoExtendedConnect => "no_extended_connect",
            Self::Unsendable(_) => "unsendable",
            Self::Rejected => "rejected",
            Self::Reset { .. } => "reset",
            Self::ConnectionLost { .. } => "connection_lost",
            Self::Protocol(_) => "protocol",
            Self::Body(_) => "body",
            Self::Unread => "unread",
            Self::Closed => "closed",
        }
    }
}

/// Why the tunnels of a worker cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The UDP port cannot be had.
    #[error("cannot bind UDP {address}")]
    Socket {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The TLS configuration does not fit QUIC.
    #[error("TLS configuration does not fit QUIC")]
    Tls(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}
