//! The zone behind UDP and TCP sockets, on a thread of its own: a flood of questions never touches the data path.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::DNSClass;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio_util::sync::CancellationToken;

use super::{Answer, Zone, answer, udp};
use crate::config::Published;
use crate::handover::{self, sockets::Kind};

/// Sockets of the DNS server, bound before any thread starts so that a taken port is an error of startup.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds UDP and TCP on the same address, unless they were taken over; port 0 picks one port for both.
    pub fn bind(address: SocketAddr, sockets: &handover::Sockets) -> std::io::Result<Self> {
        let bind = || {
            let tcp = TcpListener::bind(address)?;
            Ok((UdpSocket::bind(tcp.local_addr()?)?, tcp))
        };
        // A port that was picked for TCP can be taken for UDP; another one will do.
        let picks = if address.port() == 0 { PORT_PICKS_MAX } else { 1 };
        let inherited = |kind| sockets.take(kind, address).into_iter().next();
        let (udp, tcp): (UdpSocket, TcpListener) = match (inherited(Kind::Udp), inherited(Kind::Tcp)) {
            (Some(udp), Some(tcp)) => (udp.into(), tcp.into()),
            _ => (1..picks).find_map(|_| bind().ok()).map_or_else(bind, Ok::<_, std::io::Error>)?,
        };
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        sockets.keep(Kind::Udp, udp.local_addr()?, Arc::new(udp.try_clone()?));
        sockets.keep(Kind::Tcp, tcp.local_addr()?, Arc::new(tcp.try_clone()?));
        Ok(Self { udp, tcp })
    }

    /// Where the server answers.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Serves until `stop`.
pub async fn serve(
    sockets: Sockets,
    published: Arc<Published>,
    zone: Zone,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let handler = Handler::new(published, zone);
    let over_udp = udp::serve(tokio::net::UdpSocket::from_std(sockets.udp)?, handler.clone());
    let mut server = Server::new(handler);
    server.register_listener(tokio::net::TcpListener::from_std(sockets.tcp)?, TCP_IDLE_TIMEOUT, TCP_RESPONSES_QUEUED);
    tokio::select! {
        () = stop.cancelled() => {
            // Answers in flight are a few microseconds old; the sockets close with the server.
            drop(server);
            Ok(())
        }
        ended = over_udp => ended,
        ended = server.block_until_done() => ended.map_err(|error| std::io::Error::other(error.to_string())),
    }
}

/// Answers from the current snapshot.
#[derive(Debug, Clone)]
pub struct Handler {
    published: Arc<Published>,
    zone: Zone,
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut responses: R) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let mut edns = None;
        let reply = if let Some(asked) = &request.edns {
            let mut offer = Edns::new();
            offer.set_version(0).set_max_payload(asked.max_payload().clamp(UDP_BYTES_MIN, UDP_BYTES_MAX));
            edns = Some(offer);
            (asked.version() > 0).then(|| Answer {
                code: ResponseCode::BADVERS,
                answers: vec![],
                authority: vec![],
                additionals: vec![],
            })
        } else {
            None
        };
        let reply = reply.unwrap_or_else(|| self.reply(request));
        metadata.response_code = reply.code;
        metadata.authoritative = matches!(reply.code, ResponseCode::NoError | ResponseCode::NXDomain);
        metadata.recursion_available = false;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &reply.answers, &reply.authority, [], &reply.additionals);
        match responses.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "DNS response not sent");
                ResponseInfo::from(hickory_proto::op::Header {
                    metadata,
                    counts: hickory_proto::op::HeaderCounts::default(),
                })
            }
        }
    }
}

impl Handler {
    /// For this zone.
    pub fn new(published: Arc<Published>, zone: Zone) -> Self {
        Self { published, zone }
    }

    fn reply(&self, request: &Request) -> Answer {
        let refuse = |code| Answer { code, answers: vec![], authority: vec![], additionals: vec![] };
        if request.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        match request.request_info() {
            Err(_) => refuse(ResponseCode::FormErr),
            Ok(info) if info.query.query_class() != DNSClass::IN => refuse(ResponseCode::Refused),
            Ok(info) => answer::answer(
                &self.published.load(),
                &self.zone,
                info.query.original().name(),
                info.query.query_type(),
            ),
        }
    }
}

const PORT_PICKS_MAX: usize = 16;
const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_RESPONSES_QUEUED: usize = 16;
/// RFC 6891 §6.2.3: smaller offers count as 512.
const UDP_BYTES_MIN: u16 = 512;
/// The DNS flag day's 1,232 never fragments.
const UDP_BYTES_MAX: u16 = 1_232;
