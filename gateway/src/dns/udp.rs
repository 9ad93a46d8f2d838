//! Questions over UDP, each answered from the address at which it was asked.
//!
//! A node has many addresses, and left alone the kernel answers from the one nearest to the asker: for a pod that is its
//! bridge's, while the pod asked the node's, or that of a Service behind which the node's stands. Neither the pod nor
//! connection tracking takes that for an answer. hickory's server does not look, so its sockets are not used for this.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::MessageType;
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Answers for ever, one question at a time: an answer takes microseconds, and what comes meanwhile waits in the kernel.
/// May be dropped at any time: no question is taken and not answered.
pub async fn serve(socket: UdpSocket, handler: impl RequestHandler) -> io::Result<()> {
    let state = UdpSocketState::new((&socket).into())?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let mut meta = [RecvMeta::default()];
        let received = socket.async_io(Interest::READABLE, || {
            state.recv((&socket).into(), &mut [IoSliceMut::new(&mut buffer)], &mut meta)
        });
        if let Err(error) = received.await {
            tracing::debug!(%error, "a DNS question could not be read");
            tokio::time::sleep(READ_RETRY).await;
            continue;
        }
        let [RecvMeta { addr, len, stride, dst_ip, .. }] = meta;
        if !can_be_asked_from(addr) {
            continue;
        }
        // The kernel may hand over several questions of one asker at once.
        for question in buffer.get(..len).unwrap_or_default().chunks(stride.max(1)) {
            let Some(answer) = answer(&handler, question, addr).await else { continue };
            let transmit =
                Transmit { destination: addr, ecn: None, contents: &answer, segment_size: None, src_ip: dst_ip };
            // Whoever gets no answer asks again.
            if let Err(error) = socket.try_io(Interest::WRITABLE, || state.try_send((&socket).into(), &transmit)) {
                tracing::debug!(%error, %addr, "a DNS answer could not be sent");
            }
        }
    }
}

/// The answer to a question as it came; `None` to what is none.
async fn answer(handler: &impl RequestHandler, question: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let request = match Request::from_bytes(question.to_vec(), from, Protocol::Udp) {
        Ok(request) if request.metadata.message_type == MessageType::Query => request,
        // An answer to an answer could go round for ever.
        Ok(_) => return None,
        Err(_) => return malformed(question),
    };
    let reply = Reply::default();
    handler.handle_request::<_, TokioTime>(&request, reply.clone()).await;
    let bytes = std::mem::take(&mut *reply.0.lock().unwrap_or_else(PoisonError::into_inner));
    (!bytes.is_empty()).then_some(bytes)
}

/// FORMERR, as far as there is a head to answer (RFC 1035 §4.1.1).
fn malformed(question: &[u8]) -> Option<Vec<u8>> {
    let [first, second, flags, _, ..] = *question.get(..HEAD_BYTES)? else { return None };
    (flags & IS_RESPONSE == 0).then(|| {
        let mut head = vec![first, second, IS_RESPONSE | flags & OPCODE, FORMAT_ERROR];
        head.resize(HEAD_BYTES, 0);
        head
    })
}

/// No answer can reach the others, or it reaches more than one.
fn can_be_asked_from(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let is_one = !ip.is_unspecified() && !ip.is_multicast() && !matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    is_one && address.port() != 0
}

/// Takes the answer as bytes.
#[derive(Debug, Clone, Default)]
struct Reply(Arc<Mutex<Vec<u8>>>);

#[async_trait::async_trait]
impl ResponseHandler for Reply {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::with_capacity(usize::from(PLAIN_BYTES_MAX));
        let mut encoder = BinEncoder::new(&mut bytes);
        // What is longer is cut and says so: the asker comes again over TCP.
        encoder.set_max_size(response.edns().map_or(PLAIN_BYTES_MAX, |edns| edns.max_payload()));
        let info = response.destructive_emit(&mut encoder)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        Ok(info)
    }
}

/// The largest datagram; also what the kernel may merge.
const READ_BYTES: usize = 64 * 1024;
const READ_RETRY: Duration = Duration::from_millis(20);
/// RFC 1035 §4.2.1: without EDNS.
const PLAIN_BYTES_MAX: u16 = 512;
const HEAD_BYTES: usize = 12;
const IS_RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const FORMAT_ERROR: u8 = 1;

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};

    use super::super::{Zone, server::Handler};
    use super::*;
    use crate::config::{Published, Snapshot};

    fn handler() -> Handler {
        let zone = Zone { http: "192.0.2.1:15080".parse().unwrap(), tcp_base: "192.0.2.1:16000".parse().unwrap() };
        Handler::new(Arc::new(Published::new(Snapshot::empty(), 1)), zone)
    }

    fn question() -> Message {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii("dns-version.clusterset.local.").unwrap(), RecordType::TXT));
        message
    }

    #[tokio::test]
    async fn an_answer_comes_from_where_it_was_asked() {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let served = tokio::spawn(serve(socket, handler()));
        for address in ["127.0.0.2", "127.0.0.1", "127.1.2.3"] {
            // The nearest address to this one is 127.0.0.1, and a connected socket hears nobody but whom it asked.
            let asker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            asker.connect((address, port)).await.unwrap();
            asker.send(&question().to_vec().unwrap()).await.unwrap();
            let mut buffer = [0; 512];
            let answered = tokio::time::timeout(Duration::from_secs(20), asker.recv(&mut buffer)).await;
            let size = answered.unwrap_or_else(|_| panic!("no answer from {address}")).unwrap();
            let answer = Message::from_vec(&buffer[..size]).unwrap();
            assert_eq!(answer.answers[0].data.to_string(), "1.0.0");
        }
        served.abort();
    }

    #[tokio::test]
    async fn what_is_no_question_gets_a_short_answer_or_none() {
        let (handler, from) = (handler(), "10.0.0.1:5353".parse().unwrap());
        let good = question().to_vec().unwrap();
        let code =
            |answer: Option<Vec<u8>>| answer.map(|bytes| Message::from_vec(&bytes).unwrap().metadata.response_code);
        assert_eq!(code(answer(&handler, &good, from).await), Some(ResponseCode::NoError));
        let cut = answer(&handler, &good[..20], from).await.unwrap();
        assert_eq!(cut[..2], good[..2]);
        assert_eq!(code(Some(cut)), Some(ResponseCode::FormErr));
        for nothing in [&[][..], &good[..11], &[0xff; 40]] {
            assert_eq!(answer(&handler, nothing, from).await, None, "{nothing:?}");
        }
        let mut said = good.clone();
        said[2] |= IS_RESPONSE;
        assert_eq!(answer(&handler, &said, from).await, None);
        for (address, is_good) in [("10.0.0.1:53", true), ("[::ffff:0.0.0.0]:53", false), ("224.0.0.1:53", false)] {
            assert_eq!(can_be_asked_from(address.parse().unwrap()), is_good, "{address}");
        }
        assert!(!can_be_asked_from("10.0.0.1:0".parse().unwrap()));
    }
}
