//! QUIC as a mesh wants it: socket, transport parameters, TLS.

use crate::{
    config::{TunnelConfig, TunnelLimits},
    credit,
    error::BindError,
    socket::{CutSet, CutSocket},
};
use archipelago_identity::{
    LiveCredential, SpiffeId,
    tls::{self, IdentityError, PeerCertificate},
};
use quinn::{
    AckFrequencyConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, TokioRuntime,
    TransportConfig, VarInt,
    crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

/// ALPN of HTTP/3.
pub(crate) const ALPN: &[&[u8]] = &[b"h3"];

/// SNI and nothing more: identity is the SPIFFE id in the certificate.
pub(crate) const SERVER_NAME: &str = "gateway.tunnel.archipelago.dev";

/// The endpoint of a worker: client and server on one socket.
pub(crate) fn endpoint(
    config: &TunnelConfig,
    transport: &Arc<TransportConfig>,
    cut: &Arc<CutSet>,
) -> Result<Endpoint, BindError> {
    let failed = |source| BindError::Socket { address: config.bind, source };
    let socket = socket(config.bind, config.limits.socket_buffer_bytes).map_err(failed)?;
    let socket = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
    let socket = Arc::new(CutSocket::new(socket, cut.clone()));
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(server_tls(&config.credential)?));
    // Gateways have fixed addresses, and a path that moved to another worker's socket would be lost there.
    server.transport_config(transport.clone()).migration(false);
    server.max_incoming(config.limits.handshakes * 4);
    // Keys for stateless resets and connection ids are drawn per process. A restarted peer is therefore silent towards
    // the connections of its predecessor; beats find that out sooner than a reset would have been allowed to say it.
    Endpoint::new_with_abstract_socket(EndpointConfig::default(), Some(server), socket, Arc::new(TokioRuntime))
        .map_err(failed)
}

/// TLS towards one peer: it must prove exactly this id.
pub(crate) fn client_config(
    credential: &LiveCredential,
    expect: &SpiffeId,
    transport: &Arc<TransportConfig>,
) -> Result<quinn::ClientConfig, NoInitialCipherSuite> {
    let tls = tls::client_config(credential, tls::Expect::Id(expect.clone()), ALPN);
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport.clone());
    Ok(config)
}

/// The certificate that the other side proved to hold.
pub(crate) fn peer_certificate(connection: &quinn::Connection) -> Result<PeerCertificate, IdentityError> {
    let certificates = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(IdentityError::NoCertificate)?;
    tls::peer_certificate(&certificates)
}

/// Transport parameters, both directions. Reasons are with [`TunnelLimits`] or here.
pub(crate) fn transport(limits: &TunnelLimits) -> Arc<TransportConfig> {
    let mut ack_frequency = AckFrequencyConfig::default();
    // An ACK every tenth packet instead of every second one costs the receiver a fifth, and a delay of 2 ms instead of
    // 25 ms makes the probe for a lost tail fast (it waits for the smoothed RTT + 4 × variance + this delay).
    ack_frequency.ack_eliciting_threshold(9u32.into()).max_ack_delay(Some(Duration::from_millis(2)));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(1452).interval(Duration::from_secs(120));
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(credit::first_streams(limits).into())
        // Control, two of QPACK, health, and as many that a stock peer greases with.
        .max_concurrent_uni_streams(16u32.into())
        .stream_receive_window(limits.stream_window_bytes.into())
        .receive_window(limits.connection_window_bytes.into())
        .send_window(limits.send_window_bytes)
        .ack_frequency_config(Some(ack_frequency))
        .mtu_discovery_config(Some(mtu))
        // The default of 333 ms makes the first probe of a handshake wait a second.
        .initial_rtt(Duration::from_millis(50))
        // Beats keep an idle tunnel alive, once a second; this does it for peers that have none.
        .keep_alive_interval(Some(limits.idle_timeout / 2))
        .max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok())
        // Datagrams are beats of 42 bytes: a full buffer means that nobody reads, and old beats are worthless.
        .datagram_receive_buffer_size(Some(64 * 1024))
        .datagram_send_buffer_size(16 * 1024);
    Arc::new(config)
}

/// An HTTP/3 code as QUIC carries it.
pub(crate) fn varint(code: crate::codec::Code) -> VarInt {
    VarInt::from_u64(code.0).unwrap_or(VarInt::MAX)
}

fn server_tls(credential: &LiveCredential) -> Result<QuicServerConfig, NoInitialCipherSuite> {
    QuicServerConfig::try_from(tls::server_config(credential, tls::ClientAuth::Required, ALPN))
}

fn socket(address: SocketAddr, buffer_bytes: usize) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The kernel grants at most net.core.{r,w}mem_max, silently: less is slower, not wrong.
    for (what, result) in
        [("receive", socket.set_recv_buffer_size(buffer_bytes)), ("send", socket.set_send_buffer_size(buffer_bytes))]
    {
        if let Err(error) = result {
            tracing::debug!(%error, what, "socket buffer not enlarged");
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
